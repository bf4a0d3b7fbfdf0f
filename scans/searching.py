r"""A regular expression that is searched for in names, in bounded time.

    search = Search("name_pattern", r"(?P<patient>p\d+)")
    search("left/p01/7.png")            # a match, or None

Some expressions take years for one name, as (a|aa)+$ does: mistyped, or kept by a checkpoint that
comes from a stranger. The package `regex` reads what Python's `re` reads, and takes a timeout.
"""

import re
import time
from math import prod

import regex

from scans.slices import DataError

# Seconds for all names, and more for each: an expression takes microseconds a name.
SECONDS, SECONDS_A_NAME = 0.5, 0.001
# Repetitions within repetitions are multiplied: a{99} nested five times takes all memory there is.
REPEAT, MOST_REPEATS = re.compile(r"\{\s*(?:\d*\s*,)?\s*(\d+)", re.ASCII), 1_000_000


class SlowPattern(DataError):
    """An expression that takes too long. `option` is its name in Options."""

    def __init__(self, option: str, pattern: str, name: str):
        self.option = option
        super().__init__(
            f"--{option.replace('_', '-')} {pattern}: takes too long to be searched for in {name}, "
            "as a repetition within a repetition can"
        )


class Search:
    """Searches name after name; all names together have the time that is said above.

    Raises DataError if the text is not a regular expression.
    """

    def __init__(self, option: str, text: str, flags: int = 0):
        self.option, self.left = option, SECONDS
        flag = f"--{option.replace('_', '-')} {text}"
        if prod(max(1, int(count)) for count in REPEAT.findall(text)) > MOST_REPEATS:
            raise DataError(f"{flag}: repeats more than {MOST_REPEATS:,} times")
        try:
            self.pattern = regex.compile(text, flags)
        except (regex.error, RecursionError, OverflowError, ValueError, MemoryError) as error:
            raise DataError(f"{flag}: not a regular expression: {error}") from error

    def __call__(self, name: str) -> regex.Match | None:
        """What `pattern.search` finds. Raises SlowPattern."""
        self.left += SECONDS_A_NAME
        started = time.thread_time()
        try:
            return self.pattern.search(name, timeout=max(self.left, SECONDS_A_NAME))
        except (TimeoutError, MemoryError) as error:
            raise SlowPattern(self.option, self.pattern.pattern, name) from error
        finally:
            self.left -= time.thread_time() - started
