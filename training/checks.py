"""What is checked before anything slow: folders, tables, packages, memory.

check_arguments(args)               # before anything is read
check_image_size(args, slices)      # before anything is decoded
"""

import argparse
import math
import os
from pathlib import Path

import torch

from common.files import check_regular, try_folder
from common.program import UserError, check_matplotlib, counted
from common.workers import choose_device, memory_of, processes, rank
from evaluation.trained import LONGEST, kept_of
from perceiver import (
    MOST,
    MOST_LAYERS,
    MOST_SIZE,
    Perceiver,
    check_preprocessing,
    is_size,
)
from training.arguments import model_arguments
from training.epoch import at_a_time

GB = 1e9
OF_A_PARAMETER = 16  # bytes: itself, its gradient, and two means of the optimizer
OF_AN_AVERAGE = 4  # more of them with --ema


def check_arguments(args: argparse.Namespace) -> None:
    """Raise UserError, or OSError with a file's name, for what can't come to a good end."""
    check_kept(args)
    if args.depth * args.self_per_cross_attn > MOST_LAYERS:
        raise UserError(
            f"--depth {args.depth} times --self-per-cross-attn {args.self_per_cross_attn}: "
            f"expected at most {MOST_LAYERS:,} layers"
        )
    with torch.device("meta"):  # shapes alone
        model = Perceiver(**model_arguments(args))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    needed = parameters * (OF_A_PARAMETER + (OF_AN_AVERAGE if args.ema else 0))
    there = memory_of(choose_device(args.device))
    if needed > there:
        raise UserError(
            f"a model of {parameters / 1e6:,.0f} M parameters takes "
            f"{needed / GB:,.0f} GB to train, and there are {there / GB:,.0f} GB: try a smaller "
            "--latent-dim, --num-latents or --depth"
        )
    if os.path.realpath(args.data_dir) == os.path.realpath(args.output_dir):
        raise UserError(
            f"--output-dir {args.output_dir}: is --data-dir; its pictures would be data"
        )
    nearest_folder("--output-dir", args.output_dir)
    if rank() == 0:
        try_folder(args.output_dir)
    nearest_folder("--cache-dir", args.cache_dir)
    tables = [] if args.resume else [args.split_file, *(args.labels or [])]
    for table in filter(None, tables):
        check_regular(table)
    if not args.dry_run:
        check_matplotlib()


def check_kept(args: argparse.Namespace) -> None:
    """Raise UserError for what a checkpoint of it would be refused for, after all the training."""
    for name, value in kept_of(args).items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, int) and not is_size(value):
            raise UserError(f"{flag}: expected at most {MOST_SIZE:,}, got {value:,}")
        if isinstance(value, str) and len(value) > LONGEST:
            raise UserError(f"{flag}: expected at most {LONGEST:,} characters, got {len(value):,}")


def check_classes(args: argparse.Namespace, classes: list[str]) -> None:
    """Raise CheckpointError for classes that no checkpoint of them could be read with."""
    with torch.device("meta"):
        model = Perceiver(**model_arguments(args), num_classes=len(classes))
    check_preprocessing({"mean": 0.0, "std": 1.0, "classes": classes}, model)


def check_image_size(args: argparse.Namespace, samples: int) -> None:
    """Raise UserError if a batch of so many tokens has no room, or no checkpoint could hold it."""
    height, width = args.image_size
    size, tokens = f"--image-size {height} {width}", height * width
    if args.input == "scan":
        size, tokens = f"{size} --slices {args.slices}", tokens * args.slices
    with torch.device("meta"):
        width = Perceiver(**model_arguments(args)).token_dim
    batch = min(samples, math.ceil(at_a_time(args) / processes()))
    read = max(1, int(batch * args.token_fraction))
    needed, there = 4 * read * tokens * width, memory_of(choose_device(args.device))
    if needed > there:
        raise UserError(
            f"{size}: {tokens:,} tokens a {args.input}, {counted(batch, args.input)} at a time, "
            f"take {needed / GB:,.0f} GB, and there are {there / GB:,.0f} GB: try a smaller size, "
            "or more --grad-accumulation"
        )
    if tokens > MOST // width:  # no checkpoint of it could be read
        most = MOST // width
        raise UserError(f"{size}: {tokens:,} tokens a {args.input}, expected at most {most:,}")


def nearest_folder(flag: str, folder: Path) -> Path:
    """A folder, or the one in which it will be made. Raises UserError if a file is in the way."""
    nearest = next(path for path in [folder, *folder.parents] if path.exists())
    if not nearest.is_dir():
        raise UserError(f"{flag} {folder}: {nearest} is no folder")
    return nearest
