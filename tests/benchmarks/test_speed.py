"""benchmarks/speed.py: a small real measurement; docs/speed.md against the stored results."""

import argparse
import json
from pathlib import Path

import pytest
import torch

from benchmarks import speed

ROOT = Path(speed.__file__).parent.parent


def test_each_model_is_measured_in_a_process_of_its_own():
    args = argparse.Namespace(device="cpu", amp=False)
    rows = speed.measure("8x8", batch=1, rounds=2, args=args)
    assert [row["model"] for row in rows] == list(speed.MODELS)
    for row in rows:
        assert len(row["train"]) == len(row["infer"]) == 2
        assert min(row["infer"] + row["train"]) > 0
        assert row["tokens"] == 64 and row["memory"] > 1e6 and row["difference"] < 1e-4
    memory = {row["model"]: row["memory"] for row in rows}
    assert memory["ours, --checkpoint-latents"] < memory["ours"]


def test_models_that_disagree_are_not_timed(monkeypatch):
    class Disagreeing:
        def __enter__(self):
            return lambda name, word: [[0.0, float(name == "ours")]]

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(speed, "processes", lambda *_: Disagreeing())
    with pytest.raises(ArithmeticError, match=r"8x8: the models' logits differ by 1\.0"):
        speed.measure("8x8", 1, 1, argparse.Namespace(device="cpu", amp=False))


def test_counted_operations_grow_with_the_batch_and_hold_the_known_products():
    once, twice = (speed.count_operations("8x8", batch) for batch in (1, 2))
    assert 1.9 < twice / once < 2
    # Feed-forward alone: 12 times 512 latents, 512 -> 4096 and 2048 -> 512, forward and backward.
    assert once > 12 * 3 * 2 * 512 * (512 * 4096 + 2048 * 512)


def test_line_fit_finds_slope_and_intercept():
    fit = speed.fit_line([1, 2, 4], [5, 7, 11])
    assert fit == pytest.approx({"slope": 2, "intercept": 3, "r2": 1})
    assert torch.tensor(speed.fit_line([1, 2, 4], [5, 9, 11])["r2"]) < 1


def test_the_documentation_shows_what_was_measured():
    results = json.loads(speed.RESULTS.read_text())
    page = (ROOT / "docs" / "speed.md").read_text()
    assert speed.table(results) in page
    assert speed.summary(results) in page
