"""--name-pattern and manifests of real small files -> slices, and what is said of others."""

import pytest
from image_files import found, listed, write_images, write_manifest

from scans.labelled import list_labelled
from scans.slices import SIDES, DataError, Options, by_scan

# ---- --name-pattern ------------------------------------------------------------------------------


def test_pattern_tells_patient_scan_side_and_slice(tmp_path):
    write_images(tmp_path, "a/s12_L_v1_z003.png", "b/s12_r_v2_z010.png", "b/readme_picture.png")
    pattern = r"s(?P<patient>\d+)_(?P<side>[LlRr])_v(?P<scan>\d)_z(?P<slice>\d+)"
    assert found(tmp_path, pattern) == {
        ("s12_L_v1_z003.png", "left", "12", "1", 3),
        ("s12_r_v2_z010.png", "right", "12", "2", 10),
    }
    assert "readme_picture.png" in listed(tmp_path, pattern)[1][0]


@pytest.mark.parametrize("word", ["left", "LEFT", "l", "L", "L_E_F_T", "Left"])
def test_pattern_takes_every_word_for_a_side(tmp_path, word):
    write_images(tmp_path, f"p1-{word}-1.png", "p2-R_I_G_H_T-1.png", "p2-r-2.png")
    sides = {row[1] for row in found(tmp_path, r"(?P<patient>p\d)-(?P<side>\w+)-") if "p1" in row}
    sides |= {row[1] for row in found(tmp_path, r"(?P<patient>p\d)-(?P<side>\w+)-")}
    assert sides == {"left", "right"}


def test_groups_that_a_pattern_lacks_come_from_folders_and_names(tmp_path):
    write_images(tmp_path, "v1/left/p1_7.png", "v2/left/p1_7.png", "v1/right/p2_08.png")
    assert found(tmp_path, r"(?P<patient>p\d+)_") == {
        ("p1_7.png", "left", "p1", "v1/left/p1", 7),
        ("p1_7.png", "left", "p1", "v2/left/p1", 7),  # another visit is another scan
        ("p2_08.png", "right", "p2", "v1/right/p2", 8),
    }
    only_scans, notes = listed(tmp_path, r"(?P<scan>.*/p\d+)_")
    assert {s.patient for s in only_scans} == {"p1", "p2"}
    assert {s.scan for s in only_scans} == {"v1/left/p1", "v2/left/p1", "v1/right/p2"}
    assert "inferred: what follows 'p'" in notes[0]


@pytest.mark.parametrize(
    "pattern, message",
    [
        ("p1", r"none of the groups \(\?P<patient>"),
        ("(?P<side>l", "not a regular expression: missing"),
        (r"(?P<patient>nobody\d)", r"is found in none of their paths .*; first: .*p1_left_1\.png"),
        (
            r"(?P<side>p\d)",
            r"p1_left_1\.png: --name-pattern finds the label 'p1', not one of left, right",
        ),
        (r"(?P<scan>p)\d_(?P<side>left|right)", "scan p is of two labels: left, right"),
        (r"(?P<patient>p\d)_(?P<side>(?P<scan>l)eft|right)", "scan l is of two patients: p1, p3"),
    ],
)
def test_pattern_that_does_not_fit_is_refused_and_says_why(tmp_path, pattern, message):
    write_images(tmp_path, "p1_left_1.png", "p2_right_1.png", "p3_left_1.png")
    with pytest.raises(DataError, match=message):
        listed(tmp_path, pattern)


def test_names_of_other_scripts_and_digits_are_read(tmp_path):
    """Digits that int() does not know, digits of another script, and a line break in a name."""
    names = ["колено_2²3.png", "膝_٣.png", "a²_².png", "two\nlines_5.png", "x#7_1.png"]
    write_images(tmp_path, *(f"{side}/{name}" for side in ("left", "right") for name in names))
    with pytest.raises(DataError, match=r"10 scans, such as left/a²_².png, can be read in several"):
        found(tmp_path)
    slices = list_labelled(tmp_path, None, Options(patients="scan")).slices
    assert len({s.scan for s in slices}) == 10 == len({s.patient for s in slices})
    assert len(found(tmp_path, r"(?P<patient>\w)(?P<slice>.)\.png")) == 10


# ---- manifest ------------------------------------------------------------------------------------


def test_manifest_tells_all_and_its_paths_are_relative_to_it(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    write_images(tmp_path, "a/1.png", "a/2.png", "b,c/x.png")
    text = 'path,side,patient,scan\na/1.png,L,p1 ,s1\na/2.png,left, p1,s1\n"b,c/x.png",Right,p2,\n'
    rows = found(write_manifest(tmp_path, text, "utf-8-sig"))  # Excel begins with a BOM
    assert rows == {
        ("1.png", "left", "p1", "s1", 1),
        ("2.png", "left", "p1", "s1", 2),
        ("x.png", "right", "p2", "b,c/x", 0),
    }


@pytest.mark.parametrize(
    "text, message",
    [
        ("path,patient\na.png,1\n", "expected columns path,label,patient,scan, got"),
        ("path side\na.png l\n", "expected columns path,label,patient,scan, got"),
        ("path,side\na.png,left\nb.png,middle\n", "line 3: label must be left or right, got 'mid"),
        ("path,side\na.png\n", "line 2: label must be left or right, got ''"),
        ("path,side\na.png,l\n./a.png,l\n", "line 3: ./a.png is in it twice"),
        ("path,side\n,l\n", "line 2: names no path"),
        ("path,side\nknee.nii.gz,l\n", r"knee.nii.gz.*line 2\)"),
        ("path,side\na.txt,l\n", r"a.txt: no image and no volume.*line 2\)"),
        ("path,side,patient,scan\na.png,l,p,s\nb.png,r,p,s\n", "scan s is of two labels"),
        (
            "path,side,patient,scan\na.png,l,p,s\nb.png,l,q,s\nc.png,r,q,t\n",
            "of two patients: p, q",
        ),
    ],
)
def test_manifest_that_cannot_be_used_is_refused_by_line(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        listed(write_manifest(tmp_path, text))


def test_pattern_tells_the_patient_that_a_manifest_lacks(tmp_path):
    rows = [f"{p}_{v}_{side}.png,{side}" for p in (1, 2, 3) for v in (1, 2) for side in SIDES]
    path = write_manifest(tmp_path, "path,label\n" + "\n".join(rows))
    with pytest.raises(DataError, match=r"12 scans, such as 1_1_left.png, can be read in several"):
        listed(path)
    assert {(s.patient, s.label) for s in listed(path, r"^(?P<patient>\d+)_")[0]} == {
        (patient, side) for patient in "123" for side in SIDES
    }


@pytest.mark.parametrize("what", ["label", "patient"])
def test_one_wrong_row_of_a_manifest_is_named_and_takes_no_scan_apart(tmp_path, what):
    rows = [f"m{p}/shot {i}.png,{'lr'[p % 2]},p{p}" for p in range(6) for i in range(4)]
    path = write_manifest(tmp_path, "path,label,patient\n")
    for wrong_row in (None, "m0/shot 3.png," + ("r,p0" if what == "label" else "l,p9")):
        table = "\n".join(["path,label,patient", *rows[:3], wrong_row or rows[3], *rows[4:]])
        path.write_text(table)
        write_images(tmp_path, *(row.split(",")[0] for row in rows))
        if wrong_row is None:
            assert len({s.scan for s in listed(path)[0]}) == 6
            continue
        with pytest.raises(DataError, match=rf"m0/shot 3.png: differs from .*, but its {what} is"):
            listed(path)


def test_scan_of_as_many_slices_of_two_patients_is_not_said_to_differ_from_itself(tmp_path):
    rows = [f"m/shot {i}.png,l,p{i % 2}" for i in range(4)]
    rows += [f"n{p}/shot {i}.png,r,q{p}" for p in range(3) for i in range(4)]
    path = write_manifest(tmp_path, "\n".join(["path,label,patient", *rows]))
    write_images(tmp_path, *(row.split(",")[0] for row in rows))
    with pytest.raises(
        DataError, match=r"its patient is (p0 and not p1|p1 and not p0): correct it"
    ):
        listed(path)


def test_missing_files_of_a_manifest_are_five_a_count_and_what_paths_are_relative_to(tmp_path):
    path = write_manifest(tmp_path, "path,label,patient\n")
    path.write_text("path,label,patient\n" + "".join(f"x/{i}.png,l,p{i}\n" for i in range(100)))
    with pytest.raises(DataError, match=rf"x/0.png, .* 95 more; paths are relative to {tmp_path}$"):
        listed(path)


def test_volumes_in_a_manifest_keep_its_side_and_disagreement_is_noted(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    for name in ("one_RIGHT.nii.gz", "two.nrrd"):
        sitk.WriteImage(sitk.Image([4, 5, 6], sitk.sitkUInt8), str(tmp_path / name))
    text = "path,side,patient\none_RIGHT.nii.gz,left,p1\ntwo.nrrd,right,p2\n"
    slices, notes = listed(write_manifest(tmp_path, text))
    assert {(s.scan, s.label, s.patient) for s in slices} == {
        ("one_RIGHT.nii.gz", "left", "p1"),
        ("two.nrrd", "right", "p2"),
    }
    assert slices[1].name == f"{tmp_path}/one_RIGHT.nii.gz#1" and len(slices) == 12
    assert "the manifest says left, its name right" in notes[0]


def test_pattern_makes_each_volume_a_scan_of_its_patient(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    for name in ("p1-v1-L.nii.gz", "p1-v2-L.nii.gz", "p2-v1-R.nii.gz"):
        sitk.WriteImage(sitk.Image([4, 5, 6], sitk.sitkUInt8), str(tmp_path / name))
    slices, _ = listed(tmp_path, r"(?P<patient>p\d)-v\d-(?P<side>[LR])")
    scans = by_scan(slices)
    assert {name: (s[0].patient, len(s)) for name, s in scans.items()} == {
        "p1-v1-L.nii.gz": ("p1", 6),
        "p1-v2-L.nii.gz": ("p1", 6),
        "p2-v1-R.nii.gz": ("p2", 6),
    }
