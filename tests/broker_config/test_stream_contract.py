"""Streams, read and followed: each test runs on both brokers."""

from broker_config.topology import (
    MODEL,
)
from shared.broker import Message
from tests.broker_config.contract import ON_EVERY_BROKER, UPDATES_A, an_update, ids, published_to_model, received

pytestmark = ON_EVERY_BROKER


def test_a_stream_is_read_from_any_start(broker_server):
    published_to_model(broker_server.connect("aggregator"), 5)
    bank = broker_server.connect("bank-b")
    assert ids(bank, MODEL, start="first", count=None) == ["c0", "c1", "c2", "c3", "c4"]
    assert ids(bank, MODEL, start=2, count=None) == ["c2", "c3", "c4"]
    assert ids(bank, MODEL, start="last", count=None) == ["c4"]
    assert ids(bank, MODEL, start="next", count=None) == []
    assert ids(bank, MODEL, start=1000, count=None) == []


def test_a_reader_gets_the_offsets_and_no_more_than_it_asked_for(broker_server):
    published_to_model(broker_server.connect("aggregator"), 40)
    bank = broker_server.connect("bank-a")
    some = list(bank.read(MODEL, 3, count=20, idle_seconds=5))
    assert [each.message.message_id for each in some] == [f"c{number}" for number in range(3, 23)]
    assert [each.offset for each in some] == sorted({each.offset for each in some})
    assert ids(bank, MODEL, start=some[-1].offset, count=2) == ["c22", "c23"]


def test_a_reader_may_stop_early_and_read_again_on_the_same_connection(broker_server):
    published_to_model(broker_server.connect("aggregator"), 60)
    bank = broker_server.connect("bank-a")
    for _ in range(40):
        reading = bank.read(MODEL, "first", count=None, idle_seconds=5)
        assert next(reading).message.message_id == "c0"
        reading.close()
    assert len(ids(bank, MODEL, start="first", count=None)) == 60


def test_reading_nothing_returns_at_once(broker_server):
    assert ids(broker_server.connect("bank-a"), MODEL, start="first", count=0) == []


def test_other_deliveries_wait_while_a_stream_is_read(broker_server):
    aggregator, bank = broker_server.connect("aggregator"), broker_server.connect("bank-a")
    aggregator.consume(UPDATES_A, prefetch=5)
    published_to_model(aggregator, 3)
    bank.publish(UPDATES_A, an_update(1))
    assert ids(aggregator, MODEL, start="first", count=None) == ["c0", "c1", "c2"]
    assert received(aggregator).message.message_id == "u1"


def test_a_standing_reader_of_a_stream_gets_what_comes_later(broker_server):
    aggregator, bank = broker_server.connect("aggregator"), broker_server.connect("bank-a")
    published_to_model(aggregator, 2)
    bank.consume(MODEL, prefetch=1, start="first")
    for expected in ("c0", "c1"):
        delivery = received(bank)
        assert delivery.message.message_id == expected
        bank.ack(delivery)
    aggregator.publish(MODEL, Message(b"", "model", "later"))
    assert received(bank).message.message_id == "later"


def test_a_stream_keeps_what_was_acknowledged_for_the_next_reader(broker_server):
    published_to_model(broker_server.connect("aggregator"), 2)
    for user in ("bank-a", "bank-b"):
        assert ids(broker_server.connect(user), MODEL, start="first", count=None) == ["c0", "c1"]


# Tables rather than parameters: a virtual host for each case would take a minute.
