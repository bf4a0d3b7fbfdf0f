"""What a model looks at: pictures of its attention, slice by slice and scan by scan, and saliency.

Attention is not explanation (Jain and Wallace 2019, arXiv:1902.10186).
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dataset import Dataset
from evaluation.predictions import Answer, Predictions
from perceiver import CrossAttention, Perceiver, ReadTokens, autocast, evaluating
from scans.cache import decode_slices
from scans.names import picture_name
from scans.places import place_in_scan, rows_of_scans


def draw_attention(
    model: Perceiver,
    predictions: Predictions,
    verdicts: list[str],
    folder: Path,
    batch_size: int = 64,
    workers: int | None = None,
) -> None:
    """Draw a montage of each scan, and where slices are read each of these.

    A slice is drawn with the attention of the first and last iteration. Of a scan that is read
    whole there is a montage of the saliency, too, and both as curves along the slices.

    verdicts: one for each of predictions.scans. The slices are decoded again, scan by scan, in the
    order of the scan: paths come in any, such as a shell's 0, 1, 10, 11, ..., 2.
    """
    from evaluation import plots  # matplotlib, without which attention can be computed

    size, known = tuple(model.preprocessing["image_size"]), predictions.dataset
    scans = zip(predictions.scans, verdicts, strict=True)
    for scan, verdict in tqdm(scans, "drawing", len(verdicts), leave=False, disable=None):
        slices = known.subset(known.rows[scan.members]).members
        slices = sorted(slices, key=place_in_scan)
        pixels = torch.from_numpy(decode_slices(slices, size, workers, progress=False).pixels)
        answer = Answer.of(scan.probabilities, known.classes)
        title, name = [scan.name, f"{answer}, {verdict}"], f"{scan.name} {scan.label}".strip()
        if known.unit == "scan":
            places = rows_of_scans(slices, known.rows.shape[1])
            whole = Dataset(slices, pixels, places, known.classes)
            draw_whole(model, whole.batch(torch.tensor([0])), title, folder, name)
            continue
        of_slice = dict(zip(known.names, predictions.probabilities, strict=True))
        answers = [Answer.of(of_slice[s.name], known.classes) for s in slices]
        maps = [maps_of_slices(model, batch) for batch in pixels.split(batch_size)]
        maps, grey = np.concatenate(maps), pixels[:, 0].numpy()
        labels = []
        for s, own, image, attention in zip(slices, answers, grey, maps, strict=True):
            labels.append(f"{s.number}: {own.share}")
            path = folder / file_name(s.name)
            plots.draw_attention([s.name, f"{own}"], image, attention[[0, -1]], path)
        shown = f"number and {answer.column} of each slice"
        path = folder / file_name(name, "scan_")
        plots.draw_montage(title, labels, grey, maps[:, -1], path, shown)


def maps_of_slices(model: Perceiver, pixels: Tensor) -> np.ndarray:
    """Attention (batch, depth, *axes) over uint8 pixels (batch, 1, *axes)."""
    images = model.normalise(pixels.to(model.latents.device))
    return attention_maps(model, images, average=True).numpy(force=True)


def draw_whole(model: Perceiver, pixels: Tensor, title: list[str], folder: Path, name: str) -> None:
    """Two montages of a scan that is read whole, uint8 (1, 1, slices, height, width)."""
    from evaluation import plots

    grey = pixels[0, 0].numpy()
    attention = maps_of_slices(model, pixels)[0]  # (depth, slices, height, width)
    slopes = saliency(model, model.normalise(pixels.to(model.latents.device)))[0]
    slopes = slopes.numpy(force=True)
    curves = {
        "attention, first iteration": attention[0],
        "attention, last iteration": attention[-1],
        "saliency": slopes,
    }
    curves = {name: along_slices(values) for name, values in curves.items()}
    for prefix, maps, maps_are, curve in [
        ("scan_", attention[-1], "attention of the last iteration", "attention, last iteration"),
        ("saliency_", slopes, "saliency, the slope of the answer in each pixel", "saliency"),
    ]:
        labels = [f"{place}: {share:.1%}" for place, share in enumerate(curves[curve])]
        path = folder / file_name(name, prefix)
        labels_are = "place and share of each slice"
        plots.draw_montage(title, labels, grey, maps, path, labels_are, maps_are, curves)


def along_slices(values: np.ndarray) -> np.ndarray:
    """The share of each slice (slices,) of what is in all of them (slices, height, width)."""
    sums = values.sum(axis=(1, 2), dtype=float)
    return sums / max(sums.sum(), 1e-30)


@torch.no_grad()
def attention_maps(model: Perceiver, images: Tensor, average: bool = False) -> Tensor:
    """Where the latents look: the weights of each cross-attention over the positions.

    They are the softmax of section 3.1 of the Perceiver paper, computed again beside the
    forward pass in evaluation mode and without autocast. Attention is not explanation: a high
    weight is no proof that the position decided the class (Jain and Wallace 2019,
    arXiv:1902.10186).

    images are those of `Perceiver.forward`, which says what is raised. Returns (batch, depth,
    cross_heads, num_latents, *axes), or with `average` the mean over heads and latents (batch,
    depth, *axes), which never holds more than a few rows of the full array: 11 MiB in place of
    5.4 GiB for 8 slices of 228 x 260. Each map sums to 1 over the axes; none has a gradient.
    """
    with evaluating(model), autocast(images.device, False):
        tokens, x = model.tokens(images), model.latents[None]
        heads, depth = model.config["cross_heads"], model.config["depth"]
        total = heads * len(model.latents)  # rows of weights of one sample in one iteration
        shape = (depth, tokens.shape[1]) if average else (depth, total, tokens.shape[1])
        maps = tokens.new_zeros(len(tokens), *shape)
        for iteration in range(depth):
            block = model.block(iteration)
            for sample, rows, weights in attention_weights(block.cross_attention, x, tokens):
                if average:
                    maps[sample, iteration] += weights.sum(dim=0) / total
                else:
                    maps[sample, iteration, rows] = weights
            x = block(x, tokens)
    maps = maps.unflatten(-1, images.shape[2:])  # (batch, depth, [rows,] *axes)
    return maps if average else maps.unflatten(2, (heads, -1))


def attention_weights(
    cross: CrossAttention, x: Tensor, tokens: Tensor
) -> Iterator[tuple[int, slice, Tensor]]:
    """What its `forward` weighs the tokens with, a sample and a few rows at a time.

    Gives sample, rows (of heads * latents) and their weights (rows, tokens), which sum to 1.
    """
    query = cross.query(x, tokens.shape[2]).expand(len(tokens), -1, -1)
    block = max(1, ReadTokens.SCORES // tokens.shape[1])
    for sample in range(len(tokens)):
        for start in range(0, query.shape[1], block):
            rows = slice(start, start + block)
            scores = query[sample, rows] @ tokens[sample].mT
            yield sample, rows, scores.softmax(dim=1)


@torch.inference_mode(False)  # gradients on, where the caller has them off as well
def saliency(model: Perceiver, images: Tensor, target: int | Tensor | None = None) -> Tensor:
    """How fast each position changes the target's logit: the size of the logit's gradient.

    The largest absolute value over the channels, as in Simonyan et al. 2013, arXiv:1312.6034,
    section 3.1, in evaluation mode and without autocast, per unit of the normalised input. A slope
    at this image is no more an explanation of the class than attention is (see
    `attention_maps`). The parameters' `.grad` stays as it is.

    images are those of `Perceiver.forward`. target is one class for all of them or one for each
    (batch,), by default the predicted. Returns (batch, *axes), zero or above. Raises ValueError as
    `forward` does, and for a target that is no class of the model.
    """
    # A leaf of its own; integers, which can't have a gradient, are for `tokens` to refuse.
    images = images.detach().clone().requires_grad_(images.is_floating_point())
    # Backward, too: with `checkpoint_latents` it computes the latents again.
    with evaluating(model), autocast(images.device, False):
        logits = model(images)
        batch, classes = logits.shape
        target = torch.as_tensor(logits.argmax(dim=1) if target is None else target)
        numbers = not target.is_floating_point() and target.dtype != torch.bool
        one_or_each = target.shape in ((), (batch,))
        if not (numbers and one_or_each and ((target >= 0) & (target < classes)).all()):
            raise ValueError(
                f"expected as target a class from 0 to {classes - 1}, or one for each of the "
                f"{batch} images, got {target.tolist()}"
            )
        index = target.to(logits.device, torch.int64).expand(batch)[:, None]  # (batch, 1)
        (gradient,) = torch.autograd.grad(logits.gather(1, index).sum(), images)
    return gradient.abs().amax(dim=1)


def file_name(name: str, prefix: str = "") -> str:
    """A name of its own for a picture: the end of a path, where file names can hold it."""
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
    return f"{prefix}{picture_name(name, digest)}.png"
