"""Run a case of benchmarks/fuzz.py, and say what is wrong with what it did."""

import contextlib
import csv
import io
import json
import os
import pty
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from benchmarks.fuzzing.cases import WRITABLE, Case
from benchmarks.fuzzing.material import MAINS
from benchmarks.fuzzing.mutations import FORGED

ROOT = Path(__file__).resolve().parents[2]
SLOW = 8.0  # seconds of processor time
MEMORY = 700 * 2**20  # bytes more than before the case
ADDRESSES = 6 * 2**30  # bytes; what asks for more gets a MemoryError
MOST_LINES, LONGEST_LINE = 60, 6000
START = 6.0, 500 * 2**20  # seconds and bytes that a process takes to start
COLOURS = re.compile(rb"\x1b\[(?:31|33|0)m")  # ours, on a terminal
WARNING = re.compile(r"^\S+:\d+: \w*Warning: ", re.M)
csv.field_size_limit(2**24)


class Finding(NamedTuple):
    kind: str  # traceback, hang, ...
    what: str  # the same for the same fault


class Result(NamedTuple):
    """What a program did."""

    code: int | None  # None: an exception
    output: bytes
    errors: bytes
    native: bytes = b""  # what was printed to descriptor 2 behind Python's back
    traceback: BaseException | None = None
    seconds: float = 0.0
    memory: int = 0


# ---- one case ------------------------------------------------------------------------------------


@contextlib.contextmanager
def box_of(scratch: Path, worker: int) -> Iterator[Path]:
    """A new box with neighbours; its `cwd` is the current folder."""
    box = scratch / f"box{worker}"
    shutil.rmtree(box, ignore_errors=True)
    for folder in ("cwd", "out", "neighbour/folder", "tmp"):
        (box / folder).mkdir(parents=True)
    for name in ("keep.txt", "best.pt", "predictions.csv", "folder/split.csv"):
        (box / "neighbour" / name).write_text(f"{name}, which nobody may touch\n")
    os.chdir(box / "cwd")
    tempfile.tempdir = str(box / "tmp")
    os.environ["TMPDIR"] = tempfile.tempdir
    try:
        yield box
    finally:
        os.chdir(scratch)


def try_case(box: Path, case: Case, as_process: bool) -> tuple[Result, list[Finding]]:
    """Run a case that was made in this box, and say what is wrong with what it did."""
    before = snapshot(box)
    result = run_process(case) if as_process else run_here(case, box.with_suffix(".log"))
    found = judge(case, result) + judge_files(box, before, snapshot(box))
    return result, list(dict.fromkeys(found))


def run_here(case: Case, log: Path) -> Result:
    """Call its main(), with standard input, output and errors as those of a process."""
    for module in list(sys.modules.values()):  # each case may warn as if it were the first
        if isinstance(module, ModuleType):
            vars(module).pop("__warningregistry__", None)
    stdin = log.with_suffix(".in")
    stdin.write_bytes(case.stdin)
    code, error = None, None
    with redirected(stdin, case.terminal) as captured:
        memory, begun = peak_memory(reset=True), time.process_time()
        try:
            code = MAINS[case.program](list(case.arguments))
        except SystemExit as end:
            code = end.code
        except BaseException as caught:
            error = caught
        seconds, memory = time.process_time() - begun, peak_memory() - memory
    return Result(code, *captured, error, seconds, memory)


@contextlib.contextmanager
def redirected(stdin: Path, terminal: bool) -> Iterator[list[bytes]]:
    """Descriptors 0 to 2 and Python's streams; what they got is in the list at the end.

    Python's errors have a descriptor of their own: what comes to 2 is a library's, in C.
    """
    captured: list[bytes] = []
    kept = [os.dup(n) for n in range(3)]
    streams = sys.stdin, sys.stdout, sys.stderr
    out, err, library = (tempfile.TemporaryFile(dir=stdin.parent) for _ in range(3))  # noqa: SIM115
    listener = None
    if terminal:
        screen, device = pty.openpty()
        listener = threading.Thread(target=drain, args=(screen, out))
        listener.start()
    source = os.open(stdin, os.O_RDONLY)
    for n, descriptor in enumerate(
        (source, device if terminal else out.fileno(), library.fileno())
    ):
        os.dup2(descriptor, n)
    os.close(source)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    descriptors = 1, err.fileno()
    sys.stdout, sys.stderr = (
        open(n, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        for n in descriptors
    )
    try:
        yield captured
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        sys.stdin, sys.stdout, sys.stderr = streams
        for n, descriptor in enumerate(kept):
            os.dup2(descriptor, n)
            os.close(descriptor)
        if listener:
            os.close(device)
            listener.join()
            os.close(screen)
        for file in (out, err, library):
            file.seek(0)
            captured.append(file.read(2**24))
            file.close()


def drain(screen: int, out: io.BufferedRandom) -> None:
    """Keep what a terminal shows, until nobody has it open."""
    with contextlib.suppress(OSError):
        while content := os.read(screen, 65536):
            out.write(content.replace(b"\r\n", b"\n"))


def peak_memory(reset: bool = False) -> int:
    """Bytes of this process in memory at most, since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])


def run_process(case: Case) -> Result:
    """Start the program as a user does."""
    command = [sys.executable, ROOT / case.program, *case.arguments]
    limit = (ADDRESSES, ADDRESSES)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=err,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limit),
        )
        feed = threading.Thread(target=feed_quietly, args=(process, case.stdin))
        feed.start()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        feed.join()
        out.seek(0), err.seek(0)
        seconds = usage.ru_utime + usage.ru_stime - START[0]
        memory = 1024 * usage.ru_maxrss - START[1]
        return Result(process.returncode, out.read(), err.read(), b"", None, seconds, memory)


def feed_quietly(process: subprocess.Popen, content: bytes) -> None:
    with contextlib.suppress(OSError):
        process.stdin.write(content)
    with contextlib.suppress(OSError):
        process.stdin.close()


# ---- the rule ------------------------------------------------------------------------------------


def judge(case: Case, result: Result) -> list[Finding]:
    """What is wrong with how it ended and what it printed."""
    found, program = [], case.program
    errors = result.errors.decode(errors="replace")
    if result.traceback is not None:
        found.append(Finding("traceback", where(result.traceback)))
    elif "Traceback (most recent call last)" in errors or "Exception ignored" in errors:
        found.append(Finding("traceback", f"{program}: {errors.strip().splitlines()[-1][:200]}"))
    elif result.code not in (0, 1, 2) and not (result.code == 3 and "--audit" in case.arguments):
        found.append(Finding("exit code", f"{program}: {result.code}"))
    elif result.code and result.code != 3 and not result.errors.strip():
        found.append(Finding("silent", f"{program}: exit code {result.code}, and no line"))
    output = COLOURS.sub(b"", result.output) if case.terminal else result.output
    for name, content in (("output", output), ("errors", result.errors)):
        text = content.decode(errors="surrogateescape")
        odd = sorted({c for c in text if not c.isprintable()} - {"\n"})
        if odd:
            line = next(line for line in text.split("\n") if odd[0] in line)
            found.append(Finding("control", f"{program} {name}: {ascii(line)[:160]}"))
        # A scan may be called so, and then has a line of its own.
        if any(line.startswith(FORGED) and " p_" not in line for line in text.splitlines()):
            found.append(Finding("forged", f"{program} {name}"))
        lines = text.split("\n")
        if max(map(len, lines)) > LONGEST_LINE:
            found.append(Finding("long line", f"{program} {name}: {max(lines, key=len)[:100]}"))
        if name == "errors" and len(lines) > MOST_LINES:
            found.append(Finding("many lines", f"{program}: {lines[5][:100]}"))
    if match := WARNING.search(errors):
        text = errors[match.start() :].splitlines()[0]
        found.append(Finding("warning", re.sub(r"^.*/(site-packages|h5)/", "", text)[:160]))
    if result.native:
        line = next(filter(None, result.native.decode(errors="replace").split("\n")), "")
        found.append(Finding("library", re.sub(r"\d{3,}", "#", ascii(line))[:120]))
    if "--json" in case.arguments and not result.output.startswith(b"usage: "):  # --help
        found += judge_json(program, result.output)
    if result.seconds > SLOW:
        found.append(Finding("slow", f"{program}, {case.kind}"))
    if result.memory > MEMORY:
        found.append(Finding("memory", f"{program}, {case.kind}"))
    return found


def where(error: BaseException) -> str:
    """The error and its innermost line of ours, and below that the innermost of all."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        f for f in frames if f.filename.startswith(str(ROOT)) and "benchmarks" not in f.filename
    ]
    places = [ours[-1] if ours else frames[-1]]
    places += [frames[-1]] if frames[-1] is not places[0] else []
    named = [f"{os.path.relpath(f.filename, ROOT)}:{f.lineno} {f.name}" for f in places]
    named = [re.sub(r"^\S*/(site-packages|python3\.\d+)/", "", name) for name in named]
    text = re.sub(r"0x[0-9a-f]+|\d{3,}", "#", ascii(str(error))[:100])
    return f"{type(error).__name__} in {', '.join(named)}: {text}"


def judge_json(program: str, output: bytes) -> list[Finding]:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    for line in output.decode(errors="replace").split("\n"):
        if line:
            try:
                assert isinstance(json.loads(line, parse_constant=refuse), dict)
            except (ValueError, AssertionError) as error:
                return [Finding("json", f"{program} --json: {error}"[:100])]
    return []


def snapshot(box: Path) -> dict[str, tuple]:
    """Each file and folder -> what changes if it is written. Contents of the box, times of all."""
    found = {}
    for top in (box, box.parent / "material"):
        for folder, subfolders, files in os.walk(top):
            for name in [*files, *subfolders]:
                path = os.path.join(folder, name)
                status = os.lstat(path)
                about = [status.st_mode, status.st_size, status.st_mtime_ns, status.st_ino]
                is_file = status.st_mode & 0o170000 == 0o100000
                if top is box and is_file and status.st_size < 10**6:
                    about.append(zlib.crc32(Path(path).read_bytes()))
                found[path] = tuple(about)
    return found


def judge_files(box: Path, before: dict[str, tuple], after: dict[str, tuple]) -> list[Finding]:
    """What was written where nothing should be, and what is wrong with what was written."""
    found = []
    writable = [os.path.normpath(box / "cwd" / name) for name in WRITABLE]
    around = {*map(os.path.dirname, writable), str(box / "tmp")}  # something is made in these
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) == after.get(path):
            continue
        place = os.path.relpath(path, box)
        shown = re.sub(r"[0-9a-f]{4,}", "#", ascii(place)[:100])
        if not path.startswith(tuple(writable)):
            change = "made" if path not in before else "lost" if path not in after else "changed"
            if not (change == "changed" and path in around):
                found.append(Finding("outside", f"{change}: {shown}"))
        elif ".unfinished" in path and path not in before:
            found.append(Finding("left behind", shown))
        elif path.endswith((".csv", ".json")) and os.path.isfile(path):
            found += judge_table(path, place)
    return found


def judge_table(path: str, place: str) -> list[Finding]:
    name, found = os.path.basename(place), []
    content = Path(path).read_bytes()
    if path.endswith(".json"):
        if re.search(rb"\b(NaN|Infinity)\b", content):
            found.append(Finding("nan", f"{name}: {content[:80]!r}"))
        return found
    try:
        rows = list(csv.reader(io.StringIO(content.decode("utf-8", "surrogateescape"), newline="")))
    except csv.Error as error:
        return [Finding("table", f"{name}: {error}")]
    for row in rows[1:]:
        for name_of, cell in zip(rows[0], row, strict=False):
            if name_of.startswith(("p_", "agreement")) and cell.lower() in ("nan", "inf", "-inf"):
                found.append(Finding("nan", f"{name}: {name_of} {cell}"))
            elif cell.startswith(tuple("=+-@\t\r")) and not is_number(cell):
                found.append(Finding("formula", f"{name}: {ascii(cell)[:40]}"))
    return found[:1]


def is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
