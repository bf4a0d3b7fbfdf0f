"""The volumes of folders, by their headers: files, series of DICOM files, archives of them.

find_volumes("p01", os.listdir("p01"))      # all of them, and what is wrong with others
open_volume("p01_RIGHT.nii.gz")             # one
"""

import os
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

from common.files import abridged, abridged_lines
from common.program import MissingPackage, counted
from scans.headers import read_units, units_of
from scans.identity.names import SIDE_WORD
from scans.searching import Search
from scans.slices import (
    SIDES,
    DataError,
    Kind,
    Options,
    Problem,
    Slice,
    Unchosen,
    Volume,
    VolumeError,
    Volumes,
)
from scans.volumes import check_volume, plan_slicing

SPECIAL = re.compile(r"[\\.^$*+?{}\[\]|()]")  # re.escape also escapes what need not be


class SeveralSequences(DataError):
    """Several series of one knee at one visit, of which one must be chosen."""

    def __init__(self, text: str, table: list[str]):
        super().__init__(text)
        self.table = table  # what there is, for a person


# ---- volumes of folders --------------------------------------------------------------------------


def find_volumes(folder: str, files: list[str], options: Options = Options()) -> Volumes:
    """The volumes among the files of one folder, by their headers; pixels are not read.

    Raises DataError: --series is no regular expression.
    """
    return choose(read_units(units_of(folder, files), options), options)


def find_all_volumes(
    folders: Iterable[tuple[str, list[str]]], options: Options = Options()
) -> Iterator[Volumes]:
    """`find_volumes` of many folders with their files, in order; see there.

    Localizers come last, as problems where there is no other volume.
    """
    units = [units_of(folder, files) for folder, files in folders]
    reading = read_units([unit for of_folder in units for unit in of_folder], options)
    localizers, scans = [], 0
    for of_folder in units:
        volumes, problems = choose(islice(reading, len(of_folder)), options)
        scans += len(volumes)
        localizers += [problem for problem in problems if problem.kind is Kind.LOCALIZER]
        yield Volumes(volumes, [p for p in problems if p.kind is not Kind.LOCALIZER])
    kind = Kind.SHORT if scans else Kind.LOCALIZER
    yield Volumes([], [problem._replace(kind=kind) for problem in localizers])


def choose(found: Iterable[Volumes], options: Options) -> Volumes:
    """What can be used, and is named by --series, of what was found; volumes get their slicing."""
    search = Search("series", options.series, re.IGNORECASE) if options.series else None
    volumes, problems = [], []
    for of_unit in found:
        numbers = {}  # of series that share a path
        for volume in of_unit.volumes:
            free = numbers.setdefault(volume.path, free_numbers(volume.path))
            volume = replace(volume, number=next(free))
            name = volume.description or os.path.basename(volume.path)
            try:
                if search and not search(name):
                    raise Unchosen(volume.source, f"is not `{options.series}`: {name}", name)
                check_volume(volume)
                volumes.append(plan_slicing(volume, options))
                if note := volume.tags.get("note"):
                    problems.append(Problem(volume.path, Kind.REMARK, note))
            except VolumeError as error:
                problems.append(error.problem)
        for problem in of_unit.problems:
            if search and problem.series and not search(problem.series):
                if problem.kind is Kind.ECHOES:  # its series has been counted
                    continue
                problem = problem._replace(kind=Kind.UNCHOSEN)
            problems.append(problem)
    return Volumes(volumes, problems)


def free_numbers(path: str) -> Iterator[int]:
    """1, 2, 3, ...: names of series, but for those that are names of files: folder#2."""
    yield 1
    yield from (n for n in count(2) if not os.path.exists(f"{path}#{n}"))


def open_volume(path: str | Path, options: Options = Options()) -> Volume:
    """The first of `open_volumes`."""
    return open_volumes(path, options)[0]


def open_volumes(path: str | Path, options: Options = Options()) -> list[Volume]:
    """The volumes of one file, archive or DICOM folder: one, or several series.

    Raises VolumeError if there is none, Unchosen if --series names none of those that there are,
    and MissingPackage without SimpleITK.
    """
    path = os.fspath(path)
    is_folder = os.path.isdir(path)
    folder, files = (path, os.listdir(path)) if is_folder else os.path.split(path)
    found = find_volumes(folder, files if is_folder else [files], options)
    if found.volumes:
        return found.volumes
    # What else is wrong says more than that a series is not the chosen one.
    for problem in sorted(found.problems, key=lambda p: p.kind is Kind.UNCHOSEN):
        if problem.kind is Kind.PACKAGE:
            raise MissingPackage(problem.text)
        if problem.kind is Kind.UNCHOSEN:
            text = f"is not `{options.series}`: {problem.series}"
            raise Unchosen(problem.path, text, problem.series)
        if problem.kind is Kind.LOCALIZER and not is_folder and problem.path == folder:
            text = f"one slice of a DICOM series; name its folder: {folder or '.'}"
            raise VolumeError(path, text)
        raise VolumeError(problem.path, problem.text)
    raise VolumeError(path, "no image and no volume, or no such file")


# ---- what is said once of a whole listing --------------------------------------------------------


def merge_remarks(
    problems: list[Problem], slices: Iterable[Slice], options: Options = Options()
) -> list[Problem]:
    """The same problems, with one remark each for all series that are passed over alike.

    Raises DataError if --series names none of the series that there are.
    """
    of_kind = defaultdict(list)
    for problem in problems:
        of_kind[problem.kind].append(problem)
    lines = []
    if unchosen := of_kind.pop(Kind.UNCHOSEN, []):
        counts = Counter(problem.series for problem in unchosen)
        found = [f"{name} ({number})" for name, number in counts.most_common()]
        if not any(s.volume for s in slices):
            text = f"--series {options.series}: is none of the series that are "
            raise DataError(text + f"there: {', '.join(found)}")
        lines.append(f"{len(unchosen)} series not `{options.series}`: {abridged(found)}")
    if echoes := of_kind.pop(Kind.ECHOES, []):
        times = Counter(problem.text for problem in echoes)
        lines.append(
            f"{len(echoes)} series with several echoes: the shortest ({abridged(list(times))}) is "
            "taken; --echo N takes another"
        )
    if short := of_kind.pop(Kind.SHORT, []):
        paths = abridged([problem.path for problem in short])
        lines.append(f"{len(short)} series too short for a scan: {paths}")
    if foreign := of_kind.pop(Kind.FOREIGN, []):
        lines += [f"passed over: {line}" for line in abridged_lines(merge_alike(foreign))]
    of_files = [problem for problem in of_kind[Kind.REMARK] if problem.path]
    lines += abridged_lines(merge_alike(of_files))
    left = [p for p in problems if p.kind in of_kind and not (p.kind is Kind.REMARK and p.path)]
    return left + [Problem("", Kind.REMARK, line) for line in lines]


def check_series_used(slices: Iterable[Slice], series: str | None) -> None:
    """Raise DataError where --series is given and there is nothing that it could choose from."""
    if series and not any(s.volume for s in slices):
        raise DataError(f"--series {series}: there are no series and no volumes to choose from")


def merge_alike(problems: Iterable[Problem]) -> list[str]:
    """A line for each text: what it is, how often and where."""
    paths = defaultdict(list)
    for problem in problems:
        paths[problem.text].append(problem.path)
    return [
        f"{found[0]}: {text}" if len(found) == 1 else f"{text} ({len(found)}: {abridged(found)})"
        for text, found in paths.items()
    ]


# ---- sequences -----------------------------------------------------------------------------------


def sequence_of(description: str) -> str:
    """A description without its side: SAG_3D_DESS_LEFT -> SAG_3D_DESS; A_LEFT_B -> A_*_B."""
    return SIDE_WORD.sub("*", description).strip("*_.- ").upper()


def check_one_sequence(slices: Iterable[Slice]) -> None:
    """Raise SeveralSequences if a knee has series of different descriptions at one visit.

    A visit is a patient's date, or else a study, or a folder of series. Which side a description
    names makes no difference, and series without a label or a description none either.
    """
    visits = defaultdict(set)
    found = {s.source: s for s in slices if s.volume and s.volume.description}
    for s in found.values():
        tags, folder = s.volume.tags, os.path.dirname(s.volume.path)
        if s.label:
            visit = tags.get("date") or tags.get("study") or folder
            visits[s.patient, visit, s.label].add(sequence_of(s.volume.description))
    if max(map(len, visits.values()), default=0) < 2:
        return
    scans, patients = Counter(), defaultdict(set)
    for s in found.values():
        if s.label:
            sequence = sequence_of(s.volume.description)
            scans[sequence] += 1
            patients[sequence].add(s.patient)
    lines = [
        f"{sequence} ({counted(number, 'scan')} of {counted(len(patients[sequence]), 'patient')})"
        for sequence, number in scans.most_common()
    ]
    likely = scans.most_common(1)[0][0]
    pattern = pattern_of(likely, {s.volume.description for s in found.values()})
    text = (
        f"several series of one knee at one visit: {', '.join(lines)}; choose by their "
        f"descriptions, such as --series {pattern}"
    )
    raise SeveralSequences(text, describe_series(found.values(), SIDES))


def pattern_of(sequence: str, descriptions: set[str]) -> str:
    """A regular expression, as it is typed, for a sequence of these descriptions and no other."""
    own = {text for text in descriptions if sequence_of(text) == sequence}
    pattern = ".*".join(SPECIAL.sub(r"\\\g<0>", part) for part in sequence.split("*"))
    if {text for text in descriptions if re.search(pattern, text, re.IGNORECASE)} != own:
        pattern = "|".join(SPECIAL.sub(r"\\\g<0>", text) for text in sorted(own))
        pattern = f"^({pattern})$"
    quoted = shlex.quote(pattern)
    return f"'{pattern}'" if quoted == pattern else quoted


def describe_series(slices: Iterable[Slice], classes: Iterable[str]) -> list[str]:
    """A table of the sequences: series, patients, labels, and how many slices they have."""
    sequences = defaultdict(list)
    for s in {s.source: s for s in slices if s.volume}.values():
        sequences[sequence_of(s.volume.description)].append(s)
    rows = [("description", "series", "patients", *classes, "slices", "mm")]
    for sequence, found in sorted(sequences.items(), key=lambda item: (-len(item[1]), item[0])):
        labels = Counter(s.label for s in found)
        depths = [s.volume.size[s.volume.slicing.axes[0]] for s in found]
        spacings = Counter(" x ".join(f"{mm:.3g}" for mm in s.volume.spacing) for s in found)
        more = f" and {len(spacings) - 1} more" if len(spacings) > 1 else ""
        slices_of = f"{min(depths)}-{max(depths)}" if min(depths) < max(depths) else f"{depths[0]}"
        rows.append(
            (
                sequence or "(none)",
                f"{len(found)}",
                f"{len({s.patient for s in found})}",
                *(f"{labels[label]}" for label in classes),
                slices_of,
                spacings.most_common(1)[0][0] + more,
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            f"{cell:<{width}}" if i in (0, len(widths) - 1) else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (rows if len(rows) > 1 else [])
    ]
