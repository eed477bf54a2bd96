"""Noise and sampling from a cryptographic generator: a guessable generator would let the noise be subtracted again."""

import os

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

KEY_BYTES = 32
GENERATOR = "ChaCha20, its key from the operating system"


class SecureRandom:
    """A ChaCha20 key stream as random numbers. Without a key it takes one from the operating system; a key is for tests."""

    def __init__(self, key: bytes | None = None) -> None:
        self._begin(os.urandom(KEY_BYTES) if key is None else key)

    def _begin(self, key: bytes) -> None:
        nonce = bytes(16)  # never repeated under one key: each object has one key and one stream
        self._stream = Cipher(algorithms.ChaCha20(key, nonce), mode=None).encryptor()
        self._process = os.getpid()

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Uniform numbers in (0, 1], on a grid of 2^-53."""
        if self._process != os.getpid():
            self._begin(os.urandom(KEY_BYTES))  # a forked child would draw its parent's noise a second time
        words = np.frombuffer(self._stream.update(bytes(8 * count)), dtype="<u8")
        return np.asarray(((words >> np.uint64(11)).astype(np.float64) + 1.0) * 2.0**-53)

    def gaussian(self, count: int) -> NDArray[np.float64]:
        """Standard normal numbers: half the sum of four draws by Box and Muller.

        The sum hides the low-order bits of a single draw, which can give away what it was added to (Mironov 2012; Holohan &
        Braghin 2021, arXiv 2107.10138).
        """
        normals = self._box_muller(4 * count)
        return np.asarray(normals.reshape(4, count).sum(axis=0) * 0.5)

    def discrete_laplace(self, scale: float, count: int) -> NDArray[np.int64]:
        """Whole numbers k with probability proportional to exp(-|k| / scale): differences of two geometric numbers.

        Whole numbers have no low-order bits that could give away what they were added to (Mironov 2012).
        """
        exponentials = -np.log(self.uniform(2 * count)).reshape(2, count) * scale
        first, second = np.floor(exponentials).astype(np.int64)
        return np.asarray(first - second)

    def poisson_sample(self, count: int, rate: float) -> NDArray[np.int64]:
        """The indices below `count` that are drawn, each independently with probability `rate`."""
        return np.flatnonzero(self.uniform(count) <= rate)

    def _box_muller(self, count: int) -> NDArray[np.float64]:
        pairs = (count + 1) // 2
        radius = np.sqrt(-2.0 * np.log(self.uniform(pairs)))
        angle = 2.0 * np.pi * self.uniform(pairs)
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
