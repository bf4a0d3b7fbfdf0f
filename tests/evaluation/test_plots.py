"""plots.py: every picture is written, is not blank, and draws any name."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from evaluation import plots
from evaluation.metrics import Outcomes, score

pytestmark = pytest.mark.filterwarnings("error:Glyph")  # letters that can't be drawn

CLASSES = {
    2: ["left", "right"],
    3: ["normal", "_tear", "$\\frac{$ of 膝, a long kind"],
    10: [f"kind {i}" for i in range(10)],
}


def made_up(k: int, n: int = 300, kinds: int | None = None) -> Outcomes:
    rng = np.random.default_rng(k)
    labels = rng.integers(0, kinds or k, n)
    p = rng.random((n, k)) + np.eye(k)[labels]
    p /= p.sum(axis=1, keepdims=True)
    if k == 2:
        p[:, 0] = 1 - p[:, 1]
    return Outcomes(p, labels, [f"P{i % 20}" for i in range(n)], p)


def made_up_units(k: int, kinds: int | None = None) -> tuple[dict, dict]:
    outcomes = {"slice": made_up(k, 300, kinds), "scan": made_up(k, 60, kinds)}
    return outcomes, {unit: score(found, CLASSES[k]) for unit, found in outcomes.items()}


def assert_picture(path) -> None:
    pixels = np.asarray(Image.open(path).convert("L"))
    assert min(pixels.shape) > 200
    assert 0.005 < (pixels < 250).mean() < 0.995


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that were written, to look into."""
    figures, savefig = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (figures.append(self), savefig(self, *a, **k))
    )
    return figures


@pytest.mark.parametrize("k", CLASSES)
def test_pictures_of_a_test_are_drawn_for_any_number_of_classes(tmp_path, k, drawn):
    outcomes, scored = made_up_units(k)
    plots.draw_confusion_matrix(scored, CLASSES[k], tmp_path / "matrix.png")
    plots.draw_calibration(outcomes, scored, tmp_path / "calibration.png")
    plots.draw_roc(outcomes, scored, CLASSES[k], tmp_path / "roc.png")
    for name in ("matrix", "calibration", "roc"):
        assert_picture(tmp_path / f"{name}.png")
    matrix, calibration, roc = drawn
    assert len(matrix.axes) == 2
    assert len(matrix.axes[0].texts) == k * k
    assert matrix.axes[0].get_xlabel() == "predicted label"
    assert matrix.axes[0].get_ylabel() == "true label"
    assert calibration.axes[0].lines[0].get_xdata()[0] == 1 / k
    legends = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in roc.axes]
    if k == 2:
        assert [text.split(",")[0] for text in legends[0]] == ["slices", "scans"]
        assert roc.axes[0].get_xlabel() == "left taken for right"
    else:
        assert [len(texts) for texts in legends] == [k, k]  # that of `_tear` is not left out
        area = scored["scan"]["by_class"][CLASSES[k][1]]["roc_auc"]["value"]
        assert f"{area:.4f}" in legends[1][1]


@pytest.mark.parametrize("k", CLASSES)
def test_nothing_of_a_matrix_is_outside_of_its_picture_or_over_another_cell(tmp_path, k, drawn):
    _, scored = made_up_units(k)
    scored["slice"]["confusion_matrix"] = [[10000 + i for i in range(k)]] * k
    plots.draw_confusion_matrix(scored, CLASSES[k], tmp_path / "matrix.png")
    boxes = [text.get_window_extent() for text in drawn[0].axes[0].texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    pixels = np.asarray(Image.open(tmp_path / "matrix.png").convert("L"))
    edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (edges == 255).all()


def test_a_class_that_does_not_occur_has_no_line_in_the_roc(tmp_path, drawn):
    outcomes, scored = made_up_units(3, kinds=2)
    plots.draw_roc(outcomes, scored, CLASSES[3], tmp_path / "roc.png")
    axes = drawn[0].axes[0]
    *known, missing = axes.lines[:3]
    assert all(len(line.get_xdata()) > 2 for line in known)
    assert len(missing.get_xdata()) == 0
    assert "area unknown" in axes.get_legend().get_texts()[2].get_text()
    plots.draw_confusion_matrix(scored, CLASSES[3], tmp_path / "matrix.png")
    assert [t.get_text() for t in drawn[1].axes[0].texts[-3:]] == ["0", "0", "0"]  # no share of 0


def test_roc_line_is_that_of_scikit_learn():
    from sklearn.metrics import roc_curve

    axes = Figure().subplots()
    rng = np.random.default_rng(0)
    p, positive = rng.random(200).round(1), rng.random(200) < 0.4
    plots.draw_roc_line(axes, p, positive, "black", "line")
    false, true, _ = roc_curve(positive, p, drop_intermediate=False)
    assert axes.lines[0].get_xdata() == pytest.approx(false)
    assert axes.lines[0].get_ydata() == pytest.approx(true)


def test_one_unit_alone_is_drawn(tmp_path):
    found = made_up(3)
    outcomes, scored = {"scan": found}, {"scan": score(found, CLASSES[3])}
    plots.draw_confusion_matrix(scored, CLASSES[3], tmp_path / "matrix.png")
    plots.draw_calibration(outcomes, scored, tmp_path / "calibration.png")
    plots.draw_roc(outcomes, scored, CLASSES[3], tmp_path / "roc.png")
    found = made_up(2)
    outcomes, scored = {"scan": found}, {"scan": score(found, CLASSES[2])}
    plots.draw_roc(outcomes, scored, ["$a_{$", "膝"], tmp_path / "roc of two.png")
    for path in tmp_path.iterdir():
        assert_picture(path)


def test_attention_and_errors_draw_any_name_and_speak_of_no_sides(tmp_path, drawn):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (10, 12, 14)).astype(np.uint8)
    maps, name = rng.random((10, 12, 14)), "$x_{$ \udcff 膝\n0"
    plots.draw_attention(f"{name}\n0, p 0.981", images[0], maps[:2], tmp_path / "slice.png")
    labels = [f"{i}: $p_{{$ 膝" for i in range(10)]
    plots.draw_montage(name, labels, images, maps, tmp_path / "scan.png")
    plots.draw_montage(
        name, labels, images, maps, tmp_path / "told.png", labels_are="number and p_right"
    )
    examples = [
        plots.Example(f"{name}{i}", "$grade_{$ 膝", i / 10, images[i], i <= 5) for i in range(10)
    ]
    plots.draw_errors(examples[:3], examples, tmp_path / "errors.png")
    for path in tmp_path.iterdir():
        assert_picture(path)
    assert drawn[1].get_suptitle().endswith("\nattention of the last iteration")
    assert drawn[2].get_suptitle().endswith("\nattention of the last iteration; number and p_right")
    del drawn[2]
    words = [text.get_text() for figure in drawn for text in figure.findobj(Text)]
    assert not any(word in text for text in words for word in ("left", "right", "side"))


def test_errors_are_red_where_they_are_wrong_and_not_where_they_are_unsure(tmp_path, drawn):
    image = np.zeros((12, 14), np.uint8)
    examples = [
        plots.Example("a", "0", 0.4, image, wrong=False),  # of three classes the highest may be 0.4
        plots.Example("b", "1", 0.4, image, wrong=True),
        plots.Example("c", "2", 0.5, image, wrong=True),
        plots.Example("d", "2", 0.6, image, wrong=False),
    ]
    plots.draw_errors(examples, [], tmp_path / "errors.png")
    titles = [axes.title for axes in drawn[0].subfigs[0].axes[:4]]
    assert [title.get_color() for title in titles] == [
        "black",
        plots.VAL_COLOUR,
        plots.VAL_COLOUR,
        "black",
    ]


def test_curves_are_drawn(tmp_path):
    rows = [
        {"epoch": i, "train_loss": 1 / i, "val_loss": 1.2 / i}
        | {"train_accuracy": 1 - 0.4 / i, "val_accuracy": 1 - 0.5 / i}
        for i in range(1, 9)
    ]
    plots.draw_curves(rows, tmp_path / "curves.png")
    assert_picture(tmp_path / "curves.png")
