"""Whether the gradient of each row can be bounded: for DP-SGD a row's gradient must be that of the row alone."""

import warnings

import torch
from opacus import GradSampleModule
from opacus.validators import ModuleValidator
from torch import nn

from shared.errors import SettingsError
from shared.tasks.features import example_rows
from shared.tasks.loss import loss
from shared.tasks.spec import TaskSpec

REPLACEMENTS: dict[type[nn.Module], str] = {
    nn.LSTM: "opacus.layers.DPLSTM",
    nn.GRU: "opacus.layers.DPGRU",
    nn.RNN: "opacus.layers.DPRNN",
    nn.MultiheadAttention: "opacus.layers.DPMultiheadAttention",
}
OTHER_REMEDY = "build it of Linear, Conv, Embedding, GroupNorm and LayerNorm"


def require_supported_layers(spec: TaskSpec, model: nn.Module) -> None:
    """Raises SettingsError that names the first layer opacus has no gradients of rows for, and its remedy."""
    for name, layer in model.named_modules():
        replacement = next((use for kind, use in REPLACEMENTS.items() if isinstance(layer, kind)), None)
        if replacement is not None:
            raise _refusal(spec, name, layer, f"use {replacement}")
        validate = ModuleValidator.VALIDATORS.get(type(layer))
        problems = validate(layer) if validate else []
        if problems:
            raise _refusal(spec, name, layer, f"{OTHER_REMEDY} ({problems[0]})")


def require_gradients_of_rows(spec: TaskSpec, model: GradSampleModule) -> None:
    """Tries the gradients of two rows against those of each row alone, on the CPU and on weights of its own, which it leaves.

    Raises SettingsError for a model that mixes rows, that leaves a parameter out, or that draws random numbers: torch's
    generator can be guessed, and one row more would give every row after it other numbers.
    """
    _fill(model)
    model.train()
    features = torch.from_numpy(example_rows(spec, 2))
    with torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        together = _gradients(spec, model, features)
        if not torch.equal(before, torch.get_rng_state()):
            raise SettingsError(
                f"task {spec.name}: the model draws random numbers while it trains; with DP-SGD, remove the dropout"
            )
        alone = [_gradients(spec, model, features[row : row + 1]) for row in range(2)]
    model.zero_grad(set_to_none=True)
    for name, both in together.items():
        each = torch.cat([found[name] for found in alone])
        if both.shape != each.shape or not torch.allclose(both, each, rtol=1e-3, atol=1e-5):
            layer = name.rpartition(".")[0]
            raise _refusal(spec, layer, model._module.get_submodule(layer), f"rows are mixed; {OTHER_REMEDY}")


def _gradients(spec: TaskSpec, model: GradSampleModule, features: torch.Tensor) -> dict[str, torch.Tensor]:
    """The outputs, under no name, and by parameter the gradient of each row; of a single one by plain backpropagation."""
    labels = torch.zeros(len(features), dtype=torch.int64 if spec.kind == "multiclass" else torch.float32)
    model.zero_grad(set_to_none=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            outputs = model(features)
            loss(spec.kind, outputs, labels).backward()  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, TypeError) as error:
        raise SettingsError(
            f"task {spec.name}: opacus cannot train the model {spec.model.type}: {error}; {OTHER_REMEDY}"
        ) from error
    found = {"": outputs.detach()}
    for name, parameter in model._module.named_parameters():
        if not parameter.requires_grad:
            continue
        gradient = parameter.grad_sample if len(features) > 1 else parameter.grad
        if not isinstance(gradient, torch.Tensor):
            raise SettingsError(
                f"task {spec.name}: the model's parameter {name!r} has no part in its output; remove or freeze it"
            )
        found[name] = gradient.detach().clone() if len(features) > 1 else gradient.detach().clone()[None]
    return found


def _fill(model: nn.Module) -> None:
    """Weights at which no gradient vanishes by chance, as behind a last layer of zeros."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) - 0.5)


def _refusal(spec: TaskSpec, name: str, layer: nn.Module, remedy: str) -> SettingsError:
    where = f"the layer {name!r} ({type(layer).__name__})" if name else f"the model {spec.model.type}"
    return SettingsError(f"task {spec.name}: {where} cannot be trained with DP-SGD: {remedy}")
