"""Cross-validation: each fold of the patients is tested once, by a model that never saw them.

    code = cross_validate(args, dataset, pairs, train_fold)

RUN/folds.csv says which scan is in which fold. Each fold is an ordinary run in RUN/fold-1, ...,
that can be resumed by itself. What they say of the whole archive stands in RUN itself: see
evaluation/cross_validation.py. A second round of an audit is the same in RUN/round-2.
"""

import argparse
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from common.csv_tables import read_csv
from common.files import abridged, read_json, write_json
from common.program import UserError, counted, typed
from common.workers import broadcast, first_process_first, rank, say
from dataset import Dataset, split
from evaluation.audit import VERDICTS, describe_scan, worst_first
from evaluation.cards import CardMaker
from evaluation.cross_validation import (
    TestedFold,
    describe_cross_validation,
    pool,
    pooled_figures,
    write_cross_validation,
)
from evaluation.page import write_page
from evaluation.report import describe_accuracy, read_tested, units_of
from perceiver import Perceiver
from scans import copies
from scans.slices import by_scan
from scans.split_tables import Folds, read_folds, write_folds
from scans.splits import check_patients, describe_parts, folds_by_patient
from training import runfolder
from training.epoch import NonFiniteError
from training.saved import plain


class Joined(NamedTuple):
    """What the folds that are done say of the archive."""

    scans: list[dict]  # rows of scans.csv
    missing: list[int]  # folds that are not done

    @property
    def mismatches(self) -> list[str]:
        return [row["scan"] for row in self.scans if row["verdict"] == "mismatch"]


def cross_validate(
    args: argparse.Namespace, dataset: Dataset, pairs: copies.Pairs, train_fold: Callable
) -> int:
    """Train and test all folds that are not done, or one of them; audit what they say.

    train_fold(args, cleanup=ExitStack) makes an ordinary run. A later round of an audit does not
    learn from what the one before found wrong. Returns the exit code.
    """
    if args.dry_run:
        return try_fold(args, dataset, pairs, train_fold)
    folder, left_out = args.output_dir, []
    for number in range(1, args.audit_rounds + 1):
        with first_process_first():
            folds = start(args, folder, dataset, pairs, left_out)
        runfolder.set_hint(args)
        say(*describe_folds(dataset, folds))
        for fold in [args.fold] if args.fold else range(1, args.folds + 1):
            train_one(args, folder, fold, train_fold)
        joined = broadcast(join(args, folder, dataset, pairs) if rank() == 0 else None)
        left_out = joined.mismatches
        if joined.missing or not left_out or number == args.audit_rounds:
            break
        folder = args.output_dir / f"round-{number + 1}"
        wrong = counted(len(left_out), "scan")
        say(f"round {number + 1}: without learning from {wrong}: {abridged(left_out)}")
    return say_audit(joined.scans, dataset.classes) if args.audit else 0


def try_fold(
    args: argparse.Namespace, dataset: Dataset, pairs: copies.Pairs, train_fold: Callable
) -> int:
    """--dry-run: one step of one fold, and nothing that stays."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as cleanup:
        say(*describe_folds(dataset, start(args, Path(folder), dataset, pairs, [])))
        train_fold(fold_arguments(args, Path(folder), args.fold or 1), cleanup=cleanup)
    return 0


def start(
    args: argparse.Namespace,
    folder: Path,
    dataset: Dataset,
    pairs: copies.Pairs,
    left_out: list[str],
) -> Folds:
    """The folds that were made before, or those of --split-file, or new ones; written."""
    scans, table = by_scan(dataset.slices), folder / runfolder.FOLDS
    made = [path for path in (table, args.output_dir / runfolder.FOLDS) if path.exists()]
    given = made[0] if made else args.split_file
    if given:
        folds = read_folds(given, scans)
        check_patients(scans, {scan: f"fold {fold}" for scan, fold in folds.fold_of.items()})
    else:
        together = copies.patients_sharing_images(dataset.slices, pairs)
        folds = Folds(folds_by_patient(scans, args.folds, args.seed, together), frozenset())
    if folds.count != args.folds:
        raise UserError(f"--folds {args.folds}: {given} has {folds.count}")
    if rank() == 0 and given != table:
        folder.mkdir(parents=True, exist_ok=True)
        folds = folds._replace(left_out=folds.left_out.union(left_out))
        arguments = {name: plain(value) for name, value in vars(args).items()}
        if folder != args.output_dir:
            arguments["audit_rounds"] = 1
        write_json(folder / "args.json", runfolder.describe_run(arguments))
        write_folds(table, scans, folds)  # last: with it the cross-validation can be resumed
    return folds


def train_one(args: argparse.Namespace, folder: Path, fold: int, train_fold: Callable) -> None:
    """Make the run of a fold, or go on with it, unless it is done."""
    own = folder / f"fold-{fold}"
    if broadcast(is_done(own, args.epochs)):
        say(f"fold {fold} of {args.folds}: done before")
        return
    say(f"fold {fold} of {args.folds}: {own}")
    with ExitStack() as cleanup:
        try:
            train_fold(fold_arguments(args, folder, fold), cleanup=cleanup)
        except NonFiniteError as error:
            runfolder.name_failed_batch(own, error)
            raise


def fold_arguments(args: argparse.Namespace, folder: Path, fold: int) -> argparse.Namespace:
    """Those of an ordinary run, which tests this fold."""
    own = folder / f"fold-{fold}"
    changed = {"folds": None, "fold": fold, "split_file": folder / runfolder.FOLDS, "resume": None}
    changed |= {"audit": False, "audit_rounds": 1, "output_dir": own}
    if (own / "last.pt").exists():
        begun = runfolder.read_record(own)["arguments"]
        changed |= {"resume": own, "mirrored": begun.get("mirrored")}  # what the run found itself
    return argparse.Namespace(**{**vars(args), **changed})


def is_done(folder: Path, epochs: int) -> bool:
    """Whether so many epochs are trained and tested. The figures of a test are written last."""
    path = folder / "test_metrics.json"
    return path.exists() and read_json(path, "test").get("epochs", 0) >= epochs


def join(args: argparse.Namespace, folder: Path, dataset: Dataset, pairs: copies.Pairs) -> Joined:
    """Write and say what the folds that are done say of the archive."""
    tested = []
    for fold in range(1, args.folds + 1):
        if is_done(own := folder / f"fold-{fold}", args.epochs):
            subset = split(dataset, split_file=own / "split.csv", pairs=pairs)["test"]
            rows = read_csv(own / "metrics.csv", "table of epochs").rows
            rows = [{name: float(cell) for name, cell in row.cells.items()} for row in rows]
            metrics = read_json(own / "test_metrics.json", "test")
            tested.append(TestedFold(fold, read_tested(own, subset), metrics, rows))
    pooled = pool(tested)
    figures = pooled_figures(tested, pooled, args.folds)
    scans = write_cross_validation(folder, tested, pooled, figures)
    write_report(folder, tested, figures, scans)
    say(*describe_cross_validation(figures), f"run folder: {folder}, report.html to look at")
    for fold in figures["missing"]:
        command = f"python {typed(runfolder.program('train.py'))} --resume {typed(args.output_dir)}"
        say(f"missing: fold {fold}; for it: {command} --fold {fold}")
    return Joined(scans, figures["missing"])


def write_report(folder: Path, tested: list[TestedFold], figures: dict, scans: list[dict]) -> None:
    """Write report.html: a card for each scan, with what the model that tested it reads."""
    maker, row_of = CardMaker(len(scans)), {row["scan"]: row for row in scans}
    for fold in tested:
        model = Perceiver.from_checkpoint(folder / f"fold-{fold.number}" / "best.pt")
        judged = [row_of[scan.name] for scan in fold.predictions.scans]
        maker.add(model, fold.predictions, judged)
    counts = count_verdicts(scans)
    shown = [(verdict, f"{count:,}") for verdict, count in counts.items() if count]
    shown += [(unit, describe_accuracy(figures, unit)) for unit in units_of(figures)]
    shown.append(("run", f"{folder}, {len(tested)} of {figures['folds']} folds"))
    classes = tested[0].predictions.classes
    write_page(folder / "report.html", "Scans, worst first", shown, maker.cards(), classes)


# ---- lines for a person --------------------------------------------------------------------------


def say_audit(scans: list[dict], classes: list[str]) -> int:
    """What needs a person, worst first, and counts. Returns 3 if there is a mismatch."""
    worst = worst_first(scans, classes)
    width = max((len(row["scan"]) for row in worst), default=0)
    say(*(describe_scan(row, classes, width) for row in worst))
    counts = count_verdicts(scans)
    text = ", ".join(f"{count} {name}" for name, count in counts.items() if name != "unknown")
    say(f"{counted(len(scans), 'scan')}: {text}")
    return 3 if counts["mismatch"] else 0


def count_verdicts(scans: list[dict]) -> dict[str, int]:
    return {name: sum(row["verdict"] == name for row in scans) for name in VERDICTS}


def describe_folds(dataset: Dataset, folds: Folds) -> list[str]:
    """A table for a person, and how many scans are never learned from."""
    scans, numbers = by_scan(dataset.slices), range(1, folds.count + 1)
    lines = describe_parts(scans, folds.fold_of, numbers, "fold", dataset.classes)
    if folds.left_out:
        count = counted(len(folds.left_out), "scan")
        lines.append(f"{count} in no training and no validation subset")
    return lines
