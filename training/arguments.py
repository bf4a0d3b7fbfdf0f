"""The command line of train.py."""

import argparse
import inspect
import math
import os
from argparse import BooleanOptionalAction
from pathlib import Path

from common.program import (
    Parser,
    fraction,
    number_of,
    positive_float,
    positive_int,
)
from perceiver import MOST_SIZE, Perceiver, is_number, is_size
from scans.flags import add_data_arguments
from scans.places import MIN_LENGTH
from scans.splits import HELD_OUT
from training.recipe import OPTIMIZERS, SCHEDULES
from training.runfolder import FOLDS
from training.saved import as_typed, own_run, resumed_args

# What --demo changes, chosen on validation: a few minutes on two CPU cores. Low frequencies and
# augmentation keep so small a model from telling 18 patients apart by detail. 20 epochs were a
# little worse; half of the tokens a step was far worse for one seed of two.
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

# What --recipe changes. The first: see docs/results.md. The second is near to what Perceivers were
# trained with on ImageNet, in far larger batches: optimizer, learning rate, weight decay and
# clipping of Jaegle et al. 2021, arXiv:2103.03206; schedule and label smoothing of the code that
# Perceiver IO was published with.
RECIPES = {
    "adamw": {
        "optimizer": "adamw",
        "lr": 2e-3,
        "weight_decay": 0.05,
        "schedule": "cosine",
        "warmup_epochs": 0.5,
        "query_scale": 16.0,
    },
    "imagenet": {
        "optimizer": "lamb",
        "lr": 4e-3,
        "weight_decay": 0.1,
        "schedule": "constant-cosine",
        "clip_gradient": 10.0,
        "label_smoothing": 0.1,
    },
}

OF_SCANS = {"batch_size": 8, "query_scale": 6.0}  # what --input scan changes
DEMO_OF_SCANS = {
    "image_size": (19, 22),
    "slices": 20,
    "depth": 2,
    "epochs": 150,
    "batch_size": 16,
    "lr_decay": 0.98,
}

QUERY_SCALE = (
    "factor on the first weights of the queries: above 1 latents look at parts of the input from "
    f"the start; with --input scan by default {OF_SCANS['query_scale']:g}"
)
SCHEDULE = (
    "of the learning rate: times --lr-decay after each epoch, or each step; falling to 0 in half a "
    "cosine, from the start or in the second half"
)
DECAY = "of weights, not of biases, norms and latents, with --optimizer adamw or lamb"
MIXUP = "mix samples of a batch, in shares from Beta(ALPHA, ALPHA)"
EMA = "test an average of the weights; each step keeps at most this share of it, such as 0.999"
TOKEN_FRACTION = "share of the tokens that a training step reads; evaluation reads all"

# Arguments of Perceiver. The number of channels, axes and classes follow from the data, and slices
# of one channel can't do without position features.
MODEL_FLAGS = {
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
    "checkpoint_latents": "compute latent layers again in backward: less memory, more time",
}


def add_model_arguments(group: argparse._ActionsContainer) -> None:
    """A flag for each argument of Perceiver, of the same name and default."""
    for name, text in MODEL_FLAGS.items():
        default = inspect.signature(Perceiver).parameters[name].default
        flag, more = "--" + name.replace("_", "-"), {"default": default, "help": text}
        if isinstance(default, bool):
            group.add_argument(flag, action=BooleanOptionalAction, **more)
        elif isinstance(default, str):
            group.add_argument(flag, choices=["geglu", "gelu"], **more)
        else:
            kind = frequency if name == "max_freq" else below_one
            kind, metavar = (size, "N") if isinstance(default, int) else (kind, "X")
            group.add_argument(flag, type=kind, metavar=metavar, **more)


def size(text: str) -> int:
    """Raises ArgumentTypeError for what `perceiver.check_config` refuses, as do those below."""
    return number_of(int, text, f"a whole number from 1 to {MOST_SIZE:,}", is_size)


def frequency(text: str) -> float:
    expected = "a number above 0 and at most 2**127, which float32 holds"
    return number_of(float, text, expected, lambda value: value > 0 and is_number(value))


def below_one(text: str) -> float:
    expected = "a number of at least 0 and below 1"
    return number_of(float, text, expected, lambda value: 0 <= value < 1)


def not_negative(text: str) -> float:
    return number_of(float, text, "a number of at least 0", lambda value: 0 <= value < math.inf)


def weight_decay(text: str) -> float:
    expected = "a number from 0 to 1000"
    return number_of(float, text, expected, lambda value: 0 <= value <= 1000)


def strength(text: str) -> float:
    return number_of(float, text, "a number above 0 and at most 4", lambda value: 0 < value <= 4)


def bend(text: str) -> float:
    expected = "a number from 0 to 0.08"
    return number_of(float, text, expected, lambda value: 0 <= value <= 0.08)


def model_arguments(args: argparse.Namespace) -> dict:
    names = inspect.signature(Perceiver).parameters.keys() & vars(args).keys()
    axes = 3 if args.input == "scan" else 2
    return {name: getattr(args, name) for name in names} | {"input_axis": axes}


def make_parser() -> Parser:
    parser = Parser(
        prog="train.py",
        description="Train a Perceiver to tell classes of slices apart, such as left and right "
        "knees, and test it.",
    )
    data = parser.add_argument_group("data")
    add = data.add_mutually_exclusive_group().add_argument
    add("--data-dir", type=Path, metavar="DIR", help="folder of slices or volumes, or a manifest")
    add("--demo", action="store_true", help="synthetic knees (kept in phantoms/) and a small model")
    whole = "what the model reads at once: a slice, or a whole scan of --slices slices"
    k_runs = "cross-validation: of 3 or more parts of the patients each is the test of a run"
    data.add_argument("--folds", type=positive_int, metavar="K", help=k_runs)
    data.add_argument("--input", choices=["slice", "scan"], default="slice", help=whole)
    add_data_arguments(data)
    add_model_arguments(parser.add_argument_group("model (arguments of perceiver.Perceiver)"))

    add = parser.add_argument_group("optimisation").add_argument
    switch, balanced = BooleanOptionalAction, ["none", "balanced"]
    add("--epochs", type=positive_int, default=20, metavar="N", help="passes over the data")
    a_step = f"slices a step; scans, by default {OF_SCANS['batch_size']}, with --input scan"
    add("-b", "--batch-size", type=positive_int, default=64, metavar="N", help=a_step)
    add("--grad-accumulation", type=positive_int, default=1, metavar="N", help="parts of a batch")
    named = "several flags at once, listed at the end; flags that are named still win"
    add("--recipe", choices=RECIPES, help=named)
    add("--optimizer", choices=OPTIMIZERS, default="adam", help="how gradients become steps")
    add("--lr", type=positive_float, default=2e-4, metavar="X", help="learning rate")
    add("--schedule", choices=SCHEDULES, default="exponential", help=SCHEDULE)
    factor = "factor on the learning rate, an epoch or a step, of exponential schedules"
    add("--lr-decay", type=fraction, default=0.995, metavar="X", help=factor)
    rise = "over which the learning rate rises in a line"
    add("--warmup-epochs", type=not_negative, default=0.0, metavar="X", help=rise)
    add("--weight-decay", type=weight_decay, default=0.0, metavar="X", help=DECAY)
    most = "largest norm of a step's gradient; a larger one is made shorter (0: none is)"
    add("--clip-gradient", type=not_negative, metavar="X", help=most)
    smooth = "share of a label's weight that goes to all classes alike"
    add("--label-smoothing", type=below_one, default=0.0, metavar="X", help=smooth)
    add("--mixup", type=not_negative, default=0.0, metavar="ALPHA", help=MIXUP)
    add("--ema", type=below_one, default=0.0, metavar="X", help=EMA)
    add("--class-weights", choices=balanced, default="none", help="of the training loss")
    add("--query-scale", type=positive_float, default=1.0, metavar="X", help=QUERY_SCALE)
    add("--token-fraction", type=fraction, default=1.0, metavar="X", help=TOKEN_FRACTION)
    add("--augment", action=switch, default=False, help="shift, turn, scale, brighten; add noise")
    times = "factor on how far --augment goes, at most 4"
    add("--augment-strength", type=strength, default=1.0, metavar="X", help=times)
    bent = "bend images by up to this share of their size, at most 0.08"
    add("--bend", type=bend, default=0.0, metavar="X", help=bent)
    add("--mirror-swap", action=switch, default=False, help="mirror half, and swap their sides")
    axis = "what mirrors a scan: the order of its slices, or their columns (default: as data shows)"
    add("--mirrored", choices=["slices", "columns"], help=axis)

    add = parser.add_argument_group("run").add_argument
    add("--resume", type=Path, metavar="RUN", help="go on with the run in this folder")
    add("--save-every-steps", type=positive_int, metavar="N", help="within an epoch, too")
    add("--output-dir", type=Path, metavar="RUN", help="run folder (default: runs/<time>)")
    add("--device", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    add("--amp", action=switch, help="bfloat16 autocast (default: on a GPU only)")
    add("--compile", action="store_true", help="torch.compile the latent layers")
    add(
        "--tensorboard", action="store_true", help="write scalars and pictures for TensorBoard, too"
    )
    audit = "of --folds: print scans that are labelled wrongly, or may be, worst first"
    add("--audit", action="store_true", help=audit)
    rounds = "the second learns from no scan that the first found wrong, and so on"
    add("--audit-rounds", type=positive_int, default=1, metavar="N", help=rounds)
    add("--dry-run", action="store_true", help="read, split, report, take one step, stop")
    demo, of_scans = flags_of(parser, {**DEMO, "data_dir": None}), flags_of(parser, DEMO_OF_SCANS)
    lines = ["A run folder that already holds a run is never overwritten."]
    lines += [f"--demo has defaults of its own: {demo}; and with --input scan: {of_scans}."]
    lines += [f"--recipe {name} is {flags_of(parser, table)}." for name, table in RECIPES.items()]
    parser.epilog = "\n".join(lines)
    return parser


def flags_of(parser: Parser, table: dict) -> str:
    return " ".join(as_typed(parser, name, value) for name, value in table.items()).strip()


def describe_recipe(args: argparse.Namespace) -> str:
    """What its flags are in this run: some may have been named."""
    values = {name: getattr(args, name) for name in RECIPES[args.recipe]}
    return f"--recipe {args.recipe}: {flags_of(make_parser(), values)}"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the command line; --demo and --recipe change defaults; named flags still win."""
    parser = make_parser()
    args = parser.parse_args(argv)
    changed = (DEMO if args.demo else {}) | RECIPES.get(args.recipe, {})
    if args.input == "scan":
        changed |= OF_SCANS | (DEMO_OF_SCANS if args.demo else {})
    parser.set_defaults(**changed)
    args = parser.parse_args(argv)
    # torchrun --max-restarts starts the same command again.
    restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
    if restarts and not (args.output_dir or args.resume):
        parser.error("--max-restarts takes an --output-dir, to find the run again")
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if restarted and args.output_dir and not args.resume:
        args.resume = own_run(args.output_dir)
    if args.folds and args.output_dir and (args.output_dir / FOLDS).exists():
        args.resume = args.output_dir  # the same command again goes on
    if args.resume:
        args = resumed_args(make_parser(), argv, args.resume)  # whose defaults nobody changed
    if not (args.data_dir or args.demo):
        of_run = f"{args.resume / 'args.json'} names no data; say --data-dir" if args.resume else ""
        parser.error(of_run or "one of --data-dir, --demo and --resume is needed")
    if args.mirrored and not (args.mirror_swap and args.input == "scan"):
        parser.error("--mirrored says what --mirror-swap reverses with --input scan: add both")
    if args.input == "scan" and args.slices < MIN_LENGTH:
        parser.error(f"--slices {args.slices}: a whole scan has at least {MIN_LENGTH}")
    check_recipe(parser, args)
    check_folds(parser, args)
    if args.split_file and (args.val_fraction is not None or args.test_fraction is not None):
        parser.error("--split-file says which scans are held out: leave out the fractions")
    fractions = [args.val_fraction, args.test_fraction]
    fractions = [HELD_OUT if value is None else value for value in fractions]
    if sum(fractions) >= 1:
        text = "--val-fraction {} and --test-fraction {}: leave nothing to train on"
        parser.error(text.format(*fractions))
    return args


def check_recipe(parser: Parser, args: argparse.Namespace) -> None:
    if args.weight_decay and args.optimizer == "adam":
        set_by = f"; --recipe {args.recipe} sets it: add --weight-decay 0" if args.recipe else ""
        parser.error(f"--weight-decay takes --optimizer adamw or lamb{set_by}")
    typed_decay = not args.resume and args.lr_decay != parser.get_default("lr_decay")
    if typed_decay and not args.schedule.startswith("exponential"):
        told = f"--lr-decay has no effect on --schedule {args.schedule}: leave it out"
        parser.error(f"{told}, or add --schedule exponential")
    if args.warmup_epochs >= args.epochs:
        parser.error(f"--warmup-epochs {args.warmup_epochs:g}: expected fewer than --epochs")
    if args.mixup and args.batch_size == 1:
        parser.error("--mixup mixes the samples of a batch: --batch-size 1 has one alone")
    if args.augment_strength != 1 and not args.augment:
        parser.error("--augment-strength takes --augment: add it")


def check_folds(parser: Parser, args: argparse.Namespace) -> None:
    if args.folds:
        if args.folds < 3:
            parser.error(f"--folds {args.folds}: expected at least 3, to train, choose and test on")
        if args.fold and args.fold > args.folds:
            parser.error(f"--fold {args.fold}: there are {args.folds}")
        if args.split == "scan":
            parser.error("--folds are of patients: leave out --split scan")
        if args.val_fraction is not None or args.test_fraction is not None:
            parser.error("--folds says what is held out: leave out the fractions")
        if args.audit_rounds > 1 and not args.audit:
            parser.error("--audit-rounds takes --audit: add it")
    elif args.audit or args.audit_rounds > 1:
        parser.error("--audit takes --folds: no model may judge a scan that it was trained on")
    elif args.fold and not args.split_file:
        parser.error("--fold takes --folds, or a table of folds as --split-file")
