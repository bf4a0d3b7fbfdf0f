"""benchmarks/audit.py: archives with wrong sides, and the row and table of what is found in one."""

import csv
import os
from pathlib import Path

import pytest

from benchmarks import audit
from dataset import list_labelled
from scans.slices import by_scan


@pytest.mark.slow
def test_each_archive_has_wrong_scans_of_its_own_and_they_are_listed(tmp_path):
    lists = {}
    for share in (0.05, 0.5):
        folder = tmp_path / f"archive-{share}-0"
        lists[share] = audit.make_archive(folder, share, seed=0, patients=3)
        scans = by_scan(list_labelled(folder / "knees").slices)
        assert lists[share] <= scans.keys()
        assert len(lists[share]) == round(share * len(scans))
        assert audit.make_archive(folder, share, seed=0, patients=3) == lists[share]
    assert len(lists[0.5]) > len(lists[0.05]) > 0


def test_the_page_holds_the_table_of_the_results():
    page = (audit.ROOT / "docs" / "results.md").read_text()
    assert audit.table(audit.rows_of(audit.RESULTS / "audit.csv")) in page


@pytest.fixture
def short(monkeypatch):
    """One epoch of a model that knows nothing."""
    flags = "--image-size 8 8 --num-latents 2 --latent-dim 8 --depth 1 --latent-heads 1 --epochs 1"
    monkeypatch.setattr(audit, "TINY", flags.split())


@pytest.mark.slow
@pytest.mark.skipif("CI" not in os.environ, reason="CI=1 runs it: half a minute")
def test_a_row_counts_what_is_found_and_the_table_gives_shares(tmp_path, short, capfd):
    flags = ["--shares", "0.2", "--seeds", "0", "--patients", "6", "--folder", str(tmp_path / "w")]
    flags += ["--results", str(tmp_path)]
    assert audit.main(flags) == 0
    with (tmp_path / "audit.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    scans, wrong = int(row["scans"]), int(row["wrong"])
    assert wrong == round(0.2 * scans)
    for finder in audit.FINDERS:
        assert 0 <= int(row[f"{finder}_found"]) <= wrong
        assert 0 <= int(row[f"{finder}_false"]) <= scans - wrong
    table = capfd.readouterr().out.splitlines()[-4:]
    assert [line.split(" | ")[2] for line in table] == list(audit.FINDERS.values())
    began = Path(tmp_path / "w").stat().st_mtime_ns
    assert audit.main(flags) == 0 and Path(tmp_path / "w").stat().st_mtime_ns == began
