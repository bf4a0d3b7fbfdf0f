"""Labels by identifier, in tables beside images and volumes that tell none themselves.

tables = read_labels([Path("train-acl.csv"), Path("valid-acl.csv")])  # lines such as 0000,1
tables.find(["0000"])  # TableLabel("1", path=Path("train-acl.csv"), line=1)

# BARCODE|ID|SIDE leads to ID|SIDE|V00XRKL, where a value is such as `2: Minimal`.
tables = read_labels([Path("barcodes.txt"), Path("kxr.txt")], label_column="V00XRKL")
tables.find(["016600014803"])

# scan,label: whole names of scans, whose labels replace what anything else tells of them.
tables = read_labels([Path("corrected.csv")])
tables.of_scan("left/p01")
"""

import difflib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from common.csv_tables import Record, Table, as_table, plain_name, read_records
from common.files import abridged
from common.program import counted
from scans.names import VOLUME_ENDING, are_sides
from scans.slices import SIDES, Contradiction, DataError
from scans.tables import (
    IDENTIFIERS,
    LABEL,
    PATH,
    SIDE,
    class_of_value,
    classes_of_values,
    coded,
    expected_class,
    is_missing,
    label_column_of,
    label_in,
    only_column,
    text_of,
    two_or_more,
)

EITHER_SIDE = {"both", "bilateral"}


def identifier_of(cell: str) -> str:
    """For comparison: 0000 and 0 stay two, P01 and p01 are one."""
    return text_of(cell).casefold()


class LabelTable(NamedTuple):
    """A table that tells labels, or (if its `label` is None) leads to rows of others that do."""

    path: Path
    table: Table
    identifiers: list[str]
    side: str | None
    label: str | None

    @property
    def is_of_scans(self) -> bool:
        """Whether it tells labels of scans by their whole names alone, as a report's page does."""
        by_scan = len(self.identifiers) == 1 and plain_name(self.identifiers[0]) == "scan"
        return by_scan and bool(self.label and not self.side)

    def side_of(self, line: int, cells: dict[str, str]) -> str:
        """left, right or "". Raises DataError if it is something else."""
        value = text_of(cells[self.side]) if self.side else ""
        if is_missing(value) or value.lower() in EITHER_SIDE:
            return ""
        if (side := class_of_value(value, SIDES)) is None:
            problem = expected_class(value, SIDES)
            raise DataError(f"{self.path}, line {line}: {self.side} {problem}")
        return side

    def words(self) -> list[str]:
        return [label_in(row.cells[self.label]) for row in self.table.rows]


class LabelRow(NamedTuple):
    """A row of a table that tells a label."""

    path: Path
    line: int
    names: dict[str, frozenset[str]]  # column -> what its cell may be known by
    side: str  # "" if nothing tells it
    label: str  # "" if it is missing

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}"

    @property
    def identity(self) -> tuple:
        """What it tells a label of."""
        return frozenset(self.names.items()), self.side

    def matches(self, known: set[str]) -> int:
        """How many of its identifiers are among those."""
        return sum(not known.isdisjoint(names) for names in self.names.values())


class TableLabel(NamedTuple):
    """What tables tell of a scan. A label of "" has a reason."""

    label: str
    path: Path
    line: int
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}"


def no_label(row: LabelRow, reason: str) -> TableLabel:
    return TableLabel("", row.path, row.line, reason)


class Corrected(NamedTuple):
    """A scan whose label a table of scans has replaced."""

    before: str  # "" where nothing told one
    row: LabelRow


class RowIndex:
    """Rows of tables with the same identifiers, by these."""

    def __init__(self, rows: list[LabelRow]):
        self.rows = rows
        self.by_name: dict[str, list[LabelRow]] = defaultdict(list)
        sides = defaultdict(set)
        for row in rows:
            for name in frozenset().union(*row.names.values()):
                self.by_name[name].append(row)
            for item in row.names.items():
                sides[item] |= {row.side} - {""}
        # Columns such as ID, where one patient has rows of both knees; a barcode has one side.
        self.two_sided = {column for (column, _), found in sides.items() if len(found) > 1}

    def fitting(self, known: set[str]) -> list[list[LabelRow]]:
        """The rows that most of their identifiers fit; those that the same ones fit together."""
        rows = {id(row): row for name in known for row in self.by_name.get(name, ())}.values()
        most = max((row.matches(known) for row in rows), default=0)
        groups = defaultdict(list)
        for row in rows:
            if row.matches(known) == most:
                groups[frozenset(known & frozenset().union(*row.names.values()))].append(row)
        return [sorted(group, key=lambda row: row.line) for group in groups.values()]

    def is_of_one_side(self, row: LabelRow, known: set[str]) -> bool:
        """Whether what fits the row tells a patient's knee, and not the patient alone."""
        columns = {column for column, names in row.names.items() if not known.isdisjoint(names)}
        return not row.side or bool(columns - self.two_sided)


class LabelTables:
    """Labels by identifier, of one or more tables. `read_labels` makes them."""

    def __init__(
        self,
        tables: list[list[LabelRow]],
        classes: list[str],
        of_scans: Sequence[LabelRow] = (),
    ):
        self.classes = classes
        self.rows = {(row.path, row.line): row for row in chain(*tables, of_scans)}
        self.by_scan: dict[str, LabelRow] = {}
        for row in sorted(of_scans, key=lambda row: not row.label):  # a row without says nothing
            for name in row.names.get("scan", ()):
                self.by_scan.setdefault(name, row)
        self.corrected: dict[str, Corrected] = {}  # name of a scan ->
        self.matched: set[tuple[Path, int]] = set()  # rows that are of a scan
        self.indexes = [RowIndex(rows) for rows in tables]

    def find(self, identifiers: Iterable[str], side: str = "") -> TableLabel | None:
        """The label of a scan that is known by these (patient, stem, folders), or why it has none.

        Of a table's rows those count that most of their identifiers fit, of those the ones of the
        scan's side (left, right, or "" if it isn't known). None if no row fits.

        Raises:
            Contradiction: two identifiers, or two tables, lead to two labels.
        """
        known = set(map(identifier_of, identifiers)) - {""}
        answers = []
        for index in self.indexes:
            for rows in index.fitting(known):
                needs_side = not side and not all(index.is_of_one_side(row, known) for row in rows)
                answers.append(self.decide(rows, side.lower(), needs_side))
        labelled = [answer for answer in answers if answer.label]
        for other in labelled[1:]:
            first = labelled[0]
            if other.label != first.label:
                raise Contradiction(f"{first} says {first.label}, {other} says {other.label}")
        return next(iter(labelled or answers), None)

    def decide(self, rows: list[LabelRow], side: str, needs_side: bool) -> TableLabel:
        """What rows tell that the same identifiers fit.

        needs_side: they may be of the other knee, unless there are rows of both that agree.
        """
        of_side = [row for row in rows if not (side and row.side) or row.side == side]
        if not of_side:
            return no_label(rows[0], f"{rows[0]} is of the {rows[0].side} side")
        labelled = {row.identity for row in of_side if row.label}
        of_side = [row for row in of_side if row.label or row.identity not in labelled]
        self.matched |= {(row.path, row.line) for row in of_side}
        first = of_side[0]
        other = next((row for row in of_side if row.label != first.label), None)
        if other:
            says = ", ".join(f"{row} says {row.label or 'none'}" for row in (first, other))
            why = "one a side, and nothing tells the side of the scan"
            if first.side == other.side:
                why = "and nothing tells which of them is meant"
            return no_label(first, f"{says}, {why}")
        if not first.label:
            return no_label(first, f"{first} has no label")
        if needs_side and len({row.side for row in of_side}) == 1:
            text = f"{first} is of the {first.side} side, and nothing tells the side of the scan"
            return no_label(first, text)
        return TableLabel(first.label, first.path, first.line)

    def of_scan(self, scan: str) -> LabelRow | None:
        """The row of a table of scans that has this name, to the letter."""
        row = self.by_scan.get(scan) or self.by_scan.get(scan.strip())
        if row:
            self.matched.add((row.path, row.line))
        return row

    def correct(self, scan: str, before: str) -> LabelRow | None:
        """The same, and keep for the notes what its label was before."""
        row = self.of_scan(scan)
        if row and row.label != before:
            self.corrected[scan] = Corrected(before, row)
        return row

    def notes(self) -> list[str]:
        """What to say after all scans are found: rows of no scan or without a label, and scans
        whose label is another one now, or none.
        """
        notes = []
        for path in dict.fromkeys(path for path, _ in self.rows):
            rows = [row for row in self.rows.values() if row.path == path]
            lonely = sum((row.path, row.line) not in self.matched for row in rows)
            empty = sum(not row.label for row in rows)
            if lonely:
                notes.append(f"{path}: {lonely:,} of {counted(len(rows), 'row')} without a scan")
            if empty:
                notes.append(f"{path}: {empty:,} of {counted(len(rows), 'row')} without a label")
            changes = {s: row.label for s, (_, row) in self.corrected.items() if row.path == path}
            if changed := [f"{scan} is {label}" for scan, label in changes.items() if label]:
                text = f"changes the label of {counted(len(changed), 'scan')}: {abridged(changed)}"
                notes.append(f"{path}: {text}")
            if taken := [scan for scan, label in changes.items() if not label]:
                text = f"takes the label of {counted(len(taken), 'scan')} away: {abridged(taken)}"
                notes.append(f"{path}: {text}")
        return notes


def read_labels(
    paths: Sequence[Path],
    label_column: str | None = None,
    classes: Sequence[str] | None = None,
    usual: Callable[[], Sequence[str]] = lambda: SIDES,
) -> LabelTables:
    """Tables of labels, united; one that tells none is joined by the identifiers it shares.

    For example ID|SIDE|KL, and BARCODE|ID|SIDE that leads from a barcode to such a row. A table of
    two columns may have no header: these are identifier and label. One whose only column of
    identifiers is called scan names whole scans: `LabelTables.of_scan`.

    Args:
        classes: the labels, in order. By default all that are in the tables, in natural order;
            tables of scans alone, which may name a few of them, have the usual ones.

    Raises:
        UserError: no table, or as DataError no column for the label or for identifiers, a label
            that is none of the classes, or two for one identifier and side.
    """
    read = [(path, table_with_header(path)) for path in paths]
    groups = [[label_column]] if label_column else LABEL
    tables = [label_table(path, table, groups) for path, table in read]
    if not any(table.label for table in tables) and may_tell_sides(tables, label_column, classes):
        tables = [label_table(path, table, [SIDE]) for path, table in read]
    telling = [table for table in tables if table.label]
    if not telling:
        raise DataError(no_label_column(tables, label_column))
    source = ", ".join(str(table.path) for table in telling)
    if classes is None and all(table.is_of_scans for table in telling):
        classes = usual()
    elif classes is None:
        values = chain.from_iterable(table.words() for table in telling)
        classes = two_or_more(source, classes_of_values(values))
    rows = [list(label_rows(table, classes)) for table in telling]
    refuse_two_labels(chain(*rows))
    joined = [join(table, telling, rows) for table in tables if not table.label]
    united, of_scans = defaultdict(list), []
    for table, rows_of_table in zip(telling, rows, strict=True):
        if table.is_of_scans:
            of_scans += rows_of_table
        else:
            united[tuple(sorted(map(plain_name, table.identifiers)))] += rows_of_table
    return LabelTables([*united.values(), *joined], list(classes), of_scans)


def may_tell_sides(
    tables: list[LabelTable], label_column: str | None, classes: Sequence[str] | None
) -> bool:
    """Whether sides may be the labels: there is nothing else in the tables that could be meant."""
    others = [set(t.table.columns) - {*t.identifiers, t.side, ""} for t in tables]
    return not label_column and not any(others) and (not classes or are_sides(list(classes)))


def no_label_column(tables: list[LabelTable], label_column: str | None) -> str:
    columns = [column for t in tables for column in t.table.columns]
    near = difflib.get_close_matches(label_column or "label", columns, 1)
    has = "; ".join(f"{t.path} has {', '.join(t.table.columns)}" for t in tables)
    advice = f"did you mean {near[0]}?" if near else "--label-column NAME says which tells it"
    return f"no column is called {label_column or 'label'}: {has}; {advice}"


def table_with_header(path: Path) -> Table:
    """A table; the columns of one that has no header are called id and label."""
    records = read_records(path, "table of labels")
    if lacks_header(records):
        records = [Record(0, ["id", "label"]), *records]
    return as_table(path, records)


def lacks_header(records: list[Record]) -> bool:
    """Whether the first of two columns' rows is like the others: a number, or a label that recurs.

    A first row that is called like columns are is a header in any case.
    """
    first = records[0].cells
    if len(first) != 2 or {plain_name(first[0]), plain_name(first[1])} & {
        *IDENTIFIERS,
        *chain(*LABEL, SIDE),
    }:
        return False
    value = text_of(first[1])
    others = {text_of(record.cells[1]).lower() for record in records[1:] if len(record.cells) > 1}
    is_number = coded(value).code.lstrip("-").replace(".", "", 1).isdecimal()
    return is_missing(value) or is_number or value.lower() in others


def label_table(path: Path, table: Table, groups: Sequence[Sequence[str]]) -> LabelTable:
    """Which of its columns tell what. Raises DataError if none holds identifiers."""
    label = label_column_of(path, table, groups)
    side = only_column(path, table, SIDE, "side")
    others = [column for column in table.columns if column and column != label]
    identifiers = [column for column in others if is_identifier(column)]
    if not identifiers and len(others) == 1:
        identifiers = others
    if not identifiers:
        raise DataError(
            f"{path}: expected a column of identifiers, called id, patient, barcode or the like, "
            f"got {', '.join(table.columns)}"
        )
    return LabelTable(path, table, identifiers, None if side == label else side, label)


def is_identifier(column: str) -> bool:
    """By its name: patient, or also knee_id and StudyID; not fluid."""
    of_its_own = column.lower().endswith(("_id", " id", "-id")) or (
        column.endswith("ID") and column[:-2][-1:].islower()
    )
    return plain_name(column) in IDENTIFIERS or of_its_own


def names_in(table: LabelTable, cells: dict[str, str]) -> dict[str, frozenset[str]]:
    """What each identifier of a row may be known by: of a path also its name, and its stem."""
    if table.is_of_scans:
        name = cells[table.identifiers[0]]
        return {"scan": frozenset([name])} if name else {}
    found = {}
    for column in table.identifiers:
        cell = identifier_of(cells[column])
        names = {cell}
        if plain_name(column) in PATH:
            name = cell.replace("\\", "/").rpartition("/")[2]
            names |= {name, VOLUME_ENDING.fullmatch(name)[1]}
        if cell and not is_missing(cell):
            found[plain_name(column)] = frozenset(names)
    return found


def label_rows(table: LabelTable, classes: Sequence[str]) -> Iterator[LabelRow]:
    for line, cells in table.table.rows:
        value = label_in(cells[table.label])
        label = class_of_value(value, classes) or ""
        if not (label or is_missing(value)):
            problem = expected_class(value, classes)
            raise DataError(f"{table.path}, line {line}: {table.label} {problem}")
        side = table.side_of(line, cells)
        yield LabelRow(table.path, line, names_in(table, cells), side, label)


def refuse_two_labels(rows: Iterable[LabelRow]) -> None:
    """Raise DataError if all identifiers and the side of two rows are the same, but not the label.

    Where one has no label, it says nothing against the other.
    """
    known: dict[tuple, LabelRow] = {}
    for row in rows:
        if row.names and row.label:
            first = known.setdefault(row.identity, row)
            if first.label != row.label:
                raise DataError(
                    f"{first} says {first.label}, {row} says {row.label} of the same "
                    f"{', '.join(row.names)}; leave one of them out"
                )


def join(table: LabelTable, telling: list[LabelTable], rows: list[list[LabelRow]]) -> list:
    """Rows of `telling` that a table's rows lead to, with the identifiers of both.

    Raises DataError if it has no identifiers in common with one of them.
    """
    joined, can_join = [], False
    for other, rows_of_other in zip(telling, rows, strict=True):
        own = set(map(plain_name, table.identifiers))
        common = sorted(own & set(map(plain_name, other.identifiers)))
        if not common:
            continue
        can_join = True
        by_key = defaultdict(list)
        for row in rows_of_other:
            by_key[tuple(row.names.get(column) for column in common)].append(row)
        for line, cells in table.table.rows:
            names, side = names_in(table, cells), table.side_of(line, cells)
            key = tuple(names.get(column) for column in common)
            for row in by_key[key] if None not in key else ():
                if not (side and row.side) or side == row.side:
                    both = {**row.names, **names}
                    joined.append(row._replace(names=both, side=side or row.side))
    if not can_join:
        raise DataError(
            f"{table.path}: no column tells the label, and no column of identifiers is in another "
            f"table, too: {', '.join(table.table.columns)}; --label-column NAME says which tells it"
        )
    return joined
