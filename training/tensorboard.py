"""What TensorBoard shows of a run. Its package is optional."""

from pathlib import Path

import numpy as np
from PIL import Image

from common.program import MissingPackage


class TensorBoard:
    """Scalars of each epoch and the pictures of the test, in <run>/tensorboard."""

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            text = "--tensorboard needs: pip install -r requirements-extra.txt"
            raise MissingPackage(text) from error
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
