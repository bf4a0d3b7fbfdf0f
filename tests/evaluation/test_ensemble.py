"""predict.py on a folder of folds: their mean, and folds that can't be used."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from folds import FOLDS, read_csv, run, train_folds

from dataset import list_labelled, load_dataset
from evaluation.answers import predict_in_chunks
from evaluation.ensemble import open_folds
from evaluation.predictions import predict as predict_alone
from scans import cache

ROOT = Path(__file__).parents[2]


# ---- the mean ------------------------------------------------------------------------------------


def test_the_mean_is_that_of_separate_predictions(folds, new, tmp_path):
    dataset = load_dataset(list_labelled(new), (16, 16), tmp_path / "cache")
    ensemble = open_folds(folds)
    for fold, temperature in zip(ensemble.folds, (0.5, 1.2, 3.0), strict=True):
        fold.model.calibration["temperature"] = temperature
    each = [predict_alone(fold.model, dataset) for fold in ensemble.folds]
    mean = np.mean([one.probabilities for one in each], axis=0)
    found = ensemble.predict(dataset, batch_size=5)
    assert np.abs(found.probabilities - mean).max() < 1e-6
    assert np.abs(np.mean([one.before for one in each], axis=0) - mean).max() > 1e-3
    of_scans = np.mean([[scan.probabilities for scan in one.scans] for one in each], axis=0)
    assert np.abs(np.stack([s.probabilities for s in found.scans]) - of_scans).max() < 1e-6


def test_a_mean_is_exact_and_finite_however_sure_the_folds_are(folds, new, tmp_path):
    """The logarithm of a probability of 0 is no number."""
    dataset = load_dataset(list_labelled(new), (16, 16), tmp_path / "cache")
    ensemble = open_folds(folds)
    for scale in (1e-3, 1e-6):
        for fold in ensemble.folds:
            fold.model.calibration["temperature"] = scale
        each = [predict_alone(fold.model, dataset).probabilities for fold in ensemble.folds]
        found = ensemble.predict(dataset)
        assert found.logits.isfinite().all()
        assert np.abs(found.probabilities - np.mean(each, axis=0)).max() < 1e-6


@pytest.mark.slow
def test_predictions_of_new_patients_as_a_user_runs_it(folds, new, tmp_path):
    command = [sys.executable, ROOT / "predict.py", folds, new, "-o", tmp_path / "mean"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 6 and "6 slices" in done.stdout
    for i in range(1, FOLDS + 1):
        assert run(folds / f"fold-{i}" / "best.pt", new, "-o", tmp_path / f"{i}") == 0
    for table in ("predictions.csv", "scans.csv"):
        of_each = [read_csv(tmp_path / f"{i}" / table) for i in range(1, FOLDS + 1)]
        for row, *others in zip(read_csv(tmp_path / "mean" / table), *of_each, strict=True):
            assert {other["scan"] for other in others} == {row["scan"]}
            mean = np.mean([float(other["p_right"]) for other in others])
            assert float(row["p_right"]) == pytest.approx(mean, abs=2e-6)


def test_slices_are_decoded_once_and_not_for_each_fold(folds, new, monkeypatch):
    decoded, decode = [], cache.decode_slices

    def counting(slices, *more, **named):
        decoded.extend(slices)
        return decode(slices, *more, **named)

    monkeypatch.setattr("evaluation.answers.decode_slices", counting)
    assert run(folds, new) == 0
    assert len(decoded) == 36


def test_a_scan_is_unsure_by_what_was_fitted_on_all_patients_or_by_the_strictest(own, new):
    strictest = max(
        torch.load(path, weights_only=True)["calibration"]["unsure_below"]
        for path in own.glob("*/best.pt")
    )
    assert open_folds(own).unsure_below == strictest
    record = own / "cross_validation.json"
    for content, expected in (
        ({}, strictest),
        ({"calibration": None}, strictest),
        ({"calibration": {"unsure_below": 1.0}}, 1.0),
    ):
        record.write_text(json.dumps(content))
        ensemble = open_folds(own)
        assert ensemble.unsure_below == expected
    listing = list_labelled(new)
    judged = predict_in_chunks(ensemble, listing, own)
    verdicts = {row["verdict"] for answers in judged for row in answers.scans}
    assert verdicts == {"unsure"}


def test_audit_json_and_labels_are_as_of_one_model(folds, new, tmp_path, capsys):
    wrong = tmp_path / "wrong"
    shutil.copytree(new, wrong)
    for path in wrong.glob("OAI9000006*LEFT*"):
        path.rename(str(path).replace("1_0_LEFT", "1_1_RIGHT"))
    assert run(folds, wrong, "--audit") == 3
    printed = capsys.readouterr().out.splitlines()
    assert "OAI9000006" in printed[0] and "mismatch, expected right" in printed[0]
    assert printed[-1].startswith("6 scans: ") and "1 mismatch" in printed[-1]
    assert run(folds, new, "--json", "-b", "3", "-j", "1") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 6 and {row["verdict"] for row in rows} <= {"ok", "unsure"}
    labels = tmp_path / "labels.csv"
    labels.write_text("patient,label\nOAI9000006,right\nOAI9000007,left\nOAI9000008,left\n")
    assert run(folds, new, "--json", "--labels", labels) in (0, 3)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["patient"]: row["expected"] for row in rows} == {
        "OAI9000006": "right",
        "OAI9000007": "left",
        "OAI9000008": "left",
    }


def test_a_damaged_file_is_a_row_and_the_others_go_on(folds, new, tmp_path, capsys):
    shutil.copytree(new, tmp_path / "some")
    for path in (tmp_path / "some").glob("OAI9000006*"):
        path.write_bytes(b"damaged")
    assert run(folds, tmp_path / "some", "-o", tmp_path / "out") == 1
    assert sum(bool(row["error"]) for row in read_csv(tmp_path / "out" / "predictions.csv")) == 12
    assert len(read_csv(tmp_path / "out" / "scans.csv")) == 4


@pytest.mark.slow
def test_models_of_whole_scans_have_a_mean(knees_of_nine, old, new, tmp_path, capsys):
    flags = "--input scan --slices 4 -b 4 --epochs 2 --max-freq 4 --depth 1".split()
    train_folds(old, tmp_path / "folds", flags)
    capsys.readouterr()
    assert run(tmp_path / "folds", new, "-o", tmp_path / "mean") == 0
    for i in range(1, FOLDS + 1):
        assert run(tmp_path / "folds" / f"fold-{i}" / "best.pt", new, "-o", tmp_path / f"{i}") == 0
    of_each = [read_csv(tmp_path / f"{i}" / "scans.csv") for i in range(1, FOLDS + 1)]
    for row, *others in zip(read_csv(tmp_path / "mean" / "scans.csv"), *of_each, strict=True):
        mean = np.mean([float(other["p_right"]) for other in others])
        assert float(row["p_right"]) == pytest.approx(mean, abs=2e-6)
        assert row["agreement"] == "" and row["slices"] == "6"
    assert run(tmp_path / "folds", new, old, "--allow-seen", "-o", tmp_path / "all") == 0
    assert "judged by one fold alone, which has not seen them: 12 scans" in capsys.readouterr().err


# ---- what can't be used --------------------------------------------------------------------------


def change(path: Path, **parts) -> None:
    """Change parts of a checkpoint."""
    content = torch.load(path, weights_only=True)
    for name, values in parts.items():
        content[name] = {**content[name], **values}
    torch.save(content, path)


def told(folder: Path, new: Path, capsys, *flags) -> str:
    """The one line of a run that is refused."""
    capsys.readouterr()
    assert run(folder, new, *flags) == 2
    printed, error = capsys.readouterr()
    assert not printed and len(error.splitlines()) == 1 and error.startswith("predict.py: ")
    return error.removeprefix("predict.py: ").rstrip()


def test_folds_that_are_missing_or_have_not_ended_say_what_to_type(own, new, capsys):
    (own / "fold-2" / "best.pt").unlink()
    go_on = f"python train.py --resume {own}"
    assert told(own, new, capsys) == (
        f"{own}: no best.pt in fold-2: still to be trained: {go_on} --fold 2"
    )
    shutil.rmtree(own / "fold-3")
    assert told(own, new, capsys) == (
        f"{own}: no best.pt in fold-2, fold-3: still to be trained: {go_on}"
    )


def test_a_fold_that_is_not_calibrated_is_refused(own, new, capsys):
    path = own / "fold-3" / "best.pt"
    content = torch.load(path, weights_only=True)
    content["calibration"] = {"temperature": 1.0}
    torch.save(content, path)
    assert told(own, new, capsys) == (
        f"{own}: best.pt not calibrated in fold-3: still to be trained: "
        f"python train.py --resume {own} --fold 3"
    )


@pytest.mark.parametrize(
    "name, value, in_line",
    [
        ("classes", ["left", "Right"], "classes: ['left', 'right'] and ['left', 'Right']"),
        ("image_size", [16, 20], "image_size: [16, 16] and [16, 20]"),
        ("name_pattern", "(?P<patient>OAI.)", "--name-pattern: None and '(?P<patient>OAI.)'"),
        ("plane", "sagittal", "--plane: 'stored' and 'sagittal'"),
    ],
)
def test_folds_that_read_data_differently_have_no_mean(own, new, capsys, name, value, in_line):
    change(own / "fold-2" / "best.pt", preprocessing={name: value})
    assert told(own, new, capsys) == (
        f"{own}/fold-1/best.pt and {own}/fold-2/best.pt differ in {in_line}: "
        "they are of different runs, and have no mean"
    )


@pytest.mark.parametrize(
    "name, content, in_line",
    [
        ("folds.csv", None, "folds.csv: not a readable list of folds: No such file or directory"),
        ("folds.csv", "", "folds.csv: it is empty, expected a list of folds"),
        ("folds.csv", "scan\na\n", "folds.csv: expected a column fold, got 'scan'"),
        ("folds.csv", "fold\n1\ntwo\n", "folds.csv, line 3: fold must be a number from 1 on"),
        ("folds.csv", f"fold\n1\n{'9' * 5000}\n", "folds.csv, line 3: fold must be a number"),
        ("folds.csv", "fold\n1\n1\n", "folds.csv: 1 fold, expected two or more"),
        ("fold-2/split.csv", None, "split.csv: not a readable split file: No such file"),
        ("fold-2/split.csv", "a,b\n1,2\n", "expected columns subset, scan and patient, got 'a, b'"),
        ("fold-2/split.csv", "subset,scan,patient\nx,y,z\n", "line 2: subset must be one of train"),
        ("fold-2/split.csv", "subset,scan,patient\nval,,z\n", "split.csv, line 2: names no scan"),
        ("fold-2/best.pt", "no checkpoint", "fold-2/best.pt: "),
        ("cross_validation.json", "{", "not a record of a cross-validation"),
        ("cross_validation.json", "[1]", "calibration [1]: no unsure_below from 0 to 1"),
        ("cross_validation.json", '{"calibration": {"unsure_below": 7}}', "no unsure_below from 0"),
        ("cross_validation.json", '{"calibration": {"unsure_below": NaN}}', "no unsure_below from"),
    ],
)
def test_a_damaged_folder_of_folds_is_one_line(own, new, capsys, name, content, in_line):
    if content is None:
        (own / name).unlink()
    else:
        (own / name).write_text(content)
    line = told(own, new, capsys)
    assert in_line in line and str(own / name) in line and len(line) < 500


def test_a_pipe_among_the_folds_is_not_waited_for(own, new, capsys):
    for name in ("fold-2/best.pt", "fold-3/split.csv", "cross_validation.json"):
        path = own / name
        content = path.read_bytes() if path.exists() else b"{}"
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        assert f"{path}: " in (line := told(own, new, capsys)) and "a pipe" in line
        path.unlink()
        path.write_bytes(content)
    assert run(own, new) == 0


def test_predictions_of_a_fold_that_are_not_finite_name_it(own, new, capsys):
    path = own / "fold-2" / "best.pt"
    weights = torch.load(path, weights_only=True)["model"]
    change(path, model={name: 1e30 * tensor for name, tensor in weights.items()})
    assert told(own, new, capsys).startswith(f"{path}: what it predicts is not finite")


def test_what_is_of_one_model_alone_names_one(folds, new, tmp_path, capsys):
    for flag, name in (("--attention", "pictures"), ("--export", "model.onnx")):
        line = told(folds, new, capsys, flag, tmp_path / name)
        assert line.endswith(f"not the mean of folds; name one: {folds}/fold-1/best.pt")
    checkpoint = folds / "fold-1" / "best.pt"
    line = told(checkpoint, new, capsys, "--allow-seen")
    assert line == f"--allow-seen: {checkpoint} is no folder of folds"
    assert "name data" in told(checkpoint, folds, capsys)
    assert told(folds / "fold-1", new, capsys) == (
        f"{folds / 'fold-1'}: a folder; of a run, name {checkpoint}"
    )
