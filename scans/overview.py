"""What is in the data, for a person to look at: `python dataset.py DIR` prints and draws this."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from common.isolation import Lost, isolated
from common.pictures import Box, fitted, height_for, make_page, put_image, put_text, save
from common.program import counted
from scans.identity.names import AKOA_VISIT, are_sides
from scans.images import describe_image
from scans.slices import Slice, by_scan

BLOCK = 1024
IMAGES_AT_ONCE = 256  # of a process, which looks at their headers
SCANS_PER_CLASS, SLICES_PER_ROW, MOST_ROWS = 3, 8, 60  # of the contact sheet


class Shown(NamedTuple):
    """A scan's row of the contact sheet."""

    title: str
    numbers: list[int]  # of the slices that are shown
    pictures: list[np.ndarray]  # (height, width) uint8


def describe_scans(slices: list[Slice], classes: list[str]) -> list[str]:
    """How many slices, scans and patients there are, of each class, and their visits."""
    scans = by_scan(slices)
    having = {(s.patient, s.label) for s in slices}
    patients = {patient for patient, _ in having}
    width = max(5, *map(len, classes))
    lines = []
    for label in classes:
        members = [found for found in scans.values() if found[0].label == label]
        count, number = sum(map(len, members)), sum((p, label) in having for p in patients)
        lines.append(
            f"{label:<{width}} {count:>7,} slices, {len(members):>4} scans, {number:>4} patients"
        )
    several = len([p for p, n in Counter(p for p, _ in having).items() if n > 1])
    both = "both knees" if are_sides(classes) else "several classes"
    lines.append(
        f"{both} of {counted(several, 'patient')}; {len(scans) / len(patients):.1f} scans a patient"
    )
    if visits := Counter(m[1] for scan in scans if (m := AKOA_VISIT.match(scan))):
        lines.append("visits: " + ", ".join(f"{name} {n}" for name, n in visits.most_common()))
    return lines


def describe_files(slices: list[Slice], workers: int | None) -> list[str]:
    """How many files there are of each size and mode."""
    images = [s.source for s in slices if s.index is None]
    found = isolated(describe_image, images, workers, chunk=IMAGES_AT_ONCE)
    kinds = Counter("unreadable" if isinstance(kind, Lost) else kind for kind in found)
    kinds["slices of volumes"] += sum(s.index is not None for s in slices)
    return [f"{count:>9,}  {kind}" for kind, count in kinds.most_common(10) if count]


def describe_pixels(pixels: Tensor, mean: float, std: float) -> list[str]:
    """Grey levels of uint8 pixels (n, 1, height, width); mean and std are theirs, from 0 to 1."""
    means = np.concatenate(
        [chunk.float().mean(dim=(1, 2, 3)).numpy() for chunk in pixels.split(BLOCK)]
    )
    low, middle, high = np.percentile(means, [1, 50, 99])
    brightest = max(chunk.max().item() for chunk in pixels.split(BLOCK))
    lines = [
        f"grey levels 0 to {brightest}: mean {255 * mean:.1f}, standard deviation {255 * std:.1f}; "
        f"means of slices {low:.0f} / {middle:.0f} / {high:.0f} (1 %, 50 %, 99 %)"
    ]
    blank = int((means < 1).sum())
    return lines + ([f"black slices: {blank:,}"] if blank else [])


def choose_shown(slices: list[Slice], pixels: Tensor, classes: list[str]) -> list[Shown]:
    """A few slices of a few scans of each class; pixels (n, 1, height, width) are the slices'.

    Of hundreds of classes some are left out, evenly: nobody looks at a thousand rows.
    """
    position = {(s.source, s.index): i for i, s in enumerate(slices)}
    classes = classes[:: -(-len(classes) // MOST_ROWS)]
    most = min(SCANS_PER_CLASS, MOST_ROWS // len(classes))
    scans, rng, rows = by_scan(slices), np.random.default_rng(0), []
    for label in classes:
        of_label = [name for name, members in scans.items() if members[0].label == label]
        count = min(most, len(of_label))
        for i in sorted(rng.choice(len(of_label), count, replace=False)) if of_label else ():
            members = scans[of_label[i]]
            chosen = np.linspace(0, len(members) - 1, SLICES_PER_ROW).round().astype(int)
            shown = [members[i] for i in np.unique(chosen)]
            pictures = [pixels[position[s.source, s.index], 0].numpy() for s in shown]
            rows.append(Shown(f"{label}  {of_label[i]}", [s.number for s in shown], pictures))
    return rows


def draw_contact_sheet(rows: list[Shown], path: Path) -> None:
    """A row of slices for each scan."""
    columns = max(SLICES_PER_ROW, *(len(row.pictures) for row in rows))  # titles need the width
    cell, gap, head = 1.4, 0.05, 0.3  # inches: width of a picture, between pictures, title
    tall = height_for(rows[0].pictures, cell)
    width = columns * (cell + gap) + gap
    page = make_page(width, len(rows) * (head + tall) + gap)
    box = {"facecolor": "k", "edgecolor": "none", "pad": 1.5}  # readable on bright tissue, too
    for i, row in enumerate(rows):
        top = i * (head + tall) + head
        title = fitted(row.title, width - 2 * gap, 9)
        put_text(page, gap, top - 0.07, title, 9, va="bottom")
        for column, (number, picture) in enumerate(zip(row.numbers, row.pictures, strict=True)):
            left = gap + column * (cell + gap)
            put_image(page, picture, Box(left, top, cell, tall))
            text = fitted(f"{number}", cell - 0.1, 7)
            put_text(page, left + 0.03, top + 0.03, text, 7, color="w", bbox=box)
    save(page.figure, path)
