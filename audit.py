"""What is in a folder of knees, and whether an image is in it twice.

    python dataset.py AKOA_Analysis
    python dataset.py AKOA_Analysis --contact-sheet sheet.png --name-pattern '...'

Prints how many slices, scans and patients of each side there are, their visits, sizes, modes and
grey levels, copies, problems and the split that train.py would make, and draws a few slices of a
few scans as the model will see them.

Exit codes: 0 done, 1 some files can't be read, 2 unusable arguments or data.
"""

import argparse
import hashlib
import json
import re
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import dataset
import decode
import plots
import runs
import splits
from arguments import Parser, add_data_arguments, run_program
from dataset import SIDES, DataError, Slice, few

SIZE = 24  # images are compared as 24 x 24 grey levels
CORRELATION = 0.998  # above that, and ...
DIFFERENCE = 2.0  # ... with at most this root mean square difference, two images are copies
CONTRAST = 8.0  # standard deviation of grey levels; blank images are nobody's copies
BLOCK = 1024
VISIT = re.compile(r"OAI\d+_([^_]+)_", re.IGNORECASE)


def find_copies(images: Tensor, scans: list[str]) -> list[tuple[int, int]]:
    """Pairs of images of two scans that are the same picture, also resized or compressed.

    On phantoms, slices of two patients correlate at 0.977 or less; copies shrunk to a third or
    compressed to JPEG at 0.9996 or more. The time grows with the square of the number of images.

    Args:
        images: uint8 (n, 1, height, width).
        scans: the scan of each.

    Returns:
        (position, later position) of each.
    """
    small = torch.cat(
        [F.adaptive_avg_pool2d(chunk.float(), SIZE).flatten(1) for chunk in images.split(BLOCK)]
    )  # (n, 576)
    unit = small - small.mean(dim=1, keepdim=True)
    norm = unit.norm(dim=1, keepdim=True)
    unit *= (norm >= CONTRAST * SIZE) / norm.clamp(min=1)
    pairs = []
    for start in range(0, len(unit), BLOCK):
        rows = unit[start : start + BLOCK]
        alike = rows @ unit[: start + len(rows)].T > CORRELATION
        for row, first in alike.tril_(start - 1).nonzero().tolist():
            second = start + row
            difference = (small[first] - small[second]).square().mean().sqrt()
            if scans[first] != scans[second] and difference <= DIFFERENCE:
                pairs.append((first, second))
    return pairs


def open_copies(images: Tensor, scans: list[str], cache_dir: Path) -> list[tuple[int, int]]:
    """`find_copies`, looked up where the same images were audited before."""
    names = hashlib.sha256("\n".join(scans).encode(errors="surrogateescape")).hexdigest()[:16]
    kept = Path(cache_dir, f"copies-{decode.crc32(images.numpy()):08x}-{names}.json")
    try:
        return [tuple(pair) for pair in json.loads(kept.read_text())["copies"]]
    except (OSError, ValueError, KeyError, TypeError):
        pairs = find_copies(images, scans)
    with suppress(OSError):  # it is found again next time
        runs.write_json(kept, {"copies": pairs})
    return pairs


def patients_sharing_images(slices: list[Slice], pairs: list[tuple[int, int]]) -> list[set[str]]:
    """Groups of two or more patients that have copies of an image in common."""
    groups: list[set[str]] = []
    for link in {frozenset((slices[a].patient, slices[b].patient)) for a, b in pairs}:
        if len(link) == 2:
            touching = [group for group in groups if group & link]
            groups = [group for group in groups if not group & link]
            groups.append(set(link).union(*touching))
    return sorted(groups, key=min)


def describe_copies(slices: list[Slice], images: Tensor, pairs: list[tuple[int, int]]) -> list[str]:
    """Sentences that name the scans that have images in common, and what follows from it."""
    lines = []
    shared: dict[tuple[str, str], list] = {}
    for a, b in pairs:
        shared.setdefault((slices[a].scan, slices[b].scan), []).append((a, b))
    for (one, other), found in shared.items():
        a, b = found[0]
        exact = sum(torch.equal(images[a], images[b]) for a, b in found)
        whose = f"of patient {slices[a].patient}"
        if slices[a].patient != slices[b].patient:
            whose = f"of patients {slices[a].patient} and {slices[b].patient}"
        sides = slices[a].side, slices[b].side
        wrong = "" if len(set(sides)) == 1 else f", once {sides[0]} and once {sides[1]}"
        lines.append(
            f"{len(found)} images ({exact} exactly) are in two scans {whose}: {one} and {other}"
            f"{wrong} (first: {slices[a].path} = {slices[b].path})"
        )
    if len(lines) > 10:
        lines[10:] = [f"and {len(lines) - 10} more pairs of scans have images in common"]
    return lines


def check_copies(
    slices: list[Slice], pairs: list[tuple[int, int]], subset_of: dict[str, str]
) -> None:
    """Raise DataError with the names if an image is in two subsets."""
    leaks = [(a, b) for a, b in pairs if subset_of[slices[a].scan] != subset_of[slices[b].scan]]
    if leaks:
        named = [
            f"{slices[a].path} ({subset_of[slices[a].scan]}) = "
            f"{slices[b].path} ({subset_of[slices[b].scan]})"
            for a, b in leaks
        ]
        raise DataError(
            f"{len(leaks)} images are in more than one subset: {few(named)}; put the patients of "
            "both into one"
        )


# ---- python dataset.py DIR -----------------------------------------------------------------------


def describe_files(slices: list[Slice], workers: int | None) -> list[str]:
    """How many files there are of each size and mode."""

    def look(path: str) -> str:
        try:
            with decode.open_image(path) as image:
                return f"{image.width} x {image.height} {image.mode}"
        except Exception:  # load_images names what is wrong with it
            return "unreadable"

    files = {decode.split_path(s.path) for s in slices}
    with ThreadPoolExecutor(workers) as pool:
        kinds = Counter(pool.map(look, [path for path, index in files if index is None]))
    kinds["slices of volumes"] += sum(index is not None for _, index in files)
    return [f"{count:>9,}  {kind}" for kind, count in kinds.most_common(10) if count]


def describe_images(images: Tensor) -> list[str]:
    means = torch.cat([chunk.float().mean(dim=(1, 2, 3)) for chunk in images.split(BLOCK)])
    mean, std = decode.pixel_statistics(images, torch.arange(len(images)))
    low, middle, high = np.percentile(means.numpy(), [1, 50, 99])
    brightest = max(chunk.max().item() for chunk in images.split(BLOCK))
    lines = [
        f"grey levels 0 to {brightest}: mean {255 * mean:.1f}, standard deviation {255 * std:.1f}; "
        f"means of slices {low:.0f} / {middle:.0f} / {high:.0f} (1 %, 50 %, 99 %)"
    ]
    if brightest < 32:
        lines.append("nearly black: 12-bit values in 16-bit files? Convert them to 8 bits first")
    blank = int((means < 1).sum())
    return lines + ([f"{blank} slices are black"] if blank else [])


def run(args: argparse.Namespace) -> int:
    sheet = args.contact_sheet
    if sheet.suffix.lower() != ".png" or not sheet.parent.is_dir():
        raise DataError(f"--contact-sheet {sheet}: expected a .png file in a folder that exists")
    slices, notes = dataset.find_slices(args.data_dir, args.name_pattern, args.plane)
    scans = dataset.group_scans(slices)
    knees = {(s.patient, s.side) for s in slices}
    patients = {patient for patient, _ in knees}
    print(f"{args.data_dir}: {len(slices):,} slices, {len(scans)} scans, {len(patients)} patients")
    for side in SIDES:
        members = [found for found in scans.values() if found[0].side == side]
        count = sum(map(len, members))
        having = sum((patient, side) in knees for patient in patients)
        print(f"  {side:<5} {count:>7,} slices, {len(members):>4} scans, {having:>4} patients")
    both = len(knees) - len(patients)
    print(f"  both knees of {both} patients; {len(scans) / len(patients):.1f} scans a patient")
    visits = Counter(m[1] for scan in scans if (m := VISIT.match(scan)))
    if visits:
        print("  visits: " + ", ".join(f"{name} {n}" for name, n in visits.most_common()))
    print("files:", *describe_files(slices, args.workers), sep="\n")

    paths = [s.path for s in slices]
    images, errors, note = decode.open_images(
        paths, args.image_size, args.cache_dir, args.workers, args.plane
    )
    height, width = args.image_size
    for i, error in errors.items():
        print(f"dataset.py: {paths[i]}: {error}", file=sys.stderr)
    if len(errors) == len(paths):
        raise DataError(f"{args.data_dir}: none of the files can be read")
    readable = torch.tensor([i for i in range(len(paths)) if i not in errors])
    print(f"as the model sees them, {width} x {height}:")
    for line in describe_images(images[readable] if errors else images):
        print(f"  {line}")
    # Black images are nobody's copies.
    pairs = open_copies(images, [s.scan for s in slices], args.cache_dir)
    for line in [*notes, *([note] if note else []), *describe_copies(slices, images, pairs)]:
        print(f"note: {line}")
    if not pairs:
        print("no image is in two scans")

    rng = np.random.default_rng(0)
    position = {path: i for i, path in enumerate(paths)}
    rows = []
    for side in SIDES:
        names = [name for name, members in scans.items() if members[0].side == side]
        for i in sorted(rng.choice(len(names), min(3, len(names)), replace=False)) if names else ():
            name = names[i]
            members = scans[name]
            chosen = np.unique(np.linspace(0, len(members) - 1, 8).round().astype(int))
            shown = [members[i] for i in chosen]
            pictures = [images[position[s.path], 0].numpy() for s in shown]
            rows.append((f"{side}  {name}", [s.index for s in shown], pictures))
    with runs.whole_file(sheet) as temporary:
        plots.draw_contact_sheet(rows, temporary)
    print(f"contact sheet: {sheet}")
    subset_of = splits.choose(args, scans, patients_sharing_images(slices, pairs))
    if args.split == "patient" or args.split_file:
        check_copies(slices, pairs, subset_of)
    print(f"the split that train.py makes of it (--seed {args.seed}):")
    print(splits.describe_split(scans, subset_of))
    return 1 if errors else 0


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="dataset.py", description="Say what is in a folder of knees, and draw some of it."
    )
    parser.add_argument("data_dir", type=Path, metavar="DIR", help="folder, or a manifest CSV")
    parser.add_argument(
        "--contact-sheet",
        type=Path,
        default=Path("contact_sheet.png"),
        metavar="PNG",
        help="(default: contact_sheet.png)",
    )
    add_data_arguments(parser)
    return run_program(run, parser.parse_args(argv), "dataset.py")
