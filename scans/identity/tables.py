"""What the cells and columns of people's tables mean.

    value_of("2,0") == "2"; value_of("NA") == ""
    columns_of(path, table).patient  # "Patient ID"
    find_files(folder, ["größe.png"])  # as the disk has it

Whole tables: labels.py.
"""

import difflib
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from common.files import abridged
from common.tables import Table, letters_of, plain_name
from scans.identity.names import folded, label_of_word
from scans.names import natural_order
from scans.slices import SIDES, DataError

PATH = "path file filename filepath image imagepath img volume".split()
PATIENT = "patient patientid subject subjectid participant participantid".split()
SCAN = "scan scanid series seriesuid seriesinstanceuid volumeid".split()
SIDE = "side laterality".split()
SITE = "site center centre hospital".split()
LABEL = [["label", "class", "target", "category"], ["grade"]]  # the first group that is there
MAY_BE_PATIENT = "id case caseid name pid person mrn accession studyid".split()
ADVICE = {True: "call it so", False: "--label-column NAME says which tells it"}
NOBODY = {"unknown", "none", "?", "-"}
MISSING = {"", ".", "na", "n/a", "nan", "null"}
DECIMAL = re.compile(r"(\d+)[.,](\d+)")  # 2.0 is 2: pandas wrote it; a German Excel writes 2,0
WHOLE = re.compile(r"(\d+)[.,]0+")
CODED = re.compile(r"(\d+|\.\w?)\s*:\s*(.*)", re.S)  # 2: Minimal, as the OAI writes it


# ---- cells ---------------------------------------------------------------------------------------


def text_of(cell: str) -> str:
    """One line, without characters that can't be seen."""
    seen = (x for x in letters_of(cell) if unicodedata.category(x) != "Cf")
    return " ".join("".join(seen).split())


def value_of(cell: str) -> str:
    """The text of a cell: 2 for 2.0 or 2,0, 0.5 for 0,50, and "" for NA and the like, also for the
    OAI's .A and `.: Missing Form`.
    """
    text = text_of(cell)
    decimal, coded = DECIMAL.fullmatch(text), CODED.fullmatch(text)
    code = coded[1] if coded else text
    if text.lower() in MISSING or re.fullmatch(r"\.[A-Za-z]?", code):
        return ""
    return f"{decimal[1]}.{decimal[2].rstrip('0')}".rstrip(".") if decimal else text


def identifier_of(cell: str) -> str:
    """The text of a cell that names something: 7 for 7.0, but 1.10 stays, and 1.05."""
    if not value_of(cell):
        return ""
    text = text_of(cell)
    whole = WHOLE.fullmatch(text)
    return whole[1] if whole else text


def patient_of(cell: str) -> str:
    value = identifier_of(cell)
    return "" if value.lower() in NOBODY else value


def class_of_value(value: str, classes: Sequence[str]) -> str | None:
    """The class that a value is, or that its code or its text is: 2 or Minimal of `2: Minimal`."""
    coded = CODED.fullmatch(value)
    words = [value, *(coded.groups() if coded else ())]
    exact = next((found for word in words if (found := label_of_word(word, classes))), None)
    return exact or next((x for x in classes if folded(x) == folded(words[0])), None)


def classes_of_values(values: Iterable[str], source: str) -> list[str]:
    """All labels (of coded ones the codes) in natural order; left and right if all are sides.

    Raises DataError if there are fewer than two.
    """
    values = list(filter(None, values))
    if values and all(class_of_value(value, SIDES) for value in values):
        return list(SIDES)
    spellings: dict[str, str] = {}
    for value in values:
        coded = CODED.fullmatch(value)
        code = coded[1] if coded else value
        spellings.setdefault(folded(code), code)
    if len(spellings) < 2:
        got = ", ".join(spellings.values()) or "none"
        raise DataError(f"{source}: expected two or more different labels, got {got}")
    return sorted(spellings.values(), key=natural_order)


def label_in(value: str, classes: Sequence[str], where: str) -> str:
    """A class, or "" of an empty value. Raises DataError for one that is no class."""
    label = class_of_value(value, classes)
    if value and label is None:
        expected = f"{where} must be {' or '.join(classes)}, got {value!r}"
        raise DataError(expected + meant(value, classes))
    return label or ""


def meant(word: str, known: Sequence[str]) -> str:
    """Which of the known words may be meant; "" if none is near."""
    near = [x for x in known if difflib.get_close_matches(plain_name(word), [plain_name(x)])]
    return f"; did you mean {near[0]}?" if near else ""


# ---- columns -------------------------------------------------------------------------------------


class Columns(NamedTuple):
    """What the columns of a table are called that tell something; None where there is none."""

    path: str | None
    label: str | None
    patient: str | None
    scan: str | None
    side: str | None
    site: str | None


def columns_of(
    path: Path, table: Table, label_column: str | None = None, is_manifest: bool = False
) -> Columns:
    """Raises DataError if two columns may tell the same, or none tells the label."""

    def only(words: Sequence[str], role: str) -> str | None:
        found = table.columns_called(*words)
        if len(found) > 1:
            raise DataError(
                f"{path}: columns {abridged(found)} may all tell the {role}; rename others"
            )
        return found[0] if found else None

    side = only(SIDE, "side")
    of_label = [only(words, "label") for words in ([[label_column]] if label_column else LABEL)]
    label = next(filter(None, of_label), None if label_column else side)
    if label is None:
        wanted = [label_column] if label_column else [word for group in LABEL for word in group]
        hint = next(filter(None, (meant(word, table.columns) for word in wanted)), "")
        raise DataError(
            f"{path}: no column is called {wanted[0]}: it has {', '.join(table.columns)}"
            + (hint or f"; {ADVICE[is_manifest]}")
        )
    patient, scan = only(PATIENT, "patient"), only(SCAN, "scan")
    return Columns(only(PATH, "path"), label, patient, scan, side, only(SITE, "site"))


def find_files(folder: Path, paths: Sequence[str]) -> list[str]:
    """Paths below a folder as the disk has them, where only Unicode's form or the bytes of letters
    differ (see `letters_of`); as they were given where there are none.
    """

    @cache
    def names_in(folder: str) -> dict[str, str]:
        names = os.listdir(folder) if os.path.isdir(folder) else []
        return {letters_of(name): name for name in names}

    def find(path: str) -> str:
        found = os.fspath(folder)
        if os.path.exists(os.path.join(found, path)):
            return os.path.join(found, path)
        for part in Path(path).parts:
            found = os.path.join(found, names_in(found).get(part, part))
        return found

    return [os.path.normpath(find(path)) for path in paths]
