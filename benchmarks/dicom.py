"""How long it takes to list the OAI as it is released, and to read the pixels of one series.

    python benchmarks/dicom.py                     # 75,000 small files: 500 series of 150 slices
    python benchmarks/dicom.py --patients 2        # fewer of them

Lists them in processes of their own: with an empty cache folder, and twice with what it kept. Then
reads a series of 160 slices of 384 x 384, as large as the OAI's, beside plain SimpleITK. (The files
may be in the system's memory already.)
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scans.series import open_volume  # noqa: E402
from scans.volumes import read_pixels  # noqa: E402

VISITS, SLICES = 2, 150
SERIES = "SAG_3D_DESS COR_IW_TSE SAG_IW_TSE COR_T1_FLASH SAG_T2_MAP".split()
LISTING = """
import json, resource, sys, time
from pathlib import Path
from scans.listing import list_slices
from scans.slices import Options
started = time.perf_counter()
listing = list_slices(sys.argv[1], None, Options(cache_dir=Path(sys.argv[2])))
seconds = time.perf_counter() - started
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
print(json.dumps([seconds, memory, len({s.scan for s in listing.slices}), len(listing.problems)]))
"""


def write_slice(path: Path, pixels: np.ndarray, tags: dict[str, str]) -> None:
    image = SimpleITK.GetImageFromArray(pixels[None])
    image.SetSpacing((0.365, 0.365, 0.7))
    for tag, value in {"0008|0060": "MR", "0020|0037": "0\\1\\0\\0\\0\\-1", **tags}.items():
        image.SetMetaData(tag, value)
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(path))
    writer.Execute(image)


def write_series(folder: Path, slices: int, size: int, tags: dict[str, str], x: float) -> None:
    """Slices that differ in position and SOPInstanceUID: the first one's bytes with others in."""
    folder.mkdir(parents=True)
    standard = {"0020|0032": "-123.45\\-50\\60", "0008|0018": "1.9.1000000"}
    pixels = np.random.default_rng(0).integers(0, 4096, (size, size)).astype(np.int16)
    first = folder / "001.dcm"
    write_slice(first, pixels, standard | tags)
    content = first.read_bytes()
    first.unlink()
    for k in range(slices):
        own = content.replace(b"-123.45", f"{x + 0.7 * k:+07.2f}".encode())
        own = own.replace(b"1.9.1000000", f"1.9.{1000000 + k}".encode())
        (folder / f"{k + 1:03}").write_bytes(own)


def write_oai(root: Path, patients: int) -> int:
    """Series of both knees, ten a visit. Returns how many files there are."""
    for patient in range(patients):
        for visit in range(VISITS):
            for number, (sequence, side) in enumerate((s, x) for s in SERIES for x in (1, -1)):
                name, date = f"{9000000 + patient}", f"{2004 + visit}0101"
                tags = {
                    "0010|0020": name,
                    "0008|0020": date,
                    "0020|000e": f"1.9.{patient}.{visit}.{number}",
                    "0020|0011": f"{number + 1}",
                    "0008|103e": f"{sequence}_{'LEFT' if side > 0 else 'RIGHT'}",
                }
                folder = root / f"{12 * visit:02}m" / "0.C.2" / name / date / f"{10000000 + number}"
                write_series(folder, SLICES, 8, tags, side * 75.0 - 0.35 * SLICES)
    return patients * VISITS * len(SERIES) * 2 * SLICES


def fastest(*ways: Callable) -> list[float]:
    """The shortest time of seven of each way, in turn."""
    times = [[] for _ in ways]
    for _ in range(7):
        for way, taken in zip(ways, times, strict=True):
            started = time.perf_counter()
            way()
            taken.append(time.perf_counter() - started)
    return [min(taken) for taken in times]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patients", type=int, default=25, metavar="N", help="3,000 files each")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        oai, cache, knee = (Path(scratch, name) for name in ("oai", "cache", "knee"))
        files = write_oai(oai, args.patients)
        for start in ("first start", "second start", "third start"):
            command = [sys.executable, "-c", LISTING, oai, cache]
            done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
            seconds, memory, scans, problems = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{start}: {files:,} files, {scans} scans, {problems} problems in {seconds:.1f} s; "
                f"{memory:.2f} GB; {os.cpu_count()} cores"
            )
        write_series(knee, 160, 384, {"0020|000e": "1.9", "0020|0011": "1"}, 0.0)
        volume = open_volume(knee)

        def plain() -> np.ndarray:
            reader = SimpleITK.ImageSeriesReader()
            reader.SetFileNames(volume.parts)
            return SimpleITK.GetArrayFromImage(reader.Execute())

        assert np.array_equal(plain(), read_pixels(volume))
        theirs, ours = fastest(plain, lambda: read_pixels(volume))
        print(
            f"160 slices of 384 x 384: {ours * 1000:.0f} ms as float32; SimpleITK alone "
            f"{theirs * 1000:.0f} ms as int16: {ours / theirs:.2f} times"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
