"""How fast and how small: this Perceiver beside perceiver-pytorch, same sizes, same weights.

    python benchmarks/speed.py                    # all cases; writes speed.json and speed.png
    python benchmarks/speed.py --cases demo 76x86 --rounds 9 --output mine.json
    python benchmarks/speed.py --output benchmarks/speed.json   # the records of docs/speed.md
    python benchmarks/speed.py --write-docs       # puts those into docs/speed.md and README.md

A results file holds one record a processor: that of this one is replaced, all others stay.

Each model of each case runs in a process of its own, and they take turns, so that a noisy machine
is as noisy for all; a round in which others took more than 10 % of the cores is measured again.
Before anything is timed their logits are compared. A training step is zero_grad, forward,
cross-entropy, backward, Adam; inference is without gradients. Short ones are repeated in a round.

Memory is the highest resident memory (on a GPU: allocated) in a training step, above what the
process held when model, gradients and optimizer state were already there.

Beside ours stands the limit: the floating-point operations of its matrix products, counted, over
the rate of a large matrix product measured here, by way of torch.mm and by way of oneDNN.

Hugging Face transformers' Perceiver is not here: it reads the tokens once, never again, and can't
be configured to compute this model. Exit codes: 0 done, 1 the models disagree, 2 bad arguments or
a results file that is none; that one is left as it is.
"""

import argparse
import ctypes
import multiprocessing
import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # to run as `python benchmarks/speed.py`

import perceiver  # noqa: E402
from benchmarks.peers import perceiver_pytorch_like  # noqa: E402
from benchmarks.speed_records import (  # noqa: E402
    RESULTS,
    add_record,
    commit,
    draw,
    processor,
    read_results,
    section,
    write_docs,
)
from common.program import UserError, positive_int, run_program  # noqa: E402
from perceiver import Perceiver, autocast  # noqa: E402
from training.arguments import DEMO, MODEL_FLAGS  # noqa: E402


class Case(NamedTuple):
    axes: tuple[int, ...]
    batch: int
    arguments: dict  # of Perceiver; {}: the default model


CASES = {
    "28x28": Case((28, 28), 4, {}),
    "76x86": Case((76, 86), 2, {}),
    "228x260": Case((228, 260), 2, {}),
    "40x76x86": Case((40, 76, 86), 1, {}),
    "demo": Case(
        DEMO["image_size"],
        DEMO["batch_size"],
        {name: value for name, value in DEMO.items() if name in MODEL_FLAGS},
    ),
    "28x28 small": Case((28, 28), 64, {"num_latents": 32, "latent_dim": 96, "depth": 3}),
}
GROWTH = ((128, 128), (256, 256), (384, 384), (512, 512))  # with a batch of 1
MODELS = ("ours", "ours, --checkpoint-latents", "perceiver-pytorch")
SHORT = 0.3  # seconds; what takes less is repeated until it took so long
BUSY = 0.1  # the share of all cores that others may take in a round
MOST_ROUNDS = 4  # times those that are wanted; then the quietest are taken


class ModelsDisagree(UserError):
    """Nothing is timed: the models don't compute the same."""

    exit_code = 1


# ---- one model in a process of its own -----------------------------------------------------------


def build(name: str, case: Case, device: torch.device) -> torch.nn.Module:
    """The model of a case; its weights depend on its arguments and the number of axes alone."""
    torch.manual_seed(0)
    checkpoint = "checkpoint" in name
    model = Perceiver(input_axis=len(case.axes), checkpoint_latents=checkpoint, **case.arguments)
    if name == "perceiver-pytorch":
        model = perceiver_pytorch_like(model)
    return model.to(device)


def resident(field: str = "VmRSS") -> int:
    """Bytes of this process: VmRSS now, VmHWM at most since the mark was reset (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def serve(connection, name: str, case: Case, device_name: str, amp: bool):
    """Build a model; then do one thing for each word received, and send the result back."""
    axes, batch = case.axes, case.batch
    device = torch.device(device_name)
    on_gpu = device.type == "cuda"
    model = build(name, case, device)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4, fused=True)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch, 1, *axes, generator=generator).to(device)
    labels = (torch.arange(batch) % 2).to(device)

    def forward(x):
        with autocast(device, amp):
            return model(x.movedim(1, -1) if name == "perceiver-pytorch" else x)

    def step(x):
        optimizer.zero_grad(set_to_none=False)  # gradients stay allocated: they are not the step's
        F.cross_entropy(forward(x).float(), labels).backward()
        optimizer.step()

    def synchronise():
        if on_gpu:
            torch.cuda.synchronize()

    for word in iter(connection.recv, "stop"):
        if word == "logits":
            with torch.inference_mode():
                connection.send(forward(images).float().cpu().tolist())
        elif word == "memory":
            step(images[(..., *[slice(8)] * len(axes))])  # now gradients and optimizer state exist
            if on_gpu:
                before = torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats()
                step(images)
                connection.send(torch.cuda.max_memory_allocated() - before)
            else:
                ctypes.CDLL(None).malloc_trim(0)  # what is free goes back to the system
                before = resident()
                Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
                step(images)
                connection.send(resident("VmHWM") - before)
        elif word == "cpu":
            connection.send(time.process_time())
        else:
            synchronise()
            start, done = time.perf_counter(), 0
            while (taken := time.perf_counter() - start) < SHORT or not done:
                if word == "train":
                    step(images)
                else:
                    with torch.inference_mode():
                        forward(images)
                synchronise()
                done += 1
            connection.send(taken / done)


@contextmanager
def processes(names: tuple[str, ...], *arguments):
    """Name -> a function that has the model of that name, in its process, do what a word says."""
    context = multiprocessing.get_context("spawn")
    started, connections = [], {}
    for name in names:
        connections[name], other = context.Pipe()
        started.append(context.Process(target=serve, args=(other, name, *arguments), daemon=True))
        started[-1].start()
        other.close()

    def ask(name: str, word: str):
        connections[name].send(word)
        return connections[name].recv()

    try:
        yield ask
        for connection in connections.values():
            connection.send("stop")
    finally:
        for process in started:
            process.join(timeout=10)
            process.terminate()


class Round(NamedTuple):
    seconds: dict[str, float]  # model -> of one step
    others: float  # share of all cores that neither these models nor idleness took


def busy_seconds() -> float:
    """CPU time since the start, over all cores, that was not idle; "steal" is the host's others."""
    fields = Path("/proc/stat").read_text().split("\n")[0].split()[1:9]
    user, nice, system, _idle, _waiting, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def take_round(ask, word: str) -> Round:
    """One step (or inference) of each model in turns, and what others took meanwhile."""
    before = time.perf_counter(), busy_seconds(), sum(ask(name, "cpu") for name in MODELS)
    seconds = {name: ask(name, word) for name in MODELS}
    after = time.perf_counter(), busy_seconds(), sum(ask(name, "cpu") for name in MODELS)
    wall, busy, own = (b - a for a, b in zip(before, after, strict=True))
    return Round(seconds, max(0.0, busy - own) / (wall * os.cpu_count()))


def take_rounds(ask, word: str, rounds: int, title: str) -> list[Round]:
    """At least so many quiet ones, and the busy ones between them; or as many as are allowed."""
    taken: list[Round] = []
    for _ in tqdm(range(MOST_ROUNDS * rounds), title, unit="round", disable=None):
        taken.append(take_round(ask, word))
        if sum(one.others <= BUSY for one in taken) == rounds:
            break
    return taken


def measure(title: str, case: Case, args: argparse.Namespace, words=("train", "infer")) -> dict:
    """Seconds of each training step and inference of each model, and bytes at the peak."""
    with processes(MODELS, case, args.device, args.amp) as ask:
        logits = {name: torch.tensor(ask(name, "logits")) for name in MODELS}
        difference = max((logits[name] - logits["ours"]).abs().max().item() for name in MODELS)
        if not difference < (0.1 if args.amp else 1e-4):
            raise ModelsDisagree(f"{title}: the models' logits differ by {difference}")
        models: dict[str, dict] = {name: {"memory": ask(name, "memory")} for name in MODELS}
        discarded, others = 0, []
        for word in words:
            taken = take_rounds(ask, word, args.rounds, f"{title} {word}")
            kept = sorted(taken, key=lambda one: one.others)[: args.rounds]
            discarded += len(taken) - len(kept)
            others += [one.others for one in kept]
            for name in MODELS:
                models[name][word] = [one.seconds[name] for one in kept]
    found = {"difference": difference, "discarded": discarded, "others": others, "models": models}
    return {"case": title, **case._asdict(), **found}


# ---- what the machine could do at most -----------------------------------------------------------


def matrix_product_rates(device: torch.device, amp: bool) -> dict[str, float]:
    """Operations a second of a product of two 4096 x 4096 matrices; the best of ten."""
    dtype = torch.bfloat16 if amp else torch.float32
    a, b = (torch.randn(4096, 4096, device=device, dtype=dtype) for _ in range(2))
    ways = {"torch.mm": lambda: torch.mm(a, b)}
    if perceiver.onednn_takes(a, 4096):
        ways["oneDNN"] = lambda: perceiver.onednn_product(a, b)
    rates = {}
    with torch.inference_mode():
        for name, product in ways.items():
            seconds = []
            for _ in range(10):
                start = time.perf_counter()
                product()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - start)
            rates[name] = 2 * 4096**3 / min(seconds)
    return rates


def count_operations(case: Case) -> int:
    """Floating-point operations of the matrix products in one of our training steps."""
    model = build("ours", case, torch.device("cpu"))
    usual, perceiver.onednn_takes = perceiver.onednn_takes, lambda *_: False  # it is not counted
    try:
        # The plain attention is counted, the fused one is not.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            model(torch.randn(case.batch, 1, *case.axes)).sum().backward()
    finally:
        perceiver.onednn_takes = usual
    return counter.get_total_flops()


# ---- a record ------------------------------------------------------------------------------------


def axes_of(text: str) -> tuple[int, ...]:
    return tuple(map(positive_int, text.split("x")))


def measure_all(args: argparse.Namespace) -> dict:
    """The record of this processor."""
    device = torch.device(args.device)
    record = {
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "precision": "bfloat16 autocast" if args.amp else "float32",
        "commit": commit(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "rounds": args.rounds,
        "busy": BUSY,
    }
    rates = matrix_product_rates(device, args.amp)
    cases = [measure(name, CASES[name], args) for name in args.cases]
    growth = [
        measure("x".join(map(str, axes)), Case(axes, 1, {}), args, ("train",))
        for axes in args.growth
    ]
    again = matrix_product_rates(device, args.amp)  # a noisy machine may have been slow before
    rates = {name: max(rate, again[name]) for name, rate in rates.items()}
    for case in cases:
        case["operations"] = count_operations(CASES[case["case"]])
    return {**record, "rates": rates, "cases": cases, "growth": growth}


def run(args: argparse.Namespace) -> int:
    if args.write_docs:
        results = read_results(RESULTS)
        write_docs(results)
        draw(results, RESULTS.with_suffix(".png"))
        return 0
    args.output.parent.mkdir(parents=True, exist_ok=True)
    read_results(args.output)  # before minutes of measuring: what can't be read can't be kept
    record = measure_all(args)
    results = add_record(args.output, record)
    draw(results, args.output.with_suffix(".png"))
    print(section(record, results["records"]))
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cases", nargs="+", choices=CASES, default=list(CASES), help="default: all"
    )
    parser.add_argument(
        "--growth", nargs="*", type=axes_of, default=GROWTH, metavar="HxW", help="images of batch 1"
    )
    parser.add_argument("--rounds", type=positive_int, default=5, help="default: %(default)s")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--amp", action=argparse.BooleanOptionalAction, help="bfloat16 autocast")
    parser.add_argument(
        "--output", type=Path, default=Path("speed.json"), help="JSON; a PNG lies beside it"
    )
    parser.add_argument(
        "--write-docs", action="store_true", help="measure nothing; tables and picture of the docs"
    )
    args = parser.parse_args(arguments)
    if len(args.growth) == 1:
        parser.error("--growth lays a line through images of two sizes or more; name them, or none")
    if args.amp is None:
        args.amp = torch.device(args.device).type == "cuda"
    return run_program(run, args, "speed.py")


if __name__ == "__main__":
    sys.exit(main())
