"""What the cells and columns of people's tables mean, and tables in any dialect or damaged."""

import os
import unicodedata
from pathlib import Path

import pytest
from csv_files import DIALECTS, damaged_ones

from common.program import UserError
from common.tables import Table
from scans.identity.labels import read_labels, read_manifest
from scans.identity.tables import (
    class_of_value,
    classes_of_values,
    columns_of,
    label_in,
    patient_of,
    value_of,
)
from scans.slices import SIDES, DataError, Options

OAI = (
    "ID|SIDE|READPRJ|V00XRKL\n"
    "9000099|1: Right|15|2: Minimal\n"
    "9000099|2: Left|15|0: Normal\n"
    "9000296|1: Right|15|.: Missing Form/Incomplete Workbook\n"
    "9000296|2: Left|15|4: Severe\n"
)


def write(tmp_path: Path, content: bytes | str) -> Path:
    path = tmp_path / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else os.fsencode(content))
    return path


# ---- cells ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cell, value",
    [
        ("1.0", "1"),
        ("1,0", "1"),
        (" 0.00 ", "0"),
        ("01", "01"),
        ("1.5", "1.5"),
        ("-1", "-1"),
        (" left  knee ", "left knee"),
        ("full\n tear", "full tear"),
        ("2\xa0", "2"),  # a space that does not break, as in web pages
        *((missing, "") for missing in ("", "NA", "nan", "N/A", "null", ".", ".A", ".: Missing")),
        (".5", ".5"),
        ("none", "none"),
        ("0: None", "0: None"),
        ("2: Minimal", "2: Minimal"),
        ("gr\udcf6\udcdfe", "größe"),  # bytes of Windows' letters
        (unicodedata.normalize("NFD", "größe"), "größe"),
    ],
)
def test_values_of_cells(cell, value):
    assert value_of(cell) == value


@pytest.mark.parametrize("cell", ["unknown", "-", "?", "none", "NA", ".", " "])
def test_words_for_nobody_are_no_patient(cell):
    assert patient_of(cell) == "" and patient_of(" p1 ") == "p1" and patient_of("7.0") == "7"


@pytest.mark.parametrize(
    "values, classes",
    [
        (["0", "10", "2", ""], ["0", "2", "10"]),
        (["2: Minimal", "0: None", "2"], ["0", "2"]),
        (["normal", "Normal", "ill"], ["ill", "normal"]),
        (["L", "right", "1: Left"], ["left", "right"]),
    ],
)
def test_classes_are_all_values_in_natural_order(values, classes):
    assert classes_of_values(values, "t.csv") == classes
    assert all(class_of_value(value, classes) for value in values if value)


def test_classes_are_named_by_code_or_by_text():
    assert class_of_value("2: Minimal", ["0", "2"]) == "2"
    assert class_of_value("2: Minimal", ["normal", "MINIMAL"]) == "MINIMAL"
    assert class_of_value("2", ["normal", "minimal"]) is None
    with pytest.raises(DataError, match=r"line 2 must be mild or Severe, got 'sevre'; did you me"):
        label_in("sevre", ["mild", "Severe"], "line 2")


# ---- columns -------------------------------------------------------------------------------------


def columns(header: str, label_column: str | None = None) -> list[str | None]:
    return list(columns_of(Path("t.csv"), Table(header.split(","), []), label_column))


@pytest.mark.parametrize(
    "header, found",
    [
        ("path,label,patient,scan,side", [0, 1, 2, 3, 4]),
        ("File Name,CLASS,Patient-ID,Series,laterality", [0, 1, 2, 3, 4]),
        ("image_path,Target,subject,scan_id,Side", [0, 1, 2, 3, 4]),
        ("IMG,grade,participant_id,SeriesInstanceUID", [0, 1, 2, 3, None]),
        ("path,side", [0, 1, None, None, 1]),  # sides are labels where nothing else is
        ("path,side,grade", [0, 2, None, None, 1]),
        ("path,side,grade,label", [0, 3, None, None, 1]),
        ("path,lable,label", [0, 2, None, None, None]),
    ],
)
def test_columns_may_be_called_in_several_ways(header, found):
    names = header.split(",")
    assert columns(header) == [None if i is None else names[i] for i in (*found, None)]


@pytest.mark.parametrize(
    "header, column, message",
    [
        ("path,lable", None, "no column is called label: it has path, lable; did you mean lable"),
        ("ID,SIDE,V00XRKL", "V00XRLK", "no column is called V00XRLK.*did you mean V00XRKL"),
        ("ID,V00XRKL", None, "no column is called label.*--label-column NAME"),
        ("path,file_name,label", None, "columns path, file_name may all tell the path"),
        ("path,label,Class", None, "columns label, Class may all tell the label"),
        ("path,label,patient,subject id", None, "patient, subject id may all tell the patient"),
        ("path,label,scan,series", None, "scan, series may all tell the scan"),
    ],
)
def test_columns_that_lack_or_compete_are_named(header, column, message):
    with pytest.raises(DataError, match=rf"t\.csv: .*{message}"):
        columns(header, column)


# ---- whole tables --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DIALECTS)
def test_manifests_and_labels_in_every_dialect_tell_the_same(tmp_path, name):
    path = write(tmp_path, DIALECTS[name])
    manifest = read_manifest(path)
    of_manifest = manifest.read_rows(SIDES)
    assert [(x.key, x.label, x.patient) for x in of_manifest] == [
        ("a/1.png", "left", "p1"),
        ("größe 2.png", "right", "p2"),
    ]
    labels = read_labels(Options(labels=[path]), None, SIDES)
    rows = [row for table in labels.tables for row in table.rows]
    assert rows == of_manifest and labels.classes == manifest.classes() == ["left", "right"]


def test_rows_without_path_or_label_are_there_for_who_names_their_line(tmp_path):
    manifest = read_manifest(write(tmp_path, 'path,label\n,"l\n"\na.png\nb.png,r\n\n'))
    rows = manifest.read_rows(SIDES)[:2]
    assert [(x.line, x.key, x.label) for x in rows] == [(2, "", "left"), (4, "a.png", "")]


@pytest.mark.parametrize(
    "text, classes",
    [
        ("a,torn\nb,whole\nc,torn\n", ["torn", "whole"]),  # the first label recurs
        ("0000;1\n0001;0.0\n", ["0", "1"]),
        ("a\t1: Right\nb\t2: Left\nc\t1: Right\n", ["left", "right"]),
        ("exam,label\na,1\nb,0\n", ["0", "1"]),
        ("id,acl\na,1\nb,0\n", None),  # a header without a column for the label
        ("case,1\nx,0\n", None),  # `case` is called like a column: 1 is not a label
    ],
)
def test_two_columns_without_a_header_are_told_from_those_with_one(tmp_path, text, classes):
    options = Options(labels=[write(tmp_path, text)])
    if classes is None:
        with pytest.raises(DataError, match="no column is called label"):
            read_labels(options, None, SIDES)
    else:
        assert sorted(read_labels(options, None, SIDES).classes) == classes


@pytest.mark.parametrize("of", ["manifest", "labels"])
def test_damaged_tables_are_read_or_refused_in_one_line(tmp_path, of):
    contents = [*DIALECTS.values()] if of == "manifest" else [OAI.encode(), OAI.encode("utf-16")]
    outcomes = {"read": 0, "refused": 0}
    for content in damaged_ones(contents):
        path = write(tmp_path, content)
        try:
            if of == "manifest":
                read_manifest(path).read_rows(SIDES)
            else:
                read_labels(Options(labels=[path], label_column="V00XRKL"), None, SIDES)
            outcomes["read"] += 1
        except UserError as error:
            assert "\n" not in str(error), content
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 50, outcomes
