"""Damaged names, tables, checkpoints, runs, caches, volumes and flags: see benchmarks/fuzz.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
CASES = 1500


def start(*command: str | Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("seed", [14])
def test_nothing_damaged_makes_a_program_lie_hang_or_write_elsewhere(seed):
    pytest.importorskip("SimpleITK")
    done = start(ROOT / "benchmarks/fuzz.py", "--seed", f"{seed}", "--cases", f"{CASES}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{CASES:,} cases" in done.stdout


def test_the_hunt_finds_what_is_planted_and_nothing_else(tmp_path):
    """And makes the same case again, of which its file of plants makes sure first."""
    pytest.importorskip("SimpleITK")
    from planted_faults import FAULTS

    done = start(ROOT / "tests/planted_faults.py", tmp_path / "found.json")
    assert done.returncode == 1, done.stdout + done.stderr
    found = {number: set() for number in range(len(FAULTS))}
    for finding in json.loads((tmp_path / "found.json").read_text())["findings"]:
        for command in finding["reproduce"]:
            found[int(command.split()[-1])].add(finding["kind"])
    memory = [kind for kind, _ in FAULTS].index("memory")
    found[memory].discard("slow")  # to fill so much takes long where others use the machine
    assert found == {number: {kind} - {""} for number, (kind, _) in enumerate(FAULTS)}
