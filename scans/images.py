"""One image file -> grey levels.

read_image("left/p01_7.png", (76, 86)).values   # uint8 array (76, 86)

Pictures are turned as their EXIF orientation says. 16-bit files often hold 12 bits, or fewer. Their
values become grey levels by what all images of a scan hold, so that its slices stay comparable: see
DecodedImage.grey, and scans/cache.py.
"""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from common.files import NotAFile, open_regular
from common.isolation import Lost
from common.program import counted
from scans.slices import DataError

# What Pillow doubts in a file, such as its EXIF data, is no matter where it is decoded.
warnings.filterwarnings("ignore", module=r"PIL\.")
MAX_PIXELS = 20_000_000  # far above any slice; as RGBA, that takes 240 MB a thread
JPEG_DIFFERENCE = 16  # of the channels of a grey JPEG, by rounding
COLOUR = 24  # bits of a pixel, where `describe_depths` counts images in colour
# Pillow would try all it knows: EPS runs Ghostscript.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "JPEG2000", "PPM")
# Of colours of 16 bits Pillow keeps the upper 8: how it stores them -> how to get the lower 8, by
# taking the bytes in the other order, or (LA) each byte for a channel of its own.
LOWER_BYTES = {"RGB;16B": "RGB;16L", "RGB;16L": "RGB;16B", "RGBA;16B": "RGBA;16L"}
LOWER_BYTES |= {"RGBA;16L": "RGBA;16B", "LA;16B": "RGBA"}
NATIVE, SWAPPED = ("L", "B") if sys.byteorder == "little" else ("B", "L")
LOWER_BYTES |= {f"{mode};16N": f"{mode};16{SWAPPED}" for mode in ("RGB", "RGBA")}
LUMINANCE = np.array([299, 587, 114])  # in thousandths, of red, green and blue (ITU-R 601-2)
# Tags of TIFF.
BITS_PER_SAMPLE, PHOTOMETRIC, PLANAR = 258, 262, 284
WHITE_IS_ZERO, SEPARATE = 0, 2


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


def describe_image(path: str) -> str | Lost:
    """Its size and mode. What is wrong with it is said where it is decoded."""
    try:
        with open_image(path) as image:
            return f"{image.height} x {image.width} {image.mode}"
    except ImageError as error:
        return Lost(error.text)


class DecodedImage(NamedTuple):
    """(height, width): grey levels as uint8, or the values of a 16-bit file as uint16."""

    values: np.ndarray
    highest: int | None = None  # of a 16-bit file as it is stored, not resized; None: grey levels
    is_colour: bool = False  # its channels differed
    is_inverted: bool = False  # its zero was white; values are below what `highest` allows

    def grey(self, bits: int) -> np.ndarray:
        """uint8 grey levels of a 16-bit file, whose scan holds so many bits."""
        values = self.values
        if self.is_inverted and bits > bit_depth(self.highest):
            values = values + (2**bits - 2 ** bit_depth(self.highest))
        return to_grey(values, bits)


def read_grey(path: str | Path) -> Image.Image:
    """Decode one image file: mode L, or of a 16-bit file mode F, with its values as they are.

    Its info holds what `DecodedImage` says of it. It is upright; of several pictures of a camera
    (MPO) it is the first. Transparent pixels are black, unless all are; colours become luminance
    (equal channels keep their value exactly).

    Raises:
        ImageError: it is damaged, too large, or not one slice of 8 or 16 bits.
    """
    with open_image(path) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ImageError(
                path, f"{image.width} x {image.height} pixels are too many for a slice"
            )
        if getattr(image, "is_animated", False) and image.format != "MPO":
            raise ImageError(path, "holds several images, expected one slice")
        lower = lower_bytes(path, image)
        is_inverted = image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO
        with foreign(path):
            image.load()
            image = ImageOps.exif_transpose(image)
        if lower is not None:
            return deep_of_colours(np.asarray(image), lower)
        low, high = image.getextrema() if image.mode == "I" else (0, 0)
        if image.mode == "F" or low < 0 or high > 65535:
            raise ImageError(
                path, "more than 16 bits a pixel, or below 0: convert it to 8 or 16 bits"
            )
        if image.mode == "LAB":
            raise ImageError(path, "its colours are CIELAB, which is not read: convert it to grey")
        if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
            return deep_of_grey(np.asarray(image, dtype=np.float32), is_inverted)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            if image.getextrema()[3] != (0, 0):
                image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
        grey = image.convert("L")
        grey.info["is_colour"] = is_colour(image)
        return grey


def lower_bytes(path: str | Path, image: Image.Image) -> np.ndarray | None:
    """Of colours of 16 bits, of which Pillow keeps the upper 8, the lower 8: (height, width,
    channels), upright; None of all others. Raises ImageError where they can't be had.
    """
    modes = {f"{args[0] if isinstance(args, tuple) and args else args}" for *_, args in image.tile}
    is_deep = any(
        ";16" in mode and mode != "BGR;16" for mode in modes
    ) and not image.mode.startswith("I")
    if image.format == "TIFF":
        is_planar = image.tag_v2.get(PLANAR) == SEPARATE
        is_deep |= is_planar and max(image.tag_v2.get(BITS_PER_SAMPLE, (1,))) > 8
        modes |= {"planar"} if is_planar else set()
    if not is_deep:
        return None
    if not modes <= LOWER_BYTES.keys():
        text = f"colours of 16 bits, stored as {' '.join(sorted(modes))}, which are not read"
        raise ImageError(path, f"{text}: convert it to grey")
    with open_image(path) as other, foreign(path):
        tiles = []  # where Pillow finds the pixels, and how it reads them
        for *where, args in other.tile:
            mode, *more = [args] if isinstance(args, str) else args
            swapped = LOWER_BYTES[mode]
            tiles.append(type(other.tile[0])(*where, (swapped, *more) if more else swapped))
        other.tile = tiles
        lower = np.asarray(ImageOps.exif_transpose(other))
    return lower[..., [1, 1, 1, 3]] if modes == {"LA;16B"} else lower


def deep_of_colours(upper: np.ndarray, lower: np.ndarray) -> Image.Image:
    """Colours of 16 bits of their upper and lower 8: (height, width, 3, or with alpha 4)."""
    values = upper * 256.0 + lower
    colours, alpha = values[..., :3], values[..., 3:]
    if alpha.any():
        colours = colours * (alpha / 65535)
    grey = (colours @ LUMINANCE / 1000).round()
    difference = np.ptp(colours, axis=-1).max()
    image = Image.fromarray(grey.astype(np.float32))
    image.info["highest"] = int(grey.max())
    image.info["is_colour"] = bool(difference > grey.max() * JPEG_DIFFERENCE / 255)
    return image


def deep_of_grey(values: np.ndarray, is_inverted: bool) -> Image.Image:
    """float32 (height, width); where its zero is white, black is what its bits allow."""
    highest = int(values.max())
    if is_inverted:
        values = 2 ** bit_depth(highest) - 1 - values
    image = Image.fromarray(values)
    image.info |= {"highest": highest, "is_inverted": is_inverted}
    return image


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
    told = {name: image.info[name] for name in DecodedImage._field_defaults if name in image.info}
    return DecodedImage(resize(image, image_size or (image.height, image.width)), **told)


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
