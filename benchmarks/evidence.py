"""What the package can do: named experiments, each a set of ordinary runs of train.py.

    python benchmarks/evidence.py                      # all of them; goes on where it was stopped
    python benchmarks/evidence.py order --seeds 0 1 2
    python benchmarks/evidence.py --quick --results R  # the same on a few scans, in a minute
    python benchmarks/evidence.py --write-docs         # what was measured, into docs/results.md

Each run is a run folder below --folder, and a row of benchmarks/results/<experiment>.csv: settings,
seed, what the test said, seconds, versions, processor. A run whose row is there is not made again;
one that was killed goes on. Checkpoint and calibration of a run are chosen on validation.

Exit codes: 0 done, 1 a run failed, 2 bad arguments.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # to run as `python benchmarks/evidence.py`

import torch  # noqa: E402

from benchmarks.experiments import EXPERIMENTS, Data  # noqa: E402
from benchmarks.speed import processor  # noqa: E402
from benchmarks.speed_records import put_between_marks  # noqa: E402
from common.csv_tables import read_csv, write_csv  # noqa: E402
from common.files import whole_file  # noqa: E402
from common.program import Parser, UserError, counted, run_program, whole_number  # noqa: E402
from dataset import list_labelled, load_dataset, split  # noqa: E402
from perceiver import Perceiver  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
MARKS = "<!-- begin: python benchmarks/evidence.py --write-docs -->", "<!-- end: evidence -->"

QUICK = "--epochs 1 --image-size 8 8 --num-latents 4 --latent-dim 16 --depth 1 --no-mirror-swap"
QUICK = QUICK.split()


class RunFailed(UserError):
    exit_code = 1


class Run(NamedTuple):
    experiment: str
    variant: str
    seed: int
    flags: list[str]

    @property
    def folder(self) -> str:
        """Of these flags alone: other ones are another run."""
        digest = zlib.crc32(" ".join(self.flags).encode())
        return f"{self.variant.replace(' ', '-')}-{self.seed}-{digest:08x}"

    def is_in(self, rows: list[dict]) -> bool:
        known = [(row["variant"], int(row["seed"]), row["flags"]) for row in rows]
        return (self.variant, self.seed, " ".join(self.flags)) in known


def runs_of(name: str, seeds: list[int], quick: bool) -> list[Run]:
    more = QUICK if quick else []
    variants = EXPERIMENTS[name].variants.items()
    return [
        Run(name, variant, seed, [*flags, *more]) for seed in seeds for variant, flags in variants
    ]


def rows_of(path: Path) -> list[dict]:
    if not path.exists():
        return []
    return [row.cells for row in read_csv(path, "table of results").rows]


def make_data(folder: Path, data: Data, quick: bool) -> Path:
    """The data's folder, made if it is not there."""
    command = [*data.command, *(data.quick if quick else [])]
    path = folder / re.sub(r"[^\w.]+", "-", " ".join(command).replace("{data}", "")).strip("-")
    if not path.exists():
        call([sys.executable, *placed(command, path)])
    return path


def placed(words: list[str], data: Path) -> list[str]:
    return [word.replace("{data}", str(data)) for word in words]


def call(command: list[str], fine: tuple[int, ...] = (0,)) -> None:
    """Raises RunFailed if it fails; it has said why."""
    code = subprocess.run(command, cwd=ROOT).returncode
    if code not in fine:
        raise RunFailed(f"{' '.join(command[1:])}: exit code {code}")


def train(run: Run, data: Path, folder: Path) -> dict:
    """Make a run, or go on with it. Returns its row."""
    folder = folder / run.experiment / run.folder
    is_reference = not run.flags[0].startswith("-")
    script = "benchmarks/references.py" if is_reference else "train.py"
    program = [sys.executable, str(ROOT / script)]
    if (folder / "last.pt").exists() or (folder / "folds.csv").exists():
        call([*program, "--resume", str(folder)])
    elif not (is_reference and (folder / "test_metrics.json").exists()):
        more = [*placed(EXPERIMENTS[run.experiment].data.flags, data), "--seed", str(run.seed)]
        call([*program, *run.flags, *more, "--output-dir", str(folder)])
    about = json.loads((folder / "args.json").read_text())
    name = "cross_validation.json" if "--folds" in run.flags else "test_metrics.json"
    tested = json.loads((folder / name).read_text())
    tables = [rows_of(path) for path in sorted([*folder.glob("**/metrics.csv")])]
    best = min((row for rows in tables for row in rows), key=lambda row: float(row["val_loss"]))
    row = {
        "variant": run.variant,
        "seed": run.seed,
        "flags": " ".join(run.flags),
        "epochs": sum(map(len, tables)),
        # Of the quickest epoch: what else ran on the machine is left out.
        "seconds": round(sum(len(rows) * min(map(seconds_of, rows)) for rows in tables)),
        "best_epoch": best["epoch"] if len(tables) == 1 else "",
        "val_loss": best["val_loss"] if len(tables) == 1 else "",
        "patients": tested["patients"],
    }
    for unit in ("slices", "scans"):
        found = tested.get(unit)
        row[unit] = found["count"] if found else ""
        row[f"{unit}_right"] = found["correct"] if found else ""
    scans = tested["scans"]
    for name in ("negative_log_likelihood", "expected_calibration_error"):
        row[name] = scans[name]["value"]
    if "scan" in run.flags:
        row |= without_order(folder, data)
    return row | {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "torch": about["versions"]["torch"],
        "threads": about["threads"],
        "processor": processor(),
    }


def seconds_of(epoch: dict) -> float:
    return float(epoch["seconds"])


def without_order(folder: Path, data: Path) -> dict:
    """How many tested scans are right with their slices in reverse order, and shuffled."""
    model = Perceiver.from_checkpoint(folder / "best.pt")
    size, length = model.preprocessing["image_size"], model.preprocessing["slices"]
    dataset = load_dataset(list_labelled(data), size, ROOT / "cache", scan_length=length)
    test = split(dataset, split_file=folder / "split.csv")["test"]
    scans, generator = test.batch(torch.arange(len(test))), torch.Generator().manual_seed(0)
    orders = [torch.randperm(length, generator=generator) for _ in range(len(test))]
    shuffled = torch.stack([scan[:, order] for scan, order in zip(scans, orders, strict=True)])

    def right(pixels: torch.Tensor) -> int:
        return int((model.predict_logits(pixels).argmax(dim=1) == test.labels).sum())

    return {"reversed_right": right(scans.flip(2)), "shuffled_right": right(shuffled)}


# ---- pages ---------------------------------------------------------------------------------------


COLUMNS = {  # heading -> what is divided by what
    "scans right": ("scans_right", "scans"),
    "slices right": ("slices_right", "slices"),
    "scans right, slices reversed": ("reversed_right", "scans"),
    "shuffled": ("shuffled_right", "scans"),
}


def table(name: str, rows: list[dict]) -> str:
    """A row for each variant: means over seeds, and in brackets the lowest and highest."""
    experiment = EXPERIMENTS[name]
    columns = {
        name: parts for name, parts in COLUMNS.items() if any(row.get(parts[0]) for row in rows)
    }
    headings = ["variant", "runs", *columns, "calibration error of scans", "minutes"]
    lines = [f"### {experiment.title}", "", experiment.about, ""]
    lines += [f"| {' | '.join(headings)} |", "| --- | --: " + "| --- " * (len(headings) - 2) + "|"]
    for variant in experiment.variants:
        own = [row for row in rows if row["variant"] == variant]
        if not own:
            continue
        cells = [variant, str(len(own))]
        for part, whole in columns.values():
            shares = [float(row[part]) / float(row[whole]) for row in own if row.get(part)]
            cells.append(spread(shares, "{:.1%}"))
        errors = [float(row["expected_calibration_error"]) for row in own]
        cells.append(spread(errors, "{:.1%}"))
        cells.append(spread([float(row["seconds"]) / 60 for row in own], "{:.1f}"))
        lines.append(f"| {' | '.join(cells)} |")
    patients = [int(row["patients"]) for row in rows]
    threads = {f"{row['processor']}, {counted(int(row['threads']), 'thread')}" for row in rows}
    where = ", ".join(sorted(threads))
    tested = f"Tested on {min(patients)} to {max(patients)} patients a run."
    return "\n".join([*lines, "", f"{tested} Measured on {where}."])


def spread(values: list[float], text: str) -> str:
    if not values:
        return ""
    mean = text.format(statistics.mean(values))
    if len(values) == 1:
        return mean
    return f"{mean} ({text.format(min(values))} to {text.format(max(values))})"


def write_docs(results: Path, page: Path) -> None:
    """Raises UserError if the page has no marks."""
    tables = []
    for name in EXPERIMENTS:
        if rows := rows_of(results / f"{name}.csv"):
            tables.append(table(name, rows))
    write_between_marks(page, "\n\n".join(tables), MARKS)


def write_between_marks(page: Path, text: str, marks: tuple[str, str]) -> None:
    """Raises UserError if the page has no such marks."""
    text = put_between_marks(page.read_text(), page, text, *marks)
    with whole_file(page) as temporary:
        temporary.write_text(text)


# ---- program -------------------------------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="evidence.py", description="Named experiments of runs of train.py.")
    add = parser.add_argument
    add("experiments", nargs="*", metavar="NAME", help=f"of {', '.join(EXPERIMENTS)}; or all")
    add("--seeds", type=whole_number, nargs="+", default=[0, 1, 2], metavar="N")
    add("--folder", type=Path, default=Path("runs/evidence"), help="for run folders and data")
    add("--results", type=Path, default=RESULTS, metavar="DIR", help="for tables of results")
    add("--quick", action="store_true", help="a few small scans: shows that it runs, no more")
    add("--write-docs", action="store_true", help="write docs/results.md from the tables, and stop")
    args = parser.parse_args(argv)
    for name in args.experiments:
        if name not in EXPERIMENTS:
            parser.error(f"{name}: no experiment; there are {', '.join(EXPERIMENTS)}")
    if args.quick and args.results == RESULTS:
        parser.error("--quick: name other --results: these would be no evidence")
    return args


def run(args: argparse.Namespace) -> int:
    if args.write_docs:
        write_docs(args.results, ROOT / "docs" / "results.md")
        return 0
    args.results.mkdir(parents=True, exist_ok=True)
    for name in args.experiments or EXPERIMENTS:
        path = args.results / f"{name}.csv"
        for one in runs_of(name, args.seeds, args.quick):
            rows = rows_of(path)
            if not one.is_in(rows):
                data = make_data(args.folder.absolute(), EXPERIMENTS[name].data, args.quick)
                row = train(one, data, args.folder.absolute())
                columns = list(dict.fromkeys(key for each in [*rows, row] for key in each))
                write_csv(path, [*rows, row], columns)
        print(table(name, rows_of(path)))
    return 0


def main(argv: list[str] | None = None) -> int:
    return run_program(run, parse_args(argv), "evidence.py")


if __name__ == "__main__":
    sys.exit(main())
