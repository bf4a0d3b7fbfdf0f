"""A step, a validation and a prediction on a device that is not the CPU, where there is none.

PyTorch's `meta` device computes shapes only. It refuses tensors of several devices in one operation
and reading a number, so that what would fail on a GPU, or wait for what it computes, fails here on
every machine. Copies to the device are not counted.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dataset import Dataset
from evaluation.predictions import predict
from perceiver import Perceiver
from scans.slices import Slice
from training.epoch import Progress, train_one_epoch, validate
from training.lamb import Lamb

META = torch.device("meta")
ARGUMENTS = dict(
    lr=1e-3,
    lr_decay=1.0,
    schedule="exponential",
    epochs=3,
    warmup_epochs=0.0,
    clip_gradient=None,
    label_smoothing=0.1,
    mixup=0.2,
    ema=0.9,
    augment_strength=1.0,
    bend=0.05,
    seed=0,
    batch_size=4,
    grad_accumulation=2,
    augment=True,
    mirror_swap=True,
    mirrored=None,
    token_fraction=1.0,
    amp=False,
    dry_run=False,
    save_every_steps=None,
)


class SkippingAdam(torch.optim.Adam):
    """Takes `found_inf` as the fused one does, which the meta device has not."""

    def __init__(self, parameters):
        super().__init__(parameters)
        self.defaults["fused"] = True

    def step(self):
        assert self.found_inf.is_meta
        del self.found_inf
        super().step()


class Reads(TorchDispatchMode):
    """Counts what a GPU is waited for: values that go to the CPU.

    A number reads as -1, "no step failed", and an array as zeros.
    """

    count = 0

    def __torch_dispatch__(self, operation, types, arguments=(), named=None):
        named, first = named or {}, arguments[0] if arguments else None
        if isinstance(first, torch.Tensor) and first.is_meta:
            if operation is torch.ops.aten._local_scalar_dense.default:
                self.count += 1
                return -1
            devices = [a for a in (*arguments, *named.values()) if isinstance(a, torch.device)]
            if any(device.type == "cpu" for device in devices):
                self.count += 1
                return torch.zeros(first.shape, dtype=named.get("dtype") or first.dtype)
        return operation(*arguments, **named)


def on_meta(count: int) -> tuple[Perceiver, Dataset]:
    slices = [Slice(str(i), None, "ab"[i % 2], "p", "s", i) for i in range(count)]
    pixels = torch.zeros(count, 1, 8, 9, dtype=torch.uint8, device=META)
    dataset = Dataset(slices, pixels, torch.arange(count, device=META), ["a", "b"])
    dataset.__dict__["samples"] = slices  # read from the rows once, before training
    small = dict(num_latents=4, latent_dim=8, depth=2, latent_heads=2, latent_dim_head=4)
    return Perceiver(**small).to(META), dataset


def train(count: int, kind: type = SkippingAdam, **arguments) -> int:
    """Train an epoch on `count` samples. How often it waited."""
    (model, dataset), (average, _) = on_meta(count), on_meta(count)
    optimizer = kind(model.parameters())
    args = SimpleNamespace(**{**ARGUMENTS, **arguments})
    weights = torch.ones(2, device=META)
    progress = Progress(loss_sum=1.0, correct=2.0)
    with Reads() as reads:
        train_one_epoch(model, dataset, optimizer, progress, args, lambda: None, weights, average)
    return reads.count


@pytest.fixture(autouse=True)
def no_signals(monkeypatch):
    monkeypatch.setattr("training.epoch.agreed_signal", lambda: 0)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [{}, {"token_fraction": 0.5}, {"amp": None}], ids=str)
def test_no_step_waits_for_the_device_or_mixes_devices(arguments):
    steps = [train(count, **arguments) for count in (4, 12)]
    assert steps[0] == steps[1] > 0  # the end of an epoch reads its sums


@pytest.mark.slow
def test_no_step_of_lamb_waits_for_the_device():
    assert train(4, Lamb) == train(12, Lamb)


@pytest.mark.slow
def test_saving_within_an_epoch_waits_once_a_save():
    once, often = train(12), train(12, save_every_steps=1)
    assert often == 3 * once


def test_a_prediction_waits_once():
    for count in (4, 13):
        model, dataset = on_meta(count)
        with Reads() as reads:
            predictions = predict(model, dataset, batch_size=4)
        assert predictions.logits.shape == (count, 2) and reads.count == 1


def test_a_validation_waits_for_its_logits_and_labels():
    for count in (4, 13):
        model, dataset = on_meta(count)
        with Reads() as reads:
            row = validate(model, dataset, dataset, Progress(), SimpleNamespace(**ARGUMENTS))
        assert row["val_loss"] == pytest.approx(math.log(2)) and reads.count == 2


@pytest.mark.slow
def test_a_number_read_in_a_step_is_found(monkeypatch):
    """The test above can fail: here a step looks at its pixels."""
    usual = Perceiver.normalise
    monkeypatch.setattr(
        Perceiver, "normalise", lambda self, pixels: usual(self, pixels) * float(pixels.sum() == 0)
    )
    assert train(12) > train(4)


def test_a_tensor_left_on_the_cpu_is_found(monkeypatch):
    monkeypatch.setattr(Perceiver, "normalise", lambda self, pixels: pixels.float() * torch.ones(9))
    with pytest.raises(RuntimeError, match="not on the expected device"):
        train(4)
