"""Read the test files of other projects, and compare every value with an independent reading.

    pip install pydicom-data pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg
    python benchmarks/real_files.py                     # downloads Pillow's source and a knee
    python benchmarks/real_files.py --offline --pillow Pillow/Tests/images --knee data/mskt

Files: those that pydicom, pydicom-data and nibabel are installed with, the images that Pillow is
tested on, and a knee (benchmarks/fetch_knee.py). The values are compared with those of pydicom's
decoders (pylibjpeg's where they are installed), nibabel and Pillow. Slopes, padding, the order of
slices, EXIF orientation, luminance and NRRD are computed here. A refusal counts as documented only
if the independent reading shows a reason that docs/data.md or a message of the reader states.

Exit codes: 0 nothing is wrong; 1 a file is refused without such a reason, is read wrongly, or ends
in a traceback or a crash; 2 bad arguments.
"""

import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import traceback
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # to run as `python benchmarks/real_files.py`

from common.isolation import Lost, isolated  # noqa: E402
from common.program import Parser  # noqa: E402
from common.tables import write_csv  # noqa: E402
from scans.images import read_image  # noqa: E402
from scans.names import is_image  # noqa: E402
from scans.readers import dicom, is_volume, nifti, read_pixels, reader_of  # noqa: E402
from scans.series import find_volumes  # noqa: E402
from scans.slices import MIN_SLICES, DataError, Volume  # noqa: E402
from scans.stacks import RADIOGRAPHS  # noqa: E402
from scans.volumes import check_volume, read_slices  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "real_files.csv"
PRECISION = 1e-6  # of float32, as a share of a file's largest value
LOSSY = 1.0  # stored unit by which decoders of lossy compression may differ
GREY = 1.01  # of 255, by which two roundings may differ
DECODERS = "pylibjpeg", "pydicom", "pillow", "gdcm"  # GDCM last: SimpleITK decodes with it, too
TRANSFORMATION = "PixelValueTransformationSequence"
SLOPE, INTERCEPT = (TRANSFORMATION, "RescaleSlope"), (TRANSFORMATION, "RescaleIntercept")
NRRD = {"signed char": "i1", "char": "i1", "int8": "i1", "unsigned char": "u1", "uint8": "u1"}
NRRD |= {"short": "i2", "unsigned short": "u2", "int": "i4", "float": "f4", "double": "f8"}
FORMATS = {"PNG", "JPEG", "MPO", "BMP", "TIFF", "WEBP", "GIF", "JPEG2000", "PPM"}
MAX_PIXELS = 20_000_000
BITS_PER_SAMPLE, PHOTOMETRIC, ORIENTATION = 258, 262, 274  # tags of TIFF and EXIF
# EXIF orientation -> quarter turns anticlockwise, and whether the result is mirrored.
TURNS = {2: (0, 1), 3: (2, 0), 4: (2, 1), 5: (3, 1), 6: (3, 0), 7: (1, 1), 8: (1, 0)}
READ, PASSED, NO_REFERENCE = "read", "passed over", "no reference"
BOTH, DOCUMENTED = "both refuse", "documented"
WRONG = REFUSED, DIFFERENT, CRASHED = "wrongly refused", "read wrongly", "traceback or crash"
OUTCOMES = READ, PASSED, NO_REFERENCE, BOTH, DOCUMENTED, *WRONG


# ---- independent readings ------------------------------------------------------------------------


class Place(NamedTuple):
    """Where a frame of a DICOM file lies."""

    series: tuple  # equal for frames of one series and orientation; ends in "" but of radiographs
    echo: float  # ms
    position: float  # mm along the normal; NaN: the file does not tell it


class Reference(NamedTuple):
    """An independent reading of a file, and why these programs refuse the file, if they should."""

    values: np.ndarray | None = None
    reason: str = ""  # a documented one
    tolerance: float = 0.0  # beside the rounding to float32
    places: tuple[Place, ...] = ()  # of the frames of a DICOM file


def reference_of(path: str) -> Reference | Lost:
    """What other libraries read; Lost where they fail, in whatever way."""
    readers = {dicom: dicom_reference, nifti: nifti_reference}
    read = image_reference if is_image(path) else readers.get(reader_of(path), nrrd_reference)
    try:
        return read(path)
    except Exception as error:
        return Lost(f"{type(error).__name__}: {error}")


def dicom_reference(path: str) -> Reference:
    import pydicom

    header = pydicom.dcmread(path, force=True, stop_before_pixels=True)
    if "Rows" not in header or header.get("Modality") == "SEG":
        return Reference(reason="no image of a scan")
    if header.PhotometricInterpretation == "PALETTE COLOR":
        return Reference(reason="palette")
    if header.get("SamplesPerPixel", 1) > 1:
        return Reference(reason="colours")
    data = pydicom.dcmread(path, force=True)
    if "TransferSyntaxUID" not in data.file_meta:
        explicit = pydicom.uid.ExplicitVRBigEndian, pydicom.uid.ExplicitVRLittleEndian
        is_implicit, is_little = data.original_encoding
        syntax = pydicom.uid.ImplicitVRLittleEndian if is_implicit else explicit[is_little]
        data.file_meta.TransferSyntaxUID = syntax
    stored = decode(data).reshape(-1, data.Rows, data.Columns)
    values = [frame_values(data, k, frame) for k, frame in enumerate(stored)]
    syntax = data.file_meta.TransferSyntaxUID
    is_lossy = syntax.is_encapsulated and not re.search("Lossless|RLE", syntax.name)
    tolerance = LOSSY * abs(float(frame_value(data, 0, *SLOPE) or 1)) if is_lossy else 0.0
    places = tuple(place_of(data, k, len(stored), path) for k in range(len(stored)))
    return Reference(np.stack(values), "", tolerance, places)


def decode(data) -> np.ndarray:
    """Stored values, by the first decoder that can."""
    from pydicom.pixels import get_decoder

    syntax = data.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return data.pixel_array
    decoder, failures = get_decoder(syntax), [f"{syntax.name} was not decoded"]
    for name in filter(decoder.available_plugins.__contains__, DECODERS):
        try:
            return decoder.as_array(data, raw=True, decoding_plugin=name)[0]
        except Exception as error:
            failures.append(f"{error}".splitlines()[-1].strip())
    raise ValueError("; ".join(failures))


def frame_value(data, frame: int, group: str, word: str):
    """A value of one frame: its own, one that all frames share, or the file's."""
    own = (data.get("PerFrameFunctionalGroupsSequence") or [])[frame : frame + 1]
    for groups in [*own, *(data.get("SharedFunctionalGroupsSequence") or [])]:
        for item in groups.get(group) or []:
            if word in item:
                return item[word].value
    return data.get(word)


def frame_values(data, frame: int, stored: np.ndarray) -> np.ndarray:
    """Stored values -> what they mean: table or slope, sign of MONOCHROME1, NaN for padding."""
    if table := data.get("ModalityLUTSequence"):
        _, first, bits = table[0].LUTDescriptor
        entries = table[0].LUTData
        if isinstance(entries, bytes):
            entries = np.frombuffer(entries, "<u2" if bits > 8 else "u1")
        values = np.array(entries, float)[np.clip(stored - int(first), 0, len(entries) - 1)]
    else:
        slope, intercept = (frame_value(data, frame, *which) for which in (SLOPE, INTERCEPT))
        values = stored * float(1 if slope is None else slope) + float(intercept or 0)
    values = -values if data.PhotometricInterpretation == "MONOCHROME1" else values
    if (padding := data.get("PixelPaddingValue")) is not None:
        span, lowest = 2**data.BitsAllocated, int(np.iinfo(stored.dtype).min)
        limits = padding, data.get("PixelPaddingRangeLimit", padding)
        low, high = sorted((int(limit) - lowest) % span + lowest for limit in limits)
        values[(stored >= low) & (stored <= high)] = np.nan
    return values


def place_of(data, frame: int, frames: int, path: str) -> Place:
    axes = frame_value(data, frame, "PlaneOrientationSequence", "ImageOrientationPatient")
    axes = np.array(axes or (1, 0, 0, 0, 1, 0), float)
    origin = frame_value(data, frame, "PlanePositionSequence", "ImagePositionPatient")
    position = float(np.cross(axes[:3], axes[3:]) @ np.array(origin or [np.nan] * 3, float))
    if frames > 1 and "PerFrameFunctionalGroupsSequence" not in data:
        offsets = data.get("GridFrameOffsetVector")  # of dose grids
        position = float(offsets[frame]) if offsets else float(frame)
    words = "SeriesInstanceUID SeriesNumber Modality Rows Columns".split()
    series = [f"{data.get(word)}" for word in words]
    series.append(f"{frame_value(data, frame, 'FrameContentSequence', 'StackID')}")
    echo = frame_value(data, frame, "MREchoSequence", "EffectiveEchoTime") or data.get("EchoTime")
    own = f"{path} {frame}" if data.get("Modality") in RADIOGRAPHS else ""
    return Place((*series, *axes.round(2), own), float(echo or "inf"), position)


def nifti_reference(path: str) -> Reference:
    import nibabel

    image = nibabel.load(path)
    shape = list(image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    kind = image.get_data_dtype()
    if kind.names or kind.kind == "c":
        return Reference(reason="colours or complex values")
    if len(shape) != 3:
        return Reference(reason=f"{len(shape)} dimensions")
    return Reference(image.get_fdata().reshape(shape).T)


def nrrd_reference(path: str) -> Reference:
    header, _, content = Path(path).read_bytes().partition(b"\n\n")
    if not header.startswith(b"NRRD"):
        raise ValueError("no independent reading of this format")
    fields = dict(line.split(": ", 1) for line in header.decode().splitlines() if ": " in line)
    sizes = [int(size) for size in fields["sizes"].split()]
    content = zlib.decompress(content, 31) if fields["encoding"] == "gzip" else content
    order = ">" if fields.get("endian") == "big" else "<"
    values = np.frombuffer(content, order + NRRD[fields["type"]]).reshape(sizes[::-1])
    return Reference(values) if len(sizes) == 3 else Reference(reason=f"{len(sizes)} dimensions")


def image_reference(path: str) -> Reference:
    """Grey levels (height, width) as floats, or the values of a 16-bit grey file as uint16."""
    with Image.open(path) as image:
        if image.format not in FORMATS:
            return Reference(reason=f"holds {image.format}")
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
            return Reference(reason="several images")
        if image.width * image.height > MAX_PIXELS:
            return Reference(reason="too large")
        tags = image.tag_v2 if image.format == "TIFF" else {}
        bits, is_inverted = tags.get(BITS_PER_SAMPLE, (8,)), tags.get(PHOTOMETRIC) == 0
        image.load()
        values, turn = np.asarray(image), image.getexif().get(ORIENTATION)
        if image.mode in ("F", "LAB"):
            return Reference(reason="CIELAB" if image.mode == "LAB" else "more than 16 bits")
        if is_deep := image.mode.startswith("I"):
            if values.min() < 0 or values.max() >= 2**16:
                return Reference(reason="more than 16 bits")
            white = 2 ** max(8, int(values.max()).bit_length()) - 1
            values = (white - values if is_inverted else values).astype(np.uint16)
        else:
            colours = np.asarray(image.convert("RGBA"), float)
            values, alpha = colours[..., :3] @ (0.299, 0.587, 0.114), colours[..., 3] / 255
            values = values * alpha if alpha.any() else values
    if turn in TURNS:
        quarters, is_mirrored = TURNS[turn]
        values = np.rot90(values, quarters)
        values = values[:, ::-1] if is_mirrored else values
    reason = "colours of 16 bits, planar or CMYK" if len(bits) > 2 and max(bits) > 8 else ""
    return Reference(values, reason, 0.0 if is_deep else GREY)


# ---- our readings, and the comparison ------------------------------------------------------------


class Verdict(NamedTuple):
    outcome: str  # one of OUTCOMES
    text: str = ""
    difference: float = 0.0  # the largest, as a share of the file's largest value


def read(task: str | Volume) -> np.ndarray | Verdict:
    """All values of an image, a volume, each frame of a DICOM file, or a series of such frames."""
    try:
        if isinstance(task, Volume):
            read_slices(task)  # only that it ends without an error
            return read_pixels(task)
        if is_image(task):
            return read_image(task).values
        volumes = reader_of(task).read_headers(task)
        for volume in volumes:
            check_volume(volume)
        return np.concatenate([read_pixels(volume) for volume in volumes])
    except DataError as error:
        return Verdict(REFUSED, getattr(error, "text", str(error)))
    except Exception:
        return Verdict(CRASHED, traceback.format_exc())


def judge(values: np.ndarray | Verdict | Lost, reference: Reference | Lost) -> Verdict:
    has_failed = isinstance(reference, Lost)
    reason = reference.text if has_failed else reference.reason
    if isinstance(values, Lost):
        return Verdict(CRASHED, values.text)
    if isinstance(values, Verdict):
        if values.outcome == CRASHED or not reason:
            return values
        return Verdict(BOTH if has_failed else DOCUMENTED, f"{reason} | {values.text}")
    if has_failed or reference.values is None:
        return Verdict(NO_REFERENCE, reason)
    return compare(values, reference)


def compare(values: np.ndarray, reference: Reference) -> Verdict:
    expected, tolerance = reference.values, reference.tolerance
    if values.shape != expected.shape:
        return Verdict(DIFFERENT, f"shape {values.shape}, expected {expected.shape}")
    if tolerance == GREY and values.dtype == np.uint16:  # Pillow keeps 8 bits of deep colours
        values, tolerance = values / 257, 1.5
    with np.errstate(over="ignore"):
        is_finite = np.isfinite(expected.astype(np.float32))
    if count := int((np.isfinite(values) != is_finite).sum()):
        return Verdict(DIFFERENT, f"{count} values are NaN or infinite in one reading only")
    expected, values = expected[is_finite].astype(float), values[is_finite].astype(float)
    largest = np.abs(expected).max(initial=0.0) or 1.0
    difference = np.abs(values - expected).max(initial=0.0)
    if difference <= tolerance + PRECISION * largest:
        return Verdict(READ, "", difference / largest)
    text = f"differs by {difference:.6g}; the largest value is {largest:.6g}"
    return Verdict(DIFFERENT, text, difference / largest)


def judge_series(folder: str, references: dict[str, Reference]) -> Iterator[tuple[str, Verdict]]:
    """The DICOM series of a folder, put together here, against the volumes that we find there."""
    found = find_volumes(folder, [os.path.basename(path) for path in references])
    volumes = [volume for volume in found.volumes if volume.places]
    values_of = {
        frozenset((volume.parts[part], frame) for part, frame in volume.places): values
        for volume, values in zip(volumes, isolated(read, volumes), strict=True)
    }
    refusal = Verdict(REFUSED, "; ".join(sorted({problem.text for problem in found.problems})))
    all_series = defaultdict(lambda: defaultdict(list))
    for path, reference in references.items():
        for frame, place in enumerate(reference.places):
            all_series[place.series][place.echo].append((place.position, path, frame))
    for series, echoes in all_series.items():
        for echo, slices in echoes.items():
            slices.sort()
            reason = "" if series[-1] else reason_of([position for position, *_ in slices])
            reason = "another echo" if echo > min(echoes) else reason
            expected = np.stack([references[path].values[frame] for _, path, frame in slices])
            tolerance = max(references[path].tolerance for _, path, _ in slices)
            where = frozenset((path, frame) for _, path, frame in slices)
            reference = Reference(expected, reason, tolerance)
            verdict = judge(values_of.get(where, refusal), reference)
            text = reason if verdict.outcome == DOCUMENTED else verdict.text
            yield slices[0][1], verdict._replace(text=text)


def reason_of(positions: list[float]) -> str:
    """Why slices at these positions are no volume, by the rules of scans/stacks.py."""
    if len(positions) < MIN_SLICES:
        return f"fewer than {MIN_SLICES} slices"
    gaps = np.diff(positions)
    if not gaps.min() >= 0.01:
        return "equal positions, or none"
    missing = np.maximum(np.round(gaps / np.median(gaps)) - 1, 0).sum()
    is_incomplete = missing > 0.1 * (len(positions) + missing)
    return "more than 1 slice in 10 is missing" if is_incomplete else ""


# ---- files ---------------------------------------------------------------------------------------


def find_sources(args, scratch: Path) -> dict[str, list[Path]]:
    """Name -> files. The program says which sources it can't get, and leaves them out."""
    patterns = {"pydicom": "data/**/*", "data_store": "data/**/*", "nibabel": "**/data/**/*"}
    sources = {}
    for name, pattern in patterns.items():
        spec = importlib.util.find_spec(name)
        sources[name] = list(Path(spec.origin).parent.glob(pattern)) if spec else []
    pillow, knee = args.pillow, args.knee
    if not (pillow or args.offline):
        command = "-m pip download --quiet --no-binary :all: --no-deps pillow --dest".split()
        subprocess.run([sys.executable, *command, scratch], check=False)
        for archive in scratch.glob("pillow-*.tar.gz"):
            with tarfile.open(archive) as tar:
                images = [member for member in tar if "/Tests/images/" in member.name]
                tar.extractall(scratch / "pillow", images, filter="data")
        pillow = scratch / "pillow"
    if not (knee or args.offline):
        command = [sys.executable, ROOT / "benchmarks" / "fetch_knee.py", scratch / "knee"]
        subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
        knee = next((scratch / "knee").glob("*/data"), None)
    for name, place in {"Pillow": pillow, "knee": knee}.items():
        sources[name] = [place, *place.glob("**/*")] if place else []
    for name, paths in sources.items():
        if not paths:
            print(f"{name}: its files can't be had, and are left out")
        paths = [path for path in paths if path.is_file() and path.suffix not in (".py", ".pyc")]
        sources[name] = sorted(paths)
    return sources


def judge_files(paths: list[Path]) -> Iterator[tuple[str, str, Verdict]]:
    """Kind, path and verdict of each file and each DICOM series, folder by folder."""
    folders = defaultdict(list)
    for path in paths:
        folders[str(path.parent)].append(str(path))
    for folder, files in folders.items():
        chosen = [path for path in files if is_image(os.path.basename(path)) or is_volume(path)]
        for path in sorted(set(files) - set(chosen)):
            yield "other", path, Verdict(PASSED, os.path.splitext(path)[1])
        references = dict(zip(chosen, isolated(reference_of, chosen), strict=True))
        for path, values in zip(chosen, isolated(read, chosen), strict=True):
            kind = "image" if is_image(path) else reader_of(path).__name__.rsplit(".", 1)[-1]
            yield kind, path, judge(values, references[path])
        placed = {path: r for path, r in references.items() if getattr(r, "places", ())}
        alone = [{path: r} for path, r in placed.items() if len(r.places) >= MIN_SLICES]
        for files_at_once in [placed, *alone]:
            for path, verdict in judge_series(folder, files_at_once):
                yield "dicom series", path, verdict


def main() -> int:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--pillow", type=Path, metavar="DIR", help="Pillow's source, or its images")
    add("--knee", type=Path, metavar="PATH", help="a folder or a file of a real knee")
    add("--offline", action="store_true", help="download nothing")
    add("--results", type=Path, default=RESULTS, metavar="FILE", help="for the table")
    args = parser.parse_args()
    rows, paths_of = [], defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        for source, paths in find_sources(args, Path(scratch)).items():
            verdicts = defaultdict(list)
            for kind, path, verdict in judge_files(paths):
                verdicts[kind].append(verdict)
                text = " ".join(verdict.text.replace(path, "it").split())
                if verdict.outcome in (NO_REFERENCE, BOTH, DOCUMENTED, PASSED):
                    text = re.sub(r"\d+", "#", text)
                paths_of[verdict.outcome, kind, text].append(os.path.basename(path))
            for kind, of_kind in sorted(verdicts.items()):
                counts = Counter(verdict.outcome for verdict in of_kind)
                row = {"source": source, "kind": kind, "tried": len(of_kind)}
                row |= {outcome: counts[outcome] for outcome in OUTCOMES}
                rows.append(row | {"difference": f"{max(v.difference for v in of_kind):.1g}"})
    for (outcome, kind, text), names in sorted(paths_of.items()):
        if text:
            print(f"{outcome}: {kind}: {text} ({len(names)}: {', '.join(names[:3])})")
    for row in [dict(zip(rows[0], rows[0], strict=True)), *rows]:
        print("  ".join(f"{cell:>{max(12, len(name))}}" for name, cell in row.items()))
    write_csv(args.results, rows)
    return int(any(row[outcome] for row in rows for outcome in WRONG))


if __name__ == "__main__":
    sys.exit(main())
