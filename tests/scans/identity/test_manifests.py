"""Manifests, and the cells of any table: what is a label, a patient, a path, and nothing."""

import unicodedata

import numpy as np
import pytest
from image_files import write_images, write_manifest

from scans.identity.tables import class_of_value, classes_of_values, value_of
from scans.labelled import list_labelled
from scans.listing import list_slices
from scans.slices import DataError, Kind, Options


def rows_of(text: str, tmp_path, **options) -> list[tuple]:
    listing = list_labelled(write_manifest(tmp_path, text), None, Options(**options))
    return [(s.label, s.patient, s.scan) for s in listing.slices]


# ---- cells ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cell, value",
    [
        ("1.0", "1"),
        ("1,0", "1"),
        ("01", "01"),
        ("1.5", "1.5"),
        (" left  knee ", "left knee"),
        ("", ""),
        ("NA", ""),
        ("nan", ""),
        ("N/A", ""),
        (".", ""),
        (".A", ""),
        (".: Missing Form", ""),
        (".5", ".5"),
        ("2: Minimal", "2: Minimal"),
        ("gr\udcf6\udcdfe", "größe"),  # bytes of Windows' letters
        (unicodedata.normalize("NFD", "größe"), "größe"),
    ],
)
def test_values_of_cells(cell, value):
    assert value_of(cell) == value


@pytest.mark.parametrize(
    "values, classes",
    [
        (["0", "10", "2", ""], ["0", "2", "10"]),
        (["2: Minimal", "0: None"], ["0", "2"]),
        (["normal", "Normal", "ill"], ["ill", "normal"]),
        (["L", "right", "1: Left"], ["left", "right"]),
    ],
)
def test_classes_are_all_values_in_natural_order(values, classes):
    assert classes_of_values(values, "t.csv") == classes
    assert all(class_of_value(value, classes) for value in values if value)


# ---- manifests -----------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["NA", "", "nan", ".: Missing Form"])
def test_missing_values_are_no_class_but_leave_the_file_out(tmp_path, missing):
    write_images(tmp_path, *(f"p{i}_1.png" for i in range(3)))
    rows = rows_of(f"path,label\np0_1.png,0\np1_1.png,{missing}\np2_1.png,1.0\n", tmp_path)
    assert [label for label, *_ in rows] == ["0", "1"]


def test_zero_and_zero_point_zero_are_one_class(tmp_path):
    write_images(tmp_path, *(f"p{i}_1.png" for i in range(4)))
    text = "path;label\np0_1.png;0\np1_1.png;0,0\np2_1.png;1\np3_1.png;1.0 \n"
    assert [label for label, *_ in rows_of(text, tmp_path)] == ["0", "0", "1", "1"]


def test_a_row_may_be_a_folder_of_images_which_are_one_scan(tmp_path):
    write_images(tmp_path, *(f"{p}/v/im{i}.png" for p in ("k1", "k2") for i in range(10, 7, -1)))
    text = "path,label,patient,scan\nk1/v,left,p1,\nk2/v,right,p2,of p2\n"
    listing = list_labelled(write_manifest(tmp_path, text))
    assert [(s.scan, s.patient, s.number) for s in listing.slices] == [
        *(("k1/v", "p1", i) for i in (8, 9, 10)),
        *(("of p2", "p2", i) for i in (8, 9, 10)),
    ]


def test_a_folder_of_several_series_asks_for_series(tmp_path):
    made = pytest.importorskip("volume_files")
    for number, name in enumerate(("T1", "DESS"), 1):
        tags = {"0020|000e": f"1.2.{number}", "0020|0011": f"{number}", "0008|103e": name}
        made.write_dicom(
            tmp_path / "k1",
            np.zeros((6, 4, 4), np.int16),
            tags,
            x=0.0,
            names=[f"{name}{i}" for i in range(6)],
        )
    write_images(tmp_path, "p2_1.png")
    path = write_manifest(tmp_path, "path,label,patient\nk1,left,p1\np2_1.png,right,p2\n")
    with pytest.raises(
        DataError, match=r"line 2: k1 holds 2 series: T1, DESS; choose .* --series T1"
    ):
        list_labelled(path)
    found = list_labelled(path, options=Options(series="DESS")).slices
    assert {s.volume.description for s in found if s.volume} == {"DESS"}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_paths_and_patients_are_found_in_either_form_of_unicode(tmp_path, form):
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    name = unicodedata.normalize(form, "Größe/é")
    write_images(tmp_path, f"{name}_1.png", f"{name}_2.png")
    written = unicodedata.normalize(other, name)
    rows = f"{written}_1.png,left,{name},a", f"{written}_2.png,right,{written},b"
    rows = rows_of("\n".join(["path,label,patient,scan", *rows, ""]), tmp_path)
    assert len({patient for _, patient, _ in rows}) == 1 and len(rows) == 2


@pytest.mark.parametrize("cell", ["a\\1.png", "./a/1.png", " a/1.png ", "'=1.png"])
def test_paths_as_other_systems_write_them(tmp_path, cell):
    write_images(tmp_path, "a/1.png", "'=1.png", "b/2.png")
    text = f"path,label,patient\n{cell},left,p1\nb/2.png,right,p2\n"
    assert len(rows_of(text, tmp_path)) == 2


@pytest.mark.parametrize(
    "text, message",
    [
        ("path,side\na.png,normal\n", "line 2: label must be left or right, got 'normal'"),
        ("file,lable\na.png,x\n", r"no column is called label: it has file, lable; did you mean"),
        (
            "pth,label\na.png,x\nb.png,y\n",
            "expected columns path,label,patient,scan, got pth,label",
        ),
        ("path,label\na.png,x\n,y\n", "line 3: names no path"),
        ("path,label\na.png,x\na.png,y\n", r"line 3: a\.png is in it twice"),
        ("path,label,patient\na.png,x,1\nz.png,y,2\n", r"1 file is not there: z\.png; paths are"),
        ("path,file,label\na.png,a.png,x\n", "columns path, file may all tell the path"),
    ],
)
def test_rows_that_can_not_be_used_are_refused_by_their_line(tmp_path, text, message):
    write_images(tmp_path, "a.png", "b.png")
    path = tmp_path / "m.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        list_labelled(path, options=Options(patients="scan"))


def test_a_column_that_may_be_the_patient_is_named(tmp_path):
    write_images(tmp_path, "p1_1.png", "p2_1.png")
    path = write_manifest(tmp_path, "path,label,id\np1_1.png,left,7\np2_1.png,right,8\n")
    listing = list_slices(path)
    assert any("if id tells it, call it so" in str(p) for p in listing.of_kind(Kind.REMARK))
    assert {s.patient for s in listing.slices} == {"p1", "p2"}


@pytest.mark.parametrize("nobody", ["unknown", "-", "?", "none", "NA"])
def test_words_for_nobody_are_no_patient(tmp_path, nobody):
    write_images(tmp_path, "x_1.png", "y_1.png")
    path = write_manifest(
        tmp_path, f"path,label,patient\nx_1.png,left,{nobody}\ny_1.png,right,{nobody}\n"
    )
    with pytest.raises(DataError, match="nothing tells the patient of 2 scans"):
        list_labelled(path)
