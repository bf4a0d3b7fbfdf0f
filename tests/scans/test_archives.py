"""Tar archives of DICOM files: read as their folder is, and refused where they are hostile."""

import gzip
import io
import os
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from volume_files import noise, pack, write_dicom, write_tar, write_two_series

from scans import archives
from scans.cache import decode_slices
from scans.labelled import list_labelled
from scans.listing import list_slices
from scans.series import open_volume
from scans.slices import Kind, Options, by_scan
from scans.volumes import VolumeError, read_slices, source_files


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
    assert archive.source == str(path) and source_files(archive) == (str(path),)
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
    with pytest.raises(VolumeError, match=r"s\.tar\.gz: has changed since its headers were read"):
        read_slices(v)
    write_dicom(tmp_path / "s", noise(8, 8, 12))
    pack(tmp_path / "s")
    with pytest.raises(VolumeError, match=r"s\.tar\.gz: a slice in the archive: has changed"):
        read_slices(v)


# ---- hostile ones --------------------------------------------------------------------------------


def test_names_links_and_devices_lead_nowhere(tmp_path, scratch, content):
    """What is written is named 0001, 0002, ... in a folder of ours, and removed."""
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
    folder = scratch / "own"
    folder.mkdir()
    written = [m.path for m in archives.unpack(str(path), str(folder))]
    assert len(written) == 5 and {os.path.dirname(p) for p in written} == {str(folder)}
    assert all(Path(p).name.isdigit() and Path(p).read_bytes() == content for p in written)
    for p in written:
        os.unlink(p)
    folder.rmdir()
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
        assert refusal(tmp_path / name).startswith("an archive that is cut or damaged"), name
    listing = list_slices(tmp_path)
    unreadable = {Path(p.path).name for p in listing.of_kind(Kind.UNREADABLE)}
    assert unreadable == files.keys() and set(by_scan(listing.slices)) == {"s.tar.gz"}


@pytest.mark.slow
def test_archives_beyond_any_series_are_refused_before_they_fill_memory_or_disk(
    tmp_path, content, monkeypatch
):
    bomb = io.BytesIO()
    with tarfile.open(fileobj=bomb, mode="w:gz") as tar:
        info = member("001.dcm")
        info.size = archives.RATIO_MATTERS + (1 << 20)
        tar.addfile(info, io.BytesIO(bytes(info.size)))
    (tmp_path / "bomb.tar.gz").write_bytes(bomb.getvalue())
    assert refusal(tmp_path / "bomb.tar.gz").startswith("an archive of more than 64 MB unpacked")

    many = [(member(f"{n}"), b"") for n in range(100_000)]
    write_tar(tmp_path / "many.tar", [(member("001"), content), *many])
    assert "an archive of more than 20000 members" in refusal(tmp_path / "many.tar")

    for name, kind, size in [
        ("huge.tar", tarfile.REGTYPE, 1 << 40),
        ("negative.tar", tarfile.REGTYPE, -512),
        ("name.tar", tarfile.GNUTYPE_LONGNAME, 1 << 32),
        ("pax.tar", tarfile.XHDTYPE, 1 << 32),
    ]:
        info = member("001", kind)
        info.size = size
        header = info.tobuf(tarfile.GNU_FORMAT)
        (tmp_path / name).write_bytes(header + bytes(10240))
        assert f"a member of {size} bytes, expected" in refusal(tmp_path / name), name

    write_tar(tmp_path / "sparse.tar", [(member("001", tarfile.GNUTYPE_SPARSE), b"")])
    assert "pack it again with tar" in refusal(tmp_path / "sparse.tar")
    monkeypatch.setattr(archives, "MAX_BYTES", 20_000)
    write_tar(tmp_path / "large.tar", [(member(f"{k}"), content) for k in range(30)])
    assert "expected one series" in refusal(tmp_path / "large.tar")


def test_a_damaged_member_is_named(tmp_path, content):
    path = write_tar(tmp_path / "s.tar", [(member("001"), content[:132] + b"\xff" * 500)])
    assert refusal(path).startswith("a DICOM file in the archive can't be read: ")


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
    paths = ", ".join(f"{tmp_path}/{name}" for name in ("code.tar.gz", "nifti.tar", "old.zip"))
    assert f"3 archives passed over, as zips and those without DICOM files are: {paths}" in notes
    assert "unpack it and name the folder" in refusal(tmp_path / "old.zip")
    assert refusal(tmp_path / "nifti.tar").startswith("an archive without DICOM files, expected")
    assert refusal(tmp_path / "gone.tar") == "no such file"


def test_folder_with_other_archives_alone_is_empty(tmp_path):
    write_tar(tmp_path / "code.tar.gz", [(member("main.py"), b"print()")], "w:gz")
    kinds = [problem.kind for problem in list_slices(tmp_path).problems]
    assert sorted(kind.name for kind in kinds) == ["EMPTY", "REMARK"]
