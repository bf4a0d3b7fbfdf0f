"""What can be trained on: the labelled slices of a folder or a manifest, or why it can't be.

listing = list_labelled("AKOA_Analysis")
listing.slices, listing.problems, listing.classes
"""

import difflib
import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from common.files import abridged, abridged_lines
from common.program import MissingPackage, counted
from scans.identity.names import are_sides, free_parts, patient_part
from scans.listing import is_manifest, list_slices
from scans.names import is_image, natural_order
from scans.readers import is_volume
from scans.series import check_one_sequence, check_series_used, merge_alike
from scans.slices import FAILURES, DataError, Kind, Listing, Options, Problem, Slice
from scans.volumes import common_direction

MIN_SCANS = 2  # of one there is nothing to say, such as where predict.py reads it
CLASS_FOLDERS = range(2, 11)  # so many folders of one level may be called like classes


def list_labelled(
    path: str | Path,
    classes: Sequence[str] | None = None,
    options: Options = Options(),
) -> Listing:
    """The labelled slices of a folder or a manifest, sorted by scan and number.

    Problems that are left are remarks: what was left out, and what may be wrong.

    Raises:
        DataError: no such folder, a folder or volume that can't be read, a name that contradicts
            its folder, names that tell no scans, a scan of two labels or patients, or volumes that
            run in several directions.
    """
    if not os.path.exists(path):
        raise DataError(f"{path}: no such file or folder")
    if not (os.path.isdir(path) or is_manifest(os.fspath(path))):
        raise DataError(f"{path}: {why_no_folder(os.fspath(path))}")
    listing = list_slices(path, classes, options)
    if not options.series:
        check_one_sequence(listing.slices)
    elif not listing.of_kind(*FAILURES):
        check_series_used(listing.slices, options.series)
    if unreadable := listing.of_kind(Kind.UNREADABLE):
        lines = [f"  {problem}" for problem in unreadable]
        raise DataError(f"{counted(len(lines), 'path')} can't be read:", *first_problems(lines))
    remarks = listing.of_kind(Kind.REMARK)
    if unread := listing.of_kind(Kind.PACKAGE):
        paths = abridged([problem.path for problem in unread])
        remarks.append(Problem("", Kind.REMARK, f"volumes are left out: {unread[0].text}; {paths}"))
    contradictions = listing.of_kind(Kind.CONTRADICTION)
    images = [p for p in contradictions if is_image(os.path.basename(p.path))]
    if images:
        raise DataError(*describe_contradictions(images))
    for line in describe_contradictions(contradictions):
        remarks.append(Problem("", Kind.REMARK, f"{line}: left out"))
    labelled = [s for s in listing.slices if s.label]
    others = [s.name for s in listing.slices if not s.label]
    if not labelled:
        if unread:
            raise MissingPackage(unread[0].text)
        short = listing.of_kind(Kind.LOCALIZER)
        if short and not others:
            raise DataError(f"{path}: no scan, but {short[0]}")
        advice = list(map(str, remarks))
        advice += [line for problem in listing.of_kind(Kind.NAMELESS) for line in problem.lines]
        raise DataError(nothing_labelled(path, others, listing.classes, options), *advice)
    if others:
        text = f"{counted(len(others), 'slice')} without a label, left out: {abridged(others)}"
        remarks.append(Problem("", Kind.REMARK, text))
    if localizers := listing.of_kind(Kind.LOCALIZER):
        text = f"{len(localizers)} series too short for a scan: "
        text += abridged([problem.path for problem in localizers])
        remarks.append(Problem("", Kind.REMARK, text))
    if nameless := listing.of_kind(Kind.NAMELESS):
        first, *more = nameless[0].lines
        raise DataError(f"{path}: {first}", *more)
    check_scans(labelled, "the manifest" if is_manifest(os.fspath(path)) else "the names")
    if is_manifest(os.fspath(path)):
        check_files(labelled, os.path.dirname(os.path.abspath(path)))
    common_direction(labelled)
    sort_slices(labelled)
    lines = describe_patients(labelled, listing)
    if classes is None and not are_sides(listing.classes):
        lines = [describe_labels(labelled, listing.classes), *lines]
    remarks += [Problem("", Kind.REMARK, line) for line in lines]
    return Listing(labelled, remarks, listing.classes, listing.patients, listing.is_by_name)


def first_problems(lines: list[str]) -> list[str]:
    """The first few of what can't be read, a line each, and how to get a table of all."""
    shown = abridged_lines(lines)
    all_of_them = "  a table of all: python dataset.py DIR --write-problems CSV"
    return shown if shown == lines else [*shown, all_of_them]


def sort_slices(slices: list[Slice]) -> None:
    """By scan and number; where a scan has a number twice, by name, too, which takes longer."""
    if len({(s.scan, s.number) for s in slices}) == len(slices):
        slices.sort(key=lambda s: (s.scan, s.number))
    else:
        slices.sort(key=lambda s: (s.scan, s.number, natural_order(s.name)))


def why_no_folder(path: str) -> str:
    """What a file is that was given for a folder."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in (".xlsx", ".xls", ".ods"):
        return "a spreadsheet, not a table that can be read: save it as CSV"
    if suffix == ".zip":
        return "an archive: unpack it, and name the folder"
    if is_volume(path) or is_image(os.path.basename(path)):
        return f"one file of many: name its folder, {os.path.dirname(path) or '.'}"
    return "expected a folder, or a manifest whose name ends in .csv or .tsv"


def describe_labels(slices: list[Slice], classes: Sequence[str]) -> str:
    """The labels that a table tells, with what may be misspelt."""
    counts = Counter(s.label for s in slices)
    text = "the labels are " + ", ".join(f"{x} ({counted(counts[x], 'slice')})" for x in classes)
    for label in classes:
        others = [other for other in classes if other != label and not other.isdecimal()]
        for near in difflib.get_close_matches(label, others, 1, cutoff=0.8):
            if counts[label] < counts[near]:
                return f"{text}; if {label} is {near} misspelt, correct it"
    return f"{text}; --classes sets their order"


def describe_contradictions(problems: list[Problem]) -> list[str]:
    """A line for each kind of contradiction, of the first few: what it is, how often and where."""
    return abridged_lines(merge_alike(problems))


def check_classes_present(slices: list[Slice], classes: Sequence[str]) -> None:
    """Raise DataError if there is no slice of a class."""
    counts = Counter(s.label for s in slices)
    for label in classes:
        if not counts[label]:
            there = ", ".join(
                f"{name} ({counted(count, 'slice')})" for name, count in counts.items()
            )
            raise DataError(f"no slice has the label {label}; there are {there}")


def check_scans(slices: list[Slice], where: str) -> None:
    """Raise DataError with its name if a scan has two labels or two patients."""
    for what in ("label", "patient"):
        found = defaultdict(set)
        for s in slices:
            found[s.scan].add(getattr(s, what))
        for scan, values in found.items():
            if len(values) > 1:
                raise DataError(
                    f"scan {scan} is of two {what}s: {abridged(sorted(values))}; correct {where}, "
                    "or add a column or a group scan, or --slices-per-scan 1: each image a scan"
                )


def check_files(slices: list[Slice], base: str) -> None:
    """Raise DataError if images that a manifest names are not there."""
    missing = [s.source for s in slices if s.volume is None and not os.path.exists(s.source)]
    if missing:
        number = "1 file is" if len(missing) == 1 else f"{len(missing):,} files are"
        paths = abridged([os.path.relpath(path, base) for path in missing])
        raise DataError(f"{number} not there: {paths}; paths are relative to {base}")


def describe_patients(slices: list[Slice], listing: Listing) -> list[str]:
    """Examples of patients that names tell; what is odd about them and about scans."""
    scans = {s.scan: s for s in slices}
    if len(scans) < MIN_SCANS or not all(s.patient for s in slices):
        return []
    scans_of = Counter(s.patient for s in scans.values())
    low, high = min(scans_of.values()), max(scans_of.values())
    each = counted(low, "scan") if low == high else f"{low} to {high} scans"
    lines = []
    if listing.is_by_name:
        shown = list(scans.values())[:: max(1, len(scans) // 3)][:3]
        examples = ", ".join(f"{s.name} -> {s.patient}" for s in shown)
        text = f"patients: {listing.patients}; {len(scans_of)}, of {each} each: {examples}"
        lines.append(text)
    several = {patient for patient, count in scans_of.items() if count > 1}
    having = {(s.patient, s.label) for s in slices}
    if not several:
        lines.append(
            "every scan is of a patient of its own: if one person has several, their scans are "
            "trained on and tested, and the accuracy is too good"
        )
    elif are_sides(listing.classes) and len(having) == len(scans_of):
        lines.append(
            "both knees of 0 patients: if people have both, they are taken for two, and the "
            "accuracy is too good"
        )
    sizes = Counter(s.scan for s in slices)
    usual = max(Counter(sizes.values()).items(), key=lambda item: item[::-1])[0]
    odd = [f"{scan} ({n})" for scan, n in sorted(sizes.items()) if n != usual]
    if odd and len(odd) <= len(sizes) / 2:
        lines.append(
            f"{counted(len(odd), 'scan')} not of {counted(usual, 'slice')}: {abridged(odd)}"
        )
    return lines


def nothing_labelled(
    path: str | Path, unlabelled: list[str], classes: list[str], options: Options
) -> str:
    """Why nothing of it can be trained on, and what to do."""
    if not unlabelled:
        return f"{path}: no images and no volumes"
    expected = "expected folders " + " and ".join(f"{label}/" for label in classes)
    if are_sides(classes):
        expected += " or names like OAI9014797_BaseLine_3_de3d1_SAG_3D_DESS_WE_RIGHT.nii.gz_0.png"
    expected += "; --name-pattern, --labels or a manifest can tell otherwise"
    if others := folders_like_classes(Path(path), unlabelled):
        expected += f"; if these folders are the classes: --classes {shlex.join(others)}"
    if options.name_pattern:
        expected = f"--name-pattern {options.name_pattern} finds no label in their paths"
    if options.labels:
        expected = f"no row of {', '.join(map(str, options.labels))} is of any of them"
    count = counted(len(unlabelled), "slice")
    return (
        f"{path}: {count} but none with a label ({', '.join(classes)}); {expected}; first: "
        f"{unlabelled[0]}"
    )


def folders_like_classes(root: Path, paths: list[str]) -> list[str]:
    """The folders of the level that has fewest, if they are few enough to be classes, and are no
    subsets, visits or patients.
    """
    levels = defaultdict(set)
    for path in paths:
        for level, name in enumerate(Path(os.path.relpath(path, root)).parts[:-1]):
            levels[level].add(name)
    found = [
        folders
        for folders in levels.values()
        if len(folders) in CLASS_FOLDERS
        and all(free_parts(x, ()) and not patient_part(x) for x in folders)
    ]
    return sorted(min(found, key=len, default=[]), key=natural_order)
