"""The work of the benchmark `stragglers`: scikit-learn's digits at eight institutions, a small perceptron, and plain SGD.

torch is imported by what trains only, so that whoever measures starts without it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shared.parameters import Array, Parameters, subtract

if TYPE_CHECKING:
    from torch import nn

INPUTS, HIDDEN, CLASSES = 64, 32, 10
LARGEST_PIXEL = 16
TEST_ROWS = 360
DIRICHLET = 0.5
LEARNING_RATE = 0.3
EPOCHS = 2
BATCH = 32
SLEEP_SECONDS = (0.05, 0.05, 0.05, 0.05, 0.1, 0.1, 0.5, 2.0)
"""What each institution sleeps in every local round, beside its training."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Pixels in [0, 1], (rows, INPUTS) in float32, and the digits, in int64."""

    pixels: NDArray[np.float32]
    digits: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.digits)

    def at(self, places: NDArray[np.int64]) -> "Rows":
        """Some of the rows."""
        return Rows(self.pixels[places], self.digits[places])

    def save(self, file: Path) -> None:
        """As a file that `load` reads."""
        np.savez(file, pixels=self.pixels, digits=self.digits)

    @classmethod
    def load(cls, file: Path) -> "Rows":
        """What `save` wrote."""
        with np.load(file) as saved:
            return cls(saved["pixels"], saved["digits"])


def split() -> tuple[Rows, Rows]:
    """1,437 rows to train on and 360 to judge by, every digit in both as often as in the whole; seed 0."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, digits = load_digits(return_X_y=True)
    scaled = (pixels / LARGEST_PIXEL).astype(np.float32)
    train, test, train_digits, test_digits = train_test_split(
        scaled, digits.astype(np.int64), test_size=TEST_ROWS, stratify=digits, random_state=0
    )
    return Rows(train, train_digits), Rows(test, test_digits)


def parts(digits: NDArray[np.int64], institutions: int, *, seed: int = 0) -> list[NDArray[np.int64]]:
    """The rows of each institution: each digit's are dealt out by shares of its own, from Dirichlet(0.5) (Hsu et al. 2019)."""
    random = np.random.default_rng(seed)
    dealt: list[list[NDArray[np.int64]]] = [[] for _ in range(institutions)]
    for digit in range(CLASSES):
        rows = random.permutation(np.flatnonzero(digits == digit))
        shares = random.dirichlet([DIRICHLET] * institutions)
        ends = (np.cumsum(shares)[:-1] * len(rows)).astype(int)
        for mine, piece in zip(dealt, np.split(rows, ends), strict=True):
            mine.append(piece)
    return [np.concatenate(mine) for mine in dealt]


def sleeps(institutions: int, spread: float | None) -> list[float]:
    """Seconds for each: the benchmark's own, or from its shortest on in equal ratios, the slowest `spread` times the fastest."""
    if spread is None:
        return list(SLEEP_SECONDS[:institutions])
    steps = max(1, institutions - 1)
    return [SLEEP_SECONDS[0] * spread ** (number / steps) for number in range(institutions)]


def first_model(seed: int) -> Parameters:
    """Version 0: every layer uniform within 1 / sqrt(inputs), as torch's linear layers begin."""
    random = np.random.default_rng(seed)

    def uniform(inputs: int, *shape: int) -> Array:
        return random.uniform(-(inputs**-0.5), inputs**-0.5, shape).astype(np.float32)

    return {
        "0.weight": uniform(INPUTS, HIDDEN, INPUTS),
        "0.bias": uniform(INPUTS, HIDDEN),
        "2.weight": uniform(HIDDEN, CLASSES, HIDDEN),
        "2.bias": uniform(HIDDEN, CLASSES),
    }


def accuracy(model: Parameters, rows: Rows) -> float:
    """The share of rows whose digit has the highest output."""
    hidden = np.maximum(rows.pixels @ model["0.weight"].T + model["0.bias"], 0)
    outputs = hidden @ model["2.weight"].T + model["2.bias"]
    return float((outputs.argmax(axis=1) == rows.digits).mean())


def reached(accuracies: Sequence[float], *, target: float, held: int) -> int | None:
    """The place of the first evaluation that is the last of `held` in a row at `target` or above; None where there is none."""
    in_a_row = 0
    for place, each in enumerate(accuracies):
        in_a_row = in_a_row + 1 if each >= target else 0
        if in_a_row == held:
            return place
    return None


def trainer(rows: Rows, *, seed: int) -> Callable[[Parameters], Parameters]:
    """From a model to the delta of EPOCHS passes of SGD in torch, over batches that are shuffled anew every time."""
    import torch

    torch.set_num_threads(1)
    module = _perceptron()
    pixels, digits = torch.from_numpy(rows.pixels), torch.from_numpy(rows.digits)
    order = np.random.default_rng(seed)
    loss = torch.nn.CrossEntropyLoss()

    def train(model: Parameters) -> Parameters:
        from shared.tasks.models import load_parameters, to_parameters

        load_parameters(module, model)
        optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE)
        for _ in range(EPOCHS):
            shuffled = torch.from_numpy(order.permutation(len(rows)))
            for batch in torch.split(shuffled, BATCH):
                optimizer.zero_grad()
                loss(module(pixels[batch]), digits[batch]).backward()
                optimizer.step()
        return subtract(to_parameters(module), model)

    return train


def _perceptron() -> "nn.Module":
    from torch import nn

    return nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))


def zeros(count: int) -> Rows:
    """Rows of no data, to warm up with."""
    return Rows(np.zeros((count, INPUTS), np.float32), np.zeros(count, np.int64))


def model_of_zeros() -> dict[str, Any]:
    """A model for them."""
    return {name: np.zeros_like(array) for name, array in first_model(0).items()}
