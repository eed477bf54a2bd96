"""What the broker enforces against one institution, whatever its program does: pika as it comes, on a real RabbitMQ."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pika
import pytest
from pika import exceptions
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from broker_config.connection import address
from broker_config.definitions import User
from broker_config.topology import Limits, update_queue
from tests.conftest import LIMITS

pytestmark = pytest.mark.rabbitmq
USER = User("bank-a")
MIB = 2**20


@contextmanager
def connected(server, institution: str = "bank-a") -> Iterator[Any]:
    login = server.logins.settings(institution)
    host, port, vhost = address(login.url)
    credentials = pika.PlainCredentials(login.user, login.secret())
    connection = pika.BlockingConnection(pika.ConnectionParameters(host, port, vhost, credentials, blocked_connection_timeout=20))
    try:
        yield connection
    finally:
        if connection.is_open:
            connection.close()


@retry(retry=retry_if_exception_type(exceptions.AMQPConnectionError), stop=stop_after_delay(20), wait=wait_fixed(0.2))
def patiently(act: Callable[[], object]) -> None:
    """RabbitMQ goes on counting what an earlier test has closed for as long as a busy machine takes."""
    act()


def test_an_institution_may_hold_eight_connections_and_another_as_many(rabbitmq_server):
    assert USER.max_connections == 8
    with ExitStack() as stack:
        for _ in range(8):
            patiently(lambda: stack.enter_context(connected(rabbitmq_server)))
        with pytest.raises(exceptions.AMQPConnectionError):
            stack.enter_context(connected(rabbitmq_server))
        stack.enter_context(connected(rabbitmq_server, "bank-b"))


def test_an_institution_may_hold_32_channels_in_all(rabbitmq_server):
    assert USER.max_channels == 32
    with connected(rabbitmq_server) as first, connected(rabbitmq_server) as second:
        for connection in (first, second):
            for _ in range(16):
                connection.channel()
        with pytest.raises(exceptions.AMQPError):
            second.channel()


def test_a_message_of_more_than_16_mib_is_refused_before_it_is_stored(rabbitmq_server):
    with connected(rabbitmq_server) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        with pytest.raises(exceptions.ChannelClosedByBroker, match=r"size|larger"):
            channel.basic_publish(update_queue("bank-a"), "", bytes(16 * MIB + 1))
    assert rabbitmq_server.depth(update_queue("bank-a")) == 0


def taken_until_refused(channel: Any, body: bytes, *, patience: int) -> int:
    for taken in range(patience):
        try:
            channel.basic_publish(update_queue("bank-a"), "", body)
        except exceptions.NackError:
            return taken
    return patience


@pytest.mark.parametrize(
    ("body", "at_most"),
    [
        pytest.param(b"", Limits().messages_per_institution, id="empty messages"),
        pytest.param(bytes(MIB), LIMITS.updates_per_institution, id="messages of an update's size"),
    ],
)
def test_a_queue_that_nobody_reads_is_full_at_its_limit_for_whoever_waits_for_confirms(rabbitmq_server, body, at_most):
    with connected(rabbitmq_server) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        taken = taken_until_refused(channel, body, patience=2 * at_most + 10)
    # the message that crosses the limit is still taken
    assert taken == at_most + 1 == rabbitmq_server.depth(update_queue("bank-a"))


def test_a_flood_without_confirms_fills_little_more_than_the_limit_and_no_other_queue(rabbitmq_server):
    with connected(rabbitmq_server) as connection:
        channel = connection.channel()
        for _ in range(20_000):
            channel.basic_publish(update_queue("bank-a"), "", b"")
        connection.process_data_events()
    assert rabbitmq_server.depth(update_queue("bank-a")) <= 2 * Limits().messages_per_institution
    with connected(rabbitmq_server, "bank-b") as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.basic_publish(update_queue("bank-b"), "", b"honest")
    assert rabbitmq_server.depth(update_queue("bank-b")) == 1
