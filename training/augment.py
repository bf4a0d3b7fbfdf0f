"""Random changes of training samples that never change a side without its label.

    change = Augmentation(len(images), (1, 76, 86), device, seed=0, epoch=3)   # for each epoch
    pixels, sides = change(images[batch], labels[batch], batch)

A mirrored left knee looks like a right one. So no change mirrors an image (rotation, scaling and
shift keep its handedness), but for `mirror_swap`, which swaps the label with it.
"""

import argparse
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dataset import Dataset

SHIFT = 0.08  # at most, as a share of height and width
ROTATION = 15.0  # degrees at most
SCALE = 0.10  # at most, as a share of the size
GAIN, OFFSET = 0.15, 0.05  # of intensities, at most; the offset as a share of white
NOISE = 0.03  # standard deviation at most, as a share of white
BENDS = 4  # points on each axis, at which an image is displaced at random
NOISE_IMAGES = 64  # drawn for an epoch; each slice gets one of them, of its own strength
MIRRORED = {"columns": -1, "slices": 2}  # what a mirror reverses, and that axis of a batch


class Augmentation:
    """What happens to each sample in one epoch: all slices of a scan are changed alike.

    It follows from seed, epoch and a sample's index alone: not from the batch that the sample is
    in, nor from the device.
    """

    @classmethod
    def of_epoch(
        cls, dataset: Dataset, device: torch.device, args: argparse.Namespace, epoch: int
    ) -> "Augmentation":
        strength = args.augment_strength if args.augment else 0.0
        return cls(
            len(dataset),
            dataset.sample_size,
            device,
            args.seed,
            epoch,
            strength,
            args.mirror_swap,
            args.mirrored,
            args.bend,
        )

    def __init__(
        self,
        count: int,
        size: tuple[int, ...],
        device: torch.device,
        seed: int,
        epoch: int,
        strength: float = 1.0,
        mirror_swap: bool = False,
        mirrored: str | None = None,
        bend: float = 0.0,
    ):
        """count: how many samples there are; size: their (channels, [slices,] height, width).

        strength: factor on all of SHIFT to NOISE. mirrored: what mirror_swap reverses, one of
        MIRRORED; of slices it is their columns. bend: how far a place is displaced at most by
        bending, as a share of height and width.
        """
        self.strength, self.mirror_swap, self.bend = strength, mirror_swap, bend
        self.axis = MIRRORED[mirrored or "columns"]
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
        # Uniform in [-1, 1): shift down and right, rotation, scale, gain, offset, noise; mirror.
        self.draws = (torch.rand(count, 8, generator=generator) * 2 - 1).to(device)
        self.noise = torch.randn(NOISE_IMAGES, *size[-2:], generator=generator).to(device)
        if bend:
            bends = torch.rand(count, 2, BENDS, BENDS, generator=generator)
            self.bends = (bends * 2 - 1).to(device)

    def __call__(self, images: Tensor, labels: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Change a batch, on its device.

        Args:
            images: uint8 (batch, channels, [slices,] height, width).
            labels: (batch,), 0 left and 1 right.
            indices: (batch,), which of all samples these are.

        Returns:
            Pixels from 0 to 255 (float32 where changed), and the labels of what they now show.
        """
        draws, shape, size = self.draws[indices], images.shape, images.shape[-2:]
        if self.strength or self.bend:
            images = images.flatten(1, -3)  # (batch, channels * slices, height, width)
            of_all = self.strength * draws[:, :7]
            gain, offset, noise = (draw[:, None, None, None] for draw in of_all[:, 4:].unbind(1))
            each = indices[:, None] + torch.arange(images.shape[1], device=indices.device)
            noise = noise * self.noise[each % NOISE_IMAGES]
            images = self.move(images.float(), of_all[:, :4], self.displacements(indices, size))
            images = images * (1 + GAIN * gain) + 255 * (OFFSET * offset + NOISE * noise)
            images = images.clamp(0, 255).view(shape)
        if self.mirror_swap:
            mirrored = draws[:, 7] < 0
            each = mirrored.view(-1, *[1] * (images.ndim - 1))
            images = torch.where(each, images.flip(self.axis), images)
            labels = torch.where(mirrored, 1 - labels, labels)
        return images, labels

    def displacements(self, indices: Tensor, size: tuple[int, int]) -> Tensor | None:
        """How far the place of each pixel is bent, in half sizes: (batch, height, width, 2).

        Smooth between BENDS x BENDS random vectors: elastic deformation, Simard et al. 2003, which
        folds nothing while it is small against the distance of these.
        """
        if not self.bend:
            return None
        bends = 2 * self.bend * self.bends[indices]
        smooth = F.interpolate(bends, size, mode="bicubic", align_corners=True)
        return smooth.permute(0, 2, 3, 1)

    @classmethod
    def move(cls, pixels: Tensor, draws: Tensor, bent: Tensor | None = None) -> Tensor:
        """Bend, rotate, scale and shift each image; what comes in at the edges is black."""
        return F.grid_sample(pixels, cls.sources(pixels.shape, draws, bent), align_corners=False)

    @staticmethod
    def sources(shape: torch.Size, draws: Tensor, bent: Tensor | None = None) -> Tensor:
        """Where each pixel of the result comes from, in half sizes: (batch, height, width, 2)."""
        height, width = shape[2:]
        down, right, rotation, scale = draws.unbind(1)
        angle = rotation * math.radians(ROTATION)
        zoom = 1 + SCALE * scale
        cos, sin = angle.cos() / zoom, angle.sin() / zoom
        # From places of the result to those of the source, both from -1 to 1 on each axis: so a
        # rotation that is one in pixels has the aspect ratio in it. Its determinant is positive.
        matrix = torch.stack(
            [
                torch.stack([cos, -sin * height / width, 2 * SHIFT * right], dim=1),
                torch.stack([sin * width / height, cos, 2 * SHIFT * down], dim=1),
            ],
            dim=1,
        )
        grid = F.affine_grid(matrix, list(shape), align_corners=False)
        if bent is None:
            return grid
        # Bent before it is turned and scaled: added to what is scaled down, it could fold.
        return grid + bent @ matrix[:, None, :, :2].mT
