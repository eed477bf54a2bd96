"""Named arrays: a model's parameters, or a delta between two models."""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from shared.errors import IncompatibleUpdateError

Array = NDArray[np.float32]
Parameters = Mapping[str, Array]
Shapes = Mapping[str, tuple[int, ...]]


def shapes(parameters: Parameters) -> dict[str, tuple[int, ...]]:
    """Name to shape, in the order of the parameters."""
    return {name: array.shape for name, array in parameters.items()}


def count(parameters: Parameters) -> int:
    """Number of scalars in all arrays together."""
    return sum(array.size for array in parameters.values())


def l2_norm(parameters: Parameters) -> float:
    """Euclidean norm over all arrays; not finite when any value is not, or when a square overflows float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        return math.sqrt(sum(float(np.dot(flat, flat)) for flat in (array.ravel() for array in parameters.values())))


def require_shapes(parameters: Parameters, expected: Shapes) -> None:
    """Raises IncompatibleUpdateError naming the first array that is missing, unknown or of another shape."""
    for name, shape in expected.items():
        if name not in parameters:
            raise IncompatibleUpdateError(f"the array {name!r} is missing")
        if parameters[name].shape != shape:
            raise IncompatibleUpdateError(f"the array {name!r} has shape {parameters[name].shape}, the model has {shape}")
    for name in parameters:
        if name not in expected:
            raise IncompatibleUpdateError(f"the model has no array {name!r}")


def copy(parameters: Parameters) -> dict[str, Array]:
    """Fresh, writable arrays with the same values."""
    return {name: np.array(array, dtype=np.float32, order="C") for name, array in parameters.items()}


def subtract(left: Parameters, right: Parameters) -> dict[str, Array]:
    """left - right, array by array; both have the same names and shapes."""
    return {name: np.ascontiguousarray(left[name] - right[name], dtype=np.float32) for name in right}
