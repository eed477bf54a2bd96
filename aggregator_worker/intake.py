"""From chunks to whole uploads: single messages at once, larger ones through a spool file, one per institution."""

from dataclasses import dataclass, field
from pathlib import Path

from shared.broker import Delivery
from shared.chunks import Assembly, ChunkHead, head, open_envelope
from shared.errors import MalformedMessageError, StorageError

KINDS = ("update", "hello", "report")


@dataclass(slots=True, eq=False)
class Upload:
    """One whole content, and receipts of the deliveries to acknowledge once it is settled."""

    kind: str
    content: bytes
    hash: str
    deliveries: list[Delivery]


@dataclass(slots=True, eq=False)
class _Partial:
    assembly: Assembly
    path: Path
    touched: float
    deliveries: list[Delivery] = field(default_factory=list)


class Intake:
    """Puts chunks together per institution, within declared limits.

    An institution has one upload under way; a chunk of another id gives up on the former, which was never confirmed whole.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._partials: dict[str, _Partial] = {}
        for leftover in folder.glob("*.part"):
            leftover.unlink()
        self.surplus: list[Delivery] = []
        """Deliveries that carry nothing new and are to be acknowledged at once."""

    def take(self, institution: str, delivery: Delivery, *, now: float) -> Upload | None:
        """One chunk in; the upload out once it is whole. Raises RejectedMessageError for what can never become one."""
        chunk = head(delivery.message, max_bytes=self._max_bytes)
        if chunk.kind not in KINDS:
            raise MalformedMessageError(f"a message of kind {chunk.kind[:40]!r} on an update queue")
        if chunk.chunks == 1:
            return Upload(chunk.kind, open_envelope(chunk, delivery.message.body), chunk.content, [delivery.receipt()])
        try:
            return self._take_part(institution, chunk, delivery, now=now)
        except OSError as error:
            raise StorageError(f"{self._folder}: {error.strerror}; free space, the upload is kept in its queue") from error

    def _take_part(self, institution: str, chunk: ChunkHead, delivery: Delivery, *, now: float) -> Upload | None:
        partial = self._partials.get(institution)
        if partial is not None and not chunk.same_whole(partial.assembly.first):
            self._give_up(institution)
            partial = None
        if partial is None:
            path = self._folder / f"{institution}.part"
            partial = _Partial(Assembly(chunk, path.open("wb+")), path, now)
            self._partials[institution] = partial
        known = chunk.chunk < partial.assembly.received
        complete = partial.assembly.add(chunk, delivery.message.body)
        partial.touched = now
        (self.surplus if known else partial.deliveries).append(delivery.receipt())
        return self._finish(institution, partial) if complete else None

    def _finish(self, institution: str, partial: _Partial) -> Upload:
        """The whole upload; where its hash is wrong, the last delivery is refused and the others carry nothing."""
        first = partial.assembly.first
        try:
            content = partial.assembly.content()
        except MalformedMessageError:
            self.surplus += partial.deliveries[:-1]
            raise
        finally:
            self._forget(institution)
        return Upload(first.kind, content, first.content, partial.deliveries)

    def expire(self, *, now: float, idle_seconds: float) -> list[str]:
        """Gives up on uploads that nobody continued; returns whose they were."""
        orphans = [name for name, partial in self._partials.items() if now - partial.touched > idle_seconds]
        for institution in orphans:
            self._give_up(institution)
        return orphans

    def close(self) -> None:
        """Lets go of the uploads under way; their deliveries return to their queues with the connection."""
        for institution in list(self._partials):
            self._forget(institution)

    def _give_up(self, institution: str) -> None:
        self.surplus += self._partials[institution].deliveries
        self._forget(institution)

    def _forget(self, institution: str) -> None:
        partial = self._partials.pop(institution)
        partial.assembly.close()
        partial.path.unlink(missing_ok=True)
