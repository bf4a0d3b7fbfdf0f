"""A run's folder: what makes it, how far it has come, and what it goes on from.

It holds args.json, split.csv, metrics.csv, curves.png, last.pt and best.pt, and after testing what
evaluation/report.py writes. All files are written whole or not at all.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import zlib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import einops
import numpy as np
import PIL
import torch

from common import signals
from common.files import NotAFile, check_regular, read_json, whole_file, write_json
from common.program import UserError, counted, typed
from common.workers import broadcast, processes, rank
from dataset import Dataset
from perceiver import Perceiver
from training.epoch import NonFiniteError

FOLDS = "folds.csv"  # of a cross-validation, which has a run in a folder for each fold
# A folder with one of these is taken.
RUN_FILES = ("last.pt", "best.pt", "metrics.csv", "test_metrics.json", FOLDS)
OTHER_FILES = (
    "args.json split.csv curves.png failed_batch.txt test_predictions.csv confusion_matrix.png "
    "calibration.png roc.png errors.png"
).split()
FILES_OF_FOLDS = "predictions.csv scans.csv cross_validation.json report.html".split()


# ---- the folder ----------------------------------------------------------------------------------


def choose_folder(args: argparse.Namespace) -> Path:
    """The run folder, checked: a new run never touches another one's. Not made yet."""
    folder = args.output_dir or Path("runs", datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    folder = broadcast(folder)  # one clock decides
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder as --output-dir")
    check_ways(folder, FILES_OF_FOLDS if args.folds else ())
    check_unused(folder, args)
    return folder


def check_ways(folder: Path, more: Sequence[str] = ()) -> None:
    """Raise UserError for what can't be replaced, and would be met after an epoch or after all.

    more: names of files besides those of an ordinary run.
    """
    for path in (folder / name for name in (*RUN_FILES, *OTHER_FILES, *more)):
        if path.is_dir():
            raise UserError(f"{path}: a folder is in the way of a file of the run; move it away")
    if (path := folder / "tensorboard").exists() and not path.is_dir():
        raise UserError(f"{path}: a file is in the way of a folder of the run; move it away")


def is_taken(folder: Path) -> bool:
    return any((folder / name).exists() for name in RUN_FILES)


def check_unused(folder: Path, args: argparse.Namespace) -> None:
    taken = [name for name in RUN_FILES if (folder / name).exists()]
    if args.folds and taken == [FOLDS]:  # by a machine that has just begun to share the folds
        return
    if taken and not args.resume:
        raise UserError(
            f"{folder} already holds a run ({taken[0]}); choose another --output-dir, or go on "
            f"with it: --resume {folder}"
        )


def program(name: str) -> Path:
    """train.py or predict.py, named from where the user stands as train.py was."""
    started = Path(sys.argv[0])
    return started.with_name(name) if started.name == "train.py" else Path(name)


def resume_command(args: argparse.Namespace) -> str:
    launcher = "python" if processes() == 1 else f"torchrun --nproc-per-node {processes()}"
    fold = f" --fold {args.fold}" if args.folds and args.fold else ""
    return f"{launcher} {typed(program('train.py'))} --resume {typed(args.output_dir)}{fold}"


def set_hint(args: argparse.Namespace) -> None:
    """What a run that is stopped at once, or by a full disk, says from here on."""
    signals.set_hint(f"go on with: {resume_command(args)}")


# ---- what made the run: args.json ----------------------------------------------------------------

LATEST = ("arguments", "directory", "products")  # of args.json: those that a run goes on with


def describe_run(arguments: dict) -> dict:
    """What made this run: for args.json. arguments: as plain values."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
    except OSError:
        commit = None
    packages = {"torch": torch, "einops": einops, "numpy": np, "pillow": PIL}
    versions = {name: package.__version__ for name, package in packages.items()}
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "arguments": arguments,
        "directory": os.getcwd(),  # where relative paths start
        "started": datetime.now().isoformat(timespec="seconds"),
        "threads": torch.get_num_threads(),
        "launch": launch_id(),
        "git_commit": commit,
        "versions": {"python": platform.python_version(), **versions},
    }


def read_record(folder: Path) -> dict:
    """args.json of a run: its arguments, and what else made it.

    Raises UserError if there is no run in this folder, or none that can be resumed.
    """
    last = folder / "last.pt"
    try:
        check_regular(folder / FOLDS if (folder / FOLDS).exists() else last)
    except NotAFile as error:
        text = f"{error.kind}, expected a checkpoint: nothing to resume from"
        raise UserError(f"{last}: {text}") from error
    except NotADirectoryError as error:
        hint = f"no such folder; name its folder: --resume {folder.parent}"
        raise UserError(f"{folder}: nothing to resume from: {hint}") from error
    except FileNotFoundError as error:
        lack = "it holds no last.pt" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: nothing to resume from: {lack}") from error
    except OSError as error:  # a name that is too long, a folder of somebody else
        raise UserError(f"{folder}: nothing to resume from: {error.strerror}") from error
    record = read_json(folder / "args.json", "record of a run")
    if not isinstance(record, dict) or not isinstance(record.get("arguments"), dict):
        raise UserError(f"{folder / 'args.json'}: not the arguments of a run")
    return record


def check_record(folder: Path, record: dict) -> None:
    """Raise UserError for what no run writes into args.json, besides its arguments."""
    kinds = {"directory": (str, "text"), "resumed": (list, "a list")}
    for name, (kind, called) in kinds.items():
        if not isinstance(record.get(name, kind()), kind):
            text = f"{name} is {as_json(record[name])}, expected {called}"
            raise UserError(f"{folder / 'args.json'}: {text}")
    check_data(folder / "args.json", record.get("data", {}))


def check_data(path: Path, data: object) -> None:
    """Raise UserError unless it is what `describe_data` gives, or some of it."""
    if not isinstance(data, dict):
        raise UserError(f"{path}: data is {as_json(data)}, expected an object")
    for name, value in data.items():
        if type(value) is not int:
            raise UserError(f"{path}: {name} of data is {as_json(value)}, expected a whole number")


def as_json(value: object) -> str:
    """Any value in a message, as it stands in args.json."""
    return json.dumps(value, default=repr, skipkeys=True)[:100]


def read_products(folder: Path) -> dict[str, str] | None:
    """Whose matrix products the run took; None on a GPU, and before this was kept.

    Raises UserError for what no run writes.
    """
    products = read_record(folder).get("products")
    complete = isinstance(products, dict) and products.keys() == {"layers", "reading"}
    if products is not None and not (
        complete and all(name in ("BLAS", "oneDNN") for name in products.values())
    ):
        text = f"products are {as_json(products)}, expected BLAS or oneDNN"
        raise UserError(f"{folder / 'args.json'}: {text}")
    return products


def record_start(folder: Path, arguments: dict, model: Perceiver, data: dict) -> None:
    """Write args.json; a resumed run adds how it went on.

    `arguments` are the latest, as plain values, so that it goes on the same way again; `data` tells
    whether slices and images are still the same.
    """
    record = {**describe_run(arguments), "device": describe_device(model.latents.device)}
    write_record(folder, {**record, "products": model.products, "data": data})


def describe_device(device: torch.device) -> str:
    """cuda:0 -> cuda:0 NVIDIA H200"""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return f"{device} {name}".strip()


def write_record(folder: Path, record: dict) -> None:
    """Write args.json. Of a run that is resumed: how it was started, and how it goes on now."""
    for left in folder.glob(".*.unfinished.*"):  # by a kill
        left.unlink()
    if record["arguments"]["resume"]:
        started = read_record(folder)
        latest = {name: record.pop(name) for name in LATEST if name in record}
        latest["arguments"]["resume"] = None
        record = {**started, **latest, "resumed": [*started.get("resumed", []), record]}
    write_json(folder / "args.json", record)


def describe_data(subsets: dict[str, Dataset]) -> dict:
    """What of the data a result depends on: how many slices, their pixels, labels and subsets."""
    samples, whole = 0, subsets["train"]
    for name, subset in subsets.items():
        lines = (f"{name} {s.label} {s.scan} {s.number}\n" for s in subset.members)
        samples = zlib.crc32("".join(lines).encode(errors="surrogateescape"), samples)
    return {"slices": len(whole.slices), "crc32": whole.crc32, "samples": samples}


def check_same_data(folder: Path, before: dict, now: dict) -> str:
    """Raise UserError if a resumed run would see other slices. Returns a line to print."""
    before = {**now, **before}  # old runs do not know all of it
    if now["slices"] != before["slices"]:
        raise UserError(
            f"{counted(now['slices'], 'slice')}; the run was started with {before['slices']}, and "
            "can't go on with others"
        )
    if now["samples"] != before["samples"]:
        raise UserError(
            f"{folder}: the run was started with other labels, names or subsets of these slices "
            "(split.csv, --labels, the manifest), and can't go on with others"
        )
    if now["crc32"] != before["crc32"]:
        return "warning: the images are not exactly those that the run was started with"
    return "the images are those that the run was started with"


def launch_id() -> str | None:
    """The same for all restarts of one torchrun, and for nothing else."""
    if (run_id := os.environ.get("TORCHELASTIC_RUN_ID", "none")) != "none":
        return run_id
    launched = "TORCHELASTIC_RESTART_COUNT" in os.environ
    return f"{platform.node()} {os.getppid()}" if launched else None


def name_failed_batch(folder: Path, error: NonFiniteError) -> None:
    """Write the names of the slices at which it failed into the run folder, and let it say so."""
    error.checkpoints = [name for name in ("best.pt", "last.pt") if (folder / name).exists()]
    if rank() > 0 or not (error.batch and folder.is_dir()):  # a dry run has no folder
        return
    error.named_in = folder / "failed_batch.txt"
    with whole_file(error.named_in) as temporary:
        temporary.write_bytes(os.fsencode("\n".join(error.batch) + "\n"))
