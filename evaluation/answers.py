"""What a model says of a listing, some scans at a time, and the tables of it.

with open_tables(folder, classes) as add:
    for answers in predict_in_chunks(model, listing, checkpoint):
        add(answers)                        # rows of predictions.csv and scans.csv
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from common.csv_tables import whole_csv, write_csv
from common.files import made_folder
from common.program import UserError, counted, print_lines
from common.workers import memory_of
from dataset import Dataset
from evaluation.predictions import Predictions, judge, predict, probability_columns
from perceiver import Perceiver, ReadTokens
from scans.cache import decode_slices
from scans.slices import FAILURES, Kind, Listing, Problem, Slice

CHUNK = 512  # slices decoded at a time, in whole scans: memory stays the same for any number
CHUNK_BYTES = 2**28  # and their pixels


class Answers(NamedTuple):
    """What a model says of some scans."""

    slices: list[Slice]  # scan by scan
    predictions: Predictions  # of those that can be read; their pixels are not kept
    scans: list[dict]  # rows of scans.csv
    problems: dict[str, Problem]  # name of a slice, or of what else can't be read -> why
    depths: dict[int, int]  # bits that 16-bit images hold -> so many scans


def predict_in_chunks(
    model: Perceiver,
    listing: Listing,
    checkpoint: Path,
    batch_size: int = 64,
    workers: int | None = None,
) -> Iterator[Answers]:
    """Decode and predict all slices, some whole scans at a time; last what is no slice at all.

    Raises UserError, which names the checkpoint, where a prediction is not finite.
    """
    classes = listing.classes
    size = tuple(model.preprocessing["image_size"])
    unsure_below = model.calibration.get("unsure_below", 1 / len(classes))
    with tqdm(total=len(listing.slices), unit="slice", leave=False, disable=None) as bar:
        for slices in chunks_of_scans(listing.slices, size):
            decoded = decode_slices(slices, size, workers, progress=False)
            readable = [i for i in range(len(slices)) if i not in decoded.errors]
            pixels, rows = torch.from_numpy(decoded.pixels), torch.tensor(readable).long()
            dataset = Dataset(slices, pixels, rows, classes)
            predictions = predict(model, dataset, batch_size, bar=bar)
            check_finite(predictions.logits, checkpoint)
            predictions = joined([predictions], classes, predictions.temperature)
            judged = [judge(scan, classes, unsure_below) for scan in predictions.scans]
            problems = {
                slices[i].name: Problem(slices[i].source, Kind.UNREADABLE, text)
                for i, text in decoded.errors.items()
            }
            bar.clear()  # lines are printed in its place
            yield Answers(slices, predictions, judged, problems, decoded.depths)
    if failures := {problem.path: problem for problem in listing.of_kind(*FAILURES)}:
        yield Answers([], joined([], classes), [], failures, {})


def slices_at_a_time(model: Perceiver, checkpoint: Path, most: int) -> int:
    """As many as have room in half of the device's memory, or one where it has room at all.

    Raises UserError, which names the checkpoint, where not even one has.
    """
    there, (one, two) = memory_of(model.latents.device), (bytes_taken(model, n) for n in (1, 2))
    if one > there:
        height, width = model.preprocessing["image_size"]
        raise UserError(
            f"{checkpoint}: one slice of its size, {height} x {width}, takes {one / 1e9:,.2f} GB, "
            f"and there are {there / 1e9:,.2f} GB"
        )
    return max(1, min(most, 1 + int((there / 2 - one) / (two - one))))


def bytes_taken(model: Perceiver, slices: int) -> float:
    """About the memory in which so many are predicted at a time; all in it is float32."""
    config, tokens = model.config, math.prod(model.preprocessing["image_size"])
    width = -(-(1 + model.token_dim) // 16) * 16  # of a token: see `Perceiver.tokens`
    of_a_token = 1.5 * width  # as measured, while they are made; so are positions, once for all
    if model.token_dim > config["cross_dim_head"]:
        of_a_token += 2 * config["cross_heads"] * config["cross_dim_head"]  # keys and values
    rows = config["cross_heads"] * config["num_latents"]
    scores = max(ReadTokens.SCORES, rows * min(tokens, ReadTokens.BLOCK))
    inner = config["latent_heads"] * config["latent_dim_head"]
    latents = 4 * rows * width + config["num_latents"] * (12 * config["latent_dim"] + 4 * inner)
    return 4 * (1.5 * width * tokens + 2 * scores + slices * (of_a_token * tokens + latents))


def chunks_of_scans(slices: list[Slice], size: tuple[int, int] = (1, 1)) -> Iterator[list[Slice]]:
    """At most CHUNK slices at a time, but whole scans: one that is longer comes alone.

    The slices of a scan share the scale of their grey levels: decode_slices must see all of them.
    """
    most = min(CHUNK, CHUNK_BYTES // (size[0] * size[1]))
    scans: dict[str, list[Slice]] = {}  # in the order in which they are met
    for s in slices:
        scans.setdefault(s.scan, []).append(s)
    chunk: list[Slice] = []
    for scan in scans.values():
        if chunk and len(chunk) + len(scan) > most:
            yield chunk
            chunk = []
        chunk = chunk + scan
    if chunk:
        yield chunk


def joined(parts: list[Predictions], classes: list[str], temperature: float = 1.0) -> Predictions:
    """Predictions of several datasets as those of one, without their pixels."""
    samples = [s for part in parts for s in part.samples]
    nothing = torch.empty(0, 1, 1, 1, dtype=torch.uint8)
    dataset = Dataset(samples, nothing, torch.arange(len(samples)), classes)
    logits = torch.cat([torch.empty(0, len(classes)), *(part.logits for part in parts)])
    return Predictions(dataset, logits, temperature)


def check_finite(logits: Tensor, checkpoint: Path) -> None:
    """Raise UserError if there is something that is no number: it says nothing of any class."""
    if not logits.isfinite().all():
        raise UserError(
            f"{checkpoint}: what it predicts is not finite; its weights are damaged, or were never "
            "those of a trained model"
        )


# ---- what is written -----------------------------------------------------------------------------


@contextmanager
def open_tables(folder: Path, classes: list[str]) -> Iterator[Callable[[Answers], None]]:
    """Write predictions.csv, a row for each slice and each problem, and scans.csv, as they come.

    They have their names when both are whole: what stops it leaves older ones as they were. What
    was computed until a full disk or a signal is kept in files called partial, and a line says so.
    """
    done: list[Answers] = []
    shares = [f"p_{name}" for name in classes]
    columns = {
        "predictions": ["path", "scan", "label", *shares, "error"],
        "scans": "scan patient label".split()
        + shares
        + "slices agreement expected verdict".split(),
    }
    with made_folder(folder):
        try:
            with (
                whole_csv(folder / "predictions.csv", columns["predictions"]) as add_slices,
                whole_csv(folder / "scans.csv", columns["scans"]) as add_scans,
            ):

                def add(answers: Answers) -> None:
                    add_slices(rows_of_slices(answers))
                    add_scans(answers.scans)
                    done.append(answers)

                add(Answers([], joined([], classes), [], {}, {}))  # headers, before the work
                yield add
            for name in columns:  # of an earlier run
                partial_table(folder, name).unlink(missing_ok=True)
        except (
            OSError,
            KeyboardInterrupt,
        ):  # the unfinished tables are gone: there is room for a part of them
            keep_partial(folder, columns, done)
            raise


def partial_table(folder: Path, name: str) -> Path:
    return folder / f"{name}.partial.csv"


def keep_partial(folder: Path, columns: dict[str, list[str]], done: list[Answers]) -> None:
    """Write the rows of what is done, whole rows only, if that is possible."""
    rows = {
        "predictions": [row for answers in done for row in rows_of_slices(answers)],
        "scans": [row for answers in done for row in answers.scans],
    }
    for name, found in rows.items():
        if found:
            path = partial_table(folder, name)
            with suppress(OSError):
                write_csv(path, found, columns[name])
                print_lines(
                    f"note: kept in {path}: the first {counted(len(found), 'row')}", to_error=True
                )


def rows_of_slices(answers: Answers) -> Iterator[dict]:
    """Of each slice, and then of each problem that is none of a slice."""
    predictions, classes = answers.predictions, answers.predictions.classes
    names = [s.name for s in predictions.samples]
    predicted = dict(zip(names, predictions.probabilities, strict=True))
    problems = dict(answers.problems)
    for s in answers.slices:
        row = {"path": s.name, "scan": s.scan}
        if s.name in predicted:
            p = predicted[s.name]
            yield row | {"label": classes[p.argmax()], **probability_columns(p, classes)}
        else:
            yield row | {"error": problems.pop(s.name).text}
    for problem in problems.values():
        yield {"path": problem.path, "scan": problem.path, "error": problem.text}
