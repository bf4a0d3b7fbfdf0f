"""benchmarks/garments.py on tiny IDX files that are written here."""

import csv
import gzip
import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image

import train
from benchmarks import garments
from dataset import list_labelled, load_dataset, split
from scans import split_tables
from scans.slices import by_scan

PROGRAM = Path(garments.__file__)
SHIRT, BAG = 0, 8


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def write_source(folder: Path, gzipped: bool = True, bags: int = 210, size: int = 12) -> Path:
    """Noise that is brighter on the right: bags and shirts, four in five in the train files."""
    rng = np.random.default_rng(0)
    labels = np.array([BAG] * bags + [SHIRT] * 30)
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


def write_split(directory: Path, split_csv: Path, subsets: dict[str, str]) -> Path:
    """What a run writes: a row a scan; `subsets` gives each patient's."""
    scans = by_scan(list_labelled(directory).slices)
    split_tables.write_split(
        split_csv, scans, {scan: subsets[slices[0].patient] for scan, slices in scans.items()}
    )
    return split_csv


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    parent = tmp_path_factory.mktemp("garments")
    garments.build(parent / "bags", "bags", write_source(parent / "source"))
    return parent / "bags"


@pytest.fixture(scope="module")
def split_csv(folder) -> Path:
    names = ["train", "train", "train", "val", "test"]
    subsets = {f"OAI{9000001 + number}": name for number, name in enumerate(names)}
    return write_split(folder, folder.parent / "split.csv", subsets)


def test_folder_has_the_names_and_counts_of_akoa(folder):
    names = sorted(path.name for path in folder.iterdir())
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
    images, labels = garments.load_photographs(folder.parent / "source")
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


def test_too_few_photographs_for_a_scan_is_exit_2(tmp_path, capsys):
    source = write_source(tmp_path / "source", bags=39)
    arguments = ["build", f"{tmp_path}/out", "--garment", "bags", "--source", str(source)]
    assert garments.main(arguments) == 2
    assert "has 39 bags, a scan takes 40" in capsys.readouterr().err


def test_load_split_gives_each_subset_its_scans_and_sides(folder, split_csv):
    subsets = garments.load_split(folder, split_csv)
    assert [len(subsets[name].labels) for name in ("train", "val", "test")] == [240, 80, 80]
    assert {s.patient for s in subsets["val"].samples} == {"OAI9000004"}
    for subset in subsets.values():
        pixels = garments.pixels_of(subset).numpy()
        halves = pixels.reshape(-1, 12, 2, 6).mean((1, 3))  # (slices, left and right)
        assert subset.labels.tolist() == ["_RIGHT" in s.scan for s in subset.samples]
        assert halves.argmax(axis=1).tolist() == subset.labels.tolist()
        assert pixels.dtype == np.float32 and pixels.min() >= 0 and 0.5 < pixels.max() <= 1


@pytest.fixture
def one_thread():
    """Steps this small lose time to threads that wait for one another: 17 s -> 9 s when busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("fit", [garments.fit_logistic_regression, garments.fit_cnn])
def test_reference_learns(fit, folder, split_csv):
    subsets = garments.load_split(folder, split_csv)
    logits, _ = fit(subsets)
    scored = garments.score_test(subsets["test"], logits)
    assert scored["slices"]["accuracy"] > 0.8 and scored["scans"]["accuracy"] == 1


def test_reference_trains_on_the_train_rows_only(folder, split_csv):
    """With the train rows' sides swapped, everything that is tested comes out wrong."""
    subsets = garments.load_split(folder, split_csv)
    subsets["train"] = replace(subsets["train"], classes=["right", "left"])
    logits, _ = garments.fit_logistic_regression(subsets)
    assert garments.score_test(subsets["test"], logits)["slices"]["accuracy"] < 0.5


@pytest.mark.usefixtures("one_thread")
def test_compare_puts_a_run_beside_its_references(folder, split_csv, tmp_path, capsys):
    run, results = tmp_path / "run", tmp_path / "results.json"
    arguments = [
        "--data-dir",
        str(folder),
        "--split-file",
        str(split_csv),
        "--output-dir",
        str(run),
    ]
    assert train.main([*arguments, *TINY, "--epochs", "1"]) == 0
    capsys.readouterr()
    assert garments.main(["compare", str(run), "--output", str(results)]) == 0
    printed = capsys.readouterr().out
    rows = json.loads(results.read_text())
    assert [row["model"] for row in rows] == ["Perceiver", "logistic regression", "small CNN"]
    assert rows[0]["slices"] == json.loads((run / "test_metrics.json").read_text())["slices"]
    assert all(row["slices"]["count"] == 80 for row in rows)
    assert printed.strip() == garments.table(rows)


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_folder_without_a_run_is_exit_2(name, tmp_path, capsys):
    assert garments.main(["compare", str(tmp_path / name)]) == 2
    assert "not a finished run" in capsys.readouterr().err


def test_the_documentation_shows_what_was_measured():
    rows = json.loads(garments.RESULTS.read_text())
    assert garments.table(rows) in (garments.ROOT / "docs" / "results.md").read_text()


# ---- ten classes ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    parent = tmp_path_factory.mktemp("classes")
    write_source(parent / "source")
    arguments = ["classes", f"{parent}/fashion", "--source", f"{parent}/source"]
    assert garments.main(arguments) == 0
    return parent / "fashion" / "manifest.csv"


def test_classes_are_written_in_file_order_with_a_manifest_of_tens(manifest):
    images, labels = garments.load_photographs(manifest.parent.parent / "source")
    with manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "label", "patient", "scan"]
    assert Counter(row["label"] for row in rows) == {"Bag": 210, "T-shirt": 30}
    assert set(Counter(row["patient"] for row in rows).values()) == {10}
    assert len({row["patient"] for row in rows}) == 24
    assert len({row["scan"] for row in rows}) == len({row["path"] for row in rows}) == 240
    for row, image, number in zip(rows, images, labels, strict=True):
        assert row["label"] == garments.CLASSES[number] and row["patient"].startswith(row["label"])
        with Image.open(manifest.parent / row["path"]) as written:
            assert (np.asarray(written) == image).all()
    names = {path.name for path in manifest.parent.iterdir()}
    assert names == {"manifest.csv", *garments.CLASSES}


def test_manifest_of_classes_is_split_by_its_tens(manifest, tmp_path):
    listing = list_labelled(manifest)
    assert listing.classes == ["Bag", "T-shirt"]
    everything = load_dataset(listing, (12, 12), tmp_path / "cache")
    subsets = split(everything, val_fraction=0.3, test_fraction=0.3)
    patients = [{s.patient for s in subset.samples} for subset in subsets.values()]
    assert sum(map(len, patients)) == 24 == len(set.union(*patients))
    assert all(len(set(subset.labels.tolist())) == 2 for subset in subsets.values())


def test_classes_are_limited_and_never_written_over(manifest, tmp_path, capsys):
    source = ["--source", f"{manifest.parent.parent}/source"]
    arguments = ["classes", f"{tmp_path}/few", "--limit", "25", *source]
    assert garments.main(arguments) == 0
    assert "few/manifest.csv: 25 photographs: " in capsys.readouterr().out
    few = (tmp_path / "few" / "manifest.csv").read_text().splitlines()
    assert few == manifest.read_text().splitlines()[:26]
    assert len(list((tmp_path / "few").rglob("*.png"))) == 25
    assert garments.main(arguments) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["few"]


def test_damaged_source_of_classes_leaves_nothing(tmp_path, capsys):
    source = write_source(tmp_path / "source")
    cut_gzip(source)
    assert garments.main(["classes", f"{tmp_path}/new", "--source", str(source)]) == 2
    assert "train-images-idx3-ubyte.gz: truncated" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.usefixtures("one_thread")
def test_compare_puts_a_run_on_classes_beside_its_references(manifest, tmp_path, capsys):
    run, results = tmp_path / "run", tmp_path / "results.json"
    arguments = ["--data-dir", str(manifest), "--output-dir", str(run), *TINY, "--epochs", "1"]
    assert train.main(arguments) == 0
    assert garments.main(["compare", str(run), "--output", str(results)]) == 0
    rows = json.loads(results.read_text())
    assert [row["garment"] for row in rows] == ["fashion"] * 3
    assert len({row["slices"]["count"] for row in rows}) == 1
