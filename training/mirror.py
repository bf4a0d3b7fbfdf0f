"""Which reversal of a scan mirrors the knee, so that a left one becomes a right one.

A mirror in space reverses one axis. Of volumes headers tell which axis goes from the patient's
right to the left. Of images nothing tells it; but mirrored along the right axis, the left scans
are on average what the right ones are.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from dataset import Dataset
from scans.slices import DataError
from scans.volumes import common_direction

CERTAIN = 0.7  # the nearer of two must be nearer by this factor
MOST_SCANS = 64  # of each side that are compared


class Mirror(NamedTuple):
    reversed: str  # one of augment.MIRRORED
    because: str  # what shows it


def choose_mirror(train: Dataset) -> Mirror:
    """What mirrors a scan of these. Raises DataError if that is not certain."""
    if towards := common_direction(train.slices, is_whole=True):
        axis = next(i for i, direction in enumerate(towards) if direction in "RL")
        if axis == 1:
            raise DataError(
                "--mirror-swap: rows of these volumes go from the patient's right to left; cut "
                "them by --plane sagittal, coronal or axial"
            )
        return Mirror(
            "slices" if axis == 0 else "columns", "they run across the patient, as headers say"
        )
    left, right = (mean_scan(train, label) for label in (0, 1))
    apart = {
        "slices": distance(left.flip(0), right),
        "columns": distance(left.flip(2), right),
    }
    nearer, other = sorted(apart, key=apart.get)
    evidence = (
        f"so mirrored, the mean left scan differs from the mean right one by {apart[nearer]:.1f} "
        f"grey levels, by {apart[other]:.1f} with {other} reversed"
    )
    if apart[nearer] > CERTAIN * apart[other]:
        raise DataError(
            f"--mirror-swap: what mirrors these knees is not certain: {evidence}. Sagittal slices "
            "that run through the knee in space are mirrored in their order: --mirrored slices; "
            "coronal and axial ones in their columns: --mirrored columns"
        )
    return Mirror(nearer, evidence)


def mean_scan(train: Dataset, label: int) -> Tensor:
    """The mean of some scans of one class: float32 (length, height, width)."""
    samples = (train.labels.cpu() == label).nonzero()[:, 0]
    total = torch.zeros(train.sample_size)
    chosen = samples[:: -(-len(samples) // MOST_SCANS)]
    for sample in chosen:
        total += train.batch(sample[None])[0].cpu()
    return total[0] / len(chosen)


def distance(a: Tensor, b: Tensor) -> float:
    """Root mean square difference."""
    return (a - b).square().mean().sqrt().item()
