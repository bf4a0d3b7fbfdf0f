"""Files -> uint8 tensors.

images, errors = load_images(paths, (76, 86))    # (len(paths), 1, 76, 86) uint8
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

MAX_PIXELS = 50_000_000  # far above any slice; a file that claims more is damaged or hostile


def read_image(path: str | Path, image_size: tuple[int, int]) -> np.ndarray:
    """Decode one image file to grey levels and resize it: uint8 array (height, width).

    16-bit images are scaled to 8 bits (not clipped), transparent pixels are black, colours become
    luminance (equal channels keep their value exactly).

    Raises:
        OSError, ValueError, SyntaxError, ...: whatever Pillow makes of a damaged file.
    """
    with Image.open(path) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are too many for a slice")
        if image.mode == "F" or (image.mode == "I" and image.getextrema()[1] > 65535):
            raise ValueError("more than 16 bits a pixel: convert it to 8 or 16 bits")
        if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
            image = Image.fromarray((np.asarray(image, dtype=np.float32) / 257).astype(np.float32))
        elif image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image).convert(
                "L"
            )
        else:
            image = image.convert("L")
        height, width = image_size
        image = image.resize((width, height), Image.Resampling.BILINEAR)  # antialiased
        return np.asarray(image).round().astype(np.uint8)


def load_images(
    paths: list[str], image_size: tuple[int, int], workers: int | None = None, progress: bool = True
) -> tuple[Tensor, dict[int, str]]:
    """Decode all files, in threads (Pillow releases the interpreter lock while it decodes).

    Returns a uint8 tensor (len(paths), 1, height, width) and the errors: position -> what is wrong,
    in one line. Images that could not be read are black.
    """
    images = torch.zeros(len(paths), 1, *image_size, dtype=torch.uint8)
    pixels, errors = images.numpy(), {}

    def load(position: int) -> None:
        try:
            pixels[position, 0] = read_image(paths[position], image_size)
        except UnidentifiedImageError:
            errors[position] = "not an image, or a damaged one"
        except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, zlib.error ...
            errors[position] = " ".join(f"{error or type(error).__name__}".split())

    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        done = pool.map(load, range(len(paths)))
        # disable=None: a bar on a terminal, nothing in a log file
        for _ in tqdm(
            done, "reading", len(paths), unit="slice", disable=None if progress else True
        ):
            pass
    return images, dict(sorted(errors.items()))


def pixel_statistics(images: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of uint8 pixels on a scale from 0 to 1, exact at any size."""
    counts = torch.bincount(images.flatten(), minlength=256).double()
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = (counts * levels).sum() / counts.sum()
    variance = (counts * (levels - mean) ** 2).sum() / counts.sum()
    return mean.item(), variance.sqrt().item()
