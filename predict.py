"""Tell left from right knees with a trained checkpoint.

    python predict.py runs/demo/best.pt knee_0.png knee_1.png
    python predict.py runs/demo/best.pt FOLDER --output predictions.csv

Prints a line for each scan (the mean of its slices' probabilities). The CSV has a row for each
slice: path,scan,label,p_left,p_right,error. A file that can't be read gets a row with the error,
and the others go on.

Exit codes: 0 all predicted, 1 some files could not be, 2 unusable arguments or checkpoint.
"""

import signal

if __name__ == "__main__":  # no traceback of a Ctrl-C while PyTorch is imported
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

import dataset
import decode
import runs
import volumes
from arguments import Parser
from metrics import scan_means
from perceiver import Perceiver, choose_device

CHUNK = 2048  # files decoded at a time: memory stays the same for any number of files


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="predict.py", description="Tell left from right knees with a trained checkpoint."
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="best.pt of a run")
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="images, volumes and folders of them"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="CSV", help="CSV with a row for each slice"
    )
    parser.add_argument(
        "-b", "--batch-size", type=int, default=64, metavar="N", help="(default: 64)"
    )
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU where there is one)")
    parser.add_argument(
        "-j", "--workers", type=int, metavar="N", help="threads that decode (default: all cores)"
    )
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        parser.error(f"--batch-size must be at least 1, got {args.batch_size}")
    return args


class Item(NamedTuple):
    """A slice to be predicted, or something that can't be (then `error` says why)."""

    path: str  # of an image; slice 7 of a volume is "p01.nii.gz#7"
    scan: str
    error: str = ""


def list_items(paths: list[str], plane: str) -> Iterator[Item]:
    """Every slice of the images, volumes and folders given, in their order; folders are walked."""
    for path in paths:
        if os.path.isdir(path):
            found, problems = False, []
            for folder, names in dataset.walk(path, problems):
                for name in sorted(filter(dataset.is_image, names), key=dataset.natural_order):
                    found = True
                    yield image_item(os.path.join(folder, name))
                others = [name for name in names if not dataset.is_image(name)]
                in_folder, unusable = volumes.find_volumes(folder, others, plane, path)
                for volume in in_folder:
                    found = True
                    yield from volume_items(volume)
                problems += [f"{source}: {problem}" for source, problem in unusable]
            for problem in problems:
                source, _, error = problem.rpartition(": ")
                yield Item(source, source, error)
            if not (found or problems):
                yield Item(path, path, "no images and no volumes in this folder")
        elif not os.path.lexists(path):
            yield Item(path, path, "no such file")
        elif volumes.is_volume_name(path) or volumes.is_dicom(path):
            try:
                yield from volume_items(volumes.describe(path, plane))
            except volumes.VolumeError as error:
                yield Item(path, path, str(error.args[-1]))
        else:
            yield image_item(path)


def image_item(path: str) -> Item:
    """A scan is all files of one AKOA scan, or else of one name and folder.

    OAI9014797_..._RIGHT.nii.gz_7.png -> OAI9014797_..._RIGHT.nii.gz; new/knee_07.png -> new/knee
    """
    if match := dataset.AKOA_NAME.fullmatch(Path(path).stem):
        return Item(path, match["scan"])
    name = re.sub(r"[-_ ]*\d+$", "", Path(path).stem) or "slices"
    return Item(path, str(Path(path).with_name(name)))


def volume_items(volume: volumes.Volume) -> Iterator[Item]:
    for index in range(volume.num_slices):
        yield Item(f"{volume.source}#{index}", volume.source)


def predict_items(
    model: Perceiver, items: list[Item], args: argparse.Namespace
) -> Iterator[tuple[Item, float | None]]:
    """Each item with its probability of `right`, in order; None (and an error) if unreadable."""
    image_size, plane = tuple(model.preprocessing["image_size"]), plane_of(model)
    bar = tqdm(total=len(items), unit="slice", leave=False, disable=None)
    for start in range(0, len(items), CHUNK):
        chunk = items[start : start + CHUNK]
        paths = [item.path for item in chunk if not item.error]
        images, unreadable = decode.load_images(
            paths, image_size, args.workers, plane, progress=False
        )
        p_right = iter(model.predict_logits(images, args.batch_size).softmax(dim=1)[:, 1].tolist())
        errors = iter(unreadable.get(i, "") for i in range(len(paths)))
        for item in chunk:
            if not item.error:
                probability, error = next(p_right), next(errors)
                item = item._replace(error=error)
            yield item, None if item.error else probability
        bar.update(len(chunk))
    bar.close()


def plane_of(model: Perceiver) -> str:
    """How the volumes that it was trained on were cut."""
    return model.preprocessing.get("plane", "stored")


def run(args: argparse.Namespace) -> int:
    if args.output and (args.output.suffix.lower() != ".csv" or not args.output.parent.is_dir()):
        raise ValueError(f"--output {args.output}: expected a .csv file in a folder that exists")
    model = Perceiver.from_checkpoint(args.checkpoint, choose_device(args.device))
    if "image_size" not in model.preprocessing:
        raise ValueError(f"{args.checkpoint}: does not say the image_size that it was trained on")
    rows = list(predict_items(model, list(list_items(args.paths, plane_of(model))), args))
    if args.output:
        write_rows(args.output, rows)

    read = [(item.scan, p) for item, p in rows if not item.error]
    by_scan = scan_means([p for _, p in read], [scan for scan, _ in read])
    sizes = Counter(scan for scan, _ in read)
    width = max(map(len, by_scan), default=0)
    for scan, p in by_scan.items():
        label = dataset.SIDES[int(p > 0.5)]
        print(f"{scan:<{width}}  {label:<5}  p_right {p:.3f}  {sizes[scan]} slices")
    failed = [item for item, _ in rows if item.error]
    for item in failed:
        print(f"predict.py: {item.path}: {item.error}", file=sys.stderr)
    return 1 if failed else 0


def write_rows(output: Path, rows: list[tuple[Item, float | None]]) -> None:
    """Write the CSV `path,scan,label,p_left,p_right,error`."""
    runs.write_csv(
        output,
        [
            {
                "path": item.path,
                "scan": item.scan,
                "label": "" if p is None else dataset.SIDES[int(p > 0.5)],
                "p_left": "" if p is None else f"{1 - p:.6f}",
                "p_right": "" if p is None else f"{p:.6f}",
                "error": item.error,
            }
            for item, p in rows
        ],
    )


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # names that are no text
    try:
        return run(args)
    except (ValueError, OSError) as error:
        print(f"predict.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("predict.py: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
