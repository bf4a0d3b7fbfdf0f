"""The experiments of benchmarks/evidence.py: which runs are made, on which data.

Settings were chosen on validation subsets, of other seeds where the data has seeds.
"""

from typing import NamedTuple


class Data(NamedTuple):
    """What an experiment is made with. {data} in a word stands for its folder."""

    command: list[str]  # what writes it
    flags: list[str]  # of each run
    quick: list[str]  # more words of the command: less of it


class Experiment(NamedTuple):
    title: str
    about: str  # what is compared, for docs/results.md
    data: Data
    # Name -> flags of train.py; those of benchmarks/references.py come after the name of a model.
    variants: dict[str, list[str]]


def phantoms(*flags: str) -> Data:
    command = ["-m", "scans.phantom", "{data}", *flags]
    return Data(command, ["--data-dir", "{data}"], ["--patients", "5"])


SMALL = (
    "--num-freq-bands 3 --max-freq 4 --num-latents 32 --latent-dim 64 --latent-heads 4 "
    "--latent-dim-head 16 --lr 1e-3 --augment --mirror-swap"
).split()
SLICES = [*SMALL, *"--image-size 38 43 --depth 3 -b 32 --lr-decay 0.9".split()]
SCANS = [*SMALL, *"--input scan --image-size 38 43 --slices 20 --depth 2 -b 16".split()]
SCANS += "--lr-decay 0.95 --query-scale 6".split()
TINY = (
    "--image-size 19 22 --num-freq-bands 3 --max-freq 4 --num-latents 16 --latent-dim 32 "
    "--latent-heads 2 --latent-dim-head 16 --cross-dim-head 32 --depth 2 --lr 2e-3 --lr-decay 0.85 "
    "-b 64 --epochs 12 --augment --mirror-swap"
).split()

EXPERIMENTS = {
    "order": Experiment(
        "The order of slices",
        "Synthetic knees of 101 patients whose side shows in the order of slices alone "
        "(`python -m scans.phantom DIR --hard --seed 2`; the settings were chosen on those of "
        "other seeds), small models, patients that no model saw.",
        phantoms("--hard", "--seed", "2"),
        {
            "slices": [*SLICES, "--epochs", "10"],
            "whole scans": [*SCANS, "--epochs", "80", "--lr-decay", "0.98"],
        },
    ),
    "knees": Experiment(
        "Slices or whole scans",
        "Ordinary synthetic knees of 101 patients, small models, about the same time to train.",
        phantoms("--seed", "1"),
        {
            "slices": [*SLICES, "--epochs", "14"],
            "whole scans": [*SCANS, "--epochs", "60"],
        },
    ),
    "folds": Experiment(
        "One split or five folds",
        "The same synthetic knees, split with other seeds: what one test subset says of a small "
        "model, and what all patients say, each tested by one of five.",
        phantoms("--seed", "1"),
        {"one split": TINY, "five folds": [*TINY, "--folds", "5"]},
    ),
}
