"""Random changes of training slices that never change a side without its label.

    change = Augmentation(len(images), (1, 76, 86), device, seed=0, epoch=3)   # for each epoch
    pixels, sides = change(images[batch], labels[batch], batch)

A mirrored left knee looks like a right one. So no change mirrors an image (rotation, scaling and
shift keep its handedness), but for `mirror_swap`, which swaps the label with it.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFT = 0.08  # at most, as a share of height and width
ROTATION = 15.0  # degrees at most
SCALE = 0.10  # at most, as a share of the size
GAIN, OFFSET = 0.15, 0.05  # of intensities, at most; the offset as a share of white
NOISE = 0.03  # standard deviation at most, as a share of white
NOISE_IMAGES = 64  # drawn for an epoch; each slice gets one of them, of its own strength


class Augmentation:
    """What happens to each slice in one epoch.

    It follows from seed, epoch and a slice's index alone: not from the batch that the slice is in,
    nor from the device.
    """

    def __init__(
        self,
        count: int,
        size: tuple[int, int, int],
        device: torch.device,
        seed: int,
        epoch: int,
        change: bool = True,
        mirror_swap: bool = False,
    ):
        """count: how many slices there are; size: their (channels, height, width)."""
        self.change, self.mirror_swap = change, mirror_swap
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
        # Uniform in [-1, 1): shift down and right, rotation, scale, gain, offset, noise; mirror.
        self.draws = (torch.rand(count, 8, generator=generator) * 2 - 1).to(device)
        self.noise = torch.randn(NOISE_IMAGES, 1, *size[1:], generator=generator).to(device)

    def __call__(self, images: Tensor, labels: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Change a batch, on its device.

        Args:
            images: uint8 (batch, channels, height, width).
            labels: (batch,), 0 left and 1 right.
            indices: (batch,), which of all slices these are.

        Returns:
            Pixels from 0 to 255 (float32 where changed), and the labels of what they now show.
        """
        draws = self.draws[indices]
        if self.change:
            gain, offset, noise = (draw[:, None, None, None] for draw in draws[:, 4:7].unbind(1))
            noise = noise * self.noise[indices % NOISE_IMAGES]
            images = self.move(images.float(), draws[:, :4])
            images = images * (1 + GAIN * gain) + 255 * (OFFSET * offset + NOISE * noise)
            images = images.clamp(0, 255)
        if self.mirror_swap:
            mirrored = draws[:, 7] < 0
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
            labels = torch.where(mirrored, 1 - labels, labels)
        return images, labels

    @staticmethod
    def move(pixels: Tensor, draws: Tensor) -> Tensor:
        """Rotate, scale and shift each image; what comes in at the edges is black."""
        height, width = pixels.shape[2:]
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
        grid = F.affine_grid(matrix, list(pixels.shape), align_corners=False)
        return F.grid_sample(pixels, grid, align_corners=False)
