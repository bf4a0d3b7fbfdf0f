"""--labels: by which column rows are found, what else they tell, and what is refused or said."""

import csv
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from image_files import write_images

import train
from scans.labelled import list_labelled
from scans.listing import list_slices
from scans.slices import DataError, Listing, Options


def write_rows(path: Path, header: str, rows: list[str]) -> Path:
    path.write_text("\n".join([header, *rows, ""]), encoding="utf-8")
    return path


def listed(folder: Path, table: Path, classes=None, **options) -> Listing:
    return list_labelled(folder, classes, Options(labels=[table], **options))


def labels_of(listing: Listing) -> dict[str, str]:
    return {Path(s.source).name: s.label for s in listing.slices}


def notes(listing: Listing) -> str:
    return "\n".join(map(str, listing.problems))


# ---- patients, never numbers of slices -----------------------------------------------------------

ILL = {1, 2, 5, 6, 9, 10}
OF_PATIENTS = [f"{p},{'ill' if p in ILL else 'well'}" for p in range(1, 13)]


@pytest.mark.parametrize(
    "form",
    [
        "p{:03}_{}.png",
        "case_{}/slice_{}.png",
        "sub-{:02}/series_3/{}.png",
        "patient 0{}/3D_T2_{}.png",
    ],
)
def test_labels_are_those_of_the_patients_and_not_of_slices_with_their_number(tmp_path, form):
    truth = {form.format(p, k): p for p in range(1, 13) for k in range(1, 7)}
    write_images(tmp_path / "data", *truth)
    table = write_rows(tmp_path / "t.csv", "patient,label", OF_PATIENTS)
    found = listed(tmp_path / "data", table).slices
    assert len(found) == 72
    for s in found:
        patient = truth[Path(s.source).relative_to(tmp_path / "data").as_posix()]
        assert s.label == ("ill" if patient in ILL else "well")


def test_two_contrasts_of_a_patient_have_its_label(tmp_path):
    for p in range(1, 13):
        for contrast in ("T1", "T2"):
            np.save(tmp_path / f"p{p:03}_{contrast}.npy", np.zeros((6, 4, 4), np.uint8))
    table = write_rows(tmp_path / "t.csv", "patient,label", OF_PATIENTS)
    found = {s.scan: s.label for s in listed(tmp_path, table).slices}
    assert len(found) == 24
    assert all((label == "ill") == (int(scan[1:4]) in ILL) for scan, label in found.items())


def test_where_nothing_tells_the_patient_the_line_to_type_is_printed(tmp_path):
    truth = {f"{p:03}/slice_{k}.png": p for p in range(1, 13) for k in range(1, 7)}
    write_images(tmp_path / "data", *truth)
    table = write_rows(tmp_path / "t.csv", "patient,label", OF_PATIENTS)
    with pytest.raises(
        DataError, match=r"(?s)no row of .*--label-key patient  \(parts of 72 of 72"
    ):
        listed(tmp_path / "data", table)
    found = listed(tmp_path / "data", table, label_key="patient").slices
    assert {(s.patient, s.label) for s in found} == {tuple(row.split(",")) for row in OF_PATIENTS}


@pytest.mark.parametrize("cell", ["1", "01", "p1", "P001", "patient 1", "1.0", "1,0", " 1  "])
def test_identifiers_are_compared_as_patients_are_however_excel_saved_them(tmp_path, cell):
    write_images(tmp_path, "p001_1.png", "p002_1.png")
    table = write_rows(tmp_path / "t.csv", "patient;label", [f"{cell};ill", "2;well"])
    assert labels_of(listed(tmp_path, table)) == {"p001_1.png": "ill", "p002_1.png": "well"}


# ---- a hospital's export -------------------------------------------------------------------------


def hospital(folder: Path) -> Path:
    """32 examinations of 24 people; a German table. Paths hold accession numbers alone."""
    rows = []
    for number in range(32):
        accession, person = 32011 + 7 * number, 1 + number % 24
        write_images(folder / "export", *(f"{accession}/{s}/IM000{s}.png" for s in (1, 2)))
        rows.append(f"{accession};{person};{'1,0' if person % 3 else '0,0'};ja")
    return write_rows(folder / "cases.csv", "accession;patient;tear;geprüft", rows)


def test_accessions_are_joined_by_label_key_and_the_table_tells_the_patients(tmp_path):
    table = hospital(tmp_path)
    with pytest.raises(DataError, match=r"--label-key accession  \(parts of 64 of 64 paths"):
        listed(tmp_path / "export", table, label_column="tear")
    found = listed(tmp_path / "export", table, label_column="tear", label_key="accession")
    assert found.classes == ["0", "1"] and "told by a table" in found.patients
    truth = {row["accession"]: row for row in csv.DictReader(table.open(), delimiter=";")}
    for s in found.slices:
        row = truth[Path(s.source).parts[-3]]
        assert (s.patient, s.label) == (row["patient"], row["tear"][0])
    assert len({s.patient for s in found.slices}) == 24 and len(found.slices) == 64


def test_a_pattern_that_would_part_one_of_the_tables_people_is_refused(tmp_path):
    table = hospital(tmp_path)
    options = dict(label_column="tear", label_key="accession", name_pattern=r"^(?P<patient>\d+)/")
    with pytest.raises(DataError, match=r"patient 1 \(told by a table\) would be 2 patients"):
        listed(tmp_path / "export", table, **options)


def test_names_of_images_are_parts_also_where_they_hold_a_number(tmp_path):
    write_images(tmp_path / "d", "train/000c1434.png", "train/0012ab.png", "train/x-00aff1.png")
    table = write_rows(
        tmp_path / "t.csv", "image_id,label", ["000c1434,a", "0012ab,b", "x-00aff1,a"]
    )
    with pytest.raises(DataError, match=r"--label-key image_id  \(parts of 3 of 3"):
        listed(tmp_path / "d", table, patients="scan")
    found = labels_of(listed(tmp_path / "d", table, patients="scan", label_key="image_id"))
    assert found == {"000c1434.png": "a", "0012ab.png": "b", "x-00aff1.png": "a"}


def test_two_parts_of_a_path_in_the_key_column_are_refused_by_name(tmp_path):
    write_images(tmp_path, "12/13/a.png")
    table = write_rows(tmp_path / "t.csv", "exam,label", ["12,x", "13,y"])
    with pytest.raises(DataError, match=r"12 and 13 are both in the column exam of .*t\.csv"):
        listed(tmp_path, table, label_key="exam")


def test_slices_with_the_number_of_an_accession_are_not_of_it(tmp_path):
    write_images(tmp_path, "a_1_LEFT_2004.png", "b_2_LEFT_2004.png")
    table = write_rows(tmp_path / "t.csv", "exam,label", ["1,x", "2,y"])
    with pytest.raises(DataError, match="none with a label"):
        listed(tmp_path, table, label_key="exam")


# ---- sides ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sides", ["L R", "left RIGHT", "1: Left,2: Right"])
def test_letters_for_sides_find_the_row_of_the_knee(tmp_path, sides):
    words = sides.split(",") if "," in sides else sides.split()
    write_images(tmp_path, *(f"P{p:03}_{side}.png" for p in range(1, 61) for side in "LR"))
    rows = [f"{p};{words[n]};{(p + n) % 5}" for p in range(1, 61) for n in (0, 1)]
    found = labels_of(listed(tmp_path, write_rows(tmp_path / "t.csv", "patient;side;grade", rows)))
    assert len(found) == 120
    assert all(int(x) == (int(name[1:4]) + (name[5] == "R")) % 5 for name, x in found.items())


def test_the_oais_table_labels_its_images(tmp_path):
    write_images(tmp_path, *(f"90000{p:02}{side}.png" for p in range(1, 31) for side in "LR"))
    rows = [
        f"90000{p:02}|{n}: {x}|{(p + n) % 3}: Text"
        for p in range(1, 31)
        for n, x in ((1, "Right"), (2, "Left"))
    ]
    table = write_rows(tmp_path / "kxr.txt", "ID|SIDE|V00XRKL", rows)
    found = labels_of(listed(tmp_path, table, label_column="V00XRKL"))
    assert len(found) == 60
    assert all(int(x) == (int(name[5:7]) + 1 + (name[7] == "L")) % 3 for name, x in found.items())


def test_the_reason_is_said_where_nothing_tells_the_side(tmp_path):
    write_images(tmp_path, *(f"P{p}_{i}.png" for p in range(1, 6) for i in range(2)), "P7_L_0.png")
    rows = [f"{p},{side},{grade}" for p in (1, 2, 3, 4, 7) for side, grade in (("L", 0), ("R", 1))]
    table = write_rows(tmp_path / "t.csv", "patient,side,grade", [*rows, "5,L,0", "5,R,0", "9,L,1"])
    text = notes(listed(tmp_path, table))
    assert "8 files of 4 patients left out, as their rows are one a side" in text
    assert "2 of 13 rows without a scan" in text  # of 7's other knee, and 9


# ---- other keys ----------------------------------------------------------------------------------


def test_bids_with_participants(tmp_path):
    rows = []
    for p in range(1, 9):
        folder = tmp_path / f"sub-{p:02}" / "ses-01" / "anat"
        folder.mkdir(parents=True)
        np.save(folder / f"sub-{p:02}_ses-01_T1w.npy", np.zeros((6, 4, 4), np.uint8))
        rows.append(f"sub-{p:02}\t{50 + p}\t{'case' if p % 2 else 'control'}")
    table = write_rows(tmp_path / "participants.tsv", "participant_id\tage\tgroup", rows)
    found = {s.patient: s.label for s in listed(tmp_path, table, label_column="group").slices}
    assert found == {f"sub-{p:02}": "case" if p % 2 else "control" for p in range(1, 9)}


def test_two_columns_without_a_header_are_the_files_name_and_the_label(tmp_path):
    for i in range(4):
        np.save(tmp_path / f"{i:04}.npy", np.zeros((6, 4, 4), np.uint8))
    for first in ("0000", "0"):  # Excel loses zeros
        table = write_rows(tmp_path / "t.csv", f"{first},0", ["0001,1", "0002,1.0", "0003,0"])
        found = {s.scan: s.label for s in listed(tmp_path, table, patients="scan").slices}
        assert found == {"0000.npy": "0", "0001.npy": "1", "0002.npy": "1", "0003.npy": "0"}


@pytest.mark.parametrize(
    "cell", ["a/p1_1.png", "a/p1_1", "p1_1.png", "data/a/p1_1.png", "a\\p1_1.png"]
)
def test_paths_may_begin_elsewhere_and_lack_the_ending(tmp_path, cell):
    write_images(tmp_path / "data", "a/p1_1.png", "b/p2_1.png")
    table = write_rows(tmp_path / "t.csv", "file,label", [f"{cell},x", "b/p2_1.png,y"])
    assert labels_of(listed(tmp_path / "data", table)) == {"p1_1.png": "x", "p2_1.png": "y"}


def test_a_path_of_several_files_is_refused_with_its_line(tmp_path):
    write_images(tmp_path, "p1/1.png", "p2/1.png")
    table = write_rows(tmp_path / "t.csv", "file,label", ["p1/1.png,x", "1.png,y"])
    with pytest.raises(
        DataError, match=r"t\.csv, line 3: is the path of 2 files: .*p1/1\.png, .*p2"
    ):
        listed(tmp_path, table)


def test_a_scan_whose_slices_would_get_two_labels_is_refused_by_name(tmp_path):
    write_images(tmp_path, *(f"p{p}_{i}.png" for p in range(4) for i in range(3)))
    rows = [
        f"p{p}_{i}.png,{'x' if (p, i) == (2, 1) else 'xy'[p % 2 == 0]}"
        for p in range(4)
        for i in range(3)
    ]
    with pytest.raises(DataError, match="scan p2 is of two labels: x, y"):
        listed(tmp_path, write_rows(tmp_path / "t.csv", "path,label", rows))


def test_rows_and_files_without_each_other_are_counted(tmp_path):
    write_images(tmp_path, *(f"p{p}_1.png" for p in range(6)))
    rows = ["p0,x", "p1,y", "p2,", "p3,NA", "p8,x", "p9,y"]
    text = notes(listed(tmp_path, write_rows(tmp_path / "t.csv", "patient,label", rows)))
    assert "2 of 6 rows without a scan" in text and "2 of 6 rows without a label" in text
    assert "2 files of 2 patients left out, as no row of the tables is theirs" in text
    assert "2 files of 2 patients left out, as their row has no label" in text


@pytest.mark.parametrize(
    "rows, message",
    [
        (["1,x", "01,y"], r"line 2 says x, .*line 3 says y of the same patient: 1"),
        (["1,x", "2,x"], "expected two or more different labels, got x"),
        (["1,x"], "expected two or more different labels"),
    ],
)
def test_tables_that_contradict_themselves_are_refused(tmp_path, rows, message):
    write_images(tmp_path, "p1_1.png", "p2_1.png")
    with pytest.raises(DataError, match=message):
        listed(tmp_path, write_rows(tmp_path / "t.csv", "patient,label", rows))


@pytest.mark.parametrize(
    "header, options, message",
    [
        (
            "patient,lable",
            {},
            "no column is called label.*; did you mean lable",
        ),
        ("patient,label", {"label_column": "grade"}, "no column is called grade"),
        ("patient,label", {"label_key": "exam"}, "--label-key exam: no such column"),
        ("colour,label", {}, "expected a column called path, scan or patient, or --label-key"),
        ("patient,subject,label", {}, "columns patient, subject may all tell the patient"),
    ],
)
def test_columns_that_are_missing_are_named(tmp_path, header, options, message):
    write_images(tmp_path, "p1_1.png", "p2_1.png")
    table = write_rows(tmp_path / "t.csv", header, ["1,x,x"[: 2 * header.count(",") + 1]])
    with pytest.raises(DataError, match=message):
        listed(tmp_path, table, ["x", "y"], **options)


@pytest.mark.parametrize("flag", ["label_key", "label_column"])
def test_columns_of_no_table_are_refused(tmp_path, flag):
    write_images(tmp_path, "left/p1_1.png")
    with pytest.raises(DataError, match="exam: a column of which table"):
        list_labelled(tmp_path, options=Options(**{flag: "exam"}))


def test_two_tables_are_united_and_must_not_disagree(tmp_path):
    write_images(tmp_path / "data", "p1_1.png", "p2_1.png")
    first = write_rows(tmp_path / "a.csv", "patient,label", ["1,x"])
    second = write_rows(tmp_path / "b.csv", "patient,label", ["2,y"])
    third = write_rows(tmp_path / "c.csv", "file,label", ["p1_1,y"])
    found = list_labelled(tmp_path / "data", options=Options(labels=[first, second]))
    assert labels_of(found) == {"p1_1.png": "x", "p2_1.png": "y"}
    with pytest.raises(DataError, match=r"a\.csv, line 2, .*c\.csv, line 2 say x and y of it"):
        list_labelled(tmp_path / "data", options=Options(labels=[first, second, third]))


# ---- tables of scans -----------------------------------------------------------------------------


def test_a_table_of_scans_corrects_takes_away_and_leaves_others_alone(tmp_path):
    write_images(tmp_path / "d", *(f"{x}/p{p}_1.png" for x in ("left", "right") for p in (1, 2)))
    rows = ["left/p1,right", "right/p2,", "left/p9,left"]
    table = write_rows(tmp_path / "t.csv", "scan,label", rows)
    listing = list_slices(tmp_path / "d", options=Options(labels=[table]))
    found = {s.scan: s.label for s in listing.slices}
    assert found == {"left/p1": "right", "left/p2": "left", "right/p1": "right", "right/p2": ""}
    text = notes(listing)
    changed = "left/p1 is right, right/p2 is without a label"
    assert f"changes the label of 2 scans: {changed}" in text
    assert "1 of 3 rows without a scan" in text


def test_a_table_of_scans_settles_contradictions_and_may_have_other_classes(tmp_path):
    write_images(tmp_path / "d", "left/p1_RIGHT_1.png", "left/p2_1.png", "right/p2_1.png")
    table = write_rows(tmp_path / "t.csv", "scan,label", ["p1_RIGHT,left", "left/p1_RIGHT,left"])
    assert len(list_labelled(tmp_path / "d", options=Options(labels=[table])).slices) == 3
    table = write_rows(tmp_path / "t.csv", "scan,label", ["left/p1_RIGHT,torn", "left/p2,whole"])
    found = list_slices(tmp_path / "d", options=Options(labels=[table]))
    assert found.classes == ["torn", "whole"]


def test_programs_take_label_key(tmp_path, capsys):
    table = hospital(tmp_path)
    words = ["--data-dir", tmp_path / "export", "--labels", table, "--label-column", "tear"]
    assert train.main([*map(str, words), *TINY, "--dry-run", "--label-key", "accession"]) == 0
    assert "64 scans, 24 patients (told by a table)" in capsys.readouterr().out
