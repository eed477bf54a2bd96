"""Model files: safetensors or ONNX with the card inside, and what they say about encoded rows."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from operator_console.model_card import ModelCard, read_card
from shared.errors import DataError, SettingsError, StorageError
from shared.parameters import Array, Parameters
from shared.tasks.spec import TaskSpec

Format = Literal["safetensors", "onnx"]
Floats = NDArray[np.float64]
LARGEST_HEADER_BYTES = 100_000_000  # of a safetensors file, as the library has it


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model that was read: its task, its card where it has one, and its predictions, like those of shared.tasks.predictions."""

    spec: TaskSpec
    card: ModelCard | None
    predict: Callable[[NDArray[np.float32]], Floats]


def write_model(path: Path, form: Format, card: ModelCard, parameters: Parameters) -> None:
    """Writes the file and, beside it, the card as Markdown. Raises StorageError, or SettingsError without what ONNX needs."""
    try:
        if form == "onnx":
            from operator_console.onnx_export import save_onnx

            save_onnx(path, card.task, parameters, card.as_metadata())
        else:
            save_file(dict(parameters), path, metadata=card.as_metadata())
        card_file(path).write_text(card.markdown(), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path} cannot be written ({error}); name another file with --out") from error


def write_without_card(path: Path, form: Format, metadata: dict[str, str], parameters: Parameters) -> None:
    """Writes the parameters of a version of which nothing else is known any more. Raises StorageError, SettingsError."""
    if form == "onnx":
        raise SettingsError(
            "the lineage no longer reaches back to this version, so it has no card, and an ONNX file is of no use without; "
            "take --format safetensors, or --newest"
        )
    try:
        save_file(dict(parameters), path, metadata=metadata)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path} cannot be written ({error}); name another file with --out") from error


def card_file(path: Path) -> Path:
    """Where the card of a model file is."""
    return path.with_suffix(".md")


def read_model(path: Path, *, task: TaskSpec | None = None) -> ModelFile:
    """A file that `write_model` wrote, or one without a card together with its task. Raises DataError, SettingsError."""
    match _format(path):
        case "safetensors":
            return _from_safetensors(path, task)
        case "onnx":
            return _from_onnx(path, task)


def _format(path: Path) -> Format:
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; give the path of a model file") from error
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < LARGEST_HEADER_BYTES:
        return "safetensors"
    if start[:1] == b"\x08":  # the field ir_version, with which every ONNX file begins
        return "onnx"
    raise DataError(f"{path}: is neither a safetensors nor an ONNX file; give the one that `fedqueue model export` wrote")


def card_in(path: Path) -> ModelCard | None:
    """The card in a model file; None where there is none. Raises DataError, SettingsError."""
    match _format(path):
        case "safetensors":
            metadata = _safetensors(path)[0]
        case "onnx":
            metadata = _session(path).get_modelmeta().custom_metadata_map
    return read_card(metadata, source=str(path))


def _safetensors(path: Path) -> tuple[dict[str, str], dict[str, Array]]:
    """Metadata and parameters."""
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise DataError(f"{path}: is no whole safetensors file ({error}); export it again") from error


def _from_safetensors(path: Path, task: TaskSpec | None) -> ModelFile:
    metadata, parameters = _safetensors(path)
    card = read_card(metadata, source=str(path))
    spec = _task_of(card, path, task)
    from shared.tasks.models import initial_parameters
    from shared.tasks.predictions import predict  # torch takes seconds, which an ONNX file does not need

    _demand_shapes(parameters, initial_parameters(spec, 0), path, spec)
    return ModelFile(spec, card, lambda features: predict(spec, parameters, features))


def _demand_shapes(found: Parameters, wanted: Parameters, path: Path, spec: TaskSpec) -> None:
    if {name: each.shape for name, each in found.items()} != {name: each.shape for name, each in wanted.items()}:
        raise DataError(
            f"{path}: its parameters are not those of the model {spec.model.type} of the task {spec.name}; give the task and the "
            "module that it was trained with"
        )


def _session(path: Path) -> Any:
    """Of onnxruntime."""
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as failures
    except ImportError as error:
        raise SettingsError(
            f"an ONNX file needs the package {error.name}; install it (pip install onnxruntime), or give a safetensors file"
        ) from error
    try:
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except (failures.Fail, failures.InvalidProtobuf, failures.InvalidGraph) as error:
        raise DataError(f"{path}: is no whole ONNX file ({str(error).splitlines()[0]}); export it again") from error


def _from_onnx(path: Path, task: TaskSpec | None) -> ModelFile:
    session = _session(path)
    card = read_card(session.get_modelmeta().custom_metadata_map, source=str(path))
    spec, name = _task_of(card, path, task), session.get_inputs()[0].name

    def predicted(features: NDArray[np.float32]) -> Floats:
        values: Any = session.run(None, {name: features})[0]
        return np.asarray(values, dtype=np.float64)

    return ModelFile(spec, card, predicted)


def _task_of(card: ModelCard | None, path: Path, task: TaskSpec | None) -> TaskSpec:
    if card is not None and task is not None and task.hash != card.task.hash:
        raise DataError(f"{path}: holds another task than --task names; leave --task away")
    found = card.task if card is not None else task
    if found is None:
        raise DataError(
            f"{path}: holds no model card, so its columns are not known; give a file that `fedqueue model export` wrote, "
            "or its task with --task"
        )
    return found
