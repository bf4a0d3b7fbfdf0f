"""What benchmarks/evidence.py asks the best model of a run, beside what its test said."""

import json
from pathlib import Path

import torch

from dataset import Dataset, list_labelled, load_dataset, split
from perceiver import Perceiver

ROOT = Path(__file__).resolve().parent.parent


def reads_scans(model: Perceiver) -> bool:
    return model.config["input_axis"] == 3


def open_tested(folder: Path) -> tuple[Perceiver, Dataset]:
    """The best model of a run, and what it was tested on."""
    model = Perceiver.from_checkpoint(folder / "best.pt")
    arguments = json.loads((folder / "args.json").read_text())["arguments"]
    length = model.preprocessing["slices"] if reads_scans(model) else None
    listing = list_labelled(Path(arguments["data_dir"]), arguments["classes"])
    size = model.preprocessing["image_size"]
    dataset = load_dataset(listing, size, ROOT / "cache", scan_length=length)
    by = arguments["split"]  # "scan" where a leak is shown
    return model, split(dataset, by, split_file=folder / "split.csv")["test"]


def without_order(model: Perceiver, test: Dataset) -> dict:
    """How many tested scans are right with their slices in reverse order, and shuffled."""
    length = model.preprocessing["slices"]
    scans, generator = test.batch(torch.arange(len(test))), torch.Generator().manual_seed(0)
    orders = [torch.randperm(length, generator=generator) for _ in range(len(test))]
    shuffled = torch.stack([scan[:, order] for scan, order in zip(scans, orders, strict=True)])

    def right(pixels: torch.Tensor) -> int:
        return int((model.predict_logits(pixels).argmax(dim=1) == test.labels).sum())

    return {"reversed_right": right(scans.flip(2)), "shuffled_right": right(shuffled)}


def with_mirror_image(model: Perceiver, test: Dataset) -> dict:
    """How many are right by the logits of an image less those of its mirror image."""
    images = test.batch(torch.arange(len(test)))
    logits = model.predict_logits(images) - model.predict_logits(images.flip(3))
    return {"mirrored_right": int((logits.argmax(dim=1) == test.labels).sum())}


def after_each_read(model: Perceiver, test: Dataset) -> dict:
    """How many the head gets right from the latents after each iteration."""
    right = [0] * model.config["depth"]
    with torch.inference_mode():
        for part in torch.arange(len(test)).split(64):
            x, tokens = model.latents[None], model.tokens(model.normalise(test.batch(part)))
            for iteration in range(model.config["depth"]):
                x = model.block(iteration)(x, tokens)
                found = model.head(model.norm(x.mean(dim=1))).argmax(dim=1)
                right[iteration] += int((found == test.labels[part]).sum())
    return {f"right_after_{number}": count for number, count in enumerate(right, start=1)}
