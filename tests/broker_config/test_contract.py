"""What fedqueue asks of a broker, on both of them."""

import threading
import time

import pytest

from broker_config.topology import (
    DEAD_LETTERS,
    LEAD,
    LINEAGE,
    MODEL,
    OPERATIONS,
    STATE,
    control_queue,
    update_queue,
)
from shared.broker import Message
from shared.errors import BrokerUnavailableError, MalformedMessageError, PublishRefusedError, QueueGoneError, TopologyError
from tests.broker_config.contract import ON_EVERY_BROKER, UPDATES_A, an_update, fill, is_taken, published_to_model, received

pytestmark = ON_EVERY_BROKER


def test_a_message_arrives_as_it_was_sent_and_names_its_author(broker_server):
    broker_server.connect("bank-a").publish(UPDATES_A, an_update(3, b"\x00\xff"))
    aggregator = broker_server.connect("aggregator")
    aggregator.consume(UPDATES_A, prefetch=1)
    delivery = received(aggregator)
    assert delivery.queue == UPDATES_A
    assert delivery.user_id == "bank-a"
    assert delivery.message.body == b"\x00\xff"
    assert (delivery.message.kind, delivery.message.message_id) == ("update", "u3")
    assert delivery.message.headers == {"number": 3, "institution": "bank-a", "last": True}
    assert (delivery.redelivered, delivery.delivery_count, delivery.offset) == (False, 0, None)


def test_a_megabyte_arrives_whole(broker_server):
    body = bytes(range(256)) * 4096
    broker_server.connect("bank-a").publish(UPDATES_A, an_update(1, body))
    aggregator = broker_server.connect("aggregator")
    aggregator.consume(UPDATES_A, prefetch=1)
    assert received(aggregator).message.body == body


def test_a_header_that_is_not_a_scalar_is_refused_before_it_is_sent(broker_server):
    with pytest.raises(MalformedMessageError):
        broker_server.connect("bank-a").publish(UPDATES_A, Message(b"", "update", "u1", {"weight": 0.5}))


def test_receive_returns_none_when_nothing_comes(broker_server):
    aggregator = broker_server.connect("aggregator")
    aggregator.consume(UPDATES_A, prefetch=1)
    assert aggregator.receive(0) is None
    assert aggregator.receive(0.05) is None


def test_a_waiting_receive_is_woken_by_another_connection(broker_server):
    aggregator, bank = broker_server.connect("aggregator"), broker_server.connect("bank-a")
    aggregator.consume(UPDATES_A, prefetch=1)
    publisher = threading.Thread(target=bank.publish, args=(UPDATES_A, an_update(1)))
    publisher.start()
    assert received(aggregator).message.message_id == "u1"
    publisher.join()


def test_a_waiting_receive_ends_when_another_thread_wakes_it(broker_server):
    aggregator = broker_server.connect("aggregator")
    aggregator.consume(UPDATES_A, prefetch=1)
    waker = threading.Timer(0.1, aggregator.wake)
    waker.start()
    started = time.monotonic()
    assert aggregator.receive(60) is None
    assert time.monotonic() - started < 50
    waker.join()
    broker_server.connect("bank-a").publish(UPDATES_A, an_update(1))
    assert received(aggregator).message.message_id == "u1"


def test_a_wake_before_the_wait_is_not_forgotten_and_holds_for_one_wait(broker_server):
    aggregator = broker_server.connect("aggregator")
    aggregator.wake()
    aggregator.wake()
    started = time.monotonic()
    assert aggregator.receive(60) is None
    assert time.monotonic() - started < 50
    started = time.monotonic()
    assert aggregator.receive(0.3) is None
    assert time.monotonic() - started >= 0.3


def test_a_broker_that_is_closed_can_still_be_woken(broker_server):
    aggregator = broker_server.connect("aggregator")
    aggregator.close()
    aggregator.wake()


def test_whoever_waits_for_something_else_leaves_the_updates_where_they_are(broker_server):
    aggregator, bank = broker_server.connect("aggregator"), broker_server.connect("bank-a")
    aggregator.consume(UPDATES_A, prefetch=10)
    aggregator.consume(MODEL, prefetch=10, start="first")
    bank.publish(UPDATES_A, an_update(1))
    assert aggregator.receive(0.2, updates=False) is None
    aggregator.publish(MODEL, Message(b"", "model", "blob"))
    first = aggregator.receive(10, updates=False)
    assert first is not None
    assert first.queue == MODEL
    assert received(aggregator).message.message_id == "u1"


def test_no_more_than_the_prefetch_is_delivered_before_an_acknowledgement(broker_server):
    bank, aggregator = broker_server.connect("bank-a"), broker_server.connect("aggregator")
    for number in (1, 2, 3):
        bank.publish(UPDATES_A, an_update(number))
    aggregator.consume(UPDATES_A, prefetch=2)
    first, second = received(aggregator), received(aggregator)
    assert aggregator.receive(0.3) is None
    aggregator.ack(first)
    assert [second.message.message_id, received(aggregator).message.message_id] == ["u2", "u3"]


def test_an_acknowledged_message_does_not_come_back(broker_server):
    broker_server.connect("bank-a").publish(UPDATES_A, an_update(1))
    aggregator = broker_server.connect("aggregator")
    aggregator.consume(UPDATES_A, prefetch=1)
    aggregator.ack(received(aggregator))
    aggregator.close()
    again = broker_server.connect("aggregator")
    again.consume(UPDATES_A, prefetch=1)
    assert again.receive(0.3) is None


def test_deliveries_of_several_queues_are_settled_at_once(broker_server, soon):
    aggregator = broker_server.connect("aggregator")
    for name in ("bank-a", "bank-b"):
        broker_server.connect(name).publish_all(update_queue(name), [an_update(1), an_update(2), an_update(3)])
        aggregator.consume(update_queue(name), prefetch=10)
    aggregator.consume(MODEL, prefetch=1, start="first")
    published_to_model(aggregator, 2)
    taken = [received(aggregator) for _ in range(7)]
    kept = next(each for each in taken if each.queue != MODEL)  # one model is on its way at a time: kept, it would hold the next
    aggregator.ack(*(each for each in taken if each is not kept))
    assert received(aggregator).queue == MODEL
    aggregator.ack()
    aggregator.close()
    assert soon(lambda: broker_server.depth(kept.queue) == 1)


def test_what_a_closed_connection_had_not_settled_comes_back_in_order(broker_server, soon):
    bank, aggregator = broker_server.connect("bank-a"), broker_server.connect("aggregator")
    for number in (1, 2, 3, 4):
        bank.publish(UPDATES_A, an_update(number))
    aggregator.consume(UPDATES_A, prefetch=3)
    first, second, _ = (received(aggregator) for _ in range(3))
    aggregator.ack(second)
    assert [first.message.message_id, received(aggregator).message.message_id] == ["u1", "u4"]
    aggregator.close()
    assert soon(lambda: broker_server.depth(UPDATES_A) == 3)
    again = broker_server.connect("aggregator")
    again.consume(UPDATES_A, prefetch=4)
    redelivered = [received(again) for _ in range(3)]
    assert [each.message.message_id for each in redelivered] == ["u1", "u3", "u4"]
    assert (redelivered[0].redelivered, redelivered[1].redelivered) == (True, True)
    assert redelivered[0].delivery_count >= 1


def test_a_requeued_message_comes_back_marked(broker_server):
    broker_server.connect("bank-a").publish(UPDATES_A, an_update(1))
    aggregator = broker_server.connect("aggregator")
    aggregator.consume(UPDATES_A, prefetch=1)
    aggregator.requeue(received(aggregator))
    again = received(aggregator)
    assert again.redelivered
    assert "x-delivery-count" not in again.message.headers


def test_a_message_may_be_requeued_a_hundred_times(broker_server):
    broker_server.connect("bank-a").publish(UPDATES_A, an_update(1))
    aggregator = broker_server.connect("aggregator")
    aggregator.consume(UPDATES_A, prefetch=1)
    for _ in range(100):
        aggregator.requeue(received(aggregator))
    assert received(aggregator).message.message_id == "u1"
    assert broker_server.depth(DEAD_LETTERS) == 0


def test_a_rejected_message_becomes_a_dead_letter_that_says_where_it_came_from(broker_server, soon):
    broker_server.connect("bank-a").publish(UPDATES_A, an_update(1, b"junk"))
    aggregator, operator = broker_server.connect("aggregator"), broker_server.connect("operator")
    aggregator.consume(UPDATES_A, prefetch=1)
    aggregator.reject(received(aggregator))
    assert soon(lambda: broker_server.depth(DEAD_LETTERS) == 1)
    operator.consume(DEAD_LETTERS, prefetch=1)
    letter = received(operator)
    assert (letter.message.body, letter.user_id) == (b"junk", "bank-a")
    assert letter.message.headers["x-first-death-queue"] == UPDATES_A
    assert letter.message.headers["x-first-death-reason"] == "rejected"
    assert letter.message.headers["number"] == 1


def test_a_full_queue_refuses_the_message_and_takes_it_once_there_is_room(broker_server, soon):
    bank, aggregator = broker_server.connect("bank-a"), broker_server.connect("aggregator")
    accepted = fill(bank, UPDATES_A)
    # The limit is 3 MiB; the message that crosses it, and what comes before the broker noticed, is still taken.
    assert 4 <= accepted <= 8
    with pytest.raises(PublishRefusedError):
        bank.publish(UPDATES_A, an_update(99, bytes(1 << 20)))
    aggregator.consume(UPDATES_A, prefetch=accepted)
    for _ in range(accepted):
        aggregator.ack(received(aggregator))
    assert soon(lambda: is_taken(bank, UPDATES_A))


def test_a_flood_fills_only_its_own_queue(broker_server):
    fill(broker_server.connect("bank-a"), UPDATES_A)
    broker_server.connect("bank-b").publish(update_queue("bank-b"), an_update(1))
    assert broker_server.depth(update_queue("bank-b")) == 1


def test_hints_beyond_a_hundred_drop_the_oldest(broker_server):
    aggregator, bank = broker_server.connect("aggregator"), broker_server.connect("bank-a")
    for number in range(103):
        aggregator.publish(control_queue("bank-a"), Message(b"", "control", f"h{number}"))
    bank.consume(control_queue("bank-a"), prefetch=1)
    assert received(bank).message.message_id == "h3"


def test_what_a_cancelled_subscription_had_not_settled_goes_back_and_is_not_received_any_more(broker_server, soon):
    bank, aggregator = broker_server.connect("bank-a"), broker_server.connect("aggregator")
    for number in (1, 2, 3):
        bank.publish(UPDATES_A, an_update(number))
    aggregator.consume(UPDATES_A, prefetch=3)
    received(aggregator)
    aggregator.cancel(UPDATES_A)
    assert aggregator.receive(0.2) is None
    assert soon(lambda: broker_server.depth(UPDATES_A) == 3)


def test_the_token_has_one_holder_and_passes_to_the_next_when_that_one_is_lost(broker_server):
    leader, standby = broker_server.connect("aggregator"), broker_server.connect("aggregator")
    leader.consume(LEAD, prefetch=1)
    assert received(leader).message.kind == "token"
    standby.consume(LEAD, prefetch=1)
    assert standby.receive(0.3) is None
    leader.close()
    assert received(standby).message.kind == "token"


def test_the_holder_gets_the_token_back_when_it_requeues_it(broker_server):
    leader, standby = broker_server.connect("aggregator"), broker_server.connect("aggregator")
    leader.consume(LEAD, prefetch=1)
    token = received(leader)
    standby.consume(LEAD, prefetch=1)
    for _ in range(30):
        leader.requeue(token)
        token = received(leader)
    assert standby.receive(0.1) is None


FOREIGN_WRITES = {
    "bank-a": [update_queue("bank-b"), LINEAGE, MODEL, LEAD, OPERATIONS, control_queue("bank-a"), "amq.direct", ""],
    "aggregator": [UPDATES_A, LEAD],
    "operator": [UPDATES_A],
    "viewer": [OPERATIONS],
}
FOREIGN_READS = {
    "bank-a": [update_queue("bank-b"), UPDATES_A, control_queue("bank-b"), STATE, LEAD, DEAD_LETTERS],
    "aggregator": [DEAD_LETTERS],
    "operator": [UPDATES_A],
    "viewer": [LINEAGE],
}


def test_nobody_writes_where_it_has_no_business(broker_server):
    for user, queues in FOREIGN_WRITES.items():
        broker = broker_server.connect(user)
        for queue in queues:
            with pytest.raises(TopologyError, match=f"as {user}"):
                broker.publish(queue, an_update(1))


def test_nobody_reads_where_it_has_no_business(broker_server):
    for user, queues in FOREIGN_READS.items():
        broker = broker_server.connect(user)
        for queue in queues:
            with pytest.raises(TopologyError, match=f"as {user}"):
                broker.consume(queue, prefetch=1, start="first")


def test_a_message_that_no_queue_would_get_is_an_error(broker_server):
    broker_server.remove_queue(UPDATES_A)
    with pytest.raises(TopologyError, match=r"fl\.upd\.bank-a"):
        broker_server.connect("bank-a").publish(UPDATES_A, an_update(1))


def test_a_queue_deleted_under_its_consumer_is_an_error(broker_server):
    aggregator = broker_server.connect("aggregator")
    aggregator.consume(UPDATES_A, prefetch=1)
    assert aggregator.receive(0.05) is None
    broker_server.remove_queue(UPDATES_A)
    with pytest.raises(QueueGoneError, match=r"fl\.upd\.bank-a") as caught:
        received(aggregator)
    assert caught.value.queue == UPDATES_A


def test_the_other_queues_go_on_when_one_is_deleted(broker_server):
    aggregator = broker_server.connect("aggregator")
    for name in ("bank-a", "bank-b"):
        broker_server.connect(name).publish(update_queue(name), an_update(1))
    aggregator.consume(UPDATES_A, prefetch=1)
    aggregator.consume(update_queue("bank-b"), prefetch=1)
    held = {delivery.queue: delivery for delivery in (received(aggregator), received(aggregator))}
    broker_server.remove_queue(UPDATES_A)
    with pytest.raises(QueueGoneError):
        aggregator.receive(10)
    aggregator.ack(held[UPDATES_A])
    aggregator.ack(held[update_queue("bank-b")])
    broker_server.connect("bank-b").publish(update_queue("bank-b"), an_update(2))
    assert received(aggregator).message.message_id == "u2"


def test_a_lost_connection_says_so_and_its_deliveries_settle_nothing(broker_server):
    broker_server.connect("bank-a").publish(UPDATES_A, an_update(1))
    lost = broker_server.connect("aggregator")
    lost.consume(UPDATES_A, prefetch=1)
    stale = received(lost)
    broker_server.drop("aggregator")
    with pytest.raises(BrokerUnavailableError):
        lost.receive(10)
    again = broker_server.connect("aggregator")
    again.consume(UPDATES_A, prefetch=1)
    fresh = received(again)
    for broker in (lost, again):
        with pytest.raises(BrokerUnavailableError):
            broker.ack(stale)
    again.ack(fresh)
    lost.close()


def test_a_closed_connection_is_of_no_more_use(broker_server):
    bank = broker_server.connect("bank-a")
    bank.close()
    bank.close()
    with pytest.raises(BrokerUnavailableError):
        bank.publish(UPDATES_A, an_update(1))
    with pytest.raises(BrokerUnavailableError):
        list(bank.read(MODEL, "first", count=None, idle_seconds=0.1))


def test_an_institution_comes_and_goes_while_the_broker_runs(broker_server):
    broker_server.declare("bank-z")
    newcomer = broker_server.connect("bank-z")
    newcomer.publish(update_queue("bank-z"), an_update(1))
    assert broker_server.depth(update_queue("bank-z")) == 1
    broker_server.remove("bank-z")
    with pytest.raises(BrokerUnavailableError):
        newcomer.receive(10)
    with pytest.raises(TopologyError):
        broker_server.connect("bank-z")
    broker_server.connect("bank-a").publish(UPDATES_A, an_update(1))
