"""metrics.py against figures worked out by hand."""

import itertools

import numpy as np
import pytest

import metrics
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


def made_up(patients: int = 12, slices: int = 9, seed: int = 3):
    """Probabilities that are right more often than not, with ties, of unequal patients."""
    rng = np.random.default_rng(seed)
    names = np.repeat([f"P{i}" for i in range(patients)], rng.integers(1, slices, patients))
    labels = rng.integers(0, 2, len(names))
    p_right = (0.25 + 0.5 * labels + rng.normal(0, 0.3, len(names))).clip(0.01, 0.98).round(
        2
    ) + 0.003
    return p_right, labels, names.tolist()


def expected_error(p_right, labels, weights, bins: int = 15) -> float:
    """Expected calibration error, written down once more, bin by bin."""
    confidence, right = np.maximum(p_right, 1 - p_right), (p_right > 0.5) == labels
    edges, total = np.linspace(0.5, 1, bins + 1), 0.0
    for i, (low, high) in enumerate(itertools.pairwise(edges)):
        inside = (confidence >= low) & ((confidence < high) | (i == bins - 1))
        if weights[inside].sum() > 0:
            gap = np.average(confidence[inside], weights=weights[inside])
            gap -= np.average(right[inside], weights=weights[inside])
            total += abs(gap) * weights[inside].sum() / weights.sum()
    return total


def test_measures_and_their_intervals_are_those_of_scikit_learn_on_drawn_patients(monkeypatch):
    from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

    monkeypatch.setattr(metrics, "BOOTSTRAP_SAMPLES", 200)
    p_right, labels, patients = made_up()
    scored = metrics.score(p_right, labels, patients, before=p_right**2)
    names, patient = np.unique(patients, return_inverse=True)
    drawn = np.random.default_rng(0).integers(len(names), size=(200, len(names)))
    draws = [np.ones(len(names)), *(np.bincount(d, minlength=len(names)) for d in drawn)]

    def of(p):
        return {
            "negative_log_likelihood": lambda w: log_loss(labels, p, sample_weight=w),
            "brier_score": lambda w: brier_score_loss(labels, p, sample_weight=w),
            "roc_auc": lambda w: roc_auc_score(labels, p, sample_weight=w),
            "expected_calibration_error": lambda w: expected_error(p, labels, w),
        }

    measures = of(p_right)
    measures["expected_calibration_error_before"] = of(p_right**2)["expected_calibration_error"]
    for name, measure in measures.items():
        values = [measure(draw[patient].astype(float)) for draw in draws]
        assert scored[name]["value"] == pytest.approx(values[0], abs=1e-9), name
        bounds = np.percentile(values[1:], [2.5, 97.5])
        assert scored[name]["interval_95"] == pytest.approx(list(bounds), abs=1e-9), name


def test_one_patient_has_no_interval_and_one_class_no_roc():
    scored = metrics.score([0.9, 0.8], [1, 1], ["A", "A"])
    assert scored["interval_95"] is None and scored["accuracy"] == 1
    assert scored["roc_auc"] == {"value": None, "interval_95": None}
    assert scored["brier_score"]["interval_95"] is None


def test_temperature_is_where_the_likelihood_is_highest():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 4000)
    margin = 2.0 * (rng.random(4000) < 0.9) * (2 * labels - 1) + rng.normal(0, 1, 4000)
    for sharpness in (0.3, 1.0, 8.0):
        logits = np.stack([np.zeros(4000), sharpness * margin], axis=1)
        grid = np.geomspace(0.05, 20, 2000)
        losses = [np.logaddexp(0, -(2 * labels - 1) * logits[:, 1] / t).mean() for t in grid]
        fitted = metrics.fit_temperature(logits, labels, np.arange(4000) % 40)
        assert fitted == pytest.approx(grid[np.argmin(losses)], rel=0.03)  # but for Platt's targets
    apart = np.stack([np.zeros(100), np.where(np.arange(100) % 2, 3.0, -3.0)], axis=1)
    fitted = metrics.fit_temperature(apart, np.arange(100) % 2, np.arange(100) // 10)
    assert 0.1 < fitted < 1  # sure, but not boundlessly


def test_temperature_stays_1_where_patients_do_not_agree_on_another():
    """Too sure in one patient, too unsure in the other nine: no T is better for certain."""
    labels = np.tile([0, 1], 500)
    right = np.ones(1000)
    right[:100:2] = -1
    logits = np.stack([np.zeros(1000), 4.0 * right * (2 * labels - 1)], axis=1)
    patients = np.arange(1000) // 100
    assert metrics.fit_temperature(logits, labels, np.arange(1000)) > 1  # were slices independent
    assert metrics.fit_temperature(logits, labels, patients) == 1


def test_threshold_keeps_the_error_rate_of_what_is_above_it():
    p_right, labels, _ = made_up(patients=300)
    for rate in (0.02, 0.1, 0.9):
        threshold = metrics.fit_threshold(p_right, labels, rate)
        confidence, wrong = np.maximum(p_right, 1 - p_right), (p_right > 0.5) != labels
        assert wrong[confidence >= threshold].mean() <= rate
        lower = [t for t in np.unique(confidence) if t < threshold]
        assert rate == 0.9 or all(wrong[confidence >= t].mean() > rate for t in lower)
    assert metrics.fit_threshold([0.9, 0.2], [1, 0]) == 0.5  # all are right
    assert metrics.fit_threshold([0.9, 0.2], [0, 1]) == 1.0  # none is
