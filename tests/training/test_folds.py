"""Cross-validation: folds as ordinary runs, what they say together, and audits by them."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import FLAGS, TINY, assert_same_run
from folds import draw_nothing
from PIL import Image
from sklearn.metrics import log_loss, roc_auc_score

import train
from dataset import list_labelled, load_dataset, split
from evaluation.report import read_tested

ROOT = Path(__file__).parents[2]
RESULTS = "predictions.csv scans.csv cross_validation.json folds.csv".split()
PICTURES = "curves.png confusion_matrix.png calibration.png roc.png errors.png".split()


def cross_validate(data: Path, folder: Path, *flags: str) -> int:
    where = ["--data-dir", str(data), "--output-dir", str(folder)]
    return train.main([*where, *FLAGS, "--folds", "3", *flags])


def rows_of(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same_folds(folder: Path, other: Path) -> None:
    for fold in (1, 2, 3):
        assert_same_run(folder / f"fold-{fold}", other / f"fold-{fold}")
    for name in RESULTS:
        assert (folder / name).read_text() == (other / name).read_text(), name


@pytest.fixture(autouse=True)
def nothing_drawn(monkeypatch):
    """`whole`, which is made before, has pictures and a page."""
    draw_nothing(monkeypatch)


@pytest.fixture(scope="module")
def whole(knees, tmp_path_factory) -> Path:
    """Three folds that nothing interrupted."""
    folder = tmp_path_factory.mktemp("folds") / "run"
    assert cross_validate(knees, folder) == 0
    return folder


@pytest.mark.slow
def test_each_patient_is_tested_once_and_by_a_model_that_saw_no_scan_of_theirs(whole):
    folds = rows_of(whole / "folds.csv")
    assert {row["fold"] for row in folds} == {"1", "2", "3"} and len(folds) == 16
    fold_of = {row["patient"]: row["fold"] for row in folds}
    assert len(fold_of) == 8
    tested = [row["path"] for row in rows_of(whole / "predictions.csv")]
    assert len(tested) == len(set(tested)) == 128
    for fold in (1, 2, 3):
        subsets = rows_of(whole / f"fold-{fold}" / "split.csv")
        held = {row["patient"] for row in subsets if row["subset"] == "test"}
        val = {row["patient"] for row in subsets if row["subset"] == "val"}
        seen = {row["patient"] for row in subsets if row["subset"] != "test"}
        assert held == {name for name, own in fold_of.items() if own == str(fold)}
        assert val == {name for name, own in fold_of.items() if own == str(fold % 3 + 1)}
        assert not held & seen and len(held | seen) == 8


@pytest.mark.slow
def test_a_fold_is_the_ordinary_run_of_its_split_file(whole, knees, tmp_path):
    flags = ["--split-file", str(whole / "folds.csv"), "--fold", "2"]
    where = ["--data-dir", str(knees), "--output-dir", str(tmp_path / "run")]
    assert train.main([*where, *FLAGS, *flags]) == 0
    assert_same_run(tmp_path / "run", whole / "fold-2")
    for name in [*PICTURES, "report.html"]:
        assert (whole / name).stat().st_size > 1000


@pytest.mark.slow
def test_figures_are_those_of_all_predictions_together(whole):
    rows, scans = rows_of(whole / "predictions.csv"), rows_of(whole / "scans.csv")
    figures = json.loads((whole / "cross_validation.json").read_text())
    assert figures["tested"] == [1, 2, 3] and not figures["missing"] and figures["patients"] == 8
    right = [row["side"] == "right" for row in rows]
    p = np.array([float(row["p_right"]) for row in rows])
    slices = figures["slices"]
    assert slices["count"] == 128 and slices["correct"] == sum((p > 0.5) == right)
    assert slices["roc_auc"]["value"] == pytest.approx(roc_auc_score(right, p), abs=1e-5)
    expected = log_loss(right, p)
    assert slices["negative_log_likelihood"]["value"] == pytest.approx(expected, abs=1e-4)
    for row in scans:
        own = [float(r["p_right"]) for r in rows if r["scan"] == row["scan"]]
        assert float(row["p_right"]) == pytest.approx(np.mean(own), abs=1e-5)
    by_fold = figures["by_fold"]
    for fold in by_fold:
        own = json.loads((whole / f"fold-{fold['fold']}" / "test_metrics.json").read_text())
        assert fold["slices"]["accuracy"] == own["slices"]["accuracy"]
        assert fold["calibration"] == own["calibration"]
    accuracies = [fold["scans"]["accuracy"] for fold in by_fold]
    spread = figures["over_folds"]["scans"]["accuracy"]
    assert spread["mean"] == pytest.approx(np.mean(accuracies))
    assert spread["standard_deviation"] == pytest.approx(np.std(accuracies, ddof=1))


@pytest.mark.slow
def test_logits_come_back_from_the_table_to_the_bit(whole, knees):
    dataset = load_dataset(list_labelled(knees), (16, 16))
    own = whole / "fold-1"
    tested = split(dataset, split_file=own / "split.csv")["test"]
    predictions = read_tested(own, tested)
    rows = rows_of(own / "test_predictions.csv")
    for row, logits, p in zip(rows, predictions.logits, predictions.probabilities, strict=True):
        assert np.float32(row["logit_right"]) == logits[1].item()
        assert row["p_right"] == f"{p[1]:.6f}"


@pytest.mark.slow
def test_stopped_in_any_fold_it_goes_on_and_ends_like_a_whole_one(
    whole, knees, tmp_path, monkeypatch, capsys
):
    from training.augment import Augmentation

    folder, steps, usual = tmp_path / "run", [], Augmentation.__call__

    def call(self, *batch):
        steps.append(None)
        if len(steps) in (5, 14):  # in the first and the second fold
            os.kill(os.getpid(), signal.SIGTERM)
        return usual(self, *batch)

    monkeypatch.setattr(Augmentation, "__call__", call)
    for _ in range(2):
        assert cross_validate(knees, folder) == 143
        output = capsys.readouterr().out
        assert f"go on with: python train.py --resume {folder}\n" in output
    assert train.main(["--resume", str(folder)]) == 0
    assert "fold 1 of 3: done before" in capsys.readouterr().out
    assert_same_folds(folder, whole)


@pytest.mark.slow
def test_folds_on_several_machines_are_joined_by_the_last(whole, knees, tmp_path, capsys):
    folder = tmp_path / "run"
    assert cross_validate(knees, folder, "--fold", "3") == 0
    output = capsys.readouterr().out
    assert "1 of 3 folds" in output
    command = f"python train.py --resume {folder} --fold "
    assert f"missing: fold 1; for it: {command}1\n" in output and f"{command}2\n" in output
    assert json.loads((folder / "cross_validation.json").read_text())["missing"] == [1, 2]
    assert cross_validate(knees, folder, "--fold", "1") == 0
    assert train.main(["--resume", str(folder), "--fold", "2"]) == 0
    assert "missing" not in capsys.readouterr().out.split("\n3 folds, 8 patients")[1]
    assert_same_folds(folder, whole)


@pytest.mark.slow
def test_more_epochs_go_on_in_every_fold(whole, knees, tmp_path):
    folder = tmp_path / "run"
    assert cross_validate(knees, folder, "--epochs", "1") == 0
    assert train.main(["--resume", str(folder), "--epochs", "3"]) == 0
    assert_same_folds(folder, whole)


@pytest.mark.slow
def test_two_processes_do_what_one_does(whole, knees, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, *launcher, ROOT / "train.py", "--data-dir", knees, *FLAGS]
    command += ["--ff-dropout", "0", "--folds", "3", "--epochs", "1", "--output-dir", "run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("fold 2 of 3: run/fold-2") == 1
    assert (tmp_path / "run/folds.csv").read_text() == (whole / "folds.csv").read_text()
    figures = json.loads((tmp_path / "run/cross_validation.json").read_text())
    assert figures["slices"]["count"] == 128


@pytest.mark.slow
def test_moved_with_its_data_it_can_still_be_resumed(whole, knees, tmp_path):
    shutil.copytree(whole, tmp_path / "moved")
    for path in (tmp_path / "moved" / "fold-2").glob("test_*"):
        path.unlink()
    shutil.copytree(knees, tmp_path / "data")
    assert (
        train.main(["--resume", str(tmp_path / "moved"), "--data-dir", str(tmp_path / "data")]) == 0
    )
    names = [row["scan"] for row in rows_of(tmp_path / "moved" / "scans.csv")]
    assert names == [row["scan"] for row in rows_of(whole / "scans.csv")]


def test_a_dry_run_leaves_nothing(knees, tmp_path, capsys):
    assert cross_validate(knees, tmp_path / "run", "--dry-run") == 0
    output = capsys.readouterr().out
    assert "fold     patients" in output and "dry run: one step" in output
    assert not (tmp_path / "run").exists()


def test_whole_scans_are_tested_in_folds_too(phantoms, tmp_path, capsys):
    flags = [*TINY, "--input", "scan", "--slices", "4", "--epochs", "1", "-b", "4", "--folds", "3"]
    where = ["--data-dir", str(phantoms), "--output-dir", str(tmp_path / "run")]
    assert train.main([*where, *flags]) == 0
    figures = json.loads((tmp_path / "run" / "cross_validation.json").read_text())
    assert "slices" not in figures and figures["scans"]["count"] == 8
    assert len(rows_of(tmp_path / "run" / "predictions.csv")) == 8


# ---- audit ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mislabelled(knees, tmp_path_factory) -> Path:
    """`knees`, with the two scans of one patient under each other's side."""
    folder = tmp_path_factory.mktemp("data") / "mislabelled"
    folder.mkdir()
    swapped = {"LEFT": "RIGHT", "RIGHT": "LEFT"}
    for path in knees.iterdir():
        name = path.name
        if "9000004" in name:
            side = "LEFT" if "LEFT" in name else "RIGHT"
            name = name.replace(side, swapped[side])
        Image.open(path).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def audited(mislabelled, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("audited") / "run"
    flags = [*TINY, "--epochs", "6", "--folds", "3", "--audit", "--audit-rounds", "2"]
    where = ["--data-dir", str(mislabelled), "--output-dir", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        assert train.main([*where, *flags]) == 3
    return folder


@pytest.mark.slow
def test_an_audit_finds_wrong_labels_of_the_archive_it_learned_from(audited, capsys):
    rows = rows_of(audited / "scans.csv")
    wrong = {row["scan"] for row in rows if row["verdict"] == "mismatch"}
    assert wrong == {f"OAI9000004_BaseLine_1_0_{side}.nii.gz" for side in ("LEFT", "RIGHT")}
    assert {row["rank"] for row in rows if row["scan"] in wrong} == {"1", "2"}
    assert train.main(["--resume", str(audited), "--audit"]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "16 scans: 14 ok, 2 mismatch, 0 unsure"
    assert all("mismatch, expected" in line and "9000004" in line for line in lines[-3:-1])


@pytest.mark.slow
def test_a_second_round_learns_from_no_scan_that_the_first_found_wrong(audited):
    second = audited / "round-2"
    left_out = {row["scan"] for row in rows_of(second / "folds.csv") if row["left_out"]}
    assert len(left_out) == 2 and all("9000004" in scan for scan in left_out)
    for fold in (1, 2, 3):
        subset_of = {r["scan"]: r["subset"] for r in rows_of(second / f"fold-{fold}" / "split.csv")}
        own = {subset_of[scan] for scan in left_out}
        assert own in ({"none"}, {"test"})
    assert len(rows_of(second / "scans.csv")) == 16  # those are tested as all others


@pytest.mark.slow
def test_a_third_round_that_would_be_the_second_again_is_not_made(audited, tmp_path):
    shutil.copytree(audited, tmp_path / "run")
    assert train.main(["--resume", str(tmp_path / "run"), "--audit-rounds", "3"]) == 3
    assert not (tmp_path / "run" / "round-3").exists()


@pytest.mark.slow
def test_a_second_round_without_other_scans_than_the_first_finds_now_is_refused(
    audited, tmp_path, capsys
):
    folder = tmp_path / "run"
    shutil.copytree(audited, folder)
    table = folder / "round-2" / "folds.csv"
    table.write_text(table.read_text().replace(",yes", ","))
    assert train.main(["--resume", str(folder)]) == 2
    error = capsys.readouterr().err
    assert f"{table}: of other folds, or without other scans" in error
    assert f"move {folder / 'round-2'} away" in error


@pytest.mark.slow
def test_no_mismatch_is_no_second_round(knees, tmp_path, capsys):
    flags = [*TINY, "--epochs", "6", "--folds", "3", "--audit", "--audit-rounds", "2"]
    where = ["--data-dir", str(knees), "--output-dir", str(tmp_path / "run")]
    assert train.main([*where, *flags]) == 0
    assert not (tmp_path / "run" / "round-2").exists()
    assert capsys.readouterr().out.endswith("16 scans: 16 ok, 0 mismatch, 0 unsure\n")


# ---- what can't be -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags, problem",
    [
        (["--folds", "2"], "--folds 2: expected at least 3"),
        (["--folds", "9"], "8 patients"),
        (["--folds", "3", "--fold", "4"], "--fold 4: there are 3"),
        (["--folds", "3", "--split", "scan"], "leave out --split scan"),
        (["--folds", "3", "--val-fraction", "0.2"], "leave out the fractions"),
        (["--fold", "2"], "--fold takes --folds"),
        (["--audit"], "--audit takes --folds"),
        (["--folds", "3", "--audit-rounds", "2"], "--audit-rounds takes --audit: add it"),
        (["--split-file", "FOLDS"], "--fold N names the one to test, from 1 to 3"),
        (["--split-file", "FOLDS", "--fold", "4"], "has the folds 1 to 3"),
        (["--split-file", "FOLDS", "--folds", "4"], "has 3"),
        (["--split-file", "SPLIT", "--fold", "1"], "has no column fold"),
        (["--split-file", "LEAK", "--folds", "3"], "1 patient in more than one"),
        (["--split-file", "LEAK", "--fold", "1"], "1 patient in more than one"),
    ],
)
def test_what_no_folds_can_be_made_of_is_one_line(whole, knees, tmp_path, capsys, flags, problem):
    rows = rows_of(whole / "folds.csv")
    rows[0]["fold"] = "3"
    with (tmp_path / "leak.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    paths = {"FOLDS": whole / "folds.csv", "SPLIT": whole / "fold-1" / "split.csv"}
    paths["LEAK"] = tmp_path / "leak.csv"
    flags = [str(paths.get(flag, flag)) for flag in flags]
    where = ["--data-dir", str(knees), "--output-dir", str(tmp_path / "run")]
    try:
        code = train.main([*where, *TINY, *flags])
    except SystemExit as stopped:
        code = stopped.code
    error = capsys.readouterr().err
    assert code == 2 and problem in error
    assert len([line for line in error.splitlines() if line.startswith("train.py")]) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_folder_of_folds_is_taken(whole, knees, capsys):
    where = ["--data-dir", str(knees), "--output-dir", str(whole)]
    assert train.main([*where, *TINY]) == 2
    assert "already holds a run (folds.csv)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train.main([*where, *FLAGS, "--folds", "3", "--lr", "1"])
    assert (
        "--lr 1.0 (the run was started with --lr 0.01): can't be changed" in capsys.readouterr().err
    )


@pytest.mark.slow
def test_predictions_of_other_scans_are_refused(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    first, second = (tmp_path / "run" / f"fold-{n}" / "test_predictions.csv" for n in (1, 2))
    shutil.copy(first, second)
    assert train.main(["--resume", str(tmp_path / "run")]) == 2
    assert f"{second}: of other slices" in capsys.readouterr().err
