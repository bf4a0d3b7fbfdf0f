"""benchmarks/evidence.py: runs that are made once, tables of what they measured."""

import csv
import json
from pathlib import Path

import pytest
import torch
from conftest import TINY

import train
from benchmarks import evidence, evidence_pages, references
from benchmarks.experiments import EXPERIMENTS


def rows_of(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_run_is_made_once_and_a_killed_one_goes_on(tmp_path, monkeypatch, capsys):
    calls, call = [], evidence.call

    def counted(command, **more):
        calls.append(command)
        call(command, **more)

    monkeypatch.setattr(evidence, "call", counted)
    flags = ["order", "--quick", "--seeds", "3", "--folder", str(tmp_path / "work"), "--jobs", "2"]
    flags += ["--results", str(tmp_path / "results")]
    assert evidence.main(flags) == 0
    rows = sorted(rows_of(tmp_path / "results" / "order.csv"), key=lambda row: row["variant"])
    assert [row["variant"] for row in rows] == ["slices", "whole scans"]
    assert [row["seed"] for row in rows] == ["3", "3"] and rows[0]["scans"] == rows[1]["scans"]
    assert rows[0]["slices"] and not rows[1]["slices"]
    assert len(calls) == 3  # data, and a run for each variant
    assert evidence.main(flags) == 0 and len(calls) == 3
    (tmp_path / "results" / "order.csv").unlink()
    assert evidence.main(flags) == 0
    assert ["--resume" in command for command in calls[3:]] == [True, True]
    again = sorted(rows_of(tmp_path / "results" / "order.csv"), key=lambda row: row["variant"])
    measured = ("scans_right", "slices_right", "val_loss", "negative_log_likelihood")
    assert [[row[k] for k in measured] for row in again] == [[r[k] for k in measured] for r in rows]


def test_pages_are_written_between_their_marks_from_the_tables(tmp_path):
    """The pages of this project, again from its tables: nothing in them is typed by hand."""
    pages = ["README.md", "docs/results.md"]
    (tmp_path / "docs").mkdir()
    for page in pages:
        text = (evidence.ROOT / page).read_text()
        begin, end = evidence_pages.MARKS
        before, rest = text.split(begin)
        (tmp_path / page).write_text(f"{before}{begin}\nold\n{end}{rest.split(end)[1]}")
    tables, again = (
        {name: evidence.rows_of(folder / f"{name}.csv") for name in EXPERIMENTS}
        for folder in (evidence.RESULTS, evidence.RESULTS / "again")
    )
    evidence_pages.write_pages(tables, again, tmp_path)
    for page in pages:
        assert (tmp_path / page).read_text() == (evidence.ROOT / page).read_text()
    if tables["classes"]:
        assert (tmp_path / "docs" / "results.png").stat().st_size > 10_000


def test_what_a_row_says_of_a_model_is_what_its_test_said(knees, tmp_path):
    flags = [*TINY, "--mirror-swap", "--epochs", "3", "--depth", "3"]
    more = ["--data-dir", str(knees), "--output-dir", str(tmp_path)]
    assert train.main([*flags, *more]) == 0
    row = evidence.row_of(evidence.Run("depth", "tiny", 0, flags), tmp_path)
    tested = json.loads((tmp_path / "test_metrics.json").read_text())["slices"]
    assert row["slices"] == tested["count"]
    assert row["right_after_3"] == row["slices_right"] == tested["correct"]
    assert "right_after_2" in row and "right_after_4" not in row
    assert len(row["val_loss_by_epoch"].split()) == row["epochs"] == 3
    model, test = evidence.open_tested(tmp_path)
    assert row["parameters"] == sum(weights.numel() for weights in model.parameters())
    images = test.batch(torch.arange(len(test)))
    odds = [model.predict_logits(pixels).diff(dim=1)[:, 0] for pixels in (images, images.flip(3))]
    assert row["mirrored_right"] == ((odds[0] > odds[1]).long() == test.labels).sum()


def test_spread_is_the_mean_with_the_lowest_and_the_highest():
    assert evidence_pages.spread([0.5, 0.7, 0.9], "{:.1%}") == "70.0% (50.0% to 90.0%)"
    assert evidence_pages.spread([0.5], "{:.1%}") == "50.0%"


@pytest.mark.parametrize("more", [[], evidence.QUICK])
def test_every_run_is_one_that_train_py_takes(more):
    models = [*references.NETWORKS, "logistic-regression"]
    for experiment in EXPERIMENTS.values():
        assert set(experiment.columns) <= evidence_pages.COLUMNS.keys()
        for flags in experiment.variants.values():
            model, own = (flags[0], flags[1:]) if flags[0] in models else ("", flags)
            data = [word.replace("{data}", "data") for word in experiment.data.flags]
            args = train.parse_args([*own, *more, *data])
            assert not (model and args.input == "scan")  # of slices alone


def test_what_was_made_twice_stands_beside_what_it_was_first():
    row = {"variant": "slices", "seed": "1", "flags": "--lr 1", "slices": "8", "slices_right": "6"}
    again = row | {"slices_right": "7"}
    others = [row | {"seed": "2", "slices_right": "1"}, row | {"flags": "", "slices_right": "1"}]
    text = evidence_pages.twice({"knees": [*others, row]}, {"knees": [again]})
    assert text.splitlines()[6:] == ["| Slices or whole scans | slices | 1 | 75.0% | 87.5% |"]


def test_epochs_to_an_accuracy_count_those_that_never_reached_it():
    rows = [{"val_accuracy_by_epoch": text} for text in ("0.5 0.9 0.8", "0.95 0.9", "0.1 0.2")]
    assert evidence_pages.epochs_to(0.9, rows) == "2 (1 to 2); 1 run never"


def test_a_run_that_fails_says_why_and_ends_the_others(tmp_path, monkeypatch, capsys):
    variants = {"good": evidence.EXPERIMENTS["order"].variants["slices"], "bad": ["--depth", "0"]}
    bad = evidence.EXPERIMENTS["order"]._replace(variants=variants)
    monkeypatch.setitem(evidence.EXPERIMENTS, "order", bad)
    flags = ["order", "--quick", "--seeds", "3", "4", "--folder", str(tmp_path / "work")]
    monkeypatch.setattr(evidence, "QUICK", evidence.QUICK[:-5])  # that depth
    assert evidence.main([*flags, "--results", str(tmp_path / "results")]) == 1
    assert "--depth" in (error := capsys.readouterr().err) and "exit code 2" in error


def test_what_is_no_experiment_is_named(capsys, tmp_path):
    with pytest.raises(SystemExit) as refused:
        evidence.main(["hard"])
    assert refused.value.code == 2 and "there are order, knees" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evidence.main(["--quick"])
