"""What a run does with gradients: learning rate, optimizer, averaged weights, mixed samples.

Each follows from arguments, epoch and step alone, so that a resumed run is the same run.
"""

import argparse
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from perceiver import Perceiver
from training.lamb import Lamb

SCHEDULES = ("exponential", "exponential-steps", "cosine", "constant-cosine")
OPTIMIZERS = ("adam", "adamw", "lamb")
# Learned in place of an input; positions are those of a transformer in benchmarks/references.py.
NEVER_DECAY = ("latents", "positions")
# What a run did before it had these arguments.
BEFORE = {
    "recipe": None,
    "optimizer": "adam",
    "schedule": "exponential",
    "warmup_epochs": 0.0,
    "weight_decay": 0.0,
    "clip_gradient": None,
    "label_smoothing": 0.0,
    "mixup": 0.0,
    "ema": 0.0,
    "augment_strength": 1.0,
    "bend": 0.0,
}


def learning_rate(args: argparse.Namespace, epoch: int, step: int, steps: int) -> float:
    """Of step `step`, counted from 0, of `steps` in an epoch, counted from 1: in closed form.

    It rises in a line over --warmup-epochs. `exponential` is ExponentialLR at the end of each
    epoch, `exponential-steps` at each step; `cosine` falls to 0 from the warm-up to the last step,
    Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5; `constant-cosine` waits with it until
    half of all is done, as in the code that Perceiver IO was published with (perceiver/train).
    """
    done, all_steps = (epoch - 1) * steps + step, args.epochs * steps
    warmup = args.warmup_epochs * steps
    rate = args.lr * min(1.0, (done + 1) / warmup) if warmup else args.lr
    if args.schedule == "exponential":
        return rate * args.lr_decay ** (epoch - 1)
    if args.schedule == "exponential-steps":
        return rate * args.lr_decay**done
    start = max(warmup, all_steps / 2 if args.schedule == "constant-cosine" else 0)
    share = max(0.0, done - start) / max(1.0, all_steps - start)
    return rate * (1 + math.cos(math.pi * min(1.0, share))) / 2


def parameter_groups(model: Perceiver, optimizer: str) -> list[list[nn.Parameter]]:
    """Those that weights decay in, and biases, norms and latents, in which they never do.

    For Adam all in one: PyTorch's adds a decay to the gradient, which is none.
    """
    if optimizer == "adam":
        return [list(model.parameters())]
    decays = [
        p.ndim > 1 and name.split(".")[-1] not in NEVER_DECAY
        for name, p in model.named_parameters()
    ]
    return [
        [p for p, does in zip(model.parameters(), decays, strict=True) if does == wanted]
        for wanted in (True, False)
    ]


def new_optimizer(args: argparse.Namespace, model: Perceiver) -> torch.optim.Optimizer:
    fused = model.latents.device.type in ("cpu", "cuda")
    groups = parameter_groups(model, args.optimizer)
    if args.optimizer == "adam":
        return torch.optim.Adam(groups[0], lr=args.lr, fused=fused)
    decays = [args.weight_decay, 0.0]
    groups = [{"params": p, "weight_decay": d} for p, d in zip(groups, decays, strict=True)]
    if args.optimizer == "lamb":
        return Lamb(groups, lr=args.lr)
    return torch.optim.AdamW(groups, lr=args.lr, fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def update_average(average: Perceiver, model: Perceiver, decay: float, steps: int) -> None:
    """Let the average of the weights follow, after so many steps.

    Its memory is short at the start: as TensorFlow's ExponentialMovingAverage with num_updates.
    """
    decay = min(decay, (1 + steps) / (10 + steps))
    update = get_ema_multi_avg_fn(decay)
    update(list(average.parameters()), list(model.parameters()), steps)
    for kept, buffer in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(buffer)  # batch norm of a network in benchmarks/references.py


class Mix(NamedTuple):
    """Which samples are mixed into those of a batch: mixup, Zhang et al. 2018, arXiv:1710.09412."""

    partners: Tensor  # (batch,) indices
    share: float  # of the batch's own samples, at least a half


def draw_mix(batch: Tensor, alpha: float, seed: int) -> Mix:
    """Partners from the same batch, and a share from Beta(alpha, alpha) for all of it.

    The same for all parts and processes. alpha 0: nothing is mixed.
    """
    if alpha == 0:
        return Mix(batch, 1.0)
    generator = torch.Generator().manual_seed(seed % 2**63)
    order = torch.randperm(len(batch), generator=generator)
    order = order.to(batch.device, non_blocking=True)  # else a GPU is waited for at each step
    share = float(np.random.default_rng(seed % 2**63).beta(alpha, alpha))
    return Mix(batch[order], max(share, 1 - share))
