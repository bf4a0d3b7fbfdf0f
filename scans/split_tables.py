"""Splits and folds as tables: split.csv, folds.csv, and those that people make.

    subset_of = read_split("split.csv", scans)           # scan name -> "train", "val", "test"
    subset_of = read_split("folds.csv", scans, fold=2)   # fold 2 is the test
    folds = read_folds("folds.csv", scans)               # scan name -> 1, 2, ...

All raise DataError with the line that can't be used.
"""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from common.program import counted
from common.tables import Table, read_csv, write_csv
from scans.identity.names import nfc
from scans.slices import DataError
from scans.splits import NONE, SUBSETS, Scans

Part = TypeVar("Part")


class Folds(NamedTuple):
    """A table of folds, such as folds.csv: see `read_folds`."""

    fold_of: dict[str, int]  # scan name -> 1, 2, ...
    left_out: frozenset[str]  # scans that are tested, and never learned from

    @property
    def count(self) -> int:
        return max(self.fold_of.values())

    def subsets(self, fold: int) -> dict[str, str]:
        """Scan name -> subset where this fold is tested: the next is val, all others train."""
        val = 1 + fold % self.count
        found = {}
        for scan, own in self.fold_of.items():
            found[scan] = "test" if own == fold else "val" if own == val else "train"
            if scan in self.left_out and own != fold:
                found[scan] = NONE
        return found


def write_split(path: Path, scans: Scans, subset_of: dict[str, str]) -> None:
    """Write the CSV `subset,label,patient,scan,slices`, a row a scan."""
    order = (*SUBSETS, NONE)
    write_scans(path, scans, {scan: {"subset": of} for scan, of in subset_of.items()}, order.index)


def write_folds(path: Path, scans: Scans, folds: Folds) -> None:
    """Write the CSV `fold,label,patient,scan,slices`, and `left_out` where some are."""
    more = {scan: {"fold": fold} for scan, fold in folds.fold_of.items()}
    for scan in more if folds.left_out else ():
        more[scan]["left_out"] = "yes" if scan in folds.left_out else ""
    write_scans(path, scans, more, int)


def write_scans(path: Path, scans: Scans, more: dict[str, dict], order: Callable) -> None:
    """A row a scan; the first cell of more[scan] is where it is put, in this order."""
    rows = []
    for name, slices in scans.items():
        (column, part), *others = more[name].items()
        about = {"label": slices[0].label, "patient": slices[0].patient, "scan": name}
        rows.append({column: part, **about, "slices": len(slices), **dict(others)})
    rows.sort(key=lambda row: (order(row[column]), row["label"], row["patient"], row["scan"]))
    write_csv(path, rows)


def read_split(path: str | Path, scans: Scans, fold: int | None = None) -> dict[str, str]:
    """Read a split file: a CSV with at least the columns `subset` and `scan`, such as split.csv.

    Or with the columns `fold` and `scan`, such as folds.csv: the subsets where this fold is tested.
    Any delimiter, and names of columns in any case, as common.tables.read_csv takes them.

    Raises:
        UserError: no such file; as DataError a row that can't be used (named by its line), a scan
            that is only in the file or only in the data, or a subset without a scan.
    """
    table = read_csv(path, "split file")
    if table.column("subset") is None and table.column("fold") is not None:
        folds = folds_in(table, path, scans)
        if fold is None:
            text = f"says folds: --fold N names the one to test, from 1 to {folds.count}"
            raise DataError(f"{path}: {text}")
        if not 1 <= fold <= folds.count:
            raise DataError(f"--fold {fold}: {path} has the folds 1 to {folds.count}")
        return checked_subsets(path, folds.subsets(fold))
    if fold is not None:
        raise DataError(f"--fold {fold}: {path} has no column fold")

    def subset_in(cell: str) -> str:
        subset = cell.strip().lower()
        if subset not in (*SUBSETS, NONE):
            raise ValueError(f"subset must be train, val, test or {NONE}, got {cell!r}")
        return subset

    return checked_subsets(path, read_scans(table, path, scans, "subset", subset_in))


def read_folds(path: str | Path, scans: Scans) -> Folds:
    """Read a table of folds: at least the columns `fold` (1, 2, ...) and `scan`.

    A scan with anything in the column `left_out` is tested in its fold and is in no other subset.
    Raises UserError as `read_split` does.
    """
    return folds_in(read_csv(path, "table of folds"), path, scans)


def folds_in(table: Table, path: str | Path, scans: Scans) -> Folds:
    def fold_in(cell: str) -> int:
        if not (cell.strip().isdecimal() and int(cell) > 0):
            raise ValueError(f"fold must be a whole number from 1, got {cell!r}")
        return int(cell)

    fold_of = read_scans(table, path, scans, "fold", fold_in)
    there = set(fold_of.values())
    lacking = next(fold for fold in itertools.count(1) if fold not in there)
    if lacking <= max(max(there), 3):
        raise DataError(f"{path}: no scan is in fold {lacking}")
    left_out = frozenset()
    if table.column("left_out") is not None:
        marks = read_scans(table, path, scans, "left_out", str.strip)
        left_out = frozenset(scan for scan, mark in marks.items() if mark)
    return Folds(fold_of, left_out)


def read_scans(
    table: Table, path: str | Path, scans: Scans, name: str, parse: Callable[[str], Part]
) -> dict[str, Part]:
    """Scan name -> what a column says of it; parse raises ValueError for what it can't say."""
    column, scan_column = table.column(name), table.column("scan")
    if column is None or scan_column is None:
        columns = ", ".join(table.columns)
        raise DataError(f"{path}: expected columns {name} and scan, got {columns!r}")
    found = {}
    for line, row in table.rows:
        try:
            value = parse(row[column])
        except ValueError as error:
            raise DataError(f"{path}, line {line}: {error}") from error
        cell = row[scan_column]
        scan = cell if cell in scans else nfc(cell.strip())
        if not scan:
            raise DataError(f"{path}, line {line}: names no scan")
        if found.setdefault(scan, value) != value:
            raise DataError(f"{path}, line {line}: scan {scan} is in two {name}s")
    for names, problem in [
        (scans.keys() - found.keys(), "of the data not in the split file"),
        (found.keys() - scans.keys(), "of the split file not in the data"),
    ]:
        if names:
            raise DataError(f"{path}: {counted(len(names), 'scan')} {problem}, first: {min(names)}")
    return found


def checked_subsets(path: str | Path, subset_of: dict[str, str]) -> dict[str, str]:
    for subset in SUBSETS:
        if subset not in subset_of.values():
            raise DataError(f"{path}: no scan is in {subset}")
    return subset_of
