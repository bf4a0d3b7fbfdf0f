"""Tables and pages of benchmarks/evidence.py, made of the rows of benchmarks/results/*.csv."""

import math
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.evidence_figures import Tables, by_epoch, draw_activations, draw_classes
from benchmarks.experiments import AUGMENTED, EXPERIMENTS, FEWER
from benchmarks.speed_records import put_between_marks
from common.files import whole_file
from common.program import check_matplotlib, counted

ROOT = Path(__file__).resolve().parent.parent
MARKS = "<!-- begin: python benchmarks/evidence.py --write-docs -->", "<!-- end: evidence -->"
AIM_MARKS = "<!-- begin: aims, by evidence.py --write-docs -->", "<!-- end: aims -->"


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
    "scans correct": share("scans_right", "scans"),
    "slices correct": share("slices_right", "slices"),
    "scans correct, slices reversed": share("reversed_right", "scans"),
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


class Aim(NamedTuple):
    """What share of slices or scans was to be right, or so much more than of another variant."""

    what: str
    experiment: str
    variant: str
    least: float | None  # None: how near it comes was to be measured
    ahead_of: str | None = None
    column: str = "slices correct"


PLACES = "Perceiver, places known"
AIMS = [
    Aim("slices of synthetic knees", "knees", "slices", 0.9945),
    Aim("scans, as means of slices", "knees", "slices", 1.0, column="scans correct"),
    Aim("ten classes, 20 minutes", "classes", "Perceiver", 0.88),
    Aim("ten classes, 90 minutes", "classes-long", "larger Perceiver", 0.9),
    Aim("ten classes, 20 minutes", "classes", "Perceiver", 0.03, "perceiver-pytorch"),
    Aim("ten classes, 90 minutes", "classes-long", "larger Perceiver", 0.03, "perceiver-pytorch"),
    Aim("ten classes", "classes", "Perceiver", None, "small CNN"),
    Aim("bags", "bags", "Perceiver", None, FEWER),
    Aim("bags, both augmented", "bags", f"Perceiver{AUGMENTED}", None, f"small CNN{AUGMENTED}"),
    Aim("dresses", "dresses", "Perceiver", None, FEWER),
    Aim("bags, pixels permuted, places known", "permuted", PLACES, 0.05, FEWER),
    Aim("dresses, pixels permuted, places known", "permuted-dresses", PLACES, 0.05, FEWER),
]
# The table of README: data, experiment, its variants, a column of COLUMNS.
IN_README = [
    ("slices of synthetic knees", "knees", ["slices", "logistic regression"], "slices correct"),
    ("scans, as means of slices", "knees", ["slices"], "scans correct"),
    ("scans read whole", "knees", ["whole scans"], "scans correct"),
    (
        "ten classes of photographs",
        "classes",
        ["Perceiver", "perceiver-pytorch", "small CNN"],
        "slices correct",
    ),
    (
        "the same, for longer",
        "classes-long",
        [*EXPERIMENTS["classes-long"].variants],
        "slices correct",
    ),
    (
        "bags, mirrored or not",
        "bags",
        [
            "Perceiver",
            FEWER,
            f"Perceiver{AUGMENTED}",
            f"small CNN{AUGMENTED}",
        ],
        "slices correct",
    ),
    (
        "bags, pixels permuted",
        "permuted",
        [
            PLACES,
            "small CNN, places known",
            "Perceiver, places unknown",
            FEWER,
        ],
        "slices correct",
    ),
]
# Numbers with a space between.
BY_EPOCH = [f"{name}_by_epoch" for name in ("train_loss", "val_loss", "val_accuracy")]


def made_with(row: dict[str, str]) -> dict[str, str]:
    """What tells a row from those of other runs."""
    return {name: row[name] for name in ("variant", "seed", "flags", "data")}


def faults_of(row: dict[str, str]) -> list[str]:
    """Names of what a row lacks or has wrongly: of columns it may have fewer, as older rows."""
    names = dict.fromkeys(name for column in COLUMNS.values() for name in column.names)
    wrong = [name for name in ("variant", "flags", "data", "processor") if not row.get(name)]
    whole = ("seed", "patients", "threads")
    wrong += [name for name in whole if not row.get(name, "").removeprefix("-").isdecimal()]
    wrong += [name for name in names if row.get(name) and not is_finite(row[name])]
    wrong += [name for name in BY_EPOCH if not all(map(is_finite, row.get(name, "").split()))]
    shares = [column.names for column in COLUMNS.values() if len(column.names) == 2]
    counted = [part for part, all_of in shares if row.get(part) and not is_part(part, all_of, row)]
    return list(dict.fromkeys(wrong + counted))


def is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def is_part(part: str, whole: str, row: dict[str, str]) -> bool:
    counts = [row.get(part, ""), row.get(whole, "")]
    return all(map(str.isdecimal, counts)) and int(counts[0]) <= int(counts[1]) > 0


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
    notes = [f"`evidence.py {name}`.", measured_on(name, rows), by_chance(rows)]
    notes.append(flags_of_first(name, rows))
    return "\n".join([*lines, "", " ".join(note for note in notes if note)])


def tested_on(name: str, rows: list[dict]) -> str:
    """How many patients a run, or slices if no scans are counted."""
    of_scans = "scans correct" in EXPERIMENTS[name].columns and cell("scans correct", rows)
    unit = "slices" if not of_scans and all(row.get("slices") for row in rows) else "patients"
    counts = sorted({int(row[unit]) for row in rows})
    lowest_and_highest = dict.fromkeys([counts[0], counts[-1]])
    return f"{' to '.join(f'{count:,}' for count in lowest_and_highest)} {unit}"


def measured_on(name: str, rows: list[dict]) -> str:
    threads = {f"{row['processor']}, {counted(int(row['threads']), 'thread')}" for row in rows}
    unknown = sum(not row.get("commit") for row in rows)
    note = f" The commit of {counted(unknown, 'run')} was not recorded." if unknown else ""
    tested = f"Tested on {tested_on(name, rows)} a run."
    return f"{tested} Measured on {', '.join(sorted(threads))}.{note}"


def flags_of_first(name: str, rows: list[dict]) -> str:
    """Where it is a run of train.py; a CSV of results has those of all rows."""
    first = next(iter(EXPERIMENTS[name].variants))
    flags = next((row["flags"] for row in rows if row["variant"] == first), "")
    return f"Flags of the first row: `{last_of_each(flags)}`." if flags.startswith("-") else ""


def last_of_each(flags: str) -> str:
    """Flags of which some are given twice, as argparse takes them: the last one counts."""
    of_each = {}
    for flag in re.split(r" (?=--?[a-z])", flags):
        name = re.sub("^--no-|^--|^-b$", "", flag.split()[0]) or "batch-size"
        of_each.pop(name, None)
        of_each[name] = flag
    return " ".join(of_each.values())


def by_chance(rows: list[dict]) -> str:
    """Of photographs, the standard error of a share that is right; slices of a knee are alike."""
    rows = [row for row in rows if COLUMNS["slices correct"].of(row) is not None]
    if not (rows and rows[0]["data"].startswith("benchmarks/garments.py")):
        return ""
    views = 2 if " build " in rows[0]["data"] else 1  # a photograph as it is, and mirrored
    counts = [(COLUMNS["slices correct"].of(row), int(row["slices"]) / views) for row in rows]
    errors = [math.sqrt(share * (1 - share) / count) for share, count in counts]
    return (
        "All runs are tested on the same photographs; on others each share would differ, with a "
        f"standard error of up to {max(errors):.1%}."
    )


def epochs_to(accuracy: float, rows: list[dict]) -> str:
    """After how many epochs the accuracy on validation was first so high, of rows with epochs."""
    first, rows = [], [row for row in rows if row.get("val_accuracy_by_epoch")]
    for row in rows:
        first += [
            n for n, value in zip(*by_epoch("val_accuracy", row), strict=True) if value >= accuracy
        ][:1]
    missed = len(rows) - len(first)
    never = [f"{counted(missed, 'run')} never"] if missed else []
    return "; ".join([spread(first, "{:.0f}"), *never] if first else never)


# ---- pages ---------------------------------------------------------------------------------------


def write_pages(tables: Tables, again: Tables, root: Path = ROOT) -> None:
    """README.md, docs/results.md and their figures. again: rows of runs that were made twice.

    Raises UserError if a page has no marks, MissingPackage without matplotlib.
    """
    check_matplotlib()
    sections = [table(name, rows) for name, rows in tables.items() if rows]
    sections.insert(0, in_all(tables))
    if made_twice := twice(tables, again):
        sections.append(made_twice)
    write_between_marks(root / "docs" / "results.md", aims_table(tables), AIM_MARKS)
    write_between_marks(root / "docs" / "results.md", "\n\n".join(sections), MARKS)
    write_between_marks(root / "README.md", short_table(tables), MARKS)
    draw_classes(tables, root / "docs" / "results.png")
    draw_activations(tables, root / "docs" / "activations.png")


def in_all(tables: Tables) -> str:
    rows = [row for rows in tables.values() for row in rows]
    as_they_ran = [row.get("seconds_by_epoch") or row["seconds"] for row in rows]
    hours = sum(sum(map(float, seconds.split())) for seconds in as_they_ran) / 3600
    return f"In all {counted(len(rows), 'run')}, which trained for {hours:.0f} hours."


def twice(tables: Tables, again: Tables) -> str:
    about = "The same runs, each from scratch, and the spread of all."
    lines = ["### Made twice", "", about, ""]
    lines += ["| experiment | variant | seed | one | the other | all |"]
    lines += ["| --- | --- | --: | --- | --- | --- |"]
    head = len(lines)
    for name, rows in again.items():
        for row in rows:
            alike = [each for each in tables[name] if made_with(each) == made_with(row)]
            of_all = [each for each in tables[name] if each["variant"] == row["variant"]]
            column = "slices correct" if row.get("slices") else "scans correct"
            for before in alike:
                if before["started"] != row["started"]:  # else its folder was only read again
                    cells = [cell(column, each) for each in ([before], [row], of_all)]
                    cells = [EXPERIMENTS[name].title, row["variant"], row["seed"], *cells]
                    lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) if len(lines) > head else ""


def aims_table(tables: Tables) -> str:
    lines = ["| | runs | aimed at | reached | |", "| --- | --: | --- | --- | --- |"]
    for aim in AIMS:
        own = of_seeds(aim.column, aim.variant, tables[aim.experiment])
        other = of_seeds(aim.column, aim.ahead_of, tables[aim.experiment])
        seeds = own.keys() & other.keys() if aim.ahead_of else own.keys()
        if not seeds:
            continue
        ahead = statistics.mean(own[seed] - other.get(seed, 0.0) for seed in seeds)
        verdict = "" if aim.least is None else "yes" if ahead >= aim.least else "**no**"
        texts = [as_aim(value, aim.ahead_of) for value in (aim.least, ahead)]
        lines.append(f"| {aim.what} | {len(seeds)} | {' | '.join(texts)} | {verdict} |")
    return "\n".join(lines)


def of_seeds(column: str, variant: str | None, rows: list[dict]) -> dict[str, float]:
    return {row["seed"]: COLUMNS[column].of(row) for row in rows if row["variant"] == variant}


def as_aim(value: float | None, ahead_of: str | None) -> str:
    if value is None or not ahead_of:
        return "" if value is None else f"{value:.2%}"
    return f"{abs(100 * value):.1f} points {'behind' if value < 0 else 'ahead of'} {ahead_of}"


def short_table(tables: Tables) -> str:
    lines = ["| data | model | runs | each tested on | correct | minutes |"]
    lines.append("| --- | --- | --: | --- | --- | --- |")
    for data, experiment, variants, column in IN_README:
        for variant in variants:
            if own := [row for row in tables[experiment] if row["variant"] == variant]:
                model = "Perceiver" if variant in ("slices", "whole scans") else variant
                cells = [data, model, str(len(own)), tested_on(experiment, own)]
                cells += [cell(column, own), cell("minutes", own)]
                lines.append(f"| {' | '.join(cells)} |")
                data = ""
    return "\n".join(lines)


def write_between_marks(page: Path, text: str, marks: tuple[str, str]) -> None:
    """Raises UserError if the page has no such marks."""
    text = put_between_marks(page.read_text(), page, text, *marks)
    with whole_file(page) as temporary:
        temporary.write_text(text)
