"""The records that speed.py writes, one a processor, and the pages that are made of them.

A record holds what was measured where, with which commit, and cases. A case holds its axes, batch
and model arguments, the operations of one training step, and for each model the seconds of each
round ("train", "infer") and "memory" in bytes; "others" is, for each round that was kept, the share
of the cores that other processes took, "discarded" the number of rounds that were not.
"""

import json
import math
import platform
import statistics
import subprocess
from pathlib import Path

import numpy as np

from common.files import whole_file, write_json
from common.program import UserError

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "speed.json"
RECORD = set(
    "processor device threads torch precision commit date rounds busy rates cases growth".split()
)
BEGIN, END = "<!-- begin: python benchmarks/speed.py --write-docs -->", "<!-- end: speed -->"


def processor() -> str:
    """As /proc/cpuinfo names it, with what tells the generations of one name apart."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    fields = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    known = {"family": "cpu family", "model": "model", "stepping": "stepping"}
    generation = ", ".join(f"{name} {fields[key]}" for name, key in known.items() if key in fields)
    name = fields.get("model name") or platform.processor() or platform.machine()
    return f"{name} ({generation})" if generation else name


def commit() -> str:
    """The short git hash of what is measured, with -dirty if files differ from it; "" if none."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except OSError:  # no git
        return ""
    return done.stdout.strip()


def read_results(path: Path) -> dict:
    """Raises UserError if there is something else in it."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"records": []}
    except ValueError as error:
        raise UserError(f"{path}: no JSON, expected results of speed.py: {error}") from error
    records = results.get("records") if isinstance(results, dict) else None
    if not isinstance(records, list) or not all(
        isinstance(record, dict) and record.keys() >= RECORD for record in records
    ):
        raise UserError(f"{path}: not the records that speed.py writes; name another --output")
    return results


def add_record(path: Path, record: dict) -> dict:
    """Put it in place of that of the same processor, device, threads and precision, if any."""
    results = read_results(path)
    records = {
        tuple(each[name] for name in ("processor", "device", "threads", "precision")): each
        for each in [*results["records"], record]
    }
    results["records"] = list(records.values())
    write_json(path, results)
    return results


# ---- tables --------------------------------------------------------------------------------------


def label(case: dict) -> str:
    """What is measured and its batch: "76 x 86, 2"."""
    return f"{case['case'].replace('x', ' x ')}, {case['batch']}"


def title(record: dict) -> str:
    threads = "1 thread" if record["threads"] == 1 else f"{record['threads']} threads"
    return f"{record['processor']}, {threads}" if record["device"] == "cpu" else record["processor"]


def measured(record: dict, records: list[dict]) -> str:
    """When, of which version, and whether there are results of a later one."""
    newest = max(records, key=lambda other: other["date"])
    outdated = ", not measured since" if record["commit"] != newest["commit"] else ""
    version = f" at {record['commit']}" if record["commit"] else ""
    return f"{record['date'][:10]}{version}{outdated}"


def unmeasured(records: list[dict]) -> str:
    devices = {record["device"] for record in records}
    return f"Other processors{'' if 'cuda' in devices else ', and GPUs'}: not measured."


def models_of(cases: list[dict]) -> list[str]:
    return list(cases[0]["models"]) if cases else []


def share_of_limit(record: dict, case: dict) -> float:
    """Of the rate of the better matrix product, what our training steps reach."""
    seconds = statistics.median(case["models"]["ours"]["train"])
    return case["operations"] / seconds / max(record["rates"].values())


def table(record: dict) -> str:
    """A record in Markdown. Ratios are of medians, peer over model; a spread is min to max."""
    lines = [
        "| input, batch | model | training step, s | | of limit | inference, s | | memory, MB | |",
        "| --- | --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for case in record["cases"]:
        peer = case["models"]["perceiver-pytorch"]
        for name, own in case["models"].items():
            cells = [label(case), name]
            for word in ("train", "infer"):
                median, best, worst = (f(own[word]) for f in (statistics.median, min, max))
                cells.append(f"{median:.3g} ({best:.3g} to {worst:.3g})")
                cells.append(f"{statistics.median(peer[word]) / median:.1f}x")
            cells.insert(4, f"{share_of_limit(record, case):.0%}" if name == "ours" else "")
            cells.append(f"{own['memory'] / 1e6:,.0f}")
            cells.append(f"{peer['memory'] / own['memory']:.1f}x")
            lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
    return "\n".join(lines)


def summary(record: dict) -> str:
    """What stands below the table: versions, noise, small models, limit, growth."""
    lines = [
        f"PyTorch {record['torch']}, {record['precision']}; {record['rounds']} rounds in turns: "
        "median (min to max).",
        noise(record),
    ]
    lines += [small_model(case) for case in record["cases"] if case["arguments"]]
    rates = " or ".join(f"{name} ({r / 1e9:,.0f} GFLOP/s)" for name, r in record["rates"].items())
    lines.append(
        "Of limit: what the matrix products of our training step would take at the rate of one of "
        f"4096 x 4096 by {rates}, the better of these, over what the step took."
    )
    for name in models_of(record["growth"]):
        fit = growth_fit(record["growth"], name)
        lines.append(
            f"Line through the training steps of growing images, batch 1, {name}: "
            f"{fit['seconds']['slope'] * 1e6:.3g} s for each million tokens "
            f"(R² {fit['seconds']['r2']:.4f}) and {fit['bytes']['slope']:,.0f} bytes for each "
            f"token (R² {fit['bytes']['r2']:.4f})."
        )
    return "\n".join(f"- {line}" for line in lines)


def small_model(case: dict) -> str:
    """What a case with a model of its own is, and its slices a second."""
    axes = " x ".join(map(str, case["axes"]))
    arguments = ", ".join(f"{name} {value}" for name, value in case["arguments"].items())
    rates = []
    for name, own in case["models"].items():
        train, infer = (case["batch"] / statistics.median(own[word]) for word in ("train", "infer"))
        rates.append(f"{name} {train:,.0f} and {infer:,.0f}")
    return (
        f"{label(case)}: {axes}, {arguments}. Slices a second in training and in inference: "
        f"{'; '.join(rates)}."
    )


def noise(record: dict) -> str:
    """How busy the machine was with other things."""
    cases = [*record["cases"], *record["growth"]]
    others = [share for case in cases for share in case["others"]]
    if not others:
        return "How busy the machine was with other things was not recorded."
    discarded = sum(case["discarded"] for case in cases)
    return (
        f"Rounds discarded because others took more than {record['busy']:.0%} of the cores: "
        f"{discarded} of {discarded + len(others)}; in those kept others took "
        f"{statistics.median(others):.1%} (median), {max(others):.1%} at most."
    )


def growth_fit(growth: list[dict], model: str) -> dict[str, dict[str, float]]:
    """How the median training step of a model, and its memory, grow with tokens."""
    tokens = [math.prod(case["axes"]) for case in growth]
    own = [case["models"][model] for case in growth]
    return {
        "seconds": fit_line(tokens, [statistics.median(one["train"]) for one in own]),
        "bytes": fit_line(tokens, [one["memory"] for one in own]),
    }


def fit_line(x: list[float], y: list[float]) -> dict[str, float]:
    """Least squares y = slope x + intercept, and the share of the variance that it explains."""
    slope, intercept = np.polyfit(x, y, 1)
    residual = np.asarray(y) - (slope * np.asarray(x) + intercept)
    r2 = 1 - residual.var() / np.var(y)
    return {"slope": float(slope), "intercept": float(intercept), "r2": float(r2)}


# ---- pages ---------------------------------------------------------------------------------------


def section(record: dict, records: list[dict]) -> str:
    """All of one record."""
    heading = f"## {title(record)}\n\nMeasured {measured(record, records)}."
    return "\n\n".join([heading, table(record), summary(record)])


def sections(results: dict) -> str:
    """What docs/speed.md shows."""
    records = results["records"]
    parts = [section(record, records) for record in records]
    return "\n\n".join([*parts, unmeasured(records)])


def short_table(results: dict) -> str:
    """What README.md shows: training steps of the latest version, and perceiver-pytorch's."""
    newest = max(results["records"], key=lambda record: record["date"])
    records = [one for one in results["records"] if one["commit"] == newest["commit"]]
    lines = [
        "| processor | input, batch | seconds | | memory, MB | |",
        "| --- | --- | --- | --: | --- | --: |",
    ]
    for record in records:
        for case in record["cases"]:
            own, peer = case["models"]["ours"], case["models"]["perceiver-pytorch"]
            seconds, slower = statistics.median(own["train"]), statistics.median(peer["train"])
            memory, larger = own["memory"] / 1e6, peer["memory"] / 1e6
            lines.append(
                f"| {title(record)} | {label(case)} | {seconds:.3g} ({slower:.3g}) | "
                f"{slower / seconds:.1f}x | {memory:,.0f} ({larger:,.0f}) | "
                f"{larger / memory:.1f}x |"
            )
    when = "; ".join(f"{title(record)} on {measured(record, records)}" for record in records)
    return "\n".join([*lines, "", f"Measured: {when}. {unmeasured(results['records'])}"])


def put_between_marks(page: str, path: Path, text: str, begin: str = BEGIN, end: str = END) -> str:
    """The page with the text in place of what stands between the two marks."""
    if page.count(begin) != 1 or page.count(end) != 1:
        raise UserError(f"{path}: expected one line {begin} and one line {end}; put them in")
    before, rest = page.split(begin)
    return f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}"


def write_docs(results: dict, root: Path = ROOT) -> None:
    """Raises UserError if one of the pages has no marks; then none is written."""
    texts = {
        root / "docs" / "speed.md": sections(results),
        root / "README.md": short_table(results),
    }
    pages = {path: put_between_marks(path.read_text(), path, text) for path, text in texts.items()}
    for path, page in pages.items():
        with whole_file(path) as temporary:
            temporary.write_text(page)


COLOURS = ("#1f6fb2", "#7fb2de", "#d1495b")


def draw(results: dict, path: Path) -> None:
    """Time and memory of a training step against tokens, a row of panels for each processor."""
    from matplotlib.figure import Figure

    records = [record for record in results["records"] if record["growth"]]
    if not records:
        return
    figure = Figure(figsize=(10, 4 * len(records)), layout="constrained")
    panels = figure.subplots(len(records), 2, squeeze=False)
    for record, (time_panel, memory_panel) in zip(records, panels, strict=True):
        growth = record["growth"]
        tokens = np.array([math.prod(case["axes"]) for case in growth])
        for name, colour in zip(models_of(growth), COLOURS, strict=True):
            own, fit = [case["models"][name] for case in growth], growth_fit(growth, name)
            seconds = [statistics.median(one["train"]) for one in own]
            gigabytes = [one["memory"] / 1e9 for one in own]
            draw_line(time_panel, tokens, seconds, fit["seconds"], 1, color=colour, label=name)
            draw_line(memory_panel, tokens, gigabytes, fit["bytes"], 1e-9, color=colour)
        time_panel.set_title(f"Training step\n{title(record)}", fontsize=10)
        time_panel.set_ylabel("seconds")
        time_panel.legend()
        memory_panel.set(title="Memory above weights, gradients and optimizer", ylabel="GB")
        for panel in (time_panel, memory_panel):  # after all lines: a limit that is set stays
            panel.set(xlabel="tokens (thousands), batch 1", xlim=0, ylim=0)
            panel.grid(alpha=0.3)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=120)


def draw_line(panel, tokens: np.ndarray, values: list, fit: dict, scale: float, **style) -> None:
    panel.plot(tokens / 1e3, values, "o", **style)
    ends = np.array([0, tokens.max()])
    line = (fit["slope"] * ends + fit["intercept"]) * scale
    panel.plot(ends / 1e3, line, "-", color=style["color"], linewidth=1)
