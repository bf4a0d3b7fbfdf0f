"""scans/label_tables.py: labels by identifier, as MRNet, the OAI and spreadsheets have them."""

import os
import re
from pathlib import Path

import pytest
from csv_files import damaged_ones

from common.program import UserError
from scans.label_tables import LabelTables, read_labels
from scans.slices import Contradiction, DataError

MRNET = "".join(f"{i:04},{int(i % 3 == 0)}\n" for i in range(12))
OAI = (
    "ID|SIDE|READPRJ|V00XRKL\n"
    "9000099|1: Right|15|2: Minimal\n"
    "9000099|2: Left|15|0: Normal\n"
    "9000296|1: Right|15|.: Missing Form/Incomplete Workbook\n"
    "9000296|2: Left|15|4: Severe\n"
)
BARCODES = (
    "BARCODE|ID|SIDE\n"
    "0166001|9000099|1: Right\n"
    "0166002|9000099|1: Right\n"
    "0166003|9000099|2: Left\n"
    "0166004|9000296|1: Right\n"
    "0166005|9000297|1: Right\n"
)
GRADES = "id,side,grade\np1,L,mild\np1,R,none\np2,left,severe\np2,right,severe\np3,both,mild\n"


def tables(tmp_path: Path, *texts: str, column: str | None = None, classes=None) -> LabelTables:
    paths = []
    for i, text in enumerate(texts):
        paths.append(tmp_path / f"{i}.csv")
        paths[-1].write_bytes(os.fsencode(text))
    return read_labels(paths, column, classes)


def label(found: LabelTables, *identifiers: str, side: str = "") -> str:
    return found.find(identifiers, side).label


# ---- which rows ----------------------------------------------------------------------------------


def test_table_without_a_header_is_identifier_and_label(tmp_path):
    found = tables(tmp_path, MRNET)
    assert found.classes == ["0", "1"]
    assert [label(found, f"{i:04}") for i in range(4)] == ["1", "0", "0", "1"]
    assert found.find(["0"]) is None and found.find([]) is None  # 0 is not 0000
    answer = found.find(["exam", "0003", "sagittal"])
    assert answer[:3] == ("1", tmp_path / "0.csv", 4)


@pytest.mark.parametrize(
    "text, classes",
    [
        ("a,torn\nb,whole\nc,torn\n", ["torn", "whole"]),  # the first label recurs
        ("id,acl\na,1\nb,0\n", None),  # no column that tells the label
        ("id,label\na,1\nb,0\n", ["0", "1"]),
        ("Exam No.,label\na,1\nb,0\n", ["0", "1"]),  # the other column is the identifier
        ("exam,1\nx,0\n", None),  # `exam` is called like a column: 1 is not a label
        ("a;-1\nb;2\n", ["-1", "2"]),
        ("a\t1: Right\nb\t2: Left\n", ["left", "right"]),
    ],
)
def test_whether_there_is_a_header(tmp_path, text, classes):
    if classes is None:
        with pytest.raises(DataError, match="no column is called label"):
            tables(tmp_path, text)
    else:
        assert sorted(tables(tmp_path, text).classes) == sorted(classes)


def test_side_picks_the_row_and_without_it_rows_that_differ_tell_nothing(tmp_path):
    found = tables(tmp_path, GRADES)
    assert (label(found, "P1", side="left"), label(found, "p1", side="right")) == ("mild", "none")
    answer = found.find(["p1"])
    assert answer.label == "" and re.search(
        r"0\.csv, line 2 says mild, .*line 3 says none, one a side, and nothing", answer.reason
    )
    assert label(found, "p2") == "severe"  # both knees are
    assert label(found, "p3", side="left") == label(found, "p3") == "mild"


def test_row_of_the_other_side_is_not_taken(tmp_path):
    found = tables(tmp_path, GRADES + "p4,left,mild\n")
    assert found.find(["p4"], "right") == ("", tmp_path / "0.csv", 7, f"{tmp_path}/0.csv, line 7 "
                                           "is of the left side")  # fmt: skip
    answer = found.find(["p4"])  # in this table patients have two knees: it may be the other
    assert not answer.label and "nothing tells the side of the scan" in answer.reason
    one_knee_each = tables(tmp_path, "id,side,grade\np1,left,mild\np2,right,none\n")
    assert label(one_knee_each, "p1") == "mild"


def test_oai_tables_are_joined_by_the_identifiers_they_share(tmp_path):
    found = tables(tmp_path, BARCODES, OAI, column="v00xrkl")
    assert found.classes == ["0", "2", "4"]
    assert [label(found, f"016600{i}") for i in (1, 2, 3)] == ["2", "2", "0"]
    assert found.find(["0166001"])[1:3] == (tmp_path / "1.csv", 2)
    assert label(found, "9000099", "0166003") == "0"  # the barcode tells the side
    assert label(found, "9000099", side="left") == "0" and label(found, "9000099") == ""
    assert "has no label" in found.find(["0166004"]).reason
    assert found.find(["0166005"]) is None  # leads to no row
    assert found.find(["0166001"], "left").reason.endswith("is of the right side")


def test_barcodes_without_a_side_lead_to_both_knees(tmp_path):
    found = tables(tmp_path, "barcode,id\n77,9000099\n", OAI, column="V00XRKL")
    assert label(found, "77", side="left") == "0" and label(found, "77", side="right") == "2"
    assert "nothing tells the side" in found.find(["77"]).reason


def test_classes_are_named_by_code_or_by_text(tmp_path):
    for classes in (["0", "2", "4"], ["normal", "Minimal", "severe"]):
        found = tables(tmp_path, OAI, column="V00XRKL", classes=classes)
        assert found.classes == classes
        assert label(found, "9000099", side="right") == classes[1]
    found = tables(tmp_path, "id,label\na,2.0\nb,1.0\nc,\n")  # as pandas writes 2 beside a gap
    assert found.classes == ["1", "2"] and label(found, "a") == "2"
    assert tables(tmp_path, 'id,label\na,"full\n tear"\nb,no\n').classes == ["full tear", "no"]


def test_sides_are_labels_where_a_table_has_nothing_else(tmp_path):
    assert label(tables(tmp_path, "ID|SIDE\n1|1: Right\n2|2: Left\n"), "2") == "left"
    with pytest.raises(DataError, match="--label-column NAME says"):
        tables(tmp_path, "id,side,age\n1,l,40\n2,r,50\n")
    assert label(tables(tmp_path, "id,side,age\n1,l,40\n2,r,50\n", column="Side"), "1") == "left"


def test_tables_of_one_kind_are_united(tmp_path):
    lines = MRNET.splitlines(keepends=True)
    found = tables(tmp_path, "".join(lines[:6]), "".join(lines[6:]))
    assert [label(found, f"{i:04}") for i in (0, 7, 9)] == ["1", "0", "1"]
    first, second = "patient,scan,label\np1,a,x\n", "patient,scan,label\np1,b,y\n"
    found = tables(tmp_path, first, second)
    assert label(found, "p1", "a") == "x" and label(found, "p1", "b") == "y"
    assert "nothing tells which of them is meant" in found.find(["p1"]).reason


def test_file_names_are_known_by_path_name_and_stem(tmp_path):
    found = tables(tmp_path, "filename,label\nleft\\k1.nii.gz,x\nk2.png,y\n")
    assert label(found, "k1") == label(found, "K1.nii.gz") == label(found, "k1", "k1.nii") == "x"
    assert label(found, "k2") == "y"


def test_windows_letters_in_a_table_fit_names_in_utf8(tmp_path):
    (tmp_path / "t.csv").write_bytes("id;label\nMüller;gesünd\nb;krank\n".encode("cp1252"))
    found = read_labels([tmp_path / "t.csv"])
    assert label(found, "müller") == "gesünd" and found.classes == ["gesünd", "krank"]


# ---- what can't be -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "texts, column, classes, message",
    [
        (["id,label\na,1\nb,0\na,0\n"], None, None, r"0\.csv, line 2 says 1, .*line 4 says 0"),
        (["a,1\n", "b,0\nA,0\n"], None, None, r"0\.csv, line 1 says 1, .*1\.csv, line 2 says 0"),
        ([GRADES + "p1,l,none\n"], None, None, "line 2 says mild, .*line 7 says none of the same"),
        (["id,label\na,sevre\n"], None, ["mild", "Severe"], "line 2: label must be mild or Severe, "
         "got 'sevre'; did you mean Severe?"),
        (["id,side,label\na,1,x\n"], None, ["x", "y"], "line 2: side must be left or right, got"),
        ([OAI], "KL", None, "no column is called KL: .*has ID, SIDE, READPRJ, V00XRKL; --la"),
        ([OAI], "V00XRLK", None, "no column is called V00XRLK.*did you mean V00XRKL"),
        ([OAI], None, None, "no column is called label: .*--label-column NAME"),
        (["id,label,class\na,1,2\n"], None, None, "columns label, class may all tell the label"),
        (["age,height,label\n1,2,3\n"], None, None, "expected a column of identifiers"),
        (["id,label\na,1\nb,1\n"], None, None, "expected two or more different labels, got 1"),
        (["id,label\na,1\nb,0\n", "barcode,age\n1,50\n"], None, None, r"1\.csv: no column tells "
         "the label, and no column of identifiers is in another table"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_used_are_refused_by_line_or_column(
    tmp_path, texts, column, classes, message
):
    with pytest.raises(DataError, match=message):
        tables(tmp_path, *texts, column=column, classes=classes)


def test_two_identifiers_of_a_scan_that_lead_to_two_labels_are_a_contradiction(tmp_path):
    found = tables(tmp_path, MRNET)
    with pytest.raises(Contradiction, match=r"line \d says \d, .*0\.csv, line \d says \d"):
        found.find(["0000", "0001"])
    assert label(found, "0001", "0002") == "0"  # they agree
    found = tables(tmp_path, "patient,label\np1,x\n", "barcode,label\n77,y\n")
    with pytest.raises(Contradiction, match=r"0\.csv, line 2 says x, .*1\.csv, line 2 says y"):
        found.find(["p1", "77"])


def test_row_without_a_label_says_nothing_against_another(tmp_path):
    found = tables(tmp_path, "id,label\na,\na,1\nb,0\nc,NA\n")
    assert label(found, "a") == "1"
    assert found.find(["c"]).reason.endswith("0.csv, line 5 has no label")


def test_empty_identifiers_join_nothing(tmp_path):
    found = tables(tmp_path, "barcode,id\n7,\n8,b\n", "id,label\n,1\nb,0\n")
    assert found.find(["7"]) is None and label(found, "8") == "0"


def test_rows_of_no_scan_and_rows_without_a_label_are_counted(tmp_path):
    text = "id,label\n" + "".join(f"{i:04},{i % 2 if i < 1248 else ''}\n" for i in range(1250))
    found = tables(tmp_path, text)
    for i in range(1247):
        found.find([f"{i:04}"])
    path = tmp_path / "0.csv"
    assert found.notes() == [
        f"{path}: 3 of 1,250 rows without a scan",
        f"{path}: 2 of 1,250 rows without a label",
    ]


def test_damaged_tables_are_read_or_refused(tmp_path):
    outcomes = {"read": 0, "refused": 0}
    contents = [text.encode() for text in (MRNET, OAI, GRADES)]
    for content in damaged_ones([*contents, OAI.encode("utf-16")]):
        for paths in (["t.csv"], ["t.csv", "barcodes.csv"]):
            (tmp_path / "t.csv").write_bytes(content)
            (tmp_path / "barcodes.csv").write_text(BARCODES)
            try:
                column = "V00XRKL" if b"V00XRKL" in content else None
                found = read_labels([tmp_path / name for name in paths], column)
                for identifier in ("0003", "9000099", "0166001", "p1"):
                    found.find([identifier], "left")
                found.notes()
                outcomes["read"] += 1
            except UserError as error:
                assert "\n" not in str(error), content
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 50, outcomes
