"""Tiny tasks, rows and settings of local trainings, and noise whose values a test can reckon with."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from client_worker.mechanism import LocalTraining
from client_worker.randomness import SecureRandom
from client_worker.sampling import Sample
from shared.parameters import Array
from shared.tasks.features import Dataset
from shared.tasks.models import initial_parameters
from shared.tasks.spec import TaskSpec, parse_task

KEY = bytes(range(32))
PERCEPTRON = 'type = "mlp"\nhidden = [4]'


def task(inputs: int, model: str = 'type = "logistic"', *, person: str = "") -> TaskSpec:
    text = f"""
name = "t"
kind = "binary"
person = "{person}"
[label]
column = "y"
positive = [1]
[[numeric]]
columns = "x1..x{inputs}"
minimum = -1
maximum = 1
[model]
{model}
"""
    return parse_task(text, source="task.toml")


def zeros(spec: TaskSpec) -> dict[str, Array]:
    return {name: np.zeros_like(array) for name, array in initial_parameters(spec, 0).items()}


def local(units: float, **changes: float | str | None) -> LocalTraining:
    """One step on everything without noise; `units` is the public number of examples."""
    values = {"steps": 1, "sample_rate": 1.0, "learning_rate": 1.0, "clipping_norm": 1.0, "noise_multiplier": None} | changes
    values.setdefault("mechanism", "none" if values["noise_multiplier"] is None else "dp-sgd")
    return LocalTraining(expected_rows=values["sample_rate"] * units, **values)  # type: ignore[arg-type,operator]


def rows(count: int, inputs: int, *, zero: bool = False) -> Dataset:
    rng = np.random.default_rng(3)
    features = np.zeros((count, inputs)) if zero else rng.uniform(-1, 1, (count, inputs))
    return Dataset(features.astype(np.float32), (rng.random(count) < 0.4).astype(np.float32))


def positives(*features: list[float], persons: list[int] | None = None) -> Dataset:
    """Rows of label 1. At a logistic model of zeros the gradient of such a row is minus half of (features, 1)."""
    whose = None if persons is None else np.array(persons)
    return Dataset(np.array(features, dtype=np.float32), np.ones(len(features), dtype=np.float32), whose)


def everything(data: Dataset) -> Sample:
    """All rows, each by itself."""
    return Sample(torch.from_numpy(data.features), torch.from_numpy(data.labels), len(data))


def flat(delta: Mapping[str, Array]) -> NDArray[np.float32]:
    return np.concatenate([array.ravel() for array in delta.values()])


class KnownNoise(SecureRandom):
    """Every normal number is 1, and each call is counted; sampling is as ever."""

    def __init__(self) -> None:
        super().__init__(KEY)
        self.normals: list[int] = []
        self.samples: list[int] = []

    def gaussian(self, count: int) -> NDArray[np.float64]:
        self.normals.append(count)
        return np.ones(count)

    def poisson_sample(self, count: int, rate: float) -> NDArray[np.int64]:
        drawn = super().poisson_sample(count, rate)
        self.samples.append(len(drawn))
        return drawn
