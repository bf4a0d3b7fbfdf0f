"""Headers of volumes, read once: by several processes where they are many, and then kept.

    units = units_of("p01", os.listdir("p01"))
    for volumes, problems in read_units(units, Options(cache_dir=Path("cache"))): ...

SimpleITK holds the interpreter lock while it reads a header (0.35 ms), so that threads gain
nothing. The processes are `python -m scans.headers`: they read a unit a line and answer in the form
in which headers are kept.
"""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from common import signals
from common.files import open_regular, whole_file
from common.program import MissingPackage
from scans.archives import is_archive
from scans.dicom import Volumes, find_series, find_series_in_archive, may_be_dicom, problem_of
from scans.names import is_volume_name
from scans.slices import SIDES, Kind, Options, Problem, Volume, VolumeError
from scans.volumes import read_header

VERSION = 2  # to be raised when reading gives other headers than before
FIELDS = [field.name for field in fields(Volume)]
ROOT = Path(__file__).resolve().parent.parent
FILES_PER_PROCESS = 1000  # a process takes 0.5 s to start, and then 1 ms a file or less
MAX_KEPT_BYTES = 64 << 20  # of a folder of 20,000 files, some 10 MB
MAX_PROCESSES = 16


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


def read_unit(unit: Unit, echo: int | None) -> Volumes:
    """The volumes of a unit by their headers. Those that share a path are not numbered yet.

    Without SimpleITK, where it is needed, a problem of Kind.PACKAGE takes their place.
    """
    try:
        return read_volumes(unit, echo)
    except MissingPackage as error:
        return Volumes([], [Problem(unit.path, Kind.PACKAGE, str(error))])


def read_volumes(unit: Unit, echo: int | None) -> Volumes:
    """Raises MissingPackage."""
    if not unit.names:
        return find_series_in_archive(unit.path, echo)
    headers, problems = [], []
    for name in filter(is_volume_name, unit.names):
        try:
            headers.append(read_header(os.path.join(unit.path, name)))
        except VolumeError as error:
            problems.append(problem_of(error))
    series = find_series(unit.path, list(unit.names), echo)
    return Volumes([*headers, *series.volumes], [*problems, *series.problems])


def read_units(units: Sequence[Unit], options: Options = Options()) -> Iterator[Volumes]:
    """What is in each unit, in their order: kept from before, or read now and kept."""
    kept = [read_kept(unit, options) for unit in units]
    unread = [unit for unit, found in zip(units, kept, strict=True) if found is None]
    files = sum(len(unit.files) for unit in unread)
    with (
        contextlib.closing(read_all(unread, files, options.echo)) as reading,
        tqdm(total=files, desc="headers", unit="file", leave=False, disable=None) as bar,
    ):
        for unit, found in zip(units, kept, strict=True):
            if found is None:
                found = next(reading)
                keep(unit, found, options)
                bar.update(len(unit.files))
            yield found


# ---- in several processes ------------------------------------------------------------------------


def read_all(units: Sequence[Unit], files: int, echo: int | None) -> Iterator[Volumes]:
    """Each unit's volumes, read by as many processes as that many files are worth."""
    # An archive takes as long as the slices that are in it.
    work = files + sum(FILES_PER_PROCESS // 4 for unit in units if not unit.names)
    count = min(work // FILES_PER_PROCESS, os.cpu_count() or 1, MAX_PROCESSES, len(units))
    if count < 2:
        yield from (read_unit(unit, echo) for unit in units)
        return
    idle: SimpleQueue[subprocess.Popen] = SimpleQueue()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    readers = [
        subprocess.Popen(
            [sys.executable, "-m", "scans.headers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        for _ in range(count)
    ]

    def ask(unit: Unit) -> Volumes | None:
        reader = idle.get()
        try:
            reader.stdin.write(json.dumps([unit, echo]).encode() + b"\n")
            reader.stdin.flush()
            answer = reader.stdout.readline()
        except BrokenPipeError:
            answer = b""
        finally:
            idle.put(reader)
        return decode(answer, unit) if answer else None

    try:
        for reader in readers:
            idle.put(reader)
        with ThreadPoolExecutor(count) as pool:
            for unit, found in zip(units, pool.map(ask, units), strict=True):
                # A process that ended cannot say why; here it is raised.
                yield read_unit(unit, echo) if found is None else found
    finally:
        for reader in readers:
            reader.terminate()  # it removes what it has unpacked
        for reader in readers:
            reader.communicate()


def answer_requests() -> None:
    """What such a process does until its parent closes the pipe, or is gone."""
    with signals.listening("headers"), contextlib.suppress(signals.Interrupted, BrokenPipeError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches it too; the parent ends it
        for line in sys.stdin.buffer:
            (path, names), echo = json.loads(line)
            unit = Unit(path, tuple(names))
            sys.stdout.buffer.write(encode(read_unit(unit, echo), unit) + b"\n")
            sys.stdout.buffer.flush()


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

    volumes = []
    for volume in found.volumes:
        record = asdict(volume) | {"path": below(volume.path), "sides": sorted(volume.sides)}
        record |= {"parts": [below(part) for part in volume.parts]}
        record |= {"direction": volume.direction.tolist()}
        volumes.append(record)
    problems = [[below(p.path), p.kind.value, p.text, p.series] for p in found.problems]
    text = json.dumps([volumes, problems]).encode()
    return f"{zlib.crc32(text):08x} ".encode() + text


def decode(line: bytes, unit: Unit) -> Volumes | None:
    """What `encode` wrote; None if it is damaged, or was written by another hand."""
    checksum, _, text = line.strip().partition(b" ")
    if checksum != f"{zlib.crc32(text):08x}".encode():
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not has_form(content, [list, list]):
        return None
    records, problems = content
    paths = {path.removeprefix(unit.path) for path in (unit.path, *unit.files)}
    if not all(is_record(record, paths) for record in records):
        return None
    kinds = {kind.value for kind in Kind}
    if not all(has_form(p, [str] * 4) and p[1] in kinds for p in problems):
        return None
    found = [Problem(unit.path + path, Kind(kind), *rest) for path, kind, *rest in problems]
    return Volumes([volume_of(record, unit) for record in records], found)


def volume_of(record: dict, unit: Unit) -> Volume:
    for name in ("size", "spacing", "origin", "members"):
        record[name] = tuple(record[name])
    record["path"] = unit.path + record["path"]
    record["parts"] = tuple(unit.path + part for part in record["parts"])
    record["direction"] = np.array(record["direction"], dtype=float)
    record["sides"] = frozenset(record["sides"])
    return Volume(**record)


def is_record(record: object, paths: set[str]) -> bool:
    """Whether it is one of a volume of these paths: hands that can edit it can sum it up, too."""
    if not (isinstance(record, dict) and list(record) == FIELDS):
        return False
    axes = len(record["spacing"]) if isinstance(record["spacing"], list) else 0
    forms = [
        ("path", str),
        ("components", int),
        ("bits", int),
        ("number", int),
        ("slicing", type(None)),
        ("spacing", [float] * axes),
        ("origin", [float] * axes),
        ("direction", [[float] * axes] * axes),
    ]
    lists = [("parts", str), ("size", int), ("sides", str), ("members", int)]
    tags = record["tags"]
    return (
        all(has_form(record[name], form) for name, form in forms)
        and all(isinstance(record[x], list) for x, _ in lists)
        and all(has_form(record[x], [kind] * len(record[x])) for x, kind in lists)
        and axes in (2, 3)
        and min(axes, 3) <= len(record["size"])
        and min(record["size"]) > 0
        and record["bits"] > 0
        and {record["path"], *record["parts"]} <= paths
        and set(record["sides"]) <= set(SIDES)
        and isinstance(tags, dict)
        and has_form([*tags.values()], [str] * len(tags))
    )


def has_form(value: object, form: type | list) -> bool:
    """Whether it is of that type, or a list of values of these forms; True is no number."""
    if isinstance(form, list):
        is_list = isinstance(value, list) and len(value) == len(form)
        return is_list and all(map(has_form, value, form))
    return type(value) is form or (form is float and type(value) is int)


if __name__ == "__main__":
    answer_requests()
