"""decode.py on real small files: every kind of PNG, damaged ones, and the cache."""

import csv
import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image

import dataset
import decode
import predict
import runs
import train
from perceiver import Perceiver

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
    assert np.array_equal(decode.read_image(tmp_path / "x.png", (40, 60)), GRADIENT)


def test_transparent_pixels_are_black(tmp_path):
    Image.new("RGBA", (8, 8), (200, 200, 200, 0)).save(tmp_path / "x.png")
    assert decode.read_image(tmp_path / "x.png", (8, 8)).max() == 0


def test_images_of_several_sizes_are_resized_alike(tmp_path):
    for scale in (1, 2, 5):
        Image.fromarray(np.kron(GRADIENT, np.ones((scale, scale), np.uint8))).save(
            tmp_path / f"{scale}.png"
        )
    images, errors = decode.load_images([str(tmp_path / f"{s}.png") for s in (1, 2, 5)], (20, 30))
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
    images, errors = decode.load_images([str(tmp_path / name) for name in names], (40, 60))
    assert sorted(errors) == [0, 2, 3, 4] and all("\n" not in text for text in errors.values())
    assert np.array_equal(images[1, 0].numpy(), GRADIENT)


def test_statistics_are_those_of_the_pixels():
    images = torch.randint(0, 256, (7, 1, 9, 11), dtype=torch.uint8)
    mean, std = decode.pixel_statistics(images, torch.arange(7))
    pixels = images.double() / 255
    assert mean == pytest.approx(pixels.mean().item(), abs=1e-12)
    assert std == pytest.approx(pixels.std(correction=0).item(), abs=1e-12)


def test_more_than_16_bits_are_refused_not_wrapped(tmp_path):
    deep = np.full((8, 8), 70000, dtype=np.int32)
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    Image.fromarray(deep.astype(np.float32)).save(tmp_path / "float.tif")
    _, errors = decode.load_images([str(tmp_path / n) for n in ("deep.tif", "float.tif")], (8, 8))
    assert all("16 bits" in error for error in errors.values()) and len(errors) == 2


# ---- the cache -----------------------------------------------------------------------------------

SIZE = (6, 8)


@pytest.fixture
def files(tmp_path) -> list[str]:
    """Five images of noise."""
    rng = np.random.default_rng(0)
    paths = [str(tmp_path / f"{i}.png") for i in range(5)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (12, 16)).astype(np.uint8)).save(path)
    return paths


@pytest.fixture
def decodings(monkeypatch) -> list[int]:
    """Grows by the number of files each time that some are decoded."""
    counts, load = [], decode.load_images

    def counted(paths, *arguments, **more):
        counts.append(len(paths))
        return load(paths, *arguments, **more)

    monkeypatch.setattr(decode, "load_images", counted)
    return counts


def open_cached(files: list[str], cache: Path, size=SIZE, plane="stored") -> torch.Tensor:
    images, errors, note = decode.open_images(files, size, cache, plane=plane)
    assert errors == {} and note == ""
    return images


def test_second_start_has_the_same_pixels_and_decodes_nothing(files, tmp_path, decodings):
    cache = tmp_path / "deep" / "cache"
    first = open_cached(files, cache).clone()
    assert torch.equal(first, decode.load_images(files, SIZE)[0]) and first.float().std() > 5
    again = open_cached(files, cache)
    assert torch.equal(again, first) and decodings == [5, 5]
    again[:] = 0  # a program's own changes don't reach the file
    assert torch.equal(open_cached(files, cache), first) and decodings == [5, 5]
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".npy"]


def test_anything_that_changes_the_pixels_is_decoded_anew(files, tmp_path, decodings):
    cache = tmp_path / "cache"
    before = open_cached(files, cache).clone()
    status = os.stat(files[2])
    os.utime(files[2], ns=(status.st_atime_ns, status.st_mtime_ns + 1))  # time, same pixels
    assert torch.equal(open_cached(files, cache), before) and len(decodings) == 2
    Image.new("L", (16, 12), 7).save(files[2])
    os.utime(files[2], ns=(status.st_atime_ns, status.st_mtime_ns))  # size, same time
    assert os.path.getsize(files[2]) != status.st_size
    assert (open_cached(files, cache)[2] == 7).all() and len(decodings) == 3
    assert open_cached(files, cache, (8, 6)).shape == (5, 1, 8, 6) and len(decodings) == 4
    open_cached(files, cache)
    assert len(decodings) == 4  # both sizes are kept
    open_cached(files, cache, plane="sagittal")
    swapped = open_cached([files[1], files[0], *files[2:]], cache)
    assert torch.equal(swapped[0], before[1]) and torch.equal(swapped[1], before[0])
    assert open_cached(files[:4], cache).shape[0] == 4 and len(decodings) == 7
    open_cached(files, cache)
    assert len(decodings) == 7


def test_every_flipped_bit_and_every_cut_of_a_kept_file_is_noticed(files, tmp_path, decodings):
    cache = tmp_path / "cache"
    before = open_cached(files, cache).clone()
    (kept,) = cache.glob("*.npy")
    whole = kept.read_bytes()
    for bit in range(0, 8 * len(whole), 3):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        kept.write_bytes(damaged)
        got = decode.open_kept(kept, tuple(before.shape))
        # Blanks in the header may become others without a change of meaning.
        assert got is None or (bit < 8 * 128 and np.array_equal(got, before.numpy())), bit
    for size in (0, 1, 5, 8, 60, 127, 128, len(whole) - 1):
        kept.write_bytes(whole[:size])
        assert decode.open_kept(kept, tuple(before.shape)) is None, size
    assert torch.equal(open_cached(files, cache), before) and decodings == [5, 5]
    assert kept.read_bytes() == whole  # mended


@pytest.mark.parametrize(
    "text", ["", "[]", "7", "null", "{}", '{"crc32": ', '{"crc32": 1}', "\xff"]
)
def test_missing_or_garbage_checksum_is_decoded_anew(files, tmp_path, decodings, text):
    cache = tmp_path / "cache"
    before = open_cached(files, cache).clone()
    (checksum,) = cache.glob("*.json")
    checksum.write_text(text, encoding="latin-1")
    assert torch.equal(open_cached(files, cache), before) and decodings == [5, 5]
    checksum.unlink()
    assert torch.equal(open_cached(files, cache), before) and decodings == [5, 5, 5]
    open_cached(files, cache)
    assert decodings == [5, 5, 5]


def test_unreadable_files_are_all_named_and_nothing_is_kept(files, tmp_path):
    Path(files[1]).write_bytes(Path(files[1]).read_bytes()[:70])
    Path(files[3]).write_text("no image")
    images, errors, note = decode.open_images(files, SIZE, tmp_path / "cache")
    assert sorted(errors) == [1, 3] and note == "" and list((tmp_path / "cache").iterdir()) == []
    assert images[[1, 3]].max() == 0
    assert torch.equal(images, decode.load_images(files, SIZE)[0])  # the others are there
    Path(files[0]).unlink()
    _, errors, _ = decode.open_images(["a\0b.png", *files], SIZE, tmp_path / "cache")
    assert sorted(errors) == [0, 1, 2, 4] and errors[1] == "no such file"


def test_cache_that_cannot_be_written_leaves_slices_in_memory_and_says_so(files, tmp_path):
    expected, _ = decode.load_images(files, SIZE)
    (tmp_path / "file").write_text("in its place")
    for cache in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/none")):
        images, errors, note = decode.open_images(files, SIZE, cache)
        assert torch.equal(images, expected) and errors == {}
        assert note.startswith(f"{cache}: ") and note.endswith(": slices are decoded into memory")
    assert (tmp_path / "file").read_text() == "in its place"


def python(code: str, *arguments) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=Path(decode.__file__).parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


OPEN = "images, errors, note = decode.open_images(sys.argv[2:], (600, 800), sys.argv[1]); "


def test_full_disk_leaves_slices_in_memory_and_no_file(files, tmp_path):
    """No file may grow beyond 1 MB: the 2.4 MB of slices don't fit."""
    code = (
        "import sys, resource, decode; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)); "
        + OPEN
        + "print(images.float().mean().item(), errors, note)"
    )
    output, error = python(code, tmp_path / "cache", *files).communicate()
    mean = decode.load_images(files, (600, 800))[0].float().mean().item()
    note = f"{tmp_path / 'cache'}: File too large: slices are decoded into memory"
    assert (output, error) == (f"{mean} {{}} {note}\n", "")
    assert list((tmp_path / "cache").iterdir()) == []


SLOW = (
    "import sys, time, decode; read = decode.read_image\n"
    "def slow(path, size):\n"
    "    if path == sys.argv[-1]: print('last', flush=True); time.sleep(float(WAIT))\n"
    "    return read(path, size)\n"
    "decode.read_image = slow\n" + OPEN + "print(images.float().mean().item(), note)"
)


def test_kill_while_decoding_leaves_nothing_that_counts_as_whole(files, tmp_path, decodings):
    cache = tmp_path / "cache"
    process = python(SLOW.replace("WAIT", "60"), cache, *files)
    assert process.stdout.readline() == "last\n"
    process.kill()
    process.communicate()
    (left,) = cache.iterdir()
    assert "unfinished" in left.name
    images = open_cached(files, cache, (600, 800))
    assert decodings == [5] and torch.equal(images, decode.load_images(files, (600, 800))[0])
    assert left.exists()  # so young, it might be another process's
    os.utime(left, (1e9, 1e9))
    open_cached(files[:3], cache)
    assert not left.exists() and len(list(cache.iterdir())) == 4


def test_two_processes_that_start_at_once_both_have_their_slices(files, tmp_path, decodings):
    cache = tmp_path / "cache"
    both = [python(SLOW.replace("WAIT", "0.5"), cache, *files) for _ in range(2)]
    results = [process.communicate() for process in both]
    mean = decode.load_images(files, (600, 800))[0].float().mean().item()
    # One of them may have come late enough to find what the other one kept.
    assert [(out.split()[-1], error) for out, error in results] == [(str(mean), "")] * 2
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".npy"]
    open_cached(files, cache, (600, 800))
    assert decodings == [5]  # this test's own


def test_processes_of_one_number_in_two_containers_don_t_share_a_file(files, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with runs.whole_file(tmp_path / "x.npy") as one, runs.whole_file(tmp_path / "x.npy") as other:
        one.write_text("one")
        other.write_text("other")
    assert one != other and (tmp_path / "x.npy").read_text() == "one"


def test_two_processes_train_without_a_cache(knees, tmp_path):
    """With one, tests/test_resume.py has them."""
    (tmp_path / "cache").write_text("a file in its place")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [Path(decode.__file__).parent / "train.py", "--data-dir", knees, *TINY, "--dry-run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("one step, loss") == 1
    assert done.stdout.count("note: cache: Not a directory: slices are decoded into memory") == 1


# ---- 200 damaged and odd files -------------------------------------------------------------------

READABLE, DAMAGED, EITHER = "readable", "damaged", "either"


def huge_png(width: int, height: int) -> bytes:
    """A header that claims that much, and an honest checksum, but no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunks + b"\0\0\0\x08IDAT" + bytes(12)


def write_odd_files(root: Path) -> dict[str, tuple[str, int]]:
    """Path -> readable, damaged or either, and the grey that it shows where it is readable.

    Readable files have a grey of their own, so that one in another's place would be seen.
    """
    told = {}
    folders = (f"{('left', 'right')[i % 2]}/p{i // 2 % 6}/" for i in range(300))

    def put(ending: str | bytes, kind: str, content: bytes | None = None, mode="L", **how) -> Path:
        grey = 20 + len(told) % 230
        path = os.path.join(os.fsencode(root), next(folders).encode(), os.fsencode(ending))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        path = Path(os.fsdecode(path))
        image = Image.new("L", (30, 20), grey)
        if mode == "16-bit":
            image = Image.fromarray(np.full((20, 30), grey * 257, np.uint16))
        elif mode == "CMYK":
            image = Image.new("CMYK", (30, 20), (0, 0, 0, 255 - grey))
        if content is None:
            image.convert(image.mode if mode == "16-bit" else mode).save(path, **how)
        else:
            path.write_bytes(content)
        told[str(path)] = kind, grey
        return path

    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30)).astype(np.uint8))
    whole = io.BytesIO()
    noise.save(whole, "PNG")
    whole = whole.getvalue()
    for i, size in enumerate(np.linspace(0, len(whole) - 24, 90).astype(int)):
        put(f"cut_{i}.png", DAMAGED, whole[:size])  # after that, all pixels are there
    for i in range(60):
        flipped = bytearray(whole)
        flipped[i * len(whole) // 60] ^= 1 << i % 8
        put(f"flip_{i}.png", EITHER, bytes(flipped))
    put("nothing_0.png", DAMAGED, b"")
    put("zeros_0.png", DAMAGED, bytes(5000))
    put("text_0.png", DAMAGED, b"no picture")
    put("postscript_0.png", DAMAGED, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
    put("gif_0.png", DAMAGED, format="GIF")
    put("huge_0.png", DAMAGED, huge_png(20_000, 20_000))
    put("large_0.png", DAMAGED, huge_png(9_000, 9_000))
    Image.new("1", (5000, 5000)).save(put("genuine_0.png", DAMAGED))
    put("wide_0.png", DAMAGED, huge_png(2**31 - 1, 1))
    put("long_0.tif", DAMAGED, b"II*\0" + bytes([8, 0, 0, 0, 255, 255]) + bytes(500))
    for suffix in ("png", "tif"):
        pictures = [Image.new("L", (30, 20), grey) for grey in (9, 99, 199)]
        path = put(f"several_0.{suffix}", DAMAGED)
        pictures[0].save(path, save_all=True, append_images=pictures[1:])
    signed = np.full((20, 30), -5, np.int16)
    Image.fromarray(signed.astype(np.int32)).save(put("below_0.tif", DAMAGED))
    put("deep_0.png", READABLE, mode="16-bit")
    put("deep_0.tif", READABLE, mode="16-bit")
    put("ink_0.jpg", READABLE, mode="CMYK", quality=95)
    put("ink_0.tif", READABLE, mode="CMYK")
    for mode in ("1", "P", "LA", "RGBA", "RGB"):
        kind = EITHER if mode == "1" else READABLE
        put(f"mode{mode}_0.png", kind, mode=mode)
    put("tiny_0.png", READABLE)
    Image.new("L", (1, 1), told[list(told)[-1]][1]).save(list(told)[-1])
    words = [
        "колено",
        "膝蓋",
        "ركبة",
        "मु",
        "🦵",
        "a b",
        "line\nbreak",
        "q'uo\"te",
        "$x^{\\",
        "#7",
        "²",
    ]
    for word in [*words, b"\xff\xfe", b"caf\xe9", "ж" * 120, "percent%s{}"]:
        put(os.fsencode(word) + b"_3.png", READABLE)
    for word in words:  # broken ones of such names have to be reported
        put(os.fsencode(word) + b"_4.png", DAMAGED, b"no picture")
    put("dangling_0.png", DAMAGED).unlink()
    os.symlink("nowhere.png", list(told)[-1])
    put("loop_0.png", DAMAGED).unlink()
    os.symlink("loop_0.png", list(told)[-1])
    put("linked_0.png", READABLE)
    target = Path(list(told)[-1])
    target.rename(root / "target")
    target.symlink_to(root / "target")
    put("pipe_0.png", DAMAGED).unlink()
    os.mkfifo(list(told)[-1])
    if os.geteuid():
        put("secret_0.png", DAMAGED).chmod(0)
    (root / "left" / "folder_0.png").mkdir()
    (root / "left" / "round").symlink_to(root)
    assert len(told) >= 200
    return told


@pytest.fixture(scope="module")
def odd_files(tmp_path_factory) -> tuple[Path, dict[str, tuple[str, int]]]:
    root = tmp_path_factory.mktemp("odd") / "knees"
    return root, write_odd_files(root)


def test_odd_files_are_read_properly_or_named_and_none_is_in_anothers_place(odd_files):
    root, told = odd_files
    slices, _ = dataset.find_slices(root)
    assert {s.path for s in slices} == told.keys()
    images, errors = decode.load_images([s.path for s in slices], (6, 8), workers=4)
    for i, s in enumerate(slices):
        kind, grey = told[s.path]
        if kind != EITHER:
            assert (i in errors) == (kind == DAMAGED), (s.path, errors.get(i))
        if kind == READABLE:
            assert (images[i].int() - grey).abs().max() <= 1, s.path
        assert "\n" not in errors.get(i, "")
        assert i not in errors or images[i].max() == 0


def test_file_named_like_a_slice_of_a_volume_is_itself(tmp_path):
    for name, grey in (("scan", 50), ("scan#7", 150)):
        Image.new("L", (8, 8), grey).save(tmp_path / name, "PNG")
    paths = [str(tmp_path / name) for name in ("scan", "scan#7", "scan#8")]
    images, errors = decode.load_images(paths, (2, 2))
    assert images[:, 0, 0, 0].tolist() == [50, 150, 0] and list(errors) == [2]


def test_names_that_are_no_text_are_trained_on_and_printed(tmp_path, capsys):
    for i in range(3):
        for side in ("left", "right"):
            folder = tmp_path / "knees" / side / os.fsdecode(b"\xff\xfe" + bytes([48 + i]))
            folder.mkdir(parents=True)
            Image.new("L", (8, 8), 60 + i).save(folder / "1.png")
    assert train.main(["--data-dir", str(tmp_path / "knees"), *TINY, "--epochs", "1"]) == 0
    assert "left/\\udcff\\udcfe2 (1)" in capsys.readouterr().out


def test_programs_name_every_odd_file_and_go_on_or_stop(odd_files, tmp_path, capsys):
    root, told = odd_files
    damaged, readable = (
        [path for path, (kind, _) in told.items() if kind == wanted]
        for wanted in (DAMAGED, READABLE)
    )
    model = Perceiver(2, 4.0, 1, num_latents=2, latent_dim=4, latent_heads=1, latent_dim_head=4)
    model.preprocessing = {"classes": ["left", "right"], "image_size": [6, 8], "mean": 0, "std": 1}
    runs.save_checkpoint(tmp_path / "model.pt", model)

    def shown(path: str) -> str:
        return path.encode("utf-8", "backslashreplace").decode()

    arguments = [str(tmp_path / "model.pt"), str(root), "-o", str(tmp_path / "out")]
    assert predict.main([*arguments, "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert all(f"predict.py: {shown(path)}: " in error for path in damaged)
    with open(tmp_path / "out/predictions.csv", newline="", errors="surrogateescape") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert rows.keys() == told.keys()
    assert all(rows[path]["error"] for path in damaged)
    assert not any(rows[path]["error"] for path in readable)

    # The others in a process of their own, whose memory is measured (ru_maxrss would count what
    # this process held when it started them).
    code = (
        "import sys, audit, train; "
        "code = (train if sys.argv[1] == 'train' else audit).main(sys.argv[2:]); "
        "peak = [n for n in open('/proc/self/status') if n.startswith('VmHWM')][0]; "
        "print(int(peak.split()[1]) // 1024); sys.exit(code)"
    )
    size = ["--image-size", "16", "16"]
    training = python(code, "train", "--data-dir", root, *TINY, "--dry-run")
    sheet = ["--contact-sheet", tmp_path / "sheet.png"]
    auditing = python(code, "audit", root, *size, *sheet)
    for process, expected in ((training, 2), (auditing, 1)):
        output, error = process.communicate()
        assert process.returncode == expected, error
        assert all(f"{shown(path)}: " in error for path in damaged) and "Traceback" not in error
        assert not any(
            f"{shown(p)}: " in error for p, (kind, _) in told.items() if kind == READABLE
        )
        assert int(output.splitlines()[-1]) < 600  # MB, of which most are PyTorch's
    assert Image.open(tmp_path / "sheet.png").width > 1000
