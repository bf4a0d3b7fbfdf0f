"""Images that are in the data twice: leaks, if one is trained on and the other tested.

pairs = find_copies(pixels, slices)                 # [(position, later position), ...]
check_copies(slices, pairs, subset_of)              # raises DataError with the names
"""

import hashlib
import itertools
import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from common.files import abridged, read_json, write_json
from common.program import UserError, counted
from scans.slices import DataError, Slice
from scans.splits import NONE

SIZE = 24  # images are compared as 24 x 24 grey levels
CORRELATION = 0.998  # above that, and ...
DIFFERENCE = 2.0  # ... with at most this root mean square difference, two images are copies
CONTRAST = 8.0  # standard deviation of grey levels; blank images are nobody's copies
MOST_PAIRS = 500_000  # of more pairs, only enough are kept to link all copies
COPIES_VERSION = 2  # to be raised when other pairs are found than before

DIRECTIONS = 16  # of grey levels, and as many of unit vectors: what the search divides images by
ITERATIONS = 16  # after which the search takes no longer than with exact directions
SAMPLE = 4096  # images that the directions are computed from
LEAF = 2**19  # so many comparisons are faster done than divided
BLOCK = 1024  # images at a time

Pairs = list[tuple[int, int]]  # (position, later position) of each two copies


# ---- search --------------------------------------------------------------------------------------


def find_copies(pixels: Tensor, scans: list[str]) -> Pairs:
    """Pairs of images of two scans that are the same picture, also resized or compressed.

    On phantoms, slices of two patients correlate at 0.977 or less; copies shrunk to a third or
    compressed to JPEG at 0.9996 or more. Only images that may be copies are compared, see
    `neighbourhoods`: nothing is missed by that.

    All pairs are found, by the later position and then the earlier one. Only if they are more than
    MOST_PAIRS, as of thousands of copies of one image, each image of a group that copies link is
    paired with the group's first instead. That links the same scans to each other.

    Args:
        pixels: uint8 (n, 1, height, width).
        scans: the scan of each.
    """
    small = shrink(pixels)
    sharp = (small.std(dim=1, correction=0) >= CONTRAST).nonzero().flatten()
    if not len(sharp):
        return []
    numbers = {scan: number for number, scan in enumerate(dict.fromkeys(scans))}
    scan = torch.tensor([numbers[name] for name in scans])
    group = torch.arange(len(small))  # the first image of the group of each; now each is alone
    found, count = [torch.empty(0, 2, dtype=torch.long)], 0
    for rows, near in neighbourhoods(bounded_columns(small, sharp), sharp, sharp):
        for block, others in itertools.product(rows.split(BLOCK), near.split(BLOCK)):
            both = torch.cat([block, others])
            if others[0] > block[-1] or one_value(group[both]) or one_value(scan[both]):
                continue  # compared the other way round, or linked already, or neighbours
            found.append(compare(small, block, others))
            found[-1] = found[-1][differ(scan, found[-1]) & differ(group, found[-1])]
            count += len(found[-1])
            if count > MOST_PAIRS:
                group = link(group, torch.cat(found))
                found, count = found[:1], 0
    pairs = torch.cat(found)
    if (group != torch.arange(len(group))).any():
        group = link(group, pairs)
        pairs = torch.stack([group, torch.arange(len(group))], dim=1)
        pairs = pairs[differ(scan, pairs)]
    return sorted(map(tuple, pairs.tolist()), key=lambda pair: (pair[1], pair[0]))


def shrink(pixels: Tensor) -> Tensor:
    """(n, 1, height, width) -> (n, 576) grey levels."""
    small = torch.empty(len(pixels), SIZE * SIZE)
    for target, images in zip(small.split(BLOCK), pixels.split(BLOCK), strict=True):
        target.copy_(F.adaptive_avg_pool2d(images.float(), SIZE).flatten(1))
    return small


def unit_vectors(small: Tensor) -> Tensor:
    """Without their mean, of length 1: the correlation of two images is the product of theirs."""
    unit = small - small.mean(dim=1, keepdim=True)
    return unit.div_(unit.norm(dim=1, keepdim=True).clamp_(min=1))


def principal_directions(vectors: Tensor) -> Tensor:
    """About those in which the vectors (m, 576) differ most, of length 1: (576, DIRECTIONS).

    By subspace iteration: of a few images, or small ones that were enlarged, the covariance has
    hundreds of eigenvalues that are 0, and with those LAPACK's eigh may not converge.
    """
    covariance = vectors.T.cov()
    start = torch.Generator().manual_seed(0)
    directions = torch.randn(len(covariance), DIRECTIONS, generator=start)
    for _ in range(ITERATIONS):
        directions = torch.linalg.qr(covariance @ directions).Q
    return directions


def bounded_columns(small: Tensor, sharp: Tensor) -> Tensor:
    """Numbers (n, columns) of each image, none of which differs by more than 1 between copies.

    Copies differ by at most DIFFERENCE * SIZE as vectors of grey levels, and by less than
    sqrt(2 - 2 * CORRELATION) as unit vectors; along a direction, by no more than that.
    """
    order = torch.randperm(len(sharp), generator=torch.Generator().manual_seed(0))
    sample = small[sharp[order[:SAMPLE]]]
    if len(sample) < 2:  # nothing to be divided
        return torch.zeros(len(small), 1)
    grey = principal_directions(sample) / (DIFFERENCE * SIZE)
    unit = principal_directions(unit_vectors(sample)) / math.sqrt(2 - 2 * CORRELATION)
    parts = [torch.cat([s @ grey, unit_vectors(s) @ unit], dim=1) for s in small.split(BLOCK)]
    return torch.cat(parts)


def neighbourhoods(columns: Tensor, rows: Tensor, near: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Divide images until few are left to be compared: yields (rows, near).

    Each image is in one `rows`, and all that may be its copies are in the `near` beside it: both
    are divided at the median of a column, and what is within 1 of the median stays near both
    sides. The column is the one in which that is the least.
    """
    if len(rows) * len(near) <= LEAF:
        yield rows, near
        return
    middle = columns[rows].median(dim=0).values
    reach = 1.001  # more than 1 by what rounding may do
    shared = ((columns[near] - middle).abs() <= reach).sum(dim=0)
    column = shared.argmin()
    below = columns[rows, column] <= middle[column]
    if below.all() or shared[column] > 0.8 * len(near):  # too much alike to be divided
        yield rows, near
        return
    above_middle = columns[near, column] - middle[column]
    yield from neighbourhoods(columns, rows[below], near[above_middle <= reach])
    yield from neighbourhoods(columns, rows[~below], near[above_middle >= -reach])


def compare(small: Tensor, rows: Tensor, near: Tensor) -> Tensor:
    """Pairs (m, 2) of copies, the later one of `rows`."""
    one, other = small[near], small[rows]
    correlation = unit_vectors(other) @ unit_vectors(one).T
    alike = (correlation > CORRELATION) & (near < rows[:, None])
    j, i = alike.nonzero().T
    # Of images x and y without their means: |x - y|² = (|x| - |y|)² + 2 |x| |y| (1 - correlation).
    length = [images.std(dim=1, correction=0)[k] for images, k in ((one, i), (other, j))]
    mean = [images.mean(dim=1)[k] for images, k in ((one, i), (other, j))]
    difference = (length[0] - length[1]).square() + (mean[0] - mean[1]).square()
    difference += 2 * length[0] * length[1] * (1 - correlation[j, i])
    # That is quick, and rounding may tip it at the limit: there, pixel by pixel.
    for part in ((difference - DIFFERENCE**2).abs() < 0.02).nonzero().flatten().split(BLOCK):
        difference[part] = (one[i[part]] - other[j[part]]).square().mean(dim=1)
    return torch.stack([near[i], rows[j]], dim=1)[difference <= DIFFERENCE**2]


def one_value(values: Tensor) -> bool:
    return bool((values == values[0]).all())


def differ(values: Tensor, pairs: Tensor) -> Tensor:
    """Which pairs (m, 2) are of images of different values."""
    return values[pairs[:, 0]] != values[pairs[:, 1]]


def link(group: Tensor, pairs: Tensor) -> Tensor:
    """The first image of the group of each (n,), where pairs join groups."""
    while differ(group, pairs).any():
        lower = group[pairs].amin(dim=1)
        for images in (pairs[:, 0], pairs[:, 1]):
            # The first of a group takes its whole group along.
            group = group.scatter_reduce(0, group[images], lower, "amin")
        while (group != group[group]).any():
            group = group[group]
    return group


# ---- what follows from it ------------------------------------------------------------------------


def open_copies(pixels: Tensor, slices: list[Slice], crc32: int, cache_dir: Path) -> Pairs:
    """`find_copies`, looked up where the same pixels (by their crc32) were searched before."""
    scans = [s.scan for s in slices]
    names = hashlib.sha256("\n".join(scans).encode(errors="surrogateescape")).hexdigest()[:16]
    kept = Path(cache_dir, f"copies-{COPIES_VERSION}-{crc32:08x}-{names}.json")
    with suppress(UserError, KeyError, TypeError):  # none, or a damaged one
        found = read_json(kept, "list of copies")["copies"]
        if all(is_pair(pair, len(slices)) for pair in found):
            return list(map(tuple, found))
    pairs = find_copies(pixels, scans)
    with suppress(OSError):  # it is found again next time
        write_json(kept, {"copies": pairs})
    return pairs


def is_pair(pair: object, count: int) -> bool:
    """Whether it is two positions of so many images, the earlier one first."""
    are_numbers = isinstance(pair, list) and [type(x) for x in pair] == [int, int]
    return are_numbers and 0 <= pair[0] < pair[1] < count


def patients_sharing_images(slices: list[Slice], pairs: Pairs) -> list[set[str]]:
    """Groups of two or more patients that have copies of an image in common."""
    group_of: dict[str, set[str]] = {}
    for a, b in pairs:
        one, other = (group_of.setdefault(p, {p}) for p in (slices[a].patient, slices[b].patient))
        if one is not other:
            smaller, larger = sorted((one, other), key=len)
            larger |= smaller
            group_of.update(dict.fromkeys(smaller, larger))
    groups = {id(group): group for group in group_of.values() if len(group) > 1}
    return sorted(groups.values(), key=min)


def repeated_within_patient(pixels: Tensor, slices: list[Slice], pairs: Pairs) -> set[int]:
    """Positions of images that are, byte for byte, in another scan of their patient and label.

    The first of each is not among them: without these, it counts once. Of copies that differ in
    a byte, as resized ones do, all count.
    """
    first_of: dict[tuple[str, str, bytes], int] = {}
    repeated = set()
    for position in sorted({position for pair in pairs for position in pair}):
        s = slices[position]
        image = s.patient, s.label, hashlib.sha256(pixels[position].numpy().tobytes()).digest()
        first = first_of.setdefault(image, position)
        if slices[first].scan != s.scan:
            repeated.add(position)
    return repeated


def describe_copies(slices: list[Slice], pixels: Tensor, pairs: Pairs) -> list[str]:
    """Sentences about scans that have images in common, and what follows from it.

    Each two scans of two patients or two labels are named; all of one patient and label are one
    line.
    """
    lines = []
    within: Pairs = []  # one patient and one label
    shared: dict[tuple[str, str], Pairs] = {}
    for a, b in pairs:
        if (slices[a].patient, slices[a].label) == (slices[b].patient, slices[b].label):
            within.append((a, b))
        else:
            shared.setdefault((slices[a].scan, slices[b].scan), []).append((a, b))
    for (one, other), found in shared.items():
        a, b = found[0]
        whose = f"of patient {slices[a].patient}"
        if slices[a].patient != slices[b].patient:
            whose = f"of patients {slices[a].patient} and {slices[b].patient}"
        labels = slices[a].label, slices[b].label
        wrong = "" if len(set(labels)) == 1 else f", once {labels[0]} and once {labels[1]}"
        lines.append(
            f"{describe_count(pixels, found)} in two scans {whose}: {one} and {other}{wrong} "
            f"(first: {slices[a].name} = {slices[b].name})"
        )
    if len(lines) > 10:
        lines[10:] = [f"and {counted(len(lines) - 10, 'more pair')} of scans with images in common"]
    if within:
        a, b = within[0]
        scans = {slices[position].scan for pair in within for position in pair}
        patients = {slices[position].patient for position, _ in within}
        lines.append(
            f"{describe_count(pixels, within)} copied from others of the same patient and label, "
            f"in {counted(len(scans), 'scan')} of {counted(len(patients), 'patient')} "
            f"(first: {slices[a].name} = {slices[b].name})"
        )
    return lines


def describe_count(pixels: Tensor, pairs: Pairs) -> str:
    """How many images are copies of earlier ones, and how many of them byte for byte."""
    exact = {b for a, b in pairs if torch.equal(pixels[a], pixels[b])}
    return f"{counted(len({b for _, b in pairs}), 'image')} ({len(exact)} exactly)"


def check_copies(slices: list[Slice], pairs: Pairs, subset_of: dict[str, str]) -> None:
    """Raise DataError with the names if an image is in two subsets."""
    leaks = []
    for a, b in pairs:
        first, second = subset_of[slices[a].scan], subset_of[slices[b].scan]
        if first != second and NONE not in (first, second):
            leaks.append((a, b))
    if leaks:
        named = [
            f"{slices[a].name} ({subset_of[slices[a].scan]}) = "
            f"{slices[b].name} ({subset_of[slices[b].scan]})"
            for a, b in leaks
        ]
        raise DataError(
            f"{counted(len(leaks), 'image')} in more than one subset: {abridged(named)}; put the "
            "patients of both into one"
        )
