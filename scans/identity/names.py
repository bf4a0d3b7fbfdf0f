"""What the name of a file tells by itself: words for sides and classes, AKOA's names, patients.

    own_name("OAI9014797_BaseLine_3_de3d1_SAG_3D_DESS_WE_RIGHT.nii.gz_0.png", False, SIDES)
    side_in("9003175L")                      # "left"
    word_for_patient("left/p01/7", ...)      # the part p01
    patient_key("P1") == patient_key("patient 001")

Paths have slashes, are below the data folder, and are in Unicode's composed form (`nfc`). Each rule
of docs/data.md about names is a regular expression here.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple
from urllib.parse import unquote

from scans.slices import SIDES
from scans.splits import SUBSET_FOLDERS

SPELLED_SIDES = r"left|right|l_e_f_t|r_i_g_h_t"
# OAI9014797_BaseLine_3_de3d1_SAG_3D_DESS_WE_RIGHT.nii.gz_0 (without its suffix .png)
AKOA_NAME = re.compile(
    rf"(?P<scan>(?P<patient>OAI\d+)_.*_(?P<side>{SPELLED_SIDES})(\.nii(\.gz)?)?)_(?P<number>\d+)",
    re.IGNORECASE,
)
AKOA_VISIT = re.compile(r"OAI\d+_([^_]+)_", re.IGNORECASE)
# patient=p01,scan=left%2Fp01,label=left_7 (without its suffix .png)
WRITTEN_NAME = re.compile(
    r"patient=(?P<patient>[^,]*),scan=(?P<scan>[^,]+),label=(?P<label>[^,]*)_(?P<number>\d+)"
)
NOT_IN_NAMES = re.compile(r'[%,/\\:*?"<>|\x00-\x1f]|^\.')
# left or L_E_F_T between anything but letters.
SIDE_WORD = re.compile(rf"(?<![^\W\d_])({SPELLED_SIDES})(?![^\W\d_])", re.IGNORECASE)
# L alone between separators, or behind the seven digits of the OAI: 9003175L.
SIDE_LETTER = re.compile(r"(?:(?<![^\W_])|(?<=\b9\d{6}))([lr])(?![^\W_])", re.IGNORECASE)
# Where the seven digits of the OAI begin a folder or a name: 9003175L, OAI9014797_V00.
OAI_PATIENT = re.compile(r"(?:(?<=/)|^)(?:OAI)?(9\d{6})(?!\d)", re.IGNORECASE)
SLICE_NUMBER = re.compile(r"(?<!\d)\d{1,5}(?![^\W_])")
PATIENT_WORDS = "patient pat pt subject subj sub participant person case pid p".split()
# A part that begins a folder or a name: a word for patients with its number, of 8 digits at most
# (of 11, a date is among them); of BIDS also sub-AB7.
PATIENT_PART = re.compile(
    rf"(?:(?<=/)|^)((?:{'|'.join(PATIENT_WORDS)})[-_ ]?\d{{1,8}}|sub-[a-z]+\d+)(?![^\W_])",
    re.IGNORECASE,
)
# A number that a hyphen or dot joins to it, but not a slice's: P01-003 may be site and patient.
JOINED = re.compile(r"[-.]\d{1,5}(?![^\W_])(?=[^/]*\d|[^/]*/)")
WORD_AND_REST = re.compile(r"([^\W\d_]*)[\W_]*(.*)", re.S)
DATE = r"(?:19|20)\d\d([-_.]?)[01]\d\1[0-3]\d|[0-3]\d([-_.]?)[01]\d\2(?:19|20)\d\d"
VISIT = (
    r"(?:v|visit|ses|session|tp|timepoint|month|year|week)[-_ ]?\d{1,3}"
    r"|\d{1,3}(?:m|month|months|y|year|years|w|week|weeks)|baseline|screening|followup"
)
# Numbers in these count no slices, and folders that are nothing else tell no patient.
VISIT_OR_DATE = re.compile(rf"(?<![^\W_])(?:{DATE}|{VISIT})(?![^\W_])", re.IGNORECASE)
# Beside the OAI's digits these are nobody: series, barcodes, sites such as 0.C.2.
OAI_NUMBER = r"(?<!\d)(?:\d{8}|0?166\d{8})(?!\d)|\b\d\.[A-Z]\.\d\b"
NEVER = r"(?!)"
PART = re.compile(r"[^\W_]+")  # between separators


class Identity(NamedTuple):
    """What is known of a slice, or of all slices of a volume. "" is what nothing tells."""

    label: str
    patient: str
    scan: str
    number: int = 0


class Span(NamedTuple):
    """A part of a path, and where it stands there."""

    text: str
    start: int
    end: int


def nfc(text: str) -> str:
    """In Unicode's composed form: macOS writes names decomposed, Windows and Linux composed."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


# ---- words ---------------------------------------------------------------------------------------


def are_sides(classes: Sequence[str]) -> bool:
    """Whether the classes are left and right: then a header or a position can tell them, too."""
    return sorted(label.lower() for label in classes) == sorted(SIDES)


def label_of_word(word: str, classes: Sequence[str]) -> str | None:
    """The class that a word stands for, in any case; for left and right also l, L_E_F_T, ..."""
    word = nfc(word).strip().lower()
    for label in classes:
        name = label.lower()
        if word == name or (name in SIDES and word.replace("_", "") in (name, name[0])):
            return label
    return None


def side_in(part: str, letters: bool = True) -> str | None:
    """left or right as a word of a text, or also as the letter L or R; None if it holds both."""
    words = SIDE_WORD.findall(part) + (SIDE_LETTER.findall(part) if letters else [])
    found = {label_of_word(word, SIDES) for word in words}
    return found.pop() if len(found) == 1 else None


def label_of_folder(folder: str, classes: Sequence[str]) -> str | None:
    """The class that a folder is called like; of sides also a word in its name: Left Knee."""
    label = next((label for label in classes if label.lower() == folder.lower()), None)
    if not label and are_sides(classes) and (side := side_in(folder)):
        label = label_of_word(side, classes)
    return label


# ---- patients ------------------------------------------------------------------------------------


def folded(text: str) -> str:
    """The same for p01, P01 and p1; not for 1.05 and 1.5."""
    return re.sub(r"(?<!\d)(?<!\d[.,])0+(?=\d)", "", nfc(text).strip().casefold())


@cache
def patient_key(name: str) -> str:
    """The same for p01, P1, patient 1, 001 and 1."""
    match = WORD_AND_REST.fullmatch(folded(name))
    return match[2] if match[1] in (*PATIENT_WORDS, "oai") and match[2] else match[0]


def oai_patient(stem: str) -> Span | None:
    """The seven digits of the OAI; None if the path holds two different ones."""
    found = {match[1]: Span(match[1], *match.span(1)) for match in OAI_PATIENT.finditer(stem)}
    return found.popitem()[1] if len(found) == 1 else None


@cache
def explained(classes: tuple[str, ...], more: str) -> re.Pattern:
    """Sides, visits, dates, subsets such as train, and words for classes; of classes that are
    numbers only whole folders.
    """
    words = "|".join(re.escape(x) for x in (*SUBSET_FOLDERS, *classes) if not x.isdecimal())
    folders = "|".join(map(re.escape, classes)) or "left"
    return re.compile(
        rf"{VISIT_OR_DATE.pattern}|{SIDE_WORD.pattern}|{SIDE_LETTER.pattern}|(?<=\d)[lr](?![^\W_])"
        rf"|(?<![^\W_])(?:{words})(?![^\W_])|(?<![^/])(?:{folders})(?=/)|{more}",
        re.IGNORECASE,
    )


def free_parts(path: str, classes: Sequence[str]) -> list[Span]:
    """What stands between separators, and is nothing that is `explained`: a person, a site, ..."""
    bare = explained(tuple(classes), NEVER).sub(lambda match: "_" * len(match[0]), path)
    return [Span(match[0], *match.span()) for match in PART.finditer(bare)]


def others_in(path: str, classes: Sequence[str], more: str = NEVER) -> str:
    """What is left of a path without what is `explained`: what may be a person or a site."""
    bare = explained(tuple(classes), more).sub("_", path).lower()
    return "/".join(filter(None, (folder.strip("_-. ") for folder in bare.split("/"))))


def patient_part(stem: str) -> Span | None:
    """The first part such as p01, sub-01, patient_7 or case012; None if there are two that differ,
    or a number is joined to it that may be the patient's, as in P01-003.

    docs/data.md lists the words.
    """
    found = list(PATIENT_PART.finditer(stem))
    ends = [match.end(1) for match in found]
    joined = any(JOINED.match(stem, x) and not VISIT_OR_DATE.match(stem, x + 1) for x in ends)
    if joined or len({folded(match[1]) for match in found}) != 1:
        return None
    return Span(found[0][1], *found[0].span(1))


# ---- slices --------------------------------------------------------------------------------------


def last_number(stem: str, patient: Span | None) -> Span | None:
    """The last number of a file's name, of at most 5 digits and not before a letter, that belongs
    to no patient, visit or date.
    """
    start = stem.rfind("/") + 1
    others = [match.span() for match in VISIT_OR_DATE.finditer(stem, start)]
    others += [patient[1:]] if patient else []
    for match in reversed(list(SLICE_NUMBER.finditer(stem, start))):
        if not any(begin < match.end() and match.start() < end for begin, end in others):
            return Span(match[0], *match.span())
    return None


def without(stem: str, span: Span) -> str:
    """A path without the number of the slice: left/p01_7 -> left/p01."""
    before, after = stem[: span.start].rstrip("-_ .(#"), stem[span.end :]
    if not before or before.endswith("/"):
        after = after.lstrip("-_ .)")
    return (before + after).rstrip("/)")


def normalised_scan(stem: str, label: str) -> str:
    """The same, with folders that are called like the label in one spelling."""
    return "/".join(label if x.lower() == label.lower() else x for x in stem.split("/"))


# ---- names that tell all -------------------------------------------------------------------------


def own_name(name: str, is_volume: bool, classes: Sequence[str]) -> Identity | None:
    """What a file's name tells by itself: AKOA's, and those that --write-slices writes.

    The label is "" where the word for it is none of the classes. None: any other name.
    """
    stem = f"{name}_0" if is_volume else name.rpartition(".")[0]
    if match := AKOA_NAME.fullmatch(stem):
        label = label_of_word(match["side"], classes) or ""
        return Identity(label, match["patient"].upper(), match["scan"], int(match["number"]))
    if not is_volume and (match := WRITTEN_NAME.fullmatch(stem)):
        patient, scan, word = (unquote(match[x]) for x in ("patient", "scan", "label"))
        return Identity(label_of_word(word, classes) or "", patient, scan, int(match["number"]))
    return None


def written_name(identity: Identity, classes: Sequence[str]) -> str:
    """A file name that `own_name` reads back to the very same: AKOA's where the scan has one."""
    akoa = f"{identity.scan}_{identity.number}.png"
    if AKOA_NAME.fullmatch(akoa[:-4]) and own_name(akoa, False, classes) == identity:
        return akoa
    patient, scan, label = map(encode_name, (identity.patient, identity.scan, identity.label))
    return f"patient={patient},scan={scan},label={label}_{identity.number}.png"


def encode_name(text: str) -> str:
    """Percent signs for what file names can't hold on every system."""
    return NOT_IN_NAMES.sub(lambda match: f"%{ord(match[0]):02X}", text)
