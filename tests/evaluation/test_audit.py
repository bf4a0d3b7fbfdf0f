"""What is called a wrong label, against a general optimizer and against cleanlab."""

import numpy as np
import pytest
from cleanlab.filter import find_label_issues
from scipy.optimize import minimize
from scipy.special import softmax

from evaluation.audit import LabelNoise, fit_label_noise, judge_out_of_fold, worst_first
from evaluation.predictions import Scan

CLASSES = ["left", "right"]


def drawn(
    classes: int, seed: int, wrong: float = 0.1, margin: float = 4
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities of a model that is mostly right, labels, and which of these are wrong."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(classes, size=400)
    logits = rng.normal(size=(400, classes)) + margin * np.eye(classes)[truth]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    is_wrong = rng.random(400) < wrong
    labels = np.where(is_wrong, (truth + rng.integers(1, classes, size=400)) % classes, truth)
    return p, labels, is_wrong


def as_scans(p: np.ndarray, labels: np.ndarray, agreement: float = 1.0) -> list[Scan]:
    return [
        Scan(f"s{i}", f"p{i}", CLASSES[label], [i], row, row, 40, agreement)
        for i, (row, label) in enumerate(zip(p, labels, strict=True))
    ]


def fitted(p: np.ndarray, labels: np.ndarray) -> list[dict]:
    return judge_out_of_fold(as_scans(p, labels), CLASSES, fit_label_noise(p, labels))


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("seed", range(3))
def test_the_fit_is_as_likely_as_that_of_a_general_optimizer(classes, seed):
    p, labels, _ = drawn(classes, seed)

    def surprise(parameters):
        wrong, sharpness = parameters
        truth = softmax(sharpness * np.log(p), axis=1)
        flips = np.full((classes, classes), wrong / (classes - 1))
        np.fill_diagonal(flips, 1 - wrong)  # row: the truth, column: the label
        return -np.log((truth @ flips)[np.arange(400), labels]).mean()

    noise = fit_label_noise(p, labels)
    best = minimize(surprise, [0.1, 1.0], bounds=[(1e-9, 0.5), (0.1, 30)])
    assert surprise(noise) == pytest.approx(best.fun, abs=2e-4)
    assert noise.wrong == pytest.approx(best.x[0], abs=0.01)


@pytest.mark.parametrize("sure", [0.5, 1.0, 2.0])
def test_wrong_labels_are_found_by_models_that_are_less_or_more_sure_than_they_should_be(sure):
    """Nearly as many as cleanlab's default finds, and fewer false alarms."""
    found, false = np.zeros(2), np.zeros(2)
    for seed in range(5):
        p, labels, is_wrong = drawn(2, seed)
        p = softmax(sure * np.log(p), axis=1)
        ours = np.array([row["verdict"] == "mismatch" for row in fitted(p, labels)])
        theirs = find_label_issues(labels, p, n_jobs=1)
        found += [(ours & is_wrong).sum(), (theirs & is_wrong).sum()]
        false += [(ours & ~is_wrong).sum(), (theirs & ~is_wrong).sum()]
    assert found[0] > 0.9 * found[1] and false[0] <= false[1]


def test_labels_that_are_all_right_are_not_suspected_of_a_model_that_errs():
    """cleanlab takes a part of its errors for wrong labels."""
    p, labels, _ = drawn(2, seed=0, wrong=0.0)
    p = softmax(np.log(p) + np.random.default_rng(1).normal(size=p.shape) * 2, axis=1)
    assert (p.argmax(axis=1) != labels).sum() > 20
    assert sum(row["verdict"] == "mismatch" for row in fitted(p, labels)) <= 2
    assert find_label_issues(labels, p, n_jobs=1).sum() > 10


def test_how_surely_labels_are_wrong_is_calibrated():
    archives = [drawn(2, seed, margin=2) for seed in range(20)]
    p, labels, is_wrong = (np.concatenate(of) for of in zip(*archives, strict=True))
    p = softmax(0.4 * np.log(p), axis=1)
    p_wrong = np.array([row["p_wrong"] for row in fitted(p, labels)])
    between = (p_wrong > 0.2) & (p_wrong < 0.8)
    assert between.sum() > 50
    assert is_wrong[between].mean() == pytest.approx(p_wrong[between].mean(), abs=0.1)


NOISE = LabelNoise(wrong=0.1, sharpness=1.5)


def test_ranks_go_by_how_little_is_left_for_the_label():
    p = np.array([[0.9, 0.1], [0.04, 0.96], [0.6, 0.4], [0.01, 0.99]])
    rows = judge_out_of_fold(as_scans(p, np.array([0, 0, 1, 1])), CLASSES, NOISE)
    assert [row["rank"] for row in rows] == [3, 1, 2, 4]
    assert [row["verdict"] for row in rows] == ["ok", "mismatch", "unsure", "ok"]
    assert [row["scan"] for row in worst_first(rows, CLASSES)] == ["s1", "s2"]


def test_models_that_know_nothing_call_no_label_wrong():
    right = np.random.default_rng(0).normal(0.5, 0.02, size=200)
    labels = np.arange(200) % 2
    verdicts = [row["verdict"] for row in fitted(np.stack([1 - right, right], axis=1), labels)]
    assert "mismatch" not in verdicts and verdicts.count("unsure") > 50


def test_where_slices_disagree_a_scan_is_unsure():
    p = np.array([[0.9, 0.1], [0.04, 0.96]])
    rows = judge_out_of_fold(as_scans(p, np.array([0, 0]), agreement=0.6), CLASSES, NOISE)
    assert [row["verdict"] for row in rows] == ["unsure", "unsure"]
