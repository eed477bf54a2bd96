"""The Broker of `shared.broker` over one pika BlockingConnection."""

import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pika

from broker_config.header_tables import tolerate_hostile_tables
from broker_config.pika_errors import FOREIGN, PIKA, translated
from broker_config.topology import entrance
from shared.broker import Delivery, Header, Message, StreamStart
from shared.errors import BrokerUnavailableError, FederationError, PublishRefusedError

_APPLICATION = "fedqueue"
_CONTENT_TYPE = "application/msgpack"
_PERSISTENT = 2
_OFFSET = "x-stream-offset"
_DELIVERY_COUNT = "x-delivery-count"
_READ_PREFETCH = 16

tolerate_hostile_tables()

# Never reused within the process, so that a delivery of a lost connection can acknowledge nothing on the next one.
_tags = itertools.count(1)


@dataclass(slots=True, eq=False)
class _Subscription:
    queue: str
    start: StreamStart | None
    channel: Any
    arrived: deque[Delivery]
    unsettled: dict[int, int] = field(default_factory=dict)  # our tag -> the channel's tag
    cancelled: bool = False


class RabbitmqBroker:
    """One authenticated connection; a channel to publish on, and one for each subscription."""

    def __init__(self, connection: Any, *, user: str, where: str) -> None:
        self._connection = connection
        self._user = user
        self._where = where
        self._publishing: Any = None
        self._arrived: deque[Delivery] = deque()
        self._subscriptions: list[_Subscription] = []
        self._lost: FederationError | None = None

    @property
    def user(self) -> str:
        """The login; stamped as `user_id` on everything published."""
        return self._user

    def publish(self, exchange: str, message: Message) -> None:
        """See `shared.broker.Broker.publish`; `exchange` is the name of the queue that is meant."""
        with self._seam(f"publish {message.kind} to {exchange} as {self._user}"):
            self._publish_channel().basic_publish(
                exchange=entrance(exchange),
                routing_key="",
                body=message.body,
                properties=self._properties(message),
                mandatory=True,
            )

    def publish_all(self, exchange: str, messages: Iterable[Message]) -> None:
        """See `shared.broker.Broker.publish_all`."""
        for message in messages:
            self.publish(exchange, message)

    def wake(self) -> None:
        """See `shared.broker.Broker.wake`."""
        with suppress(*PIKA, *FOREIGN):
            self._connection.add_callback_threadsafe(lambda: None)

    def consume(self, queue: str, *, prefetch: int, start: StreamStart | None = None) -> None:
        """See `shared.broker.Broker.consume`."""
        self._subscriptions.append(self._subscribe(queue, prefetch, start, self._arrived))

    def cancel(self, queue: str) -> None:
        """See `shared.broker.Broker.cancel`."""
        for subscription in [each for each in self._subscriptions if each.queue == queue]:
            self._subscriptions.remove(subscription)
            self._end(subscription)
            for void in [each for each in self._arrived if each.tag in subscription.unsettled]:
                self._arrived.remove(void)

    def receive(self, timeout_seconds: float) -> Delivery | None:
        """See `shared.broker.Broker.receive`."""
        deadline = time.monotonic() + timeout_seconds
        remaining = 0.0
        # Only when nothing is left: what is not read yet waits in the broker's memory, not in ours.
        while not self._arrived:
            self._pump(max(0.0, remaining))
            remaining = deadline - time.monotonic()
            if remaining <= 0 and not self._arrived:
                return None
        return self._arrived.popleft()

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
                self._settle(reader, delivery)
                yield delivery
        finally:
            self._end(reader)

    def ack(self, delivery: Delivery) -> None:
        """See `shared.broker.Broker.ack`."""
        self._settle(self._subscription_of(delivery), delivery)

    def reject(self, delivery: Delivery) -> None:
        """See `shared.broker.Broker.reject`."""
        self._give_back(delivery, requeue=False)

    def requeue(self, delivery: Delivery) -> None:
        """See `shared.broker.Broker.requeue`."""
        self._give_back(delivery, requeue=True)

    def close(self) -> None:
        """See `shared.broker.Broker.close`."""
        self._lost = self._lost or BrokerUnavailableError(f"the connection to {self._where} was closed here")
        with suppress(*PIKA, *FOREIGN):
            if self._connection.is_open:
                self._connection.close()

    def _publish_channel(self) -> Any:
        if self._publishing is None or not self._publishing.is_open:
            self._publishing = self._connection.channel()
            self._publishing.confirm_delivery()
        return self._publishing

    def _properties(self, message: Message) -> pika.BasicProperties:
        return pika.BasicProperties(
            content_type=_CONTENT_TYPE,
            headers=dict(message.headers),
            delivery_mode=_PERSISTENT,
            message_id=message.message_id,
            timestamp=int(time.time()),
            type=message.kind,
            user_id=self._user,
            app_id=_APPLICATION,
        )

    def _subscribe(self, queue: str, prefetch: int, start: StreamStart | None, arrived: deque[Delivery]) -> _Subscription:
        arguments = {} if start is None else {_OFFSET: start}
        with self._seam(f"consume {queue} as {self._user}"):
            channel = self._connection.channel()
            subscription = _Subscription(queue, start, channel, arrived)
            _never_reject_by_itself(channel)
            channel.add_on_cancel_callback(lambda _: setattr(subscription, "cancelled", True))
            channel.basic_qos(prefetch_count=prefetch)
            channel.basic_consume(queue, lambda *arrival: _keep(subscription, *arrival), arguments=arguments)
        return subscription

    def _pump(self, timeout_seconds: float) -> None:
        with self._seam("wait for deliveries"):
            self._connection.process_data_events(timeout_seconds)
        for subscription in self._subscriptions:
            self._demand_alive(subscription)

    def _demand_alive(self, subscription: _Subscription) -> None:
        """Raises where the broker ended a subscription; `process_data_events` says nothing of either way."""
        queue = subscription.queue
        if not subscription.channel.is_open:
            with self._seam(f"consume {queue} as {self._user}"):
                raise subscription.channel._closing_reason or BrokerUnavailableError(f"the channel of {queue} is closed")
        if subscription.cancelled:
            # Raises TopologyError where the queue is gone; a queue that only lost its node can be consumed again.
            self._subscribe(queue, 1, subscription.start, deque())
            with self._seam(f"consume {queue} as {self._user}"):
                raise BrokerUnavailableError(f"the broker cancelled the consumer of {queue}")

    def _wait_for(self, reader: _Subscription, idle_seconds: float) -> bool:
        deadline = time.monotonic() + idle_seconds
        while not reader.arrived:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return False
            self._pump(remaining)
            self._demand_alive(reader)
        return True

    def _end(self, reader: _Subscription) -> None:
        if self._lost is None and reader.channel.is_open:
            with self._seam(f"stop reading {reader.queue}"):
                reader.channel.close()

    def _subscription_of(self, delivery: Delivery) -> _Subscription:
        if self._lost is not None:
            raise self._lost
        for subscription in self._subscriptions:
            if delivery.tag in subscription.unsettled:
                return subscription
        raise BrokerUnavailableError(f"a delivery of {delivery.queue} was settled before, or belongs to an earlier connection")

    def _settle(self, subscription: _Subscription, delivery: Delivery) -> None:
        with self._seam(f"acknowledge a delivery of {delivery.queue}"):
            subscription.channel.basic_ack(subscription.unsettled.pop(delivery.tag))

    def _give_back(self, delivery: Delivery, *, requeue: bool) -> None:
        subscription = self._subscription_of(delivery)
        with self._seam(f"give back a delivery of {delivery.queue}"):
            # basic_nack: RabbitMQ 4.3 counts basic_reject towards the delivery limit, and `_never_reject_by_itself` has it.
            subscription.channel.basic_nack(subscription.unsettled.pop(delivery.tag), requeue=requeue)

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


def _keep(subscription: _Subscription, _channel: Any, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
    tag = next(_tags)
    subscription.unsettled[tag] = method.delivery_tag
    headers = _scalars(properties.headers or {})
    offset, count = headers.pop(_OFFSET, None), headers.pop(_DELIVERY_COUNT, 0)
    subscription.arrived.append(
        Delivery(
            queue=subscription.queue,
            tag=tag,
            message=Message(body, _text(properties.type), _text(properties.message_id), headers),
            user_id=properties.user_id if isinstance(properties.user_id, str) else None,
            redelivered=bool(method.redelivered),
            delivery_count=int(count) if isinstance(count, int) else 0,
            offset=int(offset) if isinstance(offset, int) else None,
            published_at=properties.timestamp if isinstance(properties.timestamp, int) else None,
        )
    )


def _scalars(headers: Mapping[object, object]) -> dict[str, Header]:
    return {key: value for key, value in headers.items() if isinstance(key, str) and isinstance(value, int | str)}


def _text(property_value: object) -> str:
    # pika leaves bytes that are not UTF-8 as they are; no message of ours has such a property.
    return property_value if isinstance(property_value, str) else ""


def _never_reject_by_itself(channel: Any) -> None:
    # pika rejects what arrives while a consumer is cancelled. Before 3.13 a broker answers a reject on a stream by closing
    # the connection; on a queue it only adds to the delivery count. What is unsettled returns with the channel anyway.
    channel._impl.basic_reject = lambda *_args, **_keywords: None
