"""Local training: a delta from a base model, with DP-SGD or without noise.

DP-SGD after Abadi et al. 2016, algorithm 1: each step draws a Poisson sample, clips the gradient of every example (all
parameters together), adds Gaussian noise to the sum and divides by the expected sample size. Clipping is opacus's; noise and
sampling come from a cryptographic generator.
"""

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from client_worker.mechanism import LocalTraining
from client_worker.randomness import SecureRandom
from shared.errors import FederationError, SettingsError
from shared.parameters import Array, subtract
from shared.tasks.features import Dataset
from shared.tasks.loss import loss
from shared.tasks.models import build_model, load_parameters, to_parameters
from shared.tasks.spec import TaskSpec

if TYPE_CHECKING:
    from client_worker.noisy_sgd import NoisySgd

Step = Callable[[torch.Tensor, torch.Tensor], None]


def _never() -> bool:
    return False


class TrainingStoppedError(FederationError):
    """The worker was asked to stop in the middle of a local training; what was reserved for it stays charged."""


class LocalTrainer:
    """A task's model on its device, kept between updates: building it and loading opacus cost seconds.

    With `private` that cost is paid at once; without it, only if a training turns out to need noise.
    """

    def __init__(self, spec: TaskSpec, *, device: str = "auto", private: bool = True, random: SecureRandom | None = None) -> None:
        torch.set_num_threads(1)
        self._spec = spec
        self._device = choose_device(device)
        self._random = random or SecureRandom()
        if private:
            _ = self._noisy

    def local_update(
        self,
        base: Mapping[str, Array],
        dataset: Dataset,
        settings: LocalTraining,
        *,
        should_stop: Callable[[], bool] = _never,
    ) -> dict[str, Array]:
        """delta = trained - base after `settings.steps` steps.

        Raises TrainingStoppedError between steps once `should_stop()` holds, FederationError if a number stops being finite.
        """
        model = self._plain if settings.noise_multiplier is None else self._noisy.model
        load_parameters(model, base)
        model.train()
        features = torch.from_numpy(dataset.features).to(self._device)
        labels = torch.from_numpy(dataset.labels).to(self._device)
        step = self._step(settings)
        for _ in range(settings.steps):
            if should_stop():
                raise TrainingStoppedError("local training was stopped before its last step")
            rows = torch.from_numpy(self._random.poisson_sample(len(dataset), settings.sample_rate)).to(self._device)
            step(features[rows], labels[rows])
        delta = subtract(to_parameters(model), base)
        _require_finite(delta, self._spec, settings)
        return delta

    @functools.cached_property
    def _plain(self) -> nn.Module:
        return build_model(self._spec, seed=0).to(self._device)

    @functools.cached_property
    def _noisy(self) -> "NoisySgd":
        # Loading opacus takes three CPU-seconds: only processes that add noise pay for it.
        from client_worker.noisy_sgd import NoisySgd

        return NoisySgd(self._spec, build_model(self._spec, seed=0).to(self._device), self._random)

    def _step(self, settings: LocalTraining) -> Step:
        if settings.noise_multiplier is None:
            return self._plain_step(settings.learning_rate, settings.expected_rows)
        return self._noisy.stepper(
            learning_rate=settings.learning_rate,
            clipping_norm=settings.clipping_norm,
            noise_multiplier=settings.noise_multiplier,
            expected_rows=settings.expected_rows,
        )

    def _plain_step(self, learning_rate: float, expected_rows: float) -> Step:
        model = self._plain
        optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)

        def step(features: torch.Tensor, labels: torch.Tensor) -> None:
            optimizer.zero_grad()
            if len(labels):
                (loss(self._spec.kind, model(features), labels) / expected_rows).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        return step


def local_update(
    spec: TaskSpec,
    base: Mapping[str, Array],
    dataset: Dataset,
    settings: LocalTraining,
    *,
    should_stop: Callable[[], bool] = _never,
) -> dict[str, Array]:
    """A single update by a trainer of its own, on the CPU."""
    trainer = LocalTrainer(spec, device="cpu", private=settings.noise_multiplier is not None)
    return trainer.local_update(base, dataset, settings, should_stop=should_stop)


def choose_device(name: str) -> torch.device:
    """`auto` is a GPU where torch sees one. Raises SettingsError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"device {name!r} cannot be used: {error}; use auto or cpu") from error


def _require_finite(delta: Mapping[str, Array], spec: TaskSpec, settings: LocalTraining) -> None:
    for name, array in delta.items():
        if not np.isfinite(array).all():
            raise FederationError(
                f"task {spec.name}: the array {name!r} is no longer finite after local training with learning rate "
                f"{settings.learning_rate:g}; lower the learning rate, nothing was published"
            )
