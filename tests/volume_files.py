"""Small volumes of every format, made by SimpleITK; without it, what imports this is skipped."""

from pathlib import Path

import numpy as np
import pytest

sitk = pytest.importorskip("SimpleITK")
# Columns: where i, j, k point in patient coordinates (x left, y back, z up).
SAGITTAL = (0, 0, -1, 1, 0, 0, 0, -1, 0)  # i to the back, j downwards, k to the right
FORMATS = ("nii", "nii.gz", "nrrd", "nhdr", "mha", "mhd")


def noise(*shape: int, dtype=np.int16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4096, shape).astype(dtype)


def volume(pixels, spacing=(0.5, 0.5, 3), x=-70.0, direction=SAGITTAL, origin=None):
    """An image of an array (k, j, i), centred at x unless it has an origin."""
    image = sitk.GetImageFromArray(pixels)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    centre = image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()])
    image.SetOrigin([x - centre[0], 0.0, 5.0] if origin is None else origin)
    return image


def write_volume(path: Path, pixels=None, x=0.0) -> None:
    """One that is centred at x; nearer to 0 than 20 mm that tells no side."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(volume(noise(6, 9, 12) if pixels is None else pixels, x=x), str(path))


def write_dicom(folder: Path, pixels, tags=(), x=-70.0, names=None, step=3.0, skip=()) -> list[str]:
    """Single sagittal slices, from left to right; the names say nothing of their order."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    written = []
    for k, rows in enumerate(pixels):
        if k in skip:
            continue
        image = sitk.GetImageFromArray(rows[None])
        image.SetSpacing((0.5, 0.5, step))
        position = f"{x - step * (k - (len(pixels) - 1) / 2)}\\-50\\60"
        standard = {
            "0008|0060": "MR",
            "0020|000e": "1.2.3",
            "0020|0011": "4",
            "0020|0032": position,
            "0020|0037": "0\\1\\0\\0\\0\\-1",
            "0008|0018": f"1.2.3.{k + 1}.{abs(hash(str(tags))) % 10**8}",
        }
        for tag, value in {**standard, **dict(tags)}.items():
            image.SetMetaData(tag, value)
        name = names[k] if names else f"{(7 * k) % len(pixels):03}.dcm"
        writer.SetFileName(str(folder / "temporary.dcm"))
        writer.Execute(image)
        (folder / "temporary.dcm").rename(folder / name)
        written.append(name)
    return written


def write_two_series(folder: Path) -> None:
    """Of 6 slices each."""
    for number in ("4", "5"):
        tags = {"0020|000e": f"1.{number}", "0020|0011": number}
        write_dicom(folder, noise(6, 8, 10), tags, names=[f"{number}-{k}" for k in range(6)])
