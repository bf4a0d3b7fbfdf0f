"""evaluation/answers.py as predict.py uses it: nothing that was computed is lost."""

import csv
import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import predict
from evaluation import answers
from perceiver import Perceiver

ROOT = Path(__file__).parents[2]


def read_csv(path: Path) -> list[dict]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ---- what is in the way --------------------------------------------------------------------------


def test_paths_none_of_which_is_there_are_exit_2_before_the_work(finished_run, tmp_path, capsys):
    checkpoint, gone = str(finished_run / "best.pt"), str(tmp_path / "gone.png")
    assert predict.main([checkpoint, gone, "-o", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"predict.py: {gone}: no such file or folder\n"
    assert predict.main([checkpoint, str(finished_run)]) == 2
    assert "the folder of a run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_outputs_are_tried_before_the_work(finished_run, knees, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("a file")
    (tmp_path / "out" / "scans.csv").mkdir(parents=True)
    (tmp_path / "model.onnx").mkdir()

    def never(*_, **__):
        raise AssertionError("the work has begun")

    monkeypatch.setattr(predict, "list_slices", never)
    monkeypatch.setattr(predict, "export", never)
    before = sorted(tmp_path.rglob("*"))
    for flag, name, code in (
        ("--output", "file", 2),
        ("--output", "file/out", 2),
        ("--output", "out", 2),
        ("--attention", "file/pictures", 2),
        ("--export", "model.onnx", 2),
        ("--export", "none/model.onnx", 2),
        ("--export", "file/model.onnx", 2),
    ):
        arguments = [str(finished_run / "best.pt"), str(knees), flag, str(tmp_path / name)]
        assert predict.main(arguments) == code
        error = capsys.readouterr().err
        assert str(tmp_path / name.split("/")[0]) in error and len(error.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_many_files_that_cannot_be_read_are_five_lines_and_a_count(finished_run, tmp_path, capsys):
    folder, output = tmp_path / "bad", tmp_path / "out"
    folder.mkdir()
    for i in range(12):
        (folder / f"knee_{i}.png").write_bytes(b"damaged")
    checkpoint = str(finished_run / "best.pt")
    assert predict.main([checkpoint, str(folder)]) == 1
    *named, last = capsys.readouterr().err.splitlines()
    assert len(named) == 5 and all("knee_" in line for line in named)
    assert last == ("predict.py: 7 more can't be read; with --output a table names all of them")
    assert predict.main([checkpoint, str(folder), "-o", str(output)]) == 1
    assert f"{output / 'predictions.csv'} names all of them" in capsys.readouterr().err
    assert len(read_csv(output / "predictions.csv")) == 12


def test_lines_are_about_predicting_not_about_training(finished_run, tmp_path, knees, capsys):
    for path in knees.iterdir():
        _, side, number = path.stem.replace(".nii.gz", "").rsplit("_", 2)
        name = f"p{path.name[9]}_{side.lower()}_{number}.png"
        shutil.copy(path, tmp_path / name)
    assert predict.main([str(finished_run / "best.pt"), str(tmp_path)]) == 0
    output, error = capsys.readouterr()
    assert len(output.splitlines()) == 16 and error == ""


# ---- stopped on the way --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(knees, tmp_path_factory) -> Path:
    """2048 slices, links to those of the knees, in 256 scans: four chunks."""
    folder = tmp_path_factory.mktemp("many") / "slices"
    folder.mkdir()
    for path in knees.iterdir():
        for i in range(16):
            (folder / f"P{i:02}_{path.name}").symlink_to(path)
    return folder


@pytest.mark.slow
def test_a_disk_that_fills_up_keeps_what_was_predicted(finished_run, many, tmp_path):
    output = tmp_path / "new" / "out"
    limit = 140_000  # bytes of a file

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, ROOT / "predict.py", finished_run / "best.pt", many, "-o", output]
    command += ["--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=small_files)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"{output / 'predictions.csv'}: File too large" in done.stderr
    kept = read_csv(output / "predictions.partial.csv")
    assert f"kept in {output}/predictions.partial.csv: the first {len(kept):,} rows" in done.stderr
    assert 500 < len(kept) < 2048 and all(row["p_right"] and not row["error"] for row in kept)
    scans = read_csv(output / "scans.partial.csv")
    assert len(scans) * 8 == len(kept) <= 8 * len(done.stdout.splitlines())
    assert len(os.listdir(output)) == 2

    assert predict.main([str(finished_run / "best.pt"), str(many), "-o", str(output)]) == 0
    assert sorted(os.listdir(output)) == ["predictions.csv", "scans.csv"]
    assert read_csv(output / "predictions.csv")[: len(kept)] == kept


@pytest.mark.parametrize("flags", [[], ["--audit"]], ids=" ".join)
def test_a_table_that_fails_at_its_end_loses_no_line(
    finished_run, knees, tmp_path, monkeypatch, capsys, flags
):
    def fail(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    names = [path.name for path in sorted(knees.iterdir())]
    shutil.copytree(knees, tmp_path / "knees")
    right = next(name for name in names if "RIGHT" in name).rsplit("_", 1)[0]
    for path in (tmp_path / "knees").glob(f"{right}*"):
        path.rename(str(path).replace("RIGHT", "LEFT_2"))
    output = tmp_path / "out"
    output.mkdir()
    for name in ("predictions.csv", "scans.csv"):
        (output / name).write_text("of an earlier run")
    monkeypatch.setattr(os, "replace", fail)
    arguments = [str(finished_run / "best.pt"), str(tmp_path / "knees"), "-o", str(output)]
    assert predict.main([*arguments, *flags]) == 1
    printed, error = capsys.readouterr()
    assert len(printed.splitlines()) == (1 if flags else 16) and "mismatch" in printed
    assert "No space left on device" in error
    assert sorted(os.listdir(output)) == ["predictions.csv", "scans.csv"]
    for path in output.iterdir():
        assert path.read_text() == "of an earlier run"


@pytest.mark.slow
def test_ctrl_c_ends_soon_with_what_is_known_and_leaves_no_half_file(finished_run, many, tmp_path):
    output = tmp_path / "out"
    command = [sys.executable, ROOT / "predict.py", finished_run / "best.pt", many, "-o", output]
    command += ["--device", "cpu", "-b", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    first = process.stdout.readline()  # of the first chunk
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    lines, error = [first, *process.stdout], process.stderr.read()
    *notes, last = error.splitlines()
    assert process.wait() == 130 and last == "predict.py: interrupted"
    assert time.monotonic() - started < 5
    assert 64 <= len(lines) < 256 and all("8 slices (" in line for line in lines)
    for name, note in zip(("predictions", "scans"), notes, strict=True):
        path = output / f"{name}.partial.csv"
        rows = read_csv(path)
        assert note == f"note: kept in {path}: the first {len(rows):,} rows"
        assert len(rows) == len(lines) * (8 if name == "predictions" else 1)
    assert len(list(output.iterdir())) == 2


@pytest.mark.slow
def test_tables_are_ended_where_nobody_reads_the_lines(finished_run, many, tmp_path):
    command = [sys.executable, ROOT / "predict.py", finished_run / "best.pt", many]
    for flags, code in ((["-o", tmp_path / "out"], 1), ([], 1)):
        process = subprocess.Popen(
            [*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait(60) == code
    assert len(read_csv(tmp_path / "out" / "predictions.csv")) == 2048


# ---- memory --------------------------------------------------------------------------------------


def of_size(run: Path, path: Path, *size: int) -> str:
    content = torch.load(run / "best.pt", weights_only=True)
    content["preprocessing"]["image_size"] = list(size)
    torch.save(content, path)
    return str(path)


def test_slices_that_have_no_room_together_are_fewer_at_a_time(
    finished_run, knees, tmp_path, capsys, monkeypatch
):
    path = of_size(finished_run, tmp_path / "large.pt", 500, 500)
    batches, predict_logits = [], Perceiver.predict_logits

    def noted(model, pixels, *more, **named):
        kept = list(pixels)
        batches.append(max(map(len, kept)))
        return predict_logits(model, kept, *more, **named)

    monkeypatch.setattr(Perceiver, "predict_logits", noted)
    slices = [str(slice) for slice in sorted(knees.iterdir())[:4]]
    told = []
    for there in (2**40, 2**27):
        monkeypatch.setattr(answers, "memory_of", lambda device, there=there: there)
        assert predict.main([path, *slices]) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1] and batches == [4, 1]
    monkeypatch.setattr(answers, "memory_of", lambda device: 2**24)
    assert predict.main([path, *slices, "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"predict.py: {path}: one slice of its size, 500 x 500, takes ")
    assert len(error.splitlines()) == 1 and not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads memory from /proc")
def test_a_batch_takes_what_is_counted():
    code = """
import re, sys, torch
from pathlib import Path
from evaluation.answers import bytes_taken
from perceiver import Perceiver
latents = dict(num_latents=8, latent_dim=16, latent_heads=2)
model = Perceiver(depth=1, cross_dim_head=int(sys.argv[1]), **latents)
model.preprocessing |= {"image_size": [700, 700]}
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
model.predict_logits(torch.zeros(6, 1, 8, 8, dtype=torch.uint8))
before = peak()
for slices in (1, 6):
    model.predict_logits(torch.zeros(slices, 1, 700, 700, dtype=torch.uint8))
    print((peak() - before) / bytes_taken(model, slices))
"""
    for dim_head in ("64", "8"):
        command = [sys.executable, "-c", code, dim_head]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        shares = [float(line) for line in done.stdout.split()]
        assert len(shares) == 2 and all(0.5 < share < 1.3 for share in shares), (shares, done)
