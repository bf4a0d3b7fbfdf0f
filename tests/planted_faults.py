"""Hunt with benchmarks/fuzz.py on programs in which faults are planted; run by test_fuzz.py.

    python tests/planted_faults.py found.json

Each case has the next of FAULTS in place of its program. Before that, cases are made twice, and
must be the same.
"""

import argparse
import os
import sys
import time
import warnings
from pathlib import Path
from zlib import crc32

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import fuzz
from benchmarks.fuzzing import rule
from benchmarks.fuzzing.cases import Case, make_case
from benchmarks.fuzzing.material import MAINS
from benchmarks.fuzzing.mutations import FORGED


def spin() -> None:
    begun = time.process_time()
    while time.process_time() < begun + 1.2 * rule.SLOW:
        pass


def write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


FAULTS = [  # kind of finding, and what a program does that is one
    ("", lambda: print("p01  left  ok")),
    ("", lambda: write("../out/scans.csv", "scan,p_left\n'=1+1,0.5\ninf,-0.5\n")),
    ("traceback", lambda: {}["missing"]),
    ("exit code", lambda: 5),
    ("silent", lambda: 2),
    ("control", lambda: print("a name that clears the screen\x1b[2J")),
    ("control", lambda: print("a name that is printed backwards\u202e")),
    ("forged", lambda: print("a name\n" + FORGED)),
    ("long line", lambda: print("x" * 10_000)),
    ("many lines", lambda: print("a line\n" * 100, file=sys.stderr)),
    ("library", lambda: print("ITK: damaged", file=open(2, "w", closefd=False))),  # noqa: SIM115
    ("warning", lambda: warnings.warn("overflow", RuntimeWarning, stacklevel=1)),
    ("json", lambda: print('{"p_left": NaN}')),
    ("nan", lambda: write("../out/scans.csv", "scan,p_left\na,nan\n")),
    ("formula", lambda: write("../out/scans.csv", "scan,p_left\n=1+1,0.5\n")),
    ("outside", lambda: write("../neighbour/keep.txt", "keep.txt, which nobody may touch\n")),
    ("outside", lambda: write("../data/new.txt", "")),
    ("outside", lambda: write("../../material/knees/new.txt", "")),
    ("left behind", lambda: write("../out/.scans.1-2.unfinished.csv", "")),
    ("memory", lambda: len(b"x" * (rule.MEMORY + 2**26))),
    ("slow", spin),
    ("hang", lambda: time.sleep(60)),
    ("crash", os.abort),
]


def planted(arguments: list[str]) -> int:
    tried = Path("../../tried")  # beside all boxes: a process that is lost does not lose count
    number = tried.stat().st_size if tried.exists() else 0
    with tried.open("a") as file:
        file.write(".")
    code = FAULTS[number][1]()
    return code if isinstance(code, int) and code < 10 else 0


def make_nothing(scratch: Path) -> None:
    (scratch / "material/knees").mkdir(parents=True)


def case_of(seed: int, number: int) -> Case:
    return Case("planted", "predict.py", ["--json"] if FAULTS[number][0] == "json" else [])


def made_twice(args: argparse.Namespace, scratch: Path) -> int:
    """In place of fuzz.show_case: nothing that cases are made of is left to chance."""
    for number in range(100):
        one, other = made(scratch, 0, number), made(scratch, 1, number)
        assert one == other, f"case {number}: {one} or {other}"
    return 0


def made(scratch: Path, worker: int, number: int) -> tuple[Case, dict[str, int]]:
    """A case, and checksums of its files, but for those that follow from where the box is."""
    with rule.box_of(scratch, worker) as box:
        case = make_case(7, number)
        files = [path for path in box.rglob("*") if path.is_file() and "cache" not in path.parts]
        small = [path for path in files if path.stat().st_size < 10**6 and not path.is_symlink()]
        return case, {str(path.relative_to(box)): crc32(path.read_bytes()) for path in small}


if __name__ == "__main__":
    rule.SLOW, fuzz.HANG = 1.0, 4.0
    fuzz.show_case = made_twice
    assert fuzz.main(["--case", "0"]) == 0
    MAINS.update(dict.fromkeys(MAINS, planted))
    fuzz.make_material, fuzz.make_case = make_nothing, case_of
    sys.exit(fuzz.main(["--cases", f"{len(FAULTS)}", "--workers", "1", "--output", sys.argv[1]]))
