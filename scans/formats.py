"""Files of volumes, looked at before SimpleITK opens them: NRRD, MetaImage, DICOM.

    check_file("p01.mhd")           # raises VolumeError
    data_files("p01.mhd")           # ("p01.raw",)

SimpleITK opens what a header names, be it a pipe that never answers, believes the sizes that it
claims, prints what it says, and ends the program where a name is no UTF-8. So headers are read here
first, more strictly than by any library, and what does not follow their formats is refused.
"""

import os
import zlib

import numpy as np

from common.files import NotAFile, check_regular, open_regular
from scans.dicom_elements import check_elements
from scans.slices import Volume, VolumeError
from scans.text_headers import TextHeader, is_meta, is_nrrd, read_text_header

# Ending -> what reads it. Without it SimpleITK asks all it has, which look at other files, too.
READERS = {
    ".nrrd": "NrrdImageIO",
    ".nhdr": "NrrdImageIO",
    ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO",
}
DICOM_READER = "GDCMImageIO"
BLOCK = 1 << 20  # bytes
FREE_RATIO, FREE_BYTES = 200, 64 << 20  # as of archives: so dense, or so small, may all files be


def ending_of(path: str) -> str:
    lower = path.lower()
    return next((ending for ending in READERS if lower.endswith(ending)), "")


def reader_of(path: str, is_dicom: bool) -> str:
    """The name of the part of SimpleITK that reads such a file."""
    return DICOM_READER if is_dicom else READERS.get(ending_of(path), DICOM_READER)


def check_file(path: str) -> None:
    """Raise VolumeError, in one line, for a file that SimpleITK must not open."""
    check_openable(path, path)
    check_name(path, path)
    ending = ending_of(path)
    try:
        if not ending:
            check_elements(path)
        else:
            for data in data_files(path):
                check_openable(path, data)
                check_name(path, data)
    except (OSError, EOFError, zlib.error) as error:
        raise VolumeError(path, f"cut or damaged: {error}") from None


def check_openable(path: str, file: str) -> None:
    """Raise VolumeError about `path` unless `file` is one."""
    which = "" if file == path else f"its data file {os.path.basename(file)} is "
    try:
        check_regular(file)
    except NotAFile as error:
        raise VolumeError(path, f"{which}{error.kind}, expected a file") from None
    except FileNotFoundError:
        text = f"{which}missing" if which else "no such file"
        raise VolumeError(path, text) from None
    except OSError as error:
        raise VolumeError(path, f"{which}not readable: {error.strerror}") from None


def check_name(path: str, file: str) -> None:
    """Raise VolumeError about `path` where the name of `file` would end SimpleITK."""
    try:
        file.encode()
    except UnicodeEncodeError:
        raise VolumeError(path, "its name, or a folder's, is no UTF-8: rename it") from None


# ---- NRRD and MetaImage --------------------------------------------------------------------------


def data_files(path: str) -> tuple[str, ...]:
    """The file with the voxels that the header of a NRRD or MetaImage file names, if it does.

    Raises VolumeError if it is no such header; OSError.
    """
    if not (is_meta(path) or is_nrrd(path)):
        return ()
    data = read_text_header(path).data
    return (data,) if data else ()


# ---- how much there must be ----------------------------------------------------------------------


def check_claim(volume: Volume, files: tuple[str, ...]) -> None:
    """Raise VolumeError if so many voxels can't be in files of their size, however packed."""
    needed = int(np.prod(volume.size, dtype=float)) * volume.bits // 8
    if needed <= FREE_BYTES:
        return
    try:
        held = sum(map(os.path.getsize, files))
    except OSError as error:
        raise VolumeError(volume.source, f"not readable: {error.strerror}") from None
    if needed > FREE_RATIO * held:
        size = " x ".join(map(str, volume.size))
        raise VolumeError(volume.source, f"claims {size} voxels, but has {held:,} bytes")


def check_whole(volume: Volume) -> None:
    """Raise VolumeError if the voxels of a file are cut or damaged.

    Of a cut MetaImage file SimpleITK complains past Python's stderr.
    """
    path, ending = volume.path, ending_of(volume.path)
    needed = int(np.prod(volume.size, dtype=float)) * volume.bits // 8
    try:
        if ending:
            header = read_text_header(path)
            start = 0 if header.data else header.bytes
            if is_packed(path, header):
                held = bytes_unpacked(header.data or path, start, needed)
            else:
                held = os.path.getsize(header.data or path) - start
        else:
            return
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise VolumeError(path, f"cut or damaged: {error}") from None
    if held < needed:
        raise VolumeError(path, f"cut, or its data file is missing: {held} of {needed} bytes")


def is_packed(path: str, header: TextHeader) -> bool:
    """Whether the voxels are compressed. Raises VolumeError for what is not read."""
    fields = header.fields
    packed = fields.get("CompressedData", "").lower() in ("true", "1")
    encoding = fields.get("encoding", "gzip" if packed else "raw").lower()
    if encoding not in ("raw", "gzip", "gz"):
        text = f"its voxels are written as {encoding}, which is not read: save them as raw or gzip"
        raise VolumeError(path, text)
    skips = (fields.get(name, "0") for name in ("HeaderSize", "byteskip", "lineskip"))
    if encoding != "raw" and any(map(int, skips)):
        raise VolumeError(path, "its packed voxels begin later than its header, which is not read")
    return encoding != "raw"


def bytes_unpacked(path: str, start: int, needed: int) -> int:
    """How many there are from `start` on, unpacked; of more than needed, not all."""
    unpacker, held = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS), 0  # zlib or gzip
    with open_regular(path) as file:
        file.seek(start)
        while held < needed and not unpacker.eof and (block := file.read(BLOCK)):
            while block and held < needed:
                held += len(unpacker.decompress(block, BLOCK))
                block = unpacker.unconsumed_tail
    return held
