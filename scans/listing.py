"""Folders, files, manifests and standard input -> all slices in them, each named once and whole.

    listing = list_slices("AKOA_Analysis")
    listing.slices, listing.problems, listing.classes

What can be trained on: `labelled.list_labelled`.
"""

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from common.files import abridged, read_csv
from scans import names
from scans.dicom import problem_of
from scans.names import Identity, is_image, label_of_word, natural_order, weigh
from scans.series import find_all_volumes, is_volume, merge_remarks, open_volume
from scans.slices import (
    FAILURES,
    SIDES,
    Contradiction,
    DataError,
    Kind,
    Listing,
    Options,
    Problem,
    Slice,
    Unchosen,
    Volume,
)
from scans.volumes import VolumeError, side_of_position

SLICES_PER_SCAN = 40  # as in AKOA


class Found(NamedTuple):
    """An image or a volume, and what is known of it: what slices are made of."""

    source: str
    identity: Identity
    volume: Volume | None = None
    count: int = 1  # slices of a volume

    def slices(self, prefix: str = "") -> Iterator[Slice]:
        """Its slices; a prefix stands before the scan's name, unless that is AKOA's."""
        identity = self.identity
        if prefix and not names.AKOA_NAME.fullmatch(f"{identity.scan}_0"):
            identity = identity._replace(scan=os.path.join(prefix, identity.scan))
        if self.volume is None:
            yield Slice(self.source, None, *identity)
        else:
            for i in range(self.count):
                yield Slice(self.source, i, *identity._replace(number=i), self.volume)


# ---- everything that is there --------------------------------------------------------------------


def list_slices(
    paths: str | Path | Sequence[str | Path],
    classes: Sequence[str] | None = None,
    options: Options = Options(),
) -> Listing:
    """Every slice of the images, volumes, folders and manifests (.csv) given, in their order.

    Where several folders are given, names of scans begin with the folder's, so that patients p01 of
    two sites stay two. "-" stands for a list of paths on standard input. A slice given twice counts
    once.

    Args:
        classes: the labels, in order. By default left and right; a manifest alone tells its own.
        options: how names and volumes are understood.

    Raises:
        DataError: a pattern or a manifest that can't be used.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else paths
    paths = [os.fspath(path) for path in paths]
    pattern = names.compile_pattern(options.name_pattern) if options.name_pattern else None
    if classes is None and len(paths) == 1 and is_manifest(paths[0]):
        classes = classes_of_manifest(Path(paths[0]))
    classes = check_classes(classes or SIDES)

    lister = Lister(classes, pattern, options)
    slices, files = [], []
    for path in with_standard_input(paths):
        is_folder = os.path.isdir(path)
        if not (is_folder or is_manifest(path)):
            files += lister.read_file(path)  # they are named together
            continue
        found = lister.read_folder(Path(path)) if is_folder else lister.read_manifest(Path(path))
        prefix = path if len(paths) > 1 else ""
        for named in lister.name_scans(found, is_folder and not pattern):
            slices += named.slices(prefix)
    for named in lister.name_scans(files, guessed=False):
        slices += named.slices()
    once = {(s.source, s.index): s for s in slices}
    problems = merge_remarks(lister.problems, once.values(), options)
    return Listing(list(once.values()), problems, classes)


def check_classes(classes: Sequence[str]) -> list[str]:
    """Raise DataError unless there are two or more that differ in more than their case."""
    different = {label.strip().lower() for label in classes} - {""}
    if len(different) < 2 or len(different) < len(classes):
        given = " ".join(classes)
        raise DataError(f"--classes {given}: expected two or more labels that differ")
    return list(classes)


def with_standard_input(paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        if path == "-":
            lines = sys.stdin.buffer.read().splitlines()
            yield from (os.fsdecode(line) for line in lines if line)
        else:
            yield path


def is_manifest(path: str) -> bool:
    return path.lower().endswith(".csv") and os.path.isfile(path)


def label_column(path: Path, columns: list[str]) -> str:
    """`label`, or `side` where it is called so. Raises DataError if a column is missing."""
    for column in ("label", "side"):
        if {"path", column} <= set(columns):
            return column
    raise DataError(f"{path}: expected columns path,label,patient,scan, got {columns}")


def classes_of_manifest(path: Path) -> list[str]:
    """The labels of a manifest, in natural order: left and right if all of its labels are sides."""
    columns, rows = read_csv(path, "manifest")
    column = label_column(path, columns)
    words = [(row[column] or "").strip() for _, row in rows]
    if column == "side" or all(label_of_word(word, SIDES) for word in words):
        return list(SIDES)
    spellings: dict[str, str] = {}
    for word in filter(None, words):
        spellings.setdefault(word.lower(), word)
    if len(spellings) < 2:
        raise DataError(
            f"{path}: expected two or more different labels, got {', '.join(spellings) or 'none'}"
        )
    return sorted(spellings.values(), key=natural_order)


def walk(root: str | Path, problems: list[OSError]) -> Iterator[tuple[str, list[str]]]:
    """Each folder below root and its file names, in the same order on every machine.

    Links are followed, and each folder is visited once. Folders that can't be read go to problems.
    """
    visited = set()
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=problems.append):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:
            subfolders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        subfolders.sort()
        yield folder, sorted(files)


# ---- volumes -------------------------------------------------------------------------------------


def witnesses(volume: Volume, name: str, classes: list[str]) -> list[tuple[str, str]]:
    """Who tells which label of a volume: its name or folder, and of sides header and position."""
    if not names.are_sides(classes):
        of_folder = names.label_of_folders(Path(name, "_"), classes)
        return [("folder", of_folder)] if of_folder else []
    found = [("name", names.side_in_name(name))]
    found += [("header", side) for side in sorted(volume.sides)]
    found += [("position", side_of_position(volume))]
    return [(who, label_of_word(side, classes)) for who, side in found if side]


# ---- one folder, file or manifest ----------------------------------------------------------------


class Lister:
    """Reads folders, files and manifests for some classes; what is wrong goes to `problems`."""

    def __init__(
        self,
        classes: list[str],
        pattern: re.Pattern | None = None,
        options: Options = Options(),
    ):
        self.classes, self.pattern, self.options = classes, pattern, options
        self.problems: list[Problem] = []

    def note(self, kind: Kind, text: str, path: str = "") -> None:
        self.problems.append(Problem(path, kind, text))

    def read_folder(self, root: Path) -> list[Found]:
        """All images and volumes below a folder, in natural order.

        Its own path says nothing: /data/left is not all left.
        """
        found: dict[tuple[str, ...], Found] = {}
        twice, lost, failures, before = [], [], [], len(self.problems)
        not_images = []  # the other files of each folder
        for folder, files in walk(root, failures):
            below_root = Path(folder).relative_to(root)
            for name in filter(is_image, files):
                path, below = os.path.join(folder, name), below_root / name
                identity, key = self.tell_image(path, below), (folder, name)
                if identity.scan and not self.pattern:
                    key = (identity.label, identity.scan, below.stem)
                if key in found:
                    twice.append(path)
                else:
                    found[key] = Found(path, identity)
            others = [name for name in files if not is_image(name)]
            links = [path for name in others if os.path.islink(path := os.path.join(folder, name))]
            lost += [path for path in links if not os.path.exists(path)]
            not_images.append((folder, others))
        for volumes, problems in find_all_volumes(not_images, self.options):
            self.problems += problems
            for volume in volumes:
                found[volume.source, ""] = self.found(volume, self.tell_volume(volume, root))
        for error in failures:
            self.note(Kind.UNREADABLE, error.strerror, error.filename)
        for paths, text in [
            (twice, "images are copies of slices already found and are left out"),
            (lost, "links lead nowhere and are left out"),
        ]:
            if paths:
                self.note(Kind.REMARK, f"{len(paths)} {text}: {abridged(paths)}")
        explained = (*FAILURES, Kind.UNCHOSEN)
        if not (found or any(problem.kind in explained for problem in self.problems[before:])):
            self.note(Kind.EMPTY, "no images and no volumes in this folder", str(root))
        return sorted(found.values(), key=lambda f: natural_order(f.source))

    def read_file(self, path: str) -> list[Found]:
        """One image or volume. Its label is that of its name, or of the folders of the path."""
        if is_volume(path):
            try:
                volume = open_volume(path, self.options)
            except VolumeError as error:
                self.problems.append(problem_of(error)._replace(path=path))
                return []
            identity = self.tell_volume(volume, Path(path).parent.parent)
            return [self.found(volume, identity._replace(scan=path))]
        identity = None
        if not self.pattern:
            identity = names.parse_name(Path(os.path.basename(path)), self.classes)
        if not (identity and identity.label):  # the name alone does not tell it
            identity = self.tell_image(path, Path(path))
        return [Found(path, identity)]

    def read_manifest(self, path: Path) -> list[Found]:
        """A CSV with columns path and label (or side), and where they are known patient and scan.

        Paths are those of images or volumes, relative to the manifest's folder.

        Raises:
            DataError: a column is missing, or a row can't be used (it is named by its line).
        """
        columns, rows = read_csv(path, "manifest")
        column = label_column(path, columns)
        found: dict[str, Found] = {}
        for line, row in rows:
            label = label_of_word(row[column] or "", self.classes)
            file = os.path.normpath(path.parent / (row["path"] or ""))
            if label is None or not row["path"] or file in found:
                problem = f"{column} must be {' or '.join(self.classes)}, got {row[column]!r}"
                if label is not None:
                    problem = f"{row['path']} is in it twice" if row["path"] else "names no path"
                raise DataError(f"{path}, line {line}: {problem}")
            patient, scan = ((row.get(name) or "").strip() for name in ("patient", "scan"))
            if is_image(os.path.basename(file)):
                scan = scan or (f"{patient} {label}" if patient else "")
                number = names.number_at_end(Path(file).stem)
                found[file] = Found(file, Identity(label, patient, scan, number))
                continue
            try:
                volume = open_volume(file, self.options)
                found[file] = self.found(volume, Identity(label, patient, scan or row["path"]))
                weigh([("manifest", label), *witnesses(volume, file, self.classes)])
            except Unchosen as error:
                self.problems.append(problem_of(error))
            except VolumeError as error:
                self.note(Kind.UNREADABLE, f"{error.text} ({path}, line {line})", file)
            except Contradiction as error:
                self.note(Kind.REMARK, str(error), file)
        return list(found.values())

    def found(self, volume: Volume, identity: Identity) -> Found:
        return Found(volume.source, identity, volume, volume.slicing.slices)

    def tell_image(self, path: str, below: Path) -> Identity:
        """What an image's path below the data folder says."""
        try:
            if self.pattern:
                identity = names.parse_by_pattern(below, self.pattern, self.classes)
            else:
                identity = names.parse_name(below, self.classes)
        except Contradiction as error:
            self.note(Kind.CONTRADICTION, str(error), path)
            identity = None
        return identity or names.parse_unlabelled(below)

    def tell_volume(self, volume: Volume, root: Path) -> Identity:
        """A volume's label, patient and scan. Where two things tell two labels it has none.

        The patient is that of a pattern, an AKOA name or the DICOM PatientID; or the first folder
        below root; or its name without the side: p01_LEFT.nii.gz and p01_RIGHT.nii.gz are both
        knees of p01.
        """
        below = Path(os.path.relpath(volume.path, root))
        if below == Path("."):  # the folder of DICOM files itself
            below = Path(os.path.basename(os.path.abspath(root)))
        patient = volume.tags.get("patient", "")
        series = f"#{volume.number}" if volume.number > 1 else ""
        scan = below.as_posix() + series
        folders = [f for f in below.parts[:-1] if names.label_of_folder(f, self.classes) is None]
        if akoa := names.AKOA_NAME.fullmatch(f"{below.name}_0"):
            patient, scan = akoa["patient"].upper(), akoa["scan"] + series
        elif folders:
            patient = patient or folders[0]
        elif not patient:
            patient = names.without_side(below.name)
        of_pattern, label = [], ""
        try:
            if self.pattern:
                identity = names.parse_by_pattern(below, self.pattern, self.classes)
                if identity is None:
                    return Identity("", patient, scan)
                patient = identity.patient
                scan = (
                    identity.scan if identity.scan and "scan" in self.pattern.groupindex else scan
                )
                of_pattern.append(("pattern", identity.label))
            label = weigh([*of_pattern, *witnesses(volume, str(below), self.classes)])
        except Contradiction as error:
            self.note(Kind.CONTRADICTION, str(error), volume.source)
        return Identity(label, patient, scan)

    def name_scans(self, found: list[Found], guessed: bool) -> list[Found]:
        """The same with a scan each: where names tell none, 40 slices in sorted order are one;
        where they tell no patient, a scan is one.

        Names such as left/img_7.png, of which the same patient is guessed for all slices, tell
        nothing either. Where they do not divide into scans of 40, that is a problem, and they are
        one scan a folder. What has no label keeps what its name says.
        """
        known = {f.source: f.identity for f in found if f.identity.label}
        patients = {x.patient for x in known.values()}
        scans = {(x.label, x.scan) for x in known.values()}
        by_name = all(map(names.AKOA_PATIENT.fullmatch, patients))
        by_name = by_name or all(names.tells_patient(Path(source)) for source in known)
        alike = guessed and len(patients) == 1 and len(scans) == len(self.classes) and not by_name
        images = [f.source for f in found if f.volume is None and f.source in known]
        nameless = sorted((s for s in images if alike or not known[s].scan), key=natural_order)
        by_label = {x: [s for s in nameless if known[s].label == x] for x in self.classes}
        odd = {label: some for label, some in by_label.items() if len(some) % SLICES_PER_SCAN}
        for label, some in odd.items():
            text = (
                f"the names of {len(some)} {label} slices tell neither patient nor scan, and they "
                f"don't divide into scans of {SLICES_PER_SCAN} (first: {some[0]}); --name-pattern "
                "or a manifest can tell"
            )
            self.note(Kind.NAMELESS, text)
        if odd:
            for source in [source for source in known if not known[source].scan]:
                known[source] = known[source]._replace(scan=str(Path(source).parent))
            return [f._replace(identity=known.get(f.source, f.identity)) for f in found]
        for label, some in by_label.items():
            for i, source in enumerate(some):
                scan = f"{label} {i // SLICES_PER_SCAN + 1:04}"
                known[source] = known[source]._replace(patient="", scan=scan)
            if some:
                text = f"the names of {len(some)} {label} slices tell no scan: {SLICES_PER_SCAN} "
                self.note(Kind.GUESSED, text + "in sorted order are taken as one")
        if lonely := {x.scan for x in known.values() if not x.patient}:
            text = (
                f"the names of {len(lonely)} scans tell no patient: each is taken as a patient of "
                "its own, and if one has several, the accuracy will be too good"
            )
            self.note(Kind.GUESSED, text)
        known = {source: x._replace(patient=x.patient or x.scan) for source, x in known.items()}
        return [f._replace(identity=known.get(f.source, f.identity)) for f in found]
