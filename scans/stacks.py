"""Single slices of DICOM, by their headers -> series, sorted by position."""

import os
from collections import defaultdict
from dataclasses import replace

import numpy as np

from common.program import counted
from scans.slices import MIN_SLICES, Kind, Problem, TooShort, Volume, VolumeError, Volumes

SAME_DIRECTION = 0.002  # of cosines: a tenth of a degree; scanners round them differently
# Modalities of one image a file that is no slice of a body.
RADIOGRAPHS = {"CR", "DX", "MG", "RG", "PX", "IO"}


def sort_series(path: str, headers: list[Volume], echo: int | None = None) -> Volumes:
    """Whole volumes as they are, and the series that single slices are of; path is their folder.

    Slices belong together if they share SeriesInstanceUID, size, StackID and, but for rounding,
    orientation. Of several echoes only one is taken: the shortest, or the one of this number. A
    radiograph is a volume of its own.
    """
    groups = defaultdict(lambda: defaultdict(list))
    directions: dict[tuple, list[np.ndarray]] = defaultdict(list)  # of a series: those that differ
    volumes, problems = [], []
    for header in headers:
        tags = header.tags
        if not header.places or is_radiograph(header):
            volumes.append(header)
            continue
        key = sorting_number(tags.get("number")), tags.get("series", ""), header.size
        key = *key, tags.get("stack", ""), place_among(directions[key], header.direction)
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
            problems.append(error.problem)
            continue
        if len(times) > 1 and echo is None:
            text = f"{times[0][0]:g} ms"
            problems.append(Problem(path, Kind.ECHOES, text, chosen[0].description))
    return Volumes(volumes, problems)


def is_radiograph(header: Volume) -> bool:
    return header.tags.get("modality") in RADIOGRAPHS and header.size[2:] == (1,)


def sorting_number(text: str | None) -> float:
    """What is no number comes last."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return np.inf


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
        first = " and ".join(map(frame_name, slices[twice[0] :][:2]))
        text = f"{name}: {counted(twice.size, 'slice')} where another one lies, first: {first}"
        raise VolumeError(path, text, description)
    step = float(np.median(gaps))
    missing = int((np.maximum(np.round(gaps / step), 1) - 1).sum())
    if missing * 10 > len(slices) + missing:
        text = f"{name}: {missing} of {len(slices) + missing} slices missing"
        raise VolumeError(path, text, description)
    files = {part: i for i, part in enumerate(dict.fromkeys(s.path for s in slices))}
    in_archive = slices[0].path == path
    places = [(s.places[0][0] if in_archive else files[s.path], s.places[0][1]) for s in slices]
    return replace(
        slices[0],
        path=slices[0].path if len(files) == 1 else path,
        parts=tuple(files),
        places=tuple(places),
        size=(*slices[0].size[:2], len(slices)),
        spacing=(*slices[0].spacing[:2], step),
        sides=frozenset().union(*(s.sides for s in slices)),
    )


def frame_name(one: Volume) -> str:
    (_, frame), name = one.places[0], os.path.basename(one.path)
    return f"{name}, frame {frame + 1}" if frame else name
