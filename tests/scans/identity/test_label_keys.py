"""--labels from end to end: no leak, no label of somebody else, whatever Unicode and Excel did.

Which column finds a row is in test_label_tables.py.
"""

import re
import shlex
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from image_files import write_images

import dataset
import train
from scans.labelled import list_labelled
from scans.listing import list_slices
from scans.slices import DataError, Listing, Options, by_scan
from scans.split_tables import read_split


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def table(path: Path, *lines: str) -> Path:
    path.write_text("\n".join([*lines, ""]), encoding="utf-8", errors="surrogateescape")
    return path


def listed(folder: Path, *tables: Path, classes=None, **options) -> Listing:
    return list_labelled(folder, classes, Options(labels=tables, **options))


def labels_of(listing: Listing) -> dict[str, str]:
    return {scan: slices[0].label for scan, slices in by_scan(listing.slices).items()}


def notes(listing: Listing) -> str:
    return "\n".join(map(str, listing.problems))


# ---- patients ------------------------------------------------------------------------------------

GRADES = {p: "ill" if p in (1, 2, 5, 6, 9, 10) else "well" for p in range(1, 13)}
ROWS = ["patient,label", *(f"{p},{label}" for p, label in GRADES.items())]


@pytest.mark.parametrize(
    "form, is_refused",
    [
        ("{:03}/slice_{}.png", False),
        ("{:03}/T2/3D_{}.png", False),
        ("{:03}/series_3/IM000{}.png", True),
        ("{:03}/visit_2/slice{}.png", True),
        ("{:03}/2.5mm/{}.png", True),
        ("{:03}_knee/5_{}.png", True),
    ],
)
def test_label_key_takes_no_other_number_of_a_path_for_the_patient(tmp_path, form, is_refused):
    """Where two numbers may be the patient, the pattern that the message asks for tells it."""
    write_images(tmp_path / "d", *(form.format(p, k) for p in GRADES for k in range(1, 7)))
    path, options = table(tmp_path / "t.csv", *ROWS), dict(label_key="patient")
    if is_refused:
        with pytest.raises(DataError, match=r"both in the column patient .* --name-pattern with a"):
            listed(tmp_path / "d", path, **options)
        options = dict(name_pattern=r"^(?P<patient>\d+)")
    slices = listed(tmp_path / "d", path, **options).slices
    assert len(slices) == 72
    for s in slices:
        p = int(Path(s.source).relative_to(tmp_path / "d").parts[0][:3])
        assert (int(s.patient), s.label) == (p, GRADES[p])


def hospital(folder: Path) -> Path:
    """32 examinations, of two series each, of 24 people. Returns the table."""
    rows = []
    for number in range(32):
        accession, person = 32011 + 7 * number, 1 + number % 24
        write_images(folder / "export", *(f"{accession}/{s}/IM000{s}.png" for s in (1, 2)))
        rows.append(f"{accession};{person};{'1,0' if person % 3 else '0,0'}")
    return table(folder / "cases.csv", "accession;patient;tear", *rows)


def test_nobody_of_a_hospitals_table_is_in_two_subsets(tmp_path):
    key = dict(label_column="tear", label_key="accession")
    listing = listed(tmp_path / "export", hospital(tmp_path), **key)
    loaded = dataset.load_dataset(listing, (4, 4), tmp_path / "cache")
    for seed in range(5):
        subsets = dataset.split(loaded, seed=seed)
        people = Counter(p for x in subsets.values() for p in {s.patient for s in x.samples})
        assert len(people) == 24 and set(people.values()) == {1}


def test_the_printed_line_works_as_it_is_typed(tmp_path, capsys):
    words = ["--labels", f"{hospital(tmp_path)}", "--label-column", "tear"]
    train_words = ["--data-dir", f"{tmp_path}/export", *words, "--dry-run", *TINY]
    assert train.main(train_words) == 2
    line = re.search(r"^  (--label-key \w+)", capsys.readouterr().err, re.M)[1]
    assert line == "--label-key accession"
    assert train.main([*train_words, *shlex.split(line)]) == 0
    assert "64 scans, 24 patients (told by a table)" in capsys.readouterr().out


def test_bids_volumes_of_two_sessions_have_the_group_of_their_participant(tmp_path):
    made = pytest.importorskip("volume_files")
    rows = []
    for p in range(1, 13):
        for name in (f"sub-{p:02}_ses-{ses:02}_T1w.nii.gz" for ses in (1, 2)):
            made.write_volume(tmp_path / f"sub-{p:02}" / name[7:13] / "anat" / name)
        rows.append(f"sub-{p:02}\t{50 + p}\t{'n/a' if p == 12 else ('case', 'control')[p % 2]}")
    path = table(tmp_path / "participants.tsv", "participant_id\tage\tgroup", *rows)
    listing = listed(tmp_path, path, label_column="group")
    assert len(labels_of(listing)) == 22 and len({s.patient for s in listing.slices}) == 11
    assert {(s.patient, s.label) for s in listing.slices} == {
        (f"sub-{p:02}", ("case", "control")[p % 2]) for p in range(1, 12)
    }
    assert "2 files of 1 patient left out, as their row has no label: sub-12/ses-01" in notes(
        listing
    )


def test_rows_of_one_side_or_of_both_sides(tmp_path):
    write_images(tmp_path / "d", *(f"P{p}_{side}.png" for p in (1, 2, 3) for side in "LR"))
    path = table(tmp_path / "t.csv", "patient,side,grade", "1,L,0", "2,both,1", "3,1: Right,2")
    listing = listed(tmp_path / "d", path)
    assert labels_of(listing) == {"P1_L": "0", "P2_L": "1", "P2_R": "1", "P3_R": "2"}
    assert "2 files of 2 patients left out, as their row is of the other side" in notes(listing)


# ---- Unicode -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [str, nfd])
def test_folders_called_like_classes_and_keys_of_tables_are_found_in_either_form(tmp_path, form):
    """The files lie in one form, and are asked for in the other."""
    other = nfd if form is str else str
    names = [f"{side}/{name}_{k}.png" for side in ("größer", "kleiner") for name in ("Zoë", "Jörg")
             for k in (1, 2)]  # fmt: skip
    write_images(tmp_path / "d", *map(form, names))
    classes = [other("größer"), "kleiner"]
    for pattern in (r"(?P<patient>[^/]+)_\d", r"(?P<patient>Zoë|Jörg)_"):
        listing = list_labelled(tmp_path / "d", classes, Options(pattern))
        assert listing.classes == ["größer", "kleiner"]
        assert {(s.patient, s.label) for s in listing.slices} == {
            (name, label) for name in ("Zoë", "Jörg") for label in ("größer", "kleiner")
        }
    told = {"Zoë": "krank", "Jörg": "gesünd"}
    keys = {"patient": told, "file": {x: told[re.search("Zoë|Jörg", x)[0]] for x in names}}
    for column, labels in keys.items():
        lines = [f"{column},label", *(other(f"{key},{x}") for key, x in labels.items())]
        key = "patient" if column == "patient" else None
        path = table(tmp_path / f"{column}.csv", *lines)
        found = listed(tmp_path / "d", path, label_key=key, name_pattern=r"(?P<patient>[^/]+)_\d")
        assert len(found.slices) == 8 and found.classes == ["gesünd", "krank"]
        assert all(s.label == told[s.patient] for s in found.slices)


def test_scans_of_corrected_tables_and_split_files_are_found_in_either_form(tmp_path):
    folders = {side: nfd(f"{side}/Müller") for side in ("left", "right")}
    write_images(
        tmp_path / "d", *(f"{x}/p{p}_1.png" for x in folders.values() for p in range(1, 4))
    )
    scans = by_scan(list_labelled(tmp_path / "d").slices)
    for form in (str, nfd):
        path = table(tmp_path / "t.csv", "scan,label", form("left/Müller/p1,right"))
        found = labels_of(list_slices(tmp_path / "d", None, Options(labels=[path])))
        assert found == {x: s[0].label for x, s in scans.items()} | {"left/Müller/p1": "right"}
        subsets = {scan: ("train", "val", "test")[int(scan[-1]) - 1] for scan in scans}
        lines = ["subset,scan", *(form(f"{of},{scan}") for scan, of in subsets.items())]
        assert read_split(table(tmp_path / "split.csv", *lines), scans) == subsets


# ---- tables of scans -----------------------------------------------------------------------------


def test_scans_of_any_name_are_corrected_to_the_letter_and_keep_patient_and_number(tmp_path):
    names = ["a b", "c, d", 'e "f"', "=1+2", "<b>&amp;", "P01", "p01", "\udcff", "'=x"]
    write_images(tmp_path / "d", *(f"{('left', 'right')[i % 2]}/{name}/{k}.png"
                                   for i, name in enumerate(names) for k in range(3)))  # fmt: skip
    before = list_slices(tmp_path / "d")
    other = {"left": "right", "right": "left"}
    changed = {x: other[of] for x, of in labels_of(before).items() if not x.endswith("P01")}
    cells = ('"{}"'.format(scan.replace('"', '""')) + f",{x}" for scan, x in changed.items())
    path = table(tmp_path / "t.csv", "scan,label", *cells, "p01,left")
    after = list_slices(tmp_path / "d", None, Options(labels=[path]))
    assert len(changed) == 8 and labels_of(after) == labels_of(before) | changed
    same = [{(s.source, s.scan, s.patient, s.number) for s in x.slices} for x in (before, after)]
    assert same[0] == same[1]
    assert f"{path}: 1 of 9 rows without a scan" in notes(after)


def test_a_row_without_a_label_leaves_its_scan_out_of_training(tmp_path):
    write_images(tmp_path / "d", *(f"{x}/p{p}_1.png" for x in ("left", "right") for p in (1, 2)))
    path = table(tmp_path / "t.csv", "scan,label", "left/p1,NA", "right/p2,left")
    listing = listed(tmp_path / "d", path)
    assert labels_of(listing) == {"left/p2": "left", "right/p1": "right", "right/p2": "left"}
    text = notes(listing)
    assert "1 of 2 rows without a label" in text
    assert re.search("changes the label of 2 scans: .*left/p1 is without a label", text)
    assert "right/p2 is left" in text


def test_names_of_two_folders_hold_the_folder(tmp_path):
    for site in "ab":
        write_images(tmp_path / site, "left/p1_1.png", "right/p2_1.png")
    path = table(tmp_path / "t.csv", "scan,label", f"{tmp_path}/b/left/p1,right")
    found = labels_of(list_slices([tmp_path / "a", tmp_path / "b"], None, Options(labels=[path])))
    assert found[f"{tmp_path}/b/left/p1"] == "right" and found[f"{tmp_path}/a/left/p1"] == "left"


def test_a_table_of_labels_is_corrected_by_one_of_scans(tmp_path):
    write_images(tmp_path / "d", *(f"p{p}_{k}.png" for p in (1, 2, 3) for k in (1, 2)))
    grades = table(tmp_path / "g.csv", "patient,grade", "1,0", "2,1", "3,2")
    corrected = table(tmp_path / "c.csv", "scan,label", "p1,2")
    assert labels_of(listed(tmp_path / "d", grades, corrected)) == {"p1": "2", "p2": "1", "p3": "2"}


def test_two_labels_of_a_scan_are_refused(tmp_path):
    write_images(tmp_path / "d", "left/p1_1.png", "right/p2_1.png")
    path = table(tmp_path / "t.csv", "scan,label", "left/p1,left", "left/p1,right")
    with pytest.raises(DataError, match=r"line 2 says left, .*line 3 says right of the same scan"):
        listed(tmp_path / "d", path)


# ---- rows that seem to be of a file, and are not -------------------------------------------------


def test_the_number_of_a_series_is_no_patient_and_is_not_proposed_as_one(tmp_path):
    """Each of the 32 accessions has the folders 1 and 2; patients 1 and 2 are in the table."""
    path = hospital(tmp_path)
    with pytest.raises(DataError) as error:
        listed(tmp_path / "export", path, label_column="tear")
    assert re.findall(r"--label-key \w+", str(error.value)) == ["--label-key accession"]
    with pytest.raises(DataError):
        listed(tmp_path / "export", path, label_column="tear", label_key="patient")


def test_a_path_of_another_folder_labels_no_file_of_a_subfolder(tmp_path):
    """b/p3_1.png is no path of data/a/p3_1.png, and a/p1_1.png has one row, not two."""
    write_images(tmp_path / "data" / "a", "p1_1.png", "p2_1.png", "p3_1.png")
    rows = ["a/p1_1.png,x", "b/p1_1.png,y", "a/p2_1.png,y", "b/p3_1.png,y"]
    listing = listed(tmp_path / "data" / "a", table(tmp_path / "t.csv", "path,label", *rows))
    assert labels_of(listing) == {"p1": "x", "p2": "y"}


def test_a_name_that_is_a_file_of_each_of_two_folders_is_refused(tmp_path):
    write_images(tmp_path, "a/p1_1.png", "b/p1_1.png")
    path = table(tmp_path / "t.csv", "path,label", "p1_1.png,x", "q.png,y")
    with pytest.raises(DataError, match=r"line 2: is the path of 2 files"):
        list_slices([tmp_path / "a", tmp_path / "b"], None, Options(labels=[path]))


def test_names_with_two_spaces_are_found(tmp_path):
    write_images(tmp_path / "d", "a  b/p1  x_1.png", "a  b/p2_1.png")
    path = table(tmp_path / "t.csv", "path,label", "a  b/p1  x_1.png,x", "a  b/p2_1,y")
    assert labels_of(listed(tmp_path / "d", path)) == {"a  b/p1  x": "x", "a  b/p2": "y"}


def test_a_file_name_of_several_patients_is_no_key(tmp_path):
    """A table of patients 1 and 2 without a header, where 1.npy is everybody's first series."""
    for p in range(1, 5):
        (tmp_path / f"p{p:03}").mkdir()
        for k in (1, 2):
            np.save(tmp_path / f"p{p:03}" / f"{k}.npy", np.zeros((6, 4, 4), np.uint8))
    path = table(tmp_path / "t.csv", "1,ill", "2,well", "3,ill", "4,well")
    with pytest.raises(DataError):
        listed(tmp_path, path)


def test_one_number_at_two_sites_is_never_one_person_in_silence(tmp_path):
    sites = [f"{site}/{p}/knee_1.png" for site in ("aarhus", "bergen") for p in range(1, 5)]
    write_images(tmp_path / "d", *sites)
    path = table(tmp_path / "t.csv", *ROWS)
    try:
        text = notes(listed(tmp_path / "d", path, label_key="patient"))
    except DataError as error:
        text = str(error)
    assert "aarhus" in text and "bergen" in text


def test_a_key_of_two_people_is_refused_and_not_taken_for_a_third(tmp_path):
    write_images(tmp_path / "d", "e1/1.png", "e2/1.png", "e3/1.png")
    rows = ["e1,7,x", "e1,8,x", "e2,8,y", "e3,9,y"]
    path = table(tmp_path / "t.csv", "exam,patient,label", *rows)
    with pytest.raises(DataError, match=r"says 7, .* says 8 of the same exam: e1"):
        listed(tmp_path / "d", path, label_key="exam", patients="scan")


def test_two_tables_that_tell_two_patients_of_a_file_are_refused(tmp_path):
    write_images(tmp_path / "d", "e1/1.png", "e2/1.png")
    first = table(tmp_path / "a.csv", "path,patient,label", "e1/1.png,7,x", "e2/1.png,8,y")
    second = table(tmp_path / "b.csv", "path,patient,label", "e1/1.png,8,x", "e2/1.png,8,y")
    with pytest.raises(DataError, match=r"7 .*8"):
        listed(tmp_path / "d", first, second)


def test_a_table_of_paths_tells_the_scan_too(tmp_path):
    write_images(tmp_path / "d", "a/1.png", "a/2.png", "b/1.png")
    rows = ["a/1.png,x,p1,s1", "a/2.png,y,p1,s2", "b/1.png,y,p2,s3"]
    listing = listed(tmp_path / "d", table(tmp_path / "t.csv", "path,label,patient,scan", *rows))
    assert labels_of(listing) == {"s1": "x", "s2": "y", "s3": "y"}


@pytest.mark.parametrize("rows", [["left/p1,lefft"], ["left/p1,lefft", "right/p2,left"]])
def test_a_misspelt_correction_is_refused_and_makes_no_class(tmp_path, rows):
    write_images(tmp_path / "d", *(f"{x}/p{p}_1.png" for x in ("left", "right") for p in (1, 2, 3)))
    with pytest.raises(DataError, match="got 'lefft'; did you mean left"):
        listed(tmp_path / "d", table(tmp_path / "t.csv", "scan,label", *rows))


def test_a_pattern_in_the_other_form_of_unicode_reads_the_same(tmp_path):
    write_images(tmp_path / "d", "left/Jörg_1.png", "right/Zoë_1.png")
    for form in (str, nfd):
        found = list_labelled(tmp_path / "d", None, Options(form("(?P<patient>Jörg|Zoë)")))
        assert {s.patient for s in found.slices} == {"Jörg", "Zoë"}


def test_a_pattern_that_spells_one_person_in_two_ways_parts_nobody(tmp_path):
    write_images(tmp_path / "d", "p01/a1/1.png", "P1/a2/1.png", "p02/a3/1.png")
    path = table(tmp_path / "t.csv", "exam,patient,label", "a1,7,x", "a2,7,x", "a3,8,y")
    pattern = "^(?P<patient>[pP][0-9]+)/"
    found = listed(tmp_path / "d", path, label_key="exam", name_pattern=pattern)
    assert {s.patient for s in found.slices} == {"7", "8"}
