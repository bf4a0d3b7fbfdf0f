"""The experiments of benchmarks/evidence.py: which runs are made, on which data.

Settings were chosen on validation subsets: of other seeds where the data has seeds, and otherwise
of seed 0.
"""

from typing import NamedTuple

from training.arguments import DEMO, RECIPES, flags_of, make_parser


class Data(NamedTuple):
    """What an experiment is made with.

    {data} in a word, or in a flag of a variant, stands for its folder, and {seed} for the run's.
    """

    command: list[str]  # what writes it
    flags: list[str]  # of each run
    quick: list[str]  # more words of the command: less of it


class Experiment(NamedTuple):
    title: str
    about: str  # what is compared, for docs/results.md
    data: Data
    # Name -> flags of train.py; those of benchmarks/references.py come after the name of a model.
    variants: dict[str, list[str]]
    columns: tuple[str, ...]  # of evidence_pages.COLUMNS
    to_reach: float | None = None  # accuracy on validation; the table says after how many epochs


def phantoms(*flags: str) -> Data:
    command = ["-m", "scans.phantom", "{data}", *flags]
    return Data(command, ["--data-dir", "{data}"], ["--patients", "5"])


def sides(garment: str, *flags: str) -> Data:
    command = ["benchmarks/garments.py", "build", "{data}", "--garment", garment, *flags]
    split = ["--split-file", "{data}/split.csv"]
    return Data(command, ["--data-dir", "{data}", *split], ["--limit", "400"])


def ten_classes(*flags: str) -> Data:
    command = ["benchmarks/garments.py", "classes", "{data}", *flags]
    split = ["--split-file", "{data}/split.csv"]
    few = ["--limit", "1500"]  # each twelfth ten of a class is for validation
    return Data(command, ["--data-dir", "{data}/manifest.csv", *split], few)


# ---- settings ------------------------------------------------------------------------------------

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

# Photographs of 28 x 28 pixels. A head of a latent reads one weighted mean of pixels: many heads on
# few latents read as much as few heads on many, and the layers of the latents take less time.
READER = (
    "--image-size 28 28 --num-latents 8 --latent-dim 64 --depth 2 --cross-heads 16 "
    "--cross-dim-head 32 --latent-heads 4 --latent-dim-head 16"
).split()
DEMO_FLAGS = flags_of(make_parser(), DEMO | {"data_dir": None}).split()
ADAMW = flags_of(make_parser(), RECIPES["adamw"]).split()
OF_COSINE = RECIPES["adamw"] | {"lr_decay": None}  # which it does not take
DEMO_ADAMW = flags_of(make_parser(), DEMO | OF_COSINE | {"data_dir": None}).split()
IMAGENET = flags_of(make_parser(), RECIPES["imagenet"]).split()
PHOTOGRAPHS = [*READER, *ADAMW]
CLASSES = [*PHOTOGRAPHS, "--token-fraction", "0.5"]
SIDES = [*PHOTOGRAPHS, "--token-fraction", "0.3", "--epochs", "40"]
SHORT_SIDES, LONG_SIDES = [*SIDES, "--epochs", "20"], [*SIDES, "--epochs", "80"]
LONGER = [*PHOTOGRAPHS, *"--token-fraction 0.3 --cross-heads 32 --latent-dim 96".split()]
LONGER += "--depth 3 --epochs 40".split()
# The experiment's model, smaller.
SCALED = (
    "--num-latents 32 --latent-dim 64 --depth 4 --cross-heads 1 --latent-heads 4 "
    "--latent-dim-head 16 --lr 1e-3 --query-scale 8"
).split()
FEW = "11000"  # so many photographs of training and of test

PIXELS = ["--image-size", "38", "43"]
PLAIN = [*TINY, "--no-augment", "--no-mirror-swap"]
FEW_PATIENTS = [*PLAIN, *"-b 16 --lr-decay 0.95 --epochs 20".split()]
DECAYED = [*TINY, *"--lr 2e-4 --lr-decay 0.995 --epochs 20".split()]
STUDIED = [*CLASSES, "--epochs", "10"]
SLOWER, MORE_STEPS = ["--lr", "1e-3"], ["--lr", "1e-3", "-b", "16"]
AUGMENT, AUGMENTED = ["--augment", "--augment-strength", "0.5"], ", augmented"
FEWER, TEN_EPOCHS = "small CNN, 10 epochs", ["--epochs", "10"]
OF_FEWER = (
    "Of 40 epochs or more, the CNN has learned the photographs by heart long before the last; of "
    "5, 10 and 20, 10 were best on validation of dresses, and of bags as good as 5."
)

FEW_CLASSES = (
    "Fashion-MNIST, trained on about 10,000 photographs, tested on the package's own 10,000."
)
OF_ACTIVATIONS = (
    "The experiment's model made smaller: 32 latents x 64 that read 4 times, Adam 1e-3, "
    "`--query-scale 8`. A "
    "feed-forward layer with GELU has two thirds of the weights; the last row makes the latents "
    "wider, until there are as many."
)

OF_SCANS = (
    "scans correct",
    "slices correct",
    "scans correct, slices reversed",
    "shuffled",
    "calibration error of scans",
    "minutes",
)

WITHOUT_A_NETWORK = {
    "logistic regression": ["logistic-regression", *PHOTOGRAPHS],
    "middle of its columns": ["middle-of-columns", *PHOTOGRAPHS],
}

# ---- experiments ---------------------------------------------------------------------------------


def activations(flags: str) -> dict[str, list[str]]:
    of_all = [*SCALED, *flags.split()]
    gelu = [*of_all, "--activation", "gelu"]
    wider = [*gelu, "--latent-dim", "76"]
    return {"GEGLU": of_all, "GELU": gelu, "GELU, wider: as many parameters": wider}


def sides_of(
    garment: str, shift: int, augmented: bool = False, flags: list[str] = SIDES
) -> Experiment:
    moved = "moved so that no column tells it" if shift else "where Fashion-MNIST has them"
    perceiver = [*flags, "--mirror-swap", *MORE_STEPS]
    cnn = ["cnn", *flags, "--mirror-swap", *SLOWER]
    variants = {"Perceiver": perceiver, "small CNN": cnn, FEWER: [*cnn, *TEN_EPOCHS]}
    if augmented:
        variants[f"Perceiver{AUGMENTED}"] = [*perceiver, *AUGMENT]
        variants[f"small CNN{AUGMENTED}"] = [*cnn, *AUGMENT]
    more = f" Augmented rows have `{' '.join(AUGMENT)}`, too." if augmented else ""
    return Experiment(
        f"Sides of {garment}, {moved}",
        f"Is a photograph of {garment} as it was taken, or mirrored? Both networks have the same "
        f"recipe and `--mirror-swap`, the Perceiver with batches of 16. {OF_FEWER}{more}",
        sides(garment, "--shift", str(shift)),
        variants | WITHOUT_A_NETWORK,
        ("slices correct", "with the mirror image", "parameters", "epochs", "minutes"),
    )


def permuted_pixels(garment: str, both_ways: bool = False, flags: list[str] = SIDES) -> Experiment:
    """both_ways: each network with the places of pixels known, and unknown."""
    variants = {"Perceiver, places known": ["perceiver-places-known", *flags, *MORE_STEPS]}
    if both_ways:
        variants["Perceiver, places unknown"] = [*flags, *MORE_STEPS]
        variants["small CNN, places known"] = ["cnn-places-known", *flags, *SLOWER]
    variants["small CNN"] = ["cnn", *flags, *SLOWER]
    variants[FEWER] = ["cnn", *flags, *SLOWER, *TEN_EPOCHS]
    variants["logistic regression"] = ["logistic-regression", *PHOTOGRAPHS]
    return Experiment(
        f"Permuted pixels: {garment}",
        f"Sides of {garment}, moved as above and trained in the same way, without `--mirror-swap`; "
        "in all images pixels have changed their places, in the same way. A network that knows "
        "where each pixel was computes what it would of the images as they were; the others take "
        f"each pixel to be where it lies. {OF_FEWER}",
        sides(garment, "--shift", "2", "--permute"),
        variants,
        ("slices correct", "epochs", "minutes"),
    )


def known_patients(patients: str, flags: list[str]) -> Experiment:
    command = ["benchmarks/known_patients.py", "{data}", "--patients", patients, "--seed", "1"]
    known = ["--split-file", "{data}/known-{seed}.csv", "--split", "scan"]
    return Experiment(
        f"How much a leak flatters: {patients} patients",
        "Synthetic knees and a small model without augmentation. Both rows test the same scans "
        "and are trained on about as many: the first on scans of other patients alone, the second "
        "also on another scan or more of each tested knee (`benchmarks/known_patients.py`). In "
        "drawings the pose of a scan differs more than the anatomy of patients: of real knees, "
        "whose scans look alike, this says nothing.",
        Data(command, ["--data-dir", "{data}"], ["--patients", "10"]),
        {
            "tested patients unknown": [*flags, "--split-file", "{data}/unknown-{seed}.csv"],
            "each tested knee known": [*flags, *known],
        },
        ("slices correct", "scans correct", "validation loss", "minutes"),
    )


def changed(title: str, variants: dict[str, str], *columns: str, note: str = "") -> Experiment:
    """Ten classes of few photographs, the Perceiver with other flags."""
    return Experiment(
        title,
        f"{FEW_CLASSES} The first row is what the others change.{note}",
        ten_classes("--limit", FEW),
        {variant: [*STUDIED, *flags.split()] for variant, flags in variants.items()},
        ("slices correct", *columns, "parameters", "minutes"),
    )


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
        OF_SCANS,
    ),
    "knees": Experiment(
        "Slices or whole scans",
        "Ordinary synthetic knees of 101 patients, small models, about the same time to train.",
        phantoms("--seed", "1"),
        {
            "slices": [*SLICES, "--epochs", "14"],
            "whole scans": [*SCANS, "--epochs", "60"],
            "logistic regression": ["logistic-regression", *PIXELS],
        },
        OF_SCANS,
    ),
    "demo": Experiment(
        "What `--demo` trains",
        "Synthetic knees of 24 patients, others than those that its settings were chosen on, also "
        "with the recipe of photographs; so few are tested that a run says little.",
        phantoms("--patients", "24", "--seed", "3"),
        {
            "--demo": DEMO_FLAGS,
            "--demo --recipe adamw": DEMO_ADAMW,
            "logistic regression": ["logistic-regression", *PIXELS],
        },
        ("scans correct", "slices correct", "validation loss", "minutes"),
    ),
    "folds": Experiment(
        "One split or five folds",
        "The same synthetic knees, split with other seeds: what one test subset says of a small "
        "model, and what all patients say, each tested by one of five.",
        phantoms("--seed", "1"),
        {"one split": TINY, "five folds": [*TINY, "--folds", "5"]},
        OF_SCANS,
    ),
    "real-knee": Experiment(
        "A real knee, as an illustration",
        "What models of synthetic knees say of one real right knee, 24 slices in MRI "
        "(`benchmarks/fetch_knee.py`). They saw drawings only: what they say of it means nothing.",
        phantoms("--seed", "1"),
        {
            "small": TINY,
            "larger": [*SLICES, "--epochs", "8"],
        },
        (
            "slices correct",
            "slices of the real knee called right",
            "mean probability of right",
            "minutes",
        ),
    ),
    "leak": Experiment(
        "Patients kept whole, or scans cut as in the experiment",
        "The same synthetic knees and a small model without augmentation. `--split scan` cuts each "
        "class's sorted list of scans, for all seeds alike. There the scans of a patient follow "
        "each other: no tested patient was trained on, though a few chose the epoch. So this is no "
        "measure of how much a leak flatters: that is in the next tables.",
        phantoms("--seed", "1"),
        {
            "patients kept whole": PLAIN,
            "scans cut as in the experiment": [*PLAIN, "--split", "scan"],
        },
        ("slices correct", "scans correct", "minutes"),
    ),
    "known-patients": known_patients("101", PLAIN),
    "known-patients-few": known_patients("24", FEW_PATIENTS),
    "decay": Experiment(
        "Learning rate lower after each epoch, or each step",
        "The same small model with Adam 2e-4 for 20 epochs, as in the experiment, whose program "
        "multiplied the learning rate by 0.995 after each batch, not each epoch; here with "
        "`--augment --mirror-swap`.",
        phantoms("--seed", "1"),
        {
            "after each epoch": DECAYED,
            "after each step": [*DECAYED, "--schedule", "exponential-steps"],
        },
        ("slices correct", "validation loss", "minutes"),
    ),
    "activation-knees": Experiment(
        "GEGLU or GELU: synthetic knees",
        f"{OF_ACTIVATIONS} An epoch is about 220 steps.",
        phantoms("--seed", "1"),
        activations("--image-size 19 22 --num-freq-bands 3 --max-freq 4 --epochs 6 --mirror-swap"),
        ("slices correct", "validation loss", "parameters", "minutes"),
        0.98,
    ),
    "activation-bags": Experiment(
        "GEGLU or GELU: sides of bags",
        f"{OF_ACTIVATIONS} An epoch is 164 steps.",
        sides("bags", "--shift", "2"),
        activations("--image-size 28 28 --epochs 10 --mirror-swap"),
        ("slices correct", "validation loss", "parameters", "minutes"),
        0.65,
    ),
    "activation-classes": Experiment(
        "GEGLU or GELU: ten classes",
        f"{OF_ACTIVATIONS} An epoch is 159 steps. {FEW_CLASSES}",
        ten_classes("--limit", FEW),
        activations("--image-size 28 28 --epochs 8"),
        ("slices correct", "validation loss", "parameters", "minutes"),
        0.8,
    ),
    "classes": Experiment(
        "Ten classes of photographs",
        "Fashion-MNIST, trained on 55,000 photographs, tested on the package's own 10,000. Each "
        "model is trained for about 20 minutes on one core, or shorter where more epochs no longer "
        "help; of perceiver-pytorch two epochs take longer. Learning rates were chosen for each: "
        "1e-3 for CNN and transformer, 2e-3 for both Perceivers. The transformer, of 3 layers of "
        "width 104, has about as many parameters. perceiver-pytorch has the sizes that were chosen "
        "for ours, its own first weights, and reads all tokens in training, of which it makes keys "
        "and values for 16 heads: hence the time. What `--query-scale` and `--token-fraction` give "
        "ours, the table of the recipe says.",
        ten_classes(),
        {
            "Perceiver": [*CLASSES, "--epochs", "20"],
            "perceiver-pytorch": ["perceiver-pytorch", *CLASSES, "--epochs", "2"],
            "small CNN": ["cnn", *CLASSES, "--lr", "1e-3", "--epochs", "15"],
            "transformer on patches": [
                "patch-transformer",
                *[*CLASSES, "--latent-dim", "104", "--depth", "3"],
                *["--lr", "1e-3", "--epochs", "8"],
            ],
            "logistic regression": ["logistic-regression", *PHOTOGRAPHS],
        },
        ("slices correct", "parameters", "epochs", "minutes"),
        0.88,
    ),
    "classes-long": Experiment(
        "Ten classes, in 90 minutes",
        "A larger Perceiver on the same photographs: more heads, wider latents that read a third "
        "time, and fewer tokens at a step. These sizes were the first guess. Five other models, "
        "each of 2 wider latents with 64 heads, were trained once; their lowest validation loss "
        "was higher. They learned the photographs by heart; those with `--augment` at a strength "
        "of 0.3, with as few tokens as here, or with both, did so later. Three were stopped when "
        "the loss rose. perceiver-pytorch has the sizes that it has above, and three times the "
        "epochs: larger ones would leave it with fewer. So the two are not of equal size here. Of "
        "equal size, both compute the same function and ours is only quicker, so its lead should "
        "shrink the longer both train; that was not tried.",
        ten_classes(),
        {
            "larger Perceiver": LONGER,
            "perceiver-pytorch": ["perceiver-pytorch", *CLASSES, "--epochs", "6"],
        },
        ("slices correct", "parameters", "epochs", "minutes"),
        0.9,
    ),
    "bags": sides_of("bags", 2, augmented=True),
    "dresses": sides_of("dresses", 2, flags=LONG_SIDES),
    "boots": sides_of("boots", 2, flags=SHORT_SIDES),
    "bags-in-place": sides_of("bags", 0, flags=SHORT_SIDES),
    "dresses-in-place": Experiment(
        "Sides of dresses, where Fashion-MNIST has them",
        "What all pixels tell a linear model, and the middle of the columns alone: no network was "
        "trained on these.",
        sides("dresses", "--shift", "0"),
        WITHOUT_A_NETWORK,
        ("slices correct", "minutes"),
    ),
    "permuted": permuted_pixels("bags", both_ways=True),
    "permuted-dresses": permuted_pixels("dresses", flags=LONG_SIDES),
    "recipe": changed(
        "What each part of the recipe gives",
        {
            "all of it": "",
            "no --query-scale": "--query-scale 1",
            "--lr 2e-4": "--lr 2e-4",
            "no cosine: exponential, 0.995": "--schedule exponential",
            "no warm-up": "--warmup-epochs 0",
            "no weight decay": "--weight-decay 0",
            "all tokens read in training": "--token-fraction 1",
            "the experiment's: Adam 2e-4, exponential": (
                "--optimizer adam --weight-decay 0 --lr 2e-4 --schedule exponential "
                "--warmup-epochs 0 --query-scale 1 --token-fraction 1"
            ),
            "with --ema 0.99": "--ema 0.99",
            "with --label-smoothing 0.1": "--label-smoothing 0.1",
            "with --mixup 0.2": "--mixup 0.2",
            "with --bend 0.04": "--bend 0.04",
            "with --clip-gradient 1": "--clip-gradient 1",
            "with --augment --augment-strength 0.5": "--augment --augment-strength 0.5",
            "--recipe imagenet instead": " ".join(["--query-scale 1 --warmup-epochs 0", *IMAGENET]),
            "the same with --query-scale 16": " ".join(["--warmup-epochs 0", *IMAGENET]),
        },
        "validation loss",
        note=" Softened labels raise the loss on validation, where labels are not.",
    ),
    "depth": changed(
        "How many times the latents read, and the depth really used",
        {
            "depth 2": "",
            "depth 1": "--depth 1",
            "depth 4": "--depth 4",
            "depth 6": "--depth 6",
            "depth 4, untied": "--depth 4 --no-weight-tie-layers",
        },
        *[f"after {n}" for n in range(1, 7)],
    ),
    "latents": changed(
        "Latents and heads",
        {
            "8 latents, 16 heads": "",
            "8 latents, 1 head": "--cross-heads 1",
            "8 latents, 4 heads": "--cross-heads 4",
            "8 latents, 64 heads": "--cross-heads 64",
            "2 latents, 64 heads": "--num-latents 2 --cross-heads 64",
            "32 latents, 4 heads": "--num-latents 32 --cross-heads 4",
            "128 latents, 1 head": "--num-latents 128 --cross-heads 1",
        },
    ),
    "bands": changed(
        "Frequencies of the positions, and the image size",
        {
            "6 bands up to 5": "",
            "2 bands": "--num-freq-bands 2",
            "16 bands": "--num-freq-bands 16",
            "6 bands up to 10": "--max-freq 20",
            "20 x 20 pixels": "--image-size 20 20",
            "14 x 14 pixels": "--image-size 14 14",
        },
    ),
}
