"""dataset.py: class Dataset and its subsets; what `python dataset.py DIR` says and draws."""

import os
import resource
import shutil
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, name_of, write_knees
from PIL import Image

import dataset
import train
from common.tables import read_csv
from dataset import Dataset, list_labelled, load_dataset, split
from scans import split_tables, splits
from scans.cache import CHUNK
from scans.overview import Shown, draw_contact_sheet
from scans.slices import DataError, Slice, by_scan

CLASSES = ["none", "mild", "severe"]
ROOT = Path(dataset.__file__).parent


# ---- class Dataset -------------------------------------------------------------------------------


def made_up_dataset(scans: int = 6, depth: int = 4) -> Dataset:
    """Pixels of random grey levels; the scans are of each class in turn."""
    slices = [
        Slice(f"{scan}_{i}.png", None, CLASSES[scan % 3], f"P{scan}", f"S{scan}", i)
        for scan in range(scans)
        for i in range(depth)
    ]
    pixels = torch.randint(0, 256, (len(slices), 1, 5, 7), dtype=torch.uint8)
    return Dataset(slices, pixels, torch.arange(len(slices)), CLASSES)


def test_samples_that_are_slices_have_their_own_pixels_and_labels():
    whole = made_up_dataset()
    subset = whole.subset(torch.tensor([9, 2, 20]))
    assert len(whole) == 24 and len(subset) == 3
    assert [s.name for s in subset.samples] == ["2_1.png", "0_2.png", "5_0.png"]
    assert subset.labels.tolist() == [2, 0, 2] and subset.labels.dtype == torch.long
    assert torch.equal(subset.batch(torch.tensor([2, 0])), whole.pixels[[20, 9]])
    assert subset.pixels is whole.pixels and subset.slices is whole.slices


def test_samples_that_are_scans_have_the_pixels_of_their_slices_in_order():
    whole = made_up_dataset()
    scans = whole.subset(whole.rows.reshape(6, 4)[[4, 1, 0]].flip(1))  # the last slice first
    assert len(scans) == 3 and [s.scan for s in scans.samples] == ["S4", "S1", "S0"]
    assert [s.number for s in scans.samples] == [3, 3, 3]  # the first of the row
    assert scans.labels.tolist() == [1, 1, 0]
    volumes = scans.batch(torch.tensor([2, 0]))
    assert volumes.shape == (2, 1, 4, 5, 7) and volumes.dtype == torch.uint8
    for volume, scan in zip(volumes, (0, 4), strict=True):
        for place in range(4):
            assert torch.equal(volume[0, place], whole.pixels[4 * scan + 3 - place, 0])
    chosen = torch.cat([whole.pixels[16:20], whole.pixels[0:8]]).double() / 255
    mean, std = scans.statistics()
    assert mean == pytest.approx(chosen.mean().item(), abs=1e-12)
    assert std == pytest.approx(chosen.std(correction=0).item(), abs=1e-12)


def test_subsets_of_scans_keep_whole_scans():
    whole = made_up_dataset(scans=12)
    scans = whole.subset(whole.rows.reshape(12, 4))
    subsets = split(scans, val_fraction=0.25, test_fraction=0.25)
    shapes = {name: tuple(subset.rows.shape) for name, subset in subsets.items()}
    assert shapes == {"train": (6, 4), "val": (3, 4), "test": (3, 4)}
    assert all(len(set(subset.labels.tolist())) == 3 for subset in subsets.values())
    rows = torch.cat([subset.rows for subset in subsets.values()])
    assert sorted(rows.flatten().tolist()) == list(range(48)) and (rows[:, 0] % 4 == 0).all()
    assert (rows.diff(dim=1) == 1).all()


def test_statistics_are_those_of_the_pixels():
    """Of more than are counted at a time."""
    pixels = torch.randint(0, 256, (CHUNK + 7, 1, 9, 11), dtype=torch.uint8)
    mean, std = Dataset([], pixels, torch.arange(CHUNK + 7), []).statistics()
    pixels = pixels.double() / 255
    assert mean == pytest.approx(pixels.mean().item(), abs=1e-12)
    assert std == pytest.approx(pixels.std(correction=0).item(), abs=1e-12)


def test_label_that_is_none_of_the_classes_has_no_number():
    one = Dataset([Slice("a.png", None, "", "p", "s", 0)], torch.zeros(1), torch.arange(1), CLASSES)
    with pytest.raises(ValueError):
        _ = one.labels


# ---- as a notebook has it ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def graded(tmp_path_factory) -> Path:
    """none/P07/0.png: 40 patients, each of one grade, 4 slices of a grey of its own."""
    folder = tmp_path_factory.mktemp("graded") / "grades"
    for patient in range(40):
        grade = CLASSES[(0, 0, 0, 0, 0, 1, 1, 1, 2, 2)[patient % 10]]
        inner = folder / grade / f"P{patient:02}"
        inner.mkdir(parents=True)
        for i in range(4):
            Image.new("L", (20, 18), 5 * patient + i).save(inner / f"{i}.png")
    return folder


def test_folder_becomes_a_dataset_of_three_classes_and_subsets_of_whole_patients(graded, tmp_path):
    listing = list_labelled(graded, CLASSES)
    everything = load_dataset(listing, (16, 16), tmp_path / "cache")
    assert everything.classes == CLASSES and len(everything) == 160
    assert everything.pixels.shape == (160, 1, 16, 16)
    subsets = split(everything, val_fraction=0.25, test_fraction=0.125)
    assert list(subsets) == list(splits.SUBSETS)
    patients = {name: {s.patient for s in subset.samples} for name, subset in subsets.items()}
    assert sum(map(len, patients.values())) == len(set.union(*patients.values())) == 40
    for name, fraction in (("train", 0.625), ("val", 0.25), ("test", 0.125)):
        counts = torch.bincount(subsets[name].labels, minlength=3)
        expected = fraction * torch.tensor([80.0, 48.0, 32.0])
        assert (counts - expected).abs().max() <= 4  # one patient
    subset_of = splits.split_by_patient(by_scan(listing.slices), 0.25, 0.125)
    assert dataset.subset_of_scans(subsets) == subset_of
    for subset in subsets.values():
        assert subset.pixels is everything.pixels
        for i, s in enumerate(subset.samples):
            grey = 5 * int(s.patient[1:]) + s.number
            assert (subset.batch(torch.tensor([i])) == grey).all()
            assert CLASSES[subset.labels[i]] == s.label == Path(s.source).parts[-3]
    tested = [split(everything, seed=seed)["test"].rows.tolist() for seed in (0, 0, 1)]
    assert tested[0] == tested[1] != tested[2]


def test_sides_are_the_classes_where_nothing_else_is_said(knees, tmp_path):
    everything = load_dataset(list_labelled(knees), (16, 16), tmp_path / "cache")
    subsets = split(everything)
    assert everything.classes == ["left", "right"] and everything.note == ""
    assert sum(map(len, subsets.values())) == len(everything) == 128
    again = load_dataset(list_labelled(knees), (16, 16), tmp_path / "cache")
    assert torch.equal(again.pixels, everything.pixels) and again.crc32 == everything.crc32


def test_split_by_scan_of_other_labels_cuts_each_class_by_itself(graded, tmp_path):
    everything = load_dataset(list_labelled(graded, CLASSES), (16, 16), tmp_path / "cache")
    subsets = split(everything, by="scan")
    counts = {n: torch.bincount(of.labels, minlength=3).tolist() for n, of in subsets.items()}
    assert counts == {"train": [64, 32, 24], "val": [8, 8, 4], "test": [8, 8, 4]}


def test_split_file_says_it_with_the_column_label_or_side(graded, knees, tmp_path):
    everything = load_dataset(list_labelled(graded, CLASSES), (16, 16), tmp_path / "cache")
    subsets = split(everything, seed=3)
    path = tmp_path / "split.csv"
    subset_of = dataset.subset_of_scans(subsets)
    split_tables.write_split(path, by_scan(everything.slices), subset_of)
    assert path.read_text().startswith("subset,label,patient,scan,slices")
    for name, subset in split(everything, split_file=path).items():
        assert torch.equal(subset.rows, subsets[name].rows)
    everything = load_dataset(list_labelled(knees), (16, 16), tmp_path / "cache")
    subsets = split(everything)
    split_tables.write_split(path, by_scan(everything.slices), dataset.subset_of_scans(subsets))
    path.write_text(path.read_text().replace("subset,label,", "subset,side,", 1))
    for name, subset in split(everything, split_file=path).items():
        assert torch.equal(subset.rows, subsets[name].rows)
    path.write_text(path.read_text().replace("train,", "test,", 1))
    with pytest.raises(DataError, match="1 patient in more than one subset"):
        split(everything, split_file=path)


def test_unreadable_files_are_all_named(graded, tmp_path):
    shutil.copytree(graded, tmp_path / "grades")
    broken = [tmp_path / "grades" / name for name in ("none/P00/1.png", "severe/P08/3.png")]
    for path in broken:
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match="2 files can't be read") as caught:
        load_dataset(list_labelled(tmp_path / "grades", CLASSES), (16, 16), tmp_path / "cache")
    assert all(f"  {path}: " in str(caught.value) for path in broken)


def test_a_start_checksums_the_pixels_once(knees, tmp_path, monkeypatch):
    """They may be gigabytes that have to be read from a disk."""
    summed, crc32 = [], zlib.crc32

    def counted(content, *start):
        if isinstance(content, np.ndarray):  # Pillow checks the chunks of PNGs
            summed.append(content.nbytes)
        return crc32(content, *start)

    monkeypatch.setattr(zlib, "crc32", counted)
    arguments = ["--data-dir", str(knees), "--cache-dir", str(tmp_path / "cache"), *TINY]
    args = train.parse_args(arguments)
    for _ in ("first start", "second start"):
        subsets = train.read_subsets(args, train.read_data(args, args.classes))
        assert sum(summed) == subsets["train"].pixels.nbytes == 128 * 16 * 16
        summed.clear()


# ---- python dataset.py DIR -----------------------------------------------------------------------


def test_dataset_py_says_what_is_there_and_draws_it(phantoms, tmp_path, monkeypatch, capsys):
    shutil.copytree(phantoms, tmp_path / "knees")
    Image.new("L", (100, 90), 60).save(tmp_path / "knees" / name_of(1, "LEFT", 8))
    Image.new("L", (100, 90), 0).save(tmp_path / "knees" / name_of(1, "LEFT", 9))
    shutil.copy(phantoms / name_of(2, "LEFT", 3), tmp_path / "knees" / name_of(4, "LEFT", 8))
    monkeypatch.chdir(tmp_path)
    assert dataset.main(["knees", "--contact-sheet", "sheet.png"]) == 0
    output, error = capsys.readouterr()
    assert error == ""
    for line in (
        "knees: 67 slices, 8 scans, 4 patients",
        "  left       35 slices,    4 scans,    4 patients",
        "  right      32 slices,    4 scans,    4 patients",
        "  both knees of 4 patients; 2.0 scans a patient",
        "  visits: BaseLine 8",
        "       65  228 x 260 RGB",
        "        2  90 x 100 L",
        "  black slices: 1",
        "test",
    ):
        assert f"\n{line}" in f"\n{output}", line
    assert "1 image (1 exactly) in two scans of patients OAI0000002 and" in output
    assert "grey levels 0 to 255: mean" in output and "2 scans not of 8 slices" in output
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("L"))
    assert pixels.shape[1] > 1000 and pixels.std() > 40
    assert (pixels[[0, -1]] == 255).all() and (pixels[:, [0, -1]] == 255).all()  # nothing is cut


def test_contact_sheet_shows_the_pictures_in_order_and_unmirrored(tmp_path):
    """Each picture has a grey of its own in its lower half, and is bright at the right."""
    rows = []
    for row in range(3):
        pictures = np.zeros((8, 76, 86), np.uint8)
        pictures[:, 38:] = (10 + 28 * np.arange(8) + row)[:, None, None]
        pictures[:, 38:, 60:] = 255
        rows.append(Shown(f"left  scan $x^{{$ {row}", list(range(8)), list(pictures)))
    rows[1] = Shown("right  膝\udcff\n" + 200 * "x", [0, 5], rows[1].pictures[:2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as of letters that the font lacks
        draw_contact_sheet(rows, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        sheet = np.asarray(image.convert("L")).astype(int)
    cell, gap, head, tall = 120 * np.array([1.4, 0.05, 0.3, 1.4 * 76 / 86])
    for row, (_, numbers, pictures) in enumerate(rows):
        for column in range(len(numbers)):
            y = round(row * (head + tall) + head + 0.75 * tall)
            x = gap + column * (cell + gap)
            assert abs(sheet[y, round(x + 0.3 * cell)] - pictures[column][50, 0]) <= 1
            assert sheet[y, round(x + 0.85 * cell)] == 255
    y = round(head + tall + 0.5 * head)
    assert sheet[y - 8 : y + 8].min() < 100  # the title is there


def test_unreadable_files_are_listed_and_do_not_darken_the_rest(phantoms, tmp_path, capsys):
    shutil.copytree(phantoms, tmp_path / "knees")
    broken = [tmp_path / "knees" / name_of(1, "LEFT", i) for i in (2, 5)]
    for path in broken:
        path.write_bytes(path.read_bytes()[:3000])
    sheet = tmp_path / "sheet.png"
    assert dataset.main([str(tmp_path / "knees"), "--contact-sheet", str(sheet)]) == 2
    output, error = capsys.readouterr()
    assert error.count("\n") == 2 and all(f"dataset.py: {path}: " in error for path in broken)
    assert "black slices" not in output and "16-bit" not in output
    with Image.open(sheet) as image:
        assert (np.asarray(image.convert("L")) > 250).mean() < 0.6 and "left" in output


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere"], "nowhere: no such file or folder"),
        (["KNEES", "--contact-sheet", "no/such/folder.png"], "no such folder: no/such"),
        (["KNEES", "--contact-sheet", "sheet"], "expected a name that ends in .png"),
        (["KNEES", "--name-pattern", "("], "not a regular expression"),
        (["KNEES", "--val-fraction", "2"], "below 1, got 2"),
        (["KNEES", "--split-file", "none.csv"], "none.csv"),
        (["KNEES", "--image-size", "0", "3"], "of at least 1, got 0"),
        ([], "the following arguments are required: DIR"),
    ],
)
def test_unusable_arguments_exit_2_and_are_named(phantoms, capsys, arguments, message):
    arguments = [str(phantoms) if word == "KNEES" else word for word in arguments]
    try:
        code = dataset.main(arguments)
    except SystemExit as stop:  # argparse
        code = stop.code
    assert code == 2 and message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags, said",
    [
        (["--contact-sheet", "sheet.png"], ".: File too large"),
        (["--write-split", "out/split.csv"], "out: File too large"),
        (["--write-problems", "problems.csv"], ".: File too large"),
        (["--write-slices", "out/slices"], "out: File too large"),
        (["--contact-sheet", "folder.png"], "folder.png: a folder, expected a file"),
        (["--write-split", "pipe"], "pipe: a pipe, expected a file"),
        (["--write-problems", "no/problems.csv"], "--write-problems no/problems.csv: no such fol"),
        (["--write-slices", "file/slices"], "file: File exists"),
    ],
)
def test_outputs_are_tried_before_the_work(tmp_path, flags, said):
    """On a disk without room, and where something is in the way."""
    for folder in ("out", "folder.png"):
        (tmp_path / folder).mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    limit = resource.RLIMIT_FSIZE, (1000, 1000)
    done = subprocess.run(
        [sys.executable, "-B", ROOT / "dataset.py", "not-even-there", *flags],
        preexec_fn=(lambda: resource.setrlimit(*limit)) if "too large" in said else None,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == (1 if "too large" in said else 2) and not done.stdout
    line = done.stderr.replace(f"{tmp_path}/", "")
    assert line.startswith(f"dataset.py: {said}") and line.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.png", "out", "pipe"]


@pytest.mark.slow
def test_a_broken_matplotlib_is_found_before_the_work(tmp_path):
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "matplotlib.py").write_text("raise ImportError('of another NumPy')")
    done = subprocess.run(
        [sys.executable, ROOT / "dataset.py", "not-even-there"],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "packages")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.splitlines() == [
        "dataset.py: matplotlib can't be imported (of another NumPy): pip install -r "
        "requirements.txt"
    ]


@pytest.mark.parametrize("more", [[], ["--write-problems", "problems.csv"]])
def test_an_image_size_without_room_is_one_line(phantoms, tmp_path, monkeypatch, capsys, more):
    monkeypatch.chdir(tmp_path)
    assert dataset.main([str(phantoms), "--image-size", "10000000", "10000000", *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "dataset.py: --image-size 10000000 10000000: the pixels of 64 slices take 6,400,000.0 GB, "
        "and there are "
    )
    assert not Path("problems.csv").exists()


def test_all_files_unreadable_is_unusable_data(tmp_path, capsys):
    for side in ("left", "right"):
        for patient in range(3):
            path = tmp_path / side / f"p{patient}_1.png"
            path.parent.mkdir(exist_ok=True)
            path.write_text("no picture")
    assert dataset.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert (
        error.count("not an image") == 5
        and "and 1 more" in error
        and "none of the files can be read" in error
    )


def test_data_of_one_class_is_described_before_it_can_not_be_split(tmp_path, capsys):
    for i in range(3):
        (tmp_path / "knees" / "left").mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 9), 50 * i).save(tmp_path / "knees" / "left" / f"p{i}_1.png")
    sheet = tmp_path / "sheet.png"
    assert dataset.main([str(tmp_path / "knees"), "--contact-sheet", str(sheet)]) == 2
    output, error = capsys.readouterr()
    assert "3 slices, 3 scans, 3 patients" in output and sheet.exists()
    assert "no slice has the label right; there are left (3 slices)" in error


@pytest.mark.parametrize("more", [[], ["--write-slices", "out"]])
def test_many_bad_files_are_five_a_count_and_how_to_get_a_table_of_all(
    tmp_path, monkeypatch, capsys, more
):
    monkeypatch.chdir(tmp_path)
    write_knees(tmp_path / "knees", patients=3, slices=4)
    for number, path in enumerate(sorted((tmp_path / "knees").iterdir())):
        if number % 4:
            path.write_bytes(b"\x1b[1mno picture")
    assert dataset.main(["knees", *more]) == (1 if more else 2)
    lines = capsys.readouterr().err.splitlines()
    table = "  a table of all: python dataset.py DIR --write-problems CSV"
    assert lines[5:] == ["  and 13 more", table]
    assert dataset.main(["knees", "--write-problems", "problems.csv"]) == 1
    rows = [row.cells for row in read_csv("problems.csv", "table").rows]
    assert len(rows) == 18 and {*rows[0]} == {"path", "error"}
    assert {row["error"] for row in rows} == {"not an image, or a damaged one"}
    for row in rows:
        Path(row["path"]).unlink()
    assert dataset.main(["knees", "--write-problems", "problems.csv"]) == 0
    assert (tmp_path / "problems.csv").read_text().splitlines() == ["path,error"]
