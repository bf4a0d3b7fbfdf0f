"""Libraries that read files: where one is missing, and what it raises of damaged ones."""

import gzip
import importlib
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from common.files import NotAFile
from common.program import MissingPackage
from scans.slices import DAMAGED, VolumeError

MOST_TEXT = 200  # characters of what a library says
ADDRESSES = re.compile(r"\w+ ?\(0x\w+\):")  # of objects, in what SimpleITK says


def package(name: str, what: str) -> ModuleType:
    """A library, imported when it is really needed. Raises MissingPackage without it."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # a broken one may raise anything
        text = f"reading {what} needs {name} ({type(error).__name__}: {error})"
        raise MissingPackage(f"{text}: pip install -r requirements-extra.txt") from error


@contextmanager
def foreign(path: str) -> Iterator[None]:
    """Around a library's own reading alone: of a damaged file it may raise anything at all, which
    becomes a VolumeError.
    """
    try:
        yield
    except (VolumeError, MissingPackage, MemoryError, NameError):  # the last: a bug of ours
        raise
    except (NotAFile, FileNotFoundError) as error:
        kind = f"{error.kind}, expected a file" if isinstance(error, NotAFile) else ""
        name = os.path.basename(error.filename or path)
        if name == os.path.basename(path):
            raise VolumeError(path, kind or "no such file") from None
        raise VolumeError(path, f"its data file {name} is {kind or 'missing'}") from None
    except (EOFError, gzip.BadGzipFile, tarfile.TarError, zlib.error) as error:
        raise VolumeError(path, f"cut or damaged: {one_line(error, path)}") from None
    except OSError as error:
        raise VolumeError(path, error.strerror or one_line(error, path)) from None
    except Exception as error:
        raise VolumeError(path, f"{DAMAGED}: {one_line(error, path)}") from error


def one_line(error: Exception, path: str) -> str:
    """What a library says, without the file's name, its own source files and addresses."""
    text = f"{error or type(error).__name__}".rsplit("ERROR:", 1)[-1].replace(path, "it")
    text = text.partition(". Use force=True")[0]  # advice to programmers, of pydicom
    text = ADDRESSES.sub("", text.replace("'it'", "it").replace('"it"', "it"))
    return " ".join(text.split())[:MOST_TEXT]
