"""What an institution publishes, all of it on its own exchange. What the queue has no room for, the caller sends again."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import structlog

from broker_config.topology import update_queue
from client_worker import telling
from client_worker.ledger_rows import Sealed
from client_worker.local_work import LocalWork
from client_worker.sent import SentUpdate
from shared import messages
from shared.broker import Broker, Message
from shared.chunks import split
from shared.errors import PublishRefusedError
from shared.messages import Report, Standing
from shared.plan import Frozen

REFUSED_PAUSE_SECONDS = 1.0
BURST_SECONDS = 0.2
"""So much of a pause may be made up for, as the loop does not turn at the very moment."""

Progress = Literal["taken", "refused", "under way"]

log = structlog.get_logger()


class Pace:
    """When the next chunk may go, so that no more than so many bytes a second leave on average; None is no limit."""

    def __init__(self, bytes_per_second: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.is_limited = bytes_per_second is not None
        self._seconds_per_byte = 1.0 / bytes_per_second if bytes_per_second else 0.0
        self._clock = clock
        self._due_at = clock()

    def is_due(self) -> bool:
        """Whether the next chunk may go."""
        return self._clock() >= self._due_at

    def sent(self, size: int) -> None:
        """So many bytes have just gone."""
        self._due_at = max(self._due_at, self._clock() - BURST_SECONDS) + size * self._seconds_per_byte


class Sender:
    """One connection's publishing."""

    def __init__(self, work: LocalWork, broker: Broker, *, pace: Pace | None = None) -> None:
        self._work = work
        self._broker = broker
        self._posted: dict[str, tuple[Report | Standing, str]] = {}
        self._deliver_after = 0.0
        self._pace = pace or Pace(work.member.upload_bytes_per_second)
        self._upload: tuple[int, Iterator[Message]] | None = None

    def update(self, sealed: Sealed, chunk_bytes: int) -> Progress:
        """Publishes an update from its first chunk on; a re-send is the same bytes under the same ids.

        "under way" asks to be called again soon: what leaves slowly leaves a chunk at a time, and the loop turns in between.
        """
        if self._upload is None or self._upload[0] != sealed.sequence:
            self._upload = (sealed.sequence, self._chunks(sealed, chunk_bytes))
        publish = self._paced if self._pace.is_limited else self._publish
        taken = publish(self._upload[1], f"update {sealed.sequence}")
        if taken is None:
            return "under way"
        self._upload = None
        if not taken or self._work.stopping.is_set():
            return "refused"
        self._work.published(sealed)
        self._tell(sealed.sequence)
        return "taken"

    def abandon(self) -> None:
        """Nothing is to be sent any more: what was under way has been settled meanwhile."""
        self._upload = None

    def _paced(self, chunks: Iterator[Message], what: str) -> bool | None:
        """Whether the upload is taken whole; None while there is more to send."""
        while self._pace.is_due():
            chunk = next(chunks, None)
            if chunk is None:
                return True
            if not self._publish([chunk], what):
                return False
            self._pace.sent(len(chunk.body))
        return None

    def _chunks(self, sealed: Sealed, chunk_bytes: int) -> Iterator[Message]:
        member = self._work.member
        chunks = split(
            self._work.content(sealed),
            kind="update",
            run_id=member.run_id,
            identity=f"{member.institution}/{member.incarnation}/{sealed.sequence}",
            chunk_bytes=chunk_bytes,
            about={"institution": member.institution, "incarnation": member.incarnation, "sequence": sealed.sequence},
        )
        return self._until_asked_to_stop(chunks)

    def _tell(self, sequence: int) -> None:
        update = self._work.ledger.sent().update(sequence)
        if update is not None:
            log.info("published", says=telling.has_left(update), **_facts(update))

    def post(self, kind: str, body: Report | Standing, identity: str) -> None:
        """Has `deliver` send a small message; one of the same kind that still waits is replaced."""
        self._posted[kind] = (body, identity)
        self._deliver_after = 0.0

    def deliver(self, chunk_bytes: int) -> None:
        """Sends what was posted, never between the chunks of an update; what the queue has no room for waits a moment."""
        if not self._posted or self._upload is not None or time.monotonic() < self._deliver_after:
            return
        for kind, (body, identity) in list(self._posted.items()):
            if not self.small(kind, body, identity, chunk_bytes):
                self._deliver_after = time.monotonic() + REFUSED_PAUSE_SECONDS
                return
            del self._posted[kind]
            log.info("sent", kind=kind, says=telling.small_has_left(body))

    def small(self, kind: str, body: Frozen, identity: str, chunk_bytes: int) -> bool:
        """Publishes a message without tensors. False: the queue has no room just now."""
        content, run_id = messages.encode(kind, body), self._work.member.run_id
        return self._publish(split(content, kind=kind, run_id=run_id, identity=identity, chunk_bytes=chunk_bytes), kind)

    def _publish(self, chunks: Iterable[Message], what: str) -> bool:
        try:
            self._broker.publish_all(update_queue(self._work.member.institution), chunks)
        except PublishRefusedError as error:
            log.warning("not taken yet, trying again", what=what, reason=str(error))
            return False
        return True

    def _until_asked_to_stop(self, chunks: Iterable[Message]) -> Iterator[Message]:
        """An upload of hours must not put off the end of the process; what is left goes out at the next start, from chunk 0."""
        for chunk in chunks:
            if self._work.stopping.is_set():
                return
            yield chunk
            self._work.gauges.vitals.beat()  # an upload may take hours, and is one turn of the loop
            self._work.after_step("chunk")


def _facts(update: SentUpdate) -> dict[str, int | float | str | None]:
    charged = update.charged
    return {
        "sequence": update.sequence,
        "bytes": update.size,
        "hash": update.hash[:12],
        "base_version": charged.base_version,
        "clipping_norm": charged.clipping_norm,
        "noise_multiplier": charged.noise_multiplier,
        "epsilon": charged.epsilon,
        "epsilon_spent": charged.epsilon_in_all,
        "epsilon_budget": charged.budget,
    }
