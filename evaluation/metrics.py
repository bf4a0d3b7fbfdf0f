"""Probabilities -> figures, with intervals over patients.

Slices of a patient are not independent: 5,000 slices of 13 patients say about as much as 13
patients do. So intervals are bootstrapped over patients, never over slices.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

BOOTSTRAP_SAMPLES = 10_000
CALIBRATION_BINS = 15


class Outcomes(NamedTuple):
    """What a model said of n slices or scans, and what they are.

    Of two classes, the first column of probabilities is exactly 1 - the second one.
    """

    probabilities: np.ndarray  # (n, classes), calibrated
    labels: np.ndarray  # (n,) numbers of classes
    patients: list[str]  # (n,) whose they are
    before: np.ndarray  # (n, classes), before calibration


def score(outcomes: Outcomes, classes: list[str]) -> dict:
    """Accuracy and quality of n probabilities, with 95 % intervals over patients.

    Intervals are percentile bootstraps (Efron and Tibshirani 1993, section 13.3): whole patients
    are drawn with replacement. They have no width where all patients are alike, and are None where
    there is only one patient. Draws in which a figure is undefined, because a class is not in them,
    are left out.

    Returns:
        count, correct, accuracy, interval_95 and confusion_matrix (rows true, columns predicted),
        and {value, interval_95} of negative_log_likelihood (nats), brier_score,
        expected_calibration_error (`calibration_error`), roc_auc (`roc_auc`; the mean of the
        classes'), the calibration error before calibration, and balanced_accuracy (the mean of the
        classes' sensitivities).
        by_class: class -> {value, interval_95} of sensitivity, precision and roc_auc, each of this
        class against the rest.
        A figure that needs a class which does not occur is None: where all are of one class, also
        its precision, as nothing could be taken for it wrongly. So is the precision of a class that
        is never predicted.
    """
    probabilities, before = (
        np.asarray(p, dtype=float) for p in (outcomes.probabilities, outcomes.before)
    )
    labels = np.asarray(outcomes.labels, dtype=int)
    predicted = probabilities.argmax(axis=1)  # of equal ones the first
    right = predicted == labels
    p_true = probabilities[np.arange(len(labels)), labels]
    patient, draws = draw_patients(outcomes.patients)
    if draws.shape[1] == 1:
        draws = draws[:0]  # one patient says nothing of others

    def values_of(measure: Measure) -> np.ndarray:
        """The measure of all patients, and after it that of each draw."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.append(measure(np.ones((1, draws.shape[1]))), measure(draws))

    numbers = range(len(classes))
    there = [label for label in numbers if (labels == label).any()]
    sensitivities = [values_of(mean_over(patient, right, labels == c)) for c in numbers]
    precisions = [values_of(mean_over(patient, right, predicted == c)) for c in numbers]
    if len(classes) == 2:  # that of class 0 is the same; 1 - p would round some to ties
        areas = [values_of(roc_auc(patient, probabilities[:, 1], labels == 1))] * 2
    else:
        areas = [values_of(roc_auc(patient, probabilities[:, c], labels == c)) for c in numbers]
    accuracy = figure(values_of(mean_over(patient, right)))
    log_loss = mean_over(patient, -np.log(p_true.clip(1e-12)))
    values = {
        "negative_log_likelihood": values_of(log_loss),
        "brier_score": values_of(mean_over(patient, brier_scores(probabilities, labels))),
        "expected_calibration_error": values_of(calibration_error(patient, probabilities, labels)),
        "roc_auc": np.mean(areas, axis=0),
        "expected_calibration_error_before": values_of(calibration_error(patient, before, labels)),
        "balanced_accuracy": np.mean(sensitivities, axis=0),
    }
    confusion = np.zeros((len(classes), len(classes)), dtype=int)
    np.add.at(confusion, (labels, predicted), 1)
    return {
        "count": len(labels),
        "correct": int(right.sum()),
        "accuracy": accuracy["value"],
        "interval_95": accuracy["interval_95"],
        "confusion_matrix": confusion.tolist(),
        **{name: figure(of_draws) for name, of_draws in values.items()},
        "by_class": {
            name: {
                "sensitivity": figure(sensitivities[c]),
                "precision": figure(precisions[c] if len(there) > 1 else precisions[c] * np.nan),
                "roc_auc": figure(areas[c]),
            }
            for c, name in enumerate(classes)
        },
    }


def figure(values: np.ndarray) -> dict:
    """{value, interval_95} of a measure: its value, and after it that of each draw of patients."""
    value, drawn = values[0], values[1:]
    if np.isnan(value):
        return {"value": None, "interval_95": None}
    interval = None
    if not np.isnan(drawn).all():  # nor where there are none
        interval = [float(bound) for bound in np.nanpercentile(drawn, [2.5, 97.5])]
    return {"value": float(value), "interval_95": interval}


def brier_scores(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The squared error of each of n predictions: (n, classes) and (n,) -> (n,).

    Brier 1950 (Monthly Weather Review 78, page 1) sums it over the classes. For two that counts the
    same error twice, and class 1 alone is usual: both as in scikit-learn's brier_score_loss.
    """
    squared = (probabilities - np.eye(probabilities.shape[1])[labels]) ** 2
    return squared[:, 1] if squared.shape[1] == 2 else squared.sum(axis=1)


# ---- figures of drawn patients -------------------------------------------------------------------


def draw_patients(patients: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The patient of each of n predictions as a number, and bootstrap samples of patients.

    Returns (n,) and (samples, patients): how often each patient was drawn.
    """
    names, patient = np.unique(np.asarray(patients), return_inverse=True)
    drawn = np.random.default_rng(0).integers(len(names), size=(BOOTSTRAP_SAMPLES, len(names)))
    draws = np.zeros(drawn.shape)
    np.add.at(draws, (np.arange(BOOTSTRAP_SAMPLES)[:, None], drawn), 1)
    return patient, draws


# Each measure is a function of how often each patient counts: (draws, patients) -> (draws,).
# It is nan where it is undefined.
Measure = Callable[[np.ndarray], np.ndarray]


def mean_over(patient: np.ndarray, values: np.ndarray, among: np.ndarray | None = None) -> Measure:
    """The mean of n values, or of those `among` which (n,) is true."""
    among = np.ones(len(patient)) if among is None else among
    sums, sizes = np.bincount(patient, weights=values * among), np.bincount(patient, weights=among)
    return lambda draws: draws @ sums / (draws @ sizes)


def calibration_error(
    patient: np.ndarray, probabilities: np.ndarray, labels: np.ndarray
) -> Measure:
    """Mean distance between confidence and accuracy, over bins of confidence.

    Expected calibration error of Guo et al. 2017, arXiv:1706.04599, equation 3.
    """
    confidence, bins = probabilities.max(axis=1), confidence_bins(probabilities)
    gap = confidence - (probabilities.argmax(axis=1) == labels)
    gaps = np.zeros((patient.max() + 1, CALIBRATION_BINS))
    np.add.at(gaps, (patient, bins), gap)
    sizes = np.bincount(patient)
    return lambda draws: np.abs(draws @ gaps).sum(axis=1) / (draws @ sizes)


def confidence_bins(probabilities: np.ndarray) -> np.ndarray:
    """The bin of each largest probability: (n, classes) -> (n,).

    Bins divide 1 / classes, the least that the largest can be, to 1 evenly.
    """
    least = 1 / probabilities.shape[1]
    share = (probabilities.max(axis=1) - least) / (1 - least)
    return (share * CALIBRATION_BINS).astype(int).clip(0, CALIBRATION_BINS - 1)


def roc_auc(patient: np.ndarray, p: np.ndarray, positive: np.ndarray) -> Measure:
    """Probability that a slice of a class gets a higher p (n,) than one of the rest; ties half."""
    count = patient.max() + 1
    wins = np.zeros((count, count))  # of the positives of a patient over the negatives of another
    p_positive, owner = p[positive], patient[positive]
    for other in range(count):
        negative = np.sort(p[~positive & (patient == other)])
        below, not_above = (
            np.searchsorted(negative, p_positive, side) for side in ("left", "right")
        )
        wins[:, other] = np.bincount(owner, weights=(below + not_above) / 2, minlength=count)
    negatives, positives = (np.bincount(patient, weights=w) for w in (~positive, positive))
    return lambda draws: (
        ((draws @ wins) * draws).sum(axis=1) / ((draws @ negatives) * (draws @ positives))
    )
