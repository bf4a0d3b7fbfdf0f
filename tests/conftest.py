"""Small real knees for the tests of the programs."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# A model and a run that take seconds.
TINY = (
    "--image-size 16 16 --num-latents 8 --latent-dim 16 --depth 2 --latent-heads 2 "
    "--latent-dim-head 8 --num-freq-bands 3 --epochs 12 -b 16 --lr 1e-2 --device cpu"
).split()


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory):
    """No test leaves files, such as cache/, in the folder that it was started from."""
    os.chdir(tmp_path_factory.mktemp("cwd"))


AKOA = "OAI{patient:07d}_BaseLine_3_{hash:05x}_SAG_3D_DESS_WE_{side}.nii.gz"


def write_scan(folder: Path, patient: int, side: str, slices: int = 40, hash: int = 0) -> str:
    name = AKOA.format(patient=patient, side=side, hash=hash)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(slices):
        Image.new("RGB", (4, 3)).save(folder / f"{name}_{index}.png")
    return name


def write_knees(folder: Path, patients: int = 8, slices: int = 8, seed: int = 0) -> None:
    """Noisy images, brighter on the side that their name says; two scans a patient."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for patient in range(patients):
        for side in ("LEFT", "RIGHT"):
            for index in range(slices):
                pixels = rng.integers(0, 160, size=(16, 16))
                pixels[:, :8] += 60 * (side == "LEFT")
                pixels[:, 8:] += 60 * (side == "RIGHT")
                name = f"OAI{9000000 + patient}_BaseLine_1_0_{side}.nii.gz_{index}.png"
                Image.fromarray(pixels.astype(np.uint8)).convert("RGB").save(folder / name)


@pytest.fixture(scope="session")
def knees(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "knees"
    write_knees(folder)
    return folder


@pytest.fixture(scope="session")
def finished_run(knees, tmp_path_factory) -> Path:
    """The run folder of a tiny training on `knees`."""
    import train

    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train.main(["--data-dir", str(knees), "--output-dir", str(folder), *TINY]) == 0
    return folder
