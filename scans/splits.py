"""Scans -> subsets: train, val and test, with whole patients in each.

    subset_of = split_by_patient(scans)              # scan name -> "train", "val" or "test"
    fold_of = folds_by_patient(scans, 5)             # scan name -> 1 to 5, for cross-validation
    check_patients(scans, subset_of)                 # raises DataError with the names

Slices of a scan, scans of a knee and both knees of a patient look alike, so an accuracy is only
real if every patient is in exactly one subset.
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from math import gcd
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.program import counted
from scans.slices import DataError, Slice

Scans = dict[str, list[Slice]]  # scan name -> its slices, as slices.by_scan gives them

SUBSETS = ("train", "val", "test")
NONE = "none"  # in a split file: a scan that is in no subset
SUBSET_FOLDERS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SUBSET_FOLDERS |= dict.fromkeys(["val", "valid", "validation", "dev"], "val")

# What the experiment that this project starts from held out of each side, as shares of its scans.
EXPERIMENT_SHARES = {"right": 33 / 264, "left": 20 / 191}
HELD_OUT = 0.125  # otherwise, for val and for test


def split_by_patient(
    scans: Scans,
    val_fraction: float = HELD_OUT,
    test_fraction: float = HELD_OUT,
    seed: int = 0,
    together: Sequence[set[str]] = (),
) -> dict[str, str]:
    """Put whole patients into subsets, as near to the fractions of each class as they allow.

    The order of the patients comes from a hash of the seed and their names, so the same names and
    the same seed give the same subsets on every machine. From that order on, patients are moved
    and swapped between subsets as long as that brings the sums nearer (least squares); a few
    orders are tried, and the first that can't be bettered, or the best, is taken. Each set of
    patients in `together` goes into one subset.

    Returns scan name -> "train", "val" or "test".

    Raises:
        DataError: fewer than three patients, or fractions that leave a subset empty.
    """
    check_fractions(val_fraction, test_fraction)
    shares = [1 - val_fraction - test_fraction, val_fraction, test_fraction]
    number_of = assign_patients(scans, shares, seed, together)
    return {scan: SUBSETS[number] for scan, number in number_of.items()}


def folds_by_patient(
    scans: Scans, count: int, seed: int = 0, together: Sequence[set[str]] = ()
) -> dict[str, int]:
    """Put whole patients into folds 1 to `count`, as like each other as `split_by_patient` can.

    Raises DataError for fewer patients than folds.
    """
    check_enough({slices[0].patient for slices in scans.values()}, count, together)
    number_of = assign_patients(scans, [1 / count] * count, seed, together)
    return {scan: 1 + number for scan, number in number_of.items()}


def assign_patients(
    scans: Scans, shares: Sequence[float], seed: int, together: Sequence[set[str]]
) -> dict[str, int]:
    """Scan name -> the number of the part, of these shares, that its patient is put into."""
    group_of = {patient: min(group) for group in together for patient in group}
    labels = labels_of(scans)
    # Patient, or the first of a group -> slices of each class.
    sizes = defaultdict(lambda: [0] * len(labels))
    for slices in scans.values():
        patient = group_of.get(slices[0].patient, slices[0].patient)
        sizes[patient][labels.index(slices[0].label)] += len(slices)
    check_enough(sizes, len(shares), together)
    target = np.array(shares)[:, None] * np.sum(list(sizes.values()), axis=0)  # (parts, classes)
    unit = gcd(*(n for pair in sizes.values() for n in pair))
    # Of each class the parts get whole units: the largest fractions are rounded up.
    down = np.sort(target / unit % 1, axis=0)
    ups = len(shares) - np.round(down.sum(axis=0)).astype(int)
    is_up = np.arange(len(shares))[:, None] >= ups
    unavoidable = ((is_up - down) * unit) ** 2

    best, best_error = {}, np.inf
    for attempt in range(20):
        order = sorted(
            sizes,
            key=lambda name: hashlib.sha256(
                f"{seed} {attempt} {name}".encode(errors="surrogateescape")
            ).digest(),
        )
        weights = np.array([sizes[name] for name in order], dtype=float)  # (patients, classes)
        chosen, error = balance(weights, target)
        if error < best_error - 1e-6:
            best, best_error = dict(zip(order, chosen, strict=True)), error
        if best_error <= unavoidable.sum() + 1e-6:
            break
    patients = {scan: slices[0].patient for scan, slices in scans.items()}
    return {scan: best[group_of.get(name, name)] for scan, name in patients.items()}


def check_enough(patients: Collection[str], count: int, together: Sequence[set[str]]) -> None:
    """Raise DataError for fewer patients than parts to put them into."""
    if len(patients) < count:
        parts = "train, val and test" if count == 3 else f"{count:,} folds"
        raise DataError(
            f"{counted(len(patients), 'patient')} ({', '.join(sorted(patients))}) can't fill "
            f"{parts}; at least {count:,} are needed (--name-pattern says where names tell the "
            f"patient{'; patients that share images count as one' if together else ''})"
        )


def balance(weights: np.ndarray, target: np.ndarray) -> tuple[list[int], float]:
    """Assign rows of weights (patients, classes) to parts so that the sums come near the target.

    target is (parts, classes). Returns the part of each row and the squared error that is left.
    """
    parts = len(target)
    chosen = np.zeros(len(weights), dtype=int)
    chosen[:parts] = range(parts)  # no part is ever empty
    excess = np.stack([weights[chosen == part].sum(axis=0) for part in range(parts)]) - target
    improved = True
    while improved:
        improved = False
        for row in range(len(weights)):
            here = chosen[row]
            alone = np.count_nonzero(chosen == here) == 1
            for there in range(parts):
                if there == here:
                    continue
                # Swap with each patient there, or with nobody (the last candidate).
                partners = np.flatnonzero(chosen == there)
                gain = weights[row] - np.vstack([weights[partners], np.zeros(weights.shape[1])])
                before = (excess[here] ** 2 + excess[there] ** 2).sum()
                after = ((excess[here] - gain) ** 2 + (excess[there] + gain) ** 2).sum(axis=1)
                if alone:
                    after[-1] = np.inf
                pick = int(after.argmin())
                if after[pick] < before - 1e-6:
                    excess[here] -= gain[pick]
                    excess[there] += gain[pick]
                    chosen[row] = there
                    if pick < len(partners):
                        chosen[partners[pick]] = here
                    improved = True
                    break
    return chosen.tolist(), float((excess**2).sum())


def labels_of(scans: Scans) -> list[str]:
    return sorted({slices[0].label for slices in scans.values()})


def split_by_scan(
    scans: Scans, val_fraction: float | None = None, test_fraction: float | None = None
) -> dict[str, str]:
    """The experiment's own split: each class's sorted list of scans is cut in three.

    Patients may straddle the subsets, and an accuracy be too good; it is here to repeat the
    experiment. Without fractions each side holds out the experiment's shares: of 264 right scans
    33 + 33, of 191 left ones 20 + 20; other classes an eighth.

    Raises:
        DataError: fewer than three scans of a class, or fractions that leave a subset empty.
    """
    subset_of = {}
    for label in labels_of(scans):
        names = sorted(name for name, slices in scans.items() if slices[0].label == label)
        if len(names) < len(SUBSETS):
            raise DataError(
                f"{counted(len(names), f'{label} scan')} can't fill train, val and test"
            )
        share = EXPERIMENT_SHARES.get(label.lower(), HELD_OUT)
        val = share if val_fraction is None else val_fraction
        test = share if test_fraction is None else test_fraction
        check_fractions(val, test)
        num_val, num_test = (max(1, round(len(names) * share)) for share in (val, test))
        num_train = len(names) - num_val - num_test
        if num_train < 1:
            raise DataError(f"fractions {val} and {test} leave no {label} scan to train on")
        subsets = ["train"] * num_train + ["val"] * num_val + ["test"] * num_test
        subset_of.update(zip(names, subsets, strict=True))
    return subset_of


def folders_of(slices: list[Slice], root: str | Path) -> list[str]:
    """The folders of a scan below root."""
    first = slices[0].volume.path if slices[0].volume else slices[0].source
    return list(Path(os.path.relpath(first, root)).parts[:-1])


def note_on_folders(scans: Scans, root: str | Path) -> str:
    """Says that folders called train and test split nothing by themselves; "" if there are none."""
    found = {f for slices in scans.values() for f in folders_of(slices, root)}
    found = sorted(folder for folder in found if folder.lower() in SUBSET_FOLDERS)
    if len({SUBSET_FOLDERS[folder.lower()] for folder in found}) < 2:
        return ""
    return (
        f"folders {', '.join(found)} split nothing by themselves; for their split: dataset.py DIR "
        "--write-split CSV, and --split-file"
    )


class FolderSplit(NamedTuple):
    subset_of: dict[str, str]  # scan name -> subset
    note: str  # which subset no folder makes, and how it was made


def split_by_folder(scans: Scans, root: str | Path, seed: int = 0) -> FolderSplit:
    """The subsets that folders called train, val or valid, test and the like make.

    Where there is none for val or test, an eighth of the patients of train become it, by a hash of
    the seed and their names.

    Raises DataError for a scan in no such folder or in two, and where there is no train.
    """
    subset_of = {}
    for name, slices in scans.items():
        folders = folders_of(slices, root)
        found = {SUBSET_FOLDERS[f.lower()] for f in folders if f.lower() in SUBSET_FOLDERS}
        if len(found) != 1:
            raise DataError(f"{slices[0].source}: is not in one folder called train, val or test")
        subset_of[name] = found.pop()
    lacking = [subset for subset in SUBSETS if subset not in subset_of.values()]
    if "train" in lacking:
        raise DataError(f"{root}: no folder is called train")
    patient_of = {name: slices[0].patient for name, slices in scans.items()}
    train = sorted(
        {patient_of[name] for name, subset in subset_of.items() if subset == "train"},
        key=lambda patient: hashlib.sha256(
            f"{seed} {patient}".encode(errors="surrogateescape")
        ).digest(),
    )
    count = max(1, round(HELD_OUT * len(train)))
    for i, subset in enumerate(lacking):
        moved = set(train[i * count : (i + 1) * count])
        subset_of |= {name: subset for name in scans if patient_of[name] in moved}
    moved = counted(count, "patient")
    note = f"no folder is called {' or '.join(lacking)}: made of {moved} of train each"
    return FolderSplit(subset_of, note if lacking else "")


def check_fractions(val_fraction: float, test_fraction: float) -> None:
    if not (val_fraction > 0 and test_fraction > 0 and val_fraction + test_fraction < 1):
        raise DataError(
            f"val and test fractions must be above 0 and their sum below 1, "
            f"got {val_fraction} and {test_fraction}"
        )


def straddling_patients(scans: Scans, subset_of: dict[str, str]) -> dict[str, set]:
    """Patients in more than one subset -> the subsets they are in. Empty is what you want."""
    subsets = defaultdict(set)
    for name, slices in scans.items():
        if subset_of[name] != NONE:
            subsets[slices[0].patient].add(subset_of[name])
    return {patient: found for patient, found in sorted(subsets.items()) if len(found) > 1}


def check_patients(scans: Scans, subset_of: dict[str, str]) -> None:
    """Raise DataError with the names if a patient straddles subsets."""
    if leaks := straddling_patients(scans, subset_of):
        named = [f"{patient} ({', '.join(sorted(found))})" for patient, found in leaks.items()]
        more = f" and {len(named) - 10} more" if len(named) > 10 else ""
        raise DataError(
            f"{counted(len(leaks), 'patient')} in more than one subset: {', '.join(named[:10])}"
            f"{more}; put all scans of a patient into one subset"
        )


def describe_split(scans: Scans, subset_of: dict[str, str], classes: Sequence[str]) -> list[str]:
    """A table for a person: patients, scans of each class and slices in each subset."""
    return describe_parts(scans, subset_of, SUBSETS, "subset", classes)


def describe_parts(
    scans: Scans, part_of: dict[str, object], parts: Sequence, heading: str, classes: Sequence[str]
) -> list[str]:
    heads = [f"{label} scans" for label in classes]
    cells = [f"{head:>{len(head) + 2}}" for head in heads]
    lines = [f"{heading:<8}{'patients':>9}{''.join(cells)}{'slices':>9}"]
    for part in parts:
        members = [slices for name, slices in scans.items() if part_of[name] == part]
        labels = Counter(slices[0].label for slices in members)
        patients = len({slices[0].patient for slices in members})
        counts = [
            f"{labels[label]:>{len(cell)}}" for label, cell in zip(classes, cells, strict=True)
        ]
        slices = sum(map(len, members))
        lines.append(f"{part:<8}{patients:>9}{''.join(counts)}{slices:>9,}")
    return lines


def describe_lacking(lacking: dict[str, list[str]], classes: Sequence[str]) -> list[str]:
    """What it means that val and test lack classes; lacking: subset -> those it has no slice of."""
    effects = {
        "val": "the best epoch is chosen without any",
        "test": "figures that need one are left out",
    }
    if len(classes) - len(lacking["val"]) < 2:
        effects["val"] += ", and predict.py will call every scan unsure"
    return [
        f"warning: no patient of {name} has a {label} slice: {effect}; it takes more patients "
        f"in {name} (--{name}-fraction, or the split file)"
        for name, effect in effects.items()
        for label in lacking[name]
    ]
