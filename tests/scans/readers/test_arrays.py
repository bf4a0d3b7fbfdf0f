"""scans/arrays.py: .npy files of every kind of number, and 200 damaged and hostile ones."""

import io
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import dataset
from scans.listing import list_slices
from scans.series import find_volumes, open_volume
from scans.slices import Options, VolumeError
from scans.volumes import read_slices, side_of_position

ROOT = Path(__file__).parents[3]
KNEE = np.random.default_rng(0).integers(0, 200, (7, 12, 10)).astype(np.uint8)


def grey(pixels: np.ndarray) -> np.ndarray:
    """As scans/volumes.py promises it."""
    low, high = np.percentile(pixels.astype(np.float32), (1, 99.5))
    return ((pixels.astype(float) - low) / (high - low) * 255).clip(0, 255).round()


def npy(descr: str, shape: str, data: bytes = b"", version: int = 1, more: str = "") -> bytes:
    """A file of any header."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, {more}}}\n".encode()
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + data


def refusal(path: Path) -> str:
    with pytest.raises(VolumeError) as caught:
        open_volume(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and "\n" not in text and len(text) < 600, text
    return text.removeprefix(f"{path}: ")


# ---- what is read --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", "u1 i1 <i2 >i2 <u2 >u4 <i8 <u8 <f2 >f4 <f4 >f8 <f8 ?".split())
@pytest.mark.parametrize("order", "CF")
def test_slices_are_those_of_the_first_axis_in_every_kind_of_number(tmp_path, kind, order):
    pixels = (KNEE % 100 if kind != "?" else KNEE > 90).astype(kind, order=order)
    np.save(tmp_path / "0000.npy", pixels)
    v = open_volume(tmp_path / "0000.npy")
    assert v.size == (10, 12, 7) and v.slicing.slices == 7
    assert side_of_position(v) is None and not v.sides
    slices = read_slices(v)
    assert slices.dtype == np.uint8 and np.array_equal(slices, grey(pixels))


def test_values_that_are_no_numbers_count_as_the_smallest(tmp_path):
    pixels = KNEE.astype(np.float64)
    pixels[0, 0, :4] = np.nan, np.inf, -np.inf, 1e300  # the last one is too large for float32
    np.save(tmp_path / "a.npy", pixels)
    assert read_slices(open_volume(tmp_path / "a.npy"))[0, 0, :4].tolist() == [0] * 4


def test_there_are_no_directions(tmp_path):
    np.save(tmp_path / "a.npy", KNEE)
    for plane in ("sagittal", "coronal", "axial"):
        with pytest.raises(VolumeError, match=r"a.npy: .* has no directions: only --plane stored"):
            open_volume(tmp_path / "a.npy", Options(plane=plane))


@pytest.mark.slow
def test_a_manifest_of_arrays_becomes_a_dataset_without_simpleitk(tmp_path):
    """As MRNet's, in a process that can't import SimpleITK."""
    (tmp_path / "SimpleITK.py").write_text("raise ImportError('blocked')")
    (tmp_path / "axial").mkdir()
    rows = ["path,label,patient"]
    for i in range(8):
        np.save(tmp_path / "axial" / f"{i:04}.npy", np.roll(KNEE, i, axis=1)[: 5 + i % 3])
        rows.append(f"axial/{i:04}.npy,{('normal', 'abnormal')[i % 2]},{i:04}")
    (tmp_path / "all.csv").write_text("\n".join(rows))
    done = subprocess.run(
        [sys.executable, ROOT / "dataset.py", "all.csv", "--image-size", "8", "8"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "47 slices, 8 scans, 8 patients" in done.stdout
    listing = list_slices(tmp_path / "axial" / "0003.npy")
    assert [s.index for s in listing.slices] == [0, 1, 2, 3, 4] and not listing.problems


def test_arrays_are_written_as_pngs(tmp_path, capsys):
    (tmp_path / "left").mkdir()
    np.save(tmp_path / "left" / "p1.npy", KNEE)
    out = tmp_path / "out"
    assert dataset.main([str(tmp_path), "--write-slices", str(out)]) == 0
    assert "7 slices, 0 of them without a label" in capsys.readouterr().out
    assert len(list(out.iterdir())) == 7


# ---- what is refused -----------------------------------------------------------------------------


def test_what_is_no_volume_of_numbers_is_refused_in_one_line(tmp_path):
    path = tmp_path / "a.npy"
    shapes = {(6, 7): "an array of 6 x 7 values, expected slices x height x width"}
    shapes |= {
        (6, 7, 8, 1): "6 x 7 x 8 x 1 values",
        (3, 6, 7, 8): "3 x 6 x 7 x 8",
        (): "of one values",
    }
    shapes |= {(6, 0, 8): "an array of 6 x 0 x 8 values", (4, 7, 8): "only 4 slices"}
    for shape, text in shapes.items():
        np.save(path, np.zeros(shape, np.uint8))
        assert text in refusal(path)
    for kind in ("c8", "S3", "U3", "M8[s]", "m8[s]", "V4", [("a", "u1"), ("b", "f4")]):
        np.save(path, np.zeros((6, 7, 8), kind))
        assert "expected whole numbers, floats or booleans" in refusal(path)


def test_nothing_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    objects = np.full((6, 7, 8), Bomb(), object)
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    assert refusal(tmp_path / "a.npy").endswith("Python objects in dtype.")
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Bomb()))
    assert refusal(tmp_path / "b.npy").startswith("damaged, or not what its name says")
    record = npy("[('a', '|O')]", "(6, 7, 8)", bytes(6 * 7 * 8 * 8))
    (tmp_path / "c.npy").write_bytes(record)
    assert refusal(tmp_path / "c.npy").endswith("Python objects in dtype.")
    assert not (tmp_path / "exploded").exists()


HOSTILE = {
    "empty": b"",
    "magic alone": b"\x93NUMPY",
    "no header": b"\x93NUMPY\1\0",
    "text": b"no array at all",
    "zeros": bytes(500),
    "version 9": npy("'|u1'", "(6, 7, 8)", bytes(336), 9),
    "claims a header of 4 GB": b"\x93NUMPY\2\0\xff\xff\xff\xff" + b" " * 20_000,
    "long header": npy("'|u1'", "(6, 7, 8)", bytes(336), 2, " " * 50_000),
    "long header of version 1": npy("'|u1'", "(6, 7, 8)", bytes(336), 1, " " * 20_000),
    "header of brackets": npy("'|u1'", "(" * 4000, b"", 1),
    "header of minus signs": npy("'|u1'", "-" * 9000 + "1", b"", 1),
    "code": npy("__import__('os').mkdir('exploded')", "(6, 7, 8)", bytes(336)),
    "another key": npy("'|u1'", "(6, 7, 8)", bytes(336), 1, "'more': 1"),
    "shape is text": npy("'|u1'", "'6, 7, 8'"),
    "shape of floats": npy("'|u1'", "(6.0, 7.0, 8.0)", bytes(336)),
    "below 0": npy("'|u1'", "(-6, -7, 8)", bytes(336)),
    "all below 0": npy("'|u1'", "(-6, -7, -8)", b""),
    "a million cubed": npy("'|u1'", "(1000000, 1000000, 1000000)", bytes(336)),
    "beyond 64 bits": npy("'<f8'", "(4294967296, 4294967296, 8)", b""),
    "four thousand digits": npy("'|u1'", f"({'9' * 4000}, 7, 8)", bytes(336)),
    "twenty thousand digits": npy("'|u1'", f"({'9' * 9000}, 7, 8)", bytes(336)),
    "a thousand dimensions": npy("'|u1'", f"({'1, ' * 1000})", b"1"),
    "no such type": npy("'<q9'", "(6, 7, 8)", bytes(336)),
    "type of nothing": npy("'|V0'", "(6, 7, 8)"),
    "type of a gigabyte": npy("'|S1000000000'", "(6, 7, 8)"),
    "zip": b"PK\3\4" + bytes(300),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused_in_one_line(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.npy").write_bytes(HOSTILE[name])
    refusal(tmp_path / "a.npy")
    assert os.listdir(tmp_path) == ["a.npy"]


def test_a_header_that_python_2_wrote_is_read_without_a_warning(tmp_path):
    path = tmp_path / "p01_LEFT.npy"
    np.save(path, KNEE)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"(7, 12, 10), ", b"(7L, 12, 10),"))
    code = (
        "import sys; from scans.listing import list_slices as l; print(len(l(sys.argv[1]).slices))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("7\n", "")


def test_a_header_that_claims_gigabytes_is_not_read(tmp_path):
    with open(tmp_path / "a.npy", "wb") as file:
        file.write(b"\x93NUMPY\2\0\0\0\0\x0a")
        file.truncate(200_000_000)
    tracemalloc.start()
    refusal(tmp_path / "a.npy")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_file_larger_than_any_volume_is_refused_unread(tmp_path):
    header = npy("'<f8'", "(1000, 1000, 1000)")
    with open(tmp_path / "a.npy", "wb") as file:  # 8 GB of nothing
        file.write(header)
        file.truncate(len(header) + 8_000_000_000)
    texts = "claims 1000 x 1000 x 1000 voxels", "Cannot allocate memory"  # what comes first
    assert refusal(tmp_path / "a.npy").startswith(texts)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::SyntaxWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_flipped_bits_and_cuts_are_refused_or_read_as_numpy_reads_them(tmp_path):
    whole = io.BytesIO()
    np.save(whole, KNEE.astype("<i2"))
    whole, path, rng = whole.getvalue(), tmp_path / "a.npy", np.random.default_rng(0)
    refused = 0
    flips = [*range(8 * 128), *rng.integers(8 * 128, 8 * len(whole), 40).tolist()]
    for bit in flips:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        found = find_volumes(str(tmp_path), ["a.npy"])
        if found.problems:
            assert bit < 8 * 128 and "\n" not in found.problems[0].text
            refused += 1
        else:
            pixels = np.load(path, allow_pickle=False)
            got = read_slices(found.volumes[0])
            assert np.array_equal(got, grey(pixels).astype(np.uint8)), bit
    assert refused > 500
    for size in [0, 5, 7, 9, 64, 127, 128, 129, *rng.integers(0, len(whole), 60).tolist()]:
        path.write_bytes(whole[:size])
        text = refusal(path)
        assert size < 128 or text.endswith("mmap length is greater than file size")
    path.write_bytes(whole + b"x")  # which does no harm
    assert np.array_equal(read_slices(open_volume(path)), grey(KNEE))


def test_a_file_that_has_become_another_is_named(tmp_path):
    np.save(tmp_path / "a.npy", KNEE)
    v = open_volume(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", KNEE[:6])
    with pytest.raises(VolumeError, match=r"a.npy: has changed since its header was read"):
        read_slices(v)
    (tmp_path / "a.npy").unlink()
    with pytest.raises(VolumeError, match=r"a.npy: no such file"):
        read_slices(v)


def test_archives_pipes_and_folders_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", KNEE)
    assert refusal(tmp_path / "a.npz").endswith("which is not read: save one .npy a scan")
    os.mkfifo(tmp_path / "b.npy")
    assert refusal(tmp_path / "b.npy") == "a pipe, expected a file"
    pipe, counted = list_slices(tmp_path).problems
    assert str(counted) == "1 file not read: 1 .npz" and Path(pipe.path).name == "b.npy"
