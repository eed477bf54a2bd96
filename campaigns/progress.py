"""An eye on the lineage while a campaign runs: who was settled, when, and who leads."""

import threading
import time
from typing import NamedTuple

from broker_config.connection import ConnectionSettings, connect
from broker_config.topology import LINEAGE
from campaigns.wire import Chain, Stored
from shared.errors import BrokerUnavailableError, TopologyError

_RETRY_SECONDS = 0.2


class Step(NamedTuple):
    """One settlement; `at` is this process's monotonic clock."""

    at: float
    pseudonym: str
    epoch: int


class Progress:
    """Follows the lineage on a thread of its own, over the broker's own ports, whatever happens to the broker."""

    def __init__(self, settings: ConnectionSettings) -> None:
        self.steps: list[Step] = []
        self.chain = Chain()
        self._settings = settings
        self._next_offset = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)

    def __enter__(self) -> "Progress":
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stopping.set()
        self._thread.join()

    def since(self, at: float, *, pseudonym: str | None = None, above_epoch: int = 0) -> Step | None:
        """The first settlement after a time: of one institution, or of a later leader, where that is asked for."""
        for step in reversed(self.steps):
            if step.at <= at:
                break
        else:
            step = None
        steps = self.steps[self.steps.index(step) + 1 :] if step is not None else self.steps
        return next((each for each in steps if pseudonym in (None, each.pseudonym) and each.epoch > above_epoch), None)

    @property
    def follows(self) -> bool:
        """Whether the thread is still at it; what ended it was printed."""
        return self._thread.is_alive()

    @property
    def phase(self) -> str:
        """As the head says."""
        return str(self.chain.links[-1].manifest["phase"]) if self.chain.links else ""

    def _follow(self) -> None:
        while not self._stopping.is_set():
            try:
                self._read()
            except (BrokerUnavailableError, TopologyError):  # a node that is being started has no stream yet
                self._stopping.wait(_RETRY_SECONDS)

    def _read(self) -> None:
        broker = connect(self._settings, name="campaign/progress")
        try:
            broker.consume(LINEAGE, prefetch=64, start=self._next_offset)
            while not self._stopping.is_set():
                delivery = broker.receive(0.1)
                if delivery is None:
                    continue
                broker.ack(delivery)
                if (delivery.offset or 0) >= self._next_offset:
                    self._next_offset = (delivery.offset or 0) + 1
                    self._take(Stored(delivery.message.kind, delivery.message.headers, delivery.message.body))
        finally:
            broker.close()

    def _take(self, message: Stored) -> None:
        link = self.chain.take(message)
        if link is not None:
            at = time.monotonic()
            self.steps += [Step(at, each["institution"], link.epoch) for each in link.manifest["settled"]]
            del self.chain.links[:-1]  # only the head is asked for, and a soak makes very many
