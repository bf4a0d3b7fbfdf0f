r"""A regular expression that is searched for in names, in bounded time.

    search = Search("name_pattern", compile_pattern(r"(?P<patient>p\d+)"))
    search("left/p01/7.png")            # a match, or None

Some take years for one name, as (\w+)+! does: a slip of who types one, or meant so by who wrote a
checkpoint that keeps one. No rule for how they look finds them all, as a clock does.
"""

import re
import signal
import threading
import time

from scans.slices import DataError

# Of a processor, for all names and more for each: an expression takes microseconds a name. In a
# second one that repeats nothing, as (?:){4000000000} does, takes 2 GB.
SECONDS, SECONDS_A_NAME = 0.5, 0.001
LOOKED_AT = 0.05  # seconds of all threads of this process


class SlowPattern(DataError):
    """An expression that takes too long. `option` is its name in Options."""

    def __init__(self, option: str, pattern: str, name: str):
        self.option = option
        super().__init__(
            f"--{option.replace('_', '-')} {pattern}: takes too long to be searched for in {name}, "
            "as a repetition within a repetition can"
        )


class TimeIsUp(Exception):
    """Raised in a search by the handler of a signal, and nowhere else."""


class Search:
    """Searches name after name; all names together have the time that is said above.

    It is not bounded where there is no such clock: on Windows, and in threads.
    """

    def __init__(self, option: str, pattern: re.Pattern):
        self.option, self.pattern, self.left = option, pattern, SECONDS

    def __call__(self, name: str) -> re.Match | None:
        """What `pattern.search` finds. Raises SlowPattern."""
        main = threading.current_thread() is threading.main_thread()
        if not (main and hasattr(signal, "setitimer")):
            return self.pattern.search(name)
        started = time.thread_time()
        self.left += SECONDS_A_NAME
        if self.left <= 0:  # by many names, each of which was too short for the clock
            raise SlowPattern(self.option, self.pattern.pattern, name)
        end = started + self.left

        def look_at_the_clock(number: int, frame: object) -> None:
            if time.thread_time() > end:
                signal.setitimer(signal.ITIMER_PROF, 0)
                raise TimeIsUp  # `re` asks for signals on its way; no code that could lose it runs

        before = signal.signal(signal.SIGPROF, look_at_the_clock)
        try:
            try:
                signal.setitimer(signal.ITIMER_PROF, LOOKED_AT, LOOKED_AT)
                return self.pattern.search(name)
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
        except (TimeIsUp, MemoryError) as error:
            raise SlowPattern(self.option, self.pattern.pattern, name) from error
        finally:
            signal.signal(signal.SIGPROF, before)
            self.left -= time.thread_time() - started
