"""How much a leak flatters: the same tested scans, of patients that were trained on, and not.

    python benchmarks/known_patients.py knees               # synthetic knees of 101 patients
    python train.py --data-dir knees --split-file knees/unknown-0.csv
    python train.py --data-dir knees --split-file knees/known-0.csv --split scan

For each seed patients are put into five folds: one is tested, one chooses the epoch, and two are
trained on. Of each knee of several scans in the tested fold, every other scan is tested, and
`known` trains on the rest, beside the two folds; `unknown` on as large a part of the fifth fold.

Exit codes: 0 done, 2 bad arguments, or a folder that is not empty.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # to run as `python benchmarks/known_patients.py`

from common.files import whole_folder  # noqa: E402
from common.program import Parser, positive_int, run_program, whole_number  # noqa: E402
from dataset import list_labelled  # noqa: E402
from scans import phantom, phantom_plan, split_tables, splits  # noqa: E402
from scans.slices import by_scan  # noqa: E402

TESTED, CHOOSING, EXCHANGED, FOLDS = 1, 2, 3, 5
SEEDS = 5


def write_tables(folder: Path, seed: int) -> None:
    """known-<seed>.csv and unknown-<seed>.csv, of the scans in the folder."""
    scans = by_scan(list_labelled(folder).slices)
    fold_of = splits.folds_by_patient(scans, FOLDS, seed)
    of_knee = defaultdict(list)
    for name, slices in scans.items():
        of_knee[slices[0].patient, slices[0].label].append(name)
    several = [names for names in of_knee.values() if len(names) > 1]
    tested = {scan for names in several for scan in names[::2] if fold_of[scan] == TESTED}
    for name, fold in (("known", TESTED), ("unknown", EXCHANGED)):
        more = {scan for names in several for scan in names[1::2] if fold_of[scan] == fold}
        subset_of = dict.fromkeys(scans, splits.NONE)
        for scan in scans:
            if fold_of[scan] == CHOOSING:
                subset_of[scan] = "val"
            elif fold_of[scan] not in (TESTED, EXCHANGED) or scan in more:
                subset_of[scan] = "train"
            elif scan in tested:
                subset_of[scan] = "test"
        split_tables.write_split(folder / f"{name}-{seed}.csv", scans, subset_of)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="known_patients.py", description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, metavar="DIR", help="a new or empty folder")
    of_akoa = phantom_plan.AKOA_PATIENTS
    parser.add_argument("--patients", type=positive_int, default=of_akoa, metavar="N")
    parser.add_argument("--seed", type=whole_number, default=0, metavar="N", help="of the knees")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    with whole_folder(args.directory) as unfinished:
        phantom.write_phantoms(unfinished, args.patients, args.seed)
        for seed in range(SEEDS):
            write_tables(unfinished, seed)
    print(f"{args.directory}: {args.patients} patients, known-N.csv and unknown-N.csv")
    return 0


def main(argv: list[str] | None = None) -> int:
    return run_program(run, parse_args(argv), "known_patients.py")


if __name__ == "__main__":
    sys.exit(main())
