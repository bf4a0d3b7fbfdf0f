"""Wrong sides in the very archive that is learned from: what an audit by folds finds.

    python benchmarks/audit.py                               # goes on where it was stopped
    python benchmarks/audit.py --shares 0.05 --seeds 0
    python benchmarks/audit.py --write-docs                  # the table, into docs/results.md

Each archive is synthetic knees of 101 patients, a share of whose scans is renamed to the other
side; the rules of the audit were decided on archives of other seeds. `train.py --folds 5 --audit
--audit-rounds 2` judges each scan by a model that saw neither it nor its patient. Beside it: what
cleanlab finds in the same out-of-fold probabilities, and what one model finds with `predict.py
--audit` in the archive that it was trained on the most of.

Exit codes: 0 done, 1 a run failed, 2 bad arguments.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # to run as `python benchmarks/audit.py`

import torch  # noqa: E402

from benchmarks.evidence import RESULTS, call, rows_of  # noqa: E402
from benchmarks.evidence_pages import spread, write_between_marks  # noqa: E402
from benchmarks.experiments import TINY  # noqa: E402
from benchmarks.mislabelled import swap_sides  # noqa: E402
from benchmarks.speed_records import processor  # noqa: E402
from common import signals  # noqa: E402
from common.files import whole_folder  # noqa: E402
from common.program import (  # noqa: E402
    Parser,
    UserError,
    fraction,
    positive_int,
    run_program,
    whole_number,
)
from common.tables import write_csv  # noqa: E402
from scans import phantom  # noqa: E402

MARKS = "<!-- begin: python benchmarks/audit.py --write-docs -->", "<!-- end: audit -->"
MADE_WITH = ("share", "seed", "patients", "flags")  # of other ones, a row is another measurement
FINDERS = {  # in columns -> what the table calls it
    "folds": "five folds",
    "round_2": "five folds, second round",
    "cleanlab": "five folds, cleanlab",
    "single": "one model on the archive that it learned from",
}


def make_archive(folder: Path, share: float, seed: int, patients: int) -> set[str]:
    """An archive and the names of its wrong scans, which stand in a list beside it."""
    listed = folder.with_name(f"{folder.name}.csv")
    if not listed.exists():
        with whole_folder(folder) as unfinished:
            phantom.write_phantoms(unfinished / "knees", patients=patients, seed=400 + seed)
            swapped = swap_sides(unfinished / "knees", share, seed)
        write_csv(listed, [{"scan": scan} for scan in sorted(swapped)])
    return {row["scan"] for row in rows_of(listed)}


def audit(folder: Path, share: float, seed: int, patients: int) -> dict:
    """Make the runs of one archive, or go on with them. Returns its row."""
    name = f"{share:g}-{seed}-{patients}"
    archive, run, single = (folder / f"{kind}-{name}" for kind in ("archive", "folds", "single"))
    wrong = make_archive(archive, share, seed, patients)
    data = ["--data-dir", str(archive / "knees"), "--seed", str(seed)]
    train = [sys.executable, str(ROOT / "train.py"), *data, *TINY]
    folds = [*train, "--folds", "5", "--audit", "--audit-rounds", "2", "--output-dir", str(run)]
    call(folds, fine=(0, 3))
    if not (single / "test_metrics.json").exists():
        resumed = (single / "last.pt").exists()
        more = ["--resume", str(single)] if resumed else ["--output-dir", str(single)]
        call([*train, *more])
    predict = [sys.executable, str(ROOT / "predict.py"), str(single / "best.pt")]
    call([*predict, str(archive / "knees"), "--audit", "--output", str(single)], fine=(0, 3))

    scans = rows_of(run / "scans.csv")
    by_rank = sorted(scans, key=lambda row: int(row["rank"]))[: len(wrong)]
    row = {"share": share, "seed": seed, "patients": patients}
    row |= {"scans": len(scans), "wrong": len(wrong)}
    row["ranked_first"] = sum(one["scan"] in wrong for one in by_rank)
    last_round = run / "round-2" if (run / "round-2").exists() else run
    for finder, table in [
        ("folds", scans),
        ("round_2", rows_of(last_round / "scans.csv")),
        ("single", rows_of(single / "scans.csv")),
    ]:
        called = {one["scan"] for one in table if one["verdict"] == "mismatch"}
        unsure = {one["scan"] for one in table if one["verdict"] == "unsure"}
        row |= counts_of(finder, called, wrong)
        row[f"{finder}_unsure"] = len(unsure)
        row[f"{finder}_unsure_wrong"] = len(unsure & wrong)
    row |= counts_of("cleanlab", found_by_cleanlab(scans), wrong)
    row["flags"] = " ".join(TINY)
    row["date"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return row | {"torch": torch.__version__, "processor": processor()}


def counts_of(finder: str, called: set[str], wrong: set[str]) -> dict[str, int]:
    return {f"{finder}_found": len(called & wrong), f"{finder}_false": len(called - wrong)}


def found_by_cleanlab(scans: list[dict]) -> set[str]:
    """Its default: of each class as many as it estimates, those with the lowest margin."""
    from cleanlab.filter import find_label_issues

    labels = np.array([row["expected"] == "right" for row in scans], dtype=int)
    p = np.array([[float(row["p_left"]), float(row["p_right"])] for row in scans])
    issues = find_label_issues(labels, p, n_jobs=1)
    return {row["scan"] for row, is_issue in zip(scans, issues, strict=True) if is_issue}


def table(rows: list[dict]) -> str:
    """A row for each share and finder: means over seeds, and in brackets lowest and highest."""
    lines = ["| wrong | archives | by | found | false alarms | unsure, of all |"]
    lines += ["| --: | --: | --- | --- | --- | --- |"]
    for share in sorted({float(row["share"]) for row in rows}):
        own = [row for row in rows if float(row["share"]) == share]
        for finder, name in FINDERS.items():
            right = [int(row["scans"]) - int(row["wrong"]) for row in own]
            found = [int(row[f"{finder}_found"]) / int(row["wrong"]) for row in own]
            false = [int(row[f"{finder}_false"]) / n for row, n in zip(own, right, strict=True)]
            unsure = [row.get(f"{finder}_unsure") for row in own]
            unsure = [int(n) / int(row["scans"]) for n, row in zip(unsure, own, strict=True) if n]
            cells = [f"{share:.0%}", str(len(own)), name, spread(found, "{:.1%}")]
            cells += [spread(false, "{:.1%}"), spread(unsure, "{:.1%}")]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="audit.py", description="Wrong sides in the archive that is learned from.")
    add = parser.add_argument
    add("--shares", type=fraction, nargs="+", default=[0.05, 0.1, 0.2], metavar="X")
    add("--seeds", type=whole_number, nargs="+", default=[0, 1, 2], metavar="N")
    add("--patients", type=positive_int, default=101, metavar="N")
    add("--folder", type=Path, default=Path("runs/audit"), help="for run folders and data")
    add("--results", type=Path, default=RESULTS, metavar="DIR", help="for the table of results")
    add("--write-docs", action="store_true", help="write docs/results.md from the table, and stop")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    path = args.results / "audit.csv"
    if args.write_docs:
        if not rows_of(path):
            raise UserError(f"{path}: nothing is measured yet; run it without --write-docs first")
        write_between_marks(ROOT / "docs" / "results.md", table(rows_of(path)), MARKS)
        return 0
    args.results.mkdir(parents=True, exist_ok=True)
    args.folder.mkdir(parents=True, exist_ok=True)
    signals.set_hint("the same command goes on")
    for share in args.shares:
        for seed in args.seeds:
            rows = rows_of(path)
            wanted = [str(share), str(seed), str(args.patients), " ".join(TINY)]
            if wanted not in [[row[name] for name in MADE_WITH] for row in rows]:
                rows.append(audit(args.folder.absolute(), share, seed, args.patients))
                write_csv(path, rows)
    print(table(rows_of(path)))
    return 0


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with signals.listening("audit.py"):
        return run_program(run, args, "audit.py")


if __name__ == "__main__":
    sys.exit(main())
