"""The page of --report in a real browser: keys, ticks, search, the table that it saves."""

import csv
import shutil
import time
from pathlib import Path

import pytest
from conftest import TINY, write_knees
from pages import CLASSES, HOSTILE, card

import predict
import train
from common.tables import read_csv
from evaluation.page import write_page
from scans.identity.labels import read_labels
from scans.identity.records import Record
from scans.slices import SIDES, Options

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = pytest.mark.slow
THREE = ["top", "middle", "bottom"]


@pytest.fixture(scope="module")
def chromium():
    """One browser for all: the system's, or playwright's own."""
    found = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
    with playwright.sync_playwright() as started:
        try:
            # A container's root can't use the sandbox.
            browser = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no browser can be started: {error.message.splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, tmp_path):
    """Opens a page of these cards; at the end nothing was asked of a network, and no error said."""
    contexts, wrong = [], []

    def asked(request):
        if not request.url.startswith(("file:", "data:", "blob:")):
            wrong.append(request.url)

    def open_page(cards=(), classes=CLASSES, width=1280, path=None, init="", **more):
        if path is None:
            path = tmp_path / "report.html"
            write_page(path, "Knees & more", [("scans", f"{len(cards)}")], cards, classes)
        context = chromium.new_context(viewport={"width": width, "height": 800}, **more)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("request", asked)
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        if init:
            page.add_init_script(init)
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


def a_few():
    return [
        card("p01 left", "mismatch", 0.9, "left", attention=True),
        card("p02 right", "mismatch", 0.2, "right", attention=True),
        card("p03 unsure", "unsure", 0.55, "right"),
        card("p04 unknown", "unknown", 0.8, ""),
        card("p05 ok", "ok", 0.95, "right"),
        card("p06 whole", "ok", 0.97, "right", whole=True),
    ]


def shown(page) -> list[str]:
    """Not as inner_text: what is out of view is not laid out."""
    names = page.locator("article:visible h2").all_text_contents()
    return [name.split(" ", 1)[1] for name in names]


def current(page) -> str:
    return page.locator(".current h2").text_content().split(" ", 1)[1]


def press(page, keys: str) -> None:
    for key in keys.split():
        page.keyboard.press(key)


def saved(page, folder: Path) -> Path:
    with page.expect_download() as download:
        page.keyboard.press("s")
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def test_filter_and_search(opened):
    page = opened(a_few())
    assert len(shown(page)) == 6
    page.get_by_role("button", name="mismatch").click()
    assert shown(page) == ["p01 left", "p02 right"]
    press(page, "f f f f")
    assert shown(page) == [] and page.locator("#none").is_visible()  # nothing is ticked
    press(page, "f")
    page.keyboard.press("/")
    page.keyboard.type("OF P03")  # a patient
    assert shown(page) == ["p03 unsure"]
    assert page.locator("#status").inner_text() == "1 of 6 scans shown."
    press(page, "Escape j")
    assert current(page) == "p03 unsure"


def test_keys_go_through_what_is_shown_and_tick(opened):
    page = opened(a_few())
    press(page, "j j ArrowDown")
    assert current(page) == "p03 unsure"
    assert page.evaluate("document.activeElement.tagName") == "ARTICLE"
    press(page, "k ArrowUp ArrowUp w")
    assert current(page) == "p01 left"
    pressed = page.locator(".current [aria-pressed=true]")
    assert pressed.all_text_contents() == ["label is wrong: it is right w"]
    press(page, "r j c c j r")
    assert page.locator("#ticked").inner_text() == "2"
    press(page, "f f f f f")  # all, mismatch, unsure, unknown, ok: ticked
    assert shown(page) == ["p01 left", "p03 unsure"]
    assert page.locator("#keys").is_hidden()
    press(page, "?")
    assert page.locator("#keys").is_visible()
    press(page, "Escape")
    assert page.locator("#keys").is_hidden()
    assert page.locator(".current").count() == 0  # it was not among the unknown
    press(page, "j Control+j")
    assert current(page) == "p01 left"


def test_keys_are_for_the_card_that_has_the_focus(opened):
    page = opened(a_few())
    press(page, "j")
    page.locator("article").nth(2).get_by_role("button", name="can't tell").focus()
    assert current(page) == "p03 unsure"
    press(page, "W")  # caps lock
    assert page.locator("article").nth(2).get_by_role("button", pressed=True).count() == 1
    assert page.locator("article").first.get_by_role("button", pressed=True).count() == 0
    page.keyboard.down("r")
    page.keyboard.down("r")  # repeats
    page.keyboard.up("r")
    pressed = page.locator("article").nth(2).get_by_role("button", pressed=True)
    assert pressed.all_text_contents() == ["label is correct r"]


def test_attention_is_shown_on_demand(opened):
    page = opened(a_few())
    press(page, "j")
    image = page.locator(".current img")
    before = image.get_attribute("src")
    press(page, "a")
    assert image.get_attribute("src") != before
    assert image.get_attribute("alt") == "Attention over slices of 9 slices in order: 1, 3, 5, 7, 9"
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 158
    page.locator(".current").get_by_role("button", name="attention").click()
    assert image.get_attribute("src") == before
    press(page, "j j a")  # of unsure, which has none here
    assert "Attention is drawn for the worst scans alone" in page.locator("#status").inner_text()


def test_probabilities_of_slices_are_drawn_but_of_scans_that_are_read_whole(opened):
    page = opened(a_few())
    press(page, "j j j j j j")
    page.wait_for_function("document.querySelectorAll('.ticks').length == 6")
    assert page.locator("svg").count() == 5
    label = page.locator("svg").first.get_attribute("aria-label")
    assert label == "p_right of each slice, from 0.900 to 0.900"


def test_the_table_has_all_scans_with_the_labels_that_they_should_have(opened, tmp_path):
    page = opened(a_few())
    press(page, "j w j r j c")
    rows = [row.cells for row in read_csv(saved(page, tmp_path), "table").rows]
    assert list(rows[0]) == ["scan", "label", "expected", "predicted", "verdict", "tick"]
    assert [(row["scan"], row["label"], row["tick"]) for row in rows] == [
        ("p01 left", "right", "label is wrong"),
        ("p02 right", "right", "label is correct"),
        ("p03 unsure", "", "can't tell"),
        ("p05 ok", "right", ""),
        ("p06 whole", "right", ""),
        ("p04 unknown", "", ""),
    ]


def test_of_three_classes_which_one_it_is_must_be_chosen(opened, tmp_path):
    cards = [
        card("a", "mismatch", 0.9, "top", THREE),
        card("b", "mismatch", 0.8, "middle", THREE),
        card("c", "unknown", 0.8, "", THREE),
    ]
    page = opened(cards, THREE)
    press(page, "j")
    options = page.locator(".current option").all_text_contents()
    assert options == ["…", "middle", "bottom"]
    press(page, "w")
    assert "Choose what it is" in page.locator(".current .problem").text_content()
    page.keyboard.type("bot")
    press(page, "Enter j w Escape j")
    assert current(page) == "c"
    page.locator(".current select").select_option("top")
    rows = [row.cells for row in read_csv(saved(page, tmp_path), "table").rows]
    assert [(row["label"], row["tick"]) for row in rows] == [
        ("bottom", "label is wrong"),
        ("", "label is wrong"),
        ("top", "label is told"),
    ]


def test_ticks_are_there_again_and_no_other_page_has_them(opened, tmp_path):
    page = opened(a_few())
    press(page, "j w")
    page.reload()
    assert page.locator("#ticked").inner_text() == "1"
    assert page.locator("article").first.get_by_role("button", pressed=True).count() == 1
    write_page(tmp_path / "report.html", "Other", [], a_few()[::2], CLASSES)
    page.reload()
    assert page.locator("#ticked").inner_text() == "0"


def test_without_storage_ticks_work_and_it_is_said(opened, tmp_path):
    none = "Object.defineProperty(window, 'localStorage', {get() { throw new Error('none') }})"
    page = opened(a_few(), init=none)
    assert "This browser keeps no ticks" in page.locator("#status").inner_text()
    press(page, "j w")
    assert read_csv(saved(page, tmp_path), "table").rows[0].cells["label"] == "right"


def test_names_that_hold_anything_show_as_text_and_come_back_from_the_table(opened, tmp_path):
    """No dialog, no error, no element that is not ours: see `opened`."""
    page = opened([card(name, "mismatch", 0.1, attention=True) for name in HOSTILE])
    press(page, "j " * len(HOSTILE))
    page.wait_for_function(f"document.querySelectorAll('.ticks').length == {len(HOSTILE)}")
    assert page.locator("script").count() == len(HOSTILE) + 2
    assert page.locator("main img").count() == len(HOSTILE)
    rows = read_csv(saved(page, tmp_path), "table").rows
    assert sorted(row.cells["scan"] for row in rows) == sorted(HOSTILE)
    tables = read_labels(Options(labels=[tmp_path / "corrected.csv"]), None, SIDES)
    records = tables.correct([Record(name, name, scan=name) for name in HOSTILE], "")
    assert [record.label for record in records] == ["right"] * len(HOSTILE)
    with (tmp_path / "corrected.csv").open(newline="", errors="surrogateescape") as file:
        names = [row[0] for row in csv.reader(file)]
    assert "'=HYPERLINK(1), \u202eabc" in names  # no formula for a spreadsheet


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window(opened, width, scheme):
    long = "OAI9000099_" + "very_long_name_" * 20
    cards = [*a_few(), card(long, "mismatch", 0.05, attention=True)]
    page = opened(cards, width=width, color_scheme=scheme)
    press(page, "j ? a")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    box = page.locator(".current").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["y"] < 800


def test_five_thousand_scans_are_small_and_open_soon(opened, tmp_path):
    """3 s on an idle machine; here others may run at the same time."""
    padding = b"\0" * 15_000  # what follows a JPEG's end is not shown
    of_any = [card(f"p{i}", "ok", 0.5 + i / 20_000) for i in range(5000)]
    cards = [one._replace(strip=one.strip + padding, shares=one.shares * 5) for one in of_any]
    path = tmp_path / "many.html"
    write_page(path, "Many", [], cards, CLASSES)
    assert path.stat().st_size < 150e6
    start = time.monotonic()
    page = opened(path=path)
    press(page, "j")
    page.locator(".current img").wait_for()
    assert time.monotonic() - start < 12
    built = page.locator(".ticks").count()
    assert 0 < built < 50  # the others when they come into view
    press(page, "k /")
    page.keyboard.type("p4999")
    assert shown(page) == ["p4999"]


def test_what_a_reader_corrects_comes_back_into_training_and_prediction(
    opened, finished_run, tmp_path, capsys
):
    """One knee is called of the other side: predicted, looked at, ticked, saved, read again."""
    knees, page_path = tmp_path / "knees", tmp_path / "report.html"
    write_knees(knees)
    for path in knees.glob("OAI9000003_BaseLine_1_0_LEFT*"):
        path.rename(knees / path.name.replace("1_0_LEFT", "1_9_RIGHT"))
    scan, other = "OAI9000003_BaseLine_1_9_RIGHT.nii.gz", "OAI9000004_BaseLine_1_0_LEFT.nii.gz"
    command = [str(finished_run / "best.pt"), str(knees), "--audit"]
    predict.main([*command, "--report", str(page_path)])
    page = opened(path=page_path)
    for name, key in ((scan, "w"), (other, "c")):
        press(page, "/ Control+a")
        page.keyboard.type(name)
        press(page, f"Escape j {key}")
    table = str(saved(page, tmp_path))

    capsys.readouterr()
    predict.main([*command, "--labels", table])
    out, error = capsys.readouterr()
    assert not [line for line in out.splitlines() if scan in line and "expected right" in line]
    assert f"note: {table}: changes the label of 2 scans: " in error
    assert f"{scan} is left" in error and f"{other} is without a label" in error
    training = ["--data-dir", str(knees), "--output-dir", str(tmp_path / "run"), *TINY]
    assert train.main([*training, "--labels", table, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "changes the label of 2 scans: " in out and f"{scan} is left" in out
    assert "8 slices without a label, left out" in out
