"""What an institution's own login may put into its queue besides its updates: repeats, and chunks that are wrong in some way."""

import random
import sqlite3
from collections.abc import Callable
from typing import NamedTuple

from broker_config.connection import connect
from broker_config.topology import update_queue
from campaigns.federation import Federation
from campaigns.programs import Program
from shared.broker import Message
from shared.chunks import split
from shared.errors import FederationError


class Kept(NamedTuple):
    """An update in an institution's outbox."""

    sequence: int
    content: bytes


def kept_updates(client: Program, *, settled: bool) -> list[Kept]:
    """The outbox as somebody else reads it: those settled, or those still on their way. Empty while there is no outbox."""
    file = client.state_folder / "ledger.sqlite"
    try:
        database = sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=1.0)
        rows = database.execute("SELECT sequence, content FROM outbox WHERE content IS NOT NULL AND settled = ?", (settled,))
        found = [Kept(*row) for row in rows]
        database.close()
    except sqlite3.Error:
        return []
    return found


def chunks_of(federation: Federation, institution: str, update: Kept) -> list[Message]:
    """As its worker sends it."""
    identity = f"{institution}/1/{update.sequence}"
    limit = federation.plan.limits.chunk_bytes
    return list(split(update.content, kind="update", run_id=federation.run_id, identity=identity, chunk_bytes=limit))


def publish(federation: Federation, institution: str, chunks: list[Message]) -> None:
    """Under the institution's own login, over a connection of its own. Raises BrokerUnavailableError where there is no room."""
    broker = connect(federation.settings(institution), name=f"campaign/hostile/{institution}")
    try:
        for chunk in chunks:
            broker.publish(update_queue(institution), chunk)
    finally:
        broker.close()


def repeated(chunks: list[Message], _rng: random.Random) -> list[Message]:
    """The same again."""
    return chunks


def corrupted(chunks: list[Message], rng: random.Random) -> list[Message]:
    """One bit is wrong."""
    chosen = rng.randrange(len(chunks))
    body = bytearray(chunks[chosen].body)
    body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
    return [*chunks[:chosen], _with_body(chunks[chosen], bytes(body)), *chunks[chosen + 1 :]]


def truncated(chunks: list[Message], rng: random.Random) -> list[Message]:
    """The end is missing: whole chunks, or a part of the last."""
    if rng.random() < 0.5:
        return chunks[: rng.randrange(1, len(chunks))]
    return [*chunks[:-1], _with_body(chunks[-1], chunks[-1].body[: len(chunks[-1].body) // 2])]


def reordered(chunks: list[Message], rng: random.Random) -> list[Message]:
    """All are there, two at least, in another order."""
    mixed = list(chunks)
    while [each.message_id for each in mixed] == [each.message_id for each in chunks]:
        rng.shuffle(mixed)
    return mixed


def _with_body(chunk: Message, body: bytes) -> Message:
    return Message(body, chunk.kind, chunk.message_id, chunk.headers)


Mischief = Callable[[list[Message], random.Random], list[Message]]


def send(federation: Federation, client: Program, mischief: Mischief, rng: random.Random) -> bool:
    """Whether there was an update to do it with and the broker took it. What is not a plain repeat uses a settled update: with
    one that is on its way, the institution would only harm itself."""
    updates = kept_updates(client, settled=True)
    if mischief is repeated:
        updates += kept_updates(client, settled=False)
    if not updates:
        return False
    try:
        publish(federation, client.name, mischief(chunks_of(federation, client.name, rng.choice(updates)), rng))
    except FederationError:
        return False
    return True
