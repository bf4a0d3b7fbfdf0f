"""Pictures of a run while it trains, of its test, and of what the attention reads."""

import textwrap
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike

from common.files import whole_file
from evaluation.metrics import Outcomes, confidence_bins
from evaluation.predictions import Example
from scans.names import drawable, shortened

COLOURS = TRAIN_COLOUR, VAL_COLOUR = "#1f6fb2", "#d1495b"


def make_panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels side by side, each of this size in inches."""
    figure = Figure(figsize=(width * count, height), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def save(figure: Figure, path: Path, **more) -> None:
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=120, **more)


def draw_curves(rows: list[dict], path: Path) -> None:
    """Loss and accuracy by epoch, training and validation; the epoch that was kept is marked.

    rows: those of metrics.csv, with numbers for values.
    """
    figure, panels = make_panels(2, 5, 4)
    epochs = [row["epoch"] for row in rows]
    best = min(rows, key=lambda row: row["val_loss"])
    for axes, quantity in zip(panels, ("loss", "accuracy"), strict=True):
        for subset, name, colour in [
            ("train", "training", TRAIN_COLOUR),
            ("val", "validation", VAL_COLOUR),
        ]:
            values = [row[f"{subset}_{quantity}"] for row in rows]
            axes.plot(epochs, values, "o-", color=colour, label=name, markersize=3)
        axes.axvline(best["epoch"], color="0.6", linestyle=":", label="kept (lowest val loss)")
        axes.set(xlabel="epoch", title=quantity.capitalize())
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="cross-entropy", ylim=(0, None))
    panels[1].set(ylabel="slices that are right")
    panels[1].yaxis.set_major_formatter(PercentFormatter(1.0))
    panels[1].legend()
    save(figure, path)


def draw_confusion_matrix(scored: dict[str, dict], classes: list[str], path: Path) -> None:
    """One matrix for each unit: scored is {"slice": metrics.score(...), "scan": ...}.

    Rows are true labels, columns predicted ones; colour is the share of the row.
    """
    size = 4.2 + 0.5 * (len(classes) - 2)  # inches, with names that are short
    names = [shortened(name) for name in classes]
    longest = max(map(len, names)) * 6 / 72  # inches: a letter of size 10 is about 6 points wide
    slanted = longest > 0.75 * size / len(classes)  # wider than a cell
    width, height = (size + longest, size + 0.65 * longest) if slanted else (size, size)
    text = {"ha": "center", "va": "center", "fontsize": max(9, 13 - 0.75 * (len(classes) - 2))}
    figure, panels = make_panels(len(scored), width, height)
    for axes, (unit, figures) in zip(panels, scored.items(), strict=True):
        matrix = figures["confusion_matrix"]
        shares = [[n / max(1, sum(row)) for n in row] for row in matrix]
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for i, row in enumerate(matrix):
            for j, count in enumerate(row):
                colour = "white" if shares[i][j] > 0.5 else "black"
                cell = f"{count:,}\n{shares[i][j]:.1%}" if sum(row) else "0"
                axes.text(j, i, cell, color=colour, **text)
        turned = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
        axes.set_xticks(range(len(names)), names, parse_math=False, **turned)
        turned = {} if slanted else {"rotation": 90, "va": "center"}
        axes.set_yticks(range(len(names)), names, parse_math=False, **turned)
        interval = "one patient: no interval"
        if bounds := figures["interval_95"]:
            interval = "95 % interval over patients: {:.1%} to {:.1%}".format(*bounds)
        right = f"{figures['accuracy']:.2%} of {figures['count']:,} {unit}s"
        axes.set(xlabel="predicted label", ylabel="true label")
        axes.set_title(f"{right}\n{interval}", fontsize=10)
    # Tight, or long names would be cut off.
    save(figure, path, bbox_inches="tight" if len(classes) > 2 else None)


def draw_calibration(outcomes: dict[str, Outcomes], scored: dict[str, dict], path: Path) -> None:
    """How often predictions of each confidence are right, before and after calibration.

    outcomes: {"slice": Outcomes, "scan": Outcomes}; scored: their metrics.score.
    """
    figure, panels = make_panels(len(outcomes), 4.6, 5)
    for axes, (unit, found) in zip(panels, outcomes.items(), strict=True):
        least = 1 / found.probabilities.shape[1]
        axes.plot([least, 1], [least, 1], color="0.6", linestyle=":", label="perfect")
        for name, p, colour, key in [
            ("before", found.before, VAL_COLOUR, "expected_calibration_error_before"),
            ("after", found.probabilities, TRAIN_COLOUR, "expected_calibration_error"),
        ]:
            confidence, right = p.max(axis=1), p.argmax(axis=1) == found.labels
            bins = confidence_bins(p)
            filled = np.unique(bins)
            x = [confidence[bins == b].mean() for b in filled]
            y = [right[bins == b].mean() for b in filled]
            sizes = [10 + 200 * (bins == b).mean() for b in filled]
            label = f"{name} (error {scored[unit][key]['value']:.2%})"
            axes.scatter(x, y, sizes, color=colour, label=label, alpha=0.8)
        axes.set(xlabel="confidence", ylabel=f"{unit}s that are right", ylim=(-0.03, 1.03))
        axes.set_title(f"{len(found.labels):,} {unit}s; larger dots hold more of them", fontsize=10)
        axes.legend(loc="lower right")
        axes.grid(alpha=0.3)
    save(figure, path)


def draw_roc(
    outcomes: dict[str, Outcomes], scored: dict[str, dict], classes: list[str], path: Path
) -> None:
    """Receiver operating characteristic. As `draw_calibration`.

    Of two classes the second is the positive one, and each unit has a line. Of more each is drawn
    against the rest, in a panel for each unit.
    """
    title = "ROC (95 % intervals over patients)"
    if len(classes) == 2:
        figure, (axes,) = make_panels(1, 5, 5)
        for (unit, found), colour in zip(outcomes.items(), COLOURS, strict=False):
            label = f"{unit}s, {area_text(scored[unit]['roc_auc'])}"
            draw_roc_line(axes, found.probabilities[:, 1], found.labels == 1, colour, label)
        first, second = (shortened(name) for name in classes)
        axes.set_xlabel(f"{first} taken for {second}", parse_math=False)
        axes.set_ylabel(f"{second} recognised", parse_math=False)
        axes.set_title(title)
        finish_roc(axes, loc="lower right")
    else:
        figure, panels = make_panels(len(outcomes), 5, 5.7 + 0.17 * len(classes))
        figure.suptitle(title)
        colours = matplotlib.colormaps["tab10" if len(classes) <= 10 else "turbo"]
        for axes, (unit, found) in zip(panels, outcomes.items(), strict=True):
            for c, name in enumerate(classes):
                area = scored[unit]["by_class"][name]["roc_auc"]
                label = f"{area_text(area)}: {shortened(name)}"  # no label may begin with _
                colour = colours(c if len(classes) <= 10 else c / (len(classes) - 1))
                draw_roc_line(axes, found.probabilities[:, c], found.labels == c, colour, label)
            axes.set(xlabel="the rest taken for the class", ylabel="the class recognised")
            mean = area_text(scored[unit]["roc_auc"])
            axes.set_title(f"{unit}s, each class against the rest\nmean {mean}", fontsize=10)
            finish_roc(axes, loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize=8)
    # Tight, or long legends would be cut off.
    save(figure, path, bbox_inches="tight" if len(classes) > 2 else None)


def draw_roc_line(axes: Axes, p: np.ndarray, positive: np.ndarray, colour, label: str) -> None:
    """p (n,) of the positive class, and which of n belong to it.

    Where all or none do, the line is empty and stands in the legend only.
    """
    order = np.argsort(-p, kind="stable")
    p, positive = p[order], positive[order]
    last = np.append(np.flatnonzero(np.diff(p)), len(p) - 1)  # equal ones come together
    true, false = (np.append(0, of.cumsum()[last]) for of in (positive, ~positive))
    if true[-1] and false[-1]:
        true, false = true / true[-1], false / false[-1]
    else:
        true = false = []
    axes.plot(false, true, color=colour, label=label, drawstyle="steps-post")


def finish_roc(axes: Axes, **legend) -> None:
    axes.plot([0, 1], [0, 1], color="0.6", linestyle=":")
    axes.set_aspect("equal")
    axes.grid(alpha=0.3)
    for text in axes.legend(**legend).get_texts():
        text.set_parse_math(False)


def area_text(area: dict) -> str:
    """{value, interval_95} as a legend says it."""
    if area["value"] is None:
        return "area unknown"
    text = f"area {area['value']:.4f}"
    if area["interval_95"]:
        text += " ({:.4f} to {:.4f})".format(*area["interval_95"])
    return text


def overlay(axes: Axes, image: ArrayLike, attention: ArrayLike) -> None:
    """An image (height, width) in grey, and in colour where a map of the same shape is high."""
    attention = np.asarray(attention)
    share = (attention / max(float(np.percentile(attention, 99.5)), 1e-12)).clip(0, 1)
    axes.imshow(image, cmap="gray", vmin=0, vmax=255)
    axes.imshow(share, cmap="inferno", vmin=0, vmax=1, alpha=0.75 * share)
    axes.axis("off")


def draw_attention(title: str, image: ArrayLike, maps: ArrayLike, path: Path) -> None:
    """A slice, and on it the attention of the first and of the last iteration.

    image (height, width), maps (2, height, width): averages over heads and latents.
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    lines = [shortened(line, 90) for line in title.rsplit("\n", 1)]
    figure.suptitle("\n".join(lines), fontsize=9, parse_math=False)
    plain, *others = figure.subplots(1, 3)
    plain.imshow(image, cmap="gray", vmin=0, vmax=255)
    plain.axis("off")
    plain.set_title("slice", fontsize=9)
    names = ("attention, first iteration", "attention, last iteration")
    for axes, attention, name in zip(others, maps, names, strict=True):
        overlay(axes, image, attention)
        axes.set_title(name, fontsize=9)
    save(figure, path)


def draw_montage(
    title: str, labels: list[str], images: ArrayLike, maps: ArrayLike, path: Path, labels_are=""
) -> None:
    """All slices of a scan and their attention; images and maps are (slices, height, width).

    labels stand over the slices; `labels_are` is what the heading says of them, such as
    "number and p_right of each slice".
    """
    columns = min(8, len(images))
    rows = -(-len(images) // columns)
    height, width = images[0].shape
    figure = Figure(
        figsize=(1.4 * columns, rows * (1.4 * height / width + 0.22) + 0.5), layout="constrained"
    )
    lines = [shortened(line, 12 * columns) for line in title.rsplit("\n", 1)]
    lines.append("; ".join(filter(None, ["attention of the last iteration", labels_are])))
    figure.suptitle("\n".join(lines), fontsize=9, parse_math=False)
    for i, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.axis("off")
        if i < len(images):
            overlay(axes, images[i], maps[i])
            axes.set_title(drawable(labels[i]), fontsize=7, parse_math=False)
    save(figure, path)


def draw_errors(scans: list[Example], slices: list[Example], path: Path) -> None:
    """What the model got wrong (red) or was least sure of: a row of scans, and rows of slices."""
    columns = 8
    rows = [("Scans, by their middle slices: true label and its probability; red: wrong", scans)]
    for start in range(0, len(slices), columns):
        rows.append(("Slices" if start == 0 else "", slices[start : start + columns]))
    figure = Figure(figsize=(1.75 * columns, 2.25 * len(rows)), layout="constrained")
    for row, (title, found) in zip(
        figure.subfigures(len(rows), squeeze=False)[:, 0], rows, strict=True
    ):
        row.suptitle(title, fontsize=10, x=0.01, ha="left")
        panels = row.subplots(1, columns)
        for axes in panels:
            axes.axis("off")
        for axes, example in zip(panels, found, strict=False):
            axes.imshow(example.image, cmap="gray", vmin=0, vmax=255)
            lines = textwrap.wrap(shortened(example.name, 52), 27)[:2]
            lines.append(f"{shortened(example.label, 16)}: p {example.p_true:.3f}")
            colour = VAL_COLOUR if example.wrong else "black"
            axes.set_title("\n".join(lines), fontsize=7, color=colour, parse_math=False)
    save(figure, path)
