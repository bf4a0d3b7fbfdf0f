"""benchmarks/evidence.py: runs that are made once, tables of what they measured."""

import csv
import json
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import TINY

import train
from benchmarks import evidence, evidence_figures, evidence_pages, references
from benchmarks.experiments import EXPERIMENTS, FEWER, phantoms
from common.files import locked
from common.program import UserError
from common.tables import write_csv


def rows_of(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
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
    assert "--quick: shows that it runs" in capsys.readouterr().out
    assert evidence.main(flags) == 0 and len(calls) == 3
    (tmp_path / "results" / "order.csv").unlink()
    assert evidence.main(flags) == 0
    assert ["--resume" in command for command in calls[3:]] == [True, True]
    again = sorted(rows_of(tmp_path / "results" / "order.csv"), key=lambda row: row["variant"])
    measured = ("scans_right", "slices_right", "val_loss", "negative_log_likelihood")
    assert [[row[k] for k in measured] for row in again] == [[r[k] for k in measured] for r in rows]


@pytest.mark.slow
def test_a_run_that_shows_a_leak_is_measured_though_its_split_leaks(tmp_path):
    flags = ["leak", "--quick", "--seeds", "0", "--folder", str(tmp_path / "work")]
    assert evidence.main([*flags, "--results", str(tmp_path)]) == 0
    rows = rows_of(tmp_path / "leak.csv")
    assert [bool(row["mirrored_right"]) for row in rows] == [True, True]


def test_pages_are_written_between_their_marks_from_the_tables(tmp_path):
    """The pages of this project, again from its tables: nothing in them is typed by hand."""
    pages = ["README.md", "docs/results.md"]
    (tmp_path / "docs").mkdir()
    for page in pages:
        text = (evidence.ROOT / page).read_text()
        for begin, end in (evidence_pages.MARKS, evidence_pages.AIM_MARKS):
            if begin in text:
                before, rest = text.split(begin)
                text = f"{before}{begin}\nold\n{end}{rest.split(end)[1]}"
        (tmp_path / page).write_text(text)
    tables, again = (
        {name: evidence.current_results(name, folder) for name in EXPERIMENTS}
        for folder in (evidence.RESULTS, evidence.RESULTS / "again")
    )
    evidence_pages.write_pages(tables, again, tmp_path)
    for page in pages:
        assert (tmp_path / page).read_text() == (evidence.ROOT / page).read_text()
    if tables["classes"]:
        assert (tmp_path / "docs" / "results.png").stat().st_size > 10_000


def test_figures_show_each_variant_and_leave_out_what_has_no_epochs(tmp_path):
    curves = {
        "train_loss": "0.9 0.5 0.4",
        "val_loss": "0.8 0.6 0.5",
        "val_accuracy": "0.81 0.9 0.95",
    }
    epochs = {f"{name}_by_epoch": values for name, values in curves.items()} | {"seconds": "240"}
    names = ("classes", "classes-long", "activation-bags", "activation-knees")
    tables = {name: [] for name in EXPERIMENTS} | {
        name: [ROW | epochs | {"variant": variant} for variant in EXPERIMENTS[name].variants]
        for name in names
    }
    tables["classes"][-1] = ROW | {"variant": "logistic regression", "seconds": "3"}
    for draw in (evidence_figures.draw_classes, evidence_figures.draw_activations):
        draw(tables, path := tmp_path / f"{draw.__name__}.svg")
        assert path.stat().st_size > 10_000
        draw({name: [] for name in EXPERIMENTS}, empty := tmp_path / "empty.png")
        assert not empty.exists()


@pytest.mark.slow
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
    models = [*references.NETWORKS, *references.REGRESSIONS]
    for experiment in EXPERIMENTS.values():
        assert set(experiment.columns) <= evidence_pages.COLUMNS.keys()
        for flags in experiment.variants.values():
            model, own = (flags[0], flags[1:]) if flags[0] in models else ("", flags)
            data = [word.replace("{data}", "data") for word in experiment.data.flags]
            args = train.parse_args([*own, *more, *data])
            assert not (model and args.input == "scan")  # of slices alone


@pytest.mark.parametrize(
    "flags, told",
    [
        ("--lr 1 --epochs 2 --lr 3 -b 8 --batch-size 4", "--epochs 2 --lr 3 --batch-size 4"),
        ("--augment --image-size 28 28 --no-augment", "--image-size 28 28 --no-augment"),
        (
            "--clip-gradient -1 --image-size 8 8 --image-size 9 9",
            "--clip-gradient -1 --image-size 9 9",
        ),
    ],
)
def test_of_flags_that_are_given_twice_the_last_is_shown(flags, told):
    assert evidence_pages.last_of_each(flags) == told


def test_the_command_in_the_page_is_the_model_of_its_table():
    page = (evidence.ROOT / "docs" / "results.md").read_text()
    (command,) = re.findall(r"^python train\.py ((?:.*\\\n)*.*)", page, re.M)
    flags = EXPERIMENTS["classes"].variants["Perceiver"]
    data = ["--data-dir", "data/fashion/manifest.csv", "--split-file", "data/fashion/split.csv"]
    words = command.replace("\\\n", "").split()
    said, run = (vars(train.parse_args(each)) for each in (words, [*flags, *data]))
    assert "--recipe" in words and said | {"recipe": None} == run


def test_what_was_made_twice_stands_beside_what_it_was_first():
    row = {"variant": "slices", "seed": "1", "flags": "--lr 1", "slices": "8", "slices_right": "6"}
    row |= {"data": "d", "started": "2026-01-01"}
    again = row | {"slices_right": "7", "started": "2026-01-02"}
    others = [row | {"seed": "2", "slices_right": "1"}]
    text = evidence_pages.twice({"knees": [*others, row]}, {"knees": [again]})
    title = "| Slices or whole scans | slices | 1 "
    assert text.splitlines()[6:] == [f"{title}| 75.0% | 87.5% | 43.8% (12.5% to 75.0%) |"]
    for other in (again | {"data": "e"}, again | {"flags": ""}, row):  # the last is the same run
        assert evidence_pages.twice({"knees": [row]}, {"knees": [other]}) == ""


def test_aims_are_reached_or_missed_by_the_means_of_runs():
    tables = {name: [] for name in EXPERIMENTS}
    right = {"Perceiver": (75, 79), FEWER: (80, 81), "perceiver-pytorch": (70, 76)}
    for name in ("bags", "classes"):
        tables[name] = [
            ROW
            | {"variant": variant, "seed": str(seed), "slices": "100", "slices_right": str(count)}
            for variant, counts in right.items()
            for seed, count in enumerate(counts)
        ]
    lines = evidence_pages.aims_table(tables).splitlines()[2:]
    assert lines == [
        "| ten classes, 20 minutes | 2 | 88.00% | 77.00% | **no** |",
        "| ten classes, 20 minutes | 2 | 3.0 points ahead of perceiver-pytorch | "
        "4.0 points ahead of perceiver-pytorch | yes |",
        f"| bags | 2 |  | 3.5 points behind {FEWER} |  |",
    ]
    del tables["bags"][-3:]  # of the CNN a run is left: it is compared with that of the same seed
    lines = evidence_pages.aims_table(tables).splitlines()
    assert lines[-1] == f"| bags | 1 |  | 5.0 points behind {FEWER} |  |"


def test_rows_of_other_pixels_are_no_table(tmp_path):
    rows = [
        ROW | {"seed": str(seed), "crc32": crc32} for seed, crc32 in enumerate(("", "7", "", "7"))
    ]
    evidence.check_pixels({"order": rows})
    rows.append(ROW | {"seed": "4", "crc32": "8"})
    with pytest.raises(UserError, match="the pixels of slices, seed 4 are not those"):
        evidence.check_pixels({"order": rows})


def test_epochs_to_an_accuracy_count_those_that_never_reached_it():
    rows = [{"val_accuracy_by_epoch": text} for text in ("0.5 0.9 0.8", "0.95 0.9", "0.1 0.2")]
    assert evidence_pages.epochs_to(0.9, rows) == "2 (1 to 2); 1 run never"


def test_epochs_to_an_accuracy_of_what_has_none_or_never_reached_it():
    assert evidence_pages.epochs_to(0.9, [{"val_accuracy_by_epoch": ""}, {}]) == ""
    assert evidence_pages.epochs_to(0.9, [{"val_accuracy_by_epoch": "0.1"}]) == "1 run never"


def test_of_a_search_for_c_nothing_is_called_epochs_and_all_seconds_count(knees, tmp_path):
    flags = ["logistic-regression", *TINY]
    more = ["--data-dir", str(knees), "--output-dir", str(tmp_path)]
    assert references.main([*flags, *more]) == 0
    table = rows_of(tmp_path / "metrics.csv")
    for row, seconds in zip(table, (1, 2, 4, 8, 16, 32, 64), strict=True):
        row["seconds"] = seconds
    write_csv(tmp_path / "metrics.csv", table)
    row = evidence.row_of(evidence.Run("order", "logistic regression", 0, flags), tmp_path)
    assert row["seconds"] == 127 and row["epochs"] == "" and "val_loss_by_epoch" not in row


# ---- what goes wrong -----------------------------------------------------------------------------


@pytest.mark.slow
def test_after_a_run_that_fails_the_one_beside_it_gets_its_row(tmp_path, monkeypatch, capsys):
    good = evidence.EXPERIMENTS["order"].variants["slices"]
    variants = {"good": good, "bad": ["--depth", "0"], "next": [*good, "--lr", "0.1"]}
    bad = evidence.EXPERIMENTS["order"]._replace(variants=variants)
    monkeypatch.setitem(evidence.EXPERIMENTS, "order", bad)
    flags = ["order", "--quick", "--seeds", "3", "4", "--folder", str(tmp_path / "work")]
    monkeypatch.setattr(evidence, "QUICK", evidence.QUICK[:-5])  # that depth
    assert evidence.main([*flags, "--jobs", "2", "--results", str(tmp_path / "results")]) == 1
    assert "--depth" in (error := capsys.readouterr().err) and "exit code 2" in error
    assert [row["variant"] for row in rows_of(tmp_path / "results" / "order.csv")] == ["good"]
    assert not [*(tmp_path / "work" / "order").glob("next*")]


STOPPED = """
import sys
from benchmarks import evidence
order = evidence.EXPERIMENTS["order"]
data = order.data._replace(command=["-m", "scans.phantom", "{data}", "--patients", "3"])
flags = [*evidence.QUICK, "--epochs", "40"]
variants = {"one": flags, "two": [*flags, "--lr", "0.01"]}
evidence.EXPERIMENTS["order"] = order._replace(data=data, variants=variants)
sys.exit(evidence.main())
"""


@pytest.mark.slow
def test_sigterm_to_the_program_alone_ends_its_runs_and_the_command_goes_on(tmp_path):
    words = ["order", "--seeds", "3", "--jobs", "2", "--folder", str(tmp_path / "work")]
    command = [sys.executable, "-c", STOPPED, *words, "--results", str(tmp_path)]
    process = subprocess.Popen(command, cwd=evidence.ROOT, stderr=subprocess.PIPE, text=True)
    while len([*tmp_path.glob("work/order/*/last.pt")]) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    (line,) = process.communicate()[1].splitlines()
    assert process.returncode == 128 + signal.SIGTERM
    assert line == "evidence.py: interrupted; the same command goes on"
    for run in (tmp_path / "work" / "order").glob("*/"):
        assert len(rows_of(run / "metrics.csv")) < 40
        with locked(run):  # by no process any more
            pass
    assert subprocess.run(command, cwd=evidence.ROOT).returncode == 0
    rows = sorted(rows_of(tmp_path / "order.csv"), key=lambda row: row["variant"])
    assert [(row["variant"], row["epochs"]) for row in rows] == [("one", "40"), ("two", "40")]


@pytest.mark.slow
def test_data_that_two_programs_need_is_made_once(tmp_path):
    data = phantoms("--patients", "3")
    with ThreadPoolExecutor(2) as pool:
        made = [pool.submit(evidence.make_data, tmp_path, data, False) for _ in range(2)]
        paths = {future.result() for future in made}
    assert [*tmp_path.iterdir()] == [*paths]


def test_a_row_that_another_program_has_added_is_neither_lost_nor_doubled(tmp_path):
    path = tmp_path / "order.csv"
    for seed in (0, 1, 0):
        run = evidence.Run("order", "slices", seed, ["--lr", "1"])
        row = {**ROW, **run.made_with}
        evidence.add_row(path, run, {**row, "note": "new"} if seed else row)
    assert [(row["seed"], row["note"]) for row in evidence.results_of(path)] == [
        ("0", ""),
        ("1", "new"),
    ]


def test_a_seed_that_is_named_twice_is_run_once():
    assert evidence.runs_of("order", [1, 1], False) == evidence.runs_of("order", [1], False)


ROW = {"variant": "slices", "seed": "0", "flags": "--lr 1", "processor": "x", "threads": "1"}
ROW |= {"patients": "3", "scans": "8", "scans_right": "6", "data": "phantoms"}


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"seed": ""}, "see seed"),
        ({"patients": "nan"}, "see patients"),
        ({"scans_right": "six"}, "see scans_right"),
        ({"scans_right": "9"}, "see scans_right"),
        ({"scans_right": "1.5"}, "see scans_right"),
        ({"scans": "0", "scans_right": "0"}, "see scans_right"),
        ({"scans": ""}, "see scans_right"),
        ({"data": ""}, "see data"),
        ({"flags": "", "processor": ""}, "see flags, processor"),
        ({"val_accuracy_by_epoch": "0.1 x"}, "see val_accuracy_by_epoch"),
    ],
)
def test_a_damaged_table_is_one_line(wrong, told, tmp_path, capsys):
    write_csv(tmp_path / "order.csv", [{**ROW, "val_accuracy_by_epoch": ""}, ROW | wrong])
    assert evidence.main(["order", "--results", str(tmp_path), "--folder", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path}/order.csv, line 3: no row of evidence.py, {told}; remove" in line


def test_a_run_that_is_in_a_table_twice_is_named(tmp_path, capsys):
    write_csv(tmp_path / "order.csv", [ROW, ROW | {"scans_right": "5"}])
    assert evidence.main(["order", "--results", str(tmp_path), "--folder", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"{tmp_path}/order.csv, lines 2 and 3: the same run twice; remove one")


def test_a_table_that_is_whole_is_shown_also_where_nothing_can_be_run(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(evidence, "SOURCE", tmp_path / "nothing")
    runs = evidence.runs_of("permuted", [0], False)
    write_csv(tmp_path / "permuted.csv", [ROW | run.made_with for run in runs])
    assert evidence.main(["permuted", "--seeds", "0", "--results", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "| small CNN, places known | 1 |" in said
    assert f"{tmp_path}/permuted.csv has all of it: name other --results" in said


def test_columns_that_nobody_knows_are_kept_and_those_of_later_versions_may_be_missing(tmp_path):
    write_csv(tmp_path / "order.csv", [ROW | {"note": "by hand"}])
    (row,) = evidence.results_of(tmp_path / "order.csv")
    assert row["note"] == "by hand" and "| slices | 1 | 75.0% |" in evidence.table("order", [row])


def test_runs_of_other_settings_are_in_no_table(tmp_path):
    run = evidence.Run("order", "slices", 1, EXPERIMENTS["order"].variants["slices"])
    made_with = ROW | run.made_with
    quick = f"{made_with['flags']} {' '.join(evidence.QUICK)}"
    rows = [made_with, ROW, made_with | {"flags": quick}, made_with | {"data": "others"}]
    write_csv(tmp_path / "order.csv", rows)
    assert evidence.current_results("order", tmp_path) == [rows[0]]
    assert evidence.current_results("order", tmp_path, quick=True) == [rows[2]]


def test_pages_are_left_alone_where_there_are_no_results(tmp_path, capsys):
    page = evidence.ROOT / "docs" / "results.md"
    before = page.stat().st_mtime_ns
    assert evidence.main(["--write-docs", "--results", str(tmp_path)]) == 2
    assert f"{tmp_path}: no tables" in capsys.readouterr().err
    assert page.stat().st_mtime_ns == before


def test_what_is_not_on_this_machine_is_left_out_and_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evidence, "SOURCE", tmp_path / "nothing")
    monkeypatch.setenv("PERCEIVER_MSKT", str(tmp_path))
    flags = ["--results", str(tmp_path / "results"), "--folder", str(tmp_path / "work")]
    assert evidence.main(["bags", "real-knee", *flags]) == 1
    told = "bags: left out; install the Debian package dataset-fashion-mnist\nreal-knee: left out; "
    assert capsys.readouterr().out.startswith(told)


def test_what_is_no_experiment_is_named(capsys, monkeypatch):
    with pytest.raises(SystemExit) as refused:
        evidence.main(["hard"])
    assert refused.value.code == 2 and "there are order, knees" in capsys.readouterr().err
    monkeypatch.chdir(evidence.ROOT)
    for folder in ([], ["--results", "benchmarks/results"]):
        with pytest.raises(SystemExit) as refused:
            evidence.main(["--quick", *folder])
        assert refused.value.code == 2 and "name other --results" in capsys.readouterr().err
