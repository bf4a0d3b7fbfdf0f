"""A path -> label, patient, scan and number. Every regular expression about names is here.

    parse_name(Path("left/p01/7.png"), ["left", "right"])
    # Identity(label="left", patient="p01", scan="left/p01", number=7)

Names tell these: AKOA's, folders that are called like a class, a pattern of one's own, or names as
`python dataset.py IN --write-slices OUT` writes them.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

from scans.slices import SIDES, Contradiction, DataError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
VOLUME_NAME = re.compile(r"[^.].*\.(nii|nii\.gz|nrrd|nhdr|mha|mhd|npy|npz)", re.I | re.S)
VOLUME_ENDING = re.compile(r"(.*?)(?:\.nii|\.nii\.gz|\.\w+)?", re.S)
SIDE_WORD = re.compile(r"(?<![^\W\d_])(left|right|l_e_f_t|r_i_g_h_t)(?![^\W\d_])", re.I)
# OAI9014797_BaseLine_3_de3d1_SAG_3D_DESS_WE_RIGHT.nii.gz_0 (without its suffix .png)
AKOA_NAME = re.compile(
    r"(?P<scan>(?P<patient>OAI\d+)_.*_(?P<side>left|right|l_e_f_t|r_i_g_h_t)(\.nii(\.gz)?)?)"
    r"_(?P<number>\d+)",
    re.IGNORECASE,
)
AKOA_PATIENT = re.compile(r"OAI\d+")
AKOA_VISIT = re.compile(r"OAI\d+_([^_]+)_", re.IGNORECASE)
# patient=p01,scan=left%2Fp01,label=left_7 (without its suffix .png)
WRITTEN_NAME = re.compile(
    r"patient=(?P<patient>[^,]*),scan=(?P<scan>[^,]+),label=(?P<label>[^,]*)_(?P<number>\d+)"
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
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")


def is_volume_name(name: str) -> bool:
    """By its ending: NIfTI, NRRD, MetaImage, NumPy. DICOM often has none: see dicom.is_dicom."""
    return bool(VOLUME_NAME.fullmatch(os.path.basename(name)))


def natural_order(name: str) -> list:
    """Sort key that puts slice 2 before slice 10."""
    parts = re.split(r"([0-9]+)", name)  # every second one is a number
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def number_at_end(stem: str) -> int:
    return int(NAME_AND_NUMBER.fullmatch(stem)[2] or 0)


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


def label_of_folders(path: Path, classes: list[str]) -> str | None:
    """The class that a folder of the path is called like.

    Raises Contradiction if two folders are called like two classes.
    """
    found = {label for part in path.parts[:-1] if (label := label_of_folder(part, classes))}
    if len(found) > 1:
        folders = " and ".join(sorted(found))
        raise Contradiction(f"its folders say {folders}; --name-pattern or a manifest can tell")
    return found.pop() if found else None


def label_of_folder(name: str, classes: list[str]) -> str | None:
    return next((label for label in classes if label.lower() == name.lower()), None)


def side_in_name(path: str) -> str | None:
    """left or right as a word of the file's name, else of the nearest folder's; None if both."""
    for part in reversed(os.path.normpath(path).split(os.sep)):
        if found := {word.replace("_", "").lower() for word in SIDE_WORD.findall(part)}:
            return found.pop() if len(found) == 1 else None
    return None


def without_side(name: str) -> str:
    """p01_LEFT.nii.gz -> p01"""
    return SIDE_WORD.sub("", VOLUME_ENDING.fullmatch(name)[1]).strip(" _.-")


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


def parse_name(path: Path, classes: list[str]) -> Identity | None:
    """What an image's path says, by its name or by a folder that is called like a class.

    Three forms of such folders: `left/p01_7.png`, `left/p01/7.png` and `p01/left/7.png`, also with
    folders in between (`left/p01/visit2/7.png`, `p01/visit2/left/7.png`), are slice 7 of a left
    knee of patient p01. Of `left/7.png` neither patient nor scan are known. Returns None if nothing
    tells the label.

    Raises:
        Contradiction: name and folder tell different labels.
    """
    of_folder = label_of_folders(path, classes)
    if match := AKOA_NAME.fullmatch(path.stem) or WRITTEN_NAME.fullmatch(path.stem):
        word = match.groupdict().get("side") or match.groupdict().get("label") or ""
        of_name = label_of_word(decode_name(word), classes)
        label = weigh([(who, x) for who, x in (("name", of_name), ("folder", of_folder)) if x])
        patient, scan = decode_name(match["patient"]), decode_name(match["scan"])
        if match.re is AKOA_NAME:
            patient, scan = match["patient"].upper(), match["scan"]
        return Identity(label, patient, scan, int(match["number"]))
    if of_folder is None:
        return None
    position = max(i for i, p in enumerate(path.parts[:-1]) if label_of_folder(p, [of_folder]))
    name, number = NAME_AND_NUMBER.fullmatch(path.stem).groups()
    above, below = path.parts[:position], path.parts[position + 1 : -1]
    candidates = [*below[:1], *filter(None, [name]), *above[:1]]
    scan = "/".join(filter(None, [*above, of_folder, *below, name])) if candidates else ""
    return Identity(of_folder, candidates[0] if candidates else "", scan, int(number or 0))


def tells_patient(path: Path) -> bool:
    """Whether the name of an image or a volume tells its patient, as AKOA's do."""
    written = WRITTEN_NAME.fullmatch(path.stem)
    return bool(written or AKOA_NAME.fullmatch(path.stem) or AKOA_NAME.fullmatch(f"{path.name}_0"))


def parse_unlabelled(path: Path) -> Identity:
    """An image without a label: new/knee_07.png is slice 7 of the scan new/knee."""
    name, number = NAME_AND_NUMBER.fullmatch(path.stem).groups()
    return Identity("", "", str(path.parent / (name or "slices")), int(number or 0))


def compile_pattern(text: str) -> re.Pattern:
    """A --name-pattern, checked. Raises DataError if it is none, or has none of its groups."""
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise DataError(f"--name-pattern {text}: not a regular expression: {error}") from error
    if not set(PATTERN_GROUPS) & set(pattern.groupindex):
        groups = ", ".join(f"(?P<{name}>...)" for name in PATTERN_GROUPS)
        raise DataError(f"--name-pattern {text}: has none of the groups {groups}")
    return pattern


def parse_by_pattern(path: Path, pattern: re.Pattern, classes: list[str]) -> Identity | None:
    """What a pattern finds in a path below the data folder, such as `a/12_L_003.png`.

    A group that it lacks: the label is that of a folder that is called like a class; the scan is
    all of a patient's slices of that label and folder; the slice is the number that the name ends
    with. Returns None if it is not found, or nothing tells the label.

    Raises:
        Contradiction: the label is none of the classes, or two folders tell two.
    """
    if not (match := pattern.search(path.as_posix())):
        return None
    groups = {name: text or "" for name, text in match.groupdict().items()}
    if word := groups.get("label") or groups.get("side"):
        label = label_of_word(word, classes)
        if label is None:
            expected = ", ".join(classes)
            raise Contradiction(f"--name-pattern finds the label {word!r}, not one of {expected}")
    else:
        label = label_of_folders(path, classes)
    if label is None:
        return None
    patient, scan = groups.get("patient", ""), groups.get("scan", "")
    if patient and not scan:
        scan = "/".join([*path.parts[:-1], f"{patient} {label}"])
    number = groups.get("slice") or str(number_at_end(path.stem))
    return Identity(label, patient, scan, int(number) if number.isdecimal() else 0)


# ---- what is known -> a name ---------------------------------------------------------------------


def written_name(identity: Identity, classes: list[str]) -> str:
    """A file name that `parse_name` reads back to the very same: AKOA's where the scan has one."""
    akoa = f"{identity.scan}_{identity.number}.png"
    if AKOA_NAME.fullmatch(akoa[:-4]) and parse_name(Path(akoa), classes) == identity:
        return akoa
    patient, scan, label = map(encode_name, (identity.patient, identity.scan, identity.label))
    return f"patient={patient},scan={scan},label={label}_{identity.number}.png"


def encode_name(text: str) -> str:
    """Percent signs for what file names can't hold on every system."""
    return NOT_IN_NAMES.sub(lambda match: f"%{ord(match[0]):02X}", text)


def decode_name(text: str) -> str:
    return re.sub(r"%([0-9A-F]{2})", lambda match: chr(int(match[1], 16)), text)


def picture_name(name: str, digest: str) -> str:
    """A file name for a picture of a slice or a scan: the end of its name, and a digest of it."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("._")[-150:] + f"_{digest}"


def drawable(name: str) -> str:
    """What matplotlib can't draw, as it is escaped. (Formulas: pass parse_math=False, too.)"""
    return name.encode("ascii", "backslashreplace").decode().replace("\n", "\\n")


def shortened(name: str, length: int = 26) -> str:
    """A name's beginning and end, where patient and slice stand, as `drawable`."""
    name = drawable(name)
    return name if len(name) <= length else f"{name[: length // 2 - 1]}...{name[-length // 2 :]}"
