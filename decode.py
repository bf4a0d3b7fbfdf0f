"""Files -> uint8 tensors, decoded once and then kept in a file.

    images, errors = load_images(paths, (76, 86))            # (len(paths), 1, 76, 86) uint8
    images, errors, note = open_images(paths, (76, 86), "cache")     # the same, from a file

A path is an image's, or a volume's with the number of a slice: "p01.nii.gz#7".
"""

import hashlib
import json
import os
import re
import stat
import time
import zlib
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

import runs
import volumes

MAX_PIXELS = 20_000_000  # far above any slice; as RGBA, that takes 240 MB a thread
CACHE_VERSION = 1  # to be raised when decoding gives other pixels than before
FORMATS = ("PNG", "JPEG", "BMP", "TIFF")  # Pillow would try all it knows: EPS runs Ghostscript
LEFT_BEHIND = 24 * 3600  # seconds; an unfinished file that old is nobody's
CHUNK = 4096  # images at a time where all of them might not fit into memory


def open_image(path: str | Path) -> Image.Image:
    """Open an image file, without decoding it."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # to open a pipe would wait for ever
        raise ValueError("not a file")
    return Image.open(path, formats=FORMATS)


def read_image(path: str | Path, image_size: tuple[int, int]) -> np.ndarray:
    """Decode one image file to grey levels and resize it: uint8 array (height, width).

    16-bit images are scaled to 8 bits (not clipped), transparent pixels are black, colours become
    luminance (equal channels keep their value exactly).

    Raises:
        OSError, ValueError, SyntaxError, ...: whatever Pillow makes of a damaged file.
    """
    with open_image(path) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are too many for a slice")
        if getattr(image, "is_animated", False):
            raise ValueError("holds several images, expected one slice")
        low, high = image.getextrema() if image.mode == "I" else (0, 0)
        if image.mode == "F" or low < 0 or high > 65535:
            raise ValueError("more than 16 bits a pixel, or below 0: convert it to 8 or 16 bits")
        if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
            image = Image.fromarray((np.asarray(image, dtype=np.float32) / 257).astype(np.float32))
        elif image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image).convert(
                "L"
            )
        else:
            image = image.convert("L")
        return resize(image, image_size)


def resize(image: Image.Image, image_size: tuple[int, int]) -> np.ndarray:
    height, width = image_size
    image = image.resize((width, height), Image.Resampling.BILINEAR)  # antialiased
    return np.asarray(image).round().astype(np.uint8)


def load_images(
    paths: list[str],
    image_size: tuple[int, int],
    workers: int | None = None,
    plane: str = "stored",
    progress: bool = True,
    into: np.ndarray | None = None,
) -> tuple[Tensor, dict[int, str]]:
    """Decode all files, in threads (Pillow releases the interpreter lock while it decodes).

    plane is the one in which volumes are cut; into is an array to fill, in place of a new one.

    Returns a uint8 tensor (len(paths), 1, height, width) and the errors: position -> what is wrong,
    in one line. Images that could not be read are black.
    """
    pixels = np.zeros((len(paths), 1, *image_size), np.uint8) if into is None else into
    errors = {}
    jobs = defaultdict(list)  # file, and whether as an image -> (position, slice) that is wanted
    for position, path in enumerate(paths):
        source, index = split_path(path)
        jobs[source, index is None].append((position, index))

    def load(job: tuple[str, bool]) -> int:
        (source, is_image), wanted = job, jobs[job]
        try:
            if is_image:
                pixels[[position for position, _ in wanted], 0] = read_image(source, image_size)
            else:
                slices = volumes.read_slices(source, plane)
                for position, index in wanted:
                    pixels[position, 0] = resize(Image.fromarray(slices[index]), image_size)
        except FileNotFoundError:
            problem = "no such file"
        except UnidentifiedImageError:
            problem = "not an image, or a damaged one"
        except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, zlib.error ...
            problem = " ".join(f"{error or type(error).__name__}".split())
        else:
            return len(wanted)
        for position, _ in wanted:
            pixels[position] = 0
            errors[position] = problem
        return len(wanted)

    with (
        ThreadPoolExecutor(workers or os.cpu_count()) as pool,
        # disable=None: a bar on a terminal, nothing in a log file
        tqdm(
            total=len(paths), desc="reading", unit="slice", disable=None if progress else True
        ) as bar,
    ):
        for count in pool.map(load, jobs):
            bar.update(count)
    return torch.from_numpy(pixels), dict(sorted(errors.items()))


def split_path(path: str) -> tuple[str, int | None]:
    """ "p01.nii.gz#7" -> ("p01.nii.gz", 7), and an image's path -> (path, None)."""
    match = re.fullmatch(r"(.+)#(\d+)", path, re.DOTALL)
    if match and not os.path.lexists(path):  # there may be a file of that name
        return match[1], int(match[2])
    return path, None


# ---- decoded once --------------------------------------------------------------------------------


class Unreadable(Exception):
    """Some files could not be decoded: nothing is kept. The arguments are images and errors."""


def open_images(
    paths: list[str],
    image_size: tuple[int, int],
    cache_dir: str | Path,
    workers: int | None = None,
    plane: str = "stored",
) -> tuple[Tensor, dict[int, str], str]:
    """`load_images` into a memory-mapped file below cache_dir, which a second start opens at once.

    The file's name follows from the paths, sizes and times of the files, the image size and the
    plane; its checksum is checked. It may be larger than memory.

    Returns images, errors, and a note: "" or why the slices are kept in memory instead.
    """
    shape = (len(paths), 1, *image_size)
    try:
        target = Path(cache_dir, f"{cache_key(paths, image_size, plane)}.npy")
    except (OSError, ValueError):  # of a file that load_images will name
        return *load_images(paths, image_size, workers, plane), ""
    try:
        if (kept := open_kept(target, shape)) is None:
            target.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(target.parent)
            with runs.whole_file(target) as temporary:
                mapped = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
                if hasattr(os, "posix_fallocate"):  # a disk that fills up while mapped is a crash
                    with open(temporary, "rb+") as file:
                        os.posix_fallocate(file.fileno(), 0, os.path.getsize(temporary))
                _, errors = load_images(paths, image_size, workers, plane, into=mapped)
                if errors:
                    raise Unreadable(mapped, errors)
                mapped.flush()
            runs.write_json(target.with_suffix(".json"), {"crc32": crc32(mapped)})
            kept = open_kept(target, shape)
    except Unreadable as unreadable:
        mapped, errors = unreadable.args
        return torch.from_numpy(mapped), errors, ""
    except OSError as error:
        note = f"{cache_dir}: {error.strerror or error}: slices are decoded into memory"
        return *load_images(paths, image_size, workers, plane), note
    return torch.from_numpy(kept), {}, ""


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes left unfinished, but nothing that one may be writing now."""
    for path in folder.glob(".*.unfinished.*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > LEFT_BEHIND:
                path.unlink()


def cache_key(paths: list[str], image_size: tuple[int, int], plane: str) -> str:
    """A name that changes with any file's path, size or time, and with what is made of them."""
    key = hashlib.sha256(f"{CACHE_VERSION} {image_size} {plane}".encode())
    files = {}
    for path in paths:
        source, _ = split_path(path)
        if source not in files:
            parts = volumes.source_files(source) if source != path else [source]
            files[source] = [(os.stat(part).st_size, os.stat(part).st_mtime_ns) for part in parts]
        key.update(f"{os.path.abspath(path)} {files[source]}\n".encode(errors="surrogateescape"))
    return key.hexdigest()[:32]


def open_kept(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Map a file that open_images wrote; None if there is none, or not a whole one."""
    try:
        checksum = json.loads(path.with_suffix(".json").read_text())["crc32"]
        kept = np.load(path, mmap_mode="c")  # torch wants to be able to write
        whole = kept.shape == shape and kept.dtype == np.uint8 and crc32(kept) == checksum
    except FileNotFoundError:
        return None
    except OSError:
        raise
    except Exception:  # of a damaged header or checksum: ValueError, EOFError, TokenError, ...
        return None
    return kept if whole else None


def crc32(images: np.ndarray) -> int:
    checksum = 0
    for start in range(0, len(images), CHUNK):
        checksum = zlib.crc32(images[start : start + CHUNK], checksum)
    return checksum


def pixel_statistics(images: Tensor, members: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of uint8 pixels on a scale from 0 to 1, exact at any size.

    images (n, 1, height, width), members (m,): which of them are counted.
    """
    counts = torch.zeros(256, dtype=torch.float64)
    for chunk in members.split(CHUNK):
        counts += torch.bincount(images[chunk].flatten(), minlength=256)
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = (counts * levels).sum() / counts.sum()
    variance = (counts * (levels - mean) ** 2).sum() / counts.sum()
    return mean.item(), variance.sqrt().item()
