"""What a client worker shows of itself: its loop tells events in values, scrapes read on threads of their own.

Nothing here is of the institution's rows. Trainings are counted by the ledger, so a new start goes on counting; what was
published and settled is counted by the process.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from client_worker.ledger_rows import Totals
from monitoring.figures import Figure, Sample, families, one
from monitoring.vitals import Vitals
from shared.errors import StorageError
from shared.lineage import Lineage
from shared.plan import Plan

TRAINING_BUCKETS = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600)
State = Literal[
    "disconnected",
    "greeting",
    "training",
    "waiting",
    "outside_window",
    "paused",
    "finished",
    "quarantined",
    "plan_refused",
    "budget_spent",
]
STATES: tuple[State, ...] = get_args(State)
OUTCOMES = ("aggregated", "stale", "rejected", "over_budget", "lost", "settled")
"""What became of updates; `settled` is for one of which this process has not read how."""


def _training_seconds() -> Histogram:
    text = "How long the local trainings took that became an update"
    return Histogram("fedqueue_client_training_seconds", text, registry=None, buckets=TRAINING_BUCKETS)


@dataclass(frozen=True, slots=True)
class Work:
    """What the loop knows after a turn: of its ledger and of the newest manifest."""

    version: int = 0
    unsettled: int = 0
    completed: int = 0
    abandoned: int = 0
    epsilon_spent: float = 0.0
    epsilon_budget: float | None = None

    @classmethod
    def of(cls, lineage: Lineage, totals: Totals, *, unsettled: int, is_training: bool) -> "Work":
        """Read off the newest manifest and the ledger; a training under way is neither completed nor abandoned."""
        version = lineage.head.manifest.version if lineage.head else 0
        completed = totals.sealed[0]
        abandoned = max(0, totals.reservations - completed - int(is_training))
        return cls(version, unsettled, completed, abandoned, _spent(totals, lineage.plan), _budget(lineage.plan))


def _spent(totals: Totals, plan: Plan | None) -> float:
    stated = totals.epsilon_spent.get(plan.privacy.target_delta, 0.0) if plan is not None else 0.0
    return max(stated, totals.set_aside)


def _budget(plan: Plan | None) -> float | None:
    return plan.privacy.epsilon if plan is not None and plan.privacy.mechanism != "none" else None


@dataclass(frozen=True, slots=True)
class _Shown:
    """All of it at one moment."""

    state: State
    work: Work
    published: int
    published_bytes: int
    settled: Mapping[str, int]


@dataclass(slots=True, eq=False)
class ClientMetrics(Collector):
    """The loop's events, and what they mean for health and figures."""

    vitals: Vitals = field(default_factory=Vitals)
    training_seconds: Histogram = field(default_factory=_training_seconds)
    _state: State = "disconnected"
    _work: Work = Work()
    _unwritable: str = ""
    _published: int = 0
    _published_bytes: int = 0
    _settled: Counter[str] = field(default_factory=Counter)

    def register(self, registry: CollectorRegistry) -> None:
        """Adds the figures to a registry."""
        registry.register(self)
        registry.register(self.training_seconds)

    @contextmanager
    def session(self) -> Iterator[None]:
        """While inside, it has a connection, or is making one; an error on the way out is why it is not ready."""
        try:
            with self.vitals.hindered_by_errors():
                yield
        except StorageError as error:
            self._unwritable = str(error)
            raise
        finally:
            self._state = "disconnected"

    def greets(self) -> None:
        """It has said hello, and waits to be answered."""
        self._state = "greeting"
        if not self._unwritable:
            self.vitals.not_ready("connected, and waits to be greeted by an aggregator")

    def turns(self, state: State, reason: str, work: Work) -> None:
        """It was greeted, and this is what it is at. Where it could not write it is not ready before it has written again."""
        self._state, self._work = state, work
        if not self._unwritable:
            self.vitals.ready(f"{state.replace('_', ' ')}: {reason}" if reason else state)

    def writes(self) -> None:
        """Something was written to the ledger."""
        self._unwritable = ""

    def trains(self, seconds: float) -> None:
        """A training of so many seconds became an update."""
        self.training_seconds.observe(seconds)

    def publishes(self, size_bytes: int) -> None:
        """The broker has an update whole, for the first time or again."""
        self._published += 1
        self._published_bytes += size_bytes

    def is_settled(self, outcome: str) -> None:
        """The aggregator has settled one of its updates."""
        self._settled[outcome] += 1

    def collect(self) -> Iterator[Metric]:
        """Called at every scrape."""
        shown = _Shown(self._state, self._work, self._published, self._published_bytes, dict(self._settled))
        return families(FIGURES, shown)


def _trainings(shown: _Shown) -> list[Sample]:
    return [(("completed",), float(shown.work.completed)), (("abandoned",), float(shown.work.abandoned))]


FIGURES: tuple[Figure[_Shown], ...] = (
    Figure(
        "fedqueue_client_state",
        "1 for what the worker is at, 0 for the others",
        lambda shown: [((state,), float(state == shown.state)) for state in STATES],
        ("state",),
    ),
    Figure(
        "fedqueue_client_trainings_total",
        "Local trainings by the ledger: completed ones became an update, abandoned ones were charged for nothing",
        _trainings,
        ("outcome",),
    ),
    Figure(
        "fedqueue_client_updates_published_total",
        "Updates that the broker has taken whole, those that were sent again included",
        lambda shown: one(shown.published),
    ),
    Figure(
        "fedqueue_client_published_bytes_total", "Bytes of these updates before TLS", lambda shown: one(shown.published_bytes)
    ),
    Figure(
        "fedqueue_client_updates_settled_total",
        "Updates by what became of them",
        lambda shown: [((outcome,), float(shown.settled.get(outcome, 0))) for outcome in OUTCOMES],
        ("outcome",),
    ),
    Figure(
        "fedqueue_client_unsettled_updates",
        "Updates that wait to be sent or to be settled",
        lambda shown: one(shown.work.unsettled),
    ),
    Figure(
        "fedqueue_client_epsilon_spent",
        "The epsilon that this institution has spent or set aside, at the plan's target delta",
        lambda shown: one(shown.work.epsilon_spent),
    ),
    Figure(
        "fedqueue_client_epsilon_budget",
        "The epsilon that it may spend, by the plan",
        lambda shown: one(shown.work.epsilon_budget),
    ),
    Figure(
        "fedqueue_client_model_version",
        "The newest version of the global model that the worker knows of",
        lambda shown: one(shown.work.version),
    ),
)
