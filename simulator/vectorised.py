"""Local trainings of many institutions at once: their parameters stacked, each step a few batched matrix products of torch.

The mathematics is client_worker's: Poisson samples, the gradient of every example clipped over all parameters together,
Gaussian noise on their sum, division by the sample rate times the institution's examples. The norms of the examples' gradients
come from the layers' inputs and output gradients alone (Goodfellow 2015, arXiv 1510.01799, section 4), so that no gradient of
one example is ever made. Sampling and noise come from seeded generators, one for each training: this is a simulation, and its
noise protects nobody.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client_worker.mechanism import LocalTraining
from client_worker.randomness import SecureRandom
from client_worker.training import LocalTrainer
from shared.errors import FederationError
from shared.parameters import Array, Parameters, subtract
from shared.tasks.features import Dataset
from shared.tasks.models import initial_parameters
from shared.tasks.spec import Kind, TaskSpec
from simulator.population import random_of

NUMBERS_AT_ONCE = 2**21
"""So many parameters, or inputs of sampled rows, are worked on together: 8 MiB, which stay in a processor's cache."""
FEWEST_TOGETHER = 16
"""Fewer are not parted for having different numbers of rows: the calls would cost more than the padding."""
TINY = 1e-6
"""Added to a norm before it divides, as opacus does."""


class Job(NamedTuple):
    """One local training: whose, which of its trainings, from which model, and how."""

    place: int
    number: int
    base: Parameters
    settings: LocalTraining


class BatchTrainer(Protocol):
    """Whatever trains several institutions."""

    def deltas(self, jobs: Sequence[Job]) -> list[dict[str, Array]]:
        """delta = trained - base of each job, in their order; empty where a number is not finite: that is never published."""


def trainer_for(spec: TaskSpec, trainings: Sequence[Dataset], *, seed: int, private: bool) -> BatchTrainer:
    """The fastest trainer that can do the task: stacked, or one at a time for a model of one's own and for persons."""
    if ":" in spec.model.type or spec.person:
        return OneAtATime(spec, trainings, seed=seed, private=private)
    return Stacked(spec, trainings, seed=seed)


class OneAtATime:
    """The institutions' own trainer, with a key that follows from the seed."""

    def __init__(self, spec: TaskSpec, trainings: Sequence[Dataset], *, seed: int, private: bool) -> None:
        random = SecureRandom(hashlib.sha256(f"simulated training {seed}".encode()).digest())
        self._trainer = LocalTrainer(spec, device="cpu", private=private, random=random)
        self._trainings = trainings

    def deltas(self, jobs: Sequence[Job]) -> list[dict[str, Array]]:
        """As BatchTrainer; they depend on what was trained before."""
        return [self._delta(job) for job in jobs]

    def _delta(self, job: Job) -> dict[str, Array]:
        try:
            return self._trainer.local_update(job.base, self._trainings[job.place], job.settings)
        except FederationError:
            return {}


class Stacked:
    """Logistic, linear and mlp models. A training's samples and noise do not depend on what else is trained with it."""

    def __init__(self, spec: TaskSpec, trainings: Sequence[Dataset], *, seed: int) -> None:
        torch.set_num_threads(1)
        self._kind, self._seed = spec.kind, seed
        self._names = list(initial_parameters(spec, 0))
        self._units = [len(each) for each in trainings]
        self._firsts = np.cumsum([0, *self._units])
        self._features = torch.from_numpy(_joined([each.features for each in trainings]))
        self._labels = torch.from_numpy(_joined([each.labels for each in trainings]))

    def deltas(self, jobs: Sequence[Job]) -> list[dict[str, Array]]:
        """As BatchTrainer. All jobs have the same settings but for `expected_rows`."""
        found: dict[int, dict[str, Array]] = {}
        for places in self._groups(jobs):
            group = [jobs[place] for place in places]
            found |= zip(places, self._group_deltas(group), strict=True)
        return [found[place] for place in range(len(jobs))]

    def _groups(self, jobs: Sequence[Job]) -> Iterator[list[int]]:
        """Jobs of about as many rows together, so that little is padding, and no more than fit into the cache."""
        numbers = sum(array.size for array in jobs[0].base.values()) if jobs else 0
        group: list[int] = []
        most, largest = 0.0, 0
        for place in sorted(range(len(jobs)), key=lambda place: -self._units[jobs[place].place]):
            units = self._units[jobs[place].place]
            if group and (len(group) >= most or (2 * units < largest and len(group) >= FEWEST_TOGETHER)):
                yield group
                group = []
            if not group:
                largest = units
                most = NUMBERS_AT_ONCE / max(numbers, units * jobs[place].settings.sample_rate * self._features.shape[1])
            group.append(place)
        if group:
            yield group

    @torch.no_grad()
    def _group_deltas(self, jobs: Sequence[Job]) -> list[dict[str, Array]]:
        settings = jobs[0].settings
        randoms = [random_of(self._seed, "training", job.place, job.number) for job in jobs]
        layers = _Layers.of(self._names, [job.base for job in jobs])
        rates = torch.tensor([settings.learning_rate / job.settings.expected_rows for job in jobs])
        std = (settings.noise_multiplier or 0.0) * settings.clipping_norm if settings.mechanism == "dp-sgd" else 0.0
        bound = settings.clipping_norm if settings.mechanism == "dp-sgd" else None
        for sample in self._samples(jobs, randoms):
            layers.descend(self._kind, sample, rates, clipping_norm=bound)
            if std:
                layers.shift(_normals(randoms, layers.numbers), -rates * std)
        deltas = [subtract(trained, job.base) for trained, job in zip(layers.arrays(self._names), jobs, strict=True)]
        if settings.mechanism == "update-gaussian":
            return [_noised(delta, job.settings, random) for delta, job, random in zip(deltas, jobs, randoms, strict=True)]
        return [delta if all(np.isfinite(array).all() for array in delta.values()) else {} for delta in deltas]

    def _samples(self, jobs: Sequence[Job], randoms: Sequence[np.random.Generator]) -> Iterator["Batch"]:
        """One Poisson sample of each institution for every step, padded to the largest of them."""
        settings = jobs[0].settings
        for _ in range(settings.steps):
            drawn = [self._draw(job, random) for job, random in zip(jobs, randoms, strict=True)]
            counts = np.array([len(rows) for rows in drawn])
            rows = np.zeros((len(jobs), max(1, int(counts.max()))), dtype=np.int64)
            there = np.arange(rows.shape[1]) < counts[:, None]
            rows[there] = np.concatenate(drawn)
            index = torch.from_numpy(rows)
            features = self._features.index_select(0, index.view(-1)).view(*index.shape, -1)
            yield Batch(features, self._labels[index], torch.from_numpy(there))

    def _draw(self, job: Job, random: np.random.Generator) -> NDArray[np.int64]:
        drawn = np.flatnonzero(random.random(self._units[job.place]) < job.settings.sample_rate)
        return np.asarray(drawn + self._firsts[job.place])


class Batch(NamedTuple):
    """Rows of several institutions: features (institutions, rows, inputs), labels and `there` (institutions, rows).

    Rows that are not there are padding.
    """

    features: Tensor
    labels: Tensor
    there: Tensor


@dataclass(slots=True, eq=False)
class _Layers:
    """Fully connected layers with tanh between them: weights (institutions, outputs, inputs), biases (institutions, outputs)."""

    weights: list[Tensor]
    biases: list[Tensor]

    @classmethod
    def of(cls, names: Sequence[str], bases: Sequence[Parameters]) -> "_Layers":
        stacked = [torch.from_numpy(np.stack([base[name] for base in bases])) for name in names]
        return cls(stacked[0::2], stacked[1::2])

    @property
    def numbers(self) -> int:
        """How many parameters one institution has."""
        return sum(each[0].numel() for each in (*self.weights, *self.biases))

    def arrays(self, names: Sequence[str]) -> Iterator[dict[str, Array]]:
        """Each institution's parameters, as views."""
        stacked = [each.numpy() for pair in zip(self.weights, self.biases, strict=True) for each in pair]
        for place in range(len(stacked[0])):
            yield {name: array[place] for name, array in zip(names, stacked, strict=True)}

    def descend(self, kind: Kind, batch: Batch, rates: Tensor, *, clipping_norm: float | None) -> None:
        """One step: each institution's parameters less its rate times the sum of the gradients, clipped one by one."""
        inputs = self._activations(batch.features)
        gradient = _of_outputs(kind, inputs.pop(), batch.labels)
        gradients = self._backward(inputs, gradient)
        factors = batch.there * rates[:, None]
        if clipping_norm is not None:
            norms = _norms(inputs, gradients)
            factors = factors * (clipping_norm / (norms + TINY)).clamp(max=1.0)
        for weight, bias, layer_inputs, each in zip(self.weights, self.biases, inputs, gradients, strict=True):
            # a row whose norm is not finite has no positive factor, and counts as zero
            scaled = torch.where(factors[:, :, None] > 0.0, each * factors[:, :, None], 0.0)
            weight.baddbmm_(scaled.transpose(1, 2), layer_inputs, alpha=-1.0)
            bias.sub_(scaled.sum(1))

    def _activations(self, features: Tensor) -> list[Tensor]:
        """The input of each layer, and the output of the last."""
        values = [features]
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            outputs = torch.baddbmm(bias[:, None, :], values[-1], weight.transpose(1, 2))
            values.append(outputs if number == len(self.weights) - 1 else outputs.tanh_())
        return values

    def _backward(self, inputs: Sequence[Tensor], gradient: Tensor) -> list[Tensor]:
        """For each layer the gradient of its outputs, of every row."""
        gradients = [gradient]
        for weight, values in zip(self.weights[:0:-1], inputs[:0:-1], strict=True):
            gradients.append(torch.bmm(gradients[-1], weight).mul_(1.0 - values * values))
        return gradients[::-1]

    def shift(self, ways: Tensor, factors: Tensor) -> None:
        """Moves all parameters of each institution by its factor times its way (institutions, numbers)."""
        position = 0
        for weight, bias in zip(self.weights, self.biases, strict=True):
            for array in (weight, bias):
                size = array[0].numel()
                way = ways[:, position : position + size].view_as(array)
                array.addcmul_(way, factors.view(-1, *([1] * (array.dim() - 1))))
                position += size


def _of_outputs(kind: Kind, outputs: Tensor, labels: Tensor) -> Tensor:
    """The derivative of the loss of every row by the model's outputs (institutions, rows, outputs)."""
    match kind:
        case "binary":
            return (torch.sigmoid(outputs[:, :, 0]) - labels)[:, :, None]
        case "multiclass":
            return torch.softmax(outputs, dim=2) - torch.nn.functional.one_hot(labels, outputs.shape[2])
        case "regression":
            return (2.0 * (outputs[:, :, 0] - labels))[:, :, None]


def _norms(inputs: Iterable[Tensor], gradients: Iterable[Tensor]) -> Tensor:
    """The norm of every row's gradient by all parameters together (institutions, rows).

    A layer's weights have the outer product of output gradient and input as their gradient, its biases the output gradient.
    """
    squares = [
        gradient.square().sum(2) * (values.square().sum(2) + 1.0) for values, gradient in zip(inputs, gradients, strict=True)
    ]
    return torch.stack(squares).sum(0).sqrt()


def _normals(randoms: Sequence[np.random.Generator], numbers: int) -> Tensor:
    return torch.from_numpy(np.stack([random.standard_normal(numbers, dtype=np.float32) for random in randoms]))


def _noised(delta: Mapping[str, Array], settings: LocalTraining, random: np.random.Generator) -> dict[str, Array]:
    """As client_worker.noisy_update: the whole update clipped and noised; one that is not finite is noise alone."""
    flat = np.concatenate([array.ravel() for array in delta.values()]).astype(np.float64)
    flat = flat if np.isfinite(flat).all() else np.zeros_like(flat)
    clipped = flat * (settings.clipping_norm / max(settings.clipping_norm, float(np.linalg.norm(flat))))
    std = (settings.noise_multiplier or 0.0) * settings.clipping_norm
    noised = (clipped + std * random.standard_normal(flat.size)).astype(np.float32)
    pieces = np.split(noised, np.cumsum([array.size for array in delta.values()])[:-1])
    return {name: piece.reshape(array.shape) for (name, array), piece in zip(delta.items(), pieces, strict=True)}


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """All rows: the array that the parts are cut from where they are, in order, so that it is not in memory twice."""
    whole, position = parts[0].base, 0
    if not isinstance(whole, np.ndarray) or not whole.flags.c_contiguous or len(whole) != sum(map(len, parts)):
        return np.concatenate(parts)
    for part in parts:
        if part.base is not whole or part.ctypes.data != whole[position:].ctypes.data:
            return np.concatenate(parts)
        position += len(part)
    return whole
