"""A path -> label, patient, scan and number. Every regular expression about names is here.

    parse_name(Path("left/p01/7.png"), ["left", "right"])
    # Identity(label="left", patient="p01", scan="left/p01", number=7)

Names tell these: AKOA's, folders that are called like a class, a pattern of one's own, or names as
`python dataset.py IN --write-slices OUT` writes them.
"""

import os
import re
from typing import NamedTuple

from scans.slices import SIDES, Contradiction, DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
VOLUME_NAME = re.compile(r"[^.].*\.(nii|nii\.gz|nrrd|nhdr|mha|mhd|npy|npz)", re.I | re.S)
VOLUME_ENDING = re.compile(r"(.*?)(?:\.nii\.gz|\.tar\.gz|\.\w+)?", re.S)
KEPT_PIXELS = re.compile(r"[0-9a-f]{32}\.npy")  # in a cache: scans/cache.py
SIDE_WORD = re.compile(r"(?<![^\W\d_])(left|right|l_e_f_t|r_i_g_h_t)(?![^\W\d_])", re.I)
# OAI9014797_BaseLine_3_de3d1_SAG_3D_DESS_WE_RIGHT.nii.gz_0 (without its suffix .png)
AKOA_NAME = re.compile(
    r"(?P<scan>(?P<patient>OAI\d+)_.*_(?P<side>left|right|l_e_f_t|r_i_g_h_t)(\.nii(\.gz)?)?)"
    r"_(?P<number>\d+)",
    re.IGNORECASE,
)
AKOA_VISIT = re.compile(r"OAI\d+_([^_]+)_", re.IGNORECASE)
# patient=p01,scan=left%2Fp01,label=left_7 (without its suffix .png)
WRITTEN_NAME = re.compile(
    r"patient=(?P<patient>[^,]*),scan=(?P<scan>[^,]+),label=(?P<label>[^,]*)_(?P<number>\d+)"
)
# What columns.py looks for in names of any form.
WHOLE = (  # fields that hold separators: L_E_F_T, 2006-09-21, 21.09.2006
    r"l_e_f_t|r_i_g_h_t|(?:19|20)\d\d([-_.])\d\d\%d\d\d(?!\d)"
    r"|(?<!\d)\d\d([-_.])\d\d\%d(?:19|20)\d\d(?!\d)"
)
FIELD = re.compile(rf"{WHOLE % (1, 2)}|[^\W_]+?(?={WHOLE % (3, 4)})|[^\W_]+", re.I)
RUN = re.compile(r"[^\W\d_]+|\d+")
NUMBER = re.compile(r"([0-9]+)")
YEAR_FIRST = re.compile(r"(?:19|20)\d\d[-_.]?(\d\d)[-_.]?(\d\d)")
YEAR_LAST = re.compile(r"(\d\d)[-_.]?(\d\d)[-_.]?(?:19|20)\d\d")
NAMED_MONTH = re.compile(
    r"\d{1,2}(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\d{2,4}", re.I
)
TIME = re.compile(r"(?:[01]\d|2[0-3])[0-5]\d[0-5]\d")
VISIT = re.compile(
    r"(?:v|visit|vis|ses|session|tp|t|timepoint|time|fu|followup|m|mo|month|w|wk|week|y|yr|year)"
    r"\d{1,3}|\d{1,3}(?:m|mo|mth|months?|w|wk|weeks?|y|yr|years?)"
    r"|bl|base|baseline|screening|fu|followup|initial|final|preop|postop|pre|post",
    re.I,
)
OAI_PATIENT = re.compile(r"9\d{6}")
SUBSET_WORDS = set("train training val valid validation dev test testing images".split())
PATIENT_WORDS = set("patient pat pt subject subj sub participant person oai p pid".split())
WORD_AND_REST = re.compile(r"([^\W\d_]*)[\W_]*(.*)", re.S)
NEVER_IN_PATIENTS = ("left", "right", "baseline", "followup", "screening")
SLICE_WORDS = set("slice sl slc z image img im frame".split())
VISIT_WORDS = set("visit vis v session ses timepoint tp followup fu month week year".split())
OTHER_WORDS = set(
    "series ser se run acq acquisition echo scan exam examination study date time uid seq te tr "
    "rec part version ver fold copy st acc accession an pacs page phase view".split()
)
SEQUENCE_WORDS = set(
    "sag sagittal cor coronal ax axial tra transverse 2d 3d d dess t1 t2 t pd pdw tse fse gre se "
    "flair mpr map iw fs fatsat stir we mr mri knee image mask seg raw".split()
)
NOT_IN_NAMES = re.compile(r'[%,/\\:*?"<>|\x00-\x1f]|^\.')
NAME_AND_NUMBER = re.compile(r"(.*?)[-_ ]*(\d*)", re.DOTALL)
PATTERN_GROUPS = ("patient", "scan", "label", "side", "slice")


class Identity(NamedTuple):
    """What is known of a slice, or of all slices of a volume. "" is what nothing tells."""

    label: str
    patient: str
    scan: str
    number: int = 0


# ---- words and endings ---------------------------------------------------------------------------


def is_image(name: str) -> bool:
    """By its ending; Thumbs.db, .DS_Store, ._copies and other litter are none."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def is_volume_name(name: str) -> bool:
    """By its ending: NIfTI, NRRD, MetaImage, NumPy. DICOM often has none: see dicom.is_dicom."""
    return bool(VOLUME_NAME.fullmatch(os.path.basename(name)))


def natural_order(name: str) -> list:
    """Sort key that puts slice 2 before slice 10."""
    parts: list = NUMBER.split(name)
    parts[1::2] = map(int, parts[1::2])  # every second one is a number
    return parts


def normalised_scan(stem: str, label: str) -> str:
    """The same, with folders that are called like the label in one spelling."""
    parts = [label if part.lower() == label.lower() else part for part in stem.split("/")]
    return "/".join(parts)


def folded(text: str) -> str:
    """The same for p01, P01 and p1."""
    return re.sub(r"\d+", lambda digits: str(int(digits[0])), text.casefold())


def patient_key(name: str) -> str:
    """The same for p01, P1, patient 1, 001 and 1."""
    match = WORD_AND_REST.fullmatch(name.strip().casefold())
    is_word = match[1] in PATIENT_WORDS and match[2]
    return folded(match[2] if is_word else match[0])


def number_at_end(stem: str) -> str:
    """The digits that it ends with: 07 of p01_07."""
    return NAME_AND_NUMBER.fullmatch(stem)[2]


def are_sides(classes: list[str]) -> bool:
    """Whether the classes are left and right: then a header or a position can tell them, too."""
    return sorted(label.lower() for label in classes) == sorted(SIDES)


def label_of_word(word: str, classes: list[str]) -> str | None:
    """The class that a word stands for, in any case; for left and right also l, L_E_F_T, ..."""
    word = word.strip().lower()
    for label in classes:
        name = label.lower()
        if word == name or (name in SIDES and word.replace("_", "") in (name, name[0])):
            return label
    return None


def is_date(text: str) -> bool:
    """20060921, 2006-09-21, 21.09.2006, 09212006, 21Sep2006; not 20061399."""
    if match := YEAR_FIRST.fullmatch(text):
        month, day = map(int, match.groups())
        if 1 <= month <= 12 and 1 <= day <= 31:
            return True
    if match := YEAR_LAST.fullmatch(text):
        low, high = sorted(map(int, match.groups()))
        return 1 <= low <= 12 and high <= 31
    return bool(NAMED_MONTH.fullmatch(text))


def is_time(text: str) -> bool:
    """Of a day: 235959."""
    return bool(TIME.fullmatch(text))


def is_visit(text: str) -> bool:
    """00m, 12m, V00, visit2, baseline, month 12."""
    return bool(VISIT.fullmatch(text))


def is_subset(text: str) -> bool:
    return text.lower() in SUBSET_WORDS


def is_sequence_word(text: str) -> bool:
    return text.lower() in SEQUENCE_WORDS


def label_of_folder(name: str, classes: list[str]) -> str | None:
    return next((label for label in classes if label.lower() == name.lower()), None)


def side_in(part: str) -> str | None:
    """left or right as a word of a file's or a folder's name; None if it holds both."""
    found = {word.replace("_", "").lower() for word in SIDE_WORD.findall(part)}
    return found.pop() if len(found) == 1 else None


def weigh(witnesses: list[tuple[str, str]]) -> str:
    """The label that all witnesses agree on; "" if there is none.

    witnesses: (who, label), such as ("name", "left"). Raises Contradiction, such as "the name says
    left, its header right".
    """
    if len({label for _, label in witnesses}) > 1:
        (who, label), *others = witnesses
        others = ", ".join(f"its {other} {also}" for other, also in others)
        raise Contradiction(f"the {who} says {label}, {others}")
    return witnesses[0][1] if witnesses else ""


# ---- a path -> what it tells ---------------------------------------------------------------------


def parse_name(name: str, is_volume: bool, classes: list[str]) -> Identity | None:
    """What a file's name tells by itself: AKOA's, and those that --write-slices writes.

    The label is "" where the word for it is none of the classes. None: any other name.
    """
    stem = f"{name}_0" if is_volume else os.path.splitext(name)[0]
    match = AKOA_NAME.fullmatch(stem)
    if match:
        label = label_of_word(match["side"], classes) or ""
        return Identity(label, match["patient"].upper(), match["scan"], int(match["number"]))
    match = WRITTEN_NAME.fullmatch(stem)
    if match and not is_volume:
        patient, scan, word = (decode_name(match[x]) for x in ("patient", "scan", "label"))
        return Identity(label_of_word(word, classes) or "", patient, scan, int(match["number"]))
    return None


def is_written(name: str) -> bool:
    """Whether --write-slices writes such names."""
    return name.startswith("patient=") and bool(WRITTEN_NAME.fullmatch(os.path.splitext(name)[0]))


def compile_pattern(text: str) -> re.Pattern:
    """A --name-pattern, checked. Raises DataError if it is none, or has none of its groups."""
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise DataError(f"--name-pattern {text}: not a regular expression: {error}") from error
    if not set(PATTERN_GROUPS) & set(pattern.groupindex):
        groups = ", ".join(f"(?P<{name}>...)" for name in PATTERN_GROUPS)
        raise DataError(f"--name-pattern {text}: has none of the groups {groups} (lower case)")
    return pattern


def without_span(stem: str, span: tuple[int, int]) -> str:
    """The rest of a path without the number of the slice: left/p01_7 -> left/p01."""
    before, after = stem[: span[0]].rstrip("-_ .(#"), stem[span[1] :]
    if not before or before.endswith("/"):
        after = after.lstrip("-_ .)")
    return (before + after).rstrip("/)")


# ---- what is known -> a name ---------------------------------------------------------------------


def written_name(identity: Identity, classes: list[str]) -> str:
    """A file name that `parse_name` reads back to the very same: AKOA's where the scan has one."""
    akoa = f"{identity.scan}_{identity.number}.png"
    if AKOA_NAME.fullmatch(akoa[:-4]) and parse_name(akoa, False, classes) == identity:
        return akoa
    patient, scan, label = map(encode_name, (identity.patient, identity.scan, identity.label))
    return f"patient={patient},scan={scan},label={label}_{identity.number}.png"


def encode_name(text: str) -> str:
    """Percent signs for what file names can't hold on every system."""
    return NOT_IN_NAMES.sub(lambda match: f"%{ord(match[0]):02X}", text)


def decode_name(text: str) -> str:
    return re.sub(r"%([0-9A-F]{2})", lambda match: chr(int(match[1], 16)), text)


def is_cache_or_run(files: list[str]) -> bool:
    """Whether these programs made a folder of these files: a cache of pixels, or a run."""
    there = set(files)
    kept = [name for name in files if KEPT_PIXELS.fullmatch(name)]
    run = "args.json" in there and not there.isdisjoint({"last.pt", "folds.csv"})
    return run or any(f"{name[:-4]}.json" in there for name in kept)


def picture_name(name: str, digest: str) -> str:
    """A file name for a picture of a slice or a scan: the end of its name, and a digest of it."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("._")[-150:] + f"_{digest}"
