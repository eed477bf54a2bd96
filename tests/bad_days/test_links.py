"""What becomes of both workers when the link to the broker is cut, stalls or is gone for a while."""

import itertools
import threading
from dataclasses import replace

import pytest

from broker_config import publisher
from broker_config.provision import provision
from broker_config.topology import DEAD_LETTERS, control_queue, update_queue
from shared.broker import Message
from shared.errors import BrokerUnavailableError, PublishRefusedError, TopologyError
from tests.bad_days.conftest import Linked, events
from tests.builders import NAMES, a_plan, array, small_limits
from tests.conftest import LIMITS, eventually
from tests.running import (
    Hand,
    Leader,
    Watch,
    Worker,
    begin,
    local_data,
    require_each_once,
    require_replay,
    trained,
)

pytestmark = [pytest.mark.rabbitmq, pytest.mark.long, pytest.mark.both]

LARGE = {"w": array(*[0.0] * 100_000)}
LARGE_BYTES = 400_000
LONGER_THAN_HEARTBEATS_SECONDS = 8.0
"""With heartbeats every 2 seconds the broker gives up after 6 at the latest, and pika after 7."""


def filled(hand):
    """How many messages of a megabyte it took to fill the update queue."""
    for sent in itertools.count():
        try:
            hand.publish(Message(bytes(1 << 20), "update", f"junk-{sent}"))
        except PublishRefusedError:
            return sent
    raise AssertionError


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("role", ["aggregator", "client"])
def test_a_connection_cut_in_mid_chunk_loses_nothing_and_doubles_nothing(rabbitmq_server, link, tmp_path, stack, role, direction):
    begin(rabbitmq_server, a_plan(limits=small_limits(update_bytes=1 << 20, chunk_bytes=64 * 1024)), NAMES, model=LARGE)
    watch = Watch(rabbitmq_server.connect("operator"))
    far = Linked(rabbitmq_server, link)
    stack.enter_context(Leader(far if role == "aggregator" else rabbitmq_server, tmp_path / "aggregator"))
    for name in ("bank-a", "bank-b"):
        stack.enter_context(Worker(far if (role, name) == ("client", "bank-a") else rabbitmq_server, name, tmp_path))
    for _ in range(3):
        before = watch.entry("bank-a").watermark
        link.cut_after(LARGE_BYTES // 3, direction)
        assert watch.until(lambda before=before: watch.entry("bank-a").watermark >= before + 2)
    require_each_once(watch)
    require_replay(watch, trained, start=LARGE)


@pytest.mark.long
def test_a_stalled_link_is_noticed_by_its_heartbeats(rabbitmq_server, link, tmp_path, stack, said):
    begin(rabbitmq_server, a_plan())
    watch = Watch(rabbitmq_server.connect("operator"))
    far = Linked(rabbitmq_server, link, heartbeat_seconds=2)
    stack.enter_context(Leader(far, tmp_path / "aggregator"))
    stack.enter_context(Worker(far, "bank-a", tmp_path))
    assert watch.until(lambda: watch.outcomes("bank-a"))
    link.stall()
    assert eventually(lambda: len(events(said, "connection lost") + events(said, "not ready, trying again")) >= 2, 40)
    link.resume()
    before = watch.entry("bank-a").watermark
    assert watch.until(lambda: watch.entry("bank-a").watermark >= before + 3)
    require_each_once(watch)
    require_replay(watch, trained)


def test_heartbeats_go_on_through_a_long_training(rabbitmq_server, link, tmp_path, stack, said):
    begin(rabbitmq_server, a_plan())
    watch = Watch(rabbitmq_server.connect("operator"))
    far = Linked(rabbitmq_server, link, heartbeat_seconds=2)
    stack.enter_context(Leader(rabbitmq_server, tmp_path / "aggregator"))
    trained_once = threading.Event()
    data = local_data("bank-a", at_least=lambda: trained_once.wait(LONGER_THAN_HEARTBEATS_SECONDS))
    stack.enter_context(Worker(far, "bank-a", tmp_path, data=data))
    assert watch.until(lambda: watch.outcomes("bank-a"))
    trained_once.set()
    assert not events(said, "connection lost")
    assert not events(said, "not ready, trying again")


def test_a_client_goes_on_training_while_the_broker_is_away_and_delivers_afterwards(rabbitmq_server, link, tmp_path, stack, said):
    begin(rabbitmq_server, a_plan())
    watch = Watch(rabbitmq_server.connect("operator"))
    stack.enter_context(Leader(rabbitmq_server, tmp_path / "aggregator"))
    begun, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def work():
        begun.set()
        go_on.wait(60)
        done.set()

    worker = Worker(Linked(rabbitmq_server, link), "bank-a", tmp_path, data=local_data("bank-a", at_least=work))
    stack.enter_context(worker)
    assert begun.wait(30)
    link.refuse()
    link.cut()
    assert eventually(lambda: events(said, "not ready, trying again"))
    go_on.set()
    assert done.wait(30)
    assert not watch.until(lambda: watch.outcomes("bank-a"), 0.5)
    link.accept()
    assert watch.until(lambda: watch.entry("bank-a").watermark >= 2)
    require_each_once(watch)
    require_replay(watch, trained)


def test_a_full_update_queue_is_waited_for_and_drained_by_the_leader_that_comes(rabbitmq_server, tmp_path, stack, said):
    begin(rabbitmq_server, a_plan())
    watch, hand = Watch(rabbitmq_server.connect("operator")), Hand(rabbitmq_server, "bank-a")
    sent = filled(hand)
    stack.enter_context(Worker(rabbitmq_server, "bank-a", tmp_path))
    assert eventually(lambda: [line for line in said if "did not take the message" in str(line.get("reason"))])
    stack.enter_context(Leader(rabbitmq_server, tmp_path / "aggregator"))
    assert watch.until(lambda: watch.entry("bank-a").watermark >= 2)
    assert eventually(lambda: rabbitmq_server.depth(DEAD_LETTERS) == sent)
    require_each_once(watch)
    require_replay(watch, trained)


def test_a_deleted_update_queue_stops_its_institution_and_nobody_else(rabbitmq_server, tmp_path, stack, said):
    begin(rabbitmq_server, a_plan())
    watch = Watch(rabbitmq_server.connect("operator"))
    leader = stack.enter_context(Leader(rabbitmq_server, tmp_path / "aggregator"))
    begun, go_on = threading.Event(), threading.Event()
    # What the queue held when it was deleted would be sent again only after a minute: it trains while the queue goes.
    data = local_data("bank-a", at_least=lambda: (begun.set(), go_on.wait(60)))
    worker = stack.enter_context(Worker(rabbitmq_server, "bank-a", tmp_path, data=data))
    stack.callback(go_on.set)
    hand = Hand(rabbitmq_server, "bank-b")
    assert begun.wait(30)
    rabbitmq_server.remove_queue(update_queue("bank-a"))
    go_on.set()
    for sequence in (1, 2, 3):
        hand.send(watch.head, sequence, sequence, 1, 1)
        assert watch.until(lambda sequence=sequence: watch.entry("bank-b").watermark == sequence)
    worker.thread.join(30)
    assert isinstance(worker.failure, TopologyError)
    assert "no queue is bound to that exchange; `fedqueue broker apply` creates it" in str(worker.failure)
    # said again each minute, when it is looked for
    assert eventually(lambda: events(said, "an institution is not listened to"))
    assert {line["institution"] for line in events(said, "an institution is not listened to")} == {"bank-a"}
    assert leader.failure is None
    assert len(events(said, "leading")) == 1


def test_a_client_whose_hints_queue_was_deleted_stops_and_names_it(rabbitmq_server, tmp_path, stack):
    begin(rabbitmq_server, a_plan())
    watch = Watch(rabbitmq_server.connect("operator"))
    stack.enter_context(Leader(rabbitmq_server, tmp_path / "aggregator"))
    worker = stack.enter_context(Worker(rabbitmq_server, "bank-a", tmp_path))
    assert watch.until(lambda: watch.outcomes("bank-a"))
    rabbitmq_server.remove_queue(control_queue("bank-a"))
    worker.thread.join(30)
    assert isinstance(worker.failure, TopologyError)
    assert "fl.ctl.bank-a" in str(worker.failure)
    assert "was deleted" in str(worker.failure)


def test_a_confirm_that_never_comes_is_given_up(rabbitmq_server, link, monkeypatch):
    monkeypatch.setattr(publisher, "CONFIRM_SECONDS", 0.5)
    bank = Linked(rabbitmq_server, link, heartbeat_seconds=600).connect("bank-a")
    bank.publish(update_queue("bank-a"), Message(b"", "update", "u1"))
    link.stall()
    with pytest.raises(BrokerUnavailableError, match="nothing was confirmed"):
        bank.publish(update_queue("bank-a"), Message(b"", "update", "u2"))
    link.cut()
    bank.close()


@pytest.mark.long
def test_updates_that_nobody_asked_for_stay_in_the_broker_and_the_connection_lives(rabbitmq_server, link, said):
    room = replace(LIMITS, update_bytes=32 << 20)
    provision(rabbitmq_server.logins, rabbitmq_server.institutions, room, free_bytes=1 << 60)
    bodies = (Message(bytes(1 << 20), "update", f"u{number}") for number in range(64))
    rabbitmq_server.connect("bank-a").publish_all(update_queue("bank-a"), bodies)
    aggregator = Linked(rabbitmq_server, link, heartbeat_seconds=2).connect("aggregator")
    aggregator.consume(update_queue("bank-a"), prefetch=100)
    assert aggregator.receive(LONGER_THAN_HEARTBEATS_SECONDS, updates=False) is None
    # What sits in sockets and in the link counts as passed; most of the 64 megabytes has not left the broker.
    assert link.passed_bytes("down") < 32 << 20
    arrived = [aggregator.receive(10) for _ in range(64)]
    assert [each.message.message_id for each in arrived] == [f"u{number}" for number in range(64)]
    aggregator.close()
