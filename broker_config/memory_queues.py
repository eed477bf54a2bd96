"""The queues and streams of the in-memory broker; every call is made under the server's lock."""

import bisect
import itertools
from collections import deque
from dataclasses import dataclass, field, replace

from broker_config.topology import Argument, Policy, Queue
from shared.broker import Delivery, Message, StreamStart

# Never reused, so that a delivery of a lost connection can settle nothing on the next one.
_tags = itertools.count(1)


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """A message where it lies; `number` is its place in the queue or its offset in the stream."""

    number: int
    message: Message
    user_id: str
    delivery_count: int = 0


@dataclass(slots=True, eq=False)
class Consumer:
    """One subscription: what it may still take, and what it took and has not settled."""

    queue: "MemoryQueue | MemoryStream"
    prefetch: int
    arrived: deque[Delivery]
    cursor: int = 0
    unsettled: dict[int, Stored] = field(default_factory=dict)
    cancelled: bool = False
    told: bool = False

    def take(self, stored: Stored, offset: int | None) -> None:
        """Hands a message to the connection that subscribed."""
        delivery = delivery_of(self.queue.name, stored, offset)
        self.unsettled[delivery.tag] = stored
        self.arrived.append(delivery)

    @property
    def has_room(self) -> bool:
        """Whether the prefetch allows another delivery."""
        return len(self.unsettled) < self.prefetch


def delivery_of(queue: str, stored: Stored, offset: int | None) -> Delivery:
    """A stored message as its reader gets it."""
    return Delivery(
        queue=queue,
        tag=next(_tags),
        message=stored.message,
        user_id=stored.user_id,
        redelivered=stored.delivery_count > 0,
        delivery_count=stored.delivery_count,
        offset=offset,
    )


class MemoryQueue:
    """A quorum queue with its policy's limits."""

    def __init__(self, queue: Queue, definition: dict[str, Argument]) -> None:
        self.name = queue.name
        self.dead_letters_to = definition.get("dead-letter-exchange")
        self.consumers: list[Consumer] = []
        self._single_active = bool(queue.arguments.get("x-single-active-consumer"))
        self._refuses = definition.get("overflow") == "reject-publish"
        self._limit_bytes = definition.get("max-length-bytes")
        self._limit_messages = definition.get("max-length")
        self._ready: deque[Stored] = deque()
        self._numbers = itertools.count()

    @property
    def depth(self) -> int:
        """Messages that wait; those delivered and not settled are not counted."""
        return len(self._ready)

    @property
    def refuses_more(self) -> bool:
        """Whether a publish is refused; like RabbitMQ, the message that crosses the limit is still taken."""
        return self._refuses and self._is_over()

    def append(self, message: Message, user_id: str) -> None:
        """Takes a message, and drops the oldest where the policy says so."""
        self._ready.append(Stored(next(self._numbers), message, user_id))
        while not self._refuses and self._is_over():
            self._ready.popleft()
        self.deliver()

    def subscribe(self, consumer: Consumer, _start: StreamStart | None) -> None:
        """Adds a consumer; with a single active consumer the first one gets everything."""
        self.consumers.append(consumer)
        self.deliver()

    def give_back(self, consumer: Consumer, tag: int) -> None:
        """Puts one delivery back at its old place."""
        stored = consumer.unsettled.pop(tag)
        again = replace(stored, delivery_count=stored.delivery_count + 1)
        bisect.insort(self._ready, again, key=lambda each: each.number)

    def leave(self, consumer: Consumer) -> None:
        """Ends a subscription; what it had not settled goes to the next one, in order."""
        self.consumers.remove(consumer)
        for tag in list(consumer.unsettled):
            self.give_back(consumer, tag)
        self.deliver()

    def deliver(self) -> None:
        """Hands out what waits, in turn, to the consumers that have room."""
        active = self.consumers[:1] if self._single_active else self.consumers
        while self._ready and (free := [consumer for consumer in active if consumer.has_room]):
            for consumer in free[: len(self._ready)]:
                consumer.take(self._ready.popleft(), None)

    def _is_over(self) -> bool:
        waiting_bytes = sum(len(stored.message.body) for stored in self._ready)
        return _above(waiting_bytes, self._limit_bytes) or _above(len(self._ready), self._limit_messages)


class MemoryStream:
    """A stream that keeps everything; each reader has its own place in it."""

    dead_letters_to = None
    refuses_more = False

    def __init__(self, queue: Queue) -> None:
        self.name = queue.name
        self.consumers: list[Consumer] = []
        self._log: list[Stored] = []

    @property
    def depth(self) -> int:
        """All messages that the stream holds."""
        return len(self._log)

    def append(self, message: Message, user_id: str) -> None:
        """Adds a message at the end."""
        self._log.append(Stored(len(self._log), message, user_id))
        self.deliver()

    def subscribe(self, consumer: Consumer, start: StreamStart | None) -> None:
        """Adds a reader at `start`."""
        consumer.cursor = self.offset_of(start)
        self.consumers.append(consumer)
        self.deliver()

    def give_back(self, consumer: Consumer, tag: int) -> None:
        """A stream has nothing to take back."""
        del consumer.unsettled[tag]

    def leave(self, consumer: Consumer) -> None:
        """Ends a subscription."""
        self.consumers.remove(consumer)

    def deliver(self) -> None:
        """Hands every reader what it has room for."""
        for consumer in self.consumers:
            while consumer.has_room and (stored := self.at(consumer.cursor)) is not None:
                consumer.cursor += 1
                consumer.take(stored, stored.number)

    def at(self, offset: int) -> Stored | None:
        """The message at an offset, where there is one already."""
        return self._log[offset] if offset < len(self._log) else None

    def offset_of(self, start: StreamStart | None) -> int:
        """Where reading starts; an offset outside the stream is clamped, as RabbitMQ does."""
        match start:
            case "first":
                return 0
            case "last":
                return max(0, len(self._log) - 1)
            case "next" | None:
                return len(self._log)
            case offset:
                return min(max(0, offset), len(self._log))


def _above(value: int, limit: Argument | None) -> bool:
    return isinstance(limit, int) and value > limit


def made(queue: Queue, policies: tuple[Policy, ...]) -> MemoryQueue | MemoryStream:
    """The queue or stream under the first policy that matches its name."""
    if queue.is_stream:
        return MemoryStream(queue)
    matching = (policy.definition for policy in policies if policy.applies_to(queue.name))
    return MemoryQueue(queue, dict(next(matching, {})))
