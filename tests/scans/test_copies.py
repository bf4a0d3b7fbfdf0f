"""scans/copies.py: planted leaks are caught, other knees are none."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import TINY, name_of
from PIL import Image

import dataset
import train
from scans import copies, splits
from scans.cache import decode_slices
from scans.labelled import list_labelled
from scans.slices import Slice, by_scan

SIZE = ["--image-size", "76", "86"]


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
    scans = by_scan(list_labelled(folder).slices)
    subset_of = {name: subset_of_patient[int(s[0].patient[3:])] for name, s in scans.items()}
    splits.write_split(path, scans, subset_of)
    return path


def read(folder: Path) -> tuple[list[Slice], torch.Tensor]:
    slices = list_labelled(folder).slices
    return slices, torch.from_numpy(decode_slices(slices, (76, 86)).pixels)


def dry_run(folder: Path, *more: str) -> int:
    return train.main(["--data-dir", str(folder), *TINY, *SIZE, "--dry-run", *map(str, more)])


def test_knees_of_different_patients_and_visits_are_no_copies(phantoms):
    slices, pixels = read(phantoms)
    assert len(slices) == 64
    assert copies.find_copies(pixels, [s.scan for s in slices]) == []
    # Even if each slice was a scan of its own: those of one knee are not the same picture.
    assert copies.find_copies(pixels, [s.source for s in slices]) == []


def test_copy_under_another_patient_keeps_both_in_one_subset_and_is_named(planted, capsys):
    for seed in range(3):
        args = train.parse_args(["--data-dir", str(planted), *SIZE, "--seed", str(seed)])
        subsets = train.read_subsets(args, args.classes)
        (where,) = [
            name
            for name, subset in subsets.items()
            if {"OAI0000002", "OAI0000004"} & {s.patient for s in subset.samples}
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
    assert dataset.main([str(planted), "--split-file", str(path)]) == 2
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
    slices, pixels = read(tmp_path / "knees")
    assert copies.find_copies(pixels, [s.scan for s in slices]) == []


def test_copies_are_found_across_blocks(monkeypatch):
    monkeypatch.setattr(copies, "BLOCK", 7)
    images = torch.randint(0, 256, (50, 1, 24, 24), dtype=torch.uint8)
    images[[3, 20, 49]] = images[11].clone()
    scans = [f"{i}" for i in range(49)] + ["20"]
    pairs = [(3, 11), (3, 20), (3, 49), (11, 20), (11, 49)]  # 20 and 49 are of one scan
    assert sorted(copies.find_copies(images, scans)) == pairs


def test_patients_that_share_images_in_a_chain_are_one_group():
    slices = [Slice("", None, "left", name, f"scan of {name}", 0) for name in "ABCDEFG"]
    for pairs in ([(0, 1), (3, 4), (1, 2)], [(1, 2), (0, 1), (4, 3)], [(0, 2), (1, 2), (3, 4)]):
        assert copies.patients_sharing_images(slices, pairs) == [{"A", "B", "C"}, {"D", "E"}]
    joined = [(0, 1), (2, 3), (4, 5), (1, 2), (3, 4)]
    assert copies.patients_sharing_images(slices, joined) == [set("ABCDEF")]
    assert copies.patients_sharing_images(slices, [(0, 0)]) == []
