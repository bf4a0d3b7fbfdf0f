"""scans/images.py on real small files: every kind of PNG, 200 damaged and odd ones."""

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
from conftest import TINY
from PIL import Image

import predict
import train
from common.program import printable
from dataset import load_dataset
from perceiver import Perceiver
from scans.cache import decode_slices
from scans.images import describe_depths, read_image
from scans.labelled import list_labelled
from scans.slices import Slice
from training.checkpoints import save_checkpoint

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


def slices_of(*paths: str | Path) -> list[Slice]:
    return [Slice(str(path), None, "", "", "", 0) for path in paths]


@pytest.mark.parametrize("kind", ["L", "RGB", "RGBA", "LA", "palette", "16-bit"])
def test_every_kind_of_png_gives_the_same_grey_levels(tmp_path, kind):
    save_as(kind, tmp_path / "x.png")
    decoded = decode_slices(slices_of(tmp_path / "x.png"), (40, 60))
    assert np.array_equal(decoded.pixels[0, 0], GRADIENT)
    assert decoded.depths == ({16: 1} if kind == "16-bit" else {})


EXACT = {"exact": True, "lossless": True}  # of WebP


@pytest.mark.parametrize("ending", ["png", "webp", "tif"])
def test_transparent_pixels_are_black_unless_all_are(tmp_path, ending):
    alpha = Image.new("RGBA", (8, 8), (200, 200, 200, 0))
    alpha.save(tmp_path / f"all.{ending}", **EXACT)
    alpha.putpixel((0, 0), (100, 100, 100, 255))
    alpha.save(tmp_path / f"some.{ending}", **EXACT)
    assert (read_image(tmp_path / f"all.{ending}").values == 200).all()
    some = read_image(tmp_path / f"some.{ending}").values
    assert some[0, 0] == 100 and some.sum() == 100


# ---- as every viewer shows them ------------------------------------------------------------------

ALL_ENDINGS = "png jpg jpeg bmp tif tiff webp gif jp2 j2k jpx ppm pgm pnm".split()
BACK = {  # EXIF orientation -> how an upright picture is stored
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def smooth_picture() -> np.ndarray:
    """(40, 60) uint8, a bright spot near its upper left corner."""
    y, x = np.mgrid[:40, :60]
    spot = 20 + 200 * np.exp(-((x - 12) ** 2 + (y - 10) ** 2) / 60)
    return spot.round().astype(np.uint8)


@pytest.mark.parametrize("ending", ALL_ENDINGS)
def test_images_of_every_ending_are_read(tmp_path, ending):
    picture = smooth_picture()
    path = tmp_path / "left" / f"p1_1.{ending}"
    path.parent.mkdir()
    kind = "JPEG2000" if ending in ("jp2", "j2k", "jpx") else None
    Image.fromarray(picture).save(path, kind)
    (found,) = list_labelled(tmp_path).slices
    image = read_image(found.source)
    assert image.highest is None and np.abs(image.values.astype(int) - picture).max() < 16


UPRIGHT = [("jpg", False), ("webp", False), *((x, deep) for x in ("png", "tif") for deep in (0, 1))]


@pytest.mark.parametrize("orientation", BACK)
@pytest.mark.parametrize("ending, is_deep", UPRIGHT)
def test_pictures_are_upright_as_their_exif_says(tmp_path, ending, orientation, is_deep):
    picture = smooth_picture()
    stored = Image.fromarray(picture.astype(np.uint16) * 257 if is_deep else picture)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{ending}"
    stored.transpose(BACK[orientation]).save(path, exif=exif, quality=95)
    decoded = decode_slices(slices_of(path), picture.shape)
    assert not decoded.errors
    assert np.abs(decoded.pixels[0, 0].astype(int) - picture).max() < 8


def test_of_a_camera_with_a_preview_the_first_picture_is_read(tmp_path):
    picture = Image.fromarray(smooth_picture()).convert("RGB")
    preview = Image.new("RGB", (20, 15))
    picture.save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[preview], quality=95)
    difference = read_image(tmp_path / "x.jpg").values.astype(int) - smooth_picture()
    assert np.abs(difference).max() < 8


def png_of_16_bits(path: Path, values: np.ndarray) -> None:
    """Of (height, width, channels): 2 are grey and alpha, 3 colours, 4 colours and alpha."""

    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + checksum

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    kind = {2: 4, 3: 2, 4: 6}[values.shape[2]]
    size = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    content = chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def plain_tiff(path: Path, values: np.ndarray, photometric: int, order: str = "<") -> None:
    """(height, width) or (height, width, 3), not packed, as microscopes and scanners write it."""
    height, width, *channels = values.shape
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    bits = 8 * values.itemsize
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric)]
    tags += [(273, 0), (277, *(channels or [1])), (278, height), (279, len(data))]
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b""
    for tag, value in tags:
        if tag == 258 and channels:
            entries += struct.pack(f"{order}HHII", tag, 3, 3, start)
        else:
            value = start + 6 if tag == 273 else value
            entries += struct.pack(f"{order}HHII", tag, 4, 1, value)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    count, of_channels = struct.pack(f"{order}H", len(tags)), struct.pack(f"{order}3H", *[bits] * 3)
    path.write_bytes(head + count + entries + bytes(4) + of_channels + data)


DEEP_KINDS = ["rgb.png", "rgba.png", "la.png", "rgb<.tif", "rgb>.tif"]


@pytest.mark.parametrize("kind", DEEP_KINDS)
@pytest.mark.parametrize("bits", [10, 12, 16])
def test_colours_of_16_bits_keep_all_of_them(tmp_path, kind, bits):
    deep = np.arange(40 * 60).reshape(40, 60) * (2**bits - 1) // (40 * 60 - 1)
    path = tmp_path / kind.replace("<", "l").replace(">", "b")
    opaque = np.full_like(deep, 65535)
    layers = {"rgb.png": [deep] * 3, "rgba.png": [deep] * 3 + [opaque], "la.png": [deep, opaque]}
    values = np.stack(layers.get(kind, [deep] * 3), -1).astype(np.uint16)
    if kind.endswith(".png"):
        png_of_16_bits(path, values)
    else:
        plain_tiff(path, values, 2, kind[3])
    image = read_image(path)
    assert image.highest == 2**bits - 1 and np.array_equal(image.values, deep)
    assert not image.is_colour and image.grey(bits).max() == 255


def test_colours_of_16_bits_become_luminance_and_transparent_ones_black(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 65536, (40, 60, 4)).astype(np.uint16)
    png_of_16_bits(tmp_path / "x.png", values)
    wanted = values[..., :3] @ [0.299, 0.587, 0.114] * (values[..., 3] / 65535)
    image = read_image(tmp_path / "x.png")
    assert np.abs(image.values - wanted).max() <= 0.5 and image.is_colour
    values[..., 3] = 0  # nobody means that: a program that does not know about alpha
    png_of_16_bits(tmp_path / "x.png", values)
    assert read_image(tmp_path / "x.png").values.max() > 50_000


def test_deep_colours_of_a_layout_that_is_not_read_are_refused_by_name(tmp_path):
    values = np.full((40, 60, 3), 4095, np.uint16)
    plain_tiff(tmp_path / "x.tif", values, 2)
    content = (tmp_path / "x.tif").read_bytes()
    planar = content.replace(
        struct.pack("<HHII", 278, 4, 1, 40), struct.pack("<HHII", 284, 4, 1, 2)
    )
    (tmp_path / "x.tif").write_bytes(planar)
    (error,) = decode_slices(slices_of(tmp_path / "x.tif"), (8, 8)).errors.values()
    assert "colours of 16 bits" in error and "convert it to grey" in error


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_where_zero_is_white_black_is_the_largest_value(tmp_path, bits):
    deep = np.arange(40 * 60).reshape(40, 60) * (2**bits - 1) // (40 * 60 - 1)
    dtype = np.uint8 if bits == 8 else np.uint16
    plain_tiff(tmp_path / "white.tif", (2**bits - 1 - deep).astype(dtype), 0)
    plain_tiff(tmp_path / "black.tif", deep.astype(dtype), 1)
    files = slices_of(tmp_path / "white.tif", tmp_path / "black.tif")
    pixels = decode_slices(files, (40, 60)).pixels
    assert np.array_equal(pixels[0], pixels[1]) and pixels[0].max() == 255


def test_white_is_the_same_in_all_images_of_a_scan(tmp_path):
    """The second image has no dark pixel: alone it would seem to be of 10 bits."""
    dark, bright = np.full((4, 4), 4095, np.uint16), np.full((4, 4), 1000, np.uint16)
    for name, values in (("p1_1", dark), ("p1_2", bright)):
        plain_tiff(tmp_path / f"{name}.tif", values, 0)
    files = slices_of(tmp_path / "p1_1.tif", tmp_path / "p1_2.tif")
    pixels = decode_slices(files, (4, 4)).pixels[:, 0, 0, 0]
    assert pixels.tolist() == [0, round((4095 - 1000) * 255 / 4095)]


def test_cielab_is_refused_by_name(tmp_path):
    Image.new("LAB", (24, 20), (128, 128, 128)).save(tmp_path / "x.tif")
    (error,) = decode_slices(slices_of(tmp_path / "x.tif"), (8, 8)).errors.values()
    assert "CIELAB" in error and "convert it to grey" in error


def test_images_of_several_sizes_are_resized_alike(tmp_path):
    for scale in (1, 2, 5):
        Image.fromarray(np.kron(GRADIENT, np.ones((scale, scale), np.uint8))).save(
            tmp_path / f"{scale}.png"
        )
    files = slices_of(*(tmp_path / f"{scale}.png" for scale in (1, 2, 5)))
    decoded = decode_slices(files, (20, 30))
    pixels = decoded.pixels.astype(int)
    assert pixels.shape == (3, 1, 20, 30) and decoded.pixels.dtype == np.uint8
    assert not decoded.errors and np.abs(pixels[0] - pixels[1:, 0]).max() <= 2
    assert (np.diff(pixels[0, 0], axis=1) > 0).all()  # not mirrored: left is still dark


def test_all_unreadable_files_are_reported_and_the_others_are_read(tmp_path):
    Image.fromarray(GRADIENT).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no image")
    names = ["half.png", "whole.png", "empty.png", "text.png", "missing.png"]
    pixels, errors, *_ = decode_slices(slices_of(*(tmp_path / name for name in names)), (40, 60))
    assert sorted(errors) == [0, 2, 3, 4] and all("\n" not in text for text in errors.values())
    assert np.array_equal(pixels[1, 0], GRADIENT)


def test_more_than_16_bits_are_refused_not_wrapped(tmp_path):
    deep = np.full((8, 8), 70000, dtype=np.int32)
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    Image.fromarray(deep.astype(np.float32)).save(tmp_path / "float.tif")
    errors = decode_slices(slices_of(tmp_path / "deep.tif", tmp_path / "float.tif"), (8, 8)).errors
    assert all("16 bits" in error for error in errors.values()) and len(errors) == 2


# ---- 200 damaged and odd files -------------------------------------------------------------------

READABLE, DAMAGED, EITHER = "readable", "damaged", "either"


def huge_png(width: int, height: int) -> bytes:
    """A header that claims that much, and an honest checksum, but no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunks + b"\0\0\0\x08IDAT" + bytes(12)


class OddFiles:
    """Writes files below a folder, and knows what is in them.

    told: path -> readable, damaged or either, and the grey that it shows where it is readable.
    Each has a grey of its own, so that one in another's place would be seen.
    """

    def __init__(self, root: Path):
        self.root, self.told = root, {}
        self.folders = (f"{('left', 'right')[i % 2]}/p{i // 2 % 6}/" for i in range(300))

    def new(self, ending: str | bytes, kind: str) -> tuple[Path, int]:
        """The path and the grey of the next file."""
        grey = 20 + len(self.told) % 230
        folder = next(self.folders).encode()
        path = os.path.join(os.fsencode(self.root), folder, os.fsencode(ending))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self.told[os.fsdecode(path)] = kind, grey
        return Path(os.fsdecode(path)), grey

    def put(self, ending: str | bytes, kind: str, content: bytes) -> None:
        self.new(ending, kind)[0].write_bytes(content)

    def draw(self, ending: str | bytes, kind: str, mode="L", size=(30, 20), **how) -> Path:
        path, grey = self.new(ending, kind)
        image = Image.new("L", size, grey)
        if mode == "16-bit":
            image = Image.fromarray(np.full(size[::-1], grey * 257, np.uint16))
        elif mode == "CMYK":
            image = Image.new("CMYK", size, (0, 0, 0, 255 - grey))
        else:
            image = image.convert(mode)
        image.save(path, **how)
        return path


WORDS = [*"колено 膝蓋 ركبة मु 🦵 q'uo\"te $x^{\\ #7 ²".split(), "a b", "line\nbreak"]


def write_damaged(odd: OddFiles) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30)).astype(np.uint8))
    whole = io.BytesIO()
    noise.save(whole, "PNG")
    whole = whole.getvalue()
    for i, size in enumerate(np.linspace(0, len(whole) - 24, 90).astype(int)):
        odd.put(f"cut_{i}.png", DAMAGED, whole[:size])  # after that, all pixels are there
    for i in range(60):
        flipped = bytearray(whole)
        flipped[i * len(whole) // 60] ^= 1 << i % 8
        odd.put(f"flip_{i}.png", EITHER, bytes(flipped))
    odd.put("nothing_0.png", DAMAGED, b"")
    odd.put("zeros_0.png", DAMAGED, bytes(5000))
    odd.put("text_0.png", DAMAGED, b"no picture")
    odd.put(
        "postscript_0.png", DAMAGED, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n"
    )
    for name, size in [
        ("huge", (20_000, 20_000)),
        ("large", (9_000, 9_000)),
        ("wide", (2**31 - 1, 1)),
    ]:
        odd.put(f"{name}_0.png", DAMAGED, huge_png(*size))
    odd.draw("genuine_0.png", DAMAGED, "1", (5000, 5000))
    odd.put("long_0.tif", DAMAGED, b"II*\0" + bytes([8, 0, 0, 0, 255, 255]) + bytes(500))
    for suffix in ("png", "tif"):
        pictures = [Image.new("L", (30, 20), grey) for grey in (99, 199)]
        more = {"save_all": True, "append_images": pictures}
        odd.draw(f"several_0.{suffix}", DAMAGED, **more)
    signed = np.full((20, 30), -5, np.int16)
    Image.fromarray(signed.astype(np.int32)).save(odd.new("below_0.tif", DAMAGED)[0])
    for word in WORDS:  # of such names, too, they have to be reported
        odd.put(os.fsencode(word) + b"_4.png", DAMAGED, b"no picture")


def write_readable(odd: OddFiles) -> None:
    odd.draw("deep_0.png", READABLE, "16-bit")
    odd.draw("deep_0.tif", READABLE, "16-bit")
    odd.draw("ink_0.jpg", READABLE, "CMYK", quality=95)
    odd.draw("ink_0.tif", READABLE, "CMYK")
    odd.draw("gif_0.png", READABLE, format="GIF")
    for mode in ("1", "P", "LA", "RGBA", "RGB"):
        odd.draw(f"mode{mode}_0.png", EITHER if mode == "1" else READABLE, mode)
    odd.draw("tiny_0.png", READABLE, size=(1, 1))
    for word in [*WORDS, b"\xff\xfe", b"caf\xe9", "ж" * 120, "percent%s{}"]:
        odd.draw(os.fsencode(word) + b"_3.png", READABLE)


def write_links(odd: OddFiles) -> None:
    """And pipes, folders, files that may not be read."""
    odd.new("dangling_0.png", DAMAGED)[0].symlink_to("nowhere.png")
    odd.new("loop_0.png", DAMAGED)[0].symlink_to("loop_0.png")
    linked = odd.draw("linked_0.png", READABLE)
    linked.rename(odd.root / "target")
    linked.symlink_to(odd.root / "target")
    os.mkfifo(odd.new("pipe_0.png", DAMAGED)[0])
    if os.geteuid():
        odd.draw("secret_0.png", DAMAGED).chmod(0)
    (odd.root / "left" / "folder_0.png").mkdir()
    (odd.root / "left" / "round").symlink_to(odd.root)


def write_odd_files(root: Path) -> dict[str, tuple[str, int]]:
    """What `OddFiles` knows of 200 of them."""
    odd = OddFiles(root)
    write_damaged(odd)
    write_readable(odd)
    write_links(odd)
    assert len(odd.told) >= 200
    return odd.told


@pytest.fixture(scope="module")
def odd_files(tmp_path_factory) -> tuple[Path, dict[str, tuple[str, int]]]:
    root = tmp_path_factory.mktemp("odd") / "knees"
    return root, write_odd_files(root)


def test_odd_files_are_read_properly_or_named_and_none_is_in_anothers_place(odd_files):
    root, told = odd_files
    slices = list_labelled(root).slices
    assert {s.source for s in slices} == told.keys()
    pixels, errors, *_ = decode_slices(slices, (6, 8), workers=4)
    for i, s in enumerate(slices):
        kind, grey = told[s.source]
        if kind != EITHER:
            assert (i in errors) == (kind == DAMAGED), (s.source, errors.get(i))
        if kind == READABLE:
            assert np.abs(pixels[i].astype(int) - grey).max() <= 1, s.source
        assert "\n" not in errors.get(i, "")
        assert i not in errors or pixels[i].max() == 0


def test_file_named_like_a_slice_of_a_volume_is_itself(tmp_path):
    for name, grey in (("scan", 50), ("scan#7", 150)):
        Image.new("L", (8, 8), grey).save(tmp_path / name, "PNG")
    files = slices_of(*(tmp_path / name for name in ("scan", "scan#7", "scan#8")))
    pixels, errors, *_ = decode_slices(files, (2, 2))
    assert pixels[:, 0, 0, 0].tolist() == [50, 150, 0] and list(errors) == [2]


@pytest.mark.slow
def test_names_that_are_no_text_are_trained_on_and_printed(tmp_path, capsys):
    for i in range(3):
        for side in ("left", "right"):
            folder = tmp_path / "knees" / side / os.fsdecode(b"p%d_\xff\xfe" % i)
            folder.mkdir(parents=True)
            Image.new("L", (8, 8), 60 + i).save(folder / "1.png")
    assert train.main(["--data-dir", str(tmp_path / "knees"), *TINY, "--epochs", "1"]) == 0
    assert "left/p2_\\udcff\\udcfe" in capsys.readouterr().out


def python(code: str, *arguments) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=Path(train.__file__).parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_programs_name_every_odd_file_and_go_on_or_stop(odd_files, tmp_path, capsys):
    root, told = odd_files
    damaged, readable = (
        [path for path, (kind, _) in told.items() if kind == wanted]
        for wanted in (DAMAGED, READABLE)
    )
    model = Perceiver(2, 4.0, 1, num_latents=2, latent_dim=4, latent_heads=1, latent_dim_head=4)
    model.preprocessing = {"classes": ["left", "right"], "image_size": [6, 8], "mean": 0, "std": 1}
    save_checkpoint(tmp_path / "model.pt", model)

    arguments = [str(tmp_path / "model.pt"), str(root), "-o", str(tmp_path / "out")]
    assert predict.main([*arguments, "--device", "cpu"]) == 1
    errors = capsys.readouterr().err.splitlines()
    named = [
        printable(path) for path in damaged if f"predict.py: {printable(path)}: " in f"{errors}"
    ]
    assert len(named) >= 4 and "predictions.csv names all of them" in errors[-1]
    with open(
        tmp_path / "out/predictions.csv", newline="", encoding="utf-8", errors="surrogateescape"
    ) as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert rows.keys() == told.keys()
    assert all(rows[path]["error"] for path in damaged)
    assert not any(rows[path]["error"] for path in readable)

    # The others in a process of their own, whose memory is measured (ru_maxrss would count what
    # this process held when it started them).
    code = (
        "import sys, dataset, train; "
        "code = (train if sys.argv[1] == 'train' else dataset).main(sys.argv[2:]); "
        "peak = [n for n in open('/proc/self/status') if n.startswith('VmHWM')][0]; "
        "print(int(peak.split()[1]) // 1024); sys.exit(code)"
    )
    size = ["--image-size", "16", "16"]
    training = python(code, "train", "--data-dir", root, *TINY, "--dry-run")
    sheet = ["--contact-sheet", tmp_path / "sheet.png"]
    looking = python(code, "dataset", root, *size, *sheet)
    for process, expected in ((training, 2), (looking, 2)):
        output, error = process.communicate()
        assert process.returncode == expected, error
        assert sum(f"{printable(path)}: " in error for path in damaged) == 5
        assert " more" in error and "Traceback" not in error
        assert not any(
            f"{printable(p)}: " in error for p, (kind, _) in told.items() if kind == READABLE
        )
        assert int(output.splitlines()[-1]) < 600  # MB, of which most are PyTorch's
    assert Image.open(tmp_path / "sheet.png").width > 1000


def test_colour_that_is_read_as_grey_is_said_also_from_the_cache(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3)).astype(np.uint8)
    grey = noise[1, :, :, :1].repeat(3, axis=2)  # equal channels, as AKOA's PNGs
    slightly = Image.fromarray(noise[2, :, :, 0])
    for name, pixels in (("left/p1_1", noise[0]), ("right/p1_1", grey)):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    slightly.convert("RGB").save(tmp_path / "right" / "p2_1.jpg")  # rounded to unequal channels
    listing = list_labelled(tmp_path)
    for _ in range(2):
        depths = load_dataset(listing, (16, 16), tmp_path / "cache").depths
        assert describe_depths(depths) == "images of 1 scan are in colour, and are read as grey"
