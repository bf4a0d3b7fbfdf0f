"""Runs that are stopped, killed, starved of disk or split over processes, and go on."""

import csv
import errno
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY, write_knees
from PIL import Image

import runs
import train
from perceiver import Perceiver

ROOT = Path(__file__).parent.parent
# Everything that draws random numbers is on; 6 steps an epoch, saved after every second.
FLAGS = [*TINY, "--epochs", "3", "--ff-dropout", "0.2", "--augment", "--mirror-swap"]
FLAGS += ["--save-every-steps", "2"]


@pytest.fixture(scope="module")
def whole_run(knees, tmp_path_factory) -> Path:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train.main(["--data-dir", str(knees), "--output-dir", str(folder), *FLAGS]) == 0
    return folder


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


def signal_at_step(monkeypatch, step: int, number: int) -> None:
    """Have this process get a signal in the middle of the given step of the run."""
    steps, usual = [], train.Augmentation.__call__

    def call(self, *batch):
        steps.append(None)
        if len(steps) == step:
            os.kill(os.getpid(), number)
        return usual(self, *batch)

    monkeypatch.setattr(train.Augmentation, "__call__", call)


@pytest.mark.parametrize(
    "number, step", [(signal.SIGINT, 3), (signal.SIGTERM, 6), (signal.SIGTERM, 11)]
)
def test_a_stopped_run_saves_says_how_to_go_on_and_ends_like_a_whole_one(
    whole_run, knees, tmp_path, monkeypatch, capsys, number, step
):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_at_step(patch, step, number)
        code = train.main(["--data-dir", str(knees), "--output-dir", str(folder), *FLAGS])
    assert code == 128 + number
    output = capsys.readouterr()
    assert f"python train.py --resume {folder}" in output.out and not output.err
    progress = torch.load(folder / "last.pt", weights_only=True)["progress"]
    assert (progress["epoch"] - 1) * 6 + progress["step"] == step
    assert train.main(["--resume", str(folder)]) == 0
    assert_same_run(folder, whole_run)
    record = json.loads((folder / "args.json").read_text())
    assert len(record["resumed"]) == 1 and "--resume" not in record["command"]


def test_killed_at_random_moments_it_ends_like_a_whole_one(whole_run, knees, tmp_path, kills=3):
    folder = tmp_path / "run"
    last, program = folder / "last.pt", [sys.executable, ROOT / "train.py"]
    command = [*program, "--data-dir", knees, "--output-dir", folder, *FLAGS]
    moments = random.Random(0)
    for _ in range(kills):
        saved = last.stat().st_mtime_ns if last.exists() else 0
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while process.poll() is None and (not last.exists() or last.stat().st_mtime_ns == saved):
            time.sleep(0.002)  # until it has saved, so that each kill comes further
        time.sleep(moments.uniform(0, 0.2))
        process.kill()
        process.wait()
        Perceiver.from_checkpoint(last)  # never half a file
        command = [*program, "--resume", folder]
    assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0
    assert_same_run(folder, whole_run)
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
@pytest.mark.parametrize("nth", [1, 4, 7])
def test_a_failing_disk_leaves_whole_files(
    whole_run, knees, tmp_path, monkeypatch, capsys, call, nth
):
    """Each write, flush or rename may be the one at which the disk is full."""
    folder, calls = tmp_path / "run", []
    where = {"write": (Path, "write_bytes"), "fsync": (os, "fsync"), "replace": (os, "replace")}
    where = where[call]
    usual = getattr(*where)

    def fail(*arguments):
        calls.append(arguments)
        if len(calls) == nth:
            if call == "write":  # some of it is written
                usual(arguments[0], arguments[1][:5000])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "last.pt")
        return usual(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(*where, fail)
        code = train.main(["--data-dir", str(knees), "--output-dir", str(folder), *FLAGS])
    error = capsys.readouterr().err
    assert code == 1 and "No space left on device" in error and len(error.splitlines()) == 1
    for path in folder.glob("*.pt"):
        Perceiver.from_checkpoint(path)
    assert not list(folder.glob(".*"))
    if (folder / "last.pt").exists():
        assert train.main(["--resume", str(folder)]) == 0
    else:  # nothing was lost, and the folder is free
        assert train.main(["--data-dir", str(knees), "--output-dir", str(folder), *FLAGS]) == 0
    assert_same_run(folder, whole_run)


def test_a_quota_that_is_met_is_one_line_and_the_last_checkpoint_is_whole(knees, tmp_path):
    """A limit that the system itself enforces: the first checkpoint fits, those after don't."""
    folder = tmp_path / "run"

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    command = [
        sys.executable,
        ROOT / "train.py",
        "--data-dir",
        knees,
        "--output-dir",
        folder,
        *FLAGS,
    ]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 1
    assert "File too large" in done.stderr and len(done.stderr.splitlines()) == 1
    Perceiver.from_checkpoint(folder / "last.pt")
    assert sorted(path.name for path in folder.iterdir()) == ["args.json", "last.pt", "split.csv"]


def change(content: dict, *keys, value) -> None:
    for key in keys[:-1]:
        content = content[key]
    content[keys[-1]] = value


@pytest.mark.parametrize(
    "keys, value",
    [
        (["optimizer", "state", 0, "exp_avg"], torch.zeros(3)),  # Adam would write past its end
        (["optimizer", "state", 0, "exp_avg_sq"], float("nan")),
        (["optimizer"], {}),
        (["progress"], {"epoch": "x"}),
        (["progress", "step"], -1),
        (["preprocessing"], [1]),
        (["preprocessing", "mean"], float("nan")),
        (["preprocessing", "image_size"], ["a", "b"]),
        (["config", "depth"], 1),
    ],
    ids=str,
)
def test_a_checkpoint_with_odd_contents_is_refused(whole_run, tmp_path, capsys, keys, value):
    folder = tmp_path / "run"
    shutil.copytree(whole_run, folder)
    checkpoint = torch.load(folder / "last.pt", weights_only=True)
    if keys[-1] == "exp_avg_sq":
        value = checkpoint["optimizer"]["state"][0]["exp_avg_sq"] * value
    change(checkpoint, *keys, value=value)
    torch.save(checkpoint, folder / "last.pt")
    assert train.main(["--resume", str(folder), "--epochs", "4"]) == 2
    error = capsys.readouterr().err
    assert f"{folder / 'last.pt'}: " in error and len(error.splitlines()) == 1


def test_weights_that_are_not_finite_are_never_saved(knees, tmp_path, capsys):
    """The gradient was finite; the step after it was too long for float32."""
    folder = tmp_path / "run"
    arguments = ["--data-dir", str(knees), "--output-dir", str(folder), *FLAGS]
    assert train.main([*arguments, "--lr", "1e39", "--save-every-steps", "1"]) == 1
    assert "weights became non-finite in epoch 1" in capsys.readouterr().err
    Perceiver.from_checkpoint(folder / "last.pt")


def test_a_non_finite_gradient_is_named_and_spoils_nothing(knees, tmp_path, monkeypatch, capsys):
    folder, steps, usual = tmp_path / "run", [], Perceiver.normalise
    gradients, step = [], torch.optim.Adam.step

    def normalise(self, pixels):
        steps.append(None)
        return usual(self, pixels) * (float("nan") if len(steps) == 9 else 1)

    def record(self, *arguments):
        gradients.extend(p.grad for group in self.param_groups for p in group["params"])
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Perceiver, "normalise", normalise)
        patch.setattr(torch.optim.Adam, "step", record)
        code = train.main(["--data-dir", str(knees), "--output-dir", str(folder), *FLAGS])
    error = capsys.readouterr().err
    assert code == 1 and "non-finite in epoch 2, step 2, at learning rate 0.00995" in error
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)
    named = (folder / "failed_batch.txt").read_text().splitlines()
    assert len(named) == 16 and all(Path(path).exists() for path in named)
    for name in ("last.pt", "best.pt"):
        weights = torch.load(folder / name, weights_only=True)["model"].values()
        assert all(torch.isfinite(tensor).all() for tensor in weights)


class Hostile:
    """A pickle that leaves a file behind when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("content", ["hostile", "truncated", "foreign", "infinite"])
def test_an_unusable_checkpoint_is_refused_and_runs_nothing(whole_run, tmp_path, capsys, content):
    folder, mark = tmp_path / "run", tmp_path / "mark"
    folder.mkdir()
    for name in ("args.json", "split.csv", "last.pt"):
        (folder / name).write_bytes((whole_run / name).read_bytes())
    last = folder / "last.pt"
    if content == "hostile":
        last.write_bytes(pickle.dumps({"model": Hostile(mark)}))
    elif content == "truncated":
        last.write_bytes(last.read_bytes()[:-1000])
    elif content == "foreign":
        torch.save({"state_dict": {}}, last)
    else:
        checkpoint = torch.load(last, weights_only=True)
        checkpoint["model"]["latents"][0, 0] = float("inf")
        torch.save(checkpoint, last)
    assert train.main(["--resume", str(folder)]) == 2
    error = capsys.readouterr().err
    assert str(last) in error and len(error.splitlines()) == 1
    assert not mark.exists()


@pytest.mark.parametrize(
    "flag, value",
    [
        ("--lr", "0.5"),
        ("--seed", "1"),
        ("--image-size", "8 8"),
        ("--grad-accumulation", "2"),  # with dropout
        ("--output-dir", "elsewhere"),
        ("--no-augment", ""),
    ],
)
def test_arguments_that_would_change_the_result_are_refused(whole_run, capsys, flag, value):
    with pytest.raises(SystemExit) as stopped:
        train.main(["--resume", str(whole_run), flag, *value.split()])
    assert stopped.value.code == 2
    assert f"error: {flag}" in capsys.readouterr().err


def test_more_epochs_go_on_from_the_last_and_are_remembered(
    whole_run, knees, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    arguments = ["--data-dir", str(knees), "--output-dir", str(folder), *FLAGS]
    assert train.main([*arguments, "--epochs", "2"]) == 0
    with monkeypatch.context() as patch:
        signal_at_step(patch, 3, signal.SIGINT)
        assert train.main(["--resume", str(folder), "--epochs", "3", "--device", "cpu"]) == 130
    assert train.main(["--resume", str(folder)]) == 0
    assert_same_run(folder, whole_run)


def test_a_second_signal_stops_at_once(knees, tmp_path):
    """A step that takes for ever: the first signal waits for its end, the second does not."""
    code = (
        "import os, signal, sys, time, train; usual = train.Augmentation.__call__\n"
        "def call(self, *batch):\n"
        "    for number in (signal.SIGINT, signal.SIGTERM): os.kill(os.getpid(), number)\n"
        "    time.sleep(60)\n"
        "train.Augmentation.__call__ = call; sys.exit(train.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "--data-dir", knees, "--output-dir", tmp_path / "run"]
    done = subprocess.run([*command, *FLAGS], capture_output=True, text=True, timeout=50, cwd=ROOT)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr.splitlines() == [
        f"train.py: stopped at once; go on with: python train.py --resume {tmp_path / 'run'}"
    ]
    Perceiver.from_checkpoint(tmp_path / "run" / "last.pt")


@pytest.mark.parametrize("program", ["train.py", "predict.py"])
def test_ctrl_c_while_it_starts_is_no_traceback(program, knees):
    for delay in (0.1, 0.5, 1.0, 1.5):
        arguments = ["--data-dir", knees, "--dry-run"] if program == "train.py" else ["a", "b"]
        process = subprocess.Popen(
            [sys.executable, ROOT / program, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=60)[1]
        assert "Traceback" not in error, f"after {delay} s"
        assert process.returncode in (130, -signal.SIGINT, 2)


def test_a_run_folder_is_kept_to_one_process(whole_run, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(whole_run, folder)
    with runs.locked(folder):
        assert train.main(["--resume", str(folder), "--epochs", "4"]) == 2
    assert "another process is training in it" in capsys.readouterr().err
    assert_same_run(folder, whole_run)


def test_other_slices_are_refused_and_other_pixels_are_said(whole_run, knees, tmp_path, capsys):
    folder, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(whole_run, folder)
    shutil.copytree(knees, other)
    path = sorted(other.iterdir())[0]
    Image.new("RGB", (16, 16)).save(path)
    resume = ["--resume", str(folder), "--data-dir", str(other)]
    assert train.main(resume) == 0
    assert "warning: the images are not exactly those" in capsys.readouterr().out
    path.unlink()
    assert train.main(resume) == 2
    assert "127 slices; the run was started with 128" in capsys.readouterr().err


def test_nothing_to_resume_from_is_an_error_and_never_a_fresh_start(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        train.main(["--resume", str(tmp_path / "run")])
    assert stopped.value.code == 2
    assert "nothing to resume from" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_parts_of_a_batch_add_up_to_it(knees, tmp_path):
    losses = []
    for parts in ("1", "3"):
        folder = tmp_path / parts
        arguments = ["--data-dir", str(knees), "--output-dir", str(folder), *TINY]
        assert train.main([*arguments, "--epochs", "2", "--grad-accumulation", parts]) == 0
        losses.append(torch.load(folder / "last.pt", weights_only=True)["progress"]["rows"])
    for one, three in zip(*losses, strict=True):
        assert one["train_loss"] == pytest.approx(three["train_loss"], abs=1e-5)
        assert one["val_loss"] == pytest.approx(three["val_loss"], abs=1e-5)


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_do_what_one_does(tmp_path, count):
    """On data and batches that divide by neither: the same losses, and each slice counted once."""
    write_knees(tmp_path / "knees", patients=5, slices=7)
    common = ["--data-dir", tmp_path / "knees", *TINY, "--epochs", "2", "-b", "11"]
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
            assert one[key] == pytest.approx(many[key], abs=1e-5), key
    for key in ("count", "correct", "confusion_matrix"):
        assert results[0][1]["slices"][key] == results[1][1]["slices"][key]


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
