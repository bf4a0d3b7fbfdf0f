"""Folders and archives of DICOM files, a slice each -> series, sorted by position."""

import os
import tempfile
from collections import defaultdict
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from common.files import open_regular
from common.program import counted
from common.signals import check, orderly
from scans.archives import TooLarge, unpack
from scans.names import IMAGE_SUFFIXES, NO_DATA, is_volume_name
from scans.slices import Kind, NoSeries, Problem, TooShort, Volume, VolumeError
from scans.volumes import MIN_SLICES, read_header, sorting_number

SAME_DIRECTION = (
    0.002  # of cosines: a tenth of a degree; scanners round them otherwise in each slice
)
NOT_DICOM = {*NO_DATA, *IMAGE_SUFFIXES, *".zip .gz .tar .tgz".split()}


def may_be_dicom(name: str) -> bool:
    """By the name of a file alone."""
    suffix = os.path.splitext(name)[1].lower()
    if name.startswith(".") or name.upper() == "DICOMDIR" or is_volume_name(name):
        return False
    return suffix == ".dcm" or suffix not in NOT_DICOM


def is_dicom(path: str | os.PathLike) -> bool:
    """By its ending .dcm, or by its content if the ending is none or unknown. Never raises."""
    name = os.path.basename(path)
    if not may_be_dicom(name):
        return False
    if os.path.splitext(name)[1].lower() == ".dcm":
        return True
    try:
        with open_regular(path) as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


class Volumes(NamedTuple):
    """The volumes among the files of one folder."""

    volumes: list[Volume]
    problems: list[Problem]


def problem_of(error: VolumeError) -> Problem:
    return Problem(error.path, error.kind, error.text, error.series)


def find_series(folder: str, names: list[str], echo: int | None = None) -> Volumes:
    """The series among the DICOM files of a folder, by their headers; pixels are not read."""
    headers, problems = [], []
    for name in sorted(names):
        path = os.path.join(folder, name)
        if is_dicom(path):
            try:
                headers.append(read_header(path, is_dicom=True))
            except VolumeError as error:
                problems.append(problem_of(error))
    volumes, of_series = sort_series(folder, headers, echo)
    return Volumes(volumes, [*problems, *of_series])


def find_series_in_archive(path: str, echo: int | None = None) -> Volumes:
    """The series in a tar archive. Its members are unpacked one at a time, and removed again."""
    headers, problems = [], []
    with orderly(), tempfile.TemporaryDirectory(prefix="series-") as folder:
        try:
            for member in unpack(path, folder):
                check()
                try:
                    header = read_header(member.path, is_dicom=True)
                    members = {"path": path, "parts": (path,), "members": (member.position,)}
                    headers.append(replace(header, **members))
                except VolumeError as error:
                    text = f"a DICOM file in the archive can't be read: {error.text}"
                    problems.append(Problem(path, Kind.UNREADABLE, text))
                finally:
                    os.unlink(member.path)
            if not (headers or problems):
                raise NoSeries(path, "an archive without DICOM files, expected those of a series")
        except TooLarge as error:  # without DICOM files it may be anything
            kind = error.kind if headers else Kind.FOREIGN
            return Volumes([], [problem_of(error)._replace(kind=kind)])
        except VolumeError as error:
            return Volumes([], [problem_of(error)])
    volumes, of_series = sort_series(path, headers, echo)
    return Volumes(volumes, [*problems, *of_series])


def sort_series(path: str, headers: list[Volume], echo: int | None = None) -> Volumes:
    """Whole volumes as they are, and the series that single slices are of; path is their folder.

    Slices belong together if they share SeriesInstanceUID, size and, but for rounding, orientation.
    Of several echoes only one is taken: the shortest, or the one of this number.
    """
    groups = defaultdict(lambda: defaultdict(list))
    directions: dict[tuple, list[np.ndarray]] = defaultdict(
        list
    )  # of each series, those that differ
    volumes, problems = [], []
    for header in headers:
        if header.size[2:] != (1,):  # several frames in one file
            volumes.append(header)
            continue
        tags = header.tags
        key = sorting_number(tags.get("number")), tags.get("series", ""), header.size
        key = *key, place_among(directions[key], header.direction)
        time = sorting_number(tags.get("echo_time")), sorting_number(tags.get("echo"))
        groups[key][time].append(header)
    for _, echoes in sorted(groups.items()):
        times = sorted(echoes)
        try:
            if len(times) > 1 and (echo or 1) > len(times):
                first = echoes[times[0]][0]
                text = f"{series_name(first)}: has {len(times)} echoes, and --echo asks for {echo}"
                raise VolumeError(path, text, first.description)
            chosen = echoes[times[(echo or 1) - 1 if len(times) > 1 else 0]]
            volumes.append(stack(path, chosen))
        except VolumeError as error:
            problems.append(problem_of(error))
            continue
        if len(times) > 1 and echo is None:
            text = f"{times[0][0]:g} ms"
            problems.append(Problem(path, Kind.ECHOES, text, chosen[0].description))
    return Volumes(volumes, problems)


def place_among(known: list[np.ndarray], direction: np.ndarray) -> int:
    """Which of them a direction is, but for rounding; a new one is added."""
    for place, other in enumerate(known):
        if np.abs(other - direction).max() < SAME_DIRECTION:
            return place
    known.append(direction)
    return len(known) - 1


def series_name(header: Volume) -> str:
    """For messages: series 4 (SAG_3D_DESS_LEFT)."""
    return f"series {header.tags.get('number') or '?'} ({header.description or 'no description'})"


def stack(path: str, slices: list[Volume]) -> Volume:
    """One volume of single slices, in the order of their positions along the normal.

    Raises VolumeError: fewer than 5, no or equal positions, or more than 1 in 10 missing.
    """
    name, description = series_name(slices[0]), slices[0].description
    normal = slices[0].direction[:, 2]
    slices = sorted(slices, key=lambda s: float(normal @ s.origin))
    gaps = np.diff([normal @ s.origin for s in slices])
    if len(slices) < MIN_SLICES:
        text = f"{name}: only {counted(len(slices), 'slice')}, expected {MIN_SLICES} or more"
        raise TooShort(path, text, description)
    if not all(s.tags.get("position") for s in slices):
        text = f"{name}: slices without a position (ImagePositionPatient)"
        raise VolumeError(path, text, description)
    if (twice := np.flatnonzero(gaps < 0.01)).size:
        first = " and ".join(os.path.basename(s.path) for s in slices[twice[0] :][:2])
        text = f"{name}: {counted(twice.size, 'slice')} where another one lies, first: {first}"
        raise VolumeError(path, text, description)
    step = float(np.median(gaps))
    missing = int((np.maximum(np.round(gaps / step), 1) - 1).sum())
    if missing * 10 > len(slices) + missing:
        text = f"{name}: {missing} of {len(slices) + missing} slices missing"
        raise VolumeError(path, text, description)
    return replace(
        slices[0],
        path=path,
        parts=(path,) if slices[0].members else tuple(s.path for s in slices),
        members=tuple(position for s in slices for position in s.members),
        size=(*slices[0].size[:2], len(slices)),
        spacing=(*slices[0].spacing[:2], step),
        sides=frozenset().union(*(s.sides for s in slices)),
    )
