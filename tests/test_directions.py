"""The same knee stored in two ways: one of them must not be trained on, written or predicted."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from volume_files import sitk, volume, write_volume

import dataset
import predict
import train

STORED, MIRRORED = "stored", "mirrored"


def write_knee(path: Path, direction=STORED) -> None:
    """Two files of one name and other directions are the same knee in space."""
    seed = sum(map(ord, path.name))
    pixels = np.random.default_rng(seed).integers(0, 999, (6, 9, 12)).astype(np.int16)
    image = volume(pixels, x=70.0 if "LEFT" in path.name else -70.0)
    if direction == MIRRORED:
        image = sitk.Flip(image, (True, False, False))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """Eight patients; the files of the last are stored with their columns the other way round."""
    folder = tmp_path_factory.mktemp("mixed") / "knees"
    for patient in range(8):
        for side in ("LEFT", "RIGHT"):
            direction = MIRRORED if patient == 7 else STORED
            write_knee(folder / f"p{patient}_{side}.nii.gz", direction)
    return folder


def run_main(main, *arguments) -> int:
    return main(list(map(str, arguments)))


@pytest.mark.parametrize("program", ["train", "dataset", "writing"])
def test_slices_of_several_directions_are_refused_and_the_printed_plane_reads_them(
    program, mixed, tmp_path, capsys
):
    cache = ["--cache-dir", tmp_path / "cache"]
    sheet = ["--contact-sheet", tmp_path / "sheet.png"]
    main, arguments = {
        "train": (train.main, ["--data-dir", mixed, "--dry-run", *TINY, *cache]),
        "dataset": (dataset.main, [mixed, *sheet, *cache]),
        "writing": (dataset.main, [mixed, "--write-slices", tmp_path / "slices", *cache]),
    }[program]
    assert run_main(main, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "p7_LEFT.nii.gz: rows and columns go to IA, but those of" in line
    (typed,) = re.findall(r"--plane \w+", line)
    assert run_main(main, *arguments, *shlex.split(typed)) == 0


def test_a_model_of_slices_reads_volumes_of_its_own_direction_alone(mixed, tmp_path, capsys):
    (tmp_path / "one").mkdir()
    for path in mixed.glob("p[0-6]*"):
        (tmp_path / "one" / path.name).symlink_to(path)
    flags = ["--data-dir", tmp_path / "one", "--output-dir", tmp_path / "run", *TINY]
    assert run_main(train.main, *flags, "--cache-dir", tmp_path / "cache") == 0
    best = tmp_path / "run" / "best.pt"
    checkpoint = torch.load(best, weights_only=True)
    assert checkpoint["preprocessing"]["orientation"] == "IP"
    capsys.readouterr()
    assert run_main(predict.main, best, tmp_path / "one") == 0
    assert run_main(predict.main, best, mixed) == 1
    said = capsys.readouterr()
    assert said.err.count("rows and columns go to IA, but those that were trained on to IP") == 2
    # A model that was trained on images, or long ago, can't say which of them it knows.
    checkpoint["preprocessing"]["orientation"] = ""
    torch.save(checkpoint, tmp_path / "old.pt")
    assert run_main(predict.main, tmp_path / "old.pt", mixed / "p7_LEFT.nii.gz") == 0
    assert run_main(predict.main, tmp_path / "old.pt", mixed) == 2
    assert "rows and columns go to IA, but those of" in capsys.readouterr().err


def test_stored_in_two_ways_a_knee_is_the_same_where_a_plane_is_named(tmp_path):
    from scans.series import open_volume
    from scans.slices import Options
    from scans.volumes import read_slices

    for name, direction in (("stored", STORED), ("mirrored", MIRRORED)):
        write_knee(tmp_path / name / "p1_LEFT.nii.gz", direction)
    read = {
        (name, plane): read_slices(
            open_volume(f"{tmp_path}/{name}/p1_LEFT.nii.gz", Options(plane=plane))
        )
        for name in ("stored", "mirrored")
        for plane in ("stored", "sagittal", "coronal", "axial")
    }
    assert np.array_equal(read["stored", "stored"], read["mirrored", "stored"][:, :, ::-1])
    for plane in ("sagittal", "coronal", "axial"):
        assert np.array_equal(read["stored", plane], read["mirrored", plane])


def test_volumes_without_geometry_are_not_compared(tmp_path):
    for name in ("p1_LEFT.npy", "p2_RIGHT.npy"):
        np.save(tmp_path / name, np.zeros((6, 8, 8), np.uint8))
    write_volume(tmp_path / "p3_LEFT.nii.gz")
    assert len(dataset.list_labelled(tmp_path).slices) == 18
