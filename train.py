"""Train a Perceiver to tell left from right knees; keep the best checkpoint; test it once.

    python train.py --demo                            # synthetic knees, a small model, minutes
    python train.py --data-dir AKOA_Analysis          # the experiment
    python train.py --data-dir AKOA_Analysis --split scan --dry-run
    python train.py --resume runs/my-run              # goes on as if it had never stopped
    torchrun --nproc-per-node 4 train.py --data-dir AKOA_Analysis --output-dir runs/my-run

In order: read and check all slices, put whole patients into train, val and test, train, keep the
checkpoint with the lowest validation loss, calibrate it, test it on patients it never saw. A run
folder holds all of it: args.json, split.csv, metrics.csv, curves.png, last.pt, best.pt and what
testing.py writes.

Exit codes: 0 done, 1 something failed (a non-finite loss, a full disk), 2 unusable arguments or
data, 130 / 143 stopped by SIGINT / SIGTERM after saving.
"""

import signal

if __name__ == "__main__":  # no traceback of a Ctrl-C while PyTorch is imported
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import errno
import inspect
import math
import os
import shlex
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import audit
import dataset
import decode
import phantom
import plots
import runs
import splits
from arguments import DEMO_PATIENTS, parse_args, print_any_name
from augment import Augmentation
from dataset import SIDES, DataError
from perceiver import Perceiver, autocast, choose_device, read_checkpoint
from processes import (
    StopSignals,
    broadcast,
    join_processes,
    leave_processes,
    processes,
    rank,
    reduce,
    say,
)
from runs import Progress
from splits import SUBSETS, Subset
from testing import calibrate, labels_of, predict_subset, test

# ---- data ----------------------------------------------------------------------------------------


def read_subsets(args: argparse.Namespace) -> dict[str, Subset]:
    """Find, decode, audit and split all slices. Says what was found and how it was split.

    Raises:
        DataError: unusable data, unreadable files (all are named), or a leak between subsets.
    """
    slices, notes = dataset.find_slices(args.data_dir, args.name_pattern, args.plane)
    for side in SIDES:
        if not any(s.side == side for s in slices):
            raise DataError(f"{args.data_dir}: {len(slices)} slices, but none of the {side} side")
    scans = dataset.group_scans(slices)
    patients = len({s.patient for s in slices})
    say(f"{args.data_dir}: {len(slices):,} slices, {len(scans)} scans, {patients} patients")
    reading = [s.path for s in slices], args.image_size, args.cache_dir, args.workers, args.plane
    result = decode.open_images(*reading) if rank() == 0 else None  # the others open what it kept
    reduce(torch.zeros(()))
    images, errors, note = result or decode.open_images(*reading)
    if errors:
        listed = "\n".join(f"  {slices[i].path}: {error}" for i, error in errors.items())
        raise DataError(f"{len(errors)} files can't be read; mend or remove them:\n{listed}")
    copies = audit.open_copies(images, [s.scan for s in slices], args.cache_dir)
    for line in [*notes, note, *audit.describe_copies(slices, images, copies)]:
        if line:
            say(f"note: {line}")

    if args.resume:
        subset_of = splits.read_split(args.resume / "split.csv", scans)
    else:
        subset_of = splits.choose(args, scans, audit.patients_sharing_images(slices, copies))
    if args.split == "patient" or args.split_file:
        audit.check_copies(slices, copies, subset_of)
    say(splits.describe_split(scans, subset_of))
    if leaks := splits.straddling_patients(scans, subset_of):
        say(f"warning: {len(leaks)} patients straddle subsets (--split scan): accuracy too good")
    labels = torch.tensor([SIDES.index(s.side) for s in slices])
    subsets = {}
    for subset in SUBSETS:
        members = [i for i, s in enumerate(slices) if subset_of[s.scan] == subset]
        sides = {slices[i].side for i in members}
        if len(sides) < len(SIDES):
            say(f"warning: {subset} has {', '.join(sides)} knees only")
        found = [slices[i] for i in members]
        subsets[subset] = Subset(found, images, labels, torch.tensor(members))
    return subsets


# ---- training ------------------------------------------------------------------------------------


class NonFiniteError(ArithmeticError):
    """A loss, gradient or weight that is not a number: (message, paths of the batch)."""


class Stopped(Exception):
    """A signal was received, and the run is saved. The argument is the signal's number."""


def train_one_epoch(
    model: Perceiver | DistributedDataParallel,
    subset: Subset,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    args: argparse.Namespace,
    signals: StopSignals,
    save: Callable[[], None],
) -> None:
    """Train on each slice once, from step `progress.step` on, and keep `progress` up to date.

    Order, changes and dropout follow from seed, epoch, step and process alone, so a resumed epoch
    is the same epoch.

    Raises:
        Stopped: after a signal, with the step done and saved.
        NonFiniteError: before the optimizer has seen a loss or gradient that is not finite.
    """
    model.train()
    core = model.module if isinstance(model, DistributedDataParallel) else model
    device, (_, images, labels, members) = core.latents.device, subset
    members = members.to(images.device)
    epoch_seed = (args.seed * 1_000_003 + progress.epoch) % 2**63
    order = torch.randperm(len(members), generator=torch.Generator().manual_seed(epoch_seed))
    batches = order.to(images.device).split(args.batch_size)[: 1 if args.dry_run else None]
    changes = args.augment, args.mirror_swap
    size = tuple(images.shape[1:])
    change = Augmentation(len(members), size, device, args.seed, progress.epoch, *changes)
    # Sums stay on the device: reading them at each step would make a GPU wait for the CPU.
    sums = [progress.loss_sum, progress.correct]
    sums = torch.tensor(sums, device=device, dtype=torch.float64)
    sums *= rank() == 0
    first_failed = torch.full((), -1, device=device)
    started = time.perf_counter() - progress.seconds
    quiet = None if rank() == 0 else True  # None: a bar on a terminal, nothing in a log file
    bar = tqdm(batches, f"epoch {progress.epoch}", unit="step", leave=False, disable=quiet)
    bar.update(progress.step)

    def non_finite_step(step: int, batch: Tensor) -> NonFiniteError:
        message = (
            f"the gradient became non-finite in epoch {progress.epoch}, step {step + 1}, at "
            f"learning rate {optimizer.param_groups[0]['lr']:g}"
        )
        return NonFiniteError(message, [subset.slices[i].path for i in batch.tolist()])

    for step in range(progress.step, len(batches)):
        torch.manual_seed(((epoch_seed * 1_000_003 + step) * 1_009 + rank()) % 2**63)
        optimizer.zero_grad()
        batch = batches[step]
        # This process's share. A batch smaller than the processes leaves some a slice of weight 0.
        share = batch[rank() :: processes()]
        weight = processes() / len(batch) if len(share) else 0.0
        parts = (share if len(share) else batch[:1]).tensor_split(args.grad_accumulation)
        parts = [part for part in parts if len(part)]
        for part in parts:
            rows = members[part]
            pixels, sides = change(images[rows].to(device), labels[rows].to(device), part)
            waits = part is not parts[-1] and model is not core  # gradients are summed at the last
            with model.no_sync() if waits else nullcontext():
                with autocast(device, args.amp):
                    logits = model(core.normalise(pixels))
                loss = F.cross_entropy(logits.float(), sides, reduction="sum")
                (loss * weight).backward()
            correct = (logits.argmax(dim=1) == sides).sum()
            sums += torch.stack([loss.detach(), correct.double()]) * bool(weight)
        norm = nn.utils.clip_grad_norm_(model.parameters(), math.inf)  # clips nothing
        fails = ~torch.isfinite(norm) & (first_failed < 0)
        first_failed = torch.where(fails, step, first_failed)
        if device.type == "cuda":  # this step and all after it are skipped: nothing waits
            optimizer.found_inf = (first_failed >= 0).float()
        elif first_failed >= 0:
            raise non_finite_step(step, batch)
        optimizer.step()
        bar.update()

        progress.step, stop = step + 1, signals.agreed()
        saves = args.save_every_steps and progress.step % args.save_every_steps == 0
        if stop or saves or progress.step == len(batches):
            if (failed := int(first_failed)) >= 0:
                raise non_finite_step(failed, batches[failed])
            progress.loss_sum, progress.correct = reduce(sums.clone()).tolist()
            progress.seconds = time.perf_counter() - started
        if stop or (saves and progress.step < len(batches)):
            save()
        if stop:
            raise Stopped(stop)
    bar.close()


# ---- main ----------------------------------------------------------------------------------------


def prepare_folder(args: argparse.Namespace) -> Path:
    """The run folder, checked: a new run never touches another one's. Not made yet."""
    folder = args.output_dir or Path("runs", datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    folder = broadcast(folder)  # one clock decides
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file; name a folder as --output-dir")
    check_unused(folder, args)
    return folder


def check_unused(folder: Path, args: argparse.Namespace) -> None:
    taken = [name for name in runs.RUN_FILES if (folder / name).exists()]
    if taken and not args.resume:
        raise DataError(
            f"{folder} already holds a run ({taken[0]}); choose another --output-dir, or go on "
            f"with it: --resume {folder}"
        )


def resume_command(folder: Path) -> str:
    launcher = "python" if processes() == 1 else f"torchrun --nproc-per-node {processes()}"
    return f"{launcher} train.py --resume {shlex.quote(str(folder))}"


def report(folder: Path, rows: list[dict]) -> None:
    if rank() == 0 and rows:
        runs.write_csv(folder / "metrics.csv", rows)
        with runs.whole_file(folder / "curves.png") as temporary:
            plots.draw_curves(rows, temporary)


def run(args: argparse.Namespace, signals: StopSignals, cleanup: ExitStack) -> int:
    """Read, split, train, test. Returns the exit code; raises ValueError for unusable input."""
    device = join_processes(choose_device(args.device))
    args.amp = device.type == "cuda" if args.amp is None else args.amp
    folder = args.output_dir = prepare_folder(args)
    # Before anything slow: are these arguments a model, and is that a checkpoint?
    board = runs.TensorBoard(folder) if args.tensorboard and rank() == 0 else None
    torch.manual_seed(args.seed % 2**63)
    names = inspect.signature(Perceiver).parameters.keys() & vars(args).keys()
    model = Perceiver(**{name: getattr(args, name) for name in names}, num_classes=len(SIDES))
    progress = Progress()
    if args.resume:
        model = Perceiver.from_checkpoint(folder / "last.pt")
        checkpoint = read_checkpoint(folder / "last.pt")
        progress = runs.check_progress(folder / "last.pt", checkpoint, model)
    if args.epochs < progress.epoch - 1:
        raise DataError(f"--epochs {args.epochs}: the run has done {progress.epoch - 1} already")

    if args.demo and not args.data_dir.exists() and rank() == 0:
        say(f"making synthetic knees of {DEMO_PATIENTS} patients in {args.data_dir}")
        phantom.write_phantoms(args.data_dir, patients=DEMO_PATIENTS)
    reduce(torch.zeros(()))  # the others wait
    if args.resume and not args.data_dir.exists():
        raise DataError(
            f"{args.data_dir}: the run's data is not there; --data-dir says where it is"
        )
    subsets = read_subsets(args)
    images, labels = subsets["train"].images, subsets["train"].labels
    data = {"slices": len(images), "crc32": decode.crc32(images.numpy())}
    if args.resume:
        say(runs.check_same_data(runs.read_record(folder).get("data", data), data))
    else:
        mean, std = decode.pixel_statistics(images, subsets["train"].members)
        model.preprocessing = {
            "classes": list(SIDES),
            "image_size": list(args.image_size),
            "plane": args.plane,
            "mean": mean,
            "std": max(std, 1 / 255),  # blank images must not become infinite
        }
    model.to(device)
    if device.type == "cuda" and images.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
        images, labels = images.to(device), labels.to(device)  # once, and not batch by batch
        subsets = {n: s._replace(images=images, labels=labels) for n, s in subsets.items()}
    fused = device.type in ("cpu", "cuda")
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, fused=fused)
    if args.resume:
        optimizer.load_state_dict(checkpoint["optimizer"])
    if args.compile:
        for block in model.blocks:  # reading tokens is a few large kernels already
            block.latent_layers.compile()
    trained = DistributedDataParallel(model) if processes() > 1 else model
    parameters = sum(p.numel() for p in model.parameters())
    tokens = args.image_size[0] * args.image_size[1]
    where = f"{device}" if processes() == 1 else f"{processes()} processes, {device.type}"
    say(f"Perceiver: {parameters / 1e6:.2f} M parameters, {tokens:,} tokens a slice, on {where}")

    def save(*names: str) -> None:
        if rank() == 0:
            if not all(tensor.isfinite().all() for tensor in model.parameters()):
                message = f"the weights became non-finite in epoch {progress.epoch}"
                raise NonFiniteError(message, [])
            for name in names:
                runs.save_checkpoint(
                    folder / name,
                    model,
                    optimizer=optimizer.state_dict(),
                    progress=asdict(progress),
                )

    count = len(subsets["train"].members)
    if args.dry_run:
        train_one_epoch(trained, subsets["train"], optimizer, progress, args, signals, lambda: None)
        seen = min(args.batch_size, count)
        say(f"dry run: one step, loss {progress.loss_sum / seen:.4f}; no run folder made")
        return 0
    if rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        cleanup.enter_context(runs.locked(folder))
        check_unused(folder, args)
        runs.record_start(folder, vars(args), device, data)
        if not args.resume:
            scans = dataset.group_scans([s for subset in subsets.values() for s in subset.slices])
            subset_of = {s.scan: name for name in subsets for s in subsets[name].slices}
            with runs.whole_file(folder / "split.csv") as temporary:
                splits.write_split(temporary, scans, subset_of)
            save("last.pt")  # from here on the run can be resumed
    signals.training, signals.hint = True, f"go on with: {resume_command(folder)}"
    if args.resume:
        steps = math.ceil(count / args.batch_size)
        at = f"epoch {progress.epoch} of {args.epochs}, after step {progress.step} of {steps}"
        done = progress.epoch > args.epochs
        say(f"all {args.epochs} epochs are done: testing again" if done else f"going on in {at}")
    while progress.epoch <= args.epochs:
        epoch = progress.epoch
        lr = args.lr * args.lr_decay ** (epoch - 1)  # ExponentialLR, without a state of its own
        for group in optimizer.param_groups:
            group["lr"] = lr
        train_one_epoch(
            trained,
            subsets["train"],
            optimizer,
            progress,
            args,
            signals,
            save=lambda: save("last.pt"),
        )
        logits, val_labels = predict_subset(model, subsets["val"], args), labels_of(subsets["val"])
        val_loss = F.cross_entropy(logits, val_labels).item()
        if not math.isfinite(val_loss):
            raise NonFiniteError(f"the validation loss became {val_loss} in epoch {epoch}", [])
        row = {
            "epoch": epoch,
            "lr": lr,
            "train_loss": progress.loss_sum / count,
            "train_accuracy": progress.correct / count,
            "val_loss": val_loss,
            "val_accuracy": (logits.argmax(dim=1) == val_labels).float().mean().item(),
            "seconds": round(progress.seconds, 2),
        }
        is_best = val_loss < progress.best
        best = min(val_loss, progress.best)
        progress = Progress(epoch=epoch + 1, best=best, rows=[*progress.rows, row])
        # In this order: a kill between the two leaves a last.pt that does this epoch again.
        save(*(["best.pt"] if is_best else []), "last.pt")
        report(folder, progress.rows)
        if board:
            board.add_epoch(row)
        say(
            f"epoch {epoch:>3}/{args.epochs}  "
            f"train loss {row['train_loss']:.4f} accuracy {row['train_accuracy']:7.2%}  "
            f"val loss {val_loss:.4f} accuracy {row['val_accuracy']:7.2%}  "
            f"{row['seconds']:.1f} s{'  best' if is_best else ''}"
        )
        if stop := signals.agreed():
            raise Stopped(stop)
    signals.training = False

    report(folder, progress.rows)
    calibrate(folder / "best.pt", subsets["val"], device, args)
    metrics = test(folder / "best.pt", subsets["test"], device, args)
    if board:
        board.add_pictures(folder, metrics["epoch"])
    say(f"test of the best epoch, patients it never saw: {metrics['patients']}")
    if metrics["patients"] < 5:
        say("  (so few that the intervals say little)")
    if args.split == "scan" and not args.split_file:
        say("  (not quite: with --split scan other scans of theirs were trained on)")
    for unit in ("slices", "scans"):
        scored = metrics[unit]
        text = ""
        if scored["interval_95"]:
            text = ", 95 % interval over patients {:.2%} to {:.2%}".format(*scored["interval_95"])
        say(f"  {scored['accuracy']:.2%} of {scored['count']:,} {unit} right{text}")
    source, index = decode.split_path(subsets["test"].slices[0].path)
    example = Path(source)
    pattern = shlex.quote(str(example.with_suffix("")).rstrip("0123456789")) + "*" + example.suffix
    if index is not None:  # of a volume
        pattern = shlex.quote(source)
    say(f"run folder: {folder}")
    checkpoint = shlex.quote(str(folder / "best.pt"))
    say(f"next: python predict.py {checkpoint} {pattern}")
    return 0


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    print_any_name()
    code = 0
    with StopSignals() as signals, ExitStack() as cleanup:
        try:
            return run(args, signals, cleanup)
        except Stopped as stopped:
            say(f"stopped and saved; go on with: {resume_command(args.output_dir)}")
            return 128 + stopped.args[0]
        except NonFiniteError as error:
            code, (message, paths) = 1, error.args
            if paths and rank() == 0 and args.output_dir.is_dir():  # not in a dry run
                failed = args.output_dir / "failed_batch.txt"
                with runs.whole_file(failed) as temporary:
                    temporary.write_bytes(os.fsencode("\n".join(paths) + "\n"))
                message = f"{message}; {failed} names the slices of that batch"
            message = f"{message}; best.pt and last.pt are from before; try a lower --lr"
        except torch.cuda.OutOfMemoryError:
            more = 2 * args.grad_accumulation
            parts = [math.ceil(args.batch_size / processes() / n) for n in (more // 2, more)]
            code, message = 1, f"out of GPU memory with {parts[0]} slices at a time; try "
            message += f"--grad-accumulation {more}: the same batch, {parts[1]} at a time"
        except OSError as error:
            code, message = 2, f"{error}"
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
                code, message = 1, f"{error.filename}: {error.strerror}; what was there is whole"
        except ValueError as error:  # DataError among them
            code, message = 2, f"{error}"
        except (RuntimeError, MemoryError) as error:
            code, message = 1, (str(error).strip() or type(error).__name__).splitlines()[0]
            if type(error).__module__.startswith("torch._dynamo"):
                code, message = 2, f"--compile: {message}; leave it out"
            elif processes() > 1:
                message = f"process {rank()} of {processes()} lost another: {message}"
            elif "memory" not in message:
                raise
        finally:
            first = rank() == 0 or code == 1
            leave_processes()
    if first:  # what is wrong with arguments or data is wrong for all processes
        print(f"train.py: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    code = main()
    if "WORLD_SIZE" in os.environ:  # at exit, threads of PyTorch now and then abort the process
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
