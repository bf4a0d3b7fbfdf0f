"""Who the patient is: 500 ways of naming files, of which none that is accepted parts a patient."""

import random
from collections import Counter, defaultdict
from typing import NamedTuple

import numpy as np
import pytest

from scans.found import Found
from scans.identities import identify
from scans.listing import Lister
from scans.slices import SIDES, Kind, Options, Slicing, Volume

LETTERS = ["AB", "CX", "DK", "EF", "GH", "IJ", "KL", "MN"]
PEOPLE = "anna bob carl dora emil fay gus hans".split()
PATIENTS = {
    "oai": lambda draw, n: [f"{x}" for x in draw.sample(range(9_000_100, 9_999_878), n)],
    "p01": lambda draw, n: [f"p{i:02}" for i in range(1, n + 1)],
    "P1": lambda draw, n: [f"P{i}" for i in range(1, n + 1)],
    "sub-001": lambda draw, n: [f"sub-{i:03}" for i in range(1, n + 1)],
    "patient_1": lambda draw, n: [f"patient_{i}" for i in range(1, n + 1)],
    "1": lambda draw, n: [f"{i}" for i in range(1, n + 1)],
    "001": lambda draw, n: [f"{i:03}" for i in range(1, n + 1)],
    "five digits": lambda draw, n: [f"{x}" for x in draw.sample(range(10, 99_999), n)],
    "six digits": lambda draw, n: [f"{x}" for x in draw.sample(range(100_000, 999_999), n)],
    "anna": lambda draw, n: draw.sample(PEOPLE, n),
    "AB12": lambda draw, n: [f"{letters}{draw.randint(10, 98)}" for letters in LETTERS[:n]],
    "A01": lambda draw, n: [draw.choice("AB") + f"{i:02}" for i in range(1, n + 1)],
    "2-001": lambda draw, n: [f"{draw.choice('12')}-{i:03}" for i in range(1, n + 1)],
    "case01": lambda draw, n: [f"case{i:02}" for i in range(1, n + 1)],
}  # fmt: skip
VISITS = [
    [""], ["V00", "V01"], ["00m", "12m"], ["visit1", "visit2"], ["visit_1", "visit_2"], ["1", "2"],
    ["baseline", "followup"], ["01", "02", "03"], ["a", "b"], ["ses-1", "ses-2"], ["2004", "2006"],
]  # fmt: skip
DATES = ["", "{y}{m:02}{d:02}", "{y}-{m:02}-{d:02}", "{d:02}{m:02}{y}", "{s:02}{m:02}{d:02}"]
SERIES = ["", "SAG_3D_DESS", "two", "unique 8", "unique 7", "hash", "small"]
SPELLINGS = ["LEFT RIGHT", "left right", "L R", "l r", "L_E_F_T R_I_G_H_T", ""]
NUMBERS = ["{}", "{:03}", "slice{}", "slice_{:03}", "z{}", "s{}"]


class Row(NamedTuple):
    path: str
    patient: int
    side: str


class Scheme(NamedTuple):
    rows: list[Row]
    are_images: bool


def draw_scheme(seed: int) -> Scheme:
    """Files of 4 to 8 patients; names in one order and style, as a random number has it."""
    draw = random.Random(seed)
    are_images = draw.random() < 0.5
    patients = draw.choice(list(PATIENTS.values()))(draw, draw.choice([4, 6, 8]))
    visits, date, series = draw.choice(VISITS), draw.choice(DATES), draw.choice(SERIES)
    spelling = draw.choice(SPELLINGS[: -1 if are_images else None]).split() or ["", ""]
    number = draw.choice(NUMBERS)
    order = ["patient", "visit", "date", "series", "side", *(["number"] if are_images else [])]
    draw.shuffle(order)
    separators = [draw.choice(["_", "-", ".", " ", "", "_", "_"]) for _ in order]
    if draw.random() < 0.6:
        separators = [draw.choice("_-_ ")] * len(order)
    folders = {draw.choice([0, 1, 1, 2]) for _ in range(3)} if draw.random() < 0.6 else set()
    both_knees = draw.random() < 0.8
    rows = []
    for p, patient in enumerate(patients):
        for visit in visits:
            y, m, d = draw.choice([2004, 2005, 2006]), draw.randint(1, 12), draw.randint(1, 28)
            for side in (0, 1) if both_knees else (p % 2,):
                for sequence in ("SAG_DESS", "COR_T1") if series == "two" else ("",):
                    parts = {
                        "patient": patient,
                        "visit": visit,
                        "date": date.format(y=y, m=m, d=d, s=y % 100),
                        "series": sequence or draw_series(draw, series),
                        "side": spelling[side],
                    }
                    for i in range(draw.choice([6, 8]) if are_images else 1):
                        parts["number"] = number.format(i)
                        path = join(order, parts, separators, folders)
                        path += ".png" if are_images else ".nii.gz"
                        rows.append(Row(path, p, SIDES[side]))
    return Scheme(rows, are_images)


def draw_series(draw: random.Random, series: str) -> str:
    return {
        "unique 8": f"{draw.randint(10**7, 2 * 10**7)}",
        "unique 7": f"{draw.randint(9 * 10**6, 10**7 - 1)}",
        "hash": f"{draw.randrange(16**5):05x}",
        "small": f"{draw.randint(1, 12)}",
    }.get(series, series)


def join(order: list[str], parts: dict, separators: list[str], folders: set[int]) -> str:
    """The parts in order; the number of the slice is in the name and not in a folder.

    Two numbers with nothing between them are one number to everybody, but for dates.
    """
    there = [name for name in order if parts.get(name)]
    path = ""
    for i, name in enumerate(there):
        path += parts[name]
        if i == len(there) - 1:
            break
        following, separator = there[i + 1], separators[i]
        if separator == "" and path[-1].isdigit() and parts[following][0].isdigit():
            is_long = "date" in (name, following) and len(parts["date"]) > 6
            separator = "" if is_long else "_"
        in_folder = i in folders and ("number" not in there or "number" in there[i + 1 :])
        path += "/" if in_folder else separator
    return path


def volume(side: str) -> Volume:
    """One whose header tells its side."""
    slicing = Slicing((2, 1, 0), (False,) * 3, 8, 8, 8)
    geometry = (8, 8, 8), (1, 1, 1), (0, 0, 0), np.eye(3)
    return Volume("v", ("v",), *geometry, 1, 8, frozenset([side]), {}, slicing=slicing)


def outcome(seed: int) -> str:
    """What becomes of a scheme: right, asked, merged (two people are taken for one), parted, ..."""
    rows, are_images = draw_scheme(seed)
    truth = {row.path: row for row in rows}
    if len(truth) < len(rows):
        return "two files of one name"
    found = [Found(row.path, row.path, None if are_images else volume(row.side)) for row in rows]
    problems = []
    known = identify(found, list(SIDES), Options(), problems, root="/data")
    kinds = {problem.kind for problem in problems}
    if Kind.CONTRADICTION in kinds or any(x.label not in ("", truth[x.path].side) for x in found):
        return "wrong label"
    found = [item for item in found if item.label]
    if known.unknown or not found:
        return "asked"
    names_of, people_of = defaultdict(set), defaultdict(set)
    for item in found:
        names_of[truth[item.path].patient].add(item.patient)
        people_of[item.patient].add(truth[item.path].patient)
    if max(map(len, names_of.values())) > 1:
        return "parted"
    return "merged" if max(map(len, people_of.values())) > 1 else "right"


def test_no_scheme_that_is_accepted_parts_a_patient():
    counts = Counter(map(outcome, range(500)))
    print(counts)  # with -s: how many are accepted without help
    assert not counts["parted"] and not counts["wrong label"]
    assert counts["right"] > 0.35 * 500 and counts["merged"] < 0.02 * 500


# ---- the leaks that there were -------------------------------------------------------------------


def tell(paths: list[str], *more, **named) -> tuple[dict[str, str], list]:
    """Patients by path, and problems; volumes tell their side by their name or not at all."""
    found = [
        Found(path, path, None if path.endswith(".png") else volume_without_side(path))
        for path in paths
    ]
    lister = Lister(list(SIDES), Options(*more, **named))
    lister.identify(found, "/data", None)
    return {item.path: item.patient for item in found}, lister.problems


def volume_without_side(path: str) -> Volume:
    slicing = Slicing((2, 1, 0), (False,) * 3, 8, 8, 8)
    geometry = (8, 8, 8), (1, 1, 1), (0, 0, 0), np.eye(3)
    return Volume(path, (path,), *geometry, 1, 8, frozenset(), {}, slicing=slicing)


OAI = [9126260, 9073948, 9002430, 9557231]


@pytest.mark.parametrize(
    "form",
    [
        "{p}_{date}_SAG_3D_DESS_{side}_{unique}_image.nii.gz",
        "{unique}_{p}_{date}_SAG_3D_DESS_{side}.nii.gz",
        "{date}-{side}-{p}-{unique}.nii.gz",
        "{side}/{unique}/{p} {date}.nii.gz",
        "{v}/{p}/{side}/{unique}.nii.gz",
        "train/{side}_{p}_{v}_{unique}.nii.gz",
    ],
)
@pytest.mark.parametrize("first", ["oai", "other"])
def test_date_series_visit_and_subset_are_no_part_of_the_patient(form, first):
    """An export of the OAI gave 32 patients for 8, of whom four were trained on and tested."""
    paths, unique = {}, random.Random(0)
    for p in OAI if first == "oai" else [712, 9331, 48, 5502]:
        for v, date in (("00m", 20060921), ("12m", 20070830)):
            for side in ("LEFT", "RIGHT"):
                parts = {"p": p, "date": date, "side": side, "v": v}
                paths[form.format(**parts, unique=unique.randint(10**7, 2 * 10**7))] = f"{p}"
    found, problems = tell(list(paths))
    assert found == paths and not problems


@pytest.mark.parametrize("folder", ["00m", "V00", "visit 2", "baseline", "train", "val", "test"])
def test_a_visit_or_subset_above_slices_is_no_patient(folder):
    paths = [f"{folder}/{side}/{i}.png" for side in SIDES for i in range(80)]
    found, problems = tell(paths)
    assert set(found.values()) == {""}
    assert "--slices-per-scan 40 --patients scan" in problems[-1].text


def test_a_visit_between_patient_and_side_is_no_patient():
    paths = [f"00m/{p}/{side}/{i}.png" for p in OAI for side in SIDES for i in range(3)]
    found, problems = tell(paths)
    assert not problems and all(patient in path for path, patient in found.items())
    assert set(found.values()) == {f"{p}" for p in OAI}


@pytest.mark.parametrize(
    "paths, patients",
    [
        (["left/p1_1.png", "right/P01_1.png", "left/p2_1.png"], {"p1", "p2"}),  # one person
        ([f"{side}/{name}_1.png" for side in SIDES for name in PEOPLE], set(PEOPLE)),
        ([f"case_{x}_{side}.png" for side in "LR" for x in ("a1", "b2", "c9")], {"a1", "b2", "c9"}),
    ],
)
def test_names_of_people_are_told_as_they_are_written(paths, patients):
    found, problems = tell(paths)
    assert set(found.values()) == patients and not problems


@pytest.mark.parametrize(
    "paths",
    [
        [f"{side}/{p}_{i}.png" for side in SIDES for p in (1, 2, 3) for i in (1, 2, 3)],
        [f"{i:03}_{side}_{p}.png" for side in SIDES for p in (1, 2, 3) for i in range(5)],
        [f"knee{i:03}_{side}.nii.gz" for i, side in enumerate("LEFT RIGHT LEFT RIGHT".split())],
        [f"{p}{v}_{side}.nii.gz" for side in SIDES for p in (912, 913, 955) for v in "012"],
        [f"A_{p}_LEFT.nii.gz" for p in (1, 2)] + [f"B_{p}_RIGHT.nii.gz" for p in (1, 2)],
    ],
    ids=["patient or slice", "slice or patient", "each its own", "visit in it", "site or patient"],
)
def test_where_several_readings_are_possible_flags_are_printed_that_work(paths):
    found, problems = tell(paths)
    assert set(found.values()) == {""} and problems[-1].kind is Kind.NAMELESS
    lines = [line.split("  ")[1] for line in problems[-1].text.splitlines()[1:]]
    assert lines
    for line in lines:
        if line.startswith("--name-pattern"):
            found, problems = tell(paths, line.split("'")[1])
        else:
            assert line == "--patients scan"
            found, problems = tell(paths, patients="scan")
        assert all(found.values()), line
        assert all(problem.kind is not Kind.NAMELESS for problem in problems)


def test_patients_scan_never_drops_what_is_told():
    paths = ["OAI9000001_V_1_LEFT_0.png", "OAI9000001_V_1_RIGHT_0.png", "x1_LEFT.png"]
    found, _ = tell(paths, patients="scan")
    assert found == dict(zip(paths, ["OAI9000001", "OAI9000001", "x1_LEFT"], strict=True))


# ---- what somebody found who looked for leaks ----------------------------------------------------


@pytest.mark.parametrize(
    "form, views",
    [
        ("{view}/{side}/{p}.png", ["old", "new"]),  # the patient's number looks like a slice's
        ("{view}/{side}/{p}.png", ["first", "second", "third", "fourth"]),
        ("{side}/{p}_{view}.png", ["AP", "LAT"]),
        ("{p}{view}_{side}.png", ["A", "B"]),
        ("{letter}_p{view}_{side}.png", ["1", "2"]),  # p for page
        ("{letter}/{side}/sub{view}/3.png", ["1", "2"]),
        ("{p}_{study}_{side}.png", ["", "."]),
        ("{side}/ST{study}/IM{view}.png", ["1", "2"]),
        ("{view}/{side}_{p}_20060921_{time}.png", ["x", "y"]),
        ("{letter}x{view}_{side}.nii.gz", ["a", "b"]),
    ],
)
def test_views_pages_and_studies_are_never_taken_for_people(form, views):
    draw, truth = random.Random(0), {}
    for p in range(1, 9):
        for number, view in enumerate(views):
            study = draw.randint(9 * 10**6, 10**7 - 1)
            for side in SIDES:
                parts = {"p": p, "view": view, "side": side, "letter": "stuvwxyz"[p - 1]}
                path = form.format(**parts, study=study, time=f"1{p % 10}{30 + number}00")
                truth[path] = p
    found, problems = tell(list(truth))
    names_of = defaultdict(set)
    for path, patient in found.items():
        names_of[truth[path]].add(patient)
    asked = any(problem.kind is Kind.NAMELESS for problem in problems)
    assert asked or max(map(len, names_of.values())) == 1, found


@pytest.mark.parametrize(
    "paths",
    [
        # Two words that occur again with many people each; who they are, nothing tells.
        [f"{x}_{u}_{side}.nii.gz" for x, u in (("guys", 71), ("iop", 35)) for side in SIDES],
        # A site, or a patient whose number tells the site, too.
        [f"{40 + p % 3}-{p}_{side}.nii.gz" for p in range(101, 107) for side in SIDES],
    ],
    ids=["two words", "site or patient"],
)  # fmt: skip
def test_what_may_be_a_site_or_a_group_is_no_patient(paths):
    found, problems = tell(paths)
    assert set(found.values()) == {""} and problems[-1].kind is Kind.NAMELESS


def test_what_follows_from_the_label_is_no_patient():
    classes = ["none", "mild", "severe"]
    paths = [
        f"{x}/{x[::-1]}.{100 * k + 37 * i}.png" for k, x in enumerate(classes) for i in range(3)
    ]
    found = [Found(path, path) for path in paths]
    lister = Lister(classes, Options())
    lister.identify(found, "/data", None)
    assert {x.label for x in found} == set(classes) and {x.patient for x in found} == {""}


def test_the_folder_of_a_class_is_no_patient_though_it_is_a_number():
    paths = [f"train/{grade}/{9_003_175 + 11 * i}L.png" for i, grade in enumerate("0123401234")]
    found = [Found(path, path) for path in paths]
    Lister(list("01234"), Options()).identify(found, "/data", None)
    assert {x.patient for x in found} == {f"{9_003_175 + 11 * i}" for i in range(10)}


def test_one_person_in_two_spellings_or_known_in_two_ways_is_one():
    paths = ["OAI9000011_V00_left_1.png", "OAI9000011-V01-left-1.png"]
    found, problems = tell(paths)
    assert set(found.values()) == {"OAI9000011"}
    assert "1 patient spelled in several ways" in problems[0].text


def test_patients_that_are_told_and_others_that_are_inferred_are_asked_for():
    told = [f"OAI900001{i}_V00_left_1.png" for i in range(3)]
    named = [f"{side}/p{i}.png" for i in range(3) for side in SIDES]
    _, problems = tell(told + named)
    assert problems[-1].kind is Kind.NAMELESS and "nobody is in both" in problems[-1].text
    found, problems = tell(told + named, patients="named")
    assert not problems and len(set(found.values())) == 6


def test_a_patient_by_pattern_leaves_the_other_number_for_the_slice():
    paths = [f"{side}/{p}_{i}.png" for side in SIDES for p in (1, 2, 3) for i in (1, 2, 3)]
    found = [Found(path, path) for path in paths]
    lister = Lister(list(SIDES), Options(r"(?P<patient>\d)_"))
    lister.identify(found, "/data", None)
    assert {x.scan for x in found} == {f"{side}/{p}" for side in SIDES for p in (1, 2, 3)}
    assert not lister.problems


@pytest.mark.parametrize(
    "paths",
    [
        [f"{x}{side}/{p}_1.png" for p in (5302, 77, 9) for side in SIDES for x in ("", "NY ")],
        [f"{p}/left/s01/{i}_{d}.png" for p in "ab" for i in (1, 2) for d in (20090308, 20100101)],
        [f"{side}/{name}.va.png" for side in SIDES for name in ("ann", "ANN", "bob")],
        [f"OAS1_{p}_m-{k}_{i}_{s}.png" for p in "123" for k in "12" for i in "56" for s in "LR"],
    ],
)  # fmt: skip
def test_what_is_printed_is_what_comes_of_it(paths):
    _, problems = tell(paths)
    for line in [x for x in problems[-1:] if x.kind is Kind.NAMELESS]:
        for printed in line.text.splitlines()[1:]:
            flags, counts = printed.strip().split("  ", 1)
            options = {"patients": "scan"} if "--patients" in flags else {}
            if "--slices-per-scan" in flags:
                options["slices_per_scan"] = int(flags.split()[1])
            pattern = flags.split("'")[1] if "'" in flags else None
            found = [Found(path, path) for path in paths]
            Lister(list(SIDES), Options(pattern, **options)).identify(found, "/data", None)
            patients = {x.patient for x in found if x.label}
            assert counts.strip().startswith(f"{len(patients)} patients"), printed
            assert len({(x.scan, x.patient) for x in found}) == len({x.scan for x in found})
