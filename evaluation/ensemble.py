"""The models of all folds as one: the mean of what they say, but for scans that some have seen.

    ensemble = open_folds(Path("runs/folds"))
    ensemble.choose_judges(listing.slices)      # raises UserError for what was trained on
    predictions = ensemble.predict(dataset)     # the mean of the calibrated probabilities

On what a fold has seen, as evaluation/seen.py says, it looks better than it is.
"""

from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from common.files import abridged, check_regular, read_json
from common.program import UserError, counted, typed
from common.tables import read_csv
from dataset import Dataset
from evaluation.answers import check_finite, samples_at_a_time
from evaluation.predictions import Predictions, predict
from evaluation.seen import Seen, described, read_seen
from evaluation.trained import KEPT, open_trained
from perceiver import Perceiver, is_number, shown
from scans.slices import Slice

READ_BY = ("classes", "image_size", *KEPT, "orientation")  # what data is read by: the same for all
MOST_FOLDS = 10_000


class Fold(NamedTuple):
    number: int  # from 1
    path: Path  # best.pt
    model: Perceiver


@dataclass
class Ensemble:
    """Models that were trained on parts of one archive.

    It stands for a model where it is asked how data is read and from where on a scan is unsure.
    """

    folder: Path
    folds: list[Fold]
    unsure_below: float
    seen: Seen
    # Scan -> places of the folds that judge it, where that is not all of them.
    judges: dict[str, set[int]] = field(default_factory=dict)

    @property
    def preprocessing(self) -> dict:
        """How data is read, by all as by the first; each has a scale of grey levels of its own."""
        return self.folds[0].model.preprocessing

    @property
    def config(self) -> dict:
        return self.folds[0].model.config

    @property
    def calibration(self) -> dict:
        """Of its predictions, whose logits are calibrated already."""
        return {"temperature": 1.0, "unsure_below": self.unsure_below}

    def judge_of(self, scan: str) -> Perceiver:
        """The first of the models that judge a scan, for what only one of them can show."""
        return self.folds[min(self.judges.get(scan, {0}))].model

    def samples_at_a_time(self, most: int) -> int:
        return min(samples_at_a_time(fold.model, fold.path, most) for fold in self.folds)

    def choose_judges(self, slices: list[Slice], allow_seen: bool = False) -> list[str]:
        """From here on a scan that folds have seen is judged by those that have not, if allowed.

        Returns lines for a person, none where all scans are new. Raises UserError for scans that
        were seen: by some of the folds unless that is allowed, or by all of them.
        """
        seen = self.seen.find(slices)
        everyone = set(range(len(self.folds)))
        if lost := [name for name, by in seen.items() if by.models == everyone]:
            raise UserError(
                f"{self.folder}: all of its folds were trained on {counted(len(lost), 'scan')}, so "
                f"that none can judge: {described(lost, seen)}"
            )
        if seen and not allow_seen:
            raise UserError(
                f"{self.folder}: some of its folds were trained on {counted(len(seen), 'scan')}, "
                f"of which the mean would be too sure: {described(list(seen), seen)}; leave these "
                "out, or --allow-seen has each judged by the fold that did not see it"
            )
        self.judges = {name: everyone - by.models for name, by in seen.items()}
        if not seen:
            return []
        alone = sum(len(judges) == 1 for judges in self.judges.values())
        parts = [f"judged by one fold alone, which has not seen them: {counted(alone, 'scan')}"]
        if several := len(seen) - alone:
            parts.append(f"by the mean of the folds that have not: {several:,}")
        new = len({s.scan for s in slices}) - len(seen)
        return ["; ".join([*parts, f"new, by the mean of all {len(self.folds)}: {new:,}"])]

    def predict(
        self, dataset: Dataset, batch_size: int = 64, bar: tqdm | None = None
    ) -> Predictions:
        """The mean of the calibrated probabilities of those folds that judge each sample.

        Their logits are the logarithm of that mean, of which softmax at the temperature 1 is the
        mean again: all that takes the predictions of one model takes these.
        """
        everyone = set(range(len(self.folds)))  # who judges what none has seen
        judges = [self.judges.get(s.scan, everyone) for s in dataset.samples]
        shape = len(self.folds), len(dataset), len(dataset.classes)
        log_p = torch.full(shape, -inf, dtype=torch.double)  # who does not judge adds nothing
        for part in torch.arange(len(dataset)).split(batch_size):
            for place, fold in enumerate(self.folds):
                samples = [i for i in part.tolist() if place in judges[i]]
                if samples:
                    subset = dataset.subset(dataset.rows[samples])
                    found = predict(fold.model, subset, batch_size)
                    check_finite(found.logits, fold.path)
                    calibrated = found.logits.double() / found.temperature
                    log_p[place, samples] = calibrated.log_softmax(dim=1)
            if bar is not None:
                bar.update(len(part))
        counts = torch.tensor([len(of_sample) for of_sample in judges], dtype=torch.double)
        log_mean = log_p.logsumexp(dim=0) - counts.log()[:, None]  # (samples, classes)
        return Predictions(dataset, log_mean.float(), temperature=1.0)


# ---- a folder of folds ---------------------------------------------------------------------------


def is_folder_of_folds(folder: Path) -> bool:
    return (folder / "folds.csv").is_file() or holds_folds(folder)


def holds_folds(folder: Path) -> bool:
    """Whether runs of folds lie in it; a folder of data may have a folds.csv of its own."""
    return any(folder.glob("fold-*/args.json"))


def open_folds(folder: Path, device: torch.device | str = "cpu") -> Ensemble:
    """The models of a folder that `train.py --folds` made.

    Raises UserError if a fold is missing or has not ended, if two of them read data differently,
    and for tables that can't be used; CheckpointError or OSError as `open_trained` does.
    """
    numbers = fold_numbers(folder / "folds.csv")
    paths = [folder / f"fold-{number}" / "best.pt" for number in numbers]
    if lacking := [n for n, path in zip(numbers, paths, strict=True) if not path.exists()]:
        raise UserError(f"{folder}: no best.pt in {how_to_train(folder, lacking)}")
    folds = []
    for number, path in zip(numbers, paths, strict=True):
        check_regular(path)
        folds.append(Fold(number, path, open_trained(path, device)))
    # The mean of calibrated probabilities and of others is neither.
    if unfinished := [f.number for f in folds if "unsure_below" not in f.model.calibration]:
        raise UserError(f"{folder}: best.pt not calibrated in {how_to_train(folder, unfinished)}")
    check_alike(folds)
    seen = read_seen([fold.path.with_name("split.csv") for fold in folds])
    return Ensemble(folder, folds, read_unsure_below(folder, folds), seen)


def fold_numbers(path: Path) -> list[int]:
    """The folds that a list of them has. Raises UserError."""
    table = read_csv(path, "list of folds")
    column = table.column("fold")
    if column is None:
        raise UserError(f"{path}: expected a column fold, got {', '.join(table.columns)!r}")
    numbers = set()
    for line, row in table.rows:
        text = row[column].strip()
        short = text.isdecimal() and len(text) <= len(f"{MOST_FOLDS}")
        if not (short and 1 <= int(text) <= MOST_FOLDS):
            got = shown(text)
            raise UserError(f"{path}, line {line}: fold must be a number from 1 on, got {got}")
        numbers.add(int(text))
    if len(numbers) < 2:
        raise UserError(f"{path}: {counted(len(numbers), 'fold')}, expected two or more")
    return sorted(numbers)


def how_to_train(folder: Path, numbers: list[int]) -> str:
    """The end of a line about folds whose training has not begun or ended."""
    names = abridged([f"fold-{number}" for number in numbers])
    one = f" --fold {numbers[0]}" if len(numbers) == 1 else ""
    return f"{names}: still to be trained: python train.py --resume {typed(folder)}{one}"


def check_alike(folds: list[Fold]) -> None:
    """Raise UserError, which names two of them, unless all read data as the first one does."""
    first = folds[0]
    for fold in folds[1:]:
        pairs = [("slices or scans", *(f.model.config["input_axis"] for f in (first, fold)))]
        for name in READ_BY:
            pairs.append((name, *(f.model.preprocessing.get(name) for f in (first, fold))))
        for name, one, other in pairs:
            if one != other:
                name = name if name not in KEPT else f"--{name.replace('_', '-')}"
                raise UserError(
                    f"{first.path} and {fold.path} differ in {name}: {shown(one)} and "
                    f"{shown(other)}: they are of different runs, and have no mean"
                )


def read_unsure_below(folder: Path, folds: list[Fold]) -> float:
    """From which confidence on a scan is not `unsure`. Raises UserError."""
    path = folder / "cross_validation.json"
    calibration = None
    if path.exists():
        record = read_json(path, "record of a cross-validation")
        calibration = record.get("calibration") if isinstance(record, dict) else record
    if calibration is None:
        # Each was fitted on few patients. The mean is at most as sure as its surest member: what
        # is sure by the strictest of them is so for all.
        return max(fold.model.calibration["unsure_below"] for fold in folds)
    found = calibration.get("unsure_below") if isinstance(calibration, dict) else None
    if not is_number(found, 0, 1):
        raise UserError(f"{path}: calibration {shown(calibration)}: no unsure_below from 0 to 1")
    return found
