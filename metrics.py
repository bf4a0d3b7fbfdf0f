"""Probabilities -> figures, per slice and per scan, with intervals over patients.

Slices of a patient are not independent: 5,000 slices of 13 patients say about as much as 13
patients do. So intervals are bootstrapped over patients, never over slices.
"""

from collections import defaultdict
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

BOOTSTRAP_SAMPLES = 10_000
CALIBRATION_BINS = 15
TEMPERATURES = 0.05, 20.0  # what fit_temperature chooses from
ERROR_RATE = 0.01  # of the validation slices that are not `unsure`


def scan_means(p_right: ArrayLike, scans: list) -> dict:
    """A scan's probability: the mean of its slices' probabilities. Scan -> probability."""
    members = defaultdict(list)
    for scan, probability in zip(scans, p_right, strict=True):
        members[scan].append(float(probability))
    return {scan: sum(values) / len(values) for scan, values in members.items()}


def score(
    p_right: ArrayLike, labels: ArrayLike, patients: list[str], before: ArrayLike | None = None
) -> dict:
    """Accuracy and quality of n probabilities, with 95 % intervals over patients.

    Intervals are percentile bootstraps (Efron and Tibshirani 1993, section 13.3): whole patients
    are drawn with replacement. They have no width where all patients are alike, and are None where
    there is only one patient.

    Args:
        p_right: (n,) probabilities of class 1.
        labels: (n,) classes, 0 or 1.
        patients: (n,) whose they are.
        before: (n,) probabilities before calibration, for the calibration error before it.

    Returns:
        count, correct, accuracy, interval_95 and confusion_matrix (rows true, columns predicted),
        and {value, interval_95} of negative_log_likelihood (nats), brier_score,
        expected_calibration_error (`calibration_error`), the same before, and roc_auc (None where
        only one class occurs).
    """
    p, labels = np.asarray(p_right, dtype=float), np.asarray(labels, dtype=int)
    predicted = (p > 0.5).astype(int)
    patient, draws = draw_patients(patients)
    p_true = np.where(labels == 1, p, 1 - p)
    measures = {
        "accuracy": mean_over(patient, predicted == labels),
        "negative_log_likelihood": mean_over(patient, -np.log(p_true.clip(1e-12))),
        "brier_score": mean_over(patient, (p - labels) ** 2),
        "expected_calibration_error": calibration_error(patient, p, labels),
        "roc_auc": roc_auc(patient, p, labels),
    }
    if before is not None:
        measures["expected_calibration_error_before"] = calibration_error(
            patient, np.asarray(before, dtype=float), labels
        )
    scored = {}
    for name, measure in measures.items():
        with np.errstate(invalid="ignore", divide="ignore"):
            value, values = measure(np.ones((1, draws.shape[1])))[0], measure(draws)
        interval = None
        if draws.shape[1] > 1 and not np.isnan(value):
            interval = [float(bound) for bound in np.nanpercentile(values, [2.5, 97.5])]
        value = None if np.isnan(value) else float(value)
        scored[name] = {"value": value, "interval_95": interval}
    accuracy = scored.pop("accuracy")
    confusion = np.zeros((2, 2), dtype=int)
    np.add.at(confusion, (labels, predicted), 1)
    return {
        "count": len(labels),
        "correct": int((predicted == labels).sum()),
        "accuracy": accuracy["value"],
        "interval_95": accuracy["interval_95"],
        "confusion_matrix": confusion.tolist(),
        **scored,
    }


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
Measure = Callable[[np.ndarray], np.ndarray]


def mean_over(patient: np.ndarray, values: np.ndarray) -> Measure:
    sums, sizes = np.bincount(patient, weights=values), np.bincount(patient)
    return lambda draws: draws @ sums / (draws @ sizes)


def calibration_error(patient: np.ndarray, p_right: np.ndarray, labels: np.ndarray) -> Measure:
    """Mean distance between confidence and accuracy, over bins of confidence.

    Expected calibration error of Guo et al. 2017, arXiv:1706.04599, equation 3.
    """
    bins = confidence_bins(p_right)
    gap = np.maximum(p_right, 1 - p_right) - ((p_right > 0.5) == labels)
    gaps = np.zeros((patient.max() + 1, CALIBRATION_BINS))
    np.add.at(gaps, (patient, bins), gap)
    sizes = np.bincount(patient)
    return lambda draws: np.abs(draws @ gaps).sum(axis=1) / (draws @ sizes)


def confidence_bins(p_right: np.ndarray) -> np.ndarray:
    """The bin of each confidence; bins divide 0.5 to 1 evenly."""
    confidence = np.maximum(p_right, 1 - p_right)
    return ((confidence - 0.5) * 2 * CALIBRATION_BINS).astype(int).clip(0, CALIBRATION_BINS - 1)


def roc_auc(patient: np.ndarray, p_right: np.ndarray, labels: np.ndarray) -> Measure:
    """Probability that a right knee gets a higher p_right than a left one; ties count half."""
    count = patient.max() + 1
    wins = np.zeros((count, count))  # of the positives of a patient over the negatives of another
    positive, owner = p_right[labels == 1], patient[labels == 1]
    for other in range(count):
        negative = np.sort(p_right[(labels == 0) & (patient == other)])
        below, not_above = (np.searchsorted(negative, positive, side) for side in ("left", "right"))
        wins[:, other] = np.bincount(owner, weights=(below + not_above) / 2, minlength=count)
    of_class = [np.bincount(patient, weights=labels == side) for side in (0, 1)]
    return lambda draws: (
        ((draws @ wins) * draws).sum(axis=1) / ((draws @ of_class[0]) * (draws @ of_class[1]))
    )


# ---- chosen on validation ------------------------------------------------------------------------


def fit_temperature(logits: ArrayLike, labels: ArrayLike, patients: list[str]) -> float:
    """The temperature T of softmax(logits / T) with the lowest negative log-likelihood.

    Or 1, where it is not certain that another T is better for other patients: where the 95 %
    interval over patients of what T gains includes 0.

    Temperature scaling (Guo et al. 2017, arXiv:1706.04599, section 4.2), with Platt's targets
    (n + 1) / (n + 2) in place of 1 (Platt 1999, section 2.2): where all of n slices of a class are
    right, T does not fall without end.

    logits (n, 2), labels (n,) and patients (n,).
    """
    logits, labels = np.asarray(logits, dtype=float), np.asarray(labels)
    margin = logits[:, 1] - logits[:, 0]
    counts = np.bincount(labels, minlength=2)
    target = np.where(labels == 1, (counts[1] + 1) / (counts[1] + 2), 1 / (counts[0] + 2))
    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    for _ in range(60):  # the slope in 1 / T only rises, so that halving finds where it is 0
        middle = (low + high) / 2
        p = 0.5 * (1 + np.tanh(0.5 * middle * margin))
        if ((p - target) * margin).mean() < 0:
            low = middle
        else:
            high = middle
    sign = 2 * labels - 1
    gain = np.logaddexp(0, -sign * margin) - np.logaddexp(0, -sign * margin * middle)
    patient, draws = draw_patients(patients)
    if draws.shape[1] < 2:
        return 1.0
    return 1 / middle if np.percentile(mean_over(patient, gain)(draws), 2.5) > 0 else 1.0


def fit_threshold(p_right: ArrayLike, labels: ArrayLike, error_rate: float = ERROR_RATE) -> float:
    """The lowest confidence from which on at most `error_rate` of the n predictions are wrong.

    0.5 where that is true of all of them, and 1 where it is true of none.
    """
    p_right = np.asarray(p_right, dtype=float)
    confidence = np.maximum(p_right, 1 - p_right)
    wrong = (p_right > 0.5) != np.asarray(labels)
    if wrong.mean() <= error_rate:
        return 0.5
    values, place = np.unique(-confidence, return_inverse=True)  # highest confidence first
    rates = np.bincount(place, weights=wrong).cumsum() / np.bincount(place).cumsum()
    good = np.flatnonzero(rates <= error_rate)
    return float(-values[good[-1]]) if len(good) else 1.0
