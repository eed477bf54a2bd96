"""A broker whose messages are signed and sealed on their way out, and checked and opened on their way in."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from broker_config.guard import Guard
from shared.broker import Broker, Delivery, Message, StreamStart
from shared.errors import RejectedMessageError


class GuardedBroker:
    """A `shared.broker.Broker` around another one. What fails the check is delivered with its `fault`, and as it came."""

    def __init__(self, inner: Broker, guard: Guard) -> None:
        self._inner = inner
        self._guard = guard

    @property
    def user(self) -> str:
        """See `shared.broker.Broker.user`."""
        return self._inner.user

    def publish(self, exchange: str, message: Message) -> None:
        """See `shared.broker.Broker.publish`."""
        self._inner.publish(exchange, self._guard.protected(exchange, message))

    def publish_all(self, exchange: str, messages: Iterable[Message]) -> None:
        """See `shared.broker.Broker.publish_all`."""
        self._inner.publish_all(exchange, (self._guard.protected(exchange, message) for message in messages))

    def consume(self, queue: str, *, prefetch: int, start: StreamStart | None = None) -> None:
        """See `shared.broker.Broker.consume`."""
        self._inner.consume(queue, prefetch=prefetch, start=start)

    def cancel(self, queue: str) -> None:
        """See `shared.broker.Broker.cancel`."""
        self._inner.cancel(queue)

    def receive(self, timeout_seconds: float, *, updates: bool = True) -> Delivery | None:
        """See `shared.broker.Broker.receive`."""
        delivery = self._inner.receive(timeout_seconds, updates=updates)
        return None if delivery is None else self._checked(delivery)

    def wake(self) -> None:
        """See `shared.broker.Broker.wake`."""
        self._inner.wake()

    def read(self, stream: str, start: StreamStart, *, count: int | None, idle_seconds: float) -> Iterator[Delivery]:
        """See `shared.broker.Broker.read`."""
        for delivery in self._inner.read(stream, start, count=count, idle_seconds=idle_seconds):
            yield self._checked(delivery)

    def ack(self, *deliveries: Delivery) -> None:
        """See `shared.broker.Broker.ack`."""
        self._inner.ack(*deliveries)

    def reject(self, delivery: Delivery) -> None:
        """See `shared.broker.Broker.reject`."""
        self._inner.reject(delivery)

    def requeue(self, delivery: Delivery) -> None:
        """See `shared.broker.Broker.requeue`."""
        self._inner.requeue(delivery)

    def close(self) -> None:
        """See `shared.broker.Broker.close`."""
        self._inner.close()

    def _checked(self, delivery: Delivery) -> Delivery:
        try:
            return replace(delivery, message=self._guard.opened(delivery))
        except RejectedMessageError as error:
            return replace(delivery, fault=error)
