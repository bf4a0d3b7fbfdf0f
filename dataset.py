"""Knee slices: files -> slices, scans, patients -> subsets -> uint8 tensors.

    from dataset import find_slices, group_scans, load_images, split_by_patient
    slices, notes = find_slices("AKOA_Analysis")
    scans = group_scans(slices)                       # scan name -> its slices
    subset_of = split_by_patient(scans)               # scan name -> "train", "val" or "test"
    images, errors = load_images([s.path for s in slices], (76, 86))  # (slices, 1, 76, 86) uint8

A slice is one PNG, a scan one knee imaged once (40 slices in AKOA); a patient has one or more
scans. Slices of a scan, scans of a knee and both knees of a patient look alike, so an accuracy is
only real if every patient is in exactly one subset.
"""

import csv
import hashlib
import os
import re
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import gcd
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

SIDES = ("left", "right")  # class 0 and class 1
SUBSETS = ("train", "val", "test")
SLICES_PER_SCAN = 40
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
MAX_PIXELS = 50_000_000  # far above any slice; a file that claims more is damaged or hostile

# OAI9014797_BaseLine_3_de3d1_SAG_3D_DESS_WE_RIGHT.nii.gz_0 (without its suffix .png)
AKOA_NAME = re.compile(
    r"(?P<scan>(?P<patient>OAI\d+)_.*_(?P<side>left|right|l_e_f_t|r_i_g_h_t)(\.nii(\.gz)?)?)"
    r"_(?P<index>\d+)",
    re.IGNORECASE,
)

# What the experiment that this project starts from held out of each side, as shares of its scans.
EXPERIMENT_SHARES = {"right": 33 / 264, "left": 20 / 191}


class DataError(ValueError):
    """Data that can't be used. The message names the file or value and says what to do."""


@dataclass(frozen=True, slots=True)
class Slice:
    """One 2D image.

    Slice(path="AKOA/OAI9014797_BaseLine_3_de3d1_SAG_3D_DESS_WE_RIGHT.nii.gz_0.png", side="right",
          patient="OAI9014797", scan="OAI9014797_..._WE_RIGHT.nii.gz", index=0)
    """

    path: str
    side: str
    patient: str
    scan: str
    index: int


# ---- files -> slices and scans -------------------------------------------------------------------


def is_image(name: str) -> bool:
    """By its ending; Thumbs.db, .DS_Store, ._copies and other litter are none."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")


def natural_order(name: str) -> list:
    """Sort key that puts slice 2 before slice 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", name)]


def parse_name(path: Path) -> Slice | None:
    """What an image's path says, by its AKOA name or by a folder `left` or `right` that it lies in.

    Three forms of such folders: `left/p01_7.png`, `left/p01/7.png` (also with folders in between,
    `left/p01/visit2/7.png`) and `p01/left/7.png` are slice 7 of a left knee of patient p01. Returns
    None if nothing tells the side.

    Raises:
        DataError: name and folder tell different sides.
    """
    folder_sides = [part.lower() for part in path.parts[:-1] if part.lower() in SIDES]
    folder_side = folder_sides[-1] if folder_sides else None
    if match := AKOA_NAME.fullmatch(path.stem):
        side = match["side"].replace("_", "").lower()
        if folder_side not in (None, side):
            raise DataError(f"{path}: the name says {side}, the folder {folder_side}")
        return Slice(str(path), side, match["patient"].upper(), match["scan"], int(match["index"]))
    if folder_side is None:
        return None
    position = max(i for i, part in enumerate(path.parts) if part.lower() == folder_side)
    name, index = re.fullmatch(r"(.*?)[-_ ]*(\d*)", path.stem).groups()
    above, below = path.parts[:position], path.parts[position + 1 : -1]
    patient = next(iter([*below[:1], *filter(None, [name]), *above[-1:]]), folder_side)
    scan = "/".join(filter(None, [*above, folder_side, *below, name]))
    return Slice(str(path), folder_side, patient, scan, int(index or 0))


def find_slices(data_dir: str | Path) -> tuple[list[Slice], list[str]]:
    """Find every slice below a folder, however it is nested.

    Returns the slices, sorted by scan and slice number, and notes: plain sentences about files that
    were left out and scans that are not whole.

    Raises:
        DataError: no such folder, no slices of a side, or a name that contradicts its folder.
    """
    root = Path(data_dir)
    if not root.is_dir():
        raise DataError(f"{data_dir}: no such folder")
    found: dict[tuple[str, str], Slice] = {}
    sideless, twice = [], []
    for folder, subfolders, names in os.walk(root):
        subfolders.sort()  # a walk in the same order on every machine
        for name in sorted(names):
            path = Path(folder, name)
            if not is_image(name):
                continue
            # The folder's own path says nothing of the side: /data/left/AKOA is not all left.
            parsed = parse_name(path.relative_to(root))
            if parsed is None:
                sideless.append(path)
            elif (parsed.scan, path.stem) in found:
                twice.append(path)
            else:
                found[parsed.scan, path.stem] = Slice(
                    str(path), parsed.side, parsed.patient, parsed.scan, parsed.index
                )
    slices = sorted(found.values(), key=lambda s: (s.scan, s.index, s.path))

    expected = (
        "expected names like OAI9014797_BaseLine_3_de3d1_SAG_3D_DESS_WE_RIGHT.nii.gz_0.png, "
        "or folders left/ and right/"
    )
    if not slices:
        what = f"{len(sideless)} images but no side in any name" if sideless else "no images"
        raise DataError(f"{data_dir}: {what}; {expected}")
    notes = []
    for paths, problem in [
        (sideless, "tell no side and are left out"),
        (twice, "are copies of slices already found and are left out"),
    ]:
        if paths:
            notes.append(f"{len(paths)} images {problem}, first: {paths[0]}")
    for side in SIDES:
        if not any(s.side == side for s in slices):
            raise DataError(f"{data_dir}: {len(slices)} slices, but none of the {side} side")
    sizes = Counter(s.scan for s in slices)
    odd = [f"{scan} ({n})" for scan, n in sorted(sizes.items()) if n != SLICES_PER_SCAN]
    if odd:
        named = ", ".join(odd[:5]) + (f" and {len(odd) - 5} more" if len(odd) > 5 else "")
        notes.append(
            f"{len(odd)} scans do not have {SLICES_PER_SCAN} slices, kept together: {named}"
        )
    return slices, notes


def group_scans(slices: list[Slice]) -> dict[str, list[Slice]]:
    """Scan name -> its slices, in the order of the names."""
    scans = defaultdict(list)
    for s in slices:
        scans[s.scan].append(s)
    return dict(sorted(scans.items()))


# ---- scans -> subsets ----------------------------------------------------------------------------


def split_by_patient(
    scans: dict[str, list[Slice]],
    val_fraction: float = 0.125,
    test_fraction: float = 0.125,
    seed: int = 0,
) -> dict[str, str]:
    """Put whole patients into subsets, as near to the fractions of each side as they allow.

    The order of the patients comes from a hash of the seed and their names, so the same names and
    the same seed give the same subsets on every machine. From that order on, patients are moved
    and swapped between subsets as long as that brings the sums nearer (least squares); a few
    orders are tried, and the first that can't be bettered, or the best, is taken.

    Returns scan name -> "train", "val" or "test".

    Raises:
        DataError: fewer than three patients, or fractions that leave a subset empty.
    """
    check_fractions(val_fraction, test_fraction)
    sizes = defaultdict(lambda: [0, 0])  # patient -> slices of each side
    for slices in scans.values():
        sizes[slices[0].patient][SIDES.index(slices[0].side)] += len(slices)
    if len(sizes) < len(SUBSETS):
        raise DataError(
            f"{len(sizes)} patients ({', '.join(sorted(sizes))}) can't fill train, val and test; "
            "at least three are needed"
        )
    fractions = np.array([1 - val_fraction - test_fraction, val_fraction, test_fraction])
    target = fractions[:, None] * np.sum(list(sizes.values()), axis=0)  # (subsets, sides)
    unit = gcd(*(n for pair in sizes.values() for n in pair))
    unavoidable = (np.abs(target / unit - np.round(target / unit)) * unit) ** 2

    best, best_error = {}, np.inf
    for attempt in range(20):
        order = sorted(
            sizes, key=lambda name: hashlib.sha256(f"{seed} {attempt} {name}".encode()).digest()
        )
        weights = np.array([sizes[name] for name in order], dtype=float)  # (patients, sides)
        chosen, error = balance(weights, target)
        if error < best_error - 1e-6:
            best, best_error = dict(zip(order, chosen, strict=True)), error
        if best_error <= unavoidable.sum() + 1e-6:
            break
    return {scan: SUBSETS[best[slices[0].patient]] for scan, slices in scans.items()}


def balance(weights: np.ndarray, target: np.ndarray) -> tuple[list[int], float]:
    """Assign rows of weights (patients, sides) to subsets so that the sums come near the target.

    target is (subsets, sides). Returns the subset of each row and the squared error that is left.
    """
    chosen = np.zeros(len(weights), dtype=int)
    chosen[1], chosen[2] = 1, 2  # no subset is ever empty
    excess = np.stack([weights[chosen == subset].sum(axis=0) for subset in range(3)]) - target
    improved = True
    while improved:
        improved = False
        for row in range(len(weights)):
            here = chosen[row]
            alone = np.count_nonzero(chosen == here) == 1
            for there in range(3):
                if there == here:
                    continue
                # Swap with each patient there, or with nobody (the last candidate).
                partners = np.flatnonzero(chosen == there)
                gain = weights[row] - np.vstack([weights[partners], np.zeros(2)])
                before = (excess[here] ** 2 + excess[there] ** 2).sum()
                after = ((excess[here] - gain) ** 2 + (excess[there] + gain) ** 2).sum(axis=1)
                if alone:
                    after[-1] = np.inf
                pick = int(after.argmin())
                if after[pick] < before - 1e-6:
                    excess[here] -= gain[pick]
                    excess[there] += gain[pick]
                    chosen[row] = there
                    if pick < len(partners):
                        chosen[partners[pick]] = here
                    improved = True
                    break
    return chosen.tolist(), float((excess**2).sum())


def split_by_scan(
    scans: dict[str, list[Slice]],
    val_fraction: float | None = None,
    test_fraction: float | None = None,
) -> dict[str, str]:
    """The experiment's own split: each side's sorted list of scans is cut into train, val and test.

    Patients straddle the subsets, so accuracies on it are too good; it is here to repeat the
    experiment. Without fractions each side holds out the experiment's shares: of 264 right scans
    33 + 33, of 191 left ones 20 + 20.

    Raises:
        DataError: fewer than three scans of a side, or fractions that leave a subset empty.
    """
    subset_of = {}
    for side in SIDES:
        names = sorted(name for name, slices in scans.items() if slices[0].side == side)
        if len(names) < len(SUBSETS):
            raise DataError(f"{len(names)} {side} scans can't fill train, val and test")
        val = EXPERIMENT_SHARES[side] if val_fraction is None else val_fraction
        test = EXPERIMENT_SHARES[side] if test_fraction is None else test_fraction
        check_fractions(val, test)
        num_val, num_test = (max(1, round(len(names) * share)) for share in (val, test))
        num_train = len(names) - num_val - num_test
        if num_train < 1:
            raise DataError(f"fractions {val} and {test} leave no {side} scan to train on")
        cut = ["train"] * num_train + ["val"] * num_val + ["test"] * num_test
        subset_of.update(zip(names, cut, strict=True))
    return subset_of


def check_fractions(val_fraction: float, test_fraction: float) -> None:
    if not (val_fraction > 0 and test_fraction > 0 and val_fraction + test_fraction < 1):
        raise DataError(
            f"val and test fractions must be above 0 and their sum below 1, "
            f"got {val_fraction} and {test_fraction}"
        )


def straddling_patients(scans: dict[str, list[Slice]], subset_of: dict[str, str]) -> dict[str, set]:
    """Patients in more than one subset -> the subsets they are in. Empty is what you want."""
    subsets = defaultdict(set)
    for name, slices in scans.items():
        subsets[slices[0].patient].add(subset_of[name])
    return {patient: found for patient, found in sorted(subsets.items()) if len(found) > 1}


def check_patients(scans: dict[str, list[Slice]], subset_of: dict[str, str]) -> None:
    """Raise DataError with the names if a patient straddles subsets."""
    if leaks := straddling_patients(scans, subset_of):
        named = [f"{patient} ({', '.join(sorted(found))})" for patient, found in leaks.items()]
        more = f" and {len(named) - 10} more" if len(named) > 10 else ""
        raise DataError(
            f"{len(leaks)} patients are in more than one subset: {', '.join(named[:10])}{more}; "
            "put all scans of a patient into one"
        )


def write_split(path: Path, scans: dict[str, list[Slice]], subset_of: dict[str, str]) -> None:
    """Write the CSV `subset,side,patient,scan,slices`, a row a scan."""
    rows = [
        (subset_of[name], slices[0].side, slices[0].patient, name, len(slices))
        for name, slices in scans.items()
    ]
    rows.sort(key=lambda row: (SUBSETS.index(row[0]), *row[1:4]))
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("subset", "side", "patient", "scan", "slices"), *rows])


def read_split(path: str | Path, scans: dict[str, list[Slice]]) -> dict[str, str]:
    """Read a split file: a CSV with at least the columns `subset` and `scan`, such as split.csv.

    Raises:
        DataError: no such file, a row that can't be used (named by its line), a scan that is only
            in the file or only in the data, or a subset without a scan.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a readable split file: {error}") from error
    if not {"subset", "scan"} <= set(columns):
        raise DataError(f"{path}: expected columns subset and scan, got {', '.join(columns)!r}")
    subset_of = {}
    for line, row in rows:
        if row["subset"] not in SUBSETS:
            raise DataError(
                f"{path}, line {line}: subset must be train, val or test, got {row['subset']!r}"
            )
        if not row["scan"]:
            raise DataError(f"{path}, line {line}: names no scan")
        if subset_of.setdefault(row["scan"], row["subset"]) != row["subset"]:
            raise DataError(f"{path}, line {line}: scan {row['scan']} is in two subsets")
    for names, problem in [
        (scans.keys() - subset_of.keys(), "scans of the data are not in the split file"),
        (subset_of.keys() - scans.keys(), "scans of the split file are not in the data"),
    ]:
        if names:
            raise DataError(f"{path}: {len(names)} {problem}, first: {min(names)}")
    for subset in SUBSETS:
        if subset not in subset_of.values():
            raise DataError(f"{path}: no scan is in {subset}")
    return subset_of


def describe_split(scans: dict[str, list[Slice]], subset_of: dict[str, str]) -> str:
    """A table for a person: patients, scans and slices of each side in each subset."""
    lines = [f"{'subset':<8}{'patients':>9}{'left scans':>12}{'right scans':>13}{'slices':>9}"]
    for subset in SUBSETS:
        members = [slices for name, slices in scans.items() if subset_of[name] == subset]
        sides = Counter(slices[0].side for slices in members)
        patients = len({slices[0].patient for slices in members})
        num_slices = sum(map(len, members))
        lines.append(
            f"{subset:<8}{patients:>9}{sides['left']:>12}{sides['right']:>13}{num_slices:>9}"
        )
    return "\n".join(lines)


# ---- slices -> tensors ---------------------------------------------------------------------------


def read_image(path: str | Path, image_size: tuple[int, int]) -> np.ndarray:
    """Decode one image file to grey levels and resize it: uint8 array (height, width).

    16-bit images are scaled to 8 bits (not clipped), transparent pixels are black, colours become
    luminance (equal channels keep their value exactly).

    Raises:
        OSError, ValueError, SyntaxError, ...: whatever Pillow makes of a damaged file.
    """
    with Image.open(path) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are too many for a slice")
        if image.mode == "F" or (image.mode == "I" and image.getextrema()[1] > 65535):
            raise ValueError("more than 16 bits a pixel: convert it to 8 or 16 bits")
        if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
            image = Image.fromarray((np.asarray(image, dtype=np.float32) / 257).astype(np.float32))
        elif image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image).convert(
                "L"
            )
        else:
            image = image.convert("L")
        height, width = image_size
        image = image.resize((width, height), Image.Resampling.BILINEAR)  # antialiased
        return np.asarray(image).round().astype(np.uint8)


def load_images(
    paths: list[str], image_size: tuple[int, int], workers: int | None = None, progress: bool = True
) -> tuple[Tensor, dict[int, str]]:
    """Decode all files, in threads (Pillow releases the interpreter lock while it decodes).

    Returns a uint8 tensor (len(paths), 1, height, width) and the errors: position -> what is wrong,
    in one line. Images that could not be read are black.
    """
    images = torch.zeros(len(paths), 1, *image_size, dtype=torch.uint8)
    pixels, errors = images.numpy(), {}

    def load(position: int) -> None:
        try:
            pixels[position, 0] = read_image(paths[position], image_size)
        except UnidentifiedImageError:
            errors[position] = "not an image, or a damaged one"
        except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, zlib.error ...
            errors[position] = " ".join(f"{error or type(error).__name__}".split())

    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        done = pool.map(load, range(len(paths)))
        # disable=None: a bar on a terminal, nothing in a log file
        for _ in tqdm(
            done, "reading", len(paths), unit="slice", disable=None if progress else True
        ):
            pass
    return images, dict(sorted(errors.items()))


def pixel_statistics(images: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of uint8 pixels on a scale from 0 to 1, exact at any size."""
    counts = torch.bincount(images.flatten(), minlength=256).double()
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = (counts * levels).sum() / counts.sum()
    variance = (counts * (levels - mean) ** 2).sum() / counts.sum()
    return mean.item(), variance.sqrt().item()
