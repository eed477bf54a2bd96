"""The model of a task as a torch module, and its parameters as named arrays."""

import importlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from shared.errors import SettingsError
from shared.parameters import Array
from shared.tasks.spec import TaskSpec


def build_model(spec: TaskSpec, *, seed: int) -> nn.Module:
    """A fresh model; the same seed gives the same parameters, and torch's global generator is left alone.

    Raises SettingsError for a `module:function` that cannot be used, and for a model with buffers or batch normalisation.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _make(spec)
    _require_no_buffers(model, spec)
    _require_rows_apart(model, spec)
    return model


def initial_parameters(spec: TaskSpec, seed: int) -> dict[str, Array]:
    """The parameters of version 0."""
    return to_parameters(build_model(spec, seed=seed))


def to_parameters(model: nn.Module) -> dict[str, Array]:
    """Copies of the trainable arrays, in the order of the module. Frozen ones never travel: the task's function makes them."""
    return {
        name: np.ascontiguousarray(value.detach().to("cpu", torch.float32).numpy().copy()) for name, value in _trainable(model)
    }


def load_parameters(model: nn.Module, parameters: Mapping[str, Array]) -> None:
    """Writes the arrays into the module; names and shapes must be the module's own."""
    with torch.no_grad():
        for name, value in _trainable(model):
            value.copy_(torch.from_numpy(np.array(parameters[name], dtype=np.float32)))


def _trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, value) for name, value in model.named_parameters() if value.requires_grad)


def _make(spec: TaskSpec) -> nn.Module:
    if ":" in spec.model.type:
        return _from_function(spec)
    if spec.model.type == "mlp":
        return _perceptron((spec.inputs, *spec.model.hidden, spec.outputs))
    layer = nn.Linear(spec.inputs, spec.outputs)
    # Both losses of a single layer are convex: zero is as good a start as any, and no seed matters.
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _perceptron(sizes: tuple[int, ...]) -> nn.Module:
    """Tanh between layers: bounded activations lose less to clipping and noise (Papernot et al. 2021, arXiv 2007.14191)."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def _from_function(spec: TaskSpec) -> nn.Module:
    name = spec.model.type
    model = _function(name)(spec.inputs, spec.outputs)
    if not isinstance(model, nn.Module):
        raise SettingsError(f"task {spec.name}: {name} returned a {type(model).__name__}; it must return a torch.nn.Module")
    if not any(value.requires_grad for value in model.parameters()):
        raise SettingsError(f"task {spec.name}: the model of {name} has no parameter to train; give it one")
    return model


def _function(name: str) -> Callable[[int, int], Any]:
    module_name, function_name = name.split(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise SettingsError(
            f"model.type {name!r}: {error}; install the module, or put its folder on PYTHONPATH, on every machine that takes part"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise SettingsError(f"model.type {name!r}: the module {module_name} has no function {function_name!r}; correct the name")
    return function  # type: ignore[no-any-return]  # what it returns is checked by the caller


def _require_no_buffers(model: nn.Module, spec: TaskSpec) -> None:
    """Running statistics of private rows would leave the institution without noise."""
    name = next((name for name, _ in model.named_buffers()), None)
    if name is not None:
        raise SettingsError(
            f"task {spec.name}: the model keeps the buffer {name!r}, statistics that no noise protects; "
            "use torch.nn.GroupNorm instead of BatchNorm, and no running averages"
        )


def _require_rows_apart(model: nn.Module, spec: TaskSpec) -> None:
    """Batch normalisation mixes rows, even without running statistics: one row would move the gradient of every other."""
    for name, layer in model.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            raise SettingsError(
                f"task {spec.name}: the layer {name!r} ({type(layer).__name__}) mixes rows; use torch.nn.GroupNorm instead"
            )
