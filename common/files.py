"""Files and folders that are written whole or not at all; CSV and JSON in them.

with whole_file(run / "metrics.csv") as temporary:
    temporary.write_text(...)           # flushed to disk, then renamed to metrics.csv
"""

import csv
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from common.program import UserError


def temporary_name(path: Path) -> Path:
    """A hidden name beside `path`, of this process alone.

    Not by process id alone: in containers that share a folder they are all the same.
    """
    own = f"{os.getpid()}-{secrets.token_hex(4)}"
    return path.with_name(f".{path.stem}.{own}.unfinished{path.suffix}")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary file in the same folder that becomes `path` when it is whole and on disk.

    If anything fails on the way (a full disk, a kill), `path` is what it was before.
    """
    temporary = temporary_name(path)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name, too
        finally:
            os.close(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno is None:  # a library's own complaint, such as of a format
            raise
        # The user knows the file by the name that it was to get.
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that becomes `path` at the end; nothing of it if that fails.

    Raises FileExistsError if `path` is a file, or a folder that holds something.
    """
    path = path.resolve()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is not empty; name a new or empty folder")
    temporary = temporary_name(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        named = str(error.filename or temporary)
        if error.errno and named.startswith(str(temporary)):  # such as a full disk
            # The user knows the folder by the name that it was to get.
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_csv(path: Path, rows: list[dict], columns: Iterable[str] | None = None) -> None:
    """Names that are no text, as file systems allow, are written as they are."""
    with (
        whole_file(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.DictWriter(file, columns or rows[0])
        writer.writeheader()
        writer.writerows(rows)


class Table(NamedTuple):
    """A CSV file as it was read."""

    columns: list[str]
    rows: list[tuple[int, dict]]  # (line of the file, column -> text)


def read_csv(path: str | Path, what: str) -> Table:
    """Read a CSV file; `what` it should be is for the message.

    Raises UserError if it can't be read or is no text.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.DictReader(file)
            return Table(list(reader.fieldnames or []), [(reader.line_num, row) for row in reader])
    except (OSError, csv.Error) as error:
        raise UserError(f"{path}: not a readable {what}: {error}") from error


def write_json(path: Path, content: dict) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def abridged(names: list[str], most: int = 5) -> str:
    """The first few, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
