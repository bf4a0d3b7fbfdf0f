"""What can be told before any data is read, or decoded."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY, write_knees

import train
from training import checks

ROOT = Path(__file__).parents[2]


def refused(arguments: list, capsys) -> str:
    try:
        code = train.main([str(word) for word in arguments])
    except SystemExit as stopped:
        code = stopped.code
    output = capsys.readouterr()
    assert code == 2 and len(output.err.splitlines()) == 1
    return output.err + output.out


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--output-dir", "FILE"], "is a file; name a folder as --output-dir"),
        (["--output-dir", "FILE/run"], "is no folder"),
        (["--output-dir", "/proc/run"], "/proc/run: No such file or directory"),
        (["--output-dir", "./not-even-there/"], "is --data-dir; its pictures would be data"),
        (["--slices", "100000"], "--slices: expected at most 65,536, got 100,000"),
        (["--echo", "100000"], "--echo: expected at most 65,536, got 100,000"),
        (["--name-pattern", "x" * 1001], "--name-pattern: expected at most 1,000 characters"),
        (["--cache-dir", "FILE"], "is no folder"),
        (["--cache-dir", "FILE/cache"], "is no folder"),
        (["--split-file", "none.csv"], "none.csv: No such file"),
        (["--split-file", "FOLDER"], "a folder, expected a file"),
        (["--labels", "none.csv"], "none.csv: No such file"),
        (["--val-fraction", "0.9", "--test-fraction", "0.5"], "leave nothing to train on"),
        (["--val-fraction", "nan"], "--val-fraction: expected a number above 0 and below 1"),
        (["--test-fraction", "-0"], "--test-fraction: expected a number above 0 and below 1"),
        (["--num-latents", "65536", "--latent-dim", "65536"], "GB to train, and there are"),
        (["--depth", "100000"], "--depth: expected a whole number from 1 to 65,536, got 100000"),
        (["--num-latents", "0"], "--num-latents: expected a whole number from 1 to 65,536, got 0"),
        (["--max-freq", "1e308"], "--max-freq: expected a number above 0 and at most 2**127"),
        (["--max-freq", "nan"], "--max-freq: expected a number above 0 and at most 2**127"),
        (["--ff-dropout", "1"], "--ff-dropout: expected a number of at least 0 and below 1, got 1"),
        (
            ["--depth", "600", "--self-per-cross-attn", "2"],
            "--depth 600 times --self-per-cross-attn 2: expected at most 1,000 layers",
        ),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_it_is_refused_before_any_data_is_read(tmp_path, capsys, flags, message):
    (tmp_path / "file").touch()
    words = {"FILE": str(tmp_path / "file"), "FOLDER": str(tmp_path)}
    flags = [word.replace("FILE", words["FILE"]).replace("FOLDER", str(tmp_path)) for word in flags]
    output = ["--output-dir", tmp_path / "run"] if "--output-dir" not in flags else []
    said = refused(["--data-dir", "not-even-there", *TINY, *output, *flags], capsys)
    assert message in said and "not-even-there: no such" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_averaged_weights_take_memory_too(tmp_path, capsys, monkeypatch):
    flags = ["--data-dir", tmp_path, *TINY, "--output-dir", tmp_path / "run"]
    monkeypatch.setattr(checks, "memory_of", lambda device: 1)
    assert " takes 0 GB to train" in refused(flags, capsys)
    monkeypatch.setattr(checks, "OF_AN_AVERAGE", 1e6)  # so that it shows in a model so small
    assert " takes 0 GB to train" not in refused([*flags, "--ema", "0.9"], capsys)


def test_what_is_in_the_way_of_a_file_of_the_run_is_found_before_any_data_is_read(
    finished_run, tmp_path, capsys
):
    """All that a run writes, in a new folder and in one that is gone on with."""
    names = [path.name for path in finished_run.iterdir()] + ["failed_batch.txt"]
    for name in names:
        folder = tmp_path / name
        (folder / name).mkdir(parents=True)
        said = refused(["--data-dir", "not-even-there", *TINY, "--output-dir", folder], capsys)
        assert f"{folder / name}: a folder is in the way" in said
    resumed = tmp_path / "resumed"
    shutil.copytree(finished_run, resumed)
    (resumed / "errors.png").unlink()
    (resumed / "errors.png").mkdir()
    said = refused(["--resume", resumed, "--epochs", "13"], capsys)
    assert f"train.py: {resumed / 'errors.png'}: a folder is in the way" in said
    (resumed / "errors.png").rmdir()
    (resumed / "tensorboard").touch()
    said = refused(["--resume", resumed, "--epochs", "13", "--tensorboard"], capsys)
    assert f"train.py: {resumed / 'tensorboard'}: a file is in the way" in said


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            ["--image-size", "1000000", "1000000"],
            "1,000,000,000,000 tokens a slice, 16 slices at a time",
        ),
        (["--image-size", "12000", "12000", "-b", "128"], "slices at a time, take"),
        (["--image-size", "65537", "1"], "--image-size 65537 1: expected at most 65,536 a side"),
        (["--image-size", "9000", "9000", "-b", "1"], "81,000,000 tokens a slice, expected at"),
        (
            "--image-size 5000 5000 --input scan --slices 20 -b 1".split(),
            "--slices 20: 500,000,000 tokens a scan, expected at most",
        ),
    ],
)
def test_an_image_size_that_has_no_room_is_refused_before_it_is_decoded(
    knees, tmp_path, capsys, monkeypatch, flags, message
):
    monkeypatch.setattr(checks, "memory_of", lambda device: 200 * 10**9)
    output = ["--output-dir", tmp_path / "run", "--cache-dir", tmp_path / "cache"]
    said = refused(["--data-dir", knees, *TINY, *output, *flags], capsys)
    assert f"--image-size {flags[1]} {flags[2]}" in said and message in said
    assert not list(tmp_path.rglob("*.npy"))


@pytest.mark.slow
def test_a_broken_matplotlib_is_found_before_the_first_epoch(tmp_path):
    write_knees(tmp_path / "knees", patients=3, slices=2)
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "matplotlib.py").write_text("raise ImportError('of another NumPy')")
    command = [sys.executable, ROOT / "train.py", "--data-dir", "knees", *TINY]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "packages")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.splitlines() == [
        "train.py: matplotlib can't be imported (of another NumPy): pip install -r requirements.txt"
    ]
