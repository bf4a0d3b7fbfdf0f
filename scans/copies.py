"""Images that are in the data twice: leaks, if one is trained on and the other tested.

pairs = find_copies(pixels, slices)                 # [(position, later position), ...]
check_copies(slices, pairs, subset_of)              # raises DataError with the names
"""

import hashlib
import json
from contextlib import suppress
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from common.files import abridged, write_json
from scans.slices import DataError, Slice

SIZE = 24  # images are compared as 24 x 24 grey levels
CORRELATION = 0.998  # above that, and ...
DIFFERENCE = 2.0  # ... with at most this root mean square difference, two images are copies
CONTRAST = 8.0  # standard deviation of grey levels; blank images are nobody's copies
BLOCK = 1024

Pairs = list[tuple[int, int]]  # (position, later position) of each two copies


def find_copies(pixels: Tensor, scans: list[str]) -> Pairs:
    """Pairs of images of two scans that are the same picture, also resized or compressed.

    On phantoms, slices of two patients correlate at 0.977 or less; copies shrunk to a third or
    compressed to JPEG at 0.9996 or more. The time grows with the square of the number of images.

    Args:
        pixels: uint8 (n, 1, height, width).
        scans: the scan of each.
    """
    small = torch.cat(
        [F.adaptive_avg_pool2d(chunk.float(), SIZE).flatten(1) for chunk in pixels.split(BLOCK)]
    )  # (n, 576)
    unit = small - small.mean(dim=1, keepdim=True)
    norm = unit.norm(dim=1, keepdim=True)
    unit *= (norm >= CONTRAST * SIZE) / norm.clamp(min=1)
    pairs = []
    for start in range(0, len(unit), BLOCK):
        rows = unit[start : start + BLOCK]
        alike = rows @ unit[: start + len(rows)].T > CORRELATION
        for row, first in alike.tril_(start - 1).nonzero().tolist():
            second = start + row
            difference = (small[first] - small[second]).square().mean().sqrt()
            if scans[first] != scans[second] and difference <= DIFFERENCE:
                pairs.append((first, second))
    return pairs


def open_copies(pixels: Tensor, slices: list[Slice], crc32: int, cache_dir: Path) -> Pairs:
    """`find_copies`, looked up where the same pixels (by their crc32) were searched before."""
    scans = [s.scan for s in slices]
    names = hashlib.sha256("\n".join(scans).encode(errors="surrogateescape")).hexdigest()[:16]
    kept = Path(cache_dir, f"copies-{crc32:08x}-{names}.json")
    try:
        return [(int(a), int(b)) for a, b in json.loads(kept.read_text())["copies"]]
    except (OSError, ValueError, KeyError, TypeError):  # none, or a damaged one
        pairs = find_copies(pixels, scans)
    with suppress(OSError):  # it is found again next time
        write_json(kept, {"copies": pairs})
    return pairs


def patients_sharing_images(slices: list[Slice], pairs: Pairs) -> list[set[str]]:
    """Groups of two or more patients that have copies of an image in common."""
    groups: list[set[str]] = []
    for link in {frozenset((slices[a].patient, slices[b].patient)) for a, b in pairs}:
        if len(link) == 2:
            touching = [group for group in groups if group & link]
            groups = [group for group in groups if not group & link]
            groups.append(set(link).union(*touching))
    return sorted(groups, key=min)


def describe_copies(slices: list[Slice], pixels: Tensor, pairs: Pairs) -> list[str]:
    """Sentences that name the scans that have images in common, and what follows from it."""
    lines = []
    shared: dict[tuple[str, str], Pairs] = {}
    for a, b in pairs:
        shared.setdefault((slices[a].scan, slices[b].scan), []).append((a, b))
    for (one, other), found in shared.items():
        a, b = found[0]
        exact = sum(torch.equal(pixels[a], pixels[b]) for a, b in found)
        whose = f"of patient {slices[a].patient}"
        if slices[a].patient != slices[b].patient:
            whose = f"of patients {slices[a].patient} and {slices[b].patient}"
        labels = slices[a].label, slices[b].label
        wrong = "" if len(set(labels)) == 1 else f", once {labels[0]} and once {labels[1]}"
        lines.append(
            f"{len(found)} images ({exact} exactly) are in two scans {whose}: {one} and {other}"
            f"{wrong} (first: {slices[a].name} = {slices[b].name})"
        )
    if len(lines) > 10:
        lines[10:] = [f"and {len(lines) - 10} more pairs of scans have images in common"]
    return lines


def check_copies(slices: list[Slice], pairs: Pairs, subset_of: dict[str, str]) -> None:
    """Raise DataError with the names if an image is in two subsets."""
    leaks = [(a, b) for a, b in pairs if subset_of[slices[a].scan] != subset_of[slices[b].scan]]
    if leaks:
        named = [
            f"{slices[a].name} ({subset_of[slices[a].scan]}) = "
            f"{slices[b].name} ({subset_of[slices[b].scan]})"
            for a, b in leaks
        ]
        raise DataError(
            f"{len(leaks)} images are in more than one subset: {abridged(named)}; put the patients "
            "of both into one"
        )
