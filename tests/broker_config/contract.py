"""What the tests of the broker's contract share."""

import itertools

import pytest

from broker_config.topology import (
    MODEL,
    update_queue,
)
from shared.broker import Broker, Delivery, Message
from shared.errors import PublishRefusedError

_REAL = [pytest.param(name, marks=pytest.mark.rabbitmq) for name in ("rabbitmq", "tls")]
ON_EVERY_BROKER = pytest.mark.parametrize("broker_server", ["memory", *_REAL], indirect=True)
UPDATES_A = update_queue("bank-a")


def an_update(number: int, body: bytes = b"delta") -> Message:
    return Message(body, "update", f"u{number}", {"number": number, "institution": "bank-a", "last": number == 3})


def received(broker: Broker) -> Delivery:
    delivery = broker.receive(10)
    assert delivery is not None
    return delivery


def ids(broker: Broker, stream: str, **arguments: object) -> list[str]:
    return [delivery.message.message_id for delivery in broker.read(stream, **{"idle_seconds": 0.3, **arguments})]


def published_to_model(broker: Broker, count: int) -> None:
    for number in range(count):
        broker.publish(MODEL, Message(b"chunk %d" % number, "model", f"c{number}", {"index": number}))


def fill(bank: Broker, queue: str) -> int:
    for accepted in itertools.count():
        if not is_taken(bank, queue):
            return accepted
    raise AssertionError


def is_taken(bank: Broker, queue: str) -> bool:
    try:
        bank.publish(queue, an_update(1, bytes(1 << 20)))
    except PublishRefusedError:
        return False
    return True
