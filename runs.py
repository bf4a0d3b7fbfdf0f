"""Run folders: files that are written whole or not at all, and what a run is resumed from.

    with whole_file(run / "metrics.csv") as temporary:
        temporary.write_text(...)           # flushed to disk, then renamed to metrics.csv

A run folder holds args.json, split.csv, metrics.csv, curves.png, last.pt and best.pt, and after
testing what testing.py writes.
"""

import csv
import io
import json
import math
import os
import platform
import secrets
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import einops
import numpy as np
import PIL
import torch
from PIL import Image

from perceiver import Perceiver

RUN_FILES = ("last.pt", "best.pt", "metrics.csv", "test_metrics.json")  # a folder with one is taken


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary file in the same folder that becomes `path` when it is whole and on disk.

    If anything fails on the way (a full disk, a kill), `path` is what it was before.
    """
    # Not by process id alone: in containers that share a folder they are all the same.
    own = f"{os.getpid()}-{secrets.token_hex(4)}"
    temporary = path.with_name(f".{path.stem}.{own}.unfinished{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name, too
        finally:
            os.close(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        # Under its real name.
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_csv(path: Path, rows: list[dict], columns: list[str] | None = None) -> None:
    """Names that are no text, as file systems allow, are written as they are."""
    with (
        whole_file(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.DictWriter(file, columns or rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: Path, content: dict) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def save_checkpoint(path: Path, model: Perceiver, **more) -> None:
    """Write what rebuilds the model, and more: tensors and plain values only."""
    checkpoint = {
        "config": model.config,
        "preprocessing": model.preprocessing,
        "calibration": model.calibration,
        "model": model.state_dict(),
    }
    content = io.BytesIO()  # torch.save itself does not say that a disk is full
    torch.save({**checkpoint, **more}, content)
    with whole_file(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def describe_run(arguments: dict, device: torch.device) -> dict:
    """What made this run: for args.json."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
    except OSError:
        commit = None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in arguments.items()},
        "started": datetime.now().isoformat(timespec="seconds"),
        "device": f"{device} {name}".strip(),
        "threads": torch.get_num_threads(),
        "launch": launch_id(),
        "git_commit": commit,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "einops": einops.__version__,
            "numpy": np.__version__,
            "pillow": PIL.__version__,
        },
    }


def read_record(folder: Path) -> dict:
    """args.json of a run: its arguments, and what else made it.

    Raises ValueError if there is no run in this folder, or none that can be resumed.
    """
    if not folder.is_dir():
        hint = f"; name its folder: --resume {folder.parent}" if folder.is_file() else ""
        raise ValueError(f"{folder}: nothing to resume from: no such folder{hint}")
    if not (folder / "last.pt").is_file():
        raise ValueError(f"{folder}: nothing to resume from: it holds no last.pt")
    try:
        record = json.loads((folder / "args.json").read_text())
    except OSError as error:
        raise ValueError(f"{folder / 'args.json'}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{folder / 'args.json'}: damaged: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("arguments"), dict):
        raise ValueError(f"{folder / 'args.json'}: not the arguments of a run")
    return record


def record_start(folder: Path, arguments: dict, device: torch.device, data: dict) -> None:
    """Write args.json; a resumed run adds how it went on.

    `arguments` are the latest, so that it goes on the same way again; `data` tells whether the
    images are still the same.
    """
    made = {**describe_run(arguments, device), "data": data}
    for left in folder.glob(".*.unfinished.*"):  # by a kill
        left.unlink()
    if arguments["resume"]:
        started = read_record(folder)
        latest = {**made.pop("arguments"), "resume": None}
        made = {**started, "arguments": latest, "resumed": [*started.get("resumed", []), made]}
    write_json(folder / "args.json", made)


# ---- what a run goes on from ---------------------------------------------------------------------


@dataclass
class Progress:
    """How far a run has come: what last.pt holds besides weights and optimizer."""

    epoch: int = 1  # the one in training
    step: int = 0  # its steps that are done
    loss_sum: float = 0.0  # over the slices of those steps
    correct: float = 0.0
    seconds: float = 0.0
    best: float = math.inf  # lowest validation loss
    rows: list[dict] = field(default_factory=list)  # of metrics.csv


def check_progress(path: Path, checkpoint: dict, model: Perceiver) -> Progress:
    """What a run goes on from, checked: fused Adam writes past the end of state that is too short.

    Raises:
        ValueError: optimizer or progress are missing, of another model, or not finite.
    """
    try:
        progress = Progress(**checkpoint["progress"])
        counts, sums = [progress.epoch, progress.step], [progress.loss_sum, progress.correct]
        whole = all(type(n) is int and n >= 0 for n in counts) and isinstance(progress.rows, list)
        whole &= all(math.isfinite(x) for x in [*sums, progress.seconds])
        whole &= isinstance(progress.best, float)
        states, started = checkpoint["optimizer"]["state"], progress.step or progress.epoch > 1
        for i, parameter in enumerate(model.parameters() if started else ()):
            for name, shape in [
                ("exp_avg", parameter.shape),
                ("exp_avg_sq", parameter.shape),
                ("step", ()),
            ]:
                tensor = states[i][name]
                whole &= tensor.shape == shape and tensor.is_floating_point()
                whole &= bool(tensor.isfinite().all())
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: nothing that a run can go on from: {error!r}") from error
    if not whole:
        raise ValueError(f"{path}: optimizer or progress do not fit the model or are not finite")
    return progress


def check_same_data(before: dict, now: dict) -> str:
    """Raise ValueError if a resumed run would see other slices. Returns a line to print."""
    if now["slices"] != before["slices"]:
        raise ValueError(
            f"{now['slices']} slices; the run was started with {before['slices']}, and can't go on "
            "with others"
        )
    if now["crc32"] != before["crc32"]:
        return "warning: the images are not exactly those that the run was started with"
    return "the images are those that the run was started with"


def launch_id() -> str | None:
    """The same for all restarts of one torchrun, and for nothing else."""
    if (run_id := os.environ.get("TORCHELASTIC_RUN_ID", "none")) != "none":
        return run_id
    return (
        f"{platform.node()} {os.getppid()}" if "TORCHELASTIC_RESTART_COUNT" in os.environ else None
    )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a run folder to this process, where the system can.

    Raises ValueError if another process has it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder}: another process is training in it") from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


class TensorBoard:
    """Scalars of each epoch and the pictures of the test, in <run>/tensorboard."""

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError("--tensorboard: pip install tensorboard, or leave it out") from error
        self.open = lambda: SummaryWriter(folder / "tensorboard")

    def add_epoch(self, row: dict) -> None:
        with self.open() as writer:
            for name, value in row.items():
                if name != "epoch":
                    subset, _, quantity = name.partition("_")
                    tag = f"{quantity}/{subset}" if quantity else name
                    writer.add_scalar(tag, value, row["epoch"])

    def add_pictures(self, folder: Path, epoch: int) -> None:
        with self.open() as writer:
            for path in sorted(folder.glob("*.png")):
                pixels = np.asarray(Image.open(path).convert("RGB"))
                writer.add_image(path.stem, pixels, epoch, dataformats="HWC")
