"""What the aggregator does with the direction that a version's updates give: a step along it, momentum, or Adam. In place."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from aggregator_worker.aggregation import fold_in_place, scale_in_place
from shared.parameters import Array, zeros
from shared.plan import ServerAdam

Arrays = Mapping[str, Array]


@dataclass(slots=True, eq=False)
class AdamMemory:
    """First and second moments, and what of the second is known to be noise: a variance per coordinate, as one float32."""

    first: dict[str, Array]
    second: dict[str, Array]
    noise: Array

    @classmethod
    def zeros(cls, model: Arrays) -> "AdamMemory":
        """Before the first step."""
        return cls(zeros(model), zeros(model), np.zeros(1, np.float32))


def momentum_step(model: Arrays, momentum: Arrays) -> None:
    """The model takes its step of a momentum that holds the direction already."""
    fold_in_place(model, momentum, 1.0)


def add_to_momentum(momentum: Arrays, direction: Arrays, *, beta: float, rate: float) -> None:
    """FedAvgM (Hsu, Qi & Brown 2019, section 3.1): m = beta m + direction."""
    scale_in_place(momentum, beta)
    fold_in_place(momentum, direction, rate)


def adam_step(
    model: Arrays, memory: AdamMemory, direction: Arrays, *, adam: ServerAdam, rate: float, noise_variance: float
) -> None:
    """model += rate x m / (sqrt(v) + epsilon), v without the noise that is known to be in it, and never below 0.

    FedAdam (Reddi et al. 2021, algorithm 2), without bias correction. The direction of noised updates has the true one's second
    moment plus `noise_variance` on each coordinate, which would shrink every step alike.
    """
    memory.noise[:] = np.float32(adam.beta2) * memory.noise + np.float32((1 - adam.beta2) * noise_variance)
    for name, into in model.items():
        first, second, step = memory.first[name], memory.second[name], direction[name]
        first *= np.float32(adam.beta1)
        first += np.float32(1 - adam.beta1) * step
        second *= np.float32(adam.beta2)
        second += np.float32(1 - adam.beta2) * np.square(step)
        length = np.sqrt(np.maximum(second - memory.noise[0], np.float32(0))) + np.float32(adam.epsilon)
        into += np.float32(rate) * first / length
