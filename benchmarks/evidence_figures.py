"""Figures of benchmarks/evidence.py, made of the rows of benchmarks/results/*.csv."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.experiments import EXPERIMENTS
from common.files import whole_file

Tables = dict[str, list[dict]]  # experiment -> its rows
COLOURS = "#1f6fb2 #d1495b #edae49 #66a182 #8d6a9f #777777 #2e4057".split()


def draw_lines(panel, names: list[str], rows: list[dict], points: Callable) -> None:
    """A line for each row, of the points of it, in the colour of its variant."""
    for variant, colour in zip(names, COLOURS, strict=False):
        label = variant
        for row in rows:
            if row["variant"] == variant:
                panel.plot(*points(row), color=colour, label=label, linewidth=1)
                label = f"_{label}"  # one entry of the legend for all runs
    panel.grid(alpha=0.3)


def by_epoch(name: str, row: dict) -> tuple[list[int], list[float]]:
    """Numbers of epochs, and this value of each."""
    values = [float(value) for value in row[f"{name}_by_epoch"].split()]
    return [*range(1, len(values) + 1)], values


def draw_classes(tables: Tables, path: Path) -> None:
    """Accuracy on validation against time, a line for each run."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MultipleLocator, PercentFormatter

    longer = [row | {"variant": f"{row['variant']}, for longer"} for row in tables["classes-long"]]
    rows = [row for row in tables["classes"] + longer if row.get("val_accuracy_by_epoch")]
    names = [*dict.fromkeys(row["variant"] for row in rows)]
    if not rows:
        return

    def points(row: dict) -> tuple[list[float], list[float]]:
        epochs, values = by_epoch("val_accuracy", row)
        minutes = float(row["seconds"]) / 60 / len(values)
        return [minutes * epoch for epoch in epochs], values

    figure = Figure(figsize=(7, 4), layout="constrained")
    panel = figure.subplots()
    draw_lines(panel, names, rows, points)
    panel.set(xlabel="minutes of training on one core", xlim=0, ylim=(0.8, None))
    panel.set(title=EXPERIMENTS["classes"].title)
    panel.set_ylabel("accuracy on validation")
    panel.yaxis.set_major_locator(MultipleLocator(0.02))
    panel.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    panel.legend(loc="lower right")
    save(figure, path)


def draw_activations(tables: Tables, path: Path) -> None:
    """Loss in training and on validation against epochs, for each kind of data."""
    from matplotlib.figure import Figure

    names = [name for name in EXPERIMENTS if name.startswith("activation-") and tables[name]]
    if not names:
        return
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    panels = figure.subplots(2, len(names), squeeze=False, sharex="col")
    for name, column in zip(names, panels.T, strict=True):
        variants = [*EXPERIMENTS[name].variants]
        for loss, panel in zip(("train_loss", "val_loss"), column, strict=True):
            draw_lines(panel, variants, tables[name], partial(by_epoch, loss))
        column[0].set_title(EXPERIMENTS[name].title.split(": ")[1])
        column[1].set_xlabel("epoch")
    panels[0][0].set_ylabel("loss in training")
    panels[1][0].set_ylabel("loss on validation")
    lines, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside upper center", ncols=len(labels))
    save(figure, path)


def save(figure, path: Path) -> None:
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=120)
