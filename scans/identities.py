"""What was found -> labels, scans, patients: told, or inferred by a stated rule.

    known = identify(found, classes, options, problems, root)
    known.ways, known.unknown

Told: by DICOM tags, a manifest, --name-pattern, AKOA's names and those of --write-slices. Inferred:
from the columns of all names together (columns.py, patients.py). The rest is asked for
(readings.py).
"""

import os
import re
from collections import Counter, defaultdict
from typing import NamedTuple

from common.files import abridged
from common.program import counted
from scans import names
from scans.columns import (
    Column,
    Meaning,
    Table,
    columns_of,
    last_running_column,
    slice_column,
)
from scans.found import DICOM, EACH, INFERRED, NAMES, PATTERN, TABLE, Found
from scans.label_tables import LabelTables
from scans.labels import correct_labels, labels_of_tables, tell_labels
from scans.names import label_of_word, natural_order
from scans.patients import infer_patients
from scans.searching import Search
from scans.slices import DataError, Kind, Options, Problem


class Known(NamedTuple):
    ways: list[str]  # in which patients are known
    unknown: list[Found]  # labelled, but nothing tells the patient
    strangers: list[Found]  # inferred patients, none of whom is among those that are told


def identify(
    found: list[Found],
    classes: list[str],
    options: Options,
    problems: list[Problem],
    root: str = "",
    tables: LabelTables | None = None,
    prefix: str = "",
) -> Known:
    """Fill in labels, scans, numbers and patients; says how patients are known, and which are not.

    root is the folder that all are in, or "" for files that were named one by one: the folders of
    those are those of the machine, and their names come first. prefix is what will stand before the
    names of scans, by which a table of scans knows them.

    Copies of images whose own names tell their scan are removed from `found`. What is wrong goes to
    `problems`.
    """
    pattern = names.compile_pattern(options.name_pattern) if options.name_pattern else None
    unmatched = tell_by_pattern(found, pattern, classes, problems) if pattern else set()
    tell_by_names(found, classes)
    matched = [item for item in found if item not in unmatched]
    if tables and tables.indexes:
        labels_of_tables(matched, tables, bool(root), problems)
    else:
        tell_labels(matched, classes, bool(root), problems)
    for item in unmatched:
        item.label = ""
    remove_copies(found, problems)
    check_header_patients(found)
    tell_scans(found, options, root, problems)
    if tables and tables.by_scan:
        correct_labels(found, tables, prefix, problems)
    tell_patients(found, classes, options)
    unify_patients(found, problems)
    labelled = [item for item in found if item.label]
    inferred = [item for item in labelled if item.way == INFERRED]
    of_told = {item.patient for item in labelled if item.way not in ("", INFERRED)}
    in_both = of_told & {item.patient for item in inferred}
    strangers = inferred if of_told and not in_both else []
    scans = {(x.way, x.rule, x.scan) for x in labelled or found if x.way}
    ways = Counter(f"{way}: {rule}" if rule else way for way, rule, _ in scans)
    described = [f"{way} ({counted(count, 'scan')})" for way, count in ways.most_common()]
    unknown = [item for item in labelled if not item.patient]
    return Known(described if len(ways) > 1 else list(ways), unknown, strangers)


# ---- told ----------------------------------------------------------------------------------------


def tell_by_pattern(
    found: list[Found], pattern: re.Pattern, classes: list[str], problems: list[Problem]
) -> set[Found]:
    """What --name-pattern finds in each path; a group that it lacks is told by others.

    Returns those in which it is not found: nothing else tells their labels.
    """
    unmatched, search = set(), Search("name_pattern", pattern)
    for item in found:
        if not (match := search(item.path)):
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
            item.patient, item.way = groups["patient"].strip(), PATTERN
            item.patient_span = match.span("patient")
        number = groups.get("slice", "")
        if item.volume is None and number.isdecimal():
            item.number = int(number)
            scan = names.without_span(item.stem, match.span("slice"))
            item.scan = item.scan or names.normalised_scan(scan, item.label)
    return unmatched


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


def check_header_patients(found: list[Found]) -> None:
    """Raise DataError where a pattern, a name or a table makes several people of one PatientID.

    A PatientID that all share, such as ANONYMOUS, tells nobody apart.
    """
    patients = defaultdict(set)
    for item in found:
        if item.volume and item.volume.tags.get("patient"):
            patients[item.volume.tags["patient"]].add(item.patient)
    for header, others in patients.items():
        if len(others) > 1 and len(patients) > 1:
            raise DataError(
                f"the DICOM PatientID {header} is of {len(others)} patients otherwise: "
                f"{abridged(sorted(others))}; let --name-pattern or the table tell no patient"
            )


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
        text = f"{counted(len(twice), 'image')} copied from slices already found, left out: "
        problems.append(Problem("", Kind.REMARK, text + abridged(twice)))


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
            mark_patients(table, members)
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


def mark_patients(table: Table, found: list[Found]) -> None:
    """Give the columns in which --name-pattern found the patient that meaning."""
    if not all(item.patient_span for item in found):
        return
    for column in table.columns:
        within = True
        for item, (start, end) in zip(found, column.spans, strict=True):
            before = start_of_level(item.stem, column.level)
            first, last = item.patient_span
            within = within and before + start < last and before + end > first
        if within:
            column.meaning = Meaning.PATIENT


def start_of_level(stem: str, level: int) -> int:
    """Where a folder of a path begins: 0 is the first, -1 the name."""
    parts = stem.split("/")
    return sum(len(part) + 1 for part in (parts[:-1] if level == -1 else parts[:level]))


def take_numbers(found: list[Found], column: Column, otherwise: str) -> None:
    """Make what differs in this column alone one scan, unless most are of two labels or patients.

    Raises DataError if a few are: a wrong row of a table.
    """
    scans = []
    for item, (start, end) in zip(found, column.spans, strict=True):
        before = item.stem.rfind("/") + 1
        rest = names.without_span(item.stem, (before + start, before + end))
        scans.append(names.normalised_scan(rest, item.label) or otherwise)
    known = Counter((scan, x.label, x.patient) for scan, x in zip(scans, found, strict=True))
    of_scan = Counter(scan for scan, *_ in known)
    odd = {scan for scan, count in of_scan.items() if count > 1}
    if 0 < len(odd) <= len(of_scan) / 2:
        refuse_odd_one(found, scans, known, odd)
    if not odd:
        for item, scan, number in zip(found, scans, column.values, strict=True):
            item.scan, item.number = scan, int(number)


def refuse_odd_one(found: list[Found], scans: list[str], known: Counter, odd: set[str]) -> None:
    """Raise DataError with the name of an image whose label or patient is not that of its scan."""
    counted = [
        (known[scan, item.label, item.patient], item, scan)
        for item, scan in zip(found, scans, strict=True)
        if scan in odd
    ]
    _, item, scan = min(counted, key=lambda x: x[0])
    others = [
        (count, other)
        for count, other, of in counted
        if of == scan and (other.label, other.patient) != (item.label, item.patient)
    ]
    most = max(others, key=lambda x: x[0])[1]
    what = "label" if item.label != most.label else "patient"
    own, theirs = getattr(item, what), getattr(most, what)
    raise DataError(
        f"{item.source}: differs from {most.source} in the number of the slice alone, but its "
        f"{what} is {own} and not {theirs}: correct it, or add a column scan to the table, or "
        "--slices-per-scan 1"
    )


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
            count = counted(len(members), f"{label} image")
            raise DataError(
                f"--slices-per-scan {size}: {count} of {folder} can't be "
                f"divided into scans of {size} (first: {members[0].source})"
            )
        for i, item in enumerate(members):
            item.scan, item.number = f"{folder} {i // size + 1:04}", i % size
            if size == 1:
                item.scan = item.stem


# ---- patients ------------------------------------------------------------------------------------


def tell_patients(found: list[Found], classes: list[str], options: Options) -> None:
    """Patients that nothing told: each scan another person, or by a rule of patients.py."""
    for some in ([x for x in found if x.label], [x for x in found if not x.label]):
        unknown = [item for item in some if not item.patient]
        if options.patients == "scan":
            for item in unknown:
                item.patient, item.way = item.scan, EACH
            continue
        paths = [item.scan if item.is_written else item.stem for item in unknown]
        inferred = infer_patients(paths, [item.scan for item in unknown], classes)
        for item, patient in zip(unknown, inferred.of, strict=True):
            item.patient, item.rule = patient, inferred.rule
            item.way = INFERRED if patient else ""


def unify_patients(found: list[Found], problems: list[Problem]) -> None:
    """One spelling, the first, for p01, P01, patient 1 and 1, however they are known.

    They may be two people, but if they are one, who is taken for two leaks.
    """
    spellings: dict[str, list[str]] = defaultdict(list)
    first_of: dict[str, str] = {}  # each spelling -> the first of the same patient
    for item in found:
        if item.patient and item.way != EACH:
            if item.patient not in first_of:
                of_one = spellings[names.patient_key(item.patient)]
                of_one.append(item.patient)
                first_of[item.patient] = of_one[0]
            item.patient = first_of[item.patient]
    several = [" = ".join(of_one) for of_one in spellings.values() if len(of_one) > 1]
    if several:
        text = (
            f"{counted(len(several), 'patient')} spelled in several ways, and taken for one each: "
        )
        problems.append(Problem("", Kind.REMARK, text + abridged(several)))
