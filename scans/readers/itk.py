"""NRRD and MetaImage by SimpleITK, with their data beside them or in the file.

(volume,) = read_headers("p01_RIGHT.mhd")   # .parts ("p01_RIGHT.mhd", "p01_RIGHT.raw")
pixels = read_pixels(volume)                # (k, j, i) float32
"""

import os
import re
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from common.files import check_regular, open_regular
from scans.readers.foreign import foreign, package
from scans.slices import Volume, VolumeError

MAX_HEADER = 1 << 16  # bytes, of text
DATA_FILE = re.compile(rb"^(?:ElementDataFile *=|data ?file:) *([^\r\n]+)", re.M | re.I)
PACKED = re.compile(rb"^CompressedData *= *(?:True|1)\b", re.M | re.I)
# Without it SimpleITK asks all that it has, which look at other files, too.
READERS = {".nrrd": "NrrdImageIO", ".nhdr": "NrrdImageIO"}
READERS |= {".mha": "MetaImageIO", ".mhd": "MetaImageIO"}


def simpleitk():
    return package("SimpleITK", "NRRD and MetaImage")


@contextmanager
def heard(path: str) -> Iterator[None]:
    """Around SimpleITK's reading: of damaged voxels it may just print, and give any values."""
    with tempfile.TemporaryFile() as said, foreign(path):
        terminal = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
        said.seek(0)
        if text := " ".join(said.read(MAX_HEADER).decode(errors="replace").split()):
            raise VolumeError(path, f"cut or damaged: {text[:200]}")


def opened(path: str):
    """A reader of SimpleITK for a file, and the files that it reads. Raises VolumeError."""
    sitk = simpleitk()
    try:
        path.encode()
    except UnicodeEncodeError:  # it would end the process
        raise VolumeError(path, "its name, or a folder's, is no UTF-8: rename it") from None
    with foreign(path):
        with open_regular(path) as file:
            named = DATA_FILE.findall(file.read(MAX_HEADER))
        data = [os.path.join(os.path.dirname(path), os.fsdecode(name).strip()) for name in named]
        if any(b"%" in name or name.strip() == b"LIST" for name in named):  # a file for each slice
            folder = os.path.dirname(path) or "."
            data = [os.path.join(folder, x) for x in sorted(os.listdir(folder))]
            parts = (path, *(x for x in data if os.path.isfile(x) and x != path))
        else:
            parts = (path, *(x for x in data if not x.endswith("LOCAL")))
        for part in parts:
            check_regular(part)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(READERS[os.path.splitext(path)[1].lower()])
    reader.SetFileName(path)
    return reader, parts


def check_packed(parts: tuple[str, ...]) -> None:
    """Raise VolumeError where packed voxels of MetaImage are damaged: SimpleITK does not look."""
    with foreign(parts[0]), open_regular(parts[0]) as header, open_regular(parts[-1]) as file:
        text = header.read(MAX_HEADER)
        if not PACKED.search(text):
            return
        if len(parts) == 1:  # behind the line of its last field
            file.seek(text.index(b"\n", DATA_FILE.search(text).end()) + 1)
        unpacker = zlib.decompressobj()
        while not unpacker.eof and (block := file.read(1 << 20)):
            unpacker.decompress(block)
        if not unpacker.eof:
            raise EOFError("its packed voxels end too early")


def read_headers(path: str) -> list[Volume]:
    """Size and geometry of one file, without its voxels. Raises VolumeError."""
    reader, parts = opened(path)
    with heard(path):
        reader.ReadImageInformation()
    size, dimension = reader.GetSize(), reader.GetDimension()
    while len(size) > 3 and size[-1] == 1:
        size = size[:-1]
    spacing = np.array(reader.GetSpacing()[:3])
    direction = np.array(reader.GetDirection()).reshape(dimension, dimension)[:3, :3]
    has_space = path.lower().endswith((".mha", ".mhd")) or reader.HasMetaDataKey("NRRD_space")
    volume = Volume(
        path=path,
        parts=parts,
        size=tuple(size),
        spacing=tuple(np.abs(spacing).tolist()),
        origin=reader.GetOrigin()[:3],
        direction=direction * np.where(spacing < 0, -1, 1),  # a negative spacing turns its axis
        components=reader.GetNumberOfComponents(),
        sides=frozenset(),
        tags={"space": "known"} if has_space else {},
    )
    return [volume]


def read_pixels(volume: Volume) -> np.ndarray:
    """All voxels, float32 (k, j, i). Raises VolumeError."""
    reader, parts = opened(volume.path)
    check_packed(parts)
    reader.SetOutputPixelType(simpleitk().sitkFloat32)
    with heard(volume.path):
        image = reader.Execute()
    size = (*volume.size, 1, 1)[:3]
    if image.GetNumberOfPixels() != np.prod(size):
        raise VolumeError(volume.path, "has changed since its header was read")
    return simpleitk().GetArrayFromImage(image).reshape(size[::-1])
