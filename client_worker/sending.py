"""What an institution publishes, all of it on its own exchange. What the queue has no room for, the caller sends again."""

import time
from collections.abc import Iterable, Iterator

import structlog

from broker_config.topology import update_queue
from client_worker.ledger_rows import Sealed
from client_worker.local_work import LocalWork
from shared import messages
from shared.broker import Broker, Message
from shared.chunks import split
from shared.errors import PublishRefusedError
from shared.plan import Frozen

REFUSED_PAUSE_SECONDS = 1.0

log = structlog.get_logger()


class Sender:
    """One connection's publishing."""

    def __init__(self, work: LocalWork, broker: Broker) -> None:
        self._work = work
        self._broker = broker
        self._posted: dict[str, tuple[Frozen, str]] = {}
        self._deliver_after = 0.0

    def update(self, sealed: Sealed, chunk_bytes: int) -> bool:
        """Publishes an update from its first chunk on; a re-send is the same bytes under the same ids. False: not taken whole."""
        member = self._work.member
        chunks = split(
            self._work.content(sealed),
            kind="update",
            run_id=member.run_id,
            identity=f"{member.institution}/{member.incarnation}/{sealed.sequence}",
            chunk_bytes=chunk_bytes,
            about={"institution": member.institution, "incarnation": member.incarnation, "sequence": sealed.sequence},
        )
        if not self._publish(self._until_asked_to_stop(chunks), f"update {sealed.sequence}") or self._work.stopping.is_set():
            return False
        self._work.published(sealed)
        log.info("published", sequence=sealed.sequence, bytes=sealed.size)
        return True

    def post(self, kind: str, body: Frozen, identity: str) -> None:
        """Has `deliver` send a small message; one of the same kind that still waits is replaced."""
        self._posted[kind] = (body, identity)
        self._deliver_after = 0.0

    def deliver(self, chunk_bytes: int) -> None:
        """Sends what was posted; what the queue has no room for waits a moment."""
        if not self._posted or time.monotonic() < self._deliver_after:
            return
        for kind, (body, identity) in list(self._posted.items()):
            if not self.small(kind, body, identity, chunk_bytes):
                self._deliver_after = time.monotonic() + REFUSED_PAUSE_SECONDS
                return
            del self._posted[kind]
            log.info("sent", kind=kind)

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
            self._work.after_step("chunk")
