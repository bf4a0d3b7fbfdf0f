"""Tell left from right knees with a trained checkpoint, and find those that are labelled wrongly.

    python predict.py runs/demo/best.pt knee_0.png knee_1.png
    python predict.py runs/demo/best.pt FOLDER --output predictions
    python predict.py runs/demo/best.pt FOLDER --audit          # only what needs a person
    python predict.py runs/demo/best.pt FOLDER --report report.html     # to look at, and to tick
    find FOLDER -name '*.png' | python predict.py runs/demo/best.pt - --json
    python predict.py runs/folds FOLDER                         # the mean of all folds

Prints a line for each scan as soon as it is predicted: the calibrated probabilities (the mean of
its slices', unless the model reads whole scans), the label that its name, folder or header gives,
and a verdict: `ok`, `mismatch`, `unsure` (too close to call) or `unknown` (nothing to compare
with). --output is a folder for predictions.csv, a row for each slice or scan that is read, and
scans.csv, which have their names when they are whole. A file that can't be read gets a row with the
error, and the others go on. --report is one HTML file with a card for each scan, worst first, and
ticks that are saved as a table for --labels. Names are read as those that the checkpoint was
trained on, unless flags say otherwise.

Of a folder that `train.py --folds` made, all folds are asked, and their mean is taken. Scans and
patients that one of them was trained on are refused; --allow-seen has each of these judged by the
fold that did not see it.

Exit codes: 0 all predicted, 1 some files could not be, or a full disk, 2 unusable arguments or
checkpoint, no path that is there, or --audit had nothing to compare, 3 --audit found a mismatch,
130 interrupted.
"""

import gc
import signal

if __name__ == "__main__":  # while PyTorch is imported
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of a Ctrl-C
    gc.disable()  # nothing of it is garbage; run_program goes on with that

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path

import torch

from common import signals
from common.files import abridged, check_regular, made_folder, try_folder
from common.program import (
    OutOfMemory,
    Parser,
    UserError,
    check_matplotlib,
    positive_int,
    print_lines,
    printable,
    run_program,
)
from common.workers import choose_device
from evaluation.answers import (
    Answers,
    check_finite,
    joined,
    open_tables,
    predict_in_chunks,
    samples_at_a_time,
)
from evaluation.audit import VERDICTS, describe_scan, worst_first
from evaluation.cards import CardMaker
from evaluation.ensemble import Ensemble, holds_folds, is_folder_of_folds, open_folds
from evaluation.page import check_page, write_page
from evaluation.predictions import Predictions
from evaluation.seen import note_on_seen
from evaluation.trained import (
    describe_kept,
    naming_checkpoint,
    open_trained,
    options_as_trained,
    sample_size,
    scan_length,
)
from perceiver import CheckpointError, Perceiver
from scans.flags import add_naming_arguments
from scans.images import describe_depths
from scans.labelled import describe_contradictions
from scans.listing import list_slices
from scans.places import describe_lengths
from scans.series import check_one_sequence, check_series_used
from scans.slices import FAILURES, Kind, Listing, Problem, Slice

COLOURS = {"mismatch": "31", "unsure": "33"}  # on a terminal
MOST_PROBLEMS = 5  # lines of what can't be read; predictions.csv has them all


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="predict.py",
        description="Tell classes of slices apart, such as left and right knees, with a trained "
        "checkpoint.",
        epilog="Exits with 3 if --audit finds a mismatch, with 1 if files can't be read.",
    )
    add = parser.add_argument
    checkpoint = "best.pt of a run, or a folder of folds: their mean"
    add("checkpoint", type=Path, metavar="CHECKPOINT", help=checkpoint)
    add("paths", nargs="*", metavar="PATH", help="images, volumes, folders, manifests; - for stdin")
    add("-o", "--output", type=Path, metavar="DIR", help="for predictions.csv and scans.csv")
    add("--audit", action="store_true", help="print mismatches and unsure scans only, worst first")
    add("--json", action="store_true", help="print a JSON object for each scan")
    add("--report", type=Path, metavar="HTML", help="a page to look at: a card for each scan")
    add("--attention", type=Path, metavar="DIR", help="draw what is read: each slice, each scan")
    add("--export", type=Path, metavar="MODEL.onnx", help="write the model as ONNX, too")
    seen = "judge what folds were trained on by the fold that did not see it"
    add("--allow-seen", action="store_true", help=seen)
    add_naming_arguments(parser)
    add(
        "-b",
        "--batch-size",
        type=positive_int,
        default=64,
        metavar="N",
        help="slices, or whole scans, at a time, at most",
    )
    add("--device", help="cpu, cuda, ... (default: a GPU where there is one)")
    add(
        "-j",
        "--workers",
        type=positive_int,
        metavar="N",
        help="processes that read files (default: cores)",
    )
    args = parser.parse_intermixed_args(argv)  # paths may stand behind flags
    if not (args.paths or args.export):
        parser.error("name a CHECKPOINT and, after it, at least one PATH")
    return args


def run(args: argparse.Namespace) -> int:
    check_paths(args)
    device = choose_device(args.device)
    if is_folder_of_folds(args.checkpoint):
        model = open_folds(args.checkpoint, device)
        args.batch_size = model.samples_at_a_time(args.batch_size)
    else:
        model = open_trained(args.checkpoint, device)
        args.batch_size = samples_at_a_time(model, args.checkpoint, args.batch_size)
    files = [path.parent for path in (args.export, args.report) if path]
    for folder in filter(None, (args.output, args.attention, *files)):
        try_folder(folder)
    if args.export:
        export(model, args)
    return predict_paths(model, args) if args.paths else 0


def check_paths(args: argparse.Namespace) -> None:
    """Before anything slow: is there something to read, and nothing in the way of what is written?

    Raises UserError, and NotAFile for a checkpoint that is a pipe or a device.
    """
    if is_folder_of_folds(args.checkpoint):
        check_ensemble_can(args)
    elif args.checkpoint.is_dir():
        if not (args.checkpoint / "best.pt").exists():
            raise UserError(f"{args.checkpoint}: a folder without best.pt; name best.pt of a run")
        raise UserError(
            f"{args.checkpoint}: a folder; of a run, name {args.checkpoint / 'best.pt'}"
        )
    elif args.allow_seen:
        raise UserError(f"--allow-seen: {args.checkpoint} is no folder of folds")
    elif args.checkpoint.exists():
        check_regular(args.checkpoint)
    for name in ("output", "attention"):
        folder = getattr(args, name)
        if folder and folder.exists() and not folder.is_dir():
            raise UserError(f"--{name} {folder}: is no folder; name one")
    tables = ("predictions.csv", "scans.csv") if args.output else ()
    for path in filter(None, (args.export, *(args.output / name for name in tables))):
        if path.is_dir():
            raise UserError(f"{path}: a folder is in the way of the file to be written")
    if args.export and args.export.suffix != ".onnx":
        raise UserError(f"--export {args.export}: expected a name that ends in .onnx")
    if args.export and not args.export.parent.is_dir():
        raise UserError(f"--export {args.export}: no such folder: {args.export.parent}")
    if args.report:
        check_page(args.report)
    if args.report and not args.paths:
        raise UserError(f"--report {args.report}: of nothing; name at least one PATH")
    if args.paths and not any(path == "-" or os.path.exists(path) for path in args.paths):
        raise UserError(f"{abridged(args.paths)}: no such file or folder")
    if args.attention:
        check_matplotlib()
    for path in map(Path, args.paths):
        is_run = (path / "args.json").is_file() and (path / "last.pt").is_file()
        if is_run or holds_folds(path):
            raise UserError(
                f"{path}: the folder of a run, whose pictures are of no knee; name data"
            )


def check_ensemble_can(args: argparse.Namespace) -> None:
    """Raise UserError for what is of one model alone."""
    for name, what in (("attention", "draws what one model reads"), ("export", "writes one model")):
        if path := getattr(args, name):
            one = args.checkpoint / "fold-1" / "best.pt"
            raise UserError(f"--{name} {path}: {what}, not the mean of folds; name one: {one}")


def export(model: Perceiver, args: argparse.Namespace) -> None:
    from evaluation.export import export_onnx  # its packages are optional

    size = sample_size(model)
    darkest_and_brightest = torch.tensor([0, 255], dtype=torch.uint8).view(2, *[1] * len(size))
    images = darkest_and_brightest.expand(2, *size)
    check_finite(model.predict_logits(images, args.batch_size), args.checkpoint)
    export_onnx(model, args.export)
    print_lines(f"exported to {args.export}", to_error=True)


def predict_paths(model: Perceiver | Ensemble, args: argparse.Namespace) -> int:
    """Print and write what the model says of all paths. Returns the exit code."""
    classes = model.preprocessing["classes"]
    options = options_as_trained(model, args)
    if line := describe_kept(model, args):
        print_lines(f"note: {line}", to_error=True)
    if "unsure_below" not in model.calibration:
        text = "is not calibrated, as best.pt of a run that has ended is: it may be too sure"
        print_lines(f"note: {args.checkpoint} {text}", to_error=True)
    with naming_checkpoint(args):
        listing = list_slices(args.paths, classes, options)
    if not options.series:
        check_one_sequence(listing.slices)
    if not listing.of_kind(*FAILURES):
        check_series_used(listing.slices, args.series)
    if not (listing.slices or listing.of_kind(*FAILURES)):
        raise UserError("no path was given: standard input or the manifest is empty")
    if isinstance(model, Ensemble):
        notes = model.choose_judges(listing.slices, args.allow_seen)
    else:
        notes = [note_on_seen(args.checkpoint, listing.slices)]
    print_lines(*(f"note: {line}" for line in notes if line), to_error=True)

    done: list[Answers] = []
    scans: list[dict] = []
    lines = ScanLines(listing.slices, classes, args)
    count = len({s.scan for s in listing.slices})
    maker = CardMaker(count, args.workers) if args.report else None
    tables = open_tables(args.output, classes) if args.output else nullcontext(None)
    with signals.orderly(), tables as add_to_tables:
        try:
            for answers in predict_in_chunks(
                model,
                listing,
                args.checkpoint,
                args.batch_size,
                args.workers,
                maker.add if maker else None,
            ):
                done.append(answers)
                scans += answers.scans
                if not args.audit:
                    lines.print(answers.scans)
                if add_to_tables:
                    add_to_tables(answers)
        finally:  # also after an error, or a Ctrl-C: what is known is said
            if args.audit:
                lines.print(worst_first(scans, classes))

    problems = list(dict.fromkeys(p for answers in done for p in answers.problems.values()))
    print_lines(*describe_remarks(listing, done, scan_length(model)), to_error=True)
    print_lines(*describe_problems(problems, args.output), to_error=True)
    counts = Counter(row["verdict"] for row in scans)
    if args.audit and not args.json:
        text = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)
        unreadable = f"; {len(problems)} unreadable" if problems else ""
        lines.print_text(
            f"{len(scans)} {'scan' if len(scans) == 1 else 'scans'}: {text}{unreadable}"
        )
    if maker:
        figures = figures_of(scans, len(problems), model, args)
        write_page(args.report, "Scans, worst first", figures, maker.cards(), classes)
        print_lines(f"report: {args.report}", to_error=True)
    if args.attention:
        parts = [answers.predictions for answers in done]
        predictions = joined(parts, classes, model.calibration["temperature"])
        draw(model, predictions, [row["verdict"] for row in scans], args)
    if lines.failure:
        raise lines.failure
    if args.audit and not any(row["expected"] for row in scans):
        raise UserError(f"--audit: nothing could be compared, as {why_nothing_compared(scans)}")
    if args.audit and counts["mismatch"]:
        return 3
    return 1 if problems else 0


def draw(
    model: Perceiver, predictions: Predictions, verdicts: list[str], args: argparse.Namespace
) -> None:
    from evaluation.explain import draw_attention

    more = args.batch_size, args.workers
    with made_folder(args.attention):
        draw_attention(model, predictions, verdicts, args.attention, *more)


def figures_of(
    scans: list[dict], unreadable: int, model: Perceiver, args: argparse.Namespace
) -> list[tuple[str, str]]:
    """Name and value of what stands on top of the report's page."""
    compared = [row for row in scans if row["expected"]]
    right = sum(row["label"] == row["expected"] for row in compared)
    share = f"{right / len(compared):.1%}: {right:,} of " if compared else ""
    counts = Counter(row["verdict"] for row in scans)
    sure = model.calibration.get("unsure_below")
    return [
        ("scans", f"{len(scans):,}"),
        *((verdict, f"{counts[verdict]:,}") for verdict in VERDICTS if counts[verdict]),
        *([("unreadable", f"{unreadable:,}")] if unreadable else []),
        ("as expected", f"{share}{len(compared):,} compared"),
        ("unsure below", f"{sure:.3f}" if sure else "not calibrated"),
        ("data", abridged(args.paths)),
        *([("labels", abridged(args.labels))] if args.labels else []),
        ("checkpoint", f"{args.checkpoint}"),
        ("written", f"{datetime.now():%Y-%m-%d %H:%M}"),
    ]


# ---- lines ---------------------------------------------------------------------------------------


class ScanLines:
    """Prints a line for each scan.

    Where standard output fails (a full disk, `| head`), tables and pictures are still to be ended:
    `failure` is for later if there are some, else it is raised.
    """

    def __init__(self, slices: list[Slice], classes: list[str], args: argparse.Namespace):
        self.classes, self.as_json = classes, args.json
        self.width = max((len(printable(s.scan)) for s in slices), default=0)
        self.goes_on = bool(args.output or args.attention or args.report)
        self.failure: OSError | None = None

    def print(self, rows: Iterable[dict]) -> None:
        for row in rows:
            self.print_text(json.dumps(row, allow_nan=False) if self.as_json else self.line(row))

    def print_text(self, line: str) -> None:
        try:
            if not self.failure:
                print(line, flush=True)
        except OSError as error:
            if not self.goes_on:
                raise
            self.failure = error
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def line(self, row: dict) -> str:
        colour = COLOURS.get(row["verdict"], "") if sys.stdout.isatty() else ""
        return describe_scan(row, self.classes, self.width, colour)


def describe_remarks(listing: Listing, done: list[Answers], length: int | None) -> list[str]:
    """What was left out or guessed of what was found, and what nothing tells.

    length: of scans, where whole ones are read.
    """
    depths = sum((Counter(answers.depths) for answers in done), Counter())
    lines = [
        *map(str, listing.of_kind(Kind.REMARK)),
        *(line for problem in listing.of_kind(Kind.NAMELESS) for line in problem.lines),
        *describe_contradictions(listing.of_kind(Kind.CONTRADICTION)),
        *([describe_depths(depths)] if depths else []),
        *(describe_lengths(listing.slices, length) if length else []),
    ]
    return [f"note: {line}" for line in lines]


def describe_problems(problems: list[Problem], output: Path | None) -> list[str]:
    lines = [f"predict.py: {problem}" for problem in problems]
    if (more := len(lines) - MOST_PROBLEMS) > 0:
        where = f"{output / 'predictions.csv'} names" if output else "with --output a table names"
        lines[MOST_PROBLEMS:] = [f"predict.py: {more:,} more can't be read; {where} all of them"]
    return lines


def why_nothing_compared(scans: list[dict]) -> str:
    if not scans:
        return "nothing can be read"
    return (
        "nothing tells a label of what can be read: no name, folder or header; --name-pattern, "
        "--labels or a manifest can"
    )


def run_and_explain(args: argparse.Namespace) -> int:
    try:
        return run(args)
    except (torch.cuda.OutOfMemoryError, MemoryError) as error:
        fewer, gpu = max(1, args.batch_size // 2), "" if isinstance(error, MemoryError) else "GPU "
        raise OutOfMemory(f"out of {gpu}memory; try --batch-size {fewer}") from error


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with signals.listening("predict.py"):
        return run_program(run_and_explain, args, "predict.py", (CheckpointError,))


if __name__ == "__main__":
    sys.exit(main())
