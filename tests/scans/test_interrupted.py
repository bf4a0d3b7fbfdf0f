"""Ctrl-C while data is read: it acts within a second or so, and nothing half written is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent.parent
SECONDS = 20  # far above what was begun takes; a loop that goes to its end gives another code
# A dataset.py that says where it is, and is slow there: so that a signal meets it in each place.
# What is slow in a process of its own says it by a file.
SLOW = """
import sys, time
from pathlib import Path
import dataset
from scans import cache, copies, headers, images, listing, overview, writing

def slow(module, name, seconds, marker):
    function = getattr(module, name)
    def slowed(*arguments, **more):
        Path(marker).touch()
        time.sleep(seconds)
        return function(*arguments, **more)
    setattr(module, name, slowed)

place, module, seconds, marker = sys.argv[1:5]
slow(eval(module), place, float(seconds), marker)
sys.exit(dataset.main(sys.argv[5:]))
"""
PLACES = [
    ("walk", "listing", 30, []),  # the folders
    pytest.param("read_file", "headers", 4, [], marks=pytest.mark.slow),
    pytest.param("decode", "cache", 4, [], marks=pytest.mark.slow),
    pytest.param("describe_image", "overview", 4, [], marks=pytest.mark.slow),
    pytest.param("find_copies", "copies", 30, [], marks=pytest.mark.slow),
    pytest.param("draw_contact_sheet", "overview", 30, [], marks=pytest.mark.slow),
    pytest.param("write", "writing", 4, ["--write-slices", "out"], marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Images and archives of DICOM files of the same patients: so few that one process reads."""
    pytest.importorskip("SimpleITK")
    from volume_files import make_oai

    folder = tmp_path_factory.mktemp("stops") / "data"
    rng = np.random.default_rng(0)
    for patient in range(1, 5):
        for side in ("LEFT", "RIGHT"):
            (folder / "akoa").mkdir(parents=True, exist_ok=True)
            for number in range(10):
                pixels = rng.integers(0, 255, (16, 16)).astype(np.uint8)
                name = f"OAI{9000000 + patient}_BaseLine_1_0_{side}.nii.gz_{number}.png"
                Image.fromarray(pixels).save(folder / "akoa" / name)
    series = (("SAG_3D_DESS_RIGHT", 8, 0.7), ("SAG_3D_DESS_LEFT", 8, 0.7))
    make_oai(folder / "oai", patients=3, visits=1, archives=True, series=series)
    return folder


@pytest.mark.parametrize("place, module, seconds, more", PLACES)
def test_a_signal_stops_every_long_part_at_once_and_leaves_nothing(
    data, tmp_path, place, module, seconds, more
):
    (tmp_path / "tmp").mkdir()
    marker = tmp_path / "at"
    arguments = [data, "--cache-dir", tmp_path / "cache", "-j", "2", *more]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, place, module, str(seconds), marker, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "tmp")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not marker.exists():
        assert process.poll() is None, f"it never came to {place}: {process.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.1)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - start < SECONDS
    assert process.returncode == 130
    lines = said.splitlines()
    assert lines in (["dataset.py: stopped at once"], ["dataset.py: interrupted"])
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in left if "unfinished" in path.name or path.suffix == ".png"]
    deadline = time.monotonic() + 10  # processes that read files end by themselves
    while list((tmp_path / "tmp").iterdir()):
        assert time.monotonic() < deadline, list((tmp_path / "tmp").rglob("*"))
        time.sleep(0.05)
