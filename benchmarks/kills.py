"""Kill training at random moments, again and again, and see whether it ends as if nothing happened.

    python benchmarks/kills.py                    # 51 SIGKILLs over 3 runs; about 5 minutes

Each run is killed and resumed until its share of kills is used up, then finished. It must end with
the very weights, optimizer state and test figures of a run that nothing interrupted, and at no
moment may a file be unreadable. Exit codes: 0 so it was, 1 it was not.
"""

import argparse
import csv
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # to run as `python benchmarks/kills.py`

from perceiver import Perceiver  # noqa: E402
from scans import phantom  # noqa: E402

FLAGS = (
    "--image-size 16 16 --num-latents 8 --latent-dim 16 --depth 2 --latent-heads 2 --device cpu "
    "--latent-dim-head 8 --epochs 60 --ff-dropout 0.1 --augment --mirror-swap --save-every-steps 1"
).split()


def differences(run: Path, whole: Path) -> list[str]:
    """What of a run is not as in the uninterrupted one, bit for bit."""
    found = []
    for name in ("last.pt", "best.pt"):
        a, b = (torch.load(folder / name, weights_only=True) for folder in (run, whole))
        found += [
            f"{name}: {key}" for key in a["model"] if not a["model"][key].equal(b["model"][key])
        ]
        for i, state in a["optimizer"]["state"].items():
            other = b["optimizer"]["state"][i]
            found += [f"{name}: optimizer {i} {k}" for k in state if not state[k].equal(other[k])]
    tables = []
    for folder in (run, whole):
        with open(folder / "metrics.csv", newline="") as file:
            tables.append([{**row, "seconds": ""} for row in csv.DictReader(file)])
    found += ["metrics.csv"] * (tables[0] != tables[1])
    for name in ("test_metrics.json", "test_predictions.csv", "split.csv"):
        if (run / name).read_bytes() != (whole / name).read_bytes():
            found.append(name)
    return found


def kill_and_resume(start: list, run: Path, kills: int, moments: random.Random) -> int:
    """Returns how many of the kills came while a file was being written.

    Every third comes at any time after the start, the others soon after the run has saved, so that
    it comes further.
    """
    last, command, within_write = run / "last.pt", start, 0
    for kill in range(kills):
        before = last.stat().st_mtime_ns if last.exists() else 0
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while kill % 3 and process.poll() is None:
            if last.exists() and last.stat().st_mtime_ns != before:
                break
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.3 if kill % 3 else 5))
        assert process.poll() is None, "it ended before it was killed"
        process.kill()
        process.wait()
        within_write += any(run.glob(".*"))
        for path in filter(Path.exists, (last, run / "best.pt")):
            Perceiver.from_checkpoint(path)  # raises if it is not whole
        if last.exists():
            command = [sys.executable, ROOT / "train.py", "--resume", run]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return within_write


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--kills", type=int, default=17, help="of each run (default: %(default)s)")
    args = parser.parse_args()
    moments, within_write, wrong = random.Random(0), 0, []
    with tempfile.TemporaryDirectory() as scratch:
        phantom.write_phantoms(Path(scratch, "knees"), patients=3)
        start = [sys.executable, ROOT / "train.py", "--data-dir", Path(scratch, "knees"), *FLAGS]
        for seed in range(args.runs):
            runs = [Path(scratch, f"{name}-{seed}") for name in ("whole", "killed")]
            commands = [[*start, "--seed", str(seed), "--output-dir", run] for run in runs]
            subprocess.run(commands[0], stdout=subprocess.DEVNULL, check=True)
            within_write += kill_and_resume(commands[1], runs[1], args.kills, moments)
            wrong += differences(runs[1], runs[0])
    print(
        f"{args.runs * args.kills} SIGKILLs over {args.runs} runs, {within_write} of them while a "
        f"file was being written: {len(wrong)} differences from the uninterrupted runs, "
        "no unreadable file"
    )
    for difference in wrong:
        print(f"  {difference}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
