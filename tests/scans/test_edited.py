"""Files of the cache edited by hand: found to be damaged and made again; tables refused by line."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.program import UserError
from scans import headers
from scans.cache import open_pixels
from scans.copies import open_copies
from scans.headers import Unit, read_kept, state_of
from scans.labelled import list_labelled
from scans.slices import Options
from scans.split_tables import read_split

SIZE = (16, 16)
NUMBERS = [-1, 1.5, 10**30, math.nan, math.inf, True, None, "1", [], {}]


@pytest.fixture
def slices(tmp_path):
    """Of 4 patients, 2 slices each; those of the first two are the same pictures."""
    rng = np.random.default_rng(0)
    for patient in range(4):
        for side in ("left", "right"):
            pixels = np.random.default_rng(7) if patient < 2 else rng
            folder = tmp_path / "data" / side / f"p{patient}"
            folder.mkdir(parents=True)
            image = pixels.integers(0, 255, (16, 16)).astype(np.uint8)
            for number in range(2):
                Image.fromarray(image + number).save(folder / f"{number}.png")
    return list_labelled(tmp_path / "data").slices


def edited(value: object, *path: object):
    """JSON of a value with other things at a place of it."""
    for other in NUMBERS:
        known = json.loads(json.dumps(value))
        place = known
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = other
        yield json.dumps(known)


def test_records_of_decoded_slices_that_are_edited_are_made_again(slices, tmp_path):
    cache = tmp_path / "cache"
    first = open_pixels(slices, SIZE, cache)
    (record,) = cache.glob("*.json")
    known = json.loads(record.read_text())
    known["depths"] = {"12": 3}
    texts = ["", "[]", "5", "{", "\xff", "[" * 10**5, json.dumps({**known, "depths": {"99": 1}})]
    texts += [*edited(known, "crc32"), *edited(known, "depths"), *edited(known, "depths", "12")]
    for text in texts:
        record.write_text(text, encoding="latin-1")
        found = open_pixels(slices, SIZE, cache)
        assert (found.pixels == first.pixels).all() and (found.crc32, found.depths) == (
            first.crc32,
            first.depths,
        )
        assert json.loads(record.read_text()) == {**known, "depths": {}}


def test_decoded_slices_that_are_edited_are_made_again(slices, tmp_path):
    cache = tmp_path / "cache"
    first = open_pixels(slices, SIZE, cache)
    (kept,) = cache.glob("*.npy")
    content = kept.read_bytes()
    for other in (
        b"",
        content[:200],
        content.replace(b"(16, ", b"(9999999999, "),
        content.replace(b"|u1", b"|O8"),
        content[:-1] + bytes([content[-1] ^ 1]),
        b"PK\3\4" + content,
    ):
        kept.unlink()  # it is mapped
        kept.write_bytes(other)
        assert (open_pixels(slices, SIZE, cache).pixels == first.pixels).all()
        assert kept.read_bytes() == content


def test_copies_that_are_edited_are_found_again(slices, tmp_path):
    pixels = torch.from_numpy(open_pixels(slices, SIZE, tmp_path).pixels.copy())
    pairs = open_copies(pixels, slices, 7, tmp_path)
    assert pairs
    (kept,) = tmp_path.glob("copies-*.json")
    known = json.loads(kept.read_text())
    texts = ["", "[]", "5", "{", '{"copies": 5}', '{"copies": [5]}', '{"copies": [[1, 0]]}']
    texts += ['{"copies": [[0, 99999]]}', '{"copies": [[0, 1, 2]]}', '{"copies": [[[0], [1]]]}']
    texts += [*edited(known, "copies", 0), *edited(known, "copies", 0, 0), '{"copies": ["01"]}']
    for text in texts:
        kept.write_text(text)
        if text != json.dumps({"copies": []}):
            assert open_copies(pixels, slices, 7, tmp_path) == pairs, text
            assert json.loads(kept.read_text()) == known


def test_headers_that_are_damaged_are_read_again(tmp_path):
    pytest.importorskip("SimpleITK")
    from volume_files import write_volume

    write_volume(tmp_path / "a.nii")
    unit = Unit(str(tmp_path), ("a.nii",))
    options = Options(cache_dir=tmp_path / "cache")
    (found,) = headers.read_units([unit], options)
    kept = headers.kept_file(unit, options)
    whole = kept.read_bytes()
    assert read_kept(unit, options).volumes[0].size == found.volumes[0].size
    places = range(0, len(whole), len(whole) // 40)
    for content in [
        b"",
        *(whole[:end] for end in places),
        *(whole[:i] + b"7" + whole[i + 1 :] for i in places if whole[i] != 55),
    ]:
        kept.write_bytes(content)
        assert read_kept(unit, options) is None
    list(headers.read_units([unit], options))
    assert kept.read_bytes() == whole


def test_what_is_not_edited_is_not_read_again(slices, tmp_path, monkeypatch):
    """The checks do not refuse what the programs themselves write."""
    pixels = torch.from_numpy(open_pixels(slices, SIZE, tmp_path).pixels.copy())
    pairs = open_copies(pixels, slices, 7, tmp_path)
    monkeypatch.setattr("scans.cache.decode_slices", None)
    monkeypatch.setattr("scans.copies.find_copies", None)
    open_pixels(slices, SIZE, tmp_path)
    assert open_copies(pixels, slices, 7, tmp_path) == pairs


@pytest.mark.parametrize(
    "text, problem",
    [
        ("", "it is empty, expected a split file"),
        ("a,b\n1,2\n", "expected columns subset and scan"),
        (
            "subset,scan\nhello,left/p0\n",
            "line 2: subset must be train, val, test or none, got 'hello'",
        ),
        ("subset,scan\ntrain,\n", "line 2: names no scan"),
        ("subset,scan\ntrain,left/p0\nval,left/p0\n", "line 3: scan left/p0 is in two subsets"),
        ("subset,scan\ntrain,left/p0,1,2\n", "line 2: 4 fields, but there are 2 columns"),
        ("subset,scan,scan\ntrain,left/p0,1\n", "two columns scan"),
        ("subset,scan\ntrain,../etc\n", "scans of the data not in the split file"),
        ('subset,scan\ntrain,"left', "line 2: not a row of a split file"),
        ("subset,scan\ntrain,a\0b\n", "not text, expected a split file"),
    ],
)
def test_split_files_that_are_edited_are_refused_by_line(slices, tmp_path, text, problem):
    (tmp_path / "split.csv").write_text(text)
    with pytest.raises(UserError) as refused:
        read_split(tmp_path / "split.csv", {s.scan: [s] for s in slices})
    assert problem in str(refused.value) and str(tmp_path / "split.csv") in str(refused.value)


def test_a_manifest_of_odd_paths_is_refused_or_read(tmp_path):
    for path in (
        "",
        "/dev/zero.png",
        "\x1b[1m.png",
        "../" * 50 + "x.png",
        "a" * 5000,
        "\udcff.png",
    ):
        text = f"path,label,patient\n{path},left,p0\nb.png,right,p1\n"
        (tmp_path / "m.csv").write_text(text, errors="surrogateescape")
        with pytest.raises(UserError):
            list_labelled(tmp_path / "m.csv")


def test_paths_are_of_text(tmp_path: Path):
    """`state_of` takes what is not there for a state of its own."""
    unit = Unit(str(tmp_path), ("a\0b", "nothing"))
    assert state_of(unit, None) == state_of(unit, None) != state_of(unit, 2)
