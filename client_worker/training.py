"""Local training: a delta from a base model, by DP-SGD, with noise on the whole update, or without noise.

DP-SGD after Abadi et al. 2016, algorithm 1: each step draws a Poisson sample, clips the gradient of every example (all
parameters together), adds Gaussian noise to the sum and divides by the expected sample size. Clipping is opacus's; noise and
sampling come from a cryptographic generator. Where the task names persons, an example is a person: its gradient is the mean
over its records, and all its records are drawn or none.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from client_worker.course import Course, Norms, norms_of_update
from client_worker.gradient_lengths import GradientLengths
from client_worker.mechanism import LocalTraining
from client_worker.noisy_update import noised_update
from client_worker.randomness import SecureRandom
from client_worker.sampling import Sample, Sampler, summed_loss
from shared.errors import FederationError, SettingsError
from shared.parameters import Array, norm, subtract
from shared.tasks.features import Dataset, example_rows
from shared.tasks.models import build_model, load_parameters, to_parameters
from shared.tasks.spec import TaskSpec

if TYPE_CHECKING:
    from client_worker.noisy_sgd import NoisySgd

Step = Callable[[Sample], None]


class TrainingStoppedError(FederationError):
    """The worker was asked to stop in the middle of a local training; what was reserved for it stays charged."""


class LocalTrainer:
    """A task's model on its device, kept between updates: building it and loading opacus cost seconds.

    With `private` that cost is paid at once; without it, only if a training turns out to need noise.
    """

    def __init__(
        self,
        spec: TaskSpec,
        *,
        device: str = "auto",
        private: bool = True,
        random: SecureRandom | None = None,
        threads: int = 1,
    ) -> None:
        torch.set_num_threads(threads)
        self._spec = spec
        self._device = choose_device(device)
        self._random = random or SecureRandom()
        self._private = private
        if private:
            _ = self._noisy

    def warm_up(self) -> None:
        """One step on two rows of no data, whose outcome is thrown away. A process's first step makes torch load what takes a
        CPU-second; afterwards the first update is as quick as the next.
        """
        settings = LocalTraining(
            mechanism="dp-sgd" if self._private else "none",
            steps=1,
            sample_rate=1.0,
            expected_rows=2.0,
            learning_rate=1.0,
            clipping_norm=1.0,
            noise_multiplier=1.0 if self._private else None,
        )
        base = to_parameters(self._noisy.model if self._private else self._plain)
        self._trained(base, no_data(self._spec), settings, Course())

    def local_update(
        self,
        base: Mapping[str, Array],
        dataset: Dataset,
        settings: LocalTraining,
        course: Course | None = None,
    ) -> dict[str, Array]:
        """delta = trained - base after `settings.steps` steps, with the noise of `settings.mechanism`.

        Raises TrainingStoppedError between steps once the course is to stop, FederationError if a number stops being finite.
        """
        course = course or Course()
        sigma = _noise_multiplier(settings)
        if self._spec.person and dataset.persons is None:
            raise ValueError(f"task {self._spec.name} protects persons, and the dataset does not say whose its rows are")
        delta = self._trained(base, dataset, settings, course)
        if settings.mechanism != "dp-sgd":
            course.norms = _norms(delta, settings)
        if settings.mechanism == "update-gaussian":
            return noised_update(delta, clipping_norm=settings.clipping_norm, noise_multiplier=sigma, random=self._random)
        _require_finite(delta, self._spec, settings)
        return delta

    def _trained(self, base: Mapping[str, Array], dataset: Dataset, settings: LocalTraining, course: Course) -> dict[str, Array]:
        model = self._noisy.model if settings.mechanism == "dp-sgd" else self._plain
        load_parameters(model, base)
        model.train()
        sampler = Sampler(dataset, settings.sample_rate, random=self._random, device=self._device)
        lengths = GradientLengths(settings.clipping_norm)
        step = self._step(settings, lengths)
        for number in range(settings.steps):
            if course.should_stop():
                raise TrainingStoppedError("local training was stopped before its last step")
            step(sampler.draw())
            course.done = number + 1
        course.norms = lengths.norms()
        return subtract(to_parameters(model), base)

    @functools.cached_property
    def _plain(self) -> nn.Module:
        return build_model(self._spec, seed=0).to(self._device)

    @functools.cached_property
    def _noisy(self) -> "NoisySgd":
        # Loading opacus takes three CPU-seconds: only processes that add noise pay for it.
        from client_worker.noisy_sgd import NoisySgd

        noisy = NoisySgd(self._spec, build_model(self._spec, seed=0), self._random)
        noisy.model.to(self._device)
        return noisy

    def _step(self, settings: LocalTraining, lengths: GradientLengths) -> Step:
        if settings.mechanism != "dp-sgd":
            return self._plain_step(settings.learning_rate, settings.expected_rows)
        return self._noisy.stepper(
            learning_rate=settings.learning_rate,
            clipping_norm=settings.clipping_norm,
            noise_multiplier=_noise_multiplier(settings),
            expected_rows=settings.expected_rows,
            lengths=lengths,
        )

    def _plain_step(self, learning_rate: float, expected_rows: float) -> Step:
        model = self._plain
        optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)

        def step(sample: Sample) -> None:
            optimizer.zero_grad()
            if sample.units:
                (summed_loss(self._spec.kind, model(sample.features), sample) / expected_rows).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        return step


def no_data(spec: TaskSpec) -> Dataset:
    """Two rows as an encoded file may have them, made of the task's public columns alone."""
    labels = np.zeros(2, dtype=np.int64 if spec.kind == "multiclass" else np.float32)
    return Dataset(example_rows(spec, 2), labels, np.arange(2) if spec.person else None)


def local_update(
    spec: TaskSpec,
    base: Mapping[str, Array],
    dataset: Dataset,
    settings: LocalTraining,
    course: Course | None = None,
) -> dict[str, Array]:
    """A single update by a trainer of its own, on the CPU."""
    trainer = LocalTrainer(spec, device="cpu", private=settings.mechanism == "dp-sgd")
    return trainer.local_update(base, dataset, settings, course)


def choose_device(name: str) -> torch.device:
    """`auto` is a GPU where torch sees one. Raises SettingsError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"device {name!r} cannot be used: {error}; use auto or cpu") from error


def _noise_multiplier(settings: LocalTraining) -> float:
    """0 for the mechanism "none". A missing noise multiplier must never pass for one."""
    if (settings.mechanism == "none") != (settings.noise_multiplier is None):
        raise ValueError(f"mechanism {settings.mechanism!r} does not go with the noise multiplier {settings.noise_multiplier}")
    return settings.noise_multiplier or 0.0


def _require_finite(delta: Mapping[str, Array], spec: TaskSpec, settings: LocalTraining) -> None:
    for name, array in delta.items():
        if not np.isfinite(array).all():
            raise FederationError(
                f"task {spec.name}: the array {name!r} is no longer finite after local training with learning rate "
                f"{settings.learning_rate:g}; lower the learning rate, nothing was published"
            )


def _norms(delta: Mapping[str, Array], settings: LocalTraining) -> Norms:
    """Of an update before noise; one that is not finite counts as zero, as it is taken."""
    length = norm(delta)
    clipping_norm = None if settings.noise_multiplier is None else settings.clipping_norm
    return norms_of_update(length if math.isfinite(length) else 0.0, clipping_norm)
