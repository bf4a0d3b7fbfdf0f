"""Any labels, from files to predictions: three classes, in folders and in a manifest."""

import csv
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image

import predict
import train
from dataset import list_labelled, load_dataset, split
from evaluation import predictions
from evaluation.calibration import calibrate
from evaluation.metrics import score
from perceiver import Perceiver
from training.augment import Augmentation

CLASSES = ["top", "middle", "bottom"]
PATIENTS, SLICES = 8, 4
FLAGS = [*TINY, "--val-fraction", "0.25", "--test-fraction", "0.25"]


def read_csv(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def bands(tmp_path_factory) -> Path:
    """Noise with a bright band at one of three heights: top/p0_0.png, ...; a scan of each."""
    folder, rng = tmp_path_factory.mktemp("labels") / "bands", np.random.default_rng(0)
    for number, label in enumerate(CLASSES):
        (folder / label).mkdir(parents=True)
        for patient in range(PATIENTS):
            for i in range(SLICES):
                pixels = rng.integers(0, 100, (16, 16))
                pixels[1 + 5 * number : 5 + 5 * number] += 120
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(folder / label / f"p{patient}_{i}.png")
    return folder


@pytest.fixture(scope="module")
def manifest(bands) -> Path:
    """The same slices in a table, whose paths tell nothing; it is beside the folders."""
    path = bands.parent / "bands.csv"
    rows = ["path,label,patient,scan"]
    for file in sorted(bands.rglob("*.png")):
        patient, label = file.stem.split("_")[0], file.parent.name
        rows.append(f"{file.relative_to(bands.parent)},{label},{patient},{patient} {label}")
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module")
def of_folders(bands) -> Path:
    folder = bands.parent / "of folders"
    arguments = ["--data-dir", str(bands), "--output-dir", str(folder), *FLAGS]
    assert train.main([*arguments, "--classes", *CLASSES]) == 0
    return folder


@pytest.fixture(scope="module")
def of_manifest(manifest) -> Path:
    folder = manifest.parent / "of manifest"
    arguments = ["--data-dir", str(manifest), "--output-dir", str(folder), *FLAGS]
    assert train.main(arguments) == 0  # a manifest tells its classes
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "run, classes", [("of_folders", CLASSES), ("of_manifest", sorted(CLASSES))], ids=lambda x: x[0]
)
def test_three_classes_are_learned_and_every_file_of_the_test_has_them(request, run, classes):
    folder = request.getfixturevalue(run)
    assert Perceiver.from_checkpoint(folder / "best.pt").preprocessing["classes"] == classes
    metrics = json.loads((folder / "test_metrics.json").read_text())
    rows = read_csv(folder / "test_predictions.csv")
    shares = [f"p_{name}" for name in classes]
    columns = ["path", "scan", "patient", "expected", "label", *shares]
    assert list(rows[0]) == [*columns, *(f"logit_{name}" for name in classes)]
    matrix = np.zeros((3, 3), int)
    for row in rows:
        p = [float(row[name]) for name in shares]
        assert sum(p) == pytest.approx(1, abs=3e-6)
        assert row["label"] == classes[np.argmax(p)]
        assert row["expected"] in row["path"]
        matrix[classes.index(row["expected"]), classes.index(row["label"])] += 1
    figures = metrics["slices"]
    assert figures["confusion_matrix"] == matrix.tolist() and len(rows) == 2 * 3 * SLICES
    assert figures["accuracy"] == np.trace(matrix) / len(rows) > 0.9
    assert list(figures["by_class"]) == list(metrics["scans"]["by_class"]) == classes
    for i, name in enumerate(classes):
        of_class = figures["by_class"][name]
        assert of_class["sensitivity"]["value"] == matrix[i, i] / matrix[i].sum()
        assert of_class["precision"]["value"] == matrix[i, i] / matrix[:, i].sum()
    assert metrics["calibration"]["unsure_below"] >= 1 / 3
    expected = {"confusion_matrix.png", "calibration.png", "roc.png", "errors.png", "curves.png"}
    assert {picture.name for picture in folder.glob("*.png")} == expected
    rows = read_csv(folder / "split.csv")
    assert list(rows[0]) == ["subset", "label", "patient", "scan", "slices"]
    assert {row["label"] for row in rows} == set(classes) and len(rows) == 3 * PATIENTS


def test_left_and_right_have_the_files_that_they_always_had(finished_run):
    row = read_csv(finished_run / "test_predictions.csv")[0]
    columns = ["path", "scan", "patient", "side", "label", "p_left", "p_right"]
    assert list(row) == [*columns, "logit_left", "logit_right"]
    row = read_csv(finished_run / "split.csv")[0]
    assert list(row) == ["subset", "label", "patient", "scan", "slices"]


@pytest.mark.slow
def test_predictions_have_the_classes_of_the_checkpoint(of_folders, bands, tmp_path, capsys):
    """predict.py has no --classes: the folders are read as those that were trained on."""
    checkpoint = str(of_folders / "best.pt")
    assert predict.main([checkpoint, str(bands), "-o", str(tmp_path / "out"), "--json"]) == 0
    shares = ["p_top", "p_middle", "p_bottom"]
    rows = read_csv(tmp_path / "out" / "predictions.csv")
    assert list(rows[0]) == ["path", "scan", "label", *shares, "error"]
    tested = read_csv(of_folders / "test_predictions.csv")
    said = {row["path"]: row for row in rows}
    for row in tested:
        for name in shares:
            again = float(said[row["path"]][name])
            assert again == pytest.approx(float(row[name]), abs=2e-5)
    scans = read_csv(tmp_path / "out" / "scans.csv")
    columns = ["scan", "patient", "label", *shares, "slices", "agreement", "expected", "verdict"]
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert list(scans[0]) == list(printed[0]) == columns and len(scans) == 3 * PATIENTS
    for row, scan in zip(scans, printed, strict=True):
        of_scan = [r for r in rows if r["scan"] == row["scan"]]
        assert row["scan"] == scan["scan"] and len(of_scan) == int(row["slices"]) == SLICES
        for name in shares:
            mean = np.mean([float(r[name]) for r in of_scan])
            assert float(row[name]) == scan[name] == pytest.approx(mean, abs=2e-6)
    predict.main([checkpoint, str(bands / "top" / "p1_0.png")])
    assert "  top     p_top " in capsys.readouterr().out  # of more than two: that of the label


@pytest.mark.slow
def test_audit_finds_the_scan_with_a_wrong_label(of_folders, bands, tmp_path, capsys):
    """The top band of p3 lies with those at the bottom."""
    folder = tmp_path / "archive"
    shutil.copytree(bands, folder)
    for path in (folder / "top").glob("p3_*"):
        shutil.move(path, folder / "bottom" / f"q{path.name}")
    assert predict.main([str(of_folders / "best.pt"), str(folder), "--audit"]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("bottom/qp3  top     p_top ")
    assert lines[0].endswith("4 slices (100% agree)  mismatch, expected bottom")
    assert lines[1:] == [f"{3 * PATIENTS} scans: 23 ok, 1 mismatch, 0 unsure, 0 unknown"]


@pytest.mark.slow
def test_attention_is_drawn_for_three_classes(of_folders, bands, tmp_path):
    files = [str(bands / label / f"p1_{i}.png") for label in ("top", "bottom") for i in (0, 1)]
    flags = ["--attention", str(tmp_path / "attention")]
    assert predict.main([str(of_folders / "best.pt"), *files, *flags]) == 0
    pictures = list((tmp_path / "attention").iterdir())
    scans = [path for path in pictures if path.name.startswith("scan_")]
    assert (len(scans), len(pictures)) == (2, 6)
    for picture in pictures:
        assert Image.open(picture).convert("L").getextrema() == (0, 255)


@pytest.mark.slow
def test_onnx_runtime_says_what_predict_says(of_folders, bands, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "bands.onnx"
    assert predict.main([str(of_folders / "best.pt"), "--export", str(path)]) == 0
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == CLASSES
    rows = read_csv(of_folders / "test_predictions.csv")
    pixels = np.stack([np.asarray(Image.open(row["path"])) for row in rows])[:, None]
    logits, shares = session.run(None, {"pixels": pixels})
    expected = [[float(row[f"p_{name}"]) for name in CLASSES] for row in rows]
    assert logits.shape == (len(rows), 3)
    np.testing.assert_allclose(shares, expected, atol=1e-4)


@pytest.mark.slow
def test_the_calls_of_a_notebook_give_what_the_programs_gave(of_folders, manifest, bands):
    listing = list_labelled(bands, CLASSES)
    dataset = load_dataset(listing, (16, 16))
    subsets = split(dataset, val_fraction=0.25, test_fraction=0.25)
    model = Perceiver.from_checkpoint(of_folders / "best.pt")
    stored = dict(model.calibration)
    assert vars(calibrate(predictions.predict(model, subsets["val"]))) == pytest.approx(stored)
    found = predictions.predict(model, subsets["test"], batch_size=7)
    rows = read_csv(of_folders / "test_predictions.csv")
    assert [s.source for s in found.samples] == [row["path"] for row in rows]
    for p, row in zip(found.probabilities, rows, strict=True):
        assert p == pytest.approx([float(row[f"p_{name}"]) for name in CLASSES], abs=2e-5)
    metrics = json.loads((of_folders / "test_metrics.json").read_text())
    figures = score(found.of_slices(), dataset.classes)
    assert figures["confusion_matrix"] == metrics["slices"]["confusion_matrix"]
    # A manifest tells its classes, and the same labels.
    other = list_labelled(manifest)
    assert other.classes == sorted(CLASSES)
    assert {(s.source, s.label) for s in other.slices} == {
        (s.source, s.label) for s in listing.slices
    }


@pytest.mark.slow
def test_a_stopped_run_of_a_manifest_ends_like_a_whole_one(
    of_manifest, manifest, tmp_path, monkeypatch
):
    """The classes that it goes on with are those of its checkpoint."""
    folder, steps, usual = tmp_path / "run", [], Augmentation.__call__

    def call(self, *batch):
        steps.append(None)
        if len(steps) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return usual(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(Augmentation, "__call__", call)
        arguments = ["--data-dir", str(manifest), "--output-dir", str(folder), *FLAGS]
        assert train.main(arguments) == 128 + signal.SIGTERM
    assert train.main(["--resume", str(folder)]) == 0
    for name in ("last.pt", "best.pt"):
        a, b = (torch.load(run / name, weights_only=True) for run in (folder, of_manifest))
        assert a["preprocessing"] == b["preprocessing"]
        assert all(torch.equal(a["model"][key], b["model"][key]) for key in a["model"])
    for name in ("test_metrics.json", "test_predictions.csv", "split.csv"):
        assert (folder / name).read_text() == (of_manifest / name).read_text()


def test_mirror_swap_takes_left_and_right(bands, tmp_path, capsys):
    arguments = ["--data-dir", str(bands), "--output-dir", str(tmp_path / "run"), *FLAGS]
    assert train.main([*arguments, "--mirror-swap", "--classes", *CLASSES]) == 2
    error = capsys.readouterr().err
    assert "--mirror-swap swaps left and right; the classes are top, middle, bottom" in error
    assert len(error.splitlines()) == 1 and not (tmp_path / "run").exists()


def test_a_class_without_a_patient_in_a_subset_is_said(bands, tmp_path, capsys):
    """Of p0 alone there is a middle band: it is in one subset, and the others have none."""
    shutil.copytree(bands, tmp_path / "bands")
    for path in (tmp_path / "bands" / "middle").glob("p[1-7]_*"):
        path.unlink()
    arguments = ["--data-dir", str(tmp_path / "bands"), *FLAGS, "--dry-run", "--classes", *CLASSES]
    assert train.main(arguments) == 0
    warnings = [x for x in capsys.readouterr().out.splitlines() if x.startswith("warning")]
    assert len(warnings) == 2
    for line in warnings:
        assert line.startswith("warning: no patient of ") and " has a middle slice: " in line
        assert line.endswith("-fraction, or the split file)")
    assert train.main(["--data-dir", str(bands), *arguments[2:]]) == 0
    assert "warning" not in capsys.readouterr().out
