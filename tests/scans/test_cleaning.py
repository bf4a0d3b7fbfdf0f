"""scans/cleaning.py: what is removed from the cache, what is kept, and what is never touched."""

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dataset
from scans import cache, cleaning
from scans.cleaning import clean_cache
from scans.slices import Slice

DAY = 24 * 3600


def make_slices(folder: Path, count: int = 5) -> list[Slice]:
    """Images of noise, which are written where there are none."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    slices = [Slice(str(folder / f"{i}.png"), None, "left", "p", "s", i) for i in range(count)]
    for s in slices:
        if not os.path.exists(s.source):
            Image.fromarray(rng.integers(0, 256, (12, 16)).astype(np.uint8)).save(s.source)
    return slices


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "cache"


def keep(slices: list[Slice], folder: Path, size=(6, 8)) -> str:
    """The key under which they are kept."""
    decoded = cache.open_pixels(slices, size, folder)
    assert not decoded.errors and not decoded.note
    return cache.fingerprint(slices, size).key


def older(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def removed(folder: Path) -> dict[str, str]:
    """Name -> why, of those that are removed; each is gone, and each that is kept is there."""
    cleaned = clean_cache(folder)
    for file in cleaned:
        assert file.path.exists() == (not file.is_removed), file
    return {file.path.name: file.fate for file in cleaned if file.is_removed}


def test_what_can_be_opened_again_is_kept(tmp_path, folder):
    slices = make_slices(tmp_path / "a")
    keys = [keep(slices, folder), keep(slices, folder, (8, 6)), keep(slices[:3], folder)]
    assert removed(folder) == {}
    assert sorted(os.listdir(folder)) == sorted(f"{k}.{e}" for k in keys for e in ("json", "npy"))
    assert [file.fate for file in clean_cache(folder)][:1] == [
        f"decoded slices of {slices[0].source} and others"
    ]


def test_slices_whose_files_are_gone_are_removed_and_others_are_not(tmp_path, folder):
    gone, there = make_slices(tmp_path / "gone"), make_slices(tmp_path / "there")
    key, other = keep(gone, folder), keep(there, folder)
    shutil.rmtree(tmp_path / "gone")
    why = f"its data is gone: {gone[0].source}"
    assert removed(folder) == {f"{key}.npy": why, f"{key}.json": why}
    assert cache.open_kept(folder / f"{other}.npy", (5, 1, 6, 8)) is not None


@pytest.mark.parametrize("which", [0, 2, 4])
def test_slices_whose_files_have_changed_are_removed(tmp_path, folder, which):
    """The first, the middle and the last file are known."""
    slices = make_slices(tmp_path / "a")
    key = keep(slices, folder)
    older(Path(slices[which].source), 7)
    why = f"its data has changed: {slices[which].source}"
    assert removed(folder) == {f"{key}.npy": why, f"{key}.json": why}


def test_slices_that_were_decoded_again_later_are_removed(tmp_path, folder):
    """The file that has changed is none of those that are known."""
    slices = make_slices(tmp_path / "a")
    key, smaller = keep(slices, folder), keep(slices, folder, (3, 4))
    older(folder / f"{key}.npy", 60)
    older(Path(slices[1].source), 7)
    again = keep(slices, folder)
    assert again != key
    why = "out of date: the same files were decoded again later"
    assert removed(folder) == {f"{key}.npy": why, f"{key}.json": why}
    assert {f"{again}.npy", f"{smaller}.npy"} <= set(os.listdir(folder))


def test_other_versions_are_removed(tmp_path, folder, monkeypatch):
    slices = make_slices(tmp_path / "a")
    key = keep(slices, folder)
    monkeypatch.setattr(cleaning, "CACHE_VERSION", cache.CACHE_VERSION + 1)
    why = f"from version {cache.CACHE_VERSION}, this is {cache.CACHE_VERSION + 1}"
    assert removed(folder) == {f"{key}.npy": why, f"{key}.json": why}
    for text in ('{"crc32": 7}', "", "[]", '{"crc32": 7, "files": 7}', '{"files": [7]}'):
        (folder / f"{key}.npy").write_bytes(b"x")
        (folder / f"{key}.json").write_text(text)
        assert set(removed(folder).values()) == {"from an older version, or damaged"}


def test_what_is_unfinished_is_removed_when_it_is_a_day_old(folder):
    folder.mkdir()
    names = [f".{'a' * 32}.7-0123abcd.unfinished.npy", f".{'b' * 32}.7-0123abcd.unfinished.json"]
    names += [f"{'c' * 32}.npy", f"{'d' * 32}.json"]  # without the other one of two
    names += [".copies-2-0123abcd-0123456789abcdef.7-0123abcd.unfinished.json"]
    for name in names:
        (folder / name).write_bytes(b"x")
    assert removed(folder) == {}
    for name in names:
        older(folder / name, DAY + 60)
    assert removed(folder).keys() == set(names) and os.listdir(folder) == []


def test_copies_are_kept_with_their_slices_and_headers_for_90_days(tmp_path, folder):
    slices = make_slices(tmp_path / "a")
    keep(slices, folder)
    crc32 = json.loads(next(folder.glob("*.json")).read_text())["crc32"]
    ours, others = (f"copies-2-{x:08x}-0123456789abcdef.json" for x in (crc32, crc32 ^ 1))
    (folder / "headers").mkdir()
    young, old = (folder / "headers" / (letter * 32) for letter in "ab")
    for path in (folder / ours, folder / others, young, old):
        path.write_text("{}")
    older(young, 89 * DAY)
    older(old, 91 * DAY)
    assert removed(folder) == {
        others: "of slices that are not kept",
        old.name: "older than 90 days",
    }
    assert young.exists()
    shutil.rmtree(tmp_path / "a")
    assert ours in removed(folder)


def test_what_is_not_ours_is_never_touched(tmp_path, folder):
    folder.mkdir()
    names = [
        "mine.npy",
        f"{'g' * 32}.npy",
        f"{'a' * 31}.npy",
        f"{'a' * 32}.npz",
        f"x{'a' * 32}.npy",
    ]
    names += ["copies.json", "copies-of-mine.json", "headers.json", ".x.unfinished.npy", "a.json"]
    names += [f"{'A' * 32}.npy", f"{'a' * 32}.npy.bak"]
    for name in names:
        (folder / name).write_bytes(b"x")
        older(folder / name, 1000 * DAY)
    (folder / f"{'e' * 32}.npy").mkdir()
    (tmp_path / "elsewhere").write_bytes(b"x")
    older(tmp_path / "elsewhere", 1000 * DAY)
    (folder / f"{'f' * 32}.npy").symlink_to(tmp_path / "elsewhere")
    before = sorted(os.listdir(folder))
    assert clean_cache(folder) == [] and sorted(os.listdir(folder)) == before


def test_a_file_that_cannot_be_removed_is_named(tmp_path, folder, monkeypatch):
    slices = make_slices(tmp_path / "a")
    keep(slices, folder)
    shutil.rmtree(tmp_path / "a")

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    cleaned = clean_cache(folder)
    assert [file.fate for file in cleaned] == ["can't be removed: Permission denied"] * 2
    assert not any(file.is_removed for file in cleaned)


def test_the_program_says_what_it_removed_and_what_it_kept(tmp_path, folder, capsys):
    gone, there = make_slices(tmp_path / "gone"), make_slices(tmp_path / "there")
    key, other = keep(gone, folder, (600, 800)), keep(there, folder)
    shutil.rmtree(tmp_path / "gone")
    arguments = ["--clean-cache", "--cache-dir", str(folder)]
    assert dataset.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{folder / key}.npy  2.4 MB  removed: its data is gone: {gone[0].source}" in lines
    source = there[0].source
    assert f"{folder / other}.npy  0.0 MB  kept: decoded slices of {source} and others" in lines
    assert lines[-1] == f"{folder}: 2 files removed (2.4 MB), 2 kept (0.0 MB)"
    assert dataset.main(["--clean-cache", "--cache-dir", str(tmp_path / "none")]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'none'}: 0 files removed (0.0 MB)")
    for wrong in ([*arguments, str(tmp_path)], []):
        with pytest.raises(SystemExit, match="2"):
            dataset.main(wrong)
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert dataset.main(["--clean-cache", "--cache-dir", there[0].source]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_slices_of_volumes_are_known_by_their_files(tmp_path, folder):
    """Of .npy files, which are read without SimpleITK."""
    from scans.listing import list_slices

    np.save(tmp_path / "p1.npy", np.random.default_rng(0).integers(0, 99, (6, 7, 8)))
    slices = list_slices(tmp_path / "p1.npy").slices
    key = keep(slices, folder)
    assert removed(folder) == {}
    (tmp_path / "p1.npy").unlink()
    assert removed(folder).keys() == {f"{key}.npy", f"{key}.json"}
