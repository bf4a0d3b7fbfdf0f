"""Tell left from right knees with a trained checkpoint, and find those that are labelled wrongly.

    python predict.py runs/demo/best.pt knee_0.png knee_1.png
    python predict.py runs/demo/best.pt FOLDER --output predictions
    python predict.py runs/demo/best.pt FOLDER --audit          # only what needs a person
    find FOLDER -name '*.png' | python predict.py runs/demo/best.pt - --json

Prints a line for each scan: the mean of its slices' calibrated probabilities, the side that its
name, folder or header gives, and a verdict: `ok`, `mismatch`, `unsure` (too close to call) or
`unknown` (nothing to compare with). --output is a folder for predictions.csv (a row for each slice)
and scans.csv. A file that can't be read gets a row with the error, and the others go on.

Exit codes: 0 all predicted, 1 some files could not be, 2 unusable arguments or checkpoint,
3 --audit found a mismatch, 130 interrupted.
"""

import signal

if __name__ == "__main__":  # no traceback of a Ctrl-C while PyTorch is imported
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

import dataset
import decode
import plots
import runs
import volumes
from arguments import Parser, positive_int, run_program
from dataset import SIDES, Found, Slice
from perceiver import Perceiver, choose_device

CHUNK = 2048  # files decoded at a time: memory stays the same for any number of files
MIN_AGREEMENT = 0.75  # a scan whose slices agree less is unsure, however sure each is
COLUMNS = {
    "predictions": "path scan label p_left p_right error".split(),
    "scans": "scan patient label p_left p_right slices agreement expected verdict".split(),
}
COLOURS = {"mismatch": "31", "unsure": "33"}  # on a terminal


class Prediction(NamedTuple):
    slice: Slice  # its side is the expected one, "" where nothing tells it
    p_right: float | None  # None where it could not be read
    error: str = ""


# ---- arguments and paths -> slices ---------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="predict.py",
        description="Tell left from right knees with a trained checkpoint.",
        epilog="Exits with 3 if --audit finds a mismatch, with 1 if files can't be read.",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="best.pt of a run")
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="PATH",
        help="images, volumes, folders of them, a manifest CSV; - reads paths from standard input",
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="write predictions.csv and scans.csv there"
    )
    parser.add_argument(
        "--audit", action="store_true", help="print mismatches and unsure scans only, worst first"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object for each scan")
    parser.add_argument(
        "--attention", type=Path, metavar="DIR", help="draw what each slice's attention reads"
    )
    parser.add_argument(
        "--attention-montage", type=Path, metavar="DIR", help="draw that in one picture a scan"
    )
    parser.add_argument(
        "--export", type=Path, metavar="MODEL.onnx", help="write the model as ONNX, too"
    )
    parser.add_argument("--name-pattern", metavar="REGEX", help="what names tell, as in train.py")
    parser.add_argument(
        "-b", "--batch-size", type=positive_int, default=64, metavar="N", help="(default: 64)"
    )
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU where there is one)")
    parser.add_argument(
        "-j",
        "--workers",
        type=positive_int,
        metavar="N",
        help="threads that decode (default: all cores)",
    )
    args = parser.parse_intermixed_args(argv)  # paths may stand behind flags
    if not (args.paths or args.export):
        parser.error("name at least one PATH")
    return args


def list_slices(paths: list[str], plane: str, pattern: re.Pattern | None) -> Found:
    """Every slice of the images, volumes, manifests and folders given, in their order.

    Scans are named and grouped as train.py does it. Where several folders are given, names of scans
    begin with the folder's, so that patients p01 of two sites stay two.
    """
    everything, files = Found([], [], [], []), []
    for path in with_standard_input(paths):
        if os.path.isdir(path):
            found = dataset.read_folder(Path(path), pattern, plane)
            found.slices.sort(key=lambda s: dataset.natural_order(s.path))
            if not (found.slices or found.unreadable):
                found.unreadable.append((path, "no images and no volumes in this folder"))
        elif path.lower().endswith(".csv") and os.path.isfile(path):
            found = dataset.read_manifest(Path(path), plane)
        else:
            found = read_file(path, plane, pattern)
            files += found.slices
            found = found._replace(slices=[])
        prefix = path if len(paths) > 1 else ""
        named = name_scans(found.slices, prefix, guessed=not pattern and os.path.isdir(path))
        for whole, part in zip(everything, found._replace(slices=named), strict=True):
            whole.extend(part)
    everything.slices.extend(name_scans(files, "", guessed=False))
    once = {s.path: s for s in everything.slices}  # a slice given twice counts once
    return everything._replace(slices=list(once.values()))


def with_standard_input(paths: list[str]) -> Iterator[str]:
    for path in paths:
        if path == "-":
            names = sys.stdin.buffer.read().splitlines()
            yield from (os.fsdecode(name) for name in names if name)
        else:
            yield path


def read_file(path: str, plane: str, pattern: re.Pattern | None) -> Found:
    """One image or volume. Its side is that of its name, or of the folders of the path as given."""
    if volumes.is_volume_name(path) or volumes.is_dicom(path):
        root = Path(path).parent.parent
        try:
            volume = volumes.describe(path, plane, root)
        except volumes.VolumeError as error:
            return Found([], [(path, str(error.args[-1]))], [], [])
        parsed, problem = dataset.parse_volume(volume, root, pattern)
        slices = dataset.cut(volume, replace(parsed, scan=path))
        return Found(slices, [], [(path, problem)] if problem else [], [])
    name = Path(path)
    if pattern:
        parsed = dataset.parse_by_pattern(name, pattern)
    else:
        parsed = dataset.parse_name(Path(name.name)) or dataset.parse_name(name)
    parsed = parsed or dataset.sideless_slice(name)
    return Found([replace(parsed, path=path)], [], [], [])


def name_scans(slices: list[Slice], prefix: str, guessed: bool) -> list[Slice]:
    """The same slices with a scan each; slices whose names tell none are one scan a folder, unless
    they divide into scans of 40."""
    try:
        named = dataset.name_the_nameless([s for s in slices if s.side], guessed)[0]
    except dataset.DataError:
        named = [s if s.scan else replace(s, scan=str(Path(s.path).parent)) for s in slices]
    by_path = {s.path: s for s in named}
    slices = [by_path.get(s.path, s) for s in slices]
    return [
        replace(s, scan=os.path.join(prefix, s.scan))
        if prefix and not dataset.AKOA_NAME.fullmatch(f"{s.scan}_0")
        else s
        for s in slices
    ]


# ---- slices -> predictions -----------------------------------------------------------------------


def predict_slices(
    model: Perceiver, slices: list[Slice], args: argparse.Namespace
) -> Iterator[Prediction]:
    """A prediction for each slice, in order."""
    image_size, plane = tuple(model.preprocessing["image_size"]), plane_of(model)
    with tqdm(total=len(slices), unit="slice", leave=False, disable=None) as bar:
        for start in range(0, len(slices), CHUNK):
            chunk = slices[start : start + CHUNK]
            paths = [s.path for s in chunk]
            images, errors = decode.load_images(
                paths, image_size, args.workers, plane, progress=False
            )
            p_right = []
            for batch in images.split(args.batch_size):
                p_right += model.predict_proba(batch, args.batch_size)[:, 1].tolist()
                bar.update(len(batch))
            for i, s in enumerate(chunk):
                yield Prediction(s, None if i in errors else p_right[i], errors.get(i, ""))


def plane_of(model: Perceiver) -> str:
    """How the volumes that it was trained on were cut."""
    return model.preprocessing.get("plane", "stored")


def group_scans(predictions: list[Prediction]) -> list[list[Prediction]]:
    """The readable slices of each scan, in the order in which scans were met."""
    members: dict[tuple[str, str, str], list[Prediction]] = {}
    for prediction in predictions:
        if prediction.p_right is not None:
            s = prediction.slice
            members.setdefault((s.scan, s.patient, s.side), []).append(prediction)
    return list(members.values())


def summarise(members: list[Prediction], unsure_below: float) -> dict:
    """A scan's row of scans.csv.

    `agreement` is the share of its slices that say what the scan says.
    """
    values = [p for _, p, _ in members]
    p_right = sum(values) / len(values)
    label, expected = SIDES[int(p_right > 0.5)], members[0].slice.side
    agreement = sum((p > 0.5) == (p_right > 0.5) for p in values) / len(values)
    verdict = "ok" if label == expected else "mismatch" if expected else "unknown"
    if max(p_right, 1 - p_right) < unsure_below or agreement < MIN_AGREEMENT:
        verdict = "unsure"
    return {
        "scan": members[0].slice.scan,
        "patient": members[0].slice.patient,
        "label": label,
        "p_left": round(1 - p_right, 6),
        "p_right": round(p_right, 6),
        "slices": len(values),
        "agreement": round(agreement, 4),
        "expected": expected,
        "verdict": verdict,
    }


def worst_first(rows: list[dict]) -> list[dict]:
    """What needs a person: mismatches, surest first, then unsure scans, least sure first."""

    def confidence(row: dict) -> float:
        return max(row["p_left"], row["p_right"])

    mismatches = [row for row in rows if row["verdict"] == "mismatch"]
    unsure = [row for row in rows if row["verdict"] == "unsure"]
    return sorted(mismatches, key=confidence, reverse=True) + sorted(unsure, key=confidence)


# ---- files and lines -----------------------------------------------------------------------------


def write_tables(folder: Path, predictions: list[Prediction], scans: list[dict]) -> None:
    """Write predictions.csv and scans.csv."""
    rows = [
        {
            "path": s.path,
            "scan": s.scan,
            "label": "" if p is None else SIDES[int(p > 0.5)],
            "p_left": "" if p is None else f"{1 - p:.6f}",
            "p_right": "" if p is None else f"{p:.6f}",
            "error": error,
        }
        for s, p, error in predictions
    ]
    runs.write_csv(folder / "predictions.csv", rows, COLUMNS["predictions"])
    runs.write_csv(folder / "scans.csv", scans, COLUMNS["scans"])


def draw_pictures(
    model: Perceiver, scans: list[list[Prediction]], rows: list[dict], args: argparse.Namespace
) -> None:
    """Draw what the model's attention reads: a picture for each slice, or one for each scan."""
    size, plane = tuple(model.preprocessing["image_size"]), plane_of(model)
    bar = tqdm(total=len(rows), desc="drawing", unit="scan", leave=False, disable=None)
    for row, members in zip(rows, scans, strict=True):
        paths = [s.path for s, _, _ in members]
        images, _ = decode.load_images(paths, size, args.workers, plane, progress=False)
        maps = torch.cat(
            [
                model.attention_maps(model.normalise(batch.to(model.latents.device)), average=True)
                for batch in images.split(args.batch_size)
            ]
        ).numpy(force=True)  # (slices, depth, height, width)
        grey = images[:, 0].numpy()
        for (s, p, _), image, attention in zip(members, grey, maps, strict=True):
            if args.attention:
                with runs.whole_file(args.attention / f"{file_name(s.path)}.png") as temporary:
                    title = f"{s.path}\n{describe(p)}"
                    plots.draw_attention(title, image, attention[[0, -1]], temporary)
        if args.attention_montage:
            name = file_name(f"{row['scan']} {row['expected']}".strip())
            with runs.whole_file(args.attention_montage / f"{name}.png") as temporary:
                title = f"{row['scan']}\n{describe(row['p_right'])}, {row['verdict']}"
                labels = [f"{s.index}: {p:.2f}" for s, p, _ in members]
                plots.draw_montage(title, labels, grey, maps[:, -1], temporary)
        bar.update()
    bar.close()


def describe(p_right: float) -> str:
    return f"{SIDES[int(p_right > 0.5)]}, p_right {p_right:.3f}"


def file_name(path: str) -> str:
    """A name of its own for a picture: the end of a path, where file names can hold it."""
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
    return re.sub(r"[^A-Za-z0-9.-]+", "_", path).strip("._")[-150:] + f"_{digest}"


def print_scans(rows: list[dict], as_json: bool) -> None:
    width = max((len(row["scan"]) for row in rows), default=0)
    for row in rows:
        if as_json:
            print(json.dumps(row))
            continue
        verdict = row["verdict"]
        if sys.stdout.isatty() and verdict in COLOURS:
            verdict = f"\033[{COLOURS[verdict]}m{verdict}\033[0m"
        expected = f", expected {row['expected']}" if row["expected"] else ""
        slices = f"{row['slices']} slices" if row["slices"] > 1 else "1 slice"
        print(
            f"{row['scan']:<{width}}  {row['label']:<5}  p_right {row['p_right']:.3f}  "
            f"{slices} ({row['agreement']:.0%} agree)  {verdict}{expected}"
        )


def check_outputs(args: argparse.Namespace) -> None:
    """Before anything slow: can what was asked for be written?"""
    for name in ("output", "attention", "attention_montage"):
        folder = getattr(args, name)
        if folder and folder.exists() and not folder.is_dir():
            raise ValueError(f"--{name.replace('_', '-')} {folder}: is a file; name a folder")
    if args.export and args.export.suffix != ".onnx":
        raise ValueError(f"--export {args.export}: expected a name that ends in .onnx")


def run(args: argparse.Namespace) -> int:
    check_outputs(args)
    pattern = dataset.compile_pattern(args.name_pattern) if args.name_pattern else None
    model = Perceiver.from_checkpoint(args.checkpoint, choose_device(args.device))
    if "image_size" not in model.preprocessing:
        raise ValueError(f"{args.checkpoint}: does not say the image_size that it was trained on")
    if args.export:
        from export import export_onnx  # its packages are optional

        export_onnx(model, args.export)
        print(f"exported to {args.export}", file=sys.stderr)
    if not args.paths:
        return 0
    slices, unreadable, contradictions, notes = list_slices(args.paths, plane_of(model), pattern)
    if not (slices or unreadable):
        raise ValueError("no path was given: standard input or the manifest is empty")
    predictions = list(predict_slices(model, slices, args))
    for path, problem in unreadable:
        predictions.append(Prediction(Slice(path, "", "", path, 0), None, problem))
    scans = group_scans(predictions)
    rows = [summarise(members, model.calibration.get("unsure_below", 0.5)) for members in scans]
    for folder in filter(None, (args.output, args.attention, args.attention_montage)):
        folder.mkdir(parents=True, exist_ok=True)
    if args.output:
        write_tables(args.output, predictions, rows)
    print_scans(worst_first(rows) if args.audit else rows, args.json)
    for line in [*notes, *(f"{path}: {problem}" for path, problem in contradictions)]:
        print(f"note: {line}", file=sys.stderr)
    failed = [(decode.split_path(s.path)[0], error) for s, _, error in predictions if error]
    for path, error in dict.fromkeys(failed):
        print(f"predict.py: {path}: {error}", file=sys.stderr)
    verdicts = Counter(row["verdict"] for row in rows)
    if args.audit and not args.json:
        counts = ", ".join(f"{verdicts[v]} {v}" for v in ("ok", "mismatch", "unsure", "unknown"))
        print(f"{len(rows)} scans: {counts}" + (f"; {len(failed)} unreadable" if failed else ""))
    if args.attention or args.attention_montage:
        draw_pictures(model, scans, rows, args)
    if args.audit and verdicts["mismatch"]:
        return 3
    return 1 if failed else 0


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return run_program(run, args, "predict.py")
    except torch.cuda.OutOfMemoryError:
        fewer = max(1, args.batch_size // 2)
        print(f"predict.py: out of GPU memory; try --batch-size {fewer}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
