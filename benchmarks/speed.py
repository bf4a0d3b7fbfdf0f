"""How fast and how small: this Perceiver beside perceiver-pytorch, same sizes, same weights.

    python benchmarks/speed.py                    # all cases; writes speed.json and speed.png
    python benchmarks/speed.py --cases 76x86 --rounds 9 --output mine.json

Each model of each case runs in a process of its own, and they take turns, one step at a time, so
that a noisy machine is as noisy for all. Before anything is timed their logits are compared. A
training step is zero_grad, forward, cross-entropy, backward, Adam; inference is without gradients.

Memory is the highest resident memory (on a GPU: allocated) in a training step, above what the
process held when model, gradients and optimizer state were already there.

Beside ours stands the limit: the floating-point operations of its matrix products, counted, over
the rate of a large matrix product measured here, by way of torch.mm and by way of oneDNN.

Hugging Face transformers' Perceiver is not here: it reads the tokens once, never again, and can't
be configured to compute this model. Exit codes: 0 done, 1 the models disagree, 2 bad arguments.
"""

import argparse
import ctypes
import json
import multiprocessing
import platform
import statistics
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # to run as `python benchmarks/speed.py`

import perceiver  # noqa: E402
from benchmarks.peers import perceiver_pytorch_like  # noqa: E402
from perceiver import Perceiver, autocast  # noqa: E402

CASES = {"28x28": 4, "76x86": 2, "228x260": 2, "40x76x86": 1}  # axes -> batch
GROWTH = ("128x128", "256x256", "384x384", "512x512")  # with a batch of 1
MODELS = ("ours", "ours, --checkpoint-latents", "perceiver-pytorch")
RESULTS = ROOT / "benchmarks" / "speed.json"  # those of docs/speed.md


# ---- one model in a process of its own -----------------------------------------------------------


def build(name: str, axes: tuple[int, ...], device: torch.device) -> torch.nn.Module:
    """The default model for these axes, with weights that depend on the axes' number alone."""
    torch.manual_seed(0)
    model = Perceiver(input_axis=len(axes), checkpoint_latents="checkpoint" in name)
    if name == "perceiver-pytorch":
        model = perceiver_pytorch_like(model)
    return model.to(device)


def resident(field: str = "VmRSS") -> int:
    """Bytes of this process: VmRSS now, VmHWM at most since the mark was reset (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def serve(connection, name: str, axes: tuple[int, ...], batch: int, device_name: str, amp: bool):
    """Build a model; then do one thing for each word received, and send the result back."""
    device = torch.device(device_name)
    on_gpu = device.type == "cuda"
    model = build(name, axes, device)
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
        else:
            synchronise()
            start = time.perf_counter()
            if word == "train":
                step(images)
            else:
                with torch.inference_mode():
                    forward(images)
            synchronise()
            connection.send(time.perf_counter() - start)


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


def measure(
    case: str,
    batch: int,
    rounds: int,
    args: argparse.Namespace,
    words: tuple[str, ...] = ("train", "infer"),
) -> list[dict]:
    """A row for each model: seconds of each training step and inference, bytes at the peak."""
    axes = tuple(map(int, case.split("x")))
    rows = []
    with processes(MODELS, axes, batch, args.device, args.amp) as ask:
        logits = {name: torch.tensor(ask(name, "logits")) for name in MODELS}
        difference = max((logits[name] - logits["ours"]).abs().max().item() for name in MODELS)
        if not difference < (0.1 if args.amp else 1e-4):
            raise ArithmeticError(f"{case}: the models' logits differ by {difference}")
        memory = {name: ask(name, "memory") for name in MODELS}
        seconds = {name: {word: [] for word in words} for name in MODELS}
        for word in words:
            for _ in tqdm(range(rounds), f"{case} {word}", unit="round", disable=None):
                for name in MODELS:  # in turns
                    seconds[name][word].append(ask(name, word))
    tokens = int(np.prod(axes))
    for name in MODELS:
        row = {"case": case, "batch": batch, "tokens": tokens, "model": name}
        rows.append({**row, **seconds[name], "memory": memory[name], "difference": difference})
    return rows


# ---- what the machine could do at most -----------------------------------------------------------


def matrix_product_rates(device: torch.device, amp: bool) -> dict[str, float]:
    """Operations a second of a product of two 4096 x 4096 matrices; the best of ten."""
    dtype = torch.bfloat16 if amp else torch.float32
    a, b = (torch.randn(4096, 4096, device=device, dtype=dtype) for _ in range(2))
    ways = {"torch.mm": lambda: torch.mm(a, b)}
    if perceiver.onednn_takes(a):
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


def count_operations(case: str, batch: int) -> int:
    """Floating-point operations of the matrix products in one of our training steps."""
    axes = tuple(map(int, case.split("x")))
    model = build("ours", axes, torch.device("cpu"))
    usual, perceiver.onednn_takes = perceiver.onednn_takes, lambda x: False  # it is not counted
    try:
        # The plain attention is counted, the fused one is not.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            model(torch.randn(batch, 1, *axes)).sum().backward()
    finally:
        perceiver.onednn_takes = usual
    return counter.get_total_flops()


# ---- results -------------------------------------------------------------------------------------


def fit_line(x: list[float], y: list[float]) -> dict:
    """Least squares y = slope x + intercept, and the share of the variance that it explains."""
    slope, intercept = np.polyfit(x, y, 1)
    residual = np.asarray(y) - (slope * np.asarray(x) + intercept)
    r2 = 1 - residual.var() / np.var(y)
    return {"slope": float(slope), "intercept": float(intercept), "r2": float(r2)}


def growth_fits(rows: list[dict]) -> dict:
    """Model -> how its median training step, and its memory, grow with tokens."""
    fits = {}
    for name in MODELS:
        own = [row for row in rows if row["model"] == name]
        tokens = [row["tokens"] for row in own]
        seconds = [statistics.median(row["train"]) for row in own]
        memory = [row["memory"] for row in own]
        fits[name] = {"seconds": fit_line(tokens, seconds), "bytes": fit_line(tokens, memory)}
    return fits


def table(results: dict) -> str:
    """The results in Markdown. Ratios are of medians, peer over model; a spread is min to max."""
    lines = [
        "| input, batch | model | training step, s | | inference, s | | memory, MB | |",
        "| --- | --- | --: | --: | --: | --: | --: | --: |",
    ]
    for case in dict.fromkeys(row["case"] for row in results["cases"]):
        rows = [row for row in results["cases"] if row["case"] == case]
        peer = next(row for row in rows if row["model"] == "perceiver-pytorch")
        for row in rows:
            cells = [f"{case.replace('x', ' x ')}, {row['batch']}", row["model"]]
            for word in ("train", "infer"):
                median, best, worst = (f(row[word]) for f in (statistics.median, min, max))
                cells.append(f"{median:.3g} ({best:.3g} to {worst:.3g})")
                cells.append(f"{statistics.median(peer[word]) / median:.1f}x")
            cells.append(f"{row['memory'] / 1e6:,.0f}")
            cells.append(f"{peer['memory'] / row['memory']:.1f}x")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def summary(results: dict) -> str:
    """What stands below the table: machine, limit, growth."""
    machine = results["machine"]
    lines = [
        f"{machine['processor']}, {machine['threads']} threads, PyTorch {machine['torch']}, "
        f"{machine['precision']}; {results['rounds']} rounds in turns: median (min to max). "
        "On a GPU: not measured."
        if machine["device"] == "cpu"
        else f"{machine['processor']}, PyTorch {machine['torch']}, {machine['precision']}; "
        f"{results['rounds']} rounds in turns: median (min to max)."
    ]
    for limit in results["limits"]:
        shares = " and ".join(
            f"{limit['operations'] / rate / limit['seconds']:.0%} of what {name} "
            f"({rate / 1e9:,.0f} GFLOP/s) would allow"
            for name, rate in results["rates"].items()
        )
        lines.append(
            f"{limit['case'].replace('x', ' x ')}: {limit['operations'] / 1e9:,.0f} GFLOP in the "
            f"matrix products of our training step, done at {shares}."
        )
    for name, fit in results["growth_fits"].items():
        lines.append(
            f"Line through the training steps of growing images, batch 1, {name}: "
            f"{fit['seconds']['slope'] * 1e6:.3g} s for each million tokens "
            f"(R² {fit['seconds']['r2']:.4f}) and {fit['bytes']['slope']:,.0f} bytes for each "
            f"token (R² {fit['bytes']['r2']:.4f})."
        )
    return "\n".join(f"- {line}" for line in lines)


def draw(results: dict, path: Path) -> None:
    """Time and memory of a training step against tokens."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    colours = dict(zip(MODELS, ("#1f6fb2", "#7fb2de", "#d1495b"), strict=True))
    for axes, quantity in zip(figure.subplots(1, 2), ("seconds", "bytes"), strict=True):
        for name, colour in colours.items():
            own = [row for row in results["growth"] if row["model"] == name]
            tokens = np.array([row["tokens"] for row in own])
            fit = results["growth_fits"][name][quantity]
            if quantity == "seconds":
                values, scale = [statistics.median(row["train"]) for row in own], 1
            else:
                values, scale = [row["memory"] / 1e9 for row in own], 1e-9
            axes.plot(tokens / 1e3, values, "o", color=colour, label=name)
            ends = np.array([0, tokens.max()])
            line = (fit["slope"] * ends + fit["intercept"]) * scale
            axes.plot(ends / 1e3, line, "-", color=colour, linewidth=1)
        axes.set(xlabel="tokens (thousands), batch 1", xlim=0, ylim=0)
        axes.grid(alpha=0.3)
        if quantity == "seconds":
            axes.set(title="Training step", ylabel="seconds")
            axes.legend()
        else:
            axes.set(title="Memory above weights, gradients and optimizer", ylabel="GB")
    figure.savefig(path, dpi=120)


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument(
        "--growth", nargs="*", default=list(GROWTH), metavar="AXES", help="images; none: leave out"
    )
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--amp", action=argparse.BooleanOptionalAction, help="bfloat16 autocast")
    parser.add_argument(
        "--output", type=Path, default=Path("speed.json"), help="JSON; a PNG lies beside it"
    )
    args = parser.parse_args(arguments)
    device = torch.device(args.device)
    args.amp = device.type == "cuda" if args.amp is None else args.amp
    if args.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {args.rounds}")

    rates = matrix_product_rates(device, args.amp)
    try:
        cases = [
            row for case in args.cases for row in measure(case, CASES[case], args.rounds, args)
        ]
        growth = [
            row for case in args.growth for row in measure(case, 1, args.rounds, args, ("train",))
        ]
    except ArithmeticError as error:
        print(f"speed.py: {error}", file=sys.stderr)
        return 1
    again = matrix_product_rates(device, args.amp)  # a noisy machine may have been slow before
    rates = {name: max(rate, again[name]) for name, rate in rates.items()}
    limits = []
    for row in cases:
        if row["model"] == "ours":
            operations = count_operations(row["case"], row["batch"])
            seconds = statistics.median(row["train"])
            limits.append({"case": row["case"], "operations": operations, "seconds": seconds})
    results = {
        "machine": {
            "processor": torch.cuda.get_device_name() if device.type == "cuda" else processor(),
            "device": device.type,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "precision": "bfloat16 autocast" if args.amp else "float32",
        },
        "rounds": args.rounds,
        "rates": rates,
        "limits": limits,
        "cases": cases,
        "growth": growth,
        "growth_fits": growth_fits(growth) if growth else {},
    }
    args.output.write_text(json.dumps(results, indent=1) + "\n")
    if growth:
        draw(results, args.output.with_suffix(".png"))
    print(table(results))
    print()
    print(summary(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
