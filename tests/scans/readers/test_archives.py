"""Tar archives of DICOM files: read as their folder is, and refused where they are hostile."""

import gzip
import os
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from volume_files import noise, pack, write_dicom, write_tar, write_two_series

from scans.cache import decode_slices
from scans.labelled import list_labelled
from scans.listing import list_slices
from scans.series import open_volume
from scans.slices import Kind, Options, by_scan
from scans.volumes import VolumeError, read_slices


@pytest.fixture(autouse=True)
def scratch(tmp_path_factory, monkeypatch):
    """The folder for temporary files; in the end nothing is left in it."""
    folder = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert not os.listdir(folder)


@pytest.fixture
def content(tmp_path) -> bytes:
    """A DICOM file."""
    (name,) = write_dicom(tmp_path / "one", noise(1, 6, 6))
    return (tmp_path / "one" / name).read_bytes()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def refusal(path: Path) -> str:
    with pytest.raises(VolumeError) as caught:
        open_volume(path)
    assert caught.value.path == str(path) and "\n" not in str(caught.value)
    assert [p.kind for p in list_slices([path]).problems] == [Kind.UNREADABLE]
    return caught.value.text


# ---- sound ones ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ending, mode", [(".tar", "w"), (".tgz", "w:gz"), (".TAR.GZ", "w:gz")])
def test_an_archive_is_read_as_its_folder_is(tmp_path, ending, mode):
    names = write_dicom(tmp_path / "a" / "s", noise(8, 8, 10), {"0010|0020": "p7"})
    folder = open_volume(tmp_path / "a" / "s")
    (tmp_path / "b" / "9000001").mkdir(parents=True)
    path = tmp_path / "b" / "9000001" / f"s{ending}"
    with tarfile.open(path, mode) as tar:
        for name in reversed(names):
            tar.add(tmp_path / "a" / "s" / name, arcname=f"deep/er/{name.removesuffix('.dcm')}")
        tar.add(tmp_path / "a" / "s", arcname="deep/empty", recursive=False)
    archive = open_volume(path)
    assert archive.source == str(path) and archive.parts == (str(path),)
    assert (archive.size, archive.spacing, archive.origin) == (
        folder.size,
        folder.spacing,
        folder.origin,
    )
    assert np.array_equal(read_slices(archive), read_slices(folder))
    options = Options(side_by_position=True)
    (s, *_) = list_slices(tmp_path / "b", None, options).slices
    assert (s.scan, s.patient, s.label) == (f"9000001/s{ending}", "p7", "right")


def test_several_series_in_an_archive_are_several_scans(tmp_path):
    write_two_series(tmp_path / "s")
    expected = [read_slices(s.volume) for s in list_slices(tmp_path).slices if s.index == 0]
    pack(tmp_path / "s")
    listing = list_slices(tmp_path)
    assert list(by_scan(listing.slices)) == ["s.tar.gz", "s.tar.gz#2"]
    assert decode_slices(listing.slices, (8, 10), progress=False).errors == {}
    found = [read_slices(s.volume) for s in listing.slices if s.index == 0]
    assert all(map(np.array_equal, found, expected)) and len(found) == 2


def test_an_archive_that_changed_since_it_was_listed_is_named(tmp_path):
    write_dicom(tmp_path / "s", noise(8, 8, 10))
    v = open_volume(pack(tmp_path / "s"))
    write_dicom(tmp_path / "s", noise(6, 8, 10))
    pack(tmp_path / "s")
    with pytest.raises(VolumeError, match=r"s\.tar\.gz: has changed since its headers? w"):
        read_slices(v)
    write_dicom(tmp_path / "s", noise(8, 8, 12))
    pack(tmp_path / "s")
    with pytest.raises(VolumeError, match=r"s\.tar\.gz: has changed"):
        read_slices(v)


# ---- hostile ones --------------------------------------------------------------------------------


def test_names_links_and_devices_lead_nowhere(tmp_path, scratch, content):
    """Nothing of an archive is written anywhere."""
    before = set(tmp_path.rglob("*"))
    victim = tmp_path / "victim"
    names = ["../escaped", f"{tmp_path}/absolute", "a/" * 40 + "../" * 40 + "x", "n" * 5000]
    members = [(member(name), content) for name in names]
    members += [(member("link", tarfile.SYMTYPE, str(victim)), b""), (member("link"), content)]
    members += [(member("hard", tarfile.LNKTYPE, str(victim)), b"")]
    kinds = (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
    members += [(member("x.dcm", kind), b"") for kind in kinds]
    path = write_tar(tmp_path / "s.tar", members)
    assert refusal(path).startswith("series 4 (no description): 4 slices where another one lies")
    assert set(tmp_path.rglob("*")) == before | {path}


def test_cut_and_damaged_archives_are_named_as_archives(tmp_path):
    write_dicom(tmp_path / "s", noise(8, 40, 40))
    path = pack(tmp_path / "s")
    whole = path.read_bytes()
    plain = gzip.decompress(whole)
    files = {
        "cut.tar.gz": whole[: len(whole) // 2],
        "flipped.tar.gz": whole[:9000] + bytes([whole[9000] ^ 255]) + whole[9001:],
        "checksum.tar.gz": whole[:-8] + b"\0" * 8,
        "cut.tar": plain[:9000],
        "between.tar": plain[:512],
        "text.tar.gz": b"no archive at all" * 100,
        "empty.tar": b"",
        "text.tgz": gzip.compress(b"no archive at all" * 100),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        assert refusal(tmp_path / name).startswith("cut or damaged"), name
    listing = list_slices(tmp_path)
    unreadable = {Path(p.path).name for p in listing.of_kind(Kind.UNREADABLE)}
    assert unreadable == files.keys() and set(by_scan(listing.slices)) == {"s.tar.gz"}


def test_a_name_of_gigabytes_and_a_member_of_terabytes_end_at_once(tmp_path):
    for name, kind, size in [
        ("huge.tar", tarfile.REGTYPE, 1 << 40),
        ("name.tar", tarfile.GNUTYPE_LONGNAME, 1 << 32),
        ("pax.tar", tarfile.XHDTYPE, 1 << 32),
    ]:
        info = member("001.dcm", kind)
        info.size = size
        (tmp_path / name).write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
        assert "\n" not in refusal(tmp_path / name), name


@pytest.mark.slow
def test_an_archive_that_unpacks_to_more_than_memory_is_one_line(tmp_path):
    info = member("001.dcm")
    info.size = 9 << 30
    with gzip.open(tmp_path / "bomb.tar.gz", "wb", compresslevel=1) as bomb:
        bomb.write(info.tobuf(tarfile.GNU_FORMAT))
        for _ in range(info.size >> 26):
            bomb.write(bytes(1 << 26))
    assert refusal(tmp_path / "bomb.tar.gz").startswith("it takes more than 8 GB of memory")


def test_a_damaged_member_is_named(tmp_path, content):
    path = write_tar(
        tmp_path / "s.tar",
        [(member("001"), content[:132] + b"\xff" * 500), (member("002"), content)],
    )
    assert refusal(path).startswith("001 in the archive: damaged")


def test_an_archive_in_the_way_is_passed_over_and_one_that_is_named_is_refused(tmp_path):
    write_dicom(tmp_path / "knee_LEFT", noise(6, 6, 6), x=70)
    write_dicom(tmp_path / "knee_RIGHT", noise(6, 6, 6))
    write_tar(tmp_path / "code.tar.gz", [(member("main.py"), b"print()")], "w:gz")
    write_tar(tmp_path / "nifti.tar", [(member("knee.nii"), bytes(9000))])
    with zipfile.ZipFile(tmp_path / "old.zip", "w") as zipped:
        zipped.writestr("001.dcm", "x")
    os.mkfifo(tmp_path / "pipe.tar")
    assert refusal(tmp_path / "pipe.tar").endswith("a pipe, expected a file")
    (tmp_path / "pipe.tar").unlink()
    listing = list_labelled(tmp_path, options=Options(patients="scan"))
    notes = list(map(str, listing.problems))
    without = ", ".join(f"{tmp_path}/{name}" for name in ("code.tar.gz", "nifti.tar"))
    assert f"passed over: an archive without DICOM images (2: {without})" in notes
    assert "unpack it and name the folder" in refusal(tmp_path / "old.zip")
    assert refusal(tmp_path / "nifti.tar").startswith("an archive without DICOM images")
    assert refusal(tmp_path / "gone.tar") == "no such file"


def test_folder_with_other_archives_alone_is_empty(tmp_path):
    write_tar(tmp_path / "code.tar.gz", [(member("main.py"), b"print()")], "w:gz")
    kinds = [problem.kind for problem in list_slices(tmp_path).problems]
    assert sorted(kind.name for kind in kinds) == ["EMPTY", "REMARK"]
