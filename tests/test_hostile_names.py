"""Names that hold anything: no byte of them moves the cursor of a terminal, or fakes a line."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image

from common.tables import read_csv
from perceiver import Perceiver

ROOT = Path(__file__).parent.parent
NAMES = [
    b"\x1b[2J\x1b]0;title\x07",
    b"a\ndataset.py: all is well",
    b"a\r\x08\x08b",
    "\u202egnp".encode(),
    "\u2028line".encode(),
    b"\x9b31m \xc2\x9b31m",
    b"\xff\xfe",
    b"-rf",
    b"--help",
    b"=1+1",
    b"+x",
    b"@SUM(A1)",
    b"\t\ttab",
    b"a,b;c",
    b"q\"'`$(x)",
    b"%41%0A%2F",
    b"x" * 60,
    b" lead and trail ",
    b"P1",
    b"p1",
]
SCAN = ["--patients", "scan"]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> dict[str, Path]:
    """Folders: of such names and patients, of damaged files of such names; and a model."""
    base = tmp_path_factory.mktemp("hostile")
    root = Path(os.fsdecode(os.path.join(os.fsencode(base), b"kne\xffes\x1b[31m")))
    rng = np.random.default_rng(0)
    for side in ("left", "right"):
        for name in NAMES:
            folder = root / side / os.fsdecode(name)
            folder.mkdir(parents=True)
            for number in range(2):
                pixels = rng.integers(0, 160, (16, 16)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"s_{number}.png", "PNG")
    (root / "left" / "loop\x1b[1m").symlink_to(root)
    damaged = root.with_name("damaged\x1b[1m")
    for number, name in enumerate(NAMES):
        for ending in (".png", ".nii", ".mha", ".nrrd", ".dcm", ".npy", ".tar.gz", ".tif"):
            folder = damaged / "left" / f"p{number}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{os.fsdecode(name)}{ending}").write_bytes(b"\x1b[31mno\n" + name * 60)
    (damaged / "left" / "gone\x1b[1m.png").symlink_to("/nowhere\x1b[1m")
    model = Perceiver(2, num_latents=4, latent_dim=8, depth=1, latent_heads=1)
    model.preprocessing |= {"classes": ["left", "right"], "image_size": [16, 16]}
    model.calibration["unsure_below"] = 0.6
    torch.save(model.checkpoint(), base / "model.pt")
    return {"root": root, "damaged": damaged, "model": base / "model.pt"}


def run(folder: Path, *command: str | Path) -> subprocess.CompletedProcess:
    """Every byte that a program printed is text in lines without a control character."""
    done = subprocess.run(
        [sys.executable, ROOT / command[0], *command[1:]],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=200,
    )
    for line in (done.stdout + done.stderr).split(b"\n"):
        assert line.decode().isprintable(), line
    assert b"Traceback" not in done.stderr and done.returncode in (0, 1, 2, 3), done.stderr
    assert not any(line.startswith(b"dataset.py: all is well") for line in done.stdout.split(b"\n"))
    return done


@pytest.mark.slow
def test_programs_print_no_control_character_of_a_name(hostile, tmp_path):
    root, model = hostile["root"], hostile["model"]
    assert run(tmp_path, "dataset.py", root, *SCAN).returncode == 0
    assert run(tmp_path, "dataset.py", root).returncode == 2
    train = ["train.py", "--data-dir", root, "--dry-run", *TINY]
    assert run(tmp_path, *train, *SCAN).returncode == 0
    assert run(tmp_path, *train).returncode == 2
    for more in (["-o", tmp_path / "out\x1b[1m"], ["--audit"], ["--json"]):
        assert run(tmp_path, "predict.py", model, root, *more).returncode in (0, 3)


@pytest.mark.slow
def test_programs_print_no_control_character_of_what_is_damaged(hostile, tmp_path):
    damaged, model = hostile["damaged"], hostile["model"]
    for command in (
        ["dataset.py", damaged],
        ["dataset.py", damaged, "--write-slices", tmp_path / "out"],
        ["train.py", "--data-dir", damaged, "--dry-run", *TINY],
        ["predict.py", model, damaged],
        ["predict.py", model, damaged / "left" / "no\x1b[1m.nii", "\x1b[2J.png"],
        ["dataset.py", damaged, "--labels", "\x1b[1m\n.csv"],
        ["dataset.py", damaged, "--name-pattern", "\x1b[1m("],
        ["train.py", "--data-dir", damaged, "--classes", "\x1b[1m", "\x1b[2m", *TINY],
    ):
        assert run(tmp_path, *command).returncode in (1, 2), command


@pytest.mark.slow
def test_slices_that_are_written_are_read_back_by_the_same_names(hostile, tmp_path):
    out = tmp_path / "out"
    command = ["dataset.py", hostile["root"], *SCAN]
    assert run(tmp_path, *command, "--write-slices", out).returncode == 0
    names = sorted(os.fsencode(path.name) for path in out.iterdir())
    assert len(names) == 2 * 2 * len(NAMES)
    run(tmp_path, "dataset.py", out, "--write-slices", tmp_path / "again")
    again = sorted(os.fsencode(path.name) for path in (tmp_path / "again").iterdir())
    assert sorted(map(bytes.lower, again)) == sorted(map(bytes.lower, names))  # p1 is P1


def test_a_split_of_such_names_is_read_back(tmp_path):
    for number, name in enumerate(NAMES[:-2] * 2):
        subset = ("train", "val", "test")[number % 3]
        for side in ("left", "right"):
            folder = tmp_path / "data" / subset / side / f"{os.fsdecode(name)}{number}"
            folder.mkdir(parents=True)
            Image.new("L", (8, 8), number).save(folder / "s_0.png", "PNG")
    split = tmp_path / "split.csv"
    command = ["dataset.py", tmp_path / "data", *SCAN]
    done = run(tmp_path, *command, "--write-split", split)
    assert done.returncode == 0
    rows = [row.cells for row in read_csv(split, "split file").rows]
    known = {os.fsencode(row["scan"]) for row in rows}
    assert len(rows) == len(known) == 4 * len(NAMES[:-2])
    assert any(b"\x1b[2J" in scan for scan in known) and any(b"\n" in scan for scan in known)
    with split.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert not any(cell[:1] in "=+-@\t\r" for row in csv.reader(file) for cell in row if cell)
    assert run(tmp_path, *command, "--split-file", split).returncode == 0
