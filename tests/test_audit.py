"""audit.py: planted leaks are caught, other knees are none; what `python dataset.py DIR` says."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image

import audit
import dataset
import decode
import phantom
import splits
import train
from dataset import Slice

SIZE = ["--image-size", "76", "86"]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    """A left and a right scan, 8 slices each, of 4 patients."""
    folder = tmp_path_factory.mktemp("phantoms") / "knees"
    folder.mkdir()
    for number, side in enumerate(("left", "right") * 4):
        name = f"OAI{number // 2 + 1:07d}_BaseLine_1_0_{side.upper()}.nii.gz"
        scan = phantom.Scan(number, number // 2, side, name)
        for i, image in enumerate(phantom.render_scan(scan, seed=0)[::5]):
            Image.fromarray(image).convert("RGB").save(folder / f"{name}_{i}.png", compress_level=1)
    return folder


def name_of(patient: int, side: str, index: int) -> str:
    return f"OAI{patient:07d}_BaseLine_1_0_{side}.nii.gz_{index}.png"


def scaled(factor: float):
    return lambda image: image.resize((round(260 * factor), round(228 * factor)), Image.LANCZOS)


COPIES = {
    "exact": lambda image: image,
    "half": scaled(1 / 2),
    "third": scaled(1 / 3),
    "double": scaled(2),
    "jpeg": lambda image: image,
}


@pytest.fixture(params=COPIES)
def planted(request, phantoms, tmp_path) -> Path:
    """The phantoms with slice 3 of patient 2's right knee as slice 3 of patient 4's."""
    folder = tmp_path / "knees"
    shutil.copytree(phantoms, folder)
    with Image.open(folder / name_of(2, "RIGHT", 3)) as image:
        copy = COPIES[request.param](image)
        target = folder / name_of(4, "RIGHT", 3)
        target.unlink()
        if request.param == "jpeg":
            copy.save(target.with_suffix(".jpg"), quality=30)
        else:
            copy.save(target)
    return folder


def subsets_of_patients(folder: Path, subset_of_patient: dict[int, str], path: Path) -> Path:
    scans = dataset.group_scans(dataset.find_slices(folder)[0])
    subset_of = {name: subset_of_patient[int(s[0].patient[3:])] for name, s in scans.items()}
    splits.write_split(path, scans, subset_of)
    return path


def dry_run(folder: Path, *more: str) -> int:
    return train.main(["--data-dir", str(folder), *TINY, *SIZE, "--dry-run", *map(str, more)])


def test_knees_of_different_patients_and_visits_are_no_copies(phantoms):
    slices, _ = dataset.find_slices(phantoms)
    images, _ = decode.load_images([s.path for s in slices], (76, 86))
    assert len(slices) == 64
    assert audit.find_copies(images, [s.scan for s in slices]) == []
    # Even if each slice was a scan of its own: those of one knee are not the same picture.
    assert audit.find_copies(images, [s.path for s in slices]) == []


def test_copy_under_another_patient_keeps_both_in_one_subset_and_is_named(planted, capsys):
    for seed in range(3):
        args = train.parse_args(["--data-dir", str(planted), *SIZE, "--seed", str(seed)])
        subsets = train.read_subsets(args)
        (where,) = [
            name
            for name, subset in subsets.items()
            if {"OAI0000002", "OAI0000004"} & {s.patient for s in subset.slices}
        ]
        assert where in splits.SUBSETS
    output = capsys.readouterr().out
    assert "1 images (" in output and "of patients OAI0000002 and OAI0000004" in output
    assert name_of(2, "RIGHT", 3) in output and name_of(4, "RIGHT", 3)[:-4] in output


def test_split_file_that_separates_copies_is_refused_with_their_names(planted, tmp_path, capsys):
    split = {1: "train", 2: "train", 3: "val", 4: "test"}
    path = subsets_of_patients(planted, split, tmp_path / "split.csv")
    assert dry_run(planted, "--split-file", path) == 2
    error = capsys.readouterr().err
    assert "1 images are in more than one subset" in error
    assert f"{planted / name_of(2, 'RIGHT', 3)} (train) = " in error
    assert f"{planted / name_of(4, 'RIGHT', 3)[:-4]}" in error and "(test)" in error
    assert audit.main([str(planted), "--split-file", str(path)]) == 2
    assert name_of(2, "RIGHT", 3) in capsys.readouterr().err
    split[2] = "test"
    path = subsets_of_patients(planted, split, tmp_path / "split.csv")
    assert dry_run(planted, "--split-file", path) == 0


def test_split_by_scan_reports_copies_and_goes_on(phantoms, tmp_path, capsys):
    shutil.copytree(phantoms, tmp_path / "knees")
    for i in range(8):
        shutil.copy(phantoms / name_of(2, "LEFT", i), tmp_path / "knees" / name_of(4, "LEFT", i))
    assert dry_run(tmp_path / "knees", "--split", "scan") == 0
    assert "8 images (8 exactly) are in two scans of patients OAI0000002" in capsys.readouterr().out


def test_blank_images_are_nobodys_copies(phantoms, tmp_path):
    shutil.copytree(phantoms, tmp_path / "knees")
    for patient, grey in ((1, 0), (2, 0), (3, 0), (1, 200), (2, 200), (3, 201)):
        image = Image.new("L", (260, 228), grey)
        image.paste(grey + 2, (130, 0, 260, 228))  # faint, and the same in all
        image.save(tmp_path / "knees" / name_of(patient, "LEFT", 7 * (grey > 0)))
    slices, _ = dataset.find_slices(tmp_path / "knees")
    images, _ = decode.load_images([s.path for s in slices], (76, 86))
    assert audit.find_copies(images, [s.scan for s in slices]) == []


def test_copies_are_found_across_blocks(monkeypatch):
    monkeypatch.setattr(audit, "BLOCK", 7)
    images = torch.randint(0, 256, (50, 1, 24, 24), dtype=torch.uint8)
    images[[3, 20, 49]] = images[11].clone()
    scans = [f"{i}" for i in range(49)] + ["20"]
    pairs = [(3, 11), (3, 20), (3, 49), (11, 20), (11, 49)]  # 20 and 49 are of one scan
    assert sorted(audit.find_copies(images, scans)) == pairs


def test_patients_that_share_images_in_a_chain_are_one_group():
    slices = [Slice("", "left", patient, f"scan of {patient}", 0) for patient in "ABCDEFG"]
    for pairs in ([(0, 1), (3, 4), (1, 2)], [(1, 2), (0, 1), (4, 3)], [(0, 2), (1, 2), (3, 4)]):
        assert audit.patients_sharing_images(slices, pairs) == [{"A", "B", "C"}, {"D", "E"}]
    joined = [(0, 1), (2, 3), (4, 5), (1, 2), (3, 4)]
    assert audit.patients_sharing_images(slices, joined) == [set("ABCDEF")]
    assert audit.patients_sharing_images(slices, [(0, 0)]) == []


# ---- python dataset.py DIR -----------------------------------------------------------------------


def test_dataset_py_says_what_is_there_and_draws_it(phantoms, tmp_path, monkeypatch, capsys):
    shutil.copytree(phantoms, tmp_path / "knees")
    Image.new("L", (100, 90), 60).save(tmp_path / "knees" / name_of(1, "LEFT", 8))
    Image.new("L", (100, 90), 0).save(tmp_path / "knees" / name_of(1, "LEFT", 9))
    shutil.copy(phantoms / name_of(2, "LEFT", 3), tmp_path / "knees" / name_of(4, "LEFT", 8))
    monkeypatch.chdir(tmp_path)
    assert audit.main(["knees", "--contact-sheet", "sheet.png"]) == 0
    output, error = capsys.readouterr()
    assert error == ""
    for line in (
        "knees: 67 slices, 8 scans, 4 patients",
        "  left       35 slices,    4 scans,    4 patients",
        "  right      32 slices,    4 scans,    4 patients",
        "  both knees of 4 patients; 2.0 scans a patient",
        "  visits: BaseLine 8",
        "       65  260 x 228 RGB",
        "        2  100 x 90 L",
        "  1 slices are black",
        "test",
    ):
        assert f"\n{line}" in f"\n{output}", line
    assert "1 images (1 exactly) are in two scans of patients OAI0000002 and" in output
    assert "grey levels 0 to 255: mean" in output and "scans do not have 40" in output
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("L"))
    assert pixels.shape[1] > 1000 and pixels.std() > 40
    assert (pixels[[0, -1]] == 255).all() and (pixels[:, [0, -1]] == 255).all()  # nothing is cut


def test_contact_sheet_shows_the_pictures_in_order_and_unmirrored(tmp_path):
    """Each picture has a grey of its own in its lower half, and is bright at the right."""
    rows = []
    for row in range(3):
        pictures = np.zeros((8, 76, 86), np.uint8)
        pictures[:, 38:] = (10 + 28 * np.arange(8) + row)[:, None, None]
        pictures[:, 38:, 60:] = 255
        rows.append((f"left  scan $x^{{$ {row}", list(range(8)), list(pictures)))
    rows[1] = ("right  膝\udcff\n" + 200 * "x", [0, 5], rows[1][2][:2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as of letters that the font lacks
        audit.plots.draw_contact_sheet(rows, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        sheet = np.asarray(image.convert("L")).astype(int)
    cell, gap, head, tall = 120 * np.array([1.4, 0.05, 0.3, 1.4 * 76 / 86])
    for row, (_, numbers, pictures) in enumerate(rows):
        for column in range(len(numbers)):
            y = round(row * (head + tall) + head + 0.75 * tall)
            x = gap + column * (cell + gap)
            assert abs(sheet[y, round(x + 0.3 * cell)] - pictures[column][50, 0]) <= 1
            assert sheet[y, round(x + 0.85 * cell)] == 255
    y = round(head + tall + 0.5 * head)
    assert sheet[y - 8 : y + 8].min() < 100  # the title is there


def test_unreadable_files_are_listed_and_do_not_darken_the_rest(phantoms, tmp_path, capsys):
    shutil.copytree(phantoms, tmp_path / "knees")
    broken = [tmp_path / "knees" / name_of(1, "LEFT", i) for i in (2, 5)]
    for path in broken:
        path.write_bytes(path.read_bytes()[:3000])
    sheet = tmp_path / "sheet.png"
    assert audit.main([str(tmp_path / "knees"), "--contact-sheet", str(sheet)]) == 1
    output, error = capsys.readouterr()
    assert error.count("\n") == 2 and all(f"dataset.py: {path}: " in error for path in broken)
    assert "slices are black" not in output and "nearly black" not in output
    with Image.open(sheet) as image:
        assert (np.asarray(image.convert("L")) > 250).mean() < 0.6 and "left" in output


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere"], "nowhere: no such folder"),
        (["KNEES", "--contact-sheet", "no/such/folder.png"], "expected a .png file in a folder"),
        (["KNEES", "--contact-sheet", "sheet"], "expected a .png file in a folder that exists"),
        (["KNEES", "--name-pattern", "("], "not a regular expression"),
        (["KNEES", "--val-fraction", "2"], "got 2.0 and 0.125"),
        (["KNEES", "--split-file", "none.csv"], "none.csv"),
        (["KNEES", "--image-size", "0", "3"], "must be at least 1"),
        ([], "the following arguments are required: DIR"),
    ],
)
def test_unusable_arguments_exit_2_and_are_named(phantoms, capsys, arguments, message):
    arguments = [str(phantoms) if word == "KNEES" else word for word in arguments]
    try:
        code = audit.main(arguments)
    except SystemExit as stop:  # argparse
        code = stop.code
    assert code == 2 and message in capsys.readouterr().err


def test_all_files_unreadable_is_unusable_data(tmp_path, capsys):
    for side in ("left", "right"):
        for patient in range(3):
            path = tmp_path / side / f"p{patient}_1.png"
            path.parent.mkdir(exist_ok=True)
            path.write_text("no picture")
    assert audit.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("not an image") == 6 and "none of the files can be read" in error
