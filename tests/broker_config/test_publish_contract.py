"""Publishing many messages at once: each test runs on both brokers."""

import pytest

from broker_config.topology import (
    update_queue,
)
from shared.errors import BrokerUnavailableError, PublishRefusedError, TopologyError
from tests.broker_config.contract import ON_EVERY_BROKER, UPDATES_A, an_update, is_taken, received

pytestmark = ON_EVERY_BROKER


def test_many_messages_are_published_in_order_and_all_there_when_it_returns(broker_server):
    bank, aggregator = broker_server.connect("bank-a"), broker_server.connect("aggregator")
    bank.publish_all(UPDATES_A, (an_update(number) for number in range(1, 31)))
    assert broker_server.depth(UPDATES_A) == 30
    aggregator.consume(UPDATES_A, prefetch=30)
    assert [received(aggregator).message.message_id for _ in range(30)] == [f"u{number}" for number in range(1, 31)]


def test_publishing_nothing_is_no_error(broker_server):
    broker_server.connect("bank-a").publish_all(UPDATES_A, [])
    assert broker_server.depth(UPDATES_A) == 0


def test_messages_are_drawn_only_as_there_is_room_for_them(broker_server):
    bank, drawn = broker_server.connect("bank-a"), []

    def drawing():
        for number in range(1, 101):
            drawn.append(number)
            yield an_update(number, bytes(1 << 20))

    with pytest.raises(PublishRefusedError):
        bank.publish_all(UPDATES_A, drawing())
    # The limit is 3 MiB; a window of four may be under way beyond what the queue took.
    assert 4 <= len(drawn) <= 12


def test_a_full_queue_refuses_one_of_many_and_the_same_connection_goes_on(broker_server, soon):
    bank, aggregator = broker_server.connect("bank-a"), broker_server.connect("aggregator")
    with pytest.raises(PublishRefusedError):
        bank.publish_all(UPDATES_A, [an_update(number, bytes(1 << 20)) for number in range(1, 13)])
    aggregator.consume(UPDATES_A, prefetch=12)
    while (delivery := aggregator.receive(0.5)) is not None:
        aggregator.ack(delivery)
    assert soon(lambda: is_taken(bank, UPDATES_A))


def test_many_messages_that_no_queue_would_get_are_an_error(broker_server):
    bank = broker_server.connect("bank-a")
    broker_server.remove_queue(UPDATES_A)
    with pytest.raises(TopologyError, match=r"fl\.upd\.bank-a"):
        bank.publish_all(UPDATES_A, [an_update(number) for number in range(1, 10)])
    with pytest.raises(TopologyError, match="as bank-a"):
        bank.publish_all(update_queue("bank-b"), [an_update(number) for number in range(1, 10)])


def test_publishing_many_over_a_lost_connection_says_so(broker_server):
    bank = broker_server.connect("bank-a")

    def drawing():
        yield an_update(1)
        broker_server.drop("bank-a")
        for number in range(2, 100):
            yield an_update(number)

    with pytest.raises(BrokerUnavailableError):
        bank.publish_all(UPDATES_A, drawing())
