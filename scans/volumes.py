"""Volumes (NIfTI, NRRD, MetaImage, .npy, DICOM series) -> headers, and slices as in AKOA.

    pip install -r requirements-extra.txt
    from scans.series import open_volume
    slices = read_slices(open_volume("p01_RIGHT.nii.gz"))    # (40, height, width) uint8

Geometry is in mm, in patient coordinates: x to the left, y to the back, z up.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from PIL import Image

from common.program import counted
from scans.names import is_npy
from scans.readers import read_pixels
from scans.slices import (
    MAX_VOXELS,
    MIN_SLICES,
    DataError,
    Options,
    Slice,
    Slicing,
    TooShort,
    Volume,
    VolumeError,
)
from scans.stacks import is_radiograph

PLANES = ("stored", "sagittal", "coronal", "axial")
MAX_PIXELS = 20_000_000  # a slice; far above any
MM = 1e-9, 1e9  # of a voxel, in whatever unit
FARTHEST = 1e6  # mm from the middle
MIDLINE = 20.0  # mm; a volume centred nearer to x = 0 does not tell its side
PERCENTILES = (1, 99.5)  # of the whole volume: black and white
# Where slices, rows (downwards) and columns (to the right) of a plane go: Left, Posterior, ...
TOWARDS = {"sagittal": "LIP", "coronal": "PIL", "axial": "SPL"}
OPPOSITE = dict(zip("LRPASI", "RLAPIS", strict=True))
AXES = {False: "rows and columns", True: "slices, rows and columns"}  # of whole scans


def side_of_position(volume: Volume) -> str | None:
    """The side, if its centre is more than 20 mm from the middle, x = 0.

    None as well where the file has no real geometry: an origin of exactly 0, 0, 0, or a NRRD file
    without `space`.
    """
    if not (any(volume.origin) and has_space(volume)):
        return None
    extent = np.multiply(volume.spacing, np.subtract(volume.size, 1))
    x = volume.origin[0] + (volume.direction @ extent)[0] / 2
    return ("left" if x > 0 else "right") if abs(x) > MIDLINE else None


def has_space(volume: Volume) -> bool:
    """Whether its axes are said to be the patient's; of a NRRD file only where it has `space`."""
    return "space" in volume.tags or not volume.path.lower().endswith((".nrrd", ".nhdr"))


def check_volume(volume: Volume) -> None:
    """Raise VolumeError for what is not one grey 3D volume of a sane size."""
    size = " x ".join(map(str, volume.size))
    if len(volume.size) < 3:
        problem = f"a 2D image ({size}), expected a volume"
    elif len(volume.size) > 3:
        problem = f"has {len(volume.size)} dimensions ({size}), expected one 3D volume"
    elif volume.components > 1:
        problem = f"has {volume.components} values a voxel (colours?), expected grey values"
    elif min(volume.size) < 1:
        problem = f"claims {size} voxels"
    elif not all(MM[0] <= s <= MM[1] for s in volume.spacing):
        problem = f"claims voxels of {' x '.join(map(str, volume.spacing))} mm"
    elif not (np.abs([*volume.origin, *volume.direction.ravel()]) <= FARTHEST).all():
        problem = "claims a position that no scanner has"
    elif np.prod(volume.size, dtype=float) > MAX_VOXELS:
        problem = f"claims {size} voxels, more than {MAX_VOXELS}"
    else:
        return
    raise VolumeError(volume.source, problem)


# ---- planes and pixels ---------------------------------------------------------------------------


def plan_slicing(volume: Volume, options: Options = Options()) -> Volume:
    """The same, with `slicing` set.

    `stored` cuts across the axis with the largest spacing (of equal ones the slowest) and leaves
    rows and columns as they are. The other planes take the axes nearest to the patient's, without
    resampling, by the file's direction cosines (without any, it counts as axial):

    - sagittal: slices from right to left, superior on top, anterior at the left
    - coronal: slices from front to back, superior on top, the patient's right at the left
    - axial: slices upwards, anterior on top, the patient's right at the left

    Slices are enlarged where pixels are not square.

    Raises VolumeError if the slices are too few (TooShort) or too large.
    """
    plane = options.plane
    if plane == "stored":
        thick = volume.spacing[2] >= 0.99 * max(volume.spacing)
        through = 2 if thick else int(np.argmax(volume.spacing))
        axes, reverse = (through, *(a for a in (2, 1, 0) if a != through)), (False,) * 3
    elif plane in PLANES and is_npy(volume.path):
        raise VolumeError(volume.path, "a .npy file has no directions: only --plane stored")
    elif plane in PLANES:
        code = orientation_code(volume)
        axes = tuple(max(code.find(c), code.find(OPPOSITE[c])) for c in TOWARDS[plane])
        reverse = tuple(code[a] != c for a, c in zip(axes, TOWARDS[plane], strict=True))
    else:
        raise DataError(f"plane must be one of {', '.join(PLANES)}, got {plane!r}")
    if (count := volume.size[axes[0]]) < MIN_SLICES and not is_radiograph(volume):
        raise TooShort(
            volume.source, f"only {counted(count, 'slice')}, expected {MIN_SLICES} or more"
        )
    height, width = (volume.size[a] for a in axes[1:])
    spacing = [volume.spacing[a] for a in axes[1:]]
    if max(spacing) > 1.01 * min(spacing):
        height = max(1, round(height * spacing[0] / min(spacing)))
        width = max(1, round(width * spacing[1] / min(spacing)))
    if height * width > MAX_PIXELS:
        raise VolumeError(volume.source, f"slices of {height} x {width} pixels are too large")
    slicing = Slicing(axes, reverse, min(count, options.slices), height, width)
    return replace(volume, slicing=slicing)


def orientation(volume: Volume | None) -> str:
    """Where slices, rows and columns go to, as "LIP": left, inferior, posterior.

    "" of images, and of a volume that has no geometry: neither directions nor an origin.
    """
    if volume is None or is_npy(volume.path):
        return ""
    placed = any(volume.origin) or not np.array_equal(volume.direction, np.eye(3))
    if not (placed and has_space(volume)):
        return ""
    code, slicing = orientation_code(volume), volume.slicing
    axes = zip(slicing.axes, slicing.reverse, strict=True)
    return "".join(OPPOSITE[code[a]] if reverse else code[a] for a, reverse in axes)


def common_direction(slices: Iterable[Slice], is_whole: bool = False) -> str:
    """Where rows and columns of all volumes go to, as "IP", and of whole scans slices before them;
    "" where nothing tells it.

    Raises DataError if they differ: one of two such knees is mirrored or upside down.
    """
    found: dict[str, Volume] = {}
    for volume in {s.source: s.volume for s in slices if s.volume}.values():
        if towards := orientation(volume)[0 if is_whole else 1 :]:
            found.setdefault(towards, volume)
    if len(found) > 1:
        (first, one), (second, other) = list(found.items())[:2]
        planes = {plane_of(volume) for volume in found.values()}
        plane = planes.pop() if len(planes) == 1 else "sagittal, coronal or axial"
        raise DataError(
            f"{other.source}: {AXES[is_whole]} go to {second}, but those of {one.source} to "
            f"{first}; --plane {plane} reads all of them one way"
        )
    return next(iter(found), "")


def other_direction(volume: Volume | None, trained: str) -> str:
    """What is wrong where a volume runs in another direction than those that were trained on."""
    towards = orientation(volume)[-len(trained) :]
    if not (trained and towards) or towards == trained:
        return ""
    return (
        f"{AXES[len(trained) == 3]} go to {towards}, but those that were trained on to {trained}; "
        "a model that was trained with --plane sagittal, coronal or axial reads all of them one way"
    )


def plane_of(volume: Volume) -> str:
    """The plane that is nearest to its slices as they are cut."""
    across = orientation(volume)[0]
    return next(x for x, towards in TOWARDS.items() if across in towards[0] + OPPOSITE[towards[0]])


def orientation_code(volume: Volume) -> str:
    """Where the axes i, j, k go to, each to another: "PIR" is posterior, inferior, right."""
    letters, left = [""] * 3, volume.direction.copy()
    for _ in range(3):  # first the axis that runs most nearly along one of the patient's
        along, axis = np.unravel_index(np.abs(left).argmax(), (3, 3))
        letters[axis] = "LPS"[along] if left[along, axis] > 0 else "RAI"[along]
        left[along, :] = left[:, axis] = 0
    return "".join(letters)


def read_slices(volume: Volume) -> np.ndarray:
    """The slices of a volume, as they were planned: uint8 array (slices, height, width).

    The 1st percentile of the whole volume becomes 0, the 99.5th 255, values between are linear
    (from minimum to maximum if the two are equal). NaN, infinities and DICOM's padding have no part
    in that, and are black.

    Raises:
        VolumeError: one line that names the file and what is wrong.
    """
    slicing = volume.slicing
    pixels = read_pixels(volume)  # (k, j, i)
    finite = np.isfinite(pixels)
    measured = pixels if finite.all() else pixels[finite]
    low, high = map(float, np.percentile(measured, PERCENTILES)) if measured.size else (0.0, 0.0)
    if low == high and measured.size:  # as in a label map with little but background
        low, high = float(measured.min()), float(measured.max())
    if measured is not pixels:
        pixels[~finite] = low
    pixels = pixels.transpose([2 - a for a in slicing.axes])  # (slices, rows, columns)
    pixels = pixels[tuple(slice(None, None, -1 if r else 1) for r in slicing.reverse)]
    chosen = np.linspace(0, len(pixels) - 1, slicing.slices).round().astype(int)
    scaled = (pixels[chosen].astype(float) - low) / ((high - low) or 1) * 255
    slices = scaled.clip(0, 255).round().astype(np.uint8)
    if slices.shape[1:] == (slicing.height, slicing.width):
        return slices
    size, bilinear = (slicing.width, slicing.height), Image.Resampling.BILINEAR
    return np.stack([np.asarray(Image.fromarray(s).resize(size, bilinear)) for s in slices])
