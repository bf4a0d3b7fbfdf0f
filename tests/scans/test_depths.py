"""16-bit images: one scale a scan, in whatever way its slices are read."""

import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image

import dataset
import predict
import train
from evaluation import answers
from perceiver import Perceiver
from scans.cache import decode_slices, open_pixels
from scans.images import bit_depth, describe_depths, to_grey
from scans.listing import list_slices
from scans.slices import Slice
from training.checkpoints import save_checkpoint

LARGEST = {"twelve": 4095, "ten": 1000, "full": 65535, "eight": 255, "black": 0}
BITS = {"twelve": 12, "ten": 10, "full": 16, "eight": 8, "black": 8}


def write_scan(folder: Path, scan: str, slices: int = 5) -> list[np.ndarray]:
    """scan_0.png is nearly dark, the last but one has the largest value; every third is a TIFF."""
    folder.mkdir(parents=True, exist_ok=True)
    written, rng = [], np.random.default_rng(zlib.crc32(os.fsencode(folder)))
    for i in range(slices):
        highest = LARGEST[scan] if i == slices - 2 else LARGEST[scan] * (1 + 20 * i) // 200
        values = (rng.random((6, 8)) * highest).round().astype(np.uint16)
        values[0, 0] = highest
        Image.fromarray(values).save(folder / f"{scan}_{i}.{'tif' if i % 3 == 2 else 'png'}")
        written.append(values)
    return written


def expected(values: list[np.ndarray], scan: str) -> np.ndarray:
    return (np.stack(values) * (255 / (2 ** BITS[scan] - 1))).round()


def test_bits_are_those_of_the_largest_value_and_eight_at_least():
    bits = [bit_depth(value) for value in (0, 1, 255, 256, 1023, 1024, 4095, 4096, 65535)]
    assert bits == [8, 8, 8, 9, 10, 11, 12, 13, 16]
    for bits in range(8, 17):
        greys = to_grey(np.arange(2**bits).astype(np.uint16), bits).astype(int)
        assert greys[0] == 0 and greys[-1] == 255 and (np.diff(greys) >= 0).all()
    assert describe_depths({}) == ""
    assert "12 bits in 1,000 scans, 16 bits in 2 scans" in describe_depths({16: 2, 12: 1000})


@pytest.mark.parametrize("workers", [1, 3])
def test_slices_of_a_scan_share_a_scale_and_scans_have_their_own(tmp_path, workers):
    """Also where the slices of several scans stand in turn."""
    values = {scan: write_scan(tmp_path / "left", scan) for scan in LARGEST}
    Image.fromarray(np.full((6, 8), 77, np.uint8)).save(tmp_path / "left" / "twelve_5.png")
    slices = list_slices(tmp_path).slices
    slices.sort(key=lambda s: (s.number, s.scan))
    decoded = decode_slices(slices, (6, 8), workers, progress=False)
    assert decoded.depths == {8: 2, 10: 1, 12: 1, 16: 1} and not decoded.errors
    for s, pixels in zip(slices, decoded.pixels[:, 0], strict=True):
        scan = s.scan.removeprefix("left/")
        if (scan, s.number) == ("twelve", 5):  # of 8 bits: its grey levels are what they are
            assert (pixels == 77).all()
        else:
            assert np.array_equal(pixels, expected(values[scan], scan)[s.number]), s
    dark = decoded.pixels[[s.scan == "left/twelve" and s.number == 0 for s in slices]]
    assert dark.max() <= 2  # not stretched by itself


def test_the_largest_value_is_that_of_the_file_and_not_of_the_resized_image(tmp_path):
    values = np.full((60, 80), 100, np.uint16)
    values[7, 7] = 4000
    Image.fromarray(values).save(tmp_path / "a.png")
    decoded = decode_slices([Slice(str(tmp_path / "a.png"), None, "", "", "", 0)], (6, 8))
    assert decoded.depths == {12: 1} and np.median(decoded.pixels) == 6


def test_a_slice_that_cannot_be_read_is_black_and_decides_nothing(tmp_path):
    values = write_scan(tmp_path / "left", "twelve")
    broken = tmp_path / "left" / "twelve_1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    decoded = decode_slices(list_slices(tmp_path).slices, (6, 8), progress=False)
    greys = expected(values, "twelve")
    greys[1] = 0
    assert list(decoded.errors) == [1] and np.array_equal(decoded.pixels[:, 0], greys)


@pytest.mark.slow
def test_a_second_start_knows_the_bits_too(tmp_path, capsys):
    for label in ("left", "right"):
        for patient in range(6):
            write_scan(tmp_path / "knees" / label / f"p{patient}", "twelve")
    arguments = ["--data-dir", str(tmp_path / "knees"), *TINY, "--dry-run"]
    arguments += ["--cache-dir", str(tmp_path / "cache")]
    line = "note: 16-bit images hold 12 bits in 12 scans: made 8 bits scan by scan\n"
    for _ in range(2):
        assert train.main(arguments) == 0
        assert line in capsys.readouterr().out
    arguments = [str(tmp_path / "knees"), "--image-size", "16", "16"]
    arguments += ["--contact-sheet", str(tmp_path / "sheet.png"), *["--cache-dir", "elsewhere"]]
    assert dataset.main(arguments) == 0
    output = capsys.readouterr().out
    assert line in output and "grey levels 0 to 255" in output
    slices = list_slices(tmp_path / "knees").slices
    first, second = (open_pixels(slices, (6, 8), tmp_path / "cache") for _ in range(2))
    assert first.depths == second.depths == {12: 12}
    assert np.array_equal(first.pixels, second.pixels)


def test_written_slices_have_the_same_greys(tmp_path, capsys):
    values = {scan: write_scan(tmp_path / "in" / "left", scan) for scan in LARGEST}
    Image.fromarray(np.full((6, 8), 77, np.uint8)).save(tmp_path / "in" / "left" / "other_1.png")
    out = tmp_path / "out"
    assert dataset.main([str(tmp_path / "in"), "--write-slices", str(out)]) == 0
    output = capsys.readouterr().out
    assert "note: 16-bit images hold 8 bits in 2 scans, 10 bits in 1 scan, 12 bits" in output
    assert "26 slices" in output
    for scan, written in values.items():
        greys = [
            np.asarray(Image.open(out / f"patient=,scan=left%2F{scan},label=left_{i}.png"))
            for i in range(5)
        ]
        assert np.array_equal(np.stack(greys), expected(written, scan))


# ---- predict.py ----------------------------------------------------------------------------------


def test_chunks_end_where_scans_end(monkeypatch):
    slices = [Slice(f"{i}", None, "", "", f"scan {i % 3}", i) for i in range(12)]
    slices += [Slice(f"{i}", None, "", "", "long", i) for i in range(12, 32)]
    for size, expected_sizes in (
        (5, [4, 4, 4, 20]),
        (8, [8, 4, 20]),
        (100, [32]),
        (1, [4, 4, 4, 20]),
    ):
        monkeypatch.setattr(answers, "CHUNK", size)
        chunks = list(answers.chunks_of_scans(slices))
        assert [len(chunk) for chunk in chunks] == expected_sizes
        assert sorted(s.number for chunk in chunks for s in chunk) == list(range(32))
        scans = [scan for chunk in chunks for scan in {s.scan for s in chunk}]
        assert len(scans) == len(set(scans)) == 4
    assert list(answers.chunks_of_scans([])) == []


def test_predictions_do_not_depend_on_chunks(tmp_path, monkeypatch, capsys):
    """The bright slice of a scan comes late, in what would be another chunk."""
    for scan in ("twelve", "ten", "full"):
        write_scan(tmp_path / "new", scan)
    torch.manual_seed(0)
    model = Perceiver(2, 4.0, 1, num_latents=2, latent_dim=4, latent_heads=1, latent_dim_head=4)
    model.preprocessing = {"classes": ["left", "right"], "image_size": [6, 8], "mean": 0, "std": 1}
    save_checkpoint(tmp_path / "model.pt", model)
    tables = []
    for chunk in (2048, 6, 3):
        monkeypatch.setattr(answers, "CHUNK", chunk)
        arguments = [tmp_path / "model.pt", tmp_path / "new", "-o", tmp_path / f"out{chunk}"]
        assert predict.main([*map(str, arguments), "--device", "cpu"]) == 0
        error = capsys.readouterr().err
        assert "note: 16-bit images hold 10 bits in 1 scan, 12 bits in 1 scan, 16 bits" in error
        tables.append((tmp_path / f"out{chunk}" / "predictions.csv").read_text())
    assert tables[0] == tables[1] == tables[2]
