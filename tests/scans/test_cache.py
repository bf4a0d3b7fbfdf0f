"""scans/cache.py: pixels that are decoded once, whatever happens meanwhile."""

import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from PIL import Image

from common.files import whole_file
from perceiver import MOST_SIZE
from scans import cache
from scans.listing import list_slices
from scans.slices import DataError, Options, Slice

ROOT = Path(cache.__file__).parent.parent
SIZE = (6, 8)


@pytest.fixture
def files(tmp_path) -> list[Slice]:
    """Five images of noise."""
    rng = np.random.default_rng(0)
    slices = [Slice(str(tmp_path / f"{i}.png"), None, "left", "p", "s", i) for i in range(5)]
    for s in slices:
        Image.fromarray(rng.integers(0, 256, (12, 16)).astype(np.uint8)).save(s.source)
    return slices


@pytest.fixture
def decodings(monkeypatch) -> list[int]:
    """Grows by the number of files each time that some are decoded."""
    counts, decode = [], cache.decode_slices

    def counted(slices, *arguments, **more):
        counts.append(len(slices))
        return decode(slices, *arguments, **more)

    monkeypatch.setattr(cache, "decode_slices", counted)
    return counts


def open_cached(files: list[Slice], folder: Path, size=SIZE) -> np.ndarray:
    pixels, errors, *_, note = cache.open_pixels(files, size, folder)
    assert errors == {} and note == ""
    return pixels


def decoded(files: list[Slice], size=SIZE) -> np.ndarray:
    return cache.decode_slices(files, size).pixels


def test_second_start_has_the_same_pixels_and_decodes_nothing(files, tmp_path, decodings):
    folder = tmp_path / "deep" / "cache"
    first = open_cached(files, folder).copy()
    assert np.array_equal(first, decoded(files)) and first.std() > 5
    again = open_cached(files, folder)
    assert np.array_equal(again, first) and decodings == [5, 5]
    again[:] = 0  # a program's own changes don't reach the file
    assert np.array_equal(open_cached(files, folder), first) and decodings == [5, 5]
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".npy"]


@pytest.mark.parametrize("size", [(100000, 100000), (10**17, 10**17), (1, 10**9)])
def test_pixels_without_room_are_refused_with_what_they_take_and_what_there_is(
    files, tmp_path, monkeypatch, decodings, size
):
    monkeypatch.setattr(cache, "memory", lambda: 8 * 10**9)
    monkeypatch.setattr(cache, "free_space", lambda folder: 40 * 10**9)
    folder = tmp_path / "cache"
    with pytest.raises(DataError) as refused:
        cache.open_pixels(files, size, folder)
    message, flag = str(refused.value), f"--image-size {size[0]} {size[1]}: "
    if size[0] == 1:
        assert message == f"{flag}expected at most 65,536 a side"
    else:
        takes = f"{5 * size[0] * size[1] / 1e9:,.1f} GB"
        assert message == (
            f"{flag}the pixels of 5 slices take {takes}, and there are 8.0 GB in memory and "
            f"40.0 GB in --cache-dir {folder}: try a smaller size"
        )
    assert not folder.exists() and not decodings
    with pytest.raises(DataError, match="--image-size "):
        cache.decode_slices(files, size)


def test_a_full_disk_and_little_memory_are_no_crash(files, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "memory", lambda: 100)
    monkeypatch.setattr(os, "posix_fallocate", no_space)
    with pytest.raises(DataError, match=r"the pixels of 5 slices take 0\.0 GB, and there"):
        cache.open_pixels(files, SIZE, tmp_path / "cache")


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_no_side_is_longer_than_a_model_may_have():
    assert cache.MAX_SIDE == MOST_SIZE


def test_anything_that_changes_the_pixels_is_decoded_anew(files, tmp_path, decodings):
    folder = tmp_path / "cache"
    before = open_cached(files, folder).copy()
    status = os.stat(files[2].source)
    os.utime(files[2].source, ns=(status.st_atime_ns, status.st_mtime_ns + 1))  # time, same pixels
    assert np.array_equal(open_cached(files, folder), before) and len(decodings) == 2
    Image.new("L", (16, 12), 7).save(files[2].source)
    os.utime(files[2].source, ns=(status.st_atime_ns, status.st_mtime_ns))  # size, same time
    assert os.path.getsize(files[2].source) != status.st_size
    assert (open_cached(files, folder)[2] == 7).all() and len(decodings) == 3
    assert open_cached(files, folder, (8, 6)).shape == (5, 1, 8, 6) and len(decodings) == 4
    open_cached(files, folder)
    assert len(decodings) == 4  # both sizes are kept
    swapped = open_cached([files[1], files[0], *files[2:]], folder)
    assert np.array_equal(swapped[0], before[1]) and np.array_equal(swapped[1], before[0])
    assert open_cached(files[:4], folder).shape[0] == 4 and len(decodings) == 6
    open_cached(files, folder)
    assert len(decodings) == 6


def test_slices_of_a_volume_are_kept_for_each_way_of_slicing_it(tmp_path):
    made = pytest.importorskip("volume_files")
    made.write_volume(tmp_path / "p1_LEFT.nii", made.noise(9, 9, 9))
    ways = [Options(), Options(plane="sagittal"), Options(slices=6)]
    found = [list_slices(tmp_path / "p1_LEFT.nii", options=options).slices[:6] for options in ways]
    assert len({cache.fingerprint(slices, SIZE) for slices in found}) == 3


def test_every_flipped_bit_and_every_cut_of_a_kept_file_is_noticed(files, tmp_path, decodings):
    folder = tmp_path / "cache"
    before = open_cached(files, folder).copy()
    (kept,) = folder.glob("*.npy")
    whole = kept.read_bytes()
    for bit in range(0, 8 * len(whole), 3):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        kept.write_bytes(damaged)
        got = cache.open_kept(kept, tuple(before.shape))
        # Blanks in the header may become others without a change of meaning.
        assert got is None or (bit < 8 * 128 and np.array_equal(got.pixels, before)), bit
    for size in (0, 1, 5, 8, 60, 127, 128, len(whole) - 1):
        kept.write_bytes(whole[:size])
        assert cache.open_kept(kept, tuple(before.shape)) is None, size
    assert np.array_equal(open_cached(files, folder), before) and decodings == [5, 5]
    assert kept.read_bytes() == whole  # mended


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "7",
        "null",
        "{}",
        '{"crc32": ',
        '{"crc32": 1}',
        '{"crc32": 1, "depths": 7}',
        "\xff",
    ],
)
def test_missing_or_garbage_checksum_is_decoded_anew(files, tmp_path, decodings, text):
    folder = tmp_path / "cache"
    before = open_cached(files, folder).copy()
    (checksum,) = folder.glob("*.json")
    checksum.write_text(text, encoding="latin-1")
    assert np.array_equal(open_cached(files, folder), before) and decodings == [5, 5]
    checksum.unlink()
    assert np.array_equal(open_cached(files, folder), before) and decodings == [5, 5, 5]
    open_cached(files, folder)
    assert decodings == [5, 5, 5]


def test_unreadable_files_are_all_named_and_nothing_is_kept(files, tmp_path):
    broken = [Path(files[i].source) for i in (1, 3)]
    broken[0].write_bytes(broken[0].read_bytes()[:70])
    broken[1].write_text("no image")
    pixels, errors, *_, note = cache.open_pixels(files, SIZE, tmp_path / "cache")
    assert sorted(errors) == [1, 3] and note == "" and list((tmp_path / "cache").iterdir()) == []
    assert pixels[[1, 3]].max() == 0
    assert np.array_equal(pixels, decoded(files))  # the others are there
    Path(files[0].source).unlink()
    files = [replace(files[0], source="a\0b.png"), *files]
    errors = cache.open_pixels(files, SIZE, tmp_path / "cache").errors
    assert sorted(errors) == [0, 1, 2, 4] and errors[1] == "no such file"


def test_cache_that_cannot_be_written_leaves_slices_in_memory_and_says_so(files, tmp_path):
    expected = decoded(files)
    (tmp_path / "file").write_text("in its place")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/none")):
        pixels, errors, *_, note = cache.open_pixels(files, SIZE, folder)
        assert np.array_equal(pixels, expected) and errors == {}
        assert note.startswith(f"{folder}: ") and note.endswith(": slices are decoded into memory")
    assert (tmp_path / "file").read_text() == "in its place"


def python(code: str, folder: Path, files: list[Slice]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, folder, *(s.source for s in files)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


OPEN = (
    "from scans.slices import Slice; "
    "slices = [Slice(path, None, 'left', 'p', 's', i) for i, path in enumerate(sys.argv[2:])]; "
    "pixels, errors, *_, note = cache.open_pixels(slices, (600, 800), sys.argv[1]); "
)


def test_full_disk_leaves_slices_in_memory_and_no_file(files, tmp_path):
    """No file may grow beyond 1 MB: the 2.4 MB of slices don't fit."""
    code = (
        "import sys, resource; from scans import cache; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)); "
        + OPEN
        + "print(pixels.mean(), errors, note)"
    )
    output, error = python(code, tmp_path / "cache", files).communicate()
    mean = decoded(files, (600, 800)).mean()
    note = f"{tmp_path / 'cache'}: File too large: slices are decoded into memory"
    assert (output, error) == (f"{mean} {{}} {note}\n", "")
    assert list((tmp_path / "cache").iterdir()) == []


HALF_WAY = (
    "import sys, time; from scans import cache; isolated = cache.isolated\n"
    "def slow(*tasks, **more):\n"
    "    for i, found in enumerate(isolated(*tasks, **more)):\n"
    "        if i == 4: print('last', flush=True); time.sleep(float(WAIT))\n"
    "        yield found\n"
    "cache.isolated = slow\n" + OPEN + "print(pixels.mean(), note)"
)


def test_kill_while_decoding_leaves_nothing_that_counts_as_whole(files, tmp_path, decodings):
    folder = tmp_path / "cache"
    process = python(HALF_WAY.replace("WAIT", "60"), folder, files)
    assert process.stdout.readline() == "last\n"
    process.kill()
    process.communicate()
    (left,) = folder.iterdir()
    assert "unfinished" in left.name
    pixels = open_cached(files, folder, (600, 800))
    assert decodings == [5] and np.array_equal(pixels, decoded(files, (600, 800)))
    assert left.exists()  # so young, it might be another process's
    os.utime(left, (1e9, 1e9))
    open_cached(files[:3], folder)
    assert not left.exists() and len(list(folder.iterdir())) == 4


def test_two_processes_that_start_at_once_both_have_their_slices(files, tmp_path, decodings):
    folder = tmp_path / "cache"
    both = [python(HALF_WAY.replace("WAIT", "0.5"), folder, files) for _ in range(2)]
    results = [process.communicate() for process in both]
    mean = decoded(files, (600, 800)).mean()
    # One of them may have come late enough to find what the other one kept.
    assert [(out.split()[-1], error) for out, error in results] == [(str(mean), "")] * 2
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".npy"]
    open_cached(files, folder, (600, 800))
    assert decodings == [5]  # this test's own


def test_processes_of_one_number_in_two_containers_don_t_share_a_file(files, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with whole_file(tmp_path / "x.npy") as one, whole_file(tmp_path / "x.npy") as other:
        one.write_text("one")
        other.write_text("other")
    assert one != other and (tmp_path / "x.npy").read_text() == "one"


@pytest.mark.slow
def test_two_processes_train_without_a_cache(knees, tmp_path):
    """With one, the tests of resumed runs have them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [ROOT / "train.py", "--data-dir", knees, *TINY, "--dry-run"]
    command += ["--cache-dir", "/proc/cache"]  # where nobody can make a folder
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("one step, loss") == 1
    assert (
        done.stdout.count(
            "note: /proc/cache: No such file or directory: slices are decoded into memory"
        )
        == 1
    )
