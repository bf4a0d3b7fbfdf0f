"""Headers of NRRD and MetaImage files: lines of names and values, each of a form that is known.

    read_text_header("p01.mhd")         # TextHeader({"NDims": "3", ...}, data="p01.raw", bytes=0)

Their readers in SimpleITK write behind the end of arrays where a number has a thousand digits, or a
list is longer than there are dimensions. What is not of the expected form never gets there.
"""

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from common.files import open_regular
from scans.slices import DAMAGED, VolumeError

MAX_HEADER = 1 << 20  # bytes; they are a few hundred
MAX_LINE = 490  # of MetaImage: what is longer its reader takes for two
MAX_AXES = 5
MAX_FIELDS = 1000

NUMBER = r"[-+]?(?:\d{1,30}\.?\d{0,30}|\.\d{1,30})(?:[eE][-+]?\d{1,3})?"
REAL = rf"(?:{NUMBER}|[-+]?(?:nan|inf|NaN|Inf))"
VECTOR = rf"(?:\( *{NUMBER}(?: *, *{NUMBER}){{0,3}} *\)|none)"
SPACING = rf"(?:{REAL})"  # NaN of an axis that has none
PLACES, FARTHEST = (NUMBER, VECTOR, SPACING), 1e6  # mm; of more, ITK's matrices never converge
INTEGER, WORD, TEXT = r"-?\d{1,12}", r"[A-Za-z0-9_.?-]{1,40}", r"[^\x00-\x08\x0a-\x1f\x7f]{0,400}"
QUOTED = r'"[ !#-~]{0,60}"'


class Field(NamedTuple):
    """How the value of a field looks: so many of these, with spaces between them."""

    form: str  # regular expression
    power: int | None = 1  # 0: one; 1: one an axis; 2: a matrix; None: at most one an axis


ONE_NUMBER, ONE_WORD, ANY = Field(INTEGER, 0), Field(WORD, 0), Field(TEXT, 0)

META_INSIDE = ("LOCAL", "Local", "local")  # the voxels follow the header
META_LINE = re.compile(r"([^\s=:][^=:\x00-\x1f]{0,79}?) *= *(.*)")
META_FIELDS = {  # others, as ITK writes them for what it knows of a volume, are of any text
    "ObjectType": Field("Image", 0),
    "NDims": Field(rf"[1-{MAX_AXES}]", 0),
    "DimSize": Field(r"\d{1,10}"),
    "HeaderSize": ONE_NUMBER,
    "CompressedDataSize": ONE_NUMBER,
    "ElementNumberOfChannels": Field(r"\d{1,2}", 0),
    "ElementMin": Field(REAL, 0),
    "ElementMax": Field(REAL, 0),
    **dict.fromkeys(("ElementType", "Modality", "AnatomicalOrientation"), ONE_WORD),
    **dict.fromkeys(("ID", "ParentID"), ONE_NUMBER),
    **dict.fromkeys(("ElementSpacing", "ElementSize", "CenterOfRotation"), Field(NUMBER)),
    **dict.fromkeys(("Offset", "Position", "Origin"), Field(NUMBER)),
    **dict.fromkeys(("TransformMatrix", "Rotation", "Orientation"), Field(NUMBER, 2)),
    **dict.fromkeys(("BinaryData", "CompressedData", "ElementByteOrderMSB"), ONE_WORD),
    "BinaryDataByteOrderMSB": ONE_WORD,
    "ElementToIntensityFunctionSlope": Field(REAL, 0),
    "ElementToIntensityFunctionOffset": Field(REAL, 0),
    "Color": Field(REAL, None),
    "SequenceID": Field(REAL, None),
}

NRRD_MAGIC = re.compile(r"NRRD000[1-5]")
NRRD_LINE = re.compile(r"([A-Za-z][A-Za-z ]{0,39}): *(.*)")
NRRD_OTHER = re.compile(r"#[\t -~]{0,9999}|[^\x00-\x1f:]{1,999}:=[^\x00-\x1f]{0,9999}")
NRRD_FIELDS = {
    "dimension": Field(rf"[1-{MAX_AXES}]", 0),
    "type": Field("[a-z0-9_ ]{1,30}", 0),
    "sizes": Field(r"\d{1,10}"),
    "encoding": ONE_WORD,
    "endian": ONE_WORD,
    "space": ONE_WORD,
    "spacedimension": Field("[1-4]", 0),
    "spacedirections": Field(VECTOR),
    "spaceorigin": Field(VECTOR, 0),
    "measurementframe": Field(VECTOR, None),
    "datafile": ANY,
    "content": ANY,
    "number": ONE_NUMBER,
    **dict.fromkeys(("byteskip", "lineskip", "blocksize"), ONE_NUMBER),
    **dict.fromkeys(("min", "max", "oldmin", "oldmax"), Field(REAL, 0)),
    **dict.fromkeys(("spacings", "thicknesses", "axismins", "axismaxs"), Field(SPACING)),
    **dict.fromkeys(("kinds", "centers", "centerings"), Field(WORD)),
    **dict.fromkeys(("units", "labels"), Field(QUOTED)),
    "spaceunits": Field(QUOTED, None),
    "sampleunits": Field(r"[ -~]{0,60}", 0),
}


class TextHeader(NamedTuple):
    fields: dict[str, str]
    data: str  # the file with the voxels; "" where they follow the header
    bytes: int  # of the header


def is_meta(path: str) -> bool:
    return path.lower().endswith((".mha", ".mhd"))


def is_nrrd(path: str) -> bool:
    return path.lower().endswith((".nrrd", ".nhdr"))


def read_text_header(path: str) -> TextHeader:
    """Raises VolumeError where anything in it is not as it should be; OSError."""
    with open_regular(path) as file:
        start = file.read(MAX_HEADER)
    return read_meta(path, start) if is_meta(path) else read_nrrd(path, start)


def lines_in(start: bytes) -> Iterator[tuple[str, int]]:
    """Each line without its end, and where the next one begins. Bytes stay as they are."""
    begin = 0
    while begin < len(start):
        end = start.find(b"\n", begin)
        end = len(start) if end < 0 else end
        yield start[begin:end].removesuffix(b"\r").decode("latin-1"), min(end + 1, len(start))
        begin = end + 1


def read_meta(path: str, start: bytes) -> TextHeader:
    fields, axes = {}, 0
    for line, end in lines_in(start):
        match = META_LINE.fullmatch(line)
        if not match or len(line) > MAX_LINE or len(fields) == MAX_FIELDS:
            break
        name, value = match[1].strip(), match[2].strip()
        check_field(path, name, value, META_FIELDS.get(name, ANY), axes)
        if name in fields:
            raise VolumeError(path, f"{DAMAGED}: its header has two fields {name}")
        fields[name] = value
        if name == "NDims":
            axes = int(value)
        if name == "ElementDataFile":  # the last one
            data = "" if value in META_INSIDE else named_file(path, value)
            return TextHeader(fields, data, end)
    text = f"{DAMAGED}: no MetaImage header that ends in ElementDataFile"
    raise VolumeError(path, text)


def read_nrrd(path: str, start: bytes) -> TextHeader:
    lines = lines_in(start)
    line, begin = next(lines, ("", 0))
    if not NRRD_MAGIC.fullmatch(line):
        raise VolumeError(path, f"{DAMAGED}: no NRRD header")
    fields, axes = {}, 0
    for line, end in lines:
        begin = end
        if not line:
            break
        if NRRD_OTHER.fullmatch(line):
            continue
        match = NRRD_LINE.fullmatch(line)
        name = match[1].lower().replace(" ", "") if match else ""
        if name not in NRRD_FIELDS:
            raise VolumeError(path, f"{DAMAGED}: its NRRD header has a line that is no field")
        value = match[2].strip()
        check_field(path, match[1], value, NRRD_FIELDS[name], axes)
        if name in fields:
            raise VolumeError(path, f"{DAMAGED}: its header has two fields {match[1]}")
        fields[name] = value
        if name == "dimension":
            axes = int(value)
    data = named_file(path, fields["datafile"]) if "datafile" in fields else ""
    return TextHeader(fields, data, begin)


def check_field(path: str, name: str, value: str, field: Field, axes: int) -> None:
    """Raise VolumeError where a value is not of its form."""
    count = {0: 1, 1: axes, 2: axes * axes}.get(field.power, MAX_AXES)
    form = rf"{field.form}(?:[ \t]+{field.form}){{{max(0, count - 1)}}}"
    if field.power is None:
        form = rf"{field.form}(?:[ \t]+{field.form}){{0,{count - 1}}}"
    is_far = field.form in PLACES and any(abs(x) > FARTHEST for x in numbers_in(value))
    if is_far or not count or not re.fullmatch(form, value):
        shown = value if len(value) < 60 else f"{value[:60]}..."
        raise VolumeError(path, f"{DAMAGED}: its header says {name}: {shown!r}")


def numbers_in(value: str) -> list[float]:
    return [float(text) for text in re.findall(NUMBER, value)]


def named_file(path: str, value: str) -> str:
    """Raises VolumeError where several files are named."""
    if not value or value[:4].upper() == "LIST" or "%" in value:
        raise VolumeError(path, "its voxels are in several files: save them as one")
    value = value.encode("latin-1").decode("utf-8", "surrogateescape")
    return os.path.join(os.path.dirname(path), value)
