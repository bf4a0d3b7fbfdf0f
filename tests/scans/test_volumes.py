"""Volumes of every format: slices, planes, sides, contrast, damage."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from volume_files import FORMATS, noise, sitk, volume, write_dicom

from scans.identity.records import Context, Record
from scans.identity.rules import identify
from scans.listing import below
from scans.series import find_volumes, open_volume
from scans.slices import SIDES, DataError, Options, Volume
from scans.volumes import (
    PLANES,
    VolumeError,
    read_slices,
    side_of_position,
)


class Found:
    """The volumes of a folder and what is wrong with others."""

    def __init__(self, folder: Path, *names: str, plane: str = "stored"):
        found = find_volumes(str(folder), list(names) or os.listdir(folder), Options(plane=plane))
        self.volumes = found.volumes
        self.counts = [v.slicing.slices for v in found.volumes]
        self.problems = [(problem.path, problem.text) for problem in found.problems]


def read(path: Path, plane: str = "stored") -> np.ndarray:
    return read_slices(open_volume(path, Options(plane=plane)))


def tell(v: Volume, root: Path) -> tuple[str | None, str]:
    """The side and who told it first, or None and why not."""
    record = Record(v.source, below(v.path, root, ""), v)
    options = Options(side_by_position=True)
    found = identify([record], Context(SIDES, options, str(root)))
    (record,) = found.records
    if record.label:
        return record.labels[0]
    return None, found.remarks[0].text if found.remarks else "nothing tells the side"


# ---- slices --------------------------------------------------------------------------------------


def test_every_format_gives_the_same_slices(tmp_path):
    pixels = noise(9, 20, 16)
    for ending in FORMATS:
        sitk.WriteImage(volume(pixels), str(tmp_path / f"knee_{ending[-2:]}.{ending}"))
    write_dicom(tmp_path / "dicom", pixels)
    found = Found(tmp_path)
    assert not found.problems and len(found.volumes) == len(FORMATS)
    low, high = np.percentile(pixels, (1, 99.5))
    expected = ((pixels - low) / (high - low) * 255).clip(0, 255).round()
    for v in [*found.volumes, *Found(tmp_path / "dicom").volumes]:
        assert (*tell(v, tmp_path), v.slicing.slices) == ("right", "position", 9), v
        slices = read_slices(v)
        assert slices.dtype == np.uint8 and np.abs(slices - expected).max() <= 1, v.source
        assert all(map(os.path.isfile, v.parts))
    detached = {Path(v.source).name: len(v.parts) for v in found.volumes}
    assert detached["knee_hd.mhd"] == detached["knee_dr.nhdr"] == 2


def test_forty_slices_evenly_over_a_thicker_volume(tmp_path):
    pixels = np.repeat(np.arange(100, dtype=np.int16), 64).reshape(100, 8, 8)
    sitk.WriteImage(volume(pixels), str(tmp_path / "a.nii"))
    slices = read(tmp_path / "a.nii")
    expected = (np.linspace(0, 99, 40).round() - 0.99) / (98.505 - 0.99) * 255
    assert slices.shape == (40, 8, 8)
    assert np.abs(slices[1:-1, 0, 0] - expected[1:-1]).max() < 3


@pytest.mark.parametrize("thick, shape", [(0, (8, 20, 12)), (1, (12, 20, 8)), (2, (20, 12, 8))])
def test_stored_plane_is_across_the_largest_spacing(tmp_path, thick, shape):
    pixels = noise(20, 12, 8)
    spacing = [2.0 if axis == thick else 0.5 for axis in range(3)]
    sitk.WriteImage(volume(pixels, spacing), str(tmp_path / "a.mha"))
    slices = read(tmp_path / "a.mha")
    assert slices.shape == shape
    same = np.moveaxis(pixels, 2 - thick, 0)[3]
    assert np.corrcoef(slices[3].ravel(), same.ravel())[0, 1] > 0.999


@pytest.mark.parametrize("axes, flips", [("210", ""), ("021", "02"), ("102", "1"), ("201", "012")])
def test_anatomical_planes_do_not_depend_on_how_a_volume_is_stored(tmp_path, axes, flips):
    """A bright block at the right, front and top, a grey one at the left, front and top."""
    pixels = noise(12, 10, 8) // 40  # (S, P, L)
    pixels[-4:, :3, :2] = 1000
    pixels[-4:, :3, -2:] = 500
    image = volume(pixels, (1, 1, 1), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1))
    stored = sitk.PermuteAxes(image, [int(a) for a in axes])
    stored = sitk.Flip(stored, [str(a) in flips for a in range(3)])
    sitk.WriteImage(stored, str(tmp_path / "a.nrrd"))
    oriented = sitk.GetArrayFromImage(sitk.DICOMOrient(stored, "LPS"))
    assert np.array_equal(oriented, pixels)
    cut = {plane: read(tmp_path / "a.nrrd", plane) for plane in PLANES[1:]}
    assert cut["sagittal"].shape == (8, 12, 10)
    assert cut["coronal"].shape == (10, 12, 8)
    assert cut["axial"].shape == (12, 10, 8)
    assert (cut["sagittal"][:2, :4, :3] == 255).all()  # first slices right, top left of the image
    assert (cut["coronal"][:3, :4, :2] == 255).all()
    assert (cut["coronal"][:3, :4, -2:] // 2 == 63).all()
    assert (cut["axial"][-4:, :3, :2] == 255).all()
    for slices in cut.values():
        assert (slices == 255).sum() == 4 * 3 * 2
    assert Found(tmp_path, "a.nrrd", plane="coronal").counts == [10]


def test_pixels_become_square_and_absurd_ones_are_refused(tmp_path):
    pixels = np.zeros((6, 20, 30), np.int16)
    pixels[:, 10:] = 100
    sitk.WriteImage(volume(pixels, (0.5, 1.0, 3)), str(tmp_path / "a.nii"))
    slices = read(tmp_path / "a.nii")
    assert slices.shape == (6, 40, 30)
    assert slices[0, :18].max() == 0 and slices[0, 22:].min() == 255
    sitk.WriteImage(volume(pixels, (1e-6, 1.0, 3)), str(tmp_path / "a.nii"))
    with pytest.raises(VolumeError, match="too large"):
        read(tmp_path / "a.nii")


def test_contrast_of_floats_signs_nan_labels_and_nothing(tmp_path):
    path = tmp_path / "a.nrrd"

    def cut(pixels):
        sitk.WriteImage(volume(pixels), str(path))
        return read(path)

    ramp = np.linspace(-3, 7, 6000, dtype=np.float32).reshape(6, 25, 40)
    slices = cut(ramp)
    assert np.abs(slices - ((ramp + 2.9) / 9.85 * 255).clip(0, 255)).max() <= 1
    broken = ramp.copy()
    broken[0, 0, :6] = [np.nan, np.inf, -np.inf, np.nan, np.inf, np.nan]
    assert (cut(broken)[0, 0, :6] == 0).all() and np.abs(cut(broken).astype(int) - slices).max() < 2
    labels = np.zeros((6, 50, 50), np.uint8)
    labels[3, 20, 20:24] = 2, 4, 4, 4  # less than 0.5% of the voxels
    assert cut(labels)[3, 20, 19:24].tolist() == [0, 128, 255, 255, 255]
    assert not cut(np.full((6, 5, 5), 7, np.int16)).any()
    assert not cut(np.full((6, 5, 5), np.nan)).any()


# ---- sides ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, header, x, side, told_by",
    [
        ("knee_LEFT", "", 0, "left", "name"),
        ("knee", "R", 0, "right", "header"),
        ("knee", "", 60, "left", "position"),
        ("knee", "", -60, "right", "position"),
        ("knee", "", 19, None, "nothing tells the side"),
        ("knee_LEFT", "L", 60, "left", "name"),
        ("knee_LEFT", "", -60, None, "the name says left, its position right"),
        ("knee_LEFT", "R", 0, None, "the name says left, its header right"),
        ("knee", "R", 60, None, "the header says right, its position left"),
        ("knee_LEFT", "L", -60, None, "the name says left, its position right"),
    ],
)
@pytest.mark.parametrize("tag", ["0020|0060", "0020|0062"])
def test_name_header_and_position_must_agree(tmp_path, name, header, x, side, told_by, tag):
    write_dicom(tmp_path / name, noise(5, 4, 4), {tag: header}, x=x)
    (v,) = Found(tmp_path / name).volumes
    assert tell(v, tmp_path) == (side, told_by)


def test_files_without_geometry_have_no_position(tmp_path):
    for ending in FORMATS:
        sitk.WriteImage(sitk.GetImageFromArray(noise(6, 100, 100)), str(tmp_path / f"a.{ending}"))
    told = {tell(v, tmp_path) for v in Found(tmp_path).volumes}
    assert told == {(None, "nothing tells the side")}
    path = tmp_path / "b.nrrd"
    sitk.WriteImage(volume(noise(6, 9, 9)), str(path))
    assert side_of_position(Found(tmp_path, "b.nrrd").volumes[0]) == "right"
    space = b"space: left-posterior-superior"
    path.write_bytes(path.read_bytes().replace(space, b"space dimension: 3"))
    assert side_of_position(Found(tmp_path, "b.nrrd").volumes[0]) is None


def test_folders_above_the_root_say_nothing(tmp_path):
    folder = tmp_path / "left" / "data"
    folder.mkdir(parents=True)
    sitk.WriteImage(volume(noise(6, 9, 9)), str(folder / "a.nii"))
    (v,) = Found(folder, "a.nii").volumes
    assert tell(v, tmp_path) == (None, "the folder says left, its position right")
    assert tell(v, folder) == ("right", "position")


# ---- damage --------------------------------------------------------------------------------------


def test_what_is_no_grey_volume_is_named_from_its_header(tmp_path):
    image = volume(noise(6, 9, 9))
    sitk.WriteImage(sitk.JoinSeries([image, image]), str(tmp_path / "a4d.nii"))
    sitk.WriteImage(sitk.Compose(image, image, image), str(tmp_path / "bcolour.nrrd"))
    sitk.WriteImage(image[:, :, 0], str(tmp_path / "cflat.mha"))
    (tmp_path / "dtext.nrrd").write_text("hello")
    (tmp_path / "eempty.dcm").write_text("")
    Image.new("L", (9, 9)).save(tmp_path / "hpicture.dcm", format="PNG")
    sitk.WriteImage(image, str(tmp_path / "fhuge.mha"))
    huge = (tmp_path / "fhuge.mha").read_bytes().replace(b"DimSize = 9 9", b"DimSize = 90000 90000")
    (tmp_path / "fhuge.mha").write_bytes(huge)
    sitk.WriteImage(image[:, :, :3], str(tmp_path / "gthin.nii.gz"))
    sitk.WriteImage(sitk.JoinSeries([image]), str(tmp_path / "fine4d.nrrd"))
    found = Found(tmp_path)
    assert [Path(v.source).name for v in found.volumes] == ["fine4d.nrrd"]
    assert read_slices(found.volumes[0]).shape == (6, 9, 9)
    said = {Path(path).name[0]: problem for path, problem in found.problems}
    assert "4 dimensions" in said["a"] and "3 values a voxel" in said["b"]
    assert "2D image" in said["c"] and "not what its name says" in said["d"] + said["e"]
    assert "claims 90000 x 90000 x 6" in said["f"] and "only 3 slices" in said["g"]
    assert len(said) == len(found.problems) == 8 and "not what its name says" in said["h"]
    with pytest.raises(VolumeError, match=r"fhuge.mha: claims"):
        read(tmp_path / "fhuge.mha")


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("compress", [False, True])
def test_a_cut_file_is_an_error_in_one_line_and_nothing_else(tmp_path, capfd, ending, compress):
    path = tmp_path / f"a.{ending}"
    sitk.WriteImage(volume(noise(30, 30, 30)), str(path), compress)
    data = max(tmp_path.iterdir(), key=lambda p: p.stat().st_size)
    data.write_bytes(data.read_bytes()[:-50])
    with pytest.raises(VolumeError) as error:
        read(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_a_damaged_gzip_and_a_missing_data_file_are_errors(tmp_path, capfd):
    path = tmp_path / "a.nii.gz"
    sitk.WriteImage(volume(noise(60, 64, 64)), str(path))
    content = bytearray(path.read_bytes())
    content[200000:200100] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(VolumeError, match="cut or damaged"):
        read(path)
    sitk.WriteImage(volume(noise(30, 30, 30)), str(tmp_path / "a.mhd"))
    (tmp_path / "a.raw").unlink()
    with pytest.raises(VolumeError, match="missing"):
        read(tmp_path / "a.mhd")
    assert capfd.readouterr() == ("", "")


def test_what_is_no_volume_at_all_is_named(tmp_path):
    with pytest.raises(VolumeError, match=r"nowhere.nii: no such file"):
        read(tmp_path / "nowhere.nii")
    sitk.WriteImage(volume(noise(6, 9, 9)), str(tmp_path / "a.nii"))
    with pytest.raises(DataError, match="plane must be one of"):
        read(tmp_path / "a.nii", "oblique")


def test_a_file_that_has_become_another_is_named(tmp_path):
    path = tmp_path / "a.nrrd"
    sitk.WriteImage(volume(noise(6, 9, 9)), str(path))
    v = open_volume(path)
    sitk.WriteImage(volume(noise(6, 9, 10)), str(path))
    with pytest.raises(VolumeError, match=r"a.nrrd: has changed since its header was read"):
        read_slices(v)


# ---- a real knee ---------------------------------------------------------------------------------


@pytest.mark.skipif("PERCEIVER_MSKT" not in os.environ, reason="see benchmarks/fetch_knee.py")
def test_a_real_knee_of_eight_echoes():
    data = Path(os.environ["PERCEIVER_MSKT"], "data")
    found = Found(data / "MESE_T2_dicom_data")
    (v,) = found.volumes
    assert not found.problems and found.counts == [24]
    assert tell(v, data) == ("right", "position")
    slices = read_slices(v)
    assert slices.shape == (24, 256, 256) and 20 < slices.mean() < 120
    # Fat under the skin and marrow, at the front (left) of the middle slice; air at its corners.
    assert slices[12, 100:150, 40:120].mean() > 2 * slices[12, :, :20].mean()
    (v,) = Found(data, "right_knee_example.nrrd").volumes
    assert tell(v, data)[0] == "right"
    (v,) = Found(data / "Par_Rec_T2_Test", "T2-label.nrrd").volumes
    assert tell(v, data / "Par_Rec_T2_Test") == ("left", "position")
