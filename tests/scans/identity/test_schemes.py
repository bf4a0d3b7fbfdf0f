"""1,000 ways of naming files and of keeping tables, of which none parts a person or mislabels.

The classes are left and right, or the grades of a table of a random kind.
"""

import csv
import random
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from scans.identity.asking import groups_of, pattern_of
from scans.identity.labels import read_labels
from scans.identity.names import PATIENT_WORDS, Span, nfc
from scans.identity.records import Context, Record
from scans.identity.rules import compile_pattern, identify
from scans.slices import SIDES, DataError, Options, Slicing, Volume

LETTERS = ["AB", "CX", "DK", "EF", "GH", "IJ", "KL", "MN"]
PEOPLE = "anna bob carl dora jörg fay gus zoë".split()
PATIENTS = {
    "oai": lambda draw, n: [f"{x}" for x in draw.sample(range(9_000_100, 9_999_878), n)],
    "p01": lambda draw, n: [f"p{i:02}" for i in range(1, n + 1)],
    "P1": lambda draw, n: [f"P{i}" for i in range(1, n + 1)],
    "sub-001": lambda draw, n: [f"sub-{i:03}" for i in range(1, n + 1)],
    "sub-AB1": lambda draw, n: [f"sub-{letters}1" for letters in LETTERS[:n]],
    "patient_1": lambda draw, n: [f"patient_{i}" for i in range(1, n + 1)],
    "case01": lambda draw, n: [f"case{i:02}" for i in range(1, n + 1)],
    "1": lambda draw, n: [f"{i}" for i in range(1, n + 1)],
    "001": lambda draw, n: [f"{i:03}" for i in range(1, n + 1)],
    "five digits": lambda draw, n: [f"{x}" for x in draw.sample(range(10, 99_999), n)],
    "six digits": lambda draw, n: [f"{x}" for x in draw.sample(range(100_000, 999_999), n)],
    "anna": lambda draw, n: draw.sample(PEOPLE, n),
    "AB12": lambda draw, n: [f"{letters}{draw.randint(10, 98)}" for letters in LETTERS[:n]],
    "A01": lambda draw, n: [draw.choice("AB") + f"{i:02}" for i in range(1, n + 1)],
    "2-001": lambda draw, n: [f"{draw.choice('12')}-{i:03}" for i in range(1, n + 1)],
}  # fmt: skip
VISITS = [
    [""], ["V00", "V01"], ["00m", "12m"], ["visit1", "visit2"], ["visit_1", "visit_2"], ["1", "2"],
    ["baseline", "followup"], ["01", "02", "03"], ["a", "b"], ["ses-1", "ses-2"], ["2004", "2006"],
]  # fmt: skip
DATES = ["", "{y}{m:02}{d:02}", "{y}-{m:02}-{d:02}", "{d:02}{m:02}{y}", "{s:02}{m:02}{d:02}"]
SERIES = {  # "unique 7": as long as the OAI's patients, and another one for each scan
    "": lambda draw: "",
    "SAG_3D_DESS": lambda draw: "SAG_3D_DESS",
    "two": None,
    "unique 8": lambda draw: f"{draw.randint(10**7, 2 * 10**7)}",
    "unique 7": lambda draw: f"{draw.randint(9 * 10**6, 10**7 - 1)}",
    "hash": lambda draw: f"{draw.randrange(16**5):05x}",
    "small": lambda draw: f"{draw.randint(1, 12)}",
}  # fmt: skip
ACCESSIONS = {
    "9 and 7": lambda draw, i: f"{9_100_000 + 37 * i}",
    "ten": lambda draw, i: f"{draw.randint(10**9, 10**10 - 1)}",
    "zeros": lambda draw, i: f"{draw.randint(10**3, 10**4 - 1):08}",
    "ACC": lambda draw, i: f"ACC{i + 20:04}",
    "small": lambda draw, i: f"{i + 1}",
}
SPELLINGS = ["LEFT RIGHT", "left right", "L R", "l r", "L_E_F_T R_I_G_H_T", ""]
NUMBERS = ["{}", "{:03}", "slice{}", "slice_{:03}", "z{}", "s{}"]
TABLES = ["none", "none", "none", "none", "patient", "patient", "ID", "scan", "path", "file"]
TABLES += ["stem", "accession", "accession"]


class File(NamedTuple):
    path: str
    patient: int
    accession: str
    has_accession: bool  # in the path
    side: str
    spans: dict[str, Span]  # where the patient and the number of the slice are in the path


class Scheme(NamedTuple):
    files: list[File]
    are_images: bool
    patients: list[str]
    in_dicom: bool  # whether headers tell the patient


def draw_scheme(draw: random.Random) -> Scheme:
    """Files of 4 to 8 patients; names in one order and style, as a random number has it."""
    are_images = draw.random() < 0.5
    patients = draw.choice(list(PATIENTS.values()))(draw, draw.choice([4, 6, 8]))
    visits, date, series = draw.choice(VISITS), draw.choice(DATES), draw.choice(list(SERIES))
    spelling = draw.choice(SPELLINGS[: -1 if are_images else None]).split() or ["", ""]
    number, of_visit = draw.choice(NUMBERS), draw.choice(list(ACCESSIONS.values()))
    order = ["patient", "visit", "date", "series", "side"]
    order += ["number"] if are_images else []
    order += ["accession"] if draw.random() < 0.5 else []
    draw.shuffle(order)
    separators = [draw.choice(["_", "-", ".", " ", "", "_", "_"]) for _ in order]
    if draw.random() < 0.6:
        separators = [draw.choice("_-_ ")] * len(order)
    folders = {draw.choice([0, 1, 1, 2]) for _ in range(3)} if draw.random() < 0.6 else set()
    both_knees = draw.random() < 0.8
    files, exams = [], 0
    for p, patient in enumerate(patients):
        for visit in visits:
            y, m, d = draw.choice([2004, 2005, 2006]), draw.randint(1, 12), draw.randint(1, 28)
            accession, exams = of_visit(draw, exams), exams + 1
            for side in (0, 1) if both_knees else (p % 2,):
                for sequence in ("SAG_DESS", "COR_T1") if series == "two" else ("",):
                    parts = {
                        "patient": patient,
                        "visit": visit,
                        "date": date.format(y=y, m=m, d=d, s=y % 100),
                        "series": sequence or SERIES[series](draw),
                        "side": spelling[side],
                        "accession": accession,
                    }
                    for i in range(draw.choice([6, 8]) if are_images else 1):
                        parts["number"] = number.format(i)
                        path, spans = join(order, parts, separators, folders)
                        path += ".png" if are_images else ".nii.gz"
                        files.append(
                            File(path, p, accession, "accession" in order, SIDES[side], spans)
                        )
    return Scheme(files, are_images, patients, not are_images and draw.random() < 0.2)


def join(
    order: list[str], parts: dict[str, str], separators: list[str], folders: set[int]
) -> tuple[str, dict[str, Span]]:
    """The parts in order; the number of the slice is in the name and not in a folder.

    Two numbers with nothing between them are one number to everybody, but for dates.
    """
    there = [name for name in order if parts.get(name)]
    path, spans = "", {}
    for i, name in enumerate(there):
        text = nfc(parts[name])
        digits = text.lstrip("slicez_") if name == "number" else text
        end = len(path) + len(text)
        spans["slice" if name == "number" else name] = Span(digits, end - len(digits), end)
        path += text
        if i == len(there) - 1:
            break
        following, separator = there[i + 1], separators[i]
        if separator == "" and path[-1].isdigit() and parts[following][0].isdigit():
            is_long = "date" in (name, following) and len(parts["date"]) > 6
            separator = "" if is_long else "_"
        in_folder = i in folders and ("number" not in there or "number" in there[i + 1 :])
        path += "/" if in_folder else separator
    return path, {name: spans[name] for name in ("patient", "slice") if name in spans}


def record_of(file: File, scheme: Scheme) -> Record:
    if scheme.are_images:
        return Record(f"/data/{file.path}", file.path)
    slicing = Slicing((2, 1, 0), (False,) * 3, 8, 8, 8)
    geometry = (8, 8, 8), (1, 1, 1), (0, 0, 0), np.eye(3)
    tags = {"patient": scheme.patients[file.patient]} if scheme.in_dicom else {}
    header = *geometry, 1, frozenset([file.side]), tags
    source = f"/data/{file.path}"
    return Record(source, file.path, Volume(source, (source,), *header, slicing=slicing))


# ---- tables --------------------------------------------------------------------------------------


class Truth(NamedTuple):
    """Which table there is, and the label that each file must have, or none."""

    options: Options
    labels: dict[str, str]  # path -> label


def write_table(draw: random.Random, scheme: Scheme, path: Path) -> Truth:
    """A table of a random kind, as somebody's Excel saved it."""
    kind = draw.choice(TABLES)
    if kind == "none":
        return Truth(Options(), {file.path: file.side for file in scheme.files})
    by_side = draw.random() < 0.5
    # A folder that is called like a class tells the label of a scan that its table leaves out.
    words = ["well", "ill"] if kind == "scan" or draw.random() < 0.3 else ["0", "1", "2"]
    knees = [(p, side) for p in range(len(scheme.patients)) for side in SIDES]
    grades = {(p, side): words[(p + by_side * (side == "left")) % len(words)] for p, side in knees}
    missing = draw.choice([None, None, None, 0]) if kind != "stem" else None  # has no row
    of_exam = kind in ("patient", "ID", "accession")
    with_side = kind != "stem" and (by_side if of_exam else draw.random() < 0.3)
    with_patient = kind not in ("patient", "ID", "stem") and draw.random() < 0.5
    dirt = draw.choice([str, str, zeros_lost, with_decimals, with_spaces])
    comma = draw.random() < 0.3
    scans = scan_of_files(scheme, words) if kind == "scan" else {}
    rows = {}
    for file in scheme.files:
        if file.patient == missing:
            continue
        patient = spelled(draw, scheme.patients[file.patient])
        if kind in ("path", "file", "stem", "scan"):
            key = scans.get(file.path) or key_of_file(draw, kind, file)
        else:
            key = file.accession if kind == "accession" else patient
        row = [key if kind in ("path", "file", "scan") else dirt(key)]
        row += [draw.choice([file.side, file.side[0].upper()])] if with_side else []
        row += [dirt(patient)] if with_patient else []
        grade = grades[file.patient, file.side]
        decimal = f"{grade},0" if comma else f"{grade}.0"
        row += [draw.choice([grade, decimal]) if grade.isdigit() else grade]
        same = {"accession": key, "scan": key, "patient": file.patient, "ID": file.patient}
        rows[same.get(kind, file.path), with_side and file.side, grade] = row
    header = [draw.choice([kind, kind.title()]) if kind != "ID" else "ID"]
    header += [draw.choice(["side", "SIDE"])] if with_side else []
    header += [draw.choice(["patient", "Patient ID", "subject"])] if with_patient else []
    header += ["label"]
    with path.open("w", newline="", encoding="utf-8") as file:
        write = csv.writer(file, delimiter=draw.choice(";\t" if comma else ",;\t|"))
        write.writerows(rows.values() if kind == "stem" else [header, *rows.values()])
    is_key = kind == "accession" and scheme.files[0].has_accession and draw.random() < 0.7
    labels = {x.path: grades[x.patient, x.side] for x in scheme.files if x.patient != missing}
    return Truth(Options(labels=[str(path)], label_key=header[0] if is_key else None), labels)


def scan_of_files(scheme: Scheme, classes: list[str]) -> dict[str, str]:
    """The names of scans, as the programs print them."""
    records = [record_of(file, scheme) for file in scheme.files]
    identified = identify(records, Context(classes, Options(), "/data"))
    return {record.path: record.scan for record in identified.records}


def key_of_file(draw: random.Random, kind: str, file: File) -> str:
    """A path as a person writes it, or the stem of a name."""
    stem = file.path.removesuffix(".png").removesuffix(".nii.gz")
    if kind == "stem":
        return stem.rpartition("/")[2]
    written = draw.choice([file.path, f"data/{file.path}", stem, file.path.replace("/", "\\")])
    return unicodedata.normalize(draw.choice(["NFC", "NFD"]), written)


def spelled(draw: random.Random, patient: str) -> str:
    """p01, or P1, patient 1 or 1 in its place."""
    word = patient.rstrip("0123456789").rstrip("-_")
    if word.lower() not in PATIENT_WORDS:
        return unicodedata.normalize(draw.choice(["NFC", "NFD"]), patient)
    number = patient.removeprefix(word).strip("-_")
    return draw.choice([patient, number, f"{word.title()}{int(number)}", f"patient {number}"])


def zeros_lost(cell: str) -> str:
    return f"{int(cell)}" if cell.isdecimal() else cell


def with_decimals(cell: str) -> str:
    return f"{cell}.0" if cell.isdecimal() else cell


def with_spaces(cell: str) -> str:
    return f" {cell}  "


# ---- what becomes of it --------------------------------------------------------------------------


class Tried(NamedTuple):
    outcome: str
    records: list[Record]


def tried(scheme: Scheme, truth: Truth, pattern: str | None = None) -> Tried:
    """right, asked, refused, merged (two people are taken for one), parted, wrong label, ..."""
    records = [record_of(file, scheme) for file in scheme.files]
    try:
        tables = read_labels(truth.options, None, SIDES) if truth.options.labels else None
        search = compile_pattern(pattern) if pattern else None
        classes = tables.classes if tables else SIDES
        context = Context(classes, truth.options, "/data", pattern=search)
        identified = identify(records, context, tables)
    except DataError as error:
        return Tried("refused", [error])
    records = identified.records
    labelled = [record for record in records if record.label]
    names_of, people_of = defaultdict(set), defaultdict(set)
    patient_of = {file.path: file.patient for file in scheme.files}
    for record in labelled:
        names_of[patient_of[record.path]].add(record.patient)
        people_of[record.patient].add(patient_of[record.path])
    if any(record.label != truth.labels.get(record.path) for record in labelled):
        return Tried("wrong label", records)
    if identified.question:
        return Tried("asked", records)
    if any(len(of) > 1 for of in names_of.values()):
        return Tried("parted", records)
    if any(len(of) > 1 for of in people_of.values()):
        return Tried("merged", records)
    return Tried("right" if len(labelled) == len(truth.labels) else "no label", records)


def second_try(scheme: Scheme, truth: Truth, records: list[Record]) -> Tried:
    """What comes of the printed pattern, whose groups a person has corrected."""
    unknown = [record for record in records if record.label and not record.patient]
    first = (unknown or records)[0]
    groups = groups_of(first, SIDES)
    assert compile_pattern(pattern_of(first.stem, groups))(first.path)
    spans = next(file.spans for file in scheme.files if file.path == first.path)
    return tried(scheme, truth, pattern_of(first.stem, spans))


# ---- all of them ---------------------------------------------------------------------------------

WRONG = {"parted", "wrong label", "merged"}


def outcomes(seeds: range, folder: Path) -> tuple[Counter, Counter]:
    """What becomes of schemes at first, and of those that are asked for after a second try."""
    first, second = Counter(), Counter()
    for seed in seeds:
        draw = random.Random(seed)
        scheme = draw_scheme(draw)
        if len({file.path for file in scheme.files}) < len(scheme.files):
            continue  # two files of one name
        truth = write_table(draw, scheme, folder / f"{seed}.csv")
        at_first = tried(scheme, truth)
        first[at_first.outcome] += 1
        assert at_first.outcome not in WRONG, (seed, at_first.outcome, scheme.files[0].path)
        if at_first.outcome == "asked":
            again = second_try(scheme, truth, at_first.records)
            second[again.outcome] += 1
            assert again.outcome not in WRONG, (seed, again.outcome, scheme.files[0].path)
    print(first, second)  # with -s: how many are read without help, and how many asked
    return first, second


def test_no_scheme_parts_a_person_or_mislabels_a_file(tmp_path):
    first, second = outcomes(range(200), tmp_path)
    assert first["right"] > 30 and second["right"] > 0.5 * first["asked"]


@pytest.mark.slow
def test_no_scheme_of_a_thousand_does(tmp_path):
    first, second = outcomes(range(200, 1000), tmp_path)
    assert first["right"] > 150 and second["right"] > 0.6 * first["asked"]
