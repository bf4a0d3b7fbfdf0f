"""Train a Perceiver to tell left from right knees; keep the best checkpoint; test it once.

    python train.py --demo                            # synthetic knees, a small model, minutes
    python train.py --data-dir AKOA_Analysis          # the experiment
    python train.py --data-dir AKOA_Analysis --split scan --dry-run

In order: read and check all slices, put whole patients into train, val and test, train, keep the
checkpoint with the lowest validation loss, test that one on patients it never saw. A run folder
holds all of it: args.json, split.csv, metrics.csv, curves.png, last.pt, best.pt, test_metrics.json,
test_predictions.csv and confusion_matrix.png.

Exit codes: 0 done, 1 the loss became non-finite, 2 unusable arguments or data, 130 interrupted.
"""

import argparse
import csv
import inspect
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import einops
import numpy as np
import PIL
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import dataset
import phantom
import plots
from augment import Augmentation
from dataset import SIDES, SUBSETS, DataError, Slice
from metrics import scan_means, score
from perceiver import Perceiver, autocast, choose_device

RUN_FILES = ("args.json", "split.csv", "metrics.csv", "last.pt", "best.pt", "test_metrics.json")

# What --demo changes, chosen on validation: a few minutes on two CPU cores. Low frequencies and
# augmentation keep so small a model from telling 18 patients apart by detail.
DEMO_PATIENTS = 24
DEMO = {
    "data_dir": Path(f"phantoms/{DEMO_PATIENTS}-patients"),
    "image_size": (38, 43),
    "num_freq_bands": 3,
    "max_freq": 4.0,
    "num_latents": 32,
    "latent_dim": 64,
    "depth": 3,
    "latent_heads": 4,
    "latent_dim_head": 16,
    "epochs": 24,
    "batch_size": 32,
    "lr": 1e-3,
    "lr_decay": 0.9,
    "augment": True,
    "mirror_swap": True,
}


# ---- arguments -----------------------------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the command line; --demo changes defaults, and named flags still win."""
    defaults = {name: p.default for name, p in inspect.signature(Perceiver).parameters.items()}
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Train a Perceiver to tell left from right knees, and test it.",
        epilog="A run folder that already holds a run is never overwritten.",
    )

    data = parser.add_argument_group("data")
    source = data.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="folder of slices, however nested"
    )
    source.add_argument(
        "--demo",
        action="store_true",
        help=f"synthetic knees of {DEMO_PATIENTS} patients (kept in phantoms/) and a small model",
    )
    data.add_argument(
        "--split",
        choices=["patient", "scan"],
        default="patient",
        help="what stays whole: patients, or scans as in the original experiment, which leaks "
        "patients (default: patient)",
    )
    data.add_argument(
        "--split-file", type=Path, metavar="CSV", help="CSV with columns subset and scan"
    )
    data.add_argument(
        "--val-fraction",
        type=float,
        metavar="X",
        help="share held out for validation (default: 0.125)",
    )
    data.add_argument(
        "--test-fraction",
        type=float,
        metavar="X",
        help="share held out for the test (default: 0.125; with --split scan both default to the "
        "experiment's shares)",
    )
    data.add_argument(
        "--image-size",
        type=positive_int,
        nargs=2,
        metavar=("H", "W"),
        default=(76, 86),
        help="height and width that slices are resized to (default: 76 86)",
    )

    # The number of channels, axes and classes follow from the data.
    model = parser.add_argument_group("model (arguments of perceiver.Perceiver)")
    for name, text in {
        "num_freq_bands": "frequencies of the position encoding",
        "max_freq": "twice the highest frequency of the position encoding",
        "depth": "how many times the latents read the tokens",
        "num_latents": "length of the latent array",
        "latent_dim": "width of the latent array",
        "cross_heads": "heads of the cross-attention",
        "latent_heads": "heads of the latent self-attention",
        "cross_dim_head": "width of a cross-attention head",
        "latent_dim_head": "width of a self-attention head",
        "attention_dropout": "dropout of attention weights",
        "ff_dropout": "dropout of feed-forward outputs",
        "activation": "feed-forward activation",
        "self_per_cross_attn": "latent self-attention layers for each cross-attention",
        "weight_tie_layers": "share weights between iterations after the first",
        "fourier_encode_data": "join Fourier position features to the pixels",
        "checkpoint_latents": "compute latent layers again in backward: less memory, more time",
    }.items():
        default = defaults[name]
        text = f"{text} (default: {default})"
        flag = "--" + name.replace("_", "-")
        if isinstance(default, bool):
            action = argparse.BooleanOptionalAction
            model.add_argument(flag, action=action, default=default, help=text)
        elif isinstance(default, str):
            model.add_argument(flag, choices=["geglu", "gelu"], default=default, help=text)
        else:
            metavar = "N" if isinstance(default, int) else "X"
            model.add_argument(
                flag, type=type(default), default=default, metavar=metavar, help=text
            )

    optimisation = parser.add_argument_group("optimisation")
    optimisation.add_argument(
        "--epochs", type=positive_int, default=20, metavar="N", help="(default: 20)"
    )
    optimisation.add_argument(
        "-b",
        "--batch-size",
        type=positive_int,
        default=64,
        metavar="N",
        help="slices a step (default: 64)",
    )
    optimisation.add_argument(
        "--lr",
        type=positive_float,
        default=2e-4,
        metavar="X",
        help="Adam's learning rate (default: 2e-4)",
    )
    optimisation.add_argument(
        "--lr-decay",
        type=positive_float,
        default=0.995,
        metavar="X",
        help="factor on the learning rate after each epoch (default: 0.995)",
    )
    optimisation.add_argument(
        "--augment",
        action="store_true",
        help="shift, turn, scale and brighten training slices a little, at random; add noise",
    )
    optimisation.add_argument(
        "--mirror-swap",
        action="store_true",
        help="mirror half of the training slices and swap their labels",
    )
    optimisation.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of split, weights and order (default: 0)"
    )

    run = parser.add_argument_group("run")
    run.add_argument(
        "--output-dir", type=Path, metavar="RUN", help="run folder (default: runs/<time>)"
    )
    run.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    run.add_argument(
        "--amp",
        action=argparse.BooleanOptionalAction,
        help="bfloat16 autocast (default: on a GPU only)",
    )
    run.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile the latent layers (on a CPU it takes a C++ compiler)",
    )
    run.add_argument(
        "-j",
        "--workers",
        type=positive_int,
        metavar="N",
        help="threads that decode (default: all cores)",
    )
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="read, split, report, take one step, stop; no run folder is made",
    )

    args = parser.parse_args(argv)
    if args.demo:
        parser.set_defaults(**DEMO)
        args = parser.parse_args(argv)
    if args.split_file and (args.val_fraction is not None or args.test_fraction is not None):
        parser.error("--split-file says which scans are held out: leave out the fractions")
    return args


def positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def positive_float(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


# ---- data ----------------------------------------------------------------------------------------


def choose_subsets(args: argparse.Namespace, scans: dict[str, list[Slice]]) -> dict[str, str]:
    """Scan name -> subset, checked: no patient straddles subsets unless --split scan allows it."""
    if args.split_file:
        subset_of = dataset.read_split(args.split_file, scans)
    elif args.split == "scan":
        subset_of = dataset.split_by_scan(scans, args.val_fraction, args.test_fraction)
    else:
        val = 0.125 if args.val_fraction is None else args.val_fraction
        test = 0.125 if args.test_fraction is None else args.test_fraction
        subset_of = dataset.split_by_patient(scans, val, test, args.seed)
    if args.split == "patient":
        dataset.check_patients(scans, subset_of)
    return subset_of


def read_subsets(
    scans: dict[str, list[Slice]], subset_of: dict[str, str], args: argparse.Namespace
) -> dict[str, tuple[list[Slice], Tensor, Tensor]]:
    """Subset -> its slices, images (n, 1, height, width) uint8 and labels (n,), on the CPU."""
    slices = [s for members in scans.values() for s in members]
    images, errors = dataset.load_images([s.path for s in slices], args.image_size, args.workers)
    if errors:
        listed = "\n".join(f"  {slices[i].path}: {error}" for i, error in errors.items())
        raise DataError(f"{len(errors)} files can't be read; mend or remove them:\n{listed}")
    labels = torch.tensor([SIDES.index(s.side) for s in slices])
    subsets = {}
    for subset in SUBSETS:
        members = [i for i, s in enumerate(slices) if subset_of[s.scan] == subset]
        subsets[subset] = ([slices[i] for i in members], images[members], labels[members])
    return subsets


# ---- training and evaluation ---------------------------------------------------------------------


def train_one_epoch(
    model: Perceiver,
    images: Tensor,
    labels: Tensor,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    args: argparse.Namespace,
    max_steps: int | None = None,
) -> tuple[float, float]:
    """One pass over the training slices, each once. Returns mean loss and accuracy on the way.

    images (n, 1, height, width) uint8 and labels (n,) are on the model's device. The order, and
    what dropout drops, follow from the seed and the epoch alone.
    """
    model.train()
    torch.manual_seed(args.seed * 1_000_003 + epoch)
    order = torch.randperm(len(images)).to(images.device)
    batches = order.split(args.batch_size)[:max_steps]
    change = Augmentation(images, args.seed, epoch, args.augment, args.mirror_swap)
    # Sums stay on the device: reading them at each step would make a GPU wait for the CPU.
    loss_sum = torch.zeros((), device=images.device)
    correct = torch.zeros((), device=images.device)
    for batch in tqdm(batches, f"epoch {epoch}", unit="step", leave=False, disable=None):
        pixels, sides = change(images[batch], labels[batch], batch)
        with autocast(images.device, args.amp):
            logits = model(model.normalise(pixels))
        loss = F.cross_entropy(logits.float(), sides)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_sum += loss.detach() * len(batch)
        correct += (logits.argmax(dim=1) == sides).sum()
    seen = sum(map(len, batches))
    return loss_sum.item() / seen, correct.item() / seen


def evaluate(
    model: Perceiver, images: Tensor, labels: Tensor, args: argparse.Namespace
) -> tuple[float, Tensor]:
    """Mean cross-entropy, and the probability of `right` of each image (n,)."""
    logits = model.predict_logits(images, args.batch_size, args.amp)
    return F.cross_entropy(logits, labels.cpu()).item(), logits.softmax(dim=1)[:, 1]


def test(
    run: Path, slices: list[Slice], images: Tensor, labels: Tensor, args: argparse.Namespace
) -> dict:
    """Test best.pt once; write test_metrics.json, test_predictions.csv, confusion_matrix.png."""
    model = Perceiver.from_checkpoint(run / "best.pt", images.device)
    loss, p_right = evaluate(model, images, labels, args)
    by_scan = scan_means(p_right, [s.scan for s in slices])
    first = {s.scan: s for s in reversed(slices)}  # one slice of each scan knows side and patient
    units = {
        "slice": score(p_right, labels.cpu(), [s.patient for s in slices]),
        "scan": score(
            list(by_scan.values()),
            [SIDES.index(first[scan].side) for scan in by_scan],
            [first[scan].patient for scan in by_scan],
        ),
    }
    metrics = {
        "split": "file" if args.split_file else args.split,
        "patients": len({s.patient for s in slices}),
        "loss": loss,
        "slices": units["slice"],
        "scans": units["scan"],
    }
    (run / "test_metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    with open(run / "test_predictions.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "scan", "patient", "side", "label", "p_left", "p_right"])
        for s, p in zip(slices, p_right.tolist(), strict=True):
            label = SIDES[int(p > 0.5)]
            writer.writerow([s.path, s.scan, s.patient, s.side, label, f"{1 - p:.6f}", f"{p:.6f}"])
    plots.draw_confusion_matrix(units, list(SIDES), run / "confusion_matrix.png")
    return metrics


# ---- the run folder ------------------------------------------------------------------------------


def save_checkpoint(path: Path, model: Perceiver, **more) -> None:
    """Write tensors and plain values only, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    checkpoint = {
        "config": model.config,
        "preprocessing": model.preprocessing,
        "model": model.state_dict(),
    }
    torch.save({**checkpoint, **more}, temporary)
    os.replace(temporary, path)


def describe_run(args: argparse.Namespace, device: torch.device) -> dict:
    """What made this run: for args.json."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
    except OSError:
        commit = None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "started": datetime.now().isoformat(timespec="seconds"),
        "device": f"{device} {name}".strip(),
        "threads": torch.get_num_threads(),
        "git_commit": commit,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "einops": einops.__version__,
            "numpy": np.__version__,
            "pillow": PIL.__version__,
        },
    }


def write_metrics(path: Path, rows: list[dict]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


# ---- main ----------------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> int:
    """Read, split, train, test. Returns the exit code; raises ValueError for unusable input."""
    folder = args.output_dir or Path("runs", datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    if taken := [name for name in RUN_FILES if (folder / name).exists()]:
        raise DataError(f"{folder} already holds a run ({taken[0]}); choose another --output-dir")
    device = choose_device(args.device)
    # Before anything slow: are these arguments a model?
    torch.manual_seed(args.seed)
    names = inspect.signature(Perceiver).parameters.keys() & vars(args).keys()
    model = Perceiver(**{name: getattr(args, name) for name in names}, num_classes=len(SIDES))

    if args.demo and not args.data_dir.exists():
        print(f"making synthetic knees of {DEMO_PATIENTS} patients in {args.data_dir}")
        phantom.write_phantoms(args.data_dir, patients=DEMO_PATIENTS)
    slices, notes = dataset.find_slices(args.data_dir)
    scans = dataset.group_scans(slices)
    subset_of = choose_subsets(args, scans)
    patients = len({s.patient for s in slices})
    print(f"{args.data_dir}: {len(slices):,} slices, {len(scans)} scans, {patients} patients")
    for note in notes:
        print(f"note: {note}")
    print(dataset.describe_split(scans, subset_of))
    if leaks := dataset.straddling_patients(scans, subset_of):
        print(f"warning: {len(leaks)} patients straddle subsets (--split scan): accuracy too good")
    for subset in SUBSETS:
        sides = {scans[name][0].side for name in scans if subset_of[name] == subset}
        if len(sides) < len(SIDES):
            print(f"warning: {subset} has {', '.join(sides)} knees only")
    data = read_subsets(scans, subset_of, args)
    mean, std = dataset.pixel_statistics(data["train"][1])
    model.preprocessing = {
        "classes": list(SIDES),
        "image_size": list(args.image_size),
        "mean": mean,
        "std": max(std, 1 / 255),  # blank images must not become infinite
    }
    model.to(device)
    data = {name: (s, x.to(device), y.to(device)) for name, (s, x, y) in data.items()}
    _, images, labels = data["train"]
    _, val_images, val_labels = data["val"]
    if args.compile:
        for block in model.blocks:  # reading tokens is a few large kernels already
            block.latent_layers.compile()
    fused = device.type in ("cpu", "cuda")
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, fused=fused)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=args.lr_decay)
    parameters = sum(p.numel() for p in model.parameters())
    tokens = args.image_size[0] * args.image_size[1]
    print(f"Perceiver: {parameters / 1e6:.2f} M parameters, {tokens:,} tokens a slice, on {device}")

    if args.dry_run:
        loss, _ = train_one_epoch(model, images, labels, optimizer, 1, args, max_steps=1)
        print(f"dry run: one step, loss {loss:.4f}; nothing written")
        return 0

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "args.json").write_text(json.dumps(describe_run(args, device), indent=2) + "\n")
    dataset.write_split(folder / "split.csv", scans, subset_of)
    rows, best = [], math.inf
    for epoch in range(1, args.epochs + 1):
        started = time.perf_counter()
        lr = scheduler.get_last_lr()[0]
        train_loss, train_accuracy = train_one_epoch(model, images, labels, optimizer, epoch, args)
        val_loss, p_right = evaluate(model, val_images, val_labels, args)
        if not (math.isfinite(train_loss) and math.isfinite(val_loss)):
            print(
                f"train.py: the loss became {train_loss} in epoch {epoch} at learning rate {lr:g}; "
                f"{folder} holds the epochs before; try a lower --lr",
                file=sys.stderr,
            )
            return 1
        scheduler.step()
        rows.append(
            {
                "epoch": epoch,
                "lr": lr,
                "train_loss": train_loss,
                "train_accuracy": train_accuracy,
                "val_loss": val_loss,
                "val_accuracy": ((p_right > 0.5) == val_labels.cpu()).float().mean().item(),
                "seconds": round(time.perf_counter() - started, 2),
            }
        )
        progress = {"epoch": epoch, "val_loss": val_loss}
        if is_best := val_loss < best:
            best = val_loss
            save_checkpoint(folder / "best.pt", model, **progress)
        save_checkpoint(
            folder / "last.pt",
            model,
            optimizer=optimizer.state_dict(),
            scheduler=scheduler.state_dict(),
            **progress,
        )
        write_metrics(folder / "metrics.csv", rows)
        plots.draw_curves(rows, folder / "curves.png")
        print(
            f"epoch {epoch:>3}/{args.epochs}  "
            f"train loss {train_loss:.4f} accuracy {train_accuracy:7.2%}  "
            f"val loss {val_loss:.4f} accuracy {rows[-1]['val_accuracy']:7.2%}  "
            f"{rows[-1]['seconds']:.1f} s{'  best' if is_best else ''}",
            flush=True,
        )

    metrics = test(folder, *data["test"], args)
    print(f"test of the best epoch, patients it never saw: {metrics['patients']}")
    if leaks:
        print("  (not quite: with --split scan other scans of theirs were trained on)")
    for unit in ("slices", "scans"):
        scored = metrics[unit]
        low, high = scored["interval_95"]
        print(
            f"  {scored['accuracy']:.2%} of {scored['count']:,} {unit} right, "
            f"95 % interval over patients {low:.2%} to {high:.2%}"
        )
    example = data["test"][0][0].path.rsplit("_", 1)[0]
    print(f"run folder: {folder}")
    checkpoint = shlex.quote(str(folder / "best.pt"))
    print(f"next: python predict.py {checkpoint} {shlex.quote(example)}_*.png")
    return 0


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        return run(args)
    except (ValueError, OSError) as error:  # DataError among them
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = str(error).strip().splitlines()[0]
        print(f"train.py: --compile: {reason}; leave it out", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train.py: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
