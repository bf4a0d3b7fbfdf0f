"""How far a run has come: last.pt and best.pt, and what a run goes on from.

    run = Run(folder, model, model, optimizer, made_with, read_resumed(folder, arguments))
    run.end_epoch(row)          # keeps its row and saves

Each file is written whole or not at all, and what is read from one is checked as a stranger's.
"""

import io
import math
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch

from common.files import check_regular, whole_file
from common.program import UserError, describe_os_error
from common.tables import write_csv
from common.workers import rank, wait_for_all
from evaluation.calibration import Calibration
from perceiver import CheckpointError, Perceiver, check_weights, read_checkpoint
from training.epoch import COLUMNS, NonFiniteError, Progress
from training.recipe import BEFORE, parameter_groups, set_learning_rate
from training.runfolder import as_json, check_data, read_record


class Resumed(NamedTuple):
    """What a run goes on from."""

    model: Perceiver  # what is validated and tested
    weights: dict | None  # those in training, where the model is their average
    progress: Progress
    optimizer: dict  # its state
    data: dict  # see `describe_data`


class Run:
    """A run in its folder: the model, its optimizer and its progress, and how they are kept."""

    def __init__(
        self,
        folder: Path,
        model: Perceiver,
        trained: Perceiver,
        optimizer: torch.optim.Optimizer,
        made_with: dict,
        resumed: Resumed | None = None,
    ):
        """model: what is validated and tested: `trained` itself, or the average of its weights.

        made_with: arguments and data that the result depends on, as plain values.
        """
        self.folder, self.optimizer = folder, optimizer
        self.model, self.trained = model, trained
        self.made_with, self.progress = made_with, Progress()
        if resumed:
            self.progress = resumed.progress
            groups = optimizer.state_dict()["param_groups"]  # our own: arguments, not state
            optimizer.load_state_dict({"state": resumed.optimizer, "param_groups": groups})

    def save(self, *names: str) -> None:
        """Write checkpoints of these names, from the first process. Raises NonFiniteError."""
        if rank() > 0:
            return
        if not all(tensor.isfinite().all() for tensor in self.trained.parameters()):
            raise NonFiniteError(f"the weights became non-finite in epoch {self.progress.epoch}")
        more = {"optimizer": self.optimizer.state_dict(), "progress": asdict(self.progress)}
        more |= self.made_with
        if self.trained is not self.model:
            more["weights"] = self.trained.state_dict()
        for name in names:
            save_checkpoint(self.folder / name, self.model, **more)

    def end_epoch(self, row: dict) -> bool:
        """Keep an epoch's row of metrics.csv; save. Returns whether it was the best so far."""
        before, loss = self.progress, row["val_loss"]
        is_best, best = loss < before.best, min(loss, before.best)
        self.progress = Progress(before.epoch + 1, best=best, rows=[*before.rows, row])
        # That of its last step: a run that was resumed after it has taken none, and set no rate.
        set_learning_rate(self.optimizer, row["lr"])
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
    if (weights := checkpoint.get("weights")) is not None:
        try:
            check_weights(weights, model.state_dict(), path.stat().st_size)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: weights in training: {error}") from error
    data = checkpoint.get("data", read_record(folder).get("data", {}))
    check_data(path, data)
    # What the checkpoint was made with; one of before arguments were kept there says less.
    made_with = {"lr": progress.rows[0]["lr"]} if progress.rows else {}
    made_with |= BEFORE | checkpoint.get("arguments", {}) | model.config | model.preprocessing
    for name, value in arguments.items():
        original = made_with.get(name, value)
        if name == "split_file" and value and original:  # split.csv stands for it, wherever it is
            continue
        if repr(value) != repr(original):  # in a foreign file a value may be anything
            raise UserError(
                f"{record or folder / 'args.json'}: {name} is {as_json(value)}, but {path} was "
                f"made with {as_json(original)}: put that back, or start a new run"
            )
    if bool(arguments.get("ema")) != (weights is not None):
        raise CheckpointError(f"{path}: the weights in training do not fit --ema")
    check_best(folder, progress)
    return Resumed(model, weights, progress, checkpoint["optimizer"]["state"], data)


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
    kind = checkpoint.get("arguments", {}).get("optimizer", "adam") if sound else "adam"
    parameters = [p for group in parameter_groups(model, kind) for p in group]
    for i, parameter in enumerate(parameters if state and sound else ()):
        shape, tensors = tuple(parameter.shape), state.get(i)
        found = {n: sound_shape(t) for n, t in tensors.items()} if isinstance(tensors, dict) else 0
        sound = sound and found == {"step": (), "exp_avg": shape, "exp_avg_sq": shape}
        sound = sound and bool(tensors["step"] >= 0)  # means are divided by 1 - beta ** step
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
