"""What is no file is not opened, what is printed is one line, what is a table runs nothing."""

import errno
import os
import socket
import subprocess
from pathlib import Path

import pytest

from common.files import NotAFile, abridged_lines, open_regular, read_json, whole_file, whole_folder
from common.program import UserError, print_lines, printable, typed
from common.tables import read_csv, write_csv


def test_pipes_sockets_devices_and_folders_are_refused_before_they_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket"))
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for path, kind in [
        (tmp_path / "pipe", "a pipe"),
        (tmp_path / "link", "a pipe"),
        (tmp_path / "socket", "a socket"),
        (Path("/dev/zero"), "a device"),
        (tmp_path, "a folder"),
    ]:
        with pytest.raises(NotAFile) as refused:
            open_regular(path)
        assert refused.value.kind == kind and refused.value.filename == path
        assert refused.value.errno == errno.EINVAL
        with pytest.raises(UserError, match=f"not a readable split: {kind}, expected a file"):
            read_json(path, "split")
    server.close()
    for nothing in (tmp_path / "nothing", "a\0b"):
        with pytest.raises(FileNotFoundError):
            open_regular(nothing)


def test_a_folder_is_not_made_where_a_link_leads_to_itself(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(FileExistsError, match="is a link to itself"), whole_folder(tmp_path / "a"):
        pass
    (tmp_path / "c").symlink_to("nothing")  # a link that leads nowhere yet is followed
    with whole_folder(tmp_path / "c") as folder:
        (folder / "x").touch()
    assert (tmp_path / "nothing" / "x").exists()


def test_a_folder_that_another_program_made_meanwhile_is_left_to_it(tmp_path):
    with (
        pytest.raises(FileExistsError, match="another program made"),
        whole_folder(tmp_path / "demo"),
        whole_folder(tmp_path / "demo") as others,
    ):
        (others / "x").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["demo", "x"]


@pytest.mark.parametrize("whole", [whole_file, whole_folder])
def test_what_can_not_be_written_is_named_as_it_was_to_be_called(whole, tmp_path):
    with pytest.raises(OSError) as failed, whole(Path("/proc/out.csv")) as temporary:
        Path(temporary).write_text("row")
    assert failed.value.filename == "/proc/out.csv"


def test_what_is_exchanged_for_a_pipe_in_between_is_not_waited_for(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr("common.files.check_regular", lambda path: None)
    with pytest.raises(NotAFile):
        open_regular(tmp_path / "pipe")


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000, b""])
def test_what_is_no_json_is_named(tmp_path, content):
    (tmp_path / "args.json").write_bytes(content)
    with pytest.raises(UserError, match=r"args\.json: not a record of a run: ."):
        read_json(tmp_path / "args.json", "record of a run")


NAMES = {
    "plain.png": "plain.png",
    "Müller 右.png": "Müller 右.png",
    "a\nb.png": "a\\nb.png",
    "\x1b[2Jgone\r\x08": "\\x1b[2Jgone\\r\\x08",
    "\x9b31m": "\\x9b31m",
    "left\u202egnp.thgir": "left\\u202egnp.thgir",
    "\udcff": "\\udcff",
}


def test_a_name_is_one_line_without_control_characters(capsys):
    for name, shown in NAMES.items():
        assert printable(name) == shown
        print_lines(f"note: {name}")
        assert capsys.readouterr().out == f"note: {shown}\n"
        assert str(UserError(f"{name}: no scan", "two")) == f"{shown}: no scan\ntwo"


def test_a_line_that_no_name_could_fill_is_shortened(capsys):
    print_lines("a" * 4096, "\xff" * 2_000_000 + "end")
    first, second = capsys.readouterr().out.splitlines()
    assert first == "a" * 4096 and len(second) < 5100 and second.endswith("end")


def test_names_are_typed_as_a_shell_reads_them():
    for name in [*NAMES, "it's", "a b", "-x", "$HOME", "\\n'\n"]:
        command = ["bash", "-c", f"printf %s {typed(name)}"]
        assert subprocess.run(command, capture_output=True).stdout == os.fsencode(name)
        assert typed(name).isprintable()


CELLS = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "'=1", "''=1", "'quoted", "plain", "", "-"]


def test_text_that_a_spreadsheet_would_compute_is_written_behind_an_apostrophe(tmp_path):
    path = tmp_path / "table.csv"
    write_csv(path, [{"name": cell, "value": -0.5} for cell in CELLS])
    cells = [row.cells for row in read_csv(path, "table").rows]
    assert [row["name"] for row in cells] == CELLS  # those that wrote it read it as it was
    assert all(row["value"] == "-0.5" for row in cells)
    text = path.read_bytes().decode()
    assert "'=1+1,-0.5" in text and "'''=1,-0.5" in text and "\n'quoted,-0.5" in text


def test_the_first_lines_of_many_and_a_count():
    assert abridged_lines(["a", "b"]) == ["a", "b"]
    assert abridged_lines(list("abcdef") * 1000)[4:] == ["e", "  and 5,995 more"]
