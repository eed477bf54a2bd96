"""The little that fedqueue asks of a message broker.

Two implementations: `broker_config.rabbitmq` over pika, `broker_config.memory` in process. A broker object belongs to
one thread, `wake` excepted. After a BrokerUnavailableError it is of no more use (PublishRefusedError excepted): close it, and
open another.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from shared.errors import RejectedMessageError

Header = int | str | bool
StreamStart = int | Literal["first", "last", "next"]


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """One AMQP message: opaque bytes, and headers that an operator reads without decoding them.

    `kind` travels as the AMQP property `type`; headers are scalars only (streams drop tables and arrays).
    """

    body: bytes
    kind: str
    message_id: str
    headers: Mapping[str, Header] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """A message as it arrived. `user_id` was validated by the broker; `offset` is set for streams only.

    `published_at` is what its publisher's clock said, in seconds since 1970: for people, and nothing may depend on it.
    With a `fault` it is not what its author sent to this place, or cannot be read here: nothing in it may be believed.
    """

    queue: str
    tag: int
    message: Message
    user_id: str | None
    redelivered: bool = False
    delivery_count: int = 0
    offset: int | None = None
    published_at: int | None = None
    fault: RejectedMessageError | None = None

    def believed(self) -> Message:
        """The message. Raises the fault of one that may not be believed."""
        if self.fault is not None:
            raise self.fault
        return self.message

    def receipt(self) -> "Delivery":
        """The same without its body: all that is needed to settle it later, whatever the number of those that wait."""
        return replace(self, message=replace(self.message, body=b""))


class Broker(Protocol):
    """One authenticated connection, used by one thread."""

    @property
    def user(self) -> str:
        """The login; stamped as `user_id` on everything published."""

    def publish(self, exchange: str, message: Message) -> None:
        """Returns once the broker has confirmed it.

        Raises PublishRefusedError (negative confirm: retry the same message), TopologyError (no such exchange, nothing
        bound to it, or no right to write), BrokerUnavailableError.
        """

    def publish_all(self, exchange: str, messages: Iterable[Message]) -> None:
        """Publishes in order, a few on their way at a time; returns once the broker has confirmed every one.

        `messages` is drawn as there is room, so that a large content never stands in memory twice. Raises as `publish` does;
        any of the messages may then have arrived.
        """

    def consume(self, queue: str, *, prefetch: int, start: StreamStart | None = None) -> None:
        """Starts a standing subscription whose deliveries come out of `receive`. `start` is for streams, and required there."""

    def cancel(self, queue: str) -> None:
        """Ends the standing subscription of a queue or stream; what it had not settled returns to the queue, and is void here."""

    def receive(self, timeout_seconds: float, *, updates: bool = True) -> Delivery | None:
        """The next delivery of any standing subscription, or None after the timeout. Also keeps heartbeats going.

        Without `updates` the update queues stay unread: whoever waits for something else must not take them into memory.
        Raises BrokerUnavailableError when the connection is lost, QueueGoneError once when a queue was deleted.
        """

    def wake(self) -> None:
        """Lets a `receive` that waits return None at once. The one method that other threads may call; never raises."""

    def read(self, stream: str, start: StreamStart, *, count: int | None, idle_seconds: float) -> Iterator[Delivery]:
        """Reads a stream from `start` without a standing subscription: at most `count` messages, ending once none came for
        `idle_seconds`. Acknowledges by itself; the caller may stop early. Other deliveries wait meanwhile."""

    def ack(self, *deliveries: Delivery) -> None:
        """Settles deliveries for good; many at once cost little more than one."""

    def reject(self, delivery: Delivery) -> None:
        """Refuses a delivery for good; the broker moves it to the dead letters."""

    def requeue(self, delivery: Delivery) -> None:
        """Gives a delivery back to its queue."""

    def close(self) -> None:
        """Ends the connection; unsettled deliveries return to their queues. Never raises."""
