"""The rules of docs/data.md: which comes first, what disagrees, and what is asked for."""

import re
from pathlib import Path

import numpy as np
import pytest
from image_files import write_images

import dataset
import predict
import train
from scans.identity.records import Context, PatientBy, Record, Told
from scans.identity.rules import Identified, compile_pattern, identify
from scans.labelled import list_labelled
from scans.listing import list_slices
from scans.slices import SIDES, DataError, Kind, Options, Slicing, Volume


def record(path: str, dicom: str = "", side: str = "", **known) -> Record:
    """An image, or a volume whose header tells a PatientID or a side."""
    volume = None
    if not path.endswith(".png"):
        slicing = Slicing((2, 1, 0), (False,) * 3, 8, 8, 8)
        geometry = (8, 8, 8), (1, 1, 1), (0, 0, 0), np.eye(3)
        sides, tags = frozenset([side] if side else []), {"patient": dicom} if dicom else {}
        volume = Volume(path, (path,), *geometry, 1, sides, tags, slicing=slicing)
    return Record(path, path, volume, **known)


def told(paths, classes=SIDES, root="/data", **options) -> Identified:
    records = [record(x) if isinstance(x, str) else x for x in paths]
    pattern = options.get("name_pattern")
    search = compile_pattern(pattern) if pattern else None
    return identify(records, Context(classes, Options(**options), root, pattern=search))


def patients(identified: Identified) -> dict[str, str]:
    return {record.path: record.patient for record in identified.records}


# ---- which rule comes first ----------------------------------------------------------------------


def test_patients_are_told_by_the_first_rule_that_knows():
    """Manifest, pattern, DICOM, AKOA's name or the OAI's digits, a word."""
    path = "p01/9003175_left.nii.gz"
    of_table = (Told("anna", PatientBy.TABLE),)
    found = told([record(path, "K1", patients=of_table)]).records[0]
    assert [x.by for x in found.patients] == [PatientBy.TABLE, PatientBy.DICOM, PatientBy.OAI]
    found = told([record(path, "K1")], name_pattern="(?P<patient>p..)/").records[0]
    assert (found.patient, found.way) == ("p01", PatientBy.PATTERN)
    assert told([record(path, "K1")]).records[0].patient == "K1"
    assert told([record(path)]).records[0].patient == "9003175"
    assert told([record("p01/left.nii.gz")]).records[0].patient == "p01"


@pytest.mark.parametrize(
    "paths, way",
    [
        (["OAI9000001_V_1_LEFT_0.png"], "told by AKOA's names"),
        (["9000001L.png"], "the 7 digits of the OAI"),
        (["left/case012/7.png"], "the part case012 of the path"),
        ([record("left/x.nii.gz", "K1")], "told by DICOM"),
    ],
)
def test_programs_name_the_rule(paths, way):
    assert told(paths).ways == [way]


def test_records_are_never_changed_in_place():
    records = [record(f"{side}/p0{p}_{i}.png") for side in SIDES for p in (1, 2) for i in (1, 2)]
    before = list(records)
    context = Context(SIDES, Options(), "/data")
    assert identify(records, context) == identify(records, context) and records == before


@pytest.mark.parametrize(
    "path, label",
    [
        ("left/p01_7.png", "left"),
        ("L/p01_7.png", "left"),
        ("p01/Left Knee/7.png", "left"),
        ("p01_R_7.png", "right"),
        ("9003175R.png", "right"),
        ("p01_R_I_G_H_T.png", "right"),
        ("p01L_7.png", ""),
        ("left_or_right/p01_7.png", ""),
        ("bright/p01_7.png", ""),
    ],
)
def test_sides_are_whole_parts_of_folders_and_names(path, label):
    assert told([path]).records[0].label == label


def test_other_classes_are_folders_and_no_words_of_names():
    found = told(["Normal/p1.png", "p2_normal.png"], ["normal", "abnormal"]).records
    assert [x.label for x in found] == ["normal", ""]


@pytest.mark.parametrize(
    "path, header, text",
    [
        ("left/p01_RIGHT_7.png", "", "the name says right, its folder left"),
        ("left/x/right/7.png", "", "its folders say left and right"),
        ("p01_LEFT.nii.gz", "right", "the name says left, its header right"),
    ],
)
def test_two_rules_that_disagree_are_a_contradiction_that_names_both(path, header, text):
    found = told([record(path, side=header)])
    assert found.records[0].label == ""
    (problem,) = found.remarks
    assert problem.kind is Kind.CONTRADICTION and text in problem.text


def test_a_manifest_decides_and_the_disagreement_is_said(tmp_path):
    write_images(tmp_path, "a_LEFT_1.png", "b_LEFT_1.png")
    rows = "path,label,patient\na_LEFT_1.png,right,p1\nb_LEFT_1.png,left,p2\n"
    (tmp_path / "m.csv").write_text(rows)
    listing = list_labelled(tmp_path / "m.csv")
    assert {s.patient: s.label for s in listing.slices} == {"p1": "right", "p2": "left"}
    assert any("the manifest says right, its name left" in str(p) for p in listing.problems)


# ---- scans ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path, scan, number",
    [
        ("left/p01_7.png", "left/p01", 7),
        ("left/p01/7.png", "left/p01", 7),
        ("Left/p01/slice_007.png", "left/p01/slice", 7),
        ("7_LEFT_p01.png", "7_LEFT_p", 1),
        ("p01_LEFT_V00.png", "p01_LEFT_V00", 0),
        ("p01_LEFT_3_20060921.png", "p01_LEFT_20060921", 3),
        ("9003175L.png", "9003175L", 0),
        ("left/007.png", "left", 7),
        ("p01_LEFT.nii.gz", "p01_LEFT.nii.gz", 0),
    ],
)
def test_the_last_number_counts_slices(path, scan, number):
    found = told([path]).records[0]
    assert (found.scan, found.number) == (scan, number)


def test_a_scan_of_two_labels_or_patients_is_refused_with_the_flag_that_reads_it(tmp_path):
    write_images(tmp_path, *(f"img_{i}.png" for i in range(6)))
    rows = [f"img_{i}.png,{'ill' if i % 2 else 'well'},p{i}" for i in range(6)]
    (tmp_path / "m.csv").write_text("\n".join(["path,label,patient", *rows]))
    with pytest.raises(DataError, match=r"scan img is of two labels: ill, well.*slices-per-scan 1"):
        list_labelled(tmp_path / "m.csv")
    listing = list_labelled(tmp_path / "m.csv", options=Options(slices_per_scan=1))
    assert len({s.scan for s in listing.slices}) == len({s.patient for s in listing.slices}) == 6


def test_slices_per_scan_that_do_not_divide_are_refused():
    paths = [f"left/{i:03}.png" for i in range(7)]
    with pytest.raises(DataError, match=r"--slices-per-scan 2: 7 left images of left can't be"):
        told(paths, slices_per_scan=2)
    found = told(paths[:6], slices_per_scan=3, patients="scan").records
    assert [(x.scan, x.number) for x in found][2:4] == [("left 0001", 2), ("left 0002", 0)]
    assert {x.patient for x in found} == {"left 0001", "left 0002"}


def test_copies_of_akoa_slices_in_other_folders_are_left_out():
    name = "OAI9000001_V_1_LEFT_0.png"
    found = told([f"a/{name}", f"b/{name}"])
    assert [x.path for x in found.records] == [f"a/{name}"]
    assert "1 image copied from slices already found" in found.remarks[0].text


# ---- patients ------------------------------------------------------------------------------------


def test_one_person_in_several_spellings_is_one():
    found = told(["left/p01_1.png", "left/P1_2.png", "right/patient 001_1.png", "right/p2_1.png"])
    assert set(patients(found).values()) == {"p01", "p2"}
    assert "p01 = P1 = patient 001" in found.remarks[0].text


def test_a_patient_id_that_a_pattern_would_part_stops_the_program():
    records = [
        record(f"{x}_LEFT.nii.gz", dicom) for x, dicom in (("a", "1"), ("b", "1"), ("c", "2"))
    ]
    pattern = "(?P<patient>.)_LEFT"
    with pytest.raises(DataError, match=r"patient 1 \(told by DICOM\) would be 2 patients.*a, b"):
        told(records, name_pattern=pattern)
    everybody = [record(f"{x}_LEFT.nii.gz", "ANON") for x in "abc"]
    assert set(patients(told(everybody, name_pattern=pattern)).values()) == set("abc")


def test_a_number_of_the_oai_that_a_manifest_would_part_stops_the_program():
    of = {side: (Told(f"9000001_{side}", PatientBy.TABLE),) for side in "LR"}
    records = [record(f"9000001{side}.png", patients=of[side]) for side in "LR"]
    with pytest.raises(DataError, match=r"patient 9000001 .* would be 2 patients"):
        told(records)


@pytest.mark.parametrize(
    "form",
    [
        "{p}_{date}_SAG_3D_DESS_{side}_{unique}_image.nii.gz",
        "00m/0.C.{site}/{p}/{date}/{side}_{unique}.nii.gz",
        "train/{side}/{p}_{visit}.nii.gz",
        "{visit}/{p}/{side}.nii.gz",
        "{p}{letter}.png",
    ],
)
def test_the_digits_of_the_oai_are_patients_beside_dates_series_visits_and_sites(form):
    truth = {}
    for i, p in enumerate((9126260, 9073948, 9002430)):
        for j, (visit, date) in enumerate((("00m", 20060921), ("12m", 20070830))):
            for side in ("LEFT", "RIGHT"):
                parts = dict(p=p, visit=visit, date=date, side=side, letter=side[0], site=i % 2)
                truth[form.format(**parts, unique=11309302 + 10 * i + 2 * j)] = f"{p}"
    found = told(list(truth))
    assert patients(found) == truth and not found.question


@pytest.mark.parametrize(
    "form",
    [
        "{study}_{p}_{side}.nii.gz",  # a study's number that looks like a patient of the OAI
        "{p}/{study}_{side}.nii.gz",
        "{side}/{study}/{name}.nii.gz",
        "{name}_{side}.nii.gz",
        "{p}/{side}/{i}.png",
        "{letter}/{side}/sub1/3.png",  # the first of each patient's something
        "{letter}_p1_{side}.png",
        "{side}/ST{study}/IM1.png",
    ],
)
def test_what_the_list_does_not_tell_is_asked_for_and_nobody_is_parted(form):
    paths = []
    for p in range(1, 5):
        for visit in (0, 1):
            for side in SIDES:
                study = 9_100_000 + 37 * (2 * p + visit)
                name = ("anna", "bob", "carl", "dora")[p - 1]
                parts = dict(p=p, study=study, side=side, name=name, letter="stuv"[p - 1])
                paths.append(form.format(**parts, i=visit))
    found = told(list(dict.fromkeys(paths)))
    assert set(patients(found).values()) == {""} and "--name-pattern" in found.question


@pytest.mark.parametrize("form", ["{site}/{p}/{side}/7.png", "{site}/patient_{p}/{side}_7.png"])
def test_sites_that_number_their_patients_from_1_are_never_merged(form):
    """The pattern that is printed, as it is, makes one person of each site and number."""
    sites = ("aarhus", "bergen", "cork")
    paths = [
        form.format(site=site, p=p, side=side)
        for site in sites
        for p in range(1, 21)
        for side in SIDES
    ]
    found = told(paths)
    assert set(patients(found).values()) == {""} and len(found.question.splitlines()) <= 12
    pattern = re.search(r"--name-pattern '(.*)'", found.question)[1]
    found = told(paths, name_pattern=pattern)
    assert not found.question and len(set(patients(found).values())) == 60
    assert all(
        len({x.label for x in found.records if x.patient == y}) == 2
        for y in patients(found).values()
    )


def test_a_word_below_classes_visits_subsets_and_dates_is_one_person():
    paths = [
        "train/left/p1/7.png",
        "test/right/p1/7.png",
        "V00/p1/left/7.png",
        "p1/2006-09-21_L.png",
    ]
    assert set(patients(told(paths)).values()) == {"p1"}


def test_patients_told_in_two_ways_that_nobody_is_in_both_of_are_asked_for():
    dicom = [record(f"{x}/knee_LEFT", x) for x in ("K1", "K2")]
    words = ["left/p01_1.png", "left/p02_1.png"]
    question = told([*dicom, *words]).question
    assert "told by DICOM" in question and "the part p01 of the path" in question
    same = [record(f"{x}/knee_LEFT", x) for x in ("p01", "K2")]
    assert not told([*same, *words]).question


def test_one_scan_without_a_patient_beside_others_is_asked_for():
    pattern = r"^(?:(?P<patient>p\d)_)?(?P<side>[LR])_\d"
    assert (
        "of 1 scan" in told(["p1_L_1.png", "L_1.png", "p2_R_1.png"], name_pattern=pattern).question
    )
    assert not told(["x_L_1.png", "x_L_2.png"]).question  # nothing to part


def test_patients_scan_never_drops_what_is_told():
    paths = ["OAI9000001_V_1_LEFT_0.png", "OAI9000001_V_1_RIGHT_0.png", "x_LEFT.png"]
    found = told(paths, patients="scan")
    assert list(patients(found).values()) == ["OAI9000001", "OAI9000001", "x_LEFT"]


# ---- what is asked -------------------------------------------------------------------------------


def test_question_has_names_counts_a_pattern_and_where_to_read_on(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = [f"mine/{p}_{s}_{i:03}.png" for p in range(12, 16) for s in "LR" for i in range(3)]
    write_images(tmp_path, *paths, "mine/own/x7_LEFT.png")
    for program in (train.main, dataset.main):
        words = ["--data-dir", "mine", "--dry-run"] if program is train.main else ["mine"]
        assert program(words) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) <= 12
        text = "\n".join(lines)
        assert "12 files like 12_L_000.png, 12_L_001.png, 12_L_002.png" in text
        assert "1 file like own/x7_LEFT.png" in text
        assert "--patients scan" in text and "docs/data.md#tables" in text
        assert r"--name-pattern '^(?P<patient>\d+)_[A-Za-z]+_(?P<slice>\d+)'" in text


def test_prediction_goes_on_and_says_it(finished_run, tmp_path, capsys):
    write_images(tmp_path, *(f"{p}_L_{i}.png" for p in (12, 13) for i in range(2)))
    assert predict.main([str(finished_run / "best.pt"), str(tmp_path)]) == 0
    output = capsys.readouterr()
    assert "note: nothing tells the patient of 2 scans" in output.err
    assert output.out.count("slices") == 2


@pytest.mark.parametrize("pattern", ["(", "(?P<who>.)", "(?P<patient>"])
def test_a_pattern_that_can_not_be_used_is_refused(pattern):
    with pytest.raises(
        DataError, match=r"--name-pattern .*: (not a regular|has none of the groups)"
    ):
        told(["a.png"], name_pattern=pattern)


def test_files_in_which_the_pattern_is_not_found_are_counted():
    found = told(["p1_L.png", "x/q2_L.png"], name_pattern=r"^(?P<patient>p\d)")
    assert [x.label for x in found.records] == ["left", ""]
    assert "is not found in 1 of 2 paths, such as x/q2_L.png" in found.remarks[0].text


def test_pattern_reads_a_subfolder_of_its_data_as_the_whole(tmp_path):
    sites = [f"{site}/{p}/{side}/7.png" for site in "ab" for p in (1, 2) for side in SIDES]
    write_images(tmp_path, *sites)
    options = Options("^(?P<patient>[a-z]/[0-9]+)/", pattern_root=Path(tmp_path))
    whole = {s.source: s for s in list_slices(tmp_path, options=options).slices}
    part = list_slices(tmp_path / "a", options=options).slices
    file = list_slices([tmp_path / sites[0]], options=options).slices
    assert len(part) == 4 and [whole[s.source] for s in part] == part
    assert file == [whole[str(tmp_path / sites[0])]]


def test_sites_above_folders_of_classes_are_told_by_the_printed_pattern():
    paths = [
        f"{site}/{side}/p{p}_1.png"
        for site in ("aarhus", "bergen")
        for side in SIDES
        for p in (1, 2)
    ]
    pattern = re.search(r"--name-pattern '(.*)'", told(paths).question)[1]
    assert "(?P<site>" in pattern
    found = told(paths, name_pattern=pattern)
    assert set(patients(found).values()) == {"aarhus/p1", "aarhus/p2", "bergen/p1", "bergen/p2"}


def test_slices_per_scan_beside_a_group_for_slices_is_refused(tmp_path):
    write_images(tmp_path, "left/p1_1.png")
    options = Options(r"(?P<patient>p\d)_(?P<slice>\d)", slices_per_scan=2)
    with pytest.raises(DataError, match="leave one of them out"):
        list_slices(tmp_path, options=options)
