"""Which scans a model has seen in training: on these it looks better than it is.

    seen = read_seen([run / "split.csv"])
    seen.find(listing.slices)             # scan -> which of the models, and why

A model has seen the scans and patients of its train and val subsets, which its split.csv names.
"""

import os
from pathlib import Path, PurePath
from typing import NamedTuple

from common.files import abridged
from common.program import UserError, counted
from common.tables import read_csv
from perceiver import shown
from scans.identity.names import nfc, patient_key
from scans.slices import Slice
from scans.splits import NONE, SUBSETS

SEEN = "train", "val"  # on val the best epoch is chosen, and the calibration is fitted


class SeenBy(NamedTuple):
    """Which models have seen a scan, by its own name or by its patient's."""

    models: set[int]  # their places in the list of models
    because: str  # for the message; "" where the scan was trained on by this very name


class Seen(NamedTuple):
    """The last parts of a path that make up a scan's name, or a patient's key -> places of the
    models that have seen it.
    """

    scans: dict[tuple[str, ...], set[int]]
    patients: dict[str, set[int]]

    def find(self, slices: list[Slice]) -> dict[str, SeenBy]:
        """Of the scans of these slices, those that models have seen."""
        seen: dict[str, SeenBy] = {}
        for s in {(s.scan, s.patient): s for s in slices}.values():
            name = self.name_in_training(s)
            of_scan = self.scans.get(name, set())
            # Where several folders are given, p01 stands behind the folder's name.
            known = {s.patient, os.path.basename(s.patient)} - {""}
            of_patient = [self.patients.get(patient_key(patient), set()) for patient in known]
            models = of_scan.union(*of_patient)
            because = "" if of_scan else f" (of patient {s.patient})"
            if of_scan and name != name_parts(s.scan):
                because = f" (trained on as {os.path.join(*name)})"
            if models:
                before = seen.get(s.scan, SeenBy(set(), because))
                seen[s.scan] = SeenBy(before.models | models, before.because)
        return seen

    def name_in_training(self, s: Slice) -> tuple[str, ...]:
        """The end of its path, the longest, that was a scan's name in training; () for none."""
        for parts in (full_name(s), name_parts(os.path.abspath(s.source))):
            for start in range(len(parts)):
                if parts[start:] in self.scans:
                    return parts[start:]
        return ()


def read_seen(paths: list[Path]) -> Seen:
    """From the split.csv of each model. Raises UserError, and OSError where there is none."""
    scans: dict[tuple[str, ...], set[int]] = {}
    patients: dict[str, set[int]] = {}
    for place, path in enumerate(paths):
        table = read_csv(path, "split file")
        columns = [table.column(name) for name in ("subset", "scan", "patient")]
        if None in columns:
            got = ", ".join(table.columns)
            raise UserError(f"{path}: expected columns subset, scan and patient, got {got!r}")
        for line, row in table.rows:
            subset, scan, patient = (row[column] for column in columns)
            if not scan:
                raise UserError(f"{path}, line {line}: names no scan")
            if subset not in (known := (*SUBSETS, NONE)):
                text = f"subset must be one of {', '.join(known)}, got {shown(subset)}"
                raise UserError(f"{path}, line {line}: {text}")
            if subset in SEEN:
                scans.setdefault(name_parts(scan), set()).add(place)
                if patient:
                    patients.setdefault(patient_key(patient), set()).add(place)
    return Seen(scans, patients)


def note_on_seen(checkpoint: Path, slices: list[Slice]) -> str:
    """What a person should know of a model that is asked about what it has seen; "" for nothing.

    The split.csv beside a checkpoint tells; of one that was taken elsewhere nothing is known.
    """
    table = checkpoint.with_name("split.csv")
    if not table.is_file():
        return ""
    try:
        found = read_seen([table]).find(slices)
    except UserError as error:
        return f"{error}: nothing tells which scans the model was trained on"
    if not found:
        return ""
    count = len({s.scan for s in slices})
    return (
        f"{checkpoint} was trained or chosen on {len(found):,} of {counted(count, 'scan')}, or on "
        f"their patients, and looks better on these than it is: {described(list(found), found)}"
    )


def name_parts(scan: str) -> tuple[str, ...]:
    """A scan's name by folders; case does not count, as in folders that are called like a label."""
    parts = PurePath(os.path.normpath(nfc(scan).casefold())).parts
    return parts[sum(part == ".." for part in parts) :]  # they stand first


def full_name(s: Slice) -> tuple[str, ...]:
    """A scan's name behind the folders in which it lies.

    Its name starts from the folder that was given to predict.py, and its name in training from that
    of --data-dir: of knees/left/p01 these may be left/p01 and p01, whose last parts are the same.
    """
    name, source = name_parts(s.scan), name_parts(os.path.abspath(s.source))
    for end in (source, source[:-1]):  # a volume, a folder of images
        if ends_with(end, name):
            return end
    if ends_with(source[:-1], name[:-1]):  # images whose names hold the number
        return (*source[:-1], name[-1])
    return name_parts(os.path.abspath(s.scan))  # told by a name, a pattern or a table


def ends_with(parts: tuple[str, ...], end: tuple[str, ...]) -> bool:
    return parts[len(parts) - len(end) :] == end


def described(names: list[str], seen: dict[str, SeenBy]) -> str:
    return abridged([name + seen[name].because for name in sorted(names)])
