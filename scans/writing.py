"""`python dataset.py IN --write-slices OUT`: the slices of anything that can be listed, as PNGs.

8-bit grey, as large as they are. Their names are read back to the same labels, patients and scans:
AKOA's where a scan has one, else patient=p01,scan=left%2Fp01,label=left_7.png.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

from common.files import check_regular, try_folder, whole_folder
from common.isolation import Lost, isolated
from common.program import UserError
from scans.identity.names import Identity, written_name
from scans.images import ImageError, bit_depth, read_image
from scans.slices import DataError, Kind, Listing, Problem, Slice
from scans.volumes import VolumeError, read_slices

LONGEST_NAME = 255  # bytes, on all common file systems


class Written(NamedTuple):
    count: int
    labelled: int
    problems: list[Problem]  # what could not be read, and is not there
    depths: dict[int, int]  # bits that 16-bit images hold -> so many scans


def try_file(flag: str, path: Path) -> None:
    """Before the work: raise UserError, or OSError with a name, if it can't be written."""
    if not path.parent.is_dir():
        raise UserError(f"{flag} {path}: no such folder: {path.parent}")
    if path.exists():
        check_regular(path)
    try_folder(path.parent)


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
        files = {x: [temporary / names[s.name] for s in found] for x, found in sources.items()}
        tasks = ((found, files[x], None) for x, found in sources.items())
        done = isolated(write, tasks, workers)
        bar = tqdm(done, "writing", len(sources), disable=None)
        results = dict(zip(sources, bar, strict=True))
        # 16-bit images are read twice: so it takes no memory to wait for the rest of a scan.
        deep = [source for source, result in results.items() if isinstance(result, int)]
        bits = bits_of_scans((sources[x][0].scan, results[x]) for x in deep)
        tasks = ((sources[x], files[x], bits[sources[x][0].scan]) for x in deep)
        bar = tqdm(isolated(write, tasks, workers), "writing", len(deep), disable=not deep or None)
        results |= zip(deep, bar, strict=True)
        problems = [
            Problem(path, Kind.UNREADABLE, result.text)
            for (path, _), result in results.items()
            if isinstance(result, Lost)
        ]
        lost = {problem.path for problem in problems}
        written = [s for s in listing.slices if s.source not in lost]
        if not written:
            for problem in [*problems, *listing.problems]:
                raise DataError(f"nothing to write: {problem}")
            raise DataError("nothing to write: no images and no volumes")
    depths = dict(Counter(bits.values()))
    return Written(len(written), sum(bool(s.label) for s in written), problems, depths)


def write(task: tuple[list[Slice], list[Path], int | None]) -> int | Lost | None:
    """Write the slices of one source as these files. The third is how many bits a 16-bit image
    holds: where it is not known yet, nothing is written, and the image's largest value returned.
    """
    slices, files, bits = task
    try:
        if (volume := slices[0].volume) is not None:
            planes = read_slices(volume)
            pixels = [planes[s.index] for s in slices]
        else:
            image = read_image(slices[0].source)
            if image.highest is not None and bits is None:
                return image.highest
            pixels = [image.values if image.highest is None else image.grey(bits)]
    except (ImageError, VolumeError) as error:
        return Lost(error.text)
    for grey, file in zip(pixels, files, strict=True):
        Image.fromarray(grey).save(file)
    return None


def bits_of_scans(found: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Scan -> the bits that its 16-bit images hold, of each one's scan and largest value."""
    highest: dict[str, int] = {}
    for scan, value in found:
        highest[scan] = max(value, highest.get(scan, 0))
    return {scan: bit_depth(value) for scan, value in highest.items()}


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
