"""decode.py on real small files: every kind of PNG, damaged ones, and the cache."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import decode

GRADIENT = np.tile(np.arange(0, 240, 4, dtype=np.uint8), (40, 1))  # (40, 60)


def save_as(kind: str, path: Path) -> None:
    if kind == "16-bit":
        Image.fromarray(GRADIENT.astype(np.uint16) * 257).save(path)
    elif kind == "RGBA":
        Image.fromarray(GRADIENT).convert("RGBA").save(path)
    elif kind == "LA":
        Image.fromarray(GRADIENT).convert("LA").save(path)
    elif kind == "palette":
        image = Image.fromarray(255 - GRADIENT).convert("P")
        image.putpalette([255 - i // 3 for i in range(768)])  # index 255 - g shows as grey g
        image.save(path)
    else:
        Image.fromarray(GRADIENT).convert(kind).save(path)


@pytest.mark.parametrize("kind", ["L", "RGB", "RGBA", "LA", "palette", "16-bit"])
def test_every_kind_of_png_gives_the_same_grey_levels(tmp_path, kind):
    save_as(kind, tmp_path / "x.png")
    assert np.array_equal(decode.read_image(tmp_path / "x.png", (40, 60)), GRADIENT)


def test_transparent_pixels_are_black(tmp_path):
    Image.new("RGBA", (8, 8), (200, 200, 200, 0)).save(tmp_path / "x.png")
    assert decode.read_image(tmp_path / "x.png", (8, 8)).max() == 0


def test_images_of_several_sizes_are_resized_alike(tmp_path):
    for scale in (1, 2, 5):
        Image.fromarray(np.kron(GRADIENT, np.ones((scale, scale), np.uint8))).save(
            tmp_path / f"{scale}.png"
        )
    images, errors = decode.load_images([str(tmp_path / f"{s}.png") for s in (1, 2, 5)], (20, 30))
    assert images.shape == (3, 1, 20, 30) and images.dtype == torch.uint8 and not errors
    assert (images[0].int() - images[1:, 0].int()).abs().max() <= 2
    assert (images[0, 0].int().diff(dim=1) > 0).all()  # not mirrored: left is still dark


def test_all_unreadable_files_are_reported_and_the_others_are_read(tmp_path):
    Image.fromarray(GRADIENT).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no image")
    names = ["half.png", "whole.png", "empty.png", "text.png", "missing.png"]
    images, errors = decode.load_images([str(tmp_path / name) for name in names], (40, 60))
    assert sorted(errors) == [0, 2, 3, 4] and all("\n" not in text for text in errors.values())
    assert np.array_equal(images[1, 0].numpy(), GRADIENT)


def test_statistics_are_those_of_the_pixels():
    images = torch.randint(0, 256, (7, 1, 9, 11), dtype=torch.uint8)
    mean, std = decode.pixel_statistics(images, torch.arange(7))
    pixels = images.double() / 255
    assert mean == pytest.approx(pixels.mean().item(), abs=1e-12)
    assert std == pytest.approx(pixels.std(correction=0).item(), abs=1e-12)


def test_more_than_16_bits_are_refused_not_wrapped(tmp_path):
    deep = np.full((8, 8), 70000, dtype=np.int32)
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    Image.fromarray(deep.astype(np.float32)).save(tmp_path / "float.tif")
    _, errors = decode.load_images([str(tmp_path / n) for n in ("deep.tif", "float.tif")], (8, 8))
    assert all("16 bits" in error for error in errors.values()) and len(errors) == 2
