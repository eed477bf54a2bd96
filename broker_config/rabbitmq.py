"""The Broker of `shared.broker` over pika."""

import itertools
import select
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pika

from broker_config.link import Link
from broker_config.pika_errors import translated
from broker_config.publisher import Publisher
from broker_config.topology import institution_of
from shared.broker import Delivery, Header, Message, StreamStart
from shared.errors import BrokerUnavailableError, FederationError, PublishRefusedError, QueueGoneError, TopologyError

_OFFSET = "x-stream-offset"
_DELIVERY_COUNT = "x-delivery-count"
_READ_PREFETCH = 16
_MOST_WAIT_SECONDS = 1.0
_MANY = 32

# Never reused within the process, so that a delivery of a lost connection can acknowledge nothing on the next one.
_tags = itertools.count(1)


@dataclass(slots=True, eq=False)
class _Subscription:
    queue: str
    start: StreamStart | None
    link: Link
    channel: Any
    arrived: deque[Delivery]
    unsettled: "dict[int, tuple[_Subscription, int]]"  # by our tag: whose it is, and the channel's tag
    together: int = 1  # acknowledgements that are sent as one
    owed: int = 0
    owed_tag: int = 0
    owed_since: float = 0.0
    ended: bool = False

    def keep(self, _channel: Any, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        """Takes a message as it comes off the wire."""
        if self.ended:
            return
        tag = next(_tags)
        self.unsettled[tag] = (self, method.delivery_tag)
        self.arrived.append(_delivery(self.queue, tag, method.redelivered, properties, body))


class RabbitmqBroker:
    """One login: a connection, and a second one for update queues once there are any.

    Updates of hundreds of institutions wait for the leader, more than its memory holds. They have a connection of their own,
    which is read only when nothing read before is left; a confirm or a manifest never stands behind them.
    """

    def __init__(self, connected: Callable[[], Link], *, user: str, name: str, where: str) -> None:
        self._connected = connected
        self._user = user
        self._name = name
        self._where = where
        self._link = connected()
        self._updates: Link | None = None
        self._updates_turned = 0.0
        self._waiting = select.poll()
        self._waiting.register(self._link, select.POLLIN)
        self._publisher: Publisher | None = None
        self._arrived: deque[Delivery] = deque()
        self._arrived_updates: deque[Delivery] = deque()
        self._unsettled: dict[int, tuple[_Subscription, int]] = {}
        self._subscriptions: dict[str, _Subscription] = {}
        self._ended: list[tuple[_Subscription, BaseException | None]] = []
        self._woken = False
        self._lost: FederationError | None = None

    @property
    def user(self) -> str:
        """The login; stamped as `user_id` on everything published."""
        return self._user

    def publish(self, exchange: str, message: Message) -> None:
        """See `shared.broker.Broker.publish`; `exchange` is the name of the queue that is meant."""
        self._publish(exchange, (message,), message.kind)

    def publish_all(self, exchange: str, messages: Iterable[Message]) -> None:
        """See `shared.broker.Broker.publish_all`."""
        self._publish(exchange, messages, "messages")

    def wake(self) -> None:
        """See `shared.broker.Broker.wake`."""
        if not self._woken:
            self._woken = True
            self._link.interrupt()

    def consume(self, queue: str, *, prefetch: int, start: StreamStart | None = None) -> None:
        """See `shared.broker.Broker.consume`."""
        arrived = self._arrived if institution_of(queue) is None else self._arrived_updates
        self._subscriptions[queue] = self._subscribe(queue, prefetch, start, arrived)

    def cancel(self, queue: str) -> None:
        """See `shared.broker.Broker.cancel`."""
        subscription = self._subscriptions.pop(queue, None)
        if subscription is not None:
            self._end(subscription)
            self._forget(subscription)

    def receive(self, timeout_seconds: float, *, updates: bool = True) -> Delivery | None:
        """See `shared.broker.Broker.receive`."""
        deadline = time.monotonic() + timeout_seconds
        remaining = 0.0
        # Only when nothing is left: what is not read yet waits in the broker's memory, not in ours.
        while not (self._arrived or (updates and self._arrived_updates)):
            self._turn(remaining, updates=updates)
            remaining = deadline - time.monotonic()
            if self._woken or remaining <= 0:
                self._woken = False
                break
        if self._arrived:
            return self._arrived.popleft()
        return self._arrived_updates.popleft() if updates and self._arrived_updates else None

    def read(self, stream: str, start: StreamStart, *, count: int | None, idle_seconds: float) -> Iterator[Delivery]:
        """See `shared.broker.Broker.read`."""
        if count is not None and count <= 0:
            return
        prefetch = _READ_PREFETCH if count is None else min(_READ_PREFETCH, count)
        reader = self._subscribe(stream, prefetch, start, deque())
        try:
            for _ in itertools.count() if count is None else range(count):
                if not self._wait_for(reader, idle_seconds):
                    return
                delivery = reader.arrived.popleft()
                self.ack(delivery)
                yield delivery
        finally:
            self._end(reader)
            self._forget(reader)

    def ack(self, *deliveries: Delivery) -> None:
        """See `shared.broker.Broker.ack`."""
        settled: dict[Link, list[tuple[Any, int]]] = {}
        for delivery in deliveries:
            subscription, tag = self._settled(delivery)
            if subscription.together > 1:
                self._owe(subscription, tag)
            elif not subscription.ended:
                settled.setdefault(subscription.link, []).append((subscription.channel, tag))
        for link, acknowledged in settled.items():
            with self._seam(f"acknowledge deliveries of {deliveries[0].queue}"):
                link.acknowledge(acknowledged)

    def _owe(self, subscription: _Subscription, tag: int) -> None:
        """Acknowledges what was read of a stream, where that only asks for more, some of it at a time."""
        subscription.owed_since = subscription.owed_since if subscription.owed else time.monotonic()
        subscription.owed += 1
        subscription.owed_tag = tag
        if subscription.owed >= subscription.together:
            self._pay(subscription)

    def _pay(self, subscription: _Subscription) -> None:
        if subscription.owed and not subscription.ended:
            subscription.owed = 0
            with self._seam(f"acknowledge what was read of {subscription.queue}"):
                subscription.link.acknowledge([(subscription.channel, subscription.owed_tag)], and_earlier=True)

    def reject(self, delivery: Delivery) -> None:
        """See `shared.broker.Broker.reject`."""
        self._give_back(delivery, requeue=False)

    def requeue(self, delivery: Delivery) -> None:
        """See `shared.broker.Broker.requeue`."""
        self._give_back(delivery, requeue=True)

    def close(self) -> None:
        """See `shared.broker.Broker.close`."""
        if self._lost is None:
            self._lost = BrokerUnavailableError(f"the connection to {self._where} was closed here")
        for subscription in self._subscriptions.values():
            subscription.ended = True
        for link in (self._link, self._updates):
            if link is not None:
                link.close()

    def _publish(self, exchange: str, messages: Iterable[Message], what: str) -> None:
        with self._seam(f"publish {what} to {exchange} as {self._user}"):
            if self._publisher is None or not self._publisher.is_open:
                self._publisher = Publisher(self._link, self._user, self._keep_updates_alive)
            self._publisher.publish(exchange, messages)

    def _subscribe(self, queue: str, prefetch: int, start: StreamStart | None, arrived: deque[Delivery]) -> _Subscription:
        arguments = {} if start is None else {_OFFSET: start}
        with self._seam(f"consume {queue} as {self._user}"):
            link = self._link_of(arrived)
            channel = link.channel()
            # A standing reader of small things; one with little room paces the broker by its acknowledgements.
            together = 1 if start is None or prefetch < _MANY else prefetch // 4
            subscription = _Subscription(queue, start, link, channel, arrived, self._unsettled, together)
            _never_reject_by_itself(channel)
            answers: list[Any] = []
            channel.basic_qos(prefetch_count=prefetch, callback=answers.append)
            link.until(lambda: answers, channel)
            channel.basic_consume(queue, subscription.keep, consumer_tag=self._name, arguments=arguments, callback=answers.append)
            link.until(lambda: len(answers) == 2, channel)
            channel.add_on_cancel_callback(lambda _: self._ended.append((subscription, None)))
            channel.add_on_close_callback(lambda _, reason: self._ended.append((subscription, reason)))
        return subscription

    def _link_of(self, arrived: deque[Delivery]) -> Link:
        if arrived is not self._arrived_updates:
            return self._link
        if self._updates is None:
            self._updates = self._connected()
            self._waiting.register(self._updates, select.POLLIN)
        return self._updates

    def _turn(self, timeout_seconds: float, *, updates: bool) -> None:
        with self._seam("wait for deliveries"):
            if self._updates is None or not updates:
                self._link.turn(timeout_seconds)
                self._keep_updates_alive()
            else:
                self._waiting.poll(1000 * min(max(0.0, timeout_seconds), _MOST_WAIT_SECONDS))
                self._link.turn()
                self._updates.turn()
                self._updates_turned = time.monotonic()
        for subscription in self._subscriptions.values():
            if subscription.owed and time.monotonic() - subscription.owed_since > _MOST_WAIT_SECONDS:
                self._pay(subscription)
        while news := [each for each in self._ended if updates or each[0].link is self._link]:
            self._ended.remove(news[0])
            self._demand_alive(*news[0])

    def _keep_updates_alive(self) -> None:
        """Heartbeats on the connection of the updates, and little else, while only the other one is wanted."""
        if self._updates is not None and time.monotonic() - self._updates_turned > self._updates.heartbeat_seconds / 4:
            self._updates.turn()
            self._updates_turned = time.monotonic()

    def _demand_alive(self, subscription: _Subscription, reason: BaseException | None) -> None:
        """Raises where the broker ended a subscription: closed its channel for a reason, or cancelled its consumer."""
        queue = subscription.queue
        if subscription.ended:
            return
        doing = f"consume {queue} as {self._user}"
        if reason is not None:
            with self._seam(doing):
                raise reason
        self._end(subscription)
        self._subscriptions.pop(queue, None)
        try:
            # A queue that only lost its node can be consumed again.
            self._end(self._subscribe(queue, 1, subscription.start, deque()))
        except TopologyError as error:
            raise QueueGoneError(queue, f"{doing}: the queue was deleted ({error})") from error
        with self._seam(doing):
            raise BrokerUnavailableError(f"the broker cancelled the consumer of {queue}")

    def _wait_for(self, reader: _Subscription, idle_seconds: float) -> bool:
        deadline = time.monotonic() + idle_seconds
        while not reader.arrived:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return False
            self._turn(remaining, updates=False)
        return True

    def _end(self, subscription: _Subscription) -> None:
        """Closes its channel, without waiting for the broker's answer."""
        subscription.ended = True
        if self._lost is None and subscription.channel.is_open:
            with self._seam(f"stop reading {subscription.queue}"):
                subscription.channel.close()

    def _forget(self, subscription: _Subscription) -> None:
        for tag in [tag for tag, (owner, _) in self._unsettled.items() if owner is subscription]:
            del self._unsettled[tag]
        for void in [each for each in subscription.arrived if each.tag not in self._unsettled]:
            subscription.arrived.remove(void)

    def _settled(self, delivery: Delivery) -> tuple[_Subscription, int]:
        if self._lost is not None:
            raise self._lost
        try:
            return self._unsettled.pop(delivery.tag)
        except KeyError:
            why = f"a delivery of {delivery.queue} was settled before, or belongs to an earlier connection"
            raise BrokerUnavailableError(why) from None

    def _give_back(self, delivery: Delivery, *, requeue: bool) -> None:
        subscription, tag = self._settled(delivery)
        if not subscription.ended:
            with self._seam(f"give back a delivery of {delivery.queue}"):
                # basic_nack: RabbitMQ 4.3 counts basic_reject towards the delivery limit, and `_never_reject_by_itself` has it.
                subscription.channel.basic_nack(tag, requeue=requeue)

    @contextmanager
    def _seam(self, doing: str) -> Iterator[None]:
        if self._lost is not None:
            raise BrokerUnavailableError(f"{doing} at {self._where}: no longer connected") from self._lost
        try:
            with translated(f"{doing} at {self._where}"):
                yield
        except PublishRefusedError:
            raise
        except BrokerUnavailableError as error:
            self._lost = error
            raise


def _delivery(queue: str, tag: int, redelivered: bool, properties: pika.BasicProperties, body: bytes) -> Delivery:
    headers = _scalars(properties.headers or {})
    offset, count = headers.pop(_OFFSET, None), headers.pop(_DELIVERY_COUNT, 0)
    return Delivery(
        queue=queue,
        tag=tag,
        message=Message(body, _text(properties.type), _text(properties.message_id), headers),
        user_id=properties.user_id if isinstance(properties.user_id, str) else None,
        redelivered=bool(redelivered),
        delivery_count=int(count) if isinstance(count, int) else 0,
        offset=int(offset) if isinstance(offset, int) else None,
        published_at=properties.timestamp if isinstance(properties.timestamp, int) else None,
    )


def _scalars(headers: Mapping[object, object]) -> dict[str, Header]:
    return {key: value for key, value in headers.items() if isinstance(key, str) and isinstance(value, int | str)}


def _text(property_value: object) -> str:
    # pika leaves bytes that are not UTF-8 as they are; no message of ours has such a property.
    return property_value if isinstance(property_value, str) else ""


def _never_reject_by_itself(channel: Any) -> None:
    # pika rejects what arrives while a consumer is cancelled. Before 3.13 a broker answers a reject on a stream by closing
    # the connection; on a queue it only adds to the delivery count. What is unsettled returns with the channel anyway.
    channel.basic_reject = lambda *_args, **_keywords: None
