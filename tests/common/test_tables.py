"""common/tables.py: CSV tables as people have them, byte for byte; what is none is named."""

import csv
import io
import os
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from csv_files import DIALECTS, ROWS, damaged_ones
from PIL import Image

from common import tables
from common.program import UserError
from common.tables import Row, Table, read_csv, write_csv


def table_of(tmp_path: Path, content: bytes) -> Table:
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    return read_csv(path, "manifest")


@pytest.mark.parametrize("name", DIALECTS)
def test_the_same_table_in_every_dialect(tmp_path, name):
    table = table_of(tmp_path, DIALECTS[name])
    assert table.columns == ["path", "label", "patient"]
    assert [row.cells for row in table.rows] == ROWS


@pytest.mark.parametrize(
    "text, columns, second",
    [
        ("path\na;b.png\nc.png\n", ["path"], "a;b.png"),  # one column: nothing to take apart
        ("path\n", ["path"], None),
        ("path,label|side\na.png,left\n", ["path", "label|side"], "a.png"),
        ("id;grade (0|1|2)\nx;1\ny;2\n", ["id", "grade (0|1|2)"], "x"),
        ("id;grade\nx;1,5\ny;2,5\n", ["id", "grade"], "x"),  # decimal commas
        ("id,note\nx,a;b;c\n", ["id", "note"], "x"),
        ("ID|SIDE|KL\n9|1: Right|2: Minimal, or so\n", ["ID", "SIDE", "KL"], "9"),
        ('"a,b";"c,d"\n"x,y";z\n', ["a,b", "c,d"], "x,y"),
        ('"the\npath",b\na,1\n', ["the path", "b"], "a"),
        (",path\n0,a.png\n", ["", "path"], "0"),  # pandas writes its index so
        ("id;note\n1;a, b\n2;c, d\n3;e, f\n", ["id", "note"], "1"),
        ("id;a;b\n1,0;2,0;3,0\n2,0;3,0;4,0\n", ["id", "a", "b"], "1,0"),
        ("id\tname\n1\tDoe, J\n2\tRoe, J\n", ["id", "name"], "1"),
        ('id,name,x\n1,"Doe; J",a\n2,"Roe; J",b\n', ["id", "name", "x"], "1"),
        ("id,name\n1,O'Neil\n2,D'Or\n", ["id", "name"], "1"),
        ("sep=x\na\n", ["sep=x"], "a"),
    ],
)
def test_delimiter_is_that_which_takes_header_and_rows_apart_alike(tmp_path, text, columns, second):
    table = table_of(tmp_path, text.encode())
    assert table.columns == columns
    assert second is None or table.rows[0].cells[columns[0]] == second


def test_line_of_a_row_is_its_first_in_the_file(tmp_path):
    table = table_of(tmp_path, b'sep=;\n\na;b\n1;"x\ny"\n\n\n2;z\n')
    assert table.rows == [Row(4, {"a": "1", "b": "x\ny"}), Row(8, {"a": "2", "b": "z"})]


def test_missing_fields_are_empty_and_one_too_many_is_refused_by_its_line(tmp_path):
    assert table_of(tmp_path, b"a,b\n1\n2,x,,\n").rows == [
        Row(2, {"a": "1", "b": ""}),
        Row(3, {"a": "2", "b": "x"}),
    ]
    with pytest.raises(UserError, match=r"table\.csv, line 3: 3 fields, but there are 2 columns"):
        table_of(tmp_path, b"a,b\n1,2\nx,y,z\n")


def test_column_that_is_there_twice_is_refused(tmp_path):
    with pytest.raises(UserError, match="two columns label; rename one"):
        table_of(tmp_path, b"path,label, label\na,b,c\n")
    assert table_of(tmp_path, b",a,,b\n1,2,3,4\n").rows[0].cells["b"] == "4"  # unnamed ones may


@pytest.mark.parametrize("text", ['a,b\n1,"2\n3,4\n', 'a,b\n1,"2"x\n', f"a,b\n1,{'x' * 200_000}\n"])
def test_quote_that_is_not_closed_and_endless_field_are_refused_by_line(tmp_path, text):
    with pytest.raises(UserError, match=r"table\.csv, line 2: not a row of a manifest: "):
        table_of(tmp_path, text.encode())


def test_bytes_that_are_no_utf8_come_back_as_file_systems_give_them(tmp_path):
    name = os.fsdecode(b"gr\xf6\xdfe.png")
    assert table_of(tmp_path, b"path,label\ngr\xf6\xdfe.png,l\n").rows[0].cells["path"] == name


def test_what_was_written_is_read_again(tmp_path):
    names = [
        "a,b",
        "c;d|e\t",
        'say "x"',
        "two\nlines",
        "two\r\nmore",
        "r\rr",
        " space ",
        os.fsdecode(b"\xff.png"),
        "é",
    ]
    rows = [{"path": name, "label": "x"} for name in names]
    write_csv(tmp_path / "t.csv", rows)
    table = read_csv(tmp_path / "t.csv", "table")
    assert table.columns == ["path", "label"] and [row.cells for row in table.rows] == rows
    write_csv(tmp_path / "t.csv", [], ["path", "label"])
    assert read_csv(tmp_path / "t.csv", "table") == Table(["path", "label"], [])


def test_columns_are_found_by_any_of_their_names():
    table = Table(["Patient ID", "patient_id", "LABEL", "side"], [])
    assert table.columns_called("patientid") == ["Patient ID", "patient_id"]
    assert table.column("patient_id") == "patient_id"  # as it is spelled
    assert table.column("class", "label", "side") == "LABEL"
    assert table.column("path") is None


# ---- what is no table ----------------------------------------------------------------------------


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return file.getvalue()


def tarred(mode: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        archive.addfile(tarfile.TarInfo("labels.csv"))
    return file.getvalue()


def image(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("L", (3, 3)).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    "content, message",
    [
        (zipped("xl/workbook.xml"), "not text, .* \\(save a spreadsheet as CSV"),
        (zipped("labels.csv"), "not text, expected a manifest: a CSV table .* unpack an archive"),
        (tarred("w"), "not text"),
        (tarred("w:gz"), "not text"),
        (image("PNG"), "not text"),
        (bytes(128) + b"DICM" + bytes(20), "not text"),
        (b"path,label\na\0.png,l\n", "not text"),
        ("path,label\na.png,l\n".encode("utf-16-le"), "not text"),  # without its mark
        ("path\nx".encode("utf-16") + b"\n", "its UTF-16 text is damaged"),
        (b"", "it is empty, expected a manifest"),
        ("\ufeff\r\n ; ;\r\n".encode(), "it is empty, expected a manifest"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # archives hold the time
)
def test_what_is_no_text_is_refused_in_one_line(tmp_path, content, message):
    with pytest.raises(UserError, match=rf"table\.csv: {message}") as error:
        table_of(tmp_path, content)
    assert "\n" not in str(error.value)


def test_pipe_folder_device_and_no_file_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    for path, message in [
        (tmp_path / "pipe.csv", "a pipe, expected a manifest"),
        (Path("/dev/zero"), "a device, expected a manifest"),
        (tmp_path, "a folder, expected a manifest"),
        (tmp_path / "no.csv", "not a readable manifest.*No such file"),
    ]:
        with pytest.raises(UserError, match=message):
            read_csv(path, "manifest")


def test_table_that_is_too_large_is_not_read(tmp_path):
    with open(tmp_path / "t.csv", "wb") as file:
        file.truncate(tables.MAX_TABLE_BYTES + 2**20)  # takes no space on disk
    with pytest.raises(UserError, match=r"t\.csv: too large for a manifest: more than 200 MB"):
        read_csv(tmp_path / "t.csv", "manifest")


def test_damaged_tables_are_read_or_refused_in_one_line(tmp_path):
    start, outcomes = time.monotonic(), {"read": 0, "refused": 0}
    for content in damaged_ones(list(DIALECTS.values()), 600):
        try:
            table = table_of(tmp_path, content)
            assert all(row.cells.keys() == set(table.columns) for row in table.rows)
            outcomes["read"] += 1
        except UserError as error:
            assert "\n" not in str(error), content
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 100, outcomes
    assert time.monotonic() - start < 20


def test_large_table_takes_seconds(tmp_path):
    line = "left/patient0001_visit2_0001.png,left,patient0001,scan 1\n"
    (tmp_path / "t.csv").write_text("path,label,patient,scan\n" + line * 50_000)
    start = time.monotonic()
    assert len(read_csv(tmp_path / "t.csv", "manifest").rows) == 50_000
    assert time.monotonic() - start < 10
    assert csv.field_size_limit() == 131072  # no other reader of the process is changed
