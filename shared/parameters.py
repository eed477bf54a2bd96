"""Named arrays: a model's parameters, or a delta between two models."""

import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shared.errors import IncompatibleUpdateError

Array = NDArray[np.float32]
Parameters = Mapping[str, Array]
Shapes = Mapping[str, tuple[int, ...]]
BLOCK = 2**16
"""How many values are worked on at a time: they stay in the processor's cache, and no whole array is made in between."""


class Shaped(Protocol):
    """Whatever stands for an array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions."""


def shapes(parameters: Parameters) -> dict[str, tuple[int, ...]]:
    """Name to shape, in the order of the parameters."""
    return {name: array.shape for name, array in parameters.items()}


def count(parameters: Parameters) -> int:
    """Number of scalars in all arrays together."""
    return sum(array.size for array in parameters.values())


def require_shapes(parameters: Mapping[str, Shaped], expected: Shapes) -> None:
    """Raises IncompatibleUpdateError naming the first array that is missing, unknown or of another shape."""
    for name, shape in expected.items():
        if name not in parameters:
            raise IncompatibleUpdateError(f"the array {name!r} is missing")
        if parameters[name].shape != shape:
            raise IncompatibleUpdateError(f"the array {name!r} has shape {parameters[name].shape}, the model has {shape}")
    for name in parameters:
        if name not in expected:
            raise IncompatibleUpdateError(f"the model has no array {name!r}")


def norm(parameters: Parameters) -> float:
    """The length of all numbers together, added up in float64."""
    return math.sqrt(sum(float(np.square(array, dtype=np.float64).sum()) for array in parameters.values()))


def copy(parameters: Parameters) -> dict[str, Array]:
    """Fresh, writable arrays with the same values."""
    return {name: np.array(array, dtype=np.float32, order="C") for name, array in parameters.items()}


def zeros(parameters: Parameters) -> dict[str, Array]:
    """Arrays of the same names and shapes, all 0."""
    return {name: np.zeros_like(array) for name, array in parameters.items()}


def subtract(left: Parameters, right: Parameters) -> dict[str, Array]:
    """left - right, array by array; both have the same names and shapes."""
    return {name: np.ascontiguousarray(left[name] - right[name], dtype=np.float32) for name in right}


def to_bfloat16(array: Array) -> NDArray[np.uint16]:
    """The upper halves of the bits, rounded to the nearest, ties to even (as torch does); NaN stays NaN."""
    flat = np.ascontiguousarray(array, dtype=np.float32).reshape(-1)
    rounded, sums = np.empty(flat.size, dtype=np.uint16), np.empty(BLOCK, dtype=np.uint32)
    for start in range(0, flat.size, BLOCK):
        block = flat[start : start + BLOCK]
        bits, upper = block.view(np.uint32), sums[: block.size]
        np.right_shift(bits, 16, out=upper)
        np.bitwise_and(upper, 1, out=upper)
        np.add(upper, 0x7FFF, out=upper)
        np.add(upper, bits, out=upper)
        np.right_shift(upper, 16, out=upper)
        upper[np.isnan(block)] = 0x7FC0
        rounded[start : start + BLOCK] = upper
    return rounded.reshape(array.shape)


def from_bfloat16(upper_halves: NDArray[np.uint16]) -> Array:
    """The float32 values, exactly."""
    flat, bits = upper_halves.reshape(-1), np.empty(upper_halves.size, dtype=np.uint32)
    for start in range(0, flat.size, BLOCK):
        block = bits[start : start + BLOCK]
        block[:] = flat[start : start + BLOCK]
        np.left_shift(block, 16, out=block)
    return bits.view(np.float32).reshape(upper_halves.shape)
