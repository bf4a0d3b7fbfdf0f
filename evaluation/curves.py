"""Loss and accuracy by epoch: of a run, or of each fold of a cross-validation."""

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from common.pictures import save
from evaluation.plots import TRAIN_COLOUR, VAL_COLOUR, make_panels

MOST_DOTS = 40  # epochs; of more the lines are drawn without dots
QUANTITIES = ("loss", "accuracy")


def draw_curves(rows: list[dict], path: Path) -> None:
    """Loss and accuracy by epoch, training and validation; the epoch that was kept is marked.

    rows: those of metrics.csv, with numbers for values.
    """
    figure, panels = make_panels(2, 5, 4.3)
    epochs = [row["epoch"] for row in rows]
    dots = "o-" if len(rows) <= MOST_DOTS else "-"
    for axes, quantity in zip(panels, QUANTITIES, strict=True):
        drawn = []
        for subset, name, colour, width in [
            ("train", "training", TRAIN_COLOUR, 2.5),  # seen behind the other, where they are equal
            ("val", "validation", VAL_COLOUR, 1.2),
        ]:
            values = [row[f"{subset}_{quantity}"] for row in rows]
            size = width + 3
            axes.plot(epochs, values, dots, color=colour, label=name, lw=width, markersize=size)
            drawn += values
        kept = kept_row(rows)["epoch"]
        axes.axvline(kept, color="0.6", linestyle=":", label="kept (lowest val loss)")
        frame(axes, quantity, epochs, drawn)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    save(figure, path)


def draw_curves_of_folds(runs: dict[int, list[dict]], path: Path) -> None:
    """A colour a fold; the epoch that was kept of each is a dot. runs: fold -> rows as above."""
    figure, panels = make_panels(2, 5, 4.6)
    colours = matplotlib.colormaps["tab10" if len(runs) <= 10 else "turbo"]
    for axes, quantity in zip(panels, QUANTITIES, strict=True):
        drawn, epochs = [], sorted({row["epoch"] for rows in runs.values() for row in rows})
        for i, (fold, rows) in enumerate(runs.items()):
            colour = colours(i if len(runs) <= 10 else i / (len(runs) - 1))
            own = [row["epoch"] for row in rows]
            for subset, style in [
                ("train", {"ls": ":", "lw": 1}),
                ("val", {"label": f"fold {fold}"}),
            ]:
                values = [row[f"{subset}_{quantity}"] for row in rows]
                axes.plot(own, values, color=colour, **style)
                drawn += values
            kept = kept_row(rows)
            axes.plot(kept["epoch"], kept[f"val_{quantity}"], "o", color=colour, markersize=5)
        frame(axes, quantity, epochs, drawn)
    handles, labels = panels[0].get_legend_handles_labels()
    meanings = [({"ls": "-"}, "validation"), ({"ls": ":"}, "training")]
    meanings.append(({"marker": "o", "ls": ""}, "kept (lowest val loss)"))
    for style, text in meanings:
        handles.append(Line2D([], [], color="0.4", **style))
        labels.append(text)
    figure.legend(handles, labels, loc="outside lower center", ncols=6)
    save(figure, path)


def kept_row(rows: list[dict]) -> dict:
    return min(rows, key=lambda row: row["val_loss"])


def frame(axes: Axes, quantity: str, epochs: list[int], drawn: list[float]) -> None:
    """Axes and titles. The frame cuts no dot, and an axis of one epoch has a tick at it alone."""
    axes.set(xlabel="epoch", title=quantity.capitalize())
    axes.set_xlim(epochs[0] - 0.5, epochs[-1] + max(0.5, 0.02 * len(epochs)))
    whole = MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)
    axes.xaxis.set_major_locator(whole)
    low, high = (0, max(drawn) or 1) if quantity == "loss" else (min(0.98, *drawn), 1)
    axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    axes.grid(alpha=0.3)
    if quantity == "loss":
        axes.set(ylabel="cross-entropy")
    else:
        axes.set(ylabel="share that is right")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
