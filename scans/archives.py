"""Series of DICOM files in tar archives, as the OAI is released: 10693717.tar.gz.

    with unpacked("10693717.tar.gz", (3, 1, 2)) as paths: ...       # the files of these members

An archive is read as a stream and never trusted: nothing of it but DICOM files is written, to a
temporary folder of ours and under names of ours; links and devices are passed over; and it is
refused where it is larger than any series.
"""

import contextlib
import gzip
import os
import re
import tarfile
import tempfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

from common.files import open_regular
from scans.slices import NoSeries, VolumeError

ARCHIVE_NAME = re.compile(r"[^.].*\.(tar|tar\.gz|tgz|zip)", re.I | re.S)
BLOCK = tarfile.BLOCKSIZE  # 512 bytes: a header, and what sizes are padded to
CHUNK = 1 << 20
MAX_BYTES = 4 << 30  # of an archive, unpacked; a DESS series has 50 MB
MAX_MEMBER_BYTES = 1 << 30
MAX_NAME_BYTES = 1 << 16  # of a name that does not fit into a header
MAX_MEMBERS = 20_000
MAX_PADDING = 64 << 20  # after the end of an archive; tar fills up to some KB
MAX_RATIO = 200  # unpacked to packed; deflate reaches 1,000, black slices some 100
RATIO_MATTERS = 64 << 20  # bytes; smaller archives may be as dense as they like
FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
PASSED_OVER = (tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE)
PASSED_OVER += (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)


class TooLarge(VolumeError):
    """An archive beyond what a series can be."""


class Member(NamedTuple):
    """A DICOM file of an archive, written to a temporary file."""

    position: int  # among all headers of the archive
    name: str  # as the archive calls it; for messages alone
    path: str


def is_archive(name: str) -> bool:
    """By its ending. (Of a zip it is only said that it must be unpacked.)"""
    return bool(ARCHIVE_NAME.fullmatch(os.path.basename(name)))


class Stream:
    """The unpacked bytes of an archive, counted."""

    def __init__(self, file: BinaryIO, path: str):
        self.file, self.path, self.bytes, self.headers = file, path, 0, 0
        packed = os.path.getsize(path)
        self.limit = min(MAX_BYTES, max(RATIO_MATTERS, MAX_RATIO * packed))
        if packed > MAX_BYTES:
            raise self.too_large(packed)

    def too_large(self, count: int) -> TooLarge:
        text = f"an archive of more than {count >> 20} MB unpacked, expected one series"
        return TooLarge(self.path, text)

    def read(self, count: int) -> bytes:
        """Exactly so many bytes. Raises EOFError where there are fewer."""
        block = self.some(count)
        if len(block) < count:
            raise EOFError("it ends too early")
        return block

    def some(self, count: int) -> bytes:
        block = self.file.read(count)
        self.bytes += len(block)
        if self.bytes > self.limit:
            raise self.too_large(self.limit)
        return block

    def pieces(self, size: int) -> Iterator[bytes]:
        """The content of a member, and past its padding."""
        for start in range(0, size, CHUNK):
            yield self.read(min(CHUNK, size - start))
        self.read(-size % BLOCK)


def unpack(path: str, folder: str, wanted: Collection[int] | None = None) -> Iterator[Member]:
    """Write the DICOM files of an archive into a folder, one after the other, as 0001, 0002, ...

    wanted are positions of members; by default all. Raises VolumeError: damaged, too large, or no
    archive; NoSeries: a zip.
    """
    if path.lower().endswith(".zip"):
        raise NoSeries(path, "a zip archive is not read; unpack it and name the folder")
    try:
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(open_regular(path))
            except FileNotFoundError:
                raise VolumeError(path, "no such file") from None
            except OSError as error:
                text = f"an archive that can't be read: {error.strerror}"
                raise VolumeError(path, text) from None
            if file.peek(2)[:2] == b"\x1f\x8b":
                file = stack.enter_context(gzip.open(file))
            yield from members(Stream(file, path), folder, wanted)
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.HeaderError) as error:
        raise VolumeError(path, f"an archive that is cut or damaged: {error}") from None


def members(stream: Stream, folder: str, wanted: Collection[int] | None) -> Iterator[Member]:
    """The DICOM files of a tar stream, as `unpack` says.

    The module tarfile keeps all headers, and would read a name of 4 GB into memory.
    """
    while header := read_member_header(stream):
        position = stream.headers
        pieces = stream.pieces(header.size)
        first = next(pieces, b"")
        chosen = position in wanted if wanted is not None else is_dicom_member(header, first)
        if not chosen:
            for _ in pieces:
                pass
            continue
        target = os.path.join(folder, f"{position:04}")
        with open(target, "xb") as file:
            file.write(first)
            file.writelines(pieces)
        yield Member(position, header.name, target)
    ended = stream.bytes
    while stream.some(CHUNK):  # to the end, where the checksum is
        if stream.bytes - ended > MAX_PADDING:
            raise TooLarge(stream.path, "an archive that goes on long after its end")


def read_member_header(stream: Stream) -> tarfile.TarInfo | None:
    """The header of the next member that has content; None at the end."""
    while True:
        block = stream.read(BLOCK)
        if not any(block):
            return None
        stream.headers += 1
        if stream.headers > MAX_MEMBERS:
            text = f"an archive of more than {MAX_MEMBERS} members, expected one series"
            raise TooLarge(stream.path, text)
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        if header.type in FILES or header.type in PASSED_OVER:
            if header.type in PASSED_OVER:
                header.size = 0
            limit = MAX_MEMBER_BYTES
        elif header.type in NAMES or header.type in EXTENDED:
            limit = MAX_NAME_BYTES
        else:
            text = f"an archive with a member of type {header.type!r}; pack it again with tar"
            raise VolumeError(stream.path, text)
        if not 0 <= header.size <= limit:
            text = f"an archive with a member of {header.size} bytes, expected {limit} at most"
            raise TooLarge(stream.path, text)
        if limit == MAX_MEMBER_BYTES:
            return header
        for _ in stream.pieces(header.size):  # a long name; those that we write are our own
            pass


def is_dicom_member(header: tarfile.TarInfo, first: bytes) -> bool:
    name = os.path.basename(header.name)
    if header.type not in FILES or name.upper() == "DICOMDIR":
        return False
    named = name.lower().endswith(".dcm") and not name.startswith(".")
    return named or first[128:132] == b"DICM"


@contextmanager
def unpacked(path: str, positions: tuple[int, ...]) -> Iterator[list[str]]:
    """Temporary files of some members, in the order of `positions`; removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="series-") as folder:
        found = {member.position: member.path for member in unpack(path, folder, set(positions))}
        if found.keys() < set(positions):
            raise VolumeError(path, "has changed since its headers were read")
        yield [found[position] for position in positions]
