"""Pictures of a run while it trains, of its test, and of what the attention reads."""

import math
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike

from common.pictures import (
    Box,
    fitted,
    height_for,
    make_page,
    put_image,
    put_text,
    save,
    text_height,
    text_width,
)
from common.program import counted
from evaluation.metrics import Outcomes, confidence_bins
from evaluation.predictions import Example
from evaluation.strips import overlay

COLOURS = TRAIN_COLOUR, VAL_COLOUR = "#1f6fb2", "#d1495b"
MOST_DOTS = 40  # epochs; of more the lines are drawn without dots
MOST_NUMBERS = 20  # classes whose confusion matrix has room for numbers, and ROC for colours
MOST_NAMES = 160  # names beside a matrix
LOWEST = 10  # classes that the ROC of more classes names
NAME_WIDTH = 1.9  # inches: of a class's name beside a matrix or in a legend
GAP = 0.06  # inches between pictures
CHART = 2.2  # inches: the height of curves below a montage


def make_panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels side by side, each of this size in inches."""
    figure = Figure(figsize=(width * count, height), layout="constrained")
    panels = figure.subfigures(1, count, squeeze=False)[0]
    return figure, [panel.subplots() for panel in panels]


def put_legend_below(axes: Axes, size: float) -> None:
    """Below the panel, where it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    legend = axes.figure.legend(handles, labels, loc="outside lower center", fontsize=size)
    for text in legend.get_texts():
        text.set_parse_math(False)


# ---- the test ------------------------------------------------------------------------------------


def draw_confusion_matrix(scored: dict[str, dict], classes: list[str], path: Path) -> None:
    """One matrix for each unit: scored is {"slice": metrics.score(...), "scan": ...}.

    Rows are true labels, columns predicted ones; colour is the share of the row. More than
    MOST_NUMBERS classes have colours only, as numbers would be too small to read.
    """
    count = len(classes)
    size = 4.2 + 0.5 * (min(count, MOST_NUMBERS) - 2)  # inches, with names that are short
    step = -(-count // MOST_NAMES)
    shown = range(0, count, step)
    font = min(10, 0.75 * size * 72 / len(shown))
    names = [fitted(classes[c], NAME_WIDTH, font) for c in shown]
    longest = max(text_width(name, font) for name in names)
    slanted = longest > 0.75 * size / count  # wider than a cell
    width, height = (size + longest, size + 0.65 * longest) if slanted else (size, size)
    text = {"ha": "center", "va": "center", "fontsize": max(9, 13 - 0.75 * (count - 2))}
    figure, panels = make_panels(len(scored), width, height)
    for axes, (unit, figures) in zip(panels, scored.items(), strict=True):
        matrix = np.asarray(figures["confusion_matrix"])
        shares = matrix / matrix.sum(axis=1, keepdims=True).clip(1)
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (i, j), n in np.ndenumerate(matrix) if count <= MOST_NUMBERS else ():
            colour = "white" if shares[i, j] > 0.5 else "black"
            cell = f"{n:,}\n{shares[i, j]:.1%}" if matrix[i].any() else "0"
            axes.text(j, i, cell, color=colour, **text)
        if count > MOST_NUMBERS:
            bar = figure.colorbar(image, ax=axes, shrink=0.5, format=PercentFormatter(1.0))
            bar.set_label("share of the true label")
        angle = 40 if count <= MOST_NUMBERS else 90  # many names would touch each other
        turned = {"rotation": angle, "ha": "right", "va": "center", "rotation_mode": "anchor"}
        turned = turned if slanted else {}
        axes.set_xticks(shown, names, parse_math=False, fontsize=font, **turned)
        turned = {} if slanted else {"rotation": 90, "va": "center"}
        axes.set_yticks(shown, names, parse_math=False, fontsize=font, **turned)
        named = f" (one in {step} is named)" if step > 1 else ""
        axes.set(xlabel=f"predicted label{named}", ylabel=f"true label{named}")
        axes.set_title(f"{accuracy_text(figures, unit)}\n{interval_text(figures)}", fontsize=10)
    save(figure, path)


def accuracy_text(figures: dict, unit: str) -> str:
    number = counted(figures["count"], unit)
    if figures["accuracy"] is None:
        return f"{number}: no accuracy"
    return f"{figures['accuracy']:.2%} of {number} right"


def interval_text(figures: dict) -> str:
    if bounds := figures["interval_95"]:
        return "95 % interval over patients: {:.1%} to {:.1%}".format(*bounds)
    return "no interval: it takes several patients"


def draw_calibration(outcomes: dict[str, Outcomes], scored: dict[str, dict], path: Path) -> None:
    """How often predictions of each confidence are right, before and after calibration.

    Those before are rings around the dots of those after, so that equal ones are both seen.
    outcomes: {"slice": Outcomes, "scan": Outcomes}; scored: their metrics.score.
    """
    figure, panels = make_panels(len(outcomes), 4.6, 5.4)
    ring = {"facecolors": "none", "edgecolors": VAL_COLOUR, "linewidths": 1.3}
    dot = {"facecolors": TRAIN_COLOUR, "edgecolors": "none", "alpha": 0.8}
    for axes, (unit, found) in zip(panels, outcomes.items(), strict=True):
        least = 1 / found.probabilities.shape[1]
        axes.plot([least, 1], [least, 1], color="0.6", linestyle=":", label="perfect")
        for name, p, key, style, wider in [
            ("before (rings)", found.before, "expected_calibration_error_before", ring, 4),
            ("after (dots)", found.probabilities, "expected_calibration_error", dot, 0),
        ]:
            confidence, right = p.max(axis=1), p.argmax(axis=1) == found.labels
            bins = confidence_bins(p)
            filled = np.unique(bins)
            x = [confidence[bins == b].mean() for b in filled]
            y = [right[bins == b].mean() for b in filled]
            shares = np.array([(bins == b).mean() for b in filled])
            diameters = np.sqrt(10 + 190 * shares) + wider  # points
            axes.scatter(x, y, diameters**2, **style)
            error = (scored[unit][key] or {}).get("value")
            label = f"{name}: " + ("error unknown" if error is None else f"error {error:.2%}")
            axes.scatter([], [], (6 + wider) ** 2, label=label, **style)
        room = 0.06 * (1 - least)  # for the largest ring
        axes.set(xlabel="confidence", ylabel=f"{unit}s that are right")
        axes.set(xlim=(least - room, 1 + room), ylim=(-0.06, 1.06))
        title = f"{counted(len(found.labels), unit)}; larger marks hold more of them"
        axes.set_title(title, fontsize=10)
        put_legend_below(axes, 9)
        axes.grid(alpha=0.3)
    save(figure, path)


def draw_roc(
    outcomes: dict[str, Outcomes], scored: dict[str, dict], classes: list[str], path: Path
) -> None:
    """Receiver operating characteristic. As `draw_calibration`.

    Of two classes the second is the positive one, and each unit has a line. Of more each is drawn
    against the rest, in a panel for each unit. A class that is not in the test has no curve.
    """
    if len(classes) == 2:
        areas = [scored[unit]["roc_auc"] for unit in outcomes]
        figure, (axes,) = make_panels(1, 5, 5.6)
        first, second = (fitted(name, NAME_WIDTH, 10) for name in classes)
        for (unit, found), area, colour, width in zip(
            outcomes.items(), areas, COLOURS, (3.5, 1.5), strict=False
        ):
            absent = second if (found.labels == 0).all() else first
            text = area_text(area, f"no curve, as the test has no {absent}")
            positive = found.labels == 1
            line = {"color": colour, "linewidth": width, "label": f"{unit}s: {text}"}
            draw_roc_line(axes, found.probabilities[:, 1], positive, **line)
        axes.set_xlabel(f"{first} taken for {second}", parse_math=False)
        axes.set_ylabel(f"{second} recognised", parse_math=False)
        axes.set_title(roc_title(areas))
        finish_roc(axes, size=9)
    else:
        areas = [scored[unit]["by_class"][name]["roc_auc"] for unit in outcomes for name in classes]
        lines = len(classes) if len(classes) <= MOST_NUMBERS else LOWEST + 2  # of the legend
        height = 5.8 + 0.165 * lines
        figure, panels = make_panels(len(outcomes), 5, height)
        figure.suptitle(roc_title(areas))
        for axes, (unit, found) in zip(panels, outcomes.items(), strict=True):
            draw_roc_of_each(axes, found, scored[unit]["by_class"], classes)
            mean = area_text(scored[unit]["roc_auc"], "unknown: the test has not every class")
            axes.set_title(f"{unit}s, each class against the rest\nmean {mean}", fontsize=10)
            axes.set(xlabel="the rest taken for the class", ylabel="the class recognised")
            finish_roc(axes, size=8)
    save(figure, path)


def draw_roc_of_each(axes: Axes, found: Outcomes, by_class: dict, classes: list[str]) -> None:
    """A line for each class against the rest. Of many only those of least area have colours."""
    areas = [by_class[name]["roc_auc"] for name in classes]
    known = [c for c, area in enumerate(areas) if area and area["value"] is not None]
    named, grey = list(range(len(classes))), []
    if len(classes) > MOST_NUMBERS:
        known.sort(key=lambda c: areas[c]["value"])
        named, grey = known[:LOWEST], known[LOWEST:]
    for c in grey:
        style = {"color": "0.85", "linewidth": 0.5}
        draw_roc_line(axes, found.probabilities[:, c], found.labels == c, **style)
    colours = matplotlib.colormaps["tab10" if len(named) <= 10 else "turbo"]
    for i, c in enumerate(named):
        positive = found.labels == c
        absent = "nothing else" if positive.all() else "none"
        text = area_text(areas[c], f"no curve, as the test has {absent}")
        label = f"{text}: {fitted(classes[c], NAME_WIDTH, 8)}"  # no label may begin with _
        colour = colours(i if len(named) <= 10 else i / (len(named) - 1))
        draw_roc_line(axes, found.probabilities[:, c], positive, color=colour, label=label)
    if grey:
        axes.plot([], [], color="0.85", label=f"{len(grey):,} more, of larger areas")
    if len(classes) > MOST_NUMBERS:
        axes.plot([], [], " ", label=f"{len(classes) - len(known):,} without a curve")


def draw_roc_line(axes: Axes, p: np.ndarray, positive: np.ndarray, **style) -> None:
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
    axes.plot(false, true, drawstyle="steps-post", **style)


def finish_roc(axes: Axes, size: float) -> None:
    axes.plot([0, 1], [0, 1], color="0.6", linestyle=":")
    axes.set(aspect="equal", xlim=(-0.05, 1.05), ylim=(-0.05, 1.05))
    axes.grid(alpha=0.3)
    put_legend_below(axes, size)


def roc_title(areas: list[dict | None]) -> str:
    told = any(area and area["interval_95"] for area in areas)
    return "ROC (95 % intervals over patients)" if told else "ROC"


def area_text(area: dict | None, otherwise: str) -> str:
    """{value, interval_95} as a legend says it, or why there is none."""
    if area is None or area["value"] is None:
        return otherwise
    text = f"area {area['value']:.4f}"
    if area["interval_95"]:
        text += " ({:.4f} to {:.4f})".format(*area["interval_95"])
    return text


# ---- slices --------------------------------------------------------------------------------------


def draw_attention(title: list[str], image: ArrayLike, maps: ArrayLike, path: Path) -> None:
    """A slice, and beside it the attention of the first and of the last iteration over it.

    title: its name, and what the model says of it. image (height, width), maps (2, height, width):
    averages over heads and latents.
    """
    width = 9
    heading = "\n".join(fitted(line, width - 2 * GAP, 9, lines=2) for line in title)
    panel = (width - 4 * GAP) / 3
    tall = height_for(image, panel)
    top = text_height(heading, 9) + text_height("slice", 9) + 3 * GAP
    page = make_page(width, top + tall + GAP)
    put_text(page, width / 2, GAP, heading, 9, ha="center")
    captions = "slice", "attention, first iteration", "attention, last iteration"
    shown = [image, *(overlay(image, attention) for attention in maps)]
    for i, (caption, picture) in enumerate(zip(captions, shown, strict=True)):
        left = GAP + i * (panel + GAP)
        put_text(page, left + panel / 2, top - GAP / 2, caption, 9, ha="center", va="bottom")
        put_image(page, picture, Box(left, top, panel, tall))
    save(page.figure, path)


def draw_montage(
    title: list[str],
    labels: list[str],
    images: ArrayLike,
    maps: ArrayLike,
    path: Path,
    labels_are: str = "",
    maps_are: str = "attention of the last iteration",
    curves: dict[str, np.ndarray] | None = None,
) -> None:
    """All slices of a scan and their attention; images and maps are (slices, height, width).

    title: its name, and what the model says of it. labels stand over the slices; `labels_are` is
    what the heading says of them, such as "number and p_right of each slice". curves: name ->
    shares (slices,) that are drawn along a scan that is read whole, below the slices; these have
    one scale of colours, and else each its own.
    """
    highest = float(np.percentile(maps, 99.5)) if curves else None
    cell, columns = 1.4, max(8, math.ceil(math.sqrt(len(images))))
    columns = min(columns, len(images))
    width = max(columns, 4) * (cell + GAP) + GAP  # the heading needs it
    about = "; ".join(filter(None, [maps_are, labels_are]))
    heading = "\n".join(fitted(line, width - 2 * GAP, 9, lines=2) for line in [*title, about])
    top = text_height(heading, 9) + 2 * GAP
    tall, caption = height_for(images, cell), text_height("0", 7) + GAP
    bottom = top + -(-len(images) // columns) * (caption + tall + GAP)
    page = make_page(width, bottom + (CHART if curves else 0))
    put_text(page, GAP, GAP, heading, 9)
    for i, (label, image, attention) in enumerate(zip(labels, images, maps, strict=True)):
        row, column = divmod(i, columns)
        left = GAP + column * (cell + GAP)
        above = top + row * (caption + tall + GAP) + caption
        text = fitted(label, cell, 7)
        put_text(page, left + cell / 2, above - GAP / 2, text, 7, ha="center", va="bottom")
        put_image(page, overlay(image, attention, highest), Box(left, above, cell, tall))
    if curves:
        draw_along(page.figure, curves)
    save(page.figure, path)


def draw_along(figure: Figure, curves: dict[str, np.ndarray]) -> None:
    """Shares of each slice (slices,) along a scan, in the lowest CHART inches of a figure."""
    width, height = figure.get_size_inches()
    left, below, above = 0.75, 0.45, 0.3
    box = (left / width, below / height, 1 - (left + 1.9) / width, (CHART - below - above) / height)
    axes = figure.add_axes(box)
    for name, shares in curves.items():
        axes.plot(range(len(shares)), shares, "o-", markersize=3, linewidth=1.2, label=name)
    even = 1 / len(next(iter(curves.values())))
    axes.axhline(even, color="0.6", linestyle=":", label="the same for all")
    axes.set_xlabel("place along the scan", fontsize=8)
    axes.set_ylim(0)
    axes.set_title("share of each slice", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def draw_errors(scans: list[Example], slices: list[Example] | None, path: Path) -> None:
    """What the model got wrong (red) or was least sure of: rows of scans, and rows of slices.

    slices is None where whole scans are read.
    """
    columns = min(8, max(4, len(scans), len(slices or [])))
    rows = rows_of("Scan", scans, columns)
    rows += [] if slices is None else rows_of("Slice", slices, columns)
    cell = 1.69
    width = columns * (cell + GAP) + GAP
    heading = (
        "Least right first, with the true label and its probability; red: wrong; "
        "scans by their middle slices"
    )
    heading = fitted(heading, width - 2 * GAP, 10, lines=2)
    top = text_height(heading, 10) + 3 * GAP
    title, captions = text_height("Scan", 10) + GAP, text_height("name\nname\nlabel", 7) + GAP
    tall = max((height_for(example.image, cell) for _, row in rows for example in row), default=0)
    pitch = title + captions + tall + 2 * GAP
    page = make_page(width, top + len(rows) * pitch)
    put_text(page, GAP, GAP, heading, 10)
    for row, (name, examples) in enumerate(rows):
        put_text(page, GAP, top + row * pitch, name, 10)
        above = top + row * pitch + title + captions
        for column, example in enumerate(examples):
            left = GAP + column * (cell + GAP)
            label = fitted(f"{example.label}: p {example.p_true:.3f}", cell, 7)
            text = f"{fitted(example.name, cell, 7, lines=2)}\n{label}"
            style = {"color": VAL_COLOUR if example.wrong else "black", "ha": "center"}
            middle, bottom = left + cell / 2, above - GAP / 2
            put_text(page, middle, bottom, text, 7, va="bottom", **style)
            put_image(page, example.image, Box(left, above, cell, tall))
    save(page.figure, path)


def rows_of(unit: str, examples: list[Example], columns: int) -> list[tuple[str, list[Example]]]:
    """A heading and so many examples each: ("Slices 9 to 16", [...])."""
    rows = []
    for start in range(0, len(examples), columns):
        part = examples[start : start + columns]
        numbers = f"s {start + 1} to {start + len(part)}" if len(part) > 1 else f" {start + 1}"
        rows.append((unit + numbers, part))
    return rows or [(f"{unit}s: none", [])]
