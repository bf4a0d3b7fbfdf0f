"""What the package can do: named experiments, each a set of ordinary runs of train.py.

    python benchmarks/evidence.py                      # all of them; goes on where it was stopped
    python benchmarks/evidence.py order --seeds 0 1 2
    python benchmarks/evidence.py classes --jobs 2     # two runs at a time, each on half the cores
    python benchmarks/evidence.py --quick --results R  # the same on a few scans, in minutes
    python benchmarks/evidence.py --results benchmarks/results/again --folder runs/again bags
    python benchmarks/evidence.py --write-docs         # all that was measured, into the pages

Each run is a run folder below --folder, and a row of benchmarks/results/<experiment>.csv: settings,
seed, what the test said, seconds, versions, processor. A run whose row is there is not made again;
one that was killed goes on. Checkpoint and calibration of a run are chosen on validation.
What photographs are made of: see benchmarks/garments.py.

Exit codes: 0 done, 1 a run failed, 2 bad arguments.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # to run as `python benchmarks/evidence.py`

import torch  # noqa: E402

from benchmarks.evidence_pages import table, write_pages  # noqa: E402
from benchmarks.experiments import EXPERIMENTS, Data  # noqa: E402
from benchmarks.speed import processor  # noqa: E402
from common.csv_tables import read_csv, write_csv  # noqa: E402
from common.program import (  # noqa: E402
    Parser,
    UserError,
    positive_int,
    run_program,
    whole_number,
)
from dataset import Dataset, list_labelled, load_dataset, split  # noqa: E402
from perceiver import Perceiver  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"

QUICK = "--epochs 1 --image-size 8 8 --num-latents 4 --latent-dim 16 --depth 1 --no-mirror-swap"
QUICK = [*QUICK.split(), "--warmup-epochs", "0"]
LAST_LINES = 20  # of the output of a run that failed


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
        return f"{re.sub(r'[^a-z0-9.]+', '-', self.variant.lower())}-{self.seed}-{digest:08x}"

    @property
    def reads_scans(self) -> bool:
        return "scan" in self.flags and self.flags[self.flags.index("scan") - 1] == "--input"

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


def call(
    command: list[str],
    fine: tuple[int, ...] = (0,),
    log: Path | None = None,
    threads: int | None = None,
) -> None:
    """Raises RunFailed if it fails: the command has said why, in `log` if there is one."""
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    if log is None:
        code = subprocess.run(command, cwd=ROOT, env=environment).returncode
    else:
        with log.open("w") as output:
            code = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
            ).returncode
    if code not in fine:
        said = log.read_text().splitlines()[-LAST_LINES:] if log else []
        raise RunFailed(*said, f"{' '.join(command[1:])}: exit code {code}")


def train(run: Run, data: Path, folder: Path, threads: int | None) -> dict:
    """Make a run, or go on with it. Returns its row."""
    folder = folder / run.experiment / run.folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_suffix(".txt")
    is_reference = not run.flags[0].startswith("-")
    script = "benchmarks/references.py" if is_reference else "train.py"
    program = [sys.executable, str(ROOT / script)]
    if (folder / "last.pt").exists() or (folder / "folds.csv").exists():
        call([*program, "--resume", str(folder)], log=log, threads=threads)
    elif not (is_reference and (folder / "test_metrics.json").exists()):
        more = [*placed(EXPERIMENTS[run.experiment].data.flags, data), "--seed", str(run.seed)]
        words = [*run.flags, *more, "--output-dir", str(folder)]
        call([*program, *words], log=log, threads=threads)
    return row_of(run, folder)


def row_of(run: Run, folder: Path) -> dict:
    """What a run that is done has measured."""
    about = json.loads((folder / "args.json").read_text())
    name = "cross_validation.json" if "--folds" in run.flags else "test_metrics.json"
    tested = json.loads((folder / name).read_text())
    tables = [rows_of(path) for path in sorted([*folder.glob("**/metrics.csv")])]
    row = {
        "variant": run.variant,
        "seed": run.seed,
        "flags": " ".join(run.flags),
        "epochs": sum(map(len, tables)),
        # Of the quickest epoch: what else ran on the machine is left out.
        "seconds": round(sum(len(rows) * min(map(seconds_of, rows)) for rows in tables)),
        "patients": tested["patients"],
    }
    if len(tables) == 1:
        epochs = tables[0]
        best = min(epochs, key=lambda epoch: float(epoch["val_loss"]))
        row |= {"best_epoch": best["epoch"], "val_loss": best["val_loss"]}
        for column in ("train_loss", "val_loss", "val_accuracy"):  # C is chosen, no epoch
            if column in epochs[0]:
                values = [f"{float(epoch[column]):.4f}" for epoch in epochs]
                row[f"{column}_by_epoch"] = " ".join(values)
    for unit in ("slices", "scans"):
        found = tested.get(unit)
        row[unit] = found["count"] if found else ""
        row[f"{unit}_right"] = found["correct"] if found else ""
    scans = tested["scans"]
    for name in ("negative_log_likelihood", "expected_calibration_error"):
        row[name] = scans[name]["value"]
    row["parameters"] = tested.get("parameters", "")
    if (folder / "best.pt").exists():
        row |= of_model(run, folder)
    return row | {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "torch": about["versions"]["torch"],
        "threads": about["threads"],
        "processor": processor(),
    }


def seconds_of(epoch: dict) -> float:
    return float(epoch["seconds"])


# ---- what the best model of a run says of the test -----------------------------------------------


def of_model(run: Run, folder: Path) -> dict:
    model, test = open_tested(folder)
    found = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
    if run.reads_scans:
        found |= without_order(model, test)
    elif "--mirror-swap" in run.flags:
        found |= with_mirror_image(model, test)
    if run.experiment == "depth":
        found |= after_each_read(model, test)
    if run.experiment == "real-knee":
        found |= of_real_knee(folder)
    return found


def open_tested(folder: Path) -> tuple[Perceiver, Dataset]:
    """The best model of a run, and what it was tested on."""
    model = Perceiver.from_checkpoint(folder / "best.pt")
    arguments = json.loads((folder / "args.json").read_text())["arguments"]
    length = model.preprocessing["slices"] if arguments["input"] == "scan" else None
    listing = list_labelled(Path(arguments["data_dir"]), arguments["classes"])
    size = model.preprocessing["image_size"]
    dataset = load_dataset(listing, size, ROOT / "cache", scan_length=length)
    return model, split(dataset, split_file=folder / "split.csv")["test"]


def without_order(model: Perceiver, test: Dataset) -> dict:
    """How many tested scans are right with their slices in reverse order, and shuffled."""
    length = model.preprocessing["slices"]
    scans, generator = test.batch(torch.arange(len(test))), torch.Generator().manual_seed(0)
    orders = [torch.randperm(length, generator=generator) for _ in range(len(test))]
    shuffled = torch.stack([scan[:, order] for scan, order in zip(scans, orders, strict=True)])

    def right(pixels: torch.Tensor) -> int:
        return int((model.predict_logits(pixels).argmax(dim=1) == test.labels).sum())

    return {"reversed_right": right(scans.flip(2)), "shuffled_right": right(shuffled)}


def with_mirror_image(model: Perceiver, test: Dataset) -> dict:
    """How many are right by the logits of an image less those of its mirror image."""
    images = test.batch(torch.arange(len(test)))
    logits = model.predict_logits(images) - model.predict_logits(images.flip(3))
    return {"mirrored_right": int((logits.argmax(dim=1) == test.labels).sum())}


def after_each_read(model: Perceiver, test: Dataset) -> dict:
    """How many the head gets right from the latents after each iteration."""
    right = [0] * model.config["depth"]
    with torch.inference_mode():
        for part in torch.arange(len(test)).split(64):
            x, tokens = model.latents[None], model.tokens(model.normalise(test.batch(part)))
            for iteration in range(model.config["depth"]):
                x = model.block(iteration)(x, tokens)
                found = model.head(model.norm(x.mean(dim=1))).argmax(dim=1)
                right[iteration] += int((found == test.labels[part]).sum())
    return {f"right_after_{number}": count for number, count in enumerate(right, start=1)}


def of_real_knee(folder: Path) -> dict:
    """How many slices of a right knee in MRI are called right, and the mean probability of it."""
    series = Path(os.environ["PERCEIVER_MSKT"]) / "data" / "MESE_T2_dicom_data"
    model, output = folder / "best.pt", folder / "real-knee"
    words = [str(model), str(series.absolute()), "--output", str(output)]
    call([sys.executable, "predict.py", *words], log=output.with_suffix(".txt"))
    rows = rows_of(output / "predictions.csv")
    right = sum(row["label"] == "right" for row in rows)
    (scan,) = rows_of(output / "scans.csv")
    return {"knee_slices": len(rows), "knee_right": right, "knee_p_right": scan["p_right"]}


# ---- program -------------------------------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="evidence.py", description="Named experiments of runs of train.py.")
    add = parser.add_argument
    add("experiments", nargs="*", metavar="NAME", help=f"of {', '.join(EXPERIMENTS)}; or all")
    add("--seeds", type=whole_number, nargs="+", default=[0, 1, 2], metavar="N")
    add("--jobs", type=positive_int, default=1, metavar="N", help="runs at a time")
    add("--folder", type=Path, default=Path("runs/evidence"), help="for run folders and data")
    add("--results", type=Path, default=RESULTS, metavar="DIR", help="for tables of results")
    add("--quick", action="store_true", help="a few small scans: shows that it runs, no more")
    add("--write-docs", action="store_true", help="write the pages from the tables, and stop")
    args = parser.parse_args(argv)
    for name in args.experiments:
        if name not in EXPERIMENTS:
            parser.error(f"{name}: no experiment; there are {', '.join(EXPERIMENTS)}")
    if args.quick and args.results == RESULTS:
        parser.error("--quick: name other --results: these would be no evidence")
    return args


def make_runs(name: str, args: argparse.Namespace) -> None:
    """Make the runs of an experiment that its table has no row of."""
    path, folder = args.results / f"{name}.csv", args.folder.absolute()
    runs = [run for run in runs_of(name, args.seeds, args.quick) if not run.is_in(rows_of(path))]
    if not runs:
        return
    data = make_data(folder, EXPERIMENTS[name].data, args.quick)
    threads = max(1, os.cpu_count() // args.jobs) if args.jobs > 1 else None
    with ThreadPoolExecutor(args.jobs) as pool:
        waiting = [pool.submit(train, run, data, folder, threads) for run in runs]
        try:
            for done in as_completed(waiting):
                rows = [*rows_of(path), done.result()]
                columns = list(dict.fromkeys(key for row in rows for key in row))
                write_csv(path, rows, columns)
                print(f"{name}: {rows[-1]['variant']}, seed {rows[-1]['seed']}", flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # those that run are let end
            raise


def run(args: argparse.Namespace) -> int:
    if args.write_docs:
        first, again = (
            {name: rows_of(folder / f"{name}.csv") for name in EXPERIMENTS}
            for folder in (args.results, args.results / "again")
        )
        write_pages(first, again)
        return 0
    args.results.mkdir(parents=True, exist_ok=True)
    for name in args.experiments or EXPERIMENTS:
        if name == "real-knee" and "PERCEIVER_MSKT" not in os.environ:
            print("real-knee: left out; `python benchmarks/fetch_knee.py` says what it takes")
            continue
        make_runs(name, args)
        print(table(name, rows_of(args.results / f"{name}.csv")))
    return 0


def main(argv: list[str] | None = None) -> int:
    return run_program(run, parse_args(argv), "evidence.py")


if __name__ == "__main__":
    sys.exit(main())
