"""Attempts to wear the others out: floods, churn, and frames that are hard to read. `FLOODS` need a federation with limits."""

import math
import struct
import time

import pika

from shared.broker import Message
from tests.hostile.attempt import CONNECTION, Attempt, How
from tests.hostile.content_attempts import letter
from tests.hostile.institution import HostileInstitution
from tests.hostile.sender_attempts import OWN
from tests.hostile.world import HOSTILE

TINY, CONNECTIONS, UPLOADS, HOUR = 10_000, 50, 60, 8
PATIENCE_SECONDS = 60.0


class RawHeaders(pika.BasicProperties):  # type: ignore[misc]  # pika has no types
    """Headers as bytes, which no client library would write."""

    def __init__(self, table: bytes) -> None:
        super().__init__(delivery_mode=2, user_id=HOSTILE)
        self.table = struct.pack(">I", len(table)) + table

    def encode(self) -> list[bytes]:
        """Flags of headers, delivery mode and user id, and these in the order that AMQP 0-9-1 gives."""
        flags = self.FLAG_HEADERS | self.FLAG_DELIVERY_MODE | self.FLAG_USER_ID
        user = HOSTILE.encode()
        return [struct.pack(">H", flags), self.table, b"\x02", bytes([len(user)]) + user]


def entry(name: bytes, kind: bytes, value: bytes) -> bytes:
    """One header."""
    return bytes([len(name)]) + name + kind + value


def nested(depth: int) -> bytes:
    """A header within a header within a header."""
    value = b""
    for _ in range(depth):
        value = entry(b"n", b"F", struct.pack(">I", len(value)) + value)
    return value


def heads(tries: str, table: bytes) -> Attempt:
    """A message with these headers. None of them is a signature."""

    def how(hostile: HostileInstitution) -> str:
        return hostile.verdict_on(lambda channel: channel.basic_publish(OWN, "", b"x", RawHeaders(table)))

    return letter(tries, how, f"it is not signed, and {HOSTILE} signs everything")


def _sends_nan(hostile: HostileInstitution) -> str:
    """Which not even the broker can read."""
    table = entry(b"x", b"d", struct.pack(">d", math.nan))
    return hostile.answer_to(lambda channel: channel.basic_publish(OWN, "", b"x", RawHeaders(table)))


HEADERS = (
    heads("send headers that fill a whole frame", entry(b"x", b"S", struct.pack(">I", 130_000) + b"a" * 130_000)),
    heads("send 15,000 headers", b"".join(entry(b"%x" % number, b"t", b"\1") for number in range(15_000))),
    heads("nest headers 5,000 deep", nested(5_000)),
    Attempt("send NaN in a header", _sends_nan, "541 INTERNAL_ERROR", "broker", CONNECTION),
    heads("send a date beyond the year 9999 in a header", entry(b"x", b"T", struct.pack(">Q", 2**62))),
    heads("send a header named like a number of ours, of 64 bits", entry(b"chunks", b"l", struct.pack(">q", -(2**63)))),
)


def _begins_many(hostile: HostileInstitution) -> str:
    """Uploads of which the last chunk never comes; then its hello is answered, so that nothing is waited for."""
    channel = hostile.channel()
    for number in range(UPLOADS):
        hostile.publish(hostile.envelope(bytes(40_000), identity=f"unfinished {number}")[:1], channel=channel)
    hostile.world.barrier()
    return "each gives way to the next"


def _comes_and_goes(hostile: HostileInstitution) -> str:
    for _ in range(CONNECTIONS):
        hostile.connection().close()
    return f"allowed {CONNECTIONS} times"


def _is_no_longer_heard(limit: str, send: How) -> How:
    """What the aggregator says of its sender when it has had enough, whatever the broker said."""

    def tries(hostile: HostileInstitution) -> str:
        mark = hostile.world.logs["aggregator"].mark()
        send(hostile)
        said = hostile.world.logs["aggregator"].says(f'"limit": "{limit}"', mark, timeout_seconds=PATIENCE_SECONDS)
        return f"not listened to: {limit}" if said else "listened to all the time"

    return tries


def _sends_tiny_ones(hostile: HostileInstitution) -> str:
    """As fast as the broker takes them, without waiting for it."""
    connection = hostile.connection()
    channel, properties = connection.channel(), pika.BasicProperties(user_id=HOSTILE, delivery_mode=2)
    began = time.monotonic()
    for _ in range(TINY):
        channel.basic_publish(OWN, "", b"x", properties)
    connection.process_data_events()
    return f"{TINY / (time.monotonic() - began):.0f} a second"


def _sends_stale_ones(hostile: HostileInstitution) -> str:
    """Each is honest but for its base, and settled."""
    first = hostile.next_sequence
    messages: list[Message] = []
    for sequence in range(first, first + HOUR + 1):
        content = hostile.update(sequence=sequence, plan_hash="e" * 64)
        messages += hostile.envelope(content, identity=f"{HOSTILE}/1/{sequence}")
    hostile.publish(messages)
    return "sent"


WEARING = (
    Attempt(f"begin {UPLOADS} uploads and finish none", _begins_many, "each gives way to the next", "broker", CONNECTION),
    Attempt(f"connect and leave {CONNECTIONS} times", _comes_and_goes, f"allowed {CONNECTIONS} times", "broker", CONNECTION),
)
FLOODS = (
    Attempt(
        "send more updates than the plan has for an hour",
        _is_no_longer_heard("updates_per_hour", _sends_stale_ones),
        "not listened to: updates_per_hour",
        "aggregator",
        "not listened to",
    ),
    Attempt(
        "send 10,000 tiny messages as fast as it can",
        _is_no_longer_heard("useless_per_minute", _sends_tiny_ones),
        "not listened to: useless_per_minute",
        "aggregator",
        "not listened to",
    ),
)
ATTEMPTS = (*HEADERS, *WEARING)
