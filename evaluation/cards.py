"""Cards of evaluation/page.py, made of predictions while the pixels of their slices are there.

maker = CardMaker(scans=467)
maker.add(model, predictions, judged)        # as often as there are parts, or models of folds
write_page(path, title, figures, maker.cards(), classes)

Of each scan a few slices are kept, as a small JPEG of the pixels that the model gets. The worst of
the scans that need a person are decoded again in the end, larger, and their attention is drawn:
what that takes is kept of these alone, so that memory is bounded.
"""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from common import signals
from dataset import Dataset
from evaluation.audit import urgency
from evaluation.ensemble import Ensemble
from evaluation.explain import maps_of_slices
from evaluation.page import Card
from evaluation.predictions import Predictions, Scan, shown_class
from evaluation.strips import evenly, overlay, strip_of
from perceiver import Perceiver
from scans.cache import decode_slices
from scans.places import place_in_scan, rows_of_scans
from scans.slices import Slice

SLICES = 5  # of a scan that are drawn
MOST_ATTENTION = 200  # scans that are decoded again and whose attention is drawn
LARGE = 224  # pixels of the longer edge of their slices
MOST_BYTES = 2**29  # of pixels that are kept for it: whole scans may be large
# Pixels of a slice's longer edge: the strips of so many scans come to less than 110 MB.
EDGES = ((1000, LARGE), (10**9, 112))


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
    """A scan that needs a person, to be decoded again and drawn with its attention."""

    urgency: tuple[int, float]
    place: int  # of its card among those made
    model: Perceiver
    shown: Shown
    slices: list[Slice]  # all of it, in their order


class CardMaker:
    """Makes cards of some scans at a time."""

    def __init__(self, scans: int, workers: int | None = None):
        """scans: about how many there will be; slices are drawn the smaller the more there are.

        workers: threads that decode, by default all processors.
        """
        self.workers = workers
        self.edge = next(edge for most, edge in EDGES if scans <= most)
        self.made: list[Card] = []
        self.waiting: list[Waiting] = []

    def add(
        self, model: Perceiver | Ensemble, predictions: Predictions, judged: list[dict]
    ) -> None:
        """Make the cards of predictions whose dataset has its pixels.

        judged: a row for each of predictions.scans, see predictions.judge.
        """
        for scan, row in zip(predictions.scans, judged, strict=True):
            shown = slices_to_show(predictions, scan)
            shares = shares_of(predictions, scan, row["label"])
            strip = strip_of(shown.images, self.edge)
            if row["verdict"] in ("mismatch", "unsure"):
                order = urgency(row, predictions.classes)
                slices = slices_in_order(predictions, scan)
                own = model.judge_of(scan.name) if isinstance(model, Ensemble) else model
                self.waiting.append(Waiting(order, len(self.made), own, shown, slices))
            self.made.append(Card(row, shares, shown.count, shown.drawn, strip))
        self.waiting.sort(key=lambda one: one[:2])
        room = MOST_BYTES // max((one.shown.batch.nbytes for one in self.waiting), default=1)
        del self.waiting[min(MOST_ATTENTION, room) :]

    def cards(self) -> list[Card]:
        """All cards, the worst with large slices and with attention."""
        for one in tqdm(self.waiting, "attention", leave=False, disable=None):
            signals.check()
            _, place, model, shown, slices = one
            images = decoded_again(slices, shown, self.workers)
            maps = slices_of(torch.from_numpy(maps_of_slices(model, shown.batch)[:, -1:])).numpy()
            # The slices of a scan that is read whole have one scale of colours.
            highest = float(np.percentile(maps, 99.5)) if shown.batch.ndim == 5 else None
            pairs = zip(images, maps[shown.rows], strict=True)
            drawn = [overlay(x, stretched(weights, x.shape), highest) for x, weights in pairs]
            self.made[place] = self.made[place]._replace(
                strip=strip_of(images, LARGE), attention=strip_of(drawn, LARGE)
            )
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


def decoded_again(slices: list[Slice], shown: Shown, workers: int | None) -> list[np.ndarray]:
    """The slices that are drawn, large; as the model gets them where they can't be read again.

    slices: all of the scan, as they share the scale of their grey levels.
    """
    height, width = shown.batch.shape[-2:]
    scale = LARGE / max(height, width)
    if scale <= 1:
        return shown.images
    size = max(1, round(height * scale)), max(1, round(width * scale))
    decoded = decode_slices(slices, size, workers, progress=False)
    if decoded.errors:
        return shown.images
    pixels, rows = torch.from_numpy(decoded.pixels), torch.tensor(shown.drawn)
    if shown.batch.ndim == 5:
        # The model gets places between slices; of two slices in one picture nobody can judge.
        rows = rows_of_scans(slices, shown.count)[:, shown.rows].round().long()
    batch = Dataset(slices, pixels, rows, []).batch(torch.arange(len(rows)))
    return list(slices_of(batch).numpy())


def stretched(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A map (height, width) in the shape of a larger image, linear between its values."""
    image = Image.fromarray(values.astype(np.float32))
    return np.asarray(image.resize(shape[::-1], Image.Resampling.BILINEAR))


def slices_of(batch: Tensor) -> Tensor:
    """(n, 1, height, width) or (1, 1, n, height, width) -> (n, height, width)"""
    return batch.flatten(0, 2) if batch.ndim == 5 else batch[:, 0]


def in_order(predictions: Predictions, scan: Scan) -> list[int]:
    """The samples of a scan, in the order of their slices: paths come in any."""
    samples = predictions.samples
    return sorted(scan.members, key=lambda i: place_in_scan(samples[i]))


def slices_in_order(predictions: Predictions, scan: Scan) -> list[Slice]:
    """All slices of a scan that were read, in their order."""
    dataset, members = predictions.dataset, in_order(predictions, scan)
    if dataset.unit == "scan":
        return [dataset.slices[i] for i in dataset.rows_of_each[members[0]]]
    return [predictions.samples[i] for i in members]


def shares_of(predictions: Predictions, scan: Scan, label: str) -> list[float]:
    """Of each slice the probability of the class that is shown; [] where scans are read whole."""
    if predictions.dataset.unit == "scan":
        return []
    column = predictions.classes.index(shown_class(label, predictions.classes))
    return predictions.probabilities[in_order(predictions, scan), column].tolist()
