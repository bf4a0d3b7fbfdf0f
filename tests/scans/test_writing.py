"""`python dataset.py IN --write-slices OUT`: OUT is read back to the same slices, and whole."""

import os
import resource
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import AKOA
from PIL import Image

import dataset
from scans import writing
from scans.cache import decode_slices
from scans.labelled import list_labelled
from scans.listing import list_slices
from scans.slices import SIDES, Kind, Listing, Options, by_scan

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def knees(tmp_path) -> Path:
    return tmp_path / "in"


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


def write_images(folder: Path, *names: str | bytes) -> None:
    """Each with grey levels of its own."""
    rng = np.random.default_rng(0)
    for name in names:
        path = folder / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (5, 7), np.uint8)).save(path, "PNG")


def keep(data: Path, out: Path, *flags: str) -> int:
    return dataset.main([str(data), "--write-slices", str(out), *flags])


def told(listing: Listing) -> Counter:
    return Counter((s.label, s.patient, s.scan, s.number) for s in listing.slices)


def assert_read_back(data: Path, out: Path, *flags: str, classes=None) -> Listing:
    """Labels, patients, scans, numbers and pixels are those of the slices that were written."""
    pattern = flags[1] if flags[:1] == ("--name-pattern",) else None
    given = [] if classes is None else ["--classes", *classes]
    before = list_slices(data, classes, Options(pattern))
    assert keep(data, out, *flags, *given) == 0
    after = list_slices(out, before.classes)
    assert told(after) == told(before) and before.slices
    assert all(problem.kind is Kind.NAMELESS for problem in after.problems)
    pixels = {}
    for listing in (before, after):
        decoded = decode_slices(listing.slices, (9, 12), progress=False)
        assert not decoded.errors
        for s, image in zip(listing.slices, decoded.pixels, strict=True):
            key = s.label, s.patient, s.scan, s.number
            assert np.array_equal(pixels.setdefault(key, image), image)
    if {s.label for s in before.slices} == set(before.classes):
        each = None if all(s.patient for s in before.slices) else "scan"
        again = list_labelled(out, before.classes, Options(patients=each))
        first = list_labelled(data, classes, Options(pattern, patients=each))
        assert told(again) == told(first) and len(again.slices) == len(before.slices)
    return after


# ---- read back -----------------------------------------------------------------------------------


def test_both_knees_of_one_patient_as_volumes_are_read_back(knees, out):
    """Their patient is told by the names that are written."""
    made = pytest.importorskip("volume_files")
    for side, x in [("LEFT", 70), ("RIGHT", -70)]:
        made.write_volume(knees / f"p01_{side}.nii.gz", x=x)
    listing = assert_read_back(knees, out)
    assert {(s.label, s.patient, s.scan) for s in listing.slices} == {
        ("left", "p01", "p01_LEFT.nii.gz"),
        ("right", "p01", "p01_RIGHT.nii.gz"),
    }
    assert not list_labelled(out).problems[1:]  # but for scans of 6 slices


def test_volumes_of_every_kind_of_name_are_read_back(knees, out, capfd):
    made = pytest.importorskip("volume_files")
    akoa = "OAI9014797_BaseLine_3_de3d1_SAG_3D_DESS_WE_RIGHT.nii.gz"
    knees = knees / "left" / "in"
    for name, x in [
        (akoa, -70),
        ("p01/visit1/left/knee.nrrd", 70),
        ("p01/visit2/left/knee.nrrd", 70),
        ("p02_LEFT.mha", 70),
        ("p03_LEFT.mha", -70),
        ("p04/left.nii", -70),
    ]:
        made.write_volume(knees / name, x=x)
    made.write_dicom(knees / "p9" / "dicom", made.noise(8, 9, 9), {"0010|0020": "../p/5"})
    listing = assert_read_back(knees, out, "-j", "2")
    scans = {
        name: (s[0].label, s[0].patient, len(s)) for name, s in by_scan(listing.slices).items()
    }
    assert scans == {
        akoa: ("right", "OAI9014797", 6),
        "p01/visit1/left/knee.nrrd": ("left", "p01", 6),
        "p01/visit2/left/knee.nrrd": ("left", "p01", 6),
        "p02_LEFT.mha": ("left", "p02", 6),
        "p03_LEFT.mha": ("", "p03", 6),
        "p04/left.nii": ("", "p04", 6),
        "p9/dicom": ("", "../p/5", 8),
    }
    assert [s.number for s in list_slices(out).slices if s.scan == akoa] == list(range(6))
    with Image.open(out / f"{akoa}_0.png") as image:
        assert (image.mode, image.size) == ("L", (12, 9))
    printed, errors = capfd.readouterr()
    assert printed == f"{out}: 44 slices, 20 of them without a label\n"
    assert errors.splitlines()[:2] == [
        f"dataset.py: {knees}/p03_LEFT.mha: the name says left, its position right",
        f"dataset.py: {knees}/p04/left.nii: the name says left, its position right",
    ]
    assert not [p for p in out.parent.rglob("*unfinished*")]


def test_planes_are_cut_as_they_are_asked_for(knees, out):
    made = pytest.importorskip("volume_files")
    made.write_volume(knees / "p1_LEFT.nii", made.noise(6, 12, 9), x=70)
    made.write_volume(knees / "p1_RIGHT.nii", made.noise(6, 12, 9), x=-70)
    assert keep(knees, out, "--plane", "axial") == 0
    assert len(list_labelled(out).slices) == 2 * 12


def test_dicom_series_are_read_back_as_scans_of_their_own(knees, out):
    made = pytest.importorskip("volume_files")
    made.write_two_series(knees / "p1" / "RIGHT")
    made.write_dicom(knees / "p1" / "RIGHT#2", made.noise(8, 5, 5))
    listing = assert_read_back(knees, out)
    assert {name: len(s) for name, s in by_scan(listing.slices).items()} == {
        "p1/RIGHT": 6,
        "p1/RIGHT#2": 8,
        "p1/RIGHT#3": 6,
    }


def test_akoa_images_keep_their_names(knees, out):
    names = [
        f"{AKOA.format(patient=p, side=side, hash=0)}_{i}.png"
        for p in (1, 2)
        for side in ("L_E_F_T", "Right")
        for i in (0, 1, 10)
    ]
    write_images(knees / "AKOA_Analysis", *names)
    assert_read_back(knees, out)
    assert sorted(os.listdir(out)) == sorted(names)


def test_folders_left_and_right_are_read_back(knees, out):
    write_images(knees, "left/p01_1.png", "left/p01_02.png", "Right/p01_1.png", "p2/v3/left/7.png")
    listing = assert_read_back(knees, out)
    assert {s.scan for s in listing.slices} == {"left/p01", "right/p01", "p2/v3/left"}


def test_nameless_slices_are_read_back_as_the_scans_of_forty_that_were_typed(knees, out):
    write_images(knees, *(f"{side}/{i}.png" for side in ("left", "right") for i in range(80)))
    before = list_labelled(knees, None, Options(slices_per_scan=40, patients="scan"))
    assert keep(knees, out, "--slices-per-scan", "40", "--patients", "scan") == 0
    assert told(list_labelled(out)) == told(before)
    assert set(by_scan(before.slices)) == {f"{side} 000{i}" for side in SIDES for i in (1, 2)}


def test_a_manifest_is_read_back_with_its_own_classes(knees, out):
    write_images(knees, "a.png", "b.png", "c,d.png", "e/f.png")
    text = "path,label,patient,scan\na.png,10,p1,s1\nb.png,9,p1,s2\n"
    (knees / "knees.csv").write_text(text + '"c,d.png",9,"p,2","s/3"\ne/f.png,10,p%2C,"s,4"\n')
    listing = assert_read_back(knees / "knees.csv", out)
    assert listing.classes == ["9", "10"]
    assert {(s.patient, s.scan) for s in listing.slices if s.label == "9"} == {
        ("p1", "s2"),
        ("p,2", "s/3"),
    }


def test_patients_of_a_manifest_are_read_back_also_beside_akoa_names(knees, out):
    scan = AKOA.format(patient=1, side="RIGHT", hash=0)
    write_images(knees, f"{scan}_0.png", "x.png")
    text = f"path,side,patient,scan\n{scan}_0.png,right,OAI0000001,{scan}\nx.png,left,p2,s2\n"
    (knees / "knees.csv").write_text(text)
    listing = assert_read_back(knees / "knees.csv", out)
    assert {(s.label, s.patient) for s in listing.slices} == {
        ("right", "OAI0000001"),
        ("left", "p2"),
    }


def test_patients_of_two_sites_are_not_known_either_when_they_are_read_back(knees, out):
    """What is written holds the patient_1 of either site, and tells no more than before."""
    of = [(site, number) for site in ("aarhus", "bergen") for number in (1, 2)]
    write_images(knees, *(f"{site}/patient_{i}/{side}/7.png" for site, i in of for side in SIDES))
    listing = assert_read_back(knees, out)
    assert {s.patient for s in listing.slices} == {""} and listing.of_kind(Kind.NAMELESS)


def test_other_classes_are_read_back_also_for_akoa_names(knees, out):
    scan = AKOA.format(patient=1, side="LEFT", hash=0)
    write_images(
        knees, f"normal/{scan}_3.png", f"{scan}_4.png", "p2/Abnormal/7.png", "x/normal/8.png"
    )
    listing = assert_read_back(knees, out, classes=["normal", "abnormal"])
    assert Counter((s.label, s.patient) for s in listing.slices) == {
        ("normal", "OAI0000001"): 1,
        ("", "OAI0000001"): 1,
        ("abnormal", "p2"): 1,
        ("normal", ""): 1,
    }
    assert f"{scan}_4.png" in os.listdir(out)  # this one's name tells all that is known


def test_names_with_anything_in_them_are_read_back(knees, out):
    names = [b"a,b=c_1", b"100%_2", b"%2C_3", b"two\nlines_4", b"x#7_5", b"back\\slash_6"]
    names += [
        b"\xff\xfe_7",
        "膝_٣".encode(),
        "2²_8".encode(),
        b"label=left_9",
        b"a/b,scan=c/d..e_1",
    ]
    write_images(
        knees, *(side + name + b".png" for side in (b"left/", b"right/") for name in names)
    )
    listing = assert_read_back(knees, out)
    assert len(listing.slices) == len(os.listdir(out)) == 2 * len(names)
    assert {s.scan for s in listing.slices} >= {
        "left/a,b=c",
        "left/100%",
        "left/%2C",
        "left/two\nlines",
        "left/\udcff\udcfe",
    }


def test_numbers_that_occur_twice_are_counted_and_no_slice_is_lost(knees, out):
    """Of a scan that a manifest puts together from folders whose numbers are the same."""
    write_images(knees, "a/1.png", "a/2.png", "b/1.png", "b/2.png", "c/1.png")
    lines = [f"{name}.png,left,p,s\n" for name in ("a/1", "a/2", "b/1", "b/2")]
    (knees / "knees.csv").write_text(
        "path,label,patient,scan\n" + "".join(lines) + "c/1.png,r,q,t\n"
    )
    assert keep(knees / "knees.csv", out) == 0
    scans = by_scan(list_labelled(out).slices)
    assert {name: [s.number for s in of] for name, of in scans.items()} == {
        "s": [0, 1, 2, 3],
        "t": [1],
    }
    for s, name in zip(scans["s"], ("a/1", "a/2", "b/1", "b/2"), strict=True):
        assert Image.open(s.source).tobytes() == Image.open(knees / f"{name}.png").tobytes()


def test_no_two_volumes_go_into_one_scan(knees, out):
    made = pytest.importorskip("volume_files")
    for name in ("a/k!.nii", "a/k?.nii", "b/OAI1_3_LEFT.nii", "c/OAI1_3_LEFT.nii"):
        made.write_volume(knees / name, x=70)
    assert keep(knees, out) == 0
    scans = by_scan(list_slices(out).slices)
    assert {name: len(of) for name, of in scans.items()} == {
        "OAI1_3_LEFT.nii": 12,  # AKOA's name is a scan's: here it has two copies
        "a/k!.nii": 6,
        "a/k?.nii": 6,
    }


def test_unlabelled_slices_are_written_and_are_not_labelled_when_read_back(knees, out, capsys):
    write_images(knees, "new/knee_07.png", "new/knee_08.png", "x.png", "left/p1_1.png")
    listing = assert_read_back(knees, out)
    assert {(s.label, s.patient, s.scan) for s in listing.slices} == {
        ("", "", "new/knee"),
        ("", "", "x"),
        ("left", "p1", "left/p1"),
    }
    assert "4 slices, 3 of them without a label" in capsys.readouterr().out


def test_a_pattern_is_read_back_without_it(knees, out):
    write_images(knees, "s12_L_v1_z003.png", "s12_r_v2_z010.png", "s13_L_v1_z001.png")
    pattern = r"(?P<patient>s\d+)_(?P<label>[LlRr])_v\d_z(?P<slice>\d+)"
    assert_read_back(knees, out, "--name-pattern", pattern)


def test_16_bits_and_colours_become_8_grey_bits(knees, out):
    (knees / "left").mkdir(parents=True)
    Image.fromarray(np.full((3, 4), 60000, np.uint16)).save(knees / "left" / "p1_1.png")
    Image.new("RGB", (4, 3), (90, 90, 90)).save(knees / "left" / "p2_1.jpg", quality=100)
    assert keep(knees, out) == 0
    grey = {s.patient: np.asarray(Image.open(s.source)) for s in list_slices(out).slices}
    assert grey["p1"].dtype == np.uint8 and (grey["p1"] == 233).all() and (grey["p2"] == 90).all()


# ---- whole, or not there -------------------------------------------------------------------------


def nothing_beside(out: Path) -> bool:
    """No folder OUT, and nothing unfinished."""
    return {path.name for path in out.parent.iterdir()} <= {"in"}


def test_exit_codes(tmp_path, knees, out, capsys):
    write_images(knees, "left/p1_1.png", "left/p1_2.png")
    assert keep(knees, out) == 0
    (knees / "left" / "p2_1.png").write_text("no image")
    assert keep(knees, tmp_path / "some") == 1
    assert len(os.listdir(tmp_path / "some")) == 2
    assert f"dataset.py: {knees}/left/p2_1.png: not an image" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    for data, message in [
        ("empty", "no images and no volumes in this folder"),
        ("gone", "no such file"),
        ("in/left/p2_1.png", "not an image"),
    ]:
        assert keep(tmp_path / data, tmp_path / "none") == 2
        error = f"dataset.py: nothing to write: {tmp_path / data}: {message}"
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(error)
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out", "some", "empty"}


def test_volumes_that_cannot_be_read_and_localizers_exit_1(tmp_path, knees, out, capfd):
    made = pytest.importorskip("volume_files")
    made.write_volume(knees / "good.nii.gz", made.noise(6, 30, 30), x=-70)
    assert keep(knees / "good.nii.gz", tmp_path / "one") == 0
    slices = list_slices(tmp_path / "one").slices
    assert {(s.label, s.patient, s.scan) for s in slices} == {
        ("", "", f"{knees}/good.nii.gz")  # as predict.py has it of a single file
    }
    assert [s.number for s in slices] == list(range(6))
    (knees / "cut.nii.gz").write_bytes((knees / "good.nii.gz").read_bytes()[:-500])
    assert keep(knees, out) == 1
    assert {s.scan for s in list_slices(out).slices} == {"good.nii.gz"}
    error = capfd.readouterr().err
    assert f"dataset.py: {knees}/cut.nii.gz: cut or damaged" in error
    (knees / "cut.nii.gz").unlink()
    made.write_dicom(knees / "scout", made.noise(3, 6, 6))
    assert keep(knees, tmp_path / "two") == 0
    assert "1 series too short for a scan" in capfd.readouterr().err
    assert keep(knees / "scout", tmp_path / "three") == 2
    assert "only 3 slices" in capfd.readouterr().err


def test_what_is_there_is_never_overwritten(knees, out, capsys):
    write_images(knees, "left/p1_1.png")
    assert keep(knees, out) == 0
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    write_images(knees, "left/p2_1.png")
    assert keep(knees, out) == 2
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before
    assert f"dataset.py: {out} exists and is not empty" in capsys.readouterr().err
    assert keep(knees, knees / "left" / "p1_1.png") == 2  # a file
    for path in out.iterdir():
        path.unlink()
    assert keep(knees, out) == 0 and len(os.listdir(out)) == 2  # an empty folder may be filled


def test_a_full_disk_leaves_nothing(knees, out, monkeypatch, capsys, in_this_process):
    write_images(knees, *(f"left/p1_{i}.png" for i in range(6)))
    save, saved = Image.Image.save, []

    def full_disk(self, path, *rest):
        if len(saved) == 3:
            raise OSError(28, "No space left on device")
        saved.append(path)
        save(self, path, *rest)

    monkeypatch.setattr(Image.Image, "save", full_disk)
    assert keep(knees, out, "-j", "1") == 1
    assert len(saved) == 3 and nothing_beside(out)
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"dataset.py: {out}: No space left on device")


@pytest.mark.slow
def test_a_file_that_grows_too_large_for_the_system_leaves_nothing(knees, out):
    """A real failure while a real file is written, and not a function that raises it."""
    (knees / "left").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (400, 400), np.uint8)
    Image.fromarray(noise).save(knees / "left" / "p1_1.png")
    done = subprocess.run(
        [sys.executable, ROOT / "dataset.py", knees, "--write-slices", out],
        preexec_fn=limit_files,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and nothing_beside(out)
    assert done.stderr.startswith(f"dataset.py: {out}: File too large")


def limit_files() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


@pytest.mark.parametrize("interrupted", ["read_image", "written_name"])
def test_an_interrupt_leaves_nothing(knees, out, monkeypatch, capsys, interrupted, in_this_process):
    write_images(knees, *(f"left/p1_{i}.png" for i in range(40)))
    calls, real = [], getattr(writing, interrupted)

    def interrupt(*args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(writing, interrupted, interrupt)
    assert keep(knees, out, "-j", "1") == 130
    assert 4 <= len(calls) < 40 and nothing_beside(out)
    assert capsys.readouterr().err == "dataset.py: interrupted\n"


def test_a_name_that_no_file_can_have_is_refused_before_anything_is_written(knees, out, capsys):
    write_images(knees, f"left/{'a' * 120}/{'b' * 120}_1.png")
    assert keep(knees, out) == 2
    assert "its file would have too long a name" in capsys.readouterr().err and nothing_beside(out)


def test_labels_of_any_letters_are_read_back(tmp_path):
    """All that file names can't hold stands in the labels: they are escaped, and read again."""
    labels = ["<50", 'a "b" %/,*?|:', "Ümläut", "back\\slash"]
    rows = []
    for i, label in enumerate(labels):
        Image.new("L", (8, 8), 9 * i).save(tmp_path / f"{i}.png")
        quoted = label.replace('"', '""')
        rows.append(f'{i}.png,"{quoted}",p{i},s{i}')
    (tmp_path / "all.csv").write_text("\n".join(["path,label,patient,scan", *rows]), "utf-8")
    out = tmp_path / "out"
    assert dataset.main([str(tmp_path / "all.csv"), "--write-slices", str(out)]) == 0
    listing = list_labelled(out, labels)
    assert [(s.patient, s.label) for s in listing.slices] == [
        (f"p{i}", label) for i, label in enumerate(labels)
    ]
