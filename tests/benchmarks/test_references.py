"""benchmarks/references.py: other models that are trained as train.py trains ours."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TINY

import train
from benchmarks import garments, references
from dataset import Dataset
from perceiver import Perceiver
from training.arguments import parse_args

FLAGS = [*TINY, "--epochs", "4", "--cross-dim-head", "16"]


def rows_of(folder: Path) -> list[dict]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "name",
    [
        "patch-transformer",
        "logistic-regression",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in references.NETWORKS
            if name != "patch-transformer"
        ),
    ],
)
def test_a_reference_learns_and_leaves_a_run_folder(name, knees, tmp_path, capsys):
    flags = ["--data-dir", str(knees), "--output-dir", str(tmp_path / "run"), *FLAGS]
    assert references.main([name, *flags, "--epochs", "12"]) == 0
    tested = json.loads((tmp_path / "run" / "test_metrics.json").read_text())
    assert tested["slices"]["accuracy"] > 0.8 and tested["scans"]["count"] > 0
    rows = rows_of(tmp_path / "run")
    losses = [float(row["val_loss"]) for row in rows]
    assert tested["epoch"] == 1 + losses.index(min(losses))
    assert json.loads((tmp_path / "run" / "args.json").read_text())["versions"]["torch"]
    assert "slices right" in capsys.readouterr().out


@pytest.mark.slow
def test_perceiver_pytorch_trained_so_is_ours(knees, tmp_path):
    """The same first weights, batches, recipe and function give the same losses."""
    flags = ["--data-dir", str(knees), *FLAGS, "--augment", "--mirror-swap"]
    flags += "--optimizer adamw --weight-decay 0.1 --schedule cosine --mixup 0.2 --ema 0.9".split()
    flags += ["--lr", "1e-3"]
    assert train.main([*flags, "--output-dir", str(tmp_path / "ours")]) == 0
    theirs = ["perceiver-pytorch-same-weights", *flags, "--output-dir", str(tmp_path / "theirs")]
    assert references.main(theirs) == 0
    for ours, other in zip(*map(rows_of, (tmp_path / "ours", tmp_path / "theirs")), strict=True):
        for name in ("train_loss", "val_loss"):
            assert float(ours[name]) == pytest.approx(float(other[name]), rel=1e-3)


def test_first_weights_of_perceiver_pytorch_are_its_own():
    ours = Perceiver(depth=2, num_latents=8, latent_dim=64, latent_heads=2)
    ours.head.weight.data.fill_(7.0)
    peers = references.PerceiverPytorch(ours, (8, 8)), references.PerceiverPytorch(ours, (8, 8))
    latents = peers[0].peer.latents
    assert latents.std().item() == pytest.approx(1.0, abs=0.2)  # ours have 0.02
    assert not any((weight == 7).all() for weight in peers[0].parameters())
    assert not latents.equal(peers[1].peer.latents)


def test_a_perceiver_with_the_positions_of_permuted_pixels_is_the_same_function():
    ours = Perceiver(depth=2, num_latents=8, latent_dim=32, latent_heads=2, num_classes=3)
    known = references.PerceiverPlacesKnown(ours, (10, 12))
    images = torch.randn(4, 1, 10, 12)
    permuted = torch.from_numpy(garments.permuted(images[:, 0].numpy()))[:, None]
    assert known(permuted).sub(ours(images)).abs().max() < 1e-5
    assert known(images).sub(ours(images)).abs().max() > 1e-3
    kept = torch.tensor([3, 7, 50, 110])  # as training reads them with --token-fraction
    as_ours = ours(images, kept=torch.from_numpy(garments.pixel_order(120))[kept])
    reference = references.Reference(known, ours)
    assert reference(permuted, kept=kept).sub(as_ours).abs().max() < 1e-5
    assert as_ours.sub(ours(images)).abs().max() > 1e-3


def test_a_reference_trains_on_the_train_rows_only(knees, tmp_path):
    """With the train rows' sides swapped, everything that is tested comes out wrong."""
    args = parse_args(["--data-dir", str(knees), "--cache-dir", str(tmp_path), *FLAGS])
    subsets = train.read_subsets(args, train.read_data(args, None))
    subsets["train"] = replace(subsets["train"], classes=["right", "left"])
    figures, _ = references.fit_regression("logistic-regression", args, subsets)
    assert figures["slices"]["accuracy"] < 0.5


def test_a_convolutional_network_with_the_order_of_pixels_sees_the_image_as_it_was():
    like = Perceiver(depth=1, num_latents=8, latent_dim=32, latent_heads=2)
    known, images = references.SmallCNNPlacesKnown(like, (10, 12)).eval(), torch.randn(4, 1, 10, 12)
    permuted = torch.from_numpy(garments.permuted(images[:, 0].numpy()))[:, None]
    assert known(permuted).sub(known.network(images)).abs().max() < 1e-5


def test_the_middle_of_columns_tells_where_and_not_what(tmp_path):
    """Bright columns from 2 to 5 and 7 to 8, and an image that is black."""
    pixels = torch.zeros(3, 1, 4, 10, dtype=torch.uint8)
    pixels[0, :, 1, 2:6], pixels[1, :, :, 7:9] = 9, 200
    dataset = Dataset([], pixels, torch.arange(3), [])
    assert references.middles_of(dataset)[:, 0].tolist() == [3.5, 7.5, 4.5]


@pytest.mark.parametrize(
    "words, told",
    [
        ("cnn --folds 3", "--folds: for train.py alone"),
        ("cnn --dry-run", "--dry-run: for train.py alone"),
        ("cnn --input scan", "--input scan: for train.py alone"),
        ("logistic-regression --class-weights balanced", "--class-weights: for train.py alone"),
        ("cnn-places-known --image-size 7 9", "cnn-places-known takes at least 8 x 8"),
        ("patch-transformer --latent-dim 15", "takes a multiple of --latent-heads"),
        ("perceiver-pytorch --activation gelu", "perceiver-pytorch has geglu alone"),
    ],
)
def test_flags_that_no_reference_follows_are_refused(words, told, knees, tmp_path, capsys):
    more = ["--data-dir", str(knees), "--output-dir", str(tmp_path / "run")]
    assert references.main([*words.split(), *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line and not (tmp_path / "run").exists()


def test_a_run_that_is_there_is_left_alone(knees, tmp_path, capsys):
    flags = ["cnn", "--data-dir", str(knees), "--output-dir", str(tmp_path), *FLAGS]
    (tmp_path / "test_metrics.json").write_text("{}")
    assert references.main(flags) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert (tmp_path / "test_metrics.json").read_text() == "{}"
