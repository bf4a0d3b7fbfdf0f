"""A trained model as predict.py takes it, and what its checkpoint keeps of how data is read.

    model = open_trained(Path("runs/demo/best.pt"))
    options = options_as_trained(model, args)   # but for what these flags say

train.py keeps the flags of KEPT beside classes, image size and scale, so that what was trained on
and what is predicted are read alike. A checkpoint may come from anybody: all of it is checked.
"""

import argparse
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from common.program import UserError, typed
from perceiver import MOST, Perceiver, is_size, shown
from scans.flags import options_of
from scans.identity.rules import compile_pattern
from scans.places import MIN_LENGTH
from scans.searching import Search, SlowPattern
from scans.slices import DataError, Options
from scans.volumes import PLANES

KEPT = ("plane", "slices", "series", "echo", "name_pattern", "slices_per_scan")
OF_NAMES = ("name_pattern", "slices_per_scan")  # together they tell scans: a flag replaces both
LONGEST = 1000  # characters of a kept regular expression


def kept_of(args: argparse.Namespace) -> dict:
    """What a checkpoint keeps of the flags that say how data is read."""
    saved = {name: getattr(args, name) for name in KEPT}
    if args.name_pattern:  # which is searched for below this folder
        folder = args.data_dir if args.data_dir.is_dir() else args.data_dir.parent
        saved["pattern_root"] = os.path.abspath(folder)
    return saved


def open_trained(path: Path, device: torch.device | str = "cpu") -> Perceiver:
    """A model that tells classes of grey slices apart, and says all that its inputs need.

    Raises CheckpointError or OSError as `Perceiver.from_checkpoint` does, and UserError for a
    model of something else.
    """
    model = Perceiver.from_checkpoint(path, device)
    known, config = model.preprocessing, model.config
    for name in ("image_size", "classes"):
        if known.get(name) is None:
            raise UserError(f"{path}: does not say the {name} that it was trained on")
    if len(known["classes"]) < 2:
        raise UserError(f"{path}: has one class, {known['classes'][0]}: nothing to tell apart")
    axes = config["input_axis"]
    if config["input_channels"] != 1 or axes not in (2, 3) or len(known["image_size"]) != 2:
        raise UserError(f"{path}: not a model of grey slices, or of scans of them")
    for name in KEPT:
        if known.get(name) is not None and not is_possible(name, known[name]):
            flag = name.replace("_", "-")
            raise UserError(f"{path}: keeps --{flag} {shown(known[name])}, which can't be")
    if not isinstance(known.get("pattern_root", ""), str):
        raise UserError(f"{path}: keeps the folder {shown(known['pattern_root'])}, which can't be")
    towards, letters = known.get("orientation", ""), 3 if axes == 3 else 2
    if not isinstance(towards, str) or not re.fullmatch(f"([LRPAIS]{{{letters}}})?", towards):
        raise UserError(f"{path}: keeps the orientation {shown(towards)}, which can't be")
    if axes == 3:
        length = known.get("slices")
        whole = is_size(length) and length >= MIN_LENGTH
        if not whole or math.prod(sample_size(model)) > MOST // model.token_dim:
            raise UserError(f"{path}: scans of {shown(length)} slices, which can't be")
    return model


def scan_length(model: Perceiver) -> int | None:
    """How many slices of a scan a model reads at once; None: it reads slices."""
    return model.preprocessing["slices"] if model.config["input_axis"] == 3 else None


def sample_size(model: Perceiver) -> tuple[int, ...]:
    """(1, height, width) where a model reads slices, (1, length, height, width) of scans."""
    length = scan_length(model)
    return (1, *([length] if length else []), *model.preprocessing["image_size"])


def is_possible(name: str, value: object) -> bool:
    """Whether a flag of KEPT can have this value."""
    if name == "plane":
        return isinstance(value, str) and value in PLANES
    if name not in ("series", "name_pattern"):
        return is_size(value)
    if not isinstance(value, str) or len(value) > LONGEST:
        return False
    try:
        check = compile_pattern if name == "name_pattern" and value else partial(Search, name)
        check(value)
    except DataError:
        return False
    return True


def options_as_trained(model: Perceiver, args: argparse.Namespace) -> Options:
    """How files are understood: by the flags that are given, and else as in training."""
    kept = {name: model.preprocessing.get(name) for name in KEPT}
    for name in replaced_by(args):
        kept[name] = None
    options = options_of(args)
    if kept["name_pattern"] and (root := model.preprocessing.get("pattern_root")):
        options = replace(options, pattern_root=Path(root))
    return replace(options, **{name: value for name, value in kept.items() if value})


def replaced_by(args: argparse.Namespace) -> set[str]:
    """What of KEPT flags say otherwise."""
    given = {name for name in KEPT if getattr(args, name, None) is not None}
    return given | set(OF_NAMES if given.intersection(OF_NAMES) else ())


@contextmanager
def naming_checkpoint(args: argparse.Namespace) -> Iterator[None]:
    """For what searches: where an expression that is kept takes too long, UserError says whose."""
    try:
        yield
    except SlowPattern as error:
        if error.option in replaced_by(args):
            raise
        without = f"--{error.option.replace('_', '-')} ''"
        raise UserError(f"{args.checkpoint}: keeps {error}; {without} goes without it") from error


def describe_kept(model: Perceiver, args: argparse.Namespace) -> str:
    """That names are read as in training, and how not to; "" where nothing of it is kept."""
    flags = [
        f"--{name.replace('_', '-')} {typed(str(model.preprocessing[name]))}"
        for name in OF_NAMES
        if model.preprocessing.get(name) and name not in replaced_by(args)
    ]
    if not flags:
        return ""
    return f"names are read as in training: {' '.join(flags)} (--name-pattern '' for none of it)"
