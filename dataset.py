"""Files -> slices, scans and patients.

    from dataset import find_slices, group_scans
    slices, notes = find_slices("AKOA_Analysis")
    scans = group_scans(slices)                       # scan name -> its slices

A slice is one PNG, a scan one knee imaged once (40 slices in AKOA); a patient has one or more
scans.
"""

import os
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

SIDES = ("left", "right")  # class 0 and class 1
SLICES_PER_SCAN = 40
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}

# OAI9014797_BaseLine_3_de3d1_SAG_3D_DESS_WE_RIGHT.nii.gz_0 (without its suffix .png)
AKOA_NAME = re.compile(
    r"(?P<scan>(?P<patient>OAI\d+)_.*_(?P<side>left|right|l_e_f_t|r_i_g_h_t)(\.nii(\.gz)?)?)"
    r"_(?P<index>\d+)",
    re.IGNORECASE,
)


class DataError(ValueError):
    """Data that can't be used. The message names the file or value and says what to do."""


@dataclass(frozen=True, slots=True)
class Slice:
    """One 2D image.

    Slice(path="AKOA/OAI9014797_BaseLine_3_de3d1_SAG_3D_DESS_WE_RIGHT.nii.gz_0.png", side="right",
          patient="OAI9014797", scan="OAI9014797_..._WE_RIGHT.nii.gz", index=0)
    """

    path: str
    side: str
    patient: str
    scan: str
    index: int


# ---- files -> slices and scans -------------------------------------------------------------------


def is_image(name: str) -> bool:
    """By its ending; Thumbs.db, .DS_Store, ._copies and other litter are none."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")


def natural_order(name: str) -> list:
    """Sort key that puts slice 2 before slice 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", name)]


def parse_name(path: Path) -> Slice | None:
    """What an image's path says, by its AKOA name or by a folder `left` or `right` that it lies in.

    Three forms of such folders: `left/p01_7.png`, `left/p01/7.png` (also with folders in between,
    `left/p01/visit2/7.png`) and `p01/left/7.png` are slice 7 of a left knee of patient p01. Returns
    None if nothing tells the side.

    Raises:
        DataError: name and folder tell different sides.
    """
    folder_sides = [part.lower() for part in path.parts[:-1] if part.lower() in SIDES]
    folder_side = folder_sides[-1] if folder_sides else None
    if match := AKOA_NAME.fullmatch(path.stem):
        side = match["side"].replace("_", "").lower()
        if folder_side not in (None, side):
            raise DataError(f"{path}: the name says {side}, the folder {folder_side}")
        return Slice(str(path), side, match["patient"].upper(), match["scan"], int(match["index"]))
    if folder_side is None:
        return None
    position = max(i for i, part in enumerate(path.parts) if part.lower() == folder_side)
    name, index = re.fullmatch(r"(.*?)[-_ ]*(\d*)", path.stem).groups()
    above, below = path.parts[:position], path.parts[position + 1 : -1]
    patient = next(iter([*below[:1], *filter(None, [name]), *above[-1:]]), folder_side)
    scan = "/".join(filter(None, [*above, folder_side, *below, name]))
    return Slice(str(path), folder_side, patient, scan, int(index or 0))


def find_slices(data_dir: str | Path) -> tuple[list[Slice], list[str]]:
    """Find every slice below a folder, however it is nested.

    Returns the slices, sorted by scan and slice number, and notes: plain sentences about files that
    were left out and scans that are not whole.

    Raises:
        DataError: no such folder, no slices of a side, or a name that contradicts its folder.
    """
    root = Path(data_dir)
    if not root.is_dir():
        raise DataError(f"{data_dir}: no such folder")
    found: dict[tuple[str, str], Slice] = {}
    sideless, twice = [], []
    for folder, subfolders, names in os.walk(root):
        subfolders.sort()  # a walk in the same order on every machine
        for name in sorted(names):
            path = Path(folder, name)
            if not is_image(name):
                continue
            # The folder's own path says nothing of the side: /data/left/AKOA is not all left.
            parsed = parse_name(path.relative_to(root))
            if parsed is None:
                sideless.append(path)
            elif (parsed.scan, path.stem) in found:
                twice.append(path)
            else:
                found[parsed.scan, path.stem] = Slice(
                    str(path), parsed.side, parsed.patient, parsed.scan, parsed.index
                )
    slices = sorted(found.values(), key=lambda s: (s.scan, s.index, s.path))

    expected = (
        "expected names like OAI9014797_BaseLine_3_de3d1_SAG_3D_DESS_WE_RIGHT.nii.gz_0.png, "
        "or folders left/ and right/"
    )
    if not slices:
        what = f"{len(sideless)} images but no side in any name" if sideless else "no images"
        raise DataError(f"{data_dir}: {what}; {expected}")
    notes = []
    for paths, problem in [
        (sideless, "tell no side and are left out"),
        (twice, "are copies of slices already found and are left out"),
    ]:
        if paths:
            notes.append(f"{len(paths)} images {problem}, first: {paths[0]}")
    for side in SIDES:
        if not any(s.side == side for s in slices):
            raise DataError(f"{data_dir}: {len(slices)} slices, but none of the {side} side")
    sizes = Counter(s.scan for s in slices)
    odd = [f"{scan} ({n})" for scan, n in sorted(sizes.items()) if n != SLICES_PER_SCAN]
    if odd:
        named = ", ".join(odd[:5]) + (f" and {len(odd) - 5} more" if len(odd) > 5 else "")
        notes.append(
            f"{len(odd)} scans do not have {SLICES_PER_SCAN} slices, kept together: {named}"
        )
    return slices, notes


def group_scans(slices: list[Slice]) -> dict[str, list[Slice]]:
    """Scan name -> its slices, in the order of the names."""
    scans = defaultdict(list)
    for s in slices:
        scans[s.scan].append(s)
    return dict(sorted(scans.items()))
