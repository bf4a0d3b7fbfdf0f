"""Real photographs: an AKOA-shaped folder, or ten classes, out of Fashion-MNIST.

    python benchmarks/garments.py build data/bags --garment bags --shift 2       # 14,000 PNGs
    python benchmarks/garments.py classes data/fashion    # ten classes and a manifest; 70,000 PNGs

docs/results.md has the flags of train.py: its default model is far larger than these need.

The AKOA images are not public; these are. A garment as photographed is one side (right), the same
photograph mirrored the other (left). 40 photographs make a scan, and a patient has two scans, RIGHT
and the same 40 mirrored, LEFT: where a patient is kept in one subset, so is a photograph with its
mirror image. None of these photographs is in Fashion-MNIST twice. split.csv is one split of the
patients, the same for every seed, so that what is tested is never used to choose. Boots all point
the same way and a linear model tells them apart without an error; bags and dresses are nearly
symmetric, and there a better model shows. Compare slices: a scan's mean over 40 unrelated
photographs is right long before its slices are.

Fashion-MNIST centres each garment; where its width is odd, the pixel that is left over is always
on the same side, and tells the side without the garment. With --shift N each photograph is moved,
before it is mirrored, so that the middle of the garment is equally often so far left as right of
the middle of the image, by up to N + 1/2 columns; what leaves the image is lost.

With --permute the pixels of each image, in the end, change their places, in all images alike.

Of the ten classes nothing is mirrored, and each photograph is a scan of one slice. split.csv keeps
the package's own test photographs, and of the others each twelfth ten for validation. A few
photographs are in Fashion-MNIST twice: where the copies would be in two subsets, it is left out of
training, or else of validation. What the manifest calls patients are none: ten photographs of a
class, one after the other in the files, so that a split has something to keep whole.

The photographs come from the Debian package dataset-fashion-mnist or from a folder with the same
four IDX files (--source), gzipped or not. Exit codes: 0 done, 2 unusable arguments or data,
130 interrupted.
"""

import argparse
import gzip
import math
import sys
import zlib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # to run as `python benchmarks/garments.py`

from common.files import whole_folder  # noqa: E402
from common.program import number_of, positive_int, run_program  # noqa: E402
from common.tables import write_csv  # noqa: E402
from dataset import list_slices  # noqa: E402
from scans.copies import find_copies  # noqa: E402
from scans.slices import DataError, by_scan  # noqa: E402
from scans.split_tables import write_split  # noqa: E402
from scans.splits import SUBSETS, split_by_patient  # noqa: E402

SOURCE = Path("/usr/share/datasets/fashion-mnist")  # where the Debian package puts the files
SLICES_PER_SCAN = 40  # as in AKOA
CLASSES = "T-shirt Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag Boot".split()
GARMENTS = {name: CLASSES.index(of) for name, of in (("boots", "Boot"), ("bags", "Bag"))}
GARMENTS["dresses"] = CLASSES.index("Dress")
PHOTOGRAPHS_PER_PATIENT = 10  # of the ten classes
VALIDATION = 12  # each 12th patient of the package's training photographs


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


class Photographs(NamedTuple):
    """All of them, train then t10k."""

    images: np.ndarray  # uint8 (n, height, width)
    labels: np.ndarray  # numbers of classes (n,)
    tests: int  # how many of the last are t10k, the package's own test


def load_photographs(source: Path) -> Photographs:
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
    return Photographs(np.concatenate(images), np.concatenate(labels), len(labels[1]))


def moved(images: np.ndarray, shift: int) -> np.ndarray:
    """Each image moved at random, up to `shift` rows, and so many columns that no side is favoured.

    Of the places that the middle between the outermost columns above 0 can have, at most
    shift + 1/2 columns beside the image's own middle, each is as likely as the one opposite.
    images: uint8 (n, height, width); what comes in is 0, what leaves is lost.
    """
    generator, (_, height, width) = np.random.default_rng(0), images.shape
    columns = np.arange(width)
    padding = shift + width
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding)))
    result = np.empty_like(images)
    for i, image in enumerate(images):
        there = columns[image.any(axis=0)]
        middle = (there[0] + there[-1] - (width - 1)) if len(there) else 0  # in half columns
        across = [d for d in range(-width, width + 1) if abs(middle + 2 * d) <= 2 * shift + 1]
        right, down = generator.choice(across), generator.integers(-shift, shift + 1)
        top, left = padding - down, padding - right
        result[i] = padded[i, top : top + height, left : left + width]
    return result


def permuted(images: np.ndarray) -> np.ndarray:
    """All images (n, height, width) with their pixels in another order, the same for all."""
    order = pixel_order(images[0].size)
    return images.reshape(len(images), -1)[:, order].reshape(images.shape)


def pixel_order(pixels: int) -> np.ndarray:
    """Where each pixel of a permuted image comes from, as places in rows one after the other."""
    return np.random.default_rng(0).permutation(pixels)


def build(
    directory: Path,
    garment: str,
    source: Path = SOURCE,
    shift: int = 0,
    permute: bool = False,
    limit: int | None = None,
) -> dict[str, int]:
    """Write the folder, whole or not at all, and return the counts of what it holds.

    shift: see `moved`; 0 leaves photographs where they are. permute: see `permuted`. limit: so many
    photographs, the first ones.
    The first file is OAI9000001_Boots_1_00000_FASHION_MNIST_RIGHT.nii.gz_0.png, mirrored it is
    ..._LEFT.nii.gz_0.png; 00000 is the place of the scan's first photograph among all boots.
    """
    images, labels, _ = load_photographs(source)
    photographs = images[labels == GARMENTS[garment]][:limit]
    photographs = moved(photographs, shift) if shift else photographs
    patients, dropped = divmod(len(photographs), SLICES_PER_SCAN)
    if patients < len(SUBSETS):
        few = len(SUBSETS) * SLICES_PER_SCAN
        raise DataError(f"{source}: has {len(photographs)} {garment}, three patients take {few}")

    with whole_folder(directory) as unfinished:
        for patient in tqdm(range(patients), desc="writing", unit="patient", disable=None):
            first = patient * SLICES_PER_SCAN
            scan = f"OAI{9000001 + patient}_{garment.capitalize()}_1_{first:05d}_FASHION_MNIST"
            of_scan = photographs[first : first + SLICES_PER_SCAN]
            for side, images in (("RIGHT", of_scan), ("LEFT", of_scan[:, :, ::-1])):
                for number, image in enumerate(permuted(images) if permute else images):
                    rgb = np.stack([image] * 3, axis=-1)  # AKOA's slices are grey, stored as RGB
                    Image.fromarray(rgb).save(unfinished / f"{scan}_{side}.nii.gz_{number}.png")
        scans = by_scan(list_slices(unfinished).slices)
        write_split(unfinished / "split.csv", scans, split_by_patient(scans))
    slices = 2 * patients * SLICES_PER_SCAN
    return {"patients": patients, "scans": 2 * patients, "slices": slices, "dropped": dropped}


def build_classes(
    directory: Path, limit: int | None = None, source: Path = SOURCE, permute: bool = False
) -> Counter:
    """Write manifest.csv, split.csv and photographs, whole or not at all.

    Bag/00012.png is the 13th bag, of patient `Bag 0001`. limit: so many of the package's training
    and of its test photographs each, the first ones. Returns how many there are of each class.
    """
    images, labels, tests = load_photographs(source)
    images = permuted(images) if permute else images
    parts = {"train": range(len(labels) - tests), "test": range(len(labels) - tests, len(labels))}
    counts, rows, subsets, photographs = Counter(), [], [], []
    for part, numbers in parts.items():
        of_part = Counter()
        for i in numbers[:limit]:
            label = CLASSES[labels[i]]
            scan = f"{label}/{counts[label]:05d}"
            tens = of_part[label] // PHOTOGRAPHS_PER_PATIENT
            is_val = part == "train" and tens % VALIDATION == VALIDATION - 1
            patient = f"{label} {'test ' if part == 'test' else ''}{tens:04d}"
            path = f"{scan}.png"
            rows.append({"path": path, "label": label, "patient": patient, "scan": scan})
            subsets.append("val" if is_val else part)
            photographs.append(images[i])
            counts[label] += 1
            of_part[label] += 1
    dropped = copies_between_subsets(np.stack(photographs), subsets)
    kept = [n for n in range(len(rows)) if n not in dropped]
    with whole_folder(directory) as unfinished:
        for name in CLASSES:
            (unfinished / name).mkdir()
        for n in tqdm(kept, "writing", disable=None):
            Image.fromarray(photographs[n]).save(unfinished / rows[n]["path"])
        write_csv(unfinished / "manifest.csv", [rows[n] for n in kept])
        parts = [{"subset": subsets[n], "scan": rows[n]["scan"]} for n in kept]
        write_csv(unfinished / "split.csv", parts)
    return Counter(rows[n]["label"] for n in kept)


def copies_between_subsets(images: np.ndarray, subsets: list[str]) -> set[int]:
    """Which images to leave out, so that no two of two subsets are copies; of the test, none."""
    pairs = find_copies(torch.from_numpy(images)[:, None], [str(n) for n in range(len(images))])
    rank = {"train": 0, "val": 1, "test": 2}
    between = [pair for pair in pairs if subsets[pair[0]] != subsets[pair[1]]]
    return {min(pair, key=lambda n: rank[subsets[n]]) for pair in between}


# ---- program -------------------------------------------------------------------------------------


def pixels(text: str) -> int:
    """Raises ArgumentTypeError: more would move a garment out of its photograph."""
    return number_of(int, text, "a whole number from 0 to 13", lambda value: 0 <= value <= 13)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("build", help="write left and right")
    command.add_argument("directory", type=Path, metavar="DIR", help="a new or empty folder")
    command.add_argument("--garment", choices=GARMENTS, required=True)
    at_most = "move each photograph by up to so many pixels; no side is favoured"
    command.add_argument("--shift", type=pixels, default=0, metavar="N", help=at_most)
    command.add_argument("--limit", type=positive_int, metavar="N", help="of its photographs")
    command.add_argument("--source", type=Path, default=SOURCE, help="default: %(default)s")
    command.add_argument("--permute", action="store_true", help="all pixels, in all images alike")
    command = commands.add_parser("classes", help="write ten classes and a manifest")
    command.add_argument("directory", type=Path, metavar="DIR", help="a new or empty folder")
    command.add_argument("--permute", action="store_true", help="all pixels, in all images alike")
    command.add_argument("--limit", type=positive_int, metavar="N", help="of train and test each")
    command.add_argument("--source", type=Path, default=SOURCE, help="default: %(default)s")
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> int:
    if args.command == "build":
        more = args.source, args.shift, args.permute, args.limit
        counts = build(args.directory, args.garment, *more)
        held = ", ".join(f"{counts[key]} {key}" for key in ("patients", "scans", "slices"))
        print(f"{args.directory}: {held}; {counts['dropped']} photographs left over, dropped")
    else:
        counts = build_classes(args.directory, args.limit, args.source, args.permute)
        held = ", ".join(f"{counts[label]} {label}" for label in CLASSES)
        print(f"{args.directory}/manifest.csv: {counts.total():,} photographs: {held}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    return run_program(run, parse_args(arguments), "garments.py")


if __name__ == "__main__":
    sys.exit(main())
