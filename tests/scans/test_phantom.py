"""Synthetic knees: the plan of 101 patients without pictures, and three patients drawn for real."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scans import phantom
from scans.phantom import LITTER, SLICES, render_scan, write_phantoms
from scans.phantom_plan import AKOA_SCANS, plan_scans

ROOT = Path(phantom.__file__).parent.parent
PROGRAM = [sys.executable, "-m", "scans.phantom"]
NAME = re.compile(
    r"(OAI9\d{6})_([A-Za-z0-9]+)_3_([0-9a-f]{5})_SAG_3D_DESS_WE_([A-Za-z_]+)\.nii\.gz"
)


def parse(stem: str) -> tuple[str, str, str, str]:
    match = NAME.fullmatch(stem)
    assert match, f"not an AKOA name: {stem}"
    return match.groups()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three patients, drawn by the command line with two processes."""
    directory = tmp_path_factory.mktemp("phantom") / "nested" / "knees"
    command = [*PROGRAM, directory, "--patients", "3", "--workers", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return directory


def test_101_patients_give_the_scans_and_sides_of_akoa():
    scans = plan_scans()
    assert Counter(scan.side for scan in scans) == {"right": 273, "left": 194}
    assert len({scan.patient for scan in scans}) == 101
    assert len({parse(scan.stem)[0] for scan in scans}) == 101
    assert len({scan.stem for scan in scans}) == 467
    assert len({(scan.patient, parse(scan.stem)[1], scan.side) for scan in scans}) == 427
    both = set.intersection(*({s.patient for s in scans if s.side == side} for side in AKOA_SCANS))
    assert 60 <= len(both) < 101


def test_odd_spellings_are_nine_right_and_three_left_and_name_the_side_drawn():
    odd = Counter()
    for scan in plan_scans():
        word = parse(scan.stem)[3]
        assert word.replace("_", "").lower() == scan.side
        if word not in ("RIGHT", "LEFT"):
            odd[word] += 1
    assert odd == {"Right": 3, "right": 3, "R_I_G_H_T": 3, "Left": 1, "left": 1, "L_E_F_T": 1}


@pytest.mark.parametrize("patients", [3, 4, 8, 24, 200])
def test_other_numbers_of_patients_scale_and_leave_nobody_out(patients):
    scans = plan_scans(patients, seed=5)
    assert len(scans) == pytest.approx(patients * 467 / 101, abs=1.01)
    assert {scan.patient for scan in scans} == set(range(patients))
    assert len({scan.stem for scan in scans}) == len(scans)
    both = set.intersection(*({s.patient for s in scans if s.side == side} for side in AKOA_SCANS))
    assert len(both) >= patients / 2


def test_the_seed_changes_the_names():
    assert plan_scans(5, 0) == plan_scans(5, 0)
    assert {s.stem for s in plan_scans(5, 0)}.isdisjoint(s.stem for s in plan_scans(5, 1))


@pytest.mark.slow
def test_the_command_writes_every_slice_of_the_plan_and_litter_and_nothing_else(folder):
    expected = {f"{scan.stem}_{i}.png" for scan in plan_scans(3) for i in range(SLICES)}
    assert len(expected) == 14 * 40
    assert {path.name for path in folder.iterdir()} == expected | set(LITTER)
    assert [path.name for path in folder.parent.iterdir()] == ["knees"]  # no unfinished folder


@pytest.mark.slow
def test_slices_are_rgb_with_equal_channels_260_by_228_and_not_large(folder):
    paths = sorted(folder.glob("*.png"))
    for path in paths[::7]:
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("RGB", (260, 228))
            pixels = np.asarray(image)
        assert (pixels == pixels[..., :1]).all()
        assert np.ptp(pixels) > 60
    assert np.mean([path.stat().st_size for path in paths]) < 60_000


@pytest.mark.slow
def test_pixels_do_not_depend_on_the_number_of_workers_but_on_the_seed(folder, tmp_path):
    scan = plan_scans(3)[4]
    other = render_scan(scan, seed=1)[20]
    for number, image in enumerate(render_scan(scan, seed=0)):  # in this process
        with Image.open(folder / f"{scan.stem}_{number}.png") as written:
            np.testing.assert_array_equal(np.asarray(written)[..., 0], image)
    assert (np.asarray(image) != other).any()
    write_phantoms(tmp_path / "one", patients=3, workers=1)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "one").iterdir()
    }


@pytest.mark.slow
def test_a_patient_keeps_the_anatomy_between_visits_and_nearly_so_between_knees(monkeypatch):
    # With one pose and one contrast for all, what differs between scans is anatomy and noise.
    still = {name: (mean, 0.0) for name, (mean, _) in phantom.ACQUISITION.items()}
    monkeypatch.setattr(phantom, "ACQUISITION", still)
    monkeypatch.setattr(phantom, "SHADING", 0.0)
    monkeypatch.setattr(phantom, "SWAY", dict.fromkeys(phantom.SWAY, 0.0))
    monkeypatch.setattr(phantom, "TISSUE_SPREAD", 0.0)

    def middle(scan):
        image = render_scan(scan, seed=0)[20].astype(float)
        return image if scan.side == "right" else image[:, ::-1]

    scans = plan_scans(4)
    first = {}
    for scan in scans:
        first.setdefault((scan.patient, scan.side), []).append(scan)
    a, b = first[0, "right"][:2]
    reference = middle(a)
    visit, knee = (np.abs(reference - middle(s)).mean() for s in (b, first[0, "left"][0]))
    others = [np.abs(reference - middle(first[i, "right"][0])).mean() for i in (1, 2, 3)]
    assert 0 < visit < knee < min(others)


def test_slices_change_from_end_to_end_and_none_is_empty(monkeypatch):
    monkeypatch.setattr(phantom, "SWAY", dict.fromkeys(phantom.SWAY, 0.0))
    scan = next(scan for scan in plan_scans(3) if scan.side == "left")
    volume = np.stack(render_scan(scan, seed=0)).astype(float)
    assert (volume.std(axis=(1, 2)) > 8).all()
    volume = volume.reshape(SLICES, 19, 12, 20, 13).mean(axis=(2, 4))  # without noise
    neighbours = np.abs(np.diff(volume, axis=0)).mean()
    for end in (0, -1):
        assert np.abs(volume[20] - volume[end]).mean() > 3 * neighbours


def test_a_directory_that_holds_anything_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    command = [*PROGRAM, tmp_path, "--patients", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr and len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(FileExistsError, match="not empty"):
        write_phantoms(tmp_path / "mine.txt", patients=3)


@pytest.mark.parametrize("wrong", [{"patients": 2}, {"workers": 0}, {"seed": -1}])
def test_unusable_numbers_are_refused_before_anything_is_written(tmp_path, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        write_phantoms(tmp_path / "new", **wrong)
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("stop, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_leaves_no_folder_and_no_traceback(tmp_path, stop, code):
    directory = tmp_path / "knees"
    command = [*PROGRAM, directory, "--patients", "101", "--workers", "2"]
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 30
    while not any(tmp_path.glob(".knees*/*.png")):
        assert time.monotonic() < deadline and process.poll() is None, "no slice was written"
        time.sleep(0.05)
    os.killpg(process.pid, stop)  # as a terminal does: to the workers too
    assert process.communicate(timeout=30)[1] == "python -m scans.phantom: interrupted\n"
    assert process.returncode == code
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_full_disk_is_one_line_that_names_the_folder_and_leaves_nothing(tmp_path, workers):
    """No file may grow beyond 10 kB."""
    code = (
        "import sys, resource; from scans import phantom; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)); "
        "sys.exit(phantom.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, tmp_path / "knees", "--patients", "3"]
    done = subprocess.run(
        [*command, "--workers", workers], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert f"{tmp_path / 'knees'}: File too large" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not any(tmp_path.iterdir())


def test_hard_knees_show_their_side_in_the_order_of_slices_alone(monkeypatch):
    plan = plan_scans(balanced=True)
    assert Counter(scan.side for scan in plan)["right"] == len(plan) // 2
    monkeypatch.setattr(phantom, "SWAY", dict.fromkeys(phantom.SWAY, 0.0))
    typical = {name: (mean, 0.0) for name, (mean, _) in phantom.ANATOMY.items()}
    monkeypatch.setattr(phantom, "ANATOMY", typical)  # both knees are alike
    left, right = (
        np.stack(render_scan(phantom.Scan(0, 0, side, ""), seed=0, hard=True)).astype(float)
        for side in ("left", "right")
    )

    def apart(a: np.ndarray, b: np.ndarray) -> float:
        return np.sqrt(np.square(a - b).mean())

    in_reverse = apart(left[::-1], right)
    assert 2 * in_reverse < min(apart(left, right), apart(left[..., ::-1], right))
    # Whichever order they come in, the slices are those of either side.
    assert np.allclose(left.mean(axis=0), right.mean(axis=0), atol=5)
