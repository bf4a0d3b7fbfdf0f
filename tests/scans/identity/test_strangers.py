"""Mistakes of people with their own data: no wrong label and no merged person in silence."""

import re
import shlex
import time
from pathlib import Path

import pytest
from image_files import write_images, write_manifest

import dataset
from scans.identity.asking import groups_of, pattern_of
from scans.identity.records import Record
from scans.labelled import list_labelled
from scans.slices import SIDES, DataError, Listing, Options


def write_table(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "t.csv"
    path.write_text(text, encoding=encoding)
    return path


def listed(folder: Path, table: Path, **options) -> Listing:
    return list_labelled(folder, None, Options(labels=[table], **options))


def refused(folder: Path, table: Path, **options) -> str:
    with pytest.raises(DataError) as error:
        listed(folder, table, **options)
    return str(error.value)


def notes(listing: Listing) -> str:
    return "\n".join(map(str, listing.problems))


# ---- sites ---------------------------------------------------------------------------------------

GRADES = "patient,label\n" + "".join(f"{p},{p % 3}\n" for p in range(1, 7))


@pytest.mark.parametrize("sites", [("aarhus", "bergen"), ("1", "2")])
def test_sites_are_asked_for_also_where_they_are_called_like_classes(tmp_path, sites):
    write_images(
        tmp_path / "d", *(f"{x}/p{p}/{k}.png" for x in sites for p in (1, 2) for k in (0, 1))
    )
    text = refused(tmp_path / "d", write_table(tmp_path, GRADES))
    assert f"patient 1 is below {sites[0]}, {sites[1]}: one person, or several?" in text
    assert "--name-pattern" in text


@pytest.mark.parametrize("key", ["K01", "10001", "001"])
def test_a_key_that_two_sites_have_is_asked_for(tmp_path, key):
    write_images(
        tmp_path / "d", *(f"{x}/{key}/{k}.png" for x in ("aarhus", "bergen") for k in "01")
    )
    table = write_table(tmp_path, f"acc,label\n{key},ill\nX,well\n")
    text = refused(tmp_path / "d", table, label_key="acc")
    assert "is below aarhus, bergen: one, or several?" in text
    pattern = r"^(?P<patient>\w+/\w+)/"
    assert len(listed(tmp_path / "d", table, label_key="acc", name_pattern=pattern).slices) == 4


def test_a_patient_of_a_manifest_is_of_one_site(tmp_path):
    names = [f"{x}/{p}/0.png" for x in ("Aarhus", "Bergen") for p in (1, 2)]
    write_images(tmp_path, *names)
    rows = (f"{x},{'LR'[i % 2]},{x.split('/')[1]},{x.split('/')[0]}" for i, x in enumerate(names))
    path = write_manifest(tmp_path, "\n".join(["path,label,patient,site", *rows, ""]))
    with pytest.raises(DataError, match="patient 1 is of Bergen and of Aarhus: one person, or sev"):
        list_labelled(path)


@pytest.mark.parametrize("form", ["P01-{:03}_1.png", "sub-01.{:03}/1.png", "pt01.{:03}/L/1.png"])
def test_site_and_patient_in_one_number_are_asked_for(tmp_path, form):
    write_images(tmp_path / "left", *(form.format(p) for p in (1, 2, 3)))
    with pytest.raises(DataError, match="nothing tells the patient of 3 scans"):
        list_labelled(tmp_path)


@pytest.mark.parametrize("form", ["p01-{}.png", "p01-2006-01-02_{}.png", "p01-00m/{}.png"])
def test_slices_visits_and_dates_behind_a_patient_are_no_second_number(tmp_path, form):
    write_images(tmp_path / "left", *(form.format(k) for k in (1, 2, 3)))
    listing = list_labelled(tmp_path)
    assert {s.patient for s in listing.slices} == {"p01"}
    assert [s.number for s in listing.slices] == [1, 2, 3]


# ---- tables of one side, and columns of other names ----------------------------------------------


def test_a_row_of_one_knee_labels_no_knee_whose_side_nothing_tells(tmp_path):
    write_images(
        tmp_path / "d", *(f"p{p}_knee{k}_{i}.png" for p in (1, 2) for k in (1, 2) for i in "01")
    )
    table = write_table(tmp_path, "patient,side,label\n1,L,ill\n2,R,well\n")
    assert "nothing tells their side" in refused(tmp_path / "d", table)


def write_knees(folder: Path) -> None:
    write_images(folder, *(f"p{p}/{side}/{k}.png" for p in (1, 2, 3) for side in ("Left", "Right")
                           for k in (0, 1)))  # fmt: skip


@pytest.mark.parametrize(
    "header, rows", [("Patient ID;Seite;KL", "{};rechts;{}"), ("Patient,KL_left,KL", "{},3,{}")]
)
def test_rows_that_label_both_sides_are_said_and_so_are_columns_that_are_not_used(
    tmp_path, header, rows
):
    write_knees(tmp_path / "d")
    lines = [header, *(rows.format(p, p % 3) for p in (1, 2, 3)), ""]
    listing = listed(tmp_path / "d", write_table(tmp_path, "\n".join(lines)), label_column="KL")
    text = notes(listing)
    assert re.search("not used: (Seite|KL_left)", text)
    assert "3 rows labelled scans of both sides; if a label is of one side, a column side" in text


def test_two_rows_of_a_patient_are_told_what_would_part_them(tmp_path):
    write_knees(tmp_path / "d")
    rows = "".join(f"{p};{side};{g}\n" for p in (1, 2, 3) for g, side in ((0, "re"), (1, "li")))
    table = write_table(tmp_path, "patient;Seite;label\n" + rows)
    assert "of the same patient: 1; expected one label for each; if a label is of one side" in (
        refused(tmp_path / "d", table)
    )


def test_the_side_of_a_pattern_is_the_side_for_tables(tmp_path):
    write_images(tmp_path / "d", *(f"P{p:03}{side}.png" for p in (1, 2) for side in "LR"))
    table = write_table(tmp_path, "patient,side,grade\n1,L,0\n1,R,1\n2,L,1\n2,R,0\n")
    pattern = r"^(?P<patient>P\d+)(?P<side>[LR])"
    found = listed(tmp_path / "d", table, name_pattern=pattern).slices
    assert {Path(s.source).name: s.label for s in found} == {
        "P001L.png": "0", "P001R.png": "1", "P002L.png": "1", "P002R.png": "0",
    }  # fmt: skip


def test_labels_of_a_manifest_that_are_empty_are_told_by_a_table(tmp_path):
    write_images(tmp_path, "p00_0.png", "p01_0.png")
    manifest = write_manifest(tmp_path, "path,label,patient\np00_0.png,,p00\np01_0.png,left,p01\n")
    options = Options(labels=[write_table(tmp_path, "patient,label\np00,right\np01,left\n")])
    found = {s.patient: s.label for s in list_labelled(manifest, None, options).slices}
    assert found == {"p00": "right", "p01": "left"}


# ---- identifiers ---------------------------------------------------------------------------------


def test_decimals_of_identifiers_are_no_decimals(tmp_path):
    """1.1 and 1.10 are patients 1 and 10 of site 1; 7.0 is what Excel makes of 7."""
    people = ["1.1", "1.10", "1.05", "1.5", "7.0"]
    names = [f"{i}/{k}.png" for i in range(len(people)) for k in (0, 1)]
    write_images(tmp_path, *names)
    rows = (f"{x},{'LR'[int(x[0]) % 2]},{people[int(x[0])]},{people[int(x[0])]}" for x in names)
    path = write_manifest(tmp_path, "\n".join(["path,label,patient,scan", *rows, ""]))
    slices = list_labelled(path).slices
    assert {s.patient for s in slices} == {s.scan for s in slices} == {*people[:4], "7"}


def test_slices_of_scans_that_a_table_tells_keep_their_numbers(tmp_path):
    write_images(tmp_path / "d", *(f"p1_{k}.png" for k in range(12)))
    rows = "".join(f"p1_{k}.png,s,{'ab'[k > 11]}\n" for k in range(12))
    table = write_table(tmp_path, "path,scan,label\n" + rows + "q.png,t,b\n")
    assert [s.number for s in listed(tmp_path / "d", table).slices] == [*range(12)]


# ---- what is asked, and can be typed -------------------------------------------------------------


def test_a_table_of_patients_asks_for_them_where_nothing_tells_them(tmp_path, capsys):
    write_images(
        tmp_path / "d", *(f"{p}_{x}_{k}.png" for p in (1, 2, 3) for x in "LR" for k in (0, 1))
    )
    rows = "".join(f"{p},{x},{(p + (x == 'L')) % 2}\n" for p in (1, 2, 3) for x in "LR")
    table = write_table(tmp_path, "patient,side,grade\n" + rows)
    text = refused(tmp_path / "d", table)
    (typed,) = re.findall(r"--name-pattern (\S+)", text)
    found = listed(tmp_path / "d", table, name_pattern=shlex.split(typed)[0]).slices
    assert len(found) == 12 and {s.patient for s in found} == {"1", "2", "3"}
    sheet = ["--contact-sheet", str(tmp_path / "sheet.png")]
    assert dataset.main([str(tmp_path / "d"), "--labels", str(table), *sheet]) == 2
    assert "--name-pattern" in capsys.readouterr().err


@pytest.mark.parametrize(
    "path, people",
    [
        ("L_anna.npy", {"L_anna.npy": "anna", "R_anna2.npy": None, "R_zoë.npy": "zoë"}),
        (
            "José Núñez/1.png",
            {"José Núñez/1.png": "José Núñez", "José Brontë/1.png": "José Brontë"},
        ),
        ("L_E_F_T_gus.npy", {"R_I_G_H_T_dora.npy": "dora"}),
        ("SAG_DESS1/2006-06-28/left.npy", {"COR_T1_2/2006-06-28/left.npy": None}),
    ],
)
def test_the_printed_pattern_takes_no_part_of_a_name_for_a_person(path, people):
    record = Record(path, path, scan="") if path.endswith(".png") else Record(path, path)
    pattern = pattern_of(record.stem, groups_of(record, SIDES))
    found = {name: re.search(pattern, name) for name in people}
    assert {name: x and x["patient"] for name, x in found.items()} == people


def test_a_pattern_without_a_patient_is_told_so_and_is_not_replaced(tmp_path):
    write_images(tmp_path, *(f"{x}_{p:02}/0.png" for x in ("case", "control") for p in (1, 2)))
    pattern = "^(?P<label>case|control)_"
    with pytest.raises(DataError, match=r"your --name-pattern finds no patient: add a group"):
        list_labelled(tmp_path, ["case", "control"], Options(name_pattern=pattern))


def test_columns_of_windows_letters_are_named_as_they_are_typed(tmp_path):
    write_images(tmp_path / "d", *(f"K{p}/{k}.png" for p in (1, 2, 3) for k in (0, 1)))
    rows = "".join(f"K{p};{p};{p % 2}\n" for p in (1, 2, 3))
    table = write_table(tmp_path, "Prüfnummer;patient;Maß\n" + rows, "cp1252")
    flags = {"label_key": "Prüfnummer", "label_column": "Maß"}
    assert len(listed(tmp_path / "d", table, **flags).slices) == 6


def test_no_key_is_proposed_that_has_two_labels(tmp_path):
    sites = ("Aarhus", "Bergen")
    write_images(tmp_path / "d", *(f"{x}/patient{p}/0.png" for x in sites for p in (1, 2, 3)))
    rows = "".join(f"{x},{p},{(p + (x == 'Bergen')) % 2}\n" for x in sites for p in (1, 2, 3))
    text = refused(tmp_path / "d", write_table(tmp_path, "place,number,label\n" + rows))
    assert "--label-key place" not in text and "--label-key number" not in text


def test_a_manifest_of_files_that_are_not_there_is_refused_at_once(tmp_path):
    """4,000 names of another ending took 46 s: a folder was read again for each."""
    (tmp_path / "d").mkdir()
    for k in range(4000):
        (tmp_path / "d" / f"p{k}_1.png").touch()
    rows = "".join(f"d/p{k}_1.jpg,{'LR'[k % 2]}\n" for k in range(4000))
    path = write_manifest(tmp_path, "path,label\n" + rows)
    started = time.process_time()
    with pytest.raises(DataError, match="4,000 files are not there"):
        list_labelled(path)
    assert time.process_time() - started < 10


# ---- hearts --------------------------------------------------------------------------------------


def test_the_position_in_the_scanner_alone_is_no_side(tmp_path):
    """A heart lies at the left: it is no left knee, unless somebody asks for it."""
    made = pytest.importorskip("volume_files")
    for p in (1, 2, 3):
        made.write_volume(tmp_path / "d" / f"p{p}.nii.gz", x=60.0 * (-1) ** p)
    with pytest.raises(
        DataError, match="3 scans whose side nothing but the position in the scanner"
    ):
        list_labelled(tmp_path / "d")
    found = list_labelled(tmp_path / "d", None, Options(side_by_position=True)).slices
    assert {s.patient: s.label for s in found} == {"p1": "right", "p2": "left", "p3": "right"}
    table = write_table(tmp_path, "patient,side,label\n1,right,a\n2,left,b\n3,right,a\n")
    assert "nothing tells their side" in refused(tmp_path / "d", table)
    found = listed(tmp_path / "d", table, side_by_position=True).slices
    assert {s.patient: s.label for s in found} == {"p1": "a", "p2": "b", "p3": "a"}
