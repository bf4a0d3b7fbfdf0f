"""A trained model as one ONNX file, for programs that have no PyTorch.

    export_onnx(Perceiver.from_checkpoint("runs/demo/best.pt"), Path("knees.onnx"))

    session = onnxruntime.InferenceSession("knees.onnx")
    logits, probabilities = session.run(None, {"pixels": pixels})

pixels are uint8 (batch, 1, height, width) as decoded and resized, for any batch, or where whole
scans are read (batch, 1, slices, height, width); they are
normalised in the graph. logits and probabilities are float32 (batch, classes).
`session.get_modelmeta().custom_metadata_map` tells what inputs need and what outputs mean, in JSON:
classes, image_size (height, width), mean, std, temperature, plane, slices and orientation.
"""

import copy
import errno
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from common.files import whole_file
from common.program import MissingPackage, UserError
from evaluation.trained import sample_size
from perceiver import Perceiver

OPSET = 18  # the one that PyTorch writes without converting


class Classifier(nn.Module):
    """uint8 pixels -> logits, probabilities: (batch, classes) each."""

    def __init__(self, model: Perceiver, temperature: float):
        super().__init__()
        self.model, self.temperature = model, temperature

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(self.model.normalise(pixels))
        return logits, (logits / self.temperature).softmax(dim=1)


def export_onnx(model: Perceiver, path: Path) -> None:
    """Write a trained model as an ONNX file that holds its weights, too, whole or not at all.

    Raises:
        UserError: onnx or onnxscript is missing or too old, the model does not say its image
            size, or is larger than the 2 GB that one ONNX file can hold.
        OSError: the file can't be written.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder to export to", str(path))
    if "image_size" not in model.preprocessing:
        raise UserError("--export: the model does not say the image_size that it was trained on")
    if sum(tensor.nbytes for tensor in model.state_dict().values()) >= 2_000_000_000:
        raise UserError("--export: the model is larger than the 2 GB that an ONNX file can hold")
    temperature = getattr(model, "calibration", {}).get("temperature", 1.0)
    try:
        import onnx
        import onnxscript  # noqa: F401 (for torch.onnx)
    except ImportError as error:
        raise MissingPackage("--export needs: pip install -r requirements-extra.txt") from error
    except Exception as error:  # a broken library may raise anything
        raise MissingPackage(
            f"--export: its packages can't be imported ({type(error).__name__}: {error}): "
            "pip install -r requirements-extra.txt"
        ) from error
    proto = trace(Classifier(copy.deepcopy(model).cpu(), temperature).eval())
    known = {"plane": "stored", "slices": 40, **model.preprocessing, "temperature": temperature}
    names = "classes image_size mean std temperature plane slices orientation".split()
    onnx.helper.set_model_props(proto, {n: json.dumps(known[n]) for n in names if n in known})
    with whole_file(path) as temporary:
        temporary.write_bytes(proto.SerializeToString())


@torch.no_grad()
def trace(classifier: Classifier):
    """The ONNX model, in memory, with every size fixed but the batch."""
    model = classifier.model
    # Two images: PyTorch would take a batch of one for a constant.
    size = (2, *sample_size(model))
    pixels = torch.zeros(size, dtype=torch.uint8)
    # Position features are kept from call to call. Without this one, those kept would be of the
    # exporter, which have no numbers in them, and all predictions that follow would be NaN.
    model.tokens(pixels.float())
    with silence():
        proto = torch.onnx.export(
            classifier,
            (pixels,),
            input_names=["pixels"],
            output_names=["logits", "probabilities"],
            dynamic_shapes=({0: "batch"},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        ).model_proto
    for part in (*proto.graph.node, *proto.graph.value_info):
        part.ClearField("metadata_props")  # paths and lines of the Python files of this machine
    return proto


@contextmanager
def silence() -> Iterator[None]:
    """No warnings and no log of the exporter: they are about its own inside."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
