"""What is chosen on validation after training: the temperature, and from where on to be unsure."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from evaluation.metrics import draw_patients, mean_over

TEMPERATURES = 0.05, 20.0  # what fit_temperature chooses from
ERROR_RATE = 0.01  # of the validation slices that are not `unsure`


@dataclass(frozen=True)
class Calibration:
    """A scan is `unsure` below the confidence `unsure_below`.

    From there on at most the share `unsure_above_error_rate` of the validation samples is wrong.
    """

    temperature: float
    unsure_below: float
    unsure_above_error_rate: float


def calibrate(predictions) -> Calibration:
    """Fit the temperature and the threshold of `unsure` on predictions of the validation subset.

    predictions: a predictions.Predictions; its logits are read, not its own temperature.
    Where all are of one class, nothing is known of how often it is taken for another, or another
    for it: the temperature is 1, and no scan is sure.
    """
    labels = predictions.labels
    if len(np.unique(labels)) < 2:
        return Calibration(1.0, 1.0, ERROR_RATE)
    temperature = fit_temperature(predictions.logits, labels, predictions.patients)
    calibrated = probabilities(predictions.logits, temperature)
    return Calibration(temperature, fit_threshold(calibrated, labels, ERROR_RATE), ERROR_RATE)


def probabilities(logits: Tensor, temperature: float | Tensor) -> np.ndarray:
    """softmax(logits / temperature) in double precision: (n, classes) -> (n, classes).

    temperature: of all, or (n, 1).

    Of two classes, the first column is exactly 1 - the second one, so that nothing depends on which
    of the two is looked at.
    """
    p = (logits.double() / temperature).softmax(dim=1).numpy(force=True)
    if p.shape[1] == 2:
        p[:, 0] = 1 - p[:, 1]
    return p


def fit_temperature(logits: ArrayLike, labels: ArrayLike, patients: list[str]) -> float:
    """The temperature T of softmax(logits / T) with the lowest negative log-likelihood.

    Or 1, where it is not certain that another T is better for other patients: where the 95 %
    interval over patients of what T gains includes 0.

    Temperature scaling (Guo et al. 2017, arXiv:1706.04599, section 4.2) with smoothed targets:
    of the n slices of a class, the class itself has (n + 1) / (n + classes) in place of 1 and each
    other one 1 / (n + classes) in place of 0. Where all n are right, T does not fall without end.
    For two classes these are the targets of Platt 1999, section 2.2.

    logits (n, classes), labels (n,) and patients (n,).
    """
    logits, labels = np.asarray(logits, dtype=float), np.asarray(labels)
    classes = logits.shape[1]
    margins = logits[:, 1:] - logits[:, :1]  # (n, classes - 1): over class 0
    counts = np.bincount(labels, minlength=classes)
    target_of = (1 + np.diag(counts)) / (counts + classes)[:, None]  # (label, class)
    targets = target_of[labels, 1:]
    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    for _ in range(60):  # the slope in 1 / T only rises, so that halving finds where it is 0
        middle = (low + high) / 2
        p = softmax_of_margins(middle * margins)
        if ((p - targets) * margins).sum(axis=1).mean() < 0:
            low = middle
        else:
            high = middle
    over_true = logits - logits[np.arange(len(labels)), labels][:, None]  # 0 in the true column
    gain = np.logaddexp.reduce(over_true, axis=1) - np.logaddexp.reduce(over_true * middle, axis=1)
    patient, draws = draw_patients(patients)
    if draws.shape[1] < 2:
        return 1.0
    return 1 / middle if np.percentile(mean_over(patient, gain)(draws), 2.5) > 0 else 1.0


def softmax_of_margins(margins: np.ndarray) -> np.ndarray:
    """The probabilities of classes 1, 2, ..., from their logits less that of class 0."""
    if margins.shape[1] == 1:  # the same function with less rounding
        return 0.5 * (1 + np.tanh(0.5 * margins))
    others = np.logaddexp.reduce(margins, axis=1, keepdims=True)
    return np.exp(margins - np.logaddexp(0, others))


def fit_threshold(
    probabilities: ArrayLike, labels: ArrayLike, error_rate: float = ERROR_RATE
) -> float:
    """The lowest confidence from which on at most `error_rate` of the n predictions are wrong.

    The confidence is the largest of the probabilities (n, classes). The threshold is 1 / classes,
    the least that it can be, where that is true of all of them, and 1 where it is true of none.
    """
    probabilities = np.asarray(probabilities, dtype=float)
    confidence = probabilities.max(axis=1)
    wrong = probabilities.argmax(axis=1) != np.asarray(labels)
    if wrong.mean() <= error_rate:
        return 1 / probabilities.shape[1]
    values, rank = np.unique(-confidence, return_inverse=True)  # highest confidence first
    rates = np.bincount(rank, weights=wrong).cumsum() / np.bincount(rank).cumsum()
    good = np.flatnonzero(rates <= error_rate)
    return float(-values[good[-1]]) if len(good) else 1.0
