"""A record: an image or a volume, and all that is known of it. Rules give new ones; none changes.

A record gathers what each rule tells, in the order of the rules. The first that knows decides.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from scans.identity.names import AKOA_NAME, Span
from scans.names import VOLUME_ENDING
from scans.searching import Search
from scans.slices import Options, Problem, Slice, Volume


class LabelBy:
    """What tells a label, in the words of messages: "the name says left, its header right"."""

    TABLE = "table"
    MANIFEST = "manifest"
    PATTERN = "pattern"
    NAME = "name"
    FOLDER = "folder"
    HEADER = "header"
    POSITION = "position"


class PatientBy:
    """What tells a patient, as the programs print it. {}: the first patient that is known so."""

    TABLE = "told by a table"
    PATTERN = "told by --name-pattern"
    DICOM = "told by DICOM"
    WRITTEN = "told by names"
    AKOA = "told by AKOA's names"
    OAI = "the 7 digits of the OAI"
    WORD = "the part {} of the path"
    EACH = "told by --patients scan: each scan another person"


class Told(NamedTuple):
    value: str  # "": that it has none, as a row of a table without a label says
    by: str  # of LabelBy or PatientBy


class Answer(NamedTuple):
    """What tables of labels tell of a record."""

    label: str
    patient: str
    rows: frozenset  # of labels.Row: those that are of it
    reason: str = ""  # why there is no label
    scan: str = ""
    corrected: tuple[str, str] | None = None  # a scan whose label was replaced, and that label
    side: str = ""  # of the record, that other rules tell


class Record(NamedTuple):
    """An image or a volume that was found."""

    source: str  # the file, or the folder of DICOM files, as Slice has it
    path: str  # with slashes, in composed form: below the data folder, or as it was typed
    volume: Volume | None = None
    labels: tuple[Told, ...] = ()
    patients: tuple[Told, ...] = ()
    patient_span: Span | None = None  # where the path holds the patient: its digits count no slice
    scan: str = ""
    number: int | None = None  # None: nothing tells it yet
    is_written: bool = False  # by --write-slices: its name tells all that was known
    answer: Answer | None = None  # of tables of labels
    problem: Problem | None = None  # two rules disagree

    @property
    def label(self) -> str:
        return self.labels[0].value if self.labels else ""

    @property
    def patient(self) -> str:
        return self.patients[0].value if self.patients else ""

    @property
    def way(self) -> str:
        """How the patient is known."""
        return self.patients[0].by if self.patients else ""

    @property
    def stem(self) -> str:
        """The path without the ending of a file."""
        if self.volume and os.path.isdir(self.volume.path):
            return self.path  # of DICOM files
        folder, _, name = self.path.rpartition("/")
        name = VOLUME_ENDING.fullmatch(name)[1] if self.volume else os.path.splitext(name)[0]
        return f"{folder}/{name}" if folder else name

    @property
    def series(self) -> str:
        """#2 for the second series of a folder, "" for the first."""
        return f"#{self.volume.number}" if self.volume and self.volume.number > 1 else ""

    def with_label(self, value: str, by: str) -> "Record":
        """Also told by this rule."""
        return self._replace(labels=(*self.labels, Told(value, by)))

    def with_patient(self, value: str, by: str, span: Span | None = None) -> "Record":
        told = (*self.patients, Told(value, by))
        return self._replace(patients=told, patient_span=self.patient_span or span)

    def scan_below(self, prefix: str) -> str:
        """The scan's name with a prefix before it, unless it is AKOA's."""
        if prefix and not AKOA_NAME.fullmatch(f"{self.scan}_0"):
            return os.path.join(prefix, self.scan)
        return self.scan

    def slices(self, prefix: str = "") -> Iterator[Slice]:
        """Its slices; a prefix stands before the scan's name (see `scan_below`), and before a
        patient's that a word such as p01 told: p01 of another folder may be another person.
        """
        scan, patient = self.scan_below(prefix), self.patient
        if prefix and self.way == PatientBy.WORD:
            patient = os.path.join(prefix, patient)
        if self.volume is None:
            yield Slice(self.source, None, self.label, patient, scan, self.number or 0)
        else:
            for i in range(self.volume.slicing.slices):
                yield Slice(self.source, i, self.label, patient, scan, i, self.volume)


@dataclass(frozen=True)
class Context:
    """What all rules may look at."""

    classes: Sequence[str]
    options: Options
    root: str = ""  # the folder that all records are in; "" for files that were named one by one
    prefix: str = ""  # will stand before the names of scans, where several folders are given
    pattern: Search | None = None  # of --name-pattern
