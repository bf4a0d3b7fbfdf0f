"""Which images are one scan: a volume is a scan, and so are images whose names differ in a number.

    records = tell_scans(records, context)

The last number of a name counts the slices, unless it belongs to the patient, a visit or a date.
Where it counts something else, labelled.check_scans refuses a scan of two labels or patients.
"""

import os
from collections import defaultdict

from common.program import counted
from scans.identity import names
from scans.identity.records import Context, Record
from scans.names import natural_order
from scans.slices import DataError


def tell_scans(records: list[Record], context: Context) -> list[Record]:
    """Fill in the scan and the number of each record that no other rule has told."""
    told = [
        x._replace(scan=x.scan or x.path + x.series, number=0) if x.volume else x for x in records
    ]
    if size := context.options.slices_per_scan:
        return every_few(told, size)
    root = os.path.basename(os.path.abspath(context.root or "."))
    return [x if x.scan and x.number is not None else by_last_number(x, root) for x in told]


def by_last_number(record: Record, name_of_none: str) -> Record:
    """name_of_none: of a scan whose names have nothing but the number."""
    stem, number = record.stem, names.last_number(record.stem, record.patient_span)
    rest = names.without(stem, number) if number else stem
    scan = record.scan or names.normalised_scan(rest, record.label) or name_of_none
    return record._replace(scan=scan, number=int(number.text) if number else 0)


def every_few(records: list[Record], size: int) -> list[Record]:
    """--slices-per-scan: so many images of a folder and a label, in sorted order, are a scan.

    Raises DataError if they do not divide evenly.
    """
    groups = defaultdict(list)
    for place in sorted(range(len(records)), key=lambda i: natural_order(records[i].path)):
        record = records[place]
        if not record.scan:
            folder = record.path.rpartition("/")[0] or record.label
            groups[folder, record.label].append(place)
    found = list(records)
    for (folder, label), places in groups.items():
        if len(places) % size:
            count = counted(len(places), f"{label} image")
            raise DataError(
                f"--slices-per-scan {size}: {count} of {folder} can't be divided into scans of "
                f"{size} (first: {records[places[0]].source})"
            )
        for i, place in enumerate(places):
            scan = records[place].stem if size == 1 else f"{folder} {i // size + 1:04}"
            found[place] = records[place]._replace(scan=scan, number=i % size)
    return found
