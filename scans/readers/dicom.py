"""DICOM by pydicom: files, single or of many frames, and tar archives of them -> slices and pixels.

    slices = read_headers("p01/IM0001")             # a Volume of one slice for each frame
    slices = read_headers("10693717.tar.gz")        # those of all its members
    pixels = read_pixels(volume)                    # (k, j, i) float32, of a whole series

Compressed pixels are decoded by SimpleITK (RLE by pydicom). Values are as the modality gives them,
by the slope and intercept of each frame, or a table; of MONOCHROME1 they are negative, so that more
is brighter; padding is NaN.
"""

import gzip
import io
import os
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import BinaryIO, NamedTuple

import numpy as np

from common.files import open_regular
from scans.identity.names import side_in
from scans.names import is_archive
from scans.readers.foreign import foreign, package
from scans.slices import DAMAGED, MAX_VOXELS, NoSeries, Volume, VolumeError

MAX_ARCHIVE = 4 << 30  # bytes, packed; a DESS series has 50 MB
BLOCK = 1 << 20
MOST_KNOWN = 100_000  # values of elements
LATERALITY = {"L": "left", "R": "right"}
PIXELS = (
    "Rows Columns SamplesPerPixel NumberOfFrames BitsAllocated BitsStored HighBit "
    "PixelRepresentation PixelData"
).split()
TAGS = {
    "patient": "PatientID",
    "date": "StudyDate",
    "study": "StudyInstanceUID",
    "series": "SeriesInstanceUID",
    "number": "SeriesNumber",
    "description": "SeriesDescription",
    "modality": "Modality",
}


@cache
def pydicom():
    found = package("pydicom", "DICOM")
    found.config.settings.reading_validation_mode = found.config.IGNORE
    return found


# ---- files and archives --------------------------------------------------------------------------


class Member(NamedTuple):
    """A DICOM file of its own, or one in an archive."""

    position: int  # among all members of the archive; 0 of a file
    name: str
    stream: BinaryIO


def members(path: str, wanted: Collection[int] | None = None) -> Iterator[Member]:
    """The DICOM files of an archive, in their order: those at some positions, or by default all.
    Nothing of it is written anywhere. Raises VolumeError; NoSeries: no archive of one series.
    """
    if path.lower().endswith(".zip"):
        raise NoSeries(path, "a zip archive is not read; unpack it and name the folder")
    with foreign(path), open_regular(path) as file:
        if os.path.getsize(path) > MAX_ARCHIVE:
            raise NoSeries(path, f"an archive of more than {MAX_ARCHIVE >> 30} GB")
        packed = file.peek(2)[:2] == b"\x1f\x8b"
        stream = gzip.open(file) if packed else file  # noqa: SIM115
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for position, member in enumerate(tar):
                named = os.path.basename(member.name)
                chosen = wanted is None or position in wanted
                if not (member.isfile() and chosen) or named.startswith("."):
                    continue
                content = tar.extractfile(member)
                first = content.read(132)
                if named.lower().endswith(".dcm") or first[128:] == b"DICM":
                    yield Member(position, member.name, io.BytesIO(first + content.read()))
        while stream.read(BLOCK):  # to the end, where the checksum is
            pass


@contextmanager
def opened(path: str) -> Iterator[Member]:
    with foreign(path), open_regular(path) as file:
        yield Member(0, path, file)


# ---- headers -------------------------------------------------------------------------------------


def read_headers(path: str) -> list[Volume]:
    """A volume of one slice for each frame of a file, or of all files of an archive, without
    pixels. Raises VolumeError; NoSeries: it holds no image, as structured reports.
    """
    if not is_archive(path):
        with opened(path) as member:
            return slices_of(path, member)
    found, other = [], 0
    for member in members(path):
        try:
            with foreign(path):
                found += slices_of(path, member)
        except NoSeries:
            other += 1
        except VolumeError as error:
            raise VolumeError(path, f"{member.name} in the archive: {error.text}") from None
    if not found:
        raise NoSeries(path, "an archive without DICOM images")
    return found


def slices_of(path: str, member: Member) -> list[Volume]:
    """Raises whatever pydicom raises; NoSeries."""
    start = member.stream.read(2)  # some files begin with the first element, of group 8
    member.stream.seek(0)
    is_bare = member.name.lower().endswith(".dcm") and start == b"\x08\x00"
    header = pydicom().dcmread(member.stream, stop_before_pixels=True, force=is_bare)
    modality = text_of(header, "Modality")
    if "Rows" not in header or "Columns" not in header or modality == "SEG":
        kind = text_of(header, "SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID", "")
        kind = pydicom().uid.UID(kind).name
        if not kind or (kind.endswith("Image Storage") and modality != "SEG"):
            raise VolumeError(path, f"{DAMAGED}: no image in it")
        raise NoSeries(path, f"DICOM without images of a scan ({modality or kind})")
    if text_of(header, "PhotometricInterpretation") == "PALETTE COLOR":
        raise VolumeError(path, "its colours are a palette, which is not read")
    frames = Frames(header)
    rows, columns = int(header.Rows), int(header.Columns)
    if rows * columns * frames.count > MAX_VOXELS:
        text = f"claims {frames.count} frames of {rows} x {columns}, more than {MAX_VOXELS} voxels"
        raise VolumeError(path, text)
    tags = {name: text for name, word in TAGS.items() if (text := text_of(header, word))}
    sides = {side_in(tags.get("description", ""), letters=False)} - {None}
    one = Volume(
        path=path,
        parts=(path,),
        size=(columns, rows, 1),
        spacing=(1.0, 1.0, 1.0),
        origin=(0.0, 0.0, 0.0),
        direction=np.eye(3),
        components=int(value_of(header, "SamplesPerPixel") or 1),
        sides=frozenset(sides),
        tags=tags,
    )
    return [frames.placed(one, member.position, i) for i in range(frames.count)]


@cache
def tag_of(word: str):
    return pydicom().tag.Tag(word)


def value_of(data, word: str):
    """What an element holds, or None; four times as fast as data.get(word)."""
    tag = tag_of(word)
    return data[tag].value if tag in data else None


def known(convert: Callable) -> Callable:
    """`convert`, once for elements of the same bytes: those of a series say the same of most."""
    results: dict[tuple, object] = {}

    def of(data, word: str, *more):
        tag = tag_of(word)
        if tag not in data:
            return convert(None, *more)
        raw, letters = data.get_item(tag), data.get_item(tag_of("SpecificCharacterSet"))
        key = (
            tag,
            raw.VR,
            raw.value,
            f"{letters and letters.value}",
            raw.is_raw and raw.is_little_endian,
            more,
        )
        if raw.is_raw and key in results:
            return results[key]
        try:
            result = convert(data[tag].value, *more)
        except Exception:  # pydicom can't make anything of it
            result = convert(None, *more)
        if raw.is_raw and len(results) < MOST_KNOWN:
            results[key] = result
        return result

    return of


@known
def text_of(value) -> str:
    """A value in one line, without bytes that are no text; "" where there is none."""
    text = f"{value or ''}".encode("utf-8", "replace").decode().strip(" \0")
    return "".join(c if c.isprintable() else "?" for c in text)


@known
def numbers_of(value, count: int) -> np.ndarray | None:
    """So many numbers, or None."""
    try:
        numbers = np.array(value, dtype=float).ravel()
    except (TypeError, ValueError):
        return None
    return numbers if numbers.shape == (count,) and np.isfinite(numbers).all() else None


class Frames:
    """Where the frames of one file lie: as each of them says, or all together, or the file."""

    def __init__(self, header):
        self.header = header
        self.count = int(value_of(header, "NumberOfFrames") or 1)
        self.own = value_of(header, "PerFrameFunctionalGroupsSequence") or []
        self.shared = (value_of(header, "SharedFunctionalGroupsSequence") or [None])[0]
        self.detector = (value_of(header, "DetectorInformationSequence") or [header])[0]
        offsets = value_of(header, "GridFrameOffsetVector")  # of dose grids: mm along the normal
        self.offsets = np.array(offsets, dtype=float) if offsets is not None else None

    def group(self, frame: int, name: str):
        """A functional group of a frame (DICOM PS3.3, C.7.6.16), or else the file itself, or of
        nuclear medicine its detector (C.8.4.11).
        """
        own = self.own[frame] if frame < len(self.own) else None
        for place in (own, self.shared):
            if place is not None and (found := value_of(place, name)):
                return found[0]
        return self.detector if name.startswith("Plane") else self.header

    def placed(self, one: Volume, position: int, frame: int) -> Volume:
        """One frame of a file whose frames are all like `one`."""
        measures = self.group(frame, "PixelMeasuresSequence")
        pixel = numbers_of(measures, "PixelSpacing", 2)
        if pixel is None or not pixel.all():  # of radiographs
            pixel = numbers_of(measures, "ImagerPixelSpacing", 2)
        pixel = np.ones(2) if pixel is None or not pixel.all() else pixel
        axes = numbers_of(
            self.group(frame, "PlaneOrientationSequence"), "ImageOrientationPatient", 6
        )
        direction = np.eye(3)
        if axes is not None and axes.any():
            across, down = axes[:3], axes[3:]
            direction = np.stack([across, down, np.cross(across, down)], axis=1)
        where = self.group(frame, "PlanePositionSequence")
        origin = numbers_of(where, "ImagePositionPatient", 3)
        tags = dict(one.tags)
        if origin is not None or self.count > 1:
            tags["position"] = "known"
        if not self.own and self.count > 1:  # one position for all
            origin = np.zeros(3) if origin is None else origin
            origin = origin + direction[:, 2] * self.offset(frame, measures)
        content = self.group(frame, "FrameContentSequence")
        echo = self.group(frame, "MREchoSequence")
        tags |= {
            "echo_time": text_of(echo, "EffectiveEchoTime") or text_of(echo, "EchoTime"),
            "echo": text_of(self.header, "EchoNumbers"),
            "stack": text_of(content, "StackID"),
        }
        anatomy = self.group(frame, "FrameAnatomySequence")
        letters = {text_of(anatomy, "FrameLaterality"), text_of(self.header, "ImageLaterality")}
        letters |= {text_of(self.header, "Laterality")}
        sides = {LATERALITY[letter] for letter in letters & LATERALITY.keys()}
        return replace(
            one,
            places=((position, frame),),
            spacing=(float(pixel[1]), float(pixel[0]), 1.0),
            origin=tuple((np.zeros(3) if origin is None else origin).tolist()),
            direction=direction,
            sides=one.sides | sides,
            tags={name: text for name, text in tags.items() if text},
        )

    def offset(self, frame: int, measures) -> float:
        """mm from the first frame, where they are evenly spaced or in a grid."""
        if self.offsets is not None and frame < len(self.offsets):
            return float(self.offsets[frame] - self.offsets[0])
        for word in ("SpacingBetweenSlices", "SliceThickness"):
            if (step := numbers_of(measures, word, 1)) is not None and step[0]:
                return frame * float(step[0])
        return float(frame)


# ---- pixels --------------------------------------------------------------------------------------


def read_pixels(volume: Volume) -> np.ndarray:
    """All values of a series, float32 (k, j, i). Raises VolumeError."""
    pixels = np.empty(volume.size[::-1], np.float32)
    wanted = defaultdict(list)  # which file -> its frames, and where they belong
    for k, (position, frame) in enumerate(volume.places):
        wanted[position].append((k, frame))
    for path, member in files_of(volume, wanted):
        with foreign(path):
            data = pydicom().dcmread(member.stream, force=True)
            frames, stored = Frames(data), stored_values(data)
            if stored.shape != (frames.count, *pixels.shape[1:]):
                raise VolumeError(path, "has changed since its header was read")
            for k, frame in wanted.pop(member.position):
                pixels[k] = rescaled(data, frames, stored[frame], frame)
    if wanted:
        raise VolumeError(volume.path, "has changed since its headers were read")
    return pixels


def files_of(volume: Volume, wanted: Collection[int]) -> Iterator[tuple[str, Member]]:
    if is_archive(volume.path):
        for member in members(volume.path, set(wanted)):
            yield volume.path, member
        return
    for position in list(wanted):
        with opened(volume.parts[position]) as member:
            yield member.name, member._replace(position=position)


def stored_values(data) -> np.ndarray:
    """(frames, rows, columns), as they are stored. Raises whatever pydicom and SimpleITK raise."""
    uid = pydicom().uid
    if "TransferSyntaxUID" not in data.file_meta:
        implicit, _ = data.original_encoding
        usual = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
        data.file_meta.TransferSyntaxUID = usual
    syntax = data.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated and syntax != uid.RLELossless:  # which GDCM reads not always
        stored = unpacked(data)
    else:
        stored = data.pixel_array
    return stored.reshape(-1, *stored.shape[-2:])


def unpacked(data) -> np.ndarray:
    """Compressed pixels, decoded by SimpleITK. It gets nothing else of the file, so that it does
    not apply a slope of its own.
    """
    sitk = package("SimpleITK", "compressed DICOM")
    plain = pydicom().Dataset()
    for word in PIXELS:
        if word in data:
            plain[word] = data[word]
    plain.PhotometricInterpretation = "MONOCHROME2"
    plain.SOPClassUID = plain.SOPInstanceUID = pydicom().uid.SecondaryCaptureImageStorage
    plain.file_meta = pydicom().dataset.FileMetaDataset()
    plain.file_meta.TransferSyntaxUID = data.file_meta.TransferSyntaxUID
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "pixels.dcm")
        plain.save_as(path, enforce_file_format=True)
        return sitk.GetArrayFromImage(sitk.ReadImage(path, imageIO="GDCMImageIO"))


def rescaled(data, frames: Frames, stored: np.ndarray, frame: int) -> np.ndarray:
    """What the stored values (rows, columns) of a frame mean (DICOM PS3.3, C.7.6.3 and C.11.1)."""
    transformation = frames.group(frame, "PixelValueTransformationSequence")
    values = pydicom().pixels.apply_modality_lut(stored, transformation).astype(np.float32)
    if text_of(data, "PhotometricInterpretation") == "MONOCHROME1":
        values = -values
    padding = value_of(data, "PixelPaddingValue")
    if padding is not None and stored.dtype.kind in "iu":
        limit = value_of(data, "PixelPaddingRangeLimit")
        # Some files give them with the wrong sign, which this mends.
        ends = [padding, padding if limit is None else limit]
        low, high = sorted(np.array(ends).astype(stored.dtype))
        values[(stored >= low) & (stored <= high)] = np.nan
    return values
