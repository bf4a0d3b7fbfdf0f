"""What was found -> labels, scans, patients: told, inferred by a stated rule, or readings to type.

    ways = identify(found, classes, options, problems)

Told: by DICOM tags, a manifest, --name-pattern, AKOA's names and those of --write-slices. Inferred:
from the columns of all names together (columns.py, patients.py). The rest is not guessed.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from common.files import abridged
from scans import names
from scans.columns import Column, Meaning, columns_of, last_running_column, slice_column
from scans.label_tables import LabelTables
from scans.names import label_of_word, natural_order, weigh
from scans.patients import Patients, Reading, infer_patients
from scans.slices import (
    SIDES,
    Contradiction,
    DataError,
    Kind,
    Options,
    Problem,
    Slice,
    Volume,
)
from scans.volumes import side_of_position

# How patients are known.
TABLE, DICOM = "told by a table", "told by DICOM"
PATTERN, NAMES = "told by --name-pattern", "told by names"
EACH = "told by --patients scan: each scan another person"


@dataclass(slots=True, eq=False)
class Found:
    """An image or a volume, and what is known of it: what slices are made of."""

    source: str
    path: str  # with slashes: below the data folder, or as a manifest or the command line has it
    volume: Volume | None = None
    label: str = ""
    patient: str = ""
    scan: str = ""
    number: int = 0
    way: str = ""  # how the patient is known
    label_by: str = ""  # what told the label by itself: pattern, manifest or name
    is_written: bool = False  # by --write-slices: its name tells all that was known

    @property
    def stem(self) -> str:
        """The path without the ending of a file."""
        if self.volume and os.path.isdir(self.volume.path):
            return self.path  # of DICOM files
        folder, _, name = self.path.rpartition("/")
        name = names.VOLUME_ENDING.fullmatch(name)[1] if self.volume else os.path.splitext(name)[0]
        return f"{folder}/{name}" if folder else name

    def slices(self, prefix: str = "") -> Iterator[Slice]:
        """Its slices; a prefix stands before the scan's name, unless that is AKOA's."""
        scan = self.scan
        if prefix and not names.AKOA_NAME.fullmatch(f"{scan}_0"):
            scan = os.path.join(prefix, scan)
        if self.volume is None:
            yield Slice(self.source, None, self.label, self.patient, scan, self.number)
        else:
            for i in range(self.volume.slicing.slices):
                yield Slice(self.source, i, self.label, self.patient, scan, i, self.volume)


def identify(
    found: list[Found],
    classes: list[str],
    options: Options,
    problems: list[Problem],
    root: str = "",
    tables: LabelTables | None = None,
) -> list[str]:
    """Fill in labels, scans, numbers and patients. Returns the ways in which patients are known.

    root is the folder that all are in, or "" for files that were named one by one: the folders of
    those are those of the machine, and their names come first.

    Copies of images whose own names tell their scan are removed from `found`. What is wrong goes to
    `problems`.
    """
    pattern = names.compile_pattern(options.name_pattern) if options.name_pattern else None
    unmatched = tell_by_pattern(found, pattern, classes, problems) if pattern else set()
    tell_by_names(found, classes)
    matched = [item for item in found if item not in unmatched]
    if tables:
        labels_of_tables(matched, tables, bool(root), problems)
    else:
        tell_labels(matched, classes, bool(root), problems)
    for item in unmatched:
        item.label = ""
    remove_copies(found, problems)
    tell_scans(found, options, root, problems)
    return tell_patients(found, classes, options, problems, bool(root))


# ---- told ----------------------------------------------------------------------------------------


def tell_by_pattern(
    found: list[Found], pattern: re.Pattern, classes: list[str], problems: list[Problem]
) -> set[Found]:
    """What --name-pattern finds in each path; a group that it lacks is told by others.

    Returns those in which it is not found: nothing else tells their labels.
    """
    unmatched = set()
    for item in found:
        if not (match := pattern.search(item.path)):
            unmatched.add(item)
            continue
        groups = {name: text or "" for name, text in match.groupdict().items()}
        if word := groups.get("label") or groups.get("side"):
            label = label_of_word(word, classes)
            if label is None:
                text = f"--name-pattern finds the label {word!r}, not one of {', '.join(classes)}"
                problems.append(Problem(item.source, Kind.CONTRADICTION, text))
                unmatched.add(item)
                continue
            if not item.label:
                item.label, item.label_by = label, "pattern"
        item.scan = groups.get("scan", "") or item.scan
        if groups.get("patient") and item.way != TABLE:
            item.patient, item.way = groups["patient"], PATTERN
        if item.volume is None:
            tell_number(item, match, groups)
    return unmatched


def tell_number(item: Found, match: re.Match, groups: dict[str, str]) -> None:
    """The group `slice` of --name-pattern, or behind a patient the number at the end of the name.

    What is left of the path is the scan, if nothing else is.
    """
    number, start = groups.get("slice", ""), match.start("slice") if "slice" in groups else 0
    if not number and groups.get("patient"):
        number = names.number_at_end(item.stem)
        start = len(item.stem) - len(number)
        if start < match.end("patient"):
            return  # it is the patient's
    if number.isdecimal():
        item.number = int(number)
        scan = names.without_span(item.stem, (start, start + len(number)))
        item.scan = item.scan or names.normalised_scan(scan, item.label)


def tell_by_names(found: list[Found], classes: list[str]) -> None:
    """AKOA's names, those of --write-slices, and the PatientID of DICOM files."""
    for item in found:
        name = item.path.rpartition("/")[2]
        identity = names.parse_name(name, item.volume is not None, classes)
        if identity and not item.label and identity.label:
            item.label, item.label_by = identity.label, "name"
        if identity:
            item.is_written = names.is_written(name)
            series = f"#{item.volume.number}" if item.volume and item.volume.number > 1 else ""
            item.scan = item.scan or identity.scan + series
            item.number = item.number or identity.number
        if identity and identity.patient and not item.patient:
            item.patient, item.way = identity.patient, NAMES
        if item.volume and item.volume.tags.get("patient") and not item.patient:
            item.patient, item.way = item.volume.tags["patient"], DICOM


def remove_copies(found: list[Found], problems: list[Problem]) -> None:
    """Leave out what has the name of a slice that is found already, in another folder."""
    seen, twice, kept = set(), [], []
    for item in found:
        key = item.label, item.path.rpartition("/")[2]
        if item.volume is None and item.way == NAMES:
            if key in seen:
                twice.append(item.source)
                continue
            seen.add(key)
        kept.append(item)
    found[:] = kept
    if twice:
        text = f"{len(twice)} images are copies of slices already found and are left out: "
        problems.append(Problem("", Kind.REMARK, text + abridged(twice)))


# ---- labels --------------------------------------------------------------------------------------


def tell_labels(
    found: list[Found], classes: list[str], below_root: bool, problems: list[Problem]
) -> None:
    """The label that pattern, name, folder, header and position agree on; "" if they don't."""
    of_columns = labels_of_columns(found, classes)
    for item in found:
        try:
            witnesses = [(item.label_by, item.label)] if item.label else []
            if item.label_by != "pattern":
                told = labels_of_path(item.path, classes, below_root)
                of_column = of_columns.get(item, [])
                told += of_column if below_root else of_column[-1:] * (not told)
                witnesses += [w for w in told if w[0] == "folder" or not item.is_written]
            witnesses += labels_of_header(item.volume, classes) if item.volume else []
            item.label = weigh(list(dict.fromkeys(witnesses)))
        except Contradiction as error:
            if item.label_by == "manifest":
                problems.append(Problem(item.source, Kind.REMARK, str(error)))
                continue
            problems.append(Problem(item.source, Kind.CONTRADICTION, str(error)))
            item.label = ""


def labels_of_tables(
    found: list[Found], tables: LabelTables, below_root: bool, problems: list[Problem]
) -> None:
    """--labels: of the row whose identifier is the patient or a part of the path, of its side."""
    for item in found:
        parts = [item.patient, item.scan, *item.stem.split("/")]
        fields = [field[0] for part in parts[2:] for field in names.FIELD.finditer(part)]
        numbers = [run[0] for field in fields for run in names.RUN.finditer(field)]
        try:
            told = labels_of_path(item.path, list(SIDES), below_root)
            told += labels_of_header(item.volume, list(SIDES)) if item.volume else []
            label = tables.find([*parts, *fields, *numbers], weigh(told))
        except Contradiction as error:
            problems.append(Problem(item.source, Kind.CONTRADICTION, str(error)))
            continue
        item.label, item.label_by = (label.label, "table") if label else ("", "")


def labels_of_path(path: str, classes: list[str], below_root: bool) -> list[tuple[str, str]]:
    """A word for a side in the name; a folder called like a class, or with such a word.

    Of a path that a person typed only what is nearest to its end counts.
    """
    *folders, name = path.split("/")
    found = []
    if names.are_sides(classes) and (side := names.side_in(name)):
        found.append(("name", label_of_word(side, classes)))
    for folder in reversed(folders):
        if found and not below_root:
            break
        label = names.label_of_folder(folder, classes)
        if not label and names.are_sides(classes) and (side := names.side_in(folder)):
            label = label_of_word(side, classes)
        if label:
            found.append(("folder", label))
    of_folders = {label for who, label in found if who == "folder"}
    if len(of_folders) > 1:
        said = " and ".join(sorted(of_folders))
        raise Contradiction(f"its folders say {said}; --name-pattern or a manifest can tell")
    return found


def labels_of_columns(found: list[Found], classes: list[str]) -> dict[Found, list[tuple[str, str]]]:
    """Labels by columns such as L R L or normal normal abnormal."""
    labels = defaultdict(list)
    unknown = [item for item in found if not item.label]
    for table in columns_of([item.stem for item in unknown], classes):
        for column in table.of(Meaning.LABEL):
            who = "name" if column.level == -1 else "folder"
            for row, word in zip(table.rows, column.values, strict=True):
                if label := label_of_word(word, classes):
                    labels[unknown[row]].append((who, label))
    return labels


def labels_of_header(volume: Volume, classes: list[str]) -> list[tuple[str, str]]:
    if not names.are_sides(classes):
        return []
    found = [("header", side) for side in sorted(volume.sides)]
    found.append(("position", side_of_position(volume)))
    return [(who, label_of_word(side, classes)) for who, side in found if side]


# ---- scans ---------------------------------------------------------------------------------------


def tell_scans(found: list[Found], options: Options, root: str, problems: list[Problem]) -> None:
    """A volume is a scan; images whose names differ in the number of the slice alone are one."""
    for item in found:
        if item.volume and not item.scan:
            series = f"#{item.volume.number}" if item.volume.number > 1 else ""
            item.scan = item.path + series
    unknown = [item for item in found if not item.scan]
    if options.slices_per_scan:
        count_scans(unknown, options.slices_per_scan)
        return
    for some in ([x for x in unknown if x.label], [x for x in unknown if not x.label]):
        for table in columns_of([item.stem for item in some], ()):
            members = [some[row] for row in table.rows]
            for item in members:
                item.scan = names.normalised_scan(item.stem, item.label)
            column = slice_column(table)
            if not column and (column := last_running_column(table)):
                text = (
                    "which number counts the slices is not sure; the last is taken: "
                    f"{members[0].path} is slice {column.values[0]}; --name-pattern can tell"
                )
                problems.append(Problem("", Kind.REMARK, text))
            if column:
                take_numbers(members, column, os.path.basename(os.path.abspath(root or ".")))


def take_numbers(found: list[Found], column: Column, otherwise: str) -> None:
    """Make what differs in this column alone one scan, unless that is of two labels."""
    scans = []
    for item, (start, end) in zip(found, column.spans, strict=True):
        before = item.stem.rfind("/") + 1
        rest = names.without_span(item.stem, (before + start, before + end))
        scans.append(names.normalised_scan(rest, item.label) or otherwise)
    labels = {(scan, item.label) for scan, item in zip(scans, found, strict=True)}
    if len(labels) == len(set(scans)):
        for item, scan, number in zip(found, scans, column.values, strict=True):
            item.scan, item.number = scan, int(number)


def count_scans(found: list[Found], size: int) -> None:
    """--slices-per-scan: so many images of a folder and a label, in sorted order, are a scan.

    Raises DataError if they do not divide evenly.
    """
    groups = defaultdict(list)
    for item in sorted(found, key=lambda item: natural_order(item.path)):
        folder = item.path.rpartition("/")[0]
        groups[folder or item.label, item.label].append(item)
    for (folder, label), members in groups.items():
        if len(members) % size:
            raise DataError(
                f"--slices-per-scan {size}: the {len(members)} {label} images of {folder} do not "
                f"divide into scans of {size} (first: {members[0].source})"
            )
        for i, item in enumerate(members):
            item.scan, item.number = f"{folder} {i // size + 1:04}", i % size
            if size == 1:
                item.scan = item.stem


# ---- patients ------------------------------------------------------------------------------------


def tell_patients(
    found: list[Found],
    classes: list[str],
    options: Options,
    problems: list[Problem],
    below_root: bool,
) -> list[str]:
    """Patients that nothing told, by a rule of patients.py; readings are a problem of that kind."""
    labelled = [item for item in found if item.label]
    for some in (labelled, [item for item in found if not item.label]):
        unknown = [item for item in some if not item.patient]
        scans = [item.scan for item in unknown]
        if options.patients == "scan":
            for item in unknown:
                item.patient, item.way = item.scan, EACH
            continue
        paths = [item.scan if item.is_written else item.stem for item in unknown]
        inferred = infer_patients(paths, scans, classes)
        for item, patient in zip(unknown, inferred.of, strict=True):
            item.patient, item.way = patient, f"inferred: {inferred.rule}" if patient else ""
        # Of one scan there is nothing to part, and a prediction needs no patient.
        asks = some is labelled and below_root and len(set(scans)) > 1
        if asks and not inferred.rule:
            problems.append(Problem("", Kind.NAMELESS, describe_readings(unknown, inferred)))
    ways = Counter(way for way, _ in {(x.way, x.scan) for x in labelled or found if x.way})
    if len(ways) < 2:
        return list(ways)
    return [f"{way} ({count} scans)" for way, count in ways.most_common()]


def describe_readings(found: list[Found], inferred: Patients) -> str:
    """What can be typed, whichever is true, and what it would give."""
    scans = Counter(item.scan for item in found)
    readings = list(inferred.readings)
    images = [item for item in found if item.volume is None]
    how = "can be read in several ways"
    if len(readings) == 1:
        how = "do not say who the patient is"
        sizes = {n for scan, n in scans.items()} if len(images) == len(found) else {1}
        for size in (40, 1):
            if max(sizes) > 1 and not any(n % size for n in sizes):
                count = len(images) // size
                flags = f"--slices-per-scan {size} --patients scan"
                readings.append(Reading(flags, count, count))
    readings = [r for r in readings if r.patients > 2] or readings
    width = max((len(reading.flags) for reading in readings), default=0)
    lines = [
        f"the names of {len(scans)} scans, such as {found[0].path}, {how}. Add the flags that are "
        "true, or make a manifest:"
    ]
    for r in readings:
        each = "each another person" if r.patients == r.scans else f"{r.scans} scans"
        examples = f": {r.examples}" if r.examples else ""
        lines.append(f"  {r.flags:<{width}}  {r.patients} patients, {each}{examples}")
    if any(names.is_subset(part) for item in found[:1] for part in item.path.split("/")[:-1]):
        lines.append("  (folders such as train and test: python dataset.py DIR --write-split CSV)")
    return "\n".join(lines)
