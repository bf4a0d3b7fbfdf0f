"""Folds that are shared by machines, or whose folder, arguments or data were changed on the way."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_knees
from folds import draw_nothing

import train
from common.files import locked

ROOT = Path(__file__).parents[2]
MODEL = (
    "--image-size 8 8 --num-latents 4 --latent-dim 8 --depth 1 --latent-heads 2 "
    "--latent-dim-head 4 -b 16 --device cpu"
).split()


@pytest.fixture(autouse=True)
def nothing_drawn(monkeypatch):
    draw_nothing(monkeypatch)


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    """Three slices of each knee of six patients."""
    folder = tmp_path_factory.mktemp("data") / "few"
    write_knees(folder, patients=6, slices=3)
    return folder


@pytest.fixture(scope="module")
def done(few, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("done") / "run"
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        assert cross_validate(few, folder) == 0
    return folder


@pytest.fixture
def run(done, tmp_path) -> Path:
    """A copy, to be changed."""
    shutil.copytree(done, tmp_path / "run")
    return tmp_path / "run"


def cross_validate(data: Path, folder: Path, *flags: str) -> int:
    where = ["--data-dir", str(data), "--output-dir", str(folder)]
    return train.main([*where, *MODEL, "--epochs", "1", "--folds", "3", *flags])


def resume(folder: Path, *flags: str) -> int:
    return train.main(["--resume", str(folder), *flags])


def read_rows(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def edit_json(path: Path, **changed) -> None:
    content = json.loads(path.read_text())
    content.get("arguments", content).update(changed)
    path.write_text(json.dumps(content))


def refused(capsys, code: int, problem: str) -> None:
    """One line, before anything is trained or judged."""
    output, error = capsys.readouterr()
    assert code == 2 and problem in error and len(error.splitlines()) == 1, error
    assert "fold 1 of 3" not in output


# ---- on the way ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_fold_alone_is_not_all_that_a_resumed_run_does(few, tmp_path, capsys):
    assert cross_validate(few, tmp_path / "run", "--fold", "3") == 0
    assert "missing: fold 1" in capsys.readouterr().out
    assert resume(tmp_path / "run") == 0
    assert "missing" not in capsys.readouterr().out


@pytest.mark.slow
def test_what_was_changed_on_the_way_stays_changed(run, few, tmp_path, capsys):
    shutil.copytree(few, tmp_path / "moved")
    flags = ["--epochs", "2", "--audit", "--data-dir", str(tmp_path / "moved"), "--fold", "1"]
    assert resume(run, *flags) in (0, 3)
    arguments = json.loads((run / "args.json").read_text())["arguments"]
    assert arguments["epochs"] == 2 and arguments["audit"] and arguments["fold"] is None
    capsys.readouterr()
    assert resume(run) in (0, 3)
    output = capsys.readouterr().out
    assert f"{tmp_path / 'moved'}: 36 slices" in output and " mismatch, " in output
    by_fold = [json.loads((run / f"fold-{n}" / "test_metrics.json").read_text()) for n in (1, 2, 3)]
    assert [metrics["epochs"] for metrics in by_fold] == [2, 2, 2]


def test_fewer_epochs_than_a_fold_has_done_are_refused_and_not_kept(run, capsys):
    assert resume(run, "--epochs", "2", "--fold", "1") == 0
    capsys.readouterr()
    code = resume(run, "--epochs", "1")
    refused(capsys, code, f"--epochs 1: {run / 'fold-1'} has done 2 already; add --epochs 2")
    assert json.loads((run / "args.json").read_text())["arguments"]["epochs"] == 2


def test_machines_that_begin_at_once_share_the_folds(run, few, monkeypatch, capsys):
    """The second has read its data when the first has just written folds.csv."""
    table, kept = run / "folds.csv", run / "kept"
    usual = train.read_data

    def read_data(*of):
        data = usual(*of)
        kept.rename(table)
        return data

    monkeypatch.setattr(train, "read_data", read_data)
    table.rename(kept)
    assert cross_validate(few, run, "--fold", "2") == 0
    table.rename(kept)
    code = cross_validate(few, run, "--fold", "2", "--lr", "0.5")
    refused(capsys, code, "lr is 0.5, and 0.0002 in the folds that another process has begun")


@pytest.mark.slow
def test_one_process_at_a_time_joins_the_folds(run):
    shutil.rmtree(run / "fold-3")
    (run / "scans.csv").unlink()
    command = [sys.executable, ROOT / "train.py", "--resume", run]
    waiting = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    next(line for line in waiting.stdout if line.startswith("fold 3 of 3"))
    with locked(run):
        next(line for line in waiting.stdout if line.startswith("test of the best epoch"))
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(timeout=1)
        assert not (run / "scans.csv").exists()
    waiting.communicate(timeout=60)
    assert waiting.returncode == 0 and (run / "scans.csv").exists()


@pytest.mark.slow
def test_a_dry_run_of_several_processes_takes_one_step(few, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, *launcher, ROOT / "train.py", "--data-dir", few, *MODEL]
    command += ["--folds", "3", "--dry-run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and "dry run: one step" in result.stdout, result.stderr


# ---- a folder that was changed -------------------------------------------------------------------


def test_a_patient_who_was_moved_to_another_fold_is_not_tested_twice(run, capsys):
    rows = read_rows(run / "folds.csv")
    for row in rows:
        if row["patient"] == rows[0]["patient"]:
            row["fold"] = "2"
    write_rows(run / "folds.csv", rows)
    shutil.rmtree(run / "fold-3")
    refused(capsys, resume(run), f"{run / 'fold-1'}: the run was started with other labels, names")


def test_other_labels_are_not_joined_with_what_was_learned_from_these(run, few, tmp_path, capsys):
    names = {path.name.rsplit("_", 1)[0] for path in few.iterdir()}
    rows = [{"scan": n, "label": "left" if "LEFT" in n else "right"} for n in sorted(names)]
    for row, label in zip(rows[:2], ("right", "left"), strict=True):
        row["label"] = label
    write_rows(tmp_path / "labels.csv", rows)
    code = resume(run, "--labels", str(tmp_path / "labels.csv"))
    refused(capsys, code, f"{run / 'fold-1'}: the run was started with other labels, names")


@pytest.mark.parametrize(
    "flags", [["--seed", "5"], pytest.param(["--lr", "0.1"], marks=pytest.mark.slow)]
)
def test_a_fold_of_another_run_is_not_joined(run, few, tmp_path, capsys, flags):
    assert cross_validate(few, tmp_path / "other", *flags, "--fold", "2") == 0
    capsys.readouterr()
    shutil.rmtree(run / "fold-2")
    shutil.copytree(tmp_path / "other" / "fold-2", run / "fold-2")
    text = f"{run / 'fold-2' / 'last.pt'} was made with {flags[1]}"
    refused(capsys, resume(run), text)


def test_edited_arguments_are_refused_by_the_folds_that_are_done(run, capsys):
    edit_json(run / "args.json", lr=0.5)
    shutil.rmtree(run / "fold-3")
    refused(capsys, resume(run), f"{run / 'args.json'}: lr is 0.5, but {run / 'fold-1'}")


@pytest.mark.parametrize(
    "lost, problem", [("last.pt", "holds no last.pt; move it away"), ("best.pt", "No such file")]
)
def test_a_fold_that_was_copied_in_part_is_one_line(run, capsys, lost, problem):
    (run / "fold-2" / lost).unlink()
    refused(capsys, resume(run), problem)


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        *(
            pytest.param(content, marks=pytest.mark.slow)
            for content in ("{}", '{"epochs": "x"}', None)
        ),
    ],
)
def test_a_fold_without_the_figures_of_its_test_is_tested_again(run, done, content):
    path = run / "fold-2" / "test_metrics.json"
    path.unlink() if content is None else path.write_text(content)
    (run / "fold-2" / "metrics.csv").write_text("epoch\nx\n")
    assert resume(run) == 0
    for name in ("fold-2/test_metrics.json", "cross_validation.json"):
        assert (run / name).read_text() == (done / name).read_text()


@pytest.mark.slow
def test_what_no_test_wrote_is_one_line(run, capsys):
    path = run / "fold-2" / "test_metrics.json"
    figures = json.loads(path.read_text())
    path.write_text(json.dumps({**figures, "scans": 5}))
    assert resume(run) == 2
    assert "fold-2/test_metrics.json: not what a run writes" in capsys.readouterr().err
    path.write_text(json.dumps(figures))
    table = run / "fold-2" / "test_predictions.csv"
    rows = read_rows(table)
    rows[0]["logit_left"] = "nan"
    write_rows(table, rows)
    assert resume(run) == 2
    assert f"{table}: logits or temperature are not finite" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["scans.csv", "report.html", "fold-3/last.pt"])
def test_a_folder_in_the_way_is_found_before_a_fold_is_trained(few, tmp_path, capsys, name):
    (tmp_path / "run" / name).mkdir(parents=True)
    refused(capsys, cross_validate(few, tmp_path / "run"), f"{name}: a folder is in the way")


def test_a_fold_of_999_is_one_line(run, capsys):
    rows = read_rows(run / "folds.csv")
    rows[0]["fold"] = "9" * 12
    write_rows(run / "folds.csv", rows)
    refused(capsys, resume(run), "folds.csv: no scan is in fold 4")


# ---- what can't be -------------------------------------------------------------------------------


def write_manifest(path: Path, data: Path, patients: int) -> None:
    """Of so many patients all scans are of a third class."""
    rows = []
    for image in sorted(data.iterdir()):
        patient, side = image.name[:10], "left" if "LEFT" in image.name else "right"
        label = "none" if int(patient[3:]) < 9000000 + patients else side
        scan = image.name.rsplit("_", 1)[0]
        rows.append({"path": str(image), "label": label, "patient": patient, "scan": scan})
    write_rows(path, rows)


def test_a_class_that_some_fold_could_not_learn_is_said_before_any_is_trained(
    few, tmp_path, capsys
):
    write_manifest(tmp_path / "scans.csv", few, patients=2)
    code = cross_validate(tmp_path / "scans.csv", tmp_path / "run")
    refused(capsys, code, "no none scan is left to learn from where fold ")
    assert not (tmp_path / "run").exists()


def test_an_image_in_two_folds_of_a_table_is_said_before_any_is_trained(run, few, tmp_path, capsys):
    shutil.copytree(few, tmp_path / "data")
    fold_of = {row["scan"]: row["fold"] for row in read_rows(run / "folds.csv")}
    first, second = (
        next(scan for scan, own in fold_of.items() if own == fold) for fold in ("2", "3")
    )
    shutil.copy(few / f"{first}_0.png", tmp_path / "data" / f"{second}_0.png")
    flags = ["--split-file", str(run / "folds.csv")]
    refused(
        capsys, cross_validate(tmp_path / "data", tmp_path / "new", *flags), "1 image in more than"
    )


def test_more_folds_than_memory_holds_are_one_line(few, tmp_path, capsys):
    code = cross_validate(few, tmp_path / "run", "--folds", "9" * 15)
    refused(capsys, code, "6 patients (")
