"""Kill the programs at random moments, again and again, and see whether they end as if nothing was.

    python benchmarks/kills.py                    # 100 kills; about 15 minutes on two cores
    python benchmarks/kills.py --kills 10

Training is killed and resumed; what can't be resumed is killed and started again: the cache's first
fill by train.py, dataset.py, its --write-slices, predict.py --output. Most kills are SIGKILL, some
are Ctrl-C or SIGTERM. After each of them every file must be whole that has its name, after the
gentle ones nothing half written may be left, rows that are kept of predictions so far must be the
first ones, and in the end all must be as a run that nothing interrupted leaves it: weights and
optimizer bit for bit, tables but for the seconds.

Exit codes: 0 so it was, 1 it was not.
"""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # to run as `python benchmarks/kills.py`
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the model is too small for more

from common.program import Parser, positive_int  # noqa: E402
from perceiver import Perceiver  # noqa: E402
from scans import phantom  # noqa: E402

MODEL = (
    "--image-size 16 16 --num-latents 8 --latent-dim 16 --depth 2 --latent-heads 2 --device cpu "
    "--latent-dim-head 8"
).split()
TRAIN = "--epochs 60 --ff-dropout 0.1 --augment --mirror-swap --save-every-steps 1".split()
FOLDS = "--epochs 8 --folds 3 --augment --save-every-steps 1".split()
SIGNALS = [signal.SIGKILL] * 4 + [signal.SIGINT, signal.SIGTERM]
PATIENCE = 120.0  # seconds after a gentle signal


class Job(NamedTuple):
    """What is killed. It is started in a folder of its own."""

    name: str
    command: list[str]
    share: float  # of the kills
    resumed: list[str] | None = None  # the command, once there is something to be resumed


class Killed(NamedTuple):
    """What the kills of a job came to."""

    signals: Counter
    within_write: int  # how many left something half written, under a hidden name
    partial: int  # after how many there were tables of the rows so far
    wrong: list[str]


def jobs_in(scratch: Path) -> list[Job]:
    """Makes the data and a checkpoint for them."""
    phantom.write_phantoms(scratch / "knees", patients=3)
    phantom.write_phantoms(scratch / "many", patients=15)  # predicted in several parts
    (scratch / "volumes").mkdir()
    for number, side in enumerate(("left", "right") * 3):
        scan = phantom.Scan(number, number // 2, side, f"p{number // 2}_{side}")
        np.save(scratch / f"volumes/{scan.stem}.npy", phantom.render_scan(scan, seed=0))
    knees, volumes = f"{scratch}/knees", f"{scratch}/volumes"
    train = ["train.py", "--data-dir", knees, *MODEL, "--cache-dir", "cache", "--output-dir", "run"]
    subprocess.run([*as_command(train), "--epochs", "1"], cwd=scratch, check=True, stdout=QUIET)
    fill = ["--image-size", "152", "172", "--dry-run"]
    sheet = ["--cache-dir", "cache", "--contact-sheet", "sheet.png"]
    predict = ["predict.py", f"{scratch}/run/best.pt", f"{scratch}/many", "--output", "predictions"]
    return [
        Job("train.py", [*train, *TRAIN], 0.3, ["train.py", "--resume", "run"]),
        Job("train.py --folds", [*train, *FOLDS], 0.1, ["train.py", "--resume", "run"]),
        Job("train.py, cache's first fill", [*train, *fill], 0.15),
        Job("dataset.py", ["dataset.py", volumes, *sheet], 0.15),
        Job("dataset.py --write-slices", ["dataset.py", knees, "--write-slices", "slices"], 0.15),
        Job("predict.py --output", predict, 0.15),
    ]


QUIET = subprocess.DEVNULL
BEGUN = ("last.pt", "folds.csv")  # with one of these a run can be resumed
PARTIAL = ".partial.csv"  # what predict.py calls the rows so far of a table


def as_command(words: list[str]) -> list[str]:
    return [sys.executable, str(ROOT / words[0]), *words[1:]]


# ---- kills ---------------------------------------------------------------------------------------


def kill_job(
    job: Job, folder: Path, whole: Path, kills: int, work: float, moments: random.Random
) -> Killed:
    """Kill it so often, and then let it end; `work` is for how many seconds it writes.

    whole: the folder of a run without a kill, see `run_whole`.

    A third of the kills come at any time after the start, the others after it has begun to write:
    soon after, if it is to be resumed, so that it does not end before its last kill.
    """
    result = Killed(Counter(), 0, 0, [])
    within_write, partial, command = 0, 0, job.command
    while result.signals.total() < kills:
        number = moments.choice(SIGNALS)
        process = subprocess.Popen(as_command(command), cwd=folder, stdout=QUIET, stderr=QUIET)
        if moments.random() < 0.67:
            wait_for_change(folder, process)
            time.sleep(moments.uniform(0, min(work, 0.5) if job.resumed else work))
        else:
            time.sleep(moments.uniform(0, 5))
        process.send_signal(number)
        try:
            code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            result.wrong.append(f"{signal.strsignal(number)}: it went on")
            code = process.wait()
        if code == 0:  # it had ended before, or did so in spite of it
            shutil.rmtree(folder)
            folder.mkdir()
            command = job.command
            continue
        result.signals[number] += 1
        if code not in (-number, 128 + number):
            result.wrong.append(f"{signal.strsignal(number)}: exit code {code}")
        left = [path.name for path in folder.rglob(".*")]
        within_write += bool(left)
        if left and number != signal.SIGKILL and code == 128 + number:
            ours = [name for name in left if f".{process.pid}-" in name]
            result.wrong.extend(f"{signal.strsignal(number)}: left {name}" for name in ours)
        partial += any(path.name.endswith(PARTIAL) for path in visible(folder))
        result.wrong.extend(unreadable(folder, whole))
        if job.resumed and any((folder / "run" / name).exists() for name in BEGUN):
            command = job.resumed
    subprocess.run(as_command(command), cwd=folder, stdout=QUIET, check=True)
    return result._replace(within_write=within_write, partial=partial)


def state_of(folder: Path) -> list[tuple]:
    """What changes as something is written there."""
    found = []
    for top, _, names in os.walk(folder):
        for name in names:
            try:
                status = os.stat(os.path.join(top, name))
            except OSError:  # just renamed
                continue
            found.append((name, status.st_mtime_ns, status.st_size))
    return sorted(found)


def wait_for_change(folder: Path, process: subprocess.Popen) -> None:
    before = state_of(folder)
    while process.poll() is None and state_of(folder) == before:
        time.sleep(0.001)


def run_whole(job: Job, folder: Path) -> float:
    """Run it without a kill. Returns for how many seconds it was writing."""
    process = subprocess.Popen(as_command(job.command), cwd=folder, stdout=QUIET)
    wait_for_change(folder, process)
    begun = time.monotonic()
    if process.wait():
        raise SystemExit(f"{job.name} failed without a kill")
    return time.monotonic() - begun


# ---- what they leave -----------------------------------------------------------------------------


def visible(folder: Path) -> list[Path]:
    """All files but those that are unfinished, which have hidden names."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [path for path in paths if not any(x.startswith(".") for x in path.parts)]


def unreadable(folder: Path, whole: Path) -> list[str]:
    """Files that are not whole, and why; and rows so far that are not the first ones."""
    found = []
    for path in visible(folder):
        try:
            check_whole(path)
            if path.name.endswith(PARTIAL):
                name = path.name.replace(PARTIAL, ".csv")
                check_first_rows(path, whole / path.relative_to(folder).with_name(name))
        except Exception as error:  # whatever a library says of half a file
            found.append(f"{path.relative_to(folder)}: {type(error).__name__}: {error}")
    return found


def check_whole(path: Path) -> None:
    """Raises an error of any type if a file can't be read to its end."""
    if path.suffix == ".pt":
        Perceiver.from_checkpoint(path)
    elif path.suffix == ".npy":
        np.load(path).sum()
    elif path.suffix == ".json":
        json.loads(path.read_bytes())
    elif path.suffix == ".html":
        if not path.read_text().rstrip().endswith("</html>"):
            raise ValueError("its end is cut")
    elif path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
    elif path.suffix == ".csv":
        content = path.read_text()
        rows = list(csv.reader(content.splitlines(), strict=True))
        if not content.endswith("\n") or len(set(map(len, rows))) != 1:
            raise ValueError("its last row is cut")


def check_first_rows(partial: Path, complete: Path) -> None:
    """Raises ValueError unless a table holds the first rows of another one, and at least one."""
    first, rows = (path.read_text().splitlines() for path in (partial, complete))
    if len(first) < 2 or first != rows[: len(first)]:
        raise ValueError(f"its {len(first) - 1} rows are not the first ones of the whole table")


def differences(folder: Path, whole: Path) -> list[str]:
    """What is not as in the folder that nothing was interrupted in."""
    names, expected = ({str(p.relative_to(f)) for p in visible(f)} for f in (folder, whole))
    found = [f"{name} is in one alone" for name in sorted(names ^ expected)]
    for name in sorted(names & expected):
        if not same_content(folder / name, whole / name):
            found.append(f"{name} differs")
    return found


def same_content(one: Path, other: Path) -> bool:
    """Bit for bit, but for times: args.json, the seconds of metrics.csv."""
    if one.suffix == ".pt":
        a, b = (torch.load(path, weights_only=True) for path in (one, other))
        same = all(tensor.equal(b["model"][name]) for name, tensor in a["model"].items())
        for i, state in a["optimizer"]["state"].items():
            same &= all(t.equal(b["optimizer"]["state"][i][name]) for name, t in state.items())
        return same and a["calibration"] == b["calibration"]
    if one.name == "metrics.csv":
        tables = [csv.DictReader(path.read_text().splitlines()) for path in (one, other)]
        return [{**r, "seconds": ""} for r in tables[0]] == [
            {**r, "seconds": ""} for r in tables[1]
        ]
    return one.name == "args.json" or one.read_bytes() == other.read_bytes()


# ---- program -------------------------------------------------------------------------------------


def main() -> int:
    parser = Parser(prog="kills.py", description="Kill the programs at random moments.")
    parser.add_argument("--kills", type=positive_int, default=100, metavar="N", help="in all")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the moments")
    args = parser.parse_args()
    moments, wrong = random.Random(args.seed), []
    print(
        "| what is killed | kills | SIGINT, SIGTERM | while writing | rows so far are kept | "
        "unreadable or different |"
    )
    print("| --- | --: | --: | --: | --: | --: |")
    with tempfile.TemporaryDirectory() as scratch:
        for number, job in enumerate(jobs_in(Path(scratch).resolve())):
            whole, killed = (Path(scratch, f"{number}-{name}") for name in ("whole", "killed"))
            whole.mkdir(), killed.mkdir()
            work = run_whole(job, whole)
            kills = max(1, round(job.share * args.kills))
            result = kill_job(job, killed, whole, kills, work, moments)
            found = [*result.wrong, *differences(killed, whole)]
            gentle = result.signals.total() - result.signals[signal.SIGKILL]
            counts = kills, gentle, result.within_write, result.partial, len(found)
            print(f"| {job.name} |", " | ".join(map(str, counts)), "|", flush=True)
            wrong += [f"{job.name}: {line}" for line in found]
    print(f"{len(wrong)} faults", *wrong, sep="\n  ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
