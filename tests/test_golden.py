"""What the programs did when tests/golden/*.json were written: listings, split, weights, pixels.

`python tests/test_golden.py` writes these files anew (it needs SimpleITK); look at their diff
before it is committed. They hold whatever is done, right or wrong: what is right is said in the
other tests.
"""

import csv
import difflib
import json
import math
import os
import sys
import tempfile
import zlib
from functools import cache
from itertools import product, zip_longest
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pytest
import torch
from conftest import TINY, write_knees
from PIL import Image
from test_layouts import LAYOUTS, LINES, data_of, listed, write_images

import dataset
import predict
import train
from common.program import UserError

GOLDEN = Path(__file__).resolve().parent / "golden"
IMAGES = ("png", "16-bit png", "jpg", "bmp", "tif")
VOLUMES = ("npy", "nii", "nii.gz", "nrrd", "nhdr", "mha", "mhd", "dicom", "dicom.tar.gz")
TRAINING = ("split.csv", "val_loss", "weights")
PREDICTIONS = ("predictions.csv", "scans.csv")
NESTED = (dict, list, tuple)


# ---- what is done now, in the current folder, which is a new one ---------------------------------


def list_layout(name: str) -> dict[str, list | str]:
    """Line of docs/data.md -> its scans, or "refused"."""
    LAYOUTS[name].build()
    return {line: list_line(line) for line in LINES if data_of(line) == name}


def list_line(line: str) -> list[list] | str:
    """Scan, label, patient, number of slices, number of the first and of the last of them."""
    try:
        slices = listed(line)
    except UserError:
        return "refused"
    scans = {}
    for s in slices:
        scans.setdefault((s.scan, s.label, s.patient), []).append(s.number)
    return [[*scan, len(numbers), numbers[0], numbers[-1]] for scan, numbers in scans.items()]


def split(names: str) -> list[list[str]]:
    """Scan and subset, of each scan."""
    if names == "AKOA":
        write_knees(Path("data"), patients=20, slices=2)
    else:
        write_images("data/{side}/p{patient:02}/{slice}.png", patients=range(1, 21))
    subsets = dataset.split(dataset.load_dataset(dataset.list_labelled("data")))
    scans = {(s.scan, name) for name, subset in subsets.items() for s in subset.samples}
    return [[*scan] for scan in sorted(scans)]


def train_and_predict(part: str) -> list | dict:
    return trained_and_predicted()[part]


@cache
def trained_and_predicted() -> dict[str, list | dict]:
    """A model of these flags tells the sides apart, and its numbers hold on other processors.

    With instructions of older ones they differed by less than a twentieth of what is tolerated.
    Other flags may be far worse: a third epoch of batches of 4 gave quite other weights.
    """
    write_knees(Path("knees"))
    flags = "--data-dir knees --output-dir run --epochs 2 --batch-size 8 --seed 1"
    assert train.main([*TINY, *flags.split()]) == 0
    header, *epochs = table("run/metrics.csv")
    weights = torch.load("run/last.pt", weights_only=True)["model"]
    rename_scans()
    assert predict.main(["run/best.pt", "knees", "--output", "said", "--device", "cpu"]) == 0
    return {
        "split.csv": table("run/split.csv"),
        "val_loss": [float(row[header.index("val_loss")]) for row in epochs],
        "weights": {name: sums_of(values.double()) for name, values in weights.items()},
        "predictions.csv": table("said/predictions.csv"),
        "scans.csv": table("said/scans.csv"),
    }


def rename_scans() -> None:
    """A left scan gets the name of a right one: a mismatch. That one gets a name without a side."""
    for number in range(8):
        left, right = (f"knees/OAI9000007_BaseLine_1_0_{side}" for side in ("LEFT", "RIGHT"))
        Path(f"{right}.nii.gz_{number}.png").rename(f"knees/nameless_{number}.png")
        Path(f"{left}.nii.gz_{number}.png").rename(f"{right}.nii.gz_{number}.png")


def sums_of(values: torch.Tensor) -> dict[str, float]:
    """No hash: BLAS adds in other orders on other processors, so that the last digits differ."""
    sums = {"sum": values.sum(), "absolute": values.abs().sum(), "first": values.flatten()[0]}
    return {name: float(f"{value:.6g}") for name, value in sums.items()}


def table(path: str) -> list[list]:
    """The header and the rows; probabilities are numbers."""
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    shares = [i for i, name in enumerate(header) if name.startswith("p_")]
    for row, i in product(rows, shares):
        row[i] = round(float(row[i]), 3)
    return [header, *rows]


def decode(format: str) -> dict:
    """What the slices of a file are made. JPEGs may be decoded a little differently elsewhere."""
    Path("data").mkdir()
    (write_image if format in IMAGES else write_volume)(format)
    pixels = dataset.load_dataset(dataset.list_slices("data"), image_size=(6, 8)).pixels.numpy()
    found = {"shape": "x".join(map(str, pixels.shape)), "mean": round(float(pixels.mean()), 3)}
    return found if format == "jpg" else {**found, "crc32": zlib.crc32(pixels.tobytes())}


def write_image(format: str) -> None:
    rows, columns = np.indices((9, 12))
    pixels = (20 * rows + 7 * columns).astype(np.uint8)  # at most 237
    if format == "16-bit png":
        pixels = pixels.astype(np.uint16) * 17  # of 12 bits
    Image.fromarray(pixels).save(f"data/p01_LEFT_1.{format.split()[-1]}")


def write_volume(format: str) -> None:
    path, pixels = Path("data/p01_LEFT"), np.random.default_rng(0).integers(0, 4096, (6, 9, 12))
    if format == "npy":
        np.save(path, pixels)
        return
    files = pytest.importorskip("volume_files")
    if format.startswith("dicom"):
        files.write_dicom(path, pixels.astype(np.int16))
    else:
        files.write_volume(path.with_suffix(f".{format}"), pixels.astype(np.int16))
    if format == "dicom.tar.gz":
        files.pack(path)


# ---- and what was done then ----------------------------------------------------------------------

# File -> the function that says what is in it; of which keys; how near its numbers must be.
CONTENTS = {
    "layouts.json": (list_layout, LAYOUTS, {}),
    "split.json": (split, ("AKOA", "folders of patients"), {}),
    "training.json": (train_and_predict, TRAINING, {"rel_tol": 1e-3, "abs_tol": 1e-4}),
    "predictions.json": (train_and_predict, PREDICTIONS, {"abs_tol": 2e-3}),
    "formats.json": (decode, (*IMAGES, *VOLUMES), {"abs_tol": 1.0}),  # of a JPEG; others: crc32
}


def as_text(value: object, indent: str = "\n") -> str:
    """JSON with a line for each innermost list or object: a scan, a tensor, a file."""
    inner = value.values() if isinstance(value, dict) else value
    if not (isinstance(value, NESTED) and any(isinstance(x, NESTED) for x in inner)):
        return json.dumps(value, ensure_ascii=False)
    deeper, (start, end) = indent + "  ", "{}" if isinstance(value, dict) else "[]"
    lines = [as_text(x, deeper) for x in inner]
    if isinstance(value, dict):
        lines = [f"{as_text(key)}: {line}" for key, line in zip(value, lines, strict=True)]
    return f"{start}{deeper}{f',{deeper}'.join(lines)}{indent}{end}"


def snapped(now: object, then: object, **near: float) -> object:
    """What is now, but where a number is near enough to the one that was then: that one."""
    if isinstance(now, dict) and isinstance(then, dict):
        return {key: snapped(x, then.get(key), **near) for key, x in now.items()}
    if isinstance(now, list) and isinstance(then, list):
        return [snapped(x, y, **near) for x, y in zip_longest(now, then)][: len(now)]
    if isinstance(now, float) and isinstance(then, float):
        return then if math.isclose(now, then, **near) else now
    return now


def assert_same(file: str, then: object, now: object) -> None:
    """Fails with the lines of the file that are others now."""
    texts = as_text(then).splitlines(), as_text(now).splitlines()
    if lines := [*difflib.unified_diff(*texts, f"tests/golden/{file}", "now", lineterm="")]:
        pytest.fail("\n".join(lines), pytrace=False)


def golden(file: str) -> dict:
    return json.loads((GOLDEN / file).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("file", "key"), [(file, key) for file, (_, keys, _) in CONTENTS.items() for key in keys]
)
def test_what_is_done_is_what_was_done(file, key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    measure, _, near = CONTENTS[file]
    then = golden(file).get(key)
    assert_same(file, {key: then}, {key: snapped(measure(key), then, **near)})


@pytest.mark.parametrize("file", CONTENTS)
def test_keys_are_those_that_were(file):
    assert_same(file, [[key] for key in golden(file)], [[key] for key in CONTENTS[file][1]])


def write_golden(file: str) -> None:
    measure, keys, _ = CONTENTS[file]
    found = {}
    for key in keys:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            found[key] = measure(key)
            os.chdir(GOLDEN)
    (GOLDEN / file).write_text(as_text(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name in CONTENTS:
        write_golden(name)
