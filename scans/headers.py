"""Headers of volumes, read once, in processes of their own, and then kept.

units = units_of("p01", os.listdir("p01"))
for volumes, problems in read_units(units, Options(cache_dir=Path("cache"))): ...
"""

import contextlib
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from common.files import open_regular, whole_file
from common.isolation import Lost, isolated
from common.program import MissingPackage
from scans.names import is_archive, is_volume_name, may_be_dicom
from scans.readers import VERSION, is_volume, reader_of
from scans.slices import Kind, Options, Problem, Volume, VolumeError, Volumes
from scans.stacks import sort_series

FIELDS = [field.name for field in fields(Volume)]
FILES_AT_ONCE = 128  # of a process: 0.1 s
MAX_KEPT_BYTES = 64 << 20  # of a folder of 20,000 files, some 10 MB


class Unit(NamedTuple):
    """What is read and kept at once: an archive (no names), or what else is in a folder."""

    path: str
    names: tuple[str, ...]

    @property
    def files(self) -> list[str]:
        return [os.path.join(self.path, name) for name in self.names] or [self.path]


def units_of(folder: str, files: Sequence[str]) -> list[Unit]:
    """Those of the files of one folder that may be volumes, by their names."""
    names = tuple(sorted(name for name in files if is_volume_name(name) or may_be_dicom(name)))
    archives = [Unit(os.path.join(folder, name), ()) for name in sorted(filter(is_archive, files))]
    return ([Unit(folder, names)] if names else []) + archives


def read_units(units: Sequence[Unit], options: Options = Options()) -> Iterator[Volumes]:
    """What is in each unit, in their order: kept from before, or read now and kept."""
    kept = [read_kept(unit, options) for unit in units]
    unread = [unit for unit, found in zip(units, kept, strict=True) if found is None]
    files = [path for unit in unread for path in unit.files]
    chunk = max(1, min(FILES_AT_ONCE, len(files) // 8))
    reading = isolated(read_file, files, chunk=chunk)
    with tqdm(total=len(files), desc="headers", unit="file", leave=False, disable=None) as bar:
        for unit, found in zip(units, kept, strict=True):
            if found is None:
                found = sort_out(unit, zip(unit.files, reading, strict=False), options.echo)
                keep(unit, found, options)
                bar.update(len(unit.files))
            yield found


def read_file(path: str) -> list[Volume] | Problem:
    """The volumes of one file by its headers; of DICOM and archives single slices. None of what is
    no volume.
    """
    try:
        return reader_of(path).read_headers(path) if is_volume(path) else []
    except VolumeError as error:
        return error.problem
    except MissingPackage as error:
        return Problem(path, Kind.PACKAGE, str(error))


def sort_out(
    unit: Unit, files: Iterable[tuple[str, list[Volume] | Problem | Lost]], echo: int | None
) -> Volumes:
    """The volumes of a unit of what each of its files holds; slices are put together. Those that
    share a path are not numbered yet.
    """
    headers, problems = [], []
    for path, found in files:
        if isinstance(found, Lost):
            problems.append(Problem(path, Kind.UNREADABLE, found.text))
        elif isinstance(found, Problem):
            problems.append(found)
        else:
            headers += found
    missing = [p for p in problems if p.kind is Kind.PACKAGE]  # of all files alike
    problems = [p for p in problems if p.kind is not Kind.PACKAGE] + missing[:1]
    volumes, of_series = sort_series(unit.path, headers, echo)
    return Volumes(volumes, [*problems, *of_series])


# ---- kept ----------------------------------------------------------------------------------------


def state_of(unit: Unit, echo: int | None) -> str:
    """A digest of what its headers follow from: names, sizes and times of its files."""
    state = hashlib.sha256(f"{VERSION} {FIELDS} {echo}\n".encode())
    for name, path in zip(unit.names or [""], unit.files, strict=True):
        try:
            status = os.stat(path)
        except (OSError, ValueError):  # a link that leads nowhere, or no longer there
            state.update(f"{name} is not there\n".encode(errors="surrogateescape"))
            continue
        text = f"{name} {status.st_size} {status.st_mtime_ns}\n"
        state.update(text.encode(errors="surrogateescape"))
    return state.hexdigest()


def kept_file(unit: Unit, options: Options) -> Path:
    """Its place below the cache folder; the same for all states of the files."""
    what = f"{os.path.abspath(unit.path)} {bool(unit.names)} {options.echo}"
    name = hashlib.sha256(what.encode(errors="surrogateescape")).hexdigest()[:32]
    return Path(options.cache_dir, "headers", name)


def read_kept(unit: Unit, options: Options) -> Volumes | None:
    """None if none are kept, or those of other files, or damaged ones."""
    if options.cache_dir is None:
        return None
    try:
        with open_regular(kept_file(unit, options)) as file:
            content = file.read(MAX_KEPT_BYTES + 1)
    except OSError:
        return None
    if len(content) > MAX_KEPT_BYTES:
        return None
    state, _, found = content.partition(b"\n")
    return decode(found, unit) if state.decode("latin-1") == state_of(unit, options.echo) else None


def keep(unit: Unit, found: Volumes, options: Options) -> None:
    """Write them for the next start. Where that is not possible, the next start reads again, and
    also where something can't be read: it may be mended in a file that is not looked at here.
    """
    failed = any(p.kind in (Kind.PACKAGE, Kind.UNREADABLE) for p in found.problems)
    if options.cache_dir is None or failed:
        return
    target = kept_file(unit, options)
    with contextlib.suppress(OSError):
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(target) as temporary:
            state = state_of(unit, options.echo).encode()
            temporary.write_bytes(state + b"\n" + encode(found, unit))


def encode(found: Volumes, unit: Unit) -> bytes:
    """One line: a checksum, and JSON. Paths are relative to the unit's, which may be moved."""

    def below(path: str) -> str:
        return path.removeprefix(unit.path)

    volumes = [
        {name: getattr(volume, name) for name in FIELDS}
        | {"path": below(volume.path), "parts": [below(part) for part in volume.parts]}
        | {"sides": sorted(volume.sides), "direction": volume.direction.tolist()}
        for volume in found.volumes
    ]
    problems = [[below(p.path), p.kind.value, p.text, p.series] for p in found.problems]
    text = json.dumps([volumes, problems]).encode()
    return f"{zlib.crc32(text):08x} ".encode() + text


def decode(line: bytes, unit: Unit) -> Volumes | None:
    """What `encode` wrote; None if it is damaged."""
    checksum, _, text = line.strip().partition(b" ")
    if checksum != f"{zlib.crc32(text):08x}".encode():
        return None
    try:
        volumes, problems = json.loads(text)
        found = [Problem(unit.path + path, Kind(kind), *rest) for path, kind, *rest in problems]
        return Volumes([volume_of(record, unit) for record in volumes], found)
    except (ValueError, TypeError, KeyError, AttributeError):  # by another hand
        return None


def volume_of(record: dict, unit: Unit) -> Volume:
    for name in ("size", "spacing", "origin"):
        record[name] = tuple(record[name])
    record["path"] = unit.path + record["path"]
    record["parts"] = tuple(unit.path + part for part in record["parts"])
    record["places"] = tuple(map(tuple, record["places"]))
    record["direction"] = np.array(record["direction"], dtype=float)
    record["sides"] = frozenset(record["sides"])
    return Volume(**record)
