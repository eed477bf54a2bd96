"""What is done with the numbers of an update: multiplied and added, block by block, in an order that a replay repeats."""

from collections.abc import Mapping

import numpy as np

from shared.compact import Delta, blocks
from shared.parameters import BLOCK, Array


def fold_in_place(model: Mapping[str, Array], delta: Delta, weight: float) -> None:
    """model += weight x delta, the product rounded to float32 before it is added: replay repeats these two operations.

    A scaled number is rounded to float32 before it is multiplied. No more than a block of it exists as float32.
    """
    factor, product = np.float32(weight), np.empty(BLOCK, dtype=np.float32)
    for name, array in model.items():
        into = array.reshape(-1)
        for start, add in zip(range(0, into.size, BLOCK), blocks(delta[name]), strict=True):
            part = into[start : start + BLOCK]
            np.multiply(add, factor, out=product[: part.size])
            np.add(part, product[: part.size], out=part)


def scale_in_place(arrays: Mapping[str, Array], factor: float) -> None:
    """Every value times the factor, both as float32."""
    for array in arrays.values():
        np.multiply(array, np.float32(factor), out=array)
