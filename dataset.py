"""Files -> Dataset -> subsets: what train.py reads, what a notebook calls, and a look at the data.

    python dataset.py AKOA_Analysis                          # what is in it, and a picture of it
    python dataset.py knees/ --write-slices slices/          # its slices as PNGs
    python dataset.py knees/ --write-split split.csv         # its folders train, val and test
    python dataset.py knees/ --write-problems problems.csv   # all that can't be read, and why

    from dataset import list_labelled, load_dataset, split
    dataset = load_dataset(list_labelled("AKOA_Analysis"), image_size=(76, 86))
    subsets = split(dataset)                           # {"train": Dataset, "val": ..., "test": ...}
    pixels = subsets["test"].batch(torch.arange(64))         # (64, 1, 76, 86) uint8

Prints how many slices, scans and patients of each class there are, their visits, sizes, modes and
grey levels, copies, problems and the split that train.py would make, and draws a few slices of a
few scans as the model will see them.

Exit codes, as train.py's: 0 done, 1 a full disk, 2 unusable arguments or data (some files can't be
read), 130 interrupted. With --write-slices and --write-problems 1 if some can't be read.
"""

import gc
import signal

if __name__ == "__main__":  # while PyTorch is imported
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of a Ctrl-C
    gc.disable()  # nothing of it is garbage; run_program goes on with that

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from common import signals
from common.files import try_folder
from common.program import (
    Parser,
    check_matplotlib,
    counted,
    print_lines,
    run_program,
    typed,
)
from common.tables import write_csv
from scans import copies, split_tables, splits
from scans.cache import Decoded, open_pixels
from scans.flags import NAMING, add_data_arguments, options_of
from scans.images import describe_depths
from scans.labelled import check_classes_present, first_problems, list_labelled
from scans.listing import list_slices
from scans.places import check_scans, rows_of_scans
from scans.series import SeveralSequences, check_series_used, describe_series
from scans.slices import FAILURES, DataError, Kind, Listing, Slice, by_scan
from scans.volumes import common_direction
from scans.writing import try_file, write_slices

__all__ = ["Dataset", "list_labelled", "list_slices", "load_dataset", "split"]


@dataclass(frozen=True)
class Dataset:
    """Samples: slices, or whole scans. Subsets share slices and pixels and have other rows."""

    slices: list[Slice]
    pixels: Tensor  # (n, 1, height, width) uint8, those of all slices
    rows: Tensor  # (m,): samples are slices; (m, length): scans, see scans.places
    classes: list[str]
    crc32: int | None = None  # of all pixels
    note: str = ""  # why the pixels are in memory and not in the cache
    depths: dict[int, int] = field(default_factory=dict)  # bits of 16-bit images -> scans
    patients_known: str = ""  # how they are known, such as: told by DICOM
    left_out: frozenset[str] = frozenset()  # scans that a split file puts into no subset

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def samples(self) -> list[Slice]:
        """A slice of each of the m samples: it knows label, patient and scan."""
        first = self.rows if self.unit == "slice" else self.rows[:, 0].long()
        return [self.slices[i] for i in first.tolist()]

    @property
    def unit(self) -> str:
        """What a sample is: "slice" or "scan"."""
        return "slice" if self.rows.ndim == 1 else "scan"

    @property
    def names(self) -> list[str]:
        """Of the samples, for people and tables."""
        return [s.name if self.unit == "slice" else s.scan for s in self.samples]

    @property
    def sample_size(self) -> tuple[int, ...]:
        """(1, height, width), or of scans (1, length, height, width)."""
        return (1, *self.rows.shape[1:], *self.pixels.shape[2:])

    @property
    def rows_of_each(self) -> list[range]:
        """The rows of the slices that each sample is, or that are in it."""
        places = self.rows[:, None] if self.unit == "slice" else self.rows
        ends = places[:, [0, -1]].long().tolist()
        return [range(min(pair), max(pair) + 1) for pair in ends]

    @property
    def members(self) -> list[Slice]:
        """The slices that the samples are, or that are in them."""
        return [self.slices[i] for rows in self.rows_of_each for i in rows]

    @cached_property
    def labels(self) -> Tensor:
        """The class of each sample (m,), on the device of the pixels. Raises for one without."""
        labels = [self.classes.index(s.label) for s in self.samples]
        return torch.tensor(labels, dtype=torch.long, device=self.pixels.device)

    @property
    def lacking(self) -> list[str]:
        """The classes of which there is no sample."""
        present = {s.label for s in self.samples}
        return [label for label in self.classes if label not in present]

    def batch(self, samples: Tensor) -> Tensor:
        """The uint8 pixels of some samples (b,): (b, 1, height, width), or (b, 1, length, ...)."""
        rows = self.rows[samples.to(self.rows.device)]
        pixels = self.pixels[rows.long()]
        if rows.is_floating_point():  # places between slices
            share, after = rows.frac().float(), self.pixels[rows.ceil().long()]
            pixels = torch.lerp(pixels.float(), after.float(), share[..., None, None, None])
            pixels = pixels.round().byte()
        return pixels if self.unit == "slice" else pixels.transpose(1, 2)

    def subset(self, rows: Tensor) -> "Dataset":
        return replace(self, rows=rows)

    def with_pixels(self, pixels: Tensor) -> "Dataset":
        """The same with the same pixels, on another device."""
        return replace(self, pixels=pixels, rows=self.rows.to(pixels.device))

    def statistics(self) -> tuple[float, float]:
        """Mean and standard deviation of its pixels on a scale from 0 to 1, exact at any size."""
        counts = torch.zeros(256, dtype=torch.float64)
        rows = torch.tensor([i for rows in self.rows_of_each for i in rows])
        for chunk in rows.split(64):  # what fits into the processor's cache
            pixels = self.pixels.index_select(0, chunk)  # 5 times as quick as pixels[chunk]
            counts += torch.bincount(pixels.flatten(), minlength=256)
        levels = torch.arange(256, dtype=torch.float64) / 255
        mean = (counts * levels).sum() / counts.sum()
        variance = (counts * (levels - mean) ** 2).sum() / counts.sum()
        return mean.item(), variance.sqrt().item()


def load_dataset(
    listing: Listing,
    image_size: Sequence[int] = (76, 86),
    cache_dir: str | Path = "cache",
    workers: int | None = None,
    scan_length: int | None = None,
) -> Dataset:
    """Decode all slices of a listing, or open what was kept of them.

    Each slice is a sample; with a scan_length each scan is one, resampled to so many slices.

    Raises:
        DataError: some files can't be read; the first are named. Or scans are too short, or volumes
            run in several directions.
    """
    if scan_length is not None:
        check_scans(listing.slices)
    decoded = open_pixels(listing.slices, tuple(image_size), cache_dir, workers)
    if decoded.errors:
        lines = [f"  {listing.slices[i].name}: {text}" for i, text in decoded.errors.items()]
        count = f"{counted(len(lines), 'file')} can't be read; mend or remove them:"
        raise DataError(count, *first_problems(lines))
    dataset = as_dataset(listing, decoded)
    if scan_length is None:
        return dataset
    return dataset.subset(rows_of_scans(listing.slices, scan_length))


def as_dataset(listing: Listing, decoded: Decoded) -> Dataset:
    """All slices of a listing with their pixels. Each is a sample."""
    pixels, rows = torch.from_numpy(decoded.pixels), torch.arange(len(listing.slices))
    about = decoded.crc32, decoded.note, decoded.depths, listing.patients
    return Dataset(listing.slices, pixels, rows, listing.classes, *about)


def split(
    dataset: Dataset,
    by: str = "patient",
    val_fraction: float | None = None,
    test_fraction: float | None = None,
    seed: int = 0,
    split_file: str | Path | None = None,
    pairs: copies.Pairs = (),
    fold: int | None = None,
) -> dict[str, Dataset]:
    """Put whole patients (or with by="scan", whole scans) into train, val and test.

    split_file is a CSV that says it, or says folds, of which `fold` is tested; patients with copies
    of an image (pairs, see scans.copies) are kept together. Slices that are exactly in an earlier
    scan of their patient are in no subset: each image counts once; by="scan" leaves all in.

    Raises:
        DataError: also if a patient or an image is in two subsets, which by="scan" allows, and if
            a class is not in train.
    """
    check_classes_present(dataset.slices, dataset.classes)
    scans = by_scan(dataset.slices)
    if split_file:
        subset_of = split_tables.read_split(split_file, scans, fold)
        left_out = frozenset(scan for scan, of in subset_of.items() if of == splits.NONE)
        dataset = replace(dataset, left_out=left_out)
    elif fold is not None:
        raise DataError(f"--fold {fold}: of which table of folds? name it as --split-file")
    elif by == "scan":
        subset_of = splits.split_by_scan(scans, val_fraction, test_fraction)
    else:
        val = splits.HELD_OUT if val_fraction is None else val_fraction
        test = splits.HELD_OUT if test_fraction is None else test_fraction
        together = copies.patients_sharing_images(dataset.slices, pairs)
        subset_of = splits.split_by_patient(scans, val, test, seed, together)
    if by == "patient":
        splits.check_patients(scans, subset_of)
        copies.check_copies(dataset.slices, pairs, subset_of)
        repeated = copies.repeated_within_patient(dataset.pixels, dataset.slices, pairs)
        # A scan counts with all of its slices, unless each of them is in an earlier one.
        counts = [any(i not in repeated for i in rows) for rows in dataset.rows_of_each]
        dataset = dataset.subset(dataset.rows[torch.tensor(counts)])
    subsets = {}
    for name in splits.SUBSETS:
        members = [i for i, s in enumerate(dataset.samples) if subset_of[s.scan] == name]
        subsets[name] = dataset.subset(dataset.rows[members])
    if lacking := subsets["train"].lacking:
        advice = "more patients, smaller fractions for val and test, another seed or a split file"
        advice = f"correct {split_file}" if split_file else f"it takes {advice}"
        raise DataError(f"no {lacking[0]} slice is in train, to learn from: {advice}")
    return subsets


def split_as_told(
    dataset: Dataset, args: argparse.Namespace, pairs: copies.Pairs, split_file: Path | None = None
) -> dict[str, Dataset]:
    """`split` by the flags of `add_data_arguments`, or by another split file, such as a run's."""
    fractions = args.val_fraction, args.test_fraction
    table, fold = (split_file, None) if split_file else (args.split_file, args.fold)
    return split(dataset, args.split, *fractions, args.seed, table, pairs, fold)


def subset_of_scans(subsets: dict[str, Dataset]) -> dict[str, str]:
    """Scan name -> subset, of what `split` gives.

    A scan whose slices are all copies is where its patient is; one that a split file leaves out is
    in `splits.NONE`.
    """
    samples = [(s, name) for name, subset in subsets.items() for s in subset.samples]
    of_patient = {s.patient: name for s, name in samples}
    whole = subsets["train"]
    found = {s.scan: of_patient[s.patient] for s in whole.slices if s.patient in of_patient}
    return (
        found | {s.scan: name for s, name in samples} | dict.fromkeys(whole.left_out, splits.NONE)
    )


def describe_counts(listing: Listing) -> str:
    """How many slices, scans and patients there are, and how the patients are known."""
    scans = {s.scan for s in listing.slices}
    patients = {s.patient for s in listing.slices}
    counts = {"slice": len(listing.slices), "scan": len(scans), "patient": len(patients)}
    known = f" ({listing.patients})" if listing.patients else ""
    return ", ".join(counted(count, unit) for unit, count in counts.items()) + known


def describe_subsets(dataset: Dataset, subsets: dict[str, Dataset]) -> list[str]:
    """A table of what `split` gives, and before it how many slices of the dataset do not count."""
    lines, left_out = [], subsets["train"].left_out
    if left_out:
        lines.append(f"note: {counted(len(left_out), 'scan')} in no subset, as the split file says")
    counting = sum(s.scan not in left_out for s in dataset.samples)
    if repeated := counting - sum(map(len, subsets.values())):
        where = "exactly in an earlier scan of their patient, left out: each image counts once"
        lines.append(f"note: {counted(repeated, dataset.unit)} {where}")
    scans = by_scan(s for subset in subsets.values() for s in subset.members)
    lines += splits.describe_split(scans, subset_of_scans(subsets), dataset.classes)
    if dataset.patients_known:
        lines.append(f"patients: {dataset.patients_known}")
    lacking = {name: subset.lacking for name, subset in subsets.items()}
    return lines + splits.describe_lacking(lacking, dataset.classes)


# ---- command line --------------------------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="dataset.py", description="Say what is in a folder of slices, and draw it."
    )
    add = parser.add_argument
    add("data_dir", type=Path, metavar="DIR", help="folder, or a manifest (.csv)")
    add(
        "--contact-sheet",
        type=Path,
        default="contact_sheet.png",
        metavar="PNG",
        help="where to draw it",
    )
    add("--write-slices", type=Path, metavar="OUT", help="write all slices as PNGs there, and stop")
    add(
        "--write-split",
        type=Path,
        metavar="CSV",
        help="write the split that folders make, and stop",
    )
    problems = "write a table path,error of all that can't be read, and stop"
    add("--write-problems", type=Path, metavar="CSV", help=problems)
    add_data_arguments(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    if args.write_slices:
        return keep_slices(args)
    if args.write_split:
        return keep_split(args)
    if args.write_problems:
        return keep_problems(args)
    check_matplotlib()
    from scans import overview  # matplotlib, which a notebook may not need

    sheet = args.contact_sheet
    if sheet.suffix.lower() != ".png":
        raise DataError(f"--contact-sheet {sheet}: expected a name that ends in .png")
    try_file("--contact-sheet", sheet)
    try:
        listing = list_labelled(args.data_dir, args.classes, options_of(args))
    except SeveralSequences as error:
        print_lines(*error.table)
        raise
    slices, classes = listing.slices, listing.classes
    print_lines(f"{args.data_dir}: {describe_counts(listing)}")
    print_lines(*(f"  {line}" for line in overview.describe_scans(slices, classes)))
    print_lines("files, height x width:", *overview.describe_files(slices, args.workers))
    if series := describe_series(slices, classes):
        print_lines("series:", *(f"  {line}" for line in series))

    size = tuple(args.image_size)
    decoded = open_pixels(slices, size, args.cache_dir, args.workers)
    lines = [f"dataset.py: {slices[i].name}: {text}" for i, text in decoded.errors.items()]
    print_lines(*first_problems(lines), to_error=True)
    if len(decoded.errors) == len(slices):
        raise DataError(f"{args.data_dir}: none of the files can be read")
    whole = as_dataset(listing, decoded)
    readable = whole.subset(torch.tensor([i for i in whole.rows if int(i) not in decoded.errors]))
    print_lines(f"as the model sees them, {size[0]} x {size[1]}:")
    pixels = whole.pixels[readable.rows] if decoded.errors else whole.pixels
    print_lines(*(f"  {line}" for line in overview.describe_pixels(pixels, *readable.statistics())))
    # What can't be read is black, and black images are nobody's copies.
    pairs = copies.open_copies(whole.pixels, slices, decoded.crc32, args.cache_dir)
    found = copies.describe_copies(slices, whole.pixels, pairs)
    depths = describe_depths(decoded.depths)
    for line in [*map(str, listing.problems), decoded.note, depths, *found]:
        if line:
            print_lines(f"note: {line}")
    if not pairs:
        print_lines("no image is in two scans")
    overview.draw_contact_sheet(overview.choose_shown(slices, whole.pixels, classes), sheet)
    print_lines(f"contact sheet: {sheet}")
    if not args.split_file and (note := splits.note_on_folders(by_scan(slices), args.data_dir)):
        print_lines(f"note: {note}")
    subsets = split_as_told(whole, args, pairs)
    print_lines(f"the split that train.py makes of it (--seed {args.seed}):")
    print_lines(*describe_subsets(whole, subsets))
    return 2 if decoded.errors else 0


def keep_slices(args: argparse.Namespace) -> int:
    """--write-slices: all that can be listed, labelled or not."""
    try_folder(args.write_slices.absolute().parent)
    listing = list_slices(args.data_dir, args.classes, options_of(args))
    check_series_used(listing.slices, args.series)
    common_direction(listing.slices)
    written = write_slices(listing, args.write_slices, args.workers)
    left_out = [p for p in listing.problems if p.kind not in (Kind.REMARK, Kind.NAMELESS)]
    lines = [f"dataset.py: {problem}" for problem in [*left_out, *written.problems]]
    print_lines(*first_problems(lines), to_error=True)
    for problem in listing.of_kind(Kind.REMARK, Kind.NAMELESS):
        first, *more = problem.lines
        print_lines(f"dataset.py: {first}", *more, to_error=True)
    if written.depths:
        print_lines(f"note: {describe_depths(written.depths)}")
    unlabelled = written.count - written.labelled
    count = counted(written.count, "slice")
    print_lines(f"{args.write_slices}: {count}, {unlabelled:,} of them without a label")
    return 1 if written.problems or listing.of_kind(*FAILURES) else 0


def keep_problems(args: argparse.Namespace) -> int:
    """--write-problems: a row for each file, folder or slice that can't be read."""
    try_file("--write-problems", args.write_problems)
    listing = list_slices(args.data_dir, args.classes, options_of(args))
    check_series_used(listing.slices, args.series)
    decoded = open_pixels(listing.slices, tuple(args.image_size), args.cache_dir, args.workers)
    rows = [{"path": p.path, "error": p.text} for p in listing.of_kind(*FAILURES)]
    rows += [{"path": listing.slices[i].name, "error": x} for i, x in decoded.errors.items()]
    write_csv(args.write_problems, rows, ["path", "error"])
    print_lines(f"{args.write_problems}: {len(rows):,} can't be read")
    return 1 if rows else 0


def keep_split(args: argparse.Namespace) -> int:
    """--write-split: folders called train, val and test as a table for --split-file."""
    try_file("--write-split", args.write_split)
    listing = list_labelled(args.data_dir, args.classes, options_of(args))
    scans = by_scan(listing.slices)
    subset_of, note = splits.split_by_folder(scans, args.data_dir, args.seed)
    splits.check_patients(scans, subset_of)
    split_tables.write_split(args.write_split, scans, subset_of)
    for line in [*map(str, listing.problems), note]:
        if line:
            print_lines(f"note: {line}")
    print_lines(*splits.describe_split(scans, subset_of, listing.classes))
    command = ["python", "train.py", "--data-dir", args.data_dir, "--split-file", args.write_split]
    for name in ("classes", *NAMING):
        if value := getattr(args, name):
            values = value if isinstance(value, list) else [] if value is True else [value]
            command += [f"--{name.replace('_', '-')}", *values]
    print_lines(f"next: {' '.join(map(typed, map(str, command)))}")
    return 0


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with signals.listening("dataset.py"):
        return run_program(run, args, "dataset.py")


if __name__ == "__main__":
    sys.exit(main())
