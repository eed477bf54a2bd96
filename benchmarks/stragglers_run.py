"""One federation of `stragglers`, from the order to begin until the target is reached, and what it took.

Everything that is judged is read from the broker: versions from the lineage with the times at which they were published, models
from their stream. While the federation runs, only the newest model is looked at, twice a second;
what counts is judged afterwards.
"""

import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.federation import PATIENCE_SECONDS, TASK_HASH, Federation, founded_on, started
from benchmarks.stragglers_work import Rows, accuracy, first_model, parts, reached, sleeps, split
from broker_config.connection import connect
from broker_config.definitions import OPERATOR
from broker_config.streams import MAX_RECORD_BYTES, last_offset, newest
from broker_config.topology import LINEAGE, MODEL, OPERATIONS
from operator_console.worker_processes import WorkerProcess
from shared import messages
from shared.broker import Broker, Message
from shared.errors import FederationError
from shared.messages import ManifestRecord, Operation
from shared.plan import AggregationPlan, LocalPlan, Plan, PrivacyPlan

INSTITUTIONS = 8
LOOK_SECONDS = 0.5
_MODEL_BYTES = 2**20
_IDLE_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is to be reached and how fast the institutions are. `spread` is the slowest's sleep over the fastest's, in equal
    ratios; None is the benchmark's own list.
    """

    target: float = 0.93
    held: int = 1
    spread: float | None = None
    institutions: int = INSTITUTIONS
    limit_seconds: float = 180.0


@dataclass(frozen=True, slots=True)
class Version:
    """A version as the lineage tells it: when its manifest was published, by the leader's clock, and the updates until then."""

    at_seconds: float
    model: str
    updates: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one federation took; `seconds` is None where the target was not reached within the limit."""

    seconds: float | None
    updates: int
    version: int
    best_accuracy: float


def plan_for(aggregation: AggregationPlan) -> Plan:
    """A plan without noise that never ends."""
    return Plan(
        task="digits",
        task_hash=TASK_HASH,
        aggregation=aggregation,
        local=LocalPlan(updates=10**9),
        privacy=PrivacyPlan(mechanism="none", epsilon=None),
    )


def run(aggregation: AggregationPlan, setting: Setting, *, seed: int) -> Outcome:
    """Founds, runs and judges one federation. `seed` is that of the first model and of how each institution shuffles."""
    train, test = split()
    rows = {f"bank-{i + 1}": train.at(places) for i, places in enumerate(parts(train.digits, setting.institutions))}
    examples = {name: len(each) for name, each in rows.items()}
    with founded_on(plan_for(aggregation), first_model(seed), examples) as federation:
        aggregator = federation.aggregator()
        order(federation, "pause")
        with started(aggregator):
            federation.wait_until_leading(aggregator)
            clients = [
                _client(federation, name, each, pause, seed=100 * seed + number)
                for number, ((name, each), pause) in enumerate(
                    zip(rows.items(), sleeps(setting.institutions, setting.spread), strict=True)
                )
            ]
            with started(*clients):
                wait_until_welcomed(federation, clients)
                order(federation, "resume")
                wait_until_reached(federation, setting, test, [aggregator, *clients])
        return judged(federation, setting, test)


def _client(federation: Federation, name: str, rows: Rows, sleep_seconds: float, *, seed: int) -> WorkerProcess:
    file = federation.folder / f"{name}.npz"
    rows.save(file)
    facts = {"institution": name, "rows": str(file), "sleep_seconds": sleep_seconds, "seed": seed}
    return federation.program("benchmarks.stragglers_institution", name, facts)


def order(federation: Federation, kind: str) -> None:
    """Gives an operator's order."""
    operation = Operation(run_id=federation.run_id, operation_id=secrets.token_hex(16), kind=kind)  # type: ignore[arg-type]
    broker = connect(federation.logins.settings(OPERATOR), name="benchmark/order")
    broker.publish(OPERATIONS, Message(messages.encode("operation", operation), "operation", operation.operation_id))
    broker.close()


def wait_until_welcomed(federation: Federation, clients: Sequence[WorkerProcess]) -> None:
    """Returns once the table echoes the hello of every institution, and a moment later: by then each has read it."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    broker = connect(federation.logins.settings(OPERATOR), name="benchmark/welcome")
    while True:
        _, lineage = newest(broker)
        if all(entry.nonce for entry in (lineage.table or {}).values()):
            break
        for each in clients:
            each.demand_alive()
        if time.monotonic() > deadline:
            raise FederationError(f"not every institution said hello within {PATIENCE_SECONDS:g} s: see {federation.folder}")
        time.sleep(LOOK_SECONDS)
        broker.close()
        broker = connect(federation.logins.settings(OPERATOR), name="benchmark/welcome")
    broker.close()
    time.sleep(2 * LOOK_SECONDS)


def wait_until_reached(federation: Federation, setting: Setting, test: Rows, processes: Sequence[WorkerProcess]) -> None:
    """Returns once the target is reached, or the limit. All versions are read only where the newest one may be the last."""
    deadline = time.monotonic() + setting.limit_seconds
    broker = connect(federation.logins.settings(OPERATOR), name="benchmark/look")
    seen = Seen(broker, test)
    while time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
        for each in processes:
            each.demand_alive()
        if seen.newest() >= setting.target:
            figures = seen.all()
            if reached(figures, target=setting.target, held=setting.held) is not None:
                break
    broker.close()


class Seen:
    """The accuracy of every model in the stream, each worked out once."""

    def __init__(self, broker: Broker, test: Rows) -> None:
        self._broker = broker
        self._test = test
        self._next = 0
        self.by_hash: dict[str, float] = {}

    def newest(self) -> float:
        """The accuracy of the newest model."""
        for delivery in self._broker.read(MODEL, "last", count=1, idle_seconds=_IDLE_SECONDS):
            return self._accuracy(delivery.message.body)
        return 0.0

    def all(self) -> list[float]:
        """Of every model so far, in the order in which they were published."""
        end = last_offset(self._broker, MODEL)
        for delivery in self._broker.read(MODEL, self._next, count=None, idle_seconds=_IDLE_SECONDS):
            self._next = (delivery.offset or 0) + 1
            self.by_hash[str(delivery.message.headers["id"])] = self._accuracy(delivery.message.body)
            if self._next > end:
                break
        return list(self.by_hash.values())

    def _accuracy(self, body: bytes) -> float:
        return accuracy(messages.decode_model(body, max_bytes=_MODEL_BYTES), self._test)


def judged(federation: Federation, setting: Setting, test: Rows) -> Outcome:
    """What the lineage and the models say. The clock starts with the manifest that let training begin."""
    broker = connect(federation.logins.settings(OPERATOR), name="benchmark/judge")
    begun_at, versions = history(_records(broker))
    seen = Seen(broker, test)
    seen.all()
    broker.close()
    figures = [seen.by_hash[version.model] for version in versions]
    place = reached(figures, target=setting.target, held=setting.held)
    if place is None:
        return Outcome(None, versions[-1].updates if versions else 0, len(versions), max(figures, default=0.0))
    return Outcome(versions[place].at_seconds - begun_at, versions[place].updates, place + 1, max(figures))


def _records(broker: Broker) -> Iterable[tuple[float, ManifestRecord]]:
    for delivery in broker.read(LINEAGE, "first", count=None, idle_seconds=_IDLE_SECONDS):
        if delivery.message.kind == "manifest":
            at = int(delivery.message.headers["at_ms"]) / 1000
            yield at, messages.decode_record(delivery.message.body, max_bytes=MAX_RECORD_BYTES)


def history(records: Iterable[tuple[float, ManifestRecord]]) -> tuple[float, list[Version]]:
    """When training was let begin, and every version after that. Raises FederationError where it never was."""
    begun_at: float | None = None
    was_paused, updates = False, 0
    versions: list[Version] = []
    for at, record in records:
        manifest = record.manifest
        if begun_at is None and was_paused and manifest.phase == "running":
            begun_at = at
        was_paused = manifest.phase == "paused"
        folded = sum(each.outcome == "aggregated" for each in manifest.settled)
        updates += folded
        if folded:
            versions.append(Version(at, manifest.model.hash, updates))
    if begun_at is None:
        raise FederationError("the lineage does not say when training was let begin")
    return begun_at, versions
