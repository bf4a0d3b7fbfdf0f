"""Small real knees for the tests of the programs."""

import csv
import locale
import os
import shutil
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # more threads than processors are far slower
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from PIL import Image

import perceiver
from perceiver import ReadTokens
from scans.slices import Slicing, Volume

LOCALE = locale.setlocale(locale.LC_ALL)  # that of the process, before any test
# A model and a run that take seconds.
TINY = (
    "--image-size 16 16 --num-latents 8 --latent-dim 16 --depth 2 --latent-heads 2 "
    "--latent-dim-head 8 --num-freq-bands 3 --epochs 12 -b 16 --lr 1e-2 --device cpu"
).split()
# Everything that draws random numbers is on; 6 steps an epoch, saved after every second.
FLAGS = [*TINY, "--epochs", "3", "--ff-dropout", "0.2", "--augment", "--mirror-swap"]
FLAGS += ["--save-every-steps", "2"]


@pytest.fixture(autouse=True)
def own_locale():
    """GDCM, which writes DICOM for some tests and fixtures, leaves the process with ASCII."""
    locale.setlocale(locale.LC_ALL, LOCALE)
    yield
    locale.setlocale(locale.LC_ALL, LOCALE)


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


@pytest.fixture
def short_blocks(monkeypatch):
    """Blocks so short that small inputs need several, of tokens and of samples."""
    monkeypatch.setattr(ReadTokens, "BLOCK", 50)
    monkeypatch.setattr(ReadTokens, "SCORES", 2000)


@pytest.fixture
def reads(monkeypatch) -> list:
    """Grows by one with every direct read of the tokens."""
    taken = []

    def read_tokens(query, tokens, onednn):
        taken.append(query.shape)
        return ReadTokens.apply(query, tokens, onednn)

    monkeypatch.setattr(perceiver, "read_tokens", read_tokens)
    return taken


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


@pytest.fixture(scope="session")
def whole_run(knees, tmp_path_factory) -> Path:
    """A run that nothing interrupted."""
    import train

    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train.main(["--data-dir", str(knees), "--output-dir", str(folder), *FLAGS]) == 0
    return folder


@pytest.fixture(scope="session")
def knees_of_nine(tmp_path_factory) -> Path:
    """Of six patients in `old`, who are trained on, and three in `new`; a left and a right scan."""
    folder = tmp_path_factory.mktemp("ensemble")
    write_knees(folder / "old", patients=9, slices=6)
    (folder / "new").mkdir()
    for patient in (6, 7, 8):
        for path in (folder / "old").glob(f"OAI900000{patient}*"):
            path.rename(folder / "new" / path.name)
    return folder


@pytest.fixture(scope="session")
def folds(knees_of_nine) -> Path:
    from folds import train_folds

    train_folds(knees_of_nine / "old", knees_of_nine / "folds")
    return knees_of_nine / "folds"


@pytest.fixture
def own(folds, tmp_path) -> Path:
    """A copy, to be changed."""
    shutil.copytree(folds, tmp_path / "own")
    return tmp_path / "own"


@pytest.fixture
def new(knees_of_nine) -> Path:
    return knees_of_nine / "new"


@pytest.fixture
def old(knees_of_nine) -> Path:
    return knees_of_nine / "old"


def assert_same_run(folder: Path, other: Path) -> None:
    """Bit for bit: weights, optimizer, best checkpoint, metrics (but for the time it took)."""
    for name in ("last.pt", "best.pt"):
        a, b = (torch.load(run / name, weights_only=True) for run in (folder, other))
        for key in a["model"]:
            assert torch.equal(a["model"][key], b["model"][key]), f"{name}: {key}"
        for i, state in a["optimizer"]["state"].items():
            for key, value in state.items():
                assert torch.equal(value, b["optimizer"]["state"][i][key]), f"{name}: {i} {key}"
        assert a["optimizer"]["param_groups"] == b["optimizer"]["param_groups"]
    rows = []
    for run in (folder, other):
        with (run / "metrics.csv").open(newline="") as file:
            rows.append([{**row, "seconds": ""} for row in csv.DictReader(file)])
    assert rows[0] == rows[1]
    for name in ("test_metrics.json", "test_predictions.csv", "split.csv"):
        assert (folder / name).read_text() == (other / name).read_text(), name


def name_of(patient: int, side: str, index: int) -> str:
    return f"OAI{patient:07d}_BaseLine_1_0_{side}.nii.gz_{index}.png"


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Path:
    """A left and a right scan, 8 slices each, of 4 patients."""
    from scans import phantom

    folder = tmp_path_factory.mktemp("phantoms") / "knees"
    folder.mkdir()
    for number, side in enumerate(("left", "right") * 4):
        name = name_of(number // 2 + 1, side.upper(), 0).removesuffix("_0.png")
        scan = phantom.Scan(number, number // 2, side, name)
        for i, image in enumerate(phantom.render_scan(scan, seed=0)[::5]):
            Image.fromarray(image).convert("RGB").save(folder / f"{name}_{i}.png", compress_level=1)
    return folder


def volume_towards(towards: str, path: str = "a.nii") -> Volume:
    """A header whose slices, rows and columns (axes k, j, i) go to these directions: "LIP"."""
    direction = np.zeros((3, 3))
    for axis, letter in zip((2, 1, 0), towards, strict=True):
        place = "LPSRAI".index(letter)
        direction[place % 3, axis] = 1 if place < 3 else -1
    slicing = Slicing((2, 1, 0), (False,) * 3, 4, 8, 10)
    about = (10, 8, 12), (1.0, 1.0, 3.0), (0.0, 0.0, 0.0), direction, 1, frozenset(), {}
    return Volume(path, (path,), *about, slicing=slicing)


@pytest.fixture
def in_this_process(monkeypatch):
    """Files are read here: processes of their own don't see what a test patches."""
    from common import isolation
    from scans import cache, headers, overview, writing

    def isolated(work, tasks, *_, **__):
        return (isolation.attempt(work, task) for task in tasks)

    for module in (cache, headers, overview, writing):
        monkeypatch.setattr(module, "isolated", isolated)
