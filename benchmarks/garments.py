"""Real photographs: an AKOA-shaped folder, or ten classes, out of Fashion-MNIST; two references.

    python benchmarks/garments.py build data/bags --garment bags          # or boots; 14,000 PNGs
    python train.py --data-dir data/bags --image-size 28 28 --output-dir runs/bags
    python benchmarks/garments.py compare runs/bags       # beside two references, same split

    python benchmarks/garments.py classes data/fashion    # ten classes and a manifest; 70,000 PNGs
    python train.py --data-dir data/fashion/manifest.csv --image-size 28 28

The AKOA images are not public; these are. A garment as photographed is one side (right), the same
photograph mirrored the other (left). 40 photographs make a scan, and a patient has two scans,
RIGHT and the same 40 mirrored, LEFT: where a patient is kept in one subset, so is a photograph
with its mirror image. No photograph of boots or bags occurs twice in Fashion-MNIST. Boots all
point the same way and a linear model tells them apart without an error; bags are nearly
symmetric, and there a better model shows. Compare slices: a scan's mean over 40 unrelated
photographs is right long before its slices are.

Of the ten classes nothing is mirrored, and each photograph is a scan of one slice. What the
manifest calls patients are none: ten photographs of a class, one after the other in the files, so
that a split has something to keep whole.

The photographs come from the Debian package dataset-fashion-mnist or from a folder with the same
four IDX files (--source), gzipped or not. Exit codes: 0 done, 2 unusable arguments or data,
130 interrupted.
"""

import argparse
import gzip
import json
import math
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # to run as `python benchmarks/garments.py`

from common.csv_tables import write_csv  # noqa: E402
from common.files import whole_folder, write_json  # noqa: E402
from common.program import positive_int, run_program  # noqa: E402
from dataset import Dataset, list_labelled, split  # noqa: E402
from evaluation.metrics import score  # noqa: E402
from evaluation.predictions import Predictions  # noqa: E402
from scans.cache import decode_slices  # noqa: E402
from scans.images import open_image  # noqa: E402
from scans.slices import DataError  # noqa: E402

SOURCE = Path("/usr/share/datasets/fashion-mnist")  # where the Debian package puts the files
SLICES_PER_SCAN = 40  # as in AKOA
CLASSES = "T-shirt Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag Boot".split()
GARMENTS = {"boots": CLASSES.index("Boot"), "bags": CLASSES.index("Bag")}
PHOTOGRAPHS_PER_PATIENT = 10  # of the ten classes
REGULARISATIONS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # the values of C to choose from
RESULTS = ROOT / "benchmarks" / "garments.json"  # those of docs/results.md


# ---- build: IDX files -> folder ------------------------------------------------------------------


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes, gzipped if its name ends in .gz.

    The format: two zero bytes, the type (8: unsigned byte), the number of axes, the length of each
    axis as a big-endian 32-bit integer, the values. Raises DataError if the file is not whole.
    """
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: truncated or damaged ({error}); fetch it again") from None
    axes = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    start = 4 + 4 * axes
    if axes == 0 or len(content) < start:
        raise DataError(f"{path}: not an IDX file of unsigned bytes; fetch it again")
    shape = np.frombuffer(content, ">u4", count=axes, offset=4).tolist()
    if len(content) != start + math.prod(shape):
        raise DataError(
            f"{path}: truncated: {len(content)} bytes where its header says "
            f"{start + math.prod(shape)}; fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def load_photographs(source: Path) -> tuple[np.ndarray, np.ndarray]:
    """All photographs, train then t10k, uint8 (n, height, width), and numbers of classes (n,)."""
    parts = []
    for part in ("train", "t10k"):
        arrays = []
        for name in (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"):
            file = next((f for f in (source / f"{name}.gz", source / name) if f.is_file()), None)
            if file is None:
                raise DataError(
                    f"{source}: no {name}.gz; install the Debian package dataset-fashion-mnist, "
                    "or name the folder of its IDX files with --source"
                )
            arrays.append(read_idx(file))
        images, labels = arrays
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise DataError(
                f"{source}: {part} images {images.shape} and labels {labels.shape} do not match"
            )
        parts.append((images, labels))
    images, labels = zip(*parts, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def build(directory: Path, garment: str, source: Path = SOURCE) -> dict[str, int]:
    """Write the folder, whole or not at all, and return the counts of what it holds.

    The first file is OAI9000001_Boots_1_00000_FASHION_MNIST_RIGHT.nii.gz_0.png, mirrored it is
    ..._LEFT.nii.gz_0.png; 00000 is the place of the scan's first photograph among all boots.
    """
    images, labels = load_photographs(source)
    photographs = images[labels == GARMENTS[garment]]
    patients, dropped = divmod(len(photographs), SLICES_PER_SCAN)
    if patients == 0:
        raise DataError(f"{source}: has {dropped} {garment}, a scan takes {SLICES_PER_SCAN}")

    with whole_folder(directory) as unfinished:
        for patient in tqdm(range(patients), desc="writing", unit="patient", disable=None):
            first = patient * SLICES_PER_SCAN
            scan = f"OAI{9000001 + patient}_{garment.capitalize()}_1_{first:05d}_FASHION_MNIST"
            for number, image in enumerate(photographs[first : first + SLICES_PER_SCAN]):
                rgb = np.stack([image] * 3, axis=-1)  # AKOA's slices are grey, stored as RGB
                Image.fromarray(rgb).save(unfinished / f"{scan}_RIGHT.nii.gz_{number}.png")
                Image.fromarray(rgb[:, ::-1]).save(unfinished / f"{scan}_LEFT.nii.gz_{number}.png")
    slices = 2 * patients * SLICES_PER_SCAN
    return {"patients": patients, "scans": 2 * patients, "slices": slices, "dropped": dropped}


def build_classes(directory: Path, limit: int | None = None, source: Path = SOURCE) -> Counter:
    """Write the first `limit` photographs and manifest.csv, whole or not at all.

    Bag/00012.png is the 13th bag, of patient `Bag 0001`. Returns how many there are of each class.
    """
    images, labels = load_photographs(source)
    counts, rows = Counter(), []
    with whole_folder(directory) as unfinished:
        for name in CLASSES:
            (unfinished / name).mkdir()
        for i in tqdm(range(len(labels[:limit])), "writing", disable=None):
            label = CLASSES[labels[i]]
            path = f"{label}/{counts[label]:05d}.png"
            patient = f"{label} {counts[label] // PHOTOGRAPHS_PER_PATIENT:04d}"
            Image.fromarray(images[i]).save(unfinished / path)
            rows.append({"path": path, "label": label, "patient": patient, "scan": path[:-4]})
            counts[label] += 1
        write_csv(unfinished / "manifest.csv", rows)
    return counts


# ---- a run's folder and split.csv -> subsets, decoded as train.py does --------------------------


def load_split(
    directory: Path, split_csv: Path, classes: list[str] | None = None
) -> dict[str, Dataset]:
    """The train, val and test of a run, of the size that they are stored in.

    Raises DataError if file and folder do not fit or a patient is in two subsets.
    """
    listing = list_labelled(directory, classes)
    with open_image(listing.slices[0].source) as image:
        width, height = image.size
    decoded = decode_slices(listing.slices, (height, width))
    for i, text in decoded.errors.items():
        raise DataError(f"{listing.slices[i].name}: {text}")
    pixels, rows = torch.from_numpy(decoded.pixels), torch.arange(len(listing.slices))
    return split(Dataset(listing.slices, pixels, rows, listing.classes), split_file=split_csv)


def pixels_of(dataset: Dataset) -> torch.Tensor:
    """(n, 1, height, width) float32 from 0 to 1."""
    return dataset.batch(torch.arange(len(dataset))).float() / 255


# ---- two classifiers: subsets -> logits (n, classes) of each test slice, and how they were found -


def fit_logistic_regression(subsets: dict[str, Dataset]) -> tuple[torch.Tensor, dict]:
    """Logistic regression on the pixels with the C of lowest cross-entropy on val."""
    from sklearn.linear_model import LogisticRegression  # a development dependency
    from sklearn.metrics import log_loss

    labels = {name: subset.labels.numpy() for name, subset in subsets.items()}
    pixels = {name: pixels_of(subset)[:, 0].numpy() for name, subset in subsets.items()}
    mean, scale = pixels["train"].mean(axis=0), pixels["train"].std()
    flat = {n: ((images - mean) / scale).reshape(len(images), -1) for n, images in pixels.items()}
    models, val_losses = {}, {}
    for c in tqdm(REGULARISATIONS, desc="logistic regression", unit="C", disable=None):
        models[c] = LogisticRegression(C=c, max_iter=1000).fit(flat["train"], labels["train"])
        p, known = models[c].predict_proba(flat["val"]), models[c].classes_
        val_losses[c] = log_loss(labels["val"], p, labels=known)
    best = min(val_losses, key=val_losses.get)
    logits = torch.from_numpy(models[best].predict_log_proba(flat["test"])).float()
    return logits, {"c": best, "val_losses": val_losses}


def fit_cnn(
    subsets: dict[str, Dataset], epochs: int = 12, seed: int = 0
) -> tuple[torch.Tensor, dict]:
    """Three convolutions, no augmentation; the epoch of lowest cross-entropy on val is tested."""
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pixels = {name: pixels_of(subset).to(device) for name, subset in subsets.items()}
    labels = {name: subset.labels.to(device) for name, subset in subsets.items()}
    layers = []
    for before, after in ((1, 32), (32, 64), (64, 128)):  # 28 x 28 -> 14 x 14 -> 7 x 7 -> 3 x 3
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
    classes = len(subsets["train"].classes)
    model = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.5), nn.LazyLinear(classes)).to(device)
    model(pixels["train"][:2])  # tells the last layer its width
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    @torch.no_grad()
    def logits(subset: str) -> torch.Tensor:
        model.eval()
        return torch.cat([model(batch) for batch in pixels[subset].split(1024)])  # (n, classes)

    val_losses = []
    for _ in tqdm(range(epochs), desc=f"CNN on {device}", unit="epoch", disable=None):
        model.train()
        for batch in torch.randperm(len(labels["train"])).to(device).split(128):
            loss = F.cross_entropy(model(pixels["train"][batch]), labels["train"][batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        val_losses.append(F.cross_entropy(logits("val"), labels["val"]).item())
        if val_losses[-1] == min(val_losses):
            weights = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(weights)
    return logits("test").cpu(), {"seed": seed, "device": device, "val_losses": val_losses}


# ---- compare -------------------------------------------------------------------------------------


def score_test(test: Dataset, logits: torch.Tensor) -> dict:
    """Accuracy of slices and scans with intervals over patients, as train.py reports them."""
    predictions = Predictions(test, logits)
    return {
        "slices": score(predictions.of_slices(), test.classes),
        "scans": score(predictions.of_scans(), test.classes),
    }


def compare(runs: list[Path]) -> list[dict]:
    """For each run: its own test, and the references fitted and tested on the same split."""
    rows = []
    for run in runs:
        try:
            made = json.loads((run / "args.json").read_text())
            tested = json.loads((run / "test_metrics.json").read_text())
        except (OSError, ValueError) as error:
            raise DataError(f"{run}: not a finished run: {error}") from error
        directory = Path(made["arguments"]["data_dir"])
        subsets = load_split(directory, run / "split.csv", made["arguments"].get("classes"))
        linear, linear_details = fit_logistic_regression(subsets)
        convolutional, cnn_details = fit_cnn(subsets)
        for model, result, details in (
            ("Perceiver", tested, {"command": made["command"]}),
            ("logistic regression", score_test(subsets["test"], linear), linear_details),
            ("small CNN", score_test(subsets["test"], convolutional), cnn_details),
        ):
            garment = (directory if directory.is_dir() else directory.parent).name
            row = {"garment": garment, "model": model, "patients": tested["patients"]}
            rows.append({**row, "slices": result["slices"], "scans": result["scans"], **details})
    return rows


def table(rows: list[dict]) -> str:
    """The results in Markdown."""
    lines = [
        "| garment | model | slices right (95 % over patients) | scans right | test patients |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        interval = ""
        if row["slices"]["interval_95"]:
            interval = " ({:.1%} to {:.1%})".format(*row["slices"]["interval_95"])
        lines.append(
            f"| {row['garment']} | {row['model']} | {row['slices']['accuracy']:.2%}"
            f"{interval} of {row['slices']['count']:,} | "
            f"{row['scans']['correct']} of {row['scans']['count']} | {row['patients']} |"
        )
    return "\n".join(lines)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("build", help="write left and right")
    command.add_argument("directory", type=Path, metavar="DIR", help="a new or empty folder")
    command.add_argument("--garment", choices=GARMENTS, required=True)
    command.add_argument("--source", type=Path, default=SOURCE, help="default: %(default)s")
    command = commands.add_parser("classes", help="write ten classes and a manifest")
    command.add_argument("directory", type=Path, metavar="DIR", help="a new or empty folder")
    command.add_argument("--limit", type=positive_int, metavar="N", help="photographs, of all")
    command.add_argument("--source", type=Path, default=SOURCE, help="default: %(default)s")
    command = commands.add_parser("compare", help="runs beside two references, as a table")
    command.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="finished run folder")
    command.add_argument(
        "--output", type=Path, default=Path("garments.json"), help="default: %(default)s"
    )
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> int:
    if args.command == "build":
        counts = build(args.directory, args.garment, args.source)
        held = ", ".join(f"{counts[key]} {key}" for key in ("patients", "scans", "slices"))
        print(f"{args.directory}: {held}; {counts['dropped']} photographs left over, dropped")
    elif args.command == "classes":
        counts = build_classes(args.directory, args.limit, args.source)
        held = ", ".join(f"{counts[label]} {label}" for label in CLASSES)
        print(f"{args.directory}/manifest.csv: {counts.total():,} photographs: {held}")
    else:
        rows = compare(args.runs)
        write_json(args.output, rows)
        print(table(rows))
    return 0


def main(arguments: list[str] | None = None) -> int:
    return run_program(run, parse_args(arguments), "garments.py", (ModuleNotFoundError,))


if __name__ == "__main__":
    sys.exit(main())
