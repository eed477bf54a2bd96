"""Whom the leader listens to: an institution over a rate waits in its own queue, and loses nothing."""

from dataclasses import dataclass, field, replace

import pytest
from structlog.testing import capture_logs

from aggregator_worker.listening import Listening, prefetch_for
from aggregator_worker.rates import Rates
from broker_config.topology import update_queue
from shared.broker import Broker, Message
from shared.errors import PublishRefusedError, QueueGoneError
from shared.plan import Limits
from tests.conftest import MemoryServer


@dataclass
class Ear:
    """The leader's subscriptions on the in-memory broker; two useless messages a minute are allowed."""

    server: MemoryServer = field(default_factory=MemoryServer)
    now: float = 0.0
    forgotten: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.broker: Broker = self.server.connect("aggregator")
        self.rates = Rates(Limits(useless_per_minute=2))
        self.listening = Listening(self.broker, self.rates, 3, lambda: self.now, self.forgotten.append)
        self.listening.follow("bank-a")
        self.listening.follow("bank-b")

    def send(self, institution: str, *bodies: bytes) -> None:
        sender = self.server.connect(institution)
        for body in bodies:
            sender.publish(update_queue(institution), Message(body, "update", "x"))
        sender.close()

    def hear(self) -> list[bytes]:
        """What is to be handled of what has arrived; all of it is acknowledged."""
        heard = []
        while (delivery := self.broker.receive(0)) is not None:
            if (taken := self.listening.heard(delivery)) is not None:
                heard.append(taken.message.body)
                self.broker.ack(taken)
        return heard

    def overrun(self, institution: str) -> None:
        self.rates.useless(institution, messages=2, now=self.now)


@pytest.fixture
def ear():
    return Ear()


def test_who_is_over_a_rate_waits_in_its_queue_and_is_heard_in_order_later(ear):
    ear.overrun("bank-a")
    ear.listening.pace([])
    ear.send("bank-a", b"1", b"2")
    ear.send("bank-b", b"3")
    assert ear.hear() == [b"3"]
    assert ear.server.depth(update_queue("bank-a")) == 2
    ear.now = 31
    ear.listening.pace([])
    assert ear.hear() == [b"1", b"2"]
    assert ear.forgotten == ["bank-a"]


def test_what_was_delivered_before_its_queue_is_left_is_not_handled_and_comes_again_in_order(ear):
    ear.send("bank-a", b"1", b"2", b"3", b"4")
    ear.overrun("bank-a")
    assert ear.hear() == []
    ear.listening.pace([])
    assert ear.server.depth(update_queue("bank-a")) == 4
    ear.now = 31
    ear.listening.pace([])
    assert ear.hear() == [b"1", b"2", b"3", b"4"]


def test_a_queue_is_not_left_while_a_delivery_of_it_waits_for_the_commit(ear):
    ear.send("bank-a", b"1", b"2")
    first = ear.broker.receive(0)
    ear.overrun("bank-a")
    ear.listening.pace([first])
    assert ear.forgotten == []
    assert ear.hear() == []
    ear.broker.ack(first)
    ear.listening.pace([])
    assert ear.forgotten == ["bank-a"]
    ear.now = 31
    ear.listening.pace([])
    assert ear.hear() == [b"2"]


def test_nothing_is_left_unheard_where_a_rate_recovers_before_the_queue_could_be_left(ear):
    ear.send("bank-a", b"1", b"2")
    first = ear.broker.receive(0)
    ear.overrun("bank-a")
    assert ear.hear() == []
    ear.now = 100
    ear.listening.pace([first])
    ear.broker.ack(first)
    ear.listening.pace([])
    ear.listening.pace([])
    assert ear.hear() == [b"2"]


def test_its_queue_fills_to_its_limit_and_then_the_broker_refuses_more(ear):
    ear.overrun("bank-a")
    ear.listening.pace([])
    with pytest.raises(PublishRefusedError, match=r"fl\.upd\.bank-a is full"):
        ear.send("bank-a", *[b""] * 1002)
    assert ear.server.depth(update_queue("bank-a")) == 1001
    ear.send("bank-b", b"3")
    assert ear.hear() == [b"3"]


def test_the_log_has_a_line_for_each_change_and_none_for_a_message(ear):
    with capture_logs() as logs:
        ear.overrun("bank-a")
        for _ in range(10):
            ear.send("bank-a", b"1")
            ear.hear()
            ear.listening.pace([])
        ear.now = 40
        for _ in range(10):
            ear.listening.pace([])
    assert logs == [
        {"event": "not listened to", "log_level": "warning", "institution": "bank-a", "limit": "useless_per_minute"},
        {"event": "listened to again", "log_level": "info", "institution": "bank-a", "seconds": 40.0},
    ]


def test_what_was_given_back_here_does_not_make_a_message_suspect(ear):
    ear.send("bank-a", b"1")
    ear.overrun("bank-a")
    ear.listening.pace([])
    ear.now = 31
    ear.listening.pace([])
    delivery = ear.broker.receive(0)
    assert delivery.delivery_count == 1
    assert ear.listening.heard(delivery).delivery_count == 0
    assert ear.listening.heard(replace(delivery, delivery_count=7)).delivery_count == 6


def test_who_is_removed_while_it_waits_is_not_listened_to_again(ear):
    ear.overrun("bank-a")
    ear.listening.pace([])
    ear.listening.leave("bank-a")
    ear.now = 31
    ear.listening.pace([])
    ear.send("bank-a", b"1")
    assert ear.hear() == []
    assert list(ear.listening.institutions) == ["bank-b"]


def test_a_queue_that_is_deleted_while_it_waits_ends_nobody(ear):
    ear.overrun("bank-a")
    ear.listening.pace([])
    ear.server.remove_queue(update_queue("bank-a"))
    ear.now = 31
    ear.listening.pace([])
    assert list(ear.listening.institutions) == ["bank-b"]


def test_the_loss_of_another_queue_than_an_institutions_is_not_hushed_up(ear):
    with pytest.raises(QueueGoneError):
        ear.listening.lost(QueueGoneError("fl.ops", "gone"))


def test_all_chunks_of_the_largest_update_may_wait_for_its_last_one():
    assert prefetch_for(Limits(update_bytes=64 * 2**20, chunk_bytes=4 * 2**20)) == 16 + 8
