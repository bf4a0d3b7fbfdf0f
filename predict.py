"""Tell left from right knees with a trained checkpoint, and find those that are labelled wrongly.

    python predict.py runs/demo/best.pt knee_0.png knee_1.png
    python predict.py runs/demo/best.pt FOLDER --output predictions
    python predict.py runs/demo/best.pt FOLDER --audit          # only what needs a person
    find FOLDER -name '*.png' | python predict.py runs/demo/best.pt - --json

Prints a line for each scan: the mean of its slices' calibrated probabilities, the label that its
name, folder or header gives, and a verdict: `ok`, `mismatch`, `unsure` (too close to call) or
`unknown` (nothing to compare with). --output is a folder for predictions.csv (a row for each slice)
and scans.csv. A file that can't be read gets a row with the error, and the others go on.

Exit codes: 0 all predicted, 1 some files could not be, 2 unusable arguments or checkpoint, or
--audit had nothing to compare, 3 --audit found a mismatch, 130 interrupted.
"""

import gc
import signal

if __name__ == "__main__":  # while PyTorch is imported
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of a Ctrl-C
    gc.disable()  # nothing of it is garbage; run_program goes on with that

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from common import signals
from common.csv_tables import write_csv
from common.program import (
    OutOfMemory,
    Parser,
    UserError,
    positive_int,
    print_lines,
    printable,
    run_program,
)
from common.workers import choose_device
from dataset import Dataset, add_naming_arguments, list_slices
from dataset import options_of as dataset_options
from evaluation.predictions import Predictions, judge, predict, probability_columns, shown_class
from perceiver import CheckpointError, Perceiver
from scans.cache import decode_slices
from scans.images import describe_depths
from scans.labelled import describe_contradictions, describe_patients
from scans.series import check_one_sequence
from scans.slices import FAILURES, Kind, Listing, Options, Problem, Slice

CHUNK = 2048  # slices decoded at a time, in whole scans: memory stays the same for any number
VERDICTS = ("ok", "mismatch", "unsure", "unknown")
COLOURS = {"mismatch": "31", "unsure": "33"}  # on a terminal


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="predict.py",
        description="Tell classes of slices apart, such as left and right knees, with a trained "
        "checkpoint.",
        epilog="Exits with 3 if --audit finds a mismatch, with 1 if files can't be read.",
    )
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="best.pt of a run")
    add("paths", nargs="*", metavar="PATH", help="images, volumes, folders, manifests; - for stdin")
    add("-o", "--output", type=Path, metavar="DIR", help="for predictions.csv and scans.csv")
    add("--audit", action="store_true", help="print mismatches and unsure scans only, worst first")
    add("--json", action="store_true", help="print a JSON object for each scan")
    add("--attention", type=Path, metavar="DIR", help="draw what is read: each slice, each scan")
    add("--export", type=Path, metavar="MODEL.onnx", help="write the model as ONNX, too")
    add_naming_arguments(parser)
    add(
        "-b",
        "--batch-size",
        type=positive_int,
        default=64,
        metavar="N",
        help="slices at a time, at most",
    )
    add("--device", help="cpu, cuda, ... (default: a GPU where there is one)")
    add(
        "-j", "--workers", type=positive_int, metavar="N", help="threads that decode (default: all)"
    )
    args = parser.parse_intermixed_args(argv)  # paths may stand behind flags
    if not (args.paths or args.export):
        parser.error("name at least one PATH")
    return args


class Answers(NamedTuple):
    """What a model says of a listing."""

    predictions: Predictions  # of the slices that can be read; their pixels are not kept
    problems: dict[str, Problem]  # name of a slice or of what else can't be read -> why
    depths: Counter  # bits that 16-bit images hold -> so many scans


def predict_listing(model: Perceiver, listing: Listing, args: argparse.Namespace) -> Answers:
    """Decode and predict all slices, a chunk at a time."""
    size = tuple(model.preprocessing["image_size"])
    readable, logits, problems, depths = [], [], {}, Counter()
    with tqdm(total=len(listing.slices), unit="slice", leave=False, disable=None) as bar:
        for slices in chunks_of_scans(listing.slices):
            decoded = decode_slices(slices, size, args.workers, progress=False)
            pixels, errors = decoded.pixels, decoded.errors
            depths.update(decoded.depths)
            for i, text in errors.items():
                problem = Problem(slices[i].source, Kind.UNREADABLE, text)
                problems[slices[i].name] = problem
            whole = torch.tensor([i for i in range(len(slices)) if i not in errors]).long()
            dataset = Dataset(slices, torch.from_numpy(pixels), whole, listing.classes)
            logits.append(predict(model, dataset, args.batch_size, bar=bar).logits)
            readable += dataset.samples
    for problem in listing.of_kind(*FAILURES):
        problems[problem.path] = problem
    nothing = torch.empty(0, 1, *size, dtype=torch.uint8)
    dataset = Dataset(readable, nothing, torch.arange(len(readable)), listing.classes)
    logits = torch.cat([torch.empty(0, len(listing.classes)), *logits])
    predictions = Predictions(dataset, logits, model.calibration["temperature"])
    return Answers(predictions, problems, depths)


def chunks_of_scans(slices: list[Slice]) -> Iterator[list[Slice]]:
    """At most CHUNK slices at a time, but whole scans: one that is longer comes alone.

    The slices of a scan share the scale of their grey levels: decode_slices must see all of them.
    """
    scans: dict[str, list[Slice]] = {}  # in the order in which they are met
    for s in slices:
        scans.setdefault(s.scan, []).append(s)
    chunk: list[Slice] = []
    for scan in scans.values():
        if chunk and len(chunk) + len(scan) > CHUNK:
            yield chunk
            chunk = []
        chunk = chunk + scan
    if chunk:
        yield chunk


def options_of(model: Perceiver, args: argparse.Namespace) -> Options:
    """By the flags; volumes are read and sliced as those that it was trained on."""
    of_training = {
        key: model.preprocessing.get(key)
        for key in ("plane", "slices", "series", "echo")
        if getattr(args, key, None) is None
    }
    options = dataset_options(args)
    return replace(options, **{key: value for key, value in of_training.items() if value})


def worst_first(rows: list[dict], classes: list[str]) -> list[dict]:
    """What needs a person: mismatches, surest first, then unsure scans, least sure first."""

    def confidence(row: dict) -> float:
        return max(row[f"p_{name}"] for name in classes)

    mismatches = [row for row in rows if row["verdict"] == "mismatch"]
    unsure = [row for row in rows if row["verdict"] == "unsure"]
    return sorted(mismatches, key=confidence, reverse=True) + sorted(unsure, key=confidence)


# ---- files and lines -----------------------------------------------------------------------------


def write_tables(folder: Path, listing: Listing, answers: Answers, scans: list[dict]) -> None:
    """Write predictions.csv, with a row for each slice and each problem, and scans.csv."""
    classes, predictions = listing.classes, answers.predictions
    columns = ["path", "scan", "label", *(f"p_{name}" for name in classes), "error"]
    names = [s.name for s in predictions.samples]
    predicted = dict(zip(names, predictions.probabilities, strict=True))
    rows = []
    for s in listing.slices:
        row = {"path": s.name, "scan": s.scan}
        if s.name in predicted:
            p = predicted[s.name]
            row |= {"label": classes[p.argmax()], **probability_columns(p, classes)}
        else:
            row["error"] = answers.problems[s.name].text
        rows.append(row)
    for problem in listing.of_kind(*FAILURES):
        rows.append({"path": problem.path, "scan": problem.path, "error": problem.text})
    write_csv(folder / "predictions.csv", rows, columns)
    columns = ["scan", "patient", "label", *(f"p_{name}" for name in classes)]
    columns += ["slices", "agreement", "expected", "verdict"]
    write_csv(folder / "scans.csv", scans, columns)


def print_scans(rows: list[dict], classes: list[str], as_json: bool) -> None:
    names = [printable(row["scan"]) for row in rows]
    width = max(map(len, names), default=0)
    label_width = max(5, *map(len, classes))
    for row, name in zip(rows, names, strict=True):
        if as_json:
            print(json.dumps(row))
            continue
        verdict = row["verdict"]
        if sys.stdout.isatty() and verdict in COLOURS:
            verdict = f"\033[{COLOURS[verdict]}m{verdict}\033[0m"
        expected = f", expected {printable(row['expected'])}" if row["expected"] else ""
        slices = f"{row['slices']} slices" if row["slices"] > 1 else "1 slice"
        shown = f"p_{shown_class(row['label'], classes)}"
        print(
            f"{name:<{width}}  {printable(row['label']):<{label_width}}  "
            f"{printable(shown)} {row[shown]:.3f}  "
            f"{slices} ({row['agreement']:.0%} agree)  {verdict}{expected}"
        )


def check_outputs(args: argparse.Namespace) -> None:
    """Before anything slow: can what was asked for be written?"""
    for name in ("output", "attention"):
        folder = getattr(args, name)
        if folder and folder.exists() and not folder.is_dir():
            raise UserError(f"--{name} {folder}: is a file; name a folder")
    if args.export and args.export.suffix != ".onnx":
        raise UserError(f"--export {args.export}: expected a name that ends in .onnx")


def run(args: argparse.Namespace) -> int:
    check_outputs(args)
    model = Perceiver.from_checkpoint(args.checkpoint, choose_device(args.device))
    for name in ("image_size", "classes"):
        if name not in model.preprocessing:
            raise UserError(f"{args.checkpoint}: does not say the {name} that it was trained on")
    if args.export:
        from evaluation.export import export_onnx  # its packages are optional

        export_onnx(model, args.export)
        print_lines(f"exported to {args.export}", to_error=True)
    if not args.paths:
        return 0
    classes = model.preprocessing["classes"]
    options = options_of(model, args)
    listing = list_slices(args.paths, classes, options)
    if not options.series:
        check_one_sequence(listing.slices)
    if not (listing.slices or listing.of_kind(*FAILURES)):
        raise UserError("no path was given: standard input or the manifest is empty")
    answers = predict_listing(model, listing, args)

    unsure_below = model.calibration.get("unsure_below", 1 / len(classes))
    rows = [judge(scan, classes, unsure_below) for scan in answers.predictions.scans]
    for folder in filter(None, (args.output, args.attention)):
        folder.mkdir(parents=True, exist_ok=True)
    if args.output:
        write_tables(args.output, listing, answers, rows)
    print_scans(worst_first(rows, classes) if args.audit else rows, classes, args.json)
    labelled = [s for s in listing.slices if s.label]
    for problem in listing.of_kind(Kind.REMARK, Kind.NAMELESS):
        first, *more = problem.lines
        print_lines(f"note: {first}", *more, to_error=True)
    for line in [
        *describe_contradictions(listing.of_kind(Kind.CONTRADICTION)),
        *describe_patients(labelled, listing),
        *([describe_depths(answers.depths)] if answers.depths else []),
    ]:
        print_lines(f"note: {line}", to_error=True)
    for problem in dict.fromkeys(answers.problems.values()):
        print_lines(f"predict.py: {problem}", to_error=True)
    counts, failed = Counter(row["verdict"] for row in rows), len(answers.problems)
    if args.audit and not args.json:
        text = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)
        print_lines(f"{len(rows)} scans: {text}" + (f"; {failed} unreadable" if failed else ""))
    if args.attention:
        from evaluation.explain import draw_attention  # matplotlib, which takes a while to start

        verdicts = [row["verdict"] for row in rows]
        draw_attention(
            model, answers.predictions, verdicts, args.attention, args.batch_size, args.workers
        )
    if args.audit and rows and not labelled:
        raise UserError(
            "--audit: nothing could be compared, as nothing tells a label: no name, folder or "
            "header; --name-pattern, --labels or a manifest can"
        )
    if args.audit and counts["mismatch"]:
        return 3
    return 1 if failed else 0


def run_and_explain(args: argparse.Namespace) -> int:
    try:
        return run(args)
    except torch.cuda.OutOfMemoryError as error:
        fewer = max(1, args.batch_size // 2)
        raise OutOfMemory(f"out of GPU memory; try --batch-size {fewer}") from error


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with signals.listening("predict.py"):
        return run_program(run_and_explain, args, "predict.py", (CheckpointError,))


if __name__ == "__main__":
    sys.exit(main())
