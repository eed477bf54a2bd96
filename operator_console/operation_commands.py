"""`fedqueue stop | pause | resume`: orders to the aggregator that leads, and what became of them."""

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import typer

from broker_config.connection import connect
from broker_config.definitions import OPERATOR
from broker_config.streams import LineageReader
from broker_config.topology import OPERATIONS
from operator_console.command_options import DEFAULT_FOLDER, Folder
from operator_console.federation_folder import FederationFolder
from shared import codec, messages
from shared.broker import Broker, Delivery, Header, Message
from shared.errors import FederationError
from shared.messages import Entry, ManifestRecord, Operation, OperationOutcome
from shared.plan import Plan

ANSWER_SECONDS = 30.0
Kind = Literal["pause", "resume", "stop", "admit", "remove", "quarantine", "release"]


class NoAnswerError(FederationError):
    """Start an aggregator, or look at its log: nobody followed the order, which waits in its queue."""


class OrderRefusedError(FederationError):
    """The order cannot be followed; the text is the aggregator's reason."""


class OrderDesk:
    """The operator's connection: the federation's table as it stands, and orders to whoever leads."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._outcomes: dict[str, OperationOutcome] = {}
        self._reader = LineageReader(broker, on_record=self._note)
        self._reader.catch_up()

    def _note(self, record: ManifestRecord, _delivery: Delivery) -> None:
        self._outcomes |= {outcome.operation_id: outcome for outcome in record.manifest.operations}

    @property
    def table(self) -> Mapping[str, Entry]:
        """Institutions by pseudonym, removed ones too."""
        return self._reader.lineage.table or {}

    @property
    def plan(self) -> Plan | None:
        """What the federation has agreed to do."""
        return self._reader.lineage.plan

    @property
    def head(self) -> ManifestRecord:
        """The newest manifest."""
        return self._reader.current()[0]

    def give(self, kind: Kind, *, timeout_seconds: float = ANSWER_SECONDS, **arguments: str | int) -> OperationOutcome:
        """Publishes one order and returns what a manifest says of it. Raises NoAnswerError after the timeout."""
        order = Operation(
            run_id=self.head.manifest.run_id, operation_id=secrets.token_hex(16), kind=kind, arguments=dict(arguments)
        )
        return self.give_all([order], timeout_seconds=timeout_seconds)[0]

    def give_all(self, orders: Sequence[Operation], *, timeout_seconds: float = ANSWER_SECONDS) -> list[OperationOutcome]:
        """Publishes orders one after the other and returns what manifests say of each. Raises NoAnswerError after the timeout."""
        for order in orders:
            self._publish(order)
        deadline = time.monotonic() + timeout_seconds
        while any(order.operation_id not in self._outcomes for order in orders):
            self._wait(orders[0].kind, deadline - time.monotonic(), timeout_seconds)
        return [self._outcomes[order.operation_id] for order in orders]

    def _publish(self, order: Operation) -> None:
        headers: dict[str, Header] = {
            "schema": codec.SCHEMA_VERSION,
            "run": order.run_id,
            "id": order.operation_id,
            "order": order.kind,
        }
        self._broker.publish(OPERATIONS, Message(messages.encode("operation", order), "operation", order.operation_id, headers))

    def _wait(self, kind: str, left_seconds: float, timeout_seconds: float) -> None:
        delivery = self._broker.receive(max(0.0, left_seconds))
        if delivery is not None:
            self._reader.take(delivery)
            self._broker.ack(delivery)
        elif left_seconds <= 0:
            raise NoAnswerError(
                f"no aggregator answered the order to {kind} within {timeout_seconds:g} s. It waits in {OPERATIONS} and is "
                "followed as soon as one leads: start fedqueue-aggregator, or see why it does not lead with `fedqueue doctor`"
            )


@contextmanager
def order_desk(folder: FederationFolder) -> Iterator[OrderDesk]:
    """A desk with the operator's login. Raises SettingsError, TopologyError or BrokerUnavailableError where there is none."""
    broker = connect(folder.logins().settings(OPERATOR), name="fedqueue-operator")
    try:
        yield OrderDesk(broker)
    finally:
        broker.close()


def stop(folder: Folder = DEFAULT_FOLDER) -> None:
    """End the run for good: nothing is trained or aggregated afterwards; the model stays on the broker."""
    _order(folder, "stop", "the run is finished")


def pause(folder: Folder = DEFAULT_FOLDER) -> None:
    """Let institutions finish what they train, and then wait for `fedqueue resume`."""
    _order(folder, "pause", "the run is paused; `fedqueue resume` lets it go on")


def resume(folder: Folder = DEFAULT_FOLDER) -> None:
    """Let a paused run go on."""
    _order(folder, "resume", "the run goes on")


def _order(folder: Folder, kind: Kind, done: str) -> None:
    with order_desk(FederationFolder(folder)) as desk:
        outcome = desk.give(kind)
        if not outcome.applied:
            raise OrderRefusedError(f"the aggregator refused to {kind}: {outcome.reason}")
        typer.echo(f"{done}, at version {desk.head.manifest.version}")
