"""scans/tables.py: manifests whose columns are called in any way; what is meant is asked."""

import os
from pathlib import Path

import pytest
from csv_files import DIALECTS, damaged_ones

from common.program import UserError
from scans.slices import DataError
from scans.tables import (
    Coded,
    ManifestRow,
    classes_of_manifest,
    classes_of_values,
    coded,
    is_missing,
    missing_files,
    read_manifest,
    remark_on_manifest,
)


def write(tmp_path: Path, content: bytes | str) -> Path:
    path = tmp_path / "knees.csv"
    path.write_bytes(content if isinstance(content, bytes) else os.fsencode(content))
    return path


@pytest.mark.parametrize("name", DIALECTS)
def test_manifest_in_every_dialect_tells_the_same(tmp_path, name):
    path = write(tmp_path, DIALECTS[name])
    rows = read_manifest(path)
    assert [row[1:] for row in rows] == [
        ("a/1.png", "left", "p1", ""),
        ("größe 2.png", "right", "p2", ""),
    ]
    assert classes_of_manifest(path) == ["left", "right"]


@pytest.mark.parametrize(
    "header",
    [
        "path,label,patient,scan",
        "File Name,CLASS,Patient-ID,Series",
        "image_path,Target,subject,scan_id",
        "volume,laterality,Participant ID,SeriesUID",
        "IMG,grade,SubjectID,volume id",
    ],
)
def test_columns_may_be_called_in_several_ways(tmp_path, header):
    rows = read_manifest(write(tmp_path, f"{header}\n a.png , l, p1 ,s 1\n"))
    assert rows == [ManifestRow(2, "a.png", "l", "p1", "s 1")]


@pytest.mark.parametrize(
    "header, column, classes",
    [
        ("path,side,grade,label", "label", ["c0", "c2", "c10"]),
        ("path,side,grade", "grade", ["g1", "g2"]),
        ("path,side", "side", ["left", "right"]),
    ],
)
def test_label_stands_before_grade_and_grade_before_side(tmp_path, header, column, classes):
    values = {"path": "x y z", "side": "l r R", "grade": "g2 G2 g1", "label": "c10 c2 c0"}
    columns = header.split(",")
    lines = [",".join(values[c].split()[i] for c in columns) + "\n" for i in range(3)]
    path = write(tmp_path, header + "\n" + "".join(lines))
    assert [row.label for row in read_manifest(path)] == values[column].split()
    assert sorted(map(str.lower, classes_of_manifest(path))) == sorted(classes)


@pytest.mark.parametrize(
    "text, message",
    [
        ("a;b\n1;2\n", r"knees\.csv: expected columns path,label.*got a,b: no column.*path and la"),
        ("path,lable\na,l\n", "got path,lable: no column is called label; is lable meant"),
        ("pth,label\na,l\n", "no column is called path; is pth meant"),
        ("path,file_name,label\na,b,l\n", "columns path, file_name may all tell the path"),
        ("path,label,Class\na,b,l\n", "columns label, Class may all tell the label"),
        ("path,label,patient,subject id\na,b,l,m\n", "patient, subject id may all tell the pat"),
        ("path,label,scan,series\na,b,l,m\n", "scan, series may all tell the scan"),
    ],
)
def test_columns_that_lack_or_compete_are_named(tmp_path, text, message):
    for read in (read_manifest, classes_of_manifest):
        with pytest.raises(DataError, match=message):
            read(write(tmp_path, text))


def test_column_that_may_be_the_patient_is_remarked_on(tmp_path):
    path = write(tmp_path, "path,label,ID\na.png,l,1\n")
    assert "if ID tells it, call it so" in remark_on_manifest(path)
    path = write(tmp_path, "path,label,patiend\na.png,l,1\n")
    assert "if patiend tells it" in remark_on_manifest(path)
    assert remark_on_manifest(write(tmp_path, "path,label,id,patient\na.png,l,1,2\n")) == ""
    assert remark_on_manifest(write(tmp_path, "path,label,age\na.png,l,1\n")) == ""


def test_backslashes_are_slashes_unless_a_file_is_called_so(tmp_path):
    (tmp_path / "odd\\name.png").touch()
    path = write(tmp_path, "path,label\nleft\\1.png,l\nodd\\name.png,l\nC:\\data\\2.png,r\n")
    assert [row.path for row in read_manifest(path)] == [
        "left/1.png",
        "odd\\name.png",
        "C:/data/2.png",
    ]


def test_an_apostrophe_is_of_the_name_only_where_a_file_is_called_so(tmp_path):
    path = write(tmp_path, "path,label\n'=q.png,l\n=q.png,r\n'-7.png,l\n'p.png,r\n")
    assert [row.path for row in read_manifest(path)] == ["=q.png", "=q.png", "-7.png", "'p.png"]
    (tmp_path / "=q.png").touch()
    (tmp_path / "'=q.png").touch()
    assert [row.path for row in read_manifest(path)][:3] == ["'=q.png", "=q.png", "-7.png"]


def test_windows_letters_are_read_as_such_unless_a_file_is_called_by_these_bytes(tmp_path):
    text = "path,label,patient\ngröße.png,gesünd,Müller\n".encode("cp1252")
    assert read_manifest(write(tmp_path, text))[0][1:4] == ("größe.png", "gesünd", "Müller")
    raw = os.fsdecode("größe.png".encode("cp1252"))
    (tmp_path / raw).touch()
    assert read_manifest(write(tmp_path, text))[0].path == raw
    (tmp_path / raw).unlink()
    (tmp_path / "größe.png").touch()
    assert read_manifest(write(tmp_path, text))[0].path == "größe.png"


def test_rows_without_path_or_label_are_there_for_who_names_their_line(tmp_path):
    rows = read_manifest(write(tmp_path, 'path,label\n,"l\n"\na.png\n\n'))
    assert rows == [ManifestRow(2, "", "l", "", ""), ManifestRow(4, "a.png", "", "", "")]


@pytest.mark.parametrize("text", ["path,label\n", "path,label\na,x\nb,X\n", "path,label\na\n"])
def test_manifest_with_fewer_than_two_labels_tells_no_classes(tmp_path, text):
    with pytest.raises(DataError, match=r"expected two or more different labels, got (none|x)$"):
        classes_of_manifest(write(tmp_path, text))


def test_values_with_a_code():
    assert coded("2: Minimal") == Coded("2", "Minimal")
    assert coded(" 10 :x:y") == Coded("10", "x:y")
    assert coded("grade: 2") == Coded("grade: 2", "")
    assert coded("2.0") == Coded("2", "") and coded("2.5") == Coded("2.5", "")
    for value in ("", " ", ".", "NA", "n/a", "NaN", ".: Missing Form/Incomplete Workbook", ".A: x"):
        assert is_missing(value), value
    for value in ("0", ".5", "none", "0: None", "...", ".hidden"):
        assert not is_missing(value), value
    assert classes_of_values(["10: Many", "2", "2.0", "NA", "9"]) == ["2", "9", "10"]
    assert classes_of_values(["1: Right", "2: Left", "."]) == ["left", "right"]


def test_missing_files_are_five_examples_a_count_and_their_folder():
    paths = [f"left/{i}.png" for i in range(1234)]
    assert missing_files(paths, "/data/knees") == (
        "1,234 files are not there: left/0.png, left/1.png, left/2.png, left/3.png, left/4.png "
        "and 1,229 more; paths are relative to /data/knees"
    )
    assert missing_files(["a.png"], "x") == "1 file is not there: a.png; paths are relative to x"


def test_damaged_manifests_are_read_or_refused(tmp_path):
    outcomes = {"read": 0, "refused": 0}
    for content in damaged_ones(list(DIALECTS.values())):
        path = write(tmp_path, content)
        for read in (read_manifest, classes_of_manifest, remark_on_manifest):
            try:
                read(path)
                outcomes["read"] += 1
            except UserError as error:
                assert "\n" not in str(error), content
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 100, outcomes
