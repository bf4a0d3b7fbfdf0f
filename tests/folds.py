"""Folders of folds as `train.py --folds` makes them, and predict.py on them."""

import csv
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import TINY

import predict
import train
from dataset import list_labelled
from scans.slices import Options, by_scan

FOLDS = 3


def read_csv(path: Path) -> list[dict]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def draw_nothing(patch: pytest.MonkeyPatch) -> None:
    """Pictures and the page take most of the time."""
    for name in ("evaluation.plots.save", "evaluation.curves.save"):
        patch.setattr(name, lambda figure, path: None)
    patch.setattr("training.folds.write_report", lambda *of: None)


def train_folds(
    data: Path, folder: Path, flags: Sequence[str] = (), options: Options = Options()
) -> None:
    """A folder as `train.py --folds 3` makes it. The n-th patient is tested in fold n mod 3 + 1."""
    folder.mkdir()
    scans = by_scan(list_labelled(data, options=options).slices)
    patients = sorted({slices[0].patient for slices in scans.values()})
    fold_of = {patient: i % FOLDS for i, patient in enumerate(patients)}
    rows = [
        {
            "fold": fold_of[slices[0].patient] + 1,
            "label": slices[0].label,
            "patient": slices[0].patient,
            "scan": name,
            "slices": len(slices),
        }
        for name, slices in scans.items()
    ]
    write_rows(folder / "folds.csv", rows)
    subsets = {0: "test", 1: "val", 2: "train"}
    for fold in range(FOLDS):
        split = [{"subset": subsets[(r["fold"] - 1 - fold) % FOLDS], **r} for r in rows]
        write_rows(folder / "split.csv", [{k: r[k] for k in r if k != "fold"} for r in split])
        arguments = ["--data-dir", data, "--split-file", folder / "split.csv", *flags]
        arguments += ["--output-dir", folder / f"fold-{fold + 1}"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("evaluation.plots.save", lambda figure, path: None)  # most of the time
            assert train.main([*TINY, "--epochs", "8", "-b", "8", *map(str, arguments)]) == 0
    (folder / "split.csv").unlink()


def run(folder: Path, *arguments: str | Path) -> int:
    return predict.main([str(folder), *map(str, arguments), "--device", "cpu"])
