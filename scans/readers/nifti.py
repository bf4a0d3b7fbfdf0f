"""NIfTI 1 and 2, by nibabel: headers -> volumes, and their voxels.

    (volume,) = read_headers("p01_RIGHT.nii.gz")    # .size (i, j, k), geometry in mm
    pixels = read_pixels(volume)                    # (k, j, i) float32, slopes applied

Where a file is: its sform if that has a code, else its qform, as nibabel and FSL have it. NIfTI
counts x to the right and y to the front; a volume here counts both the other way, as DICOM does.
"""

import gzip
import logging
import math

import numpy as np

from common.files import check_regular
from scans.readers.foreign import foreign, package
from scans.slices import DAMAGED, Volume, VolumeError

LARGEST_SHEAR = 15.0  # degrees between two axes and a right angle; more is no photograph of a body
SHEARED = 0.01  # degrees that are said
APART = 0.1  # mm between sform and qform that are said
FARTHEST = 1e6  # mm
BLOCK = 1 << 20  # bytes behind the voxels of a packed file, of which the last are its checksum
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # what is mended in a header


def load(path: str):
    """An image of nibabel, whose voxels are not read yet. Raises VolumeError."""
    nib = package("nibabel", "NIfTI")
    with foreign(path):
        check_regular(path)
        image = nib.load(path, mmap=False)
        if not isinstance(image, nib.Nifti1Image):
            raise VolumeError(path, f"{DAMAGED}: no NIfTI header")
        return image


def read_headers(path: str) -> list[Volume]:
    """Size and geometry of a file, without its voxels. Raises VolumeError."""
    image = load(path)
    with foreign(path), np.errstate(all="ignore"):  # of NaN; the numbers are looked at below
        size = tuple(map(int, image.shape))
        kind = image.get_data_dtype()
        affine, notes = affine_of(image)
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not (np.abs(affine).max() <= FARTHEST and (spacing > 0).all()):
        raise VolumeError(path, "claims a position that no scanner has")
    while len(size) > 3 and size[-1] == 1:
        size = size[:-1]
    direction, of_shear = at_right_angles(path, affine[:3, :3] / spacing)
    volume = Volume(
        path=path,
        parts=(path,),
        size=size,
        spacing=tuple(spacing.tolist()),
        origin=tuple(affine[:3, 3].tolist()),
        direction=direction,
        components=len(kind.names) if kind.names else 1 + (kind.kind == "c"),
        sides=frozenset(),
        tags={"note": "; ".join([*notes, *of_shear])} if notes or of_shear else {},
    )
    return [volume]


def affine_of(image) -> tuple[np.ndarray, list[str]]:
    """Indices -> mm, x to the left and y to the back; and what is odd. Without any: no geometry."""
    (sform, s_code), (qform, q_code) = (
        image.header.get_sform(coded=True),
        image.header.get_qform(coded=True),
    )
    notes = []
    if s_code > 0 and q_code > 0:
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in (*image.shape, 1, 1)[:3]])).reshape(
            3, -1
        )
        corners = np.vstack([corners, np.ones(corners.shape[1])])
        if np.abs((sform - qform) @ corners).max() > APART:
            notes.append("its sform and its qform disagree: the sform is taken")
    if s_code > 0 or q_code > 0:
        return np.diag([-1, -1, 1, 1]) @ (sform if s_code > 0 else qform), notes
    zooms = (*map(float, image.header.get_zooms()), 1.0, 1.0)[:3]
    return np.diag([*zooms, 1.0]), notes


def at_right_angles(path: str, direction: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The nearest axes that are at right angles (the polar decomposition), and a note if these are
    not. Raises VolumeError for a large shear.
    """
    off = np.abs(direction.T @ direction - np.eye(3)).max()
    shear = float(np.degrees(np.arcsin(min(1.0, off))))
    if shear > LARGEST_SHEAR:
        text = f"its axes are sheared by {shear:.0f} degrees, expected right angles: resample it"
        raise VolumeError(path, text)
    u, _, v = np.linalg.svd(direction)
    text = "its axes are sheared, and read as the nearest that are at right angles"
    return u @ v, [text] if shear > SHEARED else []


def read_pixels(volume: Volume) -> np.ndarray:
    """All voxels, float32 (k, j, i). Raises VolumeError."""
    image = load(volume.path)
    size = (*volume.size, 1, 1)[:3]
    with foreign(volume.path):
        if tuple(image.shape[:3]) != size:
            raise VolumeError(volume.path, "has changed since its header was read")
        if volume.path.lower().endswith(".gz"):
            end = image.dataobj.offset + image.get_data_dtype().itemsize * math.prod(size)
            with gzip.open(volume.path) as file:  # nibabel would not look at the checksum
                image = type(image).from_bytes(file.read(end + BLOCK))
        return image.get_fdata(dtype=np.float32, caching="unchanged").reshape(size).T
