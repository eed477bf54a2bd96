"""Numbers that travel in one or two bytes and a step: what an update's tensors may be instead of float32."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.parameters import BLOCK, Array, Parameters


@dataclass(frozen=True, slots=True, eq=False)
class Scaled:
    """`values` times `step`, which is a float32 number: each is value and step as float32, multiplied and rounded once."""

    values: NDArray[np.int8] | NDArray[np.float16]
    step: float

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the tensor."""
        return self.values.shape

    @property
    def size(self) -> int:
        """How many numbers."""
        return self.values.size


Tensor = Array | Scaled
Delta = Mapping[str, Tensor]
"""A delta as it was decoded from an update. `Parameters` are one too."""


def blocks(tensor: Tensor) -> Iterator[Array]:
    """The numbers in C order as float32, BLOCK at a time, without a copy of the whole. Each block holds until the next one."""
    if not isinstance(tensor, Scaled):
        whole = tensor.reshape(-1)
        yield from (whole[start : start + BLOCK] for start in range(0, whole.size, BLOCK))
        return
    flat, step = tensor.values.reshape(-1), np.float32(tensor.step)
    wide = np.empty(min(BLOCK, flat.size), np.float32)
    for start in range(0, flat.size, BLOCK):
        part = flat[start : start + BLOCK]
        numbers = wide[: part.size]
        np.copyto(numbers, part)
        with np.errstate(over="ignore"):
            np.multiply(numbers, step, out=numbers)
        yield numbers


def widened(delta: Delta) -> Parameters:
    """All numbers as float32 arrays: what a program that is not short of memory may work with."""
    return {name: _wide(tensor) if isinstance(tensor, Scaled) else tensor for name, tensor in delta.items()}


def _wide(tensor: Scaled) -> Array:
    return np.concatenate([np.empty(0, np.float32), *(block.copy() for block in blocks(tensor))]).reshape(tensor.shape)


def l2_norm(delta: Delta) -> float:
    """Euclidean norm over all tensors; not finite when any number is not, or when a square overflows float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        return math.sqrt(sum(float(np.dot(block, block)) for tensor in delta.values() for block in blocks(tensor)))
