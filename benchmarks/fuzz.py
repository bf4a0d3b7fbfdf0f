"""Start the programs on damaged names, tables, checkpoints, runs, caches, volumes and flags.

    python benchmarks/fuzz.py                            # 2,000 cases, half a minute on two cores
    python benchmarks/fuzz.py --minutes 60 --seed 1 --output fuzz.json
    python benchmarks/fuzz.py --seed 7 --case 1234       # this one alone: what it did, and printed

Most cases call main() of train.py, predict.py or dataset.py in a process that makes many of them;
some (--process-share) start a process of their own. The rule for each case: exit code 0, 1 or 2 (3
only of --audit), a line for the user where it is not 0, no traceback, nothing on the terminal but
plain lines, strict JSON, no nan and no formula in a table, nothing written but where it was told
to, nothing half written left there, and bounded memory and time. What breaks it is a finding.

Exit codes: 0 no findings, 1 findings, 2 unusable arguments.
"""

import argparse
import contextlib
import faulthandler
import json
import os
import platform
import re
import resource
import selectors
import signal
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # to run as `python benchmarks/fuzz.py`
os.environ.setdefault("OMP_NUM_THREADS", "1")  # cases are many and small, and processes fork

import torch  # noqa: E402

import perceiver  # noqa: E402
from benchmarks.fuzzing.cases import make_case  # noqa: E402
from benchmarks.fuzzing.material import PRODUCTS, make_material  # noqa: E402
from benchmarks.fuzzing.rule import ADDRESSES, Finding, box_of, try_case  # noqa: E402
from benchmarks.speed_records import commit, processor  # noqa: E402
from common import isolation  # noqa: E402
from common.files import write_json  # noqa: E402
from common.program import Parser, positive_float, positive_int  # noqa: E402
from evaluation import plots, report  # noqa: E402, F401  imported once, and not by each process
from scans import overview  # noqa: E402, F401

HANG = 12.0  # seconds of a case; then its process is killed, unless others keep it from its work
IDLE = 0.03  # share of a processor; a process that gets less waits for something
SHOWN = 4  # reproductions of each finding


# ---- many cases, in processes that may hang or crash ---------------------------------------------


@dataclass
class Summary:
    """What a hunt has tried and found."""

    kinds: Counter = field(default_factory=Counter)
    codes: Counter = field(default_factory=Counter)
    processes: int = 0
    seconds: float = 0.0
    findings: dict[Finding, list[str]] = field(default_factory=dict)  # -> how to reproduce each

    def add(self, finding: Finding, reproduction: str) -> None:
        self.findings.setdefault(finding, []).append(reproduction)


@dataclass
class Worker:
    """A process that tries every n-th case."""

    number: int
    pid: int
    pipe: int
    case: int = -1
    since: float = 0.0
    used: float = 0.0  # seconds of processor time until then
    text: bytes = b""


class Hunt:
    """Starts the workers, listens to them, and starts another where one hangs or crashes."""

    def __init__(self, args: argparse.Namespace, scratch: Path):
        self.args, self.scratch = args, scratch
        self.end = time.monotonic() + 60 * args.minutes if args.minutes else float("inf")
        self.last = args.cases if not args.minutes else 10**12
        self.summary, self.selector = Summary(), selectors.DefaultSelector()

    def run(self) -> Summary:
        begun = time.monotonic()
        for number in range(self.args.workers):
            self.start(number, number)
        while self.selector.get_map():
            for key, _ in self.selector.select(timeout=0.5):
                self.listen(key.data)
            for key in list(self.selector.get_map().values()):
                worker = key.data
                if worker.case >= 0 and self.hangs(worker):
                    self.lose(worker, "hang")
        self.summary.seconds = time.monotonic() - begun
        return self.summary

    def hangs(self, worker: Worker) -> bool:
        """Whether a case waits for ever or works for ever; on a busy machine it may take longer."""
        if time.monotonic() < worker.since + HANG:
            return False
        used, taken = processor_seconds(worker.pid) - worker.used, time.monotonic() - worker.since
        if is_process(self.args, worker.case):  # it uses none itself
            return taken > 10 * HANG
        return used > HANG / 2 or used < IDLE * taken or taken > 10 * HANG

    def start(self, number: int, first: int) -> None:
        if first >= self.last or time.monotonic() > self.end:
            return
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(reading)
                os.setpgid(0, 0)
                self.work(number, first, writing)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(writing)
        self.selector.register(reading, selectors.EVENT_READ, Worker(number, pid, reading))

    def log_of(self, number: int) -> Path:
        return self.scratch / f"log{number}"

    def work(self, number: int, first: int, pipe: int) -> None:
        """In the new process: try each of its cases, and say so before and after."""
        prepare_process(self.log_of(number))
        for case_number in range(first, self.last, self.args.workers):
            if time.monotonic() > self.end:
                return
            as_process = is_process(self.args, case_number)
            os.write(pipe, json.dumps({"begin": case_number}).encode() + b"\n")
            with box_of(self.scratch, number) as box:
                case = make_case(self.args.seed, case_number)
                result, found = try_case(box, case, as_process)
            done = {"kind": case.kind, "code": str(result.code), "process": as_process}
            os.write(pipe, json.dumps({**done, "found": found}).encode() + b"\n")

    def listen(self, worker: Worker) -> None:
        content = os.read(worker.pipe, 2**20)
        if not content:
            self.lose(worker, "crash") if worker.case >= 0 else self.forget(worker)
            return
        *lines, worker.text = (worker.text + content).split(b"\n")
        for line in map(json.loads, lines):
            if "begin" in line:
                worker.case, worker.since = line["begin"], time.monotonic()
                worker.used = processor_seconds(worker.pid)
                continue
            self.summary.kinds[line["kind"]] += 1
            self.summary.codes[line["code"]] += 1
            self.summary.processes += line["process"]
            for finding in line["found"]:
                self.report(Finding(*finding), worker.case)
            worker.case = -1

    def lose(self, worker: Worker, what: str) -> None:
        """A worker that hangs or has crashed: note where, and go on with the next case."""
        log = self.log_of(worker.number)
        if what == "hang":
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGUSR1)  # it writes where it is, see prepare_process
                time.sleep(0.5)
                os.killpg(worker.pid, signal.SIGKILL)
        case, text = worker.case, log.read_text(errors="replace")
        status = self.forget(worker)
        if os.waitstatus_to_exitcode(status) > 0:
            raise RuntimeError(f"case {case}: the hunt itself failed, see above")
        ours = re.findall(rf'File "{ROOT}/((?!benchmarks)[^"]+)", line (\d+) in (\w+)', text)
        place = "{}:{} {}".format(*ours[0]) if ours else "?"
        if what == "crash":
            place = f"{signal.strsignal(os.WTERMSIG(status))}, {place}"
        self.summary.kinds[f"({what})"] += 1
        self.report(Finding(what, place), case)
        self.start(worker.number, case + self.args.workers)

    def forget(self, worker: Worker) -> int:
        self.selector.unregister(worker.pipe)
        os.close(worker.pipe)
        return os.waitpid(worker.pid, 0)[1]

    def report(self, finding: Finding, case: int) -> None:
        flag = " --as-process" if is_process(self.args, case) else ""
        command = f"python benchmarks/fuzz.py --seed {self.args.seed} --case {case}{flag}"
        if finding not in self.summary.findings:
            print(f"{finding.kind}: {finding.what}\n    {command}", flush=True)
        self.summary.add(finding, command)


def processor_seconds(pid: int) -> float:
    """What a process has used since its start."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def is_process(args: argparse.Namespace, case: int) -> bool:
    """Whether this case starts a process of its own."""
    return zlib.crc32(f"{args.seed} {case}".encode()) % 1000 < 1000 * args.process_share


def prepare_process(log: Path | None) -> None:
    """Bounded memory, and where it crashes or hangs goes to a log, or to standard error."""
    # It is open as long as the process lives.
    file = open(log, "w") if log else os.fdopen(os.dup(2), "w")  # noqa: SIM115
    faulthandler.enable(file)
    faulthandler.register(signal.SIGUSR1, file)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(1)
    isolation.SECONDS = 0.6 * HANG
    # It measures which product is faster: that takes longer than most cases.
    perceiver.faster_products = lambda *_: PRODUCTS


def in_child(function: Callable, *arguments) -> int:
    """Call it in a forked process, so that this one stays as it is. Returns the exit code."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            prepare_process(None)
            code = function(*arguments) or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ---- program -------------------------------------------------------------------------------------


def show_case(args: argparse.Namespace, scratch: Path) -> int:
    """Run one case alone and print what it did."""
    with box_of(scratch, 0) as box:
        case = make_case(args.seed, args.case)
        print(f"{case.kind}, in {box / 'cwd'}:\n{case.command}", *case.notes, sep="\n  ")
        if case.stdin:
            print(f"standard input: {len(case.stdin)} bytes, {case.stdin[:300]!r}")
        sys.stdout.flush()
        faulthandler.dump_traceback_later(
            5 * HANG if args.as_process else HANG, exit=True, file=os.fdopen(os.dup(2), "w")
        )
        result, found = try_case(box, case, args.as_process)
        faulthandler.cancel_dump_traceback_later()
    parts = {"output": result.output, "errors": result.errors, "of a library": result.native}
    for name, content in parts.items():
        print(f"{name}:")
        for line in content.decode(errors="surrogateescape").split("\n")[:60]:
            print(f"  {ascii(line)[1:-1]}"[:400])
    if result.traceback:
        traceback.print_exception(result.traceback, file=sys.stdout)
    print(f"exit code {result.code}, {result.seconds:.2f} s, {result.memory / 1e6:.0f} MB more")
    for finding in found:
        print(f"{finding.kind}: {finding.what}")
    return 1 if found else 0


def record_of(args: argparse.Namespace, summary: Summary) -> dict:
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit(),
        "processor": processor(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "seed": args.seed,
        "seconds": round(summary.seconds),
        "cases": summary.kinds.total(),
        "as_processes": summary.processes,
        "exit_codes": dict(sorted(summary.codes.items())),
        "kinds": dict(sorted(summary.kinds.items())),
        "findings": [
            {**finding._asdict(), "cases": len(ways), "reproduce": ways[:SHOWN]}
            for finding, ways in summary.findings.items()
        ],
    }


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="fuzz.py", description="Damage what the programs read, and watch them.")
    add = parser.add_argument
    add("--seed", type=int, default=0, metavar="N", help="of all cases")
    add("--cases", type=positive_int, default=2000, metavar="N", help="how many")
    add("--minutes", type=positive_float, metavar="X", help="or for how long")
    add("--workers", type=positive_int, default=os.cpu_count(), metavar="N", help="processes")
    add("--process-share", type=float, default=0.0, metavar="X", help="of cases, in their own")
    add("--output", type=Path, metavar="JSON", help="keep what was tried and found")
    add("--case", type=int, metavar="N", help="try this one alone, and say what it did")
    add("--as-process", action="store_true", help="that one in a process of its own")
    add("--keep", type=Path, metavar="DIR", help="make all files there, and leave them")
    return parser.parse_args(arguments)


def run(args: argparse.Namespace, scratch: Path) -> int:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(scratch / "inductor")  # else in the box
    if in_child(make_material, scratch):
        raise RuntimeError("sound data is refused, see above")
    if args.case is not None:
        code = in_child(show_case, args, scratch)
        if code < 0:
            print(f"crash: {signal.strsignal(-code)}")
        return 1 if code else 0
    summary = Hunt(args, scratch).run()
    record = record_of(args, summary)
    if args.output:
        write_json(args.output, record)
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(summary.kinds.items()))
    print(f"{record['cases']:,} cases in {summary.seconds:.0f} s (seed {args.seed}): {kinds}")
    print(f"exit codes: {record['exit_codes']}; {summary.processes} in processes of their own")
    print(f"{len(summary.findings)} findings")
    for one in record["findings"]:
        print(
            f"  {one['cases']} x {one['kind']}: {one['what']}",
            *one["reproduce"][:1],
            sep="\n      ",
        )
    return 1 if summary.findings else 0


def main(arguments: list[str] | None = None) -> int:
    args = parse_args(arguments)
    if args.keep:
        args.keep.mkdir(parents=True)
        return run(args, args.keep.resolve())
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        return run(args, Path(scratch).resolve())


if __name__ == "__main__":
    sys.exit(main())
