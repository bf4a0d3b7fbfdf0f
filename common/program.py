"""How a program ends: its exit code, and one line in place of a traceback for what a user caused.

Exit codes: 0 done, 1 something failed, 2 unusable arguments or data, 130 interrupted. Only our own
error types and what the system says of a file become a line: a bug keeps its traceback.
"""

import argparse
import errno
import gc
import math
import os
import shlex
import sys
import textwrap
from collections.abc import Callable
from typing import NoReturn

from common.signals import Interrupted, hint

LONGEST_LINE = 5000  # characters; paths have up to 4,096 bytes
DISK_FAILURES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class UserError(ValueError):
    """Something that whoever runs the program can mend. Its lines say what and how.

    Names in them may hold anything; what is printed of each is one line (see `printable`).
    """

    exit_code = 2

    def __init__(self, *lines: str):
        super().__init__("\n".join(map(printable, lines)))


class OutOfMemory(UserError):
    """A GPU or the machine has too little memory. The message says how to use less."""

    exit_code = 1


class MissingPackage(UserError):
    """An optional package that is needed now. The message says what to install."""


def check_matplotlib() -> None:
    """Raise MissingPackage if it can't be imported: before the work whose results are drawn."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        text = f"matplotlib can't be imported ({error}): pip install -r requirements.txt"
        raise MissingPackage(text) from error


class Formatter(argparse.HelpFormatter):
    """Adds the default of each flag that has one to its help, and keeps lines and flags whole."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        wrapper = textwrap.TextWrapper(
            width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
        )
        return "\n".join(map(wrapper.fill, text.splitlines()))

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        told = "default" in text or not action.option_strings
        if told or action.default in (None, (), argparse.SUPPRESS) or action.default is False:
            return text
        value = action.default
        value = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
        return f"{text} (default: {value})".strip()


class Parser(argparse.ArgumentParser):
    """Errors in one line; once, under torchrun. --help says the defaults."""

    def __init__(self, **more):
        super().__init__(formatter_class=Formatter, **more)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {printable(message)}\n" if speaks() else None)


def speaks() -> bool:
    """Whether this process is the one of several that prints."""
    return os.environ.get("RANK", "0") == "0"


def printable(text: str) -> str:
    """What can't be printed is escaped, so that no name of a file moves the cursor or fakes a line.

    Control characters, line breaks, marks of writing direction, bytes that are no text. Of a line
    that no name of a file could fill, the middle is left out.
    """
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    half = LONGEST_LINE // 2
    return text if len(text) <= LONGEST_LINE else f"{text[:half]} ... {text[-half:]}"


def typed(word: str | os.PathLike) -> str:
    """A word of a command as it is typed in a shell, in one line whatever it holds."""
    quoted = shlex.quote(os.fspath(word))
    if quoted.isprintable():
        return quoted
    escaped = os.fsencode(word).decode("latin-1").encode("unicode_escape").decode()
    return "$'" + escaped.replace("'", "\\'") + "'"


def counted(number: int, unit: str) -> str:
    """1, scan -> 1 scan; 1200, slice -> 1,200 slices"""
    return f"{number:,} {unit}" if number == 1 else f"{number:,} {unit}s"


def print_lines(*lines: str, to_error: bool = False) -> None:
    """Print each as one line, at once, so that a program that is stopped has said what it knew."""
    stream = sys.stderr if to_error else sys.stdout
    for line in lines:
        print(printable(line), file=stream, flush=True)


def print_any_name() -> None:
    """Characters that the encoding of a terminal lacks are printed with backslashes."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def run_program(
    run: Callable[[argparse.Namespace], int],
    args: argparse.Namespace,
    name: str,
    expected: tuple[type[Exception], ...] = (),
) -> int:
    """The exit code of `run`, which ends in one line where a user's input is at fault.

    expected: error types besides UserError whose message is for the user, such as the model's.
    """
    print_any_name()
    if not gc.isenabled():  # a program, see the beginning of train.py
        gc.freeze()  # what was imported stays: to search it again and again takes 0.3 s
        gc.enable()
    try:
        return run(args)
    except BrokenPipeError:  # `... | head`: nobody listens any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except UserError as error:
        code, lines = error.exit_code, f"{error}".split("\n")
    except expected as error:
        code, lines = getattr(error, "exit_code", 2), [f"{error}"]
    except OSError as error:
        if error.errno in DISK_FAILURES:
            path = error.filename or "standard output"
            parts = [f"{path}: {error.strerror}", "what was there is whole"]
            parts += [f"when that is mended, {hint()}"] if hint() else []
            code, lines = 1, ["; ".join(parts)]
        elif error.filename is None and not isinstance(error, FileNotFoundError | FileExistsError):
            raise  # not about a file that somebody named
        else:
            code, lines = 2, [describe_os_error(error)]
    except Interrupted as error:
        code, lines = 128 + error.args[0], ["; ".join(filter(None, ["interrupted", hint()]))]
    except KeyboardInterrupt:
        code, lines = 130, ["interrupted"]
    if speaks() or code == 1:  # what is wrong with arguments or data is wrong for all processes
        print_lines(f"{name}: {lines[0]}", *lines[1:], to_error=True)
    return code


def describe_os_error(error: OSError) -> str:
    """What the system says of a file, without its number."""
    if error.filename is None:
        return f"{error}"
    return f"{os.fsdecode(error.filename)}: {error.strerror or type(error).__name__}"


# ---- arguments -----------------------------------------------------------------------------------

MOST_DIGITS = 18  # of a whole number: what 64 bits hold


def whole_number(text: str) -> int:
    """Raises ArgumentTypeError: what was expected, behind the name of the flag."""
    return number_of(int, text, "a whole number")


def number(text: str) -> float:
    return number_of(float, text, "a number")


def positive_int(text: str) -> int:
    return number_of(int, text, "a whole number of at least 1", lambda value: value >= 1)


def positive_float(text: str) -> float:
    return number_of(float, text, "a number above 0", lambda value: 0 < value < math.inf)


def fraction(text: str) -> float:
    return number_of(float, text, "a number above 0 and at most 1", lambda value: 0 < value <= 1)


def part(text: str) -> float:
    return number_of(float, text, "a number above 0 and below 1", lambda value: 0 < value < 1)


def number_of(
    kind: type, text: str, expected: str, holds: Callable[[float], bool] = lambda _: True
) -> int | float:
    """A number of this kind for which it holds. Raises ArgumentTypeError with what was expected."""
    got = text if len(text) <= 40 else f"{text[:40]}..."
    try:
        value = kind(text)
    except ValueError:  # Python reads no whole number of more than 4300 digits either
        value = None
    if value is None or not holds(value):
        raise argparse.ArgumentTypeError(f"expected {expected}, got {got}")
    if kind is int and abs(value) >= 10**MOST_DIGITS:
        raise argparse.ArgumentTypeError(f"expected at most {MOST_DIGITS} digits, got {got}")
    return value
