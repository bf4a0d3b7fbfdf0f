"""metrics.py against figures worked out by hand, and against scikit-learn."""

import itertools
import warnings

import numpy as np
import pytest

from evaluation import metrics
from evaluation.metrics import Outcomes, score

SIDES = ["left", "right"]


def two_columns(p_right) -> np.ndarray:
    return np.stack([1 - np.asarray(p_right), p_right], axis=1)


def score_sides(p_right, labels, patients) -> dict:
    p = two_columns(p_right)
    return score(Outcomes(p, np.asarray(labels), patients, p), SIDES)


def test_accuracy_and_confusion_matrix_by_hand():
    scored = score_sides([0.9, 0.2, 0.4, 0.6, 0.7], [1, 0, 1, 0, 1], ["A", "A", "B", "B", "B"])
    assert (scored["count"], scored["correct"], scored["accuracy"]) == (5, 3, 0.6)
    assert scored["confusion_matrix"] == [[1, 1], [1, 2]]  # rows: true left, true right
    assert scored["balanced_accuracy"]["value"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    left, right = scored["by_class"]["left"], scored["by_class"]["right"]
    assert (left["sensitivity"]["value"], left["precision"]["value"]) == (1 / 2, 1 / 2)
    assert (right["sensitivity"]["value"], right["precision"]["value"]) == (2 / 3, 2 / 3)


def test_three_classes_by_hand_and_the_first_of_equal_probabilities_is_predicted():
    p = np.array([[0.4, 0.4, 0.2], [0.4, 0.4, 0.2], [0.1, 0.2, 0.7], [0.3, 0.5, 0.2]])
    scored = score(Outcomes(p, np.array([0, 1, 2, 2]), list("ABCD"), p), ["a", "b", "c"])
    assert scored["confusion_matrix"] == [[1, 0, 0], [1, 0, 0], [0, 1, 1]]
    assert scored["accuracy"] == 0.5
    assert scored["balanced_accuracy"]["value"] == pytest.approx((1 + 0 + 1 / 2) / 3)
    assert scored["by_class"]["b"]["sensitivity"]["value"] == 0
    assert scored["by_class"]["c"]["roc_auc"]["value"] == pytest.approx(3 / 4)  # two ties of four
    errors = [0.36 + 0.16 + 0.04, 0.16 + 0.36 + 0.04, 0.01 + 0.04 + 0.09, 0.09 + 0.25 + 0.64]
    assert scored["brier_score"]["value"] == pytest.approx(np.mean(errors))


@pytest.mark.slow
def test_interval_is_over_patients_and_not_over_slices():
    """20 patients of 100 slices, 15 wholly right and 5 wholly wrong: like 20 coins, not 2,000."""
    patients = np.repeat(np.arange(20), 100)
    p_right = np.where(patients < 15, 0.9, 0.1)
    low, high = score_sides(p_right, np.ones(2000), list(patients))["interval_95"]
    assert (low, high) == (pytest.approx(0.55), pytest.approx(0.9))  # binomial(20, 0.75) / 20
    low, high = score_sides(p_right, np.ones(2000), list(range(2000)))["interval_95"]
    assert 0.72 < low < high < 0.78


def test_interval_weighs_patients_by_their_slices():
    low, high = score_sides([0.9] * 99 + [0.1], [1] * 100, ["A"] * 99 + ["B"])["interval_95"]
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


def made_up_classes(k: int, patients: int = 14, seed: int = 5):
    """The same for k classes: (n, k), with many ties."""
    rng = np.random.default_rng(seed)
    names = np.repeat([f"P{i}" for i in range(patients)], rng.integers(2, 12, patients))
    labels = rng.integers(0, k, len(names))
    p = (rng.random((len(names), k)) + 0.7 * np.eye(k)[labels]).round(1) + 0.01
    return p / p.sum(axis=1, keepdims=True), labels, names.tolist()


def expected_error(p, labels, weights, bins: int = 15) -> float:
    """Expected calibration error, written down once more, bin by bin."""
    confidence, right = p.max(axis=1), p.argmax(axis=1) == labels
    edges, total = np.linspace(1 / p.shape[1], 1, bins + 1), 0.0
    for i, (low, high) in enumerate(itertools.pairwise(edges)):
        inside = (confidence >= low) & ((confidence < high) | (i == bins - 1))
        if weights[inside].sum() > 0:
            gap = np.average(confidence[inside], weights=weights[inside])
            gap -= np.average(right[inside], weights=weights[inside])
            total += abs(gap) * weights[inside].sum() / weights.sum()
    return total


def drawn_patients(patients: list[str], samples: int) -> list[np.ndarray]:
    """Weights (n,) of all predictions, for the value, and of those of drawn patients."""
    names, patient = np.unique(patients, return_inverse=True)
    drawn = np.random.default_rng(0).integers(len(names), size=(samples, len(names)))
    draws = [np.ones(len(names)), *(np.bincount(d, minlength=len(names)) for d in drawn)]
    return [draw[patient].astype(float) for draw in draws]


def assert_figure(figure: dict, measure, draws: list[np.ndarray], name: str) -> None:
    values = [measure(weights) for weights in draws]
    assert figure["value"] == pytest.approx(values[0], abs=1e-9), name
    bounds = np.nanpercentile(values[1:], [2.5, 97.5])
    assert figure["interval_95"] == pytest.approx(list(bounds), abs=1e-9), name


def test_measures_and_their_intervals_are_those_of_scikit_learn_on_drawn_patients(monkeypatch):
    from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

    monkeypatch.setattr(metrics, "BOOTSTRAP_SAMPLES", 200)
    p_right, labels, patients = made_up()
    p, before = two_columns(p_right), two_columns(p_right**2)
    scored = score(Outcomes(p, labels, patients, before), SIDES)
    measures = {
        "negative_log_likelihood": lambda w: log_loss(labels, p_right, sample_weight=w),
        "brier_score": lambda w: brier_score_loss(labels, p_right, sample_weight=w),
        "roc_auc": lambda w: roc_auc_score(labels, p_right, sample_weight=w),
        "expected_calibration_error": lambda w: expected_error(p, labels, w),
        "expected_calibration_error_before": lambda w: expected_error(before, labels, w),
    }
    draws = drawn_patients(patients, 200)
    for name, measure in measures.items():
        assert_figure(scored[name], measure, draws, name)


@pytest.mark.slow
@pytest.mark.parametrize("k", [2, 3, 5])
def test_figures_of_k_classes_are_those_of_scikit_learn_on_drawn_patients(monkeypatch, k):
    from sklearn import metrics as sk

    monkeypatch.setattr(metrics, "BOOTSTRAP_SAMPLES", 100)
    p, labels, patients = made_up_classes(k)
    if k == 2:
        p = two_columns(p[:, 1])
    before = p**2 / (p**2).sum(axis=1, keepdims=True)
    classes, predicted = [f"class {c}" for c in range(k)], p.argmax(axis=1)
    scored = score(Outcomes(p, labels, patients, before), classes)
    draws, every = drawn_patients(patients, 100), list(range(k))

    def where_all_occur(measure):  # scikit-learn leaves out classes, metrics.py whole draws
        return lambda w: measure(w) if len(set(labels[w > 0])) == k else np.nan

    def one_of(function, c):
        def measure(w):
            with warnings.catch_warnings():  # of draws in which nothing is predicted as c
                warnings.simplefilter("ignore")
                return function(labels == c, predicted == c, sample_weight=w, zero_division=np.nan)

        return measure

    def auc(c):
        return lambda w: sk.roc_auc_score(labels == c, p[:, c], sample_weight=w)

    def mean_auc(w):  # roc_auc_score(multi_class="ovr") takes no more than one row a sample
        kept = np.repeat(np.arange(len(labels)), w.astype(int))
        if k == 2:
            return sk.roc_auc_score(labels[kept], p[kept, 1])
        return sk.roc_auc_score(labels[kept], p[kept], multi_class="ovr", average="macro")

    measures = {
        "negative_log_likelihood": lambda w: sk.log_loss(labels, p, sample_weight=w, labels=every),
        "brier_score": lambda w: sk.brier_score_loss(
            labels, p if k > 2 else p[:, 1], sample_weight=w, labels=every
        ),
        "balanced_accuracy": where_all_occur(
            lambda w: sk.balanced_accuracy_score(labels, predicted, sample_weight=w)
        ),
        "roc_auc": where_all_occur(mean_auc),
        "expected_calibration_error": lambda w: expected_error(p, labels, w),
        "expected_calibration_error_before": lambda w: expected_error(before, labels, w),
    }
    for name, measure in measures.items():
        assert_figure(scored[name], measure, draws, name)
    for c, name in enumerate(classes):
        of_class = scored["by_class"][name]
        assert_figure(of_class["sensitivity"], one_of(sk.recall_score, c), draws, name)
        assert_figure(of_class["precision"], one_of(sk.precision_score, c), draws, name)
        assert_figure(of_class["roc_auc"], auc(c), draws, name)
    expected = sk.confusion_matrix(labels, predicted, labels=every)
    assert scored["confusion_matrix"] == expected.tolist()


def test_of_two_classes_both_have_the_same_area_where_rounding_would_make_ties():
    """1 - 1e-17 and 1 - 2e-17 are both 1: the first column ties where the second does not."""
    p_right, labels = np.array([1e-17, 2e-17, 0.3, 0.9]), [0, 1, 0, 1]
    scored = score_sides(p_right, labels, list("ABCD"))
    areas = [scored["by_class"][name]["roc_auc"] for name in SIDES]
    assert areas == [scored["roc_auc"]] * 2
    assert scored["roc_auc"]["value"] == 3 / 4


def test_one_patient_has_no_interval_and_one_class_no_roc():
    scored = score_sides([0.9, 0.8], [1, 1], ["A", "A"])
    assert scored["interval_95"] is None and scored["accuracy"] == 1
    assert scored["roc_auc"] == {"value": None, "interval_95": None}
    assert scored["brier_score"]["interval_95"] is None


def test_where_all_are_of_one_class_nothing_is_perfect():
    scored = score_sides([0.1, 0.2, 0.8], [0, 0, 0], ["A", "B", "C"])
    assert scored["accuracy"] == pytest.approx(2 / 3)
    unknown = {"value": None, "interval_95": None}
    assert scored["balanced_accuracy"] == scored["roc_auc"] == unknown
    for name in SIDES:  # no right slice could be taken for a left one
        assert scored["by_class"][name]["precision"] == unknown
    assert scored["by_class"]["left"]["sensitivity"]["value"] == pytest.approx(2 / 3)


def test_what_needs_a_class_that_does_not_occur_is_none_and_not_1():
    p, labels, patients = made_up_classes(3)
    labels, unknown = labels % 2, {"value": None, "interval_95": None}
    scored = score(Outcomes(p, labels, patients, p), ["a", "b", "missing"])
    missing = scored["by_class"]["missing"]
    assert missing["sensitivity"] == missing["roc_auc"] == unknown
    assert missing["precision"]["value"] == 0  # it is predicted, and never right
    assert scored["roc_auc"] == scored["balanced_accuracy"] == unknown
    assert scored["by_class"]["a"]["sensitivity"]["interval_95"]
    assert scored["negative_log_likelihood"]["interval_95"]
    p = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]])
    scored = score(Outcomes(p, np.array([0, 1]), ["A", "B"], p), ["a", "b", "missing"])
    assert scored["by_class"]["missing"]["precision"] == unknown  # nor predicted


def test_no_draw_that_holds_all_classes_means_no_interval(monkeypatch):
    """20 patients, each of a class of its own: the value is known, its interval is not."""
    monkeypatch.setattr(metrics, "BOOTSTRAP_SAMPLES", 50)
    p = np.full((20, 20), 0.01) + 0.8 * np.eye(20)
    names = [f"P{i}" for i in range(20)]
    scored = score(Outcomes(p, np.arange(20), names, p), names)
    assert scored["balanced_accuracy"] == {"value": 1.0, "interval_95": None}
