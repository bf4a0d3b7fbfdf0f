"""train.py as a user runs it: what a run leaves behind, and what bad input gets."""

import csv
import inspect
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, write_knees
from PIL import Image

import train
from dataset import Dataset, list_labelled
from perceiver import Perceiver
from scans import split_tables
from scans.cache import decode_slices
from scans.slices import Slice, by_scan
from training.epoch import Progress, train_one_epoch

ROOT = Path(__file__).parent.parent


def read_csv(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_run_folder_holds_everything_and_nothing_else(finished_run):
    expected = "args.json split.csv metrics.csv curves.png last.pt best.pt test_metrics.json "
    expected += "test_predictions.csv confusion_matrix.png calibration.png roc.png errors.png"
    assert {path.name for path in finished_run.iterdir()} == set(expected.split())
    recorded = json.loads((finished_run / "args.json").read_text())
    assert recorded["arguments"]["num_latents"] == 8 and recorded["versions"]["torch"]
    for picture in finished_run.glob("*.png"):
        assert Image.open(picture).size[0] > 400


def test_it_learns_and_tests_the_epoch_with_the_lowest_validation_loss(finished_run):
    rows = read_csv(finished_run / "metrics.csv")
    losses = [float(row["val_loss"]) for row in rows]
    assert len(rows) == 12 and min(losses) < 0.3 < losses[0]
    best = torch.load(finished_run / "best.pt", weights_only=True)
    assert len(best["progress"]["rows"]) == 1 + losses.index(min(losses))
    assert best["progress"]["best"] == pytest.approx(min(losses))
    metrics = json.loads((finished_run / "test_metrics.json").read_text())
    assert metrics["slices"]["accuracy"] > 0.9


def test_learning_rate_falls_once_an_epoch(finished_run):
    rates = [float(row["lr"]) for row in read_csv(finished_run / "metrics.csv")]
    assert rates == pytest.approx([1e-2 * 0.995**epoch for epoch in range(12)])


def test_figures_follow_from_the_predictions_and_these_from_the_checkpoint(finished_run, knees):
    metrics = json.loads((finished_run / "test_metrics.json").read_text())
    rows = read_csv(finished_run / "test_predictions.csv")
    test_scans = {
        row["scan"] for row in read_csv(finished_run / "split.csv") if row["subset"] == "test"
    }
    assert {row["scan"] for row in rows} == test_scans
    assert metrics["slices"]["count"] == len(rows) == 8 * len(test_scans)
    assert metrics["slices"]["correct"] == sum(row["label"] == row["side"] for row in rows)

    model = Perceiver.from_checkpoint(finished_run / "best.pt")
    slices = [Slice(row["path"], None, "", "", "", 0) for row in rows]
    images = torch.from_numpy(decode_slices(slices, (16, 16)).pixels)
    # By hand, from the files: the model's own preprocessing, one slice at a time.
    mean, std = model.preprocessing["mean"], model.preprocessing["std"]
    for image, row in list(zip(images, rows, strict=True))[::5]:
        logits = model((image[None] / 255 - mean) / std) / model.calibration["temperature"]
        p_right = logits.softmax(dim=1)[0, 1].item()
        assert float(row["p_right"]) == pytest.approx(p_right, abs=2e-5)
    scans = {scan: [float(r["p_right"]) for r in rows if r["scan"] == scan] for scan in test_scans}
    right = sum((np.mean(p) > 0.5) == ("RIGHT" in scan) for scan, p in scans.items())
    assert metrics["scans"]["correct"] == right


def test_normalisation_comes_from_training_slices_alone(finished_run, knees):
    train_scans = {
        row["scan"] for row in read_csv(finished_run / "split.csv") if row["subset"] == "train"
    }
    paths = [p for p in sorted(knees.iterdir()) if p.name.rsplit("_", 1)[0] in train_scans]
    pixels = np.stack([np.asarray(Image.open(path).convert("L")) for path in paths]) / 255
    preprocessing = Perceiver.from_checkpoint(finished_run / "best.pt").preprocessing
    assert preprocessing["mean"] == pytest.approx(pixels.mean(), abs=1e-6)
    assert preprocessing["std"] == pytest.approx(pixels.std(), abs=1e-6)
    assert preprocessing["classes"] == ["left", "right"]


@pytest.mark.slow
def test_same_seed_gives_the_same_run_and_another_seed_another(finished_run, knees, tmp_path):
    for seed in ("0", "1"):
        arguments = ["--data-dir", str(knees), "--output-dir", str(tmp_path / seed), *TINY]
        assert train.main([*arguments, "--seed", seed, "--epochs", "1"]) == 0
    first = read_csv(finished_run / "metrics.csv")[0]
    again = read_csv(tmp_path / "0" / "metrics.csv")[0]
    other = read_csv(tmp_path / "1" / "metrics.csv")[0]
    assert (again["train_loss"], again["val_loss"]) == (first["train_loss"], first["val_loss"])
    assert other["train_loss"] != first["train_loss"]


def test_every_slice_is_seen_exactly_once_an_epoch(monkeypatch):
    seen = []

    class Recorder(Perceiver):
        def normalise(self, pixels):
            seen.extend(pixels[:, 0, 0, 0].tolist())
            return super().normalise(pixels)

    model = Recorder(2, 4.0, 1, num_latents=2, latent_dim=4, latent_heads=1, latent_dim_head=4)
    images = torch.arange(37, dtype=torch.uint8)[:, None, None, None].expand(37, 1, 4, 4)
    optimizer = torch.optim.Adam(model.parameters())
    args = train.parse_args(["--data-dir", "x", "-b", "8"])
    slices = [Slice(str(i), None, "left", "p", "s", i) for i in range(37)]
    subset = Dataset(slices, images, torch.arange(37), ["left", "right"])
    for epoch in (1, 2):
        train_one_epoch(model, subset, optimizer, Progress(epoch), args, None)
    assert sorted(seen[:37]) == sorted(seen[37:]) == list(range(37))
    assert seen[:37] != seen[37:] and seen[:37] != sorted(seen[:37])


def test_a_used_run_folder_is_refused_and_left_alone(finished_run, knees, capsys):
    before = {path: path.read_bytes() for path in finished_run.iterdir()}
    arguments = ["--data-dir", str(knees), "--output-dir", str(finished_run), *TINY]
    assert train.main(arguments) == 2
    error = capsys.readouterr().err
    assert str(finished_run) in error and "already holds a run" in error
    assert {path: path.read_bytes() for path in finished_run.iterdir()} == before


def test_dry_run_takes_a_step_and_makes_no_run_folder(knees, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train.main(["--data-dir", str(knees), *TINY, "--dry-run"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    output = capsys.readouterr().out
    assert "128 slices, 16 scans, 8 patients" in output and "one step, loss" in output


def test_leaking_split_file_is_refused_with_the_patients_name(knees, tmp_path, capsys):
    scans = by_scan(list_labelled(knees).slices)
    subset_of = {name: "test" if "LEFT" in name else "train" for name in scans}
    subset_of[next(iter(scans))] = "val"
    subset_of[next(name for name in reversed(scans) if "LEFT" in name)] = "train"
    split_tables.write_split(tmp_path / "leak.csv", scans, subset_of)
    arguments = ["--data-dir", str(knees), "--split-file", str(tmp_path / "leak.csv"), *TINY]
    assert train.main([*arguments, "--output-dir", str(tmp_path / "run")]) == 2
    assert "OAI9000003 (test, train)" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert train.main([*arguments, "--split", "scan", "--dry-run"]) == 0
    assert "7 patients in more than one subset" in capsys.readouterr().out


def test_scan_split_says_that_patients_straddle(knees, tmp_path, capsys):
    """A patient without a left knee shifts the cut of the left list against that of the right."""
    shutil.copytree(knees, tmp_path / "knees")
    for path in (tmp_path / "knees").glob("OAI9000007_*LEFT*"):
        path.unlink()
    arguments = ["--data-dir", str(tmp_path / "knees"), *TINY, "--dry-run"]
    assert train.main(arguments) == 0
    assert "in more than one subset" not in capsys.readouterr().out
    assert train.main([*arguments, "--split", "scan"]) == 0
    assert "2 patients in more than one subset" in capsys.readouterr().out


def test_all_unreadable_files_are_listed_before_training_and_nothing_is_written(
    knees, tmp_path, capsys
):
    broken = tmp_path / "broken"
    shutil.copytree(knees, broken)
    names = [path.name for path in sorted(broken.iterdir())][3:90:40]
    for name in names:
        (broken / name).write_bytes((broken / name).read_bytes()[:60])
    arguments = ["--data-dir", str(broken), "--output-dir", str(tmp_path / "run"), *TINY]
    assert train.main(arguments) == 2
    error = capsys.readouterr().err
    assert len(names) == 3 and all(name in error for name in names)
    assert not (tmp_path / "run").exists()


def test_non_finite_loss_stops_the_run_and_spares_the_checkpoints(knees, tmp_path, capsys):
    folder = tmp_path / "run"
    arguments = ["--data-dir", str(knees), "--output-dir", str(folder), *TINY]
    assert train.main([*arguments, "--lr", "1e30"]) == 1
    assert "epoch 1" in capsys.readouterr().err
    assert not (folder / "best.pt").exists()
    Perceiver.from_checkpoint(folder / "last.pt")  # as it was before the first step


def test_a_failure_before_the_first_epoch_ends_speaks_of_no_best_checkpoint(
    knees, tmp_path, capsys
):
    arguments = ["--data-dir", str(knees), "--output-dir", str(tmp_path / "run"), *TINY]
    assert train.main([*arguments, "--lr", "1e6"]) == 1
    error = capsys.readouterr().err
    assert "; last.pt is from before; try a lower --lr" in error and "best.pt" not in error


def test_a_class_that_is_not_in_train_is_refused(tmp_path, capsys):
    """Three patients of one scan each fill three subsets: train has one class."""
    write_knees(tmp_path / "knees", patients=3, slices=3)
    for name in ("9000000*RIGHT", "9000001*RIGHT", "9000002*LEFT"):
        for path in (tmp_path / "knees").glob(f"OAI{name}*"):
            path.unlink()
    arguments = ["--data-dir", str(tmp_path / "knees"), *TINY]
    assert train.main([*arguments, "--output-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "slice is in train, to learn from: it takes more patients" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_class_that_is_not_tested_leaves_figures_out_and_says_so(tmp_path, capsys):
    write_knees(tmp_path / "knees", patients=5, slices=3)
    for path in (tmp_path / "knees").glob("OAI900000[34]*RIGHT*"):
        path.unlink()
    scans = by_scan(list_labelled(tmp_path / "knees").slices)
    of_patient = {"OAI9000003": "val", "OAI9000004": "test"}
    subset_of = {name: of_patient.get(s[0].patient, "train") for name, s in scans.items()}
    split_tables.write_split(tmp_path / "split.csv", scans, subset_of)
    folder = tmp_path / "run"
    arguments = ["--data-dir", str(tmp_path / "knees"), *TINY, "--output-dir", str(folder)]
    assert train.main([*arguments, "--split-file", str(tmp_path / "split.csv")]) == 0
    output = capsys.readouterr().out
    assert "no patient of val has a right slice: the best epoch is chosen without any" in output
    assert "of 1 scan right, of one patient: no interval" in output
    assert "no right slice was tested: that says nothing of how well classes are told" in output
    metrics = json.loads((folder / "test_metrics.json").read_text())
    for unit in ("slices", "scans"):
        for name in ("balanced_accuracy", "roc_auc"):
            assert metrics[unit][name] == {"value": None, "interval_95": None}
        assert metrics[unit]["by_class"]["left"]["precision"]["value"] is None
    assert metrics["calibration"]["unsure_below"] == 1 and not (folder / "roc.png").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--data-dir", "nowhere"], "nowhere: no such file or folder"),
        (["--data-dir", "ONE-SIDED"], "no slice has the label right"),
        (["--data-dir", "KNEES", "--depth", "0"], "--depth: expected a whole number from 1 to"),
        (["--data-dir", "KNEES", "--split-file", "none.csv"], "none.csv"),
        (["--data-dir", "KNEES", "--val-fraction", "0.9"], "0.9 and --test-fraction 0.125"),
        (["--data-dir", "KNEES", "--device", "tpu9"], "tpu9"),
        ([], "--data-dir"),
        (["--data-dir", "KNEES", "--epochs", "0"], "--epochs"),
        (["--data-dir", "KNEES", "--lr", "nan"], "--lr: expected a number above 0, got nan"),
        (["--data-dir", "KNEES", "-b", "1e9"], "expected a whole number of at least 1, got 1e9"),
        (["--data-dir", "KNEES", "-b", "1" + 18 * "0"], "expected at most 18 digits, got 1000"),
        (["--data-dir", "KNEES", "--seed", 5000 * "9"], "a whole number, got 9999"),
        (["--data-dir", "KNEES", "--max-freq", "x"], "--max-freq: expected a number above 0"),
        (["--data-dir", "KNEES", "--demo"], "--demo"),
    ],
)
def test_unusable_arguments_exit_2_and_are_named(knees, tmp_path, capsys, arguments, message):
    (tmp_path / "ONE-SIDED").mkdir()
    for path in knees.glob("*LEFT*"):
        shutil.copy(path, tmp_path / "ONE-SIDED")
    words = {"KNEES": str(knees), "ONE-SIDED": str(tmp_path / "ONE-SIDED")}
    arguments = [words.get(word, word) for word in arguments]
    try:
        code = train.main([*arguments, "--output-dir", str(tmp_path / "run")])
    except SystemExit as stop:  # argparse
        code = stop.code
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_each_model_argument_has_a_flag_with_the_same_default():
    args = vars(train.parse_args(["--data-dir", "x"]))
    for name, parameter in inspect.signature(Perceiver).parameters.items():
        # The first three follow the data; slices of one channel need position features.
        if name not in ("input_channels", "input_axis", "num_classes", "fourier_encode_data"):
            assert args[name] == parameter.default, name


@pytest.mark.slow
def test_command_line_prints_a_line_an_epoch_and_no_bar_into_a_file(tmp_path):
    write_knees(tmp_path / "knees", patients=3, slices=2)
    command = [sys.executable, ROOT / "train.py", "--data-dir", "knees", *TINY]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("val loss") == 12
    assert f"next: python {ROOT / 'predict.py'} runs/" in done.stdout
    assert done.stderr == ""
    assert len(list((tmp_path / "runs").iterdir())) == 1
    typed = done.stdout.splitlines()[-1].removeprefix("next: python ")
    command = f"{sys.executable} {typed}"  # as it stands there, from the same folder
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "expected " in done.stdout, done.stderr


@pytest.mark.slow
def test_the_next_command_compares_with_the_labels_of_a_manifest(knees, tmp_path):
    """Names tell nothing: the command that is printed names the manifest."""
    (tmp_path / "my images").mkdir()
    lines = ["path,label,patient,scan"]
    for number, path in enumerate(sorted(knees.iterdir())):
        patient, grade = path.name[3:10], int("LEFT" in path.name)
        shutil.copy(path, tmp_path / f"my images/{number}.png")
        lines.append(f"my images/{number}.png,{grade},{patient},{patient}-{grade}")
    (tmp_path / "my grades.csv").write_text("\n".join(lines) + "\n")
    program = [sys.executable, ROOT / "train.py", "--data-dir", "my grades.csv"]
    more = ["--output-dir", "run", *TINY, "--epochs", "1"]
    done = subprocess.run([*program, *more], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    command = done.stdout.splitlines()[-1].removeprefix("next: python ")
    command = f"{sys.executable} {command}"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(", expected ") == 16 and "unknown" not in done.stdout


@pytest.mark.slow
def test_tensorboard_gets_scalars_and_pictures(knees, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    arguments = ["--data-dir", str(knees), "--output-dir", str(folder), *TINY, "--epochs", "2"]
    assert train.main([*arguments, "--tensorboard"]) == 0
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    losses = [event.value for event in events.Scalars("loss/val")]
    expected = [float(row["val_loss"]) for row in read_csv(folder / "metrics.csv")]
    assert losses == pytest.approx(expected)
    assert {"errors", "roc", "curves"} <= set(events.Tags()["images"])
    for path in folder.glob("*.png"):  # pixel by pixel those of the run folder
        shown = Image.open(io.BytesIO(events.Images(path.stem)[-1].encoded_image_string))
        assert shown.tobytes() == Image.open(path).convert("RGB").tobytes()
