"""common/signals.py: no Ctrl-C is lost, and what was half written is undone. Real processes."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
START = """
import gc, os, signal, sys, time
from pathlib import Path
from common import signals
from common.files import whole_file, whole_folder
from common.program import run_program

def stop(number=signal.SIGINT):
    os.kill(os.getpid(), number)
    time.sleep(0.01)

def run(args):
{body}

with signals.listening("this.py"):
    code = run_program(run, None, "this.py")
sys.exit(code)
"""


def process(body: str, folder: Path) -> subprocess.CompletedProcess:
    lines = [f"    {line}" for line in body.strip("\n").splitlines()]
    code = START.replace("{body}", "\n".join(lines))
    command = [sys.executable, "-c", code, folder]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


# Where an exception that a handler raises is printed and forgotten.
LOST = {
    "a callback of the garbage collector": """
gc.callbacks.append(lambda *_: (gc.callbacks.clear(), stop()))
with signals.orderly():
    gc.collect()
    for _ in range(100):
        signals.check()
return 0
""",
    "a finalizer": """
class Held:
    def __del__(self):
        stop()
with signals.orderly():
    Held()
return 0
""",
}


@pytest.mark.parametrize("body", LOST.values(), ids=LOST)
def test_a_ctrl_c_that_arrives_where_exceptions_are_dropped_is_not_lost(body, tmp_path):
    done = process(body, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "this.py: interrupted\n")
    # The handler that Python has loses it, so this test is known to see it.
    usual = "signal.signal(signal.SIGINT, signal.default_int_handler)\nif True:"
    done = process(body.replace("with signals.orderly():", usual), tmp_path)
    assert done.returncode == 0 and "KeyboardInterrupt" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_where_nothing_is_half_written_it_ends_at_once(number, tmp_path):
    done = process(f"stop({int(number)}); time.sleep(60)", tmp_path)
    assert (done.returncode, done.stderr) == (128 + number, "this.py: stopped at once\n")


def test_a_file_is_finished_or_removed_by_the_loop_that_writes_it(tmp_path):
    write = """
with whole_file(Path(sys.argv[1], "a.txt")) as temporary:
    with open(temporary, "w") as file:
        for i in range(3):
            file.write("row")
            if i == 0:
                stop()
            CHECK
print("not reached")
"""
    for check, files in (("signals.check()", []), ("", ["a.txt"])):
        done = process(write.replace("CHECK", check), tmp_path)
        assert (done.returncode, done.stdout) == (130, "")
        assert done.stderr == "this.py: interrupted\n"
        assert [path.name for path in tmp_path.iterdir()] == files
    assert (tmp_path / "a.txt").read_text() == "rowrowrow"
    folder = "with whole_folder(Path(sys.argv[1], 'b')) as new:\n    stop(); signals.check()"
    assert process(folder, tmp_path).returncode == 130 and not (tmp_path / "b").exists()


def test_a_second_one_does_not_wait(tmp_path):
    done = process(
        "signals.set_hint('go on so')\n"
        "with signals.asked():\n    stop(15); stop(2); time.sleep(60)",
        tmp_path,
    )
    assert (done.returncode, done.stderr) == (130, "this.py: stopped at once; go on so\n")


def test_a_loop_that_asks_itself_is_not_interrupted(tmp_path):
    body = """
with signals.asked():
    stop()
    with whole_file(Path(sys.argv[1], "last.pt")) as temporary:
        temporary.write_text("saved")
    signals.check()
    return 100 + signals.received()
"""
    done = process(body, tmp_path)
    assert (done.returncode, done.stderr) == (102, "")
    assert (tmp_path / "last.pt").read_text() == "saved"
