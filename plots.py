"""Pictures: of data before it is used, of a run while it trains, of its test."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

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
        low, high = scored["interval_95"]
        axes.set(xlabel="predicted side", ylabel="true side")
        axes.set_title(
            f"{scored['accuracy']:.2%} of {scored['count']:,} {unit}s\n"
            f"95 % interval over patients: {low:.1%} to {high:.1%}",
            fontsize=10,
        )
    figure.savefig(path, dpi=120)


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
        # What matplotlib takes for a formula or can't draw is shown as it is written.
        title = title.encode("ascii", "backslashreplace").decode().replace("\n", "\\n")
        title = title if len(title) < 15 * columns else f"{title[: 15 * columns]}..."
        x, y = gap / total[0], 1 - (top - 0.07) / total[1]
        figure.text(x, y, title, fontsize=9, va="bottom", parse_math=False)
        for column, (number, picture) in enumerate(zip(numbers, pictures, strict=True)):
            axes = figure.add_axes(place(gap + column * (cell + gap), top))
            axes.axis("off")
            axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
            axes.text(0.02, 0.97, number, transform=axes.transAxes, **style)
    figure.savefig(path, dpi=120)
