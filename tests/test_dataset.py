"""dataset.py on real small files: names, folders, litter."""

import os
from pathlib import Path

import numpy as np
import pytest
from conftest import AKOA, write_scan
from PIL import Image

import dataset
from dataset import DataError


@pytest.mark.parametrize(
    "spelling", ["LEFT", "Left", "left", "L_E_F_T", "RIGHT", "Right", "right", "R_I_G_H_T"]
)
def test_every_spelling_of_the_side_is_read(spelling):
    scan = AKOA.format(patient=9014797, side=spelling, hash=0xDE3D1)
    parsed = dataset.parse_name(Path(f"{scan}_17.png"))
    assert parsed.side == spelling.replace("_", "").lower()
    assert (parsed.patient, parsed.scan, parsed.index) == ("OAI9014797", scan, 17)


def test_scan_is_the_whole_name_because_patient_visit_and_side_repeat(tmp_path):
    for hash in (1, 2):
        write_scan(tmp_path, 1, "RIGHT", hash=hash)
    write_scan(tmp_path, 1, "LEFT")
    scans = dataset.group_scans(dataset.find_slices(tmp_path)[0])
    assert [len(slices) for slices in scans.values()] == [40, 40, 40]


def test_slices_are_found_in_nested_folders_and_in_number_order_and_litter_is_not(tmp_path):
    inner = tmp_path / "AKOA_Analysis" / "AKOA_Analysis"
    scan = write_scan(inner, 1, "RIGHT")
    write_scan(inner, 2, "L_E_F_T")
    (inner / "Thumbs.db").write_bytes(b"litter")
    (inner / f"._{scan}_0.png").write_bytes(b"litter")
    (tmp_path / "readme.txt").write_text("litter")
    slices, notes = dataset.find_slices(tmp_path)
    assert len(slices) == 80 and notes == []
    assert [s.index for s in slices if s.scan == scan] == list(range(40))


def test_folders_left_and_right_give_the_side_and_keep_a_patient_together(tmp_path):
    for name in ("left/p01_1", "left/p01_2", "right/p01_1", "Left/p02/7", "right/p02/8"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 3)).save(path)
    slices, _ = dataset.find_slices(tmp_path)
    assert {(s.scan, s.patient, s.side, s.index) for s in slices} == {
        ("left/p01", "p01", "left", 1),
        ("left/p01", "p01", "left", 2),
        ("right/p01", "p01", "right", 1),
        ("left/p02", "p02", "left", 7),
        ("right/p02", "p02", "right", 8),
    }


def test_name_that_contradicts_its_folder_is_refused(tmp_path):
    write_scan(tmp_path / "left", 1, "RIGHT", slices=1)
    with pytest.raises(DataError, match=r"left/OAI0000001.*says right, the folder left"):
        dataset.find_slices(tmp_path)


def test_the_path_above_the_data_folder_says_nothing_of_the_side(tmp_path):
    folder = tmp_path / "left" / "knees"
    write_scan(folder, 1, "RIGHT", slices=1)
    write_scan(folder, 2, "LEFT", slices=1)
    assert {s.side for s in dataset.find_slices(folder)[0]} == {"left", "right"}


def test_incomplete_scan_copies_and_sideless_images_are_noted_by_name(tmp_path):
    short = write_scan(tmp_path, 1, "RIGHT", slices=38)
    write_scan(tmp_path, 2, "LEFT")
    write_scan(tmp_path / "copy", 2, "LEFT")
    Image.new("L", (4, 3)).save(tmp_path / "mystery.png")
    slices, notes = dataset.find_slices(tmp_path)
    assert len(slices) == 78
    assert any(f"{short} (38)" in note for note in notes)
    assert any("40 images are copies" in note for note in notes)
    assert any("1 slices have no side" in note and "mystery.png" in note for note in notes)


def test_empty_missing_and_one_sided_folders_are_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        dataset.find_slices(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no images and no volumes; expected names like OAI"):
        dataset.find_slices(tmp_path)
    Image.new("L", (4, 3)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"1 slices but none with a side.*a\.png"):
        dataset.find_slices(tmp_path)


@pytest.mark.parametrize(
    "name, patient, scan",
    [
        ("left/p01_7.png", "p01", "left/p01"),
        ("left/p01/7.png", "p01", "left/p01"),
        ("left/p01/visit2/7.png", "p01", "left/p01/visit2"),
        ("p01/left/7.png", "p01", "p01/left"),
        ("visit2/Left/p01_7.png", "p01", "visit2/left/p01"),
        ("p01/visit2/left/7.png", "p01", "p01/visit2/left"),
        ("knees/left/p01/a-7.png", "p01", "knees/left/p01/a"),
    ],
)
def test_visits_in_folders_belong_to_one_patient(name, patient, scan):
    parsed = dataset.parse_name(Path(name))
    assert (parsed.side, parsed.patient, parsed.scan, parsed.index) == ("left", patient, scan, 7)


# ---- --name-pattern ------------------------------------------------------------------------------


def write_images(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 3)).save(path, "PNG")


def found(folder: Path, pattern: str | None = None) -> set[tuple]:
    slices, _ = dataset.find_slices(folder, pattern)
    return {(Path(s.path).name, s.side, s.patient, s.scan, s.index) for s in slices}


def test_pattern_tells_patient_scan_side_and_slice(tmp_path):
    write_images(tmp_path, "a/s12_L_v1_z003.png", "b/s12_r_v2_z010.png", "b/readme_picture.png")
    pattern = r"s(?P<patient>\d+)_(?P<side>[LlRr])_v(?P<scan>\d)_z(?P<slice>\d+)"
    assert found(tmp_path, pattern) == {
        ("s12_L_v1_z003.png", "left", "12", "1", 3),
        ("s12_r_v2_z010.png", "right", "12", "2", 10),
    }
    assert "readme_picture.png" in dataset.find_slices(tmp_path, pattern)[1][0]


@pytest.mark.parametrize("word", ["left", "LEFT", "l", "L", "L_E_F_T", "Left"])
def test_pattern_takes_every_word_for_a_side(tmp_path, word):
    write_images(tmp_path, f"p1-{word}-1.png", "p2-R_I_G_H_T-1.png", "p2-r-2.png")
    sides = {row[1] for row in found(tmp_path, r"(?P<patient>p\d)-(?P<side>\w+)-") if "p1" in row}
    sides |= {row[1] for row in found(tmp_path, r"(?P<patient>p\d)-(?P<side>\w+)-")}
    assert sides == {"left", "right"}


def test_groups_that_a_pattern_lacks_come_from_folders_and_names(tmp_path):
    write_images(tmp_path, "v1/left/p1_7.png", "v2/left/p1_7.png", "v1/right/p2_08.png")
    assert found(tmp_path, r"(?P<patient>p\d+)_") == {
        ("p1_7.png", "left", "p1", "v1/left/p1 left", 7),
        ("p1_7.png", "left", "p1", "v2/left/p1 left", 7),  # another visit is another scan
        ("p2_08.png", "right", "p2", "v1/right/p2 right", 8),
    }
    only_scans, notes = dataset.find_slices(tmp_path, r"(?P<scan>.*/p\d+)_")
    assert {s.patient for s in only_scans} == {s.scan for s in only_scans}
    assert any("3 scans tell no patient: each is taken as a patient of its own" in n for n in notes)


@pytest.mark.parametrize(
    "pattern, message",
    [
        ("p1", r"none of the groups \(\?P<patient>"),
        ("(?P<side>l", "not a regular expression: missing"),
        (r"(?P<patient>nobody\d)", r"finds no side in their names; first: .*p1_left_1\.png"),
        (r"(?P<side>p\d)", r"p1_left_1\.png: --name-pattern finds the side 'p1', not l or r"),
        (r"(?P<scan>p)\d_(?P<side>left|right)", "scan p is of two sides: left, right"),
        (r"(?P<patient>p\d)_(?P<side>(?P<scan>l)eft|right)", "scan l is of two patients: p1, p3"),
    ],
)
def test_pattern_that_does_not_fit_is_refused_and_says_why(tmp_path, pattern, message):
    write_images(tmp_path, "p1_left_1.png", "p2_right_1.png", "p3_left_1.png")
    with pytest.raises(DataError, match=message):
        dataset.find_slices(tmp_path, pattern)


def test_names_of_other_scripts_and_digits_are_read(tmp_path):
    """Digits that int() does not know, digits of another script, and a line break in a name."""
    names = ["колено_2²3.png", "膝_٣.png", "a²_².png", "two\nlines_5.png", "x#7_1.png"]
    write_images(tmp_path, *(f"{side}/{name}" for side in ("left", "right") for name in names))
    rows = found(tmp_path)
    assert ("膝_٣.png", "left", "膝", "left/膝", 3) in rows
    assert ("two\nlines_5.png", "right", "two\nlines", "right/two\nlines", 5) in rows
    assert len(rows) == 10
    assert len(found(tmp_path, r"(?P<patient>\w)(?P<slice>.)\.png")) == 10


# ---- manifest ------------------------------------------------------------------------------------


def write_manifest(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "knees.csv"
    path.write_text(text, encoding=encoding)
    return path


def test_manifest_tells_all_and_its_paths_are_relative_to_it(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    write_images(tmp_path, "a/1.png", "a/2.png", "b,c/x.png")
    text = 'path,side,patient,scan\na/1.png,L,p1 ,s1\na/2.png,left, p1,s1\n"b,c/x.png",Right,p2,\n'
    rows = found(write_manifest(tmp_path, text, "utf-8-sig"))  # Excel begins with a BOM
    assert rows == {
        ("1.png", "left", "p1", "s1", 1),
        ("2.png", "left", "p1", "s1", 2),
        ("x.png", "right", "p2", "p2 right", 0),
    }


@pytest.mark.parametrize(
    "text, message",
    [
        ("path,patient\na.png,1\n", "expected columns path,side,patient,scan, got"),
        ("path;side\na.png;l\n", "expected columns path,side,patient,scan, got"),
        ("", "expected columns"),
        ("path,side\na.png,left\nb.png,middle\n", "line 3: side must be left or right, got 'mid"),
        ("path,side\na.png\n", "line 2: side must be left or right, got None"),
        ("path,side\na.png,l\n./a.png,l\n", "line 3: ./a.png is in it twice"),
        ("path,side\n,l\n", "line 2: names no path"),
        ("path,side\nknee.nii.gz,l\n", r"knee.nii.gz.*line 2\)"),
        ("path,side\na.txt,l\n", r"a.txt: no image and no volume.*line 2\)"),
        ("path,side,patient,scan\na.png,l,p,s\nb.png,r,p,s\n", "scan s is of two sides"),
        (
            "path,side,patient,scan\na.png,l,p,s\nb.png,l,q,s\nc.png,r,q,t\n",
            "of two patients: p, q",
        ),
    ],
)
def test_manifest_that_cannot_be_used_is_refused_by_line(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        dataset.find_slices(write_manifest(tmp_path, text))


def test_manifest_and_pattern_together_are_refused(tmp_path):
    with pytest.raises(DataError, match="leave out --name-pattern"):
        dataset.find_slices(write_manifest(tmp_path, "path,side\n"), "(?P<side>l)")


def test_volumes_in_a_manifest_keep_its_side_and_disagreement_is_noted(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    for name in ("one_RIGHT.nii.gz", "two.nrrd"):
        sitk.WriteImage(sitk.Image([4, 5, 6], sitk.sitkUInt8), str(tmp_path / name))
    text = "path,side,patient\none_RIGHT.nii.gz,left,p1\ntwo.nrrd,right,p2\n"
    slices, notes = dataset.find_slices(write_manifest(tmp_path, text))
    assert {(s.scan, s.side, s.patient) for s in slices} == {
        ("one_RIGHT.nii.gz", "left", "p1"),
        ("two.nrrd", "right", "p2"),
    }
    assert slices[1].path == f"{tmp_path}/one_RIGHT.nii.gz#1" and len(slices) == 12
    assert "the manifest says left, its name right" in notes[0]


def test_pattern_makes_each_volume_a_scan_of_its_patient(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    for name in ("p1-v1-L.nii.gz", "p1-v2-L.nii.gz", "p2-v1-R.nii.gz"):
        sitk.WriteImage(sitk.Image([4, 5, 6], sitk.sitkUInt8), str(tmp_path / name))
    slices, _ = dataset.find_slices(tmp_path, r"(?P<patient>p\d)-v\d-(?P<side>[LR])")
    scans = dataset.group_scans(slices)
    assert {name: (s[0].patient, len(s)) for name, s in scans.items()} == {
        "p1-v1-L.nii.gz": ("p1", 6),
        "p1-v2-L.nii.gz": ("p1", 6),
        "p2-v1-R.nii.gz": ("p2", 6),
    }


# ---- names that tell little ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["{}.png", "img_{}.png"])
def test_nameless_slices_are_cut_into_forties_in_natural_order(tmp_path, name):
    numbers = range(1, 81)  # not zero-padded: sorted as text, 10 would come before 2
    names = [f"{side}/{name.format(i)}" for side in ("left", "right") for i in numbers]
    write_images(tmp_path, *names)
    slices, notes = dataset.find_slices(tmp_path)
    scans = dataset.group_scans(slices)
    assert list(scans) == ["left 0001", "left 0002", "right 0001", "right 0002"]
    assert {s.index for s in scans["left 0001"]} == set(range(1, 41))
    assert {s.patient for s in slices} == set(scans)
    assert any("tell no scan: 40 in sorted order are taken as one" in note for note in notes)
    assert any("if one has several, the accuracy will be too good" in note for note in notes)
    (tmp_path / names[5]).unlink()
    with pytest.raises(DataError, match=r"79 left slices tell neither .*--name-pattern or a mani"):
        dataset.find_slices(tmp_path)


def test_patient_that_is_really_named_is_not_taken_apart(tmp_path):
    write_scan(tmp_path, 1, "LEFT", 80)
    write_scan(tmp_path, 1, "RIGHT", 80)
    assert {s.patient for s in dataset.find_slices(tmp_path)[0]} == {"OAI0000001"}
    text = "path,side,patient\n" + "".join(f"{i}.png,{'lr'[i % 2]},p1\n" for i in range(160))
    slices, _ = dataset.find_slices(write_manifest(tmp_path, text))
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
    slices, notes = dataset.find_slices(inside)
    assert len(slices) == 4
    (note,) = [note for note in notes if "lead nowhere" in note]
    assert note.startswith("3 links") and str(inside / "patient 7") in note


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folder_without_permission_is_refused_by_name(tmp_path):
    write_scan(tmp_path / "a", 1, "LEFT", slices=1)
    write_scan(tmp_path / "b", 2, "RIGHT", slices=1)
    (tmp_path / "a").chmod(0)
    with pytest.raises(DataError, match=rf"{tmp_path}/a: Permission denied"):
        dataset.find_slices(tmp_path)
    (tmp_path / "a").chmod(0o700)


def test_both_knees_of_a_patient_as_volumes_are_of_one_patient(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    names = ["p1_LEFT.nii.gz", "p1_RIGHT.nii.gz", "left/p2.nrrd", "right/p2.nrrd", "p3/a_LEFT.mha"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image = sitk.GetImageFromArray(np.zeros((6, 4, 4), np.int16))
        sitk.WriteImage(image, str(tmp_path / name))
    slices, notes = dataset.find_slices(tmp_path)
    patients = {s.scan: s.patient for s in slices}
    assert patients == dict(zip(names, ["p1", "p1", "p2", "p2", "p3"], strict=True))
    assert any("patients are guessed" in note for note in notes)
