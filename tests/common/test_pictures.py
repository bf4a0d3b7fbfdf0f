"""Names in pictures: all fit, none is cut within an escape, ends stay; images keep their shape."""

import re
from itertools import product

import numpy as np
import pytest
from drawings import NAMES, drawn  # noqa: F401

from common.pictures import DPI, Box, fitted, make_page, put_image, put_text, save, text_height

pytestmark = pytest.mark.filterwarnings("error:Glyph")  # letters that can't be drawn


@pytest.mark.parametrize("name", [*NAMES, "膝" * 5000, "OAI9014797_BaseLine_3 #7"])
def test_any_name_fits_its_place(tmp_path, drawn, name):  # noqa: F811
    page, places = make_page(4, 6), []
    for i, (size, lines) in enumerate(product((5, 7, 10), (1, 2))):
        text = fitted(name, 1.4, size, lines)
        assert text.count("\n") < lines and text.replace("\n", "").isprintable()
        put_text(page, 0.1, 0.1 + i, text, size)
        places += [(0.1, 0.1 + i, 1.4, text_height(text, size))] if text else []
    save(page.figure, tmp_path / "page.png")
    for box, (left, top, width, height) in zip(drawn[0].boxes, places, strict=True):
        assert box.x0 >= left * DPI - 1 and box.x1 <= (left + width) * DPI
        assert box.y1 <= (6 - top) * DPI + 1 and box.y0 >= (6 - top - height - 0.02) * DPI


def test_a_name_that_is_too_long_keeps_its_ends_and_whole_escapes():
    name = "OAI9014797_BaseLine_3_de3d1_SAG_3D_DESS_WE_RIGHT.nii.gz #17"
    assert fitted(name, 9, 7) == name
    short = fitted(name, 1.4, 7)
    head, tail = short.split("...")
    assert name.startswith(head) and name.endswith(tail) and len(head) > 5 and len(tail) > 5
    for width in np.linspace(0.5, 3, 40):
        for line in fitted("膝\x1b\n" * 30, width, 7, lines=2).split("\n"):
            assert re.fullmatch(r"(\\u819d|\\x1b|\\n|\.\.\.)+", line)


def test_lines_end_at_gaps_and_letters_of_the_font_are_drawn_as_they_are():
    assert fitted("left, p_right 0.498, unsure", 0.9, 7, lines=2) == "left, p_right\n0.498, unsure"
    assert fitted("größe ж ł", 5, 7) == "größe ж ł"


def test_images_keep_their_shape_in_the_middle_of_their_box():
    page = make_page(4, 4)
    put_image(page, np.zeros((10, 20)), Box(1, 1, 2, 2))
    assert page.images[0].get_extent() == [1, 3, 2.5, 1.5]
    assert page.get_xlim() == (0, 4) and page.get_ylim() == (4, 0)
