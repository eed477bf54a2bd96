"""The dead letters as a list for browsers. Looking takes none away, and happens once for all who ask at the same time."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from broker_config.connection import connect, waiting_messages
from broker_config.definitions import OPERATOR
from broker_config.topology import DEAD_LETTERS
from operator_console.dead_letters import DeadLetters, DeadUpload, uploads
from operator_console.federation_folder import FederationFolder
from shared.errors import BrokerUnavailableError
from shared.printable import printable

MOST_LETTERS = 200
FRESH_SECONDS = 2.0
PATIENCE_SECONDS = 15.0


class Letters:
    """The oldest letters, read again when the last look is older than `fresh_seconds`."""

    def __init__(self, folder: FederationFolder, *, fresh_seconds: float = FRESH_SECONDS) -> None:
        self._folder, self._fresh_seconds = folder, fresh_seconds
        self._lock = threading.Lock()
        self._seen: tuple[float, dict[str, Any]] | None = None

    def told(self) -> dict[str, Any]:
        """As the API has them. Raises FederationError where the broker does not answer."""
        with self.alone():
            if self._seen is None or time.monotonic() - self._seen[0] > self._fresh_seconds:
                self._seen = (time.monotonic(), self._looked())
            return self._seen[1]

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While inside, nobody else looks: two at once would each miss what the other one holds."""
        if not self._lock.acquire(timeout=PATIENCE_SECONDS):
            raise BrokerUnavailableError("somebody else is busy with the dead letters; look again in a moment")
        try:
            yield
        finally:
            self._lock.release()

    def forget(self) -> None:
        """The next look is a new one."""
        self._seen = None

    def _looked(self) -> dict[str, Any]:
        settings = self._folder.logins().settings(OPERATOR)
        waiting = waiting_messages(settings, DEAD_LETTERS)
        if not waiting:
            return {"letters": [], "truncated": False}
        broker = connect(settings, name="fedqueue-console-dead-letters")
        try:
            found = DeadLetters(broker).look(limit=min(waiting, MOST_LETTERS))
        finally:
            broker.close()
        return {"letters": [_letter(upload) for upload in uploads(found)], "truncated": waiting > MOST_LETTERS}


def _letter(upload: DeadUpload) -> dict[str, Any]:
    first, (here, chunks) = upload.first, upload.chunks
    at = first.delivery.published_at
    return {
        "handle": upload.handle,
        "institution": printable(first.institution),
        "kind": printable(first.delivery.message.kind),
        "reason": printable(first.reason),
        "bytes": upload.size,
        "chunks": chunks,
        "chunks_here": here,
        "at_ms": None if at is None else 1000 * at,
    }
