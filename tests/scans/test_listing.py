"""Folders of real small files -> slices, and what is said of others."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import write_scan
from image_files import listed, write_images, write_manifest
from PIL import Image

from scans.cache import open_pixels
from scans.labelled import list_labelled
from scans.listing import list_slices
from scans.slices import DataError, Kind, Options, by_scan

ROOT = Path(__file__).parent.parent.parent


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
    assert any("40 images copied" in note for note in notes)
    assert any(
        "1 slice without a label, left out" in note and "mystery.png" in note for note in notes
    )


def test_empty_missing_and_one_sided_folders_are_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such file or folder"):
        listed(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no images and no volumes$"):
        listed(tmp_path)
    Image.new("L", (4, 3)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"1 slice but none with a label.*a\.png"):
        listed(tmp_path)


# ---- names that tell little ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["{}.png", "img_{}.png"])
def test_nameless_slices_are_scans_of_forty_only_where_that_is_typed(tmp_path, name):
    numbers = range(1, 81)  # not zero-padded: sorted as text, 10 would come before 2
    names = [f"{side}/{name.format(i)}" for side in ("left", "right") for i in numbers]
    write_images(tmp_path, *names)
    with pytest.raises(DataError, match="nothing tells the patient of 2 scans, so") as error:
        listed(tmp_path)
    text = str(error.value)
    assert f"80 files like {names[0]}, {names[1]}, {names[2]}\n" in text
    assert "type --patients scan instead" in text
    options = Options(slices_per_scan=40, patients="scan")
    listing = list_labelled(tmp_path, None, options)
    scans = by_scan(listing.slices)
    assert list(scans) == ["left 0001", "left 0002", "right 0001", "right 0002"]
    files = [int(re.findall(r"\d+", s.source)[-1]) for s in scans["left 0001"]]
    assert files == list(range(1, 41)) and [s.number for s in scans["left 0001"]] == [*range(40)]
    assert {s.patient for s in listing.slices} == set(scans)
    assert any("of a patient of its own" in str(problem) for problem in listing.problems)
    (tmp_path / names[5]).unlink()
    with pytest.raises(DataError, match=r"79 left images of left can't be divided into scans of"):
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
    rows = (f"{x}{i}.png,{x},p1\n" for x in ("left", "right") for i in range(80))
    text = "path,side,patient\n" + "".join(rows)
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
    (note,) = [note for note in notes if "to nothing" in note]
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
    assert any("patients: the part p2 of the path; 3" in note for note in notes)


def test_labels_of_a_table_that_may_be_misspelt_are_named(tmp_path):
    rows = [f"a{p}_{i}.png,{('sound', 'ill')[p % 2]},p{p}" for p in range(4) for i in range(3)]
    path = write_manifest(tmp_path, "\n".join(["path,label,patient", *rows, "b_1.png,sund,p9"]))
    assert any("if sund is sound misspelt, correct it" in note for note in listed(path)[1])


# ---- problems ------------------------------------------------------------------------------------


def test_each_problem_has_its_kind(tmp_path):
    made = pytest.importorskip("volume_files")
    write_images(tmp_path / "knees", "left/OAI1_V_RIGHT_3.png")
    (tmp_path / "knees" / "text.nrrd").write_text("hello")
    made.write_volume(tmp_path / "scouts" / "thin.nii", made.noise(3, 9, 9))
    made.write_dicom(tmp_path / "scouts" / "scout", made.noise(3, 6, 6))
    made.write_dicom(tmp_path / "knees" / "scout", made.noise(3, 6, 6))
    made.write_volume(tmp_path / "knees" / "p2_LEFT.mha", x=-70)
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
        "knees/p2_LEFT.mha": Kind.CONTRADICTION,
        "empty": Kind.EMPTY,
        "no.nii": Kind.UNREADABLE,
    }
    texts = {os.path.relpath(p.path, tmp_path): p.text for p in listing.problems if p.path}
    assert texts["knees/left/OAI1_V_RIGHT_3.png"] == "the name says right, its folder left"
    assert texts["knees/p2_LEFT.mha"] == "the name says left, its position right"
    assert texts["empty"] == "no images and no volumes in this folder"
    assert list(map(str, listing.of_kind(Kind.REMARK))) == [
        f"1 link to nothing, left out: {tmp_path}/knees/gone",
        f"1 series too short for a scan: {tmp_path}/knees/scout",
    ]
    assert {s.label for s in listing.slices} == {""}


def test_caches_and_runs_in_the_data_are_no_data(tmp_path):
    write_images(tmp_path, "OAI1_V_LEFT_3.png", "OAI2_V_RIGHT_3.png")
    (tmp_path / "runs" / "a").mkdir(parents=True)
    for name in ("args.json", "last.pt", "roc_1.png"):
        (tmp_path / "runs" / "a" / name).write_bytes(b"")
    open_pixels(list_slices(tmp_path).slices, (4, 4), tmp_path / "kept")
    listing = list_slices(tmp_path)
    assert [s.scan for s in listing.slices] == ["OAI1_V_LEFT", "OAI2_V_RIGHT"]
    assert [str(problem) for problem in listing.problems] == [
        f"caches and runs are no data, left out: {tmp_path}/kept, {tmp_path}/runs/a"
    ]


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
    assert f"1 series too short for a scan: {tmp_path}/p1/scout" in notes
    assert any("6 slices without a label, left out" in note for note in notes)
    (tmp_path / "text.nrrd").write_text("hello")
    with pytest.raises(DataError, match=r"1 path can't be read:\n  .*text\.nrrd: "):
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


@pytest.mark.parametrize(
    "folder", [".Trash-1000/files", "@eaDir", "__MACOSX", ".ipynb_checkpoints", ".thumbnails"]
)
def test_hidden_folders_are_left_out_and_said(tmp_path, folder):
    write_images(tmp_path / "d", *(f"{x}/p{p}_1.png" for x in ("left", "right") for p in (1, 2)))
    write_images(tmp_path / "d", f"left/{folder}/p9_1.png")
    slices, problems = listed(tmp_path / "d")
    assert len(slices) == 4
    assert any("1 hidden folder, left out: " in str(p) and folder.split("/")[0] in str(p)
               for p in problems)  # fmt: skip
    (tmp_path / "d").rename(tmp_path / ".data")  # a folder that is named is not hidden
    assert len(listed(tmp_path / ".data")[0]) == 4


def test_files_of_other_kinds_are_counted_by_their_endings(tmp_path):
    write_images(tmp_path, *(f"{x}/p{p}_1.png" for x in ("left", "right") for p in (1, 2)))
    for name in ("a.h5", "b.H5", "c.npz", "d.psd", "labels.csv", "Thumbs.db", ".DS_Store", "notes"):
        (tmp_path / "left" / name).write_bytes(b"something else")
    _, problems = listed(tmp_path)
    assert [str(p) for p in problems if "not read" in str(p)] == [
        "4 files not read: 2 .h5, 1 .npz, 1 .psd"
    ]


def test_where_nothing_is_read_the_endings_are_named(tmp_path):
    for i in range(3):
        (tmp_path / f"p{i}.h5").write_bytes(b"something else")
    with pytest.raises(DataError, match=r"no images and no volumes\n3 files not read: 3 \.h5"):
        list_labelled(tmp_path)
