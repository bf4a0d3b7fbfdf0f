"""What the name of one file tells by itself, and names that are written and read back."""

import pytest
from conftest import AKOA

from scans.identity.names import (
    VISIT_OR_DATE,
    Identity,
    folded,
    label_of_folder,
    label_of_word,
    last_number,
    nfc,
    oai_patient,
    own_name,
    patient_key,
    patient_part,
    side_in,
    without,
    written_name,
)
from scans.slices import SIDES

NORMAL = ["normal", "abnormal"]

# ---- sides and classes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spelling", ["LEFT", "Left", "left", "L_E_F_T", "RIGHT", "Right", "right", "R_I_G_H_T"]
)
def test_every_spelling_of_the_side_is_read(spelling):
    scan = AKOA.format(patient=9014797, side=spelling, hash=0xDE3D1)
    told = own_name(f"{scan}_17.png", False, SIDES)
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
        ("p01_L_3", "left"),
        ("R", "right"),
        ("P001-r", "right"),
        ("L_R", None),
        ("left_R", None),
        ("p01L", None),  # L stands for a part of what comes before it
        ("L4", None),
        ("9003175L", "left"),  # but for the OAI
        ("9003175R_V00", "right"),
        ("8003175R", None),
        ("90031755R", None),
    ],
)
def test_a_side_is_a_word_or_a_letter_alone_or_behind_the_digits_of_the_oai(part, side):
    assert side_in(part) == side


def test_letters_are_no_sides_where_words_alone_count():
    assert side_in("p01_L_3", letters=False) is None and side_in("LEFT", letters=False) == "left"


def test_akoa_name_tells_no_other_label_than_a_side():
    told = own_name(AKOA.format(patient=1, side="LEFT", hash=1), True, ["l1", "l2"])
    assert told.label == "" and told.patient == "OAI0000001"


def test_words_for_left_and_right_stand_for_no_other_class():
    assert label_of_word(" L_E_F_T", SIDES) == label_of_word("l", SIDES) == "left"
    assert label_of_word("r", SIDES) == label_of_word("right ", SIDES) == "right"
    assert label_of_word("NORMAL", ["Normal", "abnormal"]) == "Normal"
    assert label_of_word("n", NORMAL) is None
    assert label_of_word("l", ["l1", "l2"]) is None
    assert label_of_word("no_rmal", NORMAL) is None


def test_a_folder_is_called_like_a_class_as_a_whole_and_of_sides_also_by_a_word():
    assert label_of_folder("Abnormal", NORMAL) == "abnormal"
    assert label_of_folder("abnormal knees", NORMAL) is None
    assert label_of_folder("Left Knee", SIDES) == "left" == label_of_folder("L", SIDES)
    assert label_of_folder("L", ["l1", "l2"]) is None


# ---- patients ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stem, patient",
    [
        ("9003175L", "9003175"),
        ("xrays/9003175_16600014802", "9003175"),  # a barcode
        ("OAI9014797_V00_left", "9014797"),
        ("00m/0.C.2/9000296/20040909/10693717/001", "9000296"),
        ("9126260_20060921_SAG_3D_DESS_LEFT_11309302_image", "9126260"),
        ("9003175/9003175_LEFT_7", "9003175"),
        ("8003175_LEFT", None),
        ("knee_9003175", None),  # it begins no folder and no name
        ("90031755_LEFT", None),
        ("9003175/9003176_7", None),  # which of the two?
    ],
)
def test_the_digits_of_the_oai_begin_a_folder_or_a_name(stem, patient):
    span = oai_patient(stem)
    assert (span and span.text) == patient
    assert span is None or stem[span.start : span.end] == patient


@pytest.mark.parametrize(
    "stem, patient",
    [
        ("p01/left/7", "p01"),
        ("left/P1_7", "P1"),
        ("patient_7/x", "patient_7"),
        ("Patient 12", "Patient 12"),
        ("left/pat-3 V00", "pat-3"),
        ("pt4/1", "pt4"),
        ("subject12_L", "subject12"),
        ("subj_2/1", "subj_2"),
        ("participant9/1", "participant9"),
        ("person2.left.1", "person2"),
        ("case012/7", "case012"),
        ("pid5/7", "pid5"),
        ("sub-01/ses-1/sub-01_ses-1_T1w", "sub-01"),
        ("sub-AX7/anat", "sub-AX7"),
        ("p01/p1_7", "p01"),  # one person
        ("p01/p02_7", None),
        ("left_p01", None),  # it begins no folder and no name
        ("p01a/7", None),
        ("map01/7", None),
        ("subAX7/7", None),  # letters are a name in BIDS' form alone
        ("case/7", None),
        ("slice_3", None),
    ],
)
def test_a_documented_word_with_its_number_at_the_start_of_a_part_is_a_patient(stem, patient):
    span = patient_part(stem)
    assert (span and span.text) == patient
    assert span is None or stem[span.start : span.end] == patient


@pytest.mark.parametrize("group", ["p01 P1 p_1 patient1 1 001 sub-01 case1 Person-1", "anna ANNA"])
def test_one_person_in_several_spellings_has_one_key(group):
    assert len(set(map(patient_key, [*group.split(), f" {group.split()[0]} "]))) == 1


def test_other_people_have_other_keys():
    names = "1 10 p2 A01 B01 1-2 2-1 12 1a anna sub-AX7 sub-7 p 9003175 zoë zoe".split()
    assert len(set(map(patient_key, names))) == len(names)
    assert patient_key("OAI9003175") == patient_key("9003175")
    assert folded("P01") == folded("p1") != folded("p10") and folded("0") == folded("000")


def test_an_identifier_of_thousands_of_digits_is_one_too():
    assert patient_key("p0" + "1" * 5000) == "1" * 5000


def test_decomposed_names_of_a_mac_are_composed():
    assert nfc("jo\u0308rg/1.png") == "j\u00f6rg/1.png" and nfc("a/1.png") == "a/1.png"
    assert patient_key("Jo\u0308rg") == patient_key("j\u00f6rg")
    assert label_of_word("gru\u0308n", ["gr\u00fcn", "rot"]) == "gr\u00fcn"


# ---- visits, dates, slices -----------------------------------------------------------------------


@pytest.mark.parametrize("text", ["20060921", "2006-09-21", "21.09.2006", "19042004", "2006_09_21"])
def test_dates_are_known_in_both_orders(text):
    assert VISIT_OR_DATE.fullmatch(text)


@pytest.mark.parametrize(
    "text", ["20061399", "9126260", "11309302", "00000000", "2006", "2006-0921"]
)
def test_other_numbers_are_no_dates(text):
    assert not VISIT_OR_DATE.fullmatch(text)


@pytest.mark.parametrize(
    "text", "00m 12m V00 visit2 visit_2 baseline BaseLine ses-1 ses1 24month tp3 week12".split()
)
def test_visits_are_known_by_their_words(text):
    assert VISIT_OR_DATE.fullmatch(text) and not VISIT_OR_DATE.fullmatch("p" + text)


@pytest.mark.parametrize(
    "stem, number, rest",
    [
        ("left/p01_7", "7", "left/p01"),
        ("left/p01_007", "007", "left/p01"),
        ("p01/7", "7", "p01"),
        ("p01/slice(12)", "12", "p01/slice"),
        ("p01_7_12m", "7", "p01_12m"),
        ("p01_V00_LEFT_3", "3", "p01_V00_LEFT"),
        ("p01_3_2006-09-21", "3", "p01_2006-09-21"),
        ("p01_12345678_4", "4", "p01_12345678"),
        ("7_p01_LEFT", "01", "7_p_LEFT"),  # p01 begins no name, and is no patient
        ("p01_left", None, ""),  # it is the patient's
        ("p01_V00", None, ""),
        ("p01_20060921", None, ""),
        ("p01_123456", None, ""),  # too long for a slice
        ("7/p01", None, ""),  # not in the name
    ],
)
def test_the_last_number_counts_slices_unless_it_is_of_a_patient_visit_or_date(stem, number, rest):
    span = last_number(stem, patient_part(stem))
    assert (span and span.text) == number
    assert span is None or without(stem, span) == rest


def test_the_number_of_a_patient_whom_nothing_tells_counts_slices():
    assert last_number("left/x01", None).text == "01"


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
    assert own_name(name, False, SIDES) == told


def test_written_names_are_akoa_names_where_these_tell_the_same():
    scan = AKOA.format(patient=1, side="L_E_F_T", hash=0)
    assert written_name(Identity("left", "OAI0000001", scan, 7), list(SIDES)) == f"{scan}_7.png"
    other = written_name(Identity("normal", "OAI0000001", scan, 7), NORMAL)
    assert own_name(other, False, NORMAL).label == "normal"
