"""Small images by name, manifests of them, and what is listed of them."""

import re
from pathlib import Path

from PIL import Image

from scans.labelled import list_labelled
from scans.slices import Options, Slice


def listed(path: Path, *more) -> tuple[list[Slice], list[str]]:
    """The labelled slices below a path, and what is said of it. more: classes are left out."""
    listing = list_labelled(path, None, Options(*more))
    return listing.slices, [str(problem) for problem in listing.problems]


def found(folder: Path, pattern: str | None = None) -> set[tuple]:
    slices, _ = listed(folder, pattern)
    return {(Path(s.source).name, s.label, s.patient, s.scan, s.number) for s in slices}


def write_images(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 3)).save(path, "PNG")


def write_manifest(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "knees.csv"
    path.write_text(text, encoding=encoding)
    write_images(folder, *re.findall(r"[\w/,.]+\.png", text))
    return path
