"""Who leads: the token elects, the claim fences. Everything that arrives passes here, so that a higher claim is never missed."""

import secrets
import time
from collections import deque
from collections.abc import Callable

import structlog

from aggregator_worker.checkpoint import KEPT_RECORDS
from aggregator_worker.metrics import AggregatorMetrics
from broker_config.streams import LineageReader, publish_claim, told_at
from broker_config.topology import LEAD, LINEAGE
from shared.broker import Broker, Delivery
from shared.errors import BrokerUnavailableError
from shared.messages import Claim, ManifestRecord

STEPS = ("token", "claim")
"""What a taker-over does first. After `claim` the broker has the claim, and nobody has read it back."""
READ_BACK_SECONDS = 60.0

log = structlog.get_logger()


class LeadLostError(BrokerUnavailableError):
    """Another aggregator leads: close without acknowledging, and stand by."""


class StoppedError(Exception):
    """The worker was asked to end."""


class Leadership:
    """One try at leading, over one connection. `stopping` is asked often; `clock` is monotonic; `after_step` hears of STEPS."""

    def __init__(
        self,
        broker: Broker,
        *,
        claimant: str,
        stopping: Callable[[], bool],
        after_step: Callable[[str], None] = lambda step: None,
        metrics: AggregatorMetrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.metrics = metrics or AggregatorMetrics()
        self.reader = LineageReader(broker, on_record=self._remember)
        self.recent: deque[ManifestRecord] = deque(maxlen=KEPT_RECORDS)
        self.epoch = 0
        self._broker = broker
        self._claimant = f"{claimant}-{secrets.token_hex(4)}"
        self._stopping = stopping
        self._after_step = after_step
        self._clock = clock
        self._token: Delivery | None = None
        self._token_since = 0.0
        self._waiting: deque[Delivery] = deque()

    def take_token(self) -> None:
        """Waits for the token, then reads the lineage. Raises StoppedError when asked to end."""
        self._broker.consume(LEAD, prefetch=1)
        log.info("standing by", queue=LEAD)
        self._pump(1.0)  # where nobody leads the token comes at once, and there is nothing to stand by for
        while self._token is None:
            self.metrics.stands_by()
            self._pump(1.0)
        self.metrics.takes_over()
        self._after_step("token")
        self.reader.catch_up(all_bases=True)

    def claim(self) -> None:
        """Claims the next epoch and folds the lineage up to that claim.

        Raises LeadLostError when another claim of the same or a higher epoch came first.
        """
        head, lineage = self.reader.current()
        run_id, after = head.manifest.run_id, self.reader.read_to
        claim = Claim(run_id=run_id, epoch=lineage.epoch + 1, claimant=self._claimant, after=after)
        publish_claim(self._broker, claim)
        self._after_step("claim")
        self._read_until(lambda: self.epoch > 0, "claim")

    def receive(self, timeout_seconds: float) -> Delivery | None:
        """The next delivery that is not about leading. Raises LeadLostError once a higher claim was read."""
        if self._waiting:
            return self._waiting.popleft()
        self._pump(timeout_seconds)
        return self._waiting.popleft() if self._waiting else None

    def read_back(self, record: ManifestRecord) -> None:
        """Returns once the record is the lineage's head with no higher claim before it; other deliveries wait meanwhile."""
        self._read_until(lambda: self._holds(record), "manifest")

    def _read_until(self, done: Callable[[], bool], what: str) -> None:
        deadline = self._clock() + READ_BACK_SECONDS
        while not done():
            self._pump(1.0, updates=False)
            if self._clock() > deadline:
                raise BrokerUnavailableError(f"a confirmed {what} did not come back from the lineage within a minute")

    def _holds(self, record: ManifestRecord) -> bool:
        head = self.reader.lineage.head
        return head is not None and head.hash == record.hash and head.epoch == record.epoch

    def refresh_token(self, older_than_seconds: float) -> None:
        """Gives the token back and, as its single active consumer, gets it again: the broker must not think us dead."""
        if self._token is not None and self._clock() - self._token_since > older_than_seconds:
            self._broker.requeue(self._token)
            self._token_since = self._clock()

    def _pump(self, timeout_seconds: float, *, updates: bool = True) -> None:
        self.metrics.vitals.beat()
        if self._stopping():
            raise StoppedError
        delivery = self._broker.receive(timeout_seconds, updates=updates)
        if delivery is None:
            return
        if delivery.queue == LEAD:
            self._token, self._token_since = delivery, self._clock()
        elif delivery.queue == LINEAGE:
            self._fold(delivery)
        else:
            self._waiting.append(delivery)

    def _remember(self, record: ManifestRecord, delivery: Delivery) -> None:
        self.metrics.reads(record, at_seconds=told_at(delivery))
        if self.recent and self.recent[-1].hash != record.manifest.previous:
            self.recent.clear()  # the reader began again, further back
        self.recent.append(record)

    def _fold(self, delivery: Delivery) -> None:
        verdict = self.reader.take(delivery)
        self._broker.ack(delivery)
        headers = delivery.message.headers
        if delivery.message.kind != "claim":
            return
        if headers.get("claimant") == self._claimant:
            if verdict != "claim":
                raise LeadLostError("another aggregator claimed this epoch first")
            self.epoch = self.reader.lineage.epoch
        elif self.epoch and self.reader.lineage.epoch > self.epoch:
            raise LeadLostError("another aggregator claimed a higher epoch")
