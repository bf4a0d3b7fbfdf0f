"""Classes other than left and right: folders, patterns, manifests."""

from pathlib import Path

import pytest
from conftest import write_scan
from image_files import write_images, write_manifest

from scans.labelled import check_classes_present, list_labelled
from scans.listing import list_slices
from scans.slices import DataError, Kind, Options

GRADES = ["normal", "abnormal"]


def rows(path: Path, classes: list[str] | None, *more) -> set[tuple]:
    listing = list_labelled(path, classes, Options(*more))
    return {(s.label, s.patient, s.scan, s.number) for s in listing.slices}


@pytest.mark.parametrize("classes", [GRADES, ["abnormal", "normal"], ["Normal", "ABNORMAL"]])
def test_folders_that_are_called_like_classes_in_any_case_give_the_label(tmp_path, classes):
    write_images(tmp_path, "Normal/p01_7.png", "p01/normal/8.png", "abnormal/p02/v2/9.png")
    normal, abnormal = sorted(classes, key=lambda label: label.lower() != "normal")
    assert list_labelled(tmp_path, classes).classes == classes
    assert rows(tmp_path, classes) == {
        (normal, "p01", f"{normal}/p01", 7),
        (normal, "p01", f"p01/{normal}", 8),
        (abnormal, "p02", f"{abnormal}/p02/v2", 9),
    }


def test_akoa_names_below_class_folders_tell_patient_and_scan(tmp_path):
    scans = [write_scan(tmp_path / "normal", 1, side, slices=2) for side in ("LEFT", "RIGHT")]
    scans += [write_scan(tmp_path / "x" / "Abnormal" / "y", 2, "RIGHT", slices=2)]
    assert rows(tmp_path, GRADES) == {
        *(("normal", "OAI0000001", scan, i) for scan in scans[:2] for i in range(2)),
        *(("abnormal", "OAI0000002", scans[2], i) for i in range(2)),
    }


def test_scan_in_the_folders_of_two_classes_is_refused_and_not_left_out_as_a_copy(tmp_path):
    for folder in ("normal", "abnormal"):
        scan = write_scan(tmp_path / folder, 1, "LEFT", slices=2)
    with pytest.raises(DataError, match=f"scan {scan} is of two labels: abnormal, normal"):
        list_labelled(tmp_path, GRADES)


def test_five_grades_come_from_folders_and_from_a_manifest(tmp_path):
    grades = ["0", "1", "2", "3", "4"]
    write_images(tmp_path, *(f"{grade}/p{grade}7_{i}.png" for grade in grades for i in (1, 10)))
    expected = {(g, f"p{g}7", f"{g}/p{g}7", i) for g in grades for i in (1, 10)}
    assert rows(tmp_path, grades) == expected
    lines = ["path,label,patient,scan"]
    lines += [f"{g}/p{g}7_{i}.png, {g},p{g}7,{g}/p{g}7" for g in reversed(grades) for i in (1, 10)]
    path = write_manifest(tmp_path, "\n".join(lines))
    assert rows(path, grades) == rows(path, None) == expected
    assert list_labelled(path).classes == grades
    assert list_labelled(path, grades[::-1]).classes == grades[::-1]


@pytest.mark.parametrize(
    "column, words, classes",
    [
        ("label", "10 9 2 10", ["2", "9", "10"]),
        ("label", "normal Abnormal NORMAL", ["Abnormal", "normal"]),
        ("label", "R l Left R_I_G_H_T", ["left", "right"]),
        ("label", "r right", None),  # left and right, but there is none of the left side
        ("side", "right LEFT", ["left", "right"]),
    ],
)
def test_manifest_tells_its_own_classes_in_natural_order(tmp_path, column, words, classes):
    lines = [f"{i}.png,{word},p{i}\n" for i, word in enumerate(words.split())]
    path = write_manifest(tmp_path, f"path,{column},patient\n" + "".join(lines))
    listing = list_labelled(path, options=Options(slices_per_scan=1))
    if classes is None:
        with pytest.raises(
            DataError, match=r"no slice has the label left; there are right \(2 slices"
        ):
            check_classes_present(listing.slices, listing.classes)
        return
    assert listing.classes == classes
    assert {s.label for s in listing.slices} == set(classes)


def test_column_side_of_a_manifest_means_left_and_right_alone(tmp_path):
    path = write_manifest(tmp_path, "path,side\na.png,normal\nb.png,abnormal\n")
    with pytest.raises(DataError, match="line 2: side must be left or right, got 'normal'"):
        list_labelled(path)
    path = write_manifest(
        tmp_path, "path,label,side,patient\na.png,normal,l,s\nb.png,abnormal,l,t\n"
    )
    assert list_labelled(path).classes == ["abnormal", "normal"]  # `label` before `side`
    with pytest.raises(DataError, match="line 2: label must be 0 or 1, got 'normal'"):
        list_labelled(path, ["0", "1"])


@pytest.mark.parametrize("group", ["label", "side"])
def test_group_label_of_a_pattern_tells_the_class(tmp_path, group):
    write_images(tmp_path, "p1_KL0_3.png", "p1_kl4_4.png", "p2_kl4_5.png")
    pattern = rf"(?P<patient>p\d)_(?P<{group}>\w+)_(?P<slice>\d)"
    assert rows(tmp_path, ["kl0", "kl4"], pattern) == {
        ("kl0", "p1", "p1_KL0", 3),
        ("kl4", "p1", "p1_kl4", 4),
        ("kl4", "p2", "p2_kl4", 5),
    }
    message = r"p1_KL0_3\.png: --name-pattern finds the label 'KL0', not one of left, right"
    with pytest.raises(DataError, match=message):
        list_labelled(tmp_path, None, Options(pattern))


def test_class_without_a_slice_is_refused_with_the_classes_found_and_their_counts(tmp_path):
    write_images(tmp_path, "0/p1_1.png", "0/p1_2.png", "2/p2_1.png", "other/x.png")
    found = r"no slice has the label 1; there are 0 \(2 slices\), 2 \(1 slice\)"
    listing = list_labelled(tmp_path, ["0", "1", "2"])
    with pytest.raises(DataError, match=found):
        check_classes_present(listing.slices, listing.classes)


def test_manifest_of_one_label_is_named_with_it(tmp_path):
    path = write_manifest(tmp_path, "path,label\na.png,torn\nb.png,Torn\n")
    with pytest.raises(
        DataError, match=r"knees\.csv: expected two or more different labels, got torn"
    ):
        list_labelled(path)


@pytest.mark.parametrize(
    "paths, classes",
    [
        (["normal/p1_1.png", "abnormal/p2_1.png"], "abnormal normal"),
        (["train/normal/1.png", "Test/abnormal/1.png", "val/normal/2.png"], "abnormal normal"),
        (["train/normal/1.png", "train/abnormal/1.png"], "abnormal normal"),
        (["Train/1/1.png", "Train/0/1.png", "val/2/1.png"], "0 1 2"),
        (["p1/normal/1.png", "p2/abnormal/1.png", "p3/abnormal/1.png"], "abnormal normal"),
        (["p1/normal/1.png", "p2/abnormal/1.png"], "abnormal normal"),
        (["knees/10/a.png", "knees/9/a.png", "knees/0/a.png"], "0 9 10"),
        ([f"{grade}/{p}/7.png" for grade in range(3) for p in range(10, 14)], "0 1 2"),
        (["no findings/a.png", "worn/a.png"], "'no findings' worn"),
        (["a.png", "knees/b.png"], None),
        ([f"p{i}/a.png" for i in range(11)], None),
    ],
)
def test_subfolders_that_look_like_classes_are_named_where_nothing_is_labelled(
    tmp_path, paths, classes
):
    write_images(tmp_path, *paths)
    with pytest.raises(DataError, match="none with a label") as error:
        list_labelled(tmp_path)
    assert ("--classes" in str(error.value)) == bool(classes)
    if classes:
        assert f"if these folders are the classes: --classes {classes}; first: " in str(error.value)


def test_two_folders_of_a_path_called_like_two_classes_are_a_contradiction(tmp_path):
    write_images(tmp_path, "normal/p1/abnormal/7.png", "normal/p2_1.png", "abnormal/p3_1.png")
    path = tmp_path / "normal/p1/abnormal/7.png"
    advice = "; --name-pattern or a manifest can tell"
    message = f"{path}: its folders say abnormal and normal{advice}"
    with pytest.raises(DataError, match=message):
        list_labelled(tmp_path, GRADES)
    listing = list_slices(tmp_path, GRADES)
    assert [(p.kind, str(p)) for p in listing.problems] == [(Kind.CONTRADICTION, message)]
    assert {s.number: s.label for s in listing.slices if s.source == str(path)} == {7: ""}


@pytest.mark.parametrize(
    "classes", [["normal"], ["a", "A"], ["a", "b", "a"], ["a", "a "], ["a", "", "b"], ["", " "]]
)
def test_one_equal_and_empty_classes_are_refused(tmp_path, classes):
    with pytest.raises(DataError, match=r"--classes .*: expected two or more labels that differ"):
        list_labelled(tmp_path, classes)


def test_volumes_of_other_classes_get_their_label_from_folders_alone(tmp_path):
    made = pytest.importorskip("volume_files")
    made.write_volume(tmp_path / "normal" / "p1_LEFT.nii.gz", x=-70)  # no contradiction here
    made.write_volume(tmp_path / "p2" / "Abnormal" / "knee.mha")
    assert rows(tmp_path, GRADES) == {
        *(("normal", "p1", "normal/p1_LEFT.nii.gz", i) for i in range(6)),
        *(("abnormal", "p2", "p2/Abnormal/knee.mha", i) for i in range(6)),
    }
