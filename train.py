"""Train a Perceiver to tell left from right knees, or any classes; test the best checkpoint once.

    python train.py --demo                            # synthetic knees, a small model, minutes
    python train.py --data-dir AKOA_Analysis          # the experiment
    python train.py --data-dir AKOA_Analysis --split scan --dry-run
    python train.py --data-dir grades.csv --classes 0 1 2 3 4
    python train.py --data-dir AKOA_Analysis --folds 5          # each patient is tested once
    python train.py --resume runs/my-run              # goes on as if it had never stopped
    torchrun --nproc-per-node 4 train.py --data-dir AKOA_Analysis --output-dir runs/my-run

In order: read and check all slices, put whole patients into train, val and test, train, keep the
checkpoint with the lowest validation loss, calibrate it, test it on patients it never saw. A run
folder holds all of it: args.json, split.csv, metrics.csv, curves.png, last.pt, best.pt and what
evaluation/report.py writes.

Exit codes: 0 done, 1 something failed (a non-finite loss, a full disk), 2 unusable arguments or
data, 3 --audit found a mismatch, 130 / 143 stopped by SIGINT / SIGTERM: it says how to go on.
"""

import gc
import signal

if __name__ == "__main__":  # while PyTorch is imported
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of a Ctrl-C
    gc.disable()  # nothing of it is garbage; run_program goes on with that

import argparse
import copy
import math
import os
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.parallel import DistributedDataParallel

from common import signals
from common.files import locked
from common.program import OutOfMemory, UserError, counted, run_program, typed
from common.workers import (
    agreed_signal,
    broadcast,
    choose_device,
    first_process_first,
    join_processes,
    leave_processes,
    processes,
    rank,
    say,
)
from dataset import (
    Dataset,
    describe_counts,
    describe_subsets,
    list_labelled,
    load_dataset,
    split_as_told,
    subset_of_scans,
)
from evaluation.calibration import calibrate
from evaluation.predictions import predict
from evaluation.report import describe_test, test_figures, write_report
from evaluation.trained import kept_of
from perceiver import CheckpointError, ConfigError, Perceiver, read_checkpoint
from scans import copies, phantom, split_tables, splits
from scans.flags import options_of
from scans.identity.names import are_sides
from scans.images import describe_depths
from scans.labelled import check_classes_present
from scans.listing import is_manifest
from scans.places import describe_lengths
from scans.slices import DataError, by_scan
from scans.volumes import common_direction
from training import folds, runfolder
from training.arguments import DEMO_PATIENTS, describe_recipe, model_arguments, parse_args
from training.checkpoints import Run, read_resumed, save_calibration
from training.checks import check_arguments, check_classes, check_image_size
from training.epoch import (
    NonFiniteError,
    Progress,
    Stopped,
    at_a_time,
    balanced_weights,
    train_one_epoch,
    validate,
)
from training.mirror import choose_mirror
from training.recipe import new_optimizer
from training.saved import plain, result_arguments
from training.tensorboard import TensorBoard


class Data(NamedTuple):
    dataset: Dataset  # of all slices, or of all whole scans
    pairs: copies.Pairs  # images that are in it twice


def read_data(args: argparse.Namespace, classes: list[str] | None) -> Data:
    """Find, decode and check all slices. Says what was found.

    Raises:
        DataError: unusable data, or unreadable files (all are named).
    """
    if args.resume and not args.data_dir.exists():
        raise DataError(
            f"{args.data_dir}: the run's data is not there; --data-dir says where it is"
        )
    with first_process_first():  # the others open the headers that it kept
        listing = list_labelled(args.data_dir, classes, options_of(args))
    slices = listing.slices
    classes = listing.classes
    if args.mirror_swap and not are_sides(classes):
        raise DataError(f"--mirror-swap swaps left and right; the classes are {', '.join(classes)}")
    scans = by_scan(slices)
    say(f"{args.data_dir}: {describe_counts(listing)}")
    for problem in listing.problems:
        say(f"note: {problem}")
    check_classes_present(slices, classes)
    check_classes(args, classes)  # of a manifest or a table, too
    check_image_size(args, len(scans if args.input == "scan" else slices))
    length = args.slices if args.input == "scan" else None
    for line in describe_lengths(slices, length) if length else []:
        say(f"note: {line}")
    with first_process_first():  # the others open what it kept
        dataset = load_dataset(listing, args.image_size, args.cache_dir, args.workers, length)
        pairs = copies.open_copies(dataset.pixels, slices, dataset.crc32, args.cache_dir)
    found = copies.describe_copies(slices, dataset.pixels, pairs)
    for line in [dataset.note, describe_depths(dataset.depths), *found]:
        if line:
            say(f"note: {line}")
    note = splits.note_on_folders(scans, args.data_dir)
    if note and not (args.split_file or args.resume):
        say(f"note: {note}")
    return Data(dataset, pairs)


def read_subsets(args: argparse.Namespace, data: Data) -> dict[str, Dataset]:
    """Split as flags, a table or the resumed run say. Says how it was split.

    Raises:
        DataError: a split that is impossible, or a leak between subsets.
    """
    resumed = args.resume / "split.csv" if args.resume else None
    subsets = split_as_told(data.dataset, args, data.pairs, resumed)
    say(*describe_subsets(data.dataset, subsets))
    scans = by_scan(data.dataset.slices)
    if leaks := splits.straddling_patients(scans, subset_of_scans(subsets)):
        found = counted(len(leaks), "patient")
        say(f"warning: {found} in more than one subset (--split scan): accuracy may be too good")
    if args.mirror_swap and args.input == "scan":
        because = "as it was begun" if args.resume else "--mirrored says so"
        if not args.mirrored:
            args.mirrored, because = choose_mirror(subsets["train"])
        say(f"--mirror-swap reverses the {args.mirrored} of a scan: {because}")
    return subsets


def split_of(args: argparse.Namespace) -> str:
    """ "scan" where patients may straddle subsets; else "file", of a table, or "patient"."""
    return "file" if args.split == "patient" and args.split_file else args.split


def new_model(args: argparse.Namespace, train: Dataset) -> Perceiver:
    """A model for these classes and slices, with random weights that follow from the seed."""
    torch.manual_seed(args.seed % 2**63)
    model = Perceiver(**model_arguments(args), num_classes=len(train.classes))
    with torch.no_grad():
        for block in model.blocks:
            block.cross_attention.to_q.weight.mul_(args.query_scale)
    mean, std = train.statistics()
    model.preprocessing = {
        "classes": train.classes,
        "image_size": list(args.image_size),
        **kept_of(args),
        "orientation": common_direction(train.slices, args.input == "scan"),
        "mean": mean,
        "std": max(std, 1 / 255),  # blank images must not become infinite
    }
    return model


def choose_products(model: Perceiver, products: dict[str, str] | None) -> None:
    """Those of a resumed run, or those that the first process measures: all take the same."""
    if rank() == 0:
        model.choose_products(products)
    model.choose_products(broadcast(model.products))


def test_best(run: Run, subsets: dict[str, Dataset], args: argparse.Namespace) -> dict:
    """Calibrate the best checkpoint on validation, test it once, and write the report."""
    path = run.folder / "best.pt"
    model = Perceiver.from_checkpoint(path, run.model.latents.device)
    if run.model.products:
        model.choose_products(run.model.products)
    calibration = calibrate(predict(model, subsets["val"], at_a_time(args), args.amp))
    save_calibration(path, model, calibration)
    predictions = predict(model, subsets["test"], at_a_time(args), args.amp)
    epoch = len(read_checkpoint(path)["progress"]["rows"])
    metrics = test_figures(predictions, split_of(args), epoch, len(run.progress.rows), calibration)
    if rank() == 0:
        write_report(run.folder, predictions, metrics)
    return metrics


def run(args: argparse.Namespace, cleanup: ExitStack) -> int:
    """Train and test once, or once for each fold. Returns the exit code."""
    device = join_processes(choose_device(args.device))
    args.amp = device.type == "cuda" if args.amp is None else args.amp
    folder = args.output_dir = runfolder.choose_folder(args)
    if args.resume:
        runfolder.set_hint(args)
    check_arguments(args)
    if args.recipe:
        say(describe_recipe(args))
    with first_process_first():
        if args.demo and not args.data_dir.exists():
            say(f"making synthetic knees of {DEMO_PATIENTS} patients in {args.data_dir}")
            phantom.write_phantoms(args.data_dir, patients=DEMO_PATIENTS)
    if args.folds:
        data = read_data(args, args.classes)
        args.classes = data.dataset.classes
        train_fold = partial(train_and_test, device=device, data=data)
        return folds.cross_validate(args, *data, train_fold)
    if tested := train_and_test(args, device, cleanup):
        say(f"run folder: {folder}")
        say(f"next: {predict_command(folder / 'best.pt', tested, args)}")
    return 0


def train_and_test(
    args: argparse.Namespace, device: torch.device, cleanup: ExitStack, data: Data | None = None
) -> Dataset | None:
    """Split, train, test the best checkpoint. Returns what was tested; None after a dry run.

    data: what was read already. cleanup: until when the run folder is locked.
    """
    folder = args.output_dir
    board = TensorBoard(folder) if args.tensorboard and rank() == 0 else None
    resumed = read_resumed(folder, result_arguments(args)) if args.resume else None
    if resumed and args.epochs < (done := resumed.progress.epoch - 1):
        raise UserError(f"--epochs {args.epochs}: the run has done {done} already")

    classes = resumed.model.preprocessing["classes"] if resumed else args.classes
    subsets = read_subsets(args, data or read_data(args, classes))
    train = subsets["train"]
    args.classes = train.classes
    about = runfolder.describe_data(subsets)
    if resumed:
        say(runfolder.check_same_data(folder, resumed.data, about))

    model = (resumed.model if resumed else new_model(args, train)).to(device)
    if device.type == "cpu":
        choose_products(model, runfolder.read_products(folder) if resumed else None)
    if device.type == "cuda" and train.pixels.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
        pixels = train.pixels.to(device)  # once, and not batch by batch
        subsets = {name: subset.with_pixels(pixels) for name, subset in subsets.items()}
        train = subsets["train"]
    trained = model  # with --ema, the model is the average of its weights
    if args.ema:
        trained = copy.deepcopy(model)
        if resumed:
            trained.load_state_dict(resumed.weights)
    optimizer = new_optimizer(args, trained)
    made_with = {"arguments": result_arguments(args), "data": about}
    current = Run(folder, model, trained, optimizer, made_with, resumed)
    if args.compile:
        for block in {*model.blocks, *trained.blocks}:
            block.latent_layers.compile()  # reading tokens is a few large kernels already
    if processes() > 1:
        trained = DistributedDataParallel(trained)
    average = model if args.ema else None
    weights = balanced_weights(train).to(device) if args.class_weights == "balanced" else None
    say(describe_model(model, device, train))

    def epoch() -> None:
        save = None if args.dry_run else partial(current.save, "last.pt")
        train_one_epoch(trained, train, optimizer, current.progress, args, save, weights, average)

    if args.dry_run:
        epoch()
        loss = current.progress.loss_sum / min(args.batch_size, len(train))
        say(f"dry run: one step, loss {loss:.4f}; no run folder made")
        return None
    if rank() == 0:
        start_folder(current, args, subsets, cleanup)
    if resumed:
        say(describe_resumed(current.progress, args, len(train)))
    while current.progress.epoch <= args.epochs:
        with signals.asked():
            epoch()
        signals.check()  # what came while it saved
        row = validate(model, subsets["val"], train, current.progress, args)
        with signals.asked():
            is_best = current.end_epoch(row)
            if board:
                board.add_epoch(row)
            say(describe_epoch(row, args.epochs, is_best))
            if stop := agreed_signal():
                raise Stopped(stop)

    current.draw()
    metrics = test_best(current, subsets, args)
    if board:
        board.add_pictures(folder, metrics["epoch"])
    say(*describe_test(metrics))
    return subsets["test"]


def start_folder(
    run: Run,
    args: argparse.Namespace,
    subsets: dict[str, Dataset],
    cleanup: ExitStack,
) -> None:
    """Make the run folder, lock it, and write what the run can be resumed from."""
    run.folder.mkdir(parents=True, exist_ok=True)
    cleanup.enter_context(locked(run.folder))
    runfolder.check_unused(run.folder, args)
    arguments = {name: plain(value) for name, value in vars(args).items()}
    runfolder.record_start(run.folder, arguments, run.model, run.made_with["data"])
    if not args.resume:
        scans = by_scan(subsets["train"].slices)
        split_tables.write_split(run.folder / "split.csv", scans, subset_of_scans(subsets))
        run.save("last.pt")
        if not signals.hint():  # of a fold, how to go on with all of them
            runfolder.set_hint(args)  # from here on the run can be resumed


# ---- lines for a person --------------------------------------------------------------------------


def describe_model(model: Perceiver, device: torch.device, train: Dataset) -> str:
    tokens = f"{math.prod(train.sample_size):,} tokens a {train.unit}"
    where = f"{device}" if processes() == 1 else f"{processes()} processes, {device.type}"
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    return f"Perceiver: {parameters:.2f} M parameters, {tokens}, on {where}"


def describe_resumed(progress: Progress, args: argparse.Namespace, count: int) -> str:
    if progress.epoch > args.epochs:
        return f"{counted(args.epochs, 'epoch')} of {args.epochs} done: testing again"
    steps = math.ceil(count / args.batch_size)
    return (
        f"going on in epoch {progress.epoch} of {args.epochs}, after step {progress.step} of "
        f"{steps}"
    )


def describe_epoch(row: dict, epochs: int, is_best: bool) -> str:
    return (
        f"epoch {row['epoch']:>3}/{epochs}  "
        f"train loss {row['train_loss']:.4f} accuracy {row['train_accuracy']:7.2%}  "
        f"val loss {row['val_loss']:.4f} accuracy {row['val_accuracy']:7.2%}  "
        f"{row['seconds']:.1f} s{'  best' if is_best else ''}"
    )


def predict_command(checkpoint: Path, tested: Dataset, args: argparse.Namespace) -> str:
    """What to type next: predict.py on a scan that was tested, with what tells its label.

    A manifest tells labels of its files only where it is read itself: it is named as a whole.
    """
    first = tested.members[0]
    scan = {s.source for s in tested.members if s.scan == first.scan}
    source, ending = os.path.splitext(first.source)
    start, pattern = source.rstrip("0123456789"), typed(first.source)
    if len(scan) > 1 and all(path.startswith(start) for path in scan):  # images
        pattern = f"{typed(start)}*{ending}"
    if is_manifest(str(args.data_dir)):
        pattern = typed(args.data_dir)
    program = typed(runfolder.program("predict.py"))
    words = ["--labels", *args.labels] if args.labels else []
    words += ["--label-column", args.label_column] if args.label_column else []
    return " ".join(["python", program, typed(checkpoint), pattern, *map(typed, words)])


# ---- program -------------------------------------------------------------------------------------


def run_and_explain(args: argparse.Namespace, cleanup: ExitStack) -> int:
    """`run`, with what to do next where it was stopped or failed."""
    try:
        return run(args, cleanup)
    except Stopped as stopped:
        say(f"stopped and saved; go on with: {runfolder.resume_command(args)}")
        return 128 + stopped.args[0]
    except NonFiniteError as error:
        if not args.folds:
            runfolder.name_failed_batch(args.output_dir, error)
        raise
    except torch.cuda.OutOfMemoryError as error:
        more = 2 * args.grad_accumulation
        parts = [math.ceil(args.batch_size / processes() / n) for n in (more // 2, more)]
        raise OutOfMemory(
            f"out of GPU memory with {counted(parts[0], args.input)} at a time; try "
            f"--grad-accumulation {more}: the same batch, {parts[1]} at a time"
        ) from error
    except RuntimeError as error:
        if args.compile and (reason := why_not_compiled(error)):
            raise UserError(f"--compile: {reason}; leave it out") from error
        raise


def why_not_compiled(error: RuntimeError) -> str:
    """What PyTorch's compiler lacks on this machine; "" for what is wrong in the code itself."""
    from torch._dynamo.exc import BackendCompilerFailed  # slow to import, and long done here
    from torch._inductor.exc import GPUTooOldForTriton, TritonMissing

    if not isinstance(error, BackendCompilerFailed | GPUTooOldForTriton | TritonMissing):
        return ""
    inner = getattr(error, "inner_exception", error)
    return " ".join([f"{type(inner).__name__}:", *str(inner).strip().splitlines()[:1]])


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with signals.listening("train.py"), ExitStack() as cleanup:
        cleanup.callback(leave_processes)
        program = partial(run_and_explain, cleanup=cleanup)
        return run_program(program, args, "train.py", (ConfigError, CheckpointError))


if __name__ == "__main__":
    code = main()
    if "WORLD_SIZE" in os.environ:  # at exit, threads of PyTorch now and then abort the process
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
