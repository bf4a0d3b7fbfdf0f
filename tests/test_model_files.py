"""Checkpoints of a model: what they rebuild, and what is no checkpoint."""

import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_perceiver import SMALL, randomised

import perceiver
from perceiver import CheckpointError, Perceiver

DATA = Path(__file__).parent / "data"


def save(model, path):
    model.preprocessing = {
        "classes": ["left", "right"],
        "image_size": [8, 8],
        "mean": 0.2,
        "std": 0.1,
    }
    torch.save(model.checkpoint(), path)


def test_checkpoint_alone_rebuilds_the_model(tmp_path):
    model = randomised(activation="gelu", weight_tie_layers=False, ff_dropout=0.3).eval()
    save(model, tmp_path / "best.pt")
    again = Perceiver.from_checkpoint(tmp_path / "best.pt")
    images = torch.randn(2, 1, 8, 8)
    assert not again.training and torch.equal(again(images), model(images))
    assert again.preprocessing["image_size"] == [8, 8]


def test_checkpoint_of_a_read_checkpoint_is_the_same(tmp_path):
    """What a run keeps beside the model is not the model's, and stays out of it."""
    model, path = randomised(), tmp_path / "best.pt"
    model.calibration = {"temperature": 2.5, "unsure_below": 0.7}
    save(model, path)
    first = torch.load(path, weights_only=True)
    torch.save({**first, "optimizer": {}, "progress": {"epoch": 3}}, path)
    again = Perceiver.from_checkpoint(path).checkpoint()
    assert list(again) == ["config", "preprocessing", "calibration", "model"]
    weights, same_weights = first.pop("model"), again.pop("model")
    assert again == first and again["calibration"] == model.calibration
    assert list(same_weights) == list(weights)
    assert all(torch.equal(same_weights[name], weights[name]) for name in weights)


def test_checkpoint_without_calibration_has_temperature_1(tmp_path):
    save(randomised(), tmp_path / "best.pt")
    checkpoint = torch.load(tmp_path / "best.pt", weights_only=True)
    del checkpoint["calibration"]
    torch.save(checkpoint, tmp_path / "old.pt")
    assert Perceiver.from_checkpoint(tmp_path / "old.pt").calibration == {"temperature": 1.0}


def test_checkpoint_of_the_last_version_predicts_what_it_predicted_there():
    expected = json.loads((DATA / "last_version.json").read_text())
    rng = np.random.default_rng(expected["seed"])
    pixels = rng.integers(0, 160, (8, 1, 16, 16), dtype=np.uint8)
    for i in range(8):
        pixels[i, ..., :8] += 10 * i
    model = Perceiver.from_checkpoint(DATA / "last_version.pt")
    probabilities = model.predict_proba(torch.from_numpy(pixels)).numpy()
    # Processors differ by some 3e-6.
    assert probabilities == pytest.approx(np.array(expected["probabilities"]), abs=1e-5)
    assert model.preprocessing == expected["preprocessing"]
    assert model.preprocessing["classes"] == ["left", "right"]
    assert model.calibration == expected["calibration"]


LATENTS = torch.zeros(SMALL["num_latents"], SMALL["latent_dim"])


@pytest.mark.parametrize(
    "keys, value",
    [
        (["config"], None),
        (["config"], [("depth", 3)]),
        (["config", "depth"], [3]),
        (["config", "depth"], True),
        (["config", "depth"], torch.ones(2, 2)),
        (["config", "depth"], 1),  # a possible model, but another one
        (["config", "num_latents"], 13),
        (["config", "max_freq"], "10"),
        (["config", "max_freq"], {"x": [1]}),
        (["config", "ff_dropout"], "0.1"),
        (["config", "fourier_encode_data"], torch.ones(2)),
        (["config", "activation"], torch.ones(2)),
        (["config", "width"], 3),
        (["config", 7], 3),
        (["config", (1, "a")], 3),
        (["preprocessing"], [1]),
        (["preprocessing"], {}),
        (["preprocessing", "mean"], math.nan),
        (["preprocessing", "mean"], None),
        (["preprocessing", "mean"], 10**400),
        (["preprocessing", "std"], 0.0),
        (["preprocessing", "mean"], 1e38),
        (["preprocessing", "std"], 1e-320),  # a quotient would be infinite
        (["preprocessing", "std"], True),
        (["preprocessing", "std"], torch.ones(2)),
        (["preprocessing", "classes"], ["left", "\ud800"]),  # no table could be written
        (["preprocessing", "classes"], ["left", "ri\nght"]),
        (["preprocessing", "classes"], ["left", "\x1b[31m"]),
        (["preprocessing", "classes"], ["left", "x" * 101]),
        (["preprocessing", "classes"], ["left", "x" * 10**6]),
        (["preprocessing", "image_size"], ["a", "b"]),
        (["preprocessing", "image_size"], 8),
        (["preprocessing", "image_size"], [8]),
        (["preprocessing", "image_size"], [8, True]),
        (["preprocessing", "image_size"], None),
        (["preprocessing", "classes"], "left"),
        (["preprocessing", "classes"], ["left", 1]),
        (["preprocessing", "classes"], 5),
        (["preprocessing", "classes"], []),
        (["preprocessing", "classes"], ["left"]),
        (["preprocessing", "classes"], ["left", "right", "both"]),
        (["preprocessing", "classes"], ["left", "Left "]),
        (["preprocessing", "classes"], ["left", " "]),
        (["calibration"], None),
        (["calibration"], {}),
        (["calibration", "temperature"], 0),
        (["calibration", "temperature"], -1.0),
        (["calibration", "temperature"], math.inf),
        (["calibration", "temperature"], 1e-300),
        (["calibration", "temperature"], "1"),
        (["calibration", "unsure_below"], math.nan),
        (["calibration", "unsure_below"], 2),
        (["calibration", "unsure_below"], "0.5"),
        (["calibration", "temperature"], torch.ones(2)),
        (["model"], [LATENTS]),
        (["model"], {}),
        (["model", "latents"], None),
        (["model", "latents"], LATENTS.tolist()),
        (["model", "latents"], LATENTS[1:]),
        (["model", "latents"], LATENTS.long()),
        (["model", "latents"], LATENTS.to(torch.complex64)),
        (["model", "latents"], LATENTS.to_sparse()),
        (["model", "latents"], LATENTS.to("meta")),
        (["model", "latents"], torch.nested.nested_tensor([LATENTS[0], LATENTS[1, 1:]])),
        (["model", "latents"], LATENTS / 0),
        (["model", "latents"], LATENTS.double() + 1e300),  # infinite where it is loaded into
        (["model", "more"], LATENTS),
        (["model", 7], LATENTS),
    ],
    ids=lambda value: " ".join(str(value).split())[:30],
)
def test_odd_contents_of_a_checkpoint_are_one_line_naming_the_file(tmp_path, keys, value):
    path = tmp_path / "odd.pt"
    save(randomised(), path)
    checkpoint = content = torch.load(path, weights_only=True)
    for key in keys[:-1]:
        content = content[key]
    content[keys[-1]] = value
    torch.save(checkpoint, path)
    with pytest.raises(CheckpointError) as refused:
        Perceiver.from_checkpoint(path)
    message = str(refused.value)
    assert message.startswith(f"{path}: not a checkpoint of this Perceiver: ")
    assert len(message.splitlines()) == 1 and len(message) < len(str(path)) + 200


@pytest.mark.parametrize(
    "keys",
    [
        ["config"],
        ["config", "depth"],
        ["config", "checkpoint_latents"],
        ["preprocessing"],
        ["preprocessing", "mean"],
        ["preprocessing", "std"],
        ["calibration", "temperature"],
        ["model"],
        ["model", "head.bias"],
    ],
    ids=" ".join,
)
def test_what_is_missing_in_a_checkpoint_is_named(tmp_path, keys):
    path = tmp_path / "odd.pt"
    save(randomised(), path)
    checkpoint = content = torch.load(path, weights_only=True)
    for key in keys[:-1]:
        content = content[key]
    del content[keys[-1]]
    torch.save(checkpoint, path)
    with pytest.raises(CheckpointError, match=rf"odd\.pt: not a [^\n]*{keys[-1]}[^\n]*$"):
        Perceiver.from_checkpoint(path)


@pytest.mark.parametrize("error", [AttributeError, KeyError, RuntimeError, TypeError, ValueError])
@pytest.mark.parametrize(
    "owner, method",
    [
        (Perceiver, "__init__"),
        (Perceiver, "load_state_dict"),
        (perceiver.FeedForward, "__init__"),
        (perceiver, "check_preprocessing"),
    ],
)
def test_a_bug_is_not_blamed_on_the_file(tmp_path, monkeypatch, owner, method, error):
    save(randomised(), tmp_path / "whole.pt")

    def bug(*arguments, **named):
        raise error("a typo")

    monkeypatch.setattr(owner, method, bug)
    with pytest.raises(error, match="a typo") as traced:
        Perceiver.from_checkpoint(tmp_path / "whole.pt")
    assert type(traced.value) is error


class Hostile:
    def __reduce__(self):
        return exec, ("open('executed', 'w').close()",)


def test_file_that_is_no_checkpoint_is_one_line_naming_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(randomised(), "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "text.pt").write_text("not a checkpoint\n")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "hostile.pt").write_bytes(pickle.dumps(Hostile()))
    torch.save({"weights": torch.zeros(3)}, "foreign.pt")
    torch.save({"model": Hostile()}, "hostile-zip.pt")
    torch.save(torch.zeros(3), "tensor.pt")
    other = randomised(num_latents=7)
    torch.save({"config": randomised().config, "model": other.state_dict()}, "mixed.pt")
    for name in ["text", "empty", "half", "hostile", "hostile-zip", "foreign", "tensor", "mixed"]:
        with pytest.raises(CheckpointError, match=rf"^{name}\.pt: not a [^\n]+$"):
            Perceiver.from_checkpoint(f"{name}.pt")
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        Perceiver.from_checkpoint("none.pt")
    assert not (tmp_path / "executed").exists()


CLAIMS = [
    (["config", "self_per_cross_attn"], 10**8),
    (["config", "self_per_cross_attn"], 200),  # possible, but not with so few arrays
    (["config", "depth"], 10**8),  # tied: no arrays of its own, and years
    (["config", "depth"], 5000),
    (["config", "input_axis"], 10**6),
    (["config", "input_channels"], 10**18),
    (["config", "num_freq_bands"], 10**18),
    (["config", "latent_dim"], 10**18),
    (["config", "latent_heads"], 10**18),
    (["config", "num_classes"], 10**9),
    (["preprocessing", "image_size"], [10**6, 10**6]),
    (["preprocessing", "image_size"], [2**16, 2**16]),
    (["preprocessing", "image_size"], [2**16] * 10**5),
]
LOAD = """
import sys, time
from perceiver import CheckpointError, Perceiver
for path in sys.argv[1:]:
    started = time.perf_counter()
    try:
        Perceiver.from_checkpoint(path)
    except CheckpointError as error:
        print(round(time.perf_counter() - started, 3), error)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def load_in_a_process(*paths: Path) -> tuple[list[str], int]:
    """What is printed of each, "seconds error", and the most memory in kB that it took."""
    command = [sys.executable, "-c", LOAD, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=DATA.parents[1], timeout=60)
    assert not done.stderr, done.stderr
    *lines, memory = done.stdout.splitlines()
    return lines, int(memory)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads memory from /proc")
def test_what_a_file_claims_is_refused_before_it_takes_memory_or_time(tmp_path):
    save(randomised(), tmp_path / "whole.pt")
    paths = []
    for keys, value in CLAIMS:
        checkpoint = torch.load(tmp_path / "whole.pt", weights_only=True)
        checkpoint[keys[0]][keys[1]] = value
        paths.append(tmp_path / f"{len(paths)}.pt")
        torch.save(checkpoint, paths[-1])

    # One number, repeated: 64 MB and 256 GB of latents in a file of a few kB.
    for count, width in ((2**10, 2**14), (10**8, 640)):
        checkpoint = torch.load(tmp_path / "whole.pt", weights_only=True)
        claimed = {"num_latents": count, "latent_dim": width}
        checkpoint["config"] |= claimed
        if count < 10**8:
            with torch.device("meta"):
                shapes = Perceiver(**{**SMALL, **claimed}).state_dict()
            one = torch.zeros(1)
            checkpoint["model"] = {name: one.expand(t.shape) for name, t in shapes.items()}
        checkpoint["model"]["latents"] = torch.zeros(1).expand(count, width)
        paths.append(tmp_path / f"{len(paths)}.pt")
        torch.save(checkpoint, paths[-1])

    _, usual = load_in_a_process(tmp_path / "whole.pt")
    lines, memory = load_in_a_process(*paths)
    assert len(lines) == len(paths)
    for path, line in zip(paths, lines, strict=True):
        seconds, text = line.split(" ", 1)
        assert float(seconds) < 2 and text.startswith(f"{path}: not a checkpoint of this Perceiver")
        assert len(text) < len(str(path)) + 200
    assert "larger than what the file holds" in lines[-2]
    assert memory < usual + 50_000


def test_pipes_devices_and_folders_are_no_checkpoints_and_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")  # to open it would wait for ever
    for path in (tmp_path / "pipe.pt", Path("/dev/zero"), tmp_path):
        with pytest.raises(FileNotFoundError, match=f"{path}: a folder, a pipe or a device, expec"):
            Perceiver.from_checkpoint(path)
    with pytest.raises(
        FileNotFoundError, match=r"pt: no such file, expected a checkpoint, best\.pt"
    ):
        Perceiver.from_checkpoint(tmp_path / "none\0.pt")
