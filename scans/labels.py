"""Labels of what was found: by words, folders, headers, positions or tables, if all agree."""

from collections import defaultdict

from scans import names
from scans.columns import Meaning, columns_of
from scans.found import Found
from scans.label_tables import LabelTables
from scans.names import label_of_word, weigh
from scans.slices import SIDES, Contradiction, Kind, Problem, Volume
from scans.volumes import side_of_position


def tell_labels(
    found: list[Found], classes: list[str], below_root: bool, problems: list[Problem]
) -> None:
    """The label that pattern, name, folder, header and position agree on; "" if they don't."""
    of_columns = labels_of_columns(found, classes)
    for item in found:
        try:
            witnesses = [(item.label_by, item.label)] if item.label else []
            if item.label_by != "pattern":
                if below_root and item.label_by == "name":  # it has been read
                    of_path = labels_of_folders(item.path.split("/")[:-1], classes, below_root)
                else:
                    of_path = labels_of_path(item.path, classes, below_root)
                of_column = of_columns.get(item, [])
                if below_root or not of_path:  # of a path that was typed the nearest counts
                    of_path += of_column if below_root else of_column[-1:]
                witnesses += [w for w in of_path if w[0] == "folder" or not item.is_written]
            witnesses += labels_of_header(item.volume, classes) if item.volume else []
            item.label = weigh(list(dict.fromkeys(witnesses)))
        except Contradiction as error:
            if item.label_by == "manifest":
                problems.append(Problem(item.source, Kind.REMARK, str(error)))
                continue
            problems.append(Problem(item.source, Kind.CONTRADICTION, str(error)))
            item.label = ""


def labels_of_tables(
    found: list[Found], tables: LabelTables, below_root: bool, problems: list[Problem]
) -> None:
    """--labels: of the row whose identifier is the patient or a part of the path, of its side."""
    for item in found:
        parts = [item.patient, item.scan, *item.stem.split("/")]
        fields = [field[0] for part in parts[2:] for field in names.FIELD.finditer(part)]
        numbers = [run[0] for field in fields for run in names.RUN.finditer(field)]
        try:
            sides = labels_of_path(item.path, list(SIDES), below_root)
            sides += labels_of_header(item.volume, list(SIDES)) if item.volume else []
            label = tables.find([*parts, *fields, *numbers], weigh(sides))
        except Contradiction as error:
            problems.append(Problem(item.source, Kind.CONTRADICTION, str(error)))
            continue
        item.label, item.label_by = (label.label, "table") if label else ("", "")


def correct_labels(
    found: list[Found], tables: LabelTables, prefix: str, problems: list[Problem]
) -> None:
    """A table of scans replaces what anything else tells of those in it, contradictions as well.

    A label of "" leaves a scan without one. Scans that are not in it keep theirs.
    """
    decided = set()
    for item in found:
        if row := tables.correct(item.scan_below(prefix), item.label):
            item.label, item.label_by = row.label, "table" if row.label else ""
            decided.add(item.source)
    problems[:] = [p for p in problems if p.kind != Kind.CONTRADICTION or p.path not in decided]


def labels_of_path(path: str, classes: list[str], below_root: bool) -> list[tuple[str, str]]:
    """A word for a side in the name; a folder called like a class, or with such a word.

    Of a path that a person typed only what is nearest to its end counts.
    """
    *folders, name = path.split("/")
    found = []
    if names.are_sides(classes) and (side := names.side_in(name)):
        found.append(("name", label_of_word(side, classes)))
    if below_root or not found:
        found += labels_of_folders(folders, classes, below_root)
    return found


def labels_of_folders(
    folders: list[str], classes: list[str], below_root: bool
) -> list[tuple[str, str]]:
    """Of each folder that tells a label, or of the nearest. Raises Contradiction."""
    found = []
    for folder in reversed(folders):
        label = names.label_of_folder(folder, classes)
        if not label and names.are_sides(classes) and (side := names.side_in(folder)):
            label = label_of_word(side, classes)
        if label:
            found.append(("folder", label))
            if not below_root:
                break
    if len(set(found)) > 1:
        labels = " and ".join(sorted({label for _, label in found}))
        raise Contradiction(f"its folders say {labels}; --name-pattern or a manifest can tell")
    return found


def labels_of_columns(found: list[Found], classes: list[str]) -> dict[Found, list[tuple[str, str]]]:
    """Labels by columns such as L R L or normal normal abnormal."""
    labels = defaultdict(list)
    unknown = [item for item in found if not item.label]
    for table in columns_of([item.stem for item in unknown], classes):
        for column in table.of(Meaning.LABEL):
            who = "name" if column.level == -1 else "folder"
            for row, word in zip(table.rows, column.values, strict=True):
                if label := label_of_word(word, classes):
                    labels[unknown[row]].append((who, label))
    return labels


def labels_of_header(volume: Volume, classes: list[str]) -> list[tuple[str, str]]:
    if not names.are_sides(classes):
        return []
    found = [("header", side) for side in sorted(volume.sides)]
    found.append(("position", side_of_position(volume)))
    return [(who, label_of_word(side, classes)) for who, side in found if side]
