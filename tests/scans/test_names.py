"""One path -> label, patient, scan and number, and back."""

from pathlib import Path

import pytest
from conftest import AKOA

from scans.names import Identity, label_of_word, parse_name, side_in_name, written_name
from scans.slices import SIDES, Contradiction


@pytest.mark.parametrize(
    "spelling", ["LEFT", "Left", "left", "L_E_F_T", "RIGHT", "Right", "right", "R_I_G_H_T"]
)
def test_every_spelling_of_the_side_is_read(spelling):
    scan = AKOA.format(patient=9014797, side=spelling, hash=0xDE3D1)
    told = parse_name(Path(f"{scan}_17.png"), SIDES)
    assert told.label == spelling.replace("_", "").lower()
    assert (told.patient, told.scan, told.number) == ("OAI9014797", scan, 17)


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
    assert parse_name(Path(name), classes) == Identity(label, patient, scan, 7)


@pytest.mark.parametrize(
    "name, side",
    [
        ("p01/knee_RIGHT.nii.gz", "right"),
        ("OAI9014797_BaseLine_3_L_E_F_T.nii.gz", "left"),
        ("left/p01/7.nrrd", "left"),
        ("left/p01/right.nrrd", "right"),
        ("left/right/x.nii", "right"),
        ("left/left_or_right.nii", None),
        ("copyright/bright_cleft.nii", None),
        ("p01/dicom_LEFT#2", "left"),
    ],
)
def test_side_is_a_word_of_the_nearest_name(name, side):
    assert side_in_name(name) == side


# ---- classes -------------------------------------------------------------------------------------


def test_akoa_name_below_a_class_folder_tells_patient_and_scan_and_the_folder_the_label():
    scan = AKOA.format(patient=9014797, side="RIGHT", hash=1)
    path = Path("site/Abnormal") / f"{scan}_17.png"
    assert parse_name(path, ["normal", "abnormal"]) == Identity("abnormal", "OAI9014797", scan, 17)


def test_akoa_name_tells_no_other_label_than_a_side():
    told = parse_name(Path(AKOA.format(patient=1, side="LEFT", hash=1) + "_2.png"), ["l1", "l2"])
    assert told.label == "" and told.patient == "OAI0000001"


@pytest.mark.parametrize("path", ["left/right/p01_7.png", "normal/p01/Abnormal/7.png"])
def test_two_folders_that_are_called_like_two_classes_are_a_contradiction(path):
    classes = SIDES if "left" in path else ["normal", "abnormal"]
    said = "its folders say " + " and ".join(sorted(classes))
    with pytest.raises(Contradiction, match=said):
        parse_name(Path(path), classes)
    assert parse_name(Path("left/p01/left/7.png"), SIDES).label == "left"


def test_words_for_left_and_right_stand_for_no_other_class():
    assert label_of_word(" L_E_F_T", SIDES) == label_of_word("l", SIDES) == "left"
    assert label_of_word("r", SIDES) == label_of_word("right ", SIDES) == "right"
    assert label_of_word("NORMAL", ["Normal", "abnormal"]) == "Normal"
    assert label_of_word("n", ["normal", "abnormal"]) is None
    assert label_of_word("l", ["l1", "l2"]) is None
    assert label_of_word("no_rmal", ["normal", "abnormal"]) is None


# ---- names that are written ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "told",
    [
        Identity("left", "p01", "left/p01", 7),
        Identity("right", "a,b=c", "x/y,label=left_3", 0),
        Identity("", "", "..", 12),
        Identity("left", "100%", "%2F%", 1),
        Identity("left", "two\nlines", "膝\\колено", 1),
        Identity("right", "\udcff\udcfe", ".hidden \udcff", 1),
        Identity("left", "OAI1", AKOA.format(patient=1, side="RIGHT", hash=0), 3),  # another label
        Identity("left", "OAI1", "a/OAI1_V_LEFT", 3),  # the file would be called OAI1_V_LEFT_3.png
    ],
)
def test_every_name_is_written_so_that_it_is_read_back(told):
    name = written_name(told, list(SIDES))
    assert "/" not in name and name.startswith("patient=")
    assert parse_name(Path(name), SIDES) == told


def test_written_names_are_akoa_names_where_these_tell_the_same():
    scan = AKOA.format(patient=1, side="L_E_F_T", hash=0)
    assert written_name(Identity("left", "OAI0000001", scan, 7), list(SIDES)) == f"{scan}_7.png"
    other = written_name(Identity("normal", "OAI0000001", scan, 7), ["normal", "abnormal"])
    assert parse_name(Path(other), ["normal", "abnormal"]).label == "normal"


def test_written_name_that_contradicts_its_folder_is_refused():
    name = written_name(Identity("left", "p", "s", 1), list(SIDES))
    with pytest.raises(Contradiction, match="the name says left, its folder right"):
        parse_name(Path("right", name), SIDES)
