"""common/isolation.py: processes that die in every way, and the program that goes on."""

import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common import isolation
from common.isolation import Lost, isolated

ROOT = Path(__file__).parents[2]


def work(task: str) -> str | int:
    """What a file may do to the process that reads it."""
    if task == "crash":
        ctypes.string_at(0)
    if task == "leave":
        os._exit(3)
    if task == "hang":
        time.sleep(1000)
    if task == "memory":
        return len(bytearray(isolation.MEMORY))
    if task == "noise":
        os.write(1, b"on standard output")
        os.write(2, b"on standard error")
    if task == "bug":
        raise AttributeError("of ours")
    return os.getpid() if task == "process" else task


def test_the_one_that_crashes_is_found_among_many_and_all_others_are_read():
    tasks = [f"{i}" for i in range(300)]
    for place, kind in ((7, "crash"), (8, "leave"), (130, "crash"), (299, "crash")):
        tasks[place] = kind
    found = list(isolated(work, tasks, workers=2, chunk=16))
    assert len(found) == 300
    for task, result in zip(tasks, found, strict=True):
        if task in ("crash", "leave"):
            assert isinstance(result, Lost) and result.text.startswith("it ends the process")
        else:
            assert result == task


def test_one_that_hangs_is_ended_and_named(monkeypatch):
    monkeypatch.setattr(isolation, "SECONDS", 1)
    started = time.monotonic()
    before, hung, after = isolated(work, ["a", "hang", "b"], workers=1)
    assert (before, after) == ("a", "b") and time.monotonic() - started < 30
    assert hung == Lost("it takes more than 1 seconds to read")


def test_memory_is_bounded():
    before, lost, after = isolated(work, ["a", "memory", "b"], workers=1)
    assert (before, after) == ("a", "b")
    assert lost == Lost("it takes more than 8 GB of memory to read")


def test_a_bug_keeps_its_traceback():
    with pytest.raises(AttributeError, match="of ours") as caught:
        list(isolated(work, ["bug"]))
    assert "in work" in str(caught.value.__cause__)


def test_work_is_done_elsewhere_and_tasks_are_taken_as_they_are_needed():
    assert os.getpid() not in set(isolated(work, ["process"] * 5))
    taken = []
    found = isolated(work, (taken.append(i) or f"{i}" for i in range(1000)), workers=2)
    assert next(found) == "0" and len(taken) < 20
    found.close()


def test_relative_paths_begin_where_the_program_is_now(tmp_path, monkeypatch):
    for name in "ab":
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        (found,) = isolated(os.path.abspath, ["x.png"])
        assert found == str(tmp_path / name / "x.png")


def test_nothing_of_it_reaches_the_terminal_and_it_ends_with_its_parent(tmp_path):
    code = (
        "import os, sys; sys.path.insert(0, 'tests/common'); from test_isolation import work\n"
        "from common.isolation import isolated\n"
        "print(*isolated(work, ['noise', 'crash', 'process']))\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=100, env=os.environ
    )
    assert done.returncode == 0 and done.stderr == ""
    words = done.stdout.split()
    assert words[0] == "noise" and "on standard" not in done.stdout
    deadline = time.monotonic() + 10
    while Path(f"/proc/{words[-1]}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_process_imports_no_torch():
    assert list(isolated(imports_torch, ["left/p01.png"])) == [False]


def imports_torch(path: str) -> bool:
    import scans.cache
    import scans.headers
    import scans.writing  # noqa: F401

    return "torch" in sys.modules
