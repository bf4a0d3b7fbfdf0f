"""calibration.py: the temperature against a grid of them, the threshold against counting."""

from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from evaluation.calibration import (
    calibrate,
    fit_temperature,
    fit_threshold,
    probabilities,
    softmax_of_margins,
)


def two_columns(p_right) -> np.ndarray:
    return np.stack([1 - np.asarray(p_right), p_right], axis=1)


def test_temperature_is_where_the_likelihood_is_highest():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 4000)
    margin = 2.0 * (rng.random(4000) < 0.9) * (2 * labels - 1) + rng.normal(0, 1, 4000)
    for sharpness in (0.3, 1.0, 8.0):
        logits = np.stack([np.zeros(4000), sharpness * margin], axis=1)
        grid = np.geomspace(0.05, 20, 2000)
        losses = [np.logaddexp(0, -(2 * labels - 1) * logits[:, 1] / t).mean() for t in grid]
        fitted = fit_temperature(logits, labels, np.arange(4000) % 40)
        assert fitted == pytest.approx(grid[np.argmin(losses)], rel=0.03)  # but for Platt's targets
    apart = np.stack([np.zeros(100), np.where(np.arange(100) % 2, 3.0, -3.0)], axis=1)
    fitted = fit_temperature(apart, np.arange(100) % 2, np.arange(100) // 10)
    assert 0.1 < fitted < 1  # sure, but not boundlessly


@pytest.mark.slow
def test_temperature_of_three_classes_is_where_the_smoothed_likelihood_is_highest():
    rng = np.random.default_rng(1)
    labels = rng.choice(3, 600, p=[0.6, 0.3, 0.1])
    counts = np.bincount(labels)
    targets = (np.eye(3)[labels] * counts[labels, None] + 1) / (counts[labels, None] + 3)
    for sharpness in (0.3, 1.0, 8.0):
        logits = sharpness * (rng.normal(0, 1, (600, 3)) + 1.5 * np.eye(3)[labels]) + 7.0
        grid = np.geomspace(0.05, 20, 4000)
        logs = [torch.tensor(logits / t).log_softmax(dim=1).numpy() for t in grid]
        best = grid[np.argmin([-(targets * log).sum(axis=1).mean() for log in logs])]
        fitted = fit_temperature(logits, labels, np.arange(600) % 40)
        assert fitted == pytest.approx(best, rel=0.002)  # the grid's step is 0.15 %
        shuffled = [2, 0, 1]  # which class comes first does not matter
        again = fit_temperature(logits[:, shuffled], np.argsort(shuffled)[labels], range(600))
        assert again == pytest.approx(fitted, rel=1e-9)
    apart = 6.0 * np.eye(3)[np.arange(99) % 3]
    fitted = fit_temperature(apart, np.arange(99) % 3, np.arange(99) // 9)
    assert 0.1 < fitted < 2  # all are right, and T does not fall without end


def test_the_tanh_of_two_classes_and_the_softmax_of_more_are_one_function():
    margins = np.linspace(-800, 800, 4001)[:, None]
    impossible = np.full_like(margins, -1e6)
    of_two = softmax_of_margins(margins)
    of_three = softmax_of_margins(np.hstack([margins, impossible]))
    assert of_three[:, :1] == pytest.approx(of_two, abs=1e-13)
    assert not of_three[:, 1].any()
    logits = torch.randn(500, 4, dtype=torch.double, generator=torch.Generator().manual_seed(0)) * 9
    expected = logits.softmax(dim=1)[:, 1:].numpy()
    assert softmax_of_margins((logits[:, 1:] - logits[:, :1]).numpy()) == pytest.approx(expected)


@pytest.mark.slow
def test_temperature_stays_1_where_patients_do_not_agree_on_another():
    """Too sure in one patient, too unsure in the other nine: no T is better for certain."""
    labels = np.tile([0, 1], 500)
    right = np.ones(1000)
    right[:100:2] = -1
    logits = np.stack([np.zeros(1000), 4.0 * right * (2 * labels - 1)], axis=1)
    patients = np.arange(1000) // 100
    assert fit_temperature(logits, labels, np.arange(1000)) > 1  # were slices independent
    assert fit_temperature(logits, labels, patients) == 1
    labels = np.tile([0, 1, 2], 300)
    predicted = np.where(right[:900] == 1, labels, (labels + 1) % 3)
    logits, patients = 6.0 * np.eye(3)[predicted], np.arange(900) // 90
    assert fit_temperature(logits, labels, np.arange(900)) > 1
    assert fit_temperature(logits, labels, patients) == 1
    assert fit_temperature(logits, labels, ["one"] * 900) == 1


def assert_threshold_keeps_the_rate(p: np.ndarray, labels: np.ndarray, rate: float) -> None:
    threshold = fit_threshold(p, labels, rate)
    confidence, wrong = p.max(axis=1), p.argmax(axis=1) != labels
    assert wrong[confidence >= threshold].mean() <= rate
    lower = [t for t in np.unique(confidence) if t < threshold]
    assert rate == 0.9 or all(wrong[confidence >= t].mean() > rate for t in lower)


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.9])
def test_threshold_keeps_the_error_rate_of_what_is_above_it(rate):
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 1300)
    p_right = (0.25 + 0.5 * labels + rng.normal(0, 0.3, 1300)).clip(0.01, 0.98).round(2) + 0.003
    assert_threshold_keeps_the_rate(two_columns(p_right), labels, rate)
    labels = rng.integers(0, 4, 1300)
    p = (rng.random((1300, 4)) ** 3 + np.eye(4)[labels]).round(1) + 0.01
    assert_threshold_keeps_the_rate(p / p.sum(axis=1, keepdims=True), labels, rate)


def test_threshold_where_all_or_none_are_right():
    p = two_columns([0.9, 0.2])
    assert fit_threshold(p, [1, 0]) == 0.5  # all are right
    assert fit_threshold(p, [0, 1]) == 1.0  # none is
    three = np.array([[0.8, 0.1, 0.1], [0.2, 0.2, 0.6]])
    assert fit_threshold(three, [0, 2]) == 1 / 3
    assert fit_threshold(three, [1, 0]) == 1.0


def test_the_first_of_two_probabilities_is_exactly_1_less_the_second():
    logits = 20 * torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    p = probabilities(logits, 1.7)
    assert p.dtype == np.float64
    assert (p[:, 0] == 1 - p[:, 1]).all()
    assert (p[:, 1] == (logits.double() / 1.7).softmax(dim=1)[:, 1].numpy()).all()
    three = probabilities(torch.tensor([[1.0, 2.0, 4.0]]), 2.0)
    assert three[0] == pytest.approx(np.exp([0.5, 1, 2]) / np.exp([0.5, 1, 2]).sum())


@pytest.mark.parametrize("k", [2, 3])
def test_calibration_is_fitted_on_all_predictions_and_holds_plain_values(k):
    rng = np.random.default_rng(4)
    labels = rng.integers(0, k, 900)
    logits = torch.tensor(6 * (rng.normal(0, 1, (900, k)) + 2 * np.eye(k)[labels])).float()
    patients = [f"P{i % 30}" for i in range(900)]
    found = calibrate(SimpleNamespace(logits=logits, labels=labels, patients=patients))
    assert found.temperature == fit_temperature(logits, labels, patients) > 1
    p = probabilities(logits, found.temperature)
    kept = p.max(axis=1) >= found.unsure_below
    assert (p.argmax(axis=1) != labels)[kept].mean() <= 0.01
    assert 0 < kept.mean() < 1
    values = asdict(found)
    assert list(values) == ["temperature", "unsure_below", "unsure_above_error_rate"]
    assert {type(value) for value in values.values()} == {float}  # a checkpoint holds no others


def test_where_all_are_of_one_class_nothing_is_calibrated_and_nothing_is_sure():
    logits = torch.tensor([[4.0, 0.0]]).expand(90, 2)
    patients = [f"P{i % 9}" for i in range(90)]
    found = calibrate(SimpleNamespace(logits=logits, labels=np.zeros(90, int), patients=patients))
    assert (found.temperature, found.unsure_below) == (1.0, 1.0)
    assert probabilities(logits, found.temperature).max() < found.unsure_below
