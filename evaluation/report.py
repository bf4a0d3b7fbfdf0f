"""The test of the best checkpoint: figures, a table and pictures in the run folder.

    metrics = test_figures(predictions, split="patient", epoch=17, calibration=calibration)
    write_report(folder, predictions, metrics)

writes test_metrics.json, test_predictions.csv, confusion_matrix.png, calibration.png, roc.png and
errors.png.
"""

from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F

from common.files import whole_file, write_csv, write_json
from evaluation import plots
from evaluation.calibration import Calibration
from evaluation.metrics import score
from evaluation.plots import Example
from evaluation.predictions import Predictions, probability_columns
from scans.names import are_sides

EXAMPLES = 8  # scans in errors.png, and three times as many slices
FEW_PATIENTS = 5  # fewer than these, and intervals over them say little


def test_figures(
    predictions: Predictions, split: str, epoch: int, calibration: Calibration
) -> dict:
    """What test_metrics.json holds; see `metrics.score`."""
    labels = torch.from_numpy(predictions.labels)
    classes = predictions.classes
    return {
        "split": split,
        "epoch": epoch,
        "patients": len(set(predictions.patients)),
        "loss_before_calibration": F.cross_entropy(predictions.logits, labels).item(),
        "calibration": asdict(calibration),
        "slices": score(predictions.of_slices(), classes),
        "scans": score(predictions.of_scans(), classes),
    }


def write_report(folder: Path, predictions: Predictions, metrics: dict) -> None:
    """Write the figures, the table of all slices and the pictures of a test."""
    classes = predictions.classes
    true = "side" if are_sides(classes) else "expected"  # `label` is what the model says
    rows = [
        {
            "path": s.name,
            "scan": s.scan,
            "patient": s.patient,
            true: s.label,
            "label": classes[p.argmax()],
            **probability_columns(p, classes),
        }
        for s, p in zip(predictions.samples, predictions.probabilities, strict=True)
    ]
    write_csv(folder / "test_predictions.csv", rows)
    write_json(folder / "test_metrics.json", metrics)
    outcomes = {"slice": predictions.of_slices(), "scan": predictions.of_scans()}
    scored = {"slice": metrics["slices"], "scan": metrics["scans"]}
    with whole_file(folder / "confusion_matrix.png") as temporary:
        plots.draw_confusion_matrix(scored, classes, temporary)
    with whole_file(folder / "calibration.png") as temporary:
        plots.draw_calibration(outcomes, scored, temporary)
    with whole_file(folder / "roc.png") as temporary:
        plots.draw_roc(outcomes, scored, classes, temporary)
    with whole_file(folder / "errors.png") as temporary:
        scans, slices = least_right_scans(predictions), least_right_slices(predictions)
        plots.draw_errors(scans, slices, temporary)


def least_right_scans(predictions: Predictions) -> list[Example]:
    """The scans whose true label has the lowest probability, by their middle slices."""
    found = []
    for scan in predictions.scans:
        number = predictions.classes.index(scan.label)
        middle = scan.members[len(scan.members) // 2]
        name = scan.name.removesuffix(".nii.gz")
        found.append((float(scan.probabilities[number]), name, middle, scan.probabilities))
    return examples(predictions, found, EXAMPLES)


def least_right_slices(predictions: Predictions) -> list[Example]:
    found = []
    for i, (s, p) in enumerate(zip(predictions.samples, predictions.probabilities, strict=True)):
        name = f"{s.scan.removesuffix('.nii.gz')} #{s.number}"
        found.append((float(p[predictions.classes.index(s.label)]), name, i, p))
    return examples(predictions, found, 3 * EXAMPLES)


def examples(predictions: Predictions, found: list[tuple], limit: int) -> list[Example]:
    """found: (probability of the true label, name, sample that is shown, all probabilities)."""
    chosen = []
    for p_true, name, i, p in sorted(found, key=lambda row: row[:3])[:limit]:
        label = predictions.samples[i].label
        image = predictions.dataset.batch(torch.tensor([i]))[0, 0].numpy(force=True)
        wrong = bool(p.argmax() != predictions.classes.index(label))
        chosen.append(Example(name, label, p_true, image, wrong))
    return chosen


def describe_test(metrics: dict) -> list[str]:
    """The figures in lines for a person."""
    lines = [f"test of the best epoch, patients it never saw: {metrics['patients']}"]
    if metrics["patients"] < FEW_PATIENTS:
        lines.append("  (so few that the intervals say little)")
    if metrics["split"] == "scan":
        lines.append("  (not quite: with --split scan other scans of theirs were trained on)")
    for unit in ("slices", "scans"):
        scored, text = metrics[unit], ""
        if scored["interval_95"]:
            text = ", 95 % interval over patients {:.2%} to {:.2%}".format(*scored["interval_95"])
        lines.append(f"  {scored['accuracy']:.2%} of {scored['count']:,} {unit} right{text}")
    return lines
