"""NumPy's .npy files (slices, height, width), as of MRNet -> volumes. SimpleITK is not needed.

    volume = read_npy_header("train/axial/0000.npy")    # .size (width, height, slices)
    pixels = read_npy_pixels(volume)                    # (slices, height, width) float32

Such a file knows neither directions nor distances: its slices are those of its first axis.
"""

import io
import math
import os
import warnings
from typing import NamedTuple

import numpy as np

from common.files import open_regular
from common.program import counted
from scans.slices import Volume, VolumeError

# NumPy's, of a header that Python 2 wrote, or a damaged one that looks so.
warnings.filterwarnings("ignore", "Reading .* required additional header parsing")
MAX_HEADER = 10_000  # bytes; NumPy's own are 128, and what is longer is hostile
BLOCK = 1 << 22  # values that are turned into float32 at a time
NUMBERS = "biuf"  # NumPy's kinds of True and False, whole numbers, and floats


class Layout(NamedTuple):
    """Where the values of a .npy file are, and how they are stored."""

    shape: tuple[int, ...]
    dtype: np.dtype
    order: str  # C: the last axis is the fastest; F: the first
    offset: int  # bytes of the header


def is_npy(path: str) -> bool:
    return path.lower().endswith(".npy")


def is_npz(path: str) -> bool:
    return path.lower().endswith(".npz")


def read_npy_header(path: str) -> Volume:
    """The size of one file, without its pixels. Raises VolumeError for all but a 3D array."""
    layout = read_layout(path)
    return Volume(
        path=path,
        parts=(path,),
        size=layout.shape[::-1],
        spacing=(1.0, 1.0, 1.0),
        origin=(0.0, 0.0, 0.0),
        direction=np.eye(3),
        components=1,
        bits=8 * layout.dtype.itemsize,
        sides=frozenset(),
        tags={},
    )


def read_layout(path: str) -> Layout:
    """Raises VolumeError: one line that names the file, what is wrong, and what is expected."""
    if is_npz(path):
        raise VolumeError(path, "an archive of arrays, which is not read: save one .npy a scan")
    try:
        with open_regular(path) as file:
            start, held = file.read(MAX_HEADER), os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise VolumeError(path, "no such file") from None
    except OSError as error:
        raise VolumeError(path, error.strerror) from None
    layout = parse_layout(path, start)
    shape, dtype, size = layout.shape, layout.dtype, " x ".join(map(str, layout.shape))
    if dtype.hasobject:
        problem = "holds Python objects, which are not read: save it as numbers"
    elif dtype.kind not in NUMBERS:
        problem = f"holds values of type {dtype}, expected whole numbers, floats or booleans"
    elif len(shape) != 3:
        dimensions = counted(len(shape), "dimension")
        problem = f"an array of {dimensions} ({size}), expected slices x height x width"
    elif min(shape) < 1:
        problem = f"an array of {size} values, expected slices x height x width"
    elif held < (needed := layout.offset + math.prod(shape) * dtype.itemsize):
        problem = f"cut: {held} of {needed} bytes"
    elif held > needed:
        problem = f"damaged: {held} bytes, but its header tells of {needed}"
    else:
        return layout
    raise VolumeError(path, problem[:300])  # a shape may be of thousands of digits


def parse_layout(path: str, start: bytes) -> Layout:
    """What the first bytes of a file say. Raises VolumeError if they are no header."""
    stream = io.BytesIO(start)  # a header that claims gigabytes is not read beyond it
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            header = np.lib.format.read_array_header_1_0(stream, max_header_size=MAX_HEADER)
        elif version == (2, 0):
            header = np.lib.format.read_array_header_2_0(stream, max_header_size=MAX_HEADER)
        else:  # 3.0 is for the names of columns
            header = None
    except Exception as error:  # of a damaged one NumPy may raise ValueError, TokenError, ...
        text = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise VolumeError(path, f"not a .npy file, or a damaged one: {text}") from None
    if header is None:
        raise VolumeError(path, f"a .npy file of version {version[0]}.{version[1]}, expected 1.0")
    shape, fortran_order, dtype = header
    return Layout(shape, dtype, "F" if fortran_order else "C", stream.tell())


def read_npy_pixels(volume: Volume) -> np.ndarray:
    """All voxels, float32 (slices, height, width). Raises VolumeError."""
    layout = read_layout(volume.path)
    if layout.shape[::-1] != volume.size:
        raise VolumeError(volume.path, "has changed since its header was read")
    pixels = np.empty(math.prod(layout.shape), np.float32)
    try:
        with (
            open_regular(volume.path) as file,
            np.errstate(over="ignore"),
        ):  # 1e300 is infinite then
            file.seek(layout.offset)
            for block in np.split(pixels, range(BLOCK, len(pixels), BLOCK)):
                values = np.fromfile(file, layout.dtype, len(block))
                if len(values) < len(block):
                    raise VolumeError(volume.path, "has changed while it was read")
                block[:] = values
    except OSError as error:
        raise VolumeError(volume.path, error.strerror) from None
    return pixels.reshape(layout.shape, order=layout.order)
