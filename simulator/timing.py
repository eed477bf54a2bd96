"""When institutions train, in virtual seconds: how long each training takes, and who is away or gone."""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from simulator.population import random_of
from simulator.scenario import Population, Speed


class End(NamedTuple):
    """When a training is over, and whether its update arrives; if not, the institution went away at that moment."""

    seconds: float
    arrives: bool


class Timing(Protocol):
    """Whatever knows when the institution at a place trains."""

    def there_from(self, place: int, now: float) -> float | None:
        """When it can next begin a training: now, or later if it is away; None if it never comes back."""

    def end_of(self, place: int, now: float) -> End:
        """What becomes of the training that it begins now."""


class DrawnTiming:
    """As a scenario's population says. Every institution has streams of its own: what others do moves none of its draws."""

    def __init__(self, population: Population, usual_seconds: Sequence[float], *, seed: int) -> None:
        self._usual = usual_seconds
        self._speed, self._dropout = population.speed, population.dropout
        self._durations = [random_of(seed, "duration", place) for place in range(len(usual_seconds))]
        self._absences = {
            place: random_of(seed, "absence", place) for place in self._some(self._dropout.away_share, seed, "away")
        }
        self._leavers = self._some(self._dropout.leave_share, seed, "leave")
        self._goes = {place: self._there(place) for place in self._absences}
        self._returns = {place: self._goes[place] + self._away(place) for place in self._absences}

    def there_from(self, place: int, now: float) -> float | None:
        """See Timing. Times must not fall from one call for a place to the next."""
        while self._returns.get(place, math.inf) <= now:
            self._goes[place] = self._returns[place] + self._there(place)
            self._returns[place] = self._goes[place] + self._away(place)
        when = now if now < self._goes.get(place, math.inf) else self._returns[place]
        return when if when < self._leaves(place) else None

    def end_of(self, place: int, now: float) -> End:
        """See Timing. `there_from` must have said that it is there now."""
        end = now + self._usual[place] * _variation(self._speed, self._durations[place])
        gone = min(self._goes.get(place, math.inf), self._leaves(place))
        return End(end, arrives=True) if end <= gone else End(gone, arrives=False)

    def _leaves(self, place: int) -> float:
        return self._dropout.leave_after_seconds or math.inf if place in self._leavers else math.inf

    def _there(self, place: int) -> float:
        return float(self._absences[place].exponential(self._dropout.there_seconds or math.inf))

    def _away(self, place: int) -> float:
        return float(self._absences[place].exponential(self._dropout.away_seconds or 0.0))

    def _some(self, share: float, seed: int, purpose: str) -> frozenset[int]:
        order = random_of(seed, purpose).permutation(len(self._usual))
        return frozenset(order[: round(share * len(self._usual))].tolist())


def _variation(speed: Speed, random: np.random.Generator) -> float:
    """By what one training's duration differs from the usual one."""
    match speed.variation:
        case "none":
            return 1.0
        case "uniform":
            return float(random.uniform(1.0 - speed.spread, 1.0 + speed.spread))
        case "lognormal":
            return math.exp(speed.spread * float(random.standard_normal()))
        case "exponential":
            return float(random.standard_exponential())
