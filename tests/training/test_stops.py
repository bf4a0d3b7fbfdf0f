"""Runs that are stopped, killed or starved of disk, and go on."""

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import FLAGS, assert_same_run

import train
from perceiver import Perceiver
from training.augment import Augmentation

ROOT = Path(__file__).parents[2]


def signal_at_step(monkeypatch, step: int, number: int) -> None:
    """Have this process get a signal in the middle of the given step of the run."""
    steps, usual = [], Augmentation.__call__

    def call(self, *batch):
        steps.append(None)
        if len(steps) == step:
            os.kill(os.getpid(), number)
        return usual(self, *batch)

    monkeypatch.setattr(Augmentation, "__call__", call)


@pytest.mark.parametrize(
    "number, step",
    [
        (signal.SIGINT, 3),
        *(pytest.param(signal.SIGTERM, step, marks=pytest.mark.slow) for step in (6, 11, 18)),
    ],
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    goes_on = f"when that is mended, go on with: python train.py --resume {folder}" in error
    # The 7th flush is of the folder, when the first last.pt has its name already.
    assert goes_on == (folder / "last.pt").exists() or (call, nth) == ("fsync", 7)
    for path in folder.glob("*.pt"):
        Perceiver.from_checkpoint(path)
    assert not list(folder.glob(".*"))
    if (folder / "last.pt").exists():
        assert train.main(["--resume", str(folder)]) == 0
    else:  # nothing was lost, and the folder is free
        assert train.main(["--data-dir", str(knees), "--output-dir", str(folder), *FLAGS]) == 0
    assert_same_run(folder, whole_run)


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_second_signal_stops_at_once(knees, tmp_path):
    """A step that takes for ever: the first signal waits for its end, the second does not."""
    code = (
        "import os, signal, sys, time, train\n"
        "from training.augment import Augmentation\n"
        "def call(self, *batch):\n"
        "    for number in (signal.SIGINT, signal.SIGTERM): os.kill(os.getpid(), number)\n"
        "    time.sleep(60)\n"
        "Augmentation.__call__ = call; sys.exit(train.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "--data-dir", knees, "--output-dir", tmp_path / "run"]
    done = subprocess.run([*command, *FLAGS], capture_output=True, text=True, timeout=50, cwd=ROOT)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr.splitlines() == [
        f"train.py: stopped at once; go on with: python train.py --resume {tmp_path / 'run'}"
    ]
    Perceiver.from_checkpoint(tmp_path / "run" / "last.pt")


STOPPED_AT = """
import os, sys, time, train, evaluation.report
from training.augment import Augmentation
module, name, number, nth = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
del sys.argv[1:5]
holder = {"train": train, "run": train.Run, "os": os, "report": evaluation.report}[module]
usual, calls = getattr(holder, name), []
def call(*given, **named):
    calls.append(None)
    if len(calls) == nth:
        os.kill(os.getpid(), number)
        time.sleep(0.02)
    return usual(*given, **named)
setattr(holder, name, call)
sys.exit(train.main())
"""
# Once in each phase: reading, the first files, saving, validating, the end of an epoch, the test.
PHASES = [
    ("train", "list_labelled", signal.SIGINT, 1),
    ("train", "load_dataset", signal.SIGTERM, 1),
    ("os", "replace", signal.SIGINT, 4),
    ("os", "replace", signal.SIGTERM, 7),
    ("train", "validate", signal.SIGINT, 2),
    ("run", "end_epoch", signal.SIGTERM, 1),
    ("train", "calibrate", signal.SIGINT, 1),
    ("report", "write_csv", signal.SIGTERM, 1),
]


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES, ids=lambda x: " ".join(map(str, x[:2])))
def test_a_signal_in_any_phase_leaves_a_run_that_goes_on(whole_run, knees, tmp_path, phase):
    folder, number = tmp_path / "run", phase[2]
    given = ["--data-dir", knees, "--output-dir", folder, "--cache-dir", tmp_path / "cache"]
    command = [sys.executable, "-c", STOPPED_AT, *phase[:2], str(int(number)), str(phase[3])]
    done = subprocess.run([*command, *given, *FLAGS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 128 + number and "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*unfinished*"))
    if phase[0] != "os" and (folder / "last.pt").exists():
        assert f"go on with: python train.py --resume {folder}" in done.stdout + done.stderr
    if (folder / "last.pt").exists():
        assert train.main(["--resume", str(folder)]) == 0
        assert_same_run(folder, whole_run)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["list_labelled", "load_dataset"])
def test_stopped_while_it_reads_a_resumed_run_says_the_same_again(whole_run, name):
    command = [sys.executable, "-c", STOPPED_AT, "train", name, str(int(signal.SIGINT)), "1"]
    command += ["--resume", whole_run, "--epochs", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr.splitlines() == [
        f"train.py: stopped at once; go on with: python train.py --resume {whole_run}"
    ]


@pytest.mark.slow
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
