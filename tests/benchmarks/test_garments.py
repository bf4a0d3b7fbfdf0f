"""benchmarks/garments.py on tiny IDX files that are written here."""

import csv
import gzip
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import garments
from benchmarks.experiments import EXPERIMENTS
from dataset import list_labelled, load_dataset, split

PROGRAM = Path(garments.__file__)
SHIRT, BAG = 0, 8


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def write_source(
    folder: Path, gzipped: bool = True, bags: int = 210, size: int = 12, labels=None
) -> Path:
    """Noise that is brighter on the right: bags and shirts, four in five in the train files."""
    rng = np.random.default_rng(0)
    labels = np.array([BAG] * bags + [SHIRT] * 30 if labels is None else labels)
    rng.shuffle(labels)
    images = rng.integers(0, 150, size=(len(labels), size, size))
    images[:, :, size // 2 :] += 40
    folder.mkdir()
    cut = len(labels) * 4 // 5
    for part, rows in (("train", slice(0, cut)), ("t10k", slice(cut, None))):
        for name, array in (("images-idx3", images[rows]), ("labels-idx1", labels[rows])):
            content = idx_bytes(array)
            if gzipped:
                (folder / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(content))
            else:
                (folder / f"{part}-{name}-ubyte").write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    parent = tmp_path_factory.mktemp("garments")
    garments.build(parent / "bags", "bags", write_source(parent / "source"))
    return parent / "bags"


def test_folder_has_the_names_and_counts_of_akoa(folder):
    names = sorted(path.name for path in folder.glob("*.png"))
    assert len(names) == 5 * 2 * 40  # 210 bags: 5 patients, 10 photographs left over
    pattern = re.compile(
        r"(OAI900000[1-5])_Bags_1_(\d{5})_FASHION_MNIST_(LEFT|RIGHT)\.nii\.gz_(\d+)\.png"
    )
    parts = [pattern.fullmatch(name).groups() for name in names]
    assert len({patient for patient, *_ in parts}) == 5
    assert {int(first) for _, first, *_ in parts} == {0, 40, 80, 120, 160}
    assert {int(number) for *_, number in parts} == set(range(40))
    assert "OAI9000001_Bags_1_00000_FASHION_MNIST_RIGHT.nii.gz_0.png" in names


def test_right_is_the_photograph_and_left_its_mirror_image_in_grey_rgb(folder):
    images, labels, _ = garments.load_photographs(folder.parent / "source")
    photographs = images[labels == BAG]
    assert len(photographs) == 210
    for index in range(200):
        name = f"OAI{9000001 + index // 40}_Bags_1_{index // 40 * 40:05d}_FASHION_MNIST_"
        right, left = (
            Image.open(folder / f"{name}{side}.nii.gz_{index % 40}.png")
            for side in ("RIGHT", "LEFT")
        )
        assert right.mode == left.mode == "RGB"
        right, left = np.asarray(right), np.asarray(left)
        assert (right == photographs[index][..., None]).all()
        assert (left == right[:, ::-1]).all()


def test_plain_files_give_the_same_folder_as_gzipped_ones(folder, tmp_path, capsys):
    source = write_source(tmp_path / "source", gzipped=False)
    arguments = ["build", f"{tmp_path}/new/bags", "--garment", "bags", "--source", str(source)]
    assert garments.main(arguments) == 0
    assert "5 patients, 10 scans, 400 slices; 10 photographs left over" in capsys.readouterr().out
    for path in folder.iterdir():
        assert (tmp_path / "new" / "bags" / path.name).read_bytes() == path.read_bytes()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["bags"]  # nothing unfinished


def test_build_takes_an_empty_folder_and_leaves_a_filled_one_alone(folder, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    arguments = ["build", f"{tmp_path}/out", "--garment", "bags"]
    arguments += ["--source", str(folder.parent / "source")]
    assert garments.main(arguments) == 0
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert garments.main(arguments) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()} == before


def cut_gzip(source: Path):
    path = source / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])


def cut_inside_gzip(source: Path):
    path = source / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))


def cut_header(source: Path):
    path = source / "train-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:6]))


def swap_labels(source: Path):
    train = (source / "train-labels-idx1-ubyte.gz").read_bytes()
    (source / "t10k-labels-idx1-ubyte.gz").write_bytes(train)


def remove(source: Path):
    (source / "t10k-labels-idx1-ubyte.gz").unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_gzip, "train-images-idx3-ubyte.gz: truncated"),
        (cut_inside_gzip, "t10k-images-idx3-ubyte.gz: truncated"),
        (cut_header, "train-labels-idx1-ubyte.gz: not an IDX file"),
        (swap_labels, "do not match"),
        (remove, "dataset-fashion-mnist"),
    ],
)
def test_damaged_source_is_one_line_and_exit_2(damage, message, tmp_path):
    source = write_source(tmp_path / "source")
    damage(source)
    command = [sys.executable, PROGRAM, "build", tmp_path / "out", "--garment", "bags"]
    done = subprocess.run([*command, "--source", source], capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_split_is_that_of_seed_0_and_trained_on_as_a_split_file(folder):
    dataset = load_dataset(list_labelled(folder), (12, 12))
    told, made = (split(dataset, split_file=folder / "split.csv"), split(dataset, seed=0))
    assert len(told["test"]) > 0
    for name in ("train", "val", "test"):
        assert torch.equal(told[name].rows, made[name].rows)


def test_too_few_photographs_for_three_patients_is_exit_2(tmp_path, capsys):
    source = write_source(tmp_path / "source", bags=119)
    arguments = ["build", f"{tmp_path}/out", "--garment", "bags", "--source", str(source)]
    assert garments.main(arguments) == 2
    assert "has 119 bags, three patients take 120" in capsys.readouterr().err


def middle(image: np.ndarray) -> int:
    """Of the outermost columns that hold anything, from the image's own, in half columns."""
    there = np.flatnonzero(image.any(axis=0))
    return there[0] + there[-1] - (image.shape[1] - 1)


@pytest.mark.parametrize("width", [4, 5, 12])
def test_moved_photographs_lie_left_as_often_as_right(width):
    """Odd widths have the pixel that is left over on the right, as in Fashion-MNIST."""
    images = np.zeros((4000, 12, 12), np.uint8)
    left = (12 - width + 1) // 2
    images[:, 4:8, left : left + width] = 200
    moved = garments.moved(images, shift=2)
    if width < 8:  # none of it is lost
        assert (moved.sum(axis=(1, 2)) == images.sum(axis=(1, 2))).all()
        counts = Counter(map(middle, moved))
        places = [-4, -2, 0, 2, 4] if width % 2 == 0 else [-5, -3, -1, 1, 3, 5]
        assert sorted(counts) == places
        assert min(counts.values()) > 0.8 * 4000 / len(places)
    rows = Counter(int(np.flatnonzero(image.any(axis=1))[0]) for image in moved)
    assert sorted(rows) == [2, 3, 4, 5, 6] and min(rows.values()) > 650


def test_a_shifted_folder_still_mirrors_what_it_shows(folder, tmp_path):
    source = folder.parent / "source"
    flags = ["build", f"{tmp_path}/bags", "--garment", "bags", "--source", str(source)]
    assert garments.main([*flags, "--shift", "2"]) == 0
    names = sorted(path.name for path in (tmp_path / "bags").iterdir())
    assert names == sorted(path.name for path in folder.iterdir())
    changed = 0
    for name in (name for name in names if "RIGHT" in name):
        right, left, usual = (
            np.asarray(Image.open(path))
            for path in (
                tmp_path / "bags" / name,
                tmp_path / "bags" / name.replace("RIGHT", "LEFT"),
                folder / name,
            )
        )
        assert (left == right[:, ::-1]).all()
        changed += (right != usual).any()
    assert changed > 150  # of 200


def test_permuted_pixels_are_the_same_ones_in_one_order(folder, tmp_path):
    source = folder.parent / "source"
    flags = ["build", f"{tmp_path}/bags", "--garment", "bags", "--source", str(source)]
    assert garments.main([*flags, "--permute"]) == 0
    before, after = (
        np.stack(
            [np.asarray(Image.open(path))[..., 0].ravel() for path in sorted(of.glob("*.png"))]
        )
        for of in (folder, tmp_path / "bags")
    )
    assert (np.sort(before, axis=1) == np.sort(after, axis=1)).all() and (before != after).any()
    # In all images alike: each place holds what another one held, in all 400 of them.
    columns = {column.tobytes() for column in before.T}
    assert all(column.tobytes() in columns for column in after.T)


# ---- ten classes ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    parent = tmp_path_factory.mktemp("classes")
    write_source(parent / "source")
    arguments = ["classes", f"{parent}/fashion", "--source", f"{parent}/source"]
    assert garments.main(arguments) == 0
    return parent / "fashion" / "manifest.csv"


def test_classes_are_written_in_file_order_with_a_manifest_of_tens(manifest):
    images, labels, tests = garments.load_photographs(manifest.parent.parent / "source")
    assert tests == 48
    with manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "label", "patient", "scan"]
    assert Counter(row["label"] for row in rows) == {"Bag": 210, "T-shirt": 30}
    patients = Counter(row["patient"] for row in rows)
    assert max(patients.values()) == 10 and sum(n < 10 for n in patients.values()) <= 4
    assert len({row["scan"] for row in rows}) == len({row["path"] for row in rows}) == 240
    for row, image, number in zip(rows, images, labels, strict=True):
        assert row["label"] == garments.CLASSES[number] and row["patient"].startswith(row["label"])
        with Image.open(manifest.parent / row["path"]) as written:
            assert (np.asarray(written) == image).all()
    names = {path.name for path in manifest.parent.iterdir()}
    assert names == {"manifest.csv", "split.csv", *garments.CLASSES}


def test_the_split_tests_the_packages_own_test_photographs(manifest, tmp_path):
    dataset = load_dataset(list_labelled(manifest), (12, 12), tmp_path / "cache")
    subsets = split(dataset, split_file=manifest.parent / "split.csv")
    images = garments.load_photographs(manifest.parent.parent / "source").images
    test = subsets["test"]
    found = {test.batch(torch.tensor([i])).numpy().tobytes() for i in range(len(test))}
    assert found == {image.tobytes() for image in images[-48:]}
    patients = [{s.patient for s in subset.samples} for subset in subsets.values()]
    assert sum(map(len, patients)) == len(set.union(*patients))
    assert len(subsets["val"]) == 10  # one patient of the 19 of train


def test_manifest_of_classes_is_split_by_its_tens(manifest, tmp_path):
    listing = list_labelled(manifest)
    assert listing.classes == ["Bag", "T-shirt"]
    everything = load_dataset(listing, (12, 12), tmp_path / "cache")
    subsets = split(everything, val_fraction=0.3, test_fraction=0.3)
    patients = [{s.patient for s in subset.samples} for subset in subsets.values()]
    assert sum(map(len, patients)) == len(set.union(*patients))
    assert all(len(set(subset.labels.tolist())) == 2 for subset in subsets.values())


def test_classes_are_limited_and_never_written_over(manifest, tmp_path, capsys):
    source = ["--source", f"{manifest.parent.parent}/source"]
    arguments = ["classes", f"{tmp_path}/few", "--limit", "25", *source]
    assert garments.main(arguments) == 0
    assert "few/manifest.csv: 50 photographs: " in capsys.readouterr().out
    few = (tmp_path / "few" / "manifest.csv").read_text().splitlines()
    assert few[:26] == manifest.read_text().splitlines()[:26]
    assert len(list((tmp_path / "few").rglob("*.png"))) == 50
    assert garments.main(arguments) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["few"]


def test_the_few_photographs_of_a_quick_run_have_all_classes_in_all_subsets(tmp_path):
    source = write_source(tmp_path / "source", labels=[*range(10)] * 190)
    few = EXPERIMENTS["classes"].data.quick
    assert garments.main(["classes", f"{tmp_path}/few", *few, "--source", str(source)]) == 0
    with (tmp_path / "few" / "split.csv").open(newline="") as file:
        found = {(row["subset"], row["scan"].split("/")[0]) for row in csv.DictReader(file)}
    assert len(found) == 3 * 10


def test_damaged_source_of_classes_leaves_nothing(tmp_path, capsys):
    source = write_source(tmp_path / "source")
    cut_gzip(source)
    assert garments.main(["classes", f"{tmp_path}/new", "--source", str(source)]) == 2
    assert "train-images-idx3-ubyte.gz: truncated" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_photographs_that_are_there_twice_are_in_one_subset_only(tmp_path):
    source = write_source(tmp_path / "source")
    path = source / "train-images-idx3-ubyte.gz"
    images, labels, tests = garments.load_photographs(source)
    images = images.copy()
    own = np.flatnonzero(labels[:-tests] == BAG)
    images[own[3]] = images[-1]  # trained on and tested
    images[own[5]] = images[own[119]]  # trained on and validated
    path.write_bytes(gzip.compress(idx_bytes(images[:-tests])))
    assert garments.main(["classes", f"{tmp_path}/new", "--source", str(source)]) == 0
    with (tmp_path / "new" / "split.csv").open(newline="") as file:
        subset_of = {row["scan"]: row["subset"] for row in csv.DictReader(file)}
    assert len(subset_of) == 238 and subset_of["Bag/00119"] == "val"
    assert not {"Bag/00003", "Bag/00005"} & subset_of.keys()
    assert not (tmp_path / "new" / "Bag" / "00003.png").exists()


@pytest.mark.parametrize("shift", ["-1", "14", "x"])
def test_a_shift_out_of_the_photograph_is_one_line(shift, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        garments.main(["build", str(tmp_path / "d"), "--garment", "bags", "--shift", shift])
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"--shift: expected a whole number from 0 to 13, got {shift}" in said
    assert not (tmp_path / "d").exists()
