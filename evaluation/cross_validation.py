"""What the models of all folds say, together: each patient by the model that never saw them.

    pooled = pool(tested)                        # Predictions of all that was tested
    figures = pooled_figures(tested, pooled, count)
    write_cross_validation(folder, tested, pooled, figures)

writes predictions.csv, scans.csv, cross_validation.json, curves.png and the pictures of a test.
"""

import statistics
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from common.files import write_json
from common.program import UserError, counted
from common.tables import write_csv
from evaluation.audit import LabelNoise, fit_label_noise, judge_out_of_fold
from evaluation.calibration import ERROR_RATE, fit_threshold
from evaluation.metrics import score
from evaluation.predictions import Predictions
from evaluation.report import describe_accuracy, draw_test, rows_of, units_of

FIGURES = "cross_validation.json"
TABLES = ("predictions.csv", "scans.csv")
OVER_FOLDS = ("accuracy", "balanced_accuracy", "roc_auc", "negative_log_likelihood", "brier_score")
OVER_FOLDS += ("expected_calibration_error",)


class TestedFold(NamedTuple):
    number: int
    predictions: Predictions  # of its test subset
    metrics: dict  # its test_metrics.json
    rows: list[dict]  # of its epochs, as in metrics.csv


def pool(tested: list[TestedFold]) -> Predictions:
    """What all folds tested, in the order of the data; each with the temperature of its model."""
    parts = [fold.predictions for fold in tested]
    rows = torch.cat([part.dataset.rows for part in parts])
    logits = torch.cat([part.logits for part in parts])
    sizes = [len(part.dataset) for part in parts]
    temperatures = torch.tensor([part.temperature for part in parts], dtype=torch.double)
    temperatures = temperatures.repeat_interleave(torch.tensor(sizes))[:, None]
    order = (rows if rows.ndim == 1 else rows[:, 0]).argsort(stable=True)
    dataset = parts[0].dataset.subset(rows[order])
    return Predictions(dataset, logits[order], temperatures[order])


def pooled_figures(tested: list[TestedFold], pooled: Predictions, count: int) -> dict:
    """What cross_validation.json holds. count: of folds, with those that are not tested yet.

    slices and scans: figures of all, see `metrics.score`, with intervals over all patients.
    over_folds: unit -> figure -> mean, standard_deviation, lowest, highest of the folds' own.
    calibration: from where on at most ERROR_RATE of all samples are wrong.
    label_noise: what share of the labels seems wrong, see `audit.fit_label_noise`.
    """
    done = [fold.number for fold in tested]
    figures = {
        "folds": count,
        "tested": done,
        "missing": [number for number in range(1, count + 1) if number not in done],
        "patients": len(set(pooled.patients)),
        "patients_known": pooled.dataset.patients_known,
        "calibration": {
            "unsure_below": fit_threshold(pooled.probabilities, pooled.labels),
            "unsure_above_error_rate": ERROR_RATE,
        },
        "label_noise": label_noise(pooled)._asdict(),
        **{f"{unit}s": score(of, pooled.classes) for unit, of in pooled.outcomes().items()},
    }
    units = units_of(figures)
    by_fold = [figures_of(fold, units) for fold in tested]
    spread = {unit: over_folds([fold[unit] for fold in by_fold]) for unit in units}
    return figures | {"over_folds": spread, "by_fold": by_fold}


def label_noise(pooled: Predictions) -> LabelNoise:
    labels = [pooled.classes.index(scan.label) for scan in pooled.scans]
    return fit_label_noise(np.stack([scan.probabilities for scan in pooled.scans]), labels)


def figures_of(fold: TestedFold, units: list[str]) -> dict:
    """A fold in cross_validation.json. Raises UserError for what no test wrote."""
    try:
        return {
            "fold": fold.number,
            **{name: fold.metrics[name] for name in ("epoch", "patients", "calibration")},
            **{unit: own_figures(fold.metrics[unit]) for unit in units},
        }
    except (KeyError, TypeError) as error:
        text = "not what a run writes after its test; remove it, and the fold is tested again"
        raise UserError(f"fold-{fold.number}/test_metrics.json: {text} ({error})") from error


def own_figures(scored: dict) -> dict:
    """Of a fold's figures those that are compared over folds, without intervals."""
    values = {name: scored[name] for name in ("count", "correct", "accuracy")}
    return values | {name: scored[name]["value"] for name in OVER_FOLDS[1:]}


def over_folds(scored: list[dict]) -> dict:
    """Mean and spread of `own_figures`. One that a fold lacks, as a class is not in it, is of the
    others alone.
    """
    found = {}
    for name in OVER_FOLDS:
        values = [of[name] for of in scored if of[name] is not None]
        if values:
            found[name] = {
                "mean": statistics.mean(values),
                "standard_deviation": statistics.stdev(values) if len(values) > 1 else None,
                "lowest": min(values),
                "highest": max(values),
                "folds": len(values),
            }
    return found


def write_cross_validation(
    folder: Path, tested: list[TestedFold], pooled: Predictions, figures: dict
) -> list[dict]:
    """Write tables and pictures and, last, the figures. Returns the rows of scans.csv."""
    from evaluation import curves

    fold_of = {s.scan: fold.number for fold in tested for s in fold.predictions.samples}
    samples, scans = TABLES
    rows = [{"fold": fold_of[row["scan"]], **row} for row in rows_of(pooled)]
    write_csv(folder / samples, rows)
    noise = LabelNoise(**figures["label_noise"])
    judged = judge_out_of_fold(pooled.scans, pooled.classes, noise)
    judged = [{"fold": fold_of[row["scan"]], **row} for row in judged]
    write_csv(folder / scans, judged)
    curves.draw_curves_of_folds({fold.number: fold.rows for fold in tested}, folder / "curves.png")
    draw_test(folder, pooled, figures)
    write_json(folder / FIGURES, figures)
    return judged


def describe_cross_validation(figures: dict) -> list[str]:
    """The figures in lines for a person."""
    known = f" ({figures['patients_known']})" if figures["patients_known"] else ""
    done, count = len(figures["tested"]), figures["folds"]
    of = f"{done} of {count} folds" if done < count else f"{count} folds"
    patients = counted(figures["patients"], "patient")
    lines = [f"{of}, {patients}{known}, each tested by a model that never saw them"]
    for unit in units_of(figures):
        lines.append(f"  {describe_accuracy(figures, unit)}")
        spread = figures["over_folds"][unit]["accuracy"]
        if done > 1:
            lines.append(
                f"    by fold {spread['mean']:.2%} on average, standard deviation "
                f"{spread['standard_deviation']:.2%}, from {spread['lowest']:.2%} to "
                f"{spread['highest']:.2%}"
            )
    return lines
