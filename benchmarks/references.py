"""Other models on the same data, with the same recipe: what a Perceiver is compared with.

    python benchmarks/references.py cnn --data-dir data/bags --image-size 28 28 --augment
    python benchmarks/references.py perceiver-pytorch --data-dir data/bags ...   # flags of train.py

All but logistic regression are trained by the very loop of train.py, on its subsets, with its
flags: learning rate, optimizer, augmentation and the choice of the best epoch on validation. Two
learn from less: logistic-regression of the pixels, and middle-of-columns, which sees only where
the image is not black: the middle between the outermost columns. Models with `-places-known` know
where the pixels of `garments.py --permute` were. The run folder holds args.json, metrics.csv and,
written last, test_metrics.json, as one of train.py does. A stopped one starts anew.

Exit codes as train.py.
"""

import argparse
import copy
import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # to run as `python benchmarks/references.py`

from benchmarks.evidence_models import with_mirror_image  # noqa: E402
from benchmarks.garments import pixel_order  # noqa: E402
from common import signals  # noqa: E402
from common.files import write_json  # noqa: E402
from common.program import UserError, run_program  # noqa: E402
from common.tables import write_csv  # noqa: E402
from common.workers import choose_device  # noqa: E402
from dataset import Dataset  # noqa: E402
from evaluation.calibration import calibrate  # noqa: E402
from evaluation.predictions import Predictions, predict  # noqa: E402
from evaluation.report import describe_test, test_figures  # noqa: E402
from perceiver import Perceiver, fourier_positions  # noqa: E402
from train import describe_epoch, new_model, read_data, read_subsets, split_of  # noqa: E402
from training import runfolder  # noqa: E402
from training.arguments import parse_args  # noqa: E402
from training.epoch import Progress, at_a_time, train_one_epoch, validate  # noqa: E402
from training.recipe import new_optimizer  # noqa: E402
from training.saved import plain  # noqa: E402

REGULARISATIONS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # the values of C to choose from


class SmallCNN(nn.Sequential):
    """Three convolutions, each with batch norm and a maximum of 2 x 2 pixels."""

    def __init__(self, like: Perceiver, size: tuple[int, int]):
        layers, before = [], 1
        for channels in (32, 64, 128):
            layers += [nn.Conv2d(before, channels, 3, padding=1), nn.BatchNorm2d(channels)]
            layers += [nn.ReLU(), nn.MaxPool2d(2)]
            before = channels
        width = before * (size[0] // 8) * (size[1] // 8)
        head = nn.Linear(width, like.config["num_classes"])
        super().__init__(*layers, nn.Flatten(), nn.Dropout(0.5), head)


class SmallCNNPlacesKnown(nn.Module):
    """Of images of `garments.py --permute`, a SmallCNN that gets each pixel where it was."""

    def __init__(self, like: Perceiver, size: tuple[int, int]):
        super().__init__()
        places = torch.from_numpy(pixel_order(size[0] * size[1])).argsort()
        self.register_buffer("places", places)
        self.network = SmallCNN(like, size)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.flatten(2)[..., self.places].reshape(images.shape))


class PatchTransformer(nn.Module):
    """A plain transformer encoder on 4 x 4 patches: Dosovitskiy et al. 2021, arXiv:2010.11929.

    As wide as the latents and as many layers as the Perceiver reads, pre-norm, with GELU; learned
    positions, and the mean over patches before the head.
    """

    def __init__(self, like: Perceiver, size: tuple[int, int], patch: int = 4):
        super().__init__()
        dim, heads = like.config["latent_dim"], like.config["latent_heads"]
        count = (size[0] // patch) * (size[1] // patch)
        self.embed = nn.Conv2d(1, dim, patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn(count, dim))
        dropout = like.config["ff_dropout"]
        layer = nn.TransformerEncoderLayer(
            dim, heads, 4 * dim, dropout, "gelu", batch_first=True, norm_first=True
        )
        layers = like.config["depth"]
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, like.config["num_classes"])

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 1, height, width) -> logits (batch, num_classes)."""
        patches = self.embed(images).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.layers(patches + self.positions)).mean(dim=1))


class PerceiverPytorch(nn.Module):
    """perceiver-pytorch's Perceiver of the same configuration.

    Its first weights are its own, or those of train.py: then, with the same flags, so are its
    losses, and only the time differs.
    """

    def __init__(self, like: Perceiver, size: tuple[int, int], own_weights: bool = True):
        from benchmarks.peers import perceiver_pytorch_like  # a development dependency

        super().__init__()
        self.peer = perceiver_pytorch_like(like)
        if own_weights:
            for module in self.peer.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
            nn.init.normal_(self.peer.latents)

    def forward(self, images: Tensor) -> Tensor:
        return self.peer(images.movedim(1, -1))


class PerceiverPlacesKnown(nn.Module):
    """Of images of `garments.py --permute`, a Perceiver whose positions are where each pixel was.

    The configuration and first weights are those of train.py; channels after the first hold the
    positions, in the order of the pixels.
    """

    def __init__(self, like: Perceiver, size: tuple[int, int]):
        super().__init__()
        config = like.config
        about = size, config["max_freq"], config["num_freq_bands"], torch.device("cpu")
        positions = fourier_positions(*about)[pixel_order(size[0] * size[1])]  # (tokens, features)
        self.register_buffer("positions", positions.T.reshape(1, -1, *size).contiguous())
        channels = 1 + positions.shape[1]
        of_channels = {"fourier_encode_data": False, "input_channels": channels}
        self.model = Perceiver(**config | of_channels)
        self.model.load_state_dict(like.state_dict())

    def forward(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        positions = self.positions.expand(len(images), -1, -1, -1)
        return self.model(torch.cat([images, positions], dim=1), kept=kept)


NETWORKS = {
    "cnn": SmallCNN,
    "cnn-places-known": SmallCNNPlacesKnown,
    "patch-transformer": PatchTransformer,
    "perceiver-pytorch": PerceiverPytorch,
    "perceiver-pytorch-same-weights": partial(PerceiverPytorch, own_weights=False),
    "perceiver-places-known": PerceiverPlacesKnown,
}
REGRESSIONS = ("logistic-regression", "middle-of-columns")


class Reference(Perceiver):
    """Any network where the loop of train.py expects a Perceiver."""

    def __init__(self, network: nn.Module, like: Perceiver):
        nn.Module.__init__(self)
        self.config, self.preprocessing = like.config, like.preprocessing
        self.calibration = like.calibration
        self.latents = nn.Parameter(torch.zeros(1, 1))  # tells the device
        self.network = network

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        follows = isinstance(self.network, PerceiverPlacesKnown)  # --token-fraction
        return self.network(x, kept) if follows else self.network(x)


# ---- runs ----------------------------------------------------------------------------------------


def fit_network(
    name: str, args: argparse.Namespace, subsets: dict[str, Dataset]
) -> tuple[dict, list[dict]]:
    """Train; calibrate and test the best epoch. Returns figures, and rows of metrics.csv."""
    device, train = choose_device(args.device), subsets["train"]
    like = new_model(args, train)
    model = Reference(NETWORKS[name](like, args.image_size), like).to(device)
    parameters = sum(p.numel() for p in model.network.parameters())
    print(f"{name}: {parameters / 1e6:.2f} M parameters, {device}")
    optimizer, progress = new_optimizer(args, model), Progress()
    kept = copy.deepcopy(model) if args.ema else model
    average = kept if args.ema else None
    while progress.epoch <= args.epochs:
        train_one_epoch(model, train, optimizer, progress, args, None, None, average)
        signals.check()
        row = validate(kept, subsets["val"], train, progress, args)
        if is_best := row["val_loss"] < progress.best:
            best, epoch = copy.deepcopy(kept), progress.epoch
        print(describe_epoch(row, args.epochs, is_best), flush=True)
        lowest, rows = min(progress.best, row["val_loss"]), [*progress.rows, row]
        progress = Progress(progress.epoch + 1, best=lowest, rows=rows)
    calibration = calibrate(predict(best, subsets["val"], at_a_time(args), args.amp))
    best.calibration = {"temperature": calibration.temperature}
    tested = predict(best, subsets["test"], at_a_time(args), args.amp)
    figures = test_figures(tested, split_of(args), epoch, args.epochs, calibration)
    figures |= {"parameters": parameters}
    if args.mirror_swap:
        figures |= with_mirror_image(best, subsets["test"])
    return figures, progress.rows


def fit_regression(
    name: str, args: argparse.Namespace, subsets: dict[str, Dataset]
) -> tuple[dict, list[dict]]:
    """On these features, with the C of lowest cross-entropy on val; a row for each C."""
    from sklearn.linear_model import LogisticRegression  # a development dependency

    features_of = {"logistic-regression": pixels_of, "middle-of-columns": middles_of}[name]
    found = {name: features_of(subset) for name, subset in subsets.items()}
    mean, scale = found["train"].mean(axis=0), found["train"].std() or 1.0
    features = {name: (of_subset - mean) / scale for name, of_subset in found.items()}
    labels = {name: subset.labels.numpy() for name, subset in subsets.items()}
    rows, logits = [], {}
    for number, c in enumerate(REGULARISATIONS, start=1):
        signals.check()
        started = time.perf_counter()
        model = LogisticRegression(C=c, max_iter=300)
        model.fit(features["train"], labels["train"])
        for subset in ("val", "test"):
            found = model.predict_log_proba(features[subset])
            logits[number, subset] = torch.from_numpy(found).float()
        loss = F.cross_entropy(logits[number, "val"], subsets["val"].labels).item()
        seconds = round(time.perf_counter() - started, 2)
        rows.append({"epoch": number, "c": c, "val_loss": loss, "seconds": seconds})
        print(f"C {c:g}  val loss {loss:.4f}  {seconds:.1f} s", flush=True)
    epoch = min(rows, key=lambda row: row["val_loss"])["epoch"]
    calibration = calibrate(Predictions(subsets["val"], logits[epoch, "val"]))
    tested = Predictions(subsets["test"], logits[epoch, "test"], calibration.temperature)
    return test_figures(tested, split_of(args), epoch, len(rows), calibration), rows


def pixels_of(dataset: Dataset):
    """(n, pixels) float32 from 0 to 1, a NumPy array."""
    return dataset.batch(torch.arange(len(dataset))).flatten(1).float().numpy() / 255


def middles_of(dataset: Dataset):
    """(n, 1) float32, in columns: middle between the outermost that are not black all over."""
    seen = dataset.batch(torch.arange(len(dataset))).flatten(1, 2).any(dim=1).numpy()
    outermost = seen.argmax(axis=1) + (seen.shape[1] - 1 - seen[:, ::-1].argmax(axis=1))
    return outermost[:, None].astype("float32") / 2


def check_flags(args: argparse.Namespace) -> None:
    """Raises UserError for flags of train.py that no reference follows."""
    of_train = "folds resume demo dry_run tensorboard compile save_every_steps".split()
    given = {f"--{name.replace('_', '-')}": getattr(args, name) for name in of_train}
    given["--input scan"] = args.input == "scan"
    given["--class-weights"] = args.class_weights != "none"
    if wrong := [flag for flag, value in given.items() if value]:
        raise UserError(f"{wrong[0]}: for train.py alone; leave it out")
    least = {"cnn": 8, "cnn-places-known": 8, "patch-transformer": 4}.get(args.reference, 1)
    if min(args.image_size) < least:
        raise UserError(f"--image-size: {args.reference} takes at least {least} x {least}")
    if args.reference == "patch-transformer" and args.latent_dim % args.latent_heads:
        heads = f"--latent-heads {args.latent_heads}"
        raise UserError(
            f"--latent-dim {args.latent_dim}: patch-transformer takes a multiple of {heads}"
        )
    if args.reference.startswith("perceiver-pytorch") and args.activation != "geglu":
        raise UserError(f"--activation {args.activation}: perceiver-pytorch has geglu alone")


def run(args: argparse.Namespace) -> int:
    check_flags(args)
    args.amp = bool(args.amp)
    folder = args.output_dir = runfolder.choose_folder(args)
    subsets = read_subsets(args, read_data(args, args.classes))
    args.classes = subsets["train"].classes
    folder.mkdir(parents=True, exist_ok=True)
    arguments = {name: plain(value) for name, value in vars(args).items()}
    device = runfolder.describe_device(choose_device(args.device))
    about = {"device": device, "data": runfolder.describe_data(subsets)}
    record = runfolder.describe_run(arguments) | about
    is_regression = args.reference in REGRESSIONS
    package = "scikit-learn" if is_regression else "perceiver-pytorch"
    if is_regression or args.reference.startswith(package):
        record["versions"][package] = version(package)
    runfolder.write_record(folder, record)
    fit = fit_regression if is_regression else fit_network
    figures, rows = fit(args.reference, args, subsets)
    write_csv(folder / "metrics.csv", rows)
    write_json(folder / "test_metrics.json", figures)
    print(*describe_test(figures), f"run folder: {folder}", sep="\n")
    return 0


def main(argv: list[str] | None = None) -> int:
    names = [*NETWORKS, *REGRESSIONS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reference", choices=names)
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="those of train.py")
    given = parser.parse_args(argv)
    args = parse_args(given.flags)
    args.reference = given.reference
    with signals.listening("references.py"):
        return run_program(run, args, "references.py")


if __name__ == "__main__":
    sys.exit(main())
