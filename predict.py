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
import csv
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

import dataset
import decode
import runs
from arguments import Parser, print_any_name
from metrics import scan_means
from perceiver import Perceiver, choose_device

CHUNK = 2048  # files decoded at a time: memory stays the same for any number of files


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="predict.py", description="Tell left from right knees with a trained checkpoint."
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="best.pt of a run")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="image files and folders of them")
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


def list_files(paths: list[str]) -> Iterator[tuple[str, str]]:
    """Every image file in the order given, folders walked in order: (path, error or "")."""
    for path in paths:
        if os.path.isdir(path):
            found, problems = False, []
            for folder, names in dataset.walk(path, problems):
                for name in sorted(names, key=dataset.natural_order):
                    if dataset.is_image(name):
                        found = True
                        yield os.path.join(folder, name), ""
            yield from ((error.filename, error.strerror) for error in problems)
            if not (found or problems):
                yield path, "no images in this folder"
        else:
            yield path, "" if os.path.exists(path) else "no such file"


def scan_of(path: str) -> str:
    """The scan that a file belongs to: by its AKOA name, or else all files of one name and folder.

    OAI9014797_..._RIGHT.nii.gz_7.png -> OAI9014797_..._RIGHT.nii.gz; new/knee_07.png -> new/knee
    """
    if match := dataset.AKOA_NAME.fullmatch(Path(path).stem):
        return match["scan"]
    name = re.sub(r"[-_ ]*\d+$", "", Path(path).stem)
    return str(Path(os.path.dirname(path), name or "slices"))


def predict_files(
    model: Perceiver, files: list[tuple[str, str]], args: argparse.Namespace
) -> Iterator[tuple[str, float | None, str]]:
    """(path, probability of `right` or None, error) for each file, in order."""
    image_size = tuple(model.preprocessing["image_size"])
    bar = tqdm(total=len(files), unit="slice", leave=False, disable=None)
    for start in range(0, len(files), CHUNK):
        chunk = files[start : start + CHUNK]
        paths = [path for path, error in chunk if not error]
        images, unreadable = decode.load_images(paths, image_size, args.workers, progress=False)
        logits = model.predict_logits(images, args.batch_size)
        p_right = iter(logits.softmax(dim=1)[:, 1].tolist())
        errors = iter(unreadable.get(i, "") for i in range(len(paths)))
        for path, error in chunk:
            if not error:
                probability, error = next(p_right), next(errors)
            yield path, None if error else probability, error
        bar.update(len(chunk))
    bar.close()


def run(args: argparse.Namespace) -> int:
    if args.output and (args.output.suffix.lower() != ".csv" or not args.output.parent.is_dir()):
        raise ValueError(f"--output {args.output}: expected a .csv file in a folder that exists")
    model = Perceiver.from_checkpoint(args.checkpoint, choose_device(args.device))
    if "image_size" not in model.preprocessing:
        raise ValueError(f"{args.checkpoint}: does not say the image_size that it was trained on")
    files = list(list_files(args.paths))
    rows = list(predict_files(model, files, args))
    if args.output:
        write_rows(args.output, rows)

    read = [(path, p) for path, p, error in rows if not error]
    scans = [scan_of(path) for path, _ in read]
    by_scan = scan_means([p for _, p in read], scans)
    sizes = Counter(scans)
    width = max(map(len, by_scan), default=0)
    for scan, p in by_scan.items():
        label = dataset.SIDES[int(p > 0.5)]
        print(f"{scan:<{width}}  {label:<5}  p_right {p:.3f}  {sizes[scan]} slices")
    failed = [(path, error) for path, _, error in rows if error]
    for path, error in failed:
        print(f"predict.py: {path}: {error}", file=sys.stderr)
    return 1 if failed else 0


def write_rows(output: Path, rows: list[tuple[str, float | None, str]]) -> None:
    """Write the CSV `path,scan,label,p_left,p_right,error`."""
    with (
        runs.whole_file(output) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["path", "scan", "label", "p_left", "p_right", "error"])
        for path, p, error in rows:
            if error:
                writer.writerow([path, scan_of(path), "", "", "", error])
            else:
                label = dataset.SIDES[int(p > 0.5)]
                writer.writerow([path, scan_of(path), label, f"{1 - p:.6f}", f"{p:.6f}", ""])


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    print_any_name()
    signal.signal(signal.SIGINT, signal.default_int_handler)
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
