"""evaluation/trained.py: checkpoints of anybody as predict.py takes them, and what they keep."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image

import predict
import train
from perceiver import Perceiver
from scans.searching import Search, SlowPattern

ROOT = Path(__file__).parent.parent.parent


def edited(checkpoint: Path, path: Path, part: str, **values) -> str:
    """A checkpoint with some values of a part of it changed."""
    content = torch.load(checkpoint, weights_only=True)
    content[part] |= values
    torch.save(content, path)
    return str(path)


def test_predictions_that_are_not_finite_are_no_figures(finished_run, knees, tmp_path, capsys):
    pytest.importorskip("onnxscript")
    weights = torch.load(finished_run / "best.pt", weights_only=True)["model"]
    huge = {name: torch.full_like(weights[name], 3e38) for name in ("norm.weight", "head.weight")}
    bad = edited(finished_run / "best.pt", tmp_path / "bad.pt", "model", **huge)
    outputs = [str(tmp_path / name) for name in ("out", "pictures", "model.onnx")]
    told = []
    for flags in (
        [str(knees)],
        [str(knees), "--json"],
        [str(knees), "--audit", "-o", outputs[0], "--attention", outputs[1]],
        ["--export", outputs[2]],
    ):
        assert predict.main([bad, *flags]) == 2
        told.append(capsys.readouterr())
    assert all(output == "" for output, _ in told)
    assert {error for _, error in told} == {
        f"predict.py: {bad}: what it predicts is not finite; its weights are damaged, or were "
        "never those of a trained model\n"
    }
    assert not any(map(os.path.exists, outputs))


@pytest.mark.parametrize(
    "values, told",
    [
        (dict(classes=["left"]), "classes are ['left'], expected 2 different names"),
        (dict(image_size=[16, 16, 16]), "not a model of grey slices, or of scans"),
        (dict(plane="up"), "keeps --plane 'up', which can't be"),
        (dict(slices=-1), "keeps --slices -1, which can't be"),
        (dict(slices=True), "keeps --slices True, which can't be"),
        (dict(slices_per_scan="40"), "keeps --slices-per-scan '40', which can't be"),
        (dict(echo=1.5), "keeps --echo 1.5, which can't be"),
        (dict(series="("), "keeps --series '(', which can't be"),
        (dict(series="(" * 999), "which can't be"),
        (dict(series="x" * 10**6), "which can't be"),
        (dict(name_pattern=7), "keeps --name-pattern 7, which can't be"),
        (dict(name_pattern="no group"), "keeps --name-pattern 'no group', which can't be"),
    ],
    ids=lambda value: f"{value}"[:30],
)
def test_what_a_checkpoint_keeps_of_reading_is_checked(
    finished_run, knees, tmp_path, capsys, values, told
):
    path = edited(finished_run / "best.pt", tmp_path / "odd.pt", "preprocessing", **values)
    assert predict.main([path, str(knees)]) == 2
    output, error = capsys.readouterr()
    assert output == "" and error.startswith(f"predict.py: {path}: ") and told in error
    assert len(error.splitlines()) == 1 and len(error) < len(path) + 300


def test_classes_with_control_characters_print_none(finished_run, knees, capsys):
    names = ["left\x1b[31m", "ri\nght"]
    path = edited(finished_run / "best.pt", Path("control.pt"), "preprocessing", classes=names)
    assert predict.main([path, str(sorted(knees.iterdir())[0])]) == 2
    output, error = capsys.readouterr()
    assert "\x1b" not in output + error and len(error.splitlines()) == 1 and not output


@pytest.mark.parametrize("name", ["\udcff", "x" * 101, "a\tb"], ids=ascii)
def test_classes_that_predict_refuses_are_refused_before_training(tmp_path, capsys, name):
    for i in range(8):
        folder = tmp_path / "knees" / (name if i % 2 else "left")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 3), 9 * i).save(folder / f"p{i}_0.png")
    arguments = ["--data-dir", str(tmp_path / "knees"), "--output-dir", str(tmp_path / "run")]
    assert train.main([*arguments, *TINY, "--classes", "left", name]) == 2
    error = capsys.readouterr().err
    assert "classes are ['left', " in error and len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_is_not_calibrated_is_taken_and_said(finished_run, knees, capsys):
    paths = [str(path) for path in sorted(knees.iterdir())[:8]]
    assert predict.main([str(finished_run / "last.pt"), *paths]) == 0
    output, error = capsys.readouterr()
    assert "8 slices" in output and len(error.splitlines()) == 2
    assert "last.pt is not calibrated" in error and "trained or chosen on 1 of 1 scan" in error
    assert predict.main([str(finished_run / "best.pt"), *paths]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "best.pt was trained or chosen on 1 of 1 scan" in line


# ---- what is kept of names -----------------------------------------------------------------------


def test_names_are_read_as_those_trained_on_unless_flags_say_otherwise(
    finished_run, knees, tmp_path, capsys
):
    for path in sorted(knees.iterdir())[:16]:
        side = "L" if "LEFT" in path.name else "R"
        shutil.copy(path, tmp_path / f"7q{side}q_{path.stem.rsplit('_', 1)[1]}.png")
    pattern = r"(?P<patient>\d+)q(?P<side>[LR])q_(?P<slice>\d+)"
    kept = dict(name_pattern=pattern, slices_per_scan=None)
    path = edited(finished_run / "best.pt", Path("kept.pt"), "preprocessing", **kept)

    def expected(*flags: str) -> tuple[list[str], str]:
        assert predict.main([path, str(tmp_path), "--json", *flags]) == 0
        output, error = capsys.readouterr()
        return [json.loads(line)["expected"] for line in output.splitlines()], error

    sides, error = expected()
    assert sorted(sides) == ["left", "right"]
    assert error.startswith(f"note: names are read as in training: --name-pattern '{pattern}' (")
    sides, error = expected("--name-pattern", "")
    assert not any(sides) and "names are read" not in error

    kept = dict(name_pattern=None, slices_per_scan=4)
    path = edited(finished_run / "best.pt", Path("kept.pt"), "preprocessing", **kept)
    sides, error = expected()
    assert len(sides) == 4 and "as in training: --slices-per-scan 4 (--name-pattern ''" in error
    sides, error = expected("--name-pattern", pattern)
    assert len(sides) == 2 and "names are read" not in error


# Exponential, slow for one name or for many together, and polynomial. Not (\w+)+!, which the
# package `regex` takes for what it is.
SLOW = [r"(?P<scan>(\w|\w)*)[!?]", r"(?P<scan>(\w|\w\w)+)[!?]"]
SLOW += [r"(?P<scan>.*)" + 7 * "(.*)" + r"\2\3\4[!?]"]
MEMORY = [r"(?P<scan>(()){4000000000})", r"(?P<scan>(?:a{60000}){60000})"]
MEMORY += [r"(?P<scan>(((((a{99}){99}){99}){99}){99}){99})"]
MEMORY += [r"(?P<scan>x{0}(()){4000000000})", r"(?x)(?P<scan>(()){ 4000000000 })"]


@pytest.mark.slow
@pytest.mark.parametrize("pattern", SLOW)
def test_an_expression_that_takes_too_long_is_one_line_and_exit_2(
    finished_run, knees, tmp_path, capsys, pattern
):
    path = edited(
        finished_run / "best.pt", tmp_path / "slow.pt", "preprocessing", name_pattern=pattern
    )
    started = time.process_time()
    assert predict.main([path, str(knees)]) == 2
    assert time.process_time() < started + 10
    output, error = capsys.readouterr()
    line = error.splitlines()[-1]
    assert line.startswith(f"predict.py: {path}: keeps --name-pattern {pattern}: takes too long")
    assert line.endswith("; --name-pattern '' goes without it") and not output
    assert predict.main([path, str(knees), "--name-pattern", ""]) == 0
    for code in (
        predict.main([str(finished_run / "best.pt"), str(knees), "--name-pattern", pattern]),
        train.main(["--data-dir", str(knees), "--name-pattern", pattern, *TINY, "--dry-run"]),
    ):
        assert code == 2
    error = capsys.readouterr().err
    assert error.count(f": --name-pattern {pattern}: takes too long") == 2


@pytest.mark.parametrize("pattern", MEMORY)
def test_an_expression_that_takes_much_memory_is_refused_at_once(pattern):
    """Also one that a checkpoint keeps, before anything is searched for: as it is compiled."""
    code = (
        "import resource, sys\n"
        "from scans.identity.rules import compile_pattern\n"
        "from scans.slices import DataError\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "try:\n"
        "    compile_pattern(sys.argv[1])('p1_1.png')\n"
        "except DataError as error:\n"
        "    status = open('/proc/self/status').read()\n"  # ru_maxrss holds pytest's, too
        "    print(error, int(status.split('VmHWM:')[1].split()[0]) >> 10)"
    )
    started = time.monotonic()
    ran = subprocess.run(
        [sys.executable, "-c", code, pattern],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    said, _, megabytes = ran.stdout.strip().rpartition(" ")
    assert said.startswith(f"--name-pattern {pattern}: "), ran.stderr[-300:]
    assert int(megabytes) < 500 and time.monotonic() < started + 10


def test_a_series_that_takes_too_long_is_one_line_and_exit_2(finished_run, tmp_path, capsys):
    np.save(tmp_path / f"{'a' * 200}.npy", np.zeros((8, 16, 16), dtype=np.uint8))
    slow = r"(\w|\w)*[!?]"
    path = edited(finished_run / "best.pt", Path("slow.pt"), "preprocessing", series=slow)
    assert predict.main([path, str(tmp_path)]) == 2
    assert f"keeps --series {slow}: takes too long" in capsys.readouterr().err
    assert predict.main([path, str(tmp_path), "--series", ""]) == 0


def test_many_names_share_the_time_of_an_expression():
    search = Search("name_pattern", r"(\w|\w)*[!?]")
    started = time.process_time()
    with pytest.raises(SlowPattern):
        for _ in range(10_000):
            search("a" * 16)  # some milliseconds each
    assert time.process_time() < started + 5
    quick = Search("name_pattern", r"p(\d+)")
    assert [quick(f"p{i}")[1] for i in range(10_000)] == [f"{i}" for i in range(10_000)]


@pytest.mark.slow
def test_train_keeps_what_tells_names(tmp_path):
    pattern = r"(?P<patient>OAI\d+).*(?P<side>LEFT|RIGHT)"
    knees = tmp_path / "knees"
    knees.mkdir()
    for patient, side in itertools.product(range(8), ("LEFT", "RIGHT")):
        pixels = np.random.default_rng(patient).integers(0, 255, (6, 16, 16), np.uint8)
        np.save(knees / f"OAI{9000000 + patient}_V00_DESS_{side}.npy", pixels)
    flags = ["--name-pattern", pattern, "--series", "DESS", "--epochs", "1"]
    arguments = ["--data-dir", str(knees), "--output-dir", str(tmp_path / "run"), *TINY, *flags]
    assert train.main(arguments) == 0
    known = Perceiver.from_checkpoint(tmp_path / "run/best.pt").preprocessing
    assert (known["name_pattern"], known["series"]) == (pattern, "DESS")
    assert known["pattern_root"] == str(knees)
    assert known["slices_per_scan"] is known["echo"] is None
