"""What is called a wrong label, against the reference implementation of confident learning."""

import numpy as np
import pytest
from cleanlab.count import get_confident_thresholds
from cleanlab.filter import find_label_issues

from evaluation.audit import confident_from, judge_out_of_fold, worst_first
from evaluation.predictions import Scan

CLASSES = ["left", "right"]


def drawn(classes: int, seed: int, wrong: float = 0.1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities of a model that is mostly right, labels, and which of these are wrong."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(classes, size=400)
    logits = rng.normal(size=(400, classes)) + 4 * np.eye(classes)[truth]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    is_wrong = rng.random(400) < wrong
    labels = np.where(is_wrong, (truth + rng.integers(1, classes, size=400)) % classes, truth)
    return p, labels, is_wrong


def as_scans(p: np.ndarray, labels: np.ndarray, agreement: float = 1.0) -> list[Scan]:
    return [
        Scan(f"s{i}", f"p{i}", CLASSES[label], [i], row, row, 40, agreement)
        for i, (row, label) in enumerate(zip(p, labels, strict=True))
    ]


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_what_is_confident_is_as_cleanlab_has_it(classes):
    for seed in range(5):
        p, labels, _ = drawn(classes, seed)
        # cleanlab raises thresholds of less than 0.01 to that.
        assert confident_from(p, labels) == pytest.approx(get_confident_thresholds(labels, p))


def test_wrong_labels_are_found_as_cleanlab_finds_them():
    """More than its default of them, which estimates how many there are; of both nearly all."""
    for seed in range(5):
        p, labels, is_wrong = drawn(2, seed)
        rows = judge_out_of_fold(as_scans(p, labels), CLASSES)
        ours = np.array([row["verdict"] == "mismatch" for row in rows])
        theirs = find_label_issues(labels, p, n_jobs=1)
        assert not (ours & ~find_label_issues(labels, p, filter_by="confident_learning")).any()
        assert (ours & is_wrong).sum() > 0.8 * is_wrong.sum()
        assert (ours != theirs).mean() < 0.05


def test_ranks_go_by_how_little_is_left_for_the_label():
    p = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.01, 0.99]])
    rows = judge_out_of_fold(as_scans(p, np.array([0, 0, 1, 1])), CLASSES)
    assert [row["rank"] for row in rows] == [3, 1, 2, 4]
    assert [row["verdict"] for row in rows] == ["ok", "mismatch", "unsure", "ok"]
    assert [row["scan"] for row in worst_first(rows, CLASSES)] == ["s1", "s2"]


def test_models_that_know_nothing_call_no_label_wrong():
    """Of them the mean probability of a class is a half, which many scans are above."""
    right = np.random.default_rng(0).normal(0.5, 0.02, size=200)
    labels = np.arange(200) % 2
    rows = judge_out_of_fold(as_scans(np.stack([1 - right, right], axis=1), labels), CLASSES)
    verdicts = [row["verdict"] for row in rows]
    assert "mismatch" not in verdicts and verdicts.count("unsure") > 50


def test_where_slices_disagree_a_scan_is_unsure():
    p = np.array([[0.9, 0.1], [0.2, 0.8]])
    rows = judge_out_of_fold(as_scans(p, np.array([0, 0]), agreement=0.6), CLASSES)
    assert [row["verdict"] for row in rows] == ["unsure", "unsure"]


def test_of_a_class_without_scans_nothing_is_confident():
    p = np.array([[0.9, 0.1], [0.2, 0.8]])
    assert confident_from(p, np.array([0, 0])).tolist() == [pytest.approx(0.55), 1.0]
    rows = judge_out_of_fold(as_scans(p, np.array([0, 0])), CLASSES)
    assert [row["verdict"] for row in rows] == ["ok", "unsure"]
