"""What a picture holds when it is drawn, in pixels, as matplotlib's own renderer measures it."""

from typing import NamedTuple

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from common.pictures import DPI

# Names as file systems and tables allow them, and longer than any picture is wide.
NAMES = [
    "膝/$x_{$ \udcff\x1b[31m\n" * 12 + "0.png",
    "phantoms/deeper/" * 20 + "OAI9152612_24Month_3_6d233_SAG_3D_DESS_WE_LEFT.nii.gz_10.png",
    "W" * 300,
    "größe ж \u0301\u202e الركبة 9",
    "",
]


class Drawn(NamedTuple):
    """A picture as it was written."""

    figure: Figure  # at the resolution of the file, to measure more of it
    texts: list[Text]  # those that were drawn: not the ticks outside of an axis, nothing empty
    boxes: list[Bbox]  # of the texts

    @property
    def words(self) -> list[str]:
        return [text.get_text() for text in self.texts]

    @property
    def axes(self) -> list[Axes]:
        return self.figure.axes


@pytest.fixture
def drawn(monkeypatch) -> list[Drawn]:
    """All pictures that are written, in order."""
    pictures, boxes = [], {}
    savefig, draw = Figure.savefig, Text.draw

    def record(text: Text, renderer, *args, **more) -> None:
        if text.get_visible() and text.get_text().strip():
            boxes[text] = text.get_window_extent(renderer)  # the last time, when all is placed
        draw(text, renderer, *args, **more)

    def save(figure: Figure, *args, **more) -> None:
        boxes.clear()
        savefig(figure, *args, **more)
        figure.set_dpi(DPI)
        pictures.append(Drawn(figure, list(boxes), list(boxes.values())))

    monkeypatch.setattr(Text, "draw", record)
    monkeypatch.setattr(Figure, "savefig", save)
    return pictures


def assert_texts_are_apart_and_inside(picture: Drawn) -> None:
    """No text touches another or leaves the picture."""
    boxes = np.array([box.extents for box in picture.boxes])  # left, bottom, right, top
    width, height = picture.figure.bbox.size
    outside = (boxes[:, :2] < 0).any(axis=1) | (boxes[:, 2:] > (width, height)).any(axis=1)
    assert not outside.any(), [picture.words[i] for i in np.flatnonzero(outside)]
    # Boxes of others are larger than they.
    upright = np.flatnonzero([text.get_rotation() % 90 == 0 for text in picture.texts])
    boxes = boxes[upright]
    apart = (boxes[:, None, :2] >= boxes[None, :, 2:] - 0.5).any(axis=2)  # half a pixel
    touching = np.argwhere(~(apart | apart.T) & ~np.eye(len(boxes), dtype=bool))
    words = [picture.words[i] for i in upright]
    assert not len(touching), [(words[i], words[j]) for i, j in touching[:3]]
