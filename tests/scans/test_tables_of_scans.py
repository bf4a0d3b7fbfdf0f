"""--labels with a column scan: whole names, whose labels replace what anything else tells."""

import csv
from pathlib import Path

import pytest
from PIL import Image

from scans.labelled import list_labelled
from scans.listing import list_slices
from scans.slices import DataError, Kind, Options, by_scan

NAMES = ["a b", "c, d", 'e "f"', "=1+2", "<b>&amp;", "P01", "p01", "\udcff"]


def write_scans(folder: Path, names: list[str]) -> None:
    for i, name in enumerate(names):
        side = ("left", "right")[i % 2]
        (folder / side / name).mkdir(parents=True)
        for number in range(3):
            Image.new("L", (4, 4), 30 * number).save(folder / side / name / f"{number}.png")


def write_table(path: Path, rows: list[tuple[str, str]]) -> Path:
    with path.open("w", newline="", errors="surrogateescape", encoding="utf-8") as file:
        csv.writer(file).writerows([("scan", "label"), *rows])
    return path


def labels_of(slices) -> dict[str, str]:
    return {scan: members[0].label for scan, members in by_scan(slices).items()}


def test_scans_of_any_name_get_the_label_of_their_row_and_others_keep_theirs(tmp_path):
    write_scans(tmp_path / "data", NAMES)
    before = labels_of(list_slices(tmp_path / "data").slices)
    assert len(before) == len(NAMES)
    other = {"left": "right", "right": "left"}
    changed = {scan: other[label] for scan, label in before.items() if "P01" not in scan}
    rows = [("'=x", "left")]  # no scan, and read as =x
    rows += [(f"'{s}" if s.startswith("=") else s, label) for s, label in changed.items()]
    table = write_table(tmp_path / "corrected.csv", rows)
    listing = list_slices(tmp_path / "data", None, Options(labels=[str(table)]))
    assert labels_of(listing.slices) == before | changed
    notes = [str(p) for p in listing.of_kind(Kind.REMARK)]
    assert f"{table}: 1 of 8 rows without a scan" in notes
    assert f"{table}: changes the label of 7 scans: " in "".join(notes)


def test_a_row_without_a_label_leaves_its_scan_out_and_says_so(tmp_path):
    write_scans(tmp_path / "data", ["p1", "p2", "p3", "p4"])
    table = write_table(tmp_path / "t.csv", [("left/p1", ""), ("right/p2", "left")])
    listing = list_labelled(tmp_path / "data", None, Options(labels=[str(table)]))
    assert labels_of(listing.slices) == {"left/p3": "left", "right/p2": "left", "right/p4": "right"}
    notes = "\n".join(map(str, listing.problems))
    assert "t.csv: 1 of 2 rows without a label" in notes
    assert "t.csv: changes the label of 1 scan: right/p2 is left" in notes
    assert "t.csv: takes the label of 1 scan away: left/p1" in notes
    assert "3 slices without a label, left out: " in notes


def test_patients_are_those_without_the_table(tmp_path):
    write_scans(tmp_path / "data", ["p1", "p2", "p3", "p4"])
    table = write_table(tmp_path / "t.csv", [("left/p1", "right"), ("right/p2", "left")])
    known = list_labelled(tmp_path / "data")
    again = list_labelled(tmp_path / "data", None, Options(labels=[str(table)]))
    assert {s.source: (s.scan, s.patient, s.number) for s in known.slices} == {
        s.source: (s.scan, s.patient, s.number) for s in again.slices
    }


def test_a_row_decides_where_names_contradict_each_other(tmp_path):
    write_scans(tmp_path, ["p1_RIGHT", "p2_RIGHT"])  # left/p1_RIGHT
    assert list_slices(tmp_path).of_kind(Kind.CONTRADICTION)
    table = write_table(tmp_path / "t.csv", [("left/p1_RIGHT", "right")])
    listing = list_slices(tmp_path, None, Options(labels=[str(table)]))
    assert not listing.of_kind(Kind.CONTRADICTION)
    assert labels_of(listing.slices) == {"left/p1_RIGHT": "right", "right/p2_RIGHT": "right"}


def test_names_of_two_folders_hold_the_folder(tmp_path):
    for site in "ab":
        write_scans(tmp_path / site, ["p1", "p2"])
    name = str(tmp_path / "b" / "left" / "p1")
    table = write_table(tmp_path / "t.csv", [(name, "right")])
    paths = [tmp_path / "a", tmp_path / "b"]
    found = labels_of(list_slices(paths, None, Options(labels=[str(table)])).slices)
    assert found[name] == "right" and found[str(tmp_path / "a" / "left" / "p1")] == "left"


def test_two_labels_of_a_scan_and_words_that_are_no_class_are_refused(tmp_path):
    write_scans(tmp_path / "data", ["p1", "p2"])
    for rows, message in [
        ([("left/p1", "left"), ("left/p1", "right")], "says left, .* says right of the same scan"),
        ([("left/p1", "lefft")], "label must be left or right, got 'lefft'; did you mean left"),
    ]:
        table = write_table(tmp_path / "t.csv", rows)
        with pytest.raises(DataError, match=message):
            list_slices(tmp_path / "data", None, Options(labels=[str(table)]))
