"""CSV tables: ours, written whole, and those that people have, read whatever wrote them.

write_csv(folder / "scans.csv", [{"scan": "p01", "p_left": 0.25}])
read_csv("manifest.csv", "manifest").column("path", "file")

A spreadsheet takes text that begins with = + - @ for a formula and computes it. Such text is
written behind an apostrophe, as spreadsheets write it themselves, and read without it.
"""

import codecs
import csv
import io
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO

from common.files import NotAFile, abridged, open_regular, whole_file
from common.program import UserError, counted

# ---- CSV tables of ours --------------------------------------------------------------------------

# What a spreadsheet computes begins with one of these; the last four are full-width = + - @.
FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")


def shown_as_text(cell: object) -> object:
    """Text that a spreadsheet would compute, behind an apostrophe; numbers stay as they are."""
    formula = isinstance(cell, str) and cell.lstrip("'").startswith(FORMULA)
    return f"'{cell}" if formula else cell


def as_it_was(cell: str) -> str:
    """What `shown_as_text` was given."""
    formula = cell.startswith("'") and cell.lstrip("'").startswith(FORMULA)
    return cell[1:] if formula else cell


@contextmanager
def whole_csv(path: Path, columns: Iterable[str]) -> Iterator[Callable[[Iterable[dict]], None]]:
    """Write a table row by row: what is given takes rows, and may be called often.

    The table has its name when it is whole. Rows are on their way to the disk after each call, so
    that a full one is met there. Names that are no text, as file systems allow, are written as
    they are.
    """
    with (
        whole_file(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()

        def add(rows: Iterable[dict]) -> None:
            for row in rows:
                writer.writerow({name: shown_as_text(cell) for name, cell in row.items()})
            file.flush()

        yield add


def write_csv(path: Path, rows: list[dict], columns: Iterable[str] | None = None) -> None:
    """Write a table of these rows, whose columns are by default those of the first."""
    with whole_csv(path, columns or rows[0]) as add:
        add(rows)


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
    cells: list[str]  # as they are written


class Row(NamedTuple):
    line: int
    cells: dict[str, str]  # column -> text, "" where the row has none


class Table(NamedTuple):
    """A CSV file as it was read."""

    columns: list[str]
    rows: list[Row]
    guarded: frozenset[tuple[int, str]] = frozenset()  # line, column: behind an apostrophe

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
    columns = [" ".join(as_it_was(name).split()) for name in records[0].cells]  # a name is one line
    while not columns[-1]:
        columns.pop()
    if twice := [name for name in dict.fromkeys(columns) if name and columns.count(name) > 1]:
        raise UserError(f"{path}: it has two columns {abridged(twice)}; rename one of them")
    rows, guarded = [], set()
    for line, cells in records[1:]:
        if any(map(str.strip, cells[len(columns) :])):
            fields, names = counted(len(cells), "field"), counted(len(columns), "column")
            raise UserError(
                f"{path}, line {line}: {fields}, but there are {names}; a field that holds the "
                "delimiter must be in quotes"
            )
        missing = [""] * (len(columns) - len(cells))
        written = dict(zip(columns, [*cells, *missing], strict=False))
        read = {column: as_it_was(cell) for column, cell in written.items()}
        guarded |= {(line, column) for column in read if read[column] != written[column]}
        rows.append(Row(line, read))
    return Table(columns, rows, frozenset(guarded))


def read_bytes(path: str | Path, what: str) -> bytes:
    """Raises UserError if it is too large, or no file."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read(MAX_TABLE_BYTES + 1) if size <= MAX_TABLE_BYTES else b""
    except NotAFile as error:
        raise UserError(f"{path}: {error.kind}, expected a {what}: a CSV table") from error
    except OSError as error:
        raise UserError(f"{path}: not a readable {what}: {error.strerror}") from error
    if max(size, len(content)) > MAX_TABLE_BYTES:
        limit = MAX_TABLE_BYTES >> 20
        raise UserError(f"{path}: {size >> 20} MB, too large for a {what}: at most {limit} MB")
    return content


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
