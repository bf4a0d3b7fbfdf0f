"""Small sound data for benchmarks/fuzz.py: images, volumes, tables, a run and a filled cache."""

import contextlib
import gzip
import io
import json
import os
import struct
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import dataset
import predict
import train

MAINS = {"train.py": train.main, "predict.py": predict.main, "dataset.py": dataset.main}
# As seen from the folder that a program is started in.
MATERIAL, CHECKPOINT = Path("../../material"), "../../material/best.pt"
CACHE = ["--cache-dir", "../cache", "-j", "2"]
MODEL = (
    "--num-latents 4 --latent-dim 8 --depth 1 --latent-heads 1 --latent-dim-head 4 "
    "--cross-dim-head 4 --num-freq-bands 2 --epochs 1 -b 16 --device cpu --image-size 8 8"
).split()
TRAIN = [*MODEL, *CACHE, "--output-dir", "../out/run"]
SHEET = ["--contact-sheet", "../out/sheet.png", "--image-size", "8", "8", *CACHE]
PRODUCTS = {"layers": "BLAS", "reading": "BLAS"}
TABLES = {
    "manifest": "path,label,patient,scan",
    "labels": "patient,label",
    "split": "subset,label,patient,scan,slices",
}


def make_material(folder: Path) -> None:
    """Images, volumes of each format, tables, a checkpoint, a run and a filled cache."""
    for part in ("material", "first/cwd", "first/cache"):
        (folder / part).mkdir(parents=True)
    os.chdir(folder / "first/cwd")
    rng = np.random.default_rng(0)
    rows = []
    for patient in range(6):
        for side in ("left", "right"):
            for number in range(2):
                pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                name = f"OAI900000{patient}_V_1_{side.upper()}.nii.gz_{number}.png"
                put(MATERIAL / "knees" / name, encoded(pixels))
                put(
                    MATERIAL / f"plain/p{patient:02}_{side[0]}{number}.png", encoded(pixels[..., 0])
                )
                scan = name.removesuffix(f"_{number}.png")
                rows.append([f"../../material/knees/{name}", side, f"p{patient}", scan])
    for name, content in volumes().items():
        put(MATERIAL / "volumes" / name, content)
    write_rows(MATERIAL / "manifest.csv", TABLES["manifest"], rows)
    labels = [[f"p{patient:02}", ("left", "right")[patient % 2]] for patient in range(6)]
    write_rows(MATERIAL / "labels.csv", TABLES["labels"], labels)
    run_once("train.py", ["--data-dir", f"{MATERIAL}/knees", *TRAIN, "--ema", "0.9"])
    run_once("dataset.py", [f"{MATERIAL}/volumes", *SHEET], codes=(0, 2))
    content = torch.load("../out/run/last.pt", weights_only=True)
    record = json.loads(Path("../out/run/args.json").read_text())
    record["arguments"] |= {"dry_run": True, "data_dir": f"{MATERIAL}/knees"}
    record |= {"started": "2025-01-01T00:00:00", "git_commit": None, "products": PRODUCTS}
    Path("../out/run/args.json").write_text(json.dumps(record, indent=2))
    of_training = ("optimizer", "progress", "weights")
    torch.save({k: v for k, v in content.items() if k not in of_training}, CHECKPOINT)
    Path("../out/run").rename(MATERIAL / "run")
    Path("../cache").rename(MATERIAL / "cache")


def run_once(program: str, arguments: list[str], codes: tuple[int, ...] = (0,)) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = MAINS[program](arguments)
    assert code in codes, f"{program} refuses sound data: {printed.getvalue()}"


def put(path: Path | str, content: bytes) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def encoded(pixels: np.ndarray, form: str = "png") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def write_rows(path: Path, header: str, rows: list[list[str]]) -> None:
    put(path, "\n".join([header, *map(",".join, rows), ""]).encode())


def volumes() -> dict[str, bytes]:
    """A small volume in each format, by file name; the DICOM series has a file for each slice."""
    pixels = np.random.default_rng(1).integers(0, 4096, (6, 9, 12)).astype("<i2")
    data, stream = pixels.tobytes(), io.BytesIO()
    np.save(stream, pixels)
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, 12, 9, 6, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 4, 16)
    struct.pack_into("<8f", header, 76, 1, 0.5, 0.5, 3, 0, 0, 0, 0)
    struct.pack_into("<3f", header, 108, 352, 1, 0)
    struct.pack_into("<2h", header, 252, 1, 0)
    struct.pack_into("<3f", header, 268, -70, 10, 5)
    header[344:348] = b"n+1\0"
    nrrd = (
        "NRRD0004\ntype: int16\ndimension: 3\nspace: left-posterior-superior\nsizes: 12 9 6\n"
        "space directions: (0.5,0,0) (0,0.5,0) (0,0,3)\nendian: little\nencoding: raw\n"
        "space origin: (70,0,5)\n\n"
    )
    meta = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
        "Offset = 70 0 5\nElementSpacing = 0.5 0.5 3\nDimSize = 12 9 6\nElementType = MET_SHORT\n"
        "ElementDataFile = {}\n"
    )
    found = {
        "p01_LEFT.nii": bytes(header) + data,
        "p02_LEFT.nii.gz": gzip.compress(bytes(header) + data, 1, mtime=0),
        "p03_LEFT.nrrd": nrrd.encode() + data,
        "p04_LEFT.mha": meta.format("LOCAL").encode() + data,
        "p05_LEFT.mhd": meta.format("p05_LEFT.raw").encode(),
        "p05_LEFT.raw": data,
        "p06_RIGHT.npy": stream.getvalue(),
    }
    return found | {f"p07_RIGHT/{k:03}.dcm": dicom(k, pixels[k]) for k in range(6)}


def dicom(k: int, pixels: np.ndarray, tags: dict[tuple[int, int], bytes] = {}) -> bytes:  # noqa: B006
    """One slice of a series; tags replaces texts."""
    texts = {
        (0x8, 0x16): b"UI1.2.840.10008.5.1.4.1.1.4",
        (0x8, 0x18): b"UI1.2.3.%d" % (k + 1),
        (0x8, 0x20): b"DA20040101",
        (0x8, 0x60): b"CSMR",
        (0x8, 0x103E): b"LOSAG_3D_DESS_RIGHT",
        (0x10, 0x20): b"LO9000007",
        (0x18, 0x81): b"DS10",
        (0x20, 0xD): b"UI1.2.3",
        (0x20, 0xE): b"UI1.2.3.4",
        (0x20, 0x11): b"IS4",
        (0x20, 0x13): b"IS%d" % (k + 1),
        (0x20, 0x32): b"DS%d\\-50\\60" % (-70 - 3 * k),
        (0x20, 0x37): b"DS0\\1\\0\\0\\0\\-1",
        (0x28, 0x4): b"CSMONOCHROME2",
        (0x28, 0x30): b"DS0.5\\0.5",
    }
    numbers = {0x2: 1, 0x10: 9, 0x11: 12, 0x100: 16, 0x101: 16, 0x102: 15, 0x103: 1}
    texts |= tags
    texts |= {(0x28, element): b"US" + struct.pack("<H", n) for element, n in numbers.items()}
    whole = b"".join(
        struct.pack("<2H2sH", *tag, text[:2], len(text[2:]) + len(text) % 2)
        + text[2:]
        + (b"" if len(text) % 2 == 0 else b"\0" if text[:2] == b"UI" else b" ")
        for tag, text in sorted(texts.items())
    )
    data = pixels.tobytes()
    meta = b"".join(
        struct.pack("<2H2sH", 2, element, b"UI", len(uid)) + uid
        for element, uid in (
            (2, b"1.2.840.10008.5.1.4.1.1.4\0"),
            (3, b"1.2.3.4.\0\0"),
            (0x10, b"1.2.840.10008.1.2.1\0"),
        )
    )
    start = bytes(128) + b"DICM" + struct.pack("<2H2sHI", 2, 0, b"UL", 4, len(meta)) + meta
    return start + whole + struct.pack("<2H2sHI", 0x7FE0, 0x10, b"OW", 0, len(data)) + data
