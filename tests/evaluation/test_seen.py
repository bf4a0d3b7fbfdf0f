"""predict.py on a folder of folds: what they have seen, and who judges it."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from folds import FOLDS, read_csv, run, train_folds, write_rows

from scans.slices import Options

TOO_SURE = ", of which the mean would be too sure: "


def test_scans_that_were_trained_on_are_refused_before_anything_is_decoded(
    folds, old, new, tmp_path, capsys, monkeypatch
):
    def never(*_, **__):
        raise AssertionError("the work has begun")

    monkeypatch.setattr("evaluation.answers.decode_slices", never)
    assert run(folds, old, new, "-o", tmp_path / "out") == 2
    printed, error = capsys.readouterr()
    assert f"{folds}: some of its folds were trained on 12 scans{TOO_SURE}OAI" in error
    assert "and 7 more; leave these out, or --allow-seen has each judged by the fold" in error
    assert len(error.splitlines()) == 1 and not printed and not (tmp_path / "out").exists()


def test_what_was_seen_is_judged_by_the_fold_that_tested_it(folds, old, new, tmp_path, capsys):
    both = tmp_path / "both"
    shutil.copytree(old, both)
    shutil.copytree(new, both, dirs_exist_ok=True)
    assert run(folds, both, "--allow-seen", "-o", tmp_path / "out") == 0
    assert capsys.readouterr().err == (
        "note: judged by one fold alone, which has not seen them: 12 scans; "
        "new, by the mean of all 3: 6\n"
    )
    found = {row["path"]: row for row in read_csv(tmp_path / "out" / "predictions.csv")}
    assert len(found) == 108
    for i in range(1, FOLDS + 1):
        tested = read_csv(folds / f"fold-{i}" / "test_predictions.csv")
        assert len(tested) == 24
        for row in tested:
            ours = found[str(both / Path(row["path"]).name)]
            assert float(ours["p_right"]) == pytest.approx(float(row["p_right"]), abs=2e-6)
    assert run(folds, new, "--allow-seen") == 0
    assert capsys.readouterr().err == ""  # all are new


def test_another_visit_of_a_patient_is_as_seen(folds, old, tmp_path, capsys):
    visit = tmp_path / "visit"
    visit.mkdir()
    for path in old.glob("OAI9000001*LEFT*"):
        shutil.copy(path, visit / path.name.replace("BaseLine_1_0", "12Month_1_7"))
    assert run(folds, visit) == 2
    scan = "OAI9000001_12Month_1_7_LEFT.nii.gz"
    error = capsys.readouterr().err
    assert f"trained on 1 scan{TOO_SURE}{scan} (of patient OAI9000001);" in error
    assert run(folds, visit, "--allow-seen", "-o", tmp_path / "out") == 0
    assert run(folds / "fold-2" / "best.pt", visit, "-o", tmp_path / "tested") == 0
    a, b = (read_csv(tmp_path / name / "predictions.csv") for name in ("out", "tested"))
    assert a == b and len(a) == 6


@pytest.fixture(scope="session")
def named_by_folders(knees_of_nine) -> Path:
    """The old knees as data/left/p0.nii..., whose names alone tell nobody; folds of them."""
    folder = knees_of_nine / "by folders"
    for path in (knees_of_nine / "old").iterdir():
        side = "left" if "LEFT" in path.name else "right"
        scan = folder / "data" / side / f"k{path.name[9]}{'l' if side == 'left' else 'r'}"
        scan.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, scan / f"{path.stem.rpartition('_')[2]}.png")
    pattern = r"(?P<patient>k\d)"
    flags = ["--name-pattern", pattern, "--epochs", "1"]
    train_folds(folder / "data", folder / "folds", flags, Options(name_pattern=pattern))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "paths, count",
    [
        (["data"], 12),
        (["."], 12),
        (["data/left"], 6),
        (["data/left/k1l"], 1),
        (["data/left", "data/right"], 12),
        (["data/left/k1l/0.png", "data/left/k1l/1.png"], 1),
        (["../by folders/data/right/k2r/3.png"], 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.parametrize("without_patients", [False, True], ids=["patients", "names alone"])
def test_a_scan_is_known_again_from_whatever_folder_it_is_read(
    named_by_folders, paths, count, without_patients, tmp_path, monkeypatch, capsys
):
    """Names of scans begin at the folder that is given."""
    monkeypatch.chdir(named_by_folders)
    folder = Path("folds")
    if without_patients:
        shutil.copytree(folder, tmp_path / "folds")
        folder = tmp_path / "folds"
        for path in folder.glob("*/split.csv"):
            write_rows(path, [{**row, "patient": ""} for row in read_csv(path)])
    scans = "1 scan," if count == 1 else f"{count} scans,"
    for form in (str, os.path.abspath):
        assert run(folder, *map(form, paths)) == 2
        assert f"some of its folds were trained on {scans}" in capsys.readouterr().err


def test_a_volume_is_known_by_its_path_under_whatever_name(own, tmp_path, capsys):
    """A manifest may give scans and patients names of its own."""
    for split in own.glob("*/split.csv"):
        subset = "test" if split.parent.name == "fold-2" else "train"
        write_rows(split, [{"subset": subset, "patient": "", "scan": "left/p01.npy"}])
    (tmp_path / "data" / "left").mkdir(parents=True)
    np.save(tmp_path / "data" / "left" / "p01.npy", np.zeros((6, 16, 16), np.uint8))
    manifest = tmp_path / "knees.csv"
    manifest.write_text("path,label,patient,scan\ndata/left/p01.npy,left,anna,first\n")
    assert run(own, manifest) == 2
    assert f"1 scan{TOO_SURE}first (trained on as left/p01.npy);" in capsys.readouterr().err
    assert run(own, manifest, "--allow-seen", "--json") == 0
    found = json.loads(capsys.readouterr().out)["p_right"]
    assert run(own / "fold-2" / "best.pt", manifest, "--json") == 0
    assert found == json.loads(capsys.readouterr().out)["p_right"]


@pytest.mark.slow
def test_another_spelling_of_a_patient_is_the_same_patient(named_by_folders, tmp_path, capsys):
    data = named_by_folders / "data" / "left"
    for name in ("K01 second visit", "k9"):
        shutil.copytree(data / "k1l", tmp_path / "more" / "left" / name)
    pattern = ["--name-pattern", r"(?P<patient>[kK]\d+)"]
    assert run(named_by_folders / "folds", tmp_path / "more", *pattern) == 2
    error = capsys.readouterr().err
    assert "trained on 1 scan, " in error and "left/K01 second visit (of patient K01)" in error


def test_a_scan_that_all_folds_have_seen_has_no_judge(own, old, capsys):
    path = own / "fold-1" / "split.csv"
    rows = read_csv(path)
    for row in rows:
        if row["patient"] == "OAI9000000":
            assert row["subset"] == "test"
            row["subset"] = "train"
    write_rows(path, rows)
    for flags in ([], ["--allow-seen"]):
        assert run(own, old, *flags) == 2
        error = capsys.readouterr().err
        assert (
            "all of its folds were trained on 2 scans, so that none can judge: OAI9000000" in error
        )
        assert len(error.splitlines()) == 1


def test_what_was_left_out_of_training_is_judged_by_all_who_did_not_see_it(own, old, capsys):
    for number, subset in ((1, "test"), (2, "none")):
        path = own / f"fold-{number}" / "split.csv"
        rows = read_csv(path)
        for row in rows:
            if row["patient"] == "OAI9000000":
                row["subset"] = subset
        write_rows(path, rows)
    assert run(own, *old.glob("OAI9000000*")) == 2
    capsys.readouterr()
    assert run(own, old, "--allow-seen") == 0
    assert "seen them: 10 scans; by the mean of the folds that have not: 2; new, by the mean" in (
        capsys.readouterr().err
    )


# ---- one model -----------------------------------------------------------------------------------


def test_one_model_says_what_it_was_trained_on(folds, old, new, tmp_path, capsys):
    checkpoint = folds / "fold-1" / "best.pt"
    assert run(checkpoint, old, new) == 0
    (line,) = capsys.readouterr().err.splitlines()
    tested = {row["scan"] for row in read_csv(folds / "fold-1" / "test_predictions.csv")}
    assert len(tested) == 4
    text = f"note: {checkpoint} was trained or chosen on 8 of 18 scans, or on their patients, and "
    assert line.startswith(f"{text}looks better on these than it is: OAI")
    assert not any(scan in line for scan in tested)
    assert run(checkpoint, new) == 0
    assert not capsys.readouterr().err
    shutil.copy(checkpoint, tmp_path / "best.pt")  # nothing is known there
    assert run(tmp_path / "best.pt", old) == 0
    assert not capsys.readouterr().err


def test_a_damaged_split_beside_a_model_is_named_and_stops_nothing(own, old, capsys):
    table = own / "fold-1" / "split.csv"
    table.write_text("subset,scan\nx,y\n")
    assert run(own / "fold-1" / "best.pt", old) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"note: {table}: expected columns subset, scan and patient, got ")
    assert line.endswith(": nothing tells which scans the model was trained on")
