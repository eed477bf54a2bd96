"""What cannot be used: a copy of the first of each institution's in the dead letters, the rest counted; charged to its author."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from aggregator_worker.dead_letters import put_aside, put_aside_whole
from aggregator_worker.intake import Upload
from aggregator_worker.rates import Rates
from shared.broker import Broker, Delivery
from shared.errors import RejectedMessageError
from shared.messages import Entry

log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class Refusals:
    """One institution's garbage must not fill the queue in which the others' letters wait, nor the log."""

    broker: Broker
    rates: Rates
    clock: Callable[[], float]
    on_refused: Callable[[str], None] = lambda institution: None
    _uncopied: Counter[str] = field(default_factory=Counter)

    def note(self, institution: str, delivery: Delivery, error: RejectedMessageError) -> None:
        """Puts a message aside, or counts it. Whoever calls acknowledges it."""
        if self._charge(institution, delivery, error, size=len(delivery.message.body)):
            put_aside(self.broker, delivery, reason=str(error))

    def note_whole(
        self, institution: str, upload: Upload, content: bytes | memoryview, error: RejectedMessageError, *, chunk_bytes: int
    ) -> None:
        """As `note`, for all chunks of an upload together, so that it can be taken back whole."""
        if self._charge(institution, upload.deliveries[-1], error, size=upload.head.size):
            put_aside_whole(self.broker, upload, content, chunk_bytes=chunk_bytes, reason=str(error))

    def _charge(self, institution: str, delivery: Delivery, error: RejectedMessageError, *, size: int) -> bool:
        """Whether a copy is kept. One line of the log for each that is, and one for the first of those that are not."""
        self.on_refused(institution)
        now = self.clock()
        self.rates.useless(institution, size=size, now=now)
        copied = self.rates.may_be_put_aside(institution, size=size, now=now)
        if copied:
            if uncounted := self._uncopied.pop(institution, 0):
                log.warning("dead letters are kept again", institution=institution, only_counted=uncounted)
            say_refused(institution, error, delivery)
            return True
        self._uncopied[institution] += 1
        if self._uncopied[institution] == 1:
            say_refused(institution, error, delivery)
            log.warning("dead letters are only counted", institution=institution, limit="letters_per_day")
        return False


def say_quarantined(institution: str, before: Entry, after: Entry, reason: str) -> None:
    """One line of the log where an institution was put into quarantine by what it sent last."""
    if after.quarantined and not before.quarantined:
        log.warning("quarantined", institution=institution, rejected=after.counters.rejected, reason=reason)


def say_refused(sender: str, error: RejectedMessageError, delivery: Delivery) -> None:
    """One line of the log for what was refused."""
    log.warning(
        "delivery",
        institution=sender,
        outcome="refused",
        error=type(error).__name__,
        reason=str(error)[:200],
        kind=delivery.message.kind[:40],
        message=delivery.message.message_id[:80],
        queue=delivery.queue,
        author=delivery.user_id or "",
    )
