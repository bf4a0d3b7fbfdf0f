"""Other people's files, read by libraries in processes that may die.

    for path, found in zip(paths, isolated(read_header, paths), strict=True):
        if isinstance(found, Lost): ...         # why there is no header

A library may crash, hang or eat all memory on a damaged file, and quotes it on standard error. Here
that is one `Lost` in place of one result, and nothing reaches the terminal.
"""

import contextlib
import faulthandler
import itertools
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from common import signals
from common.room import memory

Task = TypeVar("Task")
Result = TypeVar("Result")
GB = 2**30
MEMORY = 8 * GB  # of a process; the largest volume that is read takes 6
SECONDS = 120  # for what is read at once
IDLE = 10  # seconds after which a process without work ends
MAX_PROCESSES = 32
# Libraries would start as many threads in each process, and reserve memory for them all.
ENVIRONMENT = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"), "1"
)


class Lost(NamedTuple):
    """What stands for a result that there is not."""

    text: str


def isolated(
    work: Callable[[Task], Result],
    tasks: Iterable[Task],
    workers: int | None = None,
    chunk: int = 1,
) -> Iterator[Result | Lost]:
    """What `work` makes of each task, in their order; Lost where it crashes, hangs, or takes too
    much memory. Its other exceptions are raised here.

    Args:
        work: a function of a module, which is imported by each process.
        tasks: taken as they are needed.
        workers: processes; by default as many as processors; at most 32.
        chunk: how many tasks travel at once: one for long ones, more for short ones.
    """
    from loky.process_executor import TerminatedWorkerError  # 0.1 s: only where files are read

    count = min(workers or os.cpu_count() or 1, MAX_PROCESSES)
    waiting: deque[tuple[Future, list[Task]]] = deque()
    tasks = iter(tasks)
    first = list(itertools.islice(tasks, count * chunk))
    count = min(count, -(-len(first) // chunk))  # no process has nothing to do
    tasks = itertools.chain(first, tasks)
    try:
        while True:
            while len(waiting) <= 2 * count and (some := list(itertools.islice(tasks, chunk))):
                waiting.append((submit(work, some, count), some))
            if not waiting:
                return
            future, some = waiting.popleft()
            try:
                found = future.result()
            except TerminatedWorkerError:  # all that were begun are lost: which of them was it?
                begun = itertools.chain(some, *(others for _, others in waiting))
                found = (alone(work, task, count) for task in begun)
                waiting.clear()
                state.pool = None
            for result in found:
                signals.check()
                yield result
    finally:
        for future, _ in waiting:
            future.cancel()


@dataclass
class State:
    """The processes that there are: they serve one call after another."""

    pool: object | None = None  # a ProcessPoolExecutor of loky
    count: int = 0


state = State()


def submit(work: Callable, tasks: list, count: int) -> Future:
    from loky import ProcessPoolExecutor
    from loky.backend.resource_tracker import ensure_running
    from loky.process_executor import TerminatedWorkerError

    if state.pool is not None and state.count < count:
        state.pool.shutdown(kill_workers=True)
        state.pool = None
    if state.pool is None:
        sys.warnoptions.append("ignore::UserWarning")
        ensure_running()  # it removes semaphores that a stopped program leaves, and would warn
        sys.warnoptions.pop()
        state.pool = ProcessPoolExecutor(count, timeout=IDLE, initializer=begin, env=ENVIRONMENT)
        state.count = count
    try:
        return state.pool.submit(run, work, tasks, SECONDS, os.getcwd())
    except TerminatedWorkerError:  # a process has just died
        state.pool = None
        return submit(work, tasks, count)


def alone(work: Callable[[Task], Result], task: Task, count: int) -> Result | Lost:
    """While nothing else is done: what dies now, dies of this task."""
    from loky.process_executor import TerminatedWorkerError

    started = time.monotonic()
    try:
        return submit(work, [task], count).result()[0]
    except TerminatedWorkerError:
        state.pool = None
        if time.monotonic() - started >= SECONDS:
            return Lost(f"it takes more than {SECONDS} seconds to read")
        return Lost("it ends the process that reads it, as damaged files do")


# ---- in such a process ---------------------------------------------------------------------------


def begin() -> None:
    """Before its first task."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches it too; the parent ends it
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):  # libraries write there, past Python
        os.dup2(nowhere, descriptor)
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows; a limit that is lower
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        limit = min(MEMORY, memory())
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def end_with(parent: int) -> None:
    """A program that was stopped leaves nothing that still reads, and holds its pipes open."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(0)


def run(
    work: Callable[[Task], Result], tasks: list[Task], seconds: float, folder: str
) -> list[Result | Lost]:
    """folder: where relative paths of tasks begin, which may be another one than before."""
    os.chdir(folder)
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
        try:
            return [attempt(work, task) for task in tasks]
        finally:
            faulthandler.cancel_dump_traceback_later()


def attempt(work: Callable[[Task], Result], task: Task) -> Result | Lost:
    try:
        return work(task)
    except MemoryError:
        return Lost(f"it takes more than {MEMORY // GB} GB of memory to read")
