"""benchmarks/speed.py: a small real measurement, its records, and the pages made of them."""

import argparse
import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from benchmarks import speed, speed_records
from perceiver import Perceiver
from training.arguments import parse_args

ROOT = Path(speed.__file__).parent.parent
TINY = speed.Case((8, 8), 1, {"num_latents": 16, "latent_dim": 32, "depth": 2})
MEASURED = json.loads(speed.RESULTS.read_text())["records"][0]


def record_of(processor: str, **more) -> dict:
    return {**copy.deepcopy(MEASURED), "processor": processor, **more}


# ---- measuring -----------------------------------------------------------------------------------


def arguments(rounds: int = 2) -> argparse.Namespace:
    return argparse.Namespace(device="cpu", amp=False, rounds=rounds)


@pytest.mark.slow
def test_each_model_is_measured_in_a_process_of_its_own(monkeypatch):
    monkeypatch.setattr(speed, "MOST_ROUNDS", 1)  # others may be busy
    large = {
        "num_latents": 256,
        "latent_dim": 128,
        "depth": 3,
    }  # enough for resident memory to tell
    case = speed.measure("8x8", speed.Case((8, 8), 2, large), arguments())
    assert list(case["models"]) == list(speed.MODELS) and case["difference"] < 1e-4
    for model in case["models"].values():
        assert len(model["train"]) == len(model["infer"]) == 2
        assert min(model["infer"] + model["train"]) > 0
    memory = {name: model["memory"] for name, model in case["models"].items()}
    assert 1e6 < memory["ours, --checkpoint-latents"] < 0.8 * memory["ours"], memory
    assert case["discarded"] == 0 and len(case["others"]) == 4  # 2 rounds of each word
    assert json.loads(json.dumps(case))["arguments"] == large


def test_models_that_disagree_are_not_timed(monkeypatch, capsys, tmp_path):
    class Disagreeing:
        def __enter__(self):
            return lambda name, word: [[0.0, float(name == "ours")]]

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(speed, "processes", lambda *_: Disagreeing())
    monkeypatch.setattr(speed, "matrix_product_rates", lambda *_: {"torch.mm": 1.0})
    output = tmp_path / "new" / "mine.json"
    assert speed.main(["--cases", "demo", "--output", str(output)]) == 1
    assert capsys.readouterr().err == "speed.py: demo: the models' logits differ by 1.0\n"
    assert not output.exists()


def test_the_demo_case_is_the_demo():
    args, case = parse_args(["--demo"]), speed.CASES["demo"]
    assert (tuple(args.image_size), args.batch_size) == (case.axes, case.batch)
    config = Perceiver(**case.arguments).config
    assert {name: value for name, value in vars(args).items() if name in config}.items() <= (
        config.items()
    )


@pytest.mark.slow
def test_short_steps_are_repeated_and_their_mean_is_one_steps(monkeypatch):
    with speed.processes(("ours",), TINY, "cpu", False) as ask:
        ask("ours", "train")
        before = speed.time.perf_counter()
        seconds = ask("ours", "train")
        assert speed.time.perf_counter() - before >= speed.SHORT > 4 * seconds > 0


def test_what_others_take_is_told_from_what_the_models_take(monkeypatch):
    """Of 10 s on all cores together 6 were not idle, and the models took 1 s each."""
    cores = 2
    clock = iter([100.0, 100.0 + 10 / cores])
    busy, cpu = iter([50.0, 56.0]), iter([0.0] * 3 + [1.0] * 3)
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(speed, "busy_seconds", lambda: next(busy))
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    taken = speed.take_round(lambda name, word: next(cpu) if word == "cpu" else 0.5, "train")
    assert taken.others == pytest.approx(0.3) and taken.seconds == dict.fromkeys(speed.MODELS, 0.5)


def test_another_process_counts_as_busy():
    before = speed.busy_seconds()
    spin = "import time\nwhile time.process_time() < 0.6: pass"
    subprocess.run([sys.executable, "-c", spin], check=True)
    assert speed.busy_seconds() - before > 0.5


@pytest.mark.parametrize(
    "others, kept, discarded",
    [
        ([0.0, 0.5, 0.02, 0.9, 0.1], [0.0, 0.02, 0.1], 2),  # until there are three quiet ones
        ([0.5, 0.6, 0.2, 0.0, 0.9, 0.7], [0.0, 0.2, 0.5], 3),  # as many as are allowed
    ],
)
def test_busy_rounds_are_discarded_and_measured_again(others, kept, discarded, monkeypatch):
    class Agreeing:
        def __enter__(self):
            return lambda name, word: [[0.0]] if word == "logits" else 7

        def __exit__(self, *_):
            pass

    rounds = (speed.Round(dict.fromkeys(speed.MODELS, 10 + share), share) for share in others)
    monkeypatch.setattr(speed, "processes", lambda *_: Agreeing())
    monkeypatch.setattr(speed, "take_round", lambda ask, word: next(rounds))
    monkeypatch.setattr(speed, "MOST_ROUNDS", 2)
    case = speed.measure("8x8", TINY, arguments(rounds=3), ("train",))
    assert (case["others"], case["discarded"]) == (kept, discarded)
    assert case["models"]["ours"]["train"] == [10 + share for share in kept]
    assert next(rounds, None) is None  # not one more than needed, not one less
    text = speed_records.noise(record_of("A", cases=[case], growth=[], busy=0.1))
    assert f"more than 10% of the cores: {discarded} of {len(others)};" in text
    assert f"{kept[1]:.1%} (median), {kept[2]:.1%} at most" in text


@pytest.mark.slow
def test_counted_operations_grow_with_the_batch_and_hold_the_known_products():
    once, twice = (speed.count_operations(speed.Case((8, 8), batch, {})) for batch in (1, 2))
    assert 1.9 < twice / once < 2
    # Feed-forward alone: 12 times 512 latents, 512 -> 4096 and 2048 -> 512, forward and backward.
    assert once > 12 * 3 * 2 * 512 * (512 * 4096 + 2048 * 512)
    assert speed.count_operations(TINY) < once / 1000


def test_the_processors_name_tells_generations_apart(monkeypatch):
    first = "processor : 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\nstepping : 1"
    monkeypatch.setattr(Path, "read_text", lambda self: f"{first}\n\n{first.replace('17', '99')}")
    assert speed.processor() == "AMD EPYC (family 25, model 17, stepping 1)"
    monkeypatch.setattr(Path, "read_text", lambda self: "CPU part : 0xd40")  # as on ARM
    assert speed.processor() and "(" not in speed.processor()


# ---- the file of records -------------------------------------------------------------------------


def test_a_run_replaces_the_record_of_its_processor_and_leaves_others(tmp_path, monkeypatch):
    path = tmp_path / "speed.json"
    others = [record_of("A"), record_of(speed.processor(), device="cuda"), record_of("B")]
    old = record_of(speed.processor(), commit="old", threads=torch.get_num_threads())
    path.write_text(json.dumps({"records": [others[0], old, *others[1:]]}))
    monkeypatch.setattr(speed, "measure", lambda name, *_: {**old["cases"][0], "case": name})
    monkeypatch.setattr(speed, "matrix_product_rates", lambda *_: {"torch.mm": 1e11})
    monkeypatch.setattr(speed, "count_operations", lambda case: 10**9)
    command = ["--cases", "28x28", "--growth", "--device", "cpu", "--output", str(path)]
    assert speed.main(command) == 0
    records = json.loads(path.read_text())["records"]
    assert [records[0], *records[2:]] == others
    assert records[1]["processor"] == speed.processor() and records[1]["commit"] != "old"
    assert [case["case"] for case in records[1]["cases"]] == ["28x28"]
    assert records[1]["date"] > old["date"] and path.with_suffix(".png").exists()


@pytest.mark.parametrize(
    "content", [b"{", b"\xff", b"[]", b'{"records": [{}]}', b'{"cases": [], "rounds": 5}']
)
def test_a_file_of_something_else_is_not_overwritten(content, tmp_path, monkeypatch, capsys):
    monkeypatch.delattr(speed, "measure_all")  # it ends before anything is measured
    path = tmp_path / "speed.json"
    path.write_bytes(content)
    assert speed.main(["--output", str(path)]) == 2
    assert path.read_bytes() == content and os.listdir(tmp_path) == ["speed.json"]
    message = capsys.readouterr().err
    assert message.startswith(f"speed.py: {path}: ") and message.count("\n") == 1


def test_a_failure_while_writing_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "speed.json"
    speed_records.add_record(path, record_of("A"))
    before = path.read_bytes()
    with pytest.raises(TypeError):  # what JSON can't hold, after much of it was written
        speed_records.add_record(path, record_of("A", growth=[object()]))
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["speed.json"]


# ---- tables and pages ----------------------------------------------------------------------------


def test_line_fit_finds_slope_and_intercept():
    fit = speed_records.fit_line([1, 2, 4], [5, 7, 11])
    assert fit == pytest.approx({"slope": 2, "intercept": 3, "r2": 1})
    assert speed_records.fit_line([1, 2, 4], [5, 9, 11])["r2"] < 1


def test_a_small_model_shows_what_it_is_and_its_slices_a_second():
    models = {
        name: {"train": [0.3, 0.25, 0.2], "infer": [0.1], "memory": 1} for name in speed.MODELS
    }
    found = {"operations": 10**9, "models": models, "others": [0.0], "discarded": 0}
    case = {"case": "demo", **speed.CASES["demo"]._asdict(), **found}
    record = record_of("A", busy=0.1, cases=[case], rates={"torch.mm": 5e9, "oneDNN": 1e10})
    text = speed_records.summary(record)
    assert "demo, 32: 38 x 43, num_freq_bands 3," in text
    assert "ours 128 and 320;" in text  # 32 slices in 0.25 and in 0.1 seconds
    assert "torch.mm (5 GFLOP/s) or oneDNN (10 GFLOP/s)" in text
    # 1e9 operations take 0.1 s at the better rate, which is 40 % of 0.25 s.
    assert "| demo, 32 | ours | 0.25 (0.2 to 0.3) | 1.0x | 40% |" in speed_records.table(record)


def test_each_processor_has_a_section_and_rows_and_an_outdated_one_says_so():
    old = record_of("Old", date="2020-01-01T00:00:00Z", commit="aaaaaaa")
    new = record_of("New", date="2030-01-01T00:00:00Z", commit="bbbbbbb", threads=1)
    text = speed_records.sections({"records": [old, new]})
    assert "## Old, 2 threads\n\nMeasured 2020-01-01 at aaaaaaa, not measured since." in text
    assert "## New, 1 thread\n\nMeasured 2030-01-01 at bbbbbbb.\n" in text
    assert text.endswith("Other processors, and GPUs: not measured.")
    short = speed_records.short_table({"records": [old, new]})
    assert short.count("\n| New, 1 thread |") == 4 and "Old" not in short
    assert "Measured: New, 1 thread on 2030-01-01 at bbbbbbb." in short
    gpu = record_of("GPU", device="cuda")
    assert speed_records.sections({"records": [gpu]}).endswith(
        "\n\nOther processors: not measured."
    )


def test_the_documentation_shows_what_was_measured(tmp_path):
    for name in ("README.md", "docs/speed.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        page = (ROOT / name).read_text()
        (tmp_path / name).write_text(page.replace("x |", "y |"))  # tables typed by hand
    speed_records.write_docs(speed_records.read_results(speed.RESULTS), tmp_path)
    for name in ("README.md", "docs/speed.md"):
        assert (tmp_path / name).read_text() == (ROOT / name).read_text(), (
            "run `python benchmarks/speed.py --write-docs`"
        )


@pytest.mark.parametrize("page", ["", speed_records.BEGIN, speed_records.END])
def test_a_page_without_marks_is_not_written(page, tmp_path):
    (tmp_path / "docs").mkdir()
    marks = f"{speed_records.BEGIN}\n{speed_records.END}\n"
    (tmp_path / "docs" / "speed.md").write_text(marks)
    (tmp_path / "README.md").write_text(page)
    with pytest.raises(speed_records.UserError, match=r"README.md: expected one line <!-- begin"):
        speed_records.write_docs({"records": [MEASURED]}, tmp_path)
    assert (tmp_path / "docs" / "speed.md").read_text() == marks


def test_the_picture_shows_each_processor_and_its_slowest_model(tmp_path, monkeypatch):
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda *a, **k: figures.append(a[0]) or save(*a, **k))
    speed_records.draw({"records": [MEASURED, record_of("B")]}, tmp_path / "speed.png")
    slowest = max(max(one["models"]["perceiver-pytorch"]["train"]) for one in MEASURED["growth"])
    panels = figures[0].axes
    assert [panel.get_title() for panel in panels[::2]] == [
        "Training step\nAMD EPYC, 2 threads",
        "Training step\nB, 2 threads",
    ]
    for panel in panels[::2]:
        assert panel.get_ylim()[0] == 0 and panel.get_ylim()[1] > 0.9 * slowest
    assert (tmp_path / "speed.png").stat().st_size > 10_000
