"""Manifests: tables that name each file, its label, its patient and its scan."""

import os
import unicodedata

import numpy as np
import pytest
from image_files import write_images, write_manifest

from scans.labelled import list_labelled
from scans.listing import list_slices
from scans.slices import DataError, Kind, Options


def rows_of(text: str, tmp_path, **options) -> list[tuple]:
    listing = list_labelled(write_manifest(tmp_path, text), None, Options(**options))
    return [(s.label, s.patient, s.scan) for s in listing.slices]


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


@pytest.mark.parametrize("cell", ["a\\1.png", "./a/1.png", " a/1.png "])
def test_paths_as_other_systems_write_them(tmp_path, cell):
    write_images(tmp_path, "a/1.png", "b/2.png")
    text = f"path,label,patient\n{cell},left,p1\nb/2.png,right,p2\n"
    assert len(rows_of(text, tmp_path)) == 2


@pytest.mark.parametrize(
    "text, message",
    [
        ("path,side\na.png,normal\n", "line 2: side must be left or right, got 'normal'"),
        ("file,lable\na.png,x\n", r"no column is called label: it has file, lable; did you mean"),
        (
            "pth,label\na.png,x\nb.png,y\n",
            "expected columns path,label,patient,scan, got pth,label",
        ),
        ("path,label\na.png,x\n,y\n", "line 3: names no path"),
        ("path,label\na.png,x\na.png,y\n", r"line 2 says x, .*line 3 says y of the same path"),
        ("path,label\na.png,x\n./a.png,y\n", r"line 3: \./a\.png is in it twice"),
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
    assert any(
        "not used: id; if id tells the patient, call it patient" in str(p)
        for p in listing.of_kind(Kind.REMARK)
    )
    assert {s.patient for s in listing.slices} == {"p1", "p2"}


@pytest.mark.parametrize("nobody", ["unknown", "-", "?", "none", "NA"])
def test_words_for_nobody_are_no_patient(tmp_path, nobody):
    write_images(tmp_path, "x_1.png", "y_1.png")
    path = write_manifest(
        tmp_path, f"path,label,patient\nx_1.png,left,{nobody}\ny_1.png,right,{nobody}\n"
    )
    with pytest.raises(DataError, match="nothing tells the patient of 2 scans"):
        list_labelled(path)


def test_paths_are_relative_to_the_manifest_and_excels_byte_order_mark_is_no_letter(
    tmp_path, monkeypatch
):
    monkeypatch.chdir("/")
    text = 'path,side,patient,scan\na/1.png,L,p1 ,s1\na/2.png,left, p1,s1\n"b,c/x.png",Right,p2,\n'
    path = write_manifest(tmp_path, text, "utf-8-sig")
    assert [(s.label, s.patient, s.scan, s.number) for s in list_labelled(path).slices] == [
        ("right", "p2", "b,c/x", 0),
        ("left", "p1", "s1", 1),
        ("left", "p1", "s1", 2),
    ]


def test_patients_whose_zeros_excel_lost_are_one_beside_those_that_have_them(tmp_path):
    cells = ["1", "001", "p001", "P 1", "1,0", "1.0 ", "2", "p02"]
    rows = [f"{i}.png;{i % 2},0;{cell};s{i}" for i, cell in enumerate(cells)]
    listing = list_labelled(
        write_manifest(tmp_path, "\n".join(["path;label;patient;scan", *rows, ""]))
    )
    assert [s.patient for s in listing.slices] == ["1"] * 6 + ["2"] * 2
    assert listing.classes == ["0", "1"]
    notes = "\n".join(map(str, listing.problems))
    assert "1 = 001 = p001 = P 1, 2 = p02" in notes


def test_windows_letters_are_read_as_such_unless_a_file_is_called_by_these_bytes(tmp_path):
    write_images(tmp_path, os.fsdecode("größe 1.png".encode("cp1252")), "größe 2.png")
    (tmp_path / "m.csv").write_bytes(
        "path,label,patient\ngröße 1.png,l,Müller\ngröße 2.png,r,Müller\n".encode("cp1252")
    )
    slices = list_labelled(tmp_path / "m.csv").slices
    assert sorted((s.label, s.patient) for s in slices) == [("left", "Müller"), ("right", "Müller")]


def test_pattern_tells_the_patient_that_a_manifest_lacks(tmp_path):
    rows = [f"{p}_{v}_{side}.png,{side}" for p in (1, 2) for v in (1, 2) for side in "lr"]
    text = "\n".join(["path,label", *rows, ""])
    with pytest.raises(DataError, match="nothing tells the patient of 4 scans"):
        rows_of(text, tmp_path)
    found = rows_of(text, tmp_path, name_pattern=r"^(?P<patient>\d+)_")
    assert {row[:2] for row in found} == {(side, p) for side in ("left", "right") for p in "12"}


def test_missing_files_are_five_examples_a_count_and_what_paths_are_relative_to(tmp_path):
    rows = [f"{x}/{i}.png,{x},p{x}" for x in "lr" for i in range(50)]
    (tmp_path / "m.csv").write_text("\n".join(["path,label,patient", *rows]))
    with pytest.raises(DataError, match=rf"^100 files .* 95 more; paths are .* {tmp_path}$"):
        list_labelled(tmp_path / "m.csv")


def test_volumes_keep_the_manifests_side_and_disagreement_is_noted(tmp_path):
    made = pytest.importorskip("volume_files")
    made.write_volume(tmp_path / "one_RIGHT.nii.gz")
    made.write_volume(tmp_path / "two.nrrd")
    text = "path,side,patient\none_RIGHT.nii.gz,left,p1\ntwo.nrrd,right,p2\n"
    listing = list_labelled(write_manifest(tmp_path, text))
    assert {(s.scan, s.label, s.patient) for s in listing.slices} == {
        ("one_RIGHT.nii.gz", "left", "p1"),
        ("two.nrrd", "right", "p2"),
    }
    assert "the manifest says left, its name right" in str(listing.problems[0])


def test_series_folders_of_the_oai_are_scans_and_the_folder_above_them_is_refused(tmp_path):
    made = pytest.importorskip("volume_files")
    made.make_oai(tmp_path, patients=2, visits=1)
    visits = sorted((tmp_path / "00m" / "0.C.2").glob("*/*"))
    path = tmp_path / "m.csv"
    for depth in (1, 0):
        folders = [sorted(visit.iterdir())[1] if depth else visit for visit in visits]
        rows = [f"{x.relative_to(tmp_path)},{i}" for i, x in enumerate(folders)]
        path.write_text("\n".join(["path,label", *rows]))
        if depth:
            found = list_labelled(path).slices
            assert {(s.patient, s.label) for s in found} == {("9000001", "0"), ("9000002", "1")}
    with pytest.raises(DataError, match=r"20040101: no image and no volume.*m\.csv, line 2\)"):
        list_labelled(path)


def test_folders_above_files_that_lie_elsewhere_say_nothing(tmp_path):
    """Neither case1 nor left, whichever way the manifest writes its paths."""
    files = tmp_path / "left" / "case1" / "im"
    write_images(files, "anna_1.png", "bob_2.png")
    for start in (f"{files}", "../left/case1/im"):
        (tmp_path / "lists").mkdir(exist_ok=True)
        path = tmp_path / "lists" / "m.csv"
        path.write_text(f"path,label\n{start}/anna_1.png,right\n{start}/bob_2.png,left\n")
        listing = list_slices(path)
        assert {s.patient for s in listing.slices} == {""} and not listing.of_kind(Kind.REMARK)


def test_what_lies_beside_the_images_of_a_folder_is_said(tmp_path):
    write_images(tmp_path, "k1/1.png", "k1/2.png", "k1/late/1.png", "k2/1.png")
    np.save(tmp_path / "k2" / "v.npy", np.zeros((6, 4, 4), np.uint8))
    path = tmp_path / "m.csv"
    path.write_text("path,label,patient\nk1,left,p1\nk2,right,p2\n")
    text = "\n".join(map(str, list_slices(path).problems))
    assert "late" in text and "v.npy" in text and "not read beside its images" in text
