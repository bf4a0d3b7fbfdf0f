"""Probabilities -> figures: accuracy per slice and per scan, with intervals over patients.

Slices of a patient are not independent: 5,000 slices of 13 patients say about as much as 13
patients do. So intervals are bootstrapped over patients, never over slices.
"""

from collections import defaultdict

import numpy as np
from numpy.typing import ArrayLike

BOOTSTRAP_SAMPLES = 10_000


def scan_means(p_right: ArrayLike, scans: list[str]) -> dict[str, float]:
    """A scan's probability: the mean of its slices' probabilities. Scan name -> probability."""
    members = defaultdict(list)
    for scan, probability in zip(scans, p_right, strict=True):
        members[scan].append(float(probability))
    return {scan: sum(values) / len(values) for scan, values in members.items()}


def score(p_right: ArrayLike, labels: ArrayLike, patients: list[str]) -> dict:
    """Accuracy of n predictions, with a 95 % interval over patients.

    p_right (n,) is the probability of class 1, labels (n,) the classes, patients (n,) whose they
    are. The interval is the percentile bootstrap (Efron and Tibshirani 1993, section 13.3): whole
    patients are drawn with replacement. It has no width where every patient is wholly right.
    """
    predicted = (np.asarray(p_right) > 0.5).astype(int)
    labels = np.asarray(labels, dtype=int)
    correct = predicted == labels
    names, patient = np.unique(np.asarray(patients), return_inverse=True)
    correct_of = np.bincount(patient, weights=correct)
    count_of = np.bincount(patient)
    drawn = np.random.default_rng(0).integers(len(names), size=(BOOTSTRAP_SAMPLES, len(names)))
    accuracies = correct_of[drawn].sum(axis=1) / count_of[drawn].sum(axis=1)
    confusion = np.zeros((2, 2), dtype=int)
    np.add.at(confusion, (labels, predicted), 1)  # rows: true side, columns: predicted side
    return {
        "count": len(labels),
        "correct": int(correct.sum()),
        "accuracy": float(correct.mean()),
        "interval_95": [float(bound) for bound in np.percentile(accuracies, [2.5, 97.5])],
        "confusion_matrix": confusion.tolist(),
    }
