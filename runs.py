"""Run folders: files that are written whole or not at all, and what a run is resumed from.

    with whole_file(run / "metrics.csv") as temporary:
        temporary.write_text(...)           # flushed to disk, then renamed to metrics.csv

A run folder holds args.json, split.csv, metrics.csv, curves.png, last.pt and best.pt, and after
testing test_metrics.json, test_predictions.csv and confusion_matrix.png.
"""

import csv
import io
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import einops
import numpy as np
import PIL
import torch

from perceiver import Perceiver

RUN_FILES = ("args.json", "split.csv", "metrics.csv", "last.pt", "best.pt", "test_metrics.json")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary file in the same folder that becomes `path` when it is whole and on disk.

    If anything fails on the way (a full disk, a kill), `path` is what it was before.
    """
    temporary = path.with_name(f".{path.stem}.unfinished{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error  # under its real name
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too
    finally:
        os.close(folder)


def write_csv(path: Path, rows: list[dict]) -> None:
    with whole_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
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
        "git_commit": commit,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "einops": einops.__version__,
            "numpy": np.__version__,
            "pillow": PIL.__version__,
        },
    }


def read_arguments(folder: Path) -> dict:
    """The arguments that a run was started with.

    Raises ValueError if there is no run in this folder, or none that can be resumed.
    """
    if not (folder / "last.pt").is_file():
        raise ValueError(f"{folder}: nothing to resume from: it holds no last.pt")
    try:
        return json.loads((folder / "args.json").read_text())["arguments"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'args.json'}: not the arguments of a run: {error}") from error


def record_start(folder: Path, arguments: dict, device: torch.device) -> None:
    """Write args.json; a resumed run adds how it went on, and keeps what it was started with."""
    made = describe_run(arguments, device)
    for left in folder.glob(".*.unfinished.*"):  # by a kill
        left.unlink()
    if arguments["resume"]:
        started = json.loads((folder / "args.json").read_text())
        made.pop("arguments")
        made = {**started, "resumed": [*started.get("resumed", []), made]}
    write_json(folder / "args.json", made)
