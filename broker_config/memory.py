"""A broker in process: the semantics that fedqueue uses of RabbitMQ, and no more.

Publish confirm, unroutable, rights, delivery, acknowledge, reject to the dead letters, requeue, limits, prefetch, single
active consumer, offsets of a stream. It carries bytes, so what cannot be encoded fails here as it would on the wire.
"""

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace

from broker_config.definitions import ADMIN, Permission, permissions
from broker_config.memory_queues import Consumer, MemoryQueue, MemoryStream, delivery_of, made
from broker_config.topology import LEAD, TOKEN, Topology, control_queue, entrance, institution_of, topology, update_queue
from shared.broker import Delivery, Header, Message, StreamStart
from shared.errors import (
    BrokerUnavailableError,
    FederationError,
    MalformedMessageError,
    PublishRefusedError,
    QueueGoneError,
    TopologyError,
)


class MemoryRabbit:
    """The server: shared by threads, each of which has its own MemoryBroker from `connect`."""

    def __init__(self, objects: Topology) -> None:
        self.changed = threading.Condition()
        self.topology = objects
        self.connections: list[MemoryBroker] = []
        self._queues: dict[str, MemoryQueue | MemoryStream] = {}
        self._routes: dict[str, list[str]] = {}
        self._permissions: dict[str, Permission] = {}
        self._take_over(objects)
        with self.changed:
            self.route(entrance(LEAD), TOKEN, ADMIN)

    def connect(self, user: str) -> "MemoryBroker":
        """A connection of a known login."""
        with self.changed:
            if user not in self._permissions:
                raise TopologyError(f"connect as {user}: the broker refused the user or its password")
            broker = MemoryBroker(self, self._permissions[user])
            self.connections.append(broker)
            return broker

    def declare(self, institution: str) -> None:
        """Creates the login and the queues of a new institution."""
        with self.changed:
            self._take_over(topology([*self.topology.institutions, institution], self.topology.limits))

    def remove(self, institution: str) -> None:
        """Deletes an institution's login, connections and queues."""
        self.drop(institution)
        for queue in (update_queue(institution), control_queue(institution)):
            self.remove_queue(queue)
        with self.changed:
            self._permissions.pop(institution, None)
            left = [each for each in self.topology.institutions if each != institution]
            self.topology = topology(left, self.topology.limits)

    def remove_queue(self, name: str) -> None:
        """Deletes a queue; its consumers are cancelled, its messages are gone."""
        with self.changed:
            queue = self._queues.pop(name, None)
            for consumer in queue.consumers if queue else ():
                consumer.cancelled = True
            self.changed.notify_all()

    def drop(self, user: str) -> None:
        """Loses every connection of a login, as a network or a process does."""
        with self.changed:
            for broker in [each for each in self.connections if each.user == user]:
                self.end(broker, BrokerUnavailableError(f"the connection of {user} was lost"))

    def depth(self, name: str) -> int:
        """Messages that wait in a queue, or that a stream holds."""
        with self.changed:
            return self._queues[name].depth

    def end(self, broker: "MemoryBroker", why: FederationError) -> None:
        """Closes one connection; the lock is held."""
        if broker not in self.connections:
            return
        self.connections.remove(broker)
        broker.lost = why
        for consumer in broker.consumers:
            if not consumer.cancelled:
                consumer.queue.leave(consumer)
        self.changed.notify_all()

    def queue(self, name: str, right: Permission) -> MemoryQueue | MemoryStream:
        """A queue that a login may read; the lock is held."""
        if not right.may_read(name):
            raise TopologyError(f"consume {name} as {right.user}: 403 ACCESS_REFUSED - read access refused")
        if name not in self._queues:
            raise TopologyError(f"consume {name} as {right.user}: 404 NOT_FOUND - no queue")
        return self._queues[name]

    def route(self, exchange: str, message: Message, user_id: str) -> None:
        """Puts a message into every queue behind an exchange; the lock is held."""
        bound = [self._queues[name] for name in self._routes.get(exchange, ()) if name in self._queues]
        if not bound:
            raise TopologyError(f"publish to {exchange} as {user_id}: no queue is bound to that exchange")
        refused = [queue.name for queue in bound if queue.refuses_more]
        for queue in bound:
            if queue.name not in refused:
                queue.append(message, user_id)
        self.changed.notify_all()
        if refused:
            raise PublishRefusedError(f"publish to {exchange} as {user_id}: {refused[0]} is full")

    def _take_over(self, objects: Topology) -> None:
        self.topology = objects
        self._permissions = {right.user: right for right in permissions(objects.institutions)}
        for queue in objects.queues:
            self._queues.setdefault(queue.name, made(queue, objects.policies))
        self._routes = {}
        for binding in objects.bindings:
            self._routes.setdefault(binding.exchange, []).append(binding.queue)


class MemoryBroker:
    """One connection to a MemoryRabbit: a `shared.broker.Broker`."""

    def __init__(self, server: MemoryRabbit, right: Permission) -> None:
        self.consumers: list[Consumer] = []
        self.lost: FederationError | None = None
        self._server = server
        self._right = right
        self._arrived: deque[Delivery] = deque()
        self._arrived_updates: deque[Delivery] = deque()
        self._woken = False

    @property
    def user(self) -> str:
        """The login; stamped as `user_id` on everything published."""
        return self._right.user

    def publish(self, exchange: str, message: Message) -> None:
        """See `shared.broker.Broker.publish`."""
        with self._server.changed:
            self._demand_connection()
            if not self._right.may_write(entrance(exchange)):
                raise TopologyError(f"publish to {exchange} as {self.user}: 403 ACCESS_REFUSED - write access refused")
            self._server.route(entrance(exchange), _as_on_the_wire(message), self.user)

    def publish_all(self, exchange: str, messages: Iterable[Message]) -> None:
        """See `shared.broker.Broker.publish_all`."""
        for message in messages:
            self.publish(exchange, message)

    def wake(self) -> None:
        """See `shared.broker.Broker.wake`."""
        with self._server.changed:
            self._woken = True
            self._server.changed.notify_all()

    def consume(self, queue: str, *, prefetch: int, start: StreamStart | None = None) -> None:
        """See `shared.broker.Broker.consume`."""
        with self._server.changed:
            self._demand_connection()
            arrived = self._arrived if institution_of(queue) is None else self._arrived_updates
            consumer = Consumer(self._server.queue(queue, self._right), prefetch, arrived)
            self.consumers.append(consumer)
            consumer.queue.subscribe(consumer, start)

    def cancel(self, queue: str) -> None:
        """See `shared.broker.Broker.cancel`."""
        with self._server.changed:
            for consumer in [each for each in self.consumers if each.queue.name == queue]:
                self.consumers.remove(consumer)
                for void in [each for each in consumer.arrived if each.tag in consumer.unsettled]:
                    consumer.arrived.remove(void)
                consumer.queue.leave(consumer)
            self._server.changed.notify_all()

    def receive(self, timeout_seconds: float, *, updates: bool = True) -> Delivery | None:
        """See `shared.broker.Broker.receive`."""
        with self._server.changed:
            self._server.changed.wait_for(lambda: self._has_news(updates=updates), timeout_seconds)
            self._demand_connection()
            self._demand_queues(updates=updates)
            delivery = self._next(updates=updates)
            self._woken = self._woken and delivery is not None
            return delivery

    def read(self, stream: str, start: StreamStart, *, count: int | None, idle_seconds: float) -> Iterator[Delivery]:
        """See `shared.broker.Broker.read`."""
        cursor: int | None = None
        sent = 0
        while count is None or sent < count:
            delivery = self._at(stream, start if cursor is None else cursor, idle_seconds)
            if delivery is None or delivery.offset is None:
                return
            cursor = delivery.offset + 1
            sent += 1
            yield delivery

    def ack(self, *deliveries: Delivery) -> None:
        """See `shared.broker.Broker.ack`."""
        with self._server.changed:
            for delivery in deliveries:
                consumer = self._consumer_of(delivery)
                del consumer.unsettled[delivery.tag]
                consumer.queue.deliver()
            self._server.changed.notify_all()

    def reject(self, delivery: Delivery) -> None:
        """See `shared.broker.Broker.reject`."""
        with self._server.changed:
            consumer = self._consumer_of(delivery)
            stored = consumer.unsettled.pop(delivery.tag)
            if isinstance(consumer.queue.dead_letters_to, str):
                self._server.route(consumer.queue.dead_letters_to, _dead(stored.message, delivery.queue), stored.user_id)
            consumer.queue.deliver()
            self._server.changed.notify_all()

    def requeue(self, delivery: Delivery) -> None:
        """See `shared.broker.Broker.requeue`."""
        with self._server.changed:
            consumer = self._consumer_of(delivery)
            consumer.queue.give_back(consumer, delivery.tag)
            consumer.queue.deliver()
            self._server.changed.notify_all()

    def close(self) -> None:
        """See `shared.broker.Broker.close`."""
        with self._server.changed:
            self._server.end(self, BrokerUnavailableError(f"the connection of {self.user} was closed here"))

    def _at(self, stream: str, start: StreamStart, idle_seconds: float) -> Delivery | None:
        with self._server.changed:
            self._demand_connection()
            queue = self._server.queue(stream, self._right)
            if isinstance(queue, MemoryQueue):
                raise TopologyError(f"read {stream}: not a stream")
            offset = queue.offset_of(start)
            self._server.changed.wait_for(lambda: self.lost or queue.at(offset), idle_seconds)
            self._demand_connection()
            stored = queue.at(offset)
            return None if stored is None else delivery_of(stream, stored, offset)

    def _next(self, *, updates: bool) -> Delivery | None:
        for arrived in (self._arrived, self._arrived_updates if updates else ()):
            if arrived:
                return arrived.popleft()
        return None

    def _has_news(self, *, updates: bool) -> bool:
        arrived = self._arrived or (updates and self._arrived_updates)
        return bool(self.lost or arrived or self._woken or self._gone(updates=updates))

    def _gone(self, *, updates: bool) -> list[Consumer]:
        gone = [consumer for consumer in self.consumers if consumer.cancelled and not consumer.told]
        return [consumer for consumer in gone if updates or institution_of(consumer.queue.name) is None]

    def _demand_connection(self) -> None:
        if self.lost:
            raise BrokerUnavailableError(f"no longer connected: {self.lost}")

    def _demand_queues(self, *, updates: bool) -> None:
        for consumer in self._gone(updates=updates):
            consumer.told = True
            raise QueueGoneError(consumer.queue.name, f"queue {consumer.queue.name} was deleted")

    def _consumer_of(self, delivery: Delivery) -> Consumer:
        self._demand_connection()
        for consumer in self.consumers:
            if delivery.tag in consumer.unsettled:
                return consumer
        raise BrokerUnavailableError(f"a delivery of {delivery.queue} was settled before, or belongs to an earlier connection")


def _as_on_the_wire(message: Message) -> Message:
    if not all(isinstance(value, int | str) for value in message.headers.values()):
        raise MalformedMessageError(f"publish {message.kind}: headers are integers, strings and booleans only")
    return Message(bytes(message.body), message.kind, message.message_id, dict(message.headers))


def _dead(message: Message, queue: str) -> Message:
    death: dict[str, Header] = {
        "x-first-death-queue": queue,
        "x-first-death-reason": "rejected",
        "x-first-death-exchange": entrance(queue),
    }
    return replace(message, headers={**message.headers, **death})
