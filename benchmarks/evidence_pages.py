"""Tables and the figure of benchmarks/evidence.py, made of the rows of benchmarks/results/*.csv."""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.experiments import EXPERIMENTS, IN_README
from benchmarks.speed_records import put_between_marks
from common.files import whole_file
from common.program import check_matplotlib, counted

ROOT = Path(__file__).resolve().parent.parent
MARKS = "<!-- begin: python benchmarks/evidence.py --write-docs -->", "<!-- end: evidence -->"
COLOURS = "#1f6fb2 #d1495b #edae49 #66a182 #8d6a9f #777777 #2e4057".split()


class Column(NamedTuple):
    names: tuple[str, ...]  # of what it is made of
    value: Callable[..., float]  # of these numbers
    text: str = "{:.1%}"

    def of(self, row: dict) -> float | None:
        """None if the row has none of it, as an older one."""
        if all(row.get(name) for name in self.names):
            return self.value(*(float(row[name]) for name in self.names))
        return None


def share(part: str, whole: str) -> Column:
    return Column((part, whole), lambda part, whole: part / whole)


def number(name: str, text: str, scale: float = 1.0) -> Column:
    return Column((name,), lambda value: scale * value, text)


COLUMNS = {
    "scans right": share("scans_right", "scans"),
    "slices right": share("slices_right", "slices"),
    "scans right, slices reversed": share("reversed_right", "scans"),
    "shuffled": share("shuffled_right", "scans"),
    "with the mirror image": share("mirrored_right", "slices"),
    **{f"after {n}": share(f"right_after_{n}", "slices") for n in range(1, 7)},
    "slices of the real knee called right": share("knee_right", "knee_slices"),
    "mean probability of right": number("knee_p_right", "{:.2f}"),
    "calibration error of scans": number("expected_calibration_error", "{:.1%}"),
    "validation loss": number("val_loss", "{:.3f}"),
    "parameters": number("parameters", "{:,.0f}"),
    "epochs": number("epochs", "{:.0f}"),
    "minutes": number("seconds", "{:.1f}", 1 / 60),
}
BY_EPOCH = "val_accuracy_by_epoch"  # numbers with a space between
# What a row must have as whole numbers, and what is one or more numbers where it has it.
WHOLE = ("seed", "patients", "threads")
NUMBERS = dict.fromkeys([*(name for each in COLUMNS.values() for name in each.names), BY_EPOCH])


def spread(values: list[float], text: str) -> str:
    """The mean, and in brackets the lowest and the highest."""
    if not values:
        return ""
    mean = text.format(statistics.mean(values))
    low, high = text.format(min(values)), text.format(max(values))
    return mean if low == high == mean else f"{mean} ({low} to {high})"


def cell(column: str, rows: list[dict]) -> str:
    values = [COLUMNS[column].of(row) for row in rows]
    return spread([value for value in values if value is not None], COLUMNS[column].text)


def table(name: str, rows: list[dict]) -> str:
    """A row for each variant: means over runs, and in brackets the lowest and highest."""
    experiment = EXPERIMENTS[name]
    names = [column for column in experiment.columns if cell(column, rows)]
    headings = ["variant", "runs", *names]
    if experiment.to_reach:
        headings += [f"epochs to {experiment.to_reach:.0%} on validation"]
    lines = [f"### {experiment.title}", "", experiment.about, ""]
    lines += [f"| {' | '.join(headings)} |", "| --- | --: " + "| --- " * (len(headings) - 2) + "|"]
    for variant in experiment.variants:
        if own := [row for row in rows if row["variant"] == variant]:
            cells = [variant, str(len(own)), *(cell(column, own) for column in names)]
            if experiment.to_reach:
                cells.append(epochs_to(experiment.to_reach, own))
            lines.append(f"| {' | '.join(cells)} |")
    unit = "patients" if "scans right" in names else "slices"
    return "\n".join([*lines, "", measured_on(rows, unit)])


def measured_on(rows: list[dict], unit: str) -> str:
    counts = sorted({int(row[unit]) for row in rows})
    tested = f"{counts[0]:,} {unit}" if len(counts) == 1 else None
    tested = tested or f"{counts[0]:,} to {counts[-1]:,} {unit}"
    threads = {f"{row['processor']}, {counted(int(row['threads']), 'thread')}" for row in rows}
    return f"Tested on {tested} a run. Measured on {', '.join(sorted(threads))}."


def epochs_to(accuracy: float, rows: list[dict]) -> str:
    """After how many epochs the accuracy on validation was first so high, of rows with epochs."""
    first, rows = [], [row for row in rows if row.get(BY_EPOCH)]
    for row in rows:
        values = [float(value) for value in row[BY_EPOCH].split()]
        first += [n for n, value in enumerate(values, start=1) if value >= accuracy][:1]
    missed = len(rows) - len(first)
    never = [f"{counted(missed, 'run')} never"] if missed else []
    return "; ".join([spread(first, "{:.0f}"), *never] if first else never)


# ---- pages ---------------------------------------------------------------------------------------


Tables = dict[str, list[dict]]  # experiment -> its rows


def write_pages(tables: Tables, again: Tables, root: Path = ROOT) -> None:
    """README.md, docs/results.md and the figure. again: rows of runs that were made twice.

    Raises UserError if a page has no marks, MissingPackage without matplotlib.
    """
    check_matplotlib()
    sections = [table(name, rows) for name, rows in tables.items() if rows]
    if any(again.values()):
        sections.append(twice(tables, again))
    write_between_marks(root / "docs" / "results.md", "\n\n".join(sections), MARKS)
    write_between_marks(root / "README.md", short_table(tables), MARKS)
    if tables["classes"]:
        draw("classes", tables["classes"], root / "docs" / "results.png")


def twice(tables: Tables, again: Tables) -> str:
    lines = ["### Made twice", "", "The same runs, from scratch, on another day or machine.", ""]
    lines += ["| experiment | variant | seed | first | again |", "| --- | --- | --: | --- | --- |"]
    for name, rows in again.items():
        for row in rows:
            made_with = [row[key] for key in ("variant", "seed", "flags")]
            for before in tables[name]:
                if [before[key] for key in ("variant", "seed", "flags")] == made_with:
                    column = "slices right" if row.get("slices") else "scans right"
                    cells = [cell(column, [each]) for each in (before, row)]
                    title = EXPERIMENTS[name].title
                    lines.append(f"| {title} | {' | '.join([*made_with[:2], *cells])} |")
    return "\n".join(lines)


def short_table(tables: Tables) -> str:
    lines = ["| data | model | runs | right | minutes |", "| --- | --- | --: | --- | --- |"]
    for data, experiment, variants, column in IN_README:
        for variant in variants:
            if own := [row for row in tables[experiment] if row["variant"] == variant]:
                model = "Perceiver" if variant in ("slices", "whole scans") else variant
                cells = [data, model, str(len(own)), cell(column, own), cell("minutes", own)]
                lines.append(f"| {' | '.join(cells)} |")
                data = ""
    return "\n".join(lines)


def draw(name: str, rows: list[dict], path: Path) -> None:
    """Accuracy on validation against time, a line for each run."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MultipleLocator, PercentFormatter

    experiment, figure = EXPERIMENTS[name], Figure(figsize=(7, 4), layout="constrained")
    panel = figure.subplots()
    drawn = [row for row in rows if row.get(BY_EPOCH)]
    names = [name for name in experiment.variants if any(row["variant"] == name for row in drawn)]
    for variant, colour in zip(names, COLOURS, strict=False):
        for row in drawn:
            if row["variant"] == variant:
                values = [float(value) for value in row[BY_EPOCH].split()]
                minutes = float(row["seconds"]) / 60 / len(values)
                times = [minutes * n for n in range(1, len(values) + 1)]
                panel.plot(times, values, color=colour, label=variant, linewidth=1)
                variant = "_" + variant  # one entry of the legend for all runs
    panel.set(xlabel="minutes of training", title=experiment.title, xlim=0, ylim=(0.8, None))
    panel.set_ylabel("photographs of validation that are right")
    panel.yaxis.set_major_locator(MultipleLocator(0.02))
    panel.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    panel.grid(alpha=0.3)
    panel.legend(loc="lower right")
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=120)


def write_between_marks(page: Path, text: str, marks: tuple[str, str]) -> None:
    """Raises UserError if the page has no such marks."""
    text = put_between_marks(page.read_text(), page, text, *marks)
    with whole_file(page) as temporary:
        temporary.write_text(text)
