"""Folders, patterns and manifests of real small files -> slices, and what is said of others."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import write_scan
from PIL import Image

from scans.labelled import check_classes_present, list_labelled
from scans.listing import list_slices
from scans.slices import SIDES, DataError, Kind, Options, Slice, by_scan

ROOT = Path(__file__).parent.parent.parent


def listed(path: Path, *more) -> tuple[list[Slice], list[str]]:
    """The labelled slices below a path, and what is said of it. more: classes are left out."""
    listing = list_labelled(path, None, Options(*more))
    return listing.slices, [str(problem) for problem in listing.problems]


def test_scan_is_the_whole_name_because_patient_visit_and_side_repeat(tmp_path):
    for hash in (1, 2):
        write_scan(tmp_path, 1, "RIGHT", hash=hash)
    write_scan(tmp_path, 1, "LEFT")
    scans = by_scan(list_labelled(tmp_path).slices)
    assert [len(slices) for slices in scans.values()] == [40, 40, 40]


def test_names_decide_where_a_scan_has_a_number_twice(tmp_path):
    rows = [f"{name},left,p1,s1\n" for name in ("b_10.png", "b_2.png", "a_10.png", "c_1.png")]
    (tmp_path / "table.csv").write_text("path,label,patient,scan\n" + "".join(rows))
    for row in rows:
        Image.new("L", (8, 8)).save(tmp_path / row.split(",")[0])
    slices, _ = listed(tmp_path / "table.csv")
    assert [Path(s.source).stem for s in slices] == ["c_1", "b_2", "a_10", "b_10"]


def test_slices_are_found_in_nested_folders_and_in_number_order_and_litter_is_not(tmp_path):
    inner = tmp_path / "AKOA_Analysis" / "AKOA_Analysis"
    scan = write_scan(inner, 1, "RIGHT")
    write_scan(inner, 2, "L_E_F_T")
    (inner / "Thumbs.db").write_bytes(b"litter")
    (inner / f"._{scan}_0.png").write_bytes(b"litter")
    (tmp_path / "readme.txt").write_text("litter")
    slices, notes = listed(tmp_path)
    assert len(slices) == 80 and len(notes) == 1 and "of a patient of its own" in notes[0]
    assert [s.number for s in slices if s.scan == scan] == list(range(40))


def test_folders_left_and_right_give_the_side_and_keep_a_patient_together(tmp_path):
    for name in ("left/p01_1", "left/p01_2", "right/p01_1", "Left/p02/7", "right/p02/8"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 3)).save(path)
    slices, _ = listed(tmp_path)
    assert {(s.scan, s.patient, s.label, s.number) for s in slices} == {
        ("left/p01", "p01", "left", 1),
        ("left/p01", "p01", "left", 2),
        ("right/p01", "p01", "right", 1),
        ("left/p02", "p02", "left", 7),
        ("right/p02", "p02", "right", 8),
    }


def test_name_that_contradicts_its_folder_is_refused(tmp_path):
    write_scan(tmp_path / "left", 1, "RIGHT", slices=1)
    with pytest.raises(DataError, match=r"left/OAI0000001.*says right, its folder left"):
        listed(tmp_path)


def test_the_path_above_the_data_folder_says_nothing_of_the_side(tmp_path):
    folder = tmp_path / "left" / "knees"
    write_scan(folder, 1, "RIGHT", slices=1)
    write_scan(folder, 2, "LEFT", slices=1)
    assert {s.label for s in listed(folder)[0]} == {"left", "right"}


def test_incomplete_scan_copies_and_sideless_images_are_noted_by_name(tmp_path):
    short = write_scan(tmp_path, 1, "RIGHT", slices=38)
    write_scan(tmp_path, 2, "LEFT")
    write_scan(tmp_path / "copy", 2, "LEFT")
    Image.new("L", (4, 3)).save(tmp_path / "mystery.png")
    slices, notes = listed(tmp_path)
    assert len(slices) == 78
    assert any(f"{short} (38)" in note for note in notes)
    assert any("40 images are copies" in note for note in notes)
    assert any("1 slices have no label" in note and "mystery.png" in note for note in notes)


def test_empty_missing_and_one_sided_folders_are_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        listed(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no images and no volumes; expected names like OAI"):
        listed(tmp_path)
    Image.new("L", (4, 3)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"1 slices but none with a label.*a\.png"):
        listed(tmp_path)


# ---- --name-pattern ------------------------------------------------------------------------------


def write_images(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 3)).save(path, "PNG")


def found(folder: Path, pattern: str | None = None) -> set[tuple]:
    slices, _ = listed(folder, pattern)
    return {(Path(s.source).name, s.label, s.patient, s.scan, s.number) for s in slices}


def test_pattern_tells_patient_scan_side_and_slice(tmp_path):
    write_images(tmp_path, "a/s12_L_v1_z003.png", "b/s12_r_v2_z010.png", "b/readme_picture.png")
    pattern = r"s(?P<patient>\d+)_(?P<side>[LlRr])_v(?P<scan>\d)_z(?P<slice>\d+)"
    assert found(tmp_path, pattern) == {
        ("s12_L_v1_z003.png", "left", "12", "1", 3),
        ("s12_r_v2_z010.png", "right", "12", "2", 10),
    }
    assert "readme_picture.png" in listed(tmp_path, pattern)[1][0]


@pytest.mark.parametrize("word", ["left", "LEFT", "l", "L", "L_E_F_T", "Left"])
def test_pattern_takes_every_word_for_a_side(tmp_path, word):
    write_images(tmp_path, f"p1-{word}-1.png", "p2-R_I_G_H_T-1.png", "p2-r-2.png")
    sides = {row[1] for row in found(tmp_path, r"(?P<patient>p\d)-(?P<side>\w+)-") if "p1" in row}
    sides |= {row[1] for row in found(tmp_path, r"(?P<patient>p\d)-(?P<side>\w+)-")}
    assert sides == {"left", "right"}


def test_groups_that_a_pattern_lacks_come_from_folders_and_names(tmp_path):
    write_images(tmp_path, "v1/left/p1_7.png", "v2/left/p1_7.png", "v1/right/p2_08.png")
    assert found(tmp_path, r"(?P<patient>p\d+)_") == {
        ("p1_7.png", "left", "p1", "v1/left/p1", 7),
        ("p1_7.png", "left", "p1", "v2/left/p1", 7),  # another visit is another scan
        ("p2_08.png", "right", "p2", "v1/right/p2", 8),
    }
    only_scans, notes = listed(tmp_path, r"(?P<scan>.*/p\d+)_")
    assert {s.patient for s in only_scans} == {"p1", "p2"}
    assert {s.scan for s in only_scans} == {"v1/left/p1", "v2/left/p1", "v1/right/p2"}
    assert "inferred: what follows 'p'" in notes[0]


@pytest.mark.parametrize(
    "pattern, message",
    [
        ("p1", r"none of the groups \(\?P<patient>"),
        ("(?P<side>l", "not a regular expression: missing"),
        (r"(?P<patient>nobody\d)", r"is found in none of their paths .*; first: .*p1_left_1\.png"),
        (
            r"(?P<side>p\d)",
            r"p1_left_1\.png: --name-pattern finds the label 'p1', not one of left, right",
        ),
        (r"(?P<scan>p)\d_(?P<side>left|right)", "scan p is of two labels: left, right"),
        (r"(?P<patient>p\d)_(?P<side>(?P<scan>l)eft|right)", "scan l is of two patients: p1, p3"),
    ],
)
def test_pattern_that_does_not_fit_is_refused_and_says_why(tmp_path, pattern, message):
    write_images(tmp_path, "p1_left_1.png", "p2_right_1.png", "p3_left_1.png")
    with pytest.raises(DataError, match=message):
        listed(tmp_path, pattern)


def test_names_of_other_scripts_and_digits_are_read(tmp_path):
    """Digits that int() does not know, digits of another script, and a line break in a name."""
    names = ["колено_2²3.png", "膝_٣.png", "a²_².png", "two\nlines_5.png", "x#7_1.png"]
    write_images(tmp_path, *(f"{side}/{name}" for side in ("left", "right") for name in names))
    with pytest.raises(DataError, match=r"10 scans, such as left/a²_².png, can be read in several"):
        found(tmp_path)
    slices = list_labelled(tmp_path, None, Options(patients="scan")).slices
    assert len({s.scan for s in slices}) == 10 == len({s.patient for s in slices})
    assert len(found(tmp_path, r"(?P<patient>\w)(?P<slice>.)\.png")) == 10


# ---- manifest ------------------------------------------------------------------------------------


def write_manifest(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "knees.csv"
    path.write_text(text, encoding=encoding)
    write_images(folder, *re.findall(r"[\w/,.]+\.png", text))
    return path


def test_manifest_tells_all_and_its_paths_are_relative_to_it(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    write_images(tmp_path, "a/1.png", "a/2.png", "b,c/x.png")
    text = 'path,side,patient,scan\na/1.png,L,p1 ,s1\na/2.png,left, p1,s1\n"b,c/x.png",Right,p2,\n'
    rows = found(write_manifest(tmp_path, text, "utf-8-sig"))  # Excel begins with a BOM
    assert rows == {
        ("1.png", "left", "p1", "s1", 1),
        ("2.png", "left", "p1", "s1", 2),
        ("x.png", "right", "p2", "b,c/x", 0),
    }


@pytest.mark.parametrize(
    "text, message",
    [
        ("path,patient\na.png,1\n", "expected columns path,label,patient,scan, got"),
        ("path side\na.png l\n", "expected columns path,label,patient,scan, got"),
        ("path,side\na.png,left\nb.png,middle\n", "line 3: label must be left or right, got 'mid"),
        ("path,side\na.png\n", "line 2: label must be left or right, got ''"),
        ("path,side\na.png,l\n./a.png,l\n", "line 3: ./a.png is in it twice"),
        ("path,side\n,l\n", "line 2: names no path"),
        ("path,side\nknee.nii.gz,l\n", r"knee.nii.gz.*line 2\)"),
        ("path,side\na.txt,l\n", r"a.txt: no image and no volume.*line 2\)"),
        ("path,side,patient,scan\na.png,l,p,s\nb.png,r,p,s\n", "scan s is of two labels"),
        (
            "path,side,patient,scan\na.png,l,p,s\nb.png,l,q,s\nc.png,r,q,t\n",
            "of two patients: p, q",
        ),
    ],
)
def test_manifest_that_cannot_be_used_is_refused_by_line(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        listed(write_manifest(tmp_path, text))


def test_pattern_tells_the_patient_that_a_manifest_lacks(tmp_path):
    rows = [f"{p}_{v}_{side}.png,{side}" for p in (1, 2, 3) for v in (1, 2) for side in SIDES]
    path = write_manifest(tmp_path, "path,label\n" + "\n".join(rows))
    with pytest.raises(DataError, match=r"12 scans, such as 1_1_left.png, can be read in several"):
        listed(path)
    assert {(s.patient, s.label) for s in listed(path, r"^(?P<patient>\d+)_")[0]} == {
        (patient, side) for patient in "123" for side in SIDES
    }


@pytest.mark.parametrize("what", ["label", "patient"])
def test_one_wrong_row_of_a_manifest_is_named_and_takes_no_scan_apart(tmp_path, what):
    rows = [f"m{p}/shot {i}.png,{'lr'[p % 2]},p{p}" for p in range(6) for i in range(4)]
    path = write_manifest(tmp_path, "path,label,patient\n")
    for wrong_row in (None, "m0/shot 3.png," + ("r,p0" if what == "label" else "l,p9")):
        table = "\n".join(["path,label,patient", *rows[:3], wrong_row or rows[3], *rows[4:]])
        path.write_text(table)
        write_images(tmp_path, *(row.split(",")[0] for row in rows))
        if wrong_row is None:
            assert len({s.scan for s in listed(path)[0]}) == 6
            continue
        with pytest.raises(DataError, match=rf"m0/shot 3.png: differs from .*, but its {what} is"):
            listed(path)


def test_missing_files_of_a_manifest_are_five_a_count_and_what_paths_are_relative_to(tmp_path):
    path = write_manifest(tmp_path, "path,label,patient\n")
    path.write_text("path,label,patient\n" + "".join(f"x/{i}.png,l,p{i}\n" for i in range(100)))
    with pytest.raises(DataError, match=rf"x/0.png, .* 95 more; paths are relative to {tmp_path}$"):
        listed(path)


def test_volumes_in_a_manifest_keep_its_side_and_disagreement_is_noted(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    for name in ("one_RIGHT.nii.gz", "two.nrrd"):
        sitk.WriteImage(sitk.Image([4, 5, 6], sitk.sitkUInt8), str(tmp_path / name))
    text = "path,side,patient\none_RIGHT.nii.gz,left,p1\ntwo.nrrd,right,p2\n"
    slices, notes = listed(write_manifest(tmp_path, text))
    assert {(s.scan, s.label, s.patient) for s in slices} == {
        ("one_RIGHT.nii.gz", "left", "p1"),
        ("two.nrrd", "right", "p2"),
    }
    assert slices[1].name == f"{tmp_path}/one_RIGHT.nii.gz#1" and len(slices) == 12
    assert "the manifest says left, its name right" in notes[0]


def test_pattern_makes_each_volume_a_scan_of_its_patient(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    for name in ("p1-v1-L.nii.gz", "p1-v2-L.nii.gz", "p2-v1-R.nii.gz"):
        sitk.WriteImage(sitk.Image([4, 5, 6], sitk.sitkUInt8), str(tmp_path / name))
    slices, _ = listed(tmp_path, r"(?P<patient>p\d)-v\d-(?P<side>[LR])")
    scans = by_scan(slices)
    assert {name: (s[0].patient, len(s)) for name, s in scans.items()} == {
        "p1-v1-L.nii.gz": ("p1", 6),
        "p1-v2-L.nii.gz": ("p1", 6),
        "p2-v1-R.nii.gz": ("p2", 6),
    }


# ---- names that tell little ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["{}.png", "img_{}.png"])
def test_nameless_slices_are_scans_of_forty_only_where_that_is_typed(tmp_path, name):
    numbers = range(1, 81)  # not zero-padded: sorted as text, 10 would come before 2
    names = [f"{side}/{name.format(i)}" for side in ("left", "right") for i in numbers]
    write_images(tmp_path, *names)
    with pytest.raises(DataError, match="the names of 2 scans, such as left/") as error:
        listed(tmp_path)
    text = str(error.value)
    assert re.search("--slices-per-scan 40 --patients scan +4 patients, each another", text)
    assert re.search("--slices-per-scan 1 --patients scan +160 patients, each another", text)
    options = Options(slices_per_scan=40, patients="scan")
    listing = list_labelled(tmp_path, None, options)
    scans = by_scan(listing.slices)
    assert list(scans) == ["left 0001", "left 0002", "right 0001", "right 0002"]
    files = [int(re.findall(r"\d+", s.source)[-1]) for s in scans["left 0001"]]
    assert files == list(range(1, 41)) and [s.number for s in scans["left 0001"]] == [*range(40)]
    assert {s.patient for s in listing.slices} == set(scans)
    assert any("of a patient of its own" in str(problem) for problem in listing.problems)
    (tmp_path / names[5]).unlink()
    with pytest.raises(DataError, match=r"the 79 left images of left do not divide into scans of"):
        list_labelled(tmp_path, None, options)


def test_nameless_slices_are_one_scan_a_folder_for_prediction(tmp_path):
    names = [f"{side}/{i}.png" for side in ("left", "right") for i in range(40)]
    write_images(tmp_path, *names, "left/more/99.png", "left/40.png")
    listing = list_slices(tmp_path)
    assert [problem.kind for problem in listing.problems] == [Kind.NAMELESS]
    assert {(s.label, s.scan) for s in listing.slices} == {
        ("left", "left"),
        ("left", "left/more"),
        ("right", "right"),
    }


def test_patient_that_is_really_named_is_not_taken_apart(tmp_path):
    write_scan(tmp_path, 1, "LEFT", 80)
    write_scan(tmp_path, 1, "RIGHT", 80)
    assert {s.patient for s in listed(tmp_path)[0]} == {"OAI0000001"}
    text = "path,side,patient\n" + "".join(f"{i}.png,{'lr'[i % 2]},p1\n" for i in range(160))
    slices, _ = listed(write_manifest(tmp_path, text))
    assert {s.patient for s in slices} == {"p1"}


# ---- links and folders ---------------------------------------------------------------------------


def test_links_are_followed_once_and_dangling_ones_are_named(tmp_path):
    outside, inside = tmp_path / "disk", tmp_path / "knees"
    write_scan(outside, 1, "LEFT", slices=2)
    write_scan(inside, 2, "RIGHT", slices=2)
    (inside / "more").symlink_to(outside)
    (inside / "again").symlink_to(inside)
    (inside / "patient 7").symlink_to(tmp_path / "not mounted")
    (inside / "round").symlink_to(inside / "about")
    (inside / "about").symlink_to(inside / "round")
    slices, notes = listed(inside)
    assert len(slices) == 4
    (note,) = [note for note in notes if "lead nowhere" in note]
    assert note.startswith("3 links") and str(inside / "patient 7") in note


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folder_without_permission_is_refused_by_name(tmp_path):
    write_scan(tmp_path / "a", 1, "LEFT", slices=1)
    write_scan(tmp_path / "b", 2, "RIGHT", slices=1)
    (tmp_path / "a").chmod(0)
    with pytest.raises(DataError, match=rf"{tmp_path}/a: Permission denied"):
        listed(tmp_path)
    (tmp_path / "a").chmod(0o700)


def test_both_knees_of_a_patient_as_volumes_are_of_one_patient(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    names = ["p1_LEFT.nii.gz", "p1_RIGHT.nii.gz", "left/p2.nrrd", "right/p2.nrrd", "p3/a_LEFT.mha"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image = sitk.GetImageFromArray(np.zeros((6, 4, 4), np.int16))
        sitk.WriteImage(image, str(tmp_path / name))
    slices, notes = listed(tmp_path)
    patients = {s.scan: s.patient for s in slices}
    assert patients == dict(zip(names, ["p1", "p1", "p2", "p2", "p3"], strict=True))
    assert any("patients are inferred: what follows 'p': 3" in note for note in notes)


def test_labels_of_a_table_that_may_be_misspelt_are_named(tmp_path):
    rows = [f"a{p}_{i}.png,{('sound', 'ill')[p % 2]},p{p}" for p in range(4) for i in range(3)]
    path = write_manifest(tmp_path, "\n".join(["path,label,patient", *rows, "b_1.png,sund,p9"]))
    assert any("if sund is sound misspelt, correct it" in note for note in listed(path)[1])


# ---- classes -------------------------------------------------------------------------------------

GRADES = ["normal", "abnormal"]


def rows(path: Path, classes: list[str] | None, *more) -> set[tuple]:
    listing = list_labelled(path, classes, Options(*more))
    return {(s.label, s.patient, s.scan, s.number) for s in listing.slices}


@pytest.mark.parametrize("classes", [GRADES, ["abnormal", "normal"], ["Normal", "ABNORMAL"]])
def test_folders_that_are_called_like_classes_in_any_case_give_the_label(tmp_path, classes):
    write_images(tmp_path, "Normal/p01_7.png", "p01/normal/8.png", "abnormal/p02/v2/9.png")
    normal, abnormal = sorted(classes, key=lambda label: label.lower() != "normal")
    assert list_labelled(tmp_path, classes).classes == classes
    assert rows(tmp_path, classes) == {
        (normal, "p01", f"{normal}/p01", 7),
        (normal, "p01", f"p01/{normal}", 8),
        (abnormal, "p02", f"{abnormal}/p02/v2", 9),
    }


def test_akoa_names_below_class_folders_tell_patient_and_scan(tmp_path):
    scans = [write_scan(tmp_path / "normal", 1, side, slices=2) for side in ("LEFT", "RIGHT")]
    scans += [write_scan(tmp_path / "x" / "Abnormal" / "y", 2, "RIGHT", slices=2)]
    assert rows(tmp_path, GRADES) == {
        *(("normal", "OAI0000001", scan, i) for scan in scans[:2] for i in range(2)),
        *(("abnormal", "OAI0000002", scans[2], i) for i in range(2)),
    }


def test_scan_in_the_folders_of_two_classes_is_refused_and_not_left_out_as_a_copy(tmp_path):
    for folder in ("normal", "abnormal"):
        scan = write_scan(tmp_path / folder, 1, "LEFT", slices=2)
    with pytest.raises(DataError, match=f"scan {scan} is of two labels: abnormal, normal"):
        list_labelled(tmp_path, GRADES)


def test_five_grades_come_from_folders_and_from_a_manifest(tmp_path):
    grades = ["0", "1", "2", "3", "4"]
    write_images(tmp_path, *(f"{grade}/p{grade}7_{i}.png" for grade in grades for i in (1, 10)))
    expected = {(g, f"p{g}7", f"{g}/p{g}7", i) for g in grades for i in (1, 10)}
    assert rows(tmp_path, grades) == expected
    lines = ["path,label,patient,scan"]
    lines += [f"{g}/p{g}7_{i}.png, {g},p{g}7,{g}/p{g}7" for g in reversed(grades) for i in (1, 10)]
    path = write_manifest(tmp_path, "\n".join(lines))
    assert rows(path, grades) == rows(path, None) == expected
    assert list_labelled(path).classes == grades
    assert list_labelled(path, grades[::-1]).classes == grades[::-1]


@pytest.mark.parametrize(
    "column, words, classes",
    [
        ("label", "10 9 2 10", ["2", "9", "10"]),
        ("label", "normal Abnormal NORMAL", ["Abnormal", "normal"]),
        ("label", "R l Left R_I_G_H_T", ["left", "right"]),
        ("label", "r right", None),  # left and right, but there is none of the left side
        ("side", "right LEFT", ["left", "right"]),
    ],
)
def test_manifest_tells_its_own_classes_in_natural_order(tmp_path, column, words, classes):
    lines = [f"{i}.png,{word},p{i}\n" for i, word in enumerate(words.split())]
    path = write_manifest(tmp_path, f"path,{column},patient\n" + "".join(lines))
    listing = list_labelled(path)
    if classes is None:
        with pytest.raises(
            DataError, match=r"no slice has the label left; there are right \(2 slices"
        ):
            check_classes_present(listing.slices, listing.classes)
        return
    assert listing.classes == classes
    assert {s.label for s in listing.slices} == set(classes)


def test_column_side_of_a_manifest_means_left_and_right_alone(tmp_path):
    path = write_manifest(tmp_path, "path,side\na.png,normal\nb.png,abnormal\n")
    with pytest.raises(DataError, match="line 2: label must be left or right, got 'normal'"):
        list_labelled(path)
    path = write_manifest(
        tmp_path, "path,label,side,patient\na.png,normal,l,s\nb.png,abnormal,l,t\n"
    )
    assert list_labelled(path).classes == ["abnormal", "normal"]  # `label` before `side`
    with pytest.raises(DataError, match="line 2: label must be 0 or 1, got 'normal'"):
        list_labelled(path, ["0", "1"])


@pytest.mark.parametrize("group", ["label", "side"])
def test_group_label_of_a_pattern_tells_the_class(tmp_path, group):
    write_images(tmp_path, "p1_KL0_3.png", "p1_kl4_4.png", "p2_kl4_5.png")
    pattern = rf"(?P<patient>p\d)_(?P<{group}>\w+)_(?P<slice>\d)"
    assert rows(tmp_path, ["kl0", "kl4"], pattern) == {
        ("kl0", "p1", "p1_KL0", 3),
        ("kl4", "p1", "p1_kl4", 4),
        ("kl4", "p2", "p2_kl4", 5),
    }
    message = r"p1_KL0_3\.png: --name-pattern finds the label 'KL0', not one of left, right"
    with pytest.raises(DataError, match=message):
        list_labelled(tmp_path, None, Options(pattern))


def test_class_without_a_slice_is_refused_with_the_classes_found_and_their_counts(tmp_path):
    write_images(tmp_path, "0/p1_1.png", "0/p1_2.png", "2/p2_1.png", "other/x.png")
    found = r"no slice has the label 1; there are 0 \(2 slices\), 2 \(1 slices\)"
    listing = list_labelled(tmp_path, ["0", "1", "2"])
    with pytest.raises(DataError, match=found):
        check_classes_present(listing.slices, listing.classes)


def test_manifest_of_one_label_is_named_with_it(tmp_path):
    path = write_manifest(tmp_path, "path,label\na.png,torn\nb.png,Torn\n")
    with pytest.raises(
        DataError, match=r"knees\.csv: expected two or more different labels, got torn"
    ):
        list_labelled(path)


def test_numbered_folders_that_may_be_patients_are_not_offered_as_classes(tmp_path):
    write_images(tmp_path, *(f"{grade}/{p}/7.png" for grade in range(3) for p in range(10, 14)))
    with pytest.raises(DataError) as refused:
        list_labelled(tmp_path, ["low", "high"])
    assert "if these folders are the classes" not in str(refused.value)


@pytest.mark.parametrize(
    "paths, classes",
    [
        (["normal/p1_1.png", "abnormal/p2_1.png"], "abnormal normal"),
        (["train/normal/1.png", "Test/abnormal/1.png", "val/normal/2.png"], "abnormal normal"),
        (["train/normal/1.png", "train/abnormal/1.png"], "abnormal normal"),
        (["Train/1/1.png", "Train/0/1.png", "val/2/1.png"], "0 1 2"),
        (["p1/normal/1.png", "p2/abnormal/1.png", "p3/abnormal/1.png"], "abnormal normal"),
        (["p1/normal/1.png", "p2/abnormal/1.png"], "abnormal normal"),
        (["knees/10/a.png", "knees/9/a.png", "knees/0/a.png"], "0 9 10"),
        (["no findings/a.png", "worn/a.png"], "'no findings' worn"),
        (["a.png", "knees/b.png"], None),
        ([f"p{i}/a.png" for i in range(11)], None),
    ],
)
def test_subfolders_that_look_like_classes_are_named_where_nothing_is_labelled(
    tmp_path, paths, classes
):
    write_images(tmp_path, *paths)
    with pytest.raises(DataError, match="none with a label") as error:
        list_labelled(tmp_path)
    assert ("--classes" in str(error.value)) == bool(classes)
    if classes:
        assert f"if these folders are the classes: --classes {classes}; first: " in str(error.value)


def test_two_folders_of_a_path_called_like_two_classes_are_a_contradiction(tmp_path):
    write_images(tmp_path, "normal/p1/abnormal/7.png", "normal/p2_1.png", "abnormal/p3_1.png")
    path = tmp_path / "normal/p1/abnormal/7.png"
    advice = "; --name-pattern or a manifest can tell"
    message = f"{path}: its folders say abnormal and normal{advice}"
    with pytest.raises(DataError, match=message):
        list_labelled(tmp_path, GRADES)
    listing = list_slices(tmp_path, GRADES)
    assert [(p.kind, str(p)) for p in listing.problems] == [(Kind.CONTRADICTION, message)]
    assert {s.number: s.label for s in listing.slices if s.source == str(path)} == {7: ""}


@pytest.mark.parametrize(
    "classes", [["normal"], ["a", "A"], ["a", "b", "a"], ["a", "a "], ["a", "", "b"], ["", " "]]
)
def test_one_equal_and_empty_classes_are_refused(tmp_path, classes):
    with pytest.raises(DataError, match=r"--classes .*: expected two or more labels that differ"):
        list_labelled(tmp_path, classes)


def test_volumes_of_other_classes_get_their_label_from_folders_alone(tmp_path):
    made = pytest.importorskip("volume_files")
    made.write_volume(tmp_path / "normal" / "p1_LEFT.nii.gz", x=-70)  # no contradiction here
    made.write_volume(tmp_path / "p2" / "Abnormal" / "knee.mha")
    assert rows(tmp_path, GRADES) == {
        *(("normal", "p1", "normal/p1_LEFT.nii.gz", i) for i in range(6)),
        *(("abnormal", "p2", "p2/Abnormal/knee.mha", i) for i in range(6)),
    }


# ---- problems ------------------------------------------------------------------------------------


def test_each_problem_has_its_kind(tmp_path):
    made = pytest.importorskip("volume_files")
    write_images(tmp_path / "knees", "left/OAI1_V_RIGHT_3.png")
    (tmp_path / "knees" / "text.nrrd").write_text("hello")
    made.write_volume(tmp_path / "scouts" / "thin.nii", made.noise(3, 9, 9))
    made.write_dicom(tmp_path / "scouts" / "scout", made.noise(3, 6, 6))
    made.write_dicom(tmp_path / "knees" / "scout", made.noise(3, 6, 6))
    made.write_volume(tmp_path / "knees" / "p1_LEFT.mha", x=-70)
    (tmp_path / "knees" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "knees" / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    given = ("knees", "empty", "no.nii", "scouts")
    listing = list_slices([tmp_path / name for name in given])
    kinds = {os.path.relpath(p.path, tmp_path): p.kind for p in listing.problems if p.path}
    assert kinds == {
        "knees/left/OAI1_V_RIGHT_3.png": Kind.CONTRADICTION,
        "knees/text.nrrd": Kind.UNREADABLE,
        "scouts/thin.nii": Kind.LOCALIZER,
        "scouts/scout": Kind.LOCALIZER,
        "knees/p1_LEFT.mha": Kind.CONTRADICTION,
        "empty": Kind.EMPTY,
        "no.nii": Kind.UNREADABLE,
    }
    texts = {os.path.relpath(p.path, tmp_path): p.text for p in listing.problems if p.path}
    assert texts["knees/left/OAI1_V_RIGHT_3.png"] == "the name says right, its folder left"
    assert texts["knees/p1_LEFT.mha"] == "the name says left, its position right"
    assert texts["empty"] == "no images and no volumes in this folder"
    assert list(map(str, listing.of_kind(Kind.REMARK))) == [
        f"1 links lead nowhere and are left out: {tmp_path}/knees/gone",
        f"1 series are too short for a scan: {tmp_path}/knees/scout",
    ]
    assert {s.label for s in listing.slices} == {""}


def test_folder_of_links_that_lead_nowhere_is_empty(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "nowhere")
    kinds = [problem.kind for problem in list_slices(tmp_path).problems]
    assert kinds == [Kind.REMARK, Kind.EMPTY]


def test_localizers_and_volumes_that_contradict_themselves_are_left_out_of_training(tmp_path):
    made = pytest.importorskip("volume_files")
    for name, x in [("p1_LEFT.mha", 70), ("p2_RIGHT.mha", -70), ("p3_LEFT.mha", -70)]:
        made.write_volume(tmp_path / name, x=x)
    made.write_dicom(tmp_path / "p1" / "scout", made.noise(3, 6, 6))
    slices, notes = listed(tmp_path)
    assert {s.scan for s in slices} == {"p1_LEFT.mha", "p2_RIGHT.mha"}
    left_out = f"{tmp_path}/p3_LEFT.mha: the name says left, its position right: left out"
    assert left_out in notes
    assert f"1 series are too short for a scan: {tmp_path}/p1/scout" in notes
    assert any("6 slices have no label and are left out" in note for note in notes)
    (tmp_path / "text.nrrd").write_text("hello")
    with pytest.raises(DataError, match=r"1 folders or volumes can't be read:\n  .*text\.nrrd: "):
        list_labelled(tmp_path)


def test_one_patient_with_both_knees_as_volumes_is_not_taken_apart(tmp_path):
    made = pytest.importorskip("volume_files")
    for name in ("p1_LEFT.nii.gz", "p1_RIGHT.nii.gz"):
        made.write_volume(tmp_path / name)
    assert {(s.scan, s.patient) for s in listed(tmp_path)[0]} == {
        ("p1_LEFT.nii.gz", "p1"),
        ("p1_RIGHT.nii.gz", "p1"),
    }


def test_file_that_is_no_manifest_cannot_be_trained_on(tmp_path):
    write_images(tmp_path, "OAI1_V_LEFT_3.png")
    with pytest.raises(DataError, match=r"one file of many: name its folder, "):
        list_labelled(tmp_path / "OAI1_V_LEFT_3.png")


# ---- what is imported ----------------------------------------------------------------------------


def test_decoding_an_image_imports_no_model(tmp_path):
    """Worker processes and notebooks that read slices are not to wait for PyTorch."""
    write_images(tmp_path, "left/p1_1.png")
    code = (
        "import sys; from scans.images import read_image; "
        "assert read_image(sys.argv[1], (2, 2)).values.shape == (2, 2); "
        "assert 'torch' not in sys.modules and 'perceiver' not in sys.modules, 'images'; "
        "from scans.cache import decode_slices; from scans.slices import Slice; "
        "found = decode_slices([Slice(sys.argv[1], None, '', '', '', 0)], (2, 2), progress=False); "
        "assert found.pixels.shape == (1, 1, 2, 2) and not found.errors; "
        "assert 'torch' not in sys.modules and 'perceiver' not in sys.modules, 'cache'"
    )
    path = tmp_path / "left" / "p1_1.png"
    subprocess.run([sys.executable, "-c", code, path], cwd=ROOT, check=True)
