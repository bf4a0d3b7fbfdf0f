"""What of the cache folder is of no use any more: `python dataset.py --clean-cache`.

    for file in clean_cache(Path("cache")):
        print(file.path, file.bytes, file.fate, file.is_removed)

Decoded slices are kept in two files, <key>.npy and <key>.json (scans/cache.py); copies-*.json are
what scans/copies.py found. Files with names of any other form are left alone.
"""

import os
import re
import time
from pathlib import Path
from typing import NamedTuple

from common.files import read_json
from common.program import counted
from scans.cache import CACHE_VERSION, LEFT_BEHIND

PIXELS = re.compile(r"([0-9a-f]{32})\.(npy|json)")
COPIES = re.compile(r"copies-\d-([0-9a-f]{8})-[0-9a-f]{16}\.json")
HEADERS = re.compile(r"[0-9a-f]{32}")  # in the folder headers: scans/headers.py
UNFINISHED = re.compile(  # common.files.temporary_name of these
    r"\.([0-9a-f]{32}|copies-\d-[0-9a-f]{8}-[0-9a-f]{16})"
    r"\.\d+-[0-9a-f]{8}\.unfinished\.(npy|json)"
)
HEADERS_KEPT = 90 * 24 * 3600  # seconds; of those it is not known what they are of


class Cleaned(NamedTuple):
    path: Path
    bytes: int
    fate: str  # why it was removed, or what it is kept for
    is_removed: bool


class Entry(NamedTuple):
    """The decoded slices of some files: what <key>.json says of them."""

    version: int
    crc32: int
    paths: str  # the same for all entries of the same files, sliced and resized alike
    files: list  # of some of them: path, bytes, time in ns
    written: float  # seconds since 1970


def clean_cache(folder: Path) -> list[Cleaned]:
    """Remove decoded slices whose files are gone or have changed, and what was left unfinished.

    Raises OSError if the folder can't be read. (That there is none is no error.)
    """
    if not folder.exists():
        return []
    names = {path.name: path.lstat() for path in sorted(folder.iterdir()) if is_own_file(path)}
    entries = {match[1]: None for name in names if (match := PIXELS.fullmatch(name))}
    entries = {key: read_entry(folder, key) for key in entries}
    newest: dict[str, float] = {}
    for entry in filter(None, entries.values()):
        newest[entry.paths] = max(entry.written, newest.get(entry.paths, 0))
    useless = {key: why_useless(entry, newest) for key, entry in entries.items() if entry}
    checksums = {entries[key].crc32 for key, why in useless.items() if not why}
    cleaned = []
    for name, status in names.items():
        age, why = time.time() - status.st_mtime, ""
        if match := PIXELS.fullmatch(name):
            kept, key = "decoded slices", match[1]
            if entry := entries[key]:
                why = useless[key]
                kept += f" of {entry.files[0][0]} and others" if entry.files else ""
            elif {f"{key}.npy", f"{key}.json"} <= names.keys():
                why = "from an older version, or damaged"
            elif age > LEFT_BEHIND:  # a program that wrote one just now will write the other one
                why = "one of two files, the other one is not there"
        elif match := COPIES.fullmatch(name):
            kept, why = "copies of images", ""
            if int(match[1], 16) not in checksums:
                why = "of slices that are not kept"
        else:
            kept, why = "being written", "left unfinished" if age > LEFT_BEHIND else ""
        cleaned.append(remove(folder / name, status.st_size, why, kept))
    return cleaned + clean_headers(folder / "headers")


def clean_headers(folder: Path) -> list[Cleaned]:
    """Remove headers that were kept 90 days ago or earlier."""
    cleaned = []
    for path in sorted(folder.glob("*")):
        if path.is_file() and not path.is_symlink() and HEADERS.fullmatch(path.name):
            status = path.stat()
            is_old = time.time() - status.st_mtime > HEADERS_KEPT
            why = "older than 90 days" if is_old else ""
            cleaned.append(remove(path, status.st_size, why, "headers"))
    return cleaned


def is_own_file(path: Path) -> bool:
    forms = (PIXELS, COPIES, UNFINISHED)
    is_file = path.is_file() and not path.is_symlink()
    return is_file and any(form.fullmatch(path.name) for form in forms)


def read_entry(folder: Path, key: str) -> Entry | None:
    """None if one of its two files is missing, damaged, or from before there were versions."""
    try:
        written = (folder / f"{key}.npy").stat().st_mtime
        known = read_json(folder / f"{key}.json", "record of decoded slices")
        files = [(str(path), int(size), int(time_ns)) for path, size, time_ns in known["files"]]
        version, crc32 = int(known["version"]), int(known["crc32"])
        return Entry(version, crc32, str(known["paths"]), files, written)
    except (FileNotFoundError, ValueError, OverflowError, KeyError, TypeError):
        return None


def why_useless(entry: Entry, newest: dict[str, float]) -> str:
    """Why an entry will never be opened again; "" if it may be."""
    if entry.version != CACHE_VERSION:
        return f"from version {entry.version}, this is {CACHE_VERSION}"
    if newest[entry.paths] > entry.written:
        return "out of date: the same files were decoded again later"
    there = [(path, *state) for path, *_ in entry.files if (state := state_of(path))]
    if entry.files and not there:
        return f"its data is gone: {entry.files[0][0]}"
    for path, *state in entry.files:
        if (path, *state) not in there:
            return f"its data has changed: {path}"
    return ""


def state_of(path: str) -> tuple[int, int] | None:
    """Bytes and time in ns; None if there is no such file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def remove(path: Path, size: int, why: str, kept: str) -> Cleaned:
    if not why:
        return Cleaned(path, size, kept, False)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        return Cleaned(path, size, f"can't be removed: {error.strerror}", False)
    return Cleaned(path, size, why, True)


def describe_cleaned(files: list[Cleaned], folder: Path) -> list[str]:
    """A line for each file, and one with the sums."""
    lines, sums = [], {True: 0, False: 0}
    for file in files:
        sums[file.is_removed] += file.bytes
        fate = "removed" if file.is_removed else "kept"
        lines.append(f"{file.path}  {file.bytes / 1e6:.1f} MB  {fate}: {file.fate}")
    counts = len([file for file in files if file.is_removed]), len(files)
    lines.append(
        f"{folder}: {counted(counts[0], 'file')} removed ({sums[True] / 1e6:.1f} MB), "
        f"{counts[1] - counts[0]} kept ({sums[False] / 1e6:.1f} MB)"
    )
    return lines
