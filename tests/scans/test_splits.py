"""scans/splits.py: subsets of whole patients, as near to the fractions as they allow."""

import csv
import itertools
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import write_scan

import dataset
from common.program import UserError
from scans import split_tables, splits
from scans.labelled import list_labelled
from scans.slices import SIDES, DataError, Slice, by_scan


def made_up_scans(sizes: dict[str, tuple[int, int]]) -> dict[str, list[Slice]]:
    """Patient -> (left scans, right scans), as by_scan gives them, without files."""
    scans = {}
    for patient, counts in sizes.items():
        for side, count in zip(SIDES, counts, strict=True):
            for k in range(count):
                name = f"{patient}_{k}_{side.upper()}"
                scans[name] = [Slice("", None, side, patient, name, number) for number in range(40)]
    return dict(sorted(scans.items()))


def slices_by_subset(scans, subset_of) -> Counter:
    count = Counter()
    for name, slices in scans.items():
        count[subset_of[name], slices[0].label] += len(slices)
    return count


def test_scan_split_has_the_experiments_numbers():
    right = {f"R{i:03d}": (0, 1) for i in range(264)}
    left = {f"L{i:03d}": (1, 0) for i in range(191)}
    scans = made_up_scans(right | left)
    subset_of = splits.split_by_scan(scans)
    assert slices_by_subset(scans, subset_of) == {
        ("train", "right"): 7920,
        ("val", "right"): 1320,
        ("test", "right"): 1320,
        ("train", "left"): 6040,
        ("val", "left"): 800,
        ("test", "left"): 800,
    }
    order = [subset_of[name] for name in sorted(scans) if name.startswith("R")]
    assert order == ["train"] * 198 + ["val"] * 33 + ["test"] * 33  # cut from the sorted list


def akoa_like(seed: int) -> dict[str, list[Slice]]:
    """467 scans, 194 left and 273 right, of 101 patients."""
    rng = np.random.default_rng(seed)
    sizes = {f"OAI{i:03d}": [0, 0] for i in range(101)}
    for side, count in enumerate((194, 273)):
        for k in range(count):
            patient = (k + 50 * side) % 101 if k < 70 else rng.integers(101)
            sizes[f"OAI{patient:03d}"][side] += 1
    return made_up_scans({name: tuple(pair) for name, pair in sizes.items() if sum(pair)})


@pytest.mark.parametrize("seed", range(5))
def test_patient_split_is_within_half_a_scan_of_its_fractions_and_never_leaks(seed):
    scans = akoa_like(seed)
    subset_of = splits.split_by_patient(scans, seed=seed)
    assert splits.straddling_patients(scans, subset_of) == {}
    count = slices_by_subset(scans, subset_of)
    for side in SIDES:
        total = sum(count[subset, side] for subset in splits.SUBSETS)
        for subset, fraction in [("train", 0.75), ("val", 0.125), ("test", 0.125)]:
            assert abs(count[subset, side] - fraction * total) <= 20


def test_patient_split_of_few_patients_is_the_best_there_is():
    """Against every possible assignment of 3 to 7 patients."""
    rng = np.random.default_rng(0)
    for number in (3, 4, 5, 6, 7):
        sizes = {f"P{i}": tuple(rng.integers(1, 5, size=2)) for i in range(number)}
        scans = made_up_scans(sizes)

        def error(subset_of, scans=scans):
            count, total = slices_by_subset(scans, subset_of), 0.0
            for side in SIDES:
                sum_of_side = sum(count[subset, side] for subset in splits.SUBSETS)
                for subset, fraction in [("train", 0.75), ("val", 0.125), ("test", 0.125)]:
                    total += (count[subset, side] - fraction * sum_of_side) ** 2
            return total

        best = min(
            error({name: chosen[int(slices[0].patient[1:])] for name, slices in scans.items()})
            for chosen in itertools.product(splits.SUBSETS, repeat=number)
            if len(set(chosen)) == 3
        )
        assert error(splits.split_by_patient(scans)) == pytest.approx(best)


def test_patient_split_depends_on_names_and_seed_alone(tmp_path):
    """Another process, another order of files and another hash seed give the same subsets."""
    for patient in range(8):
        for side in ("LEFT", "RIGHT"):
            write_scan(tmp_path, patient, side, slices=1)
    code = (
        "import sys, json; from scans import labelled, slices, split_tables, splits; "
        "scans = slices.by_scan(labelled.list_labelled(sys.argv[1]).slices); "
        "print(json.dumps(splits.split_by_patient(scans, seed=3), sort_keys=True))"
    )
    outputs = set()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path],
            env=environment,
            cwd=Path(splits.__file__).parent.parent,
            capture_output=True,
            text=True,
            check=True,
        )
        outputs.add(done.stdout)
    assert len(outputs) == 1
    scans = by_scan(list_labelled(tmp_path).slices)
    shuffled = dict(reversed(scans.items()))
    assert splits.split_by_patient(scans, seed=3) == splits.split_by_patient(shuffled, seed=3)
    chosen = [splits.split_by_patient(scans, seed=seed) for seed in range(5)]
    assert any(split != chosen[0] for split in chosen)


def test_pinned_split_stays_what_it_was():
    """If this fails, the same seed means another split than in earlier versions."""
    scans = made_up_scans({f"P{i}": (1, 1) for i in range(10)})
    held_out = {
        subset: {
            scans[n][0].patient for n, s in splits.split_by_patient(scans).items() if s == subset
        }
        for subset in ("val", "test")
    }
    assert held_out == {"val": {"P8"}, "test": {"P3"}}


def test_two_patients_are_too_few_and_are_named():
    with pytest.raises(DataError, match=r"2 patients \(A, B\).*at least 3"):
        splits.split_by_patient(made_up_scans({"A": (1, 1), "B": (1, 1)}))
    with pytest.raises(DataError, match=r"2 left scans can't fill"):
        splits.split_by_scan(made_up_scans({"A": (1, 2), "B": (1, 2)}))


@pytest.mark.parametrize("val, test", [(0, 0.1), (0.5, 0.5), (-1, 0.1), (0.1, 1.5)])
def test_impossible_fractions_are_refused(val, test):
    scans = made_up_scans({name: (1, 1) for name in "ABCD"})
    for split in (splits.split_by_patient, splits.split_by_scan):
        with pytest.raises(DataError, match=f"got {val} and {test}"):
            split(scans, val, test)


def test_split_file_comes_back_as_written_and_a_leak_in_it_is_named(tmp_path):
    scans = made_up_scans({name: (1, 2) for name in "ABCDE"})
    subset_of = splits.split_by_patient(scans)
    path = tmp_path / "split.csv"
    split_tables.write_split(path, scans, subset_of)
    assert split_tables.read_split(path, scans) == subset_of
    rows = list(csv.reader(path.open()))
    assert rows[0] == ["subset", "label", "patient", "scan", "slices"] and len(rows) == 16
    first_of_train = next(row for row in rows if row[0] == "train")
    first_of_train[0] = "test"
    csv.writer(path.open("w", newline="")).writerows(rows)
    with pytest.raises(DataError, match=rf"1 patient in .*{first_of_train[2]} \(test, train\)"):
        splits.check_patients(scans, split_tables.read_split(path, scans))


@pytest.mark.parametrize(
    "text, message",
    [
        ("a,b\n1,2\n", "expected columns subset and scan"),
        ("subset,scan\ntraining,A_0_LEFT\n", "line 2: subset must be train, val, test or none"),
        ("subset,scan\ntrain,A_0_LEFT\ntest,A_0_LEFT\n", "line 3: scan A_0_LEFT is in two"),
        ("subset,scan\ntrain,A_0_LEFT\n", "scans of the data not in the split file"),
    ],
)
def test_split_file_that_does_not_fit_is_refused_by_line(tmp_path, text, message):
    scans = made_up_scans({name: (1, 0) for name in "ABC"})
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"mine\.csv.*{message}"):
        split_tables.read_split(path, scans)
    path.write_text("subset,scan\ntrain,A_0_LEFT\nval,B_0_LEFT\ntest,C_0_LEFT\ntest,D\n")
    with pytest.raises(DataError, match="of the split file not in the data, first: D"):
        split_tables.read_split(path, scans)


@pytest.mark.parametrize(
    "content",
    [
        "Subset,SCAN\nTrain,a\nval,b\nTEST,c\n".encode("utf-8-sig"),
        "sep=;\r\nScan;Subset;\r\na;train;\r\nb;val;\r\nc;test;\r\n;;\r\n".encode("utf-16"),
        b"scan\tsubset\ra \ttrain\rb\tval\rc\ttest\r",
    ],
)
def test_split_file_that_a_spreadsheet_saved_is_read(tmp_path, content):
    (tmp_path / "split.csv").write_bytes(content)
    found = split_tables.read_split(tmp_path / "split.csv", {"a": [], "b": [], "c": []})
    assert found == {"a": "train", "b": "val", "c": "test"}


def test_empty_split_file_is_refused(tmp_path):
    (tmp_path / "split.csv").write_text("\n\n")
    with pytest.raises(UserError, match=r"split\.csv: it is empty, expected a split file"):
        split_tables.read_split(tmp_path / "split.csv", {"a": []})


def test_split_file_row_without_a_scan_is_named_by_its_line(tmp_path):
    (tmp_path / "split.csv").write_text("subset,scan\ntrain,a\ntrain\n")
    with pytest.raises(DataError, match="line 3: names no scan"):
        split_tables.read_split(tmp_path / "split.csv", {"a": []})


@pytest.mark.parametrize("seed", range(5))
def test_patients_that_belong_together_stay_in_one_subset(seed):
    scans = akoa_like(seed)
    names = sorted({slices[0].patient for slices in scans.values()})
    together = [set(names[3:6]), {names[10], names[50]}]
    subset_of = splits.split_by_patient(scans, seed=seed, together=together)
    where = {slices[0].patient: subset_of[scan] for scan, slices in scans.items()}
    assert all(len({where[name] for name in group}) == 1 for group in together)
    assert splits.straddling_patients(scans, subset_of) == {}
    assert len(where) == len(names) and subset_of.keys() == scans.keys()
    alone = splits.split_by_patient(scans, seed=seed)
    apart = {slices[0].patient: alone[scan] for scan, slices in scans.items()}
    if seed == 0:  # otherwise this would test nothing
        assert any(len({apart[name] for name in group}) > 1 for group in together)


def test_too_few_patients_because_some_share_images_says_so():
    scans = made_up_scans({name: (1, 1) for name in "ABCD"})
    with pytest.raises(DataError, match=r"2 patients \(A, D\).*that share images count as one"):
        splits.split_by_patient(scans, together=[{"A", "B", "C"}])


# ---- more than two classes -----------------------------------------------------------------------

GRADES = ["none", "mild", "severe"]


def graded_scans(sizes: dict[str, tuple[int, ...]]) -> dict[str, list[Slice]]:
    """Patient -> so many scans of each grade, each of 10 slices."""
    return {
        f"{patient} {grade} {k}": [
            Slice("", None, grade, patient, f"{patient} {grade} {k}", i) for i in range(10)
        ]
        for patient, counts in sizes.items()
        for grade, count in zip(GRADES, counts, strict=True)
        for k in range(count)
    }


@pytest.mark.parametrize("seed", range(5))
def test_patients_of_three_classes_stay_whole_and_each_class_near_its_fractions(seed):
    rng = np.random.default_rng(seed)
    scans = graded_scans({f"P{i}": tuple(rng.multinomial(3, [0.6, 0.3, 0.1])) for i in range(80)})
    subset_of = splits.split_by_patient(scans, 0.2, 0.1, seed)
    assert splits.straddling_patients(scans, subset_of) == {}
    count = slices_by_subset(scans, subset_of)
    for grade in GRADES:
        total = sum(count[subset, grade] for subset in splits.SUBSETS)
        for subset, fraction in [("train", 0.7), ("val", 0.2), ("test", 0.1)]:
            assert abs(count[subset, grade] - fraction * total) <= 15  # a scan and a half


def test_scan_split_of_other_labels_holds_out_an_eighth_of_each():
    scans = graded_scans({f"P{i:02}": (2, 1, 1) for i in range(16)})
    subset_of = splits.split_by_scan(scans)
    assert slices_by_subset(scans, subset_of) == {
        (subset, grade): 10 * scans_of_grade // 8 * eighths
        for grade, scans_of_grade in zip(GRADES, (32, 16, 16), strict=True)
        for subset, eighths in (("train", 6), ("val", 1), ("test", 1))
    }
    order = [subset_of[name] for name in sorted(scans) if "mild" in name]
    assert order == ["train"] * 12 + ["val"] * 2 + ["test"] * 2


def test_split_of_many_classes_comes_back_and_an_older_file_with_sides_is_read(tmp_path):
    scans = graded_scans({f"P{i}": (1, 2, 1) for i in range(6)})
    subset_of = splits.split_by_patient(scans)
    path = tmp_path / "split.csv"
    split_tables.write_split(path, scans, subset_of)
    assert split_tables.read_split(path, scans) == subset_of
    rows = list(csv.DictReader(path.open()))
    assert all(row["label"] == scans[row["scan"]][0].label for row in rows)
    assert all(row["slices"] == "10" for row in rows) and len(rows) == len(scans) == 24
    sides = made_up_scans({name: (1, 1) for name in "ABC"})
    subset_of = splits.split_by_patient(sides)
    lines = [f"{subset_of[n]},{s[0].label},{s[0].patient},{n},40" for n, s in sides.items()]
    path.write_text("\n".join(["subset,side,patient,scan,slices", *lines, ""]))
    assert split_tables.read_split(path, sides) == subset_of


# ---- folders called train, val and test ----------------------------------------------------------


def scans_of(paths: list[str]) -> dict[str, list[Slice]]:
    """A slice a scan; data/train/p1.png is of patient p1."""
    slices = [Slice(f"data/{path}", None, "left", Path(path).stem, path, 0) for path in paths]
    return by_scan(slices)


def test_folders_of_subsets_are_a_split_in_any_of_their_names():
    paths = ["training/a/p1.png", "x/Valid/p2.png", "TEST/p3.png", "train/p4.png"]
    found = splits.split_by_folder(scans_of(paths), "data")
    assert found.note == ""
    assert found.subset_of == dict(zip(paths, ["train", "val", "test", "train"], strict=True))


@pytest.mark.parametrize("path", ["p9.png", "other/p9.png", "train/test/p9.png", "train.png"])
def test_a_scan_in_no_folder_of_a_subset_or_in_two_is_refused(path):
    scans = scans_of(["train/p1.png", "val/p2.png", "test/p3.png", path])
    with pytest.raises(DataError, match=f"data/{path}: is not in one folder called train, val or"):
        splits.split_by_folder(scans, "data")


def test_a_subset_without_a_folder_is_made_of_patients_of_train_the_same_each_time():
    paths = [f"train/p{i}.png" for i in range(16)] + ["valid/p99.png"]
    found = splits.split_by_folder(scans_of(paths), "data", seed=3)
    assert found == splits.split_by_folder(scans_of(paths[::-1]), "data", seed=3)
    assert Counter(found.subset_of.values()) == {"train": 14, "test": 2, "val": 1}
    assert found.note == "no folder is called test: made of 2 patients of train each"
    with pytest.raises(DataError, match="data: no folder is called train"):
        splits.split_by_folder(scans_of(["val/p1.png", "test/p2.png"]), "data")


def test_a_patient_in_two_folders_is_refused_and_no_split_is_written(tmp_path, capsys):
    for path in ("train/left/p1_1.png", "test/right/p1_1.png", "train/right/p2_1.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    arguments = [str(tmp_path), "--write-split", str(tmp_path / "split.csv")]
    assert dataset.main(arguments) == 2 and not (tmp_path / "split.csv").exists()
    assert "1 patient in more than one subset: p1 (test, train" in capsys.readouterr().err


# ---- folds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 5, 10])
def test_folds_hold_whole_patients_and_are_as_large_as_each_other(count):
    rng = random.Random(count)
    patients = {f"P{i}": (rng.randint(1, 3), rng.randint(1, 4)) for i in range(101)}
    scans = made_up_scans(patients)
    fold_of = splits.folds_by_patient(scans, count)
    assert fold_of.keys() == scans.keys() and set(fold_of.values()) == set(range(1, count + 1))
    assert not splits.straddling_patients(scans, fold_of)
    for label in ("left", "right"):
        sizes = Counter(fold for n, fold in fold_of.items() if scans[n][0].label == label)
        assert max(sizes.values()) - min(sizes.values()) <= 1
    backwards = dict(reversed(scans.items()))
    assert splits.folds_by_patient(backwards, count) == fold_of
    assert splits.folds_by_patient(scans, count, seed=1) != fold_of


def test_patients_who_share_an_image_are_in_one_fold():
    scans = made_up_scans({f"P{i}": (1, 1) for i in range(20)})
    fold_of = splits.folds_by_patient(scans, 5, together=[{"P3", "P4"}, {"P7", "P8", "P9"}])
    of_patient = {scans[name][0].patient: fold for name, fold in fold_of.items()}
    assert of_patient["P3"] == of_patient["P4"]
    assert of_patient["P7"] == of_patient["P8"] == of_patient["P9"]
    with pytest.raises(DataError, match=r"19 patients .*can't fill 20 folds; at least 20"):
        splits.folds_by_patient(scans, 20, together=[{"P3", "P4"}])


def test_a_table_of_folds_comes_back_as_written(tmp_path):
    scans = made_up_scans({f"P{i}": (1, 1) for i in range(9)})
    folds = split_tables.Folds(splits.folds_by_patient(scans, 3), frozenset({next(iter(scans))}))
    split_tables.write_folds(tmp_path / "folds.csv", scans, folds)
    assert split_tables.read_folds(tmp_path / "folds.csv", scans) == folds
    (left_out,) = folds.left_out
    for fold in (1, 2, 3):
        found = split_tables.read_split(tmp_path / "folds.csv", scans, fold)
        assert found[left_out] == ("test" if folds.fold_of[left_out] == fold else "none")
        del found[left_out]
        names = {fold: "test", fold % 3 + 1: "val", (fold + 1) % 3 + 1: "train"}
        assert found == {scan: names[folds.fold_of[scan]] for scan in found}


@pytest.mark.parametrize(
    "text, problem",
    [
        ("fold,scan\n0,P0\n", "line 2: fold must be a whole number from 1, got '0'"),
        ("fold,scan\nx,P0\n", "line 2: fold must be a whole number from 1, got 'x'"),
        ("fold,scan\n1,P0\n2,P0\n", "line 3: scan P0 is in two folds"),
        ("fold,scan\n1,P0\n3,P1\n", "no scan is in fold 2"),
        ("fold,scan\n1,P0\n2,P1\n", "no scan is in fold 3"),
        ("fold,scan\n1,P0\n", "1 scan of the data not in the split file, first: P1"),
        ("fold\n1\n", "expected columns fold and scan"),
    ],
)
def test_tables_of_folds_that_say_nothing_clear_are_refused_by_line(tmp_path, text, problem):
    (tmp_path / "folds.csv").write_text(text)
    with pytest.raises(DataError) as refused:
        split_tables.read_folds(tmp_path / "folds.csv", {"P0": [], "P1": []})
    assert problem in str(refused.value)
