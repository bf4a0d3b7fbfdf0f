"""One epoch: each sample of the training subset once, and then the validation subset.

Order, changes, tokens and dropout follow from seed, epoch, step and process alone, so a resumed
epoch is the same epoch.
"""

import argparse
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from common.program import UserError
from common.workers import agreed_signal, losing_others, processes, rank, reduce
from dataset import Dataset
from evaluation.predictions import predict
from perceiver import Perceiver, autocast
from training.augment import Augmentation
from training.recipe import Mix, draw_mix, learning_rate, set_learning_rate, update_average

COLUMNS = "epoch lr train_loss train_accuracy val_loss val_accuracy seconds".split()  # metrics.csv


class NonFiniteError(UserError):
    """A loss, gradient or weight that is not a number."""

    exit_code = 1

    def __init__(self, message: str, batch: list[str] = ()):
        super().__init__(message)
        self.batch = list(batch)  # names of its samples
        self.named_in: Path | None = None  # the file that holds them
        self.checkpoints: list[str] = []  # names of those that there are

    def __str__(self) -> str:
        named = f"; {self.named_in} names the slices of that batch" if self.named_in else ""
        verb = "are" if len(self.checkpoints) > 1 else "is"
        before = f"; {' and '.join(self.checkpoints)} {verb} from before"
        return f"{self.args[0]}{named}{before if self.checkpoints else ''}; try a lower --lr"


class Stopped(Exception):
    """A signal was received, and the run is saved. The argument is the signal's number."""


@dataclass
class Progress:
    """How far a run has come: what last.pt holds besides weights and optimizer."""

    epoch: int = 1  # the one in training
    step: int = 0  # its steps that are done
    loss_sum: float = 0.0  # over the samples of those steps
    correct: float = 0.0
    seconds: float = 0.0
    best: float = math.inf  # lowest validation loss
    rows: list[dict] = field(default_factory=list)  # of metrics.csv


def balanced_weights(dataset: Dataset) -> Tensor:
    """A weight for each class (classes,), whose mean over the samples is 1: n / (classes * count).

    As scikit-learn's class_weight="balanced" (King and Zeng 2001, "Logistic Regression in Rare
    Events Data", section 4.2).
    """
    counts = torch.bincount(dataset.labels, minlength=len(dataset.classes))
    return len(dataset) / (len(dataset.classes) * counts.clamp(min=1).float())


def train_one_epoch(
    model: Perceiver | DistributedDataParallel,
    dataset: Dataset,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    args: argparse.Namespace,
    save: Callable[[], None] | None,
    class_weights: Tensor | None = None,
    average: Perceiver | None = None,
) -> None:
    """Train on each sample once, from step `progress.step` on, and keep `progress` up to date.

    It is saved at the end, too, as a signal during validation ends the run at once.
    average: its weights follow those of the model.

    Raises:
        Stopped: after a signal, with the step done and saved.
        NonFiniteError: before anything is saved that follows from a gradient that is not finite.
    """
    model.train()
    core = model.module if isinstance(model, DistributedDataParallel) else model
    device = core.latents.device
    epoch_seed = (args.seed * 1_000_003 + progress.epoch) % 2**63
    batches = shuffled_batches(dataset, args, epoch_seed)
    size, steps = dataset.sample_size, steps_of(dataset, args)
    change = Augmentation.of_epoch(dataset, device, args, progress.epoch)

    def changed(part: Tensor) -> tuple[Tensor, Tensor]:
        return change(dataset.batch(part).to(device), dataset.labels[part].to(device), part)

    # Sums stay on the device: reading them at each step would make a GPU wait for the CPU.
    sums = torch.zeros(2, device=device, dtype=torch.float64)
    if rank() == 0:
        sums[0], sums[1] = progress.loss_sum, progress.correct
    first_failed = torch.full((), -1, device=device)
    started = time.perf_counter() - progress.seconds
    quiet = None if rank() == 0 else True  # None: a bar on a terminal, nothing in a log file
    bar = tqdm(batches, f"epoch {progress.epoch}", unit="step", leave=False, disable=quiet)
    bar.update(progress.step)

    for step in range(progress.step, len(batches)):
        step_seed = epoch_seed * 1_000_003 + step
        kept = kept_tokens(size, args.token_fraction, step_seed, device)
        torch.manual_seed((step_seed * 1_009 + rank()) % 2**63)
        optimizer.zero_grad()
        set_learning_rate(optimizer, learning_rate(args, progress.epoch, step, steps))
        batch = batches[step]
        mix = draw_mix(batch, args.mixup, step_seed)
        # A batch smaller than the processes leaves some one of weight 0.
        weight = processes() / len(batch) if rank() < len(batch) else 0.0
        parts = parts_of_process(batch, mix, args.grad_accumulation)
        for part in parts:
            pixels, targets = read_mixed(changed, part)
            waits = part is not parts[-1] and model is not core  # gradients are summed at the last
            with model.no_sync() if waits else nullcontext():
                with autocast(device, args.amp):
                    logits = model(core.normalise(pixels), kept=kept)
                loss = summed_loss(logits.float(), targets, args.label_smoothing, class_weights)
                with losing_others() if model is not core else nullcontext():
                    (loss * weight).backward()
            correct = (logits.argmax(dim=1) == targets[0].labels).sum()
            sums += torch.stack([loss.detach(), correct.double()]) * bool(weight)
        first_failed = first_non_finite(model, step, first_failed, args.clip_gradient)
        if device.type == "cpu" and first_failed >= 0:
            raise non_finite_gradient(dataset, batch, step, progress, args)
        if device.type != "cpu" and optimizer.defaults.get("fused"):
            # Nothing waits: it skips this step and all after; others spoil weights, never saved.
            optimizer.found_inf = (first_failed >= 0).float()
        optimizer.step()
        if average is not None:
            update_average(average, core, args.ema, (progress.epoch - 1) * steps + step + 1)
        bar.update()

        progress.step, stop = step + 1, agreed_signal()
        saves = args.save_every_steps and progress.step % args.save_every_steps == 0
        if stop or saves or progress.step == len(batches):
            if (failed := int(first_failed)) >= 0:
                raise non_finite_gradient(dataset, batches[failed], failed, progress, args)
            progress.loss_sum, progress.correct = reduce(sums.clone()).tolist()
            progress.seconds = time.perf_counter() - started
            if save:
                save()
        if stop:
            raise Stopped(stop)
    bar.close()


def shuffled_batches(dataset: Dataset, args: argparse.Namespace, seed: int) -> tuple[Tensor, ...]:
    """The samples of each step of an epoch, on the device of the pixels; of a dry run, one step."""
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    batches = order.to(dataset.pixels.device).split(args.batch_size)
    return batches[:1] if args.dry_run else batches


def steps_of(dataset: Dataset, args: argparse.Namespace) -> int:
    return math.ceil(len(dataset) / args.batch_size)


class Part(NamedTuple):
    """Samples that are worked through at once, and what is mixed into them."""

    samples: Tensor
    mix: Mix


def parts_of_process(batch: Tensor, mix: Mix, count: int) -> list[Part]:
    """This process's share of a batch, or its first sample, in at most so many parts."""
    own = slice(rank(), None, processes()) if rank() < len(batch) else slice(1)
    samples, partners = (of[own].tensor_split(count) for of in (batch, mix.partners))
    parts = zip(samples, partners, strict=True)
    return [Part(some, mix._replace(partners=others)) for some, others in parts if len(some)]


class Target(NamedTuple):
    labels: Tensor  # (batch,)
    share: float  # of the loss


def read_mixed(changed: Callable, part: Part) -> tuple[Tensor, list[Target]]:
    """Pixels of a part of a batch, and the labels of what they are mixed of."""
    pixels, labels = changed(part.samples)
    share = part.mix.share
    if share == 1:
        return pixels, [Target(labels, 1.0)]
    others, others_labels = changed(part.mix.partners)
    mixed = share * pixels + (1 - share) * others
    return mixed, [Target(labels, share), Target(others_labels, 1 - share)]


def summed_loss(
    logits: Tensor, targets: list[Target], smoothing: float, class_weights: Tensor | None
) -> Tensor:
    """The cross-entropy, summed over samples. Label smoothing: Szegedy et al. 2016, section 7."""
    entropy = partial(
        F.cross_entropy, weight=class_weights, reduction="sum", label_smoothing=smoothing
    )
    return sum(target.share * entropy(logits, target.labels) for target in targets)


def kept_tokens(
    size: tuple[int, ...], fraction: float, seed: int, device: torch.device
) -> Tensor | None:
    """The random share of the tokens that a step reads, as sorted indices; None: all.

    The same for all parts and processes. size: (channels, *axes) of a sample.
    """
    if fraction == 1:
        return None
    count = math.prod(size[1:])
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed % 2**63))
    kept = order[: max(1, round(fraction * count))].sort().values
    return kept.to(device, non_blocking=True)


def first_non_finite(model: nn.Module, step: int, before: Tensor, most: float | None) -> Tensor:
    """The first step whose gradient is not finite, -1 for none; a tensor: nothing waits for it.

    The gradient's norm becomes at most `most`.
    """
    norm = nn.utils.clip_grad_norm_(model.parameters(), most or math.inf)
    return torch.where(~torch.isfinite(norm) & (before < 0), step, before)


def non_finite_gradient(
    dataset: Dataset, batch: Tensor, step: int, progress: Progress, args: argparse.Namespace
) -> NonFiniteError:
    """What to raise where step `step`, counted from 0, on the samples `batch` gave no number."""
    message = (
        f"the gradient became non-finite in epoch {progress.epoch}, step {step + 1}, at learning "
        f"rate {learning_rate(args, progress.epoch, step, steps_of(dataset, args)):g}"
    )
    return NonFiniteError(message, [dataset.names[i] for i in batch.tolist()])


def validate(
    model: Perceiver, val: Dataset, train: Dataset, progress: Progress, args: argparse.Namespace
) -> dict:
    """The row of metrics.csv of an epoch that was trained on `train`; its last learning rate.

    Raises NonFiniteError if the validation loss is not finite.
    """
    predictions, labels = predict(model, val, at_a_time(args), args.amp), val.labels.cpu()
    loss, count = F.cross_entropy(predictions.logits, labels).item(), len(train)
    steps = steps_of(train, args)
    if not math.isfinite(loss):
        raise NonFiniteError(f"the validation loss became {loss} in epoch {progress.epoch}")
    return {
        "epoch": progress.epoch,
        "lr": learning_rate(args, progress.epoch, steps - 1, steps),
        "train_loss": progress.loss_sum / count,
        "train_accuracy": progress.correct / count,
        "val_loss": loss,
        "val_accuracy": (predictions.logits.argmax(dim=1) == labels).float().mean().item(),
        "seconds": round(progress.seconds, 2),
    }


def at_a_time(args: argparse.Namespace) -> int:
    """How many samples fit into memory where a batch is worked through in parts."""
    return math.ceil(args.batch_size / args.grad_accumulation)
