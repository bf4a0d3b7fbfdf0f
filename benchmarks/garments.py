"""Left or right on real photographs: an AKOA-shaped folder out of Fashion-MNIST, two references.

    python benchmarks/garments.py build data/bags --garment bags          # or boots; 14,000 PNGs
    python train.py --data-dir data/bags --image-size 28 28 --output-dir runs/bags
    python benchmarks/garments.py compare runs/bags       # beside two references, same split

The AKOA images are not public; these are. A garment as photographed is one side (right), the same
photograph mirrored the other (left). 40 photographs make a scan, and a patient has two scans,
RIGHT and the same 40 mirrored, LEFT: where a patient is kept in one subset, so is a photograph
with its mirror image. No photograph of boots or bags occurs twice in Fashion-MNIST. Boots all
point the same way and a linear model tells them apart without an error; bags are nearly
symmetric, and there a better model shows. Compare slices: a scan's mean over 40 unrelated
photographs is right long before its slices are.

The photographs come from the Debian package dataset-fashion-mnist or from a folder with the same
four IDX files (--source), gzipped or not. Exit codes: 0 done, 2 unusable arguments or data,
130 interrupted.
"""

import argparse
import gzip
import json
import math
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # to run as `python benchmarks/garments.py`

import dataset  # noqa: E402
import decode  # noqa: E402
import splits  # noqa: E402
from dataset import SIDES, SLICES_PER_SCAN, DataError  # noqa: E402
from metrics import scan_means, score  # noqa: E402
from splits import SUBSETS  # noqa: E402

SOURCE = Path("/usr/share/datasets/fashion-mnist")  # where the Debian package puts the files
GARMENTS = {"boots": 9, "bags": 8}  # Fashion-MNIST's class numbers
REGULARISATIONS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # the values of C to choose from
RESULTS = ROOT / "benchmarks" / "garments.json"  # those of the README


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


def load_photographs(source: Path, garment: str) -> np.ndarray:
    """All photographs of a garment, train then t10k, in file order: uint8 (n, height, width)."""
    photographs = []
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
        photographs.append(images[labels == GARMENTS[garment]])
    return np.concatenate(photographs)


def build(directory: Path, garment: str, source: Path = SOURCE) -> dict[str, int]:
    """Write the folder, whole or not at all, and return the counts of what it holds.

    The first file is OAI9000001_Boots_1_00000_FASHION_MNIST_RIGHT.nii.gz_0.png, mirrored it is
    ..._LEFT.nii.gz_0.png; 00000 is the place of the scan's first photograph among all boots.
    """
    directory = directory.resolve()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise DataError(f"{directory}: exists and is not an empty folder; name a new one")
    photographs = load_photographs(source, garment)
    patients, dropped = divmod(len(photographs), SLICES_PER_SCAN)
    if patients == 0:
        raise DataError(f"{source}: has {dropped} {garment}, a scan takes {SLICES_PER_SCAN}")

    directory.parent.mkdir(parents=True, exist_ok=True)
    # Half a folder looks like a whole one to whoever reads it, so it gets its name at the end.
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as parent:
        unfinished = Path(parent, directory.name)
        unfinished.mkdir()
        for patient in tqdm(range(patients), desc="writing", unit="patient", disable=None):
            first = patient * SLICES_PER_SCAN
            scan = f"OAI{9000001 + patient}_{garment.capitalize()}_1_{first:05d}_FASHION_MNIST"
            for number, image in enumerate(photographs[first : first + SLICES_PER_SCAN]):
                rgb = np.stack([image] * 3, axis=-1)  # AKOA's slices are grey, stored as RGB
                Image.fromarray(rgb).save(unfinished / f"{scan}_RIGHT.nii.gz_{number}.png")
                Image.fromarray(rgb[:, ::-1]).save(unfinished / f"{scan}_LEFT.nii.gz_{number}.png")
        if directory.exists():
            directory.rmdir()
        unfinished.rename(directory)
    slices = 2 * patients * SLICES_PER_SCAN
    return {"patients": patients, "scans": 2 * patients, "slices": slices, "dropped": dropped}


# ---- a run's folder and split.csv -> arrays -----------------------------------------------------


def load_split(directory: Path, split_csv: Path) -> dict[str, dict]:
    """Read the slices of a run's subsets, decoded as train.py does.

    Returns for `train`, `val` and `test`: `pixels` float32 (n, height, width) in 0..1, `labels`
    (n,) with 0 left and 1 right, and the lists `scans` and `patients`. Raises DataError if file and
    folder do not fit or a patient is in two subsets.
    """
    scans = dataset.group_scans(dataset.find_slices(directory)[0])
    subset_of = splits.read_split(split_csv, scans)
    splits.check_patients(scans, subset_of)
    width, height = Image.open(next(iter(scans.values()))[0].path).size
    subsets = {}
    for subset in SUBSETS:
        slices = [
            s for name, members in scans.items() if subset_of[name] == subset for s in members
        ]
        images, errors = decode.load_images([s.path for s in slices], (height, width))
        if errors:
            raise DataError(f"{slices[min(errors)].path}: {errors[min(errors)]}")
        subsets[subset] = {
            "pixels": images[:, 0].numpy().astype(np.float32) / 255,
            "labels": np.array([SIDES.index(s.side) for s in slices]),
            "scans": [s.scan for s in slices],
            "patients": [s.patient for s in slices],
        }
    return subsets


# ---- two classifiers: subsets -> probability of `right` for each test slice, and how it was found


def fit_logistic_regression(subsets: dict) -> tuple[np.ndarray, dict]:
    """Logistic regression on the pixels with the C of lowest cross-entropy on val."""
    from sklearn.linear_model import LogisticRegression  # a development dependency
    from sklearn.metrics import log_loss

    mean, scale = subsets["train"]["pixels"].mean(axis=0), subsets["train"]["pixels"].std()
    flat = {
        n: ((s["pixels"] - mean) / scale).reshape(len(s["labels"]), -1) for n, s in subsets.items()
    }
    models, val_losses = {}, {}
    for c in tqdm(REGULARISATIONS, desc="logistic regression", unit="C", disable=None):
        models[c] = LogisticRegression(C=c, max_iter=1000)
        models[c].fit(flat["train"], subsets["train"]["labels"])
        val_losses[c] = log_loss(subsets["val"]["labels"], models[c].predict_proba(flat["val"]))
    best = min(val_losses, key=val_losses.get)
    return models[best].predict_proba(flat["test"])[:, 1], {"c": best, "val_losses": val_losses}


def fit_cnn(subsets: dict, epochs: int = 12, seed: int = 0) -> tuple[np.ndarray, dict]:
    """Three convolutions, no augmentation; the epoch of lowest cross-entropy on val is tested."""
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pixels = {n: torch.from_numpy(s["pixels"])[:, None].to(device) for n, s in subsets.items()}
    labels = {n: torch.from_numpy(s["labels"]).to(device) for n, s in subsets.items()}
    layers = []
    for before, after in ((1, 32), (32, 64), (64, 128)):  # 28 x 28 -> 14 x 14 -> 7 x 7 -> 3 x 3
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.5), nn.LazyLinear(2)).to(device)
    model(pixels["train"][:2])  # tells the last layer its width
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    @torch.no_grad()
    def logits(subset: str) -> torch.Tensor:
        model.eval()
        return torch.cat([model(batch) for batch in pixels[subset].split(1024)])  # (n, 2)

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
    details = {"seed": seed, "device": device, "val_losses": val_losses}
    return logits("test").softmax(dim=1)[:, 1].cpu().numpy(), details


# ---- compare -------------------------------------------------------------------------------------


def score_test(test: dict, p_right: np.ndarray) -> dict:
    """Accuracy of slices and scans with intervals over patients, as train.py reports them."""
    by_scan = scan_means(p_right, test["scans"])
    first = [test["scans"].index(scan) for scan in by_scan]
    scan_labels, scan_patients = test["labels"][first], [test["patients"][i] for i in first]
    return {
        "slices": score(p_right, test["labels"], test["patients"]),
        "scans": score(list(by_scan.values()), scan_labels, scan_patients),
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
        subsets = load_split(directory, run / "split.csv")
        linear, linear_details = fit_logistic_regression(subsets)
        convolutional, cnn_details = fit_cnn(subsets)
        for model, result, details in (
            ("Perceiver", tested, {"command": made["command"]}),
            ("logistic regression", score_test(subsets["test"], linear), linear_details),
            ("small CNN", score_test(subsets["test"], convolutional), cnn_details),
        ):
            row = {"garment": directory.name, "model": model, "patients": tested["patients"]}
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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("build", help="write the folder")
    command.add_argument("directory", type=Path, metavar="DIR", help="a new or empty folder")
    command.add_argument("--garment", choices=GARMENTS, required=True)
    command.add_argument("--source", type=Path, default=SOURCE, help="default: %(default)s")
    command = commands.add_parser("compare", help="runs beside two references, as a table")
    command.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="finished run folder")
    command.add_argument(
        "--output", type=Path, default=Path("garments.json"), help="default: %(default)s"
    )
    args = parser.parse_args(arguments)
    try:
        if args.command == "build":
            counts = build(args.directory, args.garment, args.source)
            held = ", ".join(f"{counts[key]} {key}" for key in ("patients", "scans", "slices"))
            print(f"{args.directory}: {held}; {counts['dropped']} photographs left over, dropped")
        else:
            rows = compare(args.runs)
            args.output.write_text(json.dumps(rows, indent=2) + "\n")
            print(table(rows))
        return 0
    except (DataError, OSError, ModuleNotFoundError) as error:
        print(f"garments.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
