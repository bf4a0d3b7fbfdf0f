"""Which labels of an archive are wrong: scans that a model which never saw them calls otherwise.

noise = fit_label_noise(probabilities, labels)
rows = judge_out_of_fold(scans, classes, noise)     # rows of scans.csv
for row in worst_first(rows, classes):
    print(describe_scan(row, classes))
"""

from typing import NamedTuple

import numpy as np

from common.program import counted, printable
from evaluation.predictions import Scan, judge, shown_class

VERDICTS = ("ok", "mismatch", "unsure", "unknown")
# A mismatch is of another class, as its model has it, so many times as likely as of its label.
ODDS = 2.0


class LabelNoise(NamedTuple):
    """How labels come about, as far as probabilities of models that never saw them tell."""

    wrong: float  # share of the labels
    sharpness: float  # exponent of the probabilities: above 1, models could be surer


def fit_label_noise(probabilities: np.ndarray, labels: np.ndarray) -> LabelNoise:
    """The share of wrong labels under which these labels are likeliest.

    A label is that of the truth, or with a probability `wrong` any other, each as likely: the
    forward correction of Patrini et al. 2017 (CVPR, theorem 2) with symmetric noise. The truth
    has the model's probabilities to the power of `sharpness`, normalized: Guo et al. 2017 (ICML).
    Both are fitted, as a model that is often and equally sure of another class has wrong labels
    before it, and one that errs where it is unsure has not. The mean over slices, which the
    probability of a scan is, is far less sure than it could be.

    probabilities (scans, classes), out of sample, and labels (scans,).
    """
    shares = np.append(0.0, np.geomspace(0.1 / len(labels), 0.5, 100))
    best, found = -np.inf, None
    for sharpness in np.geomspace(0.1, 30, 80):
        likelihoods = label_likelihoods(probabilities, labels, sharpness)[:, None]
        others = (1 - likelihoods) / (probabilities.shape[1] - 1)
        mixed = np.maximum((1 - shares) * likelihoods + shares * others, 1e-12)
        fits = np.log(mixed).mean(axis=0)
        if fits.max() > best:
            best, found = fits.max(), LabelNoise(float(shares[fits.argmax()]), float(sharpness))
    return found


def label_likelihoods(p: np.ndarray, labels: np.ndarray, sharpness: float) -> np.ndarray:
    """The probability that the label is the truth, before one knows the label (scans,)."""
    logits = sharpness * np.log(np.maximum(p, 1e-12))
    sharpened = np.exp(logits - logits.max(axis=1, keepdims=True))
    return sharpened[np.arange(len(labels)), labels] / sharpened.sum(axis=1)


def wrong_probabilities(p: np.ndarray, labels: np.ndarray, noise: LabelNoise) -> np.ndarray:
    """The probability that each label is wrong, after one knows it (scans,): Bayes' rule."""
    likelihoods = label_likelihoods(p, labels, noise.sharpness)
    right = (1 - noise.wrong) * likelihoods
    wrong = noise.wrong * (1 - likelihoods) / (p.shape[1] - 1)
    return wrong / np.maximum(right + wrong, 1e-300)


def judge_out_of_fold(scans: list[Scan], classes: list[str], noise: LabelNoise) -> list[dict]:
    """Rows of scans.csv with `p_wrong`, and a rank: 1 has the lowest probability of its label.

    A scan is a `mismatch` where its label is likelier wrong than right and its model finds another
    class ODDS times as likely as the label, so that models which know nothing call nothing wrong;
    where it only finds another class likelier, or slices agree too little, `unsure`. The
    calibration of a fold is not asked: wrong labels in its validation subset would let no
    confidence be enough.
    """
    probabilities = np.stack([scan.probabilities for scan in scans])
    labels = np.array([classes.index(scan.label) for scan in scans])
    p_wrong = wrong_probabilities(probabilities, labels, noise)
    order = np.argsort(probabilities[np.arange(len(scans)), labels], kind="stable")
    ranks = np.empty(len(scans), dtype=int)
    ranks[order] = np.arange(1, len(scans) + 1)
    rows = []
    for scan, label, wrong, rank in zip(scans, labels, p_wrong, ranks, strict=True):
        row, p = judge(scan, classes, unsure_below=0.0), scan.probabilities
        sure = wrong > 0.5 and p.max() >= ODDS * p[label]
        if row["verdict"] == "mismatch" and not sure:
            row["verdict"] = "unsure"
        rows.append({**row, "p_wrong": round(float(wrong), 6), "rank": int(rank)})
    return rows


def urgency(row: dict, classes: list[str]) -> tuple[int, float]:
    """Sort key of rows of scans.csv, worst first.

    Mismatches, unsure scans, the rest; of each those first that have the lowest probability of the
    label that is expected, and where none is, the least sure.
    """
    order = {"mismatch": 0, "unsure": 1}.get(row["verdict"], 2 if row["expected"] else 3)
    if row["expected"]:
        return order, row[f"p_{row['expected']}"]
    return order, max(row[f"p_{name}"] for name in classes)


def worst_first(rows: list[dict], classes: list[str]) -> list[dict]:
    """What needs a person: mismatches, then unsure scans."""
    needing = [row for row in rows if row["verdict"] in ("mismatch", "unsure")]
    return sorted(needing, key=lambda row: urgency(row, classes))


def describe_scan(row: dict, classes: list[str], width: int = 0, colour: str = "") -> str:
    """A row of scans.csv as a line. width: of the longest name; colour: an ANSI code."""
    verdict = f"\033[{colour}m{row['verdict']}\033[0m" if colour else row["verdict"]
    expected = f", expected {printable(row['expected'])}" if row["expected"] else ""
    slices = counted(row["slices"], "slice")
    if row["agreement"] is not None:
        slices += f" ({row['agreement']:.0%} agree)"
    shown = f"p_{shown_class(row['label'], classes)}"
    return (
        f"{printable(row['scan']):<{width}}  "
        f"{printable(row['label']):<{max(5, *map(len, classes))}}  "
        f"{printable(shown)} {row[shown]:.3f}  "
        f"{slices}  {verdict}{expected}"
    )
