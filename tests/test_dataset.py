"""dataset.py on real small files: names, subsets without leaks, decoding of every kind of PNG."""

import csv
import itertools
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dataset
from dataset import DataError, Slice

AKOA = "OAI{patient:07d}_BaseLine_3_{hash:05x}_SAG_3D_DESS_WE_{side}.nii.gz"


def write_scan(folder: Path, patient: int, side: str, slices: int = 40, hash: int = 0) -> str:
    name = AKOA.format(patient=patient, side=side, hash=hash)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(slices):
        Image.new("RGB", (4, 3)).save(folder / f"{name}_{index}.png")
    return name


def made_up_scans(sizes: dict[str, tuple[int, int]]) -> dict[str, list[Slice]]:
    """Patient -> (left scans, right scans), as group_scans gives them, without files."""
    scans = {}
    for patient, counts in sizes.items():
        for side, count in zip(dataset.SIDES, counts, strict=True):
            for k in range(count):
                name = f"{patient}_{k}_{side.upper()}"
                scans[name] = [Slice("", side, patient, name, index) for index in range(40)]
    return dict(sorted(scans.items()))


def slices_by_subset(scans, subset_of) -> Counter:
    count = Counter()
    for name, slices in scans.items():
        count[subset_of[name], slices[0].side] += len(slices)
    return count


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spelling", ["LEFT", "Left", "left", "L_E_F_T", "RIGHT", "Right", "right", "R_I_G_H_T"]
)
def test_every_spelling_of_the_side_is_read(spelling):
    scan = AKOA.format(patient=9014797, side=spelling, hash=0xDE3D1)
    parsed = dataset.parse_name(Path(f"{scan}_17.png"))
    assert parsed.side == spelling.replace("_", "").lower()
    assert (parsed.patient, parsed.scan, parsed.index) == ("OAI9014797", scan, 17)


def test_scan_is_the_whole_name_because_patient_visit_and_side_repeat(tmp_path):
    for hash in (1, 2):
        write_scan(tmp_path, 1, "RIGHT", hash=hash)
    write_scan(tmp_path, 1, "LEFT")
    scans = dataset.group_scans(dataset.find_slices(tmp_path)[0])
    assert [len(slices) for slices in scans.values()] == [40, 40, 40]


def test_slices_are_found_in_nested_folders_and_in_number_order_and_litter_is_not(tmp_path):
    inner = tmp_path / "AKOA_Analysis" / "AKOA_Analysis"
    scan = write_scan(inner, 1, "RIGHT")
    write_scan(inner, 2, "L_E_F_T")
    (inner / "Thumbs.db").write_bytes(b"litter")
    (inner / f"._{scan}_0.png").write_bytes(b"litter")
    (tmp_path / "readme.txt").write_text("litter")
    slices, notes = dataset.find_slices(tmp_path)
    assert len(slices) == 80 and notes == []
    assert [s.index for s in slices if s.scan == scan] == list(range(40))


def test_folders_left_and_right_give_the_side_and_keep_a_patient_together(tmp_path):
    for name in ("left/p01_1", "left/p01_2", "right/p01_1", "Left/p02/7", "right/p02/8"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 3)).save(path)
    slices, _ = dataset.find_slices(tmp_path)
    assert {(s.scan, s.patient, s.side, s.index) for s in slices} == {
        ("left/p01", "p01", "left", 1),
        ("left/p01", "p01", "left", 2),
        ("right/p01", "p01", "right", 1),
        ("left/p02", "p02", "left", 7),
        ("right/p02", "p02", "right", 8),
    }


def test_name_that_contradicts_its_folder_is_refused(tmp_path):
    write_scan(tmp_path / "left", 1, "RIGHT", slices=1)
    with pytest.raises(DataError, match=r"left/OAI0000001.*says right, the folder left"):
        dataset.find_slices(tmp_path)


def test_the_path_above_the_data_folder_says_nothing_of_the_side(tmp_path):
    folder = tmp_path / "left" / "knees"
    write_scan(folder, 1, "RIGHT", slices=1)
    write_scan(folder, 2, "LEFT", slices=1)
    assert {s.side for s in dataset.find_slices(folder)[0]} == {"left", "right"}


def test_incomplete_scan_copies_and_sideless_images_are_noted_by_name(tmp_path):
    short = write_scan(tmp_path, 1, "RIGHT", slices=38)
    write_scan(tmp_path, 2, "LEFT")
    write_scan(tmp_path / "copy", 2, "LEFT")
    Image.new("L", (4, 3)).save(tmp_path / "mystery.png")
    slices, notes = dataset.find_slices(tmp_path)
    assert len(slices) == 78
    assert any(f"{short} (38)" in note for note in notes)
    assert any("40 images are copies" in note for note in notes)
    assert any("1 images tell no side" in note and "mystery.png" in note for note in notes)


def test_empty_missing_and_one_sided_folders_are_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        dataset.find_slices(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no images; expected names like OAI"):
        dataset.find_slices(tmp_path)
    Image.new("L", (4, 3)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="1 images but no side in any name"):
        dataset.find_slices(tmp_path)
    write_scan(tmp_path, 1, "RIGHT", slices=2)
    with pytest.raises(DataError, match="none of the left side"):
        dataset.find_slices(tmp_path)


# ---- subsets -------------------------------------------------------------------------------------


def test_scan_split_has_the_experiments_numbers():
    right = {f"R{i:03d}": (0, 1) for i in range(264)}
    left = {f"L{i:03d}": (1, 0) for i in range(191)}
    scans = made_up_scans(right | left)
    subset_of = dataset.split_by_scan(scans)
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
    subset_of = dataset.split_by_patient(scans, seed=seed)
    assert dataset.straddling_patients(scans, subset_of) == {}
    count = slices_by_subset(scans, subset_of)
    for side in dataset.SIDES:
        total = sum(count[subset, side] for subset in dataset.SUBSETS)
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
            for side in dataset.SIDES:
                sum_of_side = sum(count[subset, side] for subset in dataset.SUBSETS)
                for subset, fraction in [("train", 0.75), ("val", 0.125), ("test", 0.125)]:
                    total += (count[subset, side] - fraction * sum_of_side) ** 2
            return total

        best = min(
            error({name: chosen[int(slices[0].patient[1:])] for name, slices in scans.items()})
            for chosen in itertools.product(dataset.SUBSETS, repeat=number)
            if len(set(chosen)) == 3
        )
        assert error(dataset.split_by_patient(scans)) == pytest.approx(best)


def test_patient_split_depends_on_names_and_seed_alone(tmp_path):
    """Another process, another order of files and another hash seed give the same subsets."""
    for patient in range(8):
        for side in ("LEFT", "RIGHT"):
            write_scan(tmp_path, patient, side, slices=1)
    code = (
        "import sys, json, dataset; "
        "scans = dataset.group_scans(dataset.find_slices(sys.argv[1])[0]); "
        "print(json.dumps(dataset.split_by_patient(scans, seed=3), sort_keys=True))"
    )
    outputs = set()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        outputs.add(done.stdout)
    assert len(outputs) == 1
    scans = dataset.group_scans(dataset.find_slices(tmp_path)[0])
    shuffled = dict(reversed(scans.items()))
    assert dataset.split_by_patient(scans, seed=3) == dataset.split_by_patient(shuffled, seed=3)
    splits = [dataset.split_by_patient(scans, seed=seed) for seed in range(5)]
    assert any(split != splits[0] for split in splits)


def test_pinned_split_stays_what_it_was():
    """If this fails, the same seed means another split than in earlier versions."""
    scans = made_up_scans({f"P{i}": (1, 1) for i in range(10)})
    held_out = {
        subset: {
            scans[n][0].patient for n, s in dataset.split_by_patient(scans).items() if s == subset
        }
        for subset in ("val", "test")
    }
    assert held_out == {"val": {"P8"}, "test": {"P3"}}


def test_two_patients_are_too_few_and_are_named():
    with pytest.raises(DataError, match=r"2 patients \(A, B\).*at least three"):
        dataset.split_by_patient(made_up_scans({"A": (1, 1), "B": (1, 1)}))
    with pytest.raises(DataError, match=r"2 left scans can't fill"):
        dataset.split_by_scan(made_up_scans({"A": (1, 2), "B": (1, 2)}))


@pytest.mark.parametrize("val, test", [(0, 0.1), (0.5, 0.5), (-1, 0.1), (0.1, 1.5)])
def test_impossible_fractions_are_refused(val, test):
    scans = made_up_scans({name: (1, 1) for name in "ABCD"})
    for split in (dataset.split_by_patient, dataset.split_by_scan):
        with pytest.raises(DataError, match=f"got {val} and {test}"):
            split(scans, val, test)


def test_split_file_comes_back_as_written_and_a_leak_in_it_is_named(tmp_path):
    scans = made_up_scans({name: (1, 2) for name in "ABCDE"})
    subset_of = dataset.split_by_patient(scans)
    path = tmp_path / "split.csv"
    dataset.write_split(path, scans, subset_of)
    assert dataset.read_split(path, scans) == subset_of
    rows = list(csv.reader(path.open()))
    assert rows[0] == ["subset", "side", "patient", "scan", "slices"] and len(rows) == 16
    first_of_train = next(row for row in rows if row[0] == "train")
    first_of_train[0] = "test"
    csv.writer(path.open("w", newline="")).writerows(rows)
    with pytest.raises(DataError, match=rf"1 patients.*{first_of_train[2]} \(test, train\)"):
        dataset.check_patients(scans, dataset.read_split(path, scans))


@pytest.mark.parametrize(
    "text, message",
    [
        ("a,b\n1,2\n", "expected columns subset and scan"),
        ("", "expected columns"),
        ("subset,scan\ntraining,A_0_LEFT\n", "line 2: subset must be train, val or test"),
        ("subset,scan\ntrain,A_0_LEFT\ntest,A_0_LEFT\n", "line 3: scan A_0_LEFT is in two"),
        ("subset,scan\ntrain,A_0_LEFT\n", "scans of the data are not in the split file"),
    ],
)
def test_split_file_that_does_not_fit_is_refused_by_line(tmp_path, text, message):
    scans = made_up_scans({name: (1, 0) for name in "ABC"})
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"mine\.csv.*{message}"):
        dataset.read_split(path, scans)
    path.write_text("subset,scan\ntrain,A_0_LEFT\nval,B_0_LEFT\ntest,C_0_LEFT\ntest,D\n")
    with pytest.raises(DataError, match="of the split file are not in the data, first: D"):
        dataset.read_split(path, scans)


# ---- pixels --------------------------------------------------------------------------------------

GRADIENT = np.tile(np.arange(0, 240, 4, dtype=np.uint8), (40, 1))  # (40, 60)


def save_as(kind: str, path: Path) -> None:
    if kind == "16-bit":
        Image.fromarray(GRADIENT.astype(np.uint16) * 257).save(path)
    elif kind == "RGBA":
        Image.fromarray(GRADIENT).convert("RGBA").save(path)
    elif kind == "LA":
        Image.fromarray(GRADIENT).convert("LA").save(path)
    elif kind == "palette":
        image = Image.fromarray(255 - GRADIENT).convert("P")
        image.putpalette([255 - i // 3 for i in range(768)])  # index 255 - g shows as grey g
        image.save(path)
    else:
        Image.fromarray(GRADIENT).convert(kind).save(path)


@pytest.mark.parametrize("kind", ["L", "RGB", "RGBA", "LA", "palette", "16-bit"])
def test_every_kind_of_png_gives_the_same_grey_levels(tmp_path, kind):
    save_as(kind, tmp_path / "x.png")
    assert np.array_equal(dataset.read_image(tmp_path / "x.png", (40, 60)), GRADIENT)


def test_transparent_pixels_are_black(tmp_path):
    Image.new("RGBA", (8, 8), (200, 200, 200, 0)).save(tmp_path / "x.png")
    assert dataset.read_image(tmp_path / "x.png", (8, 8)).max() == 0


def test_images_of_several_sizes_are_resized_alike(tmp_path):
    for scale in (1, 2, 5):
        Image.fromarray(np.kron(GRADIENT, np.ones((scale, scale), np.uint8))).save(
            tmp_path / f"{scale}.png"
        )
    images, errors = dataset.load_images([str(tmp_path / f"{s}.png") for s in (1, 2, 5)], (20, 30))
    assert images.shape == (3, 1, 20, 30) and images.dtype == torch.uint8 and not errors
    assert (images[0].int() - images[1:, 0].int()).abs().max() <= 2
    assert (images[0, 0].int().diff(dim=1) > 0).all()  # not mirrored: left is still dark


def test_all_unreadable_files_are_reported_and_the_others_are_read(tmp_path):
    Image.fromarray(GRADIENT).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no image")
    names = ["half.png", "whole.png", "empty.png", "text.png", "missing.png"]
    images, errors = dataset.load_images([str(tmp_path / name) for name in names], (40, 60))
    assert sorted(errors) == [0, 2, 3, 4] and all("\n" not in text for text in errors.values())
    assert np.array_equal(images[1, 0].numpy(), GRADIENT)


def test_statistics_are_those_of_the_pixels():
    images = torch.randint(0, 256, (7, 1, 9, 11), dtype=torch.uint8)
    mean, std = dataset.pixel_statistics(images)
    pixels = images.double() / 255
    assert mean == pytest.approx(pixels.mean().item(), abs=1e-12)
    assert std == pytest.approx(pixels.std(correction=0).item(), abs=1e-12)


@pytest.mark.parametrize(
    "name, patient, scan",
    [
        ("left/p01_7.png", "p01", "left/p01"),
        ("left/p01/7.png", "p01", "left/p01"),
        ("left/p01/visit2/7.png", "p01", "left/p01/visit2"),
        ("p01/left/7.png", "p01", "p01/left"),
        ("visit2/Left/p01_7.png", "p01", "visit2/left/p01"),
        ("knees/left/p01/a-7.png", "p01", "knees/left/p01/a"),
    ],
)
def test_visits_in_folders_belong_to_one_patient(name, patient, scan):
    parsed = dataset.parse_name(Path(name))
    assert (parsed.side, parsed.patient, parsed.scan, parsed.index) == ("left", patient, scan, 7)


def test_split_file_row_without_a_scan_is_named_by_its_line(tmp_path):
    (tmp_path / "split.csv").write_text("subset,scan\ntrain,a\ntrain\n")
    with pytest.raises(DataError, match="line 3: names no scan"):
        dataset.read_split(tmp_path / "split.csv", {"a": []})


def test_more_than_16_bits_are_refused_not_wrapped(tmp_path):
    deep = np.full((8, 8), 70000, dtype=np.int32)
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    Image.fromarray(deep.astype(np.float32)).save(tmp_path / "float.tif")
    _, errors = dataset.load_images([str(tmp_path / n) for n in ("deep.tif", "float.tif")], (8, 8))
    assert all("16 bits" in error for error in errors.values()) and len(errors) == 2
