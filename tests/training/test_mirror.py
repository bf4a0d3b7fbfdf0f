"""training/mirror.py: which reversal mirrors a knee, and what shows it."""

import numpy as np
import pytest
import torch
from conftest import volume_towards

from dataset import Dataset
from scans.places import rows_of_scans
from scans.slices import DataError, Slice, Volume
from training.mirror import choose_mirror

SCANS, LENGTH = 24, 6


def dataset(mirrored: int | None, volume: Volume | None = None, seed: int = 0) -> Dataset:
    """Noisy scans of a shape without symmetry; right ones reversed along an axis of (d, h, w)."""
    rng = np.random.default_rng(seed)
    shape = np.zeros((LENGTH, 8, 10))
    shape[:2, 1:4, 1:3] = 150
    slices, pixels = [], []
    for scan in range(SCANS):
        label = ("left", "right")[scan % 2]
        own = shape if label == "left" or mirrored is None else np.flip(shape, mirrored)
        pixels.append((own + rng.uniform(0, 100, shape.shape)).astype(np.uint8))
        name = f"p{scan:02}"
        slices += [Slice(name, i, label, name, name, i, volume) for i in range(LENGTH)]
    pixels = torch.from_numpy(np.concatenate(pixels))[:, None]
    return Dataset(slices, pixels, rows_of_scans(slices, LENGTH), ["left", "right"])


@pytest.mark.parametrize(("axis", "name"), [(0, "slices"), (2, "columns")])
def test_images_show_what_mirrors_them(axis, name):
    mirror = choose_mirror(dataset(axis))
    assert mirror.reversed == name and "so mirrored, the mean left scan differs" in mirror.because


def test_what_shows_nothing_is_asked_for():
    with pytest.raises(DataError, match=r"not certain.*--mirrored slices.*--mirrored columns"):
        choose_mirror(dataset(None))


def test_headers_tell_it_where_there_are_some():
    assert choose_mirror(dataset(None, volume_towards("LIP"))).reversed == "slices"
    assert choose_mirror(dataset(None, volume_towards("PIL"))).reversed == "columns"
    with pytest.raises(DataError, match="rows of these volumes go from the patient's right"):
        choose_mirror(dataset(None, volume_towards("PLS")))
