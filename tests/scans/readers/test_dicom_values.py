"""DICOM written by pydicom, as modalities write it: right values, in the right order."""

from pathlib import Path

import numpy as np
import pytest
from volume_files import noise

from scans.labelled import list_labelled
from scans.listing import list_slices
from scans.readers import read_pixels
from scans.series import open_volume, open_volumes
from scans.slices import Kind, Options
from scans.volumes import read_slices

pydicom = pytest.importorskip("pydicom")
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402
from pydicom.uid import ExplicitVRLittleEndian, RLELossless  # noqa: E402

MR, ENHANCED = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1"
REPORT, RADIOGRAPH = "1.2.840.10008.5.1.4.1.1.88.11", "1.2.840.10008.5.1.4.1.1.1"
DIRECTORY = "1.2.840.10008.1.3.10"


def item(**values) -> Dataset:
    data = Dataset()
    for name, value in values.items():
        setattr(data, name, value)
    return data


def save(path: Path, kind: str = MR, pixels: np.ndarray | None = None, **values) -> Path:
    """A file of this SOP class; pixels (rows, columns), or (frames, rows, columns)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, kind
    meta.MediaStorageSOPInstanceUID = f"1.2.{abs(hash(path.name)) % 10**9}"
    data = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    standard = {
        "SOPClassUID": kind,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "Modality": "MR",
        "PatientID": "K1",
        "SeriesInstanceUID": "1.2.3",
        "SeriesNumber": 4,
        "SeriesDescription": "SAG_DESS_LEFT",
    }
    if pixels is not None:
        standard |= {
            "Rows": pixels.shape[-2],
            "Columns": pixels.shape[-1],
            "SamplesPerPixel": 1,
            "BitsAllocated": 16,
            "BitsStored": 16,
            "HighBit": 15,
            "PixelRepresentation": int(pixels.dtype.kind == "i"),
            "PhotometricInterpretation": "MONOCHROME2",
        }
        if pixels.ndim == 3:
            standard["NumberOfFrames"] = len(pixels)
    for name, value in {**standard, **values}.items():
        setattr(data, name, value)
    if pixels is not None:
        data.PixelData = pixels.tobytes()
    data.save_as(path, enforce_file_format=True)
    return path


def series(folder: Path, pixels: np.ndarray, x: float = 60, **values) -> Path:
    """A sagittal slice a file."""
    for k, rows in enumerate(pixels):
        where = {
            "ImagePositionPatient": [x + 3 * k, -50, 40],
            "ImageOrientationPatient": [0, 1, 0, 0, 0, -1],
            "PixelSpacing": [0.5, 0.25],
        }
        save(folder / f"IM{k}", pixels=rows, **where, **values)
    return folder


def frame(x: float, **more) -> Dataset:
    """The functional groups of one sagittal frame."""
    groups = {"PlanePositionSequence": item(ImagePositionPatient=[x, -50, 40])}
    groups |= {name: value for name, value in more.items()}
    return item(**{name: Sequence([value]) for name, value in groups.items()})


def enhanced(path: Path, pixels: np.ndarray, frames: list[Dataset]) -> Path:
    orientation = item(ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    shared = item(
        PlaneOrientationSequence=Sequence([orientation]),
        PixelMeasuresSequence=Sequence([item(PixelSpacing=[0.5, 0.25], SliceThickness=3)]),
    )
    return save(
        path,
        ENHANCED,
        pixels,
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence(frames),
    )


def test_frames_are_sorted_by_position_with_a_slope_each(tmp_path):
    pixels = noise(8, 6, 7)
    order = [5, 0, 3, 7, 1, 6, 2, 4]
    slopes = {k: item(RescaleSlope=1 + 0.5 * k, RescaleIntercept=-k) for k in range(8)}
    frames = [frame(60 + 3 * k, PixelValueTransformationSequence=slopes[k]) for k in order]
    v = open_volume(enhanced(tmp_path / "im.dcm", pixels[order], frames))
    assert v.spacing == pytest.approx((0.25, 0.5, 3)) and v.tags["patient"] == "K1"
    expected = np.stack([pixels[k] * (1 + 0.5 * k) - k for k in range(8)])
    # The normal goes to the right (-x): the last one is the first.
    assert np.array_equal(read_pixels(v), expected[::-1])


def test_echoes_and_stacks_of_one_file_are_apart(tmp_path):
    pixels, frames = noise(24, 6, 7), []
    for stack in "ab":
        for k in range(6):
            for time in (10, 30):
                echo = item(EffectiveEchoTime=float(time))
                content = item(StackID=stack)
                groups = {"MREchoSequence": echo, "FrameContentSequence": content}
                frames.append(frame(-3 * k, **groups))
    path = enhanced(tmp_path / "im.dcm", pixels, frames)
    first, second = open_volumes(path)
    assert np.array_equal(read_pixels(first), pixels[0:12:2])
    assert np.array_equal(read_pixels(second), pixels[12::2]) and second.source == f"{path}#2"
    longer, _ = open_volumes(path, Options(echo=2))
    assert np.array_equal(read_pixels(longer), pixels[1:12:2])


def test_what_a_file_says_of_its_values_is_applied(tmp_path):
    pixels = noise(6, 8, 9)
    values = read_pixels(open_volume(series(tmp_path / "plain", pixels)))
    assert np.array_equal(values, pixels[::-1])
    white = series(tmp_path / "white", pixels, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(read_pixels(open_volume(white)), -values)
    slope = series(tmp_path / "slope", pixels, RescaleSlope=0.5, RescaleIntercept=-7)
    assert np.array_equal(read_pixels(open_volume(slope)), values * 0.5 - 7)
    doubled = np.arange(0, 8192, 2, dtype="<u2").tobytes()
    table = item(LUTDescriptor=[4096, 0, 16], LUTData=doubled, ModalityLUTType="US")
    lut = series(tmp_path / "lut", pixels, ModalityLUTSequence=Sequence([table]))
    assert np.array_equal(read_pixels(open_volume(lut)), values * 2)


@pytest.mark.parametrize("limit", [None, -1990])
def test_padding_is_black_and_has_no_part_in_the_scale(tmp_path, limit):
    pixels = noise(6, 8, 9)
    padded = pixels.copy()
    padded[:, :2] = -2000 if limit is None else -1995
    more = {} if limit is None else {"PixelPaddingRangeLimit": limit}
    v = open_volume(series(tmp_path / "p", padded, PixelPaddingValue=-2000, **more))
    assert np.isnan(read_pixels(v)).sum() == 6 * 2 * 9
    assert np.nanmin(read_pixels(v)) == pixels[:, 2:].min()
    slices = read_slices(v)
    assert (slices[:, :3] == 0).all() and slices.max() > 240  # rows are twice as wide


def test_packed_pixels_are_the_same(tmp_path):
    pytest.importorskip("SimpleITK")
    pixels = noise(6, 8, 9)
    folder = series(tmp_path / "p", pixels, RescaleSlope=2, RescaleIntercept=-3)
    for path in folder.iterdir():
        data = pydicom.dcmread(path)
        data.compress(RLELossless)
        data.save_as(path)
    assert np.array_equal(read_pixels(open_volume(folder)), pixels[::-1] * 2.0 - 3)


def test_what_holds_no_images_is_passed_over_and_stops_nothing(tmp_path):
    for side, x in (("LEFT", 60), ("RIGHT", -75)):
        about = {"SeriesDescription": f"DESS_{side}", "SeriesInstanceUID": f"1.{len(side)}"}
        series(tmp_path / side, noise(6, 8, 9), x, PatientID=f"K{side}", **about)
    save(tmp_path / "LEFT" / "SR1", REPORT, Modality="SR")
    save(tmp_path / "LEFT" / "SR2", REPORT, Modality="SR")
    save(tmp_path / "LEFT" / "INDEX", DIRECTORY)
    listing = list_labelled(tmp_path)
    assert len(listing.slices) == 12
    notes = "\n".join(map(str, listing.problems))
    assert "passed over: DICOM without images of a scan (SR) (2:" in notes and "INDEX" in notes


def test_a_file_of_images_that_has_none_is_damaged(tmp_path):
    series(tmp_path / "d", noise(6, 8, 9))
    save(tmp_path / "d" / "cut")
    (problem,) = list_slices(tmp_path).of_kind(Kind.UNREADABLE)
    assert problem.path.endswith("cut") and problem.text.endswith("no image in it")


def test_a_radiograph_is_a_scan_of_one_slice(tmp_path):
    for side in "LR":
        about = {"Modality": "DX", "ImageLaterality": side, "SeriesDescription": "PA"}
        pixels = noise(20, 30).astype(np.uint16)
        save(tmp_path / f"x{side}.dcm", RADIOGRAPH, pixels, **about, PixelSpacing=[0, 0])
    found = [(s.label, s.patient, s.number) for s in list_labelled(tmp_path).slices]
    assert found == [("left", "K1", 0), ("right", "K1", 0)]


@pytest.mark.parametrize("letters", [["", "ISO 2022 IR 87"], "ISO_IR 144"])
def test_patients_are_read_in_their_own_letters(tmp_path, letters):
    name = "山田" if isinstance(letters, list) else "Юлия Жук"
    series(tmp_path / "d", noise(6, 8, 9), SpecificCharacterSet=letters, PatientID=name)
    assert open_volume(tmp_path / "d").tags["patient"] == name
