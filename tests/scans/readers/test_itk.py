"""NRRD and MetaImage, and what would crash their readers, wait for ever, or fill the memory."""

import gzip
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from volume_files import noise, sitk, volume, write_tar, write_volume

from common import isolation
from scans.cache import decode_slices
from scans.listing import list_slices
from scans.readers import read_pixels
from scans.series import open_volume
from scans.volumes import VolumeError, read_slices

ROOT = Path(__file__).parents[3]
META = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "DimSize": "9 9 9",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "LOCAL",
}
NRRD = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "9 9 9",
    "space directions": "(1,0,0) (0,1,0) (0,0,1)",
    "encoding": "raw",
    "endian": "little",
}
VOXELS = bytes(2 * 9**3)


def meta(path: Path, voxels: bytes = VOXELS, **fields: str) -> Path:
    """ElementDataFile stays the last field."""
    known = {**META, **fields}
    known["ElementDataFile"] = known.pop("ElementDataFile")
    text = "".join(f"{name} = {value}\n" for name, value in known.items() if value is not None)
    path.write_bytes(text.encode("latin-1") + voxels)
    return path


def nrrd(path: Path, voxels: bytes = VOXELS, **fields: str) -> Path:
    known = {**NRRD, **{name.replace("_", " "): value for name, value in fields.items()}}
    text = "".join(f"{name}: {value}\n" for name, value in known.items())
    path.write_bytes(b"NRRD0004\n" + text.encode("latin-1") + b"\n" + voxels)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(VolumeError) as refused:
        read_slices(open_volume(path))
    assert "\n" not in str(refused.value)
    return refused.value.text


def test_headers_as_they_should_be_are_read(tmp_path):
    for path in (meta(tmp_path / "a.mha"), nrrd(tmp_path / "a.nrrd")):
        assert read_slices(open_volume(path)).shape == (9, 9, 9)
    nrrd(tmp_path / "b.nrrd", space_units='"mm" "mm" "mm"', kinds="domain domain domain")
    meta(tmp_path / "b.mha", **{"0008|0060": "MR", "Comment": "of Müller", "Offset": "-62.5 0 5"})
    assert open_volume(tmp_path / "b.nrrd").size == open_volume(tmp_path / "b.mha").size


LONG = "1" * 5000


@pytest.mark.parametrize(
    "write, fields",
    [
        (nrrd, {"space_directions": f"(1,0,0) ({LONG},0,0) (0,0,1)"}),  # it overwrote the stack
        (nrrd, {"sizes": f"9 {'a' * 5000} 9"}),
        (nrrd, {"sizes": "9 9 9 9"}),
        (nrrd, {"dimension": "17"}),
        (nrrd, {"space_directions": "(1e308,0,0) (0,1,0) (0,0,1)"}),
        (nrrd, {"nonsense": "1"}),
        (meta, {"NDims": "-5"}),  # a segmentation fault
        (meta, {"NDims": "100"}),
        (meta, {"DimSize": "9 9 9 9 9"}),
        (meta, {"TransformMatrix": "0 1 0 0 0 -1 -1 1e308 0"}),  # it ran for ever
        (meta, {"TransformMatrix": "nan 1 0 0 0 -1 -1 0 0"}),
        (meta, {"Comment": "x" * 600}),
        (meta, {"Comment": "\x1b[2J"}),
    ],
)
def test_headers_that_crash_their_readers_are_one_line_or_read(
    tmp_path, monkeypatch, write, fields
):
    monkeypatch.setattr(isolation, "SECONDS", 2)
    path = write(tmp_path / ("a.nrrd" if write is nrrd else "a.mha"), **fields)
    listing = list_slices(path)
    found = decode_slices(listing.slices, (9, 9), progress=False)
    assert listing.problems or found.errors or found.pixels.shape == (9, 1, 9, 9)
    assert not [p for p in listing.problems if "\n" in p.text]


def test_damage_in_packed_voxels_is_found(tmp_path):
    """SimpleITK gives an image of what was in memory."""
    packed = bytearray(zlib.compress(noise(9, 9, 9).tobytes()))
    packed[500:520] = bytes(20)
    fields = {"CompressedData": "True", "CompressedDataSize": str(len(packed))}
    assert "cut or damaged" in refusal(meta(tmp_path / "a.mha", packed, **fields))
    packed = gzip.compress(noise(9, 9, 9).tobytes())
    assert read_slices(open_volume(nrrd(tmp_path / "a.nrrd", packed, encoding="gzip"))).any()
    assert refusal(nrrd(tmp_path / "a.nrrd", packed[:-100], encoding="gzip")).startswith("damaged")


def test_data_files_are_looked_at_before_they_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "voxels.raw").write_bytes(VOXELS)
    for name, write in (("a.mhd", meta), ("a.nhdr", nrrd)):
        key = "ElementDataFile" if write is meta else "data file"
        path = write(tmp_path / name, b"", **{key: "voxels.raw"})
        assert open_volume(path).parts == (str(path), str(tmp_path / "voxels.raw"))
        assert read_slices(open_volume(path)).shape == (9, 9, 9)
        for data, text in [
            ("pipe", "its data file pipe is a pipe, expected a file"),
            ("/dev/zero", "its data file zero is a device, expected a file"),
            ("nothing", "its data file nothing is missing"),
        ]:
            assert refusal(write(tmp_path / name, b"", **{key: data})) == text


@pytest.mark.parametrize("name", [b"\xff.mha", b"\xff/a.nrrd"])
def test_names_that_are_no_text_do_not_end_the_program(tmp_path, name):
    """A path that is no UTF-8 ends SimpleITK, and its process, with SIGABRT."""
    path = os.path.join(os.fsencode(tmp_path), name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(b"\0" * 400)
    done = subprocess.run(
        [sys.executable, "-c", "from scans.listing import list_slices; list_slices('-')"],
        input=path + b"\n",
        cwd=ROOT,
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    (problem,) = list_slices(os.fsdecode(path)).problems
    assert problem.text == "its name, or a folder's, is no UTF-8: rename it"


# ---- sizes that headers claim --------------------------------------------------------------------


def claims(folder: Path) -> None:
    """Small files of every kind that claim to be enormous."""
    write_volume(folder / "a.nii")
    header = bytearray((folder / "a.nii").read_bytes()[:352])
    struct.pack_into("<3h", header, 42, 30000, 30000, 30000)
    (folder / "a.nii").write_bytes(header)
    (folder / "a.nii.gz").write_bytes(gzip.compress(header))
    struct.pack_into("<3h", header, 42, 790, 790, 790)
    (folder / "b.nii.gz").write_bytes(gzip.compress(bytes(header) + bytes(2 << 20)))
    for number, size in enumerate(("30000 30000 30000", "790 790 790")):
        meta(folder / f"{number}.mha", DimSize=size)
        packed = {"CompressedData": "True", "CompressedDataSize": "20"}
        meta(folder / f"{number}p.mha", zlib.compress(bytes(2 << 20)), DimSize=size, **packed)
        nrrd(folder / f"{number}.nrrd", sizes=size)
        nrrd(folder / f"{number}p.nrrd", gzip.compress(bytes(2 << 20)), sizes=size, encoding="gzip")
        shape = size.replace(" ", ", ")
        text = f"{{'descr': '<i2', 'fortran_order': False, 'shape': ({shape}), }}".ljust(117)
        (folder / f"{number}.npy").write_bytes(b"\x93NUMPY\x01\0v\0" + text.encode() + b"\n")
    frames = volume(noise(6, 8, 10).astype("uint16"))
    sitk.WriteImage(frames, str(folder / "frames.dcm"))
    content = bytearray((folder / "frames.dcm").read_bytes())
    for number in (0x10, 0x11):  # rows, columns
        place = content.index(struct.pack("<2HI", 0x28, number, 2))
        struct.pack_into("<H", content, place + 8, 65535)
    (folder / "frames.dcm").write_bytes(content)
    (folder / "a.png").write_bytes(png(60_000, 60_000))
    (folder / "b.png").write_bytes(png(4_000, 4_999, text=zlib.compress(bytes(1 << 28))))


def png(width: int, height: int, text: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    texts = chunk(b"zTXt", b"k\0\0" + text) if text else b""
    pixels = chunk(b"IDAT", zlib.compress(bytes(1 << 20)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + texts + pixels + chunk(b"IEND", b"")


@pytest.mark.slow
def test_sizes_that_headers_claim_fill_no_memory(tmp_path):
    """In a process of its own: within 400 MB, and each is named."""
    claims(tmp_path)
    code = (
        "import sys, time; from scans.listing import list_slices; "
        "from scans.cache import decode_slices; start = time.monotonic(); "
        "found = list_slices(sys.argv[1]); n = len(found.problems); "
        "n += len({found.slices[i].source for i in decode_slices(found.slices, (16, 16)).errors}); "
        "peak = open('/proc/self/status').read().split('VmHWM:')[1].split()[0]; "
        "print(n, peak, time.monotonic() - start)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    named, kilobytes, seconds = map(float, done.stdout.split())
    assert done.stderr == ""
    assert named == len(list(tmp_path.iterdir()))
    assert kilobytes < 400_000 and seconds < 120


def test_what_libraries_print_stays_off_the_terminal(tmp_path):
    """libtiff, ITK and Pillow print of damaged files, and quote them."""
    from PIL import Image

    for number in range(4):
        path = tmp_path / f"left_{number}.tif"
        Image.fromarray(noise(40, 50).astype("uint8")).save(path, compression="tiff_adobe_deflate")
        content = bytearray(path.read_bytes())
        content[20:40] = bytes(20)
        path.write_bytes(content)
    write_tar(tmp_path / "a.tar", [])
    write_volume(tmp_path / "a.nii")
    code = (
        "import sys; from scans.listing import list_slices; from scans.cache import decode_slices; "
        "decode_slices(list_slices(sys.argv[1]).slices, (16, 16)); print('said', file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.stderr == "said\n" and not done.stdout


def test_a_header_whose_slices_are_files_of_their_own_is_read(tmp_path):
    pixels = noise(9, 9, 9)
    for k, rows in enumerate(pixels, 1):
        (tmp_path / f"s{k:03}.raw").write_bytes(rows.tobytes())
    files = "".join(f"s{k:03}.raw\n" for k in range(1, 10)).encode()
    for name, data, more in [("a", "s%03d.raw 1 9 1", b""), ("b", "LIST", files)]:
        v = open_volume(meta(tmp_path / f"{name}.mhd", more, ElementDataFile=data))
        assert (read_pixels(v) == pixels).all()
        assert {f"{tmp_path}/s{k:03}.raw" for k in range(1, 10)} <= set(v.parts)
