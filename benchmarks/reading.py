"""How long it takes from the start of a program until all slices are read, checked and split.

    python benchmarks/reading.py                       # draws AKOA's 18,680 files first: 3 minutes
    python benchmarks/reading.py --patients 3          # fewer of them
    python benchmarks/reading.py --data-dir AKOA_Analysis --image-size 76 86

Each start is a process of its own: the first decodes into an empty cache folder, the others open
what it kept. (The files themselves may be in the system's memory already.)
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

START = """
import json, resource, sys, time
started = time.perf_counter()
import train
imported = time.perf_counter()
args = train.parse_args(sys.argv[1:])
subsets = train.read_subsets(args, args.classes)
seconds = time.perf_counter() - started
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
print(json.dumps([seconds, imported - started, memory, len(subsets["train"].slices)]))
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, help="default: phantoms, as many as AKOA's")
    parser.add_argument("--patients", default="101", metavar="N", help="of the phantoms")
    parser.add_argument("--image-size", nargs=2, default=("76", "86"), metavar=("H", "W"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.data_dir or Path(scratch, "phantoms")
        if args.data_dir is None:
            command = [sys.executable, "-m", "scans.phantom", folder, "--patients", args.patients]
            subprocess.run(command, cwd=ROOT, check=True)
        arguments = ["--data-dir", folder.resolve(), "--cache-dir", Path(scratch, "cache")]
        command = [sys.executable, "-c", START, *arguments, "--image-size", *args.image_size]
        for start in ("first start", "second start", "third start"):
            done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
            seconds, importing, memory, count = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{start}: {count:,} slices in {seconds:.1f} s, {importing:.1f} s of it to import "
                f"PyTorch; {memory:.2f} GB; {os.cpu_count()} cores"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
