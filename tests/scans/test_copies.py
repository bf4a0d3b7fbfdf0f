"""scans/copies.py: planted leaks are caught, other knees are none."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as functional
from conftest import TINY, name_of
from PIL import Image

import dataset
import train
from scans import copies, split_tables, splits
from scans.cache import decode_slices
from scans.labelled import list_labelled
from scans.slices import DataError, Slice, by_scan

SIZE = ["--image-size", "76", "86"]


def scaled(factor: float):
    return lambda image: image.resize((round(260 * factor), round(228 * factor)), Image.LANCZOS)


COPIES = {
    "exact": lambda image: image,
    "half": scaled(1 / 2),
    "third": scaled(1 / 3),
    "double": scaled(2),
    "jpeg": lambda image: image,
}


@pytest.fixture(params=COPIES)
def planted(request, phantoms, tmp_path) -> Path:
    """The phantoms with slice 3 of patient 2's right knee as slice 3 of patient 4's."""
    folder = tmp_path / "knees"
    shutil.copytree(phantoms, folder)
    with Image.open(folder / name_of(2, "RIGHT", 3)) as image:
        copy = COPIES[request.param](image)
        target = folder / name_of(4, "RIGHT", 3)
        target.unlink()
        if request.param == "jpeg":
            copy.save(target.with_suffix(".jpg"), quality=30)
        else:
            copy.save(target)
    return folder


def subsets_of_patients(folder: Path, subset_of_patient: dict[int, str], path: Path) -> Path:
    scans = by_scan(list_labelled(folder).slices)
    subset_of = {name: subset_of_patient[int(s[0].patient[3:])] for name, s in scans.items()}
    split_tables.write_split(path, scans, subset_of)
    return path


def read(folder: Path) -> tuple[list[Slice], torch.Tensor]:
    slices = list_labelled(folder).slices
    return slices, torch.from_numpy(decode_slices(slices, (76, 86)).pixels)


def dry_run(folder: Path, *more: str) -> int:
    return train.main(["--data-dir", str(folder), *TINY, *SIZE, "--dry-run", *map(str, more)])


def test_knees_of_different_patients_and_visits_are_no_copies(phantoms):
    slices, pixels = read(phantoms)
    assert len(slices) == 64
    assert copies.find_copies(pixels, [s.scan for s in slices]) == []
    # Even if each slice was a scan of its own: those of one knee are not the same picture.
    assert copies.find_copies(pixels, [s.source for s in slices]) == []


def test_copy_under_another_patient_keeps_both_in_one_subset_and_is_named(planted, capsys):
    for seed in range(3):
        args = train.parse_args(["--data-dir", str(planted), *SIZE, "--seed", str(seed)])
        subsets = train.read_subsets(args, train.read_data(args, args.classes))
        (where,) = [
            name
            for name, subset in subsets.items()
            if {"OAI0000002", "OAI0000004"} & {s.patient for s in subset.samples}
        ]
        assert where in splits.SUBSETS
    output = capsys.readouterr().out
    assert "1 image (" in output and "of patients OAI0000002 and OAI0000004" in output
    assert name_of(2, "RIGHT", 3) in output and name_of(4, "RIGHT", 3)[:-4] in output


@pytest.mark.slow
def test_split_file_that_separates_copies_is_refused_with_their_names(planted, tmp_path, capsys):
    split = {1: "train", 2: "train", 3: "val", 4: "test"}
    path = subsets_of_patients(planted, split, tmp_path / "split.csv")
    assert dry_run(planted, "--split-file", path) == 2
    error = capsys.readouterr().err
    assert "1 image in more than one subset" in error
    assert f"{planted / name_of(2, 'RIGHT', 3)} (train) = " in error
    assert f"{planted / name_of(4, 'RIGHT', 3)[:-4]}" in error and "(test)" in error
    assert dataset.main([str(planted), "--split-file", str(path)]) == 2
    assert name_of(2, "RIGHT", 3) in capsys.readouterr().err
    split[2] = "test"
    path = subsets_of_patients(planted, split, tmp_path / "split.csv")
    assert dry_run(planted, "--split-file", path) == 0


def test_split_by_scan_reports_copies_and_goes_on(phantoms, tmp_path, capsys):
    shutil.copytree(phantoms, tmp_path / "knees")
    for i in range(8):
        shutil.copy(phantoms / name_of(2, "LEFT", i), tmp_path / "knees" / name_of(4, "LEFT", i))
    assert dry_run(tmp_path / "knees", "--split", "scan") == 0
    assert "8 images (8 exactly) in two scans of patients OAI0000002" in capsys.readouterr().out


def test_blank_images_are_nobodys_copies(phantoms, tmp_path):
    shutil.copytree(phantoms, tmp_path / "knees")
    for patient, grey in ((1, 0), (2, 0), (3, 0), (1, 200), (2, 200), (3, 201)):
        image = Image.new("L", (260, 228), grey)
        image.paste(grey + 2, (130, 0, 260, 228))  # faint, and the same in all
        image.save(tmp_path / "knees" / name_of(patient, "LEFT", 7 * (grey > 0)))
    slices, pixels = read(tmp_path / "knees")
    assert copies.find_copies(pixels, [s.scan for s in slices]) == []


def test_copies_are_found_across_blocks(monkeypatch):
    monkeypatch.setattr(copies, "BLOCK", 7)
    images = torch.randint(0, 256, (50, 1, 24, 24), dtype=torch.uint8)
    images[[3, 20, 49]] = images[11].clone()
    scans = [f"{i}" for i in range(49)] + ["20"]
    pairs = [(3, 11), (3, 20), (3, 49), (11, 20), (11, 49)]  # 20 and 49 are of one scan
    assert sorted(copies.find_copies(images, scans)) == pairs


def test_patients_that_share_images_in_a_chain_are_one_group():
    slices = [Slice("", None, "left", name, f"scan of {name}", 0) for name in "ABCDEFG"]
    for pairs in ([(0, 1), (3, 4), (1, 2)], [(1, 2), (0, 1), (4, 3)], [(0, 2), (1, 2), (3, 4)]):
        assert copies.patients_sharing_images(slices, pairs) == [{"A", "B", "C"}, {"D", "E"}]
    joined = [(0, 1), (2, 3), (4, 5), (1, 2), (3, 4)]
    assert copies.patients_sharing_images(slices, joined) == [set("ABCDEF")]
    assert copies.patients_sharing_images(slices, [(0, 0)]) == []


# ---- the search --------------------------------------------------------------------------------


def all_pairs(pixels: torch.Tensor, scans: list[str]) -> copies.Pairs:
    """The rule, each image with each other."""
    small = functional.adaptive_avg_pool2d(pixels.float(), 24).flatten(1)
    unit = small - small.mean(dim=1, keepdim=True)
    norm = unit.norm(dim=1, keepdim=True)
    unit *= (norm >= 8 * 24) / norm.clamp(min=1)
    alike = (unit @ unit.T > 0.998).tril(-1).nonzero().tolist()
    rms = [(small[a] - small[b]).square().mean().sqrt() for b, a in alike]
    pairs = [(a, b) for (b, a), r in zip(alike, rms, strict=True) if r <= 2]
    return [(a, b) for a, b in pairs if scans[a] != scans[b]]


@pytest.fixture(scope="module")
def many() -> torch.Tensor:
    """3,000 images: 75 scans of smooth fields, whose last slices are dark, and altered copies."""
    generator = torch.Generator().manual_seed(0)
    fields = torch.randn(75, 1, 12, 5, 5, generator=generator)
    fields = functional.interpolate(fields, (40, 48, 48), mode="trilinear").reshape(-1, 1, 48, 48)
    dark = torch.linspace(1, 0.1, 40).repeat(75)[:, None, None, None]
    images = (128 + 60 * fields) * dark
    order = torch.randperm(3000, generator=generator)
    for first, later in order[:800].view(400, 2).tolist():
        gain, shift, noise = torch.randn(3, generator=generator).tolist()
        grain = 2 * noise * torch.randn(1, 48, 48, generator=generator)
        images[later] = images[first] * (1 + 0.02 * gain) + shift + grain
    return images.clamp(0, 255).byte()


@pytest.mark.parametrize(
    "leaf",
    [pytest.param(1, marks=pytest.mark.slow), 2**12, pytest.param(2**19, marks=pytest.mark.slow)],
)
def test_divided_search_finds_what_comparing_all_with_all_finds(many, leaf, monkeypatch):
    monkeypatch.setattr(copies, "LEAF", leaf)
    monkeypatch.setattr(copies, "BLOCK", 100)
    for slices_per_scan in (1, 40):
        scans = [str(i // slices_per_scan) for i in range(len(many))]
        expected = all_pairs(many, scans)
        assert len(expected) > 100
        assert copies.find_copies(many, scans) == expected


def test_search_compares_a_small_part_of_all(many):
    small = copies.shrink(many)
    every = torch.arange(len(many))
    columns = copies.bounded_columns(small, every)
    parts = list(copies.neighbourhoods(columns, every, every))
    assert torch.equal(torch.cat([rows for rows, _ in parts]).sort().values, every)
    compared = sum(len(rows) * len(near) for rows, near in parts)
    assert compared < 0.2 * len(many) ** 2


def test_images_that_differ_in_a_few_pixels_can_be_searched():
    """With the covariance of these two LAPACK's eigh does not converge."""
    one = torch.linspace(60, 190, 64).reshape(8, 8)
    other = one.clone()
    for row, columns, differences in [
        (0, [3, 4], [12, 4]),
        (1, [3, 4], [4, 1]),
        (5, [1, 2], [11, 3]),
        (6, [1, 2], [3, 1]),
        (7, [1, 2], [28, 9]),
    ]:
        other[row, columns] += torch.tensor(differences)
    pixels = torch.stack([one, other, other]).byte()[:, None]
    for images, pairs in ((pixels[:2], []), (pixels, [(1, 2)])):
        assert copies.find_copies(images, list("abc")[: len(images)]) == pairs


@pytest.mark.parametrize("count", [1, 2, 30])
def test_one_image_and_images_that_are_all_the_same_can_be_searched(count):
    image = torch.randint(0, 256, (1, 1, 24, 24), dtype=torch.uint8)
    pixels = image.repeat(count, 1, 1, 1)
    pairs = [(a, b) for b in range(count) for a in range(b)]
    assert copies.find_copies(pixels, [str(i) for i in range(count)]) == pairs
    assert copies.find_copies(torch.zeros_like(pixels), [str(i) for i in range(count)]) == []


def test_of_too_many_pairs_those_that_link_all_copies_are_kept(monkeypatch):
    """Patients, and subsets that share an image, are the same as those of all pairs."""
    images = torch.randint(0, 256, (200, 1, 24, 24), dtype=torch.uint8)
    for i in range(150):  # 10 pictures, 15 times each
        images[i] = images[i % 10].clone()
    images[199] = images[150].clone()
    scans = [f"{i % 50}" for i in range(200)]
    slices = [Slice("", None, "left", f"p{int(s) // 2}", s, i) for i, s in enumerate(scans)]
    every = copies.find_copies(images, scans)
    assert every == all_pairs(images, scans)
    monkeypatch.setattr(copies, "MOST_PAIRS", 60)
    monkeypatch.setattr(copies, "BLOCK", 16)
    kept = copies.find_copies(images, scans)
    assert len(kept) < 150 and set(kept) <= set(every) and (150, 199) in kept
    groups = copies.patients_sharing_images(slices, every)
    assert copies.patients_sharing_images(slices, kept) == groups
    for a, b in every:  # each alone in a subset would be refused, and is
        for alone in (scans[a], scans[b]):
            subset_of = dict.fromkeys(scans, "train") | {alone: "test"}
            with pytest.raises(DataError):
                copies.check_copies(slices, kept, subset_of)


def test_groups_that_a_chain_of_pairs_links_have_one_first():
    chain = torch.tensor([[5, 6], [4, 5], [3, 4], [2, 3], [8, 9]])
    assert copies.link(torch.arange(10), chain).tolist() == [0, 1, 2, 2, 2, 2, 2, 7, 8, 8]
    joined = copies.link(torch.tensor([0, 0, 2, 2, 4]), torch.tensor([[1, 3]]))
    assert joined.tolist() == [0, 0, 0, 0, 4]


# ---- copies within a patient ---------------------------------------------------------------------


def scan_of(patient: int, side: str) -> str:
    return name_of(patient, side, 0).removesuffix("_0.png")


@pytest.fixture
def copied_scan(phantoms, tmp_path) -> Path:
    """The phantoms; patient 2's right scan is there once more, patient 3's half, one resized."""
    folder = tmp_path / "knees"
    shutil.copytree(phantoms, folder)
    for patient, count in ((2, 8), (3, 4)):
        again = scan_of(patient, "RIGHT").replace("BaseLine", "12Month")
        for i in range(count):
            shutil.copy(folder / name_of(patient, "RIGHT", i), folder / f"{again}_{i}.png")
    path = folder / f"{again}_0.png"
    with Image.open(path) as image:
        scaled(1 / 2)(image).save(path)
    return folder


def test_exact_copies_within_a_patient_are_the_later_ones_of_its_label(copied_scan):
    slices, pixels = read(copied_scan)
    pairs = copies.find_copies(pixels, [s.scan for s in slices])
    assert len(pairs) == 12
    repeated = copies.repeated_within_patient(pixels, slices, pairs)
    assert len(repeated) == 11  # not the resized one
    assert repeated < {later for _, later in pairs}
    # Of another label or patient they decide, and are never left out.
    for change in ({"label": "other"}, {"patient": "other"}):
        changed = [replace(s, **change) if "12Month" in s.scan else s for s in slices]
        assert copies.repeated_within_patient(pixels, changed, pairs) == set()


def test_copies_within_patients_are_one_line_and_those_between_labels_are_named(copied_scan):
    slices, pixels = read(copied_scan)
    pairs = copies.find_copies(pixels, [s.scan for s in slices])
    (line,) = copies.describe_copies(slices, pixels, pairs)
    assert line.startswith("12 images (11 exactly) copied from others of the same patient and")
    assert "in 4 scans of 2 patients (first: " in line and name_of(2, "RIGHT", 0) in line
    changed = [replace(s, label="left") if "0000002_12Month" in s.scan else s for s in slices]
    named, line = copies.describe_copies(changed, pixels, pairs)
    assert named.startswith("8 images (8 exactly) in two scans of patient OAI0000002: ")
    assert ", once " in named and line.startswith("4 images (3 exactly) copied from others")


def test_slices_that_are_in_an_earlier_scan_of_their_patient_count_once(
    copied_scan, tmp_path, capsys
):
    args = train.parse_args(["--data-dir", str(copied_scan), *SIZE])
    subsets = train.read_subsets(args, train.read_data(args, args.classes))
    said = "note: 11 slices exactly in an earlier scan of their patient, left out"
    assert said in capsys.readouterr().out
    used = [s.name for subset in subsets.values() for s in subset.samples]
    assert len(used) == len(set(used)) == 64 + 1  # the resized one
    # The table of scans names all, also the scan of copies alone, and can be read again.
    scans = by_scan(subsets["train"].slices)
    subset_of = dataset.subset_of_scans(subsets)
    assert subset_of.keys() == scans.keys()
    splits.check_patients(scans, subset_of)
    split_tables.write_split(tmp_path / "split.csv", scans, subset_of)
    args.split_file = tmp_path / "split.csv"
    again = train.read_subsets(args, train.read_data(args, args.classes))
    assert all(torch.equal(subsets[name].rows, again[name].rows) for name in subsets)
    sheet = ["--contact-sheet", str(tmp_path / "sheet.png")]
    capsys.readouterr()
    assert dataset.main([str(copied_scan), *sheet]) == 0
    assert said in capsys.readouterr().out
    # The experiment's own split has all slices.
    args = train.parse_args(["--data-dir", str(copied_scan), *SIZE, "--split", "scan"])
    assert (
        sum(map(len, train.read_subsets(args, train.read_data(args, args.classes)).values()))
        == 64 + 12
    )


def test_result_kept_by_another_version_is_not_taken(many, tmp_path, monkeypatch):
    slices = [Slice("", None, "left", "p", str(i), 0) for i in range(200)]
    pairs = copies.open_copies(many[:200], slices, 7, tmp_path)
    (kept,) = tmp_path.iterdir()
    kept.write_text('{"copies": [[0, 1]]}')
    assert copies.open_copies(many[:200], slices, 7, tmp_path) == [(0, 1)] != pairs
    monkeypatch.setattr(copies, "COPIES_VERSION", 3)
    assert copies.open_copies(many[:200], slices, 7, tmp_path) == pairs
