"""The journals: every update as its institution published it, found again by its id and hash.

A journal may hold what the queue refused, repeats and chunks with wrong bytes. What counts is that the bytes have the hash
that the lineage names.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from broker_config.streams import last_offset
from broker_config.topology import journal_queue
from shared import messages
from shared.broker import Broker, Delivery
from shared.compact import Delta
from shared.errors import FederationError
from shared.messages import Settlement, Update

IDLE_SECONDS = 5.0
"""So long is waited for a message that is known to be there."""
QUIET_SECONDS = 0.25
"""So long is waited for a message that may be there."""
MOST_TOGETHER = 4096
AHEAD_BYTES = 2**20
AHEAD_MESSAGES = 64


class JournalGapError(FederationError):
    """Replay from a later version, or to an earlier one: the journal no longer has an update."""


@dataclass(slots=True)
class _Trace:
    """Where the chunks of one update stand in a journal: (index, offset) in the order published, by (chunks, bytes) announced."""

    content: str
    seen: dict[tuple[int, int], list[tuple[int, int]]] = field(default_factory=dict)

    def tries(self) -> Iterator[tuple[int, list[int]]]:
        """Bytes and offsets of a whole upload, for every time that its first chunk was published."""
        for (chunks, size), seen in self.seen.items():
            for place, (index, _) in enumerate(seen):
                offsets = _in_order(seen[place:]) if index == 0 else []
                if len(offsets) == chunks:
                    yield size, offsets


class Journal:
    """The journals of a federation, read as the operator. `names` gives the institution behind a pseudonym, and `max_bytes`
    what an update may take."""

    def __init__(self, broker: Broker, names: Mapping[str, str], *, max_bytes: int) -> None:
        self._broker = broker
        self._names = names
        self._max_bytes = max_bytes
        self._traces: dict[str, dict[str, _Trace]] = {}
        self._ahead: dict[str, dict[int, bytes]] = {}
        self._last: dict[str, int] = {}

    def find(self, wanted: Sequence[Settlement]) -> list[Settlement]:
        """Looks for updates by their headers, one journal after the other; returns those that are not there."""
        for settlement in wanted:
            self._traces.setdefault(self._owner(settlement), {})[_identity(settlement)] = _Trace(settlement.hash)
        for institution, traces in self._traces.items():
            for delivery in self._all_of(journal_queue(institution)):
                self._note(delivery, institution, traces)
                self._last[delivery.queue] = delivery.offset or 0
        return [settlement for settlement in wanted if not any(self._trace(settlement).tries())]

    def load(self, settlement: Settlement) -> tuple[Update, Delta]:
        """One update that `find` looked for. Raises JournalGapError."""
        stream, trace = journal_queue(self._owner(settlement)), self._trace(settlement)
        for size, offsets in trace.tries():
            body = self._single(stream, offsets[0]) if len(offsets) == 1 else self._joined(stream, offsets, size)
            if hashlib.sha256(body).hexdigest() == settlement.hash:
                return messages.decode_update(memoryview(body), max_bytes=len(body))
        raise JournalGapError(
            f"{stream} no longer has the update {_identity(settlement)} of {self._owner(settlement)} with the hash "
            f"{settlement.hash[:12]}, whole and unaltered"
        )

    def _owner(self, settlement: Settlement) -> str:
        if settlement.institution not in self._names:
            raise JournalGapError(
                f"this folder does not know whose pseudonym {settlement.institution} is, so which journal to read"
            )
        return self._names[settlement.institution]

    def _trace(self, settlement: Settlement) -> _Trace:
        return self._traces[self._owner(settlement)][_identity(settlement)]

    def _all_of(self, stream: str) -> Iterator[Delivery]:
        """All that the stream holds now. Messages published together share what the broker calls the last offset."""
        end, offset = last_offset(self._broker, stream), -1
        if end < 0:
            return
        for delivery in self._broker.read(stream, "first", count=None, idle_seconds=IDLE_SECONDS):
            yield delivery
            offset = delivery.offset or 0
            if offset >= end:
                break
        yield from self._broker.read(stream, offset + 1, count=MOST_TOGETHER, idle_seconds=QUIET_SECONDS)

    def _note(self, delivery: Delivery, institution: str, traces: Mapping[str, _Trace]) -> None:
        headers = delivery.message.headers
        trace = traces.get(str(headers.get("id", "")).removeprefix(f"{institution}/"))
        if trace is None or headers.get("content") != trace.content or delivery.offset is None:
            return
        chunk, chunks, size = headers.get("chunk"), headers.get("chunks"), headers.get("size")
        if isinstance(chunk, int) and isinstance(chunks, int) and isinstance(size, int) and size <= self._max_bytes:
            trace.seen.setdefault((chunks, size), []).append((chunk, delivery.offset))

    def _joined(self, stream: str, offsets: Sequence[int], size: int) -> bytearray:
        body, filled, left = bytearray(size), 0, set(offsets)
        for delivery in self._broker.read(stream, offsets[0], count=None, idle_seconds=IDLE_SECONDS):
            if delivery.offset in left:
                part = delivery.message.body
                left.remove(delivery.offset)
                if filled + len(part) > size:
                    break
                body[filled : filled + len(part)] = part
                filled += len(part)
            if not left:
                break
        return body

    def _single(self, stream: str, offset: int) -> bytes:
        """A message of its own; those after it are most often asked for next, so some are read with it."""
        ahead = self._ahead.setdefault(stream, {})
        if offset not in ahead:
            ahead.clear()
            for delivery in self._broker.read(stream, offset, count=AHEAD_MESSAGES, idle_seconds=IDLE_SECONDS):
                ahead[delivery.offset or 0] = delivery.message.body
                if sum(map(len, ahead.values())) >= AHEAD_BYTES or delivery.offset == self._last[stream]:
                    break
        return ahead.pop(offset, b"")


def _in_order(seen: Sequence[tuple[int, int]]) -> list[int]:
    """The offsets of chunks 0, 1, 2, ..., each the first one after the one before it."""
    offsets: list[int] = []
    for index, offset in seen:
        if index == len(offsets):
            offsets.append(offset)
    return offsets


def _identity(settlement: Settlement) -> str:
    return f"{settlement.incarnation}/{settlement.sequence}"
