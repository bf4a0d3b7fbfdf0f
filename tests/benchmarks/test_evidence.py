"""benchmarks/evidence.py: runs that are made once, tables of what they measured."""

import csv
from pathlib import Path

import pytest

from benchmarks import evidence


def rows_of(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_run_is_made_once_and_a_killed_one_goes_on(tmp_path, monkeypatch, capsys):
    calls, call = [], evidence.call
    monkeypatch.setattr(evidence, "call", lambda command: (calls.append(command), call(command)))
    flags = ["order", "--quick", "--seeds", "3", "--folder", str(tmp_path / "work")]
    flags += ["--results", str(tmp_path / "results")]
    assert evidence.main(flags) == 0
    rows = rows_of(tmp_path / "results" / "order.csv")
    assert [row["variant"] for row in rows] == ["slices", "whole scans"]
    assert [row["seed"] for row in rows] == ["3", "3"] and rows[0]["scans"] == rows[1]["scans"]
    assert rows[0]["slices"] and not rows[1]["slices"]
    assert len(calls) == 3  # data, and a run for each variant
    assert evidence.main(flags) == 0 and len(calls) == 3
    (tmp_path / "results" / "order.csv").unlink()
    assert evidence.main(flags) == 0
    assert ["--resume" in command for command in calls[3:]] == [True, True]
    again = rows_of(tmp_path / "results" / "order.csv")
    measured = ("scans_right", "slices_right", "val_loss", "negative_log_likelihood")
    assert [[row[k] for k in measured] for row in again] == [[r[k] for k in measured] for r in rows]
    page = tmp_path / "results.md"
    page.write_text("before\n" + "\n".join(evidence.MARKS) + "\nafter\n")
    evidence.write_docs(tmp_path / "results", page)
    text = page.read_text()
    assert "| whole scans | 1 |" in text and text.startswith("before") and text.endswith("after\n")


def test_what_is_no_experiment_is_named(capsys, tmp_path):
    with pytest.raises(SystemExit) as refused:
        evidence.main(["hard"])
    assert refused.value.code == 2 and "there are order, knees" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evidence.main(["--quick"])
