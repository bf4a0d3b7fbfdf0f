"""The flags of all programs that say how data is read: what names and headers mean, and the split.

add_data_arguments(parser)              # train.py and dataset.py
add_naming_arguments(parser)            # of these, what predict.py takes, too
options = options_of(args)              # for list_slices and list_labelled
"""

import argparse
from dataclasses import fields
from pathlib import Path

from common.program import part, positive_int, whole_number
from scans.slices import Options
from scans.volumes import PLANES

# The flags of add_naming_arguments.
NAMING = (
    "name_pattern labels label_column label_key slices_per_scan patients side_by_position series "
    "echo".split()
)


def add_data_arguments(group: argparse._ActionsContainer) -> None:
    """The flags that say how data is read and split."""
    add = group.add_argument
    size = "height and width that slices are resized to"
    add("--classes", nargs="+", metavar="NAME", help="labels, in order (default: left right)")
    add_naming_arguments(group)
    add("--split", choices=["patient", "scan"], default="patient", help="what stays whole")
    add("--split-file", type=Path, metavar="CSV", help="or as this table says: subset, scan")
    add("--fold", type=positive_int, metavar="N", help="of a table of folds (fold, scan): the test")
    add("--val-fraction", type=part, metavar="X", help="held out for validation (default: 0.125)")
    add("--test-fraction", type=part, metavar="X", help="held out for the test (default: 0.125)")
    add("--image-size", type=positive_int, nargs=2, metavar=("H", "W"), default=(76, 86), help=size)
    add("--plane", choices=PLANES, default="stored", help="how volumes are cut into slices")
    at_most = "at most so many of a volume; of a scan that is read whole, as many"
    add("--slices", type=positive_int, default=40, metavar="N", help=at_most)
    kept = "for decoded slices, headers"
    add("--cache-dir", type=Path, default=Path("cache"), metavar="DIR", help=kept)
    add("--seed", type=whole_number, default=0, metavar="N", help="of split, weights and order")
    add(
        "-j",
        "--workers",
        type=positive_int,
        metavar="N",
        help="processes that read files (default: cores)",
    )


def add_naming_arguments(group: argparse._ActionsContainer) -> None:
    """The flags that say what names, tables and headers mean."""
    add = group.add_argument
    add("--name-pattern", metavar="REGEX", help="of paths: groups patient, scan, label, slice")
    tables = "tables of labels, by patient, scan or path"
    add("--labels", nargs="+", metavar="CSV", help=tables)
    add("--label-column", metavar="NAME", help="their column of labels, if not called label")
    key = "their column whose values are parts of the paths, such as accession numbers"
    add("--label-key", metavar="NAME", help=key)
    add("--slices-per-scan", type=positive_int, metavar="N", help="make each N images a scan")
    patients = "treat each scan whose patient nothing tells as another person"
    add("--patients", choices=["scan"], help=patients)
    position = "take the side of a volume's position in the scanner where nothing else tells it"
    add("--side-by-position", action="store_true", help=position)
    add("--series", metavar="REGEX", help="read DICOM series so described alone")
    echo = "which of a series (default: 1, the shortest)"
    add("--echo", type=positive_int, metavar="N", help=echo)


def options_of(args: argparse.Namespace) -> Options:
    """How files are understood, by the flags."""
    names = [field.name for field in fields(Options) if getattr(args, field.name, None) is not None]
    return Options(**{name: getattr(args, name) for name in names})
