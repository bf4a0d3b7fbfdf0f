"""Tables as people have them: words for columns and values, and manifests.

    read_manifest(Path("knees.csv"))[0]  # ManifestRow(2, "a/1.png", "left", patient="p1", scan="")

Columns may be called in several ways and in any case; delimiters and encodings are found
(common.files.read_csv). Tables of labels by identifier: label_tables.py.
"""

import difflib
import os
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from common.csv_tables import Table, plain_name, read_csv
from common.files import abridged
from scans.names import label_of_word, natural_order
from scans.slices import SIDES, DataError

PATH = "path file filename filepath image imagepath img volume".split()
PATIENT = "patient patientid subject subjectid participant participantid".split()
SCAN = "scan scanid series seriesuid seriesinstanceuid volumeid".split()
SIDE = "side laterality".split()
# A column of the first line that has one is taken: a grade or a side may stand beside a label.
LABEL = ["label class target category".split(), ["grade"]]
# What may be a patient, or a visit, a scan or a knee of one.
UNCLEAR = "id case caseid name pid person mrn barcode accession accessionnumber studyid"
IDENTIFIERS = {*PATH, *PATIENT, *SCAN, *UNCLEAR.split(), "exam", "examid", "uid", "kneeid"}
NOBODY = {"unknown", "none", "?", "-"}
MISSING = {"", ".", "na", "n/a", "nan", "null"}


# ---- words ---------------------------------------------------------------------------------------


class Coded(NamedTuple):
    """A value such as `2: Minimal`, as the OAI writes them; the text of others is ""."""

    code: str
    text: str


def coded(value: str) -> Coded:
    """Codes are whole numbers; of missing values also a dot, or a dot and a letter."""
    code, colon, text = value.partition(":")
    code = code.strip()
    if colon and (code.isdecimal() or (code.startswith(".") and len(code) <= 2)):
        return Coded(code, text.strip())
    number, dot, zeros = value.strip().partition(".")
    if dot and number.isdecimal() and zeros and not zeros.strip("0"):  # 2.0 is 2: pandas wrote it
        return Coded(number, "")
    return Coded(value.strip(), "")


def without_zeros(patient: str) -> str:
    """12.0 is 12: pandas wrote it."""
    return coded(patient).code if not coded(patient).text else patient


def text_of(cell: str) -> str:
    """Stripped; bytes that are no UTF-8 are taken for Windows' letters (cp1252)."""
    if any("\udc80" <= character <= "\udcff" for character in cell):
        cell = cell.encode("utf-8", "surrogateescape").decode("cp1252", "surrogateescape")
    return cell.strip()


def label_in(cell: str) -> str:
    """On one line, as it stands in messages and in names of files."""
    return " ".join(text_of(cell).split())


def is_missing(value: str) -> bool:
    """NA and the like, also as the OAI (SAS) writes it: `.: Missing Form` or .A, but not .5"""
    code = coded(value).code
    is_dotted = code.startswith(".") and len(code) <= 2 and not code[1:].isdecimal()
    return value.strip().lower() in MISSING or is_dotted


def class_of_value(value: str, classes: Sequence[str]) -> str | None:
    """The class that a value is, or that its code or its text is."""
    words = [value, *coded(value)]
    return next((x for word in words if (x := label_of_word(word, list(classes)))), None)


def classes_of_values(values: Iterable[str]) -> list[str]:
    """All labels (of coded ones the codes) in natural order; left and right if all are sides."""
    values = [value for value in values if not is_missing(value)]
    if values and all(class_of_value(value, SIDES) for value in values):
        return list(SIDES)
    spellings: dict[str, str] = {}
    for value in values:
        code = coded(value).code
        spellings.setdefault(code.lower(), code)
    return sorted(spellings.values(), key=natural_order)


def expected_class(value: str, classes: Sequence[str]) -> str:
    """For a message: what a value must be, and which class may be meant."""
    near = difflib.get_close_matches(value.lower(), [label.lower() for label in classes], 1)
    question = f"; did you mean {class_of_value(near[0], classes)}?" if near else ""
    return f"must be {' or '.join(classes)}, got {value!r}{question}"


# ---- columns -------------------------------------------------------------------------------------


def only_column(path: Path, table: Table, names: Sequence[str], role: str) -> str | None:
    """The column of these names, or None. Raises DataError if there are two."""
    found = table.columns_called(*names)
    if len(found) > 1:
        raise DataError(f"{path}: columns {abridged(found)} may all tell the {role}; rename others")
    return found[0] if found else None


def label_column_of(path: Path, table: Table, groups: Sequence[Sequence[str]]) -> str | None:
    """The column of the first group of names that has one. Raises DataError if that has two."""
    found = (only_column(path, table, names, "label") for names in groups)
    return next(filter(None, found), None)


def near_columns(columns: Sequence[str], names: Iterable[str]) -> list[str]:
    """Columns whose name is nearly one of these, such as lable."""
    names = list(names)
    return [c for c in columns if difflib.get_close_matches(plain_name(c), names, 1, cutoff=0.75)]


# ---- manifests -----------------------------------------------------------------------------------


class ManifestRow(NamedTuple):
    """One file, and what a manifest tells of it; "" is what it doesn't."""

    line: int
    path: str  # relative to the manifest's folder, or absolute
    label: str
    patient: str
    scan: str


class ManifestColumns(NamedTuple):
    path: str
    label: str
    patient: str | None
    scan: str | None


def manifest_columns(path: Path, table: Table) -> ManifestColumns:
    """Raises DataError if the path or the label has no column, or anything has two."""
    of_path = only_column(path, table, PATH, "path")
    of_label = label_column_of(path, table, [*LABEL, SIDE])
    of_patient = only_column(path, table, PATIENT, "patient")
    of_scan = only_column(path, table, SCAN, "scan")
    if of_path and of_label:
        return ManifestColumns(of_path, of_label, of_patient, of_scan)
    names = [*([] if of_path else PATH), *([] if of_label else chain(*LABEL, SIDE))]
    known = {of_path, of_label, of_patient, of_scan}
    near = near_columns([column for column in table.columns if column not in known], names)
    lacking = " and ".join(r for r, c in (("path", of_path), ("label", of_label)) if not c)
    hint = f"; is {abridged(near)} meant?" if near else ""
    raise DataError(
        f"{path}: expected columns path,label,patient,scan, got {','.join(table.columns)}: no "
        f"column is called {lacking}{hint}"
    )


def read_manifest(path: Path) -> list[ManifestRow]:
    """A table with columns path and label (or side), and where they are known patient and scan.

    Raises UserError (or DataError) if it is no table, or a column is missing or there twice. Rows
    without a path or a label are among the answer.
    """
    table = read_csv(path, "manifest")
    columns = manifest_columns(path, table)
    rows = []
    for line, row in table.rows:
        file, label = file_of(path, row[columns.path]), label_in(row[columns.label])
        literal = f"'{row[columns.path]}".strip()
        if (line, columns.path) in table.guarded and os.path.exists(path.parent / literal):
            file = literal  # an apostrophe of a name, and none that guards it from spreadsheets
        patient, scan = (text_of(row[column]) if column else "" for column in columns[2:])
        patient = "" if is_missing(patient) or patient.lower() in NOBODY else without_zeros(patient)
        rows.append(ManifestRow(line, file, label, patient, scan))
    return rows


def file_of(manifest: Path, cell: str) -> str:
    """A path as it is written, if there is such a file; else with slashes for backslashes, and
    with bytes that are no UTF-8 taken for Windows' letters (cp1252)."""
    written, letters = cell.strip(), text_of(cell)
    spellings = [written, letters, written.replace("\\", "/"), letters.replace("\\", "/")]
    if len(spellings := list(dict.fromkeys(spellings))) == 1:
        return written
    there = (s for s in spellings if os.path.exists(os.path.join(manifest.parent, s)))
    return next(there, spellings[-1])


def classes_of_manifest(path: Path) -> list[str]:
    """The labels of a manifest, in natural order: left and right if all of its labels are sides."""
    table = read_csv(path, "manifest")
    column = manifest_columns(path, table).label
    words = list(filter(None, (label_in(row.cells[column]) for row in table.rows)))
    are_sides = words and all(label_of_word(word, list(SIDES)) for word in words)
    if plain_name(column) in SIDE or are_sides:
        return list(SIDES)
    spellings: dict[str, str] = {}
    for word in words:
        spellings.setdefault(word.lower(), word)
    return two_or_more(path, sorted(spellings.values(), key=natural_order))


def two_or_more(path: Path | str, classes: list[str]) -> list[str]:
    if len(classes) < 2:
        got = ", ".join(classes) or "none"
        raise DataError(f"{path}: expected two or more different labels, got {got}")
    return classes


def remark_on_manifest(path: Path) -> str:
    """Names a column that may tell the patient but is not called so; "" if there is none."""
    table = read_csv(path, "manifest")
    if manifest_columns(path, table).patient:
        return ""
    unclear = table.columns_called(*UNCLEAR.split()) or near_columns(table.columns, PATIENT)
    if not unclear:
        return ""
    return f"{path}: no column is called patient; if {abridged(unclear)} tells it, call it so"


def missing_files(paths: Sequence[str], base: str | Path) -> str:
    """Says which files of a table are not there, and what their paths are relative to."""
    number = "1 file is" if len(paths) == 1 else f"{len(paths):,} files are"
    return f"{number} not there: {abridged(list(paths))}; paths are relative to {base}"
