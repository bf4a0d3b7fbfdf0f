"""The contact sheet: any names, any shapes, any number of scans and classes."""

import numpy as np
import pytest
import torch
from drawings import NAMES, assert_texts_are_apart_and_inside, drawn  # noqa: F401

from scans.overview import MOST_ROWS, Shown, choose_shown, draw_contact_sheet
from scans.slices import Slice

# ruff: noqa: F811
pytestmark = pytest.mark.filterwarnings("error:Glyph")  # letters that can't be drawn


@pytest.mark.parametrize(
    "height, width",
    [
        (76, 86),
        pytest.param(8, 200, marks=pytest.mark.slow),
        pytest.param(200, 8, marks=pytest.mark.slow),
        (1, 1),
    ],
)
def test_any_contact_sheet_can_be_read(tmp_path, drawn, height, width):
    pictures = list(np.full((8, height, width), 200, np.uint8))
    few = [Shown("left  p01", [7], pictures[:1])]
    many = [Shown(f"left  {name}", list(range(10**9, 10**9 + 8)), pictures) for name in NAMES]
    for rows in (few, [*few, *many]):
        draw_contact_sheet(rows, tmp_path / "sheet.png")
        assert_texts_are_apart_and_inside(drawn[-1])
        (page,) = drawn[-1].axes
        assert len(page.images) == sum(len(row.pictures) for row in rows)
        tops = np.unique([image.get_extent()[3] for image in page.images])
        assert len(tops) == len(rows) and np.allclose(np.diff(tops), np.diff(tops)[:1])
        for image in page.images:
            shape = image.get_window_extent()
            assert shape.width / shape.height == pytest.approx(width / height)


def test_hundreds_of_classes_are_a_sheet_that_can_be_opened():
    classes = [f"class {i}" for i in range(200)]
    slices = [
        Slice(f"{name}/{scan}/{i}.png", None, name, f"{name}{scan}", f"{name}/{scan}", i)
        for name in classes
        for scan in range(3)
        for i in range(2)
    ]
    pixels = torch.zeros(len(slices), 1, 4, 5, dtype=torch.uint8)
    rows = choose_shown(slices, pixels, classes)
    assert 0.8 * MOST_ROWS <= len(rows) <= MOST_ROWS
    assert len({row.title.split("  ")[0] for row in rows}) == len(rows)  # a scan of each class
    assert len(choose_shown(slices[:12], pixels, classes[:2])) == 6
