"""An asynchronous federation in one process under virtual time: the aggregator's own core, without broker or waiting.

For comparison runs. What differs from the real thing: durations are given, and nothing is lost.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from client_worker.compact import compacted
from client_worker.mechanism import local_training, statement_of
from client_worker.privacy import calibrate_noise_multiplier
from client_worker.randomness import SecureRandom
from client_worker.training import LocalTrainer
from shared.compact import Delta
from shared.messages import PrivacyStatement
from shared.noise import noise_std
from shared.parameters import Array, Parameters, copy
from shared.plan import AggregationPlan, LocalPlan, Plan, PrivacyPlan, StalenessRule
from shared.tasks.features import Dataset
from shared.tasks.models import initial_parameters
from shared.tasks.spec import TaskSpec
from simulator.virtual import VirtualAggregator

WITHOUT_NOISE = PrivacyStatement(mechanism="none")


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """An institution with its rows and the virtual seconds that one local training takes it."""

    id: str
    training: Dataset
    duration_seconds: float = 1.0


@dataclass(frozen=True, slots=True)
class Options:
    """Epsilon None means no noise. `updates` is each one's most, `total` where the run ends; None is the task's, or all.

    `aggregation` None means the default rule with what the task suggests. The two below it stand above either.
    """

    epsilon: float | None = 3.0
    target_delta: float = 1e-5
    seed: int = 0
    updates: int | None = None
    total: int | None = None
    aggregation: AggregationPlan | None = None
    buffer_size: int | None = None
    server_learning_rate: float | None = None


@dataclass(frozen=True, slots=True)
class Arrival:
    """One update as it was settled. `weight` is 0 where it was refused."""

    institution: str
    seconds: float
    base_version: int
    staleness: int
    weight: float


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """The last model, what was folded on the way to it, and the noise multiplier (std / clipping norm) of every training."""

    parameters: dict[str, Array]
    arrivals: tuple[Arrival, ...]
    noise_multiplier: float | None


def _at_once(_place: int, _now: float) -> float:
    return 0.0


@dataclass(frozen=True, slots=True)
class Timetable:
    """Virtual seconds, asked for by an institution's place: how long its next training takes, and how long it rests before.

    Rests are asked for with the present time; infinity is a leave for ever. The newest model is taken after the rest.
    """

    training_seconds: Callable[[int], float]
    rest_seconds: Callable[[int, float], float] = _at_once


Training = Callable[[int, Parameters], tuple[Delta, PrivacyStatement]]
"""Place and base model to what the institution sends."""


def arrivals(
    aggregator: VirtualAggregator, names: Sequence[str], timetable: Timetable, train: Training, *, updates: int, total: int
) -> Iterator[Arrival]:
    """Each update as it is settled, in order of time, until each institution has given `updates` of them, or all `total`.

    The last version is made of whatever is left in the buffer.
    """
    under_way = _UnderWay(aggregator, timetable)
    given = [0] * len(names)
    for place in range(len(names)):
        under_way.begin(place, now=0.0)
    while sum(given) < total and under_way.events:
        seconds, place, base = under_way.next_end()
        delta, privacy = train(place, aggregator.model(base))
        settled = aggregator.receive(names[place], base_version=base, delta=delta, privacy=privacy)
        given[place] += 1
        if given[place] < updates:
            under_way.begin(place, now=seconds)
        aggregator.release(under_way.oldest_base)
        yield Arrival(names[place], seconds, base, settled.staleness, float.fromhex(settled.weight))
    aggregator.commit()


class _UnderWay:
    """Trainings and rests as (seconds at their end, place, base version), the first to end first. A rest has no base: -1."""

    def __init__(self, aggregator: VirtualAggregator, timetable: Timetable) -> None:
        self._aggregator = aggregator
        self._timetable = timetable
        self.events: list[tuple[float, int, int]] = []

    def begin(self, place: int, *, now: float) -> None:
        """The institution rests if it is to; otherwise it takes the newest model and trains."""
        rest = self._timetable.rest_seconds(place, now)
        if rest == 0.0:
            self._train(place, now)
        elif rest < math.inf:
            heappush(self.events, (now + rest, place, -1))

    def _train(self, place: int, now: float) -> None:
        heappush(self.events, (now + self._timetable.training_seconds(place), place, self._aggregator.version))

    def next_end(self) -> tuple[float, int, int]:
        """The next training that ends; rests that end before are trainings by then."""
        seconds, place, base = heappop(self.events)
        while base < 0:
            self._train(place, seconds)
            seconds, place, base = heappop(self.events)
        return seconds, place, base

    @property
    def oldest_base(self) -> int:
        """The oldest version that a training still goes back to."""
        return min((base for _, _, base in self.events if base >= 0), default=self._aggregator.version)


def simulate(spec: TaskSpec, members: Sequence[Member], options: Options, *, random: SecureRandom | None = None) -> Run:
    """Runs until every institution has given its updates or `total` are settled.

    With a `random` of a fixed key the same arguments give the same bits; otherwise only the schedule is the same.
    """
    sigma, plan = _noise_multiplier(spec, options), plan_of(spec, options)
    trainer = LocalTrainer(spec, device="cpu", private=sigma is not None, random=random)

    def train(place: int, base: Parameters) -> tuple[Delta, PrivacyStatement]:
        rows = members[place].training
        return _sent(trainer.local_update(base, rows, local_training(plan, sigma, rows.units)), plan, sigma, rows.units)

    aggregator = VirtualAggregator(
        plan, initial_parameters(spec, options.seed), {member.id: member.training.units for member in members}
    )
    updates = options.updates or spec.training.updates
    settled = arrivals(
        aggregator,
        [member.id for member in members],
        Timetable(lambda place: members[place].duration_seconds),
        train,
        updates=updates,
        total=options.total or updates * len(members),
    )
    folded = tuple(settled)
    return Run(copy(aggregator.model()), folded, sigma)


def _noise_multiplier(spec: TaskSpec, options: Options) -> float | None:
    if options.epsilon is None:
        return None
    steps = spec.training.steps * (options.updates or spec.training.updates)
    return calibrate_noise_multiplier(options.epsilon, options.target_delta, spec.training.sample_rate, steps)


def plan_of(spec: TaskSpec, options: Options) -> Plan:
    """As far as aggregation and local training go."""
    training = spec.training
    return Plan(
        task=spec.name,
        task_hash=spec.hash,
        aggregation=_aggregation(spec, options),
        local=LocalPlan(
            steps=training.steps,
            sample_rate=training.sample_rate,
            learning_rate=training.learning_rate,
            updates=options.updates or training.updates,
        ),
        privacy=PrivacyPlan(
            mechanism="none" if options.epsilon is None else "dp-sgd",
            epsilon=options.epsilon,
            target_delta=options.target_delta,
            clipping_norm=training.clipping_norm,
        ),
        update_encoding=spec.transport.updates,
    )


def _aggregation(spec: TaskSpec, options: Options) -> AggregationPlan:
    suggested = spec.aggregation
    plan = options.aggregation or AggregationPlan(
        rule=suggested.rule,
        staleness=StalenessRule(function=suggested.staleness_function, exponent=suggested.staleness_exponent),
        buffer_size=suggested.buffer_size,
        server_learning_rate=suggested.rate_for(suggested.rule),
    )
    chosen = {"buffer_size": options.buffer_size, "server_learning_rate": options.server_learning_rate}
    return plan.model_copy(update={name: value for name, value in chosen.items() if value is not None})


def _sent(delta: Parameters, plan: Plan, sigma: float | None, units: int) -> tuple[Delta, PrivacyStatement]:
    """The delta as the aggregator would read it, and what its institution says of it."""
    if sigma is None:
        return compacted(delta, plan.update_encoding, None), WITHOUT_NOISE
    statement = statement_of(plan, sigma, epsilon_spent=0.0, unit="record")
    return compacted(delta, plan.update_encoding, noise_std(statement, plan, units)), statement
