"""--input scan: one model reads whole scans, from training to predictions."""

import csv
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, assert_same_run, name_of
from PIL import Image

import predict
import train
from dataset import list_labelled, load_dataset, split
from perceiver import Perceiver

ROOT = Path(__file__).parents[1]
SLICES = 6
FLAGS = [*TINY, "--input", "scan", "--slices", str(SLICES), "-b", "4", "--max-freq", "4"]


def write_ordered(folder: Path, patients: int = 8, slices: int = SLICES, seed: int = 0) -> None:
    """Noisy slices that get brighter in a right knee and darker in a left one.

    So each slice alone is as likely of either side, and their order tells it.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for patient in range(patients):
        for side in ("LEFT", "RIGHT"):
            levels = np.linspace(40, 200, slices)
            for index, level in enumerate(levels if side == "RIGHT" else levels[::-1]):
                pixels = (level + rng.normal(0, 20, (16, 16))).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / name_of(patient + 1, side, index))


@pytest.fixture(scope="module")
def ordered(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ordered") / "knees"
    write_ordered(folder)
    return folder


@pytest.fixture(scope="module")
def run(ordered, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scan runs") / "run"
    flags = ["--augment", "--mirror-swap", "--data-dir", str(ordered)]
    assert train.main([*FLAGS, *flags, "--output-dir", str(folder)]) == 0
    return folder


def rows_of(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def predicted(run: Path, paths: list, folder: Path, code: int = 0) -> list[dict]:
    """Rows of scans.csv."""
    paths = list(map(str, paths))
    assert predict.main([str(run / "best.pt"), *paths, "--output", str(folder)]) == code
    return rows_of(folder / "scans.csv")


@pytest.mark.slow
def test_the_order_of_slices_is_learned_and_by_slices_it_can_not_be(run, ordered, tmp_path):
    metrics = json.loads((run / "test_metrics.json").read_text())
    assert metrics["scans"]["accuracy"] == 1 and "slices" not in metrics
    rows = rows_of(run / "test_predictions.csv")
    assert len(rows) == metrics["scans"]["count"] and "path" not in rows[0]
    arguments = json.loads((run / "args.json").read_text())["arguments"]
    assert (arguments["mirrored"], arguments["batch_size"]) == ("slices", 4)
    flags = [*TINY, "--epochs", "4", "--data-dir", str(ordered)]
    assert train.main([*flags, "--output-dir", str(tmp_path / "slices")]) == 0
    metrics = json.loads((tmp_path / "slices" / "test_metrics.json").read_text())
    assert metrics["slices"]["accuracy"] < 0.75


@pytest.mark.slow
def test_reversed_scans_are_of_the_other_side_and_shuffled_ones_of_none(run, ordered, tmp_path):
    turned, mixed, rng = tmp_path / "turned", tmp_path / "mixed", random.Random(0)
    turned.mkdir(), mixed.mkdir()
    for path in ordered.iterdir():
        stem, _, number = path.stem.rpartition("_")
        shutil.copy(path, turned / f"{stem}_{SLICES - 1 - int(number)}.png")
    for first in ordered.glob("*_0.png"):
        stem = first.stem.rpartition("_")[0]
        for number, other in enumerate(rng.sample(range(SLICES), SLICES)):
            shutil.copy(ordered / f"{stem}_{other}.png", mixed / f"{stem}_{number}.png")
    right = {row["scan"]: row["label"] for row in predicted(run, [ordered], tmp_path / "a")}
    assert all(side.upper() in scan for scan, side in right.items())
    for row in predicted(run, [turned], tmp_path / "b"):
        assert row["label"] != right[row["scan"]] and row["slices"] == str(SLICES)
    agree = [row["label"] == right[row["scan"]] for row in predicted(run, [mixed], tmp_path / "c")]
    assert 0.2 < np.mean(agree) < 0.8


@pytest.mark.slow
def test_paths_come_in_any_order_and_scans_in_any_length(run, ordered, tmp_path, capsys):
    scan = sorted(ordered.glob(name_of(1, "LEFT", 0).replace("_0.png", "_*.png")))
    (row,) = predicted(run, scan, tmp_path / "a")
    assert row["label"] == "left" and row["agreement"] == "" and row["slices"] == str(SLICES)
    shuffled = random.Random(1).sample(scan, len(scan))
    assert predicted(run, shuffled, tmp_path / "b") == [row]
    write_ordered(tmp_path / "long", patients=1, slices=17)
    write_ordered(tmp_path / "short", patients=1, slices=4)
    for name, count in (("long", "17"), ("short", "4")):
        rows = predicted(run, [tmp_path / name], tmp_path / f"of {name}")
        assert [(r["label"], r["slices"]) for r in rows] == [("left", count), ("right", count)]
    said = capsys.readouterr().err
    assert "note: 2 scans of 17 slices: resampled to 6" in said
    (tmp_path / "long" / name_of(1, "LEFT", 7)).unlink()
    predicted(run, [tmp_path / "long"], tmp_path / "missing")
    assert "slices are missing, and interpolated: OAI0000001_BaseLine_1_0_LEFT.nii.gz (1)" in (
        capsys.readouterr().err
    )


@pytest.mark.slow
def test_what_is_no_whole_scan_is_named_and_the_others_go_on(run, ordered, tmp_path, capsys):
    folder = tmp_path / "knees"
    shutil.copytree(ordered, folder)
    for path in folder.glob("OAI0000001*LEFT*_[2-5].png"):
        path.unlink()
    (folder / name_of(2, "LEFT", 3)).write_bytes(b"no image")
    rows = predicted(run, [folder], tmp_path / "p", code=1)
    assert len(rows) == 15 and {r["label"] for r in rows if "LEFT" in r["scan"]} == {"left"}
    (damaged,) = (r for r in rows if r["scan"].startswith("OAI0000002") and "LEFT" in r["scan"])
    assert damaged["slices"] == "5"
    said = capsys.readouterr().err
    assert "LEFT.nii.gz: 2 slices, expected a whole scan: 3 or more" in said
    assert name_of(2, "LEFT", 3) in said
    table = rows_of(tmp_path / "p" / "predictions.csv")
    assert len(table) == 17 and sum(bool(row["error"]) for row in table) == 2
    (row,) = (row for row in table if row["path"].endswith(name_of(2, "LEFT", 3)))
    assert row["scan"] == damaged["scan"]
    # None is left: each has its reason, and there is no other line.
    for paths in ([folder / name_of(1, "LEFT", 0)], [folder / name_of(2, "LEFT", 3)]):
        assert predicted(run, paths, tmp_path / "none", code=1) == []
        table = rows_of(tmp_path / "none" / "predictions.csv")
        assert all(row["error"] for row in table)
        assert "slices, expected a whole scan" in table[0]["error"].replace("slice,", "slices,")


@pytest.mark.slow
def test_a_resumed_run_is_the_same_run(run, ordered, tmp_path):
    flags = ["--augment", "--mirror-swap", "--data-dir", str(ordered)]
    folder = tmp_path / "run"
    assert train.main([*FLAGS, *flags, "--epochs", "5", "--output-dir", str(folder)]) == 0
    assert train.main(["--resume", str(folder), "--epochs", "12"]) == 0
    assert_same_run(folder, run)


@pytest.mark.slow
def test_two_processes_do_what_one_does(ordered, tmp_path):
    common = [*FLAGS, "--epochs", "2", "-b", "5", "--data-dir", str(ordered)]
    found = []
    for launcher in ([], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]):
        folder = tmp_path / f"run{len(found)}"
        command = [sys.executable, *launcher, ROOT / "train.py", *common, "--output-dir", folder]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        found.append(rows_of(folder / "metrics.csv"))
    for one, two in zip(*found, strict=True):
        for key in ("train_loss", "val_loss", "train_accuracy", "val_accuracy"):
            assert float(one[key]) == pytest.approx(float(two[key]), abs=5e-5), key


@pytest.mark.slow
def test_exported_model_reads_scans(run, ordered, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "scans.onnx"
    assert predict.main([str(run / "best.pt"), "--export", str(path)]) == 0
    dataset = load_dataset(list_labelled(ordered), (16, 16), tmp_path / "cache", 1, SLICES)
    pixels = dataset.batch(torch.arange(3))
    (logits, _) = onnxruntime.InferenceSession(path).run(None, {"pixels": pixels.numpy()})
    model = Perceiver.from_checkpoint(run / "best.pt")
    assert np.abs(logits - model.predict_logits(pixels).numpy()).max() < 1e-4


@pytest.mark.slow
def test_pictures_show_all_of_a_scan(run, ordered, tmp_path):
    scan = sorted(map(str, ordered.glob(name_of(1, "RIGHT", 0).replace("_0.png", "_*.png"))))
    assert predict.main([str(run / "best.pt"), *scan, "--attention", str(tmp_path / "drawn")]) == 0
    names = sorted(path.name.partition("_")[0] for path in (tmp_path / "drawn").iterdir())
    assert names == ["saliency", "scan"]


def test_a_scan_of_copies_is_left_out_and_one_of_a_few_is_not(ordered, tmp_path, capsys):
    folder = tmp_path / "knees"
    shutil.copytree(ordered, folder)
    for number in range(SLICES):
        copy = name_of(1, "LEFT", number).replace("BaseLine", "12Month")
        shutil.copy(folder / name_of(1, "LEFT", number), folder / copy)
        few = copy.replace("0000001", "0000002")
        shutil.copy(folder / name_of(2, "LEFT", number if number < 3 else 5 - number), folder / few)
    flags = [*FLAGS, "--data-dir", str(folder), "--dry-run"]
    assert train.main(flags) == 0
    said = capsys.readouterr().out
    assert "note: 1 scan exactly in an earlier scan of their patient, left out" in said


def test_scans_without_an_order_are_refused(tmp_path, capsys):
    write_ordered(tmp_path / "knees", slices=2)
    assert train.main([*FLAGS, "--data-dir", str(tmp_path / "knees")]) == 2
    said = capsys.readouterr().err
    assert "16 scans can't be read whole" in said and "2 slices, expected a whole scan" in said
    flags = [*FLAGS, "--data-dir", str(tmp_path / "knees")]
    for more, message in [
        (["--slices", "2"], "--slices 2: a whole scan has at least 3"),
        (["--mirrored", "slices"], "--mirrored says what --mirror-swap reverses"),
        (["--input", "slice", "--mirror-swap", "--mirrored", "slices"], "--mirrored says what"),
    ]:
        with pytest.raises(SystemExit):
            train.main([*flags, *more])
        assert message in capsys.readouterr().err


def test_notebook_way(ordered, tmp_path):
    dataset = load_dataset(list_labelled(ordered), (16, 16), tmp_path / "cache", scan_length=SLICES)
    subsets = split(dataset)
    assert sum(map(len, subsets.values())) == 16 and subsets["train"].unit == "scan"
    assert subsets["test"].batch(torch.arange(2)).shape == (2, 1, SLICES, 16, 16)


def test_query_scale_multiplies_the_first_queries_and_nothing_else(ordered, tmp_path):
    flags = [*FLAGS, "--data-dir", str(ordered), "--cache-dir", str(tmp_path)]
    models = []
    for more in (["--query-scale", "1"], []):
        args = train.parse_args([*flags, *more])
        models.append(
            train.new_model(
                args, train.read_subsets(args, train.read_data(args, None))["train"]
            ).state_dict()
        )
    for name, weight in models[0].items():
        factor = 6 if name.endswith("cross_attention.to_q.weight") else 1
        assert torch.equal(factor * weight, models[1][name]), name


@pytest.mark.slow
def test_volumes_of_several_directions_are_refused_and_a_plane_reads_them(tmp_path, capsys):
    sitk = pytest.importorskip("SimpleITK")
    rng = np.random.default_rng(0)
    for first, towards in ((0, 1), (4, -1)):
        for patient in range(first, first + 4):
            for side in ("LEFT", "RIGHT"):
                levels = np.linspace(40, 200, SLICES)[:: 1 if side == "RIGHT" else -1]
                pixels = levels[:, None, None] + rng.normal(0, 20, (SLICES, 16, 16))
                image = sitk.GetImageFromArray(pixels[::towards].astype(np.int16))
                # Slices go to the left, or to the right; rows downwards, columns to the back.
                image.SetDirection([0, 0, towards, 1, 0, 0, 0, -1, 0])
                image.SetSpacing([1, 1, 3])
                path = tmp_path / "scans" / f"p0{patient}_{side}.nii.gz"
                path.parent.mkdir(exist_ok=True)
                sitk.WriteImage(image, str(path))
    flags = [*FLAGS, "--data-dir", str(tmp_path / "scans"), "--output-dir", str(tmp_path / "run")]
    flags += ["--mirror-swap", "--cache-dir", str(tmp_path / "cache")]
    assert train.main(flags) == 2
    said = capsys.readouterr().err
    assert "slices, rows and columns go to RIP, but those of" in said and "--plane sagittal" in said
    assert train.main([*flags, "--plane", "sagittal"]) == 0
    said = capsys.readouterr().out
    assert (
        "--mirror-swap reverses the slices of a scan: they run across the patient, as headers"
        in said
    )
    assert "100.00% of" in said
    # The checkpoint keeps how they ran: stored ones that run otherwise are refused, others not.
    scans = [str(tmp_path / "scans" / f"p0{patient}_LEFT.nii.gz") for patient in (0, 4)]
    assert predict.main([str(tmp_path / "run" / "best.pt"), *scans]) == 0
    checkpoint = torch.load(tmp_path / "run" / "best.pt", weights_only=True)
    checkpoint["preprocessing"]["plane"] = "stored"
    torch.save(checkpoint, tmp_path / "stored.pt")
    capsys.readouterr()
    assert predict.main([str(tmp_path / "stored.pt"), *scans]) == 1
    said = capsys.readouterr()
    assert said.out.count("p00_LEFT") == 1 and "p04_LEFT" not in said.out
    assert "go to RIP, but those that were trained on to LIP; a model" in said.err


@pytest.mark.slow
def test_what_a_checkpoint_keeps_of_scans_is_checked(run, ordered, tmp_path, capsys):
    for values in (
        {"slices": None},
        {"slices": 2},
        {"slices": "40"},
        {"slices": 65536, "image_size": [60000, 60000]},
        {"orientation": "LLX"},
        {"orientation": 7},
    ):
        checkpoint = torch.load(run / "best.pt", weights_only=True)
        checkpoint["preprocessing"] |= values
        torch.save(checkpoint, tmp_path / "odd.pt")
        assert predict.main([str(tmp_path / "odd.pt"), str(ordered)]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"predict.py: {tmp_path / 'odd.pt'}: ") and said.count("\n") == 1


@pytest.mark.slow
def test_renumbered_slices_are_other_data_for_a_resumed_run(run, ordered, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(ordered, tmp_path / "knees")
    for path in (tmp_path / "knees").glob(f"*_{SLICES - 1}.png"):
        path.rename(path.with_name(path.name.replace(f"_{SLICES - 1}.png", "_9.png")))
    flags = ["--resume", str(tmp_path / "run"), "--data-dir", str(tmp_path / "knees")]
    assert train.main([*flags, "--epochs", "13"]) == 2
    assert "other labels, names or subsets of these slices" in capsys.readouterr().err
