"""Files and folders that are written whole or not at all; CSV and JSON in them.

with whole_file(run / "metrics.csv") as temporary:
    temporary.write_text(...)           # flushed to disk, then renamed to metrics.csv
"""

import codecs
import csv
import io
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO

from common.program import UserError


def temporary_name(path: Path) -> Path:
    """A hidden name beside `path`, of this process alone.

    Not by process id alone: in containers that share a folder they are all the same.
    """
    own = f"{os.getpid()}-{secrets.token_hex(4)}"
    return path.with_name(f".{path.stem}.{own}.unfinished{path.suffix}")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary file in the same folder that becomes `path` when it is whole and on disk.

    If anything fails on the way (a full disk, a kill), `path` is what it was before.
    """
    temporary = temporary_name(path)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name, too
        finally:
            os.close(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno is None:  # a library's own complaint, such as of a format
            raise
        # The user knows the file by the name that it was to get.
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that becomes `path` at the end; nothing of it if that fails.

    Raises FileExistsError if `path` is a file, or a folder that holds something.
    """
    path = path.resolve()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is not empty; name a new or empty folder")
    temporary = temporary_name(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        named = str(error.filename or temporary)
        if error.errno and named.startswith(str(temporary)):  # such as a full disk
            # The user knows the folder by the name that it was to get.
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_csv(path: Path, rows: list[dict], columns: Iterable[str] | None = None) -> None:
    """Names that are no text, as file systems allow, are written as they are."""
    with (
        whole_file(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.DictWriter(file, columns or rows[0])
        writer.writeheader()
        writer.writerows(rows)


# ---- CSV tables as people have them --------------------------------------------------------------

DELIMITERS = ",;\t|"
ROWS_TO_COUNT = 20  # of a table, to find its delimiter
MAX_TABLE_BYTES = 200 * 2**20
# The first bytes of what is sometimes given in place of a table.
SIGNATURES = [
    (0, b"PK\x03\x04", "an archive", "unpack it"),
    (0, b"\x1f\x8b", "an archive", "unpack it"),
    (0, b"BZh", "an archive", "unpack it"),
    (0, b"\xfd7zXZ", "an archive", "unpack it"),
    (0, b"7z\xbc\xaf", "an archive", "unpack it"),
    (257, b"ustar", "an archive", "unpack it"),
    (0, b"\xd0\xcf\x11\xe0", "an Excel workbook", "save it as CSV"),
    (0, b"\x89PNG", "a PNG image", "name a table"),
    (0, b"\xff\xd8\xff", "a JPEG image", "name a table"),
    (128, b"DICM", "a DICOM file", "name a table"),
    (0, b"NRRD000", "an NRRD volume", "name a table"),
    (0, b"\x5c\x01\x00\x00", "a NIfTI volume", "name a table"),
    (0, b"%PDF", "a PDF document", "name a table"),
    (0, b"\x89HDF", "an HDF5 file", "save it as CSV"),
    (0, b"PAR1", "a Parquet file", "save it as CSV"),
    (0, b"<!DOCTYPE", "a web page", "download the table itself"),
    (0, b"<!doctype", "a web page", "download the table itself"),
    (0, b"<html", "a web page", "download the table itself"),
    (0, b"<?xml", "an XML file", "save it as CSV"),
]
UTF_BOMS = {  # UTF-32 first: in little-endian order its mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class Record(NamedTuple):
    """A line of a CSV file, or several where a field in quotes holds line ends."""

    line: int  # its first one
    cells: list[str]


class Row(NamedTuple):
    line: int
    cells: dict[str, str]  # column -> text, "" where the row has none


class Table(NamedTuple):
    """A CSV file as it was read."""

    columns: list[str]
    rows: list[Row]

    def columns_called(self, *names: str) -> list[str]:
        """All columns of any of these names; case, spaces, underscores and hyphens don't count."""
        wanted = set(map(plain_name, names))
        return [column for column in self.columns if plain_name(column) in wanted]

    def column(self, *names: str) -> str | None:
        """The column that is called by the first of these names that there is, or None."""
        for name in names:
            found = self.columns_called(name)
            if found:
                return name if name in found else found[0]
        return None


def plain_name(column: str) -> str:
    """Patient_ID and "patient id" -> patientid"""
    return "".join(character for character in column.lower() if character not in " _-")


def read_csv(path: str | Path, what: str) -> Table:
    """Read a CSV file with a header; `what` it should be is for the message.

    Its delimiter may be a comma, semicolon, tab or |, its text UTF-8, UTF-16 with a mark (BOM), or
    anything else: bytes that are no UTF-8 are kept as file systems' names are (surrogateescape).

    Raises UserError if it can't be read, is no table, or has a row or column that can't be used.
    """
    return as_table(path, read_records(path, what))


def read_records(path: str | Path, what: str) -> list[Record]:
    """The lines of a CSV file that hold something, the header as any other. Raises as read_csv."""
    content = utf8_of(path, read_bytes(path, what), what)
    delimiter, skipped = declared_delimiter(content)
    delimiter = delimiter or find_delimiter(content)
    records, line = [], skipped
    reader = csv.reader(open_text(content, skipped), delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            if any(map(str.strip, cells)):
                records.append(Record(line + 1, cells))
            line = skipped + reader.line_num
    except csv.Error as error:  # such as a quote that is not closed, or a field without an end
        raise UserError(f"{path}, line {line + 1}: not a row of a {what}: {error}") from error
    if not records:
        raise UserError(f"{path}: it is empty, expected a {what}")
    return records


def as_table(path: str | Path, records: list[Record]) -> Table:
    """A table whose header is the first record. Raises UserError as read_csv does."""
    columns = [" ".join(name.split()) for name in records[0].cells]  # a name is one line
    while not columns[-1]:
        columns.pop()
    if twice := [name for name in dict.fromkeys(columns) if name and columns.count(name) > 1]:
        raise UserError(f"{path}: it has two columns {abridged(twice)}; rename one of them")
    rows = []
    for line, cells in records[1:]:
        if any(map(str.strip, cells[len(columns) :])):
            raise UserError(
                f"{path}, line {line}: {len(cells)} fields, but there are {len(columns)} columns; "
                "a field that holds the delimiter must be in quotes"
            )
        missing = [""] * (len(columns) - len(cells))
        rows.append(Row(line, dict(zip(columns, [*cells, *missing], strict=False))))
    return Table(columns, rows)


def read_bytes(path: str | Path, what: str) -> bytes:
    """Raises UserError if it is too large, or no file: to open a pipe may wait for ever."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
            raise UserError(f"{path}: {kind}, expected a {what}: a CSV file")
        if status.st_size > MAX_TABLE_BYTES:
            size, limit = status.st_size >> 20, MAX_TABLE_BYTES >> 20
            raise UserError(f"{path}: {size} MB, too large for a {what}: at most {limit} MB")
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: not a readable {what}: {error}") from error


def utf8_of(path: str | Path, content: bytes, what: str) -> bytes:
    """The text of a file as UTF-8, without a mark. Raises UserError if it is no text."""
    for mark, encoding in UTF_BOMS.items():
        if content.startswith(mark):
            try:
                content = content.decode(encoding).encode()
            except UnicodeError as error:
                raise UserError(f"{path}: its {encoding.upper()} text is damaged") from error
            break
    content = content.removeprefix(codecs.BOM_UTF8)
    for offset, signature, kind, advice in SIGNATURES:
        if content.startswith(signature, offset):
            if kind == "an archive" and (
                b"xl/workbook" in content or b".spreadsheet" in content[:200]
            ):
                kind, advice = "an Excel workbook or the like", "save it as CSV"
            raise UserError(f"{path}: {kind}, not a CSV table: {advice}")
    if b"\0" in content:
        raise UserError(f"{path}: no text, expected a {what}: a CSV file in UTF-8")
    return content


def open_text(content: bytes, skipped: int = 0) -> TextIO:
    """The lines of a text without the first ones; they end as they do in the file."""
    lines = io.TextIOWrapper(io.BytesIO(content), "utf-8", "surrogateescape", newline="")
    for _ in range(skipped):
        lines.readline()
    return lines


def declared_delimiter(content: bytes) -> tuple[str, int]:
    """What a first line `sep=;` says, as Excel writes it, and how many lines that takes."""
    first = open_text(content).readline(20).rstrip("\r\n").strip('"')
    if len(first) == 5 and first.lower().startswith("sep=") and first[4] in DELIMITERS:
        return first[4], 1
    return "", 0


def find_delimiter(content: bytes) -> str:
    """The one that takes the most rows apart into as many fields as the header.

    csv.Sniffer is no help: it guesses letters in tables of one column or of a few rows.
    """
    scores = {}
    for delimiter in DELIMITERS:
        counts = []
        reader = csv.reader(open_text(content), delimiter=delimiter, strict=True)
        try:
            for cells in filter(None, reader):
                counts.append(len(cells))
                if len(counts) == ROWS_TO_COUNT:
                    break
        except csv.Error:  # with this delimiter; read_records says so if it is the best
            pass
        if counts and counts[0] > 1:
            scores[delimiter] = counts.count(counts[0]) / len(counts), counts[0]
    return max(scores, key=scores.__getitem__, default=",")


# ---- JSON, and names for a message ---------------------------------------------------------------


def write_json(path: Path, content: dict) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def abridged(names: list[str], most: int = 5) -> str:
    """The first few, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
