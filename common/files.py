"""Files that are read only where they are files, and files and folders that are written whole.

with whole_file(run / "metrics.csv") as temporary:
    temporary.write_text(...)           # flushed to disk, then renamed to metrics.csv

with open_regular("p01.nii.gz") as file: ...        # a pipe of that name would wait for ever
"""

import errno
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from common.program import UserError
from common.signals import orderly

# ---- reading -------------------------------------------------------------------------------------

KINDS = [
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
]
NONBLOCK = getattr(os, "O_NONBLOCK", 0)  # Windows has none
MAX_JSON_BYTES = 64 * 2**20  # far above any that is written here


class NotAFile(OSError):
    """A folder, pipe, socket or device where a file was expected."""

    def __init__(self, kind: str, path: str | os.PathLike):
        super().__init__(errno.EINVAL, f"{kind}, expected a file", path)
        self.kind = kind  # "a pipe"


def check_regular(path: str | os.PathLike) -> os.stat_result:
    """For what a library opens by its name: to open a pipe waits for ever, a device may not end.

    Raises NotAFile, or OSError if there is nothing, also for a name that no file can have.
    """
    try:
        status = os.stat(path)
    except ValueError as error:  # a name with a zero in it
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error
    if not stat.S_ISREG(status.st_mode):
        kind = next((kind for holds, kind in KINDS if holds(status.st_mode)), "no file")
        raise NotAFile(kind, path)
    return status


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Open a file for reading. Raises as `check_regular` does, before anything is opened."""
    check_regular(path)
    # What is exchanged for a pipe since then opens at once, and is seen to be none.
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise NotAFile("no file any more", path)
    return file


def read_json(path: Path, what: str) -> object:
    """Plain values. Raises UserError, which says what the file should be, if it is none of it."""
    try:
        with open_regular(path) as file:
            content = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: not a readable {what}: {error.strerror}") from error
    if len(content) > MAX_JSON_BYTES:
        raise UserError(f"{path}: more than {MAX_JSON_BYTES >> 20} MB, too large for a {what}")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a {what}: {error}") from error


# ---- writing -------------------------------------------------------------------------------------


def temporary_name(path: Path) -> Path:
    """A hidden name beside `path`, of this process alone.

    Not by process id alone: in containers that share a folder they are all the same.
    """
    own = f"{os.getpid()}-{secrets.token_hex(4)}"
    return path.with_name(f".{path.stem}.{own}.unfinished{path.suffix}")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary file in the same folder that becomes `path` when it is whole and on disk.

    If anything fails on the way (a full disk, a kill), `path` is what it was before. A signal
    waits for the end, or for a `signals.check()` on the way.
    """
    temporary = temporary_name(path)
    with orderly():
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
            with suppress(OSError):  # a file system that has become read-only
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
    path = Path(os.path.realpath(path))
    if path.is_symlink():
        raise FileExistsError(f"{path} is a link to itself; name a new or empty folder")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is not empty; name a new or empty folder")
    temporary = temporary_name(path)
    with orderly():
        try:
            temporary.mkdir(parents=True)
            yield temporary
            os.replace(temporary, path)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if error.filename2 and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise FileExistsError(f"another program made {path} meanwhile") from error
            named = str(error.filename or temporary)
            if error.errno and named.startswith(str(temporary)):  # such as a full disk
                # The user knows the folder by the name that it was to get.
                raise OSError(error.errno, error.strerror, str(path)) from error
            raise
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def try_folder(folder: Path) -> None:
    """Write a file in a folder, and leave the folder as it was.

    Raises OSError, which names the folder, if that can't be done.
    """
    try:
        with made_folder(folder), tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 2**16)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """A folder, made where it is missing; what was made goes again if it is empty at the end."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]  # the inmost first
    with orderly():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            yield
        finally:
            for path in missing:
                with suppress(OSError):  # it holds something
                    path.rmdir()


@contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Keep a run folder to this process, where the system can.

    If another process has it, wait until it has done, or raise UserError.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise UserError(f"{folder}: another process is training in it") from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


def write_json(path: Path, content: dict) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


# ---- names for a message -------------------------------------------------------------------------


def abridged(names: list[str], most: int = 5) -> str:
    """The first few, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")


def abridged_lines(lines: list[str], most: int = 5) -> list[str]:
    """The first few lines of a list, and one that says how many more there are."""
    more = len(lines) - most
    return lines[:most] + ([f"  and {more:,} more"] if more > 0 else [])
