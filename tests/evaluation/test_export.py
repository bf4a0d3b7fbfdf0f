"""evaluation/export.py: the ONNX file alone, run by ONNX Runtime, against its model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evaluation.export import export_onnx
from perceiver import Perceiver, known_of_positions

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

ROOT = Path(__file__).parents[2]
TINY = dict(num_latents=12, latent_dim=24, depth=2, latent_heads=2, latent_dim_head=10)
PREPROCESSING = {
    "classes": ["left", "right"],
    "image_size": [18, 25],
    "plane": "sagittal",
    "slices": 24,
    "mean": 0.21,
    "std": 0.17,
}


def trained(image_size=(18, 25), **arguments) -> Perceiver:
    """A model in which no parameter has its starting value, not even of LayerNorm."""
    torch.manual_seed(0)
    model = Perceiver(**{**TINY, **arguments})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.preprocessing = {**PREPROCESSING, "image_size": list(image_size)}
    return model


def exported(model: Perceiver, path: Path) -> onnxruntime.InferenceSession:
    export_onnx(model, path)
    assert os.listdir(path.parent) == [path.name], "one file, no weights and no remains beside it"
    return onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])


def assert_same(model: Perceiver, session: onnxruntime.InferenceSession, temperature=1.0):
    for batch in (1, 3, 5):
        pixels = torch.randint(0, 256, (batch, 1, *model.preprocessing["image_size"]))
        pixels = pixels.to(torch.uint8)
        logits, probabilities = map(torch.tensor, session.run(None, {"pixels": pixels.numpy()}))
        expected = model.predict_logits(pixels)
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
        expected = (expected / temperature).softmax(dim=1)
        torch.testing.assert_close(probabilities, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(dict(weight_tie_layers=True, activation="geglu"), marks=pytest.mark.slow),
        dict(weight_tie_layers=False, activation="gelu", cross_heads=2, num_classes=3),
        # Heads narrower than a token: with keys and values.
        pytest.param(
            dict(cross_dim_head=8, cross_heads=2, self_per_cross_attn=2, checkpoint_latents=True),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["1-tied-geglu", "2-untied-gelu", "narrow-heads"],
)
def test_onnx_runtime_gives_the_same_for_any_batch(arguments, tmp_path):
    model = trained(**arguments, attention_dropout=0.1, ff_dropout=0.1)
    assert_same(model, exported(model, tmp_path / "model.onnx"))


@pytest.mark.slow
def test_sizes_of_the_experiment(tmp_path):
    """Here layers take oneDNN outside of an export. A greater depth repeats the same sizes."""
    model = Perceiver(depth=1)
    model.preprocessing = {**PREPROCESSING, "image_size": [76, 86]}
    assert_same(model, exported(model, tmp_path / "model.onnx"))


@pytest.mark.slow
def test_file_says_how_to_prepare_inputs_and_calibrates(tmp_path):
    model = trained()
    model.calibration = {"temperature": 2.5}
    session = exported(model, tmp_path / "model.onnx")
    assert_same(model, session, temperature=2.5)
    metadata = session.get_modelmeta().custom_metadata_map
    metadata = {name: json.loads(text) for name, text in metadata.items()}
    assert metadata == {**PREPROCESSING, "temperature": 2.5}
    (given,) = session.get_inputs()
    assert (given.name, given.type) == ("pixels", "tensor(uint8)")
    assert given.shape == ["batch", 1, 18, 25]
    outputs = [(output.name, output.shape) for output in session.get_outputs()]
    assert outputs == [("logits", ["batch", 2]), ("probabilities", ["batch", 2])]
    content = (tmp_path / "model.onnx").read_bytes()
    assert str(ROOT).encode() not in content and b"site-packages" not in content
    onnx.checker.check_model(content, full_check=True)


@pytest.mark.slow
def test_model_stays_as_it_is(tmp_path):
    """The exporter's tensors without numbers must not stay among the position features."""
    model, pixels = trained(depth=1).train(), torch.zeros(2, 1, 18, 25)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logits = model(pixels)
    known_of_positions.cache_clear()
    export_onnx(model, tmp_path / "model.onnx")
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(model(pixels), logits)


EXPORT = """
import sys
from pathlib import Path
from evaluation.export import export_onnx
from perceiver import Perceiver
model = Perceiver(depth=1, num_latents=8, latent_dim=16)
model.preprocessing["image_size"] = [8, 8]
try:
    export_onnx(model, Path(sys.argv[1]))
except ValueError as error:
    sys.exit(str(error))
"""


def run_export(path: Path, *folders: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", EXPORT, path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*folders, ROOT]))},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_export_is_silent(tmp_path):
    done = run_export(tmp_path / "model.onnx")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert os.listdir(tmp_path) == ["model.onnx"]


@pytest.mark.slow
def test_missing_package_is_one_line_that_says_what_to_install(tmp_path, monkeypatch):
    line = "--export needs: pip install -r requirements-extra.txt"
    (tmp_path / "onnxscript.py").write_text("raise ImportError('blocked')")
    done = run_export(tmp_path / "model.onnx", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{line}\n")
    assert not (tmp_path / "model.onnx").exists()
    (tmp_path / "onnxscript.py").write_text("raise OSError('libonnx.so: cannot open')")
    broken = "can't be imported (OSError: libonnx.so: cannot open): pip install -r requirements-ex"
    done = run_export(tmp_path / "model.onnx", tmp_path)
    assert done.returncode == 1 and broken in done.stderr and done.stderr.count("\n") == 1
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match=f"^{line}$"):
        export_onnx(trained(), tmp_path / "model.onnx")


def test_unusable_paths_and_models_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing/model\.onnx"):
        export_onnx(trained(), tmp_path / "missing" / "model.onnx")
    with pytest.raises(ValueError, match="image_size"):
        export_onnx(Perceiver(**TINY), tmp_path / "model.onnx")
    assert not os.listdir(tmp_path)
