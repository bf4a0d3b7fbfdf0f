"""Ctrl-C and SIGTERM: at once where nothing would be lost, else after what is being done.

with listening("predict.py"):
    with orderly():                     # something is half written
        for row in rows:
            check()                     # raises Interrupted after a signal
            ...                         # so that the half-written file is removed

A handler raises nothing: an exception raised in one is lost where Python is just collecting garbage
or in a __del__. It only notes the signal, or ends the process. Without `listening`, as in a
notebook, Ctrl-C is Python's own KeyboardInterrupt.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

NUMBERS = (signal.SIGINT, signal.SIGTERM)
PASSED_ON = 5.0  # seconds: torchrun passes on what its processes have just received themselves


class Interrupted(KeyboardInterrupt):
    """A signal was received. The argument is its number."""


@dataclass
class State:
    """Of the signals of this process."""

    program: str = ""
    hint: str = ""  # how to go on, for who stops it at once
    received: int = 0
    at: float = 0.0
    depth: int = 0  # how many `orderly` are open
    ending: bool = False  # whether Interrupted was raised: what cleans up is not interrupted
    asked: bool = False  # whether a loop asks `received()` itself, and check() does nothing


state = State()


@contextmanager
def listening(program: str) -> Iterator[None]:
    """Handle SIGINT and SIGTERM of a program of this name, and at the end as they were before."""
    global state
    state = State(program)
    before = {number: signal.signal(number, receive) for number in NUMBERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        state = State()


def receive(number: int, frame: object) -> None:
    """The handler: notes the first signal where something is to be ended; else ends the process."""
    passed_on = "WORLD_SIZE" in os.environ and time.monotonic() < state.at + PASSED_ON
    if state.received and passed_on:
        return
    if state.depth and not state.received:
        state.received, state.at = number, time.monotonic()
        return
    if os.environ.get("RANK", "0") == "0":  # print() is not made for signal handlers
        text = f"{state.program}: stopped at once" + (f"; {state.hint}" if state.hint else "")
        os.write(2, f"{text}\n".encode(errors="backslashreplace"))
    os._exit(128 + number)


@contextmanager
def orderly() -> Iterator[None]:
    """What is done here is ended or undone before a signal ends the program.

    Raises Interrupted at the end if one was received, or at a `check()` on the way.
    """
    if threading.current_thread() is not threading.main_thread():  # handlers are not run in it
        yield
        return
    state.depth += 1
    try:
        yield
        check()
    finally:
        state.depth -= 1


@contextmanager
def asked() -> Iterator[None]:
    """As `orderly`, for a loop that asks `received()` after each step and saves before it stops."""
    state.asked = True
    state.depth += 1
    try:
        yield
    finally:
        state.depth -= 1
        state.asked = False


def set_hint(how_to_go_on: str) -> None:
    """From here on a program that is stopped, or that a full disk ends, says this."""
    state.hint = how_to_go_on


def hint() -> str:
    """How to go on; "" where there is nothing to go on with."""
    return state.hint


def received() -> int:
    """The number of the signal that was received and not yet acted upon; 0 for none."""
    return state.received


def check() -> None:
    """Raise Interrupted, once, if a signal was received; for loops, in the main thread."""
    main = threading.current_thread() is threading.main_thread()
    if state.received and main and not (state.asked or state.ending):
        state.ending = True
        raise Interrupted(state.received)
