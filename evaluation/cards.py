"""Cards of evaluation/page.py, made of predictions while the pixels of their slices are there.

maker = CardMaker(scans=467)
maker.add(model, predictions, judged)        # as often as there are parts, or models of folds
write_page(path, title, figures, maker.cards(), classes)

Of each scan a few slices are kept, as a small JPEG. Where a person is needed their pixels are kept,
too, of the worst scans so far, and attention is drawn over these in the end: memory is bounded.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common import signals
from evaluation.explain import maps_of_slices
from evaluation.page import Card
from evaluation.predictions import Predictions, Scan, shown_class, urgency
from evaluation.strips import evenly, overlay, strip_of
from perceiver import Perceiver
from scans.places import place_in_scan

SLICES = 5  # of a scan that are drawn
MOST_ATTENTION = 200  # scans whose attention is drawn: a forward pass and a picture each
MOST_BYTES = 2**29  # of pixels that are kept for it: whole scans may be large
# Pixels of a slice's longer edge: the strips of so many scans come to less than 110 MB.
EDGES = ((1000, 224), (10**9, 112))


class Shown(NamedTuple):
    """Some slices of a scan, and what the model takes to draw its attention over them."""

    drawn: list[int]  # their places in the scan
    count: int  # of how many
    batch: Tensor  # uint8 (slices drawn, 1, height, width), or (1, 1, length, ...) of a whole scan
    rows: list[int]  # where they are among the slices of the batch

    @property
    def images(self) -> list[np.ndarray]:
        """The slices drawn, grey (height, width)."""
        return list(slices_of(self.batch)[self.rows].numpy(force=True))


class Waiting(NamedTuple):
    """A scan that needs a person, whose attention is to be drawn."""

    urgency: tuple[int, float]
    place: int  # of its card among those made
    model: Perceiver
    shown: Shown


class CardMaker:
    """Makes cards of some scans at a time."""

    def __init__(self, scans: int):
        """scans: about how many there will be; slices are drawn the smaller the more there are."""
        self.edge = next(edge for most, edge in EDGES if scans <= most)
        self.made: list[Card] = []
        self.waiting: list[Waiting] = []

    def add(self, model: Perceiver, predictions: Predictions, judged: list[dict]) -> None:
        """Make the cards of predictions whose dataset has its pixels.

        judged: a row for each of predictions.scans, see predictions.judge.
        """
        for scan, row in zip(predictions.scans, judged, strict=True):
            shown = slices_to_show(predictions, scan)
            shares = shares_of(predictions, scan, row["label"])
            strip = strip_of(shown.images, self.edge)
            if row["verdict"] in ("mismatch", "unsure"):
                order = urgency(row, predictions.classes)
                self.waiting.append(Waiting(order, len(self.made), model, shown))
            self.made.append(Card(row, shares, shown.count, shown.drawn, strip))
        self.waiting.sort(key=lambda one: one[:2])
        room = MOST_BYTES // max((one.shown.batch.nbytes for one in self.waiting), default=1)
        del self.waiting[min(MOST_ATTENTION, room) :]

    def cards(self) -> list[Card]:
        """All cards, with the attention of the worst."""
        for _, place, model, shown in tqdm(self.waiting, "attention", leave=False, disable=None):
            signals.check()
            maps = slices_of(torch.from_numpy(maps_of_slices(model, shown.batch)[:, -1:])).numpy()
            # The slices of a scan that is read whole have one scale of colours.
            highest = float(np.percentile(maps, 99.5)) if shown.batch.ndim == 5 else None
            pairs = zip(shown.images, maps[shown.rows], strict=True)
            drawn = [overlay(image, attention, highest) for image, attention in pairs]
            self.made[place] = self.made[place]._replace(attention=strip_of(drawn, self.edge))
        self.waiting = []
        return self.made


def slices_to_show(predictions: Predictions, scan: Scan) -> Shown:
    """A few slices of a scan, evenly from its first to its last."""
    dataset, members = predictions.dataset, in_order(predictions, scan)
    if dataset.unit == "scan":
        length = dataset.rows.shape[1]
        drawn = evenly(length, SLICES)
        return Shown(drawn, length, dataset.batch(torch.tensor(members[:1])).cpu(), drawn)
    drawn = evenly(len(members), SLICES)
    batch = dataset.batch(torch.tensor([members[i] for i in drawn])).cpu()
    return Shown(drawn, len(members), batch, list(range(len(drawn))))


def slices_of(batch: Tensor) -> Tensor:
    """(n, 1, height, width) or (1, 1, n, height, width) -> (n, height, width)"""
    return batch.flatten(0, 2) if batch.ndim == 5 else batch[:, 0]


def in_order(predictions: Predictions, scan: Scan) -> list[int]:
    """The samples of a scan, in the order of their slices: paths come in any."""
    samples = predictions.samples
    return sorted(scan.members, key=lambda i: place_in_scan(samples[i]))


def shares_of(predictions: Predictions, scan: Scan, label: str) -> list[float]:
    """Of each slice the probability of the class that is shown; [] where scans are read whole."""
    if predictions.dataset.unit == "scan":
        return []
    column = predictions.classes.index(shown_class(label, predictions.classes))
    return predictions.probabilities[in_order(predictions, scan), column].tolist()
