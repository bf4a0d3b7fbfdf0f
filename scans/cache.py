"""Slices -> pixels: decoded once, and then kept in a file that is memory-mapped.

decoded = decode_slices(listing.slices, (76, 86))           # .pixels (n, 1, 76, 86) uint8
decoded = open_pixels(listing.slices, (76, 86), "cache")    # the same, from a file
"""

import hashlib
import os
import time
import warnings
import zlib
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from common.files import NotAFile, check_regular, read_json, whole_file, write_json
from common.isolation import Lost, isolated
from common.program import counted
from common.room import free_space, memory
from scans.images import COLOUR, DecodedImage, ImageError, bit_depth, read_image, resize
from scans.slices import DataError, Slice
from scans.volumes import VolumeError, read_slices

CACHE_VERSION = 4  # to be raised when decoding gives other pixels than before
LEFT_BEHIND = 24 * 3600  # seconds; an unfinished file that old is nobody's
MAX_SIDE = 2**16  # pixels; no model can be of more
GB = 1e9
IMAGES_AT_ONCE = 64  # of a process: 50 ms
CHUNK = 4096  # images at a time where all of them might not fit into memory


class Decoded(NamedTuple):
    """The pixels of n slices; those that could not be read are black."""

    pixels: np.ndarray  # (n, 1, height, width) uint8
    errors: dict[int, str]  # position -> what is wrong, in one line
    depths: dict[int, int]  # bits that 16-bit images hold, or images.COLOUR -> so many scans
    crc32: int | None = None  # of all pixels, where they were opened with a cache
    note: str = ""  # why they are in memory and not in a file


def decode_slices(
    slices: list[Slice],
    image_size: tuple[int, int],
    workers: int | None = None,
    progress: bool = True,
    into: np.ndarray | None = None,
) -> Decoded:
    """Decode all slices, in processes of their own (common/isolation.py).

    16-bit images wait, resized, until all of their scan are read: its largest value is their white.
    So a scan must not be spread over two calls. into is an array to fill, in place of a new one.

    Raises DataError if a new one has no room in memory.
    """
    if into is None:
        check_room(len(slices), image_size)
        into = np.zeros((len(slices), 1, *image_size), np.uint8)
    pixels = into
    errors, depths, coloured, scans = {}, Counter(), set(), positions_by_scan(slices)
    of_sources = [positions for sources in scans for positions in sources]
    images = all(s.volume is None for s in slices)
    decoded = isolated(
        decode,
        (([slices[i] for i in positions], image_size) for positions in of_sources),
        workers,
        chunk=max(1, min(IMAGES_AT_ONCE, len(of_sources) // 8)) if images else 1,
    )
    quiet = None if progress else True  # None: a bar on a terminal, nothing in a log file
    with tqdm(total=len(slices), desc="reading", unit="slice", disable=quiet) as bar:
        for sources in scans:
            waiting = []
            for positions in sources:
                found = next(decoded)
                if isinstance(found, Lost):
                    errors.update(dict.fromkeys(positions, found.text))
                    pixels[positions] = 0
                elif found.highest is not None:
                    waiting.append((positions, found))
                else:
                    pixels[positions, 0] = found.values
                    if found.is_colour:
                        coloured.add(slices[positions[0]].scan)
                bar.update(len(positions))
            if waiting:
                bits = bit_depth(max(image.highest for _, image in waiting))
                for positions, image in waiting:
                    pixels[positions, 0] = image.grey(bits)
                depths[bits] += 1
    depths |= {COLOUR: len(coloured)} if coloured else {}
    return Decoded(pixels, dict(sorted(errors.items())), dict(depths))


def decode(task: tuple[list[Slice], tuple[int, int]]) -> DecodedImage | Lost:
    """An image, or slices of one volume, of this size: (height, width), or of a volume
    (slices, height, width).
    """
    slices, image_size = task
    first = slices[0]
    try:
        if first.volume is None:
            return read_image(first.source, image_size)
        planes = read_slices(first.volume)
        resized = [resize(Image.fromarray(planes[s.index]), image_size) for s in slices]
        return DecodedImage(np.stack(resized))
    except (ImageError, VolumeError) as error:
        return Lost(error.text)


def positions_by_scan(slices: list[Slice]) -> list[list[list[int]]]:
    """Of each scan the positions of what is read at once: an image, or the slices of a volume."""
    jobs: dict[str, dict] = defaultdict(lambda: defaultdict(list))
    for position, s in enumerate(slices):
        jobs[s.scan][s.source, s.index is None].append(position)
    return [list(sources.values()) for sources in jobs.values()]


# ---- room ----------------------------------------------------------------------------------------


def check_room(slices: int, image_size: tuple[int, int], cache_dir: Path | None = None) -> None:
    """Raise DataError if so many slices fit neither into memory nor, if it is given, the cache."""
    height, width = image_size
    size = f"--image-size {height} {width}"
    needed, there = slices * height * width, {"memory": memory()}
    if cache_dir is not None:
        there[f"--cache-dir {cache_dir}"] = free_space(cache_dir)
    if needed > max(there.values()):
        found = " and ".join(f"{room / GB:,.1f} GB in {where}" for where, room in there.items())
        raise DataError(
            f"{size}: the pixels of {counted(slices, 'slice')} take {needed / GB:,.1f} GB, and "
            f"there are {found}: try a smaller size"
        )
    if max(image_size) > MAX_SIDE:
        raise DataError(f"{size}: expected at most {MAX_SIDE:,} a side")


# ---- decoded once --------------------------------------------------------------------------------


class Unreadable(Exception):
    """Some slices can't be decoded, so that none are kept."""


def open_pixels(
    slices: list[Slice],
    image_size: tuple[int, int],
    cache_dir: str | Path,
    workers: int | None = None,
) -> Decoded:
    """`decode_slices` into a memory-mapped file below cache_dir, which a second start just opens.

    The file's name follows from the paths, sizes and times of the files, the image size and how
    volumes are sliced; its checksum is checked. It may be larger than memory. Where files can't be
    read or the cache can't be written, the pixels are in memory.

    Raises DataError if they have no room in either.
    """
    check_room(len(slices), image_size, Path(cache_dir))
    shape = (len(slices), 1, *image_size)

    def in_memory(note: str = "") -> Decoded:
        decoded = decode_slices(slices, image_size, workers)
        return decoded._replace(crc32=crc32_of(decoded.pixels), note=note)

    key = fingerprint(slices, image_size)
    if key is None:  # a file is not there: decoding will name it
        return in_memory()
    target = Path(cache_dir, f"{key}.npy")
    try:
        if kept := open_kept(target, shape):
            return kept
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target.parent)
        with suppress(Unreadable), whole_file(target) as temporary:
            mapped = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
            if hasattr(os, "posix_fallocate"):  # a disk that fills up while mapped is a crash
                with open(temporary, "rb+") as file:
                    os.posix_fallocate(file.fileno(), 0, os.path.getsize(temporary))
            decoded = decode_slices(slices, image_size, workers, into=mapped)
            if decoded.errors:
                raise Unreadable
            mapped.flush()
        checksum = crc32_of(mapped)
        if decoded.errors:
            return decoded._replace(crc32=checksum)
        known = {"version": CACHE_VERSION, "crc32": checksum, "depths": decoded.depths}
        write_json(target.with_suffix(".json"), known)
        return decoded._replace(pixels=np.load(target, mmap_mode="c"), crc32=checksum)
    except OSError as error:
        return in_memory(f"{cache_dir}: {error.strerror or error}: slices are decoded into memory")


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes left unfinished, but nothing that one may be writing now."""
    for path in folder.glob(".*.unfinished.*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > LEFT_BEHIND:
                path.unlink()


def fingerprint(slices: list[Slice], image_size: tuple[int, int]) -> str | None:
    """Changes with any file's path, size or time, and with what is made of them; None if a file
    can't be looked at.
    """
    key = hashlib.sha256(f"{CACHE_VERSION} {tuple(image_size)}".encode())
    made_of: dict[str, str] = {}  # source -> sizes and times of its files, and its slicing
    folders: dict[str, str] = {}  # as it is named -> its whole path: quicker than one a file
    for s in slices:
        sliced = s.volume and s.volume.slicing
        if s.source not in made_of:
            try:
                parts = s.volume.parts if s.volume else [s.source]
                found = [os.stat(part) for part in parts]
            except (OSError, ValueError):  # ValueError: a name with a zero in it
                return None
            files = [(status.st_size, status.st_mtime_ns) for status in found]
            made_of[s.source] = f"{[*files, sliced]}"
        folder, file = os.path.split(s.name)
        if folder not in folders:
            folders[folder] = os.path.join(os.path.abspath(folder), "")
        name = folders[folder] + file
        key.update(f"{name} {made_of[s.source]}\n".encode(errors="surrogateescape"))
    return key.hexdigest()[:32]


def open_kept(path: Path, shape: tuple[int, ...]) -> Decoded | None:
    """Map a file that open_pixels wrote; None if there is none, or not a whole one."""
    try:
        check_regular(path)
        check_regular(path.with_suffix(".json"))
    except (FileNotFoundError, NotAFile):
        return None
    try:
        known = read_json(path.with_suffix(".json"), "record of decoded slices")
        checksum = known["crc32"]
        depths = {int(bits): count for bits, count in known["depths"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):  # a damaged one
        return None
    counts = [*depths.values()]
    if {*map(type, [checksum, *counts])} != {int} or not (
        depths.keys() <= {*range(8, 17), COLOUR} and all(0 < count <= shape[0] for count in counts)
    ):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a damaged header, which is made again
            kept = np.load(path, mmap_mode="c")  # torch wants to be able to write
    except OSError:
        raise
    except Exception:  # of a damaged header NumPy may raise ValueError, EOFError, TokenError, ...
        return None
    if not isinstance(kept, np.ndarray) or kept.shape != shape or kept.dtype != np.uint8:
        return None
    return Decoded(kept, {}, depths, checksum) if crc32_of(kept) == checksum else None


def crc32_of(pixels: np.ndarray) -> int:
    checksum = 0
    for start in range(0, len(pixels), CHUNK):
        checksum = zlib.crc32(pixels[start : start + CHUNK], checksum)
    return checksum
