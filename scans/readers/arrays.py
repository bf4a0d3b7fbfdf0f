"""NumPy's .npy files (slices, height, width), as of MRNet -> volumes.

    (volume,) = read_headers("train/axial/0000.npy")    # .size (width, height, slices)
    pixels = read_pixels(volume)                        # (slices, height, width) float32

Such a file knows neither directions nor distances: its slices are those of its first axis.
"""

import numpy as np

from common.files import check_regular
from scans.readers.foreign import foreign
from scans.slices import DAMAGED, Volume, VolumeError

NUMBERS = "biuf"  # NumPy's kinds of True and False, whole numbers, and floats


def mapped(path: str) -> np.ndarray:
    """The array of a file, whose values are not read yet. Raises VolumeError for others than 3D."""
    if path.lower().endswith(".npz"):
        raise VolumeError(path, "an archive of arrays, which is not read: save one .npy a scan")
    with foreign(path):
        check_regular(path)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):  # a .npz under this name
        raise VolumeError(path, f"{DAMAGED}: an archive of arrays")
    size = " x ".join(map(str, array.shape))
    if array.dtype.kind not in NUMBERS:
        problem = f"holds values of type {array.dtype}, expected whole numbers, floats or booleans"
    elif array.ndim != 3 or not array.size:
        problem = f"an array of {size or 'one'} values, expected slices x height x width"
    else:
        return array
    raise VolumeError(path, problem[:300])


def read_headers(path: str) -> list[Volume]:
    volume = Volume(
        path=path,
        parts=(path,),
        size=mapped(path).shape[::-1],
        spacing=(1.0, 1.0, 1.0),
        origin=(0.0, 0.0, 0.0),
        direction=np.eye(3),
        components=1,
        sides=frozenset(),
        tags={},
    )
    return [volume]


def read_pixels(volume: Volume) -> np.ndarray:
    """All values, float32 (slices, height, width). Raises VolumeError."""
    array = mapped(volume.path)
    if array.shape[::-1] != volume.size:
        raise VolumeError(volume.path, "has changed since its header was read")
    with np.errstate(over="ignore"):  # 1e300 is infinite then
        return array.astype(np.float32)
