"""Pictures of what the attention reads: for each slice, and a montage for each scan.

Attention is not explanation (Jain and Wallace 2019, arXiv:1902.10186).
"""

import hashlib
import os
from pathlib import Path

import torch
from tqdm import tqdm

from dataset import Dataset
from evaluation import plots
from evaluation.predictions import Answer, Predictions
from perceiver import Perceiver
from scans.cache import decode_slices
from scans.names import picture_name


def draw_attention(
    model: Perceiver,
    predictions: Predictions,
    verdicts: list[str],
    folder: Path,
    batch_size: int = 64,
    workers: int | None = None,
) -> None:
    """Draw each slice with the attention of the first and last iteration, and a montage a scan.

    verdicts: one for each of predictions.scans. The slices are decoded again, scan by scan.
    """
    classes, size = predictions.classes, tuple(model.preprocessing["image_size"])
    device = model.latents.device
    scans = zip(predictions.scans, verdicts, strict=True)
    for scan, verdict in tqdm(scans, "drawing", len(verdicts), leave=False, disable=None):
        slices = [predictions.samples[i] for i in scan.members]
        pixels = decode_slices(slices, size, workers, progress=False).pixels
        dataset = Dataset(slices, torch.from_numpy(pixels), torch.arange(len(slices)), classes)
        maps = torch.cat(
            [
                model.attention_maps(model.normalise(dataset.batch(b).to(device)), average=True)
                for b in torch.arange(len(slices)).split(batch_size)
            ]
        ).numpy(force=True)  # (slices, depth, height, width)
        grey, labels = pixels[:, 0], []
        for i, s, image, attention in zip(scan.members, slices, grey, maps, strict=True):
            answer = Answer.of(predictions.probabilities[i], classes)
            labels.append(f"{s.number}: {answer.share}")
            path = folder / file_name(s.name)
            plots.draw_attention(f"{s.name}\n{answer}", image, attention[[0, -1]], path)
        answer = Answer.of(scan.probabilities, classes)
        name = f"{scan.name} {scan.label}".strip()
        title, path = f"{scan.name}\n{answer}, {verdict}", folder / file_name(name, "scan_")
        shown = f"number and {answer.column} of each slice"
        plots.draw_montage(title, labels, grey, maps[:, -1], path, shown)


def file_name(name: str, prefix: str = "") -> str:
    """A name of its own for a picture: the end of a path, where file names can hold it."""
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
    return f"{prefix}{picture_name(name, digest)}.png"
