"""Files -> slices, scans and patients.

    from dataset import find_slices, group_scans
    slices, notes = find_slices("AKOA_Analysis")
    scans = group_scans(slices)                       # scan name -> its slices

    python dataset.py AKOA_Analysis                   # what is in it, and a picture of it

A slice is one 2D image: a PNG, or one of a volume's. A scan is one knee imaged once (40 slices in
AKOA); a patient has one or more scans. Names tell them: AKOA's, folders left/ and right/, a pattern
of your own, or a manifest.
"""

import csv
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import volumes

SIDES = ("left", "right")  # class 0 and class 1
SIDE_WORDS = {"left": "left", "l": "left", "right": "right", "r": "right"}
SLICES_PER_SCAN = 40
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}

# OAI9014797_BaseLine_3_de3d1_SAG_3D_DESS_WE_RIGHT.nii.gz_0 (without its suffix .png)
AKOA_NAME = re.compile(
    r"(?P<scan>(?P<patient>OAI\d+)_.*_(?P<side>left|right|l_e_f_t|r_i_g_h_t)(\.nii(\.gz)?)?)"
    r"_(?P<index>\d+)",
    re.IGNORECASE,
)
PATTERN_GROUPS = ("patient", "scan", "side", "slice")


class DataError(ValueError):
    """Data that can't be used. The message names the file or value and says what to do."""


@dataclass(frozen=True, slots=True)
class Slice:
    """One 2D image.

    Slice(path="AKOA/OAI9014797_BaseLine_3_de3d1_SAG_3D_DESS_WE_RIGHT.nii.gz_0.png", side="right",
          patient="OAI9014797", scan="OAI9014797_..._WE_RIGHT.nii.gz", index=0)

    Slice 7 of a volume has the path "knees/p01_RIGHT.nii.gz#7". A patient or scan of "" is one that
    its name does not tell.
    """

    path: str
    side: str
    patient: str
    scan: str
    index: int


# ---- one name -> one slice -----------------------------------------------------------------------


def is_image(name: str) -> bool:
    """By its ending; Thumbs.db, .DS_Store, ._copies and other litter are none."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")


def natural_order(name: str) -> list:
    """Sort key that puts slice 2 before slice 10."""
    parts = re.split(r"([0-9]+)", name)  # every second one is a number
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def parse_name(path: Path) -> Slice | None:
    """What an image's path says, by its AKOA name or by a folder `left` or `right` that it lies in.

    Three forms of such folders: `left/p01_7.png`, `left/p01/7.png` and `p01/left/7.png`, also with
    folders in between (`left/p01/visit2/7.png`, `p01/visit2/left/7.png`), are slice 7 of a left
    knee of patient p01. Of `left/7.png` neither patient nor scan are known. Returns None if nothing
    tells the side.

    Raises:
        DataError: name and folder tell different sides.
    """
    folder_side = side_of_folders(path)
    if match := AKOA_NAME.fullmatch(path.stem):
        side = match["side"].replace("_", "").lower()
        if folder_side not in (None, side):
            raise DataError(f"{path}: the name says {side}, the folder {folder_side}")
        return Slice(str(path), side, match["patient"].upper(), match["scan"], int(match["index"]))
    if folder_side is None:
        return None
    position = max(i for i, part in enumerate(path.parts) if part.lower() == folder_side)
    name, index = re.fullmatch(r"(.*?)[-_ ]*(\d*)", path.stem, re.DOTALL).groups()
    above, below = path.parts[:position], path.parts[position + 1 : -1]
    told = [*below[:1], *filter(None, [name]), *above[:1]]
    scan = "/".join(filter(None, [*above, folder_side, *below, name])) if told else ""
    return Slice(str(path), folder_side, told[0] if told else "", scan, int(index or 0))


def side_of_folders(path: Path) -> str | None:
    sides = [part.lower() for part in path.parts[:-1] if part.lower() in SIDES]
    return sides[-1] if sides else None


def side_of_word(word: str) -> str | None:
    """left for L, Left, L_E_F_T, ..."""
    return SIDE_WORDS.get(word.strip().replace("_", "").lower())


def compile_pattern(text: str) -> re.Pattern:
    """A --name-pattern, checked. Raises DataError if it is none, or has none of its groups."""
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise DataError(f"--name-pattern {text}: not a regular expression: {error}") from error
    if not set(PATTERN_GROUPS) & set(pattern.groupindex):
        groups = ", ".join(f"(?P<{name}>...)" for name in PATTERN_GROUPS)
        raise DataError(f"--name-pattern {text}: has none of the groups {groups}")
    return pattern


def parse_by_pattern(path: Path, pattern: re.Pattern) -> Slice | None:
    """What a pattern finds in a path below the data folder, such as `a/12_L_003.png`.

    A group that it lacks: the side is that of a folder `left` or `right`; the scan is all of a
    patient's slices of that side and folder; the slice is the number that the name ends with.

    Raises:
        DataError: the side is none of left, right, l and r.
    """
    if not (match := pattern.search(path.as_posix())):
        return None
    told = {name: text or "" for name, text in match.groupdict().items()}
    side = side_of_folders(path)
    if told.get("side"):
        side = side_of_word(told["side"])
        if side is None:
            raise DataError(f"{path}: --name-pattern finds the side {told['side']!r}, not l or r")
    if side is None:
        return None
    patient, scan = told.get("patient", ""), told.get("scan", "")
    if patient and not scan:
        scan = "/".join([*path.parts[:-1], f"{patient} {side}"])
    index = told.get("slice") or re.search(r"\d*$", path.stem).group()
    return Slice(str(path), side, patient, scan, int(index) if index.isdecimal() else 0)


# ---- a folder or a manifest -> all slices --------------------------------------------------------


def walk(root: str | Path, problems: list[OSError]) -> Iterator[tuple[str, list[str]]]:
    """Each folder below root and its file names, in the same order on every machine.

    Links are followed, and each folder is visited once. Folders that can't be read go to problems.
    """
    visited = set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=problems.append):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:
            subfolders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        subfolders.sort()
        yield folder, sorted(names)


class Found(NamedTuple):
    """What is in a folder, or in a manifest."""

    slices: list[Slice]  # a side of "" is one that nothing tells
    unreadable: list[tuple[str, str]]  # folders and volumes: (path, what is wrong)
    contradictions: list[tuple[str, str]]  # two things tell two sides: (path, who says what)
    notes: list[str]  # about what was left out


def find_slices(
    data_dir: str | Path, name_pattern: str | None = None, plane: str = "stored"
) -> tuple[list[Slice], list[str]]:
    """Find every slice below a folder, however it is nested, or in a manifest (a CSV file).

    Returns the slices, sorted by scan and slice number, and notes: plain sentences about files that
    were left out, names that tell no patient, and scans that are not whole.

    Raises:
        DataError: no such folder, no slices with a side, a name that contradicts its folder, a
            folder or volume that can't be read, a scan of two sides or patients, or names that
            tell no scans.
    """
    root = Path(data_dir)
    pattern = compile_pattern(name_pattern) if name_pattern else None
    if root.is_file() and pattern:
        raise DataError(f"{root}: a manifest tells all; leave out --name-pattern")
    if not root.exists():
        raise DataError(f"{data_dir}: no such folder")
    slices, unreadable, contradictions, notes = (
        read_manifest(root, plane) if root.is_file() else read_folder(root, pattern, plane)
    )
    localizers = [path for path, problem in unreadable if volumes.is_localizer(problem)]
    unreadable = [(path, problem) for path, problem in unreadable if path not in localizers]
    if unreadable:
        listed = [f"  {path}: {problem}" for path, problem in unreadable]
        raise DataError("\n".join([f"{len(listed)} folders or volumes can't be read:", *listed]))
    for path, problem in contradictions:
        if is_image(os.path.basename(path)):
            raise DataError(f"{path}: {problem}")
        notes.append(f"{path}: {problem}: it is left out")
    sideless = [s.path for s in slices if not s.side]
    slices = [s for s in slices if s.side]
    if not slices:
        expected = (
            "expected names like OAI9014797_BaseLine_3_de3d1_SAG_3D_DESS_WE_RIGHT.nii.gz_0.png, "
            "or folders left/ and right/; --name-pattern or a manifest can tell otherwise"
        )
        if pattern:
            expected = f"--name-pattern {pattern.pattern} finds no side in their names"
        what = "no images and no volumes"
        if sideless:
            what = f"{len(sideless)} slices but none with a side"
            expected = f"{expected}; first: {sideless[0]}"
        raise DataError(f"{root}: {what}; {expected}")
    if sideless:
        notes.append(f"{len(sideless)} slices have no side and are left out: {few(sideless)}")
    if localizers:
        notes.append(f"{len(localizers)} series are too short for a scan: {few(localizers)}")
    guessed = root.is_dir() and not pattern
    slices, more = name_the_nameless(slices, guessed)
    check_scans(slices)
    slices.sort(key=lambda s: (s.scan, s.index, natural_order(s.path)))
    others = [s for s in slices if not AKOA_NAME.fullmatch(Path(s.path).stem)]
    if guessed and others and others[0].patient != others[0].scan:
        first = others[0]
        more.append(
            f"patients are guessed from names and folders: {first.path} is of patient "
            f"{first.patient}; if that is wrong, --name-pattern or a manifest can tell"
        )
    sizes = Counter(s.scan for s in slices)
    odd = [f"{scan} ({n})" for scan, n in sorted(sizes.items()) if n != SLICES_PER_SCAN]
    if odd:
        more.append(f"{len(odd)} scans do not have {SLICES_PER_SCAN} slices: {few(odd)}")
    return slices, notes + more


def read_folder(root: Path, pattern: re.Pattern | None, plane: str) -> Found:
    """All slices and volumes below a folder."""
    found: dict[tuple[str, str], Slice] = {}
    twice, lost, contradictions, unreadable = [], [], [], []
    problems: list[OSError] = []
    for folder, names in walk(root, problems):
        # The folder's own path says nothing of the side: /data/left/AKOA is not all left.
        below_root = Path(folder).relative_to(root)
        for name in filter(is_image, names):
            path, below = os.path.join(folder, name), below_root / name
            try:
                parsed = parse_by_pattern(below, pattern) if pattern else parse_name(below)
            except DataError as error:
                contradictions.append((path, str(error).removeprefix(f"{below}: ")))
                parsed = None
            parsed = replace(parsed or sideless_slice(below), path=path)
            key = (parsed.scan, below.stem) if parsed.scan and not pattern else (folder, name)
            if key in found:
                twice.append(path)
            else:
                found[key] = parsed
        others = [name for name in names if not is_image(name)]
        links = [path for name in others if os.path.islink(path := os.path.join(folder, name))]
        lost += [path for path in links if not os.path.exists(path)]
        in_folder, unusable = volumes.find_volumes(folder, others, plane, root)
        unreadable += unusable
        for volume in in_folder:
            parsed, problem = parse_volume(volume, root, pattern)
            if problem:
                contradictions.append((volume.source, problem))
            for s in cut(volume, parsed):
                found[s.path, ""] = s
    unreadable += [(error.filename, error.strerror) for error in problems]
    notes = []
    for paths, problem in [
        (twice, "images are copies of slices already found and are left out"),
        (lost, "links lead nowhere and are left out"),
    ]:
        if paths:
            notes.append(f"{len(paths)} {problem}: {few(paths)}")
    return Found(list(found.values()), unreadable, contradictions, notes)


def sideless_slice(path: Path) -> Slice:
    """An image whose name tells no side: new/knee_07.png is slice 7 of the scan new/knee."""
    name, index = re.fullmatch(r"(.*?)[-_ ]*(\d*)", path.stem, re.DOTALL).groups()
    return Slice(str(path), "", "", str(path.parent / (name or "slices")), int(index or 0))


def cut(volume: volumes.Volume, parsed: Slice) -> list[Slice]:
    """The slices of a volume: source#0, source#1, ..."""
    return [
        replace(parsed, path=f"{volume.source}#{index}", index=index)
        for index in range(volume.num_slices)
    ]


def parse_volume(
    volume: volumes.Volume, root: Path, pattern: re.Pattern | None
) -> tuple[Slice, str]:
    """A volume's side, patient and scan, and who contradicts whom ("" if nobody: then the side is
    what they agree on, or "" where nothing tells it).

    The patient is that of its pattern, AKOA name or DICOM PatientID; or the first folder below
    root; or its name without the side: p01_LEFT.nii.gz and p01_RIGHT.nii.gz are both knees of p01.
    """
    below = Path(os.path.relpath(volume.source, root))
    akoa = AKOA_NAME.fullmatch(f"{below.name}_0")
    told = parse_by_pattern(below, pattern) if pattern else None
    side, patient, scan = volume.side or "", volume.patient or "", below.as_posix()
    problem = "" if side or volume.told_by == volumes.NOTHING else volume.told_by
    if akoa:
        patient, scan = akoa["patient"].upper(), akoa["scan"]
    elif folders := [part for part in below.parts[:-1] if part.lower() not in SIDES]:
        patient = patient or folders[0]
    elif not patient:
        name = re.fullmatch(r"(.*?)(\.nii|\.nii\.gz|\.\w+)?(#\d+)?", below.name)[1]
        patient = volumes.SIDE.sub("", name).strip(" _.-")
    if pattern and not told:
        side = problem = ""
    elif told:
        patient = told.patient
        scan = told.scan if told.scan and "scan" in pattern.groupindex else below.as_posix()
        if side and side != told.side:
            problem = f"--name-pattern says {told.side}, its {volume.told_by} {side}"
        side = told.side
    return Slice("", "" if problem else side, patient, scan, 0), problem


def read_manifest(path: Path, plane: str) -> Found:
    """Read a CSV with columns path and side, and where they are known patient and scan.

    Paths are those of images or volumes, relative to the manifest's folder.

    Raises:
        DataError: a column is missing, or a row can't be used (it is named by its line).
    """
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, csv.Error) as error:
        raise DataError(f"{path}: not a readable manifest: {error}") from error
    if not {"path", "side"} <= set(columns):
        raise DataError(f"{path}: expected columns path,side,patient,scan, got {columns}")
    found, unreadable, notes = {}, [], []
    for line, row in rows:
        side = side_of_word(row["side"] or "")
        file = os.path.normpath(path.parent / (row["path"] or ""))
        if side is None or not row["path"] or file in found:
            problem = f"side must be left or right, got {row['side']!r}"
            if side:
                problem = f"{row['path']} is in it twice" if row["path"] else "names no path"
            raise DataError(f"{path}, line {line}: {problem}")
        patient, scan = ((row.get(name) or "").strip() for name in ("patient", "scan"))
        index = int(re.search(r"\d*$", Path(file).stem).group() or 0)
        if is_image(os.path.basename(file)):
            scan = scan or (f"{patient} {side}" if patient else "")
            found[file] = [Slice(file, side, patient, scan, index)]
            continue
        try:
            volume = volumes.describe(file, plane)
        except volumes.VolumeError as error:
            unreadable.append((file, f"{error.args[-1]} ({path}, line {line})"))
            continue
        if volume.side != side and volume.told_by != volumes.NOTHING:
            others = f"its {volume.told_by} {volume.side}" if volume.side else volume.told_by
            notes.append(f"{file}: the manifest says {side}, {others}")
        found[file] = cut(volume, Slice("", side, patient, scan or row["path"], 0))
    slices = [s for slices in found.values() for s in slices]
    return Found(slices, unreadable, [], notes)


def name_the_nameless(slices: list[Slice], guessed: bool) -> tuple[list[Slice], list[str]]:
    """Where names tell no scan, 40 slices in sorted order are one; where no patient, a scan is.

    Names such as left/img_7.png, of which the same patient is guessed for all slices, tell nothing
    either.

    Raises:
        DataError: they do not divide into scans of 40.
    """
    patients, scans = {s.patient for s in slices}, {(s.side, s.scan) for s in slices}
    akoa = all(re.fullmatch(r"OAI\d+", patient) for patient in patients)
    if guessed and len(patients) == 1 and len(scans) == len(SIDES) and not akoa:
        slices = [replace(s, patient="", scan="") for s in slices]
    named = [s for s in slices if s.scan]
    notes = []
    for side in SIDES:
        members = [s for s in slices if s.side == side and not s.scan]
        members.sort(key=lambda s: natural_order(s.path))
        if len(members) % SLICES_PER_SCAN:
            raise DataError(
                f"the names of {len(members)} {side} slices tell neither patient nor scan, and "
                f"they don't divide into scans of {SLICES_PER_SCAN} (first: {members[0].path}); "
                "--name-pattern or a manifest can tell"
            )
        named += [
            replace(s, scan=f"{side} {i // SLICES_PER_SCAN + 1:04}") for i, s in enumerate(members)
        ]
        if members:
            notes.append(
                f"the names of {len(members)} {side} slices tell no scan: {SLICES_PER_SCAN} in "
                "sorted order are taken as one"
            )
    nameless = {s.scan for s in named if not s.patient}
    if nameless:
        notes.append(
            f"the names of {len(nameless)} scans tell no patient: each is taken as a patient of "
            "its own, and if one has several, the accuracy will be too good"
        )
    return [s if s.patient else replace(s, patient=s.scan) for s in named], notes


def check_scans(slices: list[Slice]) -> None:
    """Raise DataError with its name if a scan has two sides or two patients."""
    for what in ("side", "patient"):
        told = defaultdict(set)
        for s in slices:
            told[s.scan].add(getattr(s, what))
        for scan, values in told.items():
            if len(values) > 1:
                raise DataError(
                    f"scan {scan} is of two {what}s: {', '.join(sorted(values))}; let the scan's "
                    "name hold more of the path"
                )


def few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def group_scans(slices: list[Slice]) -> dict[str, list[Slice]]:
    """Scan name -> its slices, in the order of the names."""
    scans = defaultdict(list)
    for s in slices:
        scans[s.scan].append(s)
    return dict(sorted(scans.items()))


if __name__ == "__main__":
    from audit import main

    sys.exit(main())
