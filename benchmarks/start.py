"""How long train.py takes to its first step: slices read, checked and split, and a model made.

    python benchmarks/start.py                         # draws AKOA's 18,680 files first: 3 minutes
    python benchmarks/start.py --patients 3            # fewer of them
    python benchmarks/start.py --data-dir AKOA_Analysis --image-size 76 86

Each start is a process, from its beginning to its end. The first decodes into an empty cache
folder, the others open what it kept, in turns with a process that imports PyTorch and does nothing.
They end where train.py makes its optimizer: the first one in a process makes PyTorch import its
compiler. (The files themselves may be in the system's memory already.)
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

IMPORT = [sys.executable, "-c", "import torch"]
START = """
import runpy, sys, torch
torch.optim.Adam = lambda *_, **more: sys.exit()
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""


def seconds_of(command: list) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, help="default: phantoms, as many as AKOA's")
    parser.add_argument("--patients", default="101", metavar="N", help="of the phantoms")
    parser.add_argument("--image-size", nargs=2, default=("76", "86"), metavar=("H", "W"))
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="of second starts")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.data_dir or Path(scratch, "phantoms")
        if args.data_dir is None:
            command = [sys.executable, "-m", "scans.phantom", folder, "--patients", args.patients]
            subprocess.run(command, cwd=ROOT, check=True)
        command = [sys.executable, "-c", START, "--data-dir", folder.resolve(), "--image-size"]
        command += [*args.image_size, "--cache-dir", Path(scratch, "cache"), "--depth", "1"]
        command += ["--output-dir", Path(scratch, "run"), "--device", "cpu"]
        print(f"first start: {seconds_of(command):.1f} s; {os.cpu_count()} cores")
        turns = [(seconds_of(IMPORT), seconds_of(command)) for _ in range(args.rounds)]
        importing, starting = map(statistics.median, zip(*turns, strict=True))
        print(
            f"second start: {starting:.2f} s, {starting - importing:.2f} s more than "
            f"`import torch`, {importing:.2f} s (medians of {args.rounds})"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
