"""What a hostile institution has: its login, its keys, what it saw on its way, and programs of its own instead of ours."""

import re
import secrets
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import pika
from pika import exceptions

from broker_config.topology import update_queue
from shared import codec
from shared.broker import Message
from shared.chunks import split
from shared.compact import Delta
from tests.builders import RUN, a_statement
from tests.hostile.world import DELTA, HOSTILE, World

ANSWER_SECONDS = 30.0
EXAMPLES = 600


class HostileInstitution:
    """One attempt's view of the world; leaving the block ends its connections."""

    def __init__(self, world: World, attempt: str) -> None:
        self.world = world
        self._attempt = attempt
        self._connections: list[pika.BlockingConnection] = []

    def __enter__(self) -> "HostileInstitution":
        return self

    def __exit__(self, *_exception: object) -> None:
        for connection in self._connections:
            with suppress(exceptions.AMQPError):
                connection.close()

    def connection(self, *, user: str = HOSTILE, **changes: Any) -> pika.BlockingConnection:
        """A connection of its own, by which the broker's log knows the attempt."""
        connection = pika.BlockingConnection(self.world.parameters(user, f"hostile/{self._attempt}", **changes))
        self._connections.append(connection)
        return connection

    def channel(self) -> Any:
        """A channel in confirm mode on a connection of its own."""
        channel = self.connection().channel()
        channel.confirm_delivery()
        return channel

    def answer_to(self, act: Callable[[Any], object]) -> str:
        """What the broker says to an act on a channel: its code and word, or that it allows it."""
        try:
            channel = self.channel()
            act(channel)
            channel.connection.process_data_events()
        except (exceptions.ChannelClosedByBroker, exceptions.ConnectionClosedByBroker) as error:
            return spoken(error)
        except exceptions.NackError:
            return "basic.nack"
        except exceptions.AMQPConnectionError as error:
            return broken(error)
        return "allowed"

    def login_answer(self, **changes: Any) -> str:
        """What the broker says to a connection; one that it allows stays open until the attempt is over."""
        try:
            self.connection(**changes)
        except exceptions.ConnectionClosedByBroker as error:
            return spoken(error)
        except (exceptions.ProbableAccessDeniedError, exceptions.ProbableAuthenticationError) as error:
            return said_in(str(error))
        except exceptions.AMQPError as error:
            return broken(error)
        return "allowed"

    # what it writes

    @property
    def next_sequence(self) -> int:
        """Of the update whose turn it is."""
        return self.world.watch.entry(HOSTILE).watermark + 1

    def fields(self, **changes: Any) -> dict[str, Any]:
        """An update's fields: honest, but for the changes. `privacy` changes single fields of the statement."""
        manifest, entry = self.world.watch.head.manifest, self.world.watch.entry(HOSTILE)
        statement = a_statement(self.world.plan, entry.epsilon_spent or 0.5).model_dump() | changes.pop("privacy", {})
        honest = {
            "run_id": RUN,
            "institution": HOSTILE,
            "incarnation": 1,
            "sequence": self.next_sequence,
            "base_version": manifest.version,
            "base_hash": manifest.model.hash,
            "plan_hash": manifest.plan_hash,
            "num_examples": EXAMPLES,
            "privacy": statement,
        }
        return {name: value for name, value in (honest | changes).items() if value is not ...}

    def update(self, tensors: Delta | None = None, **changes: Any) -> bytes:
        """An update's content, of whatever fields and tensors."""
        return codec.encode("update", self.fields(**changes), DELTA if tensors is None else tensors)

    def small(self, kind: str, **fields: Any) -> bytes:
        """A hello, standing or report."""
        who = {"run_id": RUN, "institution": HOSTILE, "incarnation": 1}
        return codec.encode(kind, who | fields)

    def hello(self, **changes: Any) -> bytes:
        """An honest hello, but for the changes."""
        asked = {"head_sequence": 0, "head_hash": "", "nonce": secrets.token_hex(8), "num_examples": EXAMPLES}
        return self.small("hello", **(asked | changes))

    def envelope(self, whole: bytes, kind: str = "update", /, *, identity: str = "", **headers: Any) -> list[Message]:
        """The content in messages, as our programs cut it; `headers` lie about it."""
        identity = identity or f"{HOSTILE}/1/{self.next_sequence}"
        limit = self.world.plan.limits.chunk_bytes
        pieces = split(whole, kind=kind, run_id=RUN, identity=identity, chunk_bytes=limit)
        return [Message(each.body, each.kind, each.message_id, {**each.headers, **headers}) for each in pieces]

    # what it sends

    def publish(self, messages: Iterable[Message], *, channel: Any = None, exchange: str = "", **properties: Any) -> None:
        """Signed with its own key, to its own exchange where no other is named."""
        exchange, channel = exchange or update_queue(HOSTILE), channel or self.channel()
        for message in messages:
            self.put(channel, exchange, self.world.signed(HOSTILE, message), **properties)

    def put(self, channel: Any, exchange: str, message: Message, **properties: Any) -> None:
        """As it is."""
        stated = {"user_id": HOSTILE, "type": message.kind, "message_id": message.message_id, "delivery_mode": 2}
        given = pika.BasicProperties(**{"headers": dict(message.headers), **stated, **properties})
        channel.basic_publish(exchange, "", message.body, given, mandatory=True)

    def send(self, messages: Iterable[Message], **properties: Any) -> str:
        """Publishes one upload to its own queue, sealed and signed, and tells what became of it."""
        return self.send_as_it_is([self.world.signed(HOSTILE, message) for message in messages], **properties)

    def send_as_it_is(self, several: list[Message], **properties: Any) -> str:
        """As `send`, without a hand on the messages."""

        def put_all(channel: Any) -> None:
            for message in several:
                self.put(channel, update_queue(HOSTILE), message, **properties)

        return self.verdict_on(put_all, len(several))

    def verdict_on(self, publish: Callable[[Any], object], count: int = 1) -> str:
        """Publishes an upload of so many messages in any way, and tells what became of it."""
        duplicates = self.world.duplicates(HOSTILE)
        letters, settled = self.world.letters_drained(), len(self.world.watch.outcomes(HOSTILE))
        publish(self.world.wire(HOSTILE))
        return self.verdict(count, letters=letters, settled=settled, duplicates=duplicates)

    def verdict(self, count: int, *, letters: int, settled: int, duplicates: int) -> str:
        """The aggregator's answer to an upload of so many messages, seen from the outside: letter, lineage or counter."""
        world, deadline = self.world, time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < deadline:
            world.follow(0.01)
            if len(world.letters) > letters and world.letter_is_whole(count):
                return f"dead letter: {world.letters[-1].message.headers['refused']}"
            if len(world.watch.outcomes(HOSTILE)) > settled:
                last = [each for each in world.watch.settled if each.institution == world.pseudonym(HOSTILE)][-1]
                return f"{last.outcome}: {last.reason}" if last.reason else str(last.outcome)
            if world.duplicates(HOSTILE) > duplicates:
                return "duplicate, dropped"
        return "no answer"


def spoken(error: exceptions.ChannelClosedByBroker | exceptions.ConnectionClosedByBroker) -> str:
    """A broker's refusal: code and word."""
    return f"{error.reply_code} {error.reply_text.partition(' - ')[0].strip()}"


def said_in(text: str) -> str:
    """Code and word of a refusal that pika gives as text: `ConnectionClosedByBroker: (530) 'NOT_ALLOWED - ...`."""
    found = re.search(r"\((\d{3})\) ['\"](\w+)", text)
    return f"{found[1]} {found[2]}" if found else "hung up"


def broken(error: BaseException) -> str:
    """A connection that the broker did not let through."""
    return f"connection refused: {type(error).__name__}"
