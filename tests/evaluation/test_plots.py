"""plots.py: any picture of any data can be read: texts are apart and inside, nothing is cut."""

import numpy as np
import pytest
from drawings import NAMES, Drawn, assert_texts_are_apart_and_inside, drawn  # noqa: F401
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from PIL import Image

from common.pictures import DPI
from evaluation import curves, metrics, plots
from evaluation.metrics import Outcomes, score

# ruff: noqa: F811
pytestmark = pytest.mark.filterwarnings("error:Glyph")  # letters that can't be drawn

CLASSES = {
    2: ["left", "right"],
    3: ["normal", "_tear", "$\\frac{$ of 膝, a long kind"],
}
DRAWN = "slice", "scan"


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(metrics, "BOOTSTRAP_SAMPLES", 100)


def made_up(k: int, n: int = 300, kinds: int | None = None, patients: int = 20) -> Outcomes:
    rng = np.random.default_rng(k)
    labels = rng.integers(0, kinds or k, n)
    p = rng.random((n, k)) + np.eye(k)[labels]
    p /= p.sum(axis=1, keepdims=True)
    if k == 2:
        p[:, 0] = 1 - p[:, 1]
    return Outcomes(p, labels, [f"P{i % patients}" for i in range(n)], p)


def made_up_units(classes: list[str], n: int = 300, **more) -> tuple[dict, dict]:
    outcomes = {unit: made_up(len(classes), n, **more) for unit in DRAWN}
    return outcomes, {unit: score(found, classes) for unit, found in outcomes.items()}


def without_figures(scored: dict) -> dict:
    """The same, as where what a figure needs is missing."""
    kept = "count", "confusion_matrix", "by_class"
    nothing = {"value": None, "interval_95": None}
    by_class = {name: {"roc_auc": nothing} for name in scored["slice"]["by_class"]}
    return {
        unit: {
            **dict.fromkeys(figures, nothing),
            **{name: figures[name] for name in kept},
            **{"accuracy": None, "interval_95": None, "by_class": by_class},
        }
        for unit, figures in scored.items()
    }


def history(epochs: int, loss: float = 1.0) -> list[dict]:
    rng = np.random.default_rng(0)
    return [
        {"epoch": i, "train_loss": loss * rng.random() / i, "val_loss": 1.2 * loss / i}
        | {"train_accuracy": 1 - 0.4 / i, "val_accuracy": 1 - 0.5 / i}
        for i in range(1, epochs + 1)
    ]


def made_up_slices(count: int, height: int = 38, width: int = 43) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, height, width)).astype(np.uint8)
    return images, rng.random((count, height, width))


def examples(count: int, name: str = "OAI9014797_BaseLine_3_de3d1_WE_RIGHT", label: str = "left"):
    images, _ = made_up_slices(max(1, count))
    return [
        plots.Example(f"{name} #{i}", label, i / 40, images[i], i < count / 2) for i in range(count)
    ]


def assert_picture(path) -> None:
    pixels = np.asarray(Image.open(path).convert("L"))
    assert min(pixels.shape) > 200 and pixels.size < 10e6
    assert 0.005 < (pixels < 250).mean() < 0.995


def legends_of(picture: Drawn) -> list[list[str]]:
    """The texts of the legend of each panel."""
    panels = picture.figure.subfigs
    return [[text.get_text() for text in panel.legends[0].get_texts()] for panel in panels]


# ---- training ------------------------------------------------------------------------------------

ALL_RIGHT = [
    {"epoch": i, "train_loss": 0.0, "val_loss": 0.0, "train_accuracy": 1.0, "val_accuracy": 1.0}
    for i in (1, 2, 3)
]


@pytest.mark.parametrize(
    "rows",
    [
        *map(history, (1, 2, 40)),
        *(pytest.param(history(n), marks=pytest.mark.slow) for n in (3, 12, 500)),
        ALL_RIGHT,
        *(pytest.param(r, marks=pytest.mark.slow) for r in (ALL_RIGHT[:1], history(5, loss=1e9))),
    ],
    ids=lambda rows: f"{len(rows)} epochs",
)
def test_curves_have_whole_epochs_whole_dots_and_nothing_over_them(tmp_path, drawn, rows):
    curves.draw_curves(rows, tmp_path / "curves.png")
    assert_picture(tmp_path / "curves.png")
    assert_texts_are_apart_and_inside(drawn[0])
    (legend,) = drawn[0].figure.legends
    for axes in drawn[0].axes:
        left, right = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if left <= tick <= right]
        assert ticks == [int(tick) for tick in ticks]
        assert ticks[0] >= 1 and ticks[-1] <= len(rows) and len(ticks) <= 12
        assert max(tick for tick in axes.get_yticks() if tick <= axes.get_ylim()[1]) <= 1 or (
            axes is drawn[0].axes[0]
        )
        assert not legend.get_window_extent().overlaps(axes.get_window_extent())
        for line in axes.lines[:2]:
            dots = axes.transData.transform(line.get_xydata())
            has_dots = line.get_marker() == "o"
            assert has_dots == (len(rows) <= 40)
            radius = line.get_markersize() / 2 * DPI / 72 if has_dots else 0
            frame = axes.get_window_extent()
            assert (dots - radius >= (frame.x0, frame.y0)).all()
            assert (dots + radius <= (frame.x1, frame.y1)).all()
        training, validation = axes.lines[:2]  # where both are equal, the one below is seen
        assert training.get_linewidth() > validation.get_linewidth() + 1
        assert training.get_markersize() > validation.get_markersize() + 1


# ---- the test ------------------------------------------------------------------------------------


TESTS = {
    "two": pytest.param(CLASSES[2], {}, marks=pytest.mark.slow),
    "one patient": pytest.param(CLASSES[2], {"patients": 1}, marks=pytest.mark.slow),
    "one class occurs": pytest.param(CLASSES[2], {"kinds": 1}, marks=pytest.mark.slow),
    "one slice": pytest.param(CLASSES[2], {"n": 1}, marks=pytest.mark.slow),
    "long names": pytest.param(NAMES[:2], {}, marks=pytest.mark.slow),
    "three": (CLASSES[3], {}),
    "three, one slice": pytest.param(CLASSES[3], {"n": 1}, marks=pytest.mark.slow),
}


@pytest.mark.parametrize("classes, more", TESTS.values(), ids=TESTS)
def test_pictures_of_any_test_can_be_read(tmp_path, drawn, classes, more):
    outcomes, scored = made_up_units(classes, **more)
    for figures in (scored, without_figures(scored)) if len(more) else (scored,):
        plots.draw_confusion_matrix(figures, classes, tmp_path / "matrix.png")
        plots.draw_calibration(outcomes, figures, tmp_path / "calibration.png")
        plots.draw_roc(outcomes, figures, classes, tmp_path / "roc.png")
        for path in tmp_path.iterdir():
            assert_picture(path)
    for picture in drawn:
        assert_texts_are_apart_and_inside(picture)
    promised = any("95 %" in words for picture in drawn for words in picture.words)
    assert promised == (more.get("patients") != 1 and more.get("n") != 1)


@pytest.mark.slow
@pytest.mark.parametrize("k", [20, 200])
def test_many_classes_are_drawn_soon_and_small_enough(tmp_path, drawn, k):
    classes = [f"a kind of some length {i}" for i in range(k)]
    found = made_up(k, n=2000)
    area = {"value": 0.9, "interval_95": [0.8, 0.95]}
    figures = {"count": 2000, "accuracy": 0.9, "interval_95": [0.8, 0.95], "roc_auc": area}
    figures |= {"confusion_matrix": np.full((k, k), 10012).tolist()}
    figures |= {"by_class": {name: {"roc_auc": area} for name in classes}}
    plots.draw_confusion_matrix({"slice": figures}, classes, tmp_path / "matrix.png")
    plots.draw_roc({"slice": found}, {"slice": figures}, classes, tmp_path / "roc.png")
    for picture, name in zip(drawn, ("matrix", "roc"), strict=True):
        assert_picture(tmp_path / f"{name}.png")
        assert_texts_are_apart_and_inside(picture)
    assert [len(texts) for texts in legends_of(drawn[1])] == [20 if k == 20 else 12]
    assert ("190 more, of larger areas" in legends_of(drawn[1])[0]) == (k == 200)


def test_pictures_of_a_test_show_every_class(tmp_path, drawn):
    for k in (2, 3):
        outcomes, scored = made_up_units(CLASSES[k])
        plots.draw_confusion_matrix(scored, CLASSES[k], tmp_path / "matrix.png")
        plots.draw_calibration(outcomes, scored, tmp_path / "calibration.png")
        plots.draw_roc(outcomes, scored, CLASSES[k], tmp_path / "roc.png")
        matrix, calibration, roc = drawn
        assert len(matrix.axes) == 2
        assert len(matrix.axes[0].texts) == k * k
        assert matrix.axes[0].get_xlabel() == "predicted label"
        assert matrix.axes[0].get_ylabel() == "true label"
        assert calibration.axes[0].lines[0].get_xdata()[0] == 1 / k
        legends = legends_of(roc)
        if k == 2:
            assert [text.split(":")[0] for text in legends[0]] == ["slices", "scans"]
            assert roc.axes[0].get_xlabel() == "left taken for right"
        else:
            assert [len(texts) for texts in legends] == [k, k]  # that of `_tear` is not left out
            area = scored["scan"]["by_class"][CLASSES[k][1]]["roc_auc"]["value"]
            assert f"{area:.4f}" in legends[1][1]
        drawn.clear()


@pytest.mark.parametrize("k", [2, 3, 10])
def test_large_numbers_of_a_matrix_do_not_leave_their_cells(tmp_path, drawn, k):
    classes = [f"{i}" for i in range(k)]
    matrix = [[10000 + i for i in range(k)]] * k
    figures = {"count": 10**6, "accuracy": 1.0, "interval_95": None, "confusion_matrix": matrix}
    plots.draw_confusion_matrix({"slice": figures}, classes, tmp_path / "matrix.png")
    assert_texts_are_apart_and_inside(drawn[0])


def test_a_class_that_does_not_occur_has_no_line_in_the_roc_which_says_so(tmp_path, drawn):
    outcomes, scored = made_up_units(CLASSES[3], kinds=2)
    plots.draw_roc(outcomes, scored, CLASSES[3], tmp_path / "roc.png")
    axes = drawn[0].axes[0]
    *known, missing = axes.lines[:3]
    assert all(len(line.get_xdata()) > 2 for line in known)
    assert len(missing.get_xdata()) == 0
    assert legends_of(drawn[0])[0][2].startswith("no curve, as the test has none: $\\frac")
    assert "mean unknown: the test has not every class" in axes.get_title()
    plots.draw_confusion_matrix(scored, CLASSES[3], tmp_path / "matrix.png")
    assert [t.get_text() for t in drawn[1].axes[0].texts[-3:]] == ["0", "0", "0"]  # no share of 0
    outcomes, scored = made_up_units(CLASSES[2], kinds=1)
    plots.draw_roc(outcomes, scored, CLASSES[2], tmp_path / "roc.png")
    text = "no curve, as the test has no right"
    assert legends_of(drawn[2]) == [[f"slices: {text}", f"scans: {text}"]]
    assert drawn[2].axes[0].get_title() == "ROC"  # and promises no interval


def test_roc_line_is_that_of_scikit_learn():
    from sklearn.metrics import roc_curve

    axes = Figure().subplots()
    rng = np.random.default_rng(0)
    p, positive = rng.random(200).round(1), rng.random(200) < 0.4
    plots.draw_roc_line(axes, p, positive)
    false, true, _ = roc_curve(positive, p, drop_intermediate=False)
    assert axes.lines[0].get_xdata() == pytest.approx(false)
    assert axes.lines[0].get_ydata() == pytest.approx(true)


def test_one_unit_alone_is_drawn(tmp_path):
    for k in (2, 3):
        outcomes, scored = ({"scan": of["scan"]} for of in made_up_units(CLASSES[k]))
        plots.draw_confusion_matrix(scored, CLASSES[k], tmp_path / f"matrix of {k}.png")
        plots.draw_calibration(outcomes, scored, tmp_path / f"calibration of {k}.png")
        plots.draw_roc(outcomes, scored, CLASSES[k], tmp_path / f"roc of {k}.png")
    for path in tmp_path.iterdir():
        assert_picture(path)


@pytest.mark.parametrize("n", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (20, 18000))])
def test_calibration_shows_both_where_they_are_equal_and_whole_marks(tmp_path, drawn, n):
    found = made_up(2, n)
    all_sure = found._replace(probabilities=np.eye(2)[found.labels], before=np.eye(2)[found.labels])
    error = {"value": 0.1, "interval_95": None}
    scored = {"expected_calibration_error": error, "expected_calibration_error_before": error}
    scored = {"slice": scored, "scan": scored}
    plots.draw_calibration({"slice": found, "scan": all_sure}, scored, tmp_path / "c.png")
    for axes in drawn[0].axes:
        frame = axes.get_window_extent()
        marks = [c for c in axes.collections if isinstance(c, PathCollection)]
        before, after = (c for c in marks if len(c.get_offsets()))
        assert np.array_equal(before.get_offsets(), after.get_offsets())
        assert not len(before.get_facecolors()) and len(after.get_facecolors())  # rings and dots
        rings, dots = (np.sqrt(c.get_sizes()) / 2 * DPI / 72 for c in (before, after))
        outer = rings + before.get_linewidths()[0] / 2 * DPI / 72
        assert (rings - before.get_linewidths()[0] / 2 * DPI / 72 > dots + 1).all()
        places = axes.transData.transform(before.get_offsets())
        assert (places - outer[:, None] > (frame.x0, frame.y0)).all()
        assert (places + outer[:, None] < (frame.x1, frame.y1)).all()
    for texts in legends_of(drawn[0]):
        assert texts[1:] == ["before (rings): error 10.00%", "after (dots): error 10.00%"]
    pixels = np.asarray(Image.open(tmp_path / "c.png").convert("RGB")).reshape(-1, 3).astype(int)
    assert (abs(pixels - (209, 73, 91)).sum(axis=1) < 30).sum() > 40  # of the ring


# ---- slices --------------------------------------------------------------------------------------


def test_anatomy_and_attention_are_both_seen_wherever_attention_is_high():
    """Half of the contrast stays, and no grey of the image looks like grey any more."""
    image = np.tile(np.arange(0, 256, 3, dtype=np.uint8), (20, 1))
    for attention in (np.ones(image.shape), np.zeros(image.shape)):
        colours = plots.overlay(image, attention)
        assert colours.shape == (*image.shape, 3) and 0 <= colours.min() <= colours.max() <= 1
        brightness = colours.mean(axis=2)[0]
        assert (np.diff(brightness) >= 0.49 * 3 / 255).all()
        saturation = colours.max(axis=2) - colours.min(axis=2)
        assert (saturation > 0.45).all() if attention.any() else (saturation == 0).all()
    colours = plots.overlay(image, np.linspace(0, 1, 20)[:, None] * np.ones(image.shape))
    assert (np.diff(np.ptp(colours, axis=2), axis=0) > 0).all()  # more of it, more colour


SHAPES = {"as usual": (38, 43), "wide": (8, 200), "tall": (200, 8), "one pixel": (1, 1)}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(
    "name",
    [NAMES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])],
    ids=range(len(NAMES)),
)
def test_attention_of_any_slice_can_be_read(tmp_path, drawn, name, shape):
    images, maps = made_up_slices(3, *shape)
    says = f"{name}, p_{name} 0.123, mismatch"
    plots.draw_attention([name, says], images[0], maps[:2], tmp_path / "slice.png")
    for count in (1, 3):
        labels, told = [f"{i}: 0.123" for i in range(count)], f"number and p_{name} of each slice"
        path = tmp_path / f"{count}.png"
        plots.draw_montage([name, says], labels, images[:count], maps[:count], path, told)
    for figure in drawn:
        assert_texts_are_apart_and_inside(figure)
    slice_alone, first, last = drawn[0].axes[0].images
    assert np.array_equal(slice_alone.get_array(), images[0])
    assert np.array_equal(first.get_array(), plots.overlay(images[0], maps[0]))
    assert np.array_equal(last.get_array(), plots.overlay(images[0], maps[1]))


@pytest.mark.parametrize("count", [8, 9, 40, pytest.param(150, marks=pytest.mark.slow)])
def test_slices_of_a_montage_are_in_rows_of_even_gaps(tmp_path, drawn, count):
    images, maps = made_up_slices(count)
    labels = [f"{i}: 0.123" for i in range(count)]
    plots.draw_montage(["p01", "left"], labels, images, maps, tmp_path / "scan.png")
    (page,) = drawn[0].axes
    assert [text.get_text() for text in page.texts[1:]] == labels
    assert page.texts[0].get_text() == "p01\nleft\nattention of the last iteration"
    columns = max(8, int(np.ceil(np.sqrt(count))))
    for of_axis, places in enumerate(
        np.split(np.array([i.get_extent() for i in page.images]), 2, 1)
    ):
        starts = np.unique(places.min(axis=1).round(6))
        assert len(starts) == [columns, -(-count // columns)][of_axis]
        assert np.allclose(np.diff(starts), np.diff(starts)[:1])
    if count < 100:
        assert_texts_are_apart_and_inside(drawn[0])


@pytest.mark.parametrize(
    "scans, slices",
    [
        (0, 0),
        (1, 1),
        (1, 3),
        (3, 12),
        pytest.param(8, 24, marks=pytest.mark.slow),
        pytest.param(12, 30, marks=pytest.mark.slow),
    ],
)
def test_errors_are_in_rows_of_even_gaps_and_no_text_touches_another(
    tmp_path, drawn, scans, slices
):
    for name, label in [("OAI9014797_BaseLine_3_de3d1_SAG_3D_DESS_WE_RIGHT", "right"), ("1", "2")]:
        path = tmp_path / "errors.png"
        plots.draw_errors(examples(scans, name, label), examples(slices, name, label), path)
        assert_texts_are_apart_and_inside(drawn[-1])
        (page,) = drawn[-1].axes
        assert len(page.images) == scans + slices
        tops = np.unique([image.get_extent()[3] for image in page.images])
        assert np.allclose(np.diff(tops), np.diff(tops)[:1])
        texts = [text.get_text() for text in page.texts]
        if not scans:
            assert texts[1:] == ["Scans: none", "Slices: none"]
        for text in page.texts:  # above its picture, not over it
            box = text.get_window_extent()
            for image in page.images:
                assert not box.overlaps(image.get_window_extent())


@pytest.mark.slow
def test_errors_have_any_names(tmp_path, drawn):
    for name in NAMES:
        plots.draw_errors(examples(3, name, name), examples(9, name, name), tmp_path / "e.png")
        assert_texts_are_apart_and_inside(drawn[-1])
        assert all("#" in t.get_text() for t in drawn[-1].axes[0].texts if ": p" in t.get_text())


def test_pictures_of_other_classes_speak_of_no_sides(tmp_path, drawn):
    images, maps = made_up_slices(2)
    plots.draw_attention(["a\n0", "0, p_0 0.981"], images[0], maps, tmp_path / "slice.png")
    plots.draw_montage(["a", "0"], ["0", "1"], images, maps, tmp_path / "scan.png")
    plots.draw_errors(examples(1, "a", "0"), examples(2, "a", "1"), tmp_path / "errors.png")
    words = " ".join(text for picture in drawn for text in picture.words)
    assert not any(word in words for word in ("left", "right,", "right:", "side"))


def test_errors_are_red_where_they_are_wrong_and_not_where_they_are_unsure(tmp_path, drawn):
    image = np.zeros((12, 14), np.uint8)
    shown = [
        plots.Example("a", "0", 0.4, image, wrong=False),  # of three classes the highest may be 0.4
        plots.Example("b", "1", 0.4, image, wrong=True),
        plots.Example("c", "2", 0.5, image, wrong=True),
        plots.Example("d", "2", 0.6, image, wrong=False),
    ]
    plots.draw_errors(shown, [], tmp_path / "errors.png")
    titles = [text for text in drawn[0].axes[0].texts if ": p" in text.get_text()]
    assert [title.get_color() for title in titles] == [
        "black",
        plots.VAL_COLOUR,
        plots.VAL_COLOUR,
        "black",
    ]
