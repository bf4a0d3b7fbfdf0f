"""What all of this is about: slices, what is wrong with some, and lists of both.

A slice is one 2D image: a PNG, or one of a volume's. A scan is one knee imaged once (40 slices in
AKOA); a patient has one or more scans; the label is the class of a slice and of its scan.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.program import UserError

SIDES = (
    "left",
    "right",
)  # the labels of the experiment, and the classes where nothing else is said


class DataError(UserError):
    """Data that can't be used. The message names the file or value and says what to do."""


class Contradiction(DataError):
    """Two things tell two labels of one file."""


@dataclass(frozen=True)
class Options:
    """How files are understood. Each is a flag of the programs: scans/flags.py."""

    name_pattern: str | None = None  # regular expression: groups patient, scan, label and slice
    plane: str = "stored"  # in which volumes are cut
    slices: int = 40  # taken of a volume, evenly spaced; all where it has fewer
    slices_per_scan: int | None = None  # so many images of a folder, in sorted order, are a scan
    labels: Sequence[str] = ()  # tables of labels: scans/identity/tables.py
    label_column: str | None = None  # of those tables, where it is not called label
    label_key: str | None = None  # their column whose values are a part of the path each
    patients: str | None = None  # "scan": each scan whose patient nothing tells is another person
    series: str | None = None  # regular expression: of descriptions, the series that are read
    side_by_position: bool = False  # a volume's position in the scanner alone tells its side
    echo: int | None = None  # of several echoes of a series: 1 is the shortest, as None is
    cache_dir: Path | None = None  # keeps the headers of volumes; None: they are not kept
    # The folder that --name-pattern was made for: paths inside it are read from there.
    pattern_root: Path | None = None


@dataclass(frozen=True, slots=True)
class Slicing:
    """How a volume is sliced: which of its axes i, j, k (0, 1, 2) are slices, rows and columns."""

    axes: tuple[int, int, int]
    reverse: tuple[bool, bool, bool]
    slices: int  # how many are taken, evenly
    height: int  # of slices whose pixels are square, as large as the smaller spacing
    width: int


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """The header of one knee imaged once: what its pixels are read by, and what it tells itself.

    path is a file, an archive, or a folder of DICOM files; number counts the series that share it,
    from 1. Of DICOM `places` are the slices in spatial order: each is a file (its place in `parts`,
    or among the members of the archive) and a frame of it.
    """

    path: str
    parts: tuple[str, ...]  # the files that its pixels are read from
    size: tuple[int, ...]  # along the axes i, j, k
    spacing: tuple[float, ...]  # mm
    origin: tuple[float, ...]
    direction: np.ndarray  # (3, 3); column a is where axis a points
    components: int
    sides: frozenset[str]  # that DICOM tags name
    tags: dict[str, str]
    number: int = 1
    places: tuple[tuple[int, int], ...] = ()
    slicing: Slicing | None = None  # None until it is planned: volumes.plan_slicing

    @property
    def source(self) -> str:
        """Its name: the path, and of a second series its number: p01/dicom#2."""
        return self.path if self.number == 1 else f"{self.path}#{self.number}"

    @property
    def description(self) -> str:
        """The SeriesDescription of DICOM, such as SAG_3D_DESS_LEFT; "" of other formats."""
        return self.tags.get("description", "")


@dataclass(frozen=True, slots=True)
class Slice:
    """One 2D image.

    Slice(source="AKOA/OAI9014797_BaseLine_3_de3d1_SAG_3D_DESS_WE_RIGHT.nii.gz_0.png", index=None,
          label="right", patient="OAI9014797", scan="OAI9014797_..._WE_RIGHT.nii.gz", number=0)

    A label, patient or scan of "" is one that nothing tells.
    """

    source: str  # the file, or the folder of DICOM files (folder#2: the second series in it)
    index: int | None  # which slice of a volume; None for an image
    label: str
    patient: str
    scan: str
    number: int  # its place in the scan
    volume: Volume | None = field(default=None, repr=False, compare=False)  # None for an image

    @property
    def name(self) -> str:
        """For people and tables: the source, and of a volume the slice: p01.nii.gz#7."""
        return self.source if self.index is None else f"{self.source}#{self.index}"


class Kind(Enum):
    """What is wrong with a file, a folder or a few names."""

    UNREADABLE = "unreadable"  # it can't be decoded, or is no image and no volume
    EMPTY = "empty"  # a folder without images and volumes
    LOCALIZER = "localizer"  # a series that is too short to be a scan
    SHORT = "short"  # the same, beside series that are scans
    UNCHOSEN = "unchosen"  # a series that --series does not name
    ECHOES = "echoes"  # a series of several echoes, of which the shortest is taken
    FOREIGN = "foreign"  # a valid file that holds no images, such as a structured report
    CONTRADICTION = "contradiction"  # two things tell two labels
    PACKAGE = "package"  # it is not read, as a package is missing
    NAMELESS = "nameless"  # nothing tells the patient
    REMARK = "remark"  # nothing is wrong with the data; it is said


# What predict.py has no answer for.
FAILURES = Kind.UNREADABLE, Kind.EMPTY, Kind.LOCALIZER, Kind.PACKAGE


class Problem(NamedTuple):
    path: str
    kind: Kind
    text: str
    series: str = ""  # the description of a DICOM series

    def __str__(self) -> str:
        return f"{self.path}: {self.text}" if self.path else self.text

    @property
    def lines(self) -> list[str]:
        """As it is printed. What asks for the patients is several lines, each printable."""
        return str(self).split("\n") if self.kind is Kind.NAMELESS else [str(self)]


MIN_SLICES = 5  # of a volume; fewer are a localizer
MAX_VOXELS = 500_000_000  # 2 GB as float32; a file that claims more is damaged or hostile
DAMAGED = "damaged, or not what its name says"  # of files; what is wrong with them follows


class VolumeError(DataError):
    """A volume that can't be used."""

    kind = Kind.UNREADABLE

    def __init__(self, path: str, text: str, series: str = ""):
        super().__init__(f"{path}: {text}")
        self.path, self.text, self.series = path, text, series

    @property
    def problem(self) -> Problem:
        return Problem(self.path, self.kind, self.text, self.series)


class TooShort(VolumeError):
    """Too few slices for a scan: a localizer."""

    kind = Kind.LOCALIZER


class Unchosen(VolumeError):
    """A series that --series does not name."""

    kind = Kind.UNCHOSEN


class NoSeries(VolumeError):
    """A valid file that holds no images: an archive of other files, a structured report, ..."""

    kind = Kind.FOREIGN


class Volumes(NamedTuple):
    """The volumes among some files, and what is wrong with others."""

    volumes: list[Volume]
    problems: list[Problem]


@dataclass(frozen=True)
class Listing:
    """All slices of some folders, files or a manifest, and what is wrong with others."""

    slices: list[Slice]
    problems: list[Problem]
    classes: list[str]  # the labels, in order
    patients: str = ""  # how they are known, such as: told by DICOM
    is_by_name: bool = False  # whether rules about names told some

    def of_kind(self, *kinds: Kind) -> list[Problem]:
        return [problem for problem in self.problems if problem.kind in kinds]


def by_scan(slices: Iterable[Slice]) -> dict[str, list[Slice]]:
    """Scan name -> its slices, in the order of the names."""
    scans = defaultdict(list)
    for s in slices:
        scans[s.scan].append(s)
    return dict(sorted(scans.items()))
