"""Who is who: an ordered list of rules, each of which adds what it tells of a record.

    identified = identify(records, Context(classes, options, root), tables)
    identified.records, identified.ways, identified.question

The rules, and which of them comes first, are in docs/data.md. Two rules that tell two labels are a
contradiction: the record has no label then, and says so. A rule that would part one person of
another rule stops the program.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from common.files import abridged
from common.program import counted
from scans.identity import names
from scans.identity.asking import ask, ask_of_two_ways
from scans.identity.labels import Labels
from scans.identity.names import label_of_folder, label_of_word
from scans.identity.records import Context, LabelBy, PatientBy, Record, Told
from scans.identity.scans import tell_scans
from scans.searching import Search
from scans.slices import SIDES, DataError, Kind, Problem
from scans.volumes import side_of_position

GROUPS = ("patient", "site", "scan", "label", "side", "slice")  # of --name-pattern


class Identified(NamedTuple):
    records: list[Record]  # with label, patient, scan and number, as far as something tells them
    remarks: list[Problem]
    ways: list[str]  # how patients are known
    question: str  # what to ask where nothing tells the patients; "" where it is known


def identify(
    records: Sequence[Record], context: Context, tables: Labels | None = None
) -> Identified:
    """Apply all rules. Raises DataError where a rule parts one person of another."""
    found = [apply(RULES, record, context) for record in records]
    is_by_table = bool(tables and tables.of_files) or any(is_of_manifest(x) for x in found)
    words = () if is_by_table else context.classes  # folders called so are no sites
    found = without_doubtful_digits(found, words)
    found, shared = without_shared_words(found, words)
    if tables and tables.of_files:
        found = tables.tell(found, [sides_of(record, context) for record in found])
    found, by_position = not_by_position([settle_label(record) for record in found], context)
    found, copies = without_copies(found)
    found = tell_scans(found, context)
    if tables and tables.of_scans:
        found = tables.correct(found, context.prefix)
    if context.options.patients == "scan":
        found = [x if x.patient else x.with_patient(x.scan, PatientBy.EACH) for x in found]
    found, spellings = in_one_spelling(found)
    check_nobody_is_parted(found)
    remarks = [*by_position, *copies, *spellings, *not_matched(found)]
    remarks += [record.problem for record in found if record.problem]
    labelled = [record for record in found if record.label]
    if not labelled and tables and any(table.by == "patient" for table in tables.of_files):
        question = question_of(found, shared, context)  # whose row can't be found without it
    else:
        question = question_of(labelled, shared, context) if context.root else ""
    return Identified(found, remarks, ways_of(labelled or found), question)


def compile_pattern(text: str) -> Search:
    """A --name-pattern. Raises DataError if it is none, or has none of its groups."""
    search = Search("name_pattern", names.nfc(text))
    if not set(GROUPS) - {"site"} & set(search.pattern.groupindex):
        groups = ", ".join(f"(?P<{name}>...)" for name in GROUPS if name != "site")
        raise DataError(f"--name-pattern {text}: has none of the groups {groups} (lower case)")
    return search


def apply(rules: Sequence[Callable], record: Record, context: Context) -> Record:
    for rule in rules:
        record = rule(record, context)
    return record


# ---- rules about patients, scans and labels: what files tell one by one ------------------------


def by_pattern(record: Record, context: Context) -> Record:
    """--name-pattern: label, patient, scan and number. Where it is not found, there is no label."""
    if context.pattern is None:
        return record
    match = context.pattern(record.path)
    if not match:
        return record._replace(labels=(Told("", LabelBy.PATTERN),))
    groups = {name: text.strip() for name, text in match.groupdict().items() if text}
    word = groups.get("label") or groups.get("side")
    if "label" not in groups and label_of_word(word or "", SIDES):  # of other classes it is none
        word = word if names.are_sides(context.classes) else ""
    if word and not record.labels:
        label = label_of_word(word, context.classes)
        record = record.with_label(label or "", LabelBy.PATTERN)
        if label is None:
            of = ", ".join(context.classes)
            text = f"--name-pattern finds the label {word!r}, not one of {of}"
            record = record._replace(problem=Problem(record.source, Kind.CONTRADICTION, text))
    if "patient" in groups:
        span = names.Span(groups["patient"], *match.span("patient"))
        patient = "/".join(groups[name] for name in ("site", "patient") if name in groups)
        record = record.with_patient(patient, PatientBy.PATTERN, span)
    number = groups.get("slice", "")
    if record.volume is None and number.isdecimal():
        rest = names.without(record.stem, names.Span(number, *match.span("slice")))
        scan = record.scan or groups.get("scan") or names.normalised_scan(rest, record.label)
        return record._replace(scan=scan, number=int(number))
    return record._replace(scan=record.scan or groups.get("scan", ""))


def not_matched(records: list[Record]) -> list[Problem]:
    left_out = [x for x in records if x.labels == (Told("", LabelBy.PATTERN),) and not x.problem]
    if not left_out:
        return []
    count = f"{len(left_out):,} of {counted(len(records), 'path')}"
    text = f"--name-pattern is not found in {count}, such as {left_out[0].path}: left out"
    return [Problem("", Kind.REMARK, text)]


def by_dicom(record: Record, context: Context) -> Record:
    """The PatientID of DICOM files."""
    patient = record.volume.tags.get("patient") if record.volume else None
    return record.with_patient(patient, PatientBy.DICOM) if patient else record


def by_own_name(record: Record, context: Context) -> Record:
    """AKOA's names, and those that --write-slices writes: they tell all."""
    name = record.path.rpartition("/")[2]
    identity = names.own_name(name, record.volume is not None, context.classes)
    if identity is None:
        return record
    is_written = name.startswith("patient=")
    labels, patients = record.labels, record.patients
    if identity.patient:
        by = PatientBy.WRITTEN if is_written else PatientBy.AKOA
        patients = (*patients, Told(identity.patient, by))
    if identity.label:
        labels = (*labels, Told(identity.label, LabelBy.NAME))
    return record._replace(
        labels=labels,
        patients=patients,
        is_written=is_written,
        scan=record.scan or identity.scan + record.series,
        number=identity.number if record.number is None else record.number,
    )


def by_oai_digits(record: Record, context: Context) -> Record:
    """The seven digits of the OAI, where they begin a folder or a name."""
    if any(told.by == PatientBy.AKOA for told in record.patients):
        return record
    span = names.oai_patient(record.stem)
    return record.with_patient(span.text, PatientBy.OAI, span) if span else record


def by_word(record: Record, context: Context) -> Record:
    """A part such as p01 or sub-01 that begins a folder or a name."""
    if record.patients or record.is_written:
        return record
    span = names.patient_part(record.stem)
    return record.with_patient(span.text, PatientBy.WORD, span) if span else record


def by_path(record: Record, context: Context) -> Record:
    """Folders that are called like a class; of sides also words in names."""
    for value, by in labels_of_path(record, context.classes, context.root):
        record = record.with_label(value, by)
    return record


def labels_of_path(record: Record, classes: Sequence[str], root: str) -> list[Told]:
    """Of a path that was typed only what is nearest to its end counts."""
    *folders, name = record.path.split("/")
    told = []
    is_read = record.is_written or Told(record.label, LabelBy.NAME) in record.labels
    if not is_read and names.are_sides(classes) and (side := names.side_in(name)):
        told.append(Told(label_of_word(side, classes), LabelBy.NAME))
    of_folders = [label_of_folder(folder, classes) for folder in reversed(folders)]
    of_folders = [Told(label, LabelBy.FOLDER) for label in of_folders if label]
    if root:
        return told + of_folders
    return told or ([] if is_read else of_folders[:1])


def by_header(record: Record, context: Context) -> Record:
    """The laterality of DICOM, and then the position in the scanner."""
    if record.volume is None or not names.are_sides(context.classes):
        return record
    told = [(LabelBy.HEADER, side) for side in sorted(record.volume.sides)]
    told.append((LabelBy.POSITION, side_of_position(record.volume)))
    for by, side in told:
        if side:
            record = record.with_label(label_of_word(side, context.classes), by)
    return record


RULES = (by_pattern, by_dicom, by_own_name, by_oai_digits, by_word, by_path, by_header)
OF_SIDES = (by_pattern, by_own_name, by_path, by_header)


def sides_of(record: Record, context: Context) -> frozenset[str]:
    """The sides that all rules tell, whatever the classes are."""
    bare = Record(record.source, record.path, record.volume)
    told = apply(OF_SIDES, bare, replace(context, classes=SIDES)).labels
    if not context.options.side_by_position:
        told = [x for x in told if x.by != LabelBy.POSITION]
    by_person = [value for value, by in told if by == LabelBy.PATTERN]
    return frozenset(by_person or (value for value, _ in told)) - {""}


# ---- what rules tell -> one label ----------------------------------------------------------------


def settle_label(record: Record) -> Record:
    """The label that the first rule tells, unless another one of the data itself disagrees.

    What a person has written into a table or a manifest is taken, and the disagreement is said.
    """
    if len(record.labels) < 2:
        return record
    if not record.label:
        return record._replace(labels=record.labels[:1])
    first, *others = record.labels
    if first.by == LabelBy.PATTERN:  # it reads the path in its own way
        others = [told for told in others if told.by in (LabelBy.HEADER, LabelBy.POSITION)]
    others = list(dict.fromkeys(told for told in others if told.value != first.value))
    if not others:
        return record._replace(labels=(first,))
    if first.by == others[0].by == LabelBy.FOLDER:
        labels = " and ".join(sorted({first.value, *(told.value for told in others)}))
        text = f"its folders say {labels}; --name-pattern or a manifest can tell"
    else:
        says = ", ".join(f"its {told.by} {told.value}" for told in others)
        text = f"the {first.by} says {first.value}, {says}"
    by_person = first.by in (LabelBy.MANIFEST, LabelBy.TABLE)
    kind = Kind.REMARK if by_person else Kind.CONTRADICTION
    label = first if by_person else Told("", first.by)
    return record._replace(labels=(label,), problem=Problem(record.source, kind, text))


def not_by_position(records: list[Record], context: Context) -> tuple[list[Record], list[Problem]]:
    """Without labels that the position in the scanner alone tells, as of a heart, unless they are
    asked for.
    """
    found = [x for x in records if x.label and x.labels[0].by == LabelBy.POSITION]
    if not found or context.options.side_by_position:
        return records, []
    left_out = {x.source for x in found}
    text = (
        f"{counted(len(found), 'scan')} whose side nothing but the position in the scanner tells: "
        f"no label (--side-by-position takes it): {abridged([x.path for x in found], 3)}"
    )
    records = [x._replace(labels=()) if x.source in left_out else x for x in records]
    return records, [Problem("", Kind.REMARK, text)]


def without_copies(records: list[Record]) -> tuple[list[Record], list[Problem]]:
    """Leave out images whose own name tells a slice that is there already, in another folder."""
    unique: dict[object, Record] = {}
    copies = []
    for place, record in enumerate(records):
        is_own = record.volume is None and record.way in (PatientBy.AKOA, PatientBy.WRITTEN)
        key = (record.label, record.path.rpartition("/")[2]) if is_own else place
        if unique.setdefault(key, record) is not record:
            copies.append(record.source)
    text = f"{counted(len(copies), 'image')} copied from slices already found, left out: "
    remarks = [Problem("", Kind.REMARK, text + abridged(copies))] if copies else []
    return list(unique.values()), remarks


# ---- patients ------------------------------------------------------------------------------------


def is_of_manifest(record: Record) -> bool:
    return bool(record.labels) and record.labels[0].by == LabelBy.MANIFEST


def without_doubtful_digits(records: list[Record], words: Sequence[str]) -> list[Record]:
    """Take back that seven digits are an OAI patient if the paths also hold something else that
    might be one, as in anna/9123456_LEFT and bob/9234567_LEFT: no two people share it.
    """
    others: dict[str, set[str]] = defaultdict(set)
    for record in records:
        if record.way == PatientBy.OAI:
            span, stem = record.patient_span, record.stem
            rest = names.others_in(stem[: span.start] + stem[span.end :], words, names.OAI_NUMBER)
            others[record.patient].add(rest)
    if len(others) < 2 or set.intersection(*others.values()):
        return records
    return [
        record._replace(patients=(), patient_span=None) if record.way == PatientBy.OAI else record
        for record in records
    ]


def without_shared_words(
    records: list[Record], words: Sequence[str]
) -> tuple[list[Record], dict[str, list[str]]]:
    """Take back what the word rule told, where a part such as patient_3 stands below two folders
    that might be two sites. Folders for classes, visits and subsets are none.

    Also returns the parts, each with its folders.
    """
    folders: dict[str, set[str]] = defaultdict(set)
    for record in records:
        if record.way == PatientBy.WORD:
            above = names.others_in(record.path[: record.patient_span.start], words)
            folders[names.patient_key(record.patient)].add(above)
    shared = {patient: sorted(of) for patient, of in folders.items() if len(of) > 1}
    if not shared:
        return records, {}
    return [
        x._replace(patients=(), patient_span=None) if x.way == PatientBy.WORD else x
        for x in records
    ], shared


def in_one_spelling(records: list[Record]) -> tuple[list[Record], list[Problem]]:
    """One spelling, the first, for p01, P01, patient 1 and 1, however they are known.

    If they are one person after all, splitting that person would leak between subsets.
    """
    spellings: dict[str, dict[str, None]] = defaultdict(dict)
    key_of = {x.patient: names.patient_key(x.patient) for x in records if x.way != PatientBy.EACH}
    for patient, key in key_of.items():
        spellings[key][patient] = None
    several = [list(of_one) for of_one in spellings.values() if len(of_one) > 1]
    if not several:
        return records, []
    first = {patient: of_one[0] for of_one in several for patient in of_one}
    unified = []
    for record in records:
        if record.way != PatientBy.EACH and record.patient in first:
            told = Told(first[record.patient], record.way)
            record = record._replace(patients=(told, *record.patients[1:]))
        unified.append(record)
    named = [" = ".join(of_one) for of_one in several]
    text = f"{counted(len(several), 'patient')} spelled in several ways, and taken for one each: "
    return unified, [Problem("", Kind.REMARK, text + abridged(named))]


def check_nobody_is_parted(records: list[Record]) -> None:
    """Raise DataError where the rule that decides makes several people of one that DICOM or the
    OAI's number tells, or where --name-pattern makes several of one patient of a table.

    A PatientID that all files share, such as ANONYMOUS, tells nobody apart.
    """
    parts: dict[Told, dict[str, Told]] = defaultdict(dict)  # a person -> those that are made of it
    for record in records:
        for told in record.patients:
            first = record.patients[0]
            if told.by in (PatientBy.DICOM, PatientBy.AKOA, PatientBy.OAI):
                parts[told].setdefault(names.patient_key(first.value), first)
            elif first.by == PatientBy.TABLE and told.by == PatientBy.PATTERN:
                parts[first].setdefault(names.patient_key(told.value), told)
    several_ids = sum(told.by == PatientBy.DICOM for told in parts) > 1
    for told, people in parts.items():
        if len(people) > 1 and (several_ids or told.by != PatientBy.DICOM):
            made, ways = zip(*people.values(), strict=True)
            raise DataError(
                f"patient {told.value} ({told.by}) would be {len(people)} patients, as "
                f"{' and '.join(sorted(set(ways)))}: {abridged(sorted(made))}; let only one of "
                "them tell the patient"
            )


def ways_of(records: list[Record]) -> list[str]:
    """How patients are known; where in several ways, with the number of scans each."""
    examples = {x.way: x.patient for x in reversed(records) if x.way}
    counts = Counter(way for way, _ in {(x.way, x.scan) for x in records if x.way})
    ways = {way: way.format(examples[way]) for way, _ in counts.most_common()}
    if len(ways) < 2:
        return list(ways.values())
    return [f"{text} ({counted(counts[way], 'scan')})" for way, text in ways.items()]


def question_of(labelled: list[Record], shared: dict[str, list[str]], context: Context) -> str:
    """What a person must tell before patients can be kept apart; "" for nothing.

    Of one scan there is nothing to part.
    """
    unknown = [record for record in labelled if not record.patient]
    if unknown and len({record.scan for record in labelled}) > 1:
        return ask(unknown, shared, context)
    ways: dict[str, dict[str, Record]] = defaultdict(dict)
    for record in labelled:
        if record.patient and record.way not in (PatientBy.EACH, PatientBy.WRITTEN):
            way = PatientBy.OAI if record.way == PatientBy.AKOA else record.way  # the same numbers
            ways[way].setdefault(names.patient_key(record.patient), record)
    for way, people in ways.items():
        others = {key: x for of, found in ways.items() if of != way for key, x in found.items()}
        if others and people.keys().isdisjoint(others):
            return ask_of_two_ways([next(iter(people.values())), next(iter(others.values()))])
    return ""
