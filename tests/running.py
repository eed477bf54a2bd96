"""A federation while it runs: a leader and workers on threads, institutions played by hand, and an eye on the lineage."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from aggregator_worker import worker as aggregator_worker
from aggregator_worker.aggregation import fold_in_place
from aggregator_worker.term import TermSettings
from broker_config.streams import LineageReader, fetch_blob, publish_claim, publish_record
from broker_config.topology import MODEL, OPERATIONS, update_queue
from client_worker import worker as client_worker
from client_worker.compact import compacted
from client_worker.ledger import Ledger
from client_worker.local_work import LocalData, LocalWork, Member
from client_worker.mechanism import LocalTraining
from client_worker.policy import Policy
from shared import messages, parameters
from shared.broker import Broker, Message
from shared.chunks import split
from shared.compact import Scaled, widened
from shared.messages import BlobName, Entry, Location, ManifestRecord, Operation, Settlement, Update
from shared.noise import noise_std
from shared.parameters import Parameters
from shared.plan import Plan
from tests.builders import NAMES, RUN, SECRET, a_claim, a_manifest, a_statement, an_update, array, as_messages, name_of

ZERO = {"w": array(0, 0, 0)}
TARGETS = {"bank-a": 1.0, "bank-b": 2.0, "bank-c": 6.0, "bank-d": 9.0}
EXAMPLES = {"bank-a": 100, "bank-b": 300, "bank-c": 600, "bank-d": 200}
PATIENCE_SECONDS = 40.0


class Server(Protocol):
    """What connects: one of the two brokers under test."""

    def connect(self, user: str) -> Broker: ...


def half_way(institution: str, model: Parameters) -> dict[str, Any]:
    """The toy training: half of the way from the model to the institution's target, in float32."""
    return {name: ((TARGETS[institution] - array) * np.float32(0.5)).astype(np.float32) for name, array in model.items()}


def begin(
    server: Server,
    plan: Plan,
    members: Sequence[str] = NAMES,
    *,
    model: Parameters = ZERO,
    table: Mapping[str, Entry] | None = None,
) -> None:
    """Version 0 on empty streams, without the second that `aggregator_worker.genesis` takes to be sure that they are."""
    operator = server.connect("operator")
    publish_claim(operator, a_claim(1))
    content = messages.encode_model(RUN, model, plan.broadcast)
    blob = BlobName(hash=content.hash, size=content.size)
    chunks = list(split(content, kind="model", run_id=RUN, identity=blob.hash, chunk_bytes=plan.limits.chunk_bytes))
    for chunk in chunks:
        operator.publish(MODEL, chunk)
    manifest = a_manifest(model=blob, plan=plan, plan_hash=plan.hash, table=dict(table or members_table(members)))
    publish_record(operator, messages.manifest_record(1, manifest, Location(offset=0, chunks=len(chunks))))
    operator.close()


def members_table(members: Sequence[str] = NAMES) -> dict[str, Entry]:
    """The table of a beginning."""
    return {name_of(name): Entry(incarnation=1, num_examples=EXAMPLES[name]) for name in members}


@dataclass
class Watch:
    """Reads the lineage as it grows; made right after version 0, it has every record."""

    broker: Broker
    records: list[ManifestRecord] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reader = LineageReader(self.broker, on_record=lambda record, _: self.records.append(record))
        self.reader.catch_up()

    def until(self, look: Callable[[], object], timeout_seconds: float = PATIENCE_SECONDS) -> bool:
        """Whether it becomes true while the lineage is followed."""
        deadline = time.monotonic() + timeout_seconds
        while not look():
            delivery = self.broker.receive(0.05)
            if delivery is not None:
                self.broker.ack(delivery)
                self.reader.take(delivery)
            elif time.monotonic() > deadline:
                return False
        return True

    @property
    def settled(self) -> list[Settlement]:
        """Every settlement, in the order folded."""
        return [each for record in self.records for each in record.manifest.settled]

    def outcomes(self, institution: str) -> list[tuple[int, str]]:
        """Sequence and outcome of one institution's settlements."""
        return [(each.sequence, each.outcome) for each in self.settled if each.institution == name_of(institution)]

    def entry(self, institution: str) -> Entry:
        """The institution's entry at the head."""
        return (self.reader.lineage.table or {})[name_of(institution)]

    @property
    def head(self) -> ManifestRecord:
        """The newest manifest."""
        return self.reader.current()[0]

    def model(self) -> Parameters:
        """The newest model, read from its stream."""
        blob = self.head.manifest.model
        return messages.decode_model(fetch_blob(self.broker, self.head.model_at, blob), max_bytes=blob.size)


def require_each_once(watch: Watch) -> None:
    """P2: every number of every institution is settled exactly once, without a gap, and the watermark is the last."""
    for pseudonym, entry in (watch.reader.lineage.table or {}).items():
        numbers = [each.sequence for each in watch.settled if each.institution == pseudonym]
        assert numbers == list(range(1, entry.watermark + 1))
    versions = [record.manifest.version for record in watch.records]
    assert sorted(set(versions)) == list(range(versions[-1] + 1))
    assert versions == sorted(versions)


def require_replay(watch: Watch, delta_of: Callable[[Settlement, Parameters], Parameters], start: Parameters = ZERO) -> None:
    """P9: recorded order, bases and weights give every version's model to the bit. `delta_of` gets the base as broadcast."""
    plan = watch.reader.lineage.plan or Plan(task="none", task_hash="0" * 64)
    beta = np.float32(plan.aggregation.server_momentum)
    model, bases = parameters.copy(start), {0: parameters.copy(start)}
    momentum = {name: np.zeros_like(array) for name, array in model.items()}
    for record in watch.records[1:]:
        folded = [each for each in record.manifest.settled if each.outcome == "aggregated"]
        if folded and beta:
            momentum = {name: beta * array for name, array in momentum.items()}
        for each in folded:
            factor = float.fromhex(each.weight) * float.fromhex(each.scale)
            fold_in_place(momentum if beta else model, delta_of(each, bases[each.base_version]), factor)
        if folded and beta:
            model = {name: array + momentum[name] for name, array in model.items()}
        content = messages.encode_model(RUN, model, plan.broadcast)
        assert content.hash == record.manifest.model.hash
        bases[record.manifest.version] = messages.decode_model(content.joined(), max_bytes=content.size)


def term_settings(folder: Path, members: Callable[[], list[str]] = lambda: list(NAMES)) -> TermSettings:
    """A leader's settings; it is never asked to stop."""
    return TermSettings(claimant="test", state_folder=folder, run_secret=SECRET, members=members, stopping=lambda: False)


class Leader(AbstractContextManager["Leader"]):
    """An aggregator worker on a thread of this process."""

    def __init__(self, server: Server, folder: Path, **changes: Any) -> None:
        self.failure: BaseException | None = None
        self._stopping = threading.Event()
        settings = replace(term_settings(folder), stopping=self._stopping.is_set, **changes)
        self._thread = threading.Thread(target=self._run, args=(server, settings))

    def _run(self, server: Server, settings: TermSettings) -> None:
        try:
            aggregator_worker.run(lambda: server.connect("aggregator"), settings, self._stopping)
        except BaseException as error:
            self.failure = error
            raise

    def __enter__(self) -> "Leader":
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stopping.set()
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()
        assert self.failure is None


ALLOWS_ANYTHING = Policy(allow_no_privacy="yes, updates may leave without noise", max_epsilon=100.0)


def local_data(institution: str, *, at_least: Callable[[], object] = lambda: time.sleep(0.02), **changes: Any) -> LocalData:
    """The toy task's data; `at_least` is waited for in each training."""

    def train(model: Parameters, _settings: LocalTraining, _stop: Callable[[], bool]) -> Parameters:
        at_least()
        return half_way(institution, model)

    return LocalData(
        **{
            "task_hash": "0" * 64,
            "fingerprint": "data",
            "num_examples": EXAMPLES[institution],
            "train": train,
            "noise_multiplier": lambda plan: 1.25,
            "epsilon": lambda charges, target_delta: 0.5 * len(charges),
            **changes,
        }
    )


def member(institution: str, **changes: Any) -> Member:
    """Who takes part, under a policy that allows anything."""
    fields = {"incarnation": 1, "pseudonym": name_of(institution), "policy": ALLOWS_ANYTHING, "leave_when_finished": True}
    return Member(**{"run_id": RUN, "institution": institution, **fields, **changes})


class Worker(AbstractContextManager["Worker"]):
    """A client worker on a thread of this process; leaving the block asks it to stop."""

    def __init__(self, server: Server, institution: str, folder: Path, *, data: LocalData | None = None, **changes: Any) -> None:
        self.institution = institution
        self.failure: BaseException | None = None
        self._server = server
        self._member = member(institution, **changes)
        self._data = data or local_data(institution)
        self._path = folder / institution / "ledger.sqlite"
        self._stopping = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        who = self._member
        try:
            ledger = Ledger(self._path, run_id=RUN, institution=who.institution, incarnation=who.incarnation)
            work = LocalWork(who, self._data, ledger, self._stopping)
            client_worker.run(lambda: self._server.connect(who.institution), work, self._stopping)
        except BaseException as error:  # noqa: BLE001 - told to the test, whatever it is
            self.failure = error

    def __enter__(self) -> "Worker":
        self.thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stopping.set()
        self.thread.join(PATIENCE_SECONDS)
        assert not self.thread.is_alive()


@dataclass
class Hand:
    """An institution that a test plays by hand."""

    server: Server
    institution: str

    def __post_init__(self) -> None:
        self.broker = self.server.connect(self.institution)
        self.deltas: dict[int, Parameters] = {}

    def send(self, base: ManifestRecord, sequence: int, *values: float, chunk_bytes: int = 2**20, **changes: Any) -> Update:
        """Publishes an update and remembers its delta."""
        update = an_update(self.institution, sequence, base=base, **{"num_examples": EXAMPLES[self.institution], **changes})
        self.deltas[sequence] = {"w": array(*values)}
        for message in as_messages(update, self.deltas[sequence], chunk_bytes=chunk_bytes):
            self.publish(message)
        return update

    def send_scaled(self, base: ManifestRecord, sequence: int, tensor: Scaled) -> None:
        """Publishes an update whose numbers have a scale, in one message."""
        update = an_update(self.institution, sequence, base=base, num_examples=EXAMPLES[self.institution])
        (message,) = as_messages(update, {"w": tensor})
        self.publish(message)

    def publish(self, message: Message) -> None:
        """Publishes anything on its own update queue."""
        self.broker.publish(update_queue(self.institution), message)


def deltas_of(hands: Mapping[str, Hand]) -> Callable[[Settlement, Parameters], Parameters]:
    """For a replay: what the hands sent."""
    by_pseudonym = {name_of(institution): hand for institution, hand in hands.items()}
    return lambda each, _base: by_pseudonym[each.institution].deltas[each.sequence]


def trained(each: Settlement, base: Parameters) -> Parameters:
    """For a replay: what the toy training makes of a base."""
    (institution,) = [name for name in TARGETS if name_of(name) == each.institution]
    return half_way(institution, base)


def sent_under(plan: Plan) -> Callable[[Settlement, Parameters], Parameters]:
    """For a replay: what the toy training makes of a base, as a worker sends it under a plan with noise."""

    def sent(each: Settlement, base: Parameters) -> Parameters:
        (institution,) = [name for name in TARGETS if name_of(name) == each.institution]
        std = noise_std(a_statement(plan), plan, EXAMPLES[institution])
        return widened(compacted(half_way(institution, base), plan.update_encoding, std))

    return sent


def give_order(server: Server, operation: Operation) -> None:
    """Publishes an operator's order."""
    operator = server.connect("operator")
    operator.publish(OPERATIONS, Message(messages.encode("operation", operation), "operation", operation.operation_id))
    operator.close()
