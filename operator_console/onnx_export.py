"""A model as an ONNX graph: encoded rows in, what `fedqueue predict` says of them out. Needs the extra `onnx`."""

import io
import logging
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path

import torch
from torch import nn

from shared.errors import SettingsError
from shared.parameters import Parameters
from shared.tasks.features import label_scale
from shared.tasks.models import build_model, load_parameters
from shared.tasks.spec import Kind, TaskSpec

OPSET = 20
"""Of the standard ONNX operators; onnxruntime reads it from 1.17 on."""
INPUT = "features"
OUTPUTS: Mapping[Kind, str] = {"binary": "probability", "multiclass": "probabilities", "regression": "value"}
INSTALL = "install the extra, in the folder of fedqueue: .venv/bin/pip install -e '.[onnx]'"


class Predicting(nn.Module):
    """The task's model, and behind it what makes a probability or a value of its outputs, in float64."""

    def __init__(self, spec: TaskSpec, parameters: Parameters) -> None:
        super().__init__()
        self.model = build_model(spec, seed=0)
        load_parameters(self.model, parameters)
        self._kind = spec.kind
        self._midpoint, self._half = label_scale(spec.label) if spec.kind == "regression" else (0.0, 1.0)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(rows, inputs) to (rows,), or to (rows, classes)."""
        outputs: torch.Tensor = self.model(features).to(torch.float64)
        match self._kind:
            case "binary":
                return torch.sigmoid(outputs[:, 0])
            case "multiclass":
                return torch.softmax(outputs, dim=1)
            case "regression":
                return outputs[:, 0] * self._half + self._midpoint


def save_onnx(path: Path, spec: TaskSpec, parameters: Parameters, metadata: Mapping[str, str]) -> None:
    """Writes the model. Raises SettingsError without the extra, or for a model that torch cannot export; OSError."""
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch's exporter needs it, and says so less plainly
    except ImportError as error:
        raise SettingsError(f"an ONNX file needs the package {error.name}: {INSTALL}") from error
    program = _exported(Predicting(spec, parameters).eval(), spec)
    content = program.model_proto
    for name, value in metadata.items():
        onnx.helper.set_model_props(content, {**{each.key: each.value for each in content.metadata_props}, name: value})
    onnx.checker.check_model(content)
    path.write_bytes(content.SerializeToString())


def _exported(model: Predicting, spec: TaskSpec) -> torch.onnx.ONNXProgram:
    """Any number of rows at a time; two would be taken for a constant where the example has one."""
    example = torch.zeros(3, spec.inputs)
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # the exporter's own, about its insides
            program = torch.onnx.export(
                model,
                (example,),
                input_names=[INPUT],
                output_names=[OUTPUTS[spec.kind]],
                dynamic_shapes=({0: torch.export.Dim("rows")},),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise SettingsError(
            f"torch cannot export the model {spec.model.type} as ONNX ({str(error).splitlines()[0]}); "
            "take --format safetensors, or change its layers"
        ) from error
    finally:
        quiet.setLevel(level)
    if program is None:
        raise SettingsError(f"torch made no ONNX graph of the model {spec.model.type}; take --format safetensors")
    return program
