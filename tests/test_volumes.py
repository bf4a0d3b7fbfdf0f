"""Volumes of every format, made by SimpleITK: slices, planes, sides, damage, the program."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dataset
import volumes
from volumes import VolumeError, find_volumes, read_slices, side_in_name

sitk = pytest.importorskip("SimpleITK")
ROOT = Path(__file__).parent.parent
# Columns: where i, j, k point in patient coordinates (x left, y back, z up).
SAGITTAL = (0, 0, -1, 1, 0, 0, 0, -1, 0)  # i to the back, j downwards, k to the right
FORMATS = ("nii", "nii.gz", "nrrd", "nhdr", "mha", "mhd")


def noise(*shape: int, dtype=np.int16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4096, shape).astype(dtype)


def volume(pixels, spacing=(0.5, 0.5, 3), x=-70.0, direction=SAGITTAL, origin=None):
    """An image of an array (k, j, i), centred at x unless it has an origin."""
    image = sitk.GetImageFromArray(pixels)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    centre = image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()])
    image.SetOrigin([x - centre[0], 0.0, 5.0] if origin is None else origin)
    return image


def write_dicom(folder: Path, pixels, tags=(), x=-70.0, names=None, step=3.0, skip=()) -> list[str]:
    """Single sagittal slices, from left to right; the names say nothing of their order."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    written = []
    for k, rows in enumerate(pixels):
        if k in skip:
            continue
        image = sitk.GetImageFromArray(rows[None])
        image.SetSpacing((0.5, 0.5, step))
        position = f"{x - step * (k - (len(pixels) - 1) / 2)}\\-50\\60"
        standard = {
            "0008|0060": "MR",
            "0020|000e": "1.2.3",
            "0020|0011": "4",
            "0020|0032": position,
            "0020|0037": "0\\1\\0\\0\\0\\-1",
            "0008|0018": f"1.2.3.{k + 1}.{abs(hash(str(tags))) % 10**8}",
        }
        for tag, value in {**standard, **dict(tags)}.items():
            image.SetMetaData(tag, value)
        name = names[k] if names else f"{(7 * k) % len(pixels):03}.dcm"
        writer.SetFileName(str(folder / "temporary.dcm"))
        writer.Execute(image)
        (folder / "temporary.dcm").rename(folder / name)
        written.append(name)
    return written


def find(folder: Path):
    return find_volumes(str(folder), os.listdir(folder), root=str(folder.parent))


def the_problem(folder: Path) -> str:
    found, problems = find(folder)
    assert not found and len(problems) == 1
    return problems[0][1]


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, side",
    [
        ("p01/knee_RIGHT.nii.gz", "right"),
        ("OAI9014797_BaseLine_3_L_E_F_T.nii.gz", "left"),
        ("left/p01/7.nrrd", "left"),
        ("left/p01/right.nrrd", "right"),
        ("left/right/x.nii", "right"),
        ("left/left_or_right.nii", None),
        ("copyright/bright_cleft.nii", None),
        ("p01/dicom_LEFT#2", "left"),
    ],
)
def test_side_is_a_word_of_the_nearest_name(name, side):
    assert side_in_name(name) == side


def test_dicom_is_known_by_its_content_where_the_name_does_not_tell(tmp_path):
    content = b"\0" * 128 + b"DICM"
    for name in ("IM0001", "1.2.840.5", "x.ima", "x.png", "x.nii", "._IM0001", "DICOMDIR"):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "README").write_bytes(b"short")
    known = {name for name in os.listdir(tmp_path) if volumes.is_dicom(tmp_path / name)}
    assert known == {"IM0001", "1.2.840.5", "x.ima"}
    assert volumes.is_dicom("nowhere/x.DCM") and not volumes.is_dicom("nowhere/x")
    assert volumes.is_volume_name("a/KNEE.NII.GZ") and not volumes.is_volume_name("._knee.nii")


# ---- slices --------------------------------------------------------------------------------------


def test_every_format_gives_the_same_slices(tmp_path):
    pixels = noise(9, 20, 16)
    for ending in FORMATS:
        sitk.WriteImage(volume(pixels), str(tmp_path / f"knee_{ending[-2:]}.{ending}"))
    write_dicom(tmp_path / "dicom", pixels)
    found, problems = find(tmp_path)
    assert not problems and len(found) == len(FORMATS)
    low, high = np.percentile(pixels, (1, 99.5))
    expected = ((pixels - low) / (high - low) * 255).clip(0, 255).round()
    for v in [*found, *find(tmp_path / "dicom")[0]]:
        assert (v.side, v.told_by, v.num_slices) == ("right", "position", 9), v.source
        slices = read_slices(v.source)
        assert slices.dtype == np.uint8 and np.abs(slices - expected).max() <= 1, v.source
        assert all(map(os.path.isfile, v.files))
    detached = {Path(v.source).name: len(v.files) for v in found}
    assert detached["knee_hd.mhd"] == detached["knee_dr.nhdr"] == 2


def test_forty_slices_evenly_over_a_thicker_volume(tmp_path):
    pixels = np.repeat(np.arange(100, dtype=np.int16), 64).reshape(100, 8, 8)
    sitk.WriteImage(volume(pixels), str(tmp_path / "a.nii"))
    slices = read_slices(str(tmp_path / "a.nii"))
    expected = (np.linspace(0, 99, 40).round() - 0.99) / (98.505 - 0.99) * 255
    assert slices.shape == (40, 8, 8)
    assert np.abs(slices[1:-1, 0, 0] - expected[1:-1]).max() < 3


@pytest.mark.parametrize("thick, shape", [(0, (8, 20, 12)), (1, (12, 20, 8)), (2, (20, 12, 8))])
def test_stored_plane_is_across_the_largest_spacing(tmp_path, thick, shape):
    pixels = noise(20, 12, 8)
    spacing = [2.0 if axis == thick else 0.5 for axis in range(3)]
    sitk.WriteImage(volume(pixels, spacing), str(tmp_path / "a.mha"))
    slices = read_slices(str(tmp_path / "a.mha"))
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
    cut = {plane: read_slices(str(tmp_path / "a.nrrd"), plane) for plane in volumes.PLANES[1:]}
    assert cut["sagittal"].shape == (8, 12, 10)
    assert cut["coronal"].shape == (10, 12, 8)
    assert cut["axial"].shape == (12, 10, 8)
    assert (cut["sagittal"][:2, :4, :3] == 255).all()  # first slices right, top left of the image
    assert (cut["coronal"][:3, :4, :2] == 255).all()
    assert (cut["coronal"][:3, :4, -2:] // 2 == 63).all()
    assert (cut["axial"][-4:, :3, :2] == 255).all()
    for slices in cut.values():
        assert (slices == 255).sum() == 4 * 3 * 2
    assert find_volumes(str(tmp_path), ["a.nrrd"], "coronal")[0][0].num_slices == 10


def test_pixels_become_square_and_absurd_ones_are_refused(tmp_path):
    pixels = np.zeros((6, 20, 30), np.int16)
    pixels[:, 10:] = 100
    sitk.WriteImage(volume(pixels, (0.5, 1.0, 3)), str(tmp_path / "a.nii"))
    slices = read_slices(str(tmp_path / "a.nii"))
    assert slices.shape == (6, 40, 30)
    assert slices[0, :18].max() == 0 and slices[0, 22:].min() == 255
    sitk.WriteImage(volume(pixels, (1e-6, 1.0, 3)), str(tmp_path / "a.nii"))
    with pytest.raises(VolumeError, match="too large"):
        read_slices(str(tmp_path / "a.nii"))


def test_contrast_of_floats_signs_nan_labels_and_nothing(tmp_path):
    path = str(tmp_path / "a.nrrd")

    def cut(pixels):
        sitk.WriteImage(volume(pixels), path)
        return read_slices(path)

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


# ---- DICOM ---------------------------------------------------------------------------------------


def test_dicom_is_ordered_by_position_whatever_the_names(tmp_path):
    pixels = (np.arange(11)[:, None, None] * 20 + np.zeros((11, 8, 8))).astype(np.int16)
    names = [f"{n}" for n in np.random.default_rng(1).permutation(11)]  # and without suffix
    write_dicom(tmp_path / "d", pixels, {"0010|0020": "p 7 "}, names=names)
    (v,), problems = find(tmp_path / "d")
    assert not problems and v.patient == "p 7" and v.spacing == pytest.approx((0.5, 0.5, 3))
    assert v.files == tuple(str(tmp_path / "d" / name) for name in names)
    assert (np.diff(read_slices(v.source)[:, 0, 0].astype(int)) > 0).all()
    assert np.array_equal(read_slices(v.source)[::-1], read_slices(v.source, "sagittal"))


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
    assert problems == [(folder, "series 1 (LOC): only 3 slices, expected 5 or more")]
    assert all("/4-9.5-" in file for file in found[0].files) and len(found[0].files) == 6
    write_dicom(tmp_path / "e", pixels // 2)
    assert np.array_equal(read_slices(f"{folder}#2"), read_slices(str(tmp_path / "e")))
    with pytest.raises(VolumeError, match="#3: series 1"):
        read_slices(f"{folder}#3")


def test_one_missing_slice_is_accepted_and_several_are_not(tmp_path):
    write_dicom(tmp_path / "a", noise(12, 6, 6), skip=[5])
    assert find(tmp_path / "a")[0][0].num_slices == 11
    write_dicom(tmp_path / "b", noise(12, 6, 6), skip=[5, 8])
    assert "2 of 12 slices are missing" in the_problem(tmp_path / "b")


def test_two_slices_at_one_position_are_named(tmp_path):
    write_dicom(tmp_path / "d", noise(6, 6, 6))
    write_dicom(tmp_path / "d", noise(6, 6, 6)[:1], x=-70 - 7.5, names=["again"])
    assert "1 slices lie where another one does" in the_problem(tmp_path / "d")
    assert "again" in the_problem(tmp_path / "d")


def test_monochrome1_is_inverted_once(tmp_path):
    pixels = noise(6, 16, 16)
    for name in write_dicom(tmp_path / "d", pixels):
        path = tmp_path / "d" / name
        path.write_bytes(path.read_bytes().replace(b"MONOCHROME2", b"MONOCHROME1"))
    slices = read_slices(str(tmp_path / "d"))
    assert np.corrcoef(slices.ravel(), pixels.ravel())[0, 1] < -0.99


def test_multi_frame_dicom_is_a_source_by_itself(tmp_path):
    image = volume(noise(7, 20, 16, dtype=np.uint16))
    image.SetMetaData("0008|0060", "MR")
    sitk.WriteImage(image, str(tmp_path / "frames"), imageIO="GDCMImageIO")
    (v,), problems = find(tmp_path)
    assert not problems and v.source.endswith("frames") and v.side == "right"
    assert read_slices(v.source).shape == (7, 20, 16)


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
        ("knee_LEFT", "L", -60, None, "the name says left, its header left, its position right"),
    ],
)
@pytest.mark.parametrize("tag", ["0020|0060", "0020|0062"])
def test_name_header_and_position_must_agree(tmp_path, name, header, x, side, told_by, tag):
    write_dicom(tmp_path / name, noise(5, 4, 4), {tag: header}, x=x)
    (v,), _ = find(tmp_path / name)
    assert (v.side, v.told_by) == (side, told_by)


def test_files_without_geometry_have_no_position(tmp_path):
    for ending in FORMATS:
        sitk.WriteImage(sitk.GetImageFromArray(noise(6, 100, 100)), str(tmp_path / f"a.{ending}"))
    assert {v.told_by for v in find(tmp_path)[0]} == {"nothing tells the side"}
    path = tmp_path / "b.nrrd"
    sitk.WriteImage(volume(noise(6, 9, 9)), str(path))
    assert find_volumes(str(tmp_path), ["b.nrrd"])[0][0].side == "right"
    space = b"space: left-posterior-superior"
    path.write_bytes(path.read_bytes().replace(space, b"space dimension: 3"))
    assert find_volumes(str(tmp_path), ["b.nrrd"])[0][0].side is None


def test_folders_above_the_root_say_nothing(tmp_path):
    folder = tmp_path / "left" / "data"
    folder.mkdir(parents=True)
    sitk.WriteImage(volume(noise(6, 9, 9)), str(folder / "a.nii"))
    assert find_volumes(str(folder), ["a.nii"])[0][0].side is None
    assert find_volumes(str(folder), ["a.nii"], root=str(folder))[0][0].side == "right"


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
    found, problems = find(tmp_path)
    assert [Path(v.source).name for v in found] == ["fine4d.nrrd"]
    assert read_slices(found[0].source).shape == (6, 9, 9)
    said = {Path(path).name[0]: problem for path, problem in problems}
    assert "4 dimensions" in said["a"] and "3 values a voxel" in said["b"]
    assert "2D image" in said["c"] and "not what its name says" in said["d"] + said["e"]
    assert "claims 90000 x 90000 x 6" in said["f"] and "only 3 slices" in said["g"]
    assert len(said) == len(problems) == 8 and "2D image" in said["h"]
    with pytest.raises(VolumeError, match=r"fhuge.mha: claims"):
        read_slices(str(tmp_path / "fhuge.mha"))


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("compress", [False, True])
def test_a_cut_file_is_an_error_in_one_line_and_nothing_else(tmp_path, capfd, ending, compress):
    path = tmp_path / f"a.{ending}"
    sitk.WriteImage(volume(noise(30, 30, 30)), str(path), compress)
    data = max(tmp_path.iterdir(), key=lambda p: p.stat().st_size)
    data.write_bytes(data.read_bytes()[:-50])
    with pytest.raises(VolumeError) as error:
        read_slices(str(path))
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_a_damaged_gzip_and_a_missing_data_file_are_errors(tmp_path, capfd):
    path = tmp_path / "a.nii.gz"
    sitk.WriteImage(volume(noise(60, 64, 64)), str(path))
    content = bytearray(path.read_bytes())
    content[200000:200100] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(VolumeError, match="cut or damaged"):
        read_slices(str(path))
    sitk.WriteImage(volume(noise(30, 30, 30)), str(tmp_path / "a.mhd"))
    (tmp_path / "a.raw").unlink()
    with pytest.raises(VolumeError, match="missing"):
        read_slices(str(tmp_path / "a.mhd"))
    assert capfd.readouterr() == ("", "")


def test_a_dicom_file_of_an_unknown_kind_is_named(tmp_path):
    name = write_dicom(tmp_path / "d", noise(12, 6, 6))[3]
    path = tmp_path / "d" / name
    path.write_bytes(
        re.sub(rb"1\.2\.840\.10008\.1\.2(\.1)?\0", rb"1.2.840.10008.1.9\1\0", path.read_bytes())
    )
    (v,), problems = find(tmp_path / "d")
    assert v.num_slices == 11 and problems[0][0] == str(path)
    with pytest.raises(VolumeError, match=r"nowhere.nii: .*does not exist"):
        read_slices(str(tmp_path / "nowhere.nii"))
    with pytest.raises(VolumeError, match="plane must be one of"):
        read_slices(str(tmp_path / "d"), "oblique")


# ---- program -------------------------------------------------------------------------------------


def test_program_writes_what_dataset_reads(tmp_path, capfd):
    root, out = tmp_path / "left" / "in", tmp_path / "out"
    akoa = "OAI9014797_BaseLine_3_de3d1_SAG_3D_DESS_WE_RIGHT.nii.gz"
    for path, x in [
        (root / akoa, -70),
        (root / "p01" / "visit1" / "knee.nrrd", 70),
        (root / "p01" / "visit2" / "knee.nrrd", 70),
        (root / "p02_LEFT.mha", 70),
        (root / "p03_LEFT.mha", -70),
        (root / "p04" / "left.nii", -70),
    ]:
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(volume(noise(6, 9, 12), x=x), str(path))
    write_dicom(root / "p9" / "dicom", noise(8, 9, 9), {"0010|0020": "../p/5"})
    assert volumes.main([str(root), str(out), "-j", "2"]) == 0
    slices, _ = dataset.find_slices(out)
    scans = {
        name: (s[0].side, s[0].patient, len(s)) for name, s in dataset.group_scans(slices).items()
    }
    assert scans == {
        akoa: ("right", "OAI9014797", 6),
        "left/p01/visit1_knee": ("left", "p01", 6),
        "left/p01/visit2_knee": ("left", "p01", 6),
        "left/p02_LEFT/p02_LEFT": ("left", "p02_LEFT", 6),
        "right/_p_5/p9_dicom": ("right", "_p_5", 8),
    }
    assert [s.index for s in slices if s.scan == akoa] == list(range(6))
    with Image.open(out / f"{akoa}_0.png") as image:
        assert (image.mode, image.size) == ("L", (12, 9))
    printed, errors = capfd.readouterr()
    assert len(printed.splitlines()) == 7 and not errors
    assert "side unknown (the name says left, its position right)  6 slices" in printed
    assert (out / "unknown" / "p04" / "left_" / "5.png").exists()
    assert not [p for p in out.rglob("*unfinished*")]

    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    sitk.WriteImage(volume(noise(6, 9, 9)), str(root / "a_new_one.nii"))
    assert volumes.main([str(root), str(out)]) == 2
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before
    assert "holds slices of" in capfd.readouterr().err


def test_no_two_volumes_go_into_one_folder(tmp_path):
    for name in ("a/k!.nii", "a/k?.nii", "b/OAI1_3_LEFT.nii", "c/OAI1_3_LEFT.nii"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(volume(noise(6, 9, 9), x=70), str(tmp_path / "in" / name))
    assert volumes.main([str(tmp_path / "in"), str(tmp_path / "out")]) == 1  # a copy of OAI1
    assert sorted(p.name for p in (tmp_path / "out" / "left" / "a").iterdir()) == ["k_", "k_-2"]


def test_exit_codes(tmp_path, capfd):
    good, cut = tmp_path / "good.nii.gz", tmp_path / "cut.nii.gz"
    sitk.WriteImage(volume(noise(6, 30, 30)), str(good))
    assert volumes.main([str(good), str(tmp_path / "one")]) == 0
    assert (tmp_path / "one" / "right" / "good" / "good" / "0.png").exists()
    cut.write_bytes(good.read_bytes()[:-500])
    assert volumes.main([str(tmp_path), str(tmp_path / "out")]) == 1
    assert os.listdir(tmp_path / "out" / "right") == ["good"]
    (tmp_path / "empty").mkdir()
    assert volumes.main([str(tmp_path / "empty"), str(tmp_path / "x")]) == 2
    assert volumes.main([str(tmp_path / "gone"), str(tmp_path / "x")]) == 2
    assert not (tmp_path / "x").exists()
    errors = capfd.readouterr().err.splitlines()
    assert len(errors) == 3 and "cut.nii.gz: cut or damaged" in errors[0]


def test_a_scan_that_is_cut_short_leaves_nothing(tmp_path, monkeypatch, capfd):
    sitk.WriteImage(volume(noise(6, 9, 9)), str(tmp_path / "a.nii"))
    save, saved = Image.Image.save, []

    def full_disk(self, path, *rest):
        if len(saved) == 3:
            raise OSError(28, "No space left on device")
        saved.append(path)
        save(self, path, *rest)

    monkeypatch.setattr(Image.Image, "save", full_disk)
    assert volumes.main([str(tmp_path / "a.nii"), str(tmp_path / "out")]) == 1
    assert len(saved) == 3 and not list((tmp_path / "out").iterdir())
    assert "No space left" in capfd.readouterr().err
    monkeypatch.setattr(volumes, "read_slices", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert volumes.main([str(tmp_path / "a.nii"), str(tmp_path / "out")]) == 130


def test_without_simpleitk_one_line_says_what_to_install(tmp_path):
    (tmp_path / "SimpleITK.py").write_text("raise ImportError('blocked')")
    (tmp_path / "a.nii").write_bytes(b"")
    for name, line in [("a.nii", "pip install -r requirements-volumes.txt"), (".", "pip install")]:
        done = subprocess.run(
            [sys.executable, ROOT / "volumes.py", tmp_path / name, tmp_path / "out"],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2 and not done.stdout
        assert len(done.stderr.splitlines()) == 1 and line in done.stderr


# ---- a real knee ---------------------------------------------------------------------------------


@pytest.mark.skipif("PERCEIVER_MSKT" not in os.environ, reason="see benchmarks/fetch_knee.py")
def test_a_real_knee_of_eight_echoes():
    data = Path(os.environ["PERCEIVER_MSKT"], "data")
    (v,), problems = find(data / "MESE_T2_dicom_data")
    assert not problems and (v.side, v.told_by, v.num_slices) == ("right", "position", 24)
    slices = read_slices(v.source)
    assert slices.shape == (24, 256, 256) and 20 < slices.mean() < 120
    # Fat under the skin and marrow, at the front (left) of the middle slice; air at its corners.
    assert slices[12, 100:150, 40:120].mean() > 2 * slices[12, :, :20].mean()
    found, _ = find_volumes(str(data), ["right_knee_example.nrrd"])
    assert found[0].side == "right"
    found, _ = find_volumes(str(data / "Par_Rec_T2_Test"), ["T2-label.nrrd"])
    assert (found[0].side, found[0].told_by) == ("left", "position")
