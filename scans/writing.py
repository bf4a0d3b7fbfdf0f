"""`python dataset.py IN --write-slices OUT`: the slices of anything that can be listed, as PNGs.

8-bit grey, as large as they are. Their names are read back to the same labels, patients and scans:
AKOA's where a scan has one, else patient=p01,scan=left%2Fp01,label=left_7.png.
"""

import os
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from common.files import whole_folder
from scans.images import ImageError, read_grey
from scans.names import Identity, written_name
from scans.slices import DataError, Kind, Listing, Problem, Slice
from scans.volumes import VolumeError, read_slices

LONGEST_NAME = 255  # bytes, on all common file systems


class Written(NamedTuple):
    count: int
    labelled: int
    problems: list[Problem]  # what could not be read, and is not there


def write_slices(listing: Listing, folder: Path, workers: int | None = None) -> Written:
    """Write all slices into a new or empty folder, which appears when it is whole.

    Raises:
        FileExistsError: the folder holds something.
        DataError: nothing can be read, or a name would be too long.
    """
    names = name_all(listing)
    sources = defaultdict(list)  # what is read at once -> its slices
    for s in listing.slices:
        sources[s.source, s.index is None].append(s)
    with whole_folder(folder) as temporary:

        def write(slices: list[Slice]) -> Problem | None:
            try:
                pixels = read_at_once(slices)
            except (ImageError, VolumeError) as error:
                return Problem(slices[0].source, Kind.UNREADABLE, error.text)
            for s, grey in zip(slices, pixels, strict=True):
                Image.fromarray(grey).save(temporary / names[s.name])
            return None

        pool = ThreadPoolExecutor(workers or os.cpu_count())
        try:
            done = pool.map(write, sources.values())
            bar = tqdm(done, "writing", len(sources), disable=None)
            problems = [problem for problem in bar if problem]
        finally:
            pool.shutdown(cancel_futures=True)  # on Ctrl-C, those begun are finished
        lost = {problem.path for problem in problems}
        written = [s for s in listing.slices if s.source not in lost]
        if not written:
            for problem in [*problems, *listing.problems]:
                raise DataError(f"nothing to write: {problem}")
            raise DataError("nothing to write: no images and no volumes")
    return Written(len(written), sum(bool(s.label) for s in written), problems)


def read_at_once(slices: list[Slice]) -> list[np.ndarray]:
    """uint8 (height, width) of each slice of one source."""
    first = slices[0]
    if first.volume is None:
        return [np.asarray(read_grey(first.source)).round().astype(np.uint8)] * len(slices)
    planes = read_slices(first.volume)
    return [planes[s.index] for s in slices]


def name_all(listing: Listing) -> dict[str, str]:
    """The name of each slice -> that of its file. Where numbers occur twice, slices are counted."""
    numbers = Counter((s.scan, s.label, s.patient, s.number) for s in listing.slices)
    twice = {key[:3] for key, count in numbers.items() if count > 1}
    counted, names = Counter(), {}
    for s in listing.slices:
        scan = s.scan, s.label, s.patient
        number = counted[scan] if scan in twice else s.number
        counted[scan] += 1
        name = written_name(Identity(s.label, s.patient, s.scan, number), listing.classes)
        if len(os.fsencode(name)) > LONGEST_NAME:
            raise DataError(f"{s.name}: its file would have too long a name: {name}")
        names[s.name] = name
    return names
