"""The trainings under way, and their deltas, computed for many institutions at once when the first of them is needed.

A delta depends on its base alone, which is fixed as the training begins: so it may be computed at any time until it arrives.
"""

import heapq
from collections.abc import Callable

from client_worker.mechanism import LocalTraining
from shared.parameters import Array, Parameters, count
from simulator.vectorised import BatchTrainer, Job

NUMBERS_AHEAD = 2**23
"""So many numbers of deltas are computed before they are needed, 32 MiB; at least one delta."""


class Trainings:
    """Bases and deltas of what is under way, by the institution's place. Memory: one base for each version in use."""

    def __init__(self, trainer: BatchTrainer, settings: Callable[[int], LocalTraining]) -> None:
        self._trainer, self._settings = trainer, settings
        self._jobs: dict[int, Job] = {}
        self._versions: dict[int, int] = {}
        self._due: list[tuple[float, int]] = []
        self._deltas: dict[int, dict[str, Array]] = {}
        self._computed_until = 0.0

    @property
    def oldest_base(self) -> int | None:
        """The oldest version that a training under way began from; None where there is none."""
        return min(self._versions.values(), default=None)

    def begin(self, place: int, number: int, *, version: int, model: Parameters, arrives_at: float) -> None:
        """A training whose update will arrive."""
        self._jobs[place] = Job(place, number, model, self._settings(place))
        self._versions[place] = version
        heapq.heappush(self._due, (arrives_at, place))

    def arrive(self, place: int) -> tuple[int, dict[str, Array]]:
        """The base version and the delta of the training that ends now."""
        if place not in self._deltas:
            self._compute()
        return self._versions.pop(place), self._deltas.pop(place)

    def _compute(self) -> None:
        """The next to arrive, in the order in which they will: those due before what is computed already, then as many as fit."""
        room = max(1, NUMBERS_AHEAD // count(self._jobs[self._due[0][1]].base)) - len(self._deltas)
        places: list[int] = []
        while self._due and (len(places) < room or self._due[0][0] <= self._computed_until):
            due, place = heapq.heappop(self._due)
            self._computed_until = max(self._computed_until, due)
            places.append(place)
        jobs = [self._jobs.pop(place) for place in places]
        self._deltas |= zip(places, self._trainer.deltas(jobs), strict=True)
