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
SPELLED_OUT = re.compile("l_e_f_t|r_i_g_h_t", re.IGNORECASE)
# Letters, digits, or what stands between them.
RUN = re.compile(rf"{SPELLED_OUT.pattern}|[^\W\d_]+|\d+|[\W_]+", re.IGNORECASE)


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
    groups = groups_of(first, context.classes)
    held = ", ".join(f"{name} {span.text}" for name, span in sorted(groups.items()))
    if context.pattern:
        lines.append("In these your --name-pattern finds no patient: add a group (?P<patient>...).")
    else:
        lines.append(f"This pattern reads the first of them as {held}; correct it, and type it:")
        is_ascii = all(record.path.isascii() for record in unknown)
        lines.append(f"  --name-pattern {typed(pattern_of(first.stem, groups, is_ascii))}")
    lines += [
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
    numbers = [i for i, (start, end) in enumerate(free) if re.search(r"\d", stem[start:end])]
    last = first = numbers[0] if numbers else 0
    while (
        not numbers and last + 1 < len(free) and "/" not in stem[free[last][1] : free[last + 1][0]]
    ):
        last += 1  # a whole name: José Núñez
    while first > 0 and not names.PART.search(stem, free[first - 1][1], free[first][0]):
        first -= 1
    start, end = free[first][0], free[last][1]
    if first > 0 and free[0][1] < in_name:  # a folder for a site, and another one between
        groups["site"] = Span(stem[free[0][0] : free[0][1]], *free[0])
    return groups | {"patient": Span(stem[start:end], start, end)}


def pattern_of(stem: str, groups: dict[str, Span], is_ascii: bool = False) -> str:
    """A regular expression for a path, from its beginning to the last of these groups.

    is_ascii: whether all names are, so that letters can be written in a plain way.
    """
    letters = "[A-Za-z]" if is_ascii else r"[^\W\d_]"
    opens = {span.start: name for name, span in groups.items()}
    closes = {span.end for span in groups.values()}
    cuts = sorted({0, *opens, *closes})
    written = "^"
    for start, end in pairwise(cuts):
        written += f"(?P<{opens[start]}>" if start in opens else ""
        for match in RUN.finditer(stem, start, end):
            text = match[0]
            if SPELLED_OUT.fullmatch(text):
                written += "(?:L_E_F_T|R_I_G_H_T)" if text.isupper() else "(?:l_e_f_t|r_i_g_h_t)"
                continue
            # Exactly so many where the same kind of characters goes on beside a group.
            around = stem[: match.start()][-1:] + text[0] + stem[match.end() :][:1]
            is_cut = len(re.findall(RUN, around)) < len(around)
            if text.isalnum():
                kind = r"\d" if text.isdecimal() else letters
                written += f"{kind}{{{len(text)}}}" if is_cut else f"{kind}+"
            else:
                written += plainly(text)
        written += ")" if end in closes else ""
    if groups["patient"].end == cuts[-1]:  # and no further: anna is not the beginning of anna2
        after = RUN.match(stem, cuts[-1])
        separator = plainly(after[0]) if after and not after[0].isalnum() else ""
        written += separator or ("" if after else r"(?![^\W_])")
    return written


def plainly(text: str) -> str:
    """In a regular expression, without the backslashes that it does not need."""
    return re.escape(text).replace(r"\-", "-").replace(r"\ ", " ")
