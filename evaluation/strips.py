"""A few slices side by side as one small JPEG, and attention as colours over grey slices.

strip_of(images, edge=224)                                   # uint8 (n, height, width) -> bytes
strip_of([overlay(image, attention) for ...], edge=224)      # colours from 0 to 1
"""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

GAP = 2  # pixels between slices
QUALITY = 80  # of the JPEG: edges of bones stay sharp, at a quarter of a byte a pixel


def overlay(image: ArrayLike, attention: ArrayLike, highest: float | None = None) -> np.ndarray:
    """An image (height, width) from 0 to 255 in colours (height, width, 3) from 0 to 1.

    Where a map of the same shape is high it is tinted, red to yellow at `highest`, by default near
    its own maximum. At least half of each pixel is the image's own grey, so that what is looked at
    can be seen.
    """
    attention = np.asarray(attention)
    highest = float(np.percentile(attention, 99.5)) if highest is None else highest
    share = (attention / max(highest, 1e-12)).clip(0, 1)[..., None]
    tint = np.concatenate([np.ones_like(share), share, np.zeros_like(share)], axis=-1)
    return (1 - 0.5 * share) * np.asarray(image)[..., None] / 255 + 0.5 * share * tint


def evenly(count: int, most: int) -> list[int]:
    """At most so many places of `count`, from the first to the last: 40, 5 -> 0, 10, 20, 29, 39"""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()


def strip_of(images: Sequence[np.ndarray], edge: int) -> bytes:
    """A JPEG of images side by side, each made smaller until its longer edge is at most this long.

    images: grey uint8 (height, width), or colours from 0 to 1 (height, width, 3); all of one size.
    """
    height, width = images[0].shape[:2]
    scale = min(1, edge / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    mode = "L" if images[0].ndim == 2 else "RGB"
    strip = Image.new(mode, (len(images) * (size[0] + GAP) - GAP, size[1]))
    for i, image in enumerate(images):
        levels = image if mode == "L" else (255 * image).round().astype(np.uint8)
        slice_ = Image.fromarray(levels)
        strip.paste(slice_.resize(size, Image.Resampling.LANCZOS), (i * (size[0] + GAP), 0))
    file = io.BytesIO()
    strip.save(file, "JPEG", quality=QUALITY, optimize=True)
    return file.getvalue()
