"""Which labels of an archive are wrong: scans that a model which never saw them calls otherwise.

rows = judge_out_of_fold(scans, classes)     # rows of scans.csv
for row in worst_first(rows, classes):
    print(describe_scan(row, classes))
"""

import numpy as np

from common.program import counted, printable
from evaluation.predictions import Scan, judge, shown_class

VERDICTS = ("ok", "mismatch", "unsure", "unknown")
# A mismatch is at least so many times as likely to be of another class as of its label. What is
# enough to be confident follows from the models, and these may know nothing.
ODDS = 2.0


def confident_from(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For each class, from which probability of it on a scan is said to be of it (classes,).

    The mean probability of a class over the scans that are labelled as of it: confident learning
    (Northcutt, Jiang and Chuang 2021, JAIR 70, section 3.1). Wrong labels among them lower it, as
    they lower the confidence of the models that were trained on them. 1 for a class without scans.

    probabilities (scans, classes), out of sample, and labels (scans,).
    """
    thresholds = np.ones(probabilities.shape[1])
    for c in np.unique(labels):
        thresholds[c] = probabilities[labels == c, c].mean()
    return thresholds


def judge_out_of_fold(scans: list[Scan], classes: list[str]) -> list[dict]:
    """Rows of scans.csv, each with its rank: 1 has the lowest probability of its label.

    A scan is a `mismatch` where its model is confident of another class, as `confident_from` says,
    and finds it ODDS times as likely as that of its label; where it only finds another class
    likelier, or slices agree too little, `unsure`. What is enough to be confident follows from all
    scans, and not from the validation subset of a fold, in which wrong labels would let no
    confidence be enough.
    """
    probabilities = np.stack([scan.probabilities for scan in scans])
    labels = np.array([classes.index(scan.label) for scan in scans])
    thresholds = confident_from(probabilities, labels)
    order = np.argsort(probabilities[np.arange(len(scans)), labels], kind="stable")
    ranks = np.empty(len(scans), dtype=int)
    ranks[order] = np.arange(1, len(scans) + 1)
    rows = []
    for scan, label, rank in zip(scans, labels, ranks, strict=True):
        row, p = judge(scan, classes, unsure_below=0.0), scan.probabilities
        enough = max(thresholds[p.argmax()], ODDS * p[label])
        if row["verdict"] == "mismatch" and p.max() < enough:
            row["verdict"] = "unsure"
        rows.append({**row, "rank": int(rank)})
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
