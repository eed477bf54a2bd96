"""Institutions that each draw the model towards an optimum of their own: the least problem in which an aggregation rule can err.

Institution k minimises a quadratic around its optimum c_k. One local training goes a part g_k of the way there, along each axis:
delta = g_k (c_k - base). What the federation should find is the mean of the optima by share of the data (and by g_k, where
these differ): there, the deltas of one training of everybody cancel. Everything goes through the aggregator's own core.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from shared.compact import Delta
from shared.messages import PrivacyStatement
from shared.parameters import Parameters
from shared.plan import AggregationPlan, Defence, Plan, PrivacyPlan
from simulator.federation import WITHOUT_NOISE, Arrival, Timetable, arrivals
from simulator.virtual import VirtualAggregator

Numbers = NDArray[np.float64]
Rest = Callable[[int, float], float]
NAME = "x"


@dataclass(frozen=True, slots=True, eq=False)
class Quadratics:
    """`optima` and `gains` are (institutions, axes); `seconds` is what a training of each takes, give or take `variation` of it.

    A delta has normal noise of the standard deviation `noise_std` on every axis.
    """

    optima: Numbers
    gains: Numbers
    examples: tuple[int, ...]
    seconds: Numbers
    variation: float = 0.1
    noise_std: float = 0.0

    @property
    def names(self) -> list[str]:
        """The institutions."""
        return [f"institution-{place}" for place in range(len(self.optima))]

    def fixed_point(self, shares: Numbers) -> Numbers:
        """Where deltas cancel if the institutions' weights are as `shares`: the mean of the optima by share and gain."""
        pull = shares[:, None] * self.gains
        found: Numbers = (pull * self.optima).sum(axis=0) / pull.sum(axis=0)
        return found

    @property
    def optimum(self) -> Numbers:
        """The fixed point by share of the data."""
        return self.fixed_point(np.array(self.examples, dtype=np.float64) / sum(self.examples))

    def error(self, model: Numbers) -> float:
        """The squared distance from the optimum, over the mean squared distance of the institutions' own optima from it."""
        spread = np.square(self.optima - self.optimum).sum(axis=1).mean()
        return float(np.square(model - self.optimum).sum() / spread)


def half_slow(institutions: int, ratio: float) -> Numbers:
    """One second for the first half of the institutions, `ratio` for the others."""
    return np.where(np.arange(institutions) < (institutions + 1) // 2, 1.0, ratio)


def tracers(institutions: int, *, ratio: float, gain: float) -> Quadratics:
    """Equal institutions whose optima are the unit vectors: axis k of any model is how much of it institution k has made.

    The axes of every model add up to 1 from the moment on that the first model, 0, is forgotten.
    """
    same = np.full((institutions, institutions), gain)
    return Quadratics(np.eye(institutions), same, (100,) * institutions, half_slow(institutions, ratio))


def drawn(institutions: int, axes: int, *, ratio: float, gain: float, seed: int) -> Quadratics:
    """Optima from a standard normal, of institutions of equal curvature and size. The slow half's optima lie together, away from
    the fast half's: two standard deviations in the mean along every axis.
    """
    seconds = half_slow(institutions, ratio)
    side = np.where(seconds > 1.0, 1.0, -1.0)[:, None]
    optima = np.random.default_rng(seed).standard_normal((institutions, axes)) + side
    return Quadratics(optima, np.full((institutions, axes), gain), (100,) * institutions, seconds)


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One update as it was settled, and the model after it."""

    arrival: Arrival
    model: Numbers


@dataclass(frozen=True, slots=True, eq=False)
class Course:
    """A federation on a problem under a plan, with every draw by the seed. `rest` is when an institution pauses or leaves."""

    problem: Quadratics
    aggregation: AggregationPlan
    seed: int = 0
    rest: Rest | None = None
    updates_each: int = 10**9
    aggregator: VirtualAggregator = field(init=False)

    def __post_init__(self) -> None:
        plan = Plan(
            task="quadratics",
            task_hash="0" * 64,
            aggregation=self.aggregation,
            defence=Defence(norm_cap=None, gate_tolerance=None, strikes=None),
            privacy=PrivacyPlan(mechanism="none", epsilon=None),
        )
        start = {NAME: np.zeros(self.problem.optima.shape[1], dtype=np.float32)}
        known = dict(zip(self.problem.names, self.problem.examples, strict=True))
        object.__setattr__(self, "aggregator", VirtualAggregator(plan, start, known))

    def steps(self, updates: int) -> Iterator[Step]:
        """So many updates, from version 0 on."""
        problem = self.problem
        noise, times = (np.random.default_rng([self.seed, which]) for which in range(2))

        def seconds(place: int) -> float:
            usual = float(problem.seconds[place])
            return usual * float(times.uniform(1 - problem.variation, 1 + problem.variation))

        def train(place: int, base: Parameters) -> tuple[Delta, PrivacyStatement]:
            delta = problem.gains[place] * (problem.optima[place] - base[NAME])
            noised = delta + problem.noise_std * noise.standard_normal(delta.shape)
            return {NAME: noised.astype(np.float32)}, WITHOUT_NOISE

        timetable = Timetable(seconds) if self.rest is None else Timetable(seconds, self.rest)
        settled = arrivals(self.aggregator, problem.names, timetable, train, updates=self.updates_each, total=updates)
        for arrival in settled:
            yield Step(arrival, self.aggregator.model()[NAME].astype(np.float64))


def periods(problem: Quadratics, count: float) -> int:
    """How many updates all institutions together give while the slowest gives `count`."""
    return round(count * float(problem.seconds.max()) * float((1.0 / problem.seconds).sum()))


def without(problem: Quadratics, places: set[int]) -> Quadratics:
    """The problem of those that stay."""
    stay = [place for place in range(len(problem.optima)) if place not in places]
    return replace(
        problem,
        optima=problem.optima[stay],
        gains=problem.gains[stay],
        examples=tuple(problem.examples[place] for place in stay),
        seconds=problem.seconds[stay],
    )
