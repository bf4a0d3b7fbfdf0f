"""One path -> label, patient, scan and number, and back."""

import pytest
from conftest import AKOA

from scans.names import (
    Identity,
    folded,
    is_date,
    is_visit,
    label_of_word,
    parse_name,
    side_in,
    written_name,
)
from scans.slices import SIDES


@pytest.mark.parametrize(
    "spelling", ["LEFT", "Left", "left", "L_E_F_T", "RIGHT", "Right", "right", "R_I_G_H_T"]
)
def test_every_spelling_of_the_side_is_read(spelling):
    scan = AKOA.format(patient=9014797, side=spelling, hash=0xDE3D1)
    told = parse_name(f"{scan}_17.png", False, SIDES)
    assert told.label == spelling.replace("_", "").lower()
    assert (told.patient, told.scan, told.number) == ("OAI9014797", scan, 17)


@pytest.mark.parametrize(
    "part, side",
    [
        ("knee_RIGHT", "right"),
        ("OAI9014797_BaseLine_3_L_E_F_T", "left"),
        ("Left Knee", "left"),
        ("left_or_right", None),
        ("bright_cleft", None),
        ("copyright", None),
        ("dicom_LEFT#2", "left"),
    ],
)
def test_side_is_a_word_of_a_name(part, side):
    assert side_in(part) == side


@pytest.mark.parametrize("text", ["20060921", "2006-09-21", "21.09.2006", "09212006", "19042004"])
def test_dates_are_known_in_any_order(text):
    assert is_date(text)


@pytest.mark.parametrize("text", ["20061399", "9126260", "11309302", "00000000", "2006", "p01"])
def test_other_numbers_are_no_dates(text):
    assert not is_date(text)


@pytest.mark.parametrize(
    "text", ["00m", "12m", "V00", "visit2", "baseline", "BaseLine", "ses1", "bl", "24month"]
)
def test_visits_are_known_by_their_words(text):
    assert is_visit(text) and not is_visit("p" + text)


def test_one_name_in_several_spellings():
    assert folded("P01") == folded("p1") != folded("p10") and folded("0") == folded("000")


# ---- classes -------------------------------------------------------------------------------------


def test_akoa_name_tells_no_other_label_than_a_side():
    told = parse_name(AKOA.format(patient=1, side="LEFT", hash=1), True, ["l1", "l2"])
    assert told.label == "" and told.patient == "OAI0000001"


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
    assert parse_name(name, False, SIDES) == told


def test_written_names_are_akoa_names_where_these_tell_the_same():
    scan = AKOA.format(patient=1, side="L_E_F_T", hash=0)
    assert written_name(Identity("left", "OAI0000001", scan, 7), list(SIDES)) == f"{scan}_7.png"
    other = written_name(Identity("normal", "OAI0000001", scan, 7), ["normal", "abnormal"])
    assert parse_name(other, False, ["normal", "abnormal"]).label == "normal"
