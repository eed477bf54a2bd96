"""Follows the lineage on a thread of its own, as an operator may: a view, never a part of the federation."""

import threading
import time
from collections.abc import Callable

import structlog

from broker_config.reconnect import persist
from broker_config.streams import LineageReader, fetch_model, newest
from broker_config.topology import LINEAGE
from shared.broker import Broker, Delivery
from shared.errors import FederationError
from shared.messages import ManifestRecord
from shared.parameters import Parameters

log = structlog.get_logger()


class Observer:
    """Calls `on_record` for every manifest of the chain from the first record on, and again after a reconnection.

    `failure` is what ended it for good. `connected` is whether it listens at this moment.
    """

    def __init__(self, connect: Callable[[], Broker], on_record: Callable[[ManifestRecord, Delivery], None]) -> None:
        self.failure: FederationError | None = None
        self.connected = False
        self._connect = connect
        self._on_record = on_record
        self._last_at = time.monotonic()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="observer", daemon=True)

    def start(self) -> None:
        """Starts following."""
        self._thread.start()

    def wait_quiet(self, seconds: float) -> None:
        """Returns once nothing came for so long."""
        while (quiet := time.monotonic() - self._last_at) < seconds:
            time.sleep(seconds - quiet)

    def stop(self) -> None:
        """Ends the thread."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            persist(self._follow, self._stopping)
        except FederationError as error:
            self.failure = error

    def _follow(self) -> None:
        broker = self._connect()
        reader = LineageReader(broker, on_record=self._on_record)
        try:
            broker.consume(LINEAGE, prefetch=64, start="first")
            self.connected = True
            while not self._stopping.is_set():
                delivery = broker.receive(0.2)
                if delivery is not None:
                    reader.take(delivery)
                    broker.ack(delivery)
                    self._last_at = time.monotonic()
        finally:
            self.connected = False
            broker.close()


def newest_model(connect: Callable[[], Broker]) -> Parameters:
    """The parameters of the lineage's head."""
    broker = connect()
    try:
        head, _ = newest(broker)
        return fetch_model(broker, head)
    finally:
        broker.close()
