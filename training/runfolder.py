"""A run's folder: what makes it, how far it has come, and what it goes on from.

It holds args.json, split.csv, metrics.csv, curves.png, last.pt and best.pt, and after testing what
evaluation/report.py writes. All files are written whole or not at all.
"""

import argparse
import io
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import einops
import numpy as np
import PIL
import torch

from common import signals
from common.csv_tables import write_csv
from common.files import NotAFile, check_regular, read_json, whole_file, write_json
from common.program import UserError, counted, describe_os_error, typed
from common.workers import broadcast, processes, rank, wait_for_all
from dataset import Dataset
from evaluation.calibration import Calibration
from perceiver import CheckpointError, Perceiver, read_checkpoint
from training.epoch import COLUMNS, NonFiniteError, Progress

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
    device = model.latents.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    record = {**describe_run(arguments), "device": f"{device} {name}".strip()}
    write_record(folder, {**record, "products": model.products, "data": data})


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


# ---- how far it has come: last.pt and best.pt ----------------------------------------------------


class Resumed(NamedTuple):
    """What a run goes on from."""

    model: Perceiver
    progress: Progress
    optimizer: dict  # its state
    data: dict  # see `describe_data`


class Run:
    """A run in its folder: the model, its optimizer and its progress, and how they are kept."""

    def __init__(
        self,
        folder: Path,
        model: Perceiver,
        optimizer: torch.optim.Optimizer,
        made_with: dict,
        resumed: Resumed | None = None,
    ):
        """made_with: arguments and data that the result depends on, as plain values."""
        self.folder, self.model, self.optimizer = folder, model, optimizer
        self.made_with, self.progress = made_with, Progress()
        if resumed:
            self.progress = resumed.progress
            groups = optimizer.state_dict()["param_groups"]  # our own: arguments, not state
            optimizer.load_state_dict({"state": resumed.optimizer, "param_groups": groups})

    def save(self, *names: str) -> None:
        """Write checkpoints of these names, from the first process. Raises NonFiniteError."""
        if rank() > 0:
            return
        if not all(tensor.isfinite().all() for tensor in self.model.parameters()):
            raise NonFiniteError(f"the weights became non-finite in epoch {self.progress.epoch}")
        more = {"optimizer": self.optimizer.state_dict(), "progress": asdict(self.progress)}
        more |= self.made_with
        for name in names:
            save_checkpoint(self.folder / name, self.model, **more)

    def end_epoch(self, row: dict) -> bool:
        """Keep an epoch's row of metrics.csv; save. Returns whether it was the best so far."""
        before, loss = self.progress, row["val_loss"]
        is_best, best = loss < before.best, min(loss, before.best)
        self.progress = Progress(before.epoch + 1, best=best, rows=[*before.rows, row])
        # In this order: a kill between the two leaves a last.pt that does this epoch again.
        self.save(*(["best.pt"] if is_best else []), "last.pt")
        self.draw()
        return is_best

    def draw(self) -> None:
        """Write metrics.csv and curves.png."""
        if rank() == 0 and self.progress.rows:
            from evaluation import curves  # matplotlib takes a third of a second at the start

            write_csv(self.folder / "metrics.csv", self.progress.rows)
            curves.draw_curves(self.progress.rows, self.folder / "curves.png")


def name_failed_batch(folder: Path, error: NonFiniteError) -> None:
    """Write the names of the slices at which it failed into the run folder, and let it say so."""
    error.checkpoints = [name for name in ("best.pt", "last.pt") if (folder / name).exists()]
    if rank() > 0 or not (error.batch and folder.is_dir()):  # a dry run has no folder
        return
    error.named_in = folder / "failed_batch.txt"
    with whole_file(error.named_in) as temporary:
        temporary.write_bytes(os.fsencode("\n".join(error.batch) + "\n"))


def save_checkpoint(path: Path, model: Perceiver, **training) -> None:
    """Write what rebuilds the model, and what training goes on from: tensors and plain values."""
    content = io.BytesIO()  # torch.save itself does not say that a disk is full
    torch.save({**model.checkpoint(), **training}, content)
    with whole_file(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def save_calibration(path: Path, model: Perceiver, calibration: Calibration) -> None:
    """Keep the calibration in the model and in its checkpoint, which else stays as it is."""
    model.calibration = asdict(calibration)
    if rank() == 0:
        of_model = model.checkpoint()
        more = {k: v for k, v in read_checkpoint(path).items() if k not in of_model}
        save_checkpoint(path, model, **more)
    wait_for_all()


def read_resumed(folder: Path, arguments: dict, record: Path | None = None) -> Resumed:
    """What last.pt holds, for a run with these arguments that its result depends on.

    record: where these come from, if not from its own args.json.

    Raises:
        CheckpointError: last.pt is not a whole checkpoint that a run can go on from.
        UserError: args.json has been changed since, or best.pt is not the best so far.
    """
    path = folder / "last.pt"
    model, checkpoint = Perceiver.from_checkpoint(path), read_checkpoint(path)
    progress = check_progress(path, checkpoint, model)
    data = checkpoint.get("data", read_record(folder).get("data", {}))
    check_data(path, data)
    # What the checkpoint was made with; one of before arguments were kept there says less.
    made_with = {"lr": progress.rows[0]["lr"]} if progress.rows else {}
    made_with |= checkpoint.get("arguments", {}) | model.config | model.preprocessing
    for name, value in arguments.items():
        original = made_with.get(name, value)
        if name == "split_file" and value and original:  # split.csv stands for it, wherever it is
            continue
        if repr(value) != repr(original):  # in a foreign file a value may be anything
            raise UserError(
                f"{record or folder / 'args.json'}: {name} is {as_json(value)}, but {path} was "
                f"made with {as_json(original)}: put that back, or start a new run"
            )
    check_best(folder, progress)
    return Resumed(model, progress, checkpoint["optimizer"]["state"], data)


def check_best(folder: Path, progress: Progress) -> None:
    """Raise UserError unless best.pt is of the epoch that was the best so far.

    It is what is tested in the end: where it is lost, nothing else may be tested in its place.
    """
    if not progress.rows:
        return
    path, losses = folder / "best.pt", [row["val_loss"] for row in progress.rows]
    epoch = 1 + losses.index(min(losses))
    wanted = f"the checkpoint of epoch {epoch}, the best so far, which is to be tested"
    if epoch == len(losses) and progress.step == 0:
        advice = f"put a copy of {folder / 'last.pt'}, which is the same, in its place"
    else:
        advice = "put it back, or start a new run"
    try:
        check_regular(path)
        model, checkpoint = Perceiver.from_checkpoint(path), read_checkpoint(path)
        rows = check_progress(path, checkpoint, model).rows
    except (OSError, CheckpointError) as error:
        problem = describe_os_error(error) if isinstance(error, OSError) else f"{error}"
        raise UserError(f"{problem}; expected {wanted}: {advice}") from error
    # A kill between best.pt and last.pt leaves a best.pt of the epoch that is done again.
    if progress.rows[:epoch] != rows and progress.rows != rows[:-1]:
        raise UserError(f"{path}: of another run or epoch, expected {wanted}: {advice}")


def check_progress(path: Path, checkpoint: dict, model: Perceiver) -> Progress:
    """What a run goes on from, checked.

    Fused Adam writes past the end of optimizer state that is too short: each tensor is compared.

    Raises:
        CheckpointError: optimizer or progress are missing, of another model, or not finite.
    """
    saved, optimizer, fresh = checkpoint.get("progress"), checkpoint.get("optimizer"), Progress()
    types = {name: type(value) for name, value in asdict(fresh).items()}
    if not isinstance(saved, dict) or {n: type(v) for n, v in saved.items()} != types:
        raise CheckpointError(f"{path}: holds no progress that a run can go on from")
    progress = Progress(**saved)
    sums = progress.loss_sum, progress.correct, progress.seconds
    sound = progress.epoch >= 1 and progress.step >= 0 and all(map(math.isfinite, sums))
    sound = sound and not math.isnan(progress.best) and all(map(is_row, progress.rows))
    sound = sound and isinstance(checkpoint.get("arguments", {}), dict)
    state = optimizer.get("state") if isinstance(optimizer, dict) else None
    sound = sound and isinstance(state, dict)
    for i, parameter in enumerate(model.parameters() if state and sound else ()):
        shape, tensors = tuple(parameter.shape), state.get(i)
        found = {n: sound_shape(t) for n, t in tensors.items()} if isinstance(tensors, dict) else 0
        sound = sound and found == {"step": (), "exp_avg": shape, "exp_avg_sq": shape}
    begun = progress.step or progress.epoch > 1
    if not sound or (begun and not state):
        raise CheckpointError(f"{path}: optimizer or progress do not fit the model or are damaged")
    return progress


def is_row(row: object) -> bool:
    """Whether it is what `validate` gives: numbers."""
    return isinstance(row, dict) and all(type(row.get(name)) in (int, float) for name in COLUMNS)


def sound_shape(tensor: object) -> tuple[int, ...] | None:
    """The shape of a tensor of finite numbers; None of anything else."""
    dense = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
    if not dense or tensor.is_meta or tensor.is_nested or not tensor.is_floating_point():
        return None
    return tuple(tensor.shape) if bool(tensor.isfinite().all()) else None
