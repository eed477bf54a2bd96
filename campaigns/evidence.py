"""What a federation leaves behind, as raw bytes: its streams, its dead letters and the institutions' ledgers."""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack

from campaigns.wire import Stored
from shared.broker import Broker

IDLE_SECONDS = 2.0
"""A stream or queue that gives nothing for so long is at its end."""
_ALL_DEAD_LETTERS = 60_000


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a ledger; its hash covers all that stands before it."""

    number: int
    state: str
    at_seconds: int
    packed: bytes
    previous: str
    hash: str

    @property
    def fields(self) -> dict[str, Any]:
        """What the row says."""
        read: dict[str, Any] = msgpack.unpackb(self.packed)
        return read


@dataclass(frozen=True, slots=True)
class Outage:
    """A time, on the campaign's clock, in which one institution was out of reach and nothing else was wrong."""

    institution: str
    begin: float
    end: float


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """All that the checker looks at. Journals and ledgers go by institution id, `pseudonyms` names each in manifests.

    `progress` is (time, pseudonym) of every settlement as it was seen; `never_started` are institutions dead throughout.
    """

    pseudonyms: Mapping[str, str]
    lineage: Sequence[Stored]
    models: Iterable[Stored]
    states: Iterable[Stored]
    journals: Mapping[str, Iterable[Stored]]
    dead_letters: Sequence[Stored]
    ledgers: Mapping[str, Sequence[Row]]
    never_started: Sequence[str] = ()
    outages: Sequence[Outage] = field(default_factory=list)
    progress: Sequence[tuple[float, str]] = field(default_factory=list)


def stream(connect: Callable[[], Broker], name: str, *, idle_seconds: float = IDLE_SECONDS) -> Iterator[Stored]:
    """Everything in a stream, from its first record on."""
    broker = connect()
    try:
        for each in broker.read(name, "first", count=None, idle_seconds=idle_seconds):
            yield Stored(each.message.kind, each.message.headers, each.message.body, each.user_id, each.offset or 0)
    finally:
        broker.close()


def waiting(connect: Callable[[], Broker], queue: str, *, idle_seconds: float = IDLE_SECONDS) -> list[Stored]:
    """Everything in a queue; it stays there."""
    broker = connect()
    try:
        broker.consume(queue, prefetch=_ALL_DEAD_LETTERS)
        found = []
        while (each := broker.receive(idle_seconds)) is not None:
            found.append(Stored(each.message.kind, each.message.headers, each.message.body, each.user_id))
        return found
    finally:
        broker.close()


def ledger(file: Path) -> list[Row]:
    """A ledger's rows, none where it was never opened."""
    if not file.exists():
        return []
    database = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
    try:
        rows = database.execute("SELECT number, state, at_seconds, fields, previous, hash FROM ledger ORDER BY number")
        return [Row(*row) for row in rows]
    finally:
        database.close()
