"""An asynchronous federation under virtual time: the aggregator's own core, real trainings, and nobody waits for a clock.

As in a real run: admission, weights, versions, buffer and longest wait, who may train on what and when, budgets, and the numbers
in which updates travel. Not as in one: the network and the aggregator take no time, nothing is lost on the way but what an
institution leaves unfinished, a refusal is known at once, and noise comes from seeded generators.
"""

import heapq
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np

from client_worker.pacing import wait_seconds
from client_worker.standing import LONGEST_PAUSE_SECONDS, SAME_MODEL_PAUSE_SECONDS
from shared.messages import encode_model
from shared.plan import Plan
from shared.tasks.metrics import evaluate
from shared.tasks.models import initial_parameters
from simulator.plans import plan_of
from simulator.population import Population, draw, random_of
from simulator.results import Point, RunResult
from simulator.scenario import Scenario, Variant
from simulator.senders import Senders, gate_of
from simulator.tally import Tally
from simulator.timing import DrawnTiming, Timing
from simulator.trainings import Trainings
from simulator.vectorised import BatchTrainer, trainer_for
from simulator.virtual import RUN_ID, VirtualAggregator


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A scenario and its population, which all its plans are tried on."""

    scenario: Scenario
    population: Population


def prepare(scenario: Scenario, folder: Path = Path()) -> Prepared:
    """Reads or draws the rows; relative paths begin at `folder`. Raises SettingsError or DataError."""
    return Prepared(scenario, draw(scenario.within(folder)))


def run(prepared: Prepared, variant: Variant, *, timing: Timing | None = None, trainer: BatchTrainer | None = None) -> RunResult:
    """One plan from version 0 to the end. The same arguments give the same bits.

    `timing` and `trainer` replace what the scenario says of speeds and what its task says of training.
    """
    scenario, population = prepared.scenario, prepared.population
    plan = plan_of(scenario.plan, variant, population.spec, institutions=len(population.institutions))
    senders = Senders(plan, population, poison=scenario.population.poison.factor)
    trainings = [each.training for each in population.institutions]
    usual = [each.usual_seconds for each in population.institutions]
    return _Run(
        prepared,
        plan,
        senders,
        timing or DrawnTiming(scenario.population, usual, seed=scenario.seed),
        trainer or trainer_for(population.spec, trainings, seed=scenario.seed, private=senders.noise_multiplier is not None),
    ).result(variant.name)


def compare(scenario: Scenario) -> list[RunResult]:
    """Every plan of a scenario on the same institutions, rows, speeds and absences."""
    prepared = prepare(scenario)
    return [run(prepared, variant) for variant in scenario.variants]


class Kind(IntEnum):
    """What happens; at the same moment in this order."""

    ARRIVES = 0
    """An update."""
    DUE = 1
    """A version, though the buffer is not full: something has waited for as long as the plan allows."""
    LOOKS = 2
    """An institution looks whether it may train."""


class Event(NamedTuple):
    """`turn` tells a place's newest event from those that something else has overtaken; of DUE it is the version."""

    seconds: float
    kind: Kind
    place: int
    turn: int


@dataclass(slots=True)
class _Course:
    """How far an institution is. `base` is the version of its last training, -1 before the first."""

    turn: int = 0
    begun: int = 0
    base: int = -1
    begun_at: float = 0.0
    pause_seconds: float = 0.0


class _Run:
    """The event loop. `_unsettled` wait for the version with their update, `_paused` for any new version."""

    def __init__(self, prepared: Prepared, plan: Plan, senders: Senders, timing: Timing, trainer: BatchTrainer) -> None:
        self._scenario, self._population, self._plan = prepared.scenario, prepared.population, plan
        self._senders, self._timing = senders, timing
        self._trainings = Trainings(trainer, senders.settings)
        institutions = prepared.population.institutions
        initial = initial_parameters(prepared.population.spec, prepared.scenario.seed)
        units = {each.name: each.training.units for each in institutions}
        self._aggregator = VirtualAggregator(plan, initial, units, gate=gate_of(prepared.population))
        self._model_bytes = encode_model(RUN_ID, initial, plan.broadcast).size
        self._tally = Tally(institutions)
        self._courses = [_Course() for _ in institutions]
        self._events: list[Event] = []
        self._unsettled: set[int] = set()
        self._paused: set[int] = set()
        self._points: list[Point] = []
        self._now = 0.0

    def result(self, name: str) -> RunResult:
        """Runs to the end."""
        self._judge()
        for place in range(len(self._courses)):
            self._look(place)
        ended = self._until_the_end()
        if not self._plan.aggregation.exact_buffer:
            self._aggregator.commit()
        if (self._points[-1].version, self._points[-1].updates) != (self._aggregator.version, self._tally.updates):
            self._judge()
        rule = self._plan.aggregation.rule
        return RunResult(
            scenario=self._scenario.name,
            name=name,
            rule=rule,
            buffer_size=self._plan.aggregation.buffer_size,
            metric=self._population.spec.first_metric,
            points=tuple(self._points),
            contributions=self._tally.contributions(rule),
            outcomes=dict(sorted(self._tally.outcomes.items())),
            ended=ended,
            noise_multiplier=self._senders.noise_multiplier,
            parameters={key: np.array(array) for key, array in self._aggregator.model().items()},
        )

    def _until_the_end(self) -> str:
        """Why the run is over."""
        ending = self._scenario.ending
        while self._events:
            event = heapq.heappop(self._events)
            if ending.seconds is not None and event.seconds > ending.seconds:
                self._now = ending.seconds
                return f"{ending.seconds:g} virtual seconds are over"
            self._now = event.seconds
            self._happen(event)
            if ending.updates is not None and self._tally.updates >= ending.updates:
                return f"{ending.updates} updates have arrived"
            if ending.versions is not None and self._aggregator.version >= ending.versions:
                return f"{ending.versions} versions are made"
        return "no institution has anything more to give"

    def _happen(self, event: Event) -> None:
        if event.kind is Kind.DUE:
            if event.turn == self._aggregator.version and self._aggregator.commit():
                self._renew()
        elif event.turn == self._courses[event.place].turn:
            if event.kind is Kind.ARRIVES:
                self._receive(event.place)
            else:
                self._look(event.place)

    def _look(self, place: int) -> None:
        """The institution begins a training now, or looks again when it may."""
        self._paused.discard(place)
        course = self._courses[place]
        there = None if course.begun >= self._plan.local.updates else self._timing.there_from(place, self._now)
        if there is None:
            return
        paused_until = course.begun_at + course.pause_seconds if course.base == self._aggregator.version else 0.0
        when = max(there, self._now + self._pace_seconds(place), paused_until)
        if when <= self._now:
            self._begin(place)
            return
        if paused_until > self._now:
            self._paused.add(place)
        self._follow(place, when, Kind.LOOKS)

    def _pace_seconds(self, place: int) -> float:
        local, course = self._plan.local, self._courses[place]
        if not local.horizon_seconds:
            return 0.0
        shift = float(random_of(self._scenario.seed, "pace", place, course.begun).random())
        return wait_seconds(local, done=course.begun, opened_at=0.0, last_begun_at=course.begun_at, now=self._now, draw=shift)

    def _begin(self, place: int) -> None:
        course, version = self._courses[place], self._aggregator.version
        again = course.base == version
        course.pause_seconds = min(2 * course.pause_seconds, LONGEST_PAUSE_SECONDS) if again else SAME_MODEL_PAUSE_SECONDS
        course.base, course.begun_at = version, self._now
        self._tally.bytes_down += 0 if again else self._model_bytes
        end = self._timing.end_of(place, self._now)
        if end.arrives:
            model = self._aggregator.model()
            self._trainings.begin(place, course.begun, version=version, model=model, arrives_at=end.seconds)
        course.begun += 1
        self._follow(place, end.seconds, Kind.ARRIVES if end.arrives else Kind.LOOKS)

    def _follow(self, place: int, seconds: float, kind: Kind) -> None:
        course = self._courses[place]
        course.turn += 1
        heapq.heappush(self._events, Event(seconds, kind, place, course.turn))

    def _receive(self, place: int) -> None:
        base, delta = self._trainings.arrive(place)
        if not delta:
            self._tally.outcomes["not finite"] += 1
            return
        before = self._aggregator.version
        sent = self._senders.sent(place, delta, number=self._courses[place].begun)
        settlement = self._aggregator.receive(
            self._population.institutions[place].name, base_version=base, delta=sent.delta, privacy=sent.statement
        )
        self._tally.settled(place, settlement, size_bytes=sent.size_bytes)
        if self._aggregator.version > before:
            self._unsettled.add(place)
            self._renew()
        elif settlement.outcome != "aggregated":
            self._look(place)
        else:
            self._wait(place)

    def _wait(self, place: int) -> None:
        """The update is in the buffer, and its institution waits until it is settled."""
        if not self._unsettled:
            longest = self._plan.aggregation.max_wait_seconds
            heapq.heappush(self._events, Event(self._now + longest, Kind.DUE, -1, self._aggregator.version))
        self._unsettled.add(place)

    def _renew(self) -> None:
        """There is a new version."""
        oldest = self._trainings.oldest_base if self._plan.aggregation.rule == "latest-model" else None
        self._aggregator.release(self._aggregator.version if oldest is None else oldest)
        if self._tally.updates >= self._points[-1].updates + self._scenario.evaluation.every_updates:
            self._judge()
        woken = sorted(self._unsettled | self._paused)
        self._unsettled.clear()
        self._paused.clear()
        for place in woken:
            self._look(place)

    def _judge(self) -> None:
        tally, model = self._tally, self._aggregator.model()
        figures = evaluate(self._population.spec, model, self._population.held_out)
        version = self._aggregator.version
        self._points.append(Point(self._now, tally.updates, version, tally.bytes_up, tally.bytes_down, figures))
