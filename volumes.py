"""Knees as volumes: NIfTI, NRRD, MetaImage and folders of DICOM files -> slices as in AKOA.

    pip install -r requirements-volumes.txt
    python volumes.py IN OUT                      # slices as stored
    python volumes.py IN OUT --plane sagittal     # superior on top, anterior at the left

Writes 8-bit grey PNGs that dataset.py reads: OUT/<AKOA name>_<i>.png for volumes with AKOA names,
OUT/<side>/<patient>/<volume>/<i>.png for others. The patient is the DICOM PatientID, else the first
folder below IN that is not just a side, else the volume. The side is told by the name, the DICOM
header and the position in the scanner; where these disagree or say nothing, it is `unknown`.

Exit codes: 0 all done, 1 some volumes failed, 2 unusable arguments or no volume, 130 on Ctrl-C.
"""

import argparse
import gzip
import os
import re
import shutil
import sys
import threading
import zlib
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from tqdm import tqdm

PLANES = ("stored", "sagittal", "coronal", "axial")
MAX_SLICES = 40  # as in AKOA
MIN_SLICES = 5  # fewer are a localizer
MAX_PIXELS = 20_000_000  # a slice, as in decode.py
MAX_VOXELS = 500_000_000  # 2 GB as float32; a file that claims more is damaged or hostile
MIDLINE = 20.0  # mm; a volume centred nearer to x = 0 does not tell its side
NOTHING = "nothing tells the side"
TOO_SHORT = f"expected {MIN_SLICES} or more"
PERCENTILES = (1, 99.5)  # of the whole volume: black and white

NOT_DICOM = set(
    ".png .jpg .jpeg .bmp .tif .tiff .gif .txt .csv .json .md .pdf .db .ini .py .pt .zip .gz .raw "
    ".zraw .xml .html .bval .bvec".split()
)
ENDING = re.compile(r"(.+?)(\.nii|\.nii\.gz|\.nrrd|\.nhdr|\.mha|\.mhd)?", re.I | re.S)
SIDE = re.compile(r"(?<![^\W\d_])(left|right|l_e_f_t|r_i_g_h_t)(?![^\W\d_])", re.I)
AKOA_VOLUME = re.compile(r"OAI\d+_.*_(left|right|l_e_f_t|r_i_g_h_t)(\.nii(\.gz)?)?", re.IGNORECASE)
# Where slices, rows (downwards) and columns (to the right) of a plane go: Left, Posterior, ...
TOWARDS = {"sagittal": "LIP", "coronal": "PIL", "axial": "SPL"}
OPPOSITE = dict(zip("LRPASI", "RLAPIS", strict=True))
# fmt: off
TAGS = {
    "patient": "0010|0020", "series": "0020|000e", "number": "0020|0011", "about": "0008|103e",
    "echo_time": "0018|0081", "echo": "0018|0086", "position": "0020|0032",
    "laterality": "0020|0060", "image_laterality": "0020|0062",
    "bits": "bitpix", "offset": "vox_offset",  # NIfTI
    "space": "NRRD_space",
}
# fmt: on


class VolumeError(ValueError):
    """A volume that can't be used: VolumeError(path, problem), read as one line."""

    def __str__(self) -> str:
        return ": ".join(map(str, self.args))


@dataclass(frozen=True, slots=True)
class Volume:
    """One knee imaged once, before it is cut into slices.

    source is what read_slices takes: "p01/knee_RIGHT.nii.gz", "p01/dicom", "p01/dicom#2" for the
    second series of a folder. files are all that it is read from, DICOM files in spatial order.
    told_by is "name", "header" or "position", or why there is no side. spacing is in mm along
    columns, rows and slices as stored.
    """

    source: str
    files: tuple[str, ...]
    patient: str | None
    side: str | None
    told_by: str
    num_slices: int
    spacing: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Header:
    """Geometry in mm, in patient coordinates (x to the left, y to the back, z up), axes i, j, k."""

    path: str
    parts: tuple[str, ...]  # the files whose pixels, one after the other, are the volume
    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: np.ndarray  # (3, 3); column a is where axis a points
    components: int
    bits: int
    sides: frozenset[str]  # that DICOM tags name
    tags: dict[str, str]


# ---- names ---------------------------------------------------------------------------------------


def is_localizer(problem: str) -> bool:
    """Whether what is wrong with a series is that it is too short to be a scan."""
    return problem.endswith(TOO_SHORT)


def is_volume_name(name: str) -> bool:
    """By its ending: NIfTI, NRRD or MetaImage. DICOM files often have none; see is_dicom."""
    name = os.path.basename(name)
    return bool(re.fullmatch(r"[^.].*\.(nii|nii\.gz|nrrd|nhdr|mha|mhd)", name, re.I | re.S))


def is_dicom(path: str | os.PathLike) -> bool:
    """By its ending .dcm, or by its content if the ending is none or unknown. Never raises."""
    name = os.path.basename(path)
    suffix = os.path.splitext(name)[1].lower()
    if name.startswith(".") or name.upper() == "DICOMDIR":
        return False
    if suffix == ".dcm" or suffix in NOT_DICOM or is_volume_name(name):
        return suffix == ".dcm"
    try:
        if not os.path.isfile(path):  # to open a pipe would wait for ever
            return False
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def side_in_name(path: str) -> str | None:
    """left or right as a word of the file's name, else of the nearest folder's; None if both."""
    for part in reversed(os.path.normpath(path).split(os.sep)):
        if found := {word.replace("_", "").lower() for word in SIDE.findall(part)}:
            return found.pop() if len(found) == 1 else None
    return None


# ---- headers -------------------------------------------------------------------------------------


def simpleitk():
    """SimpleITK, imported when a volume is really read. Raises VolumeError without it."""
    try:
        import SimpleITK
    except ImportError:
        raise VolumeError(
            "reading volumes needs SimpleITK: pip install -r requirements-volumes.txt"
        ) from None
    SimpleITK.ProcessObject_SetGlobalWarningDisplay(False)
    return SimpleITK


def one_line(error: Exception) -> str:
    """What SimpleITK says, without its source files and addresses."""
    text = str(error).rsplit("ERROR:", 1)[-1]
    if "Unable to determine ImageIO" in text:
        return "damaged, or not what its name says"
    return " ".join(re.sub(r"\w+\(0x\w+\):", "", text).split())[:300]


def read_header(path: str) -> Header:
    """Size, geometry and tags of one file, without its pixels. Raises VolumeError."""
    sitk = simpleitk()
    reader = sitk.ImageFileReader()
    reader.SetFileName(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise VolumeError(path, one_line(error)) from None
    size, dimension = reader.GetSize(), reader.GetDimension()
    if dimension == 4 and size[3] == 1:
        size = size[:3]
    held = {name: tag for name, tag in TAGS.items() if reader.HasMetaDataKey(tag)}
    tags = {name: clean(reader.GetMetaData(tag)) for name, tag in held.items()}
    letters = {tags.get("laterality"), tags.get("image_laterality")}
    bits = tags.get("bits") or sitk.GetPixelIDValueAsString(reader.GetPixelID()).split("-")[0]
    return Header(
        path=path,
        parts=(path,),
        size=size,
        spacing=reader.GetSpacing()[:3],
        origin=reader.GetOrigin()[:3],
        direction=np.array(reader.GetDirection()).reshape(dimension, dimension)[:3, :3],
        components=reader.GetNumberOfComponents(),
        bits=int(bits) if bits.isdigit() else 8,
        sides=frozenset({"L": "left", "R": "right"}[x] for x in letters & {"L", "R"}),
        tags=tags,
    )


def clean(tag: str) -> str:
    """A tag's text without padding, and without bytes that are no text."""
    return tag.encode("utf-8", "replace").decode().strip(" \0")


def number(text: str | None) -> float:
    """For sorting: what is no number comes last."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return np.inf


def check_volume(header: Header) -> None:
    """Raise VolumeError for what is not one grey 3D volume of a sane size."""
    size = " x ".join(map(str, header.size))
    if len(header.size) < 3:
        problem = f"a 2D image ({size}), expected a volume"
    elif len(header.size) > 3:
        problem = f"has {len(header.size)} dimensions ({size}), expected one 3D volume"
    elif header.components > 1:
        problem = f"has {header.components} values a voxel (colours?), expected grey values"
    elif not all(np.isfinite(s) and s > 0 for s in header.spacing):
        problem = f"claims voxels of {' x '.join(map(str, header.spacing))} mm"
    elif np.prod(header.size, dtype=float) > MAX_VOXELS:
        problem = f"claims {size} voxels, more than {MAX_VOXELS}"
    else:
        return
    raise VolumeError(header.path, problem)


def cut_axes(header: Header, plane: str) -> tuple[list[int], list[bool], tuple[int, int]]:
    """Which of the axes i, j, k (0, 1, 2) are slices, rows and columns, and which are reversed.

    Also height and width of slices whose pixels are square and as large as the smaller spacing.
    Raises VolumeError if the slices are too few or too large.
    """
    if plane == "stored":
        thick = header.spacing[2] >= 0.99 * max(header.spacing)
        through = 2 if thick else int(np.argmax(header.spacing))
        axes, reverse = [through, *(a for a in (2, 1, 0) if a != through)], [False] * 3
    elif plane in PLANES:
        orient = simpleitk().DICOMOrientImageFilter.GetOrientationFromDirectionCosines
        code = orient(header.direction.ravel().tolist())  # "PIR": i goes to posterior, ...
        axes = [max(code.find(c), code.find(OPPOSITE[c])) for c in TOWARDS[plane]]
        reverse = [code[a] != c for a, c in zip(axes, TOWARDS[plane], strict=True)]
    else:
        raise VolumeError(f"plane must be one of {', '.join(PLANES)}, got {plane!r}")
    if (n := header.size[axes[0]]) < MIN_SLICES:
        raise VolumeError(header.path, f"only {n} slices, {TOO_SHORT}")
    (height, width), spacing = ([v[a] for a in axes[1:]] for v in (header.size, header.spacing))
    if max(spacing) > 1.01 * min(spacing):
        height = max(1, round(height * spacing[0] / min(spacing)))
        width = max(1, round(width * spacing[1] / min(spacing)))
    if height * width > MAX_PIXELS:
        raise VolumeError(header.path, f"slices of {height} x {width} pixels are too large")
    return axes, reverse, (height, width)


def tell_side(header: Header, name: str) -> tuple[str | None, str]:
    """Side and who told it, or None and why not. All that speak must agree.

    The position speaks if the volume's centre is more than 20 mm from the middle, x = 0, and if the
    file has real geometry: an origin of exactly 0, 0, 0 or a NRRD file without `space` has none.
    """
    said = [("name", side_in_name(name)), *(("header", side) for side in sorted(header.sides))]
    placed = "space" in header.tags or not header.path.lower().endswith((".nrrd", ".nhdr"))
    if placed and any(header.origin):
        extent = np.multiply(header.spacing, np.subtract(header.size, 1))
        x = header.origin[0] + (header.direction @ extent)[0] / 2
        said.append(("position", ("left" if x > 0 else "right") if abs(x) > MIDLINE else None))
    said = [(who, side) for who, side in said if side]
    if not said:
        return None, NOTHING
    if len({side for _, side in said}) > 1:
        who, side = said[0]
        return None, f"the {who} says {side}, " + ", ".join(f"its {w} {s}" for w, s in said[1:])
    return said[0][1], said[0][0]


# ---- DICOM ---------------------------------------------------------------------------------------


def find_series(
    folder: str, names: list[str]
) -> tuple[list[Header], list[Header], list[tuple[str, str]]]:
    """The series among DICOM files of a folder, files that are a volume each, and problems.

    Files belong together if they share SeriesInstanceUID, size and orientation. Of several echoes
    only the one with the shortest echo time is taken. Series are in the order of their numbers.
    """
    groups = defaultdict(lambda: defaultdict(list))
    singles, problems = [], []
    for name in sorted(names):
        path = os.path.join(folder, name)
        if not is_dicom(path):
            continue
        try:
            header = read_header(path)
        except VolumeError as error:
            problems.append(error.args)
            continue
        if header.size[2:] != (1,):
            singles.append(header)
            continue
        tags = header.tags
        orientation = tuple((header.direction.ravel().round(3) + 0.0).tolist())
        key = (number(tags.get("number")), tags.get("series", ""), header.size, orientation)
        groups[key][number(tags.get("echo_time")), number(tags.get("echo"))].append(header)
    series = []
    for _, echoes in sorted(groups.items()):
        try:
            series.append(stack(folder, echoes[min(echoes)]))
        except VolumeError as error:
            problems.append(error.args)
    return series, singles, problems


def stack(folder: str, slices: list[Header]) -> Header:
    """One volume of single slices, in the order of their positions along the normal.

    Raises VolumeError: fewer than 5, no or equal positions, or more than 1 in 10 missing.
    """
    tags = slices[0].tags
    name = f"series {tags.get('number', '?')} ({tags.get('about') or 'no description'})"
    normal = slices[0].direction[:, 2]
    slices = sorted(slices, key=lambda s: float(normal @ s.origin))
    gaps = np.diff([normal @ s.origin for s in slices])
    if len(slices) < MIN_SLICES:
        problem = f"only {len(slices)} slices, {TOO_SHORT}"
    elif not all(s.tags.get("position") for s in slices):
        problem = "slices without a position (ImagePositionPatient)"
    elif (twice := np.flatnonzero(gaps < 0.01)).size:
        first = " and ".join(os.path.basename(s.path) for s in slices[twice[0] :][:2])
        problem = f"{twice.size} slices lie where another one does, first: {first}"
    else:
        step = float(np.median(gaps))
        missing = int((np.maximum(np.round(gaps / step), 1) - 1).sum())
        if missing * 10 <= len(slices) + missing:
            return replace(
                slices[0],
                path=folder,
                parts=tuple(s.path for s in slices),
                size=(*slices[0].size[:2], len(slices)),
                spacing=(*slices[0].spacing[:2], step),
                sides=frozenset().union(*(s.sides for s in slices)),
            )
        problem = f"{missing} of {len(slices) + missing} slices are missing"
    raise VolumeError(folder, f"{name}: {problem}")


# ---- volumes -> slices ---------------------------------------------------------------------------


def find_volumes(
    folder: str, names: list[str], plane: str = "stored", root: str | None = None
) -> tuple[list[Volume], list[tuple[str, str]]]:
    """The volumes among the files `names` of one folder, by their headers; pixels are not read.

    Of a DICOM series with several echoes only the shortest echo is offered. Folders above `root`
    and root itself say nothing of the side, unless root is the volume. num_slices is for `plane`.

    Returns the volumes and (path, problem) of what looks like a volume but can't be used.

    Raises:
        VolumeError: there are such files, but SimpleITK is not installed.
    """
    found, problems = [], []
    for name in sorted(filter(is_volume_name, names)):
        try:
            found.append(read_header(os.path.join(folder, name)))
        except VolumeError as error:
            if len(error.args) == 1:  # of no file: SimpleITK is missing
                raise
            problems.append(error.args)
    series, singles, unusable = find_series(folder, names)
    sources = [h.path for h in found + singles]
    sources += [folder if i == 1 else f"{folder}#{i}" for i in range(1, len(series) + 1)]
    volumes, problems = [], problems + unusable
    for source, header in zip(sources, [*found, *singles, *series], strict=True):
        name = os.path.relpath(source, root) if root else source
        try:
            check_volume(header)
            axes, _, _ = cut_axes(header, plane)
        except VolumeError as error:
            problems.append((source, error.args[-1]))
            continue
        volumes.append(
            Volume(
                source,
                header.parts + data_files(header.path),
                header.tags.get("patient") or None,
                *tell_side(
                    header, os.path.basename(os.path.abspath(root)) if name == "." else name
                ),
                min(MAX_SLICES, header.size[axes[0]]),
                header.spacing,
            )
        )
    return volumes, problems


def describe(source: str, plane: str = "stored", root: str | None = None) -> Volume:
    """One volume, given by its file or its DICOM folder. Raises VolumeError if there is none."""
    is_folder = os.path.isdir(source)
    folder, names = (source, os.listdir(source)) if is_folder else os.path.split(source)
    volumes, problems = find_volumes(folder, names if is_folder else [names], plane, root)
    if not volumes:
        raise VolumeError(*(problems or [(source, "no image and no volume, or no such file")])[0])
    return volumes[0]


def source_files(source: str) -> list[str]:
    """All files that read_slices reads of a source, at least."""
    match = re.fullmatch(r"(.+)#\d+", source, re.DOTALL)
    folder = match[1] if match and not os.path.exists(source) else source
    if os.path.isdir(folder):
        return sorted(entry.path for entry in os.scandir(folder) if entry.is_file())
    return [folder, *data_files(folder)]


def read_slices(source: str, plane: str = "stored") -> np.ndarray:
    """Cut a volume into up to 40 evenly spaced slices: uint8 array (slices, height, width).

    `stored` cuts across the axis with the largest spacing (of equal ones the slowest) and leaves
    rows and columns as they are. The other planes take the axes nearest to the patient's, without
    resampling, by the file's direction cosines (without any, it counts as axial):

    - sagittal: slices from right to left, superior on top, anterior at the left
    - coronal: slices from front to back, superior on top, the patient's right at the left
    - axial: slices upwards, anterior on top, the patient's right at the left

    The 1st percentile of the whole volume becomes 0, the 99.5th 255, values between are linear
    (from minimum to maximum if the two are equal; NaN and infinities count as the minimum).
    Slices are enlarged where pixels are not square.

    Raises:
        VolumeError: one line that names the file and what is wrong.
    """
    header = open_source(source)
    axes, reverse, (height, width) = cut_axes(header, plane)
    pixels = read_pixels(header)  # (k, j, i)
    finite = np.isfinite(pixels)
    if not finite.all():
        pixels[~finite] = pixels[finite].min() if finite.any() else 0
    low, high = map(float, np.percentile(pixels, PERCENTILES))
    if low == high:  # as in a label map with little but background
        low, high = float(pixels.min()), float(pixels.max())
    pixels = pixels.transpose([2 - a for a in axes])  # (slices, rows, columns)
    pixels = pixels[tuple(slice(None, None, -1 if r else 1) for r in reverse)]
    chosen = np.linspace(0, len(pixels) - 1, min(len(pixels), MAX_SLICES)).round().astype(int)
    scaled = (pixels[chosen].astype(float) - low) / ((high - low) or 1) * 255
    slices = scaled.clip(0, 255).round().astype(np.uint8)
    if slices.shape[1:] == (height, width):
        return slices
    images = [Image.fromarray(s).resize((width, height), Image.Resampling.BILINEAR) for s in slices]
    return np.stack([np.asarray(image) for image in images])


def open_source(source: str) -> Header:
    """The header of a Volume's source: a file, a folder of DICOM files, or folder#2."""
    match = re.fullmatch(r"(.+)#(\d+)", source, re.DOTALL)
    folder, index = (match[1], int(match[2])) if match else (source, 1)
    if os.path.isdir(source):
        folder, index = source, 1
    if os.path.isdir(folder):
        series, _, problems = find_series(folder, os.listdir(folder))
        if not 1 <= index <= len(series):
            raise VolumeError(source, problems[0][1] if problems else "no such DICOM series")
        header = series[index - 1]
    else:
        header = read_header(source)
    check_volume(header)
    return header


def read_pixels(header: Header) -> np.ndarray:
    """All voxels, float32 (k, j, i). SimpleITK applies slopes and inverts MONOCHROME1 itself."""
    check_whole(header)
    sitk = simpleitk()
    pixels = np.empty(header.size[::-1], np.float32)
    for path, part in zip(header.parts, pixels.reshape(len(header.parts), -1), strict=True):
        try:
            image = sitk.ReadImage(path, sitk.sitkFloat32)
        except RuntimeError as error:
            raise VolumeError(path, one_line(error)) from None
        part[:] = sitk.GetArrayViewFromImage(image).ravel()
    return pixels


def data_files(path: str) -> tuple[str, ...]:
    """The file with the pixels that a .mhd or .nhdr file names, if there is such a file."""
    if not path.lower().endswith((".mhd", ".nhdr")):
        return ()
    with open(path, encoding="latin-1") as file:
        named = re.search(r"^(?:ElementDataFile *=|data ?file:) *(.+)", file.read(65536), re.M)
    data = os.path.join(os.path.dirname(path), named[1].strip()) if named else ""
    return (data,) if os.path.isfile(data) else ()


def check_whole(header: Header) -> None:
    """Raise VolumeError if a NIfTI or MetaImage file is cut or damaged.

    SimpleITK fills up a cut NIfTI file in silence; of MetaImage it complains past Python's stderr.
    """
    path, held = header.path, 0
    needed = int(np.prod(header.size, dtype=float)) * header.bits // 8
    try:
        if path.lower().endswith((".nii", ".nii.gz")):
            needed += int(number(header.tags.get("offset", "352")))
            with (gzip.open if path.lower().endswith(".gz") else open)(path, "rb") as file:
                while block := file.read(1 << 20):
                    held += len(block)
        elif path.lower().endswith((".mha", ".mhd")):
            with open(path, "rb") as file:
                text = file.read(65536)
            if compressed := re.search(rb"^CompressedDataSize *= *(\d+)", text, re.M):
                needed = int(compressed[1])
            if local := re.search(rb"^ElementDataFile *= *LOCAL\s*?\n", text, re.M):
                needed += local.end()
            held = sum(map(os.path.getsize, data_files(path) or (path,)))
        else:
            return
    except (OSError, EOFError, zlib.error) as error:
        raise VolumeError(path, f"cut or damaged: {error}") from None
    if held < needed:
        raise VolumeError(path, f"cut, or its data file is missing: {held} of {needed} bytes")


# ---- program -------------------------------------------------------------------------------------


def safe_name(name: str) -> str:
    """A name for a file or folder anywhere, that hides nothing and is not itself a side."""
    name = re.sub(r"[^\w.+-]+", "_", name).strip(".")[:60] or "unnamed"
    return f"{name}_" if name.lower() in ("left", "right") else name


def place(volume: Volume, root: str, out: str, taken: set[str]) -> str:
    """What the paths of a volume's slices start with, `<i>.png` excepted; never the same twice."""
    parts = os.path.relpath(volume.source, root).split(os.sep)
    if parts[-1] == ".":
        parts = [os.path.basename(os.path.abspath(root))]
    parts[-1], ending = re.fullmatch(ENDING, parts[-1]).groups("")
    akoa = parts[-1] + (ending if ending.lower().startswith(".nii") else "")
    if volume.side and AKOA_VOLUME.fullmatch(akoa):
        return os.path.join(out, f"{akoa}_")
    parts = [p for p in parts[:-1] if p.lower() not in ("left", "right")] + parts[-1:]
    patient = safe_name(volume.patient or parts[0])
    name = safe_name("_".join(parts[1:] if len(parts) > 1 and not volume.patient else parts))
    folder = os.path.join(out, volume.side or "unknown", patient)
    names = [name, *(f"{name}-{i}" for i in range(2, len(taken) + 3))]
    return next(p for n in names if (p := os.path.join(folder, n, "")).lower() not in taken)


def write_slices(slices: np.ndarray, start: str, out: str) -> None:
    """Write the PNGs aside, then give all of them their names at once."""
    aside = os.path.join(out, f".unfinished-{os.getpid()}-{threading.get_ident()}")
    os.makedirs(aside)
    try:
        for i, pixels in enumerate(slices):
            Image.fromarray(pixels).save(os.path.join(aside, f"{i}.png"))
        if start.endswith(os.sep):
            os.makedirs(os.path.dirname(start[:-1]), exist_ok=True)
            os.rename(aside, start)
        else:
            for i in range(len(slices)):
                os.rename(os.path.join(aside, f"{i}.png"), f"{start}{i}.png")
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def run(args: argparse.Namespace) -> int:
    if os.path.isdir(args.input):
        root, folders = args.input, os.walk(args.input)
    elif os.path.isfile(args.input):
        root, name = os.path.split(args.input)
        folders = [(root, [], [name])]
    else:
        raise ValueError(f"{args.input}: no such file or folder")
    volumes, problems = [], []
    for folder, subfolders, names in folders:
        subfolders.sort()
        found, unusable = find_volumes(folder, names, args.plane, root or ".")
        volumes, problems = volumes + found, problems + unusable
    starts, taken = [], set()
    for volume in list(volumes):
        start = place(volume, root or ".", args.output, taken)
        if start.lower() in taken:
            problems.append((volume.source, "another volume has the same name"))
            volumes.remove(volume)
            continue
        starts.append(start)
        taken.add(start.lower())
        if any(os.path.exists(f"{start}{i}.png") for i in range(MAX_SLICES)):
            raise ValueError(f"{start}0.png: {args.output} holds slices of {volume.source}")
    for path, problem in problems:
        print(f"volumes.py: {path}: {problem}", file=sys.stderr)
    if not volumes:
        raise ValueError(f"{args.input}: no volume that can be used")

    def convert(volume: Volume, start: str) -> str | None:
        try:
            write_slices(read_slices(volume.source, args.plane), start, args.output)
        except (VolumeError, OSError) as error:
            return str(error)

    os.makedirs(args.output, exist_ok=True)
    failed = len(problems)
    pool = ThreadPoolExecutor(args.workers)
    try:
        done = tqdm(pool.map(convert, volumes, starts), "cutting", len(volumes), disable=None)
        for volume, error in zip(volumes, done, strict=True):
            if error:
                failed += 1
                tqdm.write(f"volumes.py: {error}", file=sys.stderr)
                continue
            side = f"{volume.side} (by " if volume.side else "side unknown ("
            size = " x ".join(f"{s:.3g}" for s in volume.spacing)
            size = f"{volume.num_slices} slices  {size} mm"
            tqdm.write(f"{volume.source}  {side}{volume.told_by})  {size}")
    finally:
        pool.shutdown(cancel_futures=True)  # on Ctrl-C, the volumes begun are finished
    return 1 if failed else 0


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="volumes.py", description="Cut volumes of knees into slices that dataset.py reads."
    )
    parser.add_argument("input", metavar="IN", help="a volume, or a folder of them, however nested")
    parser.add_argument("output", metavar="OUT", help="the folder to write PNGs into")
    parser.add_argument("--plane", choices=PLANES, default="stored", help="(default: stored)")
    parser.add_argument(
        "-j", "--workers", type=int, metavar="N", help="volumes at a time (default: all cores)"
    )
    args = parser.parse_args(argv)
    args.workers = os.cpu_count() if args.workers is None else args.workers
    if args.workers < 1:
        parser.error(f"--workers must be at least 1, got {args.workers}")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        return run(args)
    except (ValueError, OSError) as error:
        print(f"volumes.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("volumes.py: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
