"""Cross-validation: each fold of the patients is tested once, by a model that never saw them.

    code = cross_validate(args, dataset, pairs, train_fold)

RUN/folds.csv says which scan is in which fold. Each fold is an ordinary run in RUN/fold-1, ...,
that can be resumed by itself. What they say of the whole archive stands in RUN itself: see
evaluation/cross_validation.py. A second round of an audit is the same in RUN/round-2.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from common.files import abridged, locked, read_json
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
from scans.slices import DataError, by_scan
from scans.split_tables import Folds, read_folds, write_folds
from scans.splits import check_patients, describe_parts, folds_by_patient
from training import runfolder
from training.checkpoints import read_resumed
from training.epoch import NonFiniteError
from training.recipe import BEFORE
from training.saved import plain, result_arguments


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
        chosen = [args.fold] if args.fold else range(1, args.folds + 1)
        check_begun(args, folder, dataset, pairs, chosen)
        if args.resume and rank() == 0:
            with locked(folder, wait=True):
                write_arguments(args, folder, resume=True)
        for fold in chosen:
            train_one(args, folder, fold, train_fold)
        joined = broadcast(join(args, folder, dataset, pairs) if rank() == 0 else None)
        found = joined.mismatches
        if joined.missing or found == left_out or number == args.audit_rounds:
            break  # without leaving out others, the next round would be the same
        folder, left_out = args.output_dir / f"round-{number + 1}", found
        wrong = counted(len(found), "scan")
        say(f"round {number + 1}: without learning from {wrong}: {abridged(found)}")
    return say_audit(joined.scans, dataset.classes) if args.audit else 0


def try_fold(
    args: argparse.Namespace, dataset: Dataset, pairs: copies.Pairs, train_fold: Callable
) -> int:
    """--dry-run: one step of one fold, and nothing that stays."""
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as cleanup:
        folder = Path(broadcast(temporary))
        with first_process_first():
            folds = start(args, folder, dataset, pairs, [])
        say(*describe_folds(dataset, folds))
        train_fold(fold_arguments(args, folder, args.fold or 1), cleanup=cleanup)
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
    of_run = args.output_dir / runfolder.FOLDS
    given = of_run if of_run.exists() else args.split_file
    if given:
        folds = read_folds(given, scans)
    else:
        together = copies.patients_sharing_images(dataset.slices, pairs)
        folds = Folds(folds_by_patient(scans, args.folds, args.seed, together), frozenset())
    if folds.count != args.folds:
        raise UserError(f"--folds {args.folds}: {given} has {folds.count}")
    folds = folds._replace(left_out=folds.left_out.union(left_out))
    check_folds(dataset, pairs, folds, given)
    if table.exists() and read_folds(table, scans) != folds:
        raise UserError(
            f"{table}: of other folds, or without other scans, than the round before says now; "
            f"move {folder} away, and the round is made again"
        )
    if rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, wait=True):  # by a process that shares the folds
            if not table.exists():
                write_arguments(args, folder)
                write_folds(table, scans, folds)  # last: with it all can be resumed
            elif not args.resume:
                check_same_arguments(args, folder)
    return folds


def check_folds(dataset: Dataset, pairs: copies.Pairs, folds: Folds, given: Path | None) -> None:
    """Raise DataError for what would end the run of any fold, before the first is trained."""
    scans = by_scan(dataset.slices)
    named = {scan: f"fold {fold}" for scan, fold in folds.fold_of.items()}
    check_patients(scans, named)
    copies.check_copies(dataset.slices, pairs, named)
    for fold in range(1, folds.count + 1):
        subset_of = folds.subsets(fold)
        there = {slices[0].label for scan, slices in scans.items() if subset_of[scan] == "train"}
        for label in dataset.classes:
            if label not in there:
                advice = f"correct {given}" if given else "it takes more patients of it"
                text = f"no {label} scan is left to learn from where fold {fold} is tested"
                raise DataError(f"{text}: {advice}")


def write_arguments(args: argparse.Namespace, folder: Path, resume: bool = False) -> None:
    """Write args.json: what the folds are made with, and gone on with in the same way again."""
    arguments = {name: plain(value) for name, value in vars(args).items()}
    arguments |= {"fold": None, "resume": plain(folder) if resume else None}
    if folder != args.output_dir:
        arguments["audit_rounds"] = 1
    runfolder.write_record(folder, runfolder.describe_run(arguments))


def check_same_arguments(args: argparse.Namespace, folder: Path) -> None:
    """Raise UserError for others than those of a process that has begun since this one started."""
    begun = BEFORE | runfolder.read_record(folder)["arguments"]
    for name, value in result_arguments(args).items():
        if name != "split_file" and value != begun.get(name):
            text = f"{name} is {value}, and {begun.get(name)} in the folds that another process"
            raise UserError(f"{folder}: {text} has begun; choose another --output-dir")


def check_begun(
    args: argparse.Namespace,
    folder: Path,
    dataset: Dataset,
    pairs: copies.Pairs,
    chosen: Sequence[int],
) -> None:
    """Raise an error for a fold that can't be gone on with, or joined, before any is trained."""
    for fold in range(1, args.folds + 1):
        own = folder / f"fold-{fold}"
        if own.exists() and not own.is_dir():
            raise UserError(f"{own}: a file is in the way of the run of a fold; move it away")
        runfolder.check_ways(own)
        if is_done(own, args.epochs) or (fold in chosen and runfolder.is_taken(own)):
            read_begun(args, folder, fold, dataset, pairs)


class Begun(NamedTuple):
    subsets: dict[str, Dataset]
    rows: list[dict]  # of its epochs


def read_begun(
    args: argparse.Namespace, folder: Path, fold: int, dataset: Dataset, pairs: copies.Pairs
) -> Begun:
    """The run of a fold, checked to be of these arguments, this data and RUN/folds.csv.

    Raises UserError, or CheckpointError, with what is of another run or was changed since.
    """
    own = folder / f"fold-{fold}"
    if not (own / "last.pt").exists():
        raise UserError(f"{own}: holds no last.pt; move it away, and the fold is trained again")
    arguments = result_arguments(fold_arguments(args, folder, fold))
    resumed = read_resumed(own, arguments, folder / "args.json")
    if args.epochs < (done := resumed.progress.epoch - 1):
        raise UserError(
            f"--epochs {args.epochs}: {own} has done {done} already; add --epochs {done}"
        )
    subsets = split(dataset, split_file=folder / runfolder.FOLDS, fold=fold, pairs=pairs)
    runfolder.check_same_data(own, resumed.data, runfolder.describe_data(subsets))
    return Begun(subsets, resumed.progress.rows)


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
    figures = read_json(path, "test") if path.exists() else {}
    done = figures.get("epochs") if isinstance(figures, dict) else None
    return isinstance(done, int) and done >= epochs  # what says nothing of it is tested again


def join(args: argparse.Namespace, folder: Path, dataset: Dataset, pairs: copies.Pairs) -> Joined:
    """Write and say what the folds that are done say of the archive.

    One process at a time: what has seen fewer folds is not written over what has seen more.
    """
    with locked(folder, wait=True):
        tested = []
        for fold in range(1, args.folds + 1):
            if is_done(own := folder / f"fold-{fold}", args.epochs):
                begun = read_begun(args, folder, fold, dataset, pairs)
                predictions = read_tested(own, begun.subsets["test"])
                metrics = read_json(own / "test_metrics.json", "test")
                tested.append(TestedFold(fold, predictions, metrics, begun.rows))
        pooled = pool(tested)
        figures = pooled_figures(tested, pooled, args.folds)
        scans = write_cross_validation(folder, tested, pooled, figures)
        write_report(folder, tested, figures, scans)
    say(*describe_cross_validation(figures), f"run folder: {folder}, report.html to look at")
    for fold in figures["missing"]:
        command = f"python {typed(runfolder.program('train.py'))} --resume {typed(args.output_dir)}"
        say(f"missing: fold {fold}; for it: {command} --fold {fold}")
    if not figures["missing"]:
        say(f"next: python {typed(runfolder.program('predict.py'))} {typed(folder)} NEW_SCANS")
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
