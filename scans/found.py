"""An image or a volume that was found, while it is being found out what it is."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from scans import names
from scans.slices import Slice, Volume

# How patients are known.
TABLE, DICOM = "told by a table", "told by DICOM"
PATTERN, NAMES = "told by --name-pattern", "told by names"
EACH = "told by --patients scan: each scan another person"
INFERRED = "inferred"


@dataclass(slots=True, eq=False)
class Found:
    """An image or a volume, and what is known of it: what slices are made of."""

    source: str
    path: str  # with slashes: below the data folder, or as a manifest or the command line has it
    volume: Volume | None = None
    label: str = ""
    patient: str = ""
    scan: str = ""
    number: int = 0
    way: str = ""  # how the patient is known
    rule: str = ""  # by which it was inferred
    label_by: str = ""  # what told the label by itself: pattern, manifest or name
    patient_span: tuple[int, int] | None = None  # where --name-pattern found it in the path
    is_written: bool = False  # by --write-slices: its name tells all that was known

    @property
    def stem(self) -> str:
        """The path without the ending of a file."""
        if self.volume and os.path.isdir(self.volume.path):
            return self.path  # of DICOM files
        folder, _, name = self.path.rpartition("/")
        name = names.VOLUME_ENDING.fullmatch(name)[1] if self.volume else os.path.splitext(name)[0]
        return f"{folder}/{name}" if folder else name

    def scan_below(self, prefix: str) -> str:
        """The scan's name with a prefix before it, unless it is AKOA's."""
        if prefix and not names.AKOA_NAME.fullmatch(f"{self.scan}_0"):
            return os.path.join(prefix, self.scan)
        return self.scan

    def slices(self, prefix: str = "") -> Iterator[Slice]:
        """Its slices; a prefix stands before the scan's name (see `scan_below`), and before a
        patient's that was inferred.
        """
        scan, patient = self.scan_below(prefix), self.patient
        if prefix and self.way == INFERRED:
            patient = os.path.join(prefix, patient)
        if self.volume is None:
            yield Slice(self.source, None, self.label, patient, scan, self.number)
        else:
            for i in range(self.volume.slicing.slices):
                yield Slice(self.source, i, self.label, patient, scan, i, self.volume)
