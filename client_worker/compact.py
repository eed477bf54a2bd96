"""From a noised delta to what travels: one byte, two or four for each number, as the plan says.

A pure function of the noised values and of public figures. So it costs no privacy (post-processing: Dwork & Roth 2014,
proposition 2.1), and the same values always give the same bytes: the draws of the rounding are keyed by the values themselves.
"""

import hashlib
import math

import msgpack
import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

from shared.compact import Delta, Scaled, Tensor
from shared.parameters import BLOCK, Array, Parameters
from shared.plan import UpdateEncoding

MOST_STEPS = 127
_STEPS_PER_STD = 8
_GRID_BITS = 10
_DRAW_BITS = 16
_LEAST_POWER = -100
_LARGEST_HALF = 65504
_WHOLE_HALF_BITS = 14
"""The smallest float16 number that has all of its 11 bits is 2^-14."""
_NONCE = bytes(16)  # never repeated under one key: each has one stream
_ZEROS = bytes(_DRAW_BITS // 8 * BLOCK)


def compacted(delta: Parameters, encoding: UpdateEncoding, noise_std: float | None) -> Delta:
    """The delta as it is sent. `noise_std` is the noise of one coordinate by public figures, None without noise.

    A tensor with a number that is not finite stays float32, whatever the encoding: the aggregator refuses it, with its reason.
    """
    draws = _Draws(delta) if encoding == "int8" else None
    tensors: dict[str, Tensor] = {}
    for name, array in sorted(delta.items()):
        largest = max(float(array.max()), -float(array.min())) if array.size else 0.0
        if encoding == "float32" or not math.isfinite(largest):
            tensors[name] = array if not noise_std else _on_grid(array, noise_std)
        elif draws is None:
            tensors[name] = _halves(array, largest, noise_std)
        else:
            tensors[name] = _bytes(array, largest, noise_std, draws)
    return tensors


def _power_of_two(number: float) -> float:
    """The largest one that is no larger."""
    return math.ldexp(0.5, math.frexp(number)[1])


def _step(largest: float, unit: float, most: int, *, noised: bool) -> float:
    """unit x 2^k with the smallest k for which `most` steps hold the largest value; with noise k is not below 0.

    Exact as float32. Where all values are 0, or below 2^-100 steps, k is as good as any.
    """
    if not largest:
        return unit
    power = max(math.frexp(largest / (most * unit))[1] - 2, 0 if noised else _LEAST_POWER)
    while largest > most * math.ldexp(unit, power):
        power += 1
    return math.ldexp(unit, power)


def _on_grid(array: Array, noise_std: float) -> Array:
    """The nearest multiples of 2^-10 of the noise's std, rounded down to a power of two.

    The low-order bits of a Gaussian draw tell what it was added to (Mironov 2012, section 4); these are cut off.
    """
    grid = _power_of_two(noise_std) * 2.0**-_GRID_BITS
    rounded, flat = np.empty(array.size, np.float32), array.reshape(-1)
    for start in range(0, flat.size, BLOCK):
        rounded[start : start + BLOCK] = np.rint(flat[start : start + BLOCK] / np.float64(grid)) * grid
    return rounded.reshape(array.shape)


def _halves(array: Array, largest: float, noise_std: float | None) -> Scaled:
    """float16 to the nearest, on the grid of `_on_grid` or a coarser one: a power of two as the step, so that nothing overflows.

    What would be too small for all bits of a float16 is rounded to the grid, which is the smallest number that has them.
    """
    unit = _power_of_two(noise_std) * 2.0 ** (_WHOLE_HALF_BITS - _GRID_BITS) if noise_std else 1.0
    step = _step(largest, unit, _LARGEST_HALF, noised=bool(noise_std))
    grid = 2.0**-_WHOLE_HALF_BITS
    rounded, flat = np.empty(array.size, np.float16), array.reshape(-1)
    for start in range(0, flat.size, BLOCK):
        rounded[start : start + BLOCK] = np.rint(flat[start : start + BLOCK] / np.float64(step * grid)) * grid
    return Scaled(rounded.reshape(array.shape), step)


def _bytes(array: Array, largest: float, noise_std: float | None, draws: "_Draws") -> Scaled:
    """int8, rounded up or down by chance so that the mean is the value; a step is an eighth of the noise's std or more.

    In steps of 2^-16, with a draw u uniform in 0 .. 2^16 - 1: floor((nearest(2^16 value / step) + u) / 2^16). So the mean is
    the value but for 2^-17 steps, and 127 steps stay 127: nothing is cut off.
    """
    unit = max(float(np.float32(noise_std / _STEPS_PER_STD)), 2.0**_LEAST_POWER) if noise_std else 1.0
    step = _step(largest, unit, MOST_STEPS, noised=bool(noise_std))
    fraction = np.float32(math.ldexp(step, -_DRAW_BITS))
    rounded, flat = np.empty(array.size, np.int8), array.reshape(-1)
    fine, fixed, drawn = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.int32), np.empty(BLOCK, np.int32)
    for start in range(0, flat.size, BLOCK):
        part = flat[start : start + BLOCK]
        size = part.size
        np.rint(np.divide(part, fraction, out=fine[:size]), out=fine[:size])
        fixed[:size] = fine[:size]
        drawn[:size] = draws.next(size)
        np.add(fixed[:size], drawn[:size], out=fixed[:size])
        rounded[start : start + size] = np.right_shift(fixed[:size], _DRAW_BITS, out=fixed[:size])
    return Scaled(rounded.reshape(array.shape), step)


class _Draws:
    """Uniform 16-bit numbers: a ChaCha20 key stream whose key is the SHA-256 of names, shapes and values."""

    def __init__(self, delta: Parameters) -> None:
        digest = hashlib.sha256()
        for name, array in sorted(delta.items()):
            digest.update(msgpack.packb([name, list(array.shape)]))
            digest.update(np.ascontiguousarray(array, dtype="<f4").data)
        self._stream = Cipher(algorithms.ChaCha20(digest.digest(), _NONCE), mode=None).encryptor()
        self._bytes = bytearray(len(_ZEROS))
        self._numbers: NDArray[np.uint16] = np.frombuffer(self._bytes, dtype="<u2")

    def next(self, count: int) -> NDArray[np.uint16]:
        """So many more, at most a block of them; they hold until the next are asked for."""
        wanted = count * _DRAW_BITS // 8
        self._stream.update_into(memoryview(_ZEROS)[:wanted], self._bytes)
        return self._numbers[:count]
