"""Files of volumes: which reader each has, by its ending or its first bytes.

    volumes = reader_of(path).read_headers(path)        # without pixels
    pixels = read_pixels(volume)                        # (k, j, i) float32

A new format is a file here with these two functions, and a line in READERS. What is wrong with a
file is a VolumeError. They are called in processes that may die: see common/isolation.py.
"""

import os
from types import ModuleType

import numpy as np

from common.files import open_regular
from scans.names import is_archive, is_volume_name, may_be_dicom
from scans.readers import arrays, dicom, itk, nifti
from scans.slices import Volume

VERSION = 3  # to be raised when a reader gives other headers than before
READERS = {
    ".nii": nifti,
    ".nii.gz": nifti,
    ".nrrd": itk,
    ".nhdr": itk,
    ".mha": itk,
    ".mhd": itk,
    ".npy": arrays,
    ".npz": arrays,
}


def reader_of(path: str) -> ModuleType:
    """By the ending. DICOM may have any, or none."""
    lower = path.lower()
    return next((reader for ending, reader in READERS.items() if lower.endswith(ending)), dicom)


def read_pixels(volume: Volume) -> np.ndarray:
    """All voxels, float32 (k, j, i); NaN where nothing was measured. Raises VolumeError."""
    return (dicom if volume.places else reader_of(volume.path)).read_pixels(volume)


def is_volume(path: str | os.PathLike) -> bool:
    """Whether it is to be read as a volume, by its ending or its content."""
    name = os.path.basename(path)
    return is_volume_name(name) or is_archive(name) or is_dicom(path)


def is_dicom(path: str | os.PathLike) -> bool:
    """By its ending .dcm, or by its content if the ending is none or unknown. Never raises."""
    name = os.path.basename(path)
    if not may_be_dicom(name):
        return False
    if os.path.splitext(name)[1].lower() == ".dcm":
        return True
    try:
        with open_regular(path) as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False
