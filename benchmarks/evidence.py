"""What the package can do: named experiments, each a set of ordinary runs of train.py.

    python benchmarks/evidence.py                      # all of them; goes on where it was stopped
    python benchmarks/evidence.py order --seeds 0 1 2
    python benchmarks/evidence.py classes --jobs 2     # two runs at a time, each on half the cores
    python benchmarks/evidence.py --quick --results R  # the same on a few scans, in minutes
    python benchmarks/evidence.py --results benchmarks/results/again --folder runs/again bags
    python benchmarks/evidence.py --write-docs         # all that was measured, into the pages

Each run is a run folder below --folder, and a row of benchmarks/results/<experiment>.csv: settings,
seed, what the test said, seconds, versions, processor. A run whose row is there is not made again;
one that was killed goes on; one of references.py starts anew. Checkpoint and calibration of a run
are chosen on validation. Several of these programs may share a folder and its tables, as long as
each makes other runs.
What photographs are made of: see benchmarks/garments.py.

Exit codes: 0 done, 1 a run failed or what was named can't be made here, 2 bad arguments or a
damaged table, 130 / 143 interrupted.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import zlib
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # to run as `python benchmarks/evidence.py`

from benchmarks.evidence_models import (  # noqa: E402
    after_each_read,
    open_tested,
    reads_scans,
    with_mirror_image,
    without_order,
)
from benchmarks.evidence_pages import faults_of, made_with, table, write_pages  # noqa: E402
from benchmarks.experiments import EXPERIMENTS, Data  # noqa: E402
from benchmarks.garments import SOURCE  # noqa: E402
from benchmarks.speed_records import processor  # noqa: E402
from common import signals  # noqa: E402
from common.files import abridged, locked  # noqa: E402
from common.program import (  # noqa: E402
    Parser,
    UserError,
    positive_int,
    run_program,
    whole_number,
)
from common.tables import read_csv, write_csv  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"

QUICK = "--epochs 1 --image-size 8 8 --num-latents 4 --latent-dim 16 --depth 1 --no-mirror-swap"
QUICK = [*QUICK.split(), "--warmup-epochs", "0"]
LAST_LINES = 20  # of the output of a run that failed
# glibc keeps memory that is freed: to fetch it anew took half of the time of perceiver-pytorch.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}


class RunFailed(UserError):
    exit_code = 1


class Run(NamedTuple):
    experiment: str
    variant: str
    seed: int
    flags: list[str]

    @property
    def made_with(self) -> dict[str, str]:
        """As `made_with` of its row."""
        data = EXPERIMENTS[self.experiment].data
        words = {"flags": self.flags, "data": [*data.command, *data.flags]}
        of_words = {name: " ".join(each) for name, each in words.items()}
        return {"variant": self.variant, "seed": str(self.seed), **of_words}

    @property
    def folder(self) -> str:
        """Of these flags and data alone: with others it is another run."""
        digest = zlib.crc32(" ".join([self.made_with["flags"], self.made_with["data"]]).encode())
        return f"{re.sub(r'[^a-z0-9.]+', '-', self.variant.lower())}-{self.seed}-{digest:08x}"

    def is_in(self, rows: list[dict]) -> bool:
        return self.made_with in map(made_with, rows)


def runs_of(name: str, seeds: list[int], quick: bool) -> list[Run]:
    more = QUICK if quick else []
    variants = EXPERIMENTS[name].variants.items()
    seeds = dict.fromkeys(seeds)  # each once
    return [
        Run(name, variant, seed, [*flags, *more]) for seed in seeds for variant, flags in variants
    ]


# ---- tables of results ---------------------------------------------------------------------------


def rows_of(path: Path) -> list[dict]:
    if not path.exists():
        return []
    return [row.cells for row in read_csv(path, "table of results").rows]


def results_of(path: Path) -> list[dict]:
    """Rows that `row_of` made. Raises UserError, which says where one is damaged."""
    rows = read_csv(path, "table of results").rows if path.exists() else []
    lines = {}
    for line, cells in rows:
        if wrong := faults_of(cells):
            raise UserError(
                f"{path}, line {line}: no row of evidence.py, see {abridged(wrong)}; remove the "
                "line, and the row is written again from its run folder"
            )
        first = lines.setdefault(tuple(made_with(cells).values()), line)
        if first != line:
            raise UserError(f"{path}, lines {first} and {line}: the same run twice; remove one")
    return [row.cells for row in rows]


def current_results(name: str, folder: Path, quick: bool = False) -> list[dict]:
    """Rows of the experiment as it is now; of one that had other flags or data nothing is shown."""
    rows = results_of(folder / f"{name}.csv")
    wanted = [run.made_with for run in runs_of(name, [0], quick)]
    return [row for row in rows if made_with(row) | {"seed": "0"} in wanted]


def add_row(path: Path, run: Run, row: dict) -> None:
    with locked(path.parent, wait=True):  # another evidence.py may be adding one to this table
        rows = results_of(path)
        if run.is_in(rows):
            return
        rows = [*rows, row]
        write_csv(path, rows, dict.fromkeys(column for row in rows for column in row))


# ---- runs ----------------------------------------------------------------------------------------


def make_data(folder: Path, data: Data, quick: bool) -> Path:
    """The data's folder, made if it is not there."""
    command = [*data.command, *(data.quick if quick else [])]
    path = folder / re.sub(r"[^\w.]+", "-", " ".join(command).replace("{data}", "")).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, wait=True):  # another evidence.py may be making it
        if not path.exists():
            call([sys.executable, *placed(command, path)])
    return path


def placed(words: list[str], data: Path, seed: int = 0) -> list[str]:
    return [word.replace("{data}", str(data)).replace("{seed}", str(seed)) for word in words]


def call(
    command: list[str],
    fine: tuple[int, ...] = (0,),
    log: Path | None = None,
    threads: int | None = None,
) -> None:
    """Raises RunFailed if it fails: the command has said why, in `log` if there is one."""
    of_threads = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    environment = os.environ | KEEP_MEMORY | of_threads
    with signals.orderly(), log.open("a") if log else nullcontext() as output:
        before = output.tell() if log else 0
        errors = subprocess.STDOUT if log else None
        code = exit_code(
            subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=errors)
        )
    if code not in fine:
        said = log.read_bytes()[before:].decode(errors="replace").splitlines() if log else []
        raise RunFailed(*said[-LAST_LINES:], f"{' '.join(command[1:])}: exit code {code}")


def exit_code(process: subprocess.Popen) -> int:
    """Of a process when it has ended. A signal to this program ends it, too."""
    while not signals.received():
        with suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=0.5)
    with suppress(subprocess.TimeoutExpired):
        return process.wait(timeout=signals.PASSED_ON)  # of Ctrl-C it knows; two lose an epoch
    process.terminate()
    return process.wait()


def train(run: Run, data: Path, folder: Path, threads: int | None) -> None:
    """Make a run in a folder, or go on with it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_name(f"{folder.name}.txt")
    is_reference = not run.flags[0].startswith("-")
    script = "benchmarks/references.py" if is_reference else "train.py"
    program = [sys.executable, str(ROOT / script)]
    if (folder / "last.pt").exists() or (folder / "folds.csv").exists():
        call([*program, "--resume", str(folder)], log=log, threads=threads)
    elif not (is_reference and (folder / "test_metrics.json").exists()):
        (folder / "metrics.csv").unlink(missing_ok=True)  # of a reference killed before its end
        words = placed([*run.flags, *EXPERIMENTS[run.experiment].data.flags], data, run.seed)
        words += ["--seed", str(run.seed), "--output-dir", str(folder)]
        call([*program, *words], log=log, threads=threads)


def row_of(run: Run, folder: Path) -> dict:
    """What a run that is done has measured."""
    about = json.loads((folder / "args.json").read_text())
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("**/args.json"))]
    device = max(record.get("device", "") for record in records)  # folds have it, not their folder
    name = "cross_validation.json" if "--folds" in run.flags else "test_metrics.json"
    tested = json.loads((folder / name).read_text())
    tables = [rows_of(path) for path in sorted([*folder.glob("**/metrics.csv")])]
    has_epochs = "train_loss" in tables[0][0]  # else there is a row for each C of a regression
    row = {
        **run.made_with,
        "epochs": sum(map(len, tables)) if has_epochs else "",
        "seconds": round(sum(seconds_of(rows, has_epochs) for rows in tables)),
        "patients": tested["patients"],
    }
    if len(tables) == 1:
        epochs = tables[0]
        best = min(epochs, key=lambda epoch: float(epoch["val_loss"]))
        row |= {"best_epoch": best["epoch"], "val_loss": best["val_loss"]}
    for unit in ("slices", "scans"):
        found = tested.get(unit)
        row[unit] = found["count"] if found else ""
        row[f"{unit}_right"] = found["correct"] if found else ""
    scans = tested["scans"]
    for name in ("negative_log_likelihood", "expected_calibration_error"):
        row[name] = scans[name]["value"]
    row |= {name: tested.get(name, "") for name in ("parameters", "mirrored_right")}
    if (folder / "best.pt").exists():
        row |= of_model(run, folder)
    row |= {
        "started": about["started"],
        "commit": about["git_commit"] or "",
        "versions": ", ".join(f"{name} {text}" for name, text in about["versions"].items()),
        "crc32": about.get("data", {}).get("crc32", ""),  # of the pixels; folds have none
        "threads": about["threads"],
        "processor": device if device.startswith("cuda") else processor(),
    }
    if len(tables) == 1 and has_epochs:
        for column in ("train_loss", "val_loss", "val_accuracy"):
            values = [f"{float(epoch[column]):.4f}" for epoch in tables[0]]
            row[f"{column}_by_epoch"] = " ".join(values)
        row["seconds_by_epoch"] = " ".join(epoch["seconds"] for epoch in tables[0])
    return row


def seconds_of(rows: list[dict], has_epochs: bool) -> float:
    """Of all epochs as of the quickest: what else ran on the machine is left out."""
    seconds = [float(row["seconds"]) for row in rows]
    return len(seconds) * min(seconds) if has_epochs else sum(seconds)


# ---- what the best model of a run says -----------------------------------------------------------


def of_model(run: Run, folder: Path) -> dict:
    model, test = open_tested(folder)
    found = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
    if reads_scans(model):
        found |= without_order(model, test)
    elif "--mirror-swap" in run.flags:
        found |= with_mirror_image(model, test)
    if run.experiment == "depth":
        found |= after_each_read(model, test)
    if run.experiment == "real-knee":
        found |= of_real_knee(folder)
    return found


def of_real_knee(folder: Path) -> dict:
    """How many slices of a right knee in MRI are called right, and the mean probability of it."""
    model, output = folder / "best.pt", folder / "real-knee"
    words = [str(model), str(real_knee()), "--output", str(output)]
    call([sys.executable, "predict.py", *words], log=output.with_suffix(".txt"))
    rows = rows_of(output / "predictions.csv")
    right = sum(row["label"] == "right" for row in rows)
    (scan,) = rows_of(output / "scans.csv")
    return {"knee_slices": len(rows), "knee_right": right, "knee_p_right": scan["p_right"]}


def real_knee() -> Path:
    """Where benchmarks/fetch_knee.py has put it, if it is there."""
    return Path(os.environ.get("PERCEIVER_MSKT", ""), "data", "MESE_T2_dicom_data").absolute()


# ---- program -------------------------------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="evidence.py", description="Named experiments of runs of train.py.")
    add = parser.add_argument
    add(
        "experiments", nargs="*", metavar="NAME", help=f"of {', '.join(EXPERIMENTS)} (default: all)"
    )
    seeds = "of the runs (default: 0 1 2)"
    add("--seeds", type=whole_number, nargs="+", default=[0, 1, 2], metavar="N", help=seeds)
    add("--jobs", type=positive_int, default=1, metavar="N", help="runs at a time")
    add("--folder", type=Path, default=Path("runs/evidence"), help="for run folders and data")
    add("--results", type=Path, default=RESULTS, metavar="DIR", help="for tables of results")
    add("--quick", action="store_true", help="a few small scans: shows that it runs, no more")
    add("--write-docs", action="store_true", help="write the pages from the tables, and stop")
    args = parser.parse_args(argv)
    for name in args.experiments:
        if name not in EXPERIMENTS:
            parser.error(f"{name}: no experiment; there are {', '.join(EXPERIMENTS)}")
    if args.quick and RESULTS in (args.results.resolve(), *args.results.resolve().parents):
        parser.error("--quick: name other --results, such as runs/quick: it gives no evidence")
    return args


def what_lacks(name: str) -> str | None:
    """What to do first, where what an experiment is made of is not on this machine."""
    if name == "real-knee" and not real_knee().is_dir():
        return "`python benchmarks/fetch_knee.py` says what it takes"
    if EXPERIMENTS[name].data.command[0].endswith("garments.py") and not SOURCE.is_dir():
        return "install the Debian package dataset-fashion-mnist"
    return None


def make_runs(name: str, runs: list[Run], args: argparse.Namespace) -> None:
    """Make runs of an experiment, each a row of its table.

    After one that failed no other begins; those that run are let end. Raises RunFailed then.
    """
    path, folder = args.results / f"{name}.csv", args.folder.absolute()
    if not runs:
        return
    data = make_data(folder, EXPERIMENTS[name].data, args.quick)
    threads = max(1, os.cpu_count() // args.jobs) if args.jobs > 1 else None
    folder, failed = folder / name, None
    with signals.orderly(), ThreadPoolExecutor(args.jobs) as pool:
        waiting = {pool.submit(train, run, data, folder / run.folder, threads): run for run in runs}
        for future in waiting:  # called before its thread begins another
            future.add_done_callback(partial(cancel_after_failure, waiting=list(waiting)))
        try:
            for done in as_completed(waiting):
                signals.check()
                if done.cancelled():
                    continue
                if error := done.exception():
                    failed = failed or error
                    continue
                run = waiting[done]
                add_row(path, run, row_of(run, folder / run.folder))
                print(f"{name}: {run.variant}, seed {run.seed}", flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if failed:
        raise failed


def cancel_after_failure(done: Future, waiting: list[Future]) -> None:
    if not done.cancelled() and done.exception():
        for future in waiting:
            future.cancel()


def check_pixels(tables: dict[str, list[dict]]) -> None:
    """Raise UserError if rows of the same data, read in the same way, are of other pixels."""
    found = {}
    for name, rows in tables.items():
        for row in rows:
            if not row.get("crc32"):  # an older one
                continue
            sizes = re.findall(r"--image-size (\d+ \d+)", row["flags"])
            read = row["data"], *sizes[-1:], "--input scan" in row["flags"]
            if found.setdefault(read, row["crc32"]) != row["crc32"]:
                which = f"{row['variant']}, seed {row['seed']}"
                raise UserError(
                    f"{name}.csv: the pixels of {which} are not those of other runs; remove the "
                    "older rows, their run folders and their data, and make them again"
                )


def write_docs(folder: Path) -> None:
    """Raises UserError if there is no table."""
    first, again = (
        {name: current_results(name, each) for name in EXPERIMENTS}
        for each in (folder, folder / "again")
    )
    check_pixels(first)
    if not any(first.values()):
        raise UserError(f"{folder}: no tables of these experiments; name others with --results")
    write_pages(first, again)


def run(args: argparse.Namespace) -> int:
    if args.write_docs:
        write_docs(args.results)
        return 0
    args.results.mkdir(parents=True, exist_ok=True)
    signals.set_hint("the same command goes on")
    left_out = []
    for name in args.experiments or EXPERIMENTS:
        rows = results_of(args.results / f"{name}.csv")
        runs = [run for run in runs_of(name, args.seeds, args.quick) if not run.is_in(rows)]
        if runs and (lacking := what_lacks(name)):
            print(f"{name}: left out; {lacking}")
            left_out.append(name)
            continue
        make_runs(name, runs, args)
        print(table(name, current_results(name, args.results, args.quick)))
        if args.quick:
            print("--quick: shows that it runs, with other flags than the text says; no evidence")
        elif not runs:
            print(f"{args.results / name}.csv has all of it: name other --results to make it again")
    return 1 if args.experiments and left_out else 0


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with signals.listening("evidence.py"):
        return run_program(run, args, "evidence.py")


if __name__ == "__main__":
    sys.exit(main())
