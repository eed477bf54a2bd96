"""A desk over a broker, where a test plays the institutions, the operator and the clock."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aggregator_worker.desk import Desk
from aggregator_worker.intake import Intake
from aggregator_worker.model_uploads import ModelUploads
from aggregator_worker.orders import Orders
from broker_config.streams import publish_claim, publish_record
from broker_config.topology import DEAD_LETTERS, OPERATIONS, update_queue
from shared import messages
from shared.broker import Delivery, Message
from shared.messages import Entry, Hello, Letter, ManifestRecord, Operation, Report, Standing, Update
from shared.parameters import Parameters
from shared.plan import Plan
from tests.builders import (
    NAMES,
    RUN,
    a_claim,
    a_federation,
    a_plan,
    an_operation,
    an_update,
    array,
    as_messages,
    commit,
    name_of,
    small_limits,
)
from tests.conftest import BrokerServer, MemoryServer

TABLE = {name: Entry(incarnation=1, num_examples=examples) for name, examples in zip(NAMES, (100, 300, 600), strict=True)}
PLAN = a_plan({"max_wait_seconds": 10.0, "buffer_size": 2, "exact_buffer": True}, limits=small_limits())


@dataclass
class Counter:
    """A desk over a broker, in memory if none is given; time passes when a test says so."""

    folder: Path
    server: BrokerServer = field(default_factory=MemoryServer)
    plan: Plan = PLAN
    model: Parameters = field(default_factory=lambda: {"w": array(0, 0)})
    wait_seconds: float = 0.0
    now: float = 1000.0
    reports: list[Report] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.models = ModelUploads(self.folder)
        self.federation = a_federation(self.model, self.plan, TABLE)
        self.broker = self.server.connect("aggregator")
        publish_claim(self.broker, a_claim(1))
        publish_record(self.broker, self.federation.head)
        for name in NAMES:
            self.broker.consume(update_queue(name), prefetch=100)
        self.broker.consume(OPERATIONS, prefetch=8)
        self.desk = Desk(
            self.broker,
            self.federation,
            Intake(self.folder, max_bytes=self.plan.limits.update_bytes),
            name_of,
            on_report=self.reports.append,
            clock=lambda: self.now,
            longest_wait_seconds=40.0,
        )

    def send(self, body: Update | Hello | Standing, *values: float, as_user: str = "", chunk_bytes: int = 2**20) -> None:
        """Publishes as an institution does and lets the desk take it."""
        delta = {"w": array(*values)} if values else None
        for message in as_messages(body, delta, chunk_bytes=chunk_bytes):
            self.publish(message, as_user or body.institution)

    def publish(self, message: Message, user: str) -> None:
        """Puts one message into a user's own queue and lets the desk take it."""
        self.server.connect(user).publish(update_queue(user), message)
        self.desk.take(self.received(), user)

    def received(self) -> Delivery:
        """What has arrived, and must have."""
        delivery = self.broker.receive(self.wait_seconds)
        assert delivery is not None
        return delivery

    def order(self, number: int, kind: str = "pause") -> None:
        """An order of the operator, taken by the desk."""
        self.follow(an_operation(kind, number))

    def follow(self, operation: Operation) -> Operation | None:
        """Publishes an order as the operator does and lets the desk take it."""
        body = messages.encode("operation", operation)
        self.server.connect("operator").publish(OPERATIONS, Message(body, "operation", "x"))
        return Orders(self.desk, self.models, self.commit).take(self.received())

    def requeue(self, *letters: Message) -> list[tuple[bool, str]]:
        """Orders letters to be taken back; whether each order was applied, and why not."""
        before = len(self.federation.pending.operations)
        for letter in letters:
            self.follow(requeue_order(letter))
        return [(each.applied, each.reason) for each in self.federation.pending.operations[before:]]

    def commit(self) -> ManifestRecord:
        """Settles what is pending, as the worker does."""
        version = self.federation.head.manifest.version
        record = commit(self.federation)
        publish_record(self.broker, record)
        for delivery in self.desk.settled:
            self.broker.ack(delivery)
        self.desk.committed(new_version=record.manifest.version > version)
        return record

    def dead_letters(self) -> list[Message]:
        """Everything in the dead letters, which stays there."""
        return [each.message for each in self._read(DEAD_LETTERS)]

    def _read(self, queue: str) -> Iterator[Delivery]:
        reader = self.server.connect("operator")
        reader.consume(queue, prefetch=100)
        while (delivery := reader.receive(self.wait_seconds)) is not None:
            yield delivery
        reader.close()

    def unacknowledged(self) -> int:
        """What the memory broker has delivered and not seen settled."""
        return sum(len(consumer.unsettled) for consumer in self.broker.consumers)  # type: ignore[attr-defined]

    def entry(self, institution: str = "bank-a") -> Entry:
        """An institution's entry as the next manifest will leave it."""
        return self.federation.table[name_of(institution)]

    def settled(self) -> list[tuple[int, str]]:
        """What the next manifest will settle: numbers and outcomes."""
        return [(each.sequence, each.outcome) for each in self.federation.pending.settled]


def update(counter: Counter, sequence: int = 1, institution: str = "bank-a", **changes: Any) -> Update:
    """An update on the head."""
    return an_update(institution, sequence, base=counter.federation.head, **changes)


def letter_of(message: Message, **changes: Any) -> Letter:
    """A dead letter as the arguments of an order."""
    fields = {"author": str(message.headers["author"]), "kind": message.kind, "message_id": message.message_id}
    return Letter(**{**fields, "headers": dict(message.headers), "body": message.body, **changes})


def requeue_order(message: Message, **changes: Any) -> Operation:
    """The order to take a letter back; `changes` are of the order's own fields."""
    letter = letter_of(message)
    fields = {"run_id": RUN, "operation_id": secrets.token_hex(16), "kind": "requeue", "arguments": letter.model_dump()}
    return Operation(**{**fields, **changes})
