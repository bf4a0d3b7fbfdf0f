"""The columns of names: what each part of many paths is, found by looking at all of them at once.

    (table,) = columns_of(["p01_LEFT_7", "p01_RIGHT_7", "p02_LEFT_8"], ["left", "right"])
    table.columns       # p; 01 01 02: after a word for patients; LEFT RIGHT LEFT: labels; 7 7 8

Paths of the same form (as many folders, and as many parts in each name) make a table, a row each.
A part is a run of letters or of digits where all rows have the same runs, such as p and 01.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from scans import names

SPARSE = 2.5  # numbers of slices may leave out every second one
MAX_SLICE = 99_999  # 9003175 and 9003176 are patients, though they run without gaps
MAX_VISITS = 12  # a column of more different values holds no visits


class Meaning(Enum):
    LABEL = "label"
    PATIENT = "patient"  # a word such as p or sub stands before it
    VISIT = "visit"
    DATE = "date"
    SUBSET = "subset"  # train, val, test
    SEQUENCE = "sequence"  # SAG, 3D, DESS, T2: how it was imaged
    SLICE = "slice"  # a word such as slice or z stands before it
    OTHER = "other"  # a word that is none of a patient, such as series or scan
    CONSTANT = "constant"
    FREE = "free"  # nothing tells what it is


@dataclass(slots=True, eq=False)
class Column:
    """A part of each path of a table."""

    level: int  # 0 is the first folder, -1 the name itself
    index: int  # of its field among those of the folder or name
    run: int | None  # of its letters or digits among those of the field; None: the whole field
    values: list[str]  # one a row, as they are written
    spans: list[tuple[int, int]]  # where in the folder or name
    word: str = ""  # letters before it that are the same in all rows: p of p01, visit of visit_2
    meaning: Meaning = Meaning.FREE
    keys: list[str] = field(init=False)  # the values, such that p01, P01 and p1 are one
    is_number: bool = field(init=False)

    def __post_init__(self):
        folded = {value: names.folded(value) for value in set(self.values)}
        self.keys = [folded[value] for value in self.values]
        self.is_number = all(value.isdecimal() for value in folded)


class Table(NamedTuple):
    rows: list[int]  # positions of its paths
    columns: list[Column]

    def of(self, *meanings: Meaning) -> list[Column]:
        return [column for column in self.columns if column.meaning in meanings]


class Field(NamedTuple):
    text: str
    start: int


def columns_of(paths: Sequence[str], classes: Sequence[str]) -> list[Table]:
    """Tables of the paths (with slashes, below the data folder, without endings of files)."""
    forms: dict[tuple, list[int]] = defaultdict(list)
    fields = [[fields_of(part) for part in path.split("/")] for path in paths]
    for position, parts in enumerate(fields):
        forms[tuple(map(len, parts))].append(position)
    tables = []
    for form, rows in forms.items():
        columns = []
        for level, count in enumerate(form):
            level_from_end = level if level < len(form) - 1 else -1
            before = ""
            for index in range(count):
                cells = [fields[row][level][index] for row in rows]
                found = split_runs(cells, level_from_end, index)
                for column in found:
                    column.word = before
                    column.meaning = meaning_of(column, classes)
                    if follows_date(columns, column) and all(map(names.is_time, column.values)):
                        column.meaning = Meaning.DATE
                    before = constant_letters(column)
                    columns.append(column)
                if count == 1 and level_from_end >= 0 and are_class_folders(found, classes):
                    found[0].meaning = Meaning.LABEL
        tables.append(Table(rows, columns))
    return tables


def follows_date(columns: list[Column], column: Column) -> bool:
    last = columns[-1] if columns else None
    return last is not None and last.meaning is Meaning.DATE and last.level == column.level


def are_class_folders(found: list[Column], classes: Sequence[str]) -> bool:
    """Whether they are whole folders called like classes, which may be numbers."""
    values = set(found[0].values)
    return len(found) == 1 and all(names.label_of_folder(value, list(classes)) for value in values)


def fields_of(part: str) -> list[Field]:
    """What separators part: p01_LEFT 7 -> p01, LEFT, 7. Dates and L_E_F_T stay whole."""
    found = [Field(match[0], match.start()) for match in names.FIELD.finditer(part)]
    if part and not found:  # a folder may be called ##
        found = [Field(part, 0)]
    return found


def split_runs(cells: list[Field], level: int, index: int) -> list[Column]:
    """A field as a column, or as one for each run of letters or digits."""

    def whole() -> list[Column]:
        spans = [(cell.start, cell.start + len(cell.text)) for cell in cells]
        return split_date(Column(level, index, None, [cell.text for cell in cells], spans))

    texts = {cell.text for cell in cells}
    if (all(map(names.is_visit, texts)) and len(texts) <= MAX_VISITS) or all(
        map(names.is_date, texts)
    ):
        return whole()
    runs = {text: list(names.RUN.finditer(text)) for text in texts}
    kinds = {tuple(run[0][0].isdecimal() for run in found) for found in runs.values()}
    kind = kinds.pop()
    if kinds or len(kind) < 2:
        return whole()
    if any("".join(run[0] for run in found) != text for text, found in runs.items()):
        return whole()  # characters that are neither letters nor digits
    columns = []
    for number in range(len(kind)):
        found = [runs[cell.text][number] for cell in cells]
        spans = [
            (c.start + f.start(), c.start + f.end()) for c, f in zip(cells, found, strict=True)
        ]
        columns += split_date(Column(level, index, number, [f[0] for f in found], spans))
    return columns


def split_date(column: Column) -> list[Column]:
    """912626020060921 -> 9126260, 20060921: a date that all values hold at the same digits."""
    lengths = set(map(len, column.values))
    if not column.is_number or len(lengths) > 1 or min(lengths) <= 8:
        return [column]
    for start in range(min(lengths) - 7):
        if all(names.is_date(value[start : start + 8]) for value in column.values):
            pieces = [(0, start), (start, start + 8), (start + 8, min(lengths))]
            return [part_of(column, *piece) for piece in pieces if piece[0] < piece[1]]
    return [column]


def part_of(column: Column, start: int, end: int) -> Column:
    values = [value[start:end] for value in column.values]
    spans = [(first + start, first + end) for first, _ in column.spans]
    return Column(column.level, column.index, column.run or 0, values, spans)


def constant_letters(column: Column) -> str:
    """The text of a column of letters that are the same in all rows: a word about the next one."""
    keys = set(column.keys)
    text = keys.pop()
    return text if not keys and text.isalpha() else ""


def meaning_of(column: Column, classes: Sequence[str]) -> Meaning:
    values = set(column.values)
    if is_label(column, values, classes):
        return Meaning.LABEL
    if column.level >= 0 and all(map(names.is_subset, values)):
        return Meaning.SUBSET
    if all(map(names.is_date, values)):
        return Meaning.DATE
    if are_visits(values):
        return Meaning.VISIT
    if all(map(names.is_sequence_word, values)):
        return Meaning.SEQUENCE
    if len(column.word) > 2 or not all(value.isalpha() for value in values):
        for words, meaning in (
            (names.PATIENT_WORDS, Meaning.PATIENT),
            (names.SLICE_WORDS, Meaning.SLICE),
            (names.VISIT_WORDS, Meaning.VISIT),
            (names.OTHER_WORDS, Meaning.OTHER),
        ):
            if column.word in words:
                return meaning
    return Meaning.CONSTANT if len(set(column.keys)) == 1 else Meaning.FREE


def are_visits(texts: set[str]) -> bool:
    return len(texts) <= MAX_VISITS and all(map(names.is_visit, texts))


def is_label(column: Column, values: set[str], classes: Sequence[str]) -> bool:
    """Whether all are words for a class, or for a side. Numbers in names may be anything."""
    if all(value.isdecimal() for value in values):
        return False
    sides = {names.label_of_word(value, names.SIDES) for value in values}
    if None not in sides:
        # L alone may be anything; L beside R, or as a word, is a side.
        return len(sides) == 2 or all(len(value) > 1 for value in values)
    return all(names.label_of_word(value, classes) for value in values)


def slice_column(table: Table) -> Column | None:
    """The column that counts the slices of a scan; None if there is none, or it can't be known.

    It is a number of the name itself: the one after a word such as slice; the only one that runs
    without gaps while everything else in the path stays the same; or, beside a word for patients,
    the only number at the end.
    """
    numbers = [c for c in table.columns if c.level == -1 and c.is_number]
    for column in [c for c in numbers if c.meaning is Meaning.SLICE]:
        return column
    if len(table.rows) == 1:  # nothing to compare with: the number at the end
        last = table.columns[-1] if table.columns else None
        return last if last in numbers and last.meaning is Meaning.CONSTANT else None
    if len(running := running_columns(table)) == 1:
        return running[0]
    unknown = [c for c in numbers if c.meaning in (Meaning.FREE, Meaning.CONSTANT)]
    at_end = len(unknown) == 1 and unknown[0] is table.columns[-1]
    return unknown[0] if at_end and table.of(Meaning.PATIENT) else None


def running_columns(table: Table) -> list[Column]:
    """The numbers of the names that could count slices."""
    numbers = [c for c in table.of(Meaning.FREE) if c.level == -1 and c.is_number]
    numbers = [c for c in numbers if max(map(int, c.values)) <= MAX_SLICE]
    return [column for column in numbers if runs_without_gaps(column, table)]


def last_running_column(table: Table) -> Column | None:
    """Of several numbers that could count slices the one at the end, where it is likeliest."""
    running = running_columns(table)
    return running[-1] if running and running[-1] is table.columns[-1] else None


def runs_without_gaps(column: Column, table: Table) -> bool:
    """Whether most rows that differ in this column alone count from a number to another."""
    others = [c.keys for c in table.columns if c is not column]
    groups = defaultdict(set)
    for row, value in enumerate(column.values):
        groups[tuple(keys[row] for keys in others)].add(int(value))
    counting = sum(
        len(found)
        for found in groups.values()
        if len(found) > 1 and max(found) - min(found) < SPARSE * len(found)
    )
    return counting >= 0.6 * len(column.values)
