"""Who the patient is: inferred from the columns of names by a stated rule, or not at all.

A patient who is parted leaks from train to test, so a column is taken for the patient's only where
no other reading of the names could part one:

1. the number after a word such as patient, sub or p;
2. seven digits that begin with a 9, as in the OAI, where some occur in several scans;
3. the one column that every other column determines (of 9126260_LEFT_11309302: 11309302 occurs
   with one 9126260 only, and not the other way round), where some of it occur in several scans.

Sides, labels, visits, dates, subsets and words for sequences are never patients. Where no rule
holds, readings.py asks.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from scans import names
from scans.columns import Column, Meaning, Table, columns_of, slice_column

MOST_SCANS = 40  # of one patient; a column with more of one value is rather a site or a batch
MAX_VISITS = 6  # that may be glued to the patient's name
MAX_VIEWS = 5  # a column of so few may be visits or views, and what counts slices the patient


class Patients(NamedTuple):
    """The patient of each path, and how that is known."""

    of: list[str]  # "" for all where it is not known
    rule: str = ""  # such as: the 7 digits of the OAI


def infer_patients(paths: Sequence[str], scans: Sequence[str], classes: Sequence[str]) -> Patients:
    """The patient of each path (below the data folder, without endings), by its names alone.

    scans: the scan of each path.
    """
    if not paths:
        return Patients([])
    tables = columns_of(paths, classes)
    chosen = [choose_column(table, scans) for table in tables]
    if all(chosen) and alike([choice.column for choice in chosen]):
        of = [""] * len(paths)
        with_word = any(choice.column.run is not None for choice in chosen)
        for table, choice in zip(tables, chosen, strict=True):
            for row, value in zip(table.rows, spelled(choice, table, with_word), strict=True):
                of[row] = value
        of = spell_alike(of)
        return Patients(of, describe(chosen[0]))
    return Patients([""] * len(paths))


class Choice(NamedTuple):
    rule: str  # word, OAI or column
    column: Column


def choose_column(table: Table, scans: Sequence[str]) -> Choice | None:
    """The column of the patient, if a rule of this file finds one."""
    of_rows = [scans[row] for row in table.rows]
    counting = slice_column(table) if len(set(of_rows)) < len(of_rows) else None
    columns = [c for c in table.columns if c is not counting]
    free = [c for c in columns if c.meaning is Meaning.FREE]
    oai = [
        c
        for c in columns
        if c.meaning in (Meaning.FREE, Meaning.CONSTANT)
        and all(map(names.OAI_PATIENT.fullmatch, c.values))
    ]
    of_words = [c for c in columns if c.meaning is Meaning.PATIENT]
    if of_words:
        first, *others = [*of_words, *oai]
        same = all(determines(first, c) and determines(c, first) for c in others)
        is_clear = same and not is_mixed(first) and not stands_behind(first, counting, free, table)
        return Choice("word", first) if is_clear else None
    others = [c for c in free if c not in oai]
    if len(oai) == 1 and (occurs_mostly_again(oai[0], of_rows) or not others):
        # 12_9309302: is that the 12th patient's study? Of two values it is a site.
        coarser = [c for c in others if determines(oai[0], c)]
        if all(len(set(c.keys)) <= 2 for c in coarser):
            return Choice("OAI", oai[0])
    coarsest = [c for c in free if all(determines(other, c) for other in free)]
    if coarsest and is_safe(coarsest[0], counting, table, of_rows):
        return Choice("column", coarsest[0])
    return None


def stands_behind(
    column: Column, counting: Column | None, free: list[Column], table: Table
) -> bool:
    """Whether something before it may be the patient: of 3848_p1 and 5_p1, p1 is a page."""
    order = table.columns.index
    if counting and counting.meaning is not Meaning.SLICE and order(counting) < order(column):
        return True
    values = len(set(column.keys))
    many = [c for c in free if order(c) < order(column) and len(set(c.keys)) >= values]
    return any(not determines(c, column) and not determines(column, c) for c in many)


def is_safe(column: Column, counting: Column | None, table: Table, scans: Sequence[str]) -> bool:
    """Whether no other reading could part a patient of this column, which all others determine."""
    values = len(set(column.keys))
    if values < 3 or not occurs_mostly_again(column, scans):
        return False
    if is_mixed(column) or seems_glued(column):
        return False
    if any(determines(label, column) for label in table.of(Meaning.LABEL)):
        return False
    if counting and counting.meaning is not Meaning.SLICE:
        # Of new/left/3: is the 3 a slice, or a patient?
        if table.columns.index(counting) < table.columns.index(column):
            return False
        if values <= MAX_VIEWS and len(set(counting.keys)) > values:
            return False
    free = [c for c in table.of(Meaning.FREE) if c is not counting]
    finer = [c for c in free if not determines(column, c)]
    if any(occurs_again(c, scans) or hides_another(c, column) for c in finer):
        return False  # of 2-005_LEFT: the site, or the patient?
    return max(scans_of(column, scans).values()) <= MOST_SCANS


def determines(column: Column, other: Column) -> bool:
    """Whether each value of a column occurs with one value of the other only."""
    pairs = set(zip(column.keys, other.keys, strict=True))
    return len(pairs) == len(set(column.keys))


def occurs_again(column: Column, scans: Sequence[str]) -> bool:
    """Whether a value occurs in two scans."""
    return max(scans_of(column, scans).values()) > 1


def occurs_mostly_again(column: Column, scans: Sequence[str]) -> bool:
    """Whether every second value does: of numbers that are drawn one may by chance."""
    counts = scans_of(column, scans)
    return 2 * sum(count > 1 for count in counts.values()) >= len(counts)


def scans_of(column: Column, scans: Sequence[str]) -> Counter:
    """Value -> in so many scans."""
    return Counter(key for key, _ in set(zip(column.keys, scans, strict=True)))


def is_mixed(column: Column) -> bool:
    """Whether its parts are not the same in all rows: DESSp01 and T1p01, 003 and 003a."""
    uniform = all(v.isdecimal() for v in column.values) or all(v.isalpha() for v in column.values)
    return column.run is None and not uniform


def seems_glued(column: Column) -> bool:
    """Whether it holds more than the patient: fayLEFT; 912626000 and 912626001 (the visit)."""
    values = set(column.keys)
    if any(word in value for word in names.NEVER_IN_PATIENTS for value in values):
        return True
    for count in (1, 2, 3):
        behind = {(v[:-count], v[-count:]) for v in values if len(v) > count}
        before = {(v[count:], v[:count]) for v in values if len(v) > count + 1}
        for divided in (behind, before):
            patients = {patient for patient, _ in divided}
            visits = {visit for _, visit in divided}
            if (
                len(patients) > 1
                and len(visits) <= MAX_VISITS
                and len(divided) >= (1.5 * len(patients))
            ):
                return True
    return False


def hides_another(column: Column, chosen: Column) -> bool:
    """Whether many values begin (or end) alike across the chosen: 0011309302, 0011309410 of two."""
    rows = dict(zip(column.keys, chosen.keys, strict=True))  # each value -> that of the chosen
    for count in (3, 4, 5, 6, 7):
        for part in (slice(count), slice(-count, None)):
            of_part: dict[str, set[str]] = {}
            for value, other in rows.items():
                of_part.setdefault(value[part], set()).add(other)
            across = max(map(len, of_part.values())) > 1
            if across and len(rows) >= 1.5 * len(of_part) > 1.5:
                return True
    return False


def alike(columns: list[Column]) -> bool:
    """Whether columns of several tables are at the same part of the names, or have one word."""
    if len(columns) == 1 or len({c.word for c in columns if c.meaning is Meaning.PATIENT}) == 1:
        return len({c.meaning for c in columns}) == 1
    if all(names.OAI_PATIENT.fullmatch(value) for c in columns for value in set(c.values)):
        return True
    forms = {re.sub(r"\d", "0", value) for column in columns for value in column.values}
    return len(forms) == 1 and len({(c.level, c.index, c.run) for c in columns}) == 1


def spelled(choice: Choice, table: Table, with_word: bool) -> list[str]:
    """The patient of each row as a name: a1 of case_a1, where both parts of it say the same."""
    column = choice.column
    if choice.rule == "word":
        return [(column.word if with_word else "") + value for value in column.values]
    if choice.rule == "OAI" or column.run is None:
        return column.values
    runs = [c for c in table.columns if (c.level, c.index) == (column.level, column.index)]
    same = [c for c in runs if determines(column, c)]
    return ["".join(values) for values in zip(*(c.values for c in same), strict=True)]


def spell_alike(found: list[str]) -> list[str]:
    """One spelling for p01, P01 and p1: the first."""
    spelling: dict[str, str] = {}
    return [spelling.setdefault(names.folded(name), name) for name in found]


def describe(choice: Choice) -> str:
    column = choice.column
    if choice.rule == "OAI":
        return "the 7 digits of the OAI"
    if choice.rule == "word":
        return f"what follows {column.word!r}"
    ordinal = f"part {column.index + 1} of " if column.index else "the beginning of "
    if column.level == -1:
        return ordinal + "the name"
    folder = "the first folder" if column.level == 0 else f"folder {column.level + 1}"
    return folder if not column.index and column.run is None else f"{ordinal}{folder}"
