"""Folders, files, manifests and standard input -> all slices in them, each named once and whole.

    listing = list_slices("AKOA_Analysis")
    listing.slices, listing.problems, listing.classes

What can be trained on: `labelled.list_labelled`.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import partial
from itertools import count
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO

from common.files import abridged
from common.program import MissingPackage, counted
from common.quiet import quiet_libraries
from scans import names
from scans.dicom import problem_of
from scans.found import INFERRED, TABLE, Found
from scans.identities import identify
from scans.label_tables import LabelTables, read_labels
from scans.names import is_image, label_of_word, natural_order
from scans.readings import ask, ask_of_strangers
from scans.series import find_all_volumes, is_volume, merge_remarks, open_volume
from scans.slices import (
    FAILURES,
    SIDES,
    DataError,
    Kind,
    Listing,
    Options,
    Problem,
    Unchosen,
)
from scans.tables import (
    classes_of_manifest,
    expected_class,
    read_manifest,
    remark_on_manifest,
)
from scans.volumes import VolumeError

MAX_NAME_BYTES = 32 << 10  # of a path on standard input; systems take 4 kB
MAX_NAMES = 5_000_000
FIELDS = attrgetter(*(field.name for field in fields(Found)))  # all values of one

# ---- everything that is there --------------------------------------------------------------------


@quiet_libraries()
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
        DataError: a pattern, a manifest or a list on standard input that can't be used.
        MissingPackage: there are volumes and nothing else, but SimpleITK is not installed.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else paths
    paths = [os.fspath(path) for path in paths]
    tables, usual = None, partial(classes_without_tables, paths)
    if options.labels:
        labels = list(map(Path, options.labels))
        tables = read_labels(labels, options.label_column, classes, usual)
    if classes is None:
        classes = tables.classes if tables else usual()
    classes = check_classes(classes)

    lister = Lister(classes, options)
    groups, files = [], []  # what is named together
    for path in with_standard_input(paths):
        if os.path.isdir(path):
            groups.append((path, lister.read_folder(Path(path))))
        elif is_manifest(path):
            groups.append((path, lister.read_manifest(Path(path))))
        else:
            files += lister.read_file(path)
    slices, ways = [], []
    for path, found in [*groups, ("", files)]:
        root = path if os.path.isdir(path) else os.path.dirname(path)
        root = os.path.abspath(root) if path else ""
        prefix = path if len(paths) > 1 else ""
        ways += lister.identify(found, root, tables, prefix)
        slices += [s for item in found for s in item.slices(prefix)]
    if tables:
        lister.problems += [Problem("", Kind.REMARK, text) for text in tables.notes()]
    slices = list({(s.source, s.index): s for s in slices}.values())
    unread = [problem for problem in lister.problems if problem.kind is Kind.PACKAGE]
    if unread and not slices:
        raise MissingPackage(unread[0].text)
    problems = merge_remarks(lister.problems, slices, options)
    return Listing(slices, problems, classes, ", ".join(dict.fromkeys(ways)), lister.is_inferred)


def classes_without_tables(paths: Sequence[str]) -> Sequence[str]:
    """Those that one manifest tells, or left and right."""
    if len(paths) == 1 and is_manifest(paths[0]):
        return classes_of_manifest(Path(paths[0]))
    return SIDES


def check_classes(classes: Sequence[str]) -> list[str]:
    """Raise DataError unless there are two or more that differ in more than their case."""
    different = {label.strip().lower() for label in classes} - {""}
    if len(different) < 2 or len(different) < len(classes):
        given = " ".join(classes)
        raise DataError(f"--classes {given}: expected two or more labels that differ")
    return list(classes)


def with_standard_input(paths: Sequence[str]) -> Iterator[str]:
    """The paths, and for "-" those that are read. Raises DataError for what is no list of them."""
    if paths.count("-") > 1:
        raise DataError("- is given twice; standard input can be read once")
    for path in paths:
        if path == "-":
            yield from read_names(sys.stdin.buffer)
        else:
            yield path


def read_names(stream: BinaryIO) -> Iterator[str]:
    """A path on each line, whose end may be Windows'. Raises DataError where that can't be."""
    for number in count(1):
        line = stream.readline(MAX_NAME_BYTES + 1)
        if not line:
            return
        if len(line) > MAX_NAME_BYTES:
            text = f"more than {MAX_NAME_BYTES:,} bytes, expected a path on each line (no -print0)"
            raise DataError(f"standard input, line {number:,}: {text}")
        if number > MAX_NAMES:
            raise DataError(f"standard input: more than {MAX_NAMES:,} lines; name their folder")
        if name := line.removesuffix(b"\n").removesuffix(b"\r"):
            yield os.fsdecode(name)


def is_manifest(path: str) -> bool:
    """By its ending, also of a pipe, which is then refused as a table."""
    ends_so = path.lower().endswith((".csv", ".tsv"))
    return ends_so and os.path.exists(path) and not os.path.isdir(path)


def walk(
    root: str | Path, problems: list[OSError], own: list[str]
) -> Iterator[tuple[str, list[str]]]:
    """Each folder below root and its file names, in the same order on every machine.

    Links are followed, and each folder is visited once. Folders that can't be read go to problems,
    and what these programs made themselves (caches, runs) to own.
    """
    visited = set()
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=problems.append):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:
            subfolders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        if folder != os.fspath(root) and names.is_cache_or_run(files):
            own.append(folder)
            subfolders.clear()
            continue
        subfolders.sort()
        yield folder, sorted(files)


# ---- one folder, file or manifest ----------------------------------------------------------------


class Lister:
    """Reads folders, files and manifests for some classes; what is wrong goes to `problems`."""

    def __init__(self, classes: list[str], options: Options = Options()):
        self.classes, self.options = classes, options
        self.problems: list[Problem] = []
        self.is_inferred = False  # whether patients are, some of them

    def note(self, kind: Kind, text: str, path: str = "") -> None:
        self.problems.append(Problem(path, kind, text))

    def identify(
        self, found: list[Found], root: str, tables: LabelTables | None, prefix: str = ""
    ) -> list[str]:
        """Fill in what is known of each. Returns the ways in which patients are known.

        Of one scan there is nothing to part, and a prediction of single files needs no patient:
        otherwise it is asked for where nothing tells it.
        """
        # Before it changes them; in values, as copies take longer.
        pristine = [FIELDS(item) for item in found] if root else []
        arguments = self.classes, self.options
        known = identify(found, *arguments, self.problems, root, tables, prefix)
        if root and len({item.scan for item in known.unknown}) > 1:
            before = [Found(*values) for values in pristine]
            self.note(Kind.NAMELESS, ask(before, known.unknown, *arguments, root, tables))
        elif root and known.strangers and self.options.patients != "named":
            others = {item.scan for item in found if item.label} - {x.scan for x in known.strangers}
            self.note(Kind.NAMELESS, ask_of_strangers(len(others), known.strangers))
        self.is_inferred |= any(item.way == INFERRED for item in found if item.label)
        return known.ways

    def read_folder(self, root: Path) -> list[Found]:
        """All images and volumes below a folder, in natural order.

        Its own path says nothing: /data/left is not all left.
        """
        found: list[Found] = []
        lost, failures, own, before = [], [], [], len(self.problems)
        not_images = []  # the other files of each folder
        for folder, files in walk(root, failures, own):
            inside = Path(folder).relative_to(root).as_posix()
            start = "" if inside == "." else f"{inside}/"
            images, others = [], []
            for name in files:
                (images if is_image(name) else others).append(name)
            whole = os.path.join(folder, "")
            found += [Found(whole + name, start + name) for name in images]
            links = [path for name in others if os.path.islink(path := os.path.join(folder, name))]
            lost += [path for path in links if not os.path.exists(path)]
            not_images.append((folder, others))
        for volumes, problems in find_all_volumes(not_images, self.options):
            self.problems += problems
            found += [Found(v.source, below(v.path, root), v) for v in volumes]
        for error in failures:
            self.note(Kind.UNREADABLE, error.strerror, error.filename)
        if lost:
            text = f"{counted(len(lost), 'link')} to nothing, left out: {abridged(lost)}"
            self.note(Kind.REMARK, text)
        if own:
            self.note(Kind.REMARK, f"caches and runs are no data, left out: {abridged(own)}")
        explained = (*FAILURES, Kind.UNCHOSEN)
        if not (found or any(problem.kind in explained for problem in self.problems[before:])):
            self.note(Kind.EMPTY, "no images and no volumes in this folder", str(root))
        return sorted(found, key=lambda item: natural_order(item.source))

    def read_file(self, path: str) -> list[Found]:
        """One image or volume."""
        if not is_volume(path):
            return [Found(path, Path(path).as_posix())]
        try:
            return [Found(path, Path(path).as_posix(), open_volume(path, self.options), scan=path)]
        except VolumeError as error:
            self.problems.append(problem_of(error)._replace(path=path))
        except MissingPackage as error:
            self.note(Kind.PACKAGE, str(error), path)
        return []

    def read_manifest(self, path: Path) -> list[Found]:
        """The images and volumes of a manifest; their paths are relative to its folder.

        Raises:
            UserError: it is no table; as DataError a column is missing, or a row can't be used (it
                is named by its line).
        """
        if remark := remark_on_manifest(path):
            self.note(Kind.REMARK, remark)
        found: dict[str, Found] = {}
        for row in read_manifest(path):
            label = label_of_word(row.label, self.classes)
            file = os.path.normpath(path.parent / row.path)
            problem = f"{row.path} is in it twice" if file in found else ""
            if label is None:
                problem = f"label {expected_class(row.label, self.classes)}"
            if problem or not row.path:
                raise DataError(f"{path}, line {row.line}: {problem or 'names no path'}")
            named = Path(os.path.normpath(row.path)).as_posix()
            item = Found(file, named, None, label, row.patient, row.scan, label_by="manifest")
            item.way = TABLE if row.patient else ""
            if is_image(os.path.basename(file)):
                item.number = int(names.number_at_end(Path(file).stem) or 0)
                found[file] = item
                continue
            try:
                item.volume = open_volume(file, self.options)
                found[file] = item
            except Unchosen as error:
                self.problems.append(problem_of(error))
            except VolumeError as error:
                self.note(Kind.UNREADABLE, f"{error.text} ({path}, line {row.line})", file)
        return list(found.values())


def below(path: str, root: Path) -> str:
    """The path below root; of root itself (a folder of DICOM files) its name."""
    relative = Path(os.path.relpath(path, root))
    return relative.as_posix() if relative != Path(".") else os.path.basename(os.path.abspath(root))
