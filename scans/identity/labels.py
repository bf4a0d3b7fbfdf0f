"""Manifests, and --labels: tables with a label for each patient, scan or file.

    read_manifest(Path("knees.csv")).read_rows(SIDES)[0]  # Row(..., 2, "a/1.png", "left", ...)
    labels = read_labels(options, classes=None, usual=SIDES)
    records = labels.tell(records, sides)             # rows by patient, path, or --label-key
    records = labels.correct(records, prefix)         # rows by the names of scans
    labels.notes(records)

A row is found by a named column: path or file, scan, patient (or ID), or the one that --label-key
names; in a table of two columns without a header, by the name of the file. A number that happens to
stand in a path is never looked up.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Container, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from common.files import abridged
from common.program import counted, typed
from common.tables import Table, letters_of, plain_name, read_csv
from scans.identity.names import folded, last_number, nfc, others_in, patient_key
from scans.identity.records import Answer, LabelBy, PatientBy, Record, Told
from scans.identity.tables import (
    LABEL,
    MAY_BE_PATIENT,
    PATH,
    PATIENT,
    SCAN,
    SIDE,
    Columns,
    class_of_value,
    classes_of_values,
    columns_of,
    identifier_of,
    label_in,
    meant,
    patient_of,
    text_of,
    value_of,
)
from scans.slices import SIDES, DataError, Kind, Options, Problem

NO_HEADER = ["file's name", "label"]  # what the columns of a table without a header are called
SHORT = 4  # digits of a number that may count anything
SEPARATORS = re.compile(r"[\W_]+")
SIDES_ADVICE = "; if a label is of one side, a column side must say which"
BOTH = {"both", "bilateral"}
NO_ROW = "no row of the tables is theirs"
NO_LABEL = "their row has no label"
OTHER_SIDE = "their row is of the other side"
NO_SIDE = "their rows are one a side, and nothing tells their side"


class Row(NamedTuple):
    """A row of a manifest or a table of labels; "" is what it doesn't tell."""

    table: str
    line: int
    key: str  # by which it is found, as it is compared; of a manifest the path
    label: str
    side: str
    patient: str
    scan: str

    def __str__(self) -> str:
        return f"{self.table}, line {self.line}"


class LabelTable:
    """A manifest or a table of labels, and by which of its columns rows are found.

    by: "path", "scan", "patient", "stem", "key" (--label-key); "" where no column says it.
    """

    def __init__(self, path: Path, options: Options, is_manifest: bool = False):
        self.path, what = path, "manifest" if is_manifest else "table of labels"
        self.table: Table = read_csv(path, what, None if is_manifest else header_if_none)
        self.columns: Columns = columns_of(path, self.table, options.label_column, is_manifest)
        self.has_sides = not is_manifest and self.columns.side not in (None, self.columns.label)
        self.by, self.column = self.found_by(options.label_key)
        self.index: dict[str, list[Row]] = defaultdict(list)
        self.rows: list[Row] = []

    def found_by(self, label_key: str | None) -> tuple[str, str]:
        """Raises DataError if the table has no column that --label-key names."""
        identifiers = self.table.columns_called("id")
        if label_key:
            if not (found := self.table.columns_called(label_key)):
                has = ", ".join(self.table.columns)
                raise DataError(
                    f"{self.path}: --label-key {label_key}: no such column; it has {has}"
                )
            return "key", found[0]
        if self.table.columns == NO_HEADER:
            return "stem", NO_HEADER[0]
        for by in ("path", "scan", "patient"):
            if column := getattr(self.columns, by):
                return by, column
        return ("patient", identifiers[0]) if identifiers else ("", "")

    def values(self) -> list[str]:
        """Of the labels, as they are written."""
        return [value_of(row.cells[self.columns.label]) for row in self.table.rows]

    def classes(self) -> list[str]:
        """All labels in natural order; left and right if these are sides."""
        is_of_sides = self.columns.label == self.columns.side
        return list(SIDES) if is_of_sides else classes_of_values(self.values(), f"{self.path}")

    def note_on_columns(self) -> str:
        """Which columns are used, where others are not: one may be the side, or a visit."""
        unused = [x for x in self.table.columns if x and x not in {*self.columns, self.column}]
        if not (unused and self.column):
            return ""
        text = f"{self.path}: the label is in the column {self.columns.label}, rows are found by "
        text += f"{self.column}; not used: {abridged(unused)}"
        unclear = [x for x in self.table.columns_called(*MAY_BE_PATIENT) if x in unused]
        if unclear and not self.columns.patient and self.by in ("path", "scan", "key"):
            text += f"; if {abridged(unclear)} tells the patient, call it patient"
        return text

    def read_rows(self, classes: Sequence[str]) -> list[Row]:
        """Raises DataError for a label that is no class, and for a key of two labels."""
        told: dict[tuple[str, str], Row] = {}
        sites: dict[str, str] = {}  # patient -> site
        for line, cells in self.table.rows if self.by else ():
            row = self.read_row(line, cells, classes)
            self.rows.append(row)
            self.check_site(sites, row, cells)
            if not row.key:
                continue
            for what, part in (("label", row.side), ("patient", "patient")):
                says = getattr(row, what)
                first = told.setdefault((row.key, part), row) if says else row
                if getattr(first, what) != says:
                    advice = "" if self.has_sides or self.by != "patient" else SIDES_ADVICE
                    raise DataError(
                        f"{first} says {getattr(first, what)}, {row} says {says} of the same "
                        f"{self.column}: {row.key}; expected one {what} for each{advice}"
                    )
            key = row.key.rpartition("/")[2] if self.by == "path" else row.key
            self.index[key].append(row)
        return self.rows

    def check_site(self, sites: dict[str, str], row: Row, cells: dict[str, str]) -> None:
        """Raise DataError where a patient is of two sites, which may both count from 1."""
        who = row.key if self.by == "patient" else patient_key(row.patient)
        site = text_of(cells[self.columns.site]) if self.columns.site and who else ""
        if site and sites.setdefault(who, site) != site:
            raise DataError(
                f"{row}: patient {who} is of {site} and of {sites[who]}: one person, or several? "
                "Write the site into the column patient, and name the files so (in a manifest that "
                f"is enough), or rename the column {self.columns.site}"
            )

    def read_row(self, line: int, cells: dict[str, str], classes: Sequence[str]) -> Row:
        where, columns = f"{self.path}, line {line}:", self.columns
        label = label_in(value_of(cells[columns.label]), classes, f"{where} {columns.label}")
        side = patient = scan = ""
        if self.has_sides:
            side = value_of(cells[columns.side])
            side = "" if side.rpartition(":")[2].strip().lower() in BOTH else side
            side = label_in(side, SIDES, f"{where} {columns.side}")
        if columns.patient and self.by != "patient":
            patient = patient_of(cells[columns.patient])
        if columns.scan and self.by == "path":
            scan = identifier_of(cells[columns.scan])
        key = self.key_of(cells[self.column])
        return Row(f"{self.path}", line, key, label, side, patient, scan)

    def key_of(self, cell: str) -> str:
        if self.by == "patient":
            return patient_key(patient_of(cell))
        if self.by == "scan":
            return nfc(cell.strip())
        if self.by == "path":
            return letters_of(cell).strip().replace("\\", "/").rstrip("/")
        return folded(identifier_of(cell))

    @cached_property
    def has_both_sides(self) -> bool:
        """Whether something has a row for each side, as a patient has, and a barcode has not."""
        return any(len({row.side for row in rows} - {""}) > 1 for rows in self.index.values())

    def rows_of(self, record: Record) -> list[Row]:
        """Raises DataError if two parts of a path are values of --label-key's column."""
        if self.by == "patient":
            return self.index.get(patient_key(record.patient), []) if record.patient else []
        stem = record.stem.rpartition("/")[2]
        if self.by == "stem":
            return self.index.get(folded(stem), [])
        if self.by == "path":
            ends = {record.path.rpartition("/")[2], stem}
            rows = chain.from_iterable(self.index.get(end, ()) for end in ends)
            return [row for row in rows if is_path_of(row.key, record)]
        parts = parts_of(record)
        found = {part: self.index[part] for part in parts if part in self.index}
        if len(found) > 1:
            raise DataError(
                f"{record.source}: {' and '.join(sorted(found))} are both in the column "
                f"{self.column} of {self.path}; --name-pattern with a group patient, and a column "
                "patient, can tell which is meant"
            )
        return next((rows for part, rows in found.items() if parts[part].is_key), [])

    def answer(self, record: Record, sides: frozenset[str]) -> Answer:
        """The label of the record's row of its side, or why there is none."""
        rows = self.rows_of(record)
        side = next(iter(sides)) if len(sides) == 1 else ""
        of_side = [row for row in rows if not (side and row.side) or row.side == side]
        people = {row.patient for row in rows} - {""}
        labels = {row.label for row in of_side} - {""}
        is_of_a_side = self.by == "patient" or self.has_both_sides
        of_one_side = len({row.side for row in of_side}) == 1 and of_side[0].side
        reason = ""
        if not rows:
            reason = NO_ROW
        elif not of_side:
            reason = OTHER_SIDE
        elif not labels:
            reason = NO_LABEL
        elif len(labels) > 1 or (not side and of_one_side and is_of_a_side):
            reason = NO_SIDE
        label = "" if reason else labels.pop()
        scans = {row.scan for row in of_side} - {""}
        patient, scan = (found.pop() if len(found) == 1 else "" for found in (people, scans))
        return Answer(label, patient, frozenset(of_side or rows), reason, scan, side=side)

    def check_clear(self, records: Sequence[Record]) -> None:
        """Raise DataError if a row's path or name is that of several files."""
        files = defaultdict(set)
        for record in records:
            for row in record.answer.rows if record.answer else ():
                files[row].add(record.source.partition("#")[0])
        for row in self.rows if self.by in ("path", "stem") else ():
            if len(files[row]) > 1:
                raise DataError(
                    f"{row}: is the {self.by.replace('stem', 'name')} of {len(files[row])} files: "
                    f"{abridged(sorted(files[row]))}; write more of the path, in a column called "
                    "path, or name one of their folders"
                )

    def note_on_sides(self, answers: Sequence[Answer]) -> list[str]:
        """On rows that label scans of both sides, though a label may be of one knee."""
        if self.by != "patient" or self.has_sides or self.columns.label == self.columns.side:
            return []
        sides = defaultdict(set)
        for answer in answers:
            for row in answer.rows if answer.label else ():
                sides[row].add(answer.side)
        both = sum(len(sides[row] - {""}) > 1 for row in self.rows)
        if not both:
            return []
        rows = counted(both, "row")
        return [f"{self.path}: {rows} labelled scans of both sides{SIDES_ADVICE}"]

    def keys_in(self, column: str) -> set[str]:
        """Its values as --label-key compares them; none if one of them has two labels of a side."""
        told: dict[tuple[str, str], set[str]] = defaultdict(set)
        for _, cells in self.table.rows:
            side = cells[self.columns.side] if self.has_sides else ""
            key = folded(identifier_of(cells[column])), side
            told[key].add(value_of(cells[self.columns.label]))
        is_clear = all(len(labels - {""}) < 2 for (key, _), labels in told.items() if key)
        return {key for key, _ in told if key} if is_clear else set()

    def hint(self, records: Sequence[Record], classes: Sequence[str]) -> list[str]:
        """Flags that would find rows: columns whose values are parts of the paths."""
        counts = Counter()
        for column in filter(None, self.table.columns):
            if column not in (self.columns.label, self.columns.side):
                keys = self.keys_in(column)
                if keys and not why_unclear(keys, records, classes):
                    known = ({x for x, of in parts_of(r).items() if of.is_key} for r in records)
                    counts[column] = sum(not keys.isdisjoint(parts) for parts in known)
        return [
            f"  --label-key {typed(column)}  (parts of {count:,} of "
            f"{counted(len(records), 'path')} are in this column)"
            for column, count in counts.most_common(3)
            if 2 * count > len(records)
        ]


class Labels:
    """All tables of --labels."""

    def __init__(self, tables: list[LabelTable], classes: Sequence[str]):
        self.classes = list(classes)
        self.tables = tables
        self.of_files = [table for table in tables if table.by != "scan"]
        self.of_scans = [table for table in tables if table.by == "scan"]
        for table in tables:
            table.read_rows(classes)

    def tell(self, records: Sequence[Record], sides: Sequence[frozenset[str]]) -> list[Record]:
        """The label of each record's row, and its patient, before all that other rules tell.

        sides: those that rules tell of each record. Raises DataError where it can't be known which
        row is meant, or nothing says by what rows are found.
        """
        for table in self.of_files:
            if not table.by:
                expected = "expected a column called path, scan or patient, or --label-key COLUMN"
                raise DataError(f"{table.path}: {expected}", *table.hint(records, self.classes))
        told = [self.told(x, of) for x, of in zip(records, sides, strict=True)]
        for table in self.of_files:
            if table.by == "key" and (why := why_unclear(table.index, records, self.classes)):
                advice = "--name-pattern, and a column patient, can tell which is meant"
                raise DataError(f"{table.path}: {table.column}: {why}; {advice}")
        return told

    def told(self, record: Record, sides: frozenset[str]) -> Record:
        if record.labels and record.labels[0] == Told("", LabelBy.PATTERN):  # it leaves it out
            return record
        answers = [table.answer(record, sides) for table in self.of_files]
        labelled = [answer for answer in answers if answer.label]
        answer = next(iter(labelled or [x for x in answers if x.rows] or answers))
        if len({answer.label for answer in labelled}) > 1:
            says = [f"{row}" for answer in labelled for row in sorted(answer.rows)]
            text = f"{abridged(says)} say {' and '.join(x.label for x in labelled)} of it"
            problem = Problem(record.source, Kind.CONTRADICTION, text)
            record, answer = record._replace(problem=problem), answer._replace(label="")
        people = list(dict.fromkeys(x.patient for x in answers if x.patient))
        if len(set(map(patient_key, people))) > 1:
            raise DataError(f"{record.source}: the tables say that it is of {' and '.join(people)}")
        who = tuple(Told(patient, PatientBy.TABLE) for patient in people[:1])
        return record._replace(
            labels=(Told(answer.label, LabelBy.TABLE),),
            patients=(*who, *record.patients),
            scan=record.scan or answer.scan,
            answer=answer,
        )

    def correct(self, records: Sequence[Record], prefix: str) -> list[Record]:
        """A table of scans replaces what anything else tells of those in it, contradictions as
        well. A row without a label takes the scan's away. Scans that are not in it keep theirs.
        """
        found = []
        for record in records:
            scan = record.scan_below(prefix)
            key = nfc(scan).strip()
            if rows := [row for table in self.of_scans for row in table.index.get(key, ())]:
                row = next((row for row in rows if row.label), rows[0])
                who = (Told(row.patient, PatientBy.TABLE),) if row.patient else ()
                changed = scan, record.label
                answer = Answer(row.label, row.patient, frozenset(rows), corrected=changed)
                record = record._replace(
                    labels=(Told(row.label, LabelBy.TABLE),),
                    patients=(*who, *record.patients),
                    answer=answer,
                    problem=None,
                )
            found.append(record)
        return found

    def notes(self, records: Sequence[Record]) -> list[str]:
        """Of all records there are: rows that none has and rows without a label; scans whose label
        is another one now; and why records have no label. Raises as `check_clear` does.
        """
        for table in self.tables:
            table.check_clear(records)
        answers = [record.answer for record in records if record.answer]
        matched = frozenset().union(*(answer.rows for answer in answers))
        notes = []
        for table in self.tables:
            notes += [note] if (note := table.note_on_columns()) else []
            notes += table.note_on_sides(answers)
            of = f"of {counted(len(table.rows), 'row')} without a"
            lonely = sum(row not in matched for row in table.rows)
            empty = sum(not row.label for row in table.rows)
            notes += [f"{table.path}: {lonely:,} {of} scan"] if lonely else []
            notes += [f"{table.path}: {empty:,} {of} label"] if empty else []
            if lonely == len(table.rows):
                notes += table.hint(records, self.classes)
        scans = {x.corrected[0]: x for x in answers if x.corrected and x.corrected[1] != x.label}
        if scans:
            of = ", ".join(f"{table.path}" for table in self.of_scans)
            changed = [f"{scan} is {x.label or 'without a label'}" for scan, x in scans.items()]
            count = counted(len(changed), "scan")
            notes.append(f"{of}: changes the label of {count}: {abridged(changed)}")
        for reason in (NO_ROW, NO_LABEL, OTHER_SIDE, NO_SIDE):
            if of := [x for x in records if x.answer and x.answer.reason == reason]:
                people = {x.patient for x in of} - {""}
                who = f" of {counted(len(people), 'patient')}" if people else ""
                paths = abridged([x.path for x in of], 2)
                notes.append(f"{counted(len(of), 'file')}{who} left out, as {reason}: {paths}")
        return notes


class Part(NamedTuple):
    """A part of a path: where it stands, and whether it is looked up."""

    level: int  # 0 is the first folder, -1 the name
    is_key: bool  # a short number is only as a whole folder or name
    above: str  # the folders above it


def parts_of(record: Record) -> dict[str, Part]:
    """The folders of a path, the name, and what separators part in them, without the number of a
    slice.
    """
    *folders, name = record.stem.split("/")
    number = None if record.volume else last_number(record.stem, record.patient_span)
    found: dict[str, Part] = {}
    for level, whole in [(-1, name), *enumerate(folders)]:
        for part in (whole, *SEPARATORS.split(whole)):
            is_short = part.isdecimal() and len(part) <= SHORT
            is_slice = level < 0 and number is not None and part == number.text
            if part and not is_slice and (part == whole or folded(part) not in found):
                above = "/".join(folders[:level] if level >= 0 else folders)
                found[folded(part)] = Part(level, part == whole or not is_short, above)
    return found


def why_unclear(keys: Container[str], records: Sequence[Record], classes: Sequence[str]) -> str:
    """Why the parts of paths that are among the keys may tell something else: they stand at several
    places, or one is below folders that may be several sites. "" if nothing does.
    """
    levels, above = {}, defaultdict(set)
    for record in records:
        for name, part in parts_of(record).items():
            if name in keys and part.is_key:
                levels.setdefault(part.level, record.path)
                is_told = record.way == PatientBy.PATTERN  # then a person says who is one
                above[name].add("" if is_told else others_in(part.above, classes))
    if len(levels) > 1:
        return f"values stand at different places of the paths: {abridged(sorted(levels.values()))}"
    sites = ((name, sorted(folders)) for name, folders in above.items() if len(folders) > 1)
    return next((f"{name} is below {abridged(of)}: one, or several?" for name, of in sites), "")


def is_path_of(path: str, record: Record) -> bool:
    """Whether a file's whole path ends like this; it may lack the ending of the file."""
    file = nfc(os.path.abspath(record.volume.path if record.volume else record.source))
    wanted = f"/{os.path.normpath(path).strip('/')}"
    ending = record.path[len(record.stem) :]
    return file.endswith(wanted) or file.removesuffix(ending).endswith(wanted)


def read_manifest(path: Path) -> LabelTable:
    """A table whose rows name files. Raises UserError, as DataError where a column is missing."""
    table = LabelTable(path, Options(), is_manifest=True)
    if table.by == "path":
        return table
    near = [x for x in table.table.columns if meant(x, PATH)]
    hint = f"; if {near[0]} holds the paths, call it path" if near else ""
    got = ",".join(table.table.columns)
    raise DataError(f"{path}: expected columns path,label,patient,scan, got {got}{hint}")


def read_labels(options: Options, classes: Sequence[str] | None, usual: Sequence[str]) -> Labels:
    """The tables of --labels.

    Args:
        classes: the labels, in order. By default all that are in the tables, in natural order; of
            tables of scans, which may name a few of them, the usual ones where they fit.

    Raises:
        UserError: no table, or as DataError no column for the label, a label that is none of the
            classes, or two for one key and side.
    """
    tables = [LabelTable(Path(path), options) for path in options.labels]
    if classes is None:
        telling = [table for table in tables if table.by != "scan"]
        values = [value for table in telling or tables for value in table.values() if value]
        different = {value.lower() for value in values}
        if not telling and (len(different) < 2 or any(class_of_value(x, usual) for x in values)):
            classes = usual
        else:
            classes = classes_of_values(values, ", ".join(map(str, options.labels)))
    return Labels(tables, classes)


def header_if_none(rows: list[list[str]]) -> list[str]:
    """Of a table of two columns whose first row is like the others: a number, or a label that
    recurs. One that is called like columns are is a header in any case.
    """
    first = rows[0]
    called = {*PATH, *PATIENT, *SCAN, *SIDE, *chain(*LABEL), *MAY_BE_PATIENT}
    if len(first) != 2 or called & set(map(plain_name, first)):
        return []
    value = value_of(first[1])
    others = {value_of(row[1]).lower() for row in rows[1:] if len(row) > 1}
    is_number = value.lstrip("-").replace(".", "", 1).isdecimal()
    return NO_HEADER if not value or is_number or value.lower() in others else []
