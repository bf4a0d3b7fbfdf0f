"""Small volumes of every format, made by SimpleITK; without it, what imports this is skipped."""

import io
import tarfile
from collections.abc import Sequence
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


# What a visit of the OAI holds, but for three of its ten: description, slices, mm between them.
OAI_SERIES = (
    ("PRESCRIPTION", 3, 10.0),
    ("SAG_3D_DESS_RIGHT", 8, 0.7),
    ("SAG_3D_DESS_LEFT", 8, 0.7),
    ("COR_IW_TSE_RIGHT", 6, 3.0),
    ("COR_IW_TSE_LEFT", 6, 3.0),
    ("SAG_T2_MAP_RIGHT", 6, 3.0),
    ("AX_T1_THIGH", 6, 5.0),
)
ECHO_TIMES = {"SAG_T2_MAP_RIGHT": (10, 20)}


def knee(side: int, depth: int, height: int, width: int, seed: int) -> np.ndarray:
    """Noise with a bright bar: at the left of left knees (side 1) and the right of others (-1)."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(100, 300, (depth, height, width)).astype(np.int16)
    bar = slice(1, 3) if side > 0 else slice(width - 3, width - 1)
    if side:
        pixels[:, height // 4 : -height // 4, bar] += 2000
    return pixels


def make_oai(
    root: Path,
    patients: int = 8,
    visits: int = 2,
    size: tuple[int, int] = (12, 10),
    archives: bool = False,
    series: Sequence[tuple[str, int, float]] = OAI_SERIES,
) -> None:
    """The OAI in small: root/00m/0.C.2/9000001/20040101/10000001/001, or 10000001.tar.gz.

    Left knees lie at the left of the scanner, and what names no side in the middle.
    """
    for patient in range(patients):
        for visit in range(visits):
            name, date = f"{9000001 + patient}", f"{2004 + visit}0101"
            folder = root / f"{12 * visit:02}m" / "0.C.2" / name / date
            for number, (description, depth, step) in enumerate(series, 1):
                side = 1 if "LEFT" in description else -1 if "RIGHT" in description else 0
                identity = (patient * visits + visit) * len(series) + number
                of_series = folder / f"{10000000 + identity}"
                pixels = knee(side, depth, *size, seed=identity)
                for echo, time in enumerate(ECHO_TIMES.get(description, (10,))):
                    tags = {
                        "0010|0020": name,
                        "0008|0020": date,
                        "0020|000d": f"1.9.{patient + 1}.{visit + 1}",
                        "0020|000e": f"1.9.{patient + 1}.{visit + 1}.{number}",
                        "0020|0011": f"{number}",
                        "0008|103e": description,
                        "0018|0081": f"{time}",
                    }
                    names = [f"{echo * depth + k + 1:03}" for k in range(depth)]
                    write_dicom(of_series, pixels, tags, 75.0 * side, names, step)
                if archives:
                    pack(of_series)


def pack(folder: Path) -> Path:
    """Put a folder into folder.tar.gz and remove it."""
    archive = folder.with_name(f"{folder.name}.tar.gz")
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, arcname=f"{folder.name}/{path.name}")
            path.unlink()
    folder.rmdir()
    return archive


def write_tar(path: Path, members: Sequence[tuple[tarfile.TarInfo, bytes]], mode="w") -> Path:
    """An archive of such members, whatever they are."""
    with tarfile.open(path, mode) as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_two_series(folder: Path) -> None:
    """Of 6 slices each."""
    for number in ("4", "5"):
        tags = {"0020|000e": f"1.{number}", "0020|0011": number}
        write_dicom(folder, noise(6, 8, 10), tags, names=[f"{number}-{k}" for k in range(6)])
