"""The OAI as it is released, in small: which series are read; headers that are kept."""

import json
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import write_images
from volume_files import make_oai, noise, sitk, write_dicom, write_volume

import dataset
import predict
import train
from scans import headers
from scans.labelled import list_labelled
from scans.listing import list_slices
from scans.series import (
    SeveralSequences,
    check_one_sequence,
    find_all_volumes,
    merge_remarks,
    open_volume,
    sequence_of,
)
from scans.slices import DataError, Kind, Options, by_scan
from scans.volumes import VolumeError, read_pixels, read_slices

DESS = Options(series="sag_3d_dess")


@pytest.fixture(
    scope="module",
    params=[False, pytest.param(True, marks=pytest.mark.slow)],
    ids=["folders", "archives"],
)
def oai(request, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("oai")
    make_oai(root, patients=4 if request.param else 8, archives=request.param)
    return root


# ---- which series --------------------------------------------------------------------------------


def test_a_series_is_chosen_by_its_description_and_its_side_is_the_label(oai):
    listing = list_labelled(oai, None, DESS)
    scans = by_scan(listing.slices)
    patients = {s.patient for s in listing.slices}
    assert len(scans) == 4 * len(patients) and len(patients) in (4, 8)
    for scan, found in scans.items():
        description = found[0].volume.description
        assert description == f"SAG_3D_DESS_{found[0].label.upper()}"
        assert len(found) == 8 and found[0].patient == scan.split("/")[2]
        assert re.fullmatch(r"\d\dm/0\.C\.2/900000\d/\d{8}/1\d{7}(\.tar\.gz)?", scan)
    (remark,) = [str(p) for p in listing.problems if " series not " in str(p)]
    n = 2 * len(patients)
    assert remark.startswith(f"{5 * n} series not `sag_3d_dess`: PRESCRIPTION ({n}), COR_IW")
    left = next(s.volume for s in listing.slices if s.label == "left")
    pixels = read_slices(left)  # the bar of left knees is at the left
    assert pixels[:, 6, 1:3].mean() > 200 > pixels[:, 6, -3:].mean()


@pytest.mark.slow
def test_several_sequences_stop_with_a_table_and_the_line_to_type(oai, tmp_path, capsys):
    with pytest.raises(SeveralSequences) as caught:
        list_labelled(oai)
    text = str(caught.value)
    assert text.endswith("such as --series 'SAG_3D_DESS'") and "AX_T1_THIGH" not in text
    sheet = str(tmp_path / "sheet.png")
    more = ["--cache-dir", str(tmp_path / "cache"), "--contact-sheet", sheet]
    assert dataset.main([str(oai), *more]) == 2
    printed = capsys.readouterr()
    assert printed.out.splitlines() == caught.value.table and text in printed.err
    n = len(list(oai.glob("00m/*/*")))  # patients
    rows = {row.split()[0]: row.split()[1:6] for row in caught.value.table[1:]}
    assert rows["SAG_3D_DESS"] == [f"{4 * n}", f"{n}", f"{2 * n}", f"{2 * n}", "8"]
    assert rows["AX_T1_THIGH"] == [f"{2 * n}", f"{n}", "0", "0", "6"]
    assert dataset.main([str(oai), *more, "--series", "SAG_3D_DESS"]) == 0
    assert "  SAG_3D_DESS" in capsys.readouterr().out


def test_a_series_that_is_not_there_or_no_expression_is_one_line(oai):
    with pytest.raises(DataError, match=r"--series none: is none of the series .*AX_T1_THIGH \("):
        list_labelled(oai, None, Options(series="none"))
    with pytest.raises(DataError, match=r"--series \(: not a regular expression: missing \)"):
        list_slices(oai, None, Options(series="("))
    path = next(oai.glob("00m/*/*/*/10000001*"))
    with pytest.raises(VolumeError, match=r"is not `sag_3d_dess`: PRESC"):
        open_volume(path, DESS)


@pytest.mark.slow
def test_localizers_and_echoes_are_remarked_once(oai):
    listing = list_slices(oai)
    n = len({s.patient for s in listing.slices}) * 2
    remarks = sorted(map(str, listing.of_kind(Kind.REMARK)))
    echoes = "series with several echoes: the shortest (10 ms) is taken; --echo N takes another"
    assert remarks[1] == f"{n} {echoes}" and not listing.of_kind(Kind.LOCALIZER)
    assert remarks[0].startswith(f"{n} series too short for a scan: ") and len(remarks) == 2
    other = list_slices(oai, None, Options(series="T2_MAP", echo=2))
    assert not any("echo" in str(problem) for problem in other.problems)
    short = list_slices(oai, None, Options(series="T2_MAP"))
    assert f"{n} {echoes}" in map(str, short.problems)
    tags = {s.volume.tags["echo_time"] for s in other.slices}
    assert tags == {"20"} and {s.volume.tags["echo_time"] for s in short.slices} == {"10"}


def test_localizers_alone_are_what_is_wrong_with_a_path(oai):
    path = next(oai.glob("00m/*/*/*/10000001*"))
    listing = list_slices([path])
    assert "only 3 slices" in str(listing.problems[0])
    assert {p.kind for p in listing.problems} <= {Kind.LOCALIZER, Kind.UNREADABLE}


def test_description_and_position_contradict_each_other(tmp_path):
    write_dicom(tmp_path / "a", noise(6, 6, 6), {"0008|103e": "SAG_DESS_LEFT"}, x=-70)
    write_dicom(tmp_path / "b", noise(6, 6, 6), {"0008|103e": "SAG_R_I_G_H_T"}, x=-70)
    write_dicom(tmp_path / "c", noise(6, 6, 6), {"0008|103e": "LEFT AND RIGHT"}, x=0)
    write_dicom(tmp_path / "d", noise(6, 6, 6), {"0008|103e": "SAG_L"}, x=0)
    listing = list_slices(tmp_path)
    (problem,) = listing.of_kind(Kind.CONTRADICTION)
    assert str(problem) == f"{tmp_path}/a: the header says left, its position right"
    labels = {s.scan: s.label for s in listing.slices}
    assert labels == {"a": "", "b": "right", "c": "", "d": ""}


def test_files_without_a_description_are_chosen_by_their_names(tmp_path):
    for name in ("p1_LEFT_dess.nii.gz", "p1_LEFT_t2.nii.gz"):
        write_volume(tmp_path / name)
    listing = list_slices(tmp_path, None, Options(series="dess"))
    assert set(by_scan(listing.slices)) == {"p1_LEFT_dess.nii.gz"}
    assert "1 series not `dess`: p1_LEFT_t2.nii.gz (1)" in map(str, listing.problems)
    given = [tmp_path / "p1_LEFT_dess.nii.gz", tmp_path / "p1_LEFT_t2.nii.gz"]
    rows = [f"{path},left" for path in given]
    (tmp_path / "knees.csv").write_text("\n".join(["path,label", *rows, ""]))
    for paths in (given, tmp_path / "knees.csv"):
        listing = list_slices(paths, None, Options(series="dess"))
        assert {p.kind for p in listing.problems} <= {Kind.REMARK, Kind.NAMELESS}
        assert str(listing.problems[-1]) == "1 series not `dess`: p1_LEFT_t2.nii.gz (1)"
        assert len(listing.slices) == 6


@pytest.mark.parametrize(
    "left, right, other, pattern",
    [
        ("SAG_DESS_LEFT", "SAG_DESS_RIGHT", "COR", "'SAG_DESS'"),
        ("SAG_LEFT_DESS", "sag_right_dess", "COR", "'SAG_.*_DESS'"),
        ("T2* (map) left", "T2* (map) right", "T1", r"'T2\.*  \(MAP\)'"),
        ("DESS_LEFT", "DESS_RIGHT", "DESS_WE", "'^(DESS_LEFT|DESS_RIGHT)$'"),
    ],
)
def test_the_line_to_type_chooses_both_sides_and_nothing_else(
    tmp_path, left, right, other, pattern
):
    for k, (text, x) in enumerate([(left, 70), (right, -70), (other, 70), (left, 70)]):
        tags = {"0008|103e": text, "0010|0020": "p1" if k < 3 else "p2", "0008|0020": "20040101"}
        write_dicom(tmp_path / "v" / f"{k}", noise(6, 6, 6), tags, x=x)
    with pytest.raises(SeveralSequences) as caught:
        list_labelled(tmp_path, None, Options(side_by_position=True))
    typed = str(caught.value).rpartition("--series ")[2].strip("'")
    chosen = list_labelled(tmp_path, None, Options(series=typed)).slices
    assert {s.volume.description for s in chosen} == {left, right}
    if "*" not in left:
        assert str(caught.value).endswith(pattern)


def test_other_visits_and_other_knees_may_have_other_series(tmp_path):
    for k, (text, x, date) in enumerate(
        [("A_LEFT", 70, "20040101"), ("B_RIGHT", -70, "20040101"), ("B_LEFT", 70, "20050101")]
    ):
        tags = {"0008|103e": text, "0010|0020": "p1", "0008|0020": date}
        write_dicom(tmp_path / f"{k}", noise(6, 6, 6), tags, x=x)
    options = Options(side_by_position=True)
    check_one_sequence(list_slices(tmp_path, None, options).slices)
    assert sequence_of("B_LEFT") == sequence_of("b right") == "B"
    write_dicom(tmp_path / "3", noise(6, 6, 6), tags | {"0008|103e": "C", "0020|000e": "7"}, x=70)
    with pytest.raises(SeveralSequences, match="one visit: B "):
        check_one_sequence(list_slices(tmp_path, None, options).slices)


def test_descriptions_that_are_no_text_stay_one_line(tmp_path):
    for name in write_dicom(tmp_path / "a", noise(6, 6, 6), {"0008|103e": "SAG_LEFT_XYZ"}, x=70):
        path = tmp_path / "a" / name
        path.write_bytes(path.read_bytes().replace(b"XYZ", b"\xff\n\x1b"))
    options = Options(cache_dir=tmp_path / "cache")
    for _ in range(2):
        (s, *_) = list_slices(tmp_path / "a", None, options).slices
        assert s.label == "left" and s.volume.description.startswith("SAG_LEFT_")
        assert s.volume.description.isprintable()


# ---- headers, read once --------------------------------------------------------------------------


def opened(monkeypatch) -> list[str]:
    """The files whose headers are read from now on, in this process."""
    paths, reading = [], headers.read_file

    def isolated(work, tasks, *_, **__):
        for path in tasks:
            paths.append(path)
            yield reading(path)

    monkeypatch.setattr(headers, "isolated", isolated)
    return paths


def plain(listing) -> list:
    """A listing to compare with another."""
    volumes = [
        asdict(s.volume) | {"direction": s.volume.direction.tolist()} for s in listing.slices
    ]
    return [*listing.slices, *volumes, *listing.problems]


@pytest.mark.slow
def test_headers_are_kept_until_a_file_changes(oai, tmp_path, monkeypatch):
    root = Path(shutil.copytree(oai / "00m", tmp_path / "oai"))
    options, paths = Options(cache_dir=tmp_path / "cache"), opened(monkeypatch)
    first = list_slices(root, None, options)
    assert paths and plain(first) == plain(list_slices(root))
    paths.clear()
    assert plain(list_slices(root, None, options)) == plain(first) and not paths
    chosen = list_slices(root, None, Options(series="DESS", cache_dir=tmp_path / "cache"))
    assert len(by_scan(chosen.slices)) == len(by_scan(first.slices)) // 3 and not paths
    victim = first.slices[0].volume
    os.utime(victim.parts[0], (1, 1))
    list_slices(root, None, options)
    assert 0 < len(paths) < 10  # of this series alone
    paths.clear()
    list_slices(root, None, Options(cache_dir=tmp_path / "cache", echo=2))
    assert paths  # other slices of some series


def test_damaged_and_foreign_headers_are_read_again(tmp_path, monkeypatch):
    write_dicom(tmp_path / "in" / "a_LEFT", noise(6, 6, 6), x=70)
    options, paths = Options(cache_dir=tmp_path / "cache"), opened(monkeypatch)
    first = plain(list_slices(tmp_path / "in", None, options))
    (kept,) = (tmp_path / "cache" / "headers").iterdir()
    whole = kept.read_bytes()
    state, line = whole.split(b"\n", 1)
    for content in (
        b"",
        b"\xff\xfe\0",
        whole[:-20],
        whole.replace(b"77.5", b"76.5"),
        whole.replace(b"1.2.3", b"1.2.4"),
        state + b"\n" + json.dumps([[{"path": ""}], []]).encode(),
        b"0" * 64 + b"\n" + line,
    ):
        assert content != whole
        kept.write_bytes(content)
        paths.clear()
        assert plain(list_slices(tmp_path / "in", None, options)) == first
        assert len(paths) == 6 and kept.read_bytes() == whole


def test_where_headers_cannot_be_kept_they_are_read(tmp_path):
    write_dicom(tmp_path / "in" / "a_LEFT", noise(6, 6, 6), x=70)
    (tmp_path / "cache").write_text("a file")
    listing = list_slices(tmp_path / "in", None, Options(cache_dir=tmp_path / "cache"))
    assert len(listing.slices) == 6 and not listing.problems


def test_many_folders_are_found_in_their_order(tmp_path):
    for name in ("b", "a", "c"):
        write_dicom(tmp_path / name, noise(6 if name != "c" else 2, 6, 6))
    folders = [(str(tmp_path / name), os.listdir(tmp_path / name)) for name in ("b", "c", "a")]
    found = list(find_all_volumes(folders))
    assert [[Path(v.path).name for v in volumes] for volumes, _ in found] == [["b"], [], ["a"], []]
    assert [p.kind for _, problems in found for p in problems] == [Kind.SHORT]
    assert len(merge_remarks(found[-1].problems, [])) == 1


def test_pixels_of_a_series_are_read_as_slice_by_slice(tmp_path):
    write_dicom(tmp_path / "d", noise(20, 30, 40))
    v = open_volume(tmp_path / "d")
    images = [sitk.ReadImage(part, sitk.sitkFloat32) for part in v.parts]
    pixels = np.concatenate([sitk.GetArrayFromImage(image) for image in images])
    assert np.array_equal(read_pixels(v), pixels)
    victim = Path(v.parts[7])
    victim.write_bytes(victim.read_bytes()[:900])
    with pytest.raises(VolumeError, match=re.escape(str(victim))):
        read_pixels(v)


def test_a_pattern_that_parts_a_patient_of_the_headers_is_refused(tmp_path):
    for patient in ("K1", "K2", "K3"):
        for number in (1, 2):
            tags = {"0010|0020": patient, "0020|000e": f"1.{patient[1]}{number}"}
            write_dicom(tmp_path / f"s{patient[1]}{number}_LEFT", noise(6, 6, 6), tags, x=70)
    pattern = Options(name_pattern=r"s(?P<patient>\d+)")
    message = r"patient K1 \(told by DICOM\) would be 2 patients, as told by --name-pattern: 11, 12"
    with pytest.raises(DataError, match=message):
        list_slices(tmp_path, options=pattern)
    coarser = Options(name_pattern=r"s(?P<patient>\d)")
    assert {s.patient for s in list_slices(tmp_path, options=coarser).slices} == {"1", "2", "3"}
    for folder in tmp_path.iterdir():  # anonymised: all share one, which tells nobody apart
        shutil.rmtree(folder)
        write_dicom(folder, noise(6, 6, 6), {"0010|0020": "ANON"}, x=70)
    assert len({s.patient for s in list_slices(tmp_path, options=pattern).slices}) == 6


def test_series_of_what_has_none_is_refused_by_every_program(finished_run, tmp_path, capsys):
    """But not the one that a checkpoint keeps."""
    write_images(tmp_path, "left/p1_1.png", "right/p1_1.png")
    message = "--series DESS: there are no series and no volumes to choose from"
    programs = (
        (train.main, ["--data-dir", str(tmp_path), "--dry-run", "--series", "DESS"]),
        (dataset.main, [str(tmp_path), "--series", "DESS"]),
        (dataset.main, [str(tmp_path), "--series", "DESS", "--write-slices", str(tmp_path / "o")]),
        (predict.main, [str(finished_run / "best.pt"), str(tmp_path), "--series", "DESS"]),
    )
    for main, words in programs:
        assert main(words) == 2 and message in capsys.readouterr().err
    checkpoint = torch.load(finished_run / "best.pt", weights_only=True)
    checkpoint["preprocessing"]["series"] = "DESS"
    torch.save(checkpoint, tmp_path / "kept.pt")
    assert predict.main([str(tmp_path / "kept.pt"), str(tmp_path)]) == 0
