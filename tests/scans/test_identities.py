"""Paths -> label, patient, scan and number, by folders, names, patterns and tables."""

from pathlib import Path

import pytest
from conftest import AKOA

from scans.found import Found
from scans.identities import identify
from scans.label_tables import read_labels
from scans.slices import SIDES, Kind, Options


def tell(path: str, *others: str, classes=SIDES, root="/data", **options) -> Found:
    """What becomes of one path among others."""
    found = [Found(name, name) for name in (path, *others)]
    problems = []
    identify(found, list(classes), Options(**options), problems, root)
    contradictions = [p.text for p in problems if p.kind is Kind.CONTRADICTION]
    assert not contradictions or found[0].label == "", contradictions
    return found[0]


@pytest.mark.parametrize(
    "name, patient, scan",
    [
        ("left/p01_7.png", "p01", "left/p01"),
        ("left/p01/7.png", "p01", "left/p01"),
        ("left/p01/visit2/7.png", "p01", "left/p01/visit2"),
        ("p01/left/7.png", "p01", "p01/left"),
        ("visit2/Left/p01_7.png", "p01", "visit2/left/p01"),
        ("p01/visit2/left/7.png", "p01", "p01/visit2/left"),
        ("knees/left/p01/a-7.png", "p01", "knees/left/p01/a"),
    ],
)
@pytest.mark.parametrize("label", ["left", "abnormal", "3"])
def test_visits_in_folders_belong_to_one_patient(name, patient, scan, label):
    """The same forms for the folders of any classes."""
    classes = SIDES if label == "left" else ["normal", "abnormal", "3"]
    name, scan = (
        text.replace("left", label).replace("Left", label.title()) for text in (name, scan)
    )
    found = tell(name, classes=classes)
    assert (found.label, found.patient, found.scan, found.number) == (label, patient, scan, 7)


@pytest.mark.parametrize(
    "paths",
    [
        ["L/p1_3.png", "R/p1_3.png"],
        ["Left Knee/p1_3.png", "Right Knee/p1_3.png"],
        ["p1_L_3.png", "p1_R_3.png"],
        ["p1_3_l.png", "p1_3_r.png"],
        ["9003175L.png", "9003175R.png"],
        ["p1/LEFT/3.png", "p1/RIGHT/3.png"],
        ["p1_left_knee_3.png", "p1_right_knee_3.png"],
    ],
)
def test_words_and_letters_for_a_side_are_labels_where_all_paths_have_one(paths):
    assert [tell(*paths).label, tell(*paths[::-1]).label] == list(SIDES)


@pytest.mark.parametrize("path", ["L4/p1_3.png", "p1_l_3.png", "bright_cleft_3.png", "x/L_3.png"])
def test_a_letter_alone_or_a_part_of_a_word_is_no_side(path):
    assert tell(path).label == ""


def test_classes_in_names_are_labels_but_numbers_in_names_are_none():
    classes = ["normal", "abnormal"]
    assert tell("p1_normal_3.png", "p2_abnormal_3.png", classes=classes).label == "normal"
    assert tell("p1_0_3.png", "p1_1_3.png", classes=["0", "1"]).label == ""
    assert tell("0/p1_3.png", "1/p2_3.png", classes=["0", "1"]).label == "0"


def test_akoa_name_below_a_class_folder_tells_patient_and_scan_and_the_folder_the_label():
    scan = AKOA.format(patient=9014797, side="RIGHT", hash=1)
    found = tell(f"site/Abnormal/{scan}_17.png", classes=["normal", "abnormal"])
    assert (found.label, found.patient, found.scan) == ("abnormal", "OAI9014797", scan)
    assert found.number == 17 and found.way == "told by names"


@pytest.mark.parametrize(
    "path, text",
    [
        ("left/right/p01_7.png", "its folders say left and right"),
        ("normal/p01/Abnormal/7.png", "its folders say abnormal and normal"),
        ("left/p01_RIGHT_7.png", "the name says right, its folder left"),
        (f"left/{AKOA.format(patient=1, side='RIGHT', hash=1)}_7.png", "says right, its folder"),
        ("right/patient=p,scan=s,label=left_7.png", "the name says left, its folder right"),
    ],
)
def test_two_labels_of_one_path_are_a_contradiction(path, text):
    classes = SIDES if "ormal" not in path else ["normal", "abnormal"]
    found, problems = [Found(path, path)], []
    identify(found, list(classes), Options(), problems, "/data")
    assert found[0].label == "" and problems[0].kind is Kind.CONTRADICTION
    assert text in problems[0].text


def test_of_a_path_that_is_typed_only_what_is_nearest_to_its_end_counts():
    """/mnt/left/knees/p1_RIGHT.png is a right knee, wherever somebody keeps it."""
    assert tell("/mnt/left/knees/p1_RIGHT.png", root="").label == "right"
    assert tell("/mnt/left/right/p1.png", root="").label == "right"


def test_a_pattern_adds_to_what_the_rest_tells():
    paths = [f"{side}/x{p}_{i}.png" for side in SIDES for p in (1, 2) for i in (1, 2)]
    found = tell(*paths, name_pattern=r"x(?P<patient>\d)")
    assert (found.label, found.patient, found.scan, found.number) == ("left", "1", "left/x1", 1)
    found = tell("9000001_L_a_1.png", "9000001_R_a_1.png", name_pattern=r"(?P<slice>\d)\.png")
    assert (found.label, found.patient, found.number) == ("left", "9000001", 1)
    found = tell("left/p1_3_1.png", "left/p1_3_2.png", name_pattern=r"(?P<scan>p\d_\d)")
    assert (found.label, found.patient, found.scan) == ("left", "p1", "p1_3")


def test_tables_tell_the_label_by_patient_and_side(tmp_path: Path):
    table = tmp_path / "kxr.txt"
    table.write_text("ID|SIDE|V00XRKL\n9000099|1: Right|2: Minimal\n9000099|2: Left|0: None\n")
    tables = read_labels([table], "V00XRKL", ["0", "2"])
    for side, label in (("LEFT", "0"), ("RIGHT", "2")):
        found = [Found(name, name) for name in (f"9000099_{side}_1.png", f"9000099_{side}_2.png")]
        problems = []
        identify(found, ["0", "2"], Options(), problems, "/data", tables)
        assert [(x.label, x.patient) for x in found] == [(label, "9000099")] * 2 and not problems
