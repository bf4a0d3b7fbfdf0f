"""What C libraries print of the files that they read, kept from the terminal.

@quiet_libraries()
def list_slices(...): ...

libtiff, ITK and others write to the descriptor of standard error, past Python, and quote the file:
control characters of it would reach the terminal, and 10,000 damaged files be 10,000 lines. What is
wrong with a file is said in our own words. Python's own sys.stderr goes on as before.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

STANDARD_ERROR = 2


@dataclass
class State:
    """Of the standard error of this process."""

    depth: int = 0  # how many `quiet_libraries` are open, in all threads
    descriptor: int = STANDARD_ERROR  # where it leads
    stream: TextIO | None = None  # what sys.stderr was before


state, lock = State(), threading.Lock()


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Nothing but Python writes to standard error. In all threads, as there is one descriptor."""
    with lock:
        if not state.depth:
            hush()
        state.depth += 1
    try:
        yield
    finally:
        with lock:
            state.depth -= 1
            if not state.depth:
                speak()


def hush() -> None:
    try:
        state.descriptor = os.dup(STANDARD_ERROR)
    except OSError:  # closed
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if writes_to_standard_error(sys.stderr):
        sys.stderr.flush()
        encoding, errors, state.stream = sys.stderr.encoding, sys.stderr.errors, sys.stderr
        sys.stderr = open(state.descriptor, "w", 1, encoding, errors, closefd=False)  # noqa: SIM115
    os.dup2(nowhere, STANDARD_ERROR)
    os.close(nowhere)


def writes_to_standard_error(stream: TextIO | None) -> bool:
    """Not in a notebook, or a test that looks at what is printed."""
    try:
        return stream.fileno() == STANDARD_ERROR
    except (AttributeError, OSError, ValueError):  # none, or no file, or closed
        return False


def speak() -> None:
    if state.descriptor == STANDARD_ERROR:
        return
    if state.stream is not None:
        sys.stderr.flush()
        sys.stderr = state.stream
    os.dup2(state.descriptor, STANDARD_ERROR)
    # A signal handler may write just now: it must find an open descriptor.
    copy, state.descriptor, state.stream = state.descriptor, STANDARD_ERROR, None
    os.close(copy)
