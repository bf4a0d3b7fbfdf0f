"""Folders, files, manifests and standard input -> all slices in them, each named once and whole.

    listing = list_slices("AKOA_Analysis")
    listing.slices, listing.problems, listing.classes

What can be trained on: `labelled.list_labelled`.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import BinaryIO

from common.files import abridged
from common.program import MissingPackage, counted, typed
from scans import names
from scans.identity.labels import Labels, LabelTable, Row, read_labels, read_manifest
from scans.identity.names import nfc
from scans.identity.records import Context, LabelBy, PatientBy, Record, Told
from scans.identity.rules import Identified, compile_pattern, identify
from scans.identity.tables import find_files
from scans.names import is_archive, is_image, is_npz, natural_order, strange_ending
from scans.readers import is_dicom, is_volume
from scans.series import find_all_volumes, merge_remarks, open_volume, open_volumes
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
from scans.volumes import VolumeError

MAX_NAME_BYTES = 32 << 10  # of a path on standard input; systems take 4 kB
MAX_NAMES = 5_000_000

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
        DataError: a pattern, a manifest or a list on standard input that can't be used.
        MissingPackage: there are volumes and nothing else, but what reads them is not installed.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else paths
    paths = [os.fspath(path) for path in paths]
    for flag in ("label_key", "label_column"):
        if getattr(options, flag) and not options.labels:
            text = f"--{flag.replace('_', '-')} {getattr(options, flag)}"
            raise DataError(f"{text}: a column of which table? name it as --labels")
    paths = list(with_standard_input(paths))
    manifests = {path: read_manifest(Path(path)) for path in paths if is_manifest(path)}
    usual = classes if classes is not None else SIDES
    if classes is None and len(paths) == len(manifests) == 1:
        usual = manifests[paths[0]].classes()
    tables = read_labels(options, classes, usual) if options.labels else None
    classes = check_classes(tables.classes if tables else usual)

    lister = Lister(classes, options)
    groups, files = [], []  # what is named together
    for path in paths:
        if path in manifests:
            groups.append((path, lister.read_manifest(manifests[path])))
        elif os.path.isdir(path):
            groups.append((path, lister.read_folder(Path(path))))
        else:
            files += lister.read_file(path)
    slices, ways, records = [], [], []
    for path, found in [*groups, *([("", files)] if files else [])]:
        root = path if os.path.isdir(path) else os.path.dirname(path)
        root = os.path.abspath(root) if path else ""
        prefix = path if len(paths) > 1 else ""
        identified = lister.identify(found, root, tables, prefix)
        ways += identified.ways
        records += identified.records
        slices += [s for record in identified.records for s in record.slices(prefix)]
    if tables:
        lister.problems += [Problem("", Kind.REMARK, text) for text in tables.notes(records)]
    slices = list({(s.source, s.index): s for s in slices}.values())
    unread = [problem for problem in lister.problems if problem.kind is Kind.PACKAGE]
    if unread and not slices:
        raise MissingPackage(unread[0].text)
    problems = merge_remarks(lister.problems, slices, options)
    is_by_name = any(
        record.label and record.way in (PatientBy.OAI, PatientBy.WORD) for record in records
    )
    return Listing(slices, problems, classes, ", ".join(dict.fromkeys(ways)), is_by_name)


def check_classes(classes: Sequence[str]) -> list[str]:
    """In Unicode's composed form. Raises DataError unless there are two or more that differ in more
    than their case.
    """
    classes = list(map(nfc, classes))
    different = {label.strip().lower() for label in classes} - {""}
    if len(different) < 2 or len(different) < len(classes):
        given = " ".join(classes)
        raise DataError(f"--classes {given}: expected two or more labels that differ")
    return classes


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
    root: str | Path, problems: list[OSError], own: list[str], hidden: list[str]
) -> Iterator[tuple[str, list[str]]]:
    """Each folder below root and its file names, in the same order on every machine.

    Links are followed, and each folder is visited once. Folders that can't be read go to problems,
    what these programs made themselves (caches, runs) to own, and those of systems to hidden.
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
        hidden += [os.path.join(folder, x) for x in subfolders if names.is_hidden(x)]
        subfolders[:] = sorted(x for x in subfolders if not names.is_hidden(x))
        yield folder, sorted(files)


# ---- one folder, file or manifest ----------------------------------------------------------------


class Lister:
    """Reads folders, files and manifests for some classes; what is wrong goes to `problems`."""

    def __init__(self, classes: list[str], options: Options = Options()):
        self.classes, self.options = classes, options
        self.pattern = compile_pattern(options.name_pattern) if options.name_pattern else None
        if options.slices_per_scan and self.pattern and "slice" in self.pattern.pattern.groupindex:
            text = (
                "and the group slice of --name-pattern both tell the slices; leave one of them out"
            )
            raise DataError(f"--slices-per-scan {options.slices_per_scan} {text}")
        self.problems: list[Problem] = []

    def note(self, kind: Kind, text: str, path: str = "") -> None:
        self.problems.append(Problem(path, kind, text))

    def identify(
        self, records: list[Record], root: str, tables: Labels | None, prefix: str = ""
    ) -> Identified:
        """Say of all records of a folder, a manifest, or the files named one by one who is who."""
        context = Context(self.classes, self.options, root, prefix, self.pattern)
        identified = identify(records, context, tables)
        self.problems += identified.remarks
        if identified.question:
            self.note(Kind.NAMELESS, identified.question)
        return identified

    def base_of(self, path: str | Path) -> str:
        """Folders before a path, so that --name-pattern reads it as it read the folder that it was
        made for; "" elsewhere.
        """
        root = self.options.pattern_root
        if root is None or self.pattern is None:
            return ""
        inside = os.path.relpath(os.path.abspath(path), root)
        return "" if inside == "." or inside.startswith("..") else Path(inside).as_posix()

    def read_folder(self, root: Path) -> list[Record]:
        """All images and volumes below a folder, in natural order.

        Its own path says nothing: /data/left is not all left.
        """
        found: list[Record] = []
        base = self.base_of(root)
        lost, failures, own, hidden, before = [], [], [], [], len(self.problems)
        not_images = []  # the other files of each folder
        for folder, files in walk(root, failures, own, hidden):
            inside = Path(folder).relative_to(root).as_posix()
            start = "/".join([x for x in (base, inside) if x not in ("", ".")] + [""])
            images, others = [], []
            for name in files:
                (images if is_image(name) else others).append(name)
            whole = os.path.join(folder, "")
            found += [Record(whole + name, nfc(start + name)) for name in images]
            links = [path for name in others if os.path.islink(path := os.path.join(folder, name))]
            lost += [path for path in links if not os.path.exists(path)]
            not_images.append((folder, others))
        may_be = [(folder, [x for x in of if not is_npz(x)]) for folder, of in not_images]
        for volumes, problems in find_all_volumes(may_be, self.options):
            self.problems += problems
            found += [Record(v.source, nfc(below(v.path, root, base)), v) for v in volumes]
        for error in failures:
            self.note(Kind.UNREADABLE, error.strerror, error.filename)
        if lost:
            text = f"{counted(len(lost), 'link')} to nothing, left out: {abridged(lost)}"
            self.note(Kind.REMARK, text)
        if own:
            self.note(Kind.REMARK, f"caches and runs are no data, left out: {abridged(own)}")
        if hidden:
            count = counted(len(hidden), "hidden folder")
            self.note(Kind.REMARK, f"{count}, left out: {abridged(sorted(hidden))}")
        if text := describe_strange(not_images):
            self.note(Kind.REMARK, text)
        explained = (*FAILURES, Kind.UNCHOSEN)
        if not (found or any(problem.kind in explained for problem in self.problems[before:])):
            self.note(Kind.EMPTY, "no images and no volumes in this folder", str(root))
        return sorted(found, key=lambda item: natural_order(item.source))

    def read_file(self, path: str) -> list[Record]:
        """One image or volume."""
        record = Record(path, nfc(self.base_of(path) or Path(path).as_posix()))
        if not is_volume(path):
            return [record]
        try:
            return [record._replace(volume=open_volume(path, self.options), scan=path)]
        except VolumeError as error:
            self.problems.append(error.problem._replace(path=path))
        except MissingPackage as error:
            self.note(Kind.PACKAGE, str(error), path)
        return []

    def read_manifest(self, manifest: LabelTable) -> list[Record]:
        """The images and volumes of a manifest; their paths are relative to its folder.

        Raises DataError for a row that can't be used, named by its line.
        """
        path = manifest.path
        if remark := manifest.note_on_columns():
            self.note(Kind.REMARK, remark)
        rows = manifest.read_rows(self.classes)
        if nameless := [row for row in rows if not row.key]:
            raise DataError(f"{nameless[0]}: names no path")
        files = find_files(path.parent, [row.key for row in rows])
        found: dict[str, Record] = {}
        base = folder_of(path, files)
        for row, file in zip(rows, files, strict=True):
            for record in self.records_of_row(base, file, row):
                if found.setdefault(record.source, record) is not record:
                    raise DataError(f"{row}: {row.key} is in it twice")
        return list(found.values())

    def records_of_row(self, base: str, file: str, row: Row) -> list[Record]:
        """An image, a volume, or a folder of images, which are one scan. Names count below base."""
        record = Record(
            file,
            nfc(Path(os.path.relpath(file, base)).as_posix()),
            labels=(Told(row.label, LabelBy.MANIFEST),),
            patients=(Told(row.patient, PatientBy.TABLE),) if row.patient else (),
            scan=row.scan,
        )
        if is_image(os.path.basename(file)):
            return [record]
        there = os.listdir(file) if os.path.isdir(file) else []
        if images := sorted(filter(is_image, there)):
            scan = record._replace(scan=row.scan or record.path)
            rest = [os.path.join(file, x) for x in sorted(there) if x not in images]
            if others := [x for x in rest if os.path.isdir(x) or is_volume(x)]:
                self.note(Kind.REMARK, f"not read beside its images: {abridged(others)}", file)
            return [
                scan._replace(
                    source=os.path.join(file, image),
                    path=f"{record.path}/{nfc(image)}",
                )
                for image in sorted(images, key=natural_order)
            ]
        try:
            volumes = open_volumes(file, self.options)
        except Unchosen as error:
            self.problems.append(error.problem)
            return []
        except VolumeError as error:
            self.note(Kind.UNREADABLE, f"{error.text} ({row})", file)
            return []
        if len(volumes) > 1:
            named = [volume.description for volume in volumes if volume.description]
            series = abridged(named or [volume.source for volume in volumes])
            advice = "move each into a folder of its own"
            if named:
                advice = f"choose by their descriptions, such as --series {typed(named[0])}"
            raise DataError(f"{row}: {row.key} holds {len(volumes)} series: {series}; {advice}")
        return [record._replace(volume=volumes[0])]


def folder_of(manifest: Path, paths: list[str]) -> str:
    """Below which the paths of a manifest say something: its own folder, or of files elsewhere the
    folder that all have in common.
    """
    files, own = list(map(os.path.abspath, paths)), os.path.abspath(manifest.parent)
    if all(os.path.commonpath([own, file]) == own for file in files):
        return own
    return os.path.commonpath([os.path.dirname(file) for file in files])


def describe_strange(folders: list[tuple[str, list[str]]]) -> str:
    """24 files not read: 20 .h5, 4 .npz; "" if there are none. folders: each with its files."""
    endings = Counter(
        ending
        for folder, files in folders
        for name in files
        if (ending := strange_ending(name))
        and not is_archive(name)
        and not is_dicom(os.path.join(folder, name))
    )
    found = [f"{count:,} {ending}" for ending, count in endings.most_common()]
    return f"{counted(endings.total(), 'file')} not read: {abridged(found)}" if found else ""


def below(path: str, root: Path, base: str) -> str:
    """The path below root, behind a base; of root itself (a folder of DICOM files) its name."""
    relative = Path(os.path.relpath(path, root))
    if relative == Path("."):
        relative = Path(os.path.basename(os.path.abspath(root)))
        base = os.path.dirname(base)
    return (Path(base) / relative).as_posix()
