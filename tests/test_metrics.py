"""metrics.py against figures worked out by hand."""

import numpy as np
import pytest

from metrics import scan_means, score


def test_scan_probability_is_the_mean_of_its_slices():
    means = scan_means([0.9, 0.2, 0.4, 0.6], ["a", "b", "a", "b"])
    assert means == {"a": pytest.approx(0.65), "b": pytest.approx(0.4)}


def test_accuracy_and_confusion_matrix_by_hand():
    scored = score([0.9, 0.2, 0.4, 0.6, 0.7], [1, 0, 1, 0, 1], ["A", "A", "B", "B", "B"])
    assert (scored["count"], scored["correct"], scored["accuracy"]) == (5, 3, 0.6)
    assert scored["confusion_matrix"] == [[1, 1], [1, 2]]  # rows: true left, true right


def test_interval_is_over_patients_and_not_over_slices():
    """20 patients of 100 slices, 15 wholly right and 5 wholly wrong: like 20 coins, not 2,000."""
    patients = np.repeat(np.arange(20), 100)
    p_right = np.where(patients < 15, 0.9, 0.1)
    low, high = score(p_right, np.ones(2000), list(patients))["interval_95"]
    assert (low, high) == (pytest.approx(0.55), pytest.approx(0.9))  # binomial(20, 0.75) / 20
    low, high = score(p_right, np.ones(2000), list(range(2000)))["interval_95"]
    assert 0.72 < low < high < 0.78


def test_interval_weighs_patients_by_their_slices():
    low, high = score([0.9] * 99 + [0.1], [1] * 100, ["A"] * 99 + ["B"])["interval_95"]
    assert (low, high) == (0.0, 1.0)  # drawn B twice, or A twice
