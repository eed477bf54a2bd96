"""From chunks to whole uploads. Small ones stay in memory; all others wait on disk, and one at a time is loaded."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from broker_config.secret_files import without_secrets
from shared.broker import Delivery
from shared.chunks import Assembly, ChunkHead, head, open_envelope
from shared.errors import MalformedMessageError, StorageError

KINDS = ("update", "hello", "report", "standing")
IN_MEMORY_BYTES = 64 * 2**10
"""A message up to this size is not written to disk while it waits for one that must come first."""
TRIAL = (sys.executable, "-m", "aggregator_worker.trial")
TRIAL_SECONDS = 20.0
"""Nobody answers the broker's heartbeats meanwhile; it gives up on a silent connection after two of them."""
SUSPECT_DELIVERIES = 5
"""A message that was delivered so often may be what its readers died of."""


@dataclass(slots=True, eq=False)
class Upload:
    """One whole content, in memory or in a file without a name, and receipts of the deliveries that carried it."""

    head: ChunkHead
    deliveries: list[Delivery]
    body: bytes | None
    spool: BinaryIO | None = None

    @property
    def suspect(self) -> bool:
        """Whether so many aggregators gave it back that it may have killed them."""
        return max(delivery.delivery_count for delivery in self.deliveries) >= SUSPECT_DELIVERIES

    def survives_trial(self, command: Sequence[str] = TRIAL) -> bool:
        """Whether a child process that handles it lives to say so, within its time."""
        if self.spool is not None:
            self.spool.seek(0)
        variables = without_secrets(os.environ)
        source = {"input": self.body} if self.spool is None else {"stdin": self.spool}
        with suppress(subprocess.TimeoutExpired):
            done = subprocess.run(command, **source, timeout=TRIAL_SECONDS, check=False, env=variables)  # noqa: S603
            return bool(done.returncode == 0)
        return False

    def close(self) -> None:
        """Lets go of the file."""
        if self.spool is not None:
            _let_go(self.spool)


@dataclass(slots=True, eq=False)
class _Partial:
    assembly: Assembly
    spool: BinaryIO
    touched: float
    deliveries: list[Delivery] = field(default_factory=list)


class Intake:
    """Puts chunks together per sender, within declared limits.

    A sender has one upload under way; a chunk of another id gives up on the former, which was never confirmed whole.
    Files have no name, so that nothing is left of them when the process ends in whatever way.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._partials: dict[str, _Partial] = {}
        self._buffer = bytearray()
        self.surplus: list[Delivery] = []
        """Deliveries that carry nothing new and are to be acknowledged at once."""
        self.wasted: list[tuple[str, int, int]] = []
        """Whose they were, how many, and how many bytes."""

    def take(self, sender: str, delivery: Delivery, *, now: float) -> Upload | None:
        """One chunk in; the upload out once it is whole. Raises RejectedMessageError for what can never become one."""
        chunk = head(delivery.believed(), max_bytes=self._max_bytes)
        if chunk.kind not in KINDS:
            raise MalformedMessageError(f"a message of kind {chunk.kind[:40]!r} on an update queue")
        if chunk.chunks == 1:
            return Upload(chunk, [delivery.receipt()], open_envelope(chunk, delivery.message.body))
        try:
            return self._take_part(sender, chunk, delivery, now=now)
        except OSError as error:
            raise self._no_room(error) from error

    def load(self, upload: Upload) -> bytes | memoryview:
        """The content. That of a spooled upload is valid until the next one is loaded: they share a buffer."""
        if upload.spool is None:
            return upload.body or b""
        size = upload.head.size
        if len(self._buffer) < size:
            self._buffer = bytearray(size)
        view = memoryview(self._buffer)[:size]
        upload.spool.seek(0)
        upload.spool.readinto(view)  # type: ignore[attr-defined]  # a file opened in binary mode has it
        return view

    def park(self, upload: Upload) -> None:
        """Puts an upload that has to wait on disk, where it is not there already and not tiny. Raises StorageError."""
        if upload.body is None or len(upload.body) <= IN_MEMORY_BYTES:
            return
        try:
            upload.spool = self._new_spool()
            upload.spool.write(upload.body)
            upload.spool.flush()
        except OSError as error:
            raise self._no_room(error) from error
        upload.body = None

    def _new_spool(self) -> BinaryIO:
        return tempfile.TemporaryFile(dir=self._folder)

    def _no_room(self, error: OSError) -> StorageError:
        return StorageError(f"{self._folder}: {error.strerror}; free space, the upload is kept in its queue")

    def _take_part(self, sender: str, chunk: ChunkHead, delivery: Delivery, *, now: float) -> Upload | None:
        partial = self._partials.get(sender)
        if partial is not None and not chunk.same_whole(partial.assembly.first):
            self._give_up(sender)
            partial = None
        if partial is None:
            spool = self._new_spool()
            partial = self._partials[sender] = _Partial(Assembly(chunk, spool), spool, now)
        known = chunk.chunk < partial.assembly.received
        complete = partial.assembly.add(chunk, delivery.message.body)
        partial.touched = now
        if known:
            self._waste(sender, [delivery.receipt()], len(delivery.message.body))
        else:
            partial.deliveries.append(delivery.receipt())
        return self._finish(sender, partial) if complete else None

    def _finish(self, sender: str, partial: _Partial) -> Upload:
        """The whole upload; where its hash is wrong, the last delivery is refused and the others carry nothing."""
        del self._partials[sender]
        try:
            partial.assembly.check()
        except MalformedMessageError:
            self._waste(sender, partial.deliveries[:-1], partial.spool.tell())
            _let_go(partial.spool)
            raise
        return Upload(partial.assembly.first, partial.deliveries, None, partial.spool)

    def expire(self, *, now: float, idle_seconds: float) -> list[str]:
        """Gives up on uploads that nobody continued; returns whose they were."""
        orphans = [name for name, partial in self._partials.items() if now - partial.touched > idle_seconds]
        for sender in orphans:
            self._give_up(sender)
        return orphans

    def close(self) -> None:
        """Lets go of the uploads under way; their deliveries return to their queues with the connection."""
        while self._partials:
            _let_go(self._partials.popitem()[1].spool)

    def forget(self, sender: str) -> None:
        """Lets go of a sender's upload; its deliveries are to come again from the beginning."""
        partial = self._partials.pop(sender, None)
        if partial is not None:
            _let_go(partial.spool)

    def _give_up(self, sender: str) -> None:
        partial = self._partials.pop(sender)
        self._waste(sender, partial.deliveries, partial.spool.tell())
        _let_go(partial.spool)

    def _waste(self, sender: str, deliveries: list[Delivery], size: int) -> None:
        self.surplus += deliveries
        self.wasted.append((sender, len(deliveries), size))


def _let_go(spool: BinaryIO) -> None:
    """Closes a file, also one that holds what its disk did not take."""
    with suppress(OSError):
        spool.close()
