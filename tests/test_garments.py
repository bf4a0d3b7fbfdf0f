"""benchmarks/garments.py on tiny IDX files that are written here."""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image

import dataset
import splits
import train
from benchmarks import garments

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
    scans = dataset.group_scans(dataset.find_slices(directory)[0])
    splits.write_split(
        split_csv, scans, {scan: subsets[slices[0].patient] for scan, slices in scans.items()}
    )
    return split_csv


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    parent = tmp_path_factory.mktemp("garments")
    garments.build(parent / "bags", "bags", write_source(parent / "source"))
    return parent / "bags"


@pytest.fixture(scope="module")
def split(folder) -> Path:
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
    photographs = garments.load_photographs(folder.parent / "source", "bags")
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
    assert "not an empty folder" in capsys.readouterr().err
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


def test_load_split_gives_each_subset_its_scans_and_sides(folder, split):
    subsets = garments.load_split(folder, split)
    assert [len(subsets[name]["labels"]) for name in ("train", "val", "test")] == [240, 80, 80]
    assert set(subsets["val"]["patients"]) == {"OAI9000004"}
    for subset in subsets.values():
        halves = subset["pixels"].reshape(-1, 12, 2, 6).mean((1, 3))  # (slices, left and right)
        assert subset["labels"].tolist() == ["_RIGHT" in scan for scan in subset["scans"]]
        assert halves.argmax(axis=1).tolist() == subset["labels"].tolist()
        assert subset["pixels"].min() >= 0 and 0.5 < subset["pixels"].max() <= 1


@pytest.fixture
def one_thread():
    """Steps this small lose time to threads that wait for one another: 17 s -> 9 s when busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("fit", [garments.fit_logistic_regression, garments.fit_cnn])
def test_reference_learns(fit, folder, split):
    subsets = garments.load_split(folder, split)
    p_right, _ = fit(subsets)
    scored = garments.score_test(subsets["test"], p_right)
    assert scored["slices"]["accuracy"] > 0.8 and scored["scans"]["accuracy"] == 1


def test_reference_trains_on_the_train_rows_only(folder, split):
    """With the train rows' sides swapped, everything that is tested comes out wrong."""
    subsets = garments.load_split(folder, split)
    subsets["train"]["labels"] = 1 - subsets["train"]["labels"]
    p_right, _ = garments.fit_logistic_regression(subsets)
    assert garments.score_test(subsets["test"], p_right)["slices"]["accuracy"] < 0.5


@pytest.mark.usefixtures("one_thread")
def test_compare_puts_a_run_beside_its_references(folder, split, tmp_path, capsys):
    run, results = tmp_path / "run", tmp_path / "results.json"
    arguments = ["--data-dir", str(folder), "--split-file", str(split), "--output-dir", str(run)]
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


def test_the_readme_shows_what_was_measured():
    rows = json.loads(garments.RESULTS.read_text())
    assert garments.table(rows) in (garments.ROOT / "README.md").read_text()
