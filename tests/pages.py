"""Cards as predict.py makes them, and what tests read of a page."""

import html
import json
import re
from pathlib import Path

import numpy as np

from evaluation.page import Card
from evaluation.strips import strip_of

CLASSES = ["left", "right"]
HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "<img src=x onerror=alert(3)>",
    "a \" b ' c & d {{ 7 * 7 }} {% raw %}",
    "line\u2028one\u2029two",
    "=HYPERLINK(1), \u202eabc",
    "two\nlines\r\n",
    " blanks ",
    "-->",
    "<!--<script>",
    "\udcff\udce9 no text",
    "\U0001f9b5 ümläut",
]


def card(
    scan: str,
    verdict: str = "ok",
    p: float = 0.9,
    expected: str = "right",
    classes: list[str] = CLASSES,
    attention: bool = False,
    whole: bool = False,
) -> Card:
    """Of a scan whose last class is given p, and the others the rest."""
    shares = {f"p_{name}": (1 - p) / (len(classes) - 1) for name in classes[:-1]}
    shares[f"p_{classes[-1]}"] = p
    label = max(classes, key=lambda name: shares[f"p_{name}"])
    row = {"scan": scan, "patient": f"of {scan}", "label": label, **shares, "slices": 9}
    row |= {"agreement": None if whole else 1.0, "expected": expected, "verdict": verdict}
    images = [np.full((20, 30), 40 * i, dtype=np.uint8) for i in range(5)]
    colours = [np.dstack([image / 255] * 3) * (1, 0.5, 0) for image in images]
    of_slices = [] if whole else [p] * 9
    drawn = strip_of(colours, 50) if attention else b""
    return Card(row, of_slices, 9, [0, 2, 4, 6, 8], strip_of(images, 50), drawn)


def data_of(page: Path) -> dict:
    """What the page's script reads of all scans: classes, and scan, expected, label, verdict."""
    return json.loads(scripts(page)[-1])


def scripts(page: Path) -> list[str]:
    """The data blocks as a browser finds them: each ends at the first end tag."""
    blocks = re.findall(r'<script type="application/json"[^>]*>(.*?)</script', text_of(page), re.S)
    return blocks


def names_on(page: Path) -> list[str]:
    found = re.findall(r"<h2[^>]*><span[^>]*>\w+</span> (.*?)</h2>", text_of(page), re.S)
    return [html.unescape(name) for name in found]


def text_of(page: Path) -> str:
    return page.read_bytes().decode("utf-8")
