"""Where nothing tells the patient: flags to choose from, each with what it would give.

    text = ask(found, known.unknown, classes, options, root)

Each reading is tried on copies of what was found, so that what is printed is what comes of it.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from common.files import abridged
from common.program import counted, printable, typed
from scans import names
from scans.columns import Column, Meaning, Table, columns_of, running_columns, slice_column
from scans.found import Found
from scans.identities import identify
from scans.label_tables import LabelTables
from scans.slices import DataError, Kind, Options, Problem

MOST_PATTERNS = 3
SUBSETS = 3  # train, val and test: fewer patients can't fill them
SIZES = (40, 1)  # slices of a scan that are offered, where names have nothing but numbers


class Reading(NamedTuple):
    """A way to read the names, as it is typed, and what it gives."""

    flags: str
    patients: list[str]
    scans: int


def ask(
    pristine: list[Found],
    unknown: list[Found],
    classes: list[str],
    options: Options,
    root: str,
    tables: LabelTables | None = None,
) -> str:
    """What can be typed, whichever is true, and what it would give.

    pristine: all that was found, before it was identified; unknown: those of unknown patients.
    """
    readings, patterns = [], []
    if not options.name_pattern:
        patterns = find_patterns([item.stem for item in unknown], classes)
    for pattern in patterns:
        flags = f"--name-pattern {typed(pattern)}"
        readings.append((flags, replace(options, name_pattern=pattern)))
    each = replace(options, patients="scan")
    nothing_else = not any("(?P<slice>" in x for x in patterns) and not options.name_pattern
    if nothing_else and any(item.volume is None and item.number for item in unknown):
        readings += [
            (f"--slices-per-scan {n} --patients scan", replace(each, slices_per_scan=n))
            for n in SIZES
        ]
    if not any("(?P<slice>" in pattern for pattern in patterns):
        readings.append(("--patients scan", each))
    tried = [try_out(flags, pristine, classes, o, root, tables) for flags, o in readings]
    tried = [reading for reading in tried if reading and len(reading.patients) >= SUBSETS]
    tried = [*tried[:MOST_PATTERNS], *tried[-1:]] if len(tried) > MOST_PATTERNS else tried
    scans = len({item.scan for item in unknown})
    several = any("--name-pattern" in reading.flags for reading in tried)
    how = "can be read in several ways" if several else "do not say who the patient is"
    what = "a manifest or --name-pattern can tell it, with a group (?P<patient>...)"
    if tried:
        what = "Add the flags that are true, or make a manifest:"
    lines = [f"the names of {counted(scans, 'scan')}, such as {unknown[0].path}, {how}. {what}"]
    width = max((len(reading.flags) for reading in tried), default=0)
    for flags, patients, count in tried:
        of = "each another person" if len(patients) == count else counted(count, "scan")
        shown = f": {abridged(patients, 3)}" if "--name-pattern" in flags else ""
        lines.append(f"  {flags:<{width}}  {counted(len(patients), 'patient')}, {of}{shown}")
    if any(names.is_subset(part) for part in unknown[0].path.split("/")[:-1]):
        lines.append("  (with them, dataset.py DIR --write-split CSV for folders train and test)")
    return "\n".join(map(printable, lines))


def ask_of_strangers(others: int, strangers: list[Found]) -> str:
    """Where some patients are told and others inferred, and nobody is in both."""
    scans = {item.scan: item for item in strangers}
    first = strangers[0]
    return printable(
        f"the patients of {counted(others, 'scan')} are told and those of {len(scans)} inferred "
        f"from names ({first.path} -> {first.patient}), and nobody is in both. If they are the "
        "same people, a manifest or --name-pattern must tell one name of each; if not, add "
        "--patients named"
    )


def try_out(
    flags: str,
    pristine: list[Found],
    classes: list[str],
    options: Options,
    root: str,
    tables: LabelTables | None,
) -> Reading | None:
    """None if it does not tell all patients, or makes a scan of two."""
    found = [replace(item) for item in pristine]
    problems: list[Problem] = []
    try:
        known = identify(found, classes, options, problems, root, tables)
    except DataError:
        return None
    labelled = [item for item in found if item.label]
    patient_of = {item.scan: item.patient for item in labelled}
    if known.unknown or any(patient_of[item.scan] != item.patient for item in labelled):
        return None
    if any(problem.kind is Kind.CONTRADICTION for problem in problems):
        return None
    return Reading(flags, sorted(set(patient_of.values())), len(patient_of))


# ---- patterns ------------------------------------------------------------------------------------


def find_patterns(paths: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Regular expressions of the columns that may be the patient, likeliest first.

    Where several numbers may count slices, the last is the likeliest, and patients stand first.
    """
    tables = columns_of(paths, classes)
    table = max(tables, key=lambda table: len(table.rows))
    counting = slice_column(table)
    candidates = [
        c
        for c in table.of(Meaning.PATIENT, Meaning.FREE, Meaning.OTHER)
        if c is not counting and len(set(c.keys)) > 1
    ]
    folders = [folder_pattern(level) for level in folders_of_words(table)]
    numbers = [None] if counting else running_columns(table)[::-1] or [None]
    found = folders if counting else []
    if counting and counting.meaning is not Meaning.SLICE and not candidates:
        candidates = [counting]  # one image of each knee of each patient
    for number in numbers:
        for column in candidates:
            if column is number:
                continue
            groups = {"patient": column} | ({"slice": number} if number else {})
            pattern = pattern_of(groups, table)
            matches = [re.search(pattern, paths[row]) for row in table.rows]
            values = zip(matches, column.values, strict=True)
            if all(match and match["patient"] == value for match, value in values):
                found.append(pattern)
    return found


def folders_of_words(table: Table) -> list[int]:
    """Levels of folders whose names have several parts, such as Anna Meier and Anna Schulz."""
    levels = {}
    for column in table.of(Meaning.FREE):
        levels.setdefault(column.level, set()).add(column.index)
    return [level for level, fields in levels.items() if level >= 0 and len(fields) > 1]


def folder_pattern(level: int) -> str:
    return "^" + "[^/]+/" * level + "(?P<patient>[^/]+)/"


def pattern_of(groups: dict[str, Column], table: Table) -> str:
    """A regular expression, from the beginning of a path, with these columns as its groups."""
    name_of = {id(column): name for name, column in groups.items()}
    levels: dict[int, dict[int, list[Column]]] = {}
    for column in table.columns:
        levels.setdefault(column.level, {}).setdefault(column.index, []).append(column)
    parts = []
    for level in sorted(levels, key=lambda level: (level == -1, level)):
        fields = levels[level]
        last = max(
            (i for i, runs in fields.items() if any(id(c) in name_of for c in runs)), default=-1
        )
        written = [pattern_of_field(fields[i], name_of) for i in range(last + 1)]
        parts.append("[\\W_]+".join(written) + ("" if level == -1 else "[^/]*"))
    while parts and "(?P<" not in parts[-1]:
        parts.pop()
    return "^" + "/".join(parts).removesuffix("[^/]*")


def pattern_of_field(runs: list[Column], name_of: dict[int, str]) -> str:
    if not any(id(column) in name_of for column in runs):
        return "[^\\W_]+"
    written = []
    for column in runs:
        text = "[^\\W_]+" if column.run is None else "[^\\W\\d_]+"
        text = "\\d+" if column.is_number else text
        name = name_of.get(id(column))
        written.append(f"(?P<{name}>{text})" if name else text)
    return "".join(written)
