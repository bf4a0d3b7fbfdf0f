"""After training: calibrate the best checkpoint on validation, then test it once."""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import plots
import runs
from dataset import SIDES
from metrics import ERROR_RATE, fit_temperature, fit_threshold, scan_means, score
from perceiver import Perceiver, read_checkpoint
from processes import processes, rank, reduce
from splits import Subset


def predict_subset(model: Perceiver, subset: Subset, args: argparse.Namespace) -> Tensor:
    """Logits (n, classes) of the slices of a subset, on the CPU, before calibration.

    Each process predicts its share, and each slice is predicted once.
    """
    _, images, _, members = subset
    logits = torch.zeros(len(members), len(SIDES))
    at_a_time = math.ceil(args.batch_size / args.grad_accumulation)
    for batch in torch.arange(rank(), len(members), processes()).split(at_a_time):
        pixels = images[members[batch].to(images.device)]
        logits[batch] = model.predict_logits(pixels, args.batch_size, args.amp)
    return reduce(logits)


def labels_of(subset: Subset) -> Tensor:
    """The classes (n,) of the slices of a subset, on the CPU."""
    return subset.labels[subset.members.to(subset.labels.device)].cpu()


def calibrate(
    checkpoint: Path, val: Subset, device: torch.device, args: argparse.Namespace
) -> None:
    """Fit the temperature and the threshold of `unsure` on validation; keep both in the checkpoint.

    A scan is `unsure` below the confidence from which on at most 1 % of the validation slices are
    wrong.
    """
    model = Perceiver.from_checkpoint(checkpoint, device)
    logits, labels = predict_subset(model, val, args), labels_of(val)
    temperature = fit_temperature(logits, labels, [s.patient for s in val.slices])
    p_right = (logits.double() / temperature).softmax(dim=1)[:, 1]
    model.calibration = {
        "temperature": temperature,
        "unsure_below": fit_threshold(p_right, labels),
        "unsure_above_error_rate": ERROR_RATE,
    }
    if rank() == 0:
        content = read_checkpoint(checkpoint)
        kept = {name: content[name] for name in ("optimizer", "progress")}
        runs.save_checkpoint(checkpoint, model, **kept)
    reduce(torch.zeros(()))  # the others wait for it


def test(checkpoint: Path, subset: Subset, device: torch.device, args: argparse.Namespace) -> dict:
    """Test a calibrated checkpoint. Returns the figures, and writes them beside it.

    test_metrics.json, test_predictions.csv, confusion_matrix.png, calibration.png, roc.png and
    errors.png.
    """
    model = Perceiver.from_checkpoint(checkpoint, device)
    logits, labels, slices = predict_subset(model, subset, args), labels_of(subset), subset.slices
    before = logits.double().softmax(dim=1)[:, 1].numpy()
    p_right = (logits.double() / model.calibration["temperature"]).softmax(dim=1)[:, 1].numpy()
    scans = [s.scan for s in slices]
    first = {s.scan: s for s in reversed(slices)}  # one slice of each scan knows side and patient
    of_slices = (p_right, labels.tolist(), [s.patient for s in slices], before)
    by_scan = scan_means(p_right, scans)
    of_scans = (
        list(by_scan.values()),
        [SIDES.index(first[scan].side) for scan in by_scan],
        [first[scan].patient for scan in by_scan],
        list(scan_means(before, scans).values()),
    )
    metrics = {
        "split": "file" if args.split_file else args.split,
        "epoch": len(read_checkpoint(checkpoint)["progress"]["rows"]),
        "patients": len({s.patient for s in slices}),
        "loss_before_calibration": torch.nn.functional.cross_entropy(logits, labels).item(),
        "calibration": model.calibration,
        "slices": score(*of_slices),
        "scans": score(*of_scans),
    }
    if rank() > 0:
        return metrics
    rows = [
        {
            "path": s.path,
            "scan": s.scan,
            "patient": s.patient,
            "side": s.side,
            "label": SIDES[int(p > 0.5)],
            "p_left": f"{1 - p:.6f}",
            "p_right": f"{p:.6f}",
        }
        for s, p in zip(slices, p_right.tolist(), strict=True)
    ]
    folder = checkpoint.parent
    runs.write_csv(folder / "test_predictions.csv", rows)
    runs.write_json(folder / "test_metrics.json", metrics)
    units = {"slice": of_slices, "scan": of_scans}
    scored = {"slice": metrics["slices"], "scan": metrics["scans"]}
    for name, draw in {
        "confusion_matrix": lambda path: plots.draw_confusion_matrix(scored, list(SIDES), path),
        "calibration": lambda path: plots.draw_calibration(units, scored, path),
        "roc": lambda path: plots.draw_roc(units, scored, path),
        "errors": lambda path: plots.draw_errors(
            *least_right(subset, p_right, by_scan, limit=8), path
        ),
    }.items():
        with runs.whole_file(folder / f"{name}.png") as temporary:
            draw(temporary)
    return metrics


def least_right(
    subset: Subset, p_right: np.ndarray, by_scan: dict[str, float], limit: int
) -> tuple[list, list]:
    """The scans and the slices whose true side has the lowest probability, lowest first.

    Returns for both (name, true side, its probability, image (height, width)); a scan's image is
    that of its middle slice. At most `limit` scans, and three times as many slices.
    """

    def picture(i: int) -> np.ndarray:
        return subset.images[subset.members[i], 0].cpu().numpy()

    def p_true(side: str, p: float) -> float:
        return float(p if side == SIDES[1] else 1 - p)

    members: dict[str, list[int]] = {}
    for i, s in enumerate(subset.slices):
        members.setdefault(s.scan, []).append(i)
    scans = []
    for scan, p in by_scan.items():
        middle = members[scan][len(members[scan]) // 2]
        side = subset.slices[middle].side
        scans.append((p_true(side, p), scan.removesuffix(".nii.gz"), side, middle))
    slices = [
        (p_true(s.side, p), f"{s.scan.removesuffix('.nii.gz')} #{s.index}", s.side, i)
        for i, (s, p) in enumerate(zip(subset.slices, p_right, strict=True))
    ]
    return tuple(
        [(name, side, p, picture(i)) for p, name, side, i in sorted(found)[:count]]
        for found, count in ((scans, limit), (slices, 3 * limit))
    )
