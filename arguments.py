"""The command line of train.py, what a resumed run may change, and what all programs share."""

import argparse
import inspect
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import runs
import volumes
from perceiver import Perceiver

# What --demo changes, chosen on validation: a few minutes on two CPU cores. Low frequencies and
# augmentation keep so small a model from telling 18 patients apart by detail.
DEMO_PATIENTS = 24
DEMO = {
    "data_dir": Path(f"phantoms/{DEMO_PATIENTS}-patients"),
    "image_size": (38, 43),
    "num_freq_bands": 3,
    "max_freq": 4.0,
    "num_latents": 32,
    "latent_dim": 64,
    "depth": 3,
    "latent_heads": 4,
    "latent_dim_head": 16,
    "epochs": 24,
    "batch_size": 32,
    "lr": 1e-3,
    "lr_decay": 0.9,
    "augment": True,
    "mirror_swap": True,
}


# What a resumed run may change: nothing that its result depends on beyond rounding.
HARMLESS = {
    "cache_dir",
    "compile",
    "data_dir",
    "device",
    "epochs",
    "grad_accumulation",
    "resume",
    "save_every_steps",
    "tensorboard",
    "workers",
}


class Parser(argparse.ArgumentParser):
    """Errors in one line; once, under torchrun."""

    def error(self, message: str) -> NoReturn:
        text = f"{self.prog}: error: {message}\n" if os.environ.get("RANK", "0") == "0" else None
        self.exit(2, text)


def print_any_name() -> None:
    """File names that are no text are printed with backslashes; they end no program."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def run_program(
    run: Callable[[argparse.Namespace], int], args: argparse.Namespace, name: str
) -> int:
    """The exit code of `run`, with one line in place of a traceback for what a user can cause."""
    print_any_name()
    try:
        return run(args)
    except BrokenPipeError:  # `... | head`: nobody listens any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the command line; --demo changes defaults, and named flags still win."""
    defaults = {name: p.default for name, p in inspect.signature(Perceiver).parameters.items()}
    parser = Parser(
        prog="train.py",
        description="Train a Perceiver to tell left from right knees, and test it.",
        epilog="A run folder that already holds a run is never overwritten. --demo has defaults of "
        f"its own: {' '.join(as_flag(name, value) for name, value in DEMO.items())}.",
    )

    data = parser.add_argument_group("data")
    source = data.add_mutually_exclusive_group()
    source.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="folder of slices or volumes, however nested, or a manifest CSV",
    )
    source.add_argument(
        "--demo",
        action="store_true",
        help=f"synthetic knees of {DEMO_PATIENTS} patients (kept in phantoms/) and a small model",
    )
    add_data_arguments(data)

    # The number of channels, axes and classes follow from the data.
    model = parser.add_argument_group("model (arguments of perceiver.Perceiver)")
    for name, text in {
        "num_freq_bands": "frequencies of the position encoding",
        "max_freq": "twice the highest frequency of the position encoding",
        "depth": "how many times the latents read the tokens",
        "num_latents": "length of the latent array",
        "latent_dim": "width of the latent array",
        "cross_heads": "heads of the cross-attention",
        "latent_heads": "heads of the latent self-attention",
        "cross_dim_head": "width of a cross-attention head",
        "latent_dim_head": "width of a self-attention head",
        "attention_dropout": "dropout of attention weights",
        "ff_dropout": "dropout of feed-forward outputs",
        "activation": "feed-forward activation",
        "self_per_cross_attn": "latent self-attention layers for each cross-attention",
        "weight_tie_layers": "share weights between iterations after the first",
        "fourier_encode_data": "join Fourier position features to the pixels",
        "checkpoint_latents": "compute latent layers again in backward: less memory, more time",
    }.items():
        default = defaults[name]
        text = f"{text} (default: {default})"
        flag = "--" + name.replace("_", "-")
        if isinstance(default, bool):
            action = argparse.BooleanOptionalAction
            model.add_argument(flag, action=action, default=default, help=text)
        elif isinstance(default, str):
            model.add_argument(flag, choices=["geglu", "gelu"], default=default, help=text)
        else:
            metavar = "N" if isinstance(default, int) else "X"
            model.add_argument(
                flag, type=type(default), default=default, metavar=metavar, help=text
            )

    optimisation = parser.add_argument_group("optimisation")
    optimisation.add_argument(
        "--epochs", type=positive_int, default=20, metavar="N", help="(default: 20)"
    )
    optimisation.add_argument(
        "-b",
        "--batch-size",
        type=positive_int,
        default=64,
        metavar="N",
        help="slices a step (default: 64)",
    )
    optimisation.add_argument(
        "--grad-accumulation",
        type=positive_int,
        default=1,
        metavar="N",
        help="work through a batch in N parts: less memory, the same step (default: 1)",
    )
    optimisation.add_argument(
        "--lr",
        type=positive_float,
        default=2e-4,
        metavar="X",
        help="Adam's learning rate (default: 2e-4)",
    )
    optimisation.add_argument(
        "--lr-decay",
        type=positive_float,
        default=0.995,
        metavar="X",
        help="factor on the learning rate after each epoch (default: 0.995)",
    )
    optimisation.add_argument(
        "--augment",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="shift, turn, scale and brighten training slices a little, at random; add noise",
    )
    optimisation.add_argument(
        "--mirror-swap",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="mirror half of the training slices and swap their labels",
    )

    run = parser.add_argument_group("run")
    run.add_argument("--resume", type=Path, metavar="RUN", help="go on with the run in this folder")
    run.add_argument(
        "--save-every-steps",
        type=positive_int,
        metavar="N",
        help="write last.pt within an epoch, too (default: after each epoch)",
    )
    run.add_argument(
        "--output-dir", type=Path, metavar="RUN", help="run folder (default: runs/<time>)"
    )
    run.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    run.add_argument(
        "--amp",
        action=argparse.BooleanOptionalAction,
        help="bfloat16 autocast (default: on a GPU only)",
    )
    run.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile the latent layers (on a CPU it takes a C++ compiler)",
    )
    run.add_argument(
        "--tensorboard",
        action="store_true",
        help="write scalars and pictures for TensorBoard, too (pip install tensorboard)",
    )
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="read, split, report, take one step, stop; no run folder is made",
    )

    args = parser.parse_args(argv)
    if args.demo:
        parser.set_defaults(**DEMO)
        args = parser.parse_args(argv)
    # torchrun --max-restarts starts the same command again.
    restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
    if restarts and not (args.output_dir or args.resume):
        parser.error("--max-restarts takes an --output-dir, to find the run again")
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if restarted and args.output_dir and not args.resume:
        args.resume = own_run(args.output_dir)
    if args.resume:
        args = resumed_args(parser, argv, args.resume)
    if not (args.data_dir or args.demo):
        parser.error("one of --data-dir, --demo and --resume is needed")
    if args.split_file and (args.val_fraction is not None or args.test_fraction is not None):
        parser.error("--split-file says which scans are held out: leave out the fractions")
    return args


def add_data_arguments(group: argparse._ActionsContainer) -> None:
    """The flags that say how data is read and split."""
    group.add_argument(
        "--split",
        choices=["patient", "scan"],
        default="patient",
        help="what stays whole: patients, or scans as in the original experiment, which leaks "
        "patients (default: patient)",
    )
    group.add_argument(
        "--split-file", type=Path, metavar="CSV", help="CSV with columns subset and scan"
    )
    group.add_argument(
        "--val-fraction",
        type=float,
        metavar="X",
        help="share held out for validation (default: 0.125)",
    )
    group.add_argument(
        "--test-fraction",
        type=float,
        metavar="X",
        help="share held out for the test (default: 0.125; with --split scan both default to the "
        "experiment's shares)",
    )
    group.add_argument(
        "--image-size",
        type=positive_int,
        nargs=2,
        metavar=("H", "W"),
        default=(76, 86),
        help="height and width that slices are resized to (default: 76 86)",
    )
    group.add_argument(
        "--plane",
        choices=volumes.PLANES,
        default="stored",
        help="how volumes are cut into slices (default: stored)",
    )
    group.add_argument(
        "--name-pattern",
        metavar="REGEX",
        help="what names tell, as groups patient, scan, side and slice (default: as in AKOA, or "
        "folders left/ and right/)",
    )
    group.add_argument(
        "--cache-dir",
        type=Path,
        default=Path("cache"),
        metavar="DIR",
        help="where decoded slices are kept for the next start; it may be deleted (default: cache)",
    )
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of split, weights and order (default: 0)"
    )
    group.add_argument(
        "-j",
        "--workers",
        type=positive_int,
        metavar="N",
        help="threads that decode (default: all cores)",
    )


def own_run(folder: Path) -> Path | None:
    """The folder, if the torchrun that started this process has begun a run in it."""
    try:
        return folder if runs.read_record(folder)["launch"] == runs.launch_id() else None
    except (ValueError, KeyError):
        return None


def resumed_args(
    parser: argparse.ArgumentParser, argv: list[str] | None, folder: Path
) -> argparse.Namespace:
    """The arguments of the run in `folder`, with those of this command line that may differ."""
    try:
        saved = {**runs.read_record(folder)["arguments"], "output_dir": str(folder)}
    except ValueError as error:
        parser.error(str(error))
    parser.set_defaults(**saved)
    args = parser.parse_args(argv)
    # Dropout draws by parts of a batch.
    dropout = saved.get("ff_dropout") or saved.get("attention_dropout")
    harmless = HARMLESS - ({"grad_accumulation"} if dropout else set())
    changed = []
    for name, value in saved.items():
        given = getattr(args, name, value)
        given = str(given) if isinstance(given, Path) else given
        if name not in harmless and given != value:
            changed.append(f"{as_flag(name, given)} (the run has {as_flag(name, value)})")
    if changed:
        parser.error(
            f"{', '.join(changed)}: can't be changed on the way, because the result would; start "
            "a new run"
        )
    args.resume = args.output_dir = folder
    return args


def as_flag(name: str, value) -> str:
    """An argument as it is typed: image_size, [76, 86] -> --image-size 76 86."""
    flag = name.replace("_", "-")
    if value is None or isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}" if value is False else f"no --{flag}"
    values = value if isinstance(value, (list, tuple)) else [value]
    return " ".join([f"--{flag}", *map(str, values)])


def positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def positive_float(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value
