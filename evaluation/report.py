"""The test of the best checkpoint: figures, a table and pictures in the run folder.

    metrics = test_figures(predictions, split="patient", epoch=17, calibration=calibration)
    write_report(folder, predictions, metrics)

writes test_metrics.json, test_predictions.csv, confusion_matrix.png, calibration.png, roc.png and
errors.png.
"""

import math
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from common.files import read_json, write_json
from common.program import UserError, counted
from common.tables import read_csv, write_csv
from dataset import Dataset
from evaluation.calibration import Calibration
from evaluation.metrics import score
from evaluation.predictions import Example, Predictions, probability_columns
from scans.identity.names import are_sides

EXAMPLES = 8  # scans in errors.png, and three times as many slices
TABLE, FIGURES = "test_predictions.csv", "test_metrics.json"
FEW_PATIENTS = 5  # fewer than these, and intervals over them say little


def test_figures(
    predictions: Predictions, split: str, epoch: int, epochs: int, calibration: Calibration
) -> dict:
    """What test_metrics.json holds; see `metrics.score`. Of slices only if these are read.

    epoch: the best one, which is tested; epochs: so many were trained.
    """
    labels = torch.from_numpy(predictions.labels)
    classes = predictions.classes
    return {
        "split": split,
        "epoch": epoch,
        "epochs": epochs,
        "patients": len(set(predictions.patients)),
        "patients_known": predictions.dataset.patients_known,
        "loss_before_calibration": F.cross_entropy(predictions.logits, labels).item(),
        "calibration": asdict(calibration),
        **{f"{unit}s": score(of, classes) for unit, of in predictions.outcomes().items()},
    }


def write_report(folder: Path, predictions: Predictions, metrics: dict) -> None:
    """Write the table of all samples, the pictures and, last, the figures of a test."""
    write_csv(folder / TABLE, rows_of(predictions))
    draw_test(folder, predictions, metrics)
    write_json(folder / FIGURES, metrics)


def rows_of(predictions: Predictions) -> list[dict]:
    """Of each sample: what it is, what the model says, and the logits that it says it with."""
    classes, unit = predictions.classes, predictions.dataset.unit
    true = "side" if are_sides(classes) else "expected"  # `label` is what the model says
    found = zip(predictions.samples, predictions.probabilities, predictions.logits, strict=True)
    return [
        {
            **({"path": s.name} if unit == "slice" else {}),
            "scan": s.scan,
            "patient": s.patient,
            true: s.label,
            "label": classes[p.argmax()],
            **probability_columns(p, classes),
            # Nine digits are all that float32 has: read back, they are the same.
            **{f"logit_{name}": float(f"{x:.9g}") for name, x in zip(classes, logits, strict=True)},
        }
        for s, p, logits in found
    ]


def read_tested(folder: Path, tested: Dataset) -> Predictions:
    """What `write_report` wrote of these samples.

    Raises UserError for a table of other samples, or what is no such table.
    """
    path = folder / TABLE
    table, metrics = read_csv(path, "table of predictions"), read_json(folder / FIGURES, "test")
    try:
        logits = [
            [float(row.cells[f"logit_{name}"]) for name in tested.classes] for row in table.rows
        ]
        scans = [row.cells["scan"] for row in table.rows]
        temperature = float(metrics["calibration"]["temperature"])
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}: not what a run writes after its test ({error})") from error
    if scans != [s.scan for s in tested.samples]:
        raise UserError(f"{path}: of other {tested.unit}s than the data's; test the run again")
    logits = torch.tensor(logits).reshape(len(scans), -1)
    if not (logits.isfinite().all() and 0 < temperature < math.inf):
        raise UserError(f"{path}: logits or temperature are not finite; test the run again")
    return Predictions(tested, logits, temperature)


def draw_test(folder: Path, predictions: Predictions, metrics: dict) -> None:
    """Confusion matrix, calibration, ROC and errors. metrics: slices and scans as `score` gives."""
    from evaluation import plots  # matplotlib, which a run needs at its end only

    classes, outcomes = predictions.classes, predictions.outcomes()
    scored = {unit: metrics[f"{unit}s"] for unit in outcomes}
    plots.draw_confusion_matrix(scored, classes, folder / "confusion_matrix.png")
    plots.draw_calibration(outcomes, scored, folder / "calibration.png")
    if any(of["roc_auc"]["value"] is not None for of in metrics["scans"]["by_class"].values()):
        plots.draw_roc(outcomes, scored, classes, folder / "roc.png")
    else:
        (folder / "roc.png").unlink(missing_ok=True)  # of a test before the run went on
    plots.draw_errors(*least_right(predictions), folder / "errors.png")


class LeastRight(NamedTuple):
    """What has the lowest probability of its true label, lowest first."""

    scans: list[Example]
    slices: list[Example] | None  # None where whole scans are read


def least_right(predictions: Predictions) -> LeastRight:
    """A few scans, each by its middle slice, and three times as many slices."""
    classes, samples = predictions.classes, predictions.samples

    def worst(candidates: list[tuple[str, int, np.ndarray]], limit: int) -> list[Example]:
        """candidates: name, sample that is shown, probabilities (classes,)."""
        found = []
        for name, i, p in candidates:
            number = classes.index(samples[i].label)
            found.append((float(p[number]), name.replace(".nii.gz", ""), i, p.argmax() != number))
        examples = []
        for p_true, name, i, wrong in sorted(found)[:limit]:
            image = predictions.dataset.batch(torch.tensor([i]))[0, 0].numpy(force=True)
            image = image if image.ndim == 2 else image[len(image) // 2]
            examples.append(Example(name, samples[i].label, p_true, image, bool(wrong)))
        return examples

    scans = [(x.name, x.members[len(x.members) // 2], x.probabilities) for x in predictions.scans]
    if predictions.dataset.unit == "scan":
        return LeastRight(worst(scans, EXAMPLES), None)
    slices = [
        (f"{s.scan} #{s.number}", i, predictions.probabilities[i]) for i, s in enumerate(samples)
    ]
    return LeastRight(worst(scans, EXAMPLES), worst(slices, 3 * EXAMPLES))


def describe_test(metrics: dict) -> list[str]:
    """The figures in lines for a person."""
    known = f" ({metrics['patients_known']})" if metrics["patients_known"] else ""
    of = "patients it never saw"
    if metrics["split"] == "scan":
        of = "patients of whom it may have seen other scans (--split scan)"
    lines = [f"test of the best epoch, {of}: {metrics['patients']}{known}"]
    if 1 < metrics["patients"] < FEW_PATIENTS:
        lines.append("  (so few that the intervals say little)")
    units = units_of(metrics)
    lines += [f"  {describe_accuracy(metrics, unit)}" for unit in units]
    unit = units[0].removesuffix("s")
    tested = zip(metrics["scans"]["by_class"], metrics["scans"]["confusion_matrix"], strict=True)
    if lacking := [name for name, row in tested if not any(row)]:
        lines.append(
            f"  (no {' and no '.join(lacking)} {unit} was tested: that says nothing of how well "
            "classes are told apart, and ROC AUC and balanced accuracy are left out)"
        )
    return lines


def units_of(metrics: dict) -> list[str]:
    return [unit for unit in ("slices", "scans") if unit in metrics]


def describe_accuracy(metrics: dict, unit: str) -> str:
    scored, text = metrics[unit], ", of one patient: no interval"
    if scored["interval_95"]:
        text = ", 95 % interval over patients {:.2%} to {:.2%}".format(*scored["interval_95"])
    count = counted(scored["count"], unit.removesuffix("s"))
    return f"{scored['accuracy']:.2%} of {count} right{text}"
