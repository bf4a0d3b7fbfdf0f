"""CSV tables: ours, written whole, and those that people have, read whatever wrote them.

write_csv(folder / "scans.csv", [{"scan": "p01", "p_left": 0.25}])
read_csv("manifest.csv", "manifest").column("path", "file")

A spreadsheet takes text that begins with = + - @ for a formula and computes it. Such text is
written behind an apostrophe, as spreadsheets write it themselves, and read without it.
"""

import codecs
import csv
import io
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

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
SAMPLE = 20, 2000  # lines, and characters of each, by which the delimiter is guessed
MAX_TABLE_BYTES = 200 * 2**20
BYTE_ORDER_MARKS = {  # UTF-32 first: in little-endian order its mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class Row(NamedTuple):
    line: int  # its first line in the file
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
    composed = unicodedata.normalize("NFC", column.lower())
    return "".join(character for character in composed if character not in " _-")


def letters_of(text: str) -> str:
    """In Unicode's composed form; bytes that are no UTF-8 are read as Windows' letters (cp1252)."""
    if any("\udc80" <= character <= "\udcff" for character in text):
        text = text.encode("utf-8", "surrogateescape").decode("cp1252", "surrogateescape")
    return unicodedata.normalize("NFC", text)


def read_csv(
    path: str | Path,
    what: str,
    header_if_none: Callable[[list[list[str]]], list[str]] | None = None,
) -> Table:
    """Read a CSV file; `what` it should be is for the message.

    The delimiter may be a comma, semicolon, tab or |. The text may be UTF-8, UTF-16 or UTF-32 with
    a byte order mark, or anything else: bytes that are not UTF-8 are kept as in the names of files
    (surrogateescape). Rows may have fewer cells than the header.

    Args:
        header_if_none: gets the cells of all rows, and returns the names of the columns if the
            file has no header, else an empty list.

    Raises UserError if it can't be read, is no table, or has a row or column that can't be used.
    """
    lines, first = text_of(read_bytes(path, what), path, what), 1
    declared = re.fullmatch(r'"?sep=([,;|\t])"?\s*', lines[0], re.IGNORECASE) if lines else None
    if declared:  # Excel writes this line
        lines, first = lines[1:], 2
    delimiter = declared[1] if declared else guess_delimiter(lines)
    rows, line = [], first
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            if any(map(str.strip, cells)):
                rows.append((line, cells))
            line = first + reader.line_num
    except csv.Error as error:  # such as a quote that is not closed, or a field without an end
        raise UserError(f"{path}, line {line}: not a row of a {what}: {error}") from error
    if not rows:
        raise UserError(f"{path}: it is empty, expected a {what}")
    header = header_if_none([cells for _, cells in rows]) if header_if_none else []
    return table_of(path, [(0, header), *rows] if header else rows)


def table_of(path: str | Path, numbered: list[tuple[int, list[str]]]) -> Table:
    """A table whose header is the first row. Raises UserError as `read_csv` does."""
    (_, header), *rows = numbered
    columns = [" ".join(letters_of(as_it_was(x)).split()) for x in header]  # a name is one line
    while not columns[-1]:
        columns.pop()
    if twice := [name for name in dict.fromkeys(columns) if name and columns.count(name) > 1]:
        raise UserError(f"{path}: it has two columns {abridged(twice)}; rename one of them")
    read = []
    for line, cells in rows:
        if any(map(str.strip, cells[len(columns) :])):
            fields, names = counted(len(cells), "field"), counted(len(columns), "column")
            raise UserError(
                f"{path}, line {line}: {fields}, but there are {names}; a field that holds the "
                "delimiter must be in quotes"
            )
        missing = [""] * (len(columns) - len(cells))
        read.append(Row(line, dict(zip(columns, map(as_it_was, [*cells, *missing]), strict=False))))
    return Table(columns, read)


def read_bytes(path: str | Path, what: str) -> bytes:
    """Raises UserError if it is too large, or no file."""
    try:
        with open_regular(path) as file:
            content = file.read(MAX_TABLE_BYTES + 1)
    except NotAFile as error:
        raise UserError(f"{path}: {error.kind}, expected a {what}: a CSV table") from error
    except OSError as error:
        raise UserError(f"{path}: not a readable {what}: {error.strerror}") from error
    if len(content) > MAX_TABLE_BYTES:
        limit = MAX_TABLE_BYTES >> 20
        raise UserError(f"{path}: too large for a {what}: more than {limit} MB")
    return content


def text_of(content: bytes, path: str | Path, what: str) -> list[str]:
    """The lines of a file, with their ends. Raises UserError if it holds no text."""
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            try:
                content = content.decode(encoding).encode()
            except UnicodeError as error:
                raise UserError(f"{path}: its {encoding.upper()} text is damaged") from error
            break
    content = content.removeprefix(codecs.BOM_UTF8)
    if b"\0" in content:
        raise UserError(
            f"{path}: not text, expected a {what}: a CSV table (save a spreadsheet as CSV, unpack "
            "an archive)"
        )
    text = content.decode("utf-8", "surrogateescape")
    return io.StringIO(text, newline="").readlines()


def guess_delimiter(lines: list[str]) -> str:
    """By Python's csv.Sniffer; a comma where it can't tell, as in a table of one column."""
    count, length = SAMPLE
    sample = [line[:length] for line in lines if line.strip()][:count]
    try:
        return csv.Sniffer().sniff("".join(sample), delimiters=DELIMITERS).delimiter
    except csv.Error:
        return ","
