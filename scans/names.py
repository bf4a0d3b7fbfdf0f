"""Names of files: what their endings say, and the order that people expect of them."""

import os
import re

IMAGE_SUFFIXES = tuple(
    ".png .jpg .jpeg .bmp .tif .tiff .webp .gif .jp2 .j2k .jpx .ppm .pgm .pbm .pnm".split()
)
VOLUME_NAME = re.compile(r"[^.].*\.(nii|nii\.gz|nrrd|nhdr|mha|mhd|npy|npz)", re.I | re.S)
VOLUME_ENDING = re.compile(r"(.*?)(?:\.nii\.gz|\.tar\.gz|\.\w+)?", re.S)
ARCHIVE_NAME = re.compile(r"[^.].*\.(tar|tar\.gz|tgz|zip)", re.I | re.S)
CACHED_PIXELS = re.compile(r"[0-9a-f]{32}\.npy")  # scans/cache.py
NUMBER = re.compile(r"([0-9]+)")
# Of systems and programs, beside those whose names begin with a dot.
HIDDEN = {"@eadir", "__macosx", "#recycle", "$recycle.bin", "system volume information"}
ENDING = re.compile(r".+(\.[a-z][a-z0-9]{0,9})", re.I | re.S)
# Of files that are no data, or belong to other ones.
NO_DATA = set(
    ".txt .csv .tsv .json .md .pdf .db .ini .log .py .pt .raw .zraw .xml .html .yaml .yml .bval "
    ".bvec".split()
)
NOT_DICOM = {*NO_DATA, *IMAGE_SUFFIXES, *".zip .gz .tar .tgz".split()}


def is_image(name: str) -> bool:
    """By its ending; Thumbs.db, .DS_Store, ._copies and other litter are none."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def is_volume_name(name: str) -> bool:
    """By its ending: NIfTI, NRRD, MetaImage, NumPy. DICOM often has none: see readers.is_dicom."""
    return bool(VOLUME_NAME.fullmatch(os.path.basename(name)))


def may_be_dicom(name: str) -> bool:
    """By the name of a file alone."""
    suffix = os.path.splitext(name)[1].lower()
    if name.startswith(".") or name.upper() == "DICOMDIR" or is_volume_name(name):
        return False
    return suffix == ".dcm" or suffix not in NOT_DICOM


def is_archive(name: str) -> bool:
    """By its ending. (Of a zip it is only said that it must be unpacked.)"""
    return bool(ARCHIVE_NAME.fullmatch(os.path.basename(name)))


def is_npy(path: str) -> bool:
    return path.lower().endswith(".npy")


def is_npz(path: str) -> bool:
    return path.lower().endswith(".npz")


def is_hidden(folder: str) -> bool:
    """By its name: .Trash-1000, @eaDir, __MACOSX, ..."""
    return folder.startswith(".") or folder.lower() in HIDDEN


def strange_ending(name: str) -> str:
    """The ending of a file that may be data of a kind that is not read, such as .h5; or ""."""
    match = ENDING.fullmatch(name)
    ending = match[1].lower() if match else ""
    is_known = is_image(name) or name.startswith(".") or ending in (*NO_DATA, ".dcm", ".ima")
    return "" if is_known or (is_volume_name(name) and ending != ".npz") else ending


def natural_order(name: str) -> list:
    """Sort key that puts slice 2 before slice 10."""
    parts: list = NUMBER.split(name)
    parts[1::2] = map(int, parts[1::2])  # every second one is a number
    return parts


def is_cache_or_run(files: list[str]) -> bool:
    """Whether these programs made a folder of these files: a cache of pixels, or a run."""
    there = set(files)
    pixels = [name for name in files if CACHED_PIXELS.fullmatch(name)]
    is_run = "args.json" in there and not there.isdisjoint({"last.pt", "folds.csv"})
    return is_run or any(f"{name[:-4]}.json" in there for name in pixels)


def picture_name(name: str, digest: str) -> str:
    """A file name for a picture of a slice or a scan: the end of its name, and a digest of it."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("._")[-150:] + f"_{digest}"
