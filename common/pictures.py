"""What pictures share: pages that are laid out in inches, names as text that fits, whole files.

page = make_page(6, 2)
put_text(page, 0.1, 0.1, fitted(name, width=5.8, size=9), size=9)
put_image(page, slice, Box(0.1, 0.4, 1.4, 1.2))
save(page.figure, path)
"""

from bisect import bisect
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Text
from numpy.typing import ArrayLike

from common.files import whole_file

DPI = 120
RENDERER = FigureCanvasAgg(Figure((1, 1), dpi=DPI)).get_renderer()  # measures text
LINE = 1.25 / 72  # inches: the height of a line of text of size 1


def save(figure: Figure, path: Path) -> None:
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=DPI)


# ---- names ---------------------------------------------------------------------------------------


@cache
def drawn_letter(letter: str) -> str:
    """The letter, or its escape where the font has none or it would break the line."""
    font = get_font(findfont(FontProperties()))
    drawn = letter.isprintable() and font.get_char_index(ord(letter))
    return letter if drawn else ascii(letter)[1:-1]


@cache
def width_of(letters: str, size: float) -> float:
    """Inches of a few letters of this size (points); each is measured once.

    As they are drawn, several of them: letters are whole pixels apart.
    """
    font, count = FontProperties(size=size), 8
    width, _, _ = RENDERER.get_text_width_height_descent(letters * count, font, ismath=False)
    return width / count / DPI


def text_width(text: str, size: float) -> float:
    """Inches of a line of `fitted` text."""
    return sum(width_of(letter, size) for letter in text)


def text_height(text: str, size: float) -> float:
    """Inches of lines of text."""
    return size * LINE * (1 + text.count("\n"))


def fitted(name: str, width: float, size: float, lines: int = 1) -> str:
    """A name in at most so many lines of this width (inches) at this size (points).

    What can't be drawn is escaped. (Formulas: pass parse_math=False, too.) Of a name that is too
    long the middle is left out, as patient and slice stand at its ends. No escape is cut.
    """
    letters = list(map(drawn_letter, name))
    found = wrapped(letters, width, size)
    if len(found) <= lines:
        return "\n".join(found)

    def shortened(kept: int) -> list[str]:
        head, tail = kept - kept // 2, len(letters) - kept // 2
        return wrapped([*letters[:head], "...", *letters[tail:]], width, size)

    too_many = bisect(range(len(letters)), lines, key=lambda kept: len(shortened(kept)))
    return "\n".join(shortened(max(1, too_many - 1)))


def wrapped(letters: list[str], width: float, size: float) -> list[str]:
    """Lines that are at most so wide (inches): they end at gaps where there are some."""
    lines, start = [], 0
    while start < len(letters):
        end, used = start + 1, width_of(letters[start], size)
        while end < len(letters) and (used := used + width_of(letters[end], size)) <= width:
            end += 1
        if end < len(letters):
            second_half = range((start + end) // 2, end)
            gaps = [i + 1 for i in second_half if letters[i] in (*" /_-,", "...")]
            end = gaps[-1] if gaps else end
        lines.append("".join(letters[start:end]).strip())
        start = end
    return lines or [""]


# ---- pages ---------------------------------------------------------------------------------------


class Box(NamedTuple):
    """Inches from the left and from the top of a page."""

    left: float
    top: float
    width: float
    height: float


def make_page(width: float, height: float) -> Axes:
    """An empty figure of this size, to be filled in inches from its upper left corner."""
    page = Figure(figsize=(width, height)).add_axes((0, 0, 1, 1))
    page.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    page.axis("off")
    return page


def put_text(page: Axes, left: float, top: float, text: str, size: float, **more) -> Text:
    """Lines whose upper left corner is there."""
    more = {"ha": "left", "va": "top", "linespacing": 1.2, "parse_math": False, **more}
    return page.text(left, top, text, fontsize=size, **more)


def put_image(page: Axes, image: ArrayLike, box: Box, **more) -> None:
    """A slice (height, width) in grey, or a picture (height, width, 3) of colours from 0 to 1.

    It keeps its shape, in the middle of the box.
    """
    height, width = np.shape(image)[:2]
    inches = min(box.width / width, box.height / height)  # a pixel
    left = box.left + (box.width - inches * width) / 2
    top = box.top + (box.height - inches * height) / 2
    extent = left, left + inches * width, top + inches * height, top
    page.imshow(image, cmap="gray", vmin=0, vmax=255, aspect="auto", extent=extent, **more)


def height_for(images: ArrayLike, width: float) -> float:
    """Inches of the boxes of slices (n, height, width) or (height, width) that are so wide.

    Bounded: slices may be very low or tall.
    """
    shape = np.shape(images)
    return width * float(np.clip(shape[-2] / shape[-1], 0.25, 3))
