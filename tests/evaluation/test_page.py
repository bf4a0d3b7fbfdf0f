"""The page of --report: order, names that hold anything, files written whole, arguments."""

import base64
import io
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_knees
from pages import CLASSES, HOSTILE, card, data_of, names_on, scripts, text_of
from PIL import Image

import predict
from common.program import UserError, printable
from common.tables import write_csv
from dataset import Dataset
from evaluation import cards as cards_module
from evaluation.cards import CardMaker
from evaluation.page import check_page, write_page
from evaluation.predictions import Predictions, judge
from evaluation.strips import evenly, overlay, strip_of
from perceiver import Perceiver
from scans.identity.labels import read_labels
from scans.identity.records import Record
from scans.slices import SIDES, Options, Slice


def test_the_worst_scans_are_first(tmp_path):
    cards = [
        card("fine", p=0.99),
        card("nearly", p=0.6),
        card("unknown", "unknown", 0.7, ""),
        card("unsure", "unsure", 0.55),
        card("unsurest", "unsure", 0.51),
        card("wrong", "mismatch", 0.2),
        card("wrongest", "mismatch", 0.01),
    ]
    page = tmp_path / "p.html"
    write_page(page, "Knees", [("scans", "7")], cards, CLASSES)
    expected = ["wrongest", "wrong", "unsurest", "unsure", "nearly", "fine", "unknown"]
    assert names_on(page) == expected
    assert [scan[0] for scan in data_of(page)["scans"]] == expected
    first = predict.worst_first([c.row for c in cards], CLASSES)
    assert [row["scan"] for row in first] == expected[:4]  # as --audit prints them


class Tags(HTMLParser):
    """All tags of a page, and its text."""

    def __init__(self):
        super().__init__()
        self.tags, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_names_that_hold_tags_are_text(tmp_path, name):
    classes = ["<b>x</b>", name]
    page, other = tmp_path / "p.html", tmp_path / "plain.html"
    for path, scan, labels in ((page, name, classes), (other, "plain", ["a", "b"])):
        one = card(scan, "mismatch", 0.1, labels[1], labels, attention=True)
        write_page(path, scan, [(scan, scan)], [one], labels)
    found, plain = Tags(), Tags()
    found.feed(text_of(page))
    plain.feed(text_of(other))
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in plain.tags]
    assert not [a for _, attributes in found.tags for a in attributes if a.startswith("on")]
    assert data_of(page)["scans"] == [[name, name, "<b>x</b>", "mismatch"]]
    assert len(scripts(page)) == 2 and not any("<" in block for block in scripts(page))
    assert names_on(page) == [printable(name)]


def test_nothing_on_the_page_is_from_elsewhere(tmp_path):
    page = tmp_path / "p.html"
    write_page(page, "Knees", [], [card("a")], CLASSES)
    found = Tags()
    found.feed(text_of(page))
    for tag, attributes in found.tags:
        assert tag not in ("iframe", "object", "embed", "form", "base")
        assert attributes.get("src") is None and attributes.get("href", "data:,") == "data:,"
    (policy,) = [a["content"] for _, a in found.tags if "http-equiv" in a]
    assert policy.startswith("default-src 'none'; img-src data:; ") and "unsafe" not in policy


def test_a_page_that_fails_on_the_way_leaves_the_one_before(tmp_path):
    page = tmp_path / "p.html"
    page.write_text("before")
    broken = card("a")._replace(shares=[object()])
    with pytest.raises(TypeError):
        write_page(page, "Knees", [], [card("b"), broken], CLASSES)
    assert page.read_text() == "before" and list(tmp_path.iterdir()) == [page]


def test_five_slices_are_drawn_from_the_first_to_the_last():
    assert evenly(40, 5) == [0, 10, 20, 29, 39]
    assert evenly(3, 5) == [0, 1, 2] and evenly(1, 5) == [0]
    strip = Image.open(io.BytesIO(strip_of([np.zeros((228, 260), np.uint8)] * 5, edge=112)))
    assert strip.size == (5 * 112 + 8, 98) and strip.mode == "L"
    image, attention = np.full((4, 6), 100, np.uint8), np.zeros((4, 6))
    attention[0, 0] = 1
    colours = overlay(image, attention, highest=1)
    np.testing.assert_allclose(colours[0, 0], [(1 + 100 / 255) / 2] * 2 + [50 / 255])
    np.testing.assert_allclose(colours[1:], 100 / 255)


# ---- cards ---------------------------------------------------------------------------------------


def predictions_of(
    scans: int, whole: bool, folder: str | Path = "none", slices: int = 8
) -> tuple[Perceiver, Predictions]:
    """Of scans whose slices are given from the last to the first, as grey as their numbers."""
    found = [
        Slice(f"{folder}/s{i}_{number}.png", None, "right", f"p{i}", f"s{i}", number)
        for i in range(scans)
        for number in (range(slices) if whole else reversed(range(slices)))
    ]
    grey = torch.tensor([20 * s.number for s in found], dtype=torch.uint8)
    pixels = grey[:, None, None, None].expand(-1, 1, 12, 16).contiguous()
    rows = torch.arange(len(found))
    dataset = Dataset(found, pixels, rows.view(scans, slices) if whole else rows, CLASSES)
    size = dict(num_latents=4, latent_dim=8, depth=2, num_freq_bands=2, max_freq=4)
    model = Perceiver(input_channels=1, num_classes=2, input_axis=3 if whole else 2, **size)
    model.preprocessing |= {"mean": 0.3, "std": 0.2}
    logits = torch.stack([torch.zeros(len(dataset)), torch.linspace(-3, 3, len(dataset))], dim=1)
    return model, Predictions(dataset, logits)


@pytest.mark.parametrize("whole", [False, True])
def test_cards_show_slices_in_order_and_attention_of_what_needs_a_person(whole, monkeypatch):
    monkeypatch.setattr(cards_module, "MOST_ATTENTION", 2)
    model, predictions = predictions_of(5, whole)
    maker = CardMaker(5)
    judged = [judge(scan, CLASSES, 0.6) for scan in predictions.scans]
    maker.add(model, predictions, judged)
    cards = maker.cards()
    assert [c.row["verdict"] for c in cards] == ["mismatch", "mismatch", "unsure", "ok", "ok"]
    assert [bool(c.attention) for c in cards] == [True, True, False, False, False]
    for one in cards:
        assert one.drawn == [0, 2, 4, 5, 7] and one.count == 8
        strip = np.asarray(Image.open(io.BytesIO(one.strip)))
        assert strip.shape == (12, 5 * 16 + 8)
        assert np.abs(strip[6, 8::18].astype(int) - 20 * np.array(one.drawn)).max() < 4
        if one.attention:
            assert Image.open(io.BytesIO(one.attention)).mode == "RGB"
    if whole:
        assert not any(one.shares for one in cards)
    else:  # of the first slice, which was given last, first
        assert cards[0].shares == pytest.approx(predictions.probabilities[7::-1, 1].tolist())


@pytest.mark.parametrize("whole", [False, True])
def test_slices_of_what_needs_a_person_are_drawn_from_their_files(tmp_path, whole):
    """Twice as large as the model's, a dot in each, and the first slice first."""
    model, predictions = predictions_of(2, whole, tmp_path)
    for s in predictions.dataset.slices:
        pixels = np.full((24, 32), 20 * s.number, np.uint8)
        pixels[:4, :4] = 255
        Image.fromarray(pixels).save(s.source)
    maker = CardMaker(2, workers=1)
    maker.add(model, predictions, [judge(scan, CLASSES, 1.0) for scan in predictions.scans])
    for one in maker.cards():
        assert one.row["verdict"] == "unsure"
        for drawn in (one.strip, one.attention):
            picture = np.asarray(Image.open(io.BytesIO(drawn)).convert("L"), dtype=int)
            assert picture.shape == (168, 5 * 224 + 8)
            if drawn is one.strip:
                assert np.abs(picture[100, 112::226] - 20 * np.array(one.drawn)).max() < 4
                assert picture[8, 8::226].min() > 245


# ---- predict.py --report -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """Knees of which one is called of the other side."""
    folder = tmp_path_factory.mktemp("archive") / "knees"
    write_knees(folder)
    for path in folder.glob("OAI9000003_BaseLine_1_0_LEFT*"):
        path.rename(folder / path.name.replace("1_0_LEFT", "1_9_RIGHT"))
    return folder


def test_report_beside_audit_json_and_tables(finished_run, archive, tmp_path, capsys):
    page = tmp_path / "report.html"
    more = ["--audit", "--json", "--output", str(tmp_path / "out"), "--report", str(page)]
    one = tmp_path / "more" / "OAI9000099_BaseLine_1_0_LEFT.nii.gz_0.png"
    one.parent.mkdir()
    shutil.copy(next(archive.glob("*LEFT*")), one)
    code = predict.main([str(finished_run / "best.pt"), str(archive), str(one.parent), *more])
    assert code in (0, 3)
    text, scans = text_of(page), data_of(page)["scans"]
    assert len(scans) == 17 and "of 17 compared" in text and str(finished_run) in text
    for scan, block in zip(scans, map(json.loads, scripts(page)[:-1]), strict=True):
        needs_a_person = scan[3] in ("mismatch", "unsure")
        strip = Image.open(io.BytesIO(base64.b64decode(block["strip"])))
        slices = len(block["drawn"])
        assert strip.width == slices * (224 if needs_a_person else 16) + 2 * (slices - 1)
        assert bool(block["attention"]) == needs_a_person
    assert next(row for row in scans if "_1_9_RIGHT" in row[0])[1:3] == ["right", "left"]
    assert text.count('"strip":') == 17 and text.count("<article") == 17
    assert (tmp_path / "out" / "scans.csv").is_file()
    assert f"report: {page}" in capsys.readouterr().err


def test_report_of_what_cannot_be_read_is_a_page_all_the_same(finished_run, tmp_path):
    (tmp_path / "a.png").write_text("none")
    page = tmp_path / "r.html"
    arguments = [str(finished_run / "best.pt"), str(tmp_path / "a.png"), "--report", str(page)]
    assert predict.main(arguments) == 1
    assert data_of(page)["scans"] == [] and "unreadable" in text_of(page)


@pytest.mark.parametrize(
    "name, message",
    [
        ("report.pdf", "expected a name that ends in .html"),
        ("folder.html", "a folder; name a file"),
        ("missing/report.html", "no such folder: "),
    ],
)
def test_a_page_that_cannot_be_written_is_refused_before_the_work(
    finished_run, archive, tmp_path, capsys, name, message
):
    (tmp_path / "folder.html").mkdir()
    arguments = [str(finished_run / "best.pt"), str(archive), "--report", str(tmp_path / name)]
    assert predict.main(arguments) == 2
    out, error = capsys.readouterr()
    assert not out and len(error.splitlines()) == 1 and message in error
    with pytest.raises(UserError, match=message):
        check_page(tmp_path / name)


def test_scans_of_any_name_are_found_in_the_table_that_the_page_saves(tmp_path):
    """As a browser writes it: see test_page_in_browser.py. macOS types names decomposed."""
    names = [*HOSTILE, "/Volumes/scho\u0308n/p1_LEFT.nii"]
    write_csv(tmp_path / "corrected.csv", [{"scan": name, "label": "right"} for name in names])
    tables = read_labels(Options(labels=[tmp_path / "corrected.csv"]), None, SIDES)
    records = tables.correct([Record(name, name, scan=name) for name in names], "")
    assert [record.scan for record in records if record.label != "right"] == []


def test_jpegs_on_the_page_are_whole(tmp_path):
    page = tmp_path / "p.html"
    write_page(page, "Knees", [], [card("a", "unsure", 0.5, attention=True)], CLASSES)
    block = json.loads(scripts(page)[0])
    for kind, mode in (("strip", "L"), ("attention", "RGB")):
        image = Image.open(io.BytesIO(base64.b64decode(block[kind])))
        image.load()
        assert image.mode == mode
