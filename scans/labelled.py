"""What can be trained on: the labelled slices of a folder or a manifest, or why it can't be.

listing = list_labelled("AKOA_Analysis")
listing.slices, listing.problems, listing.classes
"""

import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from common.files import abridged
from scans import names
from scans.listing import SLICES_PER_SCAN, is_manifest, list_slices
from scans.names import is_image, natural_order
from scans.series import check_one_sequence
from scans.slices import DataError, Kind, Listing, Options, Problem, Slice

CLASS_FOLDERS = range(2, 11)  # so many folders of one level may be called like classes
SUBSET_FOLDERS = set("train val valid validation test images".split())


def list_labelled(
    path: str | Path,
    classes: Sequence[str] | None = None,
    options: Options = Options(),
) -> Listing:
    """The labelled slices of a folder or a manifest, sorted by scan and number.

    Problems that are left are remarks: what was left out, and what was guessed.

    Raises:
        DataError: no such folder, a folder or volume that can't be read, a name that contradicts
            its folder, names that tell no scans, or a scan of two labels or patients.
    """
    if not os.path.exists(path):
        raise DataError(f"{path}: no such folder")
    if not (os.path.isdir(path) or is_manifest(os.fspath(path))):
        raise DataError(f"{path}: expected a folder, or a manifest whose name ends in .csv")
    name_pattern = options.name_pattern
    if name_pattern and not os.path.isdir(path):
        raise DataError(f"{path}: a manifest tells all; leave out --name-pattern")
    listing = list_slices(path, classes, options)
    if not options.series:
        check_one_sequence(listing.slices)
    if unreadable := listing.of_kind(Kind.UNREADABLE):
        lines = [f"  {problem}" for problem in unreadable]
        raise DataError("\n".join([f"{len(lines)} folders or volumes can't be read:", *lines]))
    remarks = listing.of_kind(Kind.REMARK)
    for problem in listing.of_kind(Kind.CONTRADICTION):
        if is_image(os.path.basename(problem.path)):
            raise DataError(str(problem))
        remarks.append(Problem("", Kind.REMARK, f"{problem}: it is left out"))
    labelled = [s for s in listing.slices if s.label]
    others = [s.name for s in listing.slices if not s.label]
    if not labelled:
        raise DataError(nothing_labelled(path, others, listing.classes, name_pattern))
    if others:
        text = f"{len(others)} slices have no label and are left out: {abridged(others)}"
        remarks.append(Problem("", Kind.REMARK, text))
    if localizers := listing.of_kind(Kind.LOCALIZER):
        text = f"{len(localizers)} series are too short for a scan: "
        text += abridged([problem.path for problem in localizers])
        remarks.append(Problem("", Kind.REMARK, text))
    if nameless := listing.of_kind(Kind.NAMELESS):
        raise DataError(nameless[0].text)
    check_scans(labelled)
    labelled.sort(key=lambda s: (s.scan, s.number, natural_order(s.name)))
    remarks += listing.of_kind(Kind.GUESSED)
    remarks += describe_guesses(labelled, guessed=os.path.isdir(path) and not name_pattern)
    return Listing(labelled, remarks, listing.classes)


def check_classes_present(slices: list[Slice], classes: Sequence[str]) -> None:
    """Raise DataError if there is no slice of a class."""
    counts = Counter(s.label for s in slices)
    for label in classes:
        if not counts[label]:
            there = ", ".join(f"{name} ({count:,} slices)" for name, count in counts.items())
            raise DataError(f"none of the slices is {label}; the classes found are {there}")


def check_scans(slices: list[Slice]) -> None:
    """Raise DataError with its name if a scan has two labels or two patients."""
    for what in ("label", "patient"):
        found = defaultdict(set)
        for s in slices:
            found[s.scan].add(getattr(s, what))
        for scan, values in found.items():
            if len(values) > 1:
                raise DataError(
                    f"scan {scan} is of two {what}s: {', '.join(sorted(values))}; let the scan's "
                    "name hold more of the path"
                )


def describe_guesses(slices: list[Slice], guessed: bool) -> list[Problem]:
    """Remarks for a person: patients that are guesses, and scans of an odd size."""
    lines = []
    others = [
        s
        for s in slices
        if not (names.tells_patient(Path(s.source)) or (s.volume and s.volume.tags.get("patient")))
    ]
    if guessed and others and others[0].patient != others[0].scan:
        first = others[0]
        lines.append(
            f"patients are guessed from names and folders: {first.name} is of patient "
            f"{first.patient}; if that is wrong, --name-pattern or a manifest can tell"
        )
    sizes = Counter(s.scan for s in slices)
    odd = [f"{scan} ({n})" for scan, n in sorted(sizes.items()) if n != SLICES_PER_SCAN]
    if odd:
        lines.append(f"{len(odd)} scans do not have {SLICES_PER_SCAN} slices: {abridged(odd)}")
    return [Problem("", Kind.GUESSED, line) for line in lines]


def nothing_labelled(
    path: str | Path, unlabelled: list[str], classes: list[str], name_pattern: str | None
) -> str:
    """Why nothing of it can be trained on, and what to do."""
    if not unlabelled:
        what = "no images and no volumes"
    else:
        what = f"{len(unlabelled)} slices but none with a label ({', '.join(classes)})"
    folders = "folders " + " and ".join(f"{label}/" for label in classes)
    akoa = "names like OAI9014797_BaseLine_3_de3d1_SAG_3D_DESS_WE_RIGHT.nii.gz_0.png, or "
    forms = (akoa if names.are_sides(classes) else "") + folders
    expected = f"expected {forms}; --name-pattern or a manifest can tell otherwise"
    if name_pattern:
        expected = f"--name-pattern {name_pattern} finds no label in their names"
    if others := folders_like_classes(Path(path), unlabelled):
        expected += f"; if these folders are the classes: --classes {shlex.join(others)}"
    return f"{path}: {what}; {expected}" + (f"; first: {unlabelled[0]}" if unlabelled else "")


def folders_like_classes(root: Path, paths: list[str]) -> list[str]:
    """The names of the folders of one level, where they are so few that they may be classes."""
    levels = defaultdict(set)
    for path in paths:
        for level, name in enumerate(Path(os.path.relpath(path, root)).parts[:-1]):
            levels[level].add(name)
    found = [
        folders
        for folders in levels.values()
        if len(folders) in CLASS_FOLDERS and not {f.lower() for f in folders} & SUBSET_FOLDERS
    ]
    # Of p01/normal and p02/abnormal: classes are fewer than patients, and seldom numbered.
    named = [folders for folders in found if not any(map(names.number_at_end, folders))]
    if not named and len(found) > 1:
        return []  # 0/1/7.png: who knows which of the two is the patient
    return sorted(min(named or found, key=len, default=[]), key=natural_order)
