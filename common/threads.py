"""Work in several threads, which a signal ends."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from common.signals import check

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int | None = None
) -> Iterator[Result]:
    """The result for each item, in their order, from so many threads (by default all processors).

    After an error, or a signal (see `signals.check`), those begun are finished and no other begins.
    """
    pool = ThreadPoolExecutor(workers or os.cpu_count())
    try:
        for result in pool.map(work, items):
            check()
            yield result
    finally:
        pool.shutdown(cancel_futures=True)
