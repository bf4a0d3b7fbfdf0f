"""dataset.py on real small files: names, folders, litter."""

from pathlib import Path

import pytest
from PIL import Image

import dataset
from dataset import DataError

AKOA = "OAI{patient:07d}_BaseLine_3_{hash:05x}_SAG_3D_DESS_WE_{side}.nii.gz"


def write_scan(folder: Path, patient: int, side: str, slices: int = 40, hash: int = 0) -> str:
    name = AKOA.format(patient=patient, side=side, hash=hash)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(slices):
        Image.new("RGB", (4, 3)).save(folder / f"{name}_{index}.png")
    return name


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
    assert any("1 images tell no side" in note and "mystery.png" in note for note in notes)


def test_empty_missing_and_one_sided_folders_are_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        dataset.find_slices(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no images; expected names like OAI"):
        dataset.find_slices(tmp_path)
    Image.new("L", (4, 3)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"1 images or volumes but none with a side.*a\.png"):
        dataset.find_slices(tmp_path)
    write_scan(tmp_path, 1, "RIGHT", slices=2)
    with pytest.raises(DataError, match="none of the left side"):
        dataset.find_slices(tmp_path)


@pytest.mark.parametrize(
    "name, patient, scan",
    [
        ("left/p01_7.png", "p01", "left/p01"),
        ("left/p01/7.png", "p01", "left/p01"),
        ("left/p01/visit2/7.png", "p01", "left/p01/visit2"),
        ("p01/left/7.png", "p01", "p01/left"),
        ("visit2/Left/p01_7.png", "p01", "visit2/left/p01"),
        ("knees/left/p01/a-7.png", "p01", "knees/left/p01/a"),
    ],
)
def test_visits_in_folders_belong_to_one_patient(name, patient, scan):
    parsed = dataset.parse_name(Path(name))
    assert (parsed.side, parsed.patient, parsed.scan, parsed.index) == ("left", patient, scan, 7)
