"""evaluation/predictions.py: slices -> scans, what is unsure, and predicting a Dataset."""

import numpy as np
import pytest
import torch

from dataset import Dataset
from evaluation.predictions import MIN_AGREEMENT, Predictions, judge, predict
from perceiver import Perceiver
from scans.slices import Slice

SIDES = ["left", "right"]
GRADES = ["none", "mild", "severe"]


def predictions_of(p, slices: list[Slice], classes: list[str], temperature=1.0) -> Predictions:
    """Of probabilities (slices, classes) at temperature 1."""
    pixels = torch.zeros(len(slices), 1, 2, 2, dtype=torch.uint8)
    dataset = Dataset(slices, pixels, torch.arange(len(slices)), classes)
    return Predictions(dataset, torch.tensor(p, dtype=torch.float32).log(), temperature)


def slices_of(scans: list[str], label="left", patient="p") -> list[Slice]:
    return [Slice(f"{i}.png", None, label, patient, scan, i) for i, scan in enumerate(scans)]


def test_scan_probability_is_the_mean_of_its_slices():
    p_right = np.array([0.9, 0.2, 0.4, 0.6])
    p = np.stack([1 - p_right, p_right], axis=1)
    found = predictions_of(p, slices_of(["a", "b", "a", "b"]), SIDES).scans
    means = {scan.name: scan.probabilities[1] for scan in found}
    assert means == {"a": pytest.approx(0.65), "b": pytest.approx(0.4)}
    assert all(scan.probabilities[0] == 1 - scan.probabilities[1] for scan in found)
    assert [scan.members for scan in found] == [[0, 2], [1, 3]]


def test_of_three_classes_the_mean_is_of_calibrated_probabilities_and_agreement_of_labels():
    p = np.array([[0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]])
    found = predictions_of(p, slices_of(["a", "a", "a", "b"], "none"), GRADES, temperature=0.5)
    calibrated = p**2 / (p**2).sum(axis=1, keepdims=True)
    assert found.probabilities == pytest.approx(calibrated, abs=1e-6)
    a, b = found.scans
    assert a.probabilities == pytest.approx(calibrated[:3].mean(axis=0), abs=1e-6)
    assert a.before == pytest.approx(p[:3].mean(axis=0), abs=1e-6)
    assert (a.agreement, b.agreement) == (2 / 3, 1)  # one of a's says none, the scan says mild
    row = judge(a, GRADES, 0.0)
    assert (row["label"], row["agreement"]) == ("mild", 0.6667)
    assert [row[f"p_{name}"] for name in GRADES] == a.probabilities.round(6).tolist()


def test_slices_are_grouped_by_scan_patient_and_label_in_the_order_they_were_met():
    slices = [
        Slice(f"{i}.png", None, label, patient, scan, i)
        for i, (scan, patient, label) in enumerate(
            [("s", "p", "right"), ("r", "p", "left"), ("s", "p", "left"), ("s", "q", "right")]
        )
    ]
    slices.append(Slice("4.png", None, "right", "p", "s", 4))
    found = predictions_of(np.full((5, 2), 0.5), slices, SIDES)
    identities = [(scan.name, scan.patient, scan.label, scan.members) for scan in found.scans]
    assert identities == [
        ("s", "p", "right", [0, 4]),
        ("r", "p", "left", [1]),
        ("s", "p", "left", [2]),
        ("s", "q", "right", [3]),
    ]
    outcomes = found.of_scans()
    assert outcomes.labels.tolist() == [1, 0, 0, 1]
    assert outcomes.patients == ["p", "p", "p", "q"]
    assert found.of_slices().labels.tolist() == [1, 0, 0, 1, 1]


def test_a_scan_whose_slices_disagree_is_unsure():
    for wrong, verdict in ((2, "ok"), (3, "unsure")):
        p_right = np.array([0.6] * wrong + [0.01] * (10 - wrong))
        p = np.stack([1 - p_right, p_right], axis=1)
        (scan,) = predictions_of(p, slices_of(["s"] * 10), SIDES).scans
        assert judge(scan, SIDES, 0.5)["verdict"] == verdict


@pytest.mark.parametrize(
    "p, label, unsure_below, verdict",
    [
        ([0.4, 0.35, 0.25], "none", 1 / 3, "ok"),  # sure enough although below a half
        ([0.4, 0.35, 0.25], "none", 0.41, "unsure"),
        ([0.4, 0.35, 0.25], "mild", 0.39, "mismatch"),
        ([0.4, 0.35, 0.25], "mild", 0.41, "unsure"),  # before it is a mismatch
        ([0.1, 0.1, 0.8], "", 0.5, "unknown"),
        ([0.1, 0.1, 0.8], "", 0.9, "unsure"),
    ],
)
def test_of_three_classes_a_scan_is_unsure_below_the_threshold(p, label, unsure_below, verdict):
    (scan,) = predictions_of([p], slices_of(["s"], label), GRADES).scans
    row = judge(scan, GRADES, unsure_below)
    assert (row["verdict"], row["expected"], row["slices"]) == (verdict, label, 1)


def test_slices_that_disagree_over_three_classes_are_unsure_too():
    for others, verdict in ((1, "mismatch"), (2, "unsure")):  # of four; at least 3 must agree
        p = [[0.02, 0.03, 0.95]] * (4 - others) + [[0.5, 0.3, 0.2]] * others
        (scan,) = predictions_of(p, slices_of(["s"] * 4, "none"), GRADES).scans
        assert scan.agreement == 1 - others / 4 and MIN_AGREEMENT == 0.75
        assert judge(scan, GRADES, 0.5)["verdict"] == verdict


def test_predict_gives_the_logits_of_each_row_whatever_the_batches():
    torch.manual_seed(0)
    model = Perceiver(2, 4.0, 1, num_latents=4, latent_dim=8, latent_dim_head=4, num_classes=3)
    model.calibration = {"temperature": 2.0}
    pixels = torch.randint(0, 256, (9, 1, 6, 6), dtype=torch.uint8)
    slices = [Slice(f"{i}.png", None, GRADES[i % 3], f"p{i}", f"s{i}", i) for i in range(9)]
    rows = torch.tensor([7, 2, 5, 0])  # a subset, in an order of its own
    subset = Dataset(slices, pixels, torch.arange(9), GRADES).subset(rows)
    expected = model.eval()(model.normalise(pixels[rows])).detach()
    for batch_size in (1, 3, 64):
        found = predict(model, subset, batch_size)
        torch.testing.assert_close(found.logits, expected, atol=1e-6, rtol=0)
        assert found.probabilities == pytest.approx((expected / 2).softmax(1).numpy(), abs=1e-6)
        assert found.patients == ["p7", "p2", "p5", "p0"]
        assert found.labels.tolist() == [1, 2, 2, 0]
