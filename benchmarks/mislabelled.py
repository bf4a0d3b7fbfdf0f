"""Swap the side in the names of 5 % of the scans of an archive, and see what --audit finds.

    python train.py --demo
    python benchmarks/mislabelled.py runs/<time>/best.pt            # about 3 minutes on two cores

The archive is drawn by scans/phantom.py with another seed: patients that the model never saw.
Prints how many swapped scans are called `mismatch`, how many others are, and how many scans are
`unsure`.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # to run as `python benchmarks/mislabelled.py`

from scans import phantom  # noqa: E402
from scans.identity.names import AKOA_NAME  # noqa: E402
from scans.labelled import list_labelled  # noqa: E402
from scans.slices import by_scan  # noqa: E402

OTHER = {"left": "RIGHT", "right": "LEFT"}


def swap_sides(folder: Path, share: float, seed: int) -> set[str]:
    """Rename the files of a share of the scans to the other side. Returns their new names."""
    scans = by_scan(list_labelled(folder).slices)
    count = round(share * len(scans))
    swapped = set()
    for scan in np.random.default_rng(seed).choice(sorted(scans), count, replace=False).tolist():
        match = AKOA_NAME.fullmatch(f"{scan}_0")
        start, end = match.span("side")
        name = scan[:start] + OTHER[scans[scan][0].label] + scan[end:]
        for s in scans[scan]:
            Path(s.source).rename(Path(s.source).with_name(f"{name}_{s.number}.png"))
        swapped.add(name)
    return swapped


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--patients", type=int, default=101, help="(default: %(default)s)")
    parser.add_argument("--share", type=float, default=0.05, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the archive (default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "archive")
        phantom.write_phantoms(folder, patients=args.patients, seed=args.seed)
        swapped = swap_sides(folder, args.share, args.seed)
        command = [sys.executable, ROOT / "predict.py", args.checkpoint, folder, "-o", scratch]
        audit = subprocess.run([*command, "--audit"], stdout=subprocess.PIPE, text=True)
        print(audit.stdout.splitlines()[-1], f"(exit {audit.returncode})")
        with Path(scratch, "scans.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    called = {row["scan"] for row in rows if row["verdict"] == "mismatch"}
    unsure = {row["scan"] for row in rows if row["verdict"] == "unsure"}
    others = len(rows) - len(swapped)
    print(
        json.dumps(
            {
                "scans": len(rows),
                "swapped": len(swapped),
                "found": len(called & swapped),
                "swapped_but_unsure": len(unsure & swapped),
                "false_alarms": len(called - swapped),
                "false_alarm_rate": round(len(called - swapped) / others, 4),
                "unsure": len(unsure),
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
