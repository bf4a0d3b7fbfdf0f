"""Folders of DICOM files: series, echoes, order, gaps; and no SimpleITK to read them with."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, write_knees
from PIL import Image
from volume_files import noise, sitk, volume, write_dicom, write_two_series

from perceiver import Perceiver
from scans.cache import decode_slices
from scans.listing import list_slices
from scans.names import is_volume_name
from scans.readers import is_dicom
from scans.series import find_volumes, open_volume
from scans.slices import SIDES, Options, Volume, by_scan
from scans.volumes import VolumeError, plan_slicing, read_slices

ROOT = Path(__file__).parents[3]


def find(folder: Path) -> tuple[list[Volume], list[tuple[str, str]]]:
    found = find_volumes(str(folder), os.listdir(folder))
    return found.volumes, [(p.path, p.text) for p in found.problems]


def the_problem(folder: Path) -> str:
    found, problems = find(folder)
    assert not found and len(problems) == 1
    return problems[0][1]


def test_dicom_is_known_by_its_content_where_the_name_does_not_tell(tmp_path):
    content = b"\0" * 128 + b"DICM"
    for name in ("IM0001", "1.2.840.5", "x.ima", "x.png", "x.nii", "._IM0001", "DICOMDIR"):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "README").write_bytes(b"short")
    known = {name for name in os.listdir(tmp_path) if is_dicom(tmp_path / name)}
    assert known == {"IM0001", "1.2.840.5", "x.ima"}
    assert is_dicom("nowhere/x.DCM") and not is_dicom("nowhere/x")
    assert is_volume_name("a/KNEE.NII.GZ") and not is_volume_name("._knee.nii")


def test_dicom_is_ordered_by_position_whatever_the_names(tmp_path):
    pixels = (np.arange(11)[:, None, None] * 20 + np.zeros((11, 8, 8))).astype(np.int16)
    names = [f"{n}" for n in np.random.default_rng(1).permutation(11)]  # and without suffix
    write_dicom(tmp_path / "d", pixels, {"0010|0020": "p 7 "}, names=names)
    (v,), problems = find(tmp_path / "d")
    assert not problems and v.tags["patient"] == "p 7" and v.spacing == pytest.approx((0.5, 0.5, 3))
    assert v.parts == tuple(str(tmp_path / "d" / name) for name in names)
    assert (np.diff(read_slices(v)[:, 0, 0].astype(int)) > 0).all()
    assert np.array_equal(
        read_slices(v)[::-1], read_slices(plan_slicing(v, Options(plane="sagittal")))
    )


def test_shortest_echo_and_every_series_but_no_localizer(tmp_path):
    pixels = noise(6, 8, 10)
    for number, echo, scale in [("4", "30", 3), ("4", "9.5", 1), ("5", "9.5", 2)]:
        tags = {"0020|000e": f"1.{number}", "0020|0011": number, "0018|0081": echo}
        names = [f"{number}-{echo}-{k}" for k in range(6)]
        write_dicom(tmp_path / "d", pixels // scale, tags, names=names)
    localizer = {"0020|000e": "1.1", "0020|0011": "1", "0008|103e": "LOC"}
    write_dicom(tmp_path / "d", pixels[:3], localizer, names=["a", "b", "c"])
    found, problems = find(tmp_path / "d")
    folder = str(tmp_path / "d")
    assert [v.source for v in found] == [folder, f"{folder}#2"]
    assert set(problems) == {
        (folder, "series 1 (LOC): only 3 slices, expected 5 or more"),
        (folder, "9.5 ms"),  # of Kind.ECHOES: which one was taken
    }
    files = found[0].parts
    assert all("/4-9.5-" in file for file in files) and len(files) == 6
    write_dicom(tmp_path / "e", pixels // 2)
    assert np.array_equal(read_slices(found[1]), read_slices(open_volume(tmp_path / "e")))
    with pytest.raises(VolumeError, match=f"a: one slice of a DICOM .* its folder: {folder}$"):
        open_volume(tmp_path / "d" / "a")
    (longer, *_), _ = find_volumes(folder, os.listdir(folder), Options(echo=2))
    assert all("/4-30-" in file for file in longer.parts) and len(longer.parts) == 6
    (other,), problems = find_volumes(folder, os.listdir(folder), Options(echo=3))
    assert other.parts[0].startswith(f"{folder}/5-") and "4 (no" in problems[-1].text
    assert "has 2 echoes, and --echo asks for 3" in problems[-1].text


def test_one_missing_slice_is_accepted_and_several_are_not(tmp_path):
    write_dicom(tmp_path / "a", noise(12, 6, 6), skip=[5])
    (v,), _ = find(tmp_path / "a")
    assert len(v.parts) == len(read_slices(v)) == 11
    write_dicom(tmp_path / "b", noise(12, 6, 6), skip=[5, 8])
    assert "2 of 12 slices missing" in the_problem(tmp_path / "b")
    write_dicom(tmp_path / "c", noise(1, 6, 6))
    assert "only 1 slice, expected 5 or more" in the_problem(tmp_path / "c")


def test_two_slices_at_one_position_are_named(tmp_path):
    write_dicom(tmp_path / "d", noise(6, 6, 6))
    write_dicom(tmp_path / "d", noise(6, 6, 6)[:1], x=-70 - 7.5, names=["again"])
    assert "1 slice where another one lies" in the_problem(tmp_path / "d")
    assert "again" in the_problem(tmp_path / "d")


def test_monochrome1_is_inverted_once(tmp_path):
    pixels = noise(6, 16, 16)
    for name in write_dicom(tmp_path / "d", pixels):
        path = tmp_path / "d" / name
        path.write_bytes(path.read_bytes().replace(b"MONOCHROME2", b"MONOCHROME1"))
    slices = read_slices(open_volume(tmp_path / "d"))
    assert np.corrcoef(slices.ravel(), pixels.ravel())[0, 1] < -0.99


def test_multi_frame_dicom_is_a_source_by_itself(tmp_path):
    image = volume(noise(7, 20, 16, dtype=np.uint16))
    image.SetMetaData("0008|0060", "MR")
    sitk.WriteImage(image, str(tmp_path / "frames"), imageIO="GDCMImageIO")
    (v,), problems = find(tmp_path)
    assert not problems and v.source.endswith("frames")
    options = Options(side_by_position=True)
    assert list_slices(tmp_path, None, options).slices[0].label == "right"
    assert read_slices(v).shape == (7, 20, 16)


def test_a_dicom_file_of_an_unknown_kind_is_named(tmp_path):
    name = write_dicom(tmp_path / "d", noise(12, 6, 6))[3]
    path = tmp_path / "d" / name
    path.write_bytes(
        re.sub(rb"1\.2\.840\.10008\.1\.2(\.1)?\0", rb"1.2.840.10008.1.9\1\0", path.read_bytes())
    )
    with pytest.raises(VolumeError) as refused:
        read_slices(open_volume(tmp_path / "d"))
    assert refused.value.path == str(path) and "\n" not in refused.value.text


# ---- names of series -----------------------------------------------------------------------------


def test_folder_called_like_a_second_series_is_not_taken_for_it(tmp_path):
    """Slices are known by their source: dicom#2 is the folder, so the second series is dicom#3."""
    write_two_series(tmp_path / "dicom")
    write_dicom(tmp_path / "dicom#2", noise(8, 5, 5))
    listing = list_slices(tmp_path)
    assert {name: len(members) for name, members in by_scan(listing.slices).items()} == {
        "dicom": 6,
        "dicom#2": 8,
        "dicom#3": 6,
    }
    assert len({s.name for s in listing.slices}) == 20
    decoded = decode_slices(listing.slices, (8, 10), progress=False)
    assert not decoded.errors
    for s, pixels in zip(listing.slices, decoded.pixels, strict=True):
        folder = tmp_path / ("dicom#2" if s.source.endswith("#2") else "dicom")
        assert all(os.path.dirname(part) == str(folder) for part in s.volume.parts)
        expected = read_slices(s.volume)[s.index]
        if expected.shape == (8, 10):
            assert np.array_equal(pixels[0], expected)


def test_image_called_like_a_slice_of_a_volume_is_an_image(tmp_path):
    sitk.WriteImage(volume(noise(9, 5, 5)), str(tmp_path / "scan.nii"))
    Image.new("L", (5, 5), 77).save(tmp_path / "scan#7.png")
    Image.new("L", (5, 5), 78).save(tmp_path / "scan.nii#7.png")
    listing = list_slices(tmp_path, None, Options(side_by_position=True))
    images = {Path(s.source).name: s for s in listing.slices if s.index is None}
    assert images.keys() == {"scan#7.png", "scan.nii#7.png"} and not listing.problems
    assert len(listing.slices) == 11
    assert (images["scan#7.png"].scan, images["scan#7.png"].number) == ("scan", 7)
    decoded = decode_slices(listing.slices, (5, 5), progress=False)
    assert not decoded.errors
    for name, grey in [("scan#7.png", 77), ("scan.nii#7.png", 78)]:
        assert (decoded.pixels[listing.slices.index(images[name])] == grey).all()


def test_two_series_in_a_folder_of_an_akoa_name_are_two_scans_of_its_patient(tmp_path):
    name = "OAI9014797_BaseLine_3_de3d1_SAG_3D_DESS_WE_RIGHT"
    write_two_series(tmp_path / name)
    listing = list_slices(tmp_path)
    assert {(s.scan, s.patient, s.label) for s in listing.slices} == {
        (name, "OAI9014797", "right"),
        (f"{name}#2", "OAI9014797", "right"),
    }


def test_folder_of_dicom_files_itself_is_a_scan_of_its_name(tmp_path):
    write_two_series(tmp_path / "p7_RIGHT")
    listing = list_slices(tmp_path / "p7_RIGHT")
    assert {(s.scan, s.patient, s.label) for s in listing.slices} == {
        ("p7_RIGHT", "p7", "right"),
        ("p7_RIGHT#2", "p7", "right"),
    }


@pytest.mark.parametrize("every", [2, 3])
def test_cosines_that_a_scanner_rounds_otherwise_are_one_series(tmp_path, every):
    for k in range(12):
        tilt = 0.1235 + (2e-6 if k % every else -2e-6)
        cosines = f"0\\1\\0\\{tilt:.7f}\\0\\{-np.sqrt(1 - tilt**2):.7f}"
        x = -(9 - tilt) * k
        tags = {"0020|0037": cosines, "0020|0032": f"{x}\\-50\\60"}
        write_dicom(tmp_path / "d", noise(1, 6, 6), tags, names=[f"{k}"])
    (v,), problems = find(tmp_path / "d")
    assert v.size == (6, 6, 12) and not problems


def test_what_could_not_be_read_is_read_again_when_it_is_mended(tmp_path):
    """A header may name a file that is not there yet."""
    sitk.WriteImage(volume(noise(6, 9, 9)), str(tmp_path / "d.mhd"))
    raw = (tmp_path / "d.raw").read_bytes()
    (tmp_path / "d.raw").unlink()
    options = Options(cache_dir=tmp_path / "cache")
    for is_there in (False, False, True, True):
        if is_there:
            (tmp_path / "d.raw").write_bytes(raw)
        found = list_slices(tmp_path, None, options)
        assert bool(found.slices) == is_there


# ---- without SimpleITK ---------------------------------------------------------------------------


@pytest.fixture
def without_readers(tmp_path) -> Callable:
    """Runs a program of this name with data, where neither SimpleITK nor pydicom is installed."""
    (tmp_path / "blocked").mkdir()
    for name in ("SimpleITK", "pydicom"):
        (tmp_path / "blocked" / f"{name}.py").write_text("raise ImportError('blocked')")
    model = Perceiver(2, num_latents=4, latent_dim=8, depth=1, latent_heads=1)
    model.preprocessing |= {"classes": list(SIDES), "image_size": [16, 16]}
    model.calibration["unsure_below"] = 0.6
    torch.save(model.checkpoint(), tmp_path / "model.pt")
    out = tmp_path / "out"

    def run(program: str, data: Path) -> subprocess.CompletedProcess:
        if program == "dataset.py" and data.is_file():  # it takes no single file, but a manifest
            data = tmp_path / "knees.csv"
            data.write_text("path,label\nknees/a.nrrd,left\n")
        arguments = {
            "train.py": ["train.py", "--dry-run", "--data-dir", data, *TINY],
            "predict.py": ["predict.py", tmp_path / "model.pt", data],
            "dataset.py": ["dataset.py", data, "--contact-sheet", tmp_path / "sheet.png"],
            "--write-slices": ["dataset.py", data, "--write-slices", out],
        }[program]
        return subprocess.run(
            [sys.executable, ROOT / arguments[0], *arguments[1:]],
            env={**os.environ, "PYTHONPATH": str(tmp_path / "blocked")},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    return run


@pytest.mark.parametrize("name", ["knees", "knees/a.nrrd"])
@pytest.mark.parametrize(
    "program",
    [
        "train.py",
        *(
            pytest.param(program, marks=pytest.mark.slow)
            for program in ("predict.py", "dataset.py", "--write-slices")
        ),
    ],
)
def test_without_what_reads_it_one_line_says_what_to_install(
    tmp_path, without_readers, program, name
):
    """Where nothing else can be read, or has a label."""
    (tmp_path / "knees").mkdir()
    (tmp_path / "knees" / "IM0001").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "knees" / "a.nrrd").write_bytes(b"")
    if program in ("train.py", "dataset.py"):
        Image.new("L", (4, 3)).save(tmp_path / "knees" / "p1_1.png")
    if program == "train.py" and name != "knees":
        pytest.skip("it takes no single file")
    done = without_readers(program, tmp_path / name)
    assert done.returncode == 2 and not done.stdout
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "out").exists()
    assert "pip install -r requirements-extra.txt" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("program", ["dataset.py", "predict.py"])
def test_of_a_broken_pydicom_one_line_says_what_happened(tmp_path, without_readers, program):
    (tmp_path / "blocked" / "pydicom.py").write_text("raise OSError('libz.so:\\ntoo old')")
    (tmp_path / "knees").mkdir()
    (tmp_path / "knees" / "IM0001").write_bytes(b"\0" * 128 + b"DICM")
    done = without_readers(program, tmp_path / "knees")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "reading DICOM needs pydicom (OSError: libz.so:" in done.stderr
    assert done.stderr.endswith("): pip install -r requirements-extra.txt\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    "program, code", [("train.py", 0), ("predict.py", 1), ("dataset.py", 0), ("--write-slices", 1)]
)
def test_one_dicom_file_between_pngs_is_named_without_pydicom(
    tmp_path, without_readers, program, code
):
    write_knees(tmp_path / "knees", patients=4)
    (tmp_path / "knees" / "IM0001").write_bytes(b"\0" * 128 + b"DICM")
    done = without_readers(program, tmp_path / "knees")
    assert done.returncode == code, done.stderr
    lines = [line for line in f"{done.stdout}{done.stderr}".splitlines() if "pydicom" in line]
    assert len(lines) == 1 and str(tmp_path / "knees") in lines[0]
    assert "pip install -r requirements-extra.txt" in lines[0]
