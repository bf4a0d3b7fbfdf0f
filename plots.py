"""Pictures: of data before it is used, of a run while it trains, of its test."""

import textwrap
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike

from metrics import confidence_bins

TRAIN_COLOUR, VAL_COLOUR = "#1f6fb2", "#d1495b"


def draw_curves(rows: list[dict], path: Path) -> None:
    """Loss and accuracy by epoch, training and validation; the epoch that was kept is marked.

    rows: those of metrics.csv, with numbers for values.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    epochs = [row["epoch"] for row in rows]
    best = min(rows, key=lambda row: row["val_loss"])
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for subset, label, colour in [
            ("train", "training", TRAIN_COLOUR),
            ("val", "validation", VAL_COLOUR),
        ]:
            values = [row[f"{subset}_{quantity}"] for row in rows]
            axes.plot(epochs, values, "o-", color=colour, label=label, markersize=3)
        axes.axvline(best["epoch"], color="0.6", linestyle=":", label="kept (lowest val loss)")
        axes.set(xlabel="epoch", title=quantity.capitalize())
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if quantity == "loss":
            axes.set_ylim(bottom=0)
            axes.set_ylabel("cross-entropy")
        else:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
            axes.set_ylabel("slices that are right")
            axes.legend()
    figure.savefig(path, dpi=120)


def draw_confusion_matrix(units: dict[str, dict], classes: list[str], path: Path) -> None:
    """One matrix for each unit, such as {"slice": score(...), "scan": score(...)}.

    Rows are true sides, columns predicted ones; colour is the share of the row.
    """
    figure = Figure(figsize=(4.2 * len(units), 4.2), layout="constrained")
    for axes, (unit, scored) in zip(figure.subplots(1, len(units)), units.items(), strict=True):
        matrix = scored["confusion_matrix"]
        shares = [[n / max(1, sum(row)) for n in row] for row in matrix]
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for i, row in enumerate(matrix):
            for j, count in enumerate(row):
                colour = "white" if shares[i][j] > 0.5 else "black"
                text = f"{count:,}\n{shares[i][j]:.1%}"
                axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=13)
        axes.set_xticks(range(len(classes)), classes)
        axes.set_yticks(range(len(classes)), classes, rotation=90, va="center")
        interval = "one patient: no interval"
        if scored["interval_95"]:
            interval = "95 % interval over patients: {:.1%} to {:.1%}".format(
                *scored["interval_95"]
            )
        axes.set(xlabel="predicted side", ylabel="true side")
        axes.set_title(
            f"{scored['accuracy']:.2%} of {scored['count']:,} {unit}s\n{interval}", fontsize=10
        )
    figure.savefig(path, dpi=120)


def draw_calibration(units: dict[str, tuple], scored: dict[str, dict], path: Path) -> None:
    """How often predictions of each confidence are right, before and after calibration.

    units: {"slice": (p_right, labels, patients, p_right before calibration), "scan": ...};
    scored: their metrics.score.
    """
    figure = Figure(figsize=(4.6 * len(units), 5), layout="constrained")
    for axes, (unit, (p_right, labels, _, before)) in zip(
        figure.subplots(1, len(units)), units.items(), strict=True
    ):
        axes.plot([0.5, 1], [0.5, 1], color="0.6", linestyle=":", label="perfect")
        for name, probabilities, colour, key in [
            ("before", before, VAL_COLOUR, "expected_calibration_error_before"),
            ("after", p_right, TRAIN_COLOUR, "expected_calibration_error"),
        ]:
            p = np.asarray(probabilities)
            confidence, right = np.maximum(p, 1 - p), (p > 0.5) == np.asarray(labels)
            bins = confidence_bins(p)
            filled = np.unique(bins)
            x = [confidence[bins == b].mean() for b in filled]
            y = [right[bins == b].mean() for b in filled]
            sizes = [10 + 200 * (bins == b).mean() for b in filled]
            label = f"{name} (error {scored[unit][key]['value']:.2%})"
            axes.scatter(x, y, sizes, color=colour, label=label, alpha=0.8)
        axes.set(xlabel="confidence", ylabel=f"{unit}s that are right", ylim=(-0.03, 1.03))
        axes.set_title(f"{len(labels):,} {unit}s; larger dots hold more of them", fontsize=10)
        axes.legend(loc="lower right")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def draw_roc(units: dict[str, tuple], scored: dict[str, dict], path: Path) -> None:
    """Receiver operating characteristic: `right` is the positive side. As `draw_calibration`."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    for (unit, (p_right, labels, *_)), colour in zip(
        units.items(), (TRAIN_COLOUR, VAL_COLOUR), strict=True
    ):
        order = np.argsort(-np.asarray(p_right), kind="stable")
        p, positive = np.asarray(p_right)[order], np.asarray(labels)[order] == 1
        last = np.append(np.flatnonzero(np.diff(p)), len(p) - 1)  # equal ones come together
        true = np.append(0, positive.cumsum()[last]) / max(1, positive.sum())
        false = np.append(0, (~positive).cumsum()[last]) / max(1, (~positive).sum())
        area = scored[unit]["roc_auc"]
        label = f"{unit}s, area " + ("unknown" if area["value"] is None else f"{area['value']:.4f}")
        if area["interval_95"]:
            label += " ({:.4f} to {:.4f})".format(*area["interval_95"])
        axes.plot(false, true, color=colour, label=label, drawstyle="steps-post")
    axes.plot([0, 1], [0, 1], color="0.6", linestyle=":")
    axes.set(
        xlabel="left knees taken for right ones",
        ylabel="right knees recognised",
        title="ROC (95 % intervals over patients)",
        aspect="equal",
    )
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


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
    lines = [short(line, 90) for line in title.rsplit("\n", 1)]
    figure.suptitle("\n".join(lines), fontsize=9, parse_math=False)
    plain, *others = figure.subplots(1, 3)
    plain.imshow(image, cmap="gray", vmin=0, vmax=255)
    plain.axis("off")
    plain.set_title("slice", fontsize=9)
    names = ("attention, first iteration", "attention, last iteration")
    for axes, attention, name in zip(others, maps, names, strict=True):
        overlay(axes, image, attention)
        axes.set_title(name, fontsize=9)
    figure.savefig(path, dpi=120)


def draw_montage(
    title: str, labels: list[str], images: ArrayLike, maps: ArrayLike, path: Path
) -> None:
    """All slices of a scan and their attention; images and maps are (slices, height, width)."""
    columns = min(8, len(images))
    rows = -(-len(images) // columns)
    height, width = images[0].shape
    figure = Figure(
        figsize=(1.4 * columns, rows * (1.4 * height / width + 0.22) + 0.5), layout="constrained"
    )
    lines = [short(line, 12 * columns) for line in title.rsplit("\n", 1)]
    lines.append("attention of the last iteration; number and p_right of each slice")
    figure.suptitle("\n".join(lines), fontsize=9, parse_math=False)
    for i, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.axis("off")
        if i < len(images):
            overlay(axes, images[i], maps[i])
            axes.set_title(labels[i], fontsize=7)
    figure.savefig(path, dpi=120)


def draw_errors(scans: list[tuple], slices: list[tuple], path: Path) -> None:
    """What the model got wrong (red) or was least sure of: a row of scans, and rows of slices.

    scans and slices: (name, true side, its probability, image (height, width)).
    """
    columns = 8
    rows = [("Scans, by their middle slices: true side and its probability; red: wrong", scans)] + [
        ("Slices" if start == 0 else "", slices[start : start + columns])
        for start in range(0, len(slices), columns)
    ]
    figure = Figure(figsize=(1.75 * columns, 2.25 * len(rows)), layout="constrained")
    for row, (title, found) in zip(
        figure.subfigures(len(rows), squeeze=False)[:, 0], rows, strict=True
    ):
        row.suptitle(title, fontsize=10, x=0.01, ha="left")
        for i, axes in enumerate(row.subplots(1, columns)):
            axes.axis("off")
            if i >= len(found):
                continue
            name, side, p_true, image = found[i]
            axes.imshow(image, cmap="gray", vmin=0, vmax=255)
            colour = VAL_COLOUR if p_true <= 0.5 else "black"
            title = "\n".join(textwrap.wrap(short(name, 52), 27)[:2])
            title = f"{title}\n{side}: p {p_true:.3f}"
            axes.set_title(title, fontsize=7, color=colour, parse_math=False)
    figure.savefig(path, dpi=120)


def plain(name: str) -> str:
    """What matplotlib can't draw, as it is escaped. (Formulas: pass parse_math=False, too.)"""
    return name.encode("ascii", "backslashreplace").decode().replace("\n", "\\n")


def short(name: str, length: int = 26) -> str:
    """Its beginning and its end, where patient and slice stand."""
    name = plain(name)
    return name if len(name) <= length else f"{name[: length // 2 - 1]}...{name[-length // 2 :]}"


def draw_contact_sheet(rows: list[tuple[str, list[int], list]], path: Path) -> None:
    """A row of slices for each scan: (title, numbers of the slices, arrays (height, width))."""
    columns = max(8, *(len(pictures) for _, _, pictures in rows))  # titles need the width
    height, width = rows[0][2][0].shape
    cell, gap, head = 1.4, 0.05, 0.3  # inches: width of a picture, between pictures, title
    tall = cell * height / width
    total = columns * (cell + gap) + gap, len(rows) * (head + tall) + gap
    figure = Figure(figsize=total)
    box = {"facecolor": "k", "edgecolor": "none", "pad": 1.5}  # readable on bright tissue, too
    style = {"color": "w", "fontsize": 7, "va": "top", "bbox": box}

    def place(left: float, top: float) -> tuple[float, float, float, float]:
        """A picture's box in shares of the figure, from inches right of and below its corner."""
        return left / total[0], 1 - (top + tall) / total[1], cell / total[0], tall / total[1]

    for i, (title, numbers, pictures) in enumerate(rows):
        top = i * (head + tall) + head
        title = plain(title)
        title = title if len(title) < 15 * columns else f"{title[: 15 * columns]}..."
        x, y = gap / total[0], 1 - (top - 0.07) / total[1]
        figure.text(x, y, title, fontsize=9, va="bottom", parse_math=False)
        for column, (number, picture) in enumerate(zip(numbers, pictures, strict=True)):
            axes = figure.add_axes(place(gap + column * (cell + gap), top))
            axes.axis("off")
            axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
            axes.text(0.02, 0.97, number, transform=axes.transAxes, **style)
    figure.savefig(path, dpi=120)
