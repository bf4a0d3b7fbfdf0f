"""What is asked where nothing tells the patient: at most 12 lines, of which one can be typed.

The pattern is made of one example and claims nothing: whoever types it corrects its groups.
"""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from common.files import abridged
from common.program import counted, printable, typed
from scans.identity import names
from scans.identity.names import Span
from scans.identity.records import Context, Record

TABLES = "docs/data.md#tables"
FORMS, EXAMPLES = 3, 3
RUN = re.compile(r"[^\W\d_]+|\d+|[\W_]+")  # letters, digits, or what stands between them


def ask(unknown: list[Record], shared: dict[str, list[str]], context: Context) -> str:
    """For records without a patient. shared: parts such as patient_3, and the folders above them,
    if these may be several sites.
    """
    first = unknown[0]
    scans = len({record.scan for record in unknown})
    lines = [
        f"nothing tells the patient of {counted(scans, 'scan')}, so that the same person might be "
        "trained on and tested."
    ]
    forms = Counter(re.sub(r"\d+", "0", record.path) for record in unknown)
    for form, count in forms.most_common(FORMS):
        like = [x.path for x in unknown if re.sub(r"\d+", "0", x.path) == form][:EXAMPLES]
        lines.append(f"  {counted(count, 'file')} like {', '.join(like)}")
    if len(forms) > FORMS:
        lines.append(f"  and {counted(len(forms) - FORMS, 'other form')} of names")
    for patient, folders in list(shared.items())[:1]:
        lines.append(
            f"  patient {patient} is below {abridged(folders, 3)}: one person, or several?"
        )
    pattern = pattern_of(first.stem, groups_of(first, context.classes))
    lines += [
        "This pattern reads the first of them. Correct what its groups hold, and type it:",
        f"  --name-pattern {typed(pattern)}",
        "If each scan is another person, type --patients scan instead.",
        f"Or name a table: {TABLES}",
    ]
    return "\n".join(map(printable, lines))


def ask_of_two_ways(examples: Sequence[Record]) -> str:
    """Where the patients of one data set are told in two ways, and nobody is in both."""
    one, other = (f"{x.path} -> {x.patient} ({x.way.format(x.patient)})" for x in examples)
    return printable(
        f"patients are told in two ways, and nobody is in both: {one}; {other}. If they are the "
        "same people, each would be two. A table or a --name-pattern must tell all of them: "
        f"{TABLES}"
    )


def groups_of(record: Record, classes: Sequence[str]) -> dict[str, Span]:
    """Where the groups of a pattern may be in a path: the patient ends with the first number, and
    begins before it at the first field that is no class, side, visit, date or subset. A folder that
    stands apart before that is a site.
    """
    stem = record.stem
    number = None if record.volume else names.last_number(stem, None)
    free = [part[1:] for part in names.free_parts(stem, classes)]
    free = [x for x in free if not (number and x[0] <= number.start < x[1])]
    groups, in_name = {}, stem.rfind("/") + 1
    if number:
        groups["slice"] = number
    if not free:  # nothing but the number of a slice, or of a patient
        groups.pop("slice", None)
        free = [number[1:] if number else (0, len(stem))]
    with_number = (i for i, (start, end) in enumerate(free) if re.search(r"\d", stem[start:end]))
    last = first = next(with_number, 0)
    while first > 0 and not names.PART.search(stem, free[first - 1][1], free[first][0]):
        first -= 1
    start, end = free[first][0], free[last][1]
    if first > 0 and free[0][1] < in_name:  # a folder for a site, and another one between
        groups["site"] = Span(stem[free[0][0] : free[0][1]], *free[0])
    return groups | {"patient": Span(stem[start:end], start, end)}


def pattern_of(stem: str, groups: dict[str, Span]) -> str:
    """A regular expression for a path, from its beginning to the last of these groups."""
    opens = {span.start: name for name, span in groups.items()}
    closes = {span.end for span in groups.values()}
    cuts = sorted({0, *opens, *closes})
    written = "^"
    for start, end in pairwise(cuts):
        written += f"(?P<{opens[start]}>" if start in opens else ""
        for match in RUN.finditer(stem, start, end):
            text = match[0]
            kind = r"\d" if text.isdecimal() else "[A-Za-z]" if text.isascii() else r"[^\W\d_]"
            # Exactly so many where the same kind of characters goes on beside a group.
            around = stem[: match.start()][-1:] + text[0] + stem[match.end() :][:1]
            is_cut = len(re.findall(RUN, around)) < len(around)
            if text.isalnum():
                written += f"{kind}{{{len(text)}}}" if is_cut else f"{kind}+"
            else:
                written += re.escape(text).replace(r"\-", "-").replace(r"\ ", " ")
        written += ")" if end in closes else ""
    return written
