"""Poisson samples of an institution's units: its records, or its persons with all their records."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from client_worker.randomness import SecureRandom
from shared.tasks.features import Dataset
from shared.tasks.loss import loss
from shared.tasks.spec import Kind


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """The rows of the drawn units. `owners` numbers the unit of each row from 0, in ascending order, and `weights` is
    1 / records of that unit; both are None where each row is a unit.
    """

    features: torch.Tensor
    labels: torch.Tensor
    units: int
    owners: torch.Tensor | None = None
    weights: torch.Tensor | None = None

    def pieces(self, units_at_once: int) -> Iterator["Sample"]:
        """The sample in pieces of so many whole units; one piece without rows if nothing was drawn."""
        for first in range(0, max(1, self.units), units_at_once):
            last = min(first + units_at_once, self.units)
            yield self._between(first, last)

    def chunks(self, rows_at_once: int) -> Iterator["Sample"]:
        """The rows so many at a time, which may cut a unit in two; `owners` and `units` stay those of the whole."""
        for first in range(0, len(self.labels), rows_at_once):
            yield self._rows(slice(first, first + rows_at_once), self.units, first_owner=0)

    def _between(self, first: int, last: int) -> "Sample":
        if self.owners is None:
            return self._rows(slice(first, last), last - first, first_owner=0)
        ends = torch.searchsorted(self.owners, torch.tensor([first, last], device=self.owners.device)).tolist()
        return self._rows(slice(*ends), last - first, first_owner=first)

    def _rows(self, rows: slice, units: int, *, first_owner: int) -> "Sample":
        owners = None if self.owners is None else self.owners[rows] - first_owner
        weights = None if self.weights is None else self.weights[rows]
        return Sample(self.features[rows], self.labels[rows], units, owners, weights)


def summed_loss(kind: Kind, outputs: torch.Tensor, sample: Sample) -> torch.Tensor:
    """The sum over units of the mean loss of their rows; `outputs` is (rows, outputs)."""
    if sample.weights is None:
        return loss(kind, outputs, sample.labels)
    return loss(kind, outputs, sample.labels, reduction="none") @ sample.weights


class Sampler:
    """Draws every unit independently with the same probability, anew at each call."""

    def __init__(self, dataset: Dataset, rate: float, *, random: SecureRandom, device: torch.device) -> None:
        self._features = torch.from_numpy(dataset.features).to(device)
        self._labels = torch.from_numpy(dataset.labels).to(device)
        self._units, self._rate, self._random, self._device = dataset.units, rate, random, device
        self._persons = None if dataset.persons is None else _Persons(dataset.persons)

    def draw(self) -> Sample:
        """The rows of the units that are drawn this time, perhaps none."""
        drawn = self._random.poisson_sample(self._units, self._rate)
        if self._persons is None:
            rows = torch.from_numpy(drawn).to(self._device)
            return Sample(self._features[rows], self._labels[rows], len(drawn))
        rows, owners, weights = (torch.from_numpy(each).to(self._device) for each in self._persons.rows_of(drawn))
        return Sample(self._features[rows], self._labels[rows], len(drawn), owners, weights)


class _Persons:
    """Which rows are whose."""

    def __init__(self, persons: NDArray[np.int64]) -> None:
        self._rows = np.argsort(persons, kind="stable")
        self._counts = np.bincount(persons)
        self._firsts = np.cumsum(self._counts) - self._counts

    def rows_of(self, drawn: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """All rows of the drawn persons, for each its person's place among the drawn, and 1 / that person's rows."""
        counts = self._counts[drawn]
        owners = np.repeat(np.arange(len(drawn)), counts)
        within = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
        return self._rows[self._firsts[drawn][owners] + within], owners, (1.0 / counts)[owners].astype(np.float32)
