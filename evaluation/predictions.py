"""Logits of slices, and what they say of slices and of scans.

predictions = predict(model, dataset, batch_size=64)
predictions.probabilities                       # (samples, classes), calibrated
for scan in predictions.scans:
    print(scan.name, judge(scan, predictions.classes, unsure_below=0.8))
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common import signals
from common.workers import processes, rank, reduce
from dataset import Dataset
from evaluation.calibration import probabilities
from evaluation.metrics import Outcomes
from perceiver import Perceiver
from scans.slices import Slice

# Worked on at a time on a CPU, whose cache does not hold more: the default model predicts 3.2
# slices a second in batches of 4, and 2.5 in batches of 32 (AMD EPYC, 2 cores).
CACHED_LATENTS = 2048
MIN_AGREEMENT = 0.75  # a scan whose slices agree less is unsure, however sure each is


class Scan(NamedTuple):
    """What a model says of one scan: the mean of what it says of its slices, or of it at once."""

    name: str
    patient: str
    label: str  # what it is said to be; "" where nothing tells it
    members: list[int]  # its samples
    probabilities: np.ndarray  # (classes,)
    before: np.ndarray  # (classes,), before calibration
    slices: int
    agreement: float | None  # the share of them that say what the scan says; None: read at once


@dataclass(frozen=True)
class Predictions:
    """What a model says of the samples of a dataset."""

    dataset: Dataset
    logits: Tensor  # (samples, classes) float32 on the CPU, before calibration
    temperature: float = 1.0

    @property
    def classes(self) -> list[str]:
        return self.dataset.classes

    @property
    def samples(self) -> list[Slice]:
        return self.dataset.samples

    @property
    def labels(self) -> np.ndarray:
        """The class of each sample (samples,). Raises ValueError for one that has no label."""
        return self.dataset.labels.numpy(force=True)

    @property
    def patients(self) -> list[str]:
        return [s.patient for s in self.samples]

    @cached_property
    def probabilities(self) -> np.ndarray:
        """softmax(logits / temperature) in double precision (samples, classes)."""
        return probabilities(self.logits, self.temperature)

    @cached_property
    def before(self) -> np.ndarray:
        return probabilities(self.logits, 1.0)

    @cached_property
    def scans(self) -> list[Scan]:
        """Each scan, in the order in which they were met."""
        members: dict[tuple[str, str, str], list[int]] = {}
        whole, each = self.dataset.unit == "scan", self.dataset.rows_of_each
        for i, s in enumerate(self.samples):
            members.setdefault((s.scan, s.patient, s.label), []).append(i)
        scans = []
        for identity, rows in members.items():
            mean, before = (mean_of(p[rows]) for p in (self.probabilities, self.before))
            agreement = float((self.probabilities[rows].argmax(1) == mean.argmax()).mean())
            count = sum(len(each[i]) for i in rows)
            agreement = None if whole else agreement
            scans.append(Scan(*identity, rows, mean, before, count, agreement))
        return scans

    def outcomes(self) -> dict[str, Outcomes]:
        """Of slices and scans, or where whole scans are read of these alone."""
        of_slices = {"slice": self.of_slices()} if self.dataset.unit == "slice" else {}
        return {**of_slices, "scan": self.of_scans()}

    def of_slices(self) -> Outcomes:
        return Outcomes(self.probabilities, self.labels, self.patients, self.before)

    def of_scans(self) -> Outcomes:
        scans = self.scans
        return Outcomes(
            np.stack([scan.probabilities for scan in scans]),
            np.array([self.classes.index(scan.label) for scan in scans]),
            [scan.patient for scan in scans],
            np.stack([scan.before for scan in scans]),
        )


def mean_of(p: np.ndarray) -> np.ndarray:
    """The mean over slices (slices, classes); of two classes the first is exactly 1 - the other."""
    mean = p.sum(axis=0) / len(p)
    if len(mean) == 2:
        mean[0] = 1 - mean[1]
    return mean


def predict(
    model: Perceiver,
    dataset: Dataset,
    batch_size: int = 64,
    amp: bool | None = None,
    bar: tqdm | None = None,
) -> Predictions:
    """What a model says of each sample; each of several processes predicts its share.

    At most batch_size samples are worked on at a time. amp as in `perceiver.autocast`; bar is
    updated by samples.
    """
    if model.latents.device.type == "cpu":
        batch_size = max(1, min(batch_size, CACHED_LATENTS // len(model.latents)))
    samples = torch.arange(rank(), len(dataset), processes())

    def batches() -> Iterator[Tensor]:
        for batch in samples.split(batch_size):
            signals.check()
            yield dataset.batch(batch)
            if bar is not None:
                bar.update(len(batch))

    logits = torch.zeros(len(dataset), model.config["num_classes"])
    logits[samples] = model.predict_logits(batches(), amp=amp)
    return Predictions(dataset, reduce(logits), model.calibration["temperature"])


def judge(scan: Scan, classes: list[str], unsure_below: float) -> dict:
    """A scan's row of scans.csv.

    It is `unsure` if it is less sure than `unsure_below`, or its slices agree too little; else it
    is `ok` or a `mismatch`, or `unknown` where nothing tells what it should be.
    """
    label = classes[scan.probabilities.argmax()]
    verdict = "ok" if label == scan.label else "mismatch" if scan.label else "unknown"
    agreement = None if scan.agreement is None else round(scan.agreement, 4)
    disagree = scan.agreement is not None and scan.agreement < MIN_AGREEMENT
    if scan.probabilities.max() < unsure_below or disagree:
        verdict = "unsure"
    shares = {
        f"p_{name}": round(float(p), 6) for name, p in zip(classes, scan.probabilities, strict=True)
    }
    return {
        "scan": scan.name,
        "patient": scan.patient,
        "label": label,
        **shares,
        "slices": scan.slices,
        "agreement": agreement,
        "expected": scan.label,
        "verdict": verdict,
    }


def urgency(row: dict, classes: Sequence[str]) -> tuple[int, float]:
    """Sort key of rows of scans.csv, worst first.

    Mismatches, surest first; unsure scans, least sure first; the rest by how little is left for the
    label that is expected, at the end those of which nothing is.
    """
    surest = max(row[f"p_{name}"] for name in classes)
    if row["verdict"] == "mismatch":
        return 0, -surest
    if row["verdict"] == "unsure":
        return 1, surest
    return (2, row[f"p_{row['expected']}"]) if row["expected"] else (3, surest)


def shown_class(label: str, classes: list[str]) -> str:
    """The class whose probability is shown beside a label: of two always the second."""
    return classes[1] if len(classes) == 2 else label


class Answer(NamedTuple):
    """A label and the probability that is shown beside it."""

    label: str
    column: str  # p_right
    share: str  # 0.993

    @classmethod
    def of(cls, p: np.ndarray, classes: list[str]) -> "Answer":
        label = classes[p.argmax()]
        shown = shown_class(label, classes)
        return cls(label, f"p_{shown}", f"{p[classes.index(shown)]:.3f}")

    def __str__(self) -> str:
        return f"{self.label}, {self.column} {self.share}"


class Example(NamedTuple):
    """A slice or a scan, to be drawn with the probability of its true label."""

    name: str
    label: str  # the true one
    p_true: float  # its probability
    image: np.ndarray  # (height, width)
    wrong: bool


def probability_columns(p: np.ndarray, classes: list[str]) -> dict[str, str]:
    """The cells of a table: p_left, p_right, ..."""
    return {f"p_{name}": f"{value:.6f}" for name, value in zip(classes, p, strict=True)}
