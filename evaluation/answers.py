"""What a model says of a listing, some scans at a time, and the tables of it.

with open_tables(folder, classes) as add:
    for answers in predict_in_chunks(model, listing, checkpoint):
        add(answers)                        # rows of predictions.csv and scans.csv
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from common.files import made_folder
from common.program import UserError, counted, print_lines
from common.tables import whole_csv, write_csv
from common.workers import memory_of
from dataset import Dataset
from evaluation.predictions import Predictions, judge, predict, probability_columns
from evaluation.trained import sample_size, scan_length
from perceiver import Perceiver, ReadTokens, reads_directly
from scans.cache import Decoded, decode_slices
from scans.places import place_in_scan, rows_of_scans, unfit
from scans.slices import FAILURES, Kind, Listing, Problem, Slice
from scans.volumes import common_direction, other_direction

if TYPE_CHECKING:
    from evaluation.ensemble import Ensemble

CHUNK = 512  # slices decoded at a time, in whole scans: memory stays the same for any number
CHUNK_BYTES = 2**28  # and their pixels


class Answers(NamedTuple):
    """What a model says of some scans."""

    asked: list[tuple[str, str]]  # name and scan of each slice, or of each scan that is read whole
    predictions: Predictions  # of those that can be read; their pixels are not kept
    scans: list[dict]  # rows of scans.csv
    problems: dict[str, Problem]  # name of a slice, or of what else can't be read -> why
    depths: dict[int, int]  # bits that 16-bit images hold -> so many scans


def predict_in_chunks(
    model: "Perceiver | Ensemble",
    listing: Listing,
    checkpoint: Path,
    batch_size: int = 64,
    workers: int | None = None,
    look: Callable[[Perceiver, Predictions, list[dict]], None] | None = None,
) -> Iterator[Answers]:
    """Decode and predict all slices, some whole scans at a time; last what is no slice at all.

    look: gets the predictions and rows of scans while their pixels are there (CardMaker.add).

    Raises UserError, which names the checkpoint, where a prediction is not finite.
    """
    classes = listing.classes
    size = tuple(model.preprocessing["image_size"])
    unsure_below = model.calibration.get("unsure_below", 1 / len(classes))
    scans = {s.scan for s in listing.slices}
    trained = model.preprocessing.get("orientation", "")
    if not trained:  # on images, or by an earlier version
        common_direction(listing.slices, scan_length(model) is not None)
    total, unit = (len(scans), "scan") if scan_length(model) else (len(listing.slices), "slice")
    with tqdm(total=total, unit=unit, leave=False, disable=None) as bar:
        for slices in chunks_of_scans(listing.slices, size):
            decoded = decode_slices(slices, size, workers, progress=False)
            problems = {
                slices[i].name: Problem(slices[i].source, Kind.UNREADABLE, text)
                for i, text in decoded.errors.items()
            }
            if unit == "scan":
                dataset, unfit_scans = read_whole(model, slices, decoded, classes)
                problems |= unfit_scans
                damaged = [(s.name, s.scan) for s in slices if s.name in problems]
                asked = [*dict.fromkeys((s.scan, s.scan) for s in slices), *damaged]
            else:
                problems |= of_other_directions(slices, trained)
                rows = [i for i, s in enumerate(slices) if s.name not in problems]
                rows, pixels = torch.tensor(rows).long(), torch.from_numpy(decoded.pixels)
                dataset = Dataset(slices, pixels, rows, classes)
                asked = [(s.name, s.scan) for s in slices]
            if isinstance(model, Perceiver):
                predictions = predict(model, dataset, batch_size, bar=bar)
            else:
                predictions = model.predict(dataset, batch_size, bar)
            check_finite(predictions.logits, checkpoint)
            judged = [judge(scan, classes, unsure_below) for scan in predictions.scans]
            if look:
                look(model, predictions, judged)
            predictions = joined([predictions], classes, predictions.temperature)
            bar.clear()  # lines are printed in its place
            yield Answers(asked, predictions, judged, problems, decoded.depths)
    if failures := {problem.path: problem for problem in listing.of_kind(*FAILURES)}:
        yield Answers([], joined([], classes), [], failures, {})


def read_whole(
    model: Perceiver, slices: list[Slice], decoded: Decoded, classes: list[str]
) -> tuple[Dataset, dict[str, Problem]]:
    """Whole scans, of the slices that can be read, and scan name -> why it can't be read whole."""
    readable, trained = [], model.preprocessing.get("orientation", "")
    problems: dict[str, Problem] = {}
    scans: dict[str, list[int]] = {}
    for i, s in enumerate(slices):
        scans.setdefault(s.scan, []).append(i)
    for scan, positions in scans.items():
        kept = [i for i in positions if i not in decoded.errors]
        kept.sort(key=lambda i: place_in_scan(slices[i]))
        text = unfit([slices[i] for i in kept])
        text = text or other_direction(slices[positions[0]].volume, trained)
        if text:
            problems[scan] = Problem(scan, Kind.UNREADABLE, text)
        else:
            readable += kept
    ordered = [slices[i] for i in readable]
    pixels = torch.from_numpy(decoded.pixels)[torch.tensor(readable).long()]
    rows = rows_of_scans(ordered, model.preprocessing["slices"])
    return Dataset(ordered, pixels, rows, classes), problems


def of_other_directions(slices: list[Slice], trained: str) -> dict[str, Problem]:
    """Slice name -> what is wrong with the direction of its volume."""
    volumes = {s.source: s.volume for s in slices if s.volume}
    texts = {source: other_direction(volume, trained) for source, volume in volumes.items()}
    return {
        s.name: Problem(s.source, Kind.UNREADABLE, texts[s.source])
        for s in slices
        if texts.get(s.source)
    }


def samples_at_a_time(model: Perceiver, checkpoint: Path, most: int) -> int:
    """As many as have room in half of the device's memory, or one where it has room at all.

    Raises UserError, which names the checkpoint, where not even one has.
    """
    there, (one, two) = memory_of(model.latents.device), (bytes_taken(model, n) for n in (1, 2))
    if one > there:
        unit, size = "scan" if scan_length(model) else "slice", sample_size(model)[1:]
        raise UserError(
            f"{checkpoint}: one {unit} of its size, {' x '.join(map(str, size))}, takes "
            f"{one / 1e9:,.2f} GB, and there are {there / 1e9:,.2f} GB"
        )
    return max(1, min(most, 1 + int((there / 2 - one) / (two - one))))


def bytes_taken(model: Perceiver, samples: int) -> float:
    """About the memory in which so many are predicted at a time; all in it is float32."""
    config, tokens = model.config, math.prod(sample_size(model))
    width = -(-(1 + model.token_dim) // 16) * 16  # of a token: see `Perceiver.tokens`
    of_a_token = 1.5 * width  # as measured, while they are made; so are positions, once for all
    if not reads_directly(config["num_latents"], model.token_dim, config["cross_dim_head"]):
        of_a_token += 2 * config["cross_heads"] * config["cross_dim_head"]  # keys and values
    rows = config["cross_heads"] * config["num_latents"]
    scores = max(ReadTokens.SCORES, rows * min(tokens, ReadTokens.BLOCK))
    inner = config["latent_heads"] * config["latent_dim_head"]
    latents = 4 * rows * width + config["num_latents"] * (12 * config["latent_dim"] + 4 * inner)
    return 4 * (1.5 * width * tokens + 2 * scores + samples * (of_a_token * tokens + latents))


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
    slices, rows = [], [torch.empty(0, dtype=torch.long)]
    for part in parts:
        rows.append(part.dataset.rows + len(slices))
        slices += part.dataset.slices
    nothing = torch.empty(0, 1, 1, 1, dtype=torch.uint8)
    dataset = Dataset(slices, nothing, torch.cat(rows), classes)
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
                whole_csv(folder / "predictions.csv", columns["predictions"]) as add_samples,
                whole_csv(folder / "scans.csv", columns["scans"]) as add_scans,
            ):

                def add(answers: Answers) -> None:
                    add_samples(rows_of_samples(answers))
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
        "predictions": [row for answers in done for row in rows_of_samples(answers)],
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


def rows_of_samples(answers: Answers) -> Iterator[dict]:
    """Of each slice or scan that was asked for, and then of each problem that is none of these."""
    predictions, classes = answers.predictions, answers.predictions.classes
    predicted = dict(zip(predictions.dataset.names, predictions.probabilities, strict=True))
    problems = dict(answers.problems)
    for name, scan in answers.asked:
        row = {"path": name, "scan": scan}
        if name in predicted:
            p = predicted[name]
            yield row | {"label": classes[p.argmax()], **probability_columns(p, classes)}
        elif name in problems:
            yield row | {"error": problems.pop(name).text}
    for problem in problems.values():
        yield {"path": problem.path, "scan": problem.path, "error": problem.text}
