"""NIfTI by nibabel, beside SimpleITK and NumPy: voxels, geometry, what is odd, and damage."""

import gzip
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import write_knees
from volume_files import noise, sitk, volume, write_volume

from scans.listing import list_slices
from scans.readers import nifti
from scans.series import open_volume
from scans.slices import Kind, VolumeError
from scans.volumes import orientation, orientation_code, read_slices, side_of_position

nib = pytest.importorskip("nibabel")
ROOT = Path(__file__).parents[3]
AFFINE = np.array([[0, 0, 3, 40], [-0.5, 0, 0, 30], [0, -0.4, 0, 20], [0, 0, 0, 1.0]])


def save(path: Path, array=None, affine=AFFINE, kind=nib.Nifti1Image, **header) -> Path:
    array = noise(9, 8, 6) if array is None else array
    image = kind(array, affine)
    for name, value in header.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(VolumeError) as error:
        nifti.read_pixels(open_volume(path))
    return error.value.text


# ---- voxels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i2", "u2", "i4", "f4", ">f4", "f8"])
def test_voxels_are_those_that_were_written(tmp_path, ending, kind, dtype):
    array = noise(9, 8, 6, dtype=dtype)
    path = save(tmp_path / f"a.{ending}", array, kind=kind)
    found = nifti.read_pixels(open_volume(path))
    assert found.dtype == np.float32 and np.array_equal(found, array.T.astype(np.float32))
    if kind is nib.Nifti1Image:
        image = sitk.ReadImage(str(path), sitk.sitkFloat32)
        assert np.array_equal(found, sitk.GetArrayFromImage(image))


def test_slope_and_intercept_are_applied(tmp_path):
    array = noise(9, 8, 6)
    path = save(tmp_path / "a.nii")
    content = bytearray(path.read_bytes())
    struct.pack_into("<2f", content, 112, 0.5, -20)
    path.write_bytes(content)
    assert np.array_equal(nifti.read_pixels(open_volume(path)), array.T * 0.5 - 20)


def test_nan_is_the_minimum(tmp_path):
    array = np.linspace(10, 20, 6 * 9 * 8, dtype=np.float32).reshape(9, 8, 6)
    array[0, 0, :] = np.nan
    slices = read_slices(open_volume(save(tmp_path / "a.nii", array, np.diag([1, 1, 3, 1]))))
    assert slices.max() == 255 and (slices[:, 0, 0] == 0).all()


def test_axes_of_length_one_are_left_out_and_others_are_refused(tmp_path):
    assert open_volume(save(tmp_path / "a.nii", noise(9, 8, 6, 1))).size == (9, 8, 6)
    for shape, text in [((9, 8, 6, 2), "has 4 dimensions"), ((9, 8), "a 2D image")]:
        path = save(tmp_path / "b.nii", noise(*shape))
        for forms in ({}, {"sform": AFFINE, "qform": AFFINE}):
            set_forms(path, **forms)
            with pytest.raises(VolumeError, match=text):
                open_volume(path)
    colours = np.zeros((9, 8, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(VolumeError, match="has 3 values a voxel"):
        open_volume(save(tmp_path / "c.nii", colours))
    with pytest.raises(VolumeError, match="has 2 values a voxel"):
        open_volume(save(tmp_path / "d.nii", noise(9, 8, 6).astype(np.complex64)))


# ---- geometry ------------------------------------------------------------------------------------


def random_affine(rng: np.random.Generator) -> np.ndarray:
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = rotation * rng.uniform(0.3, 4, 3)
    affine[:3, 3] = rng.uniform(-90, 90, 3)
    return affine


@pytest.mark.parametrize("seed", range(20))
def test_geometry_is_that_of_simpleitk(tmp_path, seed):
    """Left-handed axes too, which a qform holds by its qfac."""
    affine = random_affine(np.random.default_rng(seed))
    path = save(tmp_path / "a.nii", affine=affine)
    found, image = open_volume(path), sitk.ReadImage(str(path))
    assert np.allclose(found.spacing, image.GetSpacing(), atol=1e-4)
    assert np.allclose(found.origin, image.GetOrigin(), atol=1e-3)
    assert np.allclose(found.direction.ravel(), image.GetDirection(), atol=1e-4)


def test_letters_of_directions_are_those_of_simpleitk():
    letters_of = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines
    rng = np.random.default_rng(0)
    from conftest import volume_towards

    checked = 0
    for _ in range(300):
        direction, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        if (np.abs(direction).max(axis=0) > 0.8).all():  # of others either may be said
            v = volume_towards("LIP")
            object.__setattr__(v, "direction", direction)
            assert orientation_code(v) == letters_of(direction.ravel().tolist())
            checked += 1
    assert checked > 30


def test_without_codes_there_is_no_geometry(tmp_path):
    path = save(tmp_path / "a.nii")
    set_forms(path)
    found = open_volume(path)
    assert orientation(found) == "" and side_of_position(found) is None
    assert found.spacing == pytest.approx((0.5, 0.4, 3))


def set_forms(path: Path, sform=None, qform=None) -> None:
    image = nib.load(path)
    array = np.asanyarray(image.dataobj)
    image = nib.Nifti1Image(array, None)
    image.header.set_zooms((0.5, 0.4, 3, 1)[: array.ndim])
    image.set_sform(sform, 1 if sform is not None else 0)
    image.set_qform(qform, 1 if qform is not None else 0)
    nib.save(image, path)


def test_the_sform_comes_first_and_a_disagreement_is_said(tmp_path):
    other = AFFINE.copy()
    other[0, 3] = -40
    for name, forms, x in [
        ("both", {"sform": AFFINE, "qform": other}, -40),
        ("q", {"qform": other}, 40),
        ("s", {"sform": AFFINE}, -40),
        ("same", {"sform": AFFINE, "qform": AFFINE}, -40),
    ]:
        (tmp_path / name).mkdir()
        path = save(tmp_path / name / "p1_left.nii")
        set_forms(path, **forms)
        assert open_volume(path).origin[0] == pytest.approx(x)
        said = [str(p) for p in list_slices(tmp_path / name).of_kind(Kind.REMARK)]
        assert any("sform and its qform disagree" in text for text in said) == (name == "both")


@pytest.mark.parametrize("shear, is_said", [(0, False), (0.003, True), (0.25, True)])
def test_a_shear_is_mended_and_said(tmp_path, shear, is_said):
    affine = AFFINE.copy()
    affine[:3, 0] += affine[:3, 1] / 0.4 * shear * 0.5
    path = save(tmp_path / "p1_left.nii")
    set_forms(path, sform=affine)
    found = open_volume(path)
    assert np.allclose(found.direction.T @ found.direction, np.eye(3), atol=1e-9)
    assert ("note" in found.tags) == is_said
    (said,) = [
        str(p) for p in list_slices(tmp_path).of_kind(Kind.REMARK) if "sheared" in str(p)
    ] or [""]
    assert bool(said) == is_said


def test_a_large_shear_is_refused_by_its_name(tmp_path):
    affine = AFFINE.copy()
    affine[:3, 0] += affine[:3, 1]
    path = save(tmp_path / "a.nii")
    set_forms(path, sform=affine)
    with pytest.raises(VolumeError, match=r"sheared by \d\d degrees, expected right angles"):
        open_volume(path)


# ---- damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_cut_files_are_refused_wherever_they_are_cut(tmp_path, ending):
    path = save(tmp_path / f"a.{ending}")
    whole = path.read_bytes()
    for end in np.linspace(0, len(whole) - 1, 40).astype(int):
        path.write_bytes(whole[:end])
        assert refusal(path)


def test_damage_in_packed_voxels_is_found_by_their_checksum(tmp_path):
    path = save(tmp_path / "a.nii.gz", noise(60, 64, 30))
    content = bytearray(path.read_bytes())
    content[20_000:20_100] = bytes(100)
    path.write_bytes(content)
    assert refusal(path).startswith("cut or damaged")


@pytest.mark.parametrize(
    "place, form, values",
    [
        (40, "h", (9, -5, 0)),  # dimensions
        (42, "h", (-5, 0)),  # and how many of each
        (70, "h", (7777, 1)),  # type
        (108, "f", (1e30, -1, float("nan"))),  # where voxels begin
        (280, "f", (1e30, float("nan"), float("inf"))),  # sform
    ],
)
def test_headers_that_can_not_be_are_refused(tmp_path, place, form, values):
    write_volume(tmp_path / "a.nii")
    good = (tmp_path / "a.nii").read_bytes()
    for value in values:
        content = bytearray(good)
        struct.pack_into(f"<{form}", content, place, value)
        (tmp_path / "a.nii").write_bytes(content)
        assert refusal(tmp_path / "a.nii")


def test_other_files_of_this_ending_are_refused_in_one_line(tmp_path):
    for content in (b"", b"\0" * 400, b"no volume at all" * 50, gzip.compress(b"x" * 500)):
        (tmp_path / "a.nii").write_bytes(content)
        (tmp_path / "a.nii.gz").write_bytes(content)
        for name in ("a.nii", "a.nii.gz"):
            assert "\n" not in refusal(tmp_path / name)


def test_names_that_are_no_text_are_read(tmp_path):
    path = os.path.join(tmp_path, os.fsdecode(b"p1_\xff_LEFT.nii"))
    save(tmp_path / "a.nii", affine=np.diag([1, 1, 3, 1]))
    os.rename(tmp_path / "a.nii", path)
    (s, *_) = list_slices(tmp_path).slices
    assert s.source == path and s.label == "left" and read_slices(s.volume).any()


def test_without_nibabel_one_line_says_what_to_install(tmp_path):
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "nibabel.py").write_text("raise ImportError('blocked')")
    write_knees(tmp_path / "knees", patients=2)
    sitk.WriteImage(volume(noise(6, 9, 9)), str(tmp_path / "knees" / "p1_LEFT.nii"))
    done = subprocess.run(
        [sys.executable, ROOT / "dataset.py", "knees", "--write-slices", "out"],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "blocked")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (
        "reading NIfTI needs nibabel (ImportError: blocked): pip install -r requirements-extra.txt"
        in done.stderr
    )
    assert "Traceback" not in done.stderr
