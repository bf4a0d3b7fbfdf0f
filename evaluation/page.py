"""A page to look at: one HTML file with a card for each scan, worst first; it needs no network.

write_page(Path("report.html"), "Knees", [("scans", "467")], cards, ["left", "right"])

Cards come from evaluation/cards.py, or from anything else that knows a row of scans.csv and has
images. The reader's ticks are saved as a table that --labels takes (docs/runs.md). Names may hold
anything: the template escapes them, and what the script reads is JSON in which no tag can end. A
content security policy lets the page's own script run and nothing else.
"""

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from common.files import whole_file
from common.program import UserError, counted, printable
from evaluation.audit import urgency
from evaluation.predictions import shown_class

HERE = Path(__file__).parent
VERDICTS = ("mismatch", "unsure", "unknown", "ok")


class Card(NamedTuple):
    """A scan on the page."""

    row: dict  # of scans.csv: see predictions.judge
    shares: list[float]  # of each slice, in their order, the probability of `shown`; [] of a whole
    count: int  # slices in the order of which some are drawn
    drawn: list[int]  # which of them
    strip: bytes  # those as one JPEG; b"" where there is none
    attention: bytes = b""  # the same with what the model reads

    def shown(self, classes: Sequence[str]) -> str:
        """The class whose probabilities are shown."""
        return shown_class(self.row["label"], list(classes))


def check_page(path: Path, flag: str = "--report") -> None:
    """Raise UserError, before anything slow, if no page can be written there."""
    if path.is_dir():
        raise UserError(f"{flag} {path}: a folder; name a file that ends in .html")
    if path.suffix.lower() != ".html":
        raise UserError(f"{flag} {path}: expected a name that ends in .html")
    if not path.parent.is_dir():
        raise UserError(f"{flag} {path}: no such folder: {path.parent}")


def write_page(
    path: Path,
    title: str,
    figures: Sequence[tuple[str, str]],
    cards: Sequence[Card],
    classes: Sequence[str],
) -> None:
    """Write a page of these cards, worst first; whole, or not at all.

    figures: name and value of what stands on top of it, such as the accuracy.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # takes 0.03 s
    from markupsafe import Markup

    cards = sorted(cards, key=lambda card: urgency(card.row, classes))
    scans = [
        [card.row[name] for name in ("scan", "expected", "label", "verdict")] for card in cards
    ]
    digest = hashlib.sha256(json.dumps([title, scans]).encode()).hexdigest()
    style, script = ((HERE / f"page.{kind}").read_text("utf-8") for kind in ("css", "js"))
    counts = {verdict: sum(row[3] == verdict for row in scans) for verdict in VERDICTS}
    values = {
        "title": printable(title),
        "figures": [(printable(name), printable(value)) for name, value in figures],
        "verdicts": {verdict: count for verdict, count in counts.items() if count},
        "cards": map(values_of, cards, range(len(cards)), [list(classes)] * len(cards)),
        "data": {"page": digest[:16], "classes": list(classes), "scans": scans},
        "style": Markup(style),  # our own files: nothing of them is to be escaped
        "script": Markup(script),
        "style_hash": hash_of(style),
        "script_hash": hash_of(script),
    }
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    with whole_file(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        file.writelines(environment.get_template("page.html").generate(values))


def hash_of(text: str) -> str:
    """By which a content security policy knows a script or a style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def values_of(card: Card, place: int, classes: list[str]) -> dict:
    """What the template shows of a card, each text one line; `data` is for the script."""
    row, shown = card.row, card.shown(classes)
    facts = list(facts_of(card, classes))
    drawn = ", ".join(str(i + 1) for i in card.drawn)
    return {
        "place": place,
        "name": printable(row["scan"]),
        "patient": printable(row["patient"]),
        "verdict": row["verdict"],
        "expected": printable(row["expected"]),
        "label": printable(row["label"]),
        "facts": facts,
        "data": {
            "strip": base64.b64encode(card.strip).decode(),
            "attention": base64.b64encode(card.attention).decode(),
            "alt": f"of {counted(card.count, 'slice')} in order: {drawn}",
            "drawn": card.drawn,
            "shares": [round(float(share), 3) for share in card.shares],
            "shown": printable(shown),
        },
    }


def facts_of(card: Card, classes: list[str]) -> Iterator[str]:
    row = card.row
    shown = [card.shown(classes)]
    if len(classes) > 2 and row["expected"] not in ("", *shown):
        shown.append(row["expected"])
    for name in shown:
        yield f"p_{printable(name)} {row[f'p_{name}']:.3f}"
    slices = counted(row["slices"], "slice")
    whole = row["agreement"] is None
    yield f"{slices}, read whole" if whole else f"{slices}, {row['agreement']:.0%} agree"
