"""Runs that are split over processes, and those of which one dies."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import FLAGS, TINY, write_knees

import train

ROOT = Path(__file__).parents[2]


RECIPE = (
    "--optimizer adamw --lr 0.001 --weight-decay 0.1 --clip-gradient 1 --label-smoothing 0.1 "
    "--mixup 0.4 --ema 0.9 --augment --bend 0.05"
).split()


@pytest.mark.slow
@pytest.mark.parametrize("count, recipe", [(2, []), (3, []), (2, RECIPE)])
def test_several_processes_do_what_one_does(tmp_path, count, recipe):
    """On data and batches that divide by neither: the same losses, and each slice counted once."""
    write_knees(tmp_path / "knees", patients=5, slices=7)
    common = ["--data-dir", tmp_path / "knees", *TINY, "--epochs", "2", "-b", "11", *recipe]
    results = []
    for name, launcher in (
        ("one", []),
        ("many", ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]),
    ):
        command = [sys.executable, *launcher, ROOT / "train.py", *common]
        done = subprocess.run(
            [*command, "--output-dir", tmp_path / name],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("epoch   1/2") == 1
        progress = torch.load(tmp_path / name / "last.pt", weights_only=True)["progress"]
        results.append(
            (progress["rows"], json.loads((tmp_path / name / "test_metrics.json").read_text()))
        )
    for one, many in zip(results[0][0], results[1][0], strict=True):
        for key in ("train_loss", "val_loss", "train_accuracy", "val_accuracy"):
            # Sums in another order round otherwise, and Adam enlarges it (seen: 1.6e-5).
            assert one[key] == pytest.approx(many[key], abs=5e-5), key
    for key in ("count", "correct", "confusion_matrix"):
        assert results[0][1]["slices"][key] == results[1][1]["slices"][key]


@pytest.mark.slow
def test_when_a_process_dies_torchrun_goes_on_or_the_run_ends_and_can_go_on(tmp_path):
    """Killed once, torchrun starts all of them again; killed twice, it has no restart left."""
    write_knees(tmp_path / "knees", patients=5, slices=7)
    folder = tmp_path / "run"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    launcher += ["--max-restarts=1", "--monitor-interval=0.1"]
    common = ["--data-dir", tmp_path / "knees", *TINY, "--epochs", "1000", "--output-dir", folder]
    process = subprocess.Popen(
        [sys.executable, *launcher, ROOT / "train.py", *common],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    epochs = []
    for _ in range(2):
        while not (folder / "best.pt").exists() or len(epochs_done(folder)) <= len(epochs):
            assert process.poll() is None
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        time.sleep(1)  # the other process notices, and saves nothing more
        epochs = epochs_done(folder)
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert len([line for line in error.splitlines() if line.startswith("train.py: process")]) == 2
    epochs = epochs_done(folder)
    assert epochs == list(range(1, len(epochs) + 1))
    assert len(json.loads((folder / "args.json").read_text())["resumed"]) == 1
    assert train.main(["--resume", str(folder), "--epochs", str(len(epochs) + 1)]) == 0


@pytest.mark.slow
def test_a_ctrl_c_while_processes_validate_loses_no_step(tmp_path):
    """The terminal sends it to all of them, and torchrun its own after it."""
    write_knees(tmp_path / "knees", patients=5, slices=7)
    folder, mark = tmp_path / "run", tmp_path / "validating"
    (tmp_path / "slow.py").write_text(
        "import sys, time, pathlib, train\n"
        "def validate(*_):\n"
        f"    pathlib.Path({str(mark)!r}).touch(); time.sleep(60)\n"
        "train.validate = validate\n"
        "sys.exit(train.main())\n"
    )
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    common = ["--data-dir", tmp_path / "knees", *TINY, "--output-dir", folder]
    process = subprocess.Popen(
        [sys.executable, *launcher, tmp_path / "slow.py", *common],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    while not mark.exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    error = process.communicate(timeout=25)[1]  # after 30 s torchrun would kill them
    assert f"train.py --resume {folder}" in error
    progress = torch.load(folder / "last.pt", weights_only=True)["progress"]
    assert (progress["epoch"], progress["step"], progress["rows"]) == (1, 3, [])


def epochs_done(folder: Path) -> list[int]:
    rows = torch.load(folder / "last.pt", weights_only=True)["progress"]["rows"]
    return [row["epoch"] for row in rows]


def test_what_torchrun_restarts_goes_on(whole_run, tmp_path, monkeypatch):
    arguments = ["--data-dir", "x", "--output-dir"]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert train.parse_args([*arguments, str(whole_run)]).resume is None
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(SystemExit):  # in which folder would it look for its run?
        train.parse_args(["--data-dir", "x"])
    assert train.parse_args([*arguments, str(tmp_path / "new")]).resume is None
    # Not begun by this torchrun: refused as at the first attempt.
    assert train.parse_args([*arguments, str(whole_run), *FLAGS]).resume is None
    own = tmp_path / "own"
    shutil.copytree(whole_run, own)
    record = json.loads((own / "args.json").read_text())
    (own / "args.json").write_text(json.dumps({**record, "launch": "mine"}))
    assert train.parse_args([*arguments, str(own), *FLAGS]).resume == own


@pytest.mark.slow
def test_a_bug_in_a_backward_of_our_own_is_not_blamed_on_another_process(tmp_path):
    """gloo's failures and ours are both RuntimeErrors: the innermost line tells whose it is."""
    write_knees(tmp_path / "knees", patients=5, slices=7)
    (tmp_path / "buggy.py").write_text(
        "import sys, torch, perceiver, train\n"
        "def backward(ctx, grad): return torch.zeros(2) + torch.zeros(3), None\n"
        "perceiver.ReadTokens.backward = staticmethod(backward)\n"
        "sys.exit(train.main(sys.argv[1:]))\n"
    )
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    common = ["--data-dir", tmp_path / "knees", *TINY, "--output-dir", tmp_path / "run"]
    done = subprocess.run(
        [sys.executable, *launcher, tmp_path / "buggy.py", *common],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1 and "in backward" in done.stderr
    assert "must match the size of tensor" in done.stderr
