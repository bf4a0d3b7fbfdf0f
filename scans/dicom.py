"""Folders of DICOM files, a slice each -> series, sorted by the position of their slices."""

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import NamedTuple

import numpy as np

from scans.names import is_volume_name
from scans.slices import Kind, Problem, Volume
from scans.volumes import MIN_SLICES, TooShort, VolumeError, number_of, read_header

NOT_DICOM = set(
    ".png .jpg .jpeg .bmp .tif .tiff .gif .txt .csv .json .md .pdf .db .ini .py .pt .zip .gz .raw "
    ".zraw .xml .html .bval .bvec".split()
)


def is_dicom(path: str | os.PathLike) -> bool:
    """By its ending .dcm, or by its content if the ending is none or unknown. Never raises."""
    name = os.path.basename(path)
    suffix = os.path.splitext(name)[1].lower()
    if name.startswith(".") or name.upper() == "DICOMDIR":
        return False
    if suffix == ".dcm" or suffix in NOT_DICOM or is_volume_name(name):
        return suffix == ".dcm"
    try:
        if not os.path.isfile(path):  # to open a pipe would wait for ever
            return False
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


class Volumes(NamedTuple):
    """The volumes among the files of one folder."""

    volumes: list[Volume]
    problems: list[Problem]


def problem_of(error: VolumeError) -> Problem:
    kind = Kind.LOCALIZER if isinstance(error, TooShort) else Kind.UNREADABLE
    return Problem(error.path, kind, error.text)


def find_series(folder: str, names: list[str]) -> Volumes:
    """The series among the DICOM files of a folder, by their headers; pixels are not read.

    Files belong together if they share SeriesInstanceUID, size and orientation. Of several echoes
    only the one with the shortest echo time is taken.
    """
    groups = defaultdict(lambda: defaultdict(list))
    volumes, singles, problems = [], [], []
    for name in sorted(names):
        path = os.path.join(folder, name)
        if not is_dicom(path):
            continue
        try:
            header = read_header(path)
        except VolumeError as error:
            problems.append(problem_of(error))
            continue
        if header.size[2:] != (1,):
            singles.append(header)
            continue
        tags = header.tags
        orientation = tuple((header.direction.ravel().round(3) + 0.0).tolist())
        key = (number_of(tags.get("number")), tags.get("series", ""), header.size, orientation)
        echo = number_of(tags.get("echo_time")), number_of(tags.get("echo"))
        groups[key][echo].append(header)
    numbers = free_numbers(folder)
    number = next(numbers)
    for _, echoes in sorted(groups.items()):
        try:
            volumes.append(stack(folder, number, echoes[min(echoes)]))
            number = next(numbers)
        except VolumeError as error:
            problems.append(problem_of(error))
    return Volumes([*singles, *volumes], problems)


def free_numbers(folder: str) -> Iterator[int]:
    """1, 2, 3, ...: names of series, but for those that are names of files: folder#2."""
    yield 1
    yield from (n for n in count(2) if not os.path.exists(f"{folder}#{n}"))


def stack(folder: str, number: int, slices: list[Volume]) -> Volume:
    """One volume of single slices, in the order of their positions along the normal.

    Raises VolumeError: fewer than 5, no or equal positions, or more than 1 in 10 missing.
    """
    tags = slices[0].tags
    name = f"series {tags.get('number', '?')} ({tags.get('about') or 'no description'})"
    normal = slices[0].direction[:, 2]
    slices = sorted(slices, key=lambda s: float(normal @ s.origin))
    gaps = np.diff([normal @ s.origin for s in slices])
    if len(slices) < MIN_SLICES:
        text = f"{name}: only {len(slices)} slices, expected {MIN_SLICES} or more"
        raise TooShort(folder, text)
    if not all(s.tags.get("position") for s in slices):
        raise VolumeError(folder, f"{name}: slices without a position (ImagePositionPatient)")
    if (twice := np.flatnonzero(gaps < 0.01)).size:
        first = " and ".join(os.path.basename(s.path) for s in slices[twice[0] :][:2])
        text = f"{name}: {twice.size} slices lie where another one does, first: {first}"
        raise VolumeError(folder, text)
    step = float(np.median(gaps))
    missing = int((np.maximum(np.round(gaps / step), 1) - 1).sum())
    if missing * 10 > len(slices) + missing:
        text = f"{name}: {missing} of {len(slices) + missing} slices are missing"
        raise VolumeError(folder, text)
    return replace(
        slices[0],
        path=folder,
        parts=tuple(s.path for s in slices),
        size=(*slices[0].size[:2], len(slices)),
        spacing=(*slices[0].spacing[:2], step),
        sides=frozenset().union(*(s.sides for s in slices)),
        number=number,
    )
