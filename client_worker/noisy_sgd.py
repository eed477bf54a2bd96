"""DP-SGD steps by opacus, with noise from a cryptographic generator instead of torch's."""

import warnings
from collections.abc import Callable

import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from opacus.validators import ModuleValidator
from torch import nn

from client_worker.randomness import SecureRandom
from shared.errors import SettingsError
from shared.tasks.loss import loss
from shared.tasks.spec import TaskSpec

GRADIENT_NUMBERS_AT_ONCE = 2**25  # 128 MiB of per-example gradients; a larger sample is taken in pieces


class SecureOptimizer(DPOptimizer):  # type: ignore[misc]  # opacus has no types
    """Opacus's clipping and scaling; the noise is drawn in float64 from `random`, for all parameters at once."""

    def __init__(self, optimizer: torch.optim.Optimizer, *, random: SecureRandom, **settings: float) -> None:
        super().__init__(optimizer, **settings)
        self._secure_random = random

    def add_noise(self) -> None:
        """Sets `grad` to the summed clipped gradients plus Gaussian noise of std noise_multiplier * max_grad_norm."""
        std = self.noise_multiplier * self.max_grad_norm
        noise = torch.from_numpy(self._secure_random.gaussian(sum(p.numel() for p in self.params)) * std)
        position = 0
        for parameter in self.params:
            piece = noise[position : position + parameter.numel()].view_as(parameter)
            parameter.grad = parameter.summed_grad.view_as(parameter) + piece.to(parameter)
            position += parameter.numel()


class NoisySgd:
    """A model whose backward pass keeps the gradient of each example."""

    def __init__(self, spec: TaskSpec, model: nn.Module, random: SecureRandom) -> None:
        self.model = model
        self._spec = spec
        self._random = random
        problems = ModuleValidator.validate(model, strict=False)
        if problems:
            raise SettingsError(
                f"task {spec.name}: the model cannot be trained with DP-SGD: {problems[0]}; for BatchNorm use GroupNorm"
            )
        self._with_gradients = GradSampleModule(model, batch_first=True, loss_reduction="sum", strict=True)
        self._parameters = [p for p in self._with_gradients.parameters() if p.requires_grad]
        self.rows_at_once = max(1, GRADIENT_NUMBERS_AT_ONCE // sum(p.numel() for p in self._parameters))

    def stepper(
        self, *, learning_rate: float, clipping_norm: float, noise_multiplier: float, expected_rows: float
    ) -> Callable[[torch.Tensor, torch.Tensor], None]:
        """A function that does one step on the drawn rows; drawing none is a step too, of noise alone."""
        optimizer = SecureOptimizer(
            torch.optim.SGD(self._parameters, lr=learning_rate),
            random=self._random,
            noise_multiplier=noise_multiplier,
            max_grad_norm=clipping_norm,
            expected_batch_size=expected_rows,
        )

        def step(features: torch.Tensor, labels: torch.Tensor) -> None:
            size = self.rows_at_once
            pieces = list(zip(torch.split(features, size), torch.split(labels, size), strict=True))
            for number, (some_features, some_labels) in enumerate(pieces, start=1):
                optimizer.zero_grad()
                self._keep_gradients(some_features, some_labels)
                optimizer.signal_skip_step(number < len(pieces))
                optimizer.step()
            optimizer.zero_grad()

        return step

    def _keep_gradients(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        if len(labels) == 0:
            for parameter in self._parameters:
                parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
            return
        with warnings.catch_warnings():
            # Features need no gradient, which the hooks of opacus mention at every backward pass.
            warnings.filterwarnings("ignore", message="Full backward hook is firing", category=UserWarning)
            loss(self._spec.kind, self._with_gradients(features), labels).backward()  # type: ignore[no-untyped-call]
