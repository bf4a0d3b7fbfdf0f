"""Pipes, sockets and devices in the place of files: refused by kind, and nothing waits for them."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY

from perceiver import Perceiver

ROOT = Path(__file__).parent.parent
SECONDS = 100  # for each of the processes below, which take some 10
ENDINGS = ".nii .nii.gz .nrrd .nhdr .mha .mhd .npy .dcm .tar .tar.gz .png .jpg .tif .bmp".split()
# Runs a program several times, a list of arguments a line, and says its exit code after each.
RUN_EACH = """
import importlib, json, sys
program = importlib.import_module(sys.argv[1])
for line in sys.stdin:
    code = program.main(json.loads(line))
    print(f"exit {code}", "---", sep="\\n", file=sys.stderr, flush=True)
"""
META = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = 9 9 9\nElementType = MET_SHORT\n"
)
NRRD = "NRRD0004\ntype: short\ndimension: 3\nsizes: 9 9 9\nencoding: raw\nendian: little\n"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.pt"
    model = Perceiver(2, num_latents=4, latent_dim=8, depth=1, latent_heads=1)
    model.preprocessing |= {"classes": ["left", "right"], "image_size": [16, 16]}
    model.calibration["unsure_below"] = 0.6
    torch.save(model.checkpoint(), path)
    return path


def run_each(program: str, runs: list[list], folder: Path) -> list[str]:
    """What each run printed, with its exit code at the end."""
    lines = "".join(json.dumps(list(map(str, run))) + "\n" for run in runs)
    done = subprocess.run(
        [sys.executable, "-c", RUN_EACH, program],
        input=lines,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return [said.strip() for said in done.stderr.split("---\n")[:-1]]


def pipe_folders(root: Path) -> list[Path]:
    """A folder for each file that is a pipe, or names one."""
    folders = []
    for number, ending in enumerate(ENDINGS):
        folder = root / f"{number}" / "left"
        folder.mkdir(parents=True)
        os.mkfifo(folder / f"p1{ending}")
        folders.append(folder.parent)
    named = {"a.mhd": META + "ElementDataFile = {}\n", "a.nhdr": NRRD + "data file: {}\n"}
    for name, header in named.items():
        for data in ("pipe.raw", "/dev/zero"):
            folder = root / f"{len(folders)}" / "left"
            folder.mkdir(parents=True)
            os.mkfifo(folder / "pipe.raw")
            (folder / name).write_text(header.format(data))
            folders.append(folder.parent)
    return folders


@pytest.mark.slow
def test_pipes_in_folders_are_named_and_not_waited_for(tmp_path, checkpoint):
    folders = pipe_folders(tmp_path / "data")
    cache = ["--cache-dir", tmp_path / "cache"]
    runs = {
        "dataset": [[folder, *cache] for folder in folders],
        "train": [["--data-dir", folder, "--dry-run", *cache, *TINY] for folder in folders],
        "predict": [[checkpoint, folder] for folder in folders],
    }
    runs["dataset"] += [[f, "--write-slices", tmp_path / f"{f.name}"] for f in folders]
    for program, some in runs.items():
        said = run_each(program, some, tmp_path)
        assert len(said) == len(some)
        for arguments, text in zip(some, said, strict=True):
            assert not text.endswith("exit 0"), (program, arguments)
            if program != "train" or "right" not in text:  # images are decoded after all else
                assert "a pipe" in text or "a device" in text, (program, arguments, text)


@pytest.mark.slow
def test_pipes_on_the_command_line_are_named(tmp_path, checkpoint, knees):
    for name in ("pipe", "pipe.csv", "pipe.nii", "pipe.png"):
        os.mkfifo(tmp_path / name)
    cache = ["--cache-dir", tmp_path / "cache"]
    pipes = {
        "dataset": [
            [tmp_path / "pipe.csv", *cache],
            [knees, "--labels", tmp_path / "pipe.csv", *cache],
            [knees, "--split-file", tmp_path / "pipe.csv", *cache],
        ],
        "predict": [[checkpoint, tmp_path / name] for name in ("pipe.csv", "pipe.nii", "pipe.png")],
        "train": [
            ["--data-dir", tmp_path / "pipe.csv", *TINY],
            [
                "--data-dir",
                knees,
                "--split-file",
                tmp_path / "pipe.csv",
                "--dry-run",
                *TINY,
                *cache,
            ],
        ],
    }
    for program, some in pipes.items():
        for arguments, text in zip(some, run_each(program, some, tmp_path), strict=True):
            assert "a pipe" in text and not text.endswith("exit 0"), (program, arguments, text)
    (found,) = run_each("predict", [[checkpoint, tmp_path / "pipe"]], tmp_path)
    assert "no image and no volume" in found or "a pipe" in found


LOAD = """
import sys
from pathlib import Path
from dataset import list_labelled, load_dataset
from scans.copies import open_copies
from scans.slices import Options
listing = list_labelled(sys.argv[1], options=Options(patients="scan", cache_dir=Path(sys.argv[2])))
data = load_dataset(listing, (16, 16), sys.argv[2])
open_copies(data.pixels, data.slices, data.crc32, sys.argv[2])
print(data.crc32)
"""


def load(data: Path, cache: Path) -> str:
    """The checksum of its pixels, read with this cache by a process of its own."""
    command = [sys.executable, "-c", LOAD, data, cache]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_pipes_in_the_cache_are_replaced(tmp_path):
    """Pixels, what is known of them, copies and headers."""
    pytest.importorskip("SimpleITK")
    from volume_files import write_volume

    for number in range(6):
        write_volume(tmp_path / "data" / f"p{number}" / ("LEFT.nii", "RIGHT.nii")[number % 2])
    cache = tmp_path / "cache"
    checksum = load(tmp_path / "data", cache)
    kept = [path for path in cache.rglob("*") if path.is_file()]
    assert {path.suffix for path in kept} == {".npy", ".json", ""} and len(kept) == 9
    for path in kept:
        path.unlink()
        os.mkfifo(path)
    assert load(tmp_path / "data", cache) == checksum
    assert all(path.is_file() for path in kept)


@pytest.mark.slow
def test_an_endless_list_is_refused(tmp_path, checkpoint):
    """`predict.py CK - < /dev/zero` took 7 GB in 8 seconds."""
    code = "import predict; print(predict.main([{!r}, '-'])); "
    code += "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    with open("/dev/zero", "rb") as zeros:
        done = subprocess.run(
            [sys.executable, "-c", code.format(str(checkpoint))],
            stdin=zeros,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    code, kilobytes = map(int, done.stdout.split())
    assert code == 2 and kilobytes < 1_000_000
    assert done.stderr.startswith("predict.py: standard input, line 1: more than 32,768 bytes")


@pytest.mark.parametrize(
    "content, names",
    [
        (b"", []),
        (b"\r\n\r\n", []),
        (b"a.png\r\nb\xff.png\r\n", ["a.png", "b\udcff.png"]),
        (b"a\0b.png\n\x1b[1m.png", ["a\0b.png", "\x1b[1m.png"]),
    ],
)
def test_names_on_standard_input_are_read_as_they_are(content, names):
    from scans.listing import read_names

    assert list(read_names(io.BytesIO(content))) == names


@pytest.mark.slow
def test_standard_input_is_read_once(tmp_path, checkpoint):
    (text,) = run_each("predict", [[checkpoint, "-", "-"]], tmp_path)
    assert "- is given twice" in text and text.endswith("exit 2")
