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
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

import dataset
import decode
import plots
import runs
import volumes
from arguments import Parser, positive_int, print_any_name
from dataset import SIDES
from perceiver import Perceiver, choose_device

CHUNK = 2048  # files decoded at a time: memory stays the same for any number of files
COLOURS = {"mismatch": "31", "unsure": "33"}  # on a terminal


class Item(NamedTuple):
    """A slice to be predicted, or something that can't be (then `error` says why)."""

    path: str  # of an image; slice 7 of a volume is "p01.nii.gz#7"
    scan: str
    patient: str = ""
    expected: str = ""  # the side that its name, folder or header gives
    error: str = ""


class Prediction(NamedTuple):
    item: Item
    p_right: float | None  # None where the item could not be read


# ---- arguments and paths -> items ----------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="predict.py", description="Tell left from right knees with a trained checkpoint."
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
    parser.add_argument(
        "--name-pattern", metavar="REGEX", help="what names tell, as in train.py (default: AKOA's)"
    )
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
    args = parser.parse_args(argv)
    if not (args.paths or args.export):
        parser.error("name at least one PATH")
    return args


def list_items(paths: list[str], plane: str, pattern: re.Pattern | None) -> Iterator[Item]:
    """Every slice of the images, volumes and folders given, in their order; folders are walked."""
    for path in paths:
        if path == "-":
            lines = (line.rstrip("\n") for line in sys.stdin)
            yield from list_items([line for line in lines if line], plane, pattern)
        elif os.path.isdir(path):
            yield from list_folder(path, plane, pattern)
        elif not os.path.lexists(path):
            yield Item(path, path, error="no such file")
        elif path.lower().endswith(".csv"):
            for s in dataset.read_manifest(Path(path), plane)[0]:
                yield Item(s.path, s.scan or s.path, s.patient, s.side)
        elif volumes.is_volume_name(path) or volumes.is_dicom(path):
            try:
                yield from volume_items(volumes.describe(path, plane), Path(path).parent, pattern)
            except volumes.VolumeError as error:
                yield Item(path, path, error=str(error.args[-1]))
        else:
            yield image_item(Path(path), Path(path).parent.parent, pattern)


def list_folder(root: str, plane: str, pattern: re.Pattern | None) -> Iterator[Item]:
    found, unreadable = False, []
    for folder, names in dataset.walk(root, unreadable):
        for name in sorted(filter(dataset.is_image, names), key=dataset.natural_order):
            found = True
            yield image_item(Path(folder, name), Path(root), pattern)
        others = [name for name in names if not dataset.is_image(name)]
        in_folder, unusable = volumes.find_volumes(folder, others, plane, root)
        for volume in in_folder:
            found = True
            yield from volume_items(volume, Path(root), pattern)
        for source, problem in unusable:
            found = True
            yield Item(source, source, error=problem)
    for error in unreadable:
        found = True
        yield Item(error.filename, error.filename, error=error.strerror)
    if not found:
        yield Item(root, root, error="no images and no volumes in this folder")


def image_item(path: Path, root: Path, pattern: re.Pattern | None) -> Item:
    """An image's scan, patient and expected side by its name, as train.py reads them.

    Where the name does not tell, a scan is all images of one name and folder:
    new/knee_07.png -> new/knee.
    """
    below = path.relative_to(root)
    try:
        told = dataset.parse_by_pattern(below, pattern) if pattern else dataset.parse_name(below)
    except dataset.DataError as error:
        return Item(str(path), str(path), error=str(error))
    if told and told.scan:
        return Item(str(path), told.scan, told.patient, told.side)
    name = re.sub(r"[-_ ]*\d+$", "", path.stem) or "slices"
    return Item(str(path), str(path.with_name(name)), expected=told.side if told else "")


def volume_items(volume: volumes.Volume, root: Path, pattern: re.Pattern | None) -> Iterator[Item]:
    told = dataset.parse_volume(volume, root, pattern)
    patient, side = (told.patient, told.side) if told else (volume.patient or "", "")
    for index in range(volume.num_slices):
        yield Item(f"{volume.source}#{index}", volume.source, patient, side)


# ---- items -> predictions ------------------------------------------------------------------------


def predict_items(
    model: Perceiver, items: list[Item], args: argparse.Namespace
) -> Iterator[Prediction]:
    """A prediction for each item, in order."""
    image_size, plane = tuple(model.preprocessing["image_size"]), plane_of(model)
    bar = tqdm(total=len(items), unit="slice", leave=False, disable=None)
    for start in range(0, len(items), CHUNK):
        chunk = items[start : start + CHUNK]
        paths = [item.path for item in chunk if not item.error]
        images, unreadable = decode.load_images(
            paths, image_size, args.workers, plane, progress=False
        )
        # Batch by batch, for the bar and for memory on a GPU.
        batches = images.split(args.batch_size)
        p_right = iter([p for batch in batches for p in model.predict_proba(batch)[:, 1].tolist()])
        at = 0
        for item in chunk:
            p = None
            if not item.error:
                p, error = next(p_right), unreadable.get(at, "")
                if error:
                    item, p = item._replace(error=error), None
                at += 1
            yield Prediction(item, p)
            bar.update()
    bar.close()


def plane_of(model: Perceiver) -> str:
    """How the volumes that it was trained on were cut."""
    return model.preprocessing.get("plane", "stored")


def summarise(predictions: list[Prediction], unsure_below: float) -> list[dict]:
    """A row for each scan, as in scans.csv, in the order in which scans were met.

    `agreement` is the share of the slices that say what the scan says.
    """
    members: dict[tuple[str, str, str], list[float]] = {}
    for item, p in predictions:
        if p is not None:
            members.setdefault((item.scan, item.patient, item.expected), []).append(p)
    rows = []
    for (scan, patient, expected), values in members.items():
        p_right = sum(values) / len(values)
        label = SIDES[int(p_right > 0.5)]
        agreeing = sum((p > 0.5) == (p_right > 0.5) for p in values)
        verdict = "ok" if label == expected else "mismatch" if expected else "unknown"
        rows.append(
            {
                "scan": scan,
                "patient": patient,
                "label": label,
                "p_left": round(1 - p_right, 6),
                "p_right": round(p_right, 6),
                "slices": len(values),
                "agreement": round(agreeing / len(values), 4),
                "expected": expected,
                "verdict": "unsure" if max(p_right, 1 - p_right) < unsure_below else verdict,
            }
        )
    return rows


def worst_first(rows: list[dict]) -> list[dict]:
    """What needs a person: mismatches, surest first, then unsure scans, least sure first."""
    sure = {row["scan"]: max(row["p_left"], row["p_right"]) for row in rows}
    mismatches = [row for row in rows if row["verdict"] == "mismatch"]
    unsure = [row for row in rows if row["verdict"] == "unsure"]
    return sorted(mismatches, key=lambda row: -sure[row["scan"]]) + sorted(
        unsure, key=lambda row: sure[row["scan"]]
    )


# ---- files and lines -----------------------------------------------------------------------------


def write_tables(folder: Path, predictions: list[Prediction], scans: list[dict]) -> None:
    """Write predictions.csv and scans.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    runs.write_csv(
        folder / "predictions.csv",
        [
            {
                "path": item.path,
                "scan": item.scan,
                "label": "" if p is None else SIDES[int(p > 0.5)],
                "p_left": "" if p is None else f"{1 - p:.6f}",
                "p_right": "" if p is None else f"{p:.6f}",
                "error": item.error,
            }
            for item, p in predictions
        ],
    )
    columns = "scan patient label p_left p_right slices agreement expected verdict".split()
    runs.write_csv(folder / "scans.csv", scans, columns)


def draw_pictures(
    model: Perceiver, predictions: list[Prediction], scans: list[dict], args: argparse.Namespace
) -> None:
    """Draw what the model's attention reads: a picture for each slice, or one for each scan."""
    members: dict[tuple[str, str, str], list[Prediction]] = {}
    for item, p in predictions:
        if p is not None:
            key = item.scan, item.patient, item.expected
            members.setdefault(key, []).append(Prediction(item, p))
    folders = [folder for folder in (args.attention, args.attention_montage) if folder]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    bar = tqdm(total=len(scans), desc="drawing", unit="scan", leave=False, disable=None)
    for row, found in zip(scans, members.values(), strict=True):
        paths = [item.path for item, _ in found]
        size, plane = tuple(model.preprocessing["image_size"]), plane_of(model)
        images, _ = decode.load_images(paths, size, args.workers, plane, progress=False)
        maps = torch.cat(
            [
                model.attention_maps(model.normalise(batch.to(model.latents.device)), average=True)
                for batch in images.split(args.batch_size)
            ]
        ).numpy(force=True)  # (slices, depth, height, width)
        grey = images[:, 0].numpy()
        for (item, p), image, attention in zip(found, grey, maps, strict=True):
            if args.attention:
                with runs.whole_file(args.attention / f"{file_name(item.path)}.png") as temporary:
                    title = f"{item.path}\n{describe(p)}"
                    plots.draw_attention(title, image, attention[[0, -1]], temporary)
        if args.attention_montage:
            name = file_name(row["scan"])
            with runs.whole_file(args.attention_montage / f"{name}.png") as temporary:
                title = f"{row['scan']}\n{describe(row['p_right'])}, {row['verdict']}"
                labels = [f"{p:.2f}" for _, p in found]
                plots.draw_montage(title, labels, grey, maps[:, -1], temporary)
        bar.update()
    bar.close()


def describe(p_right: float) -> str:
    return f"{SIDES[int(p_right > 0.5)]}, p_right {p_right:.3f}"


def file_name(path: str) -> str:
    """A name of its own for a picture: a path without what file names can't hold."""
    return re.sub(r"[^\w.-]+", "_", path).strip("._")[-180:]


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
        print(
            f"{row['scan']:<{width}}  {row['label']:<5}  p_right {row['p_right']:.3f}  "
            f"{row['slices']} slices ({row['agreement']:.0%} agree)  {verdict}{expected}"
        )


def run(args: argparse.Namespace) -> int:
    if args.output and args.output.exists() and not args.output.is_dir():
        raise ValueError(f"--output {args.output}: is a file; name a folder")
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
    items = list(list_items(args.paths, plane_of(model), pattern))
    predictions = list(predict_items(model, items, args))
    scans = summarise(predictions, model.calibration.get("unsure_below", 0.5))
    if args.output:
        write_tables(args.output, predictions, scans)
    if args.attention or args.attention_montage:
        draw_pictures(model, predictions, scans, args)
    print_scans(worst_first(scans) if args.audit else scans, args.json)
    failed = [item for item, _ in predictions if item.error]
    for item in failed:
        print(f"predict.py: {item.path}: {item.error}", file=sys.stderr)
    mismatches = sum(row["verdict"] == "mismatch" for row in scans)
    if args.audit and not args.json:
        verdicts = [row["verdict"] for row in scans]
        counts = [f"{verdicts.count(v)} {v}" for v in ("ok", "mismatch", "unsure", "unknown")]
        print(f"{len(scans)} scans: {', '.join(counts)}")
    if args.audit and mismatches:
        return 3
    return 1 if failed else 0


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    print_any_name()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return run(args)
    except torch.cuda.OutOfMemoryError:
        fewer = max(1, args.batch_size // 2)
        print(f"predict.py: out of GPU memory; try --batch-size {fewer}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"predict.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("predict.py: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
