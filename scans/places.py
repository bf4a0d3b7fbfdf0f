"""Places along a scan: every scan gets as many, whatever number of slices it has.

    rows = rows_of_scans(slices, length=40)      # (scans, 40): where each place is among the slices
    check_scans(slices)                          # raises DataError where that says nothing

A place between two slices is a number between their rows, such as 7.25, and its pixels are theirs
in that proportion (linear interpolation). The first place is the first slice, and the last place
the last one, as where slices of a volume are chosen.
"""

from collections import Counter
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from common.files import abridged, abridged_lines
from common.program import counted
from scans.names import natural_order
from scans.slices import DataError, Slice, by_scan
from scans.volumes import common_direction

MIN_LENGTH = 3  # slices that show an order


def rows_of_scans(slices: list[Slice], length: int) -> Tensor:
    """Where the places of each scan are: (scans, length), float64 if some are between slices.

    slices: those of a scan are consecutive, in the order of their numbers. Scans are in theirs.
    """
    starts = [i for i, s in enumerate(slices) if i == 0 or s.scan != slices[i - 1].scan]
    found = np.empty((len(starts), length))
    for places, (start, end) in zip(found, pairwise([*starts, len(slices)]), strict=True):
        at = positions(slices[start:end])
        wanted = np.linspace(at[0], at[-1], length)
        places[:] = start + np.interp(wanted, at, np.arange(end - start))
    found = found.round(6)  # 7.000000001 is the slice itself
    whole = found.round()
    return torch.from_numpy(whole.astype(np.int64) if (found == whole).all() else found)


def place_in_scan(s: Slice) -> tuple[int, list]:
    """Sort key of the slices of a scan; by name where a scan has a number twice."""
    return s.number, natural_order(s.name)


def positions(scan: list[Slice]) -> np.ndarray:
    """Where the slices of a scan are along it: at their numbers, with gaps where some are missing.

    Where numbers are uneven, each slice is one step.
    """
    numbers = np.array([s.number for s in scan])
    return np.arange(len(scan)) if missing_between(numbers) is None else numbers


def missing_between(numbers: np.ndarray) -> int | None:
    """How many numbers are left out on the way, in steps of the usual size; None: no even steps."""
    steps = np.diff(numbers)
    if not len(steps):
        return 0
    usual = Counter(steps.tolist()).most_common(1)[0][0]
    if (steps <= 0).any() or (steps % usual).any():
        return None
    missing = int((steps // usual - 1).sum())
    return missing if missing < len(numbers) else None


def unfit(scan: list[Slice]) -> str:
    """Why slices are no whole scan, in a few words; "" where they are."""
    numbers, labels = [s.number for s in scan], sorted({s.label for s in scan})
    if len(scan) < MIN_LENGTH:
        return f"{counted(len(scan), 'slice')}, expected a whole scan: {MIN_LENGTH} or more"
    if len(set(numbers)) < len(numbers):
        return "slices without a number of their own, which would tell their order"
    if len(labels) > 1:
        return f"slices of several labels: {', '.join(labels)}"
    return ""


def check_scans(slices: list[Slice]) -> None:
    """Raise DataError for what is no whole scan, and for volumes that run in several directions."""
    unfits = {scan: unfit(members) for scan, members in by_scan(slices).items()}
    lines = [f"  {scan}: {text}" for scan, text in unfits.items() if text]
    if lines:
        raise DataError(
            f"{counted(len(lines), 'scan')} can't be read whole; names tell which images are one, "
            "and in what order (--name-pattern with the groups scan and slice, --slices-per-scan):",
            *abridged_lines(lines),
        )
    common_direction(slices, is_whole=True)


def describe_lengths(slices: list[Slice], length: int) -> list[str]:
    """How scans of other lengths are made to be of this one, and which have slices missing."""
    scans = {scan: members for scan, members in by_scan(slices).items() if not unfit(members)}
    others = sorted(len(members) for members in scans.values() if len(members) != length)
    lines = []
    if others:
        most = f" to {others[-1]}" if others[-1] > others[0] else ""
        number = counted(len(others), "scan")
        lines.append(f"{number} of {others[0]}{most} slices: resampled to {length}")
    numbers = {scan: np.array(sorted(s.number for s in of)) for scan, of in scans.items()}
    missing = {scan: missing_between(of) for scan, of in numbers.items()}
    if lacking := [f"{scan} ({missing[scan]})" for scan in scans if missing[scan]]:
        lines.append(f"slices are missing, and interpolated: {abridged(lacking)}")
    if uneven := [scan for scan in scans if missing[scan] is None]:
        lines.append(f"slices of uneven numbers are taken in their order: {abridged(uneven)}")
    return lines
