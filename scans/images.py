"""One image file -> grey levels.

read_image("left/p01_7.png", (76, 86)).values   # uint8 array (76, 86)

16-bit files often hold 12 bits, or fewer. Their values become grey levels by what all images of a
scan hold, so that its slices stay comparable: see bit_depth and to_grey, and scans/cache.py.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, UnidentifiedImageError

from common.files import NotAFile, open_regular
from common.program import counted
from scans.slices import DataError

# What Pillow doubts in a file, such as its EXIF data, is no matter where it is decoded.
warnings.filterwarnings("ignore", module=r"PIL\.")
MAX_PIXELS = 20_000_000  # far above any slice; as RGBA, that takes 240 MB a thread
JPEG_DIFFERENCE = 16  # of the channels of a grey JPEG, by rounding
COLOUR = 24  # bits of a pixel, where `describe_depths` counts images in colour
FORMATS = ("PNG", "JPEG", "BMP", "TIFF")  # Pillow would try all it knows: EPS runs Ghostscript


class ImageError(DataError):
    """An image that can't be decoded."""

    def __init__(self, path: str | Path, text: str):
        super().__init__(f"{path}: {text}")
        self.text = text


@contextmanager
def foreign(path: str | Path) -> Iterator[None]:
    """Around Pillow's own reading alone: it may raise anything at all of a damaged file.

    OSError, SyntaxError, ValueError, zlib.error, struct.error, ... all become an ImageError.
    """
    try:
        yield
    except UnidentifiedImageError:
        raise ImageError(path, "not an image, or a damaged one") from None
    except Exception as error:
        text = " ".join(f"{error or type(error).__name__}".split())
        raise ImageError(path, text) from error


@contextmanager
def open_image(path: str | Path) -> Iterator[Image.Image]:
    """Open an image file, without decoding it. Raises ImageError."""
    try:
        file = open_regular(path)
    except NotAFile as error:
        raise ImageError(path, f"{error.kind}, expected an image") from None
    except FileNotFoundError:
        raise ImageError(path, "no such file") from None
    except OSError as error:
        raise ImageError(path, error.strerror) from None
    with file:
        with foreign(path):
            image = Image.open(file, formats=FORMATS)
        with image:
            yield image


class DecodedImage(NamedTuple):
    """(height, width): grey levels as uint8, or the values of a 16-bit file as uint16."""

    values: np.ndarray
    highest: int | None = None  # of a 16-bit file, before it was resized; None: grey levels
    is_colour: bool = False  # its channels differed


def read_grey(path: str | Path) -> Image.Image:
    """Decode one image file: mode L, or of a 16-bit file mode F, with its values as they are.

    Transparent pixels are black, colours become luminance (equal channels keep their value
    exactly).

    Raises:
        ImageError: it is damaged, too large, or not one slice of 8 or 16 bits.
    """
    with open_image(path) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ImageError(
                path, f"{image.width} x {image.height} pixels are too many for a slice"
            )
        if getattr(image, "is_animated", False):
            raise ImageError(path, "holds several images, expected one slice")
        with foreign(path):
            image.load()
        low, high = image.getextrema() if image.mode == "I" else (0, 0)
        if image.mode == "F" or low < 0 or high > 65535:
            raise ImageError(
                path, "more than 16 bits a pixel, or below 0: convert it to 8 or 16 bits"
            )
        if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
            return Image.fromarray(np.asarray(image, dtype=np.float32))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            black = Image.new("RGBA", image.size, "black")
            image = Image.alpha_composite(black, image)
        grey = image.convert("L")
        grey.info["colour"] = is_colour(image)
        return grey


def is_colour(image: Image.Image) -> bool:
    """Whether the channels of an image differ by more than JPEG makes them differ."""
    if image.mode in ("1", "L", "LA"):
        return False
    red, green, blue = image.convert("RGB").split()
    differences = (ImageChops.difference(red, other).getextrema()[1] for other in (green, blue))
    return max(differences) > JPEG_DIFFERENCE


def read_image(path: str | Path, image_size: tuple[int, int] | None = None) -> DecodedImage:
    """Decode one image file, and resize it to (height, width). Raises as `read_grey`."""
    image = read_grey(path)
    highest = int(image.getextrema()[1]) if image.mode == "F" else None
    values = resize(image, image_size or (image.height, image.width))
    return DecodedImage(values, highest, image.info.get("colour", False))


def resize(image: Image.Image, image_size: tuple[int, int]) -> np.ndarray:
    """(height, width) uint8, or of an image of mode F uint16."""
    height, width = image_size
    dtype = np.uint16 if image.mode == "F" else np.uint8
    image = image.resize((width, height), Image.Resampling.BILINEAR)  # antialiased
    return np.asarray(image).round().astype(dtype)


# ---- 16-bit files --------------------------------------------------------------------------------


def bit_depth(highest: int) -> int:
    """How many bits hold the largest value of a scan's 16-bit images: 8 to 16."""
    return max(8, highest.bit_length())


def to_grey(values: np.ndarray, bits: int) -> np.ndarray:
    """uint16 values of so many bits -> uint8 grey levels: 0 stays black, all bits set are white."""
    return (values * np.float32(255 / (2**bits - 1))).round().astype(np.uint8)


def describe_depths(depths: dict[int, int]) -> str:
    """A line for a person on scans of 16-bit images and of images in colour (bits -> how many
    scans); "" if there are none.
    """
    counts = {bits: counted(n, "scan") for bits, n in sorted(depths.items())}
    colour = counts.pop(COLOUR, "")
    held = ", ".join(f"{bits} bits in {scans}" for bits, scans in counts.items())
    lines = [f"16-bit images hold {held}: made 8 bits scan by scan"] if held else []
    lines += [f"images of {colour} are in colour, and are read as grey"] if colour else []
    return "; ".join(lines)
