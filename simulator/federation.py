"""An asynchronous federation in one process under virtual time: the aggregator's pure core, without broker or waiting.

For comparison runs. What differs from the real thing: durations are given, nothing is lost, and there is no admission.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from aggregator_worker.aggregation import fold_in_place
from aggregator_worker.rules.staleness import staleness_weight
from client_worker.compact import compacted
from client_worker.mechanism import local_training, statement_of
from client_worker.privacy import calibrate_noise_multiplier
from client_worker.randomness import SecureRandom
from client_worker.training import LocalTrainer
from shared.compact import Delta
from shared.noise import noise_std
from shared.parameters import Array, Parameters, copy
from shared.plan import LocalPlan, Plan, PrivacyPlan, StalenessRule
from shared.tasks.features import Dataset
from shared.tasks.models import initial_parameters
from shared.tasks.spec import TaskSpec


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """An institution with its rows and the virtual seconds that one local training takes it."""

    id: str
    training: Dataset
    duration_seconds: float = 1.0


@dataclass(frozen=True, slots=True)
class Options:
    """Epsilon None means no noise. `updates` is each one's most, `total` where the run ends; None is the task's, or all."""

    epsilon: float | None = 3.0
    target_delta: float = 1e-5
    seed: int = 0
    updates: int | None = None
    total: int | None = None
    buffer_size: int | None = None
    server_learning_rate: float | None = None


@dataclass(frozen=True, slots=True)
class Arrival:
    """One update as it was folded."""

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


def simulate(spec: TaskSpec, members: Sequence[Member], options: Options, *, random: SecureRandom | None = None) -> Run:
    """Runs until every institution has given its updates or `total` are folded.

    With a `random` of a fixed key the same arguments give the same bits; otherwise only the schedule is the same.
    """
    sigma, plan = _noise_multiplier(spec, options), _plan(spec, options)
    trainer = LocalTrainer(spec, device="cpu", private=sigma is not None, random=random)
    federation = _Federation(spec, members, options)
    for due in federation.arrivals_in_order():
        base = federation.versions[due.base_version]
        rows = members[due.place].training
        delta = trainer.local_update(base, rows, local_training(plan, sigma, rows.units))
        federation.receive(due, _sent(delta, plan, sigma, rows.units))
    return Run(federation.model, tuple(federation.folded), sigma)


@dataclass(order=True, slots=True)
class _Due:
    seconds: float
    place: int
    base_version: int


class _Federation:
    """The global model, the versions that trainings under way still need, and who arrives when."""

    def __init__(self, spec: TaskSpec, members: Sequence[Member], options: Options) -> None:
        rule = spec.aggregation
        self._rule = rule
        self._members = members
        self._rate = options.server_learning_rate or rule.server_learning_rate
        self._buffer_size = options.buffer_size or rule.buffer_size
        self._updates = options.updates or spec.training.updates
        self._total = min(options.total or self._updates * len(members), self._updates * len(members))
        self._examples = sum(member.training.units for member in members)
        self._buffered: list[tuple[_Due, Delta]] = []
        self._version = 0
        self.model = initial_parameters(spec, options.seed)
        self.versions = {0: copy(self.model)}
        self.folded: list[Arrival] = []

    def arrivals_in_order(self) -> Iterator[_Due]:
        """Each training as it ends; the institution takes the newest version after it was received."""
        due = [_Due(member.duration_seconds, place, 0) for place, member in enumerate(self._members)]
        given = [0] * len(self._members)
        for _ in range(self._total):
            now = due.pop(due.index(min(due)))
            yield now
            given[now.place] += 1
            if given[now.place] < self._updates:
                due.append(_Due(now.seconds + self._members[now.place].duration_seconds, now.place, self._version))
            needed = {self._version} | {each.base_version for each in due}
            self.versions = {number: model for number, model in self.versions.items() if number in needed}

    def receive(self, due: _Due, delta: Delta) -> None:
        """Folds K updates at a time into the next version; the last ones of a run may be fewer."""
        self._buffered.append((due, delta))
        if len(self._buffered) < min(self._buffer_size, self._total - len(self.folded)):
            return
        self.folded += [self._fold(*update) for update in self._buffered]
        self._buffered.clear()
        self._version += 1
        self.versions[self._version] = copy(self.model)

    def _fold(self, due: _Due, delta: Delta) -> Arrival:
        member, staleness = self._members[due.place], self._version - due.base_version
        rule = StalenessRule(function=self._rule.staleness_function, exponent=self._rule.staleness_exponent)
        damping = staleness_weight(rule, staleness)
        weight = float(np.float32(self._rate * member.training.units / self._examples * damping))
        fold_in_place(self.model, delta, weight)
        return Arrival(member.id, due.seconds, due.base_version, staleness, weight)


def _noise_multiplier(spec: TaskSpec, options: Options) -> float | None:
    if options.epsilon is None:
        return None
    steps = spec.training.steps * (options.updates or spec.training.updates)
    return calibrate_noise_multiplier(options.epsilon, options.target_delta, spec.training.sample_rate, steps)


def _plan(spec: TaskSpec, options: Options) -> Plan:
    """As far as local training goes."""
    training = spec.training
    return Plan(
        task=spec.name,
        task_hash=spec.hash,
        local=LocalPlan(steps=training.steps, sample_rate=training.sample_rate, learning_rate=training.learning_rate),
        privacy=PrivacyPlan(
            mechanism="none" if options.epsilon is None else "dp-sgd",
            epsilon=options.epsilon,
            target_delta=options.target_delta,
            clipping_norm=training.clipping_norm,
        ),
        update_encoding=spec.transport.updates,
    )


def _sent(delta: Parameters, plan: Plan, sigma: float | None, units: int) -> Delta:
    """The delta as the aggregator would read it."""
    if sigma is None:
        return compacted(delta, plan.update_encoding, None)
    statement = statement_of(plan, sigma, epsilon_spent=0.0, unit="record")
    return compacted(delta, plan.update_encoding, noise_std(statement, plan, units))
