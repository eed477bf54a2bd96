"""What an institution does when its update queue takes no more just now: nothing is lost, and no session ends."""

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from broker_config.topology import Limits, update_queue
from client_worker.policy import Policy, ReportPolicy
from shared.broker import Message
from tests.client_worker.test_session import Scene, stepped, turned
from tests.running import local_data


@pytest.fixture
def full(tmp_path) -> Iterator[Scene]:
    """A scene whose update queue holds as much as it takes, and nobody reads it."""
    scene = Scene(tmp_path, limits=Limits(update_bytes=200, updates_per_institution=1))
    yield scene
    scene.close()


def fill(scene: Scene) -> None:
    scene.leader.cancel(update_queue("bank-a"))
    scene.rabbit.connect("bank-a").publish(update_queue("bank-a"), Message(bytes(300), "update", "filler"))


def empty(scene: Scene) -> None:
    scene.leader.consume(update_queue("bank-a"), prefetch=100)
    while (delivery := scene.leader.receive(0)) is not None:
        scene.leader.ack(delivery)


def test_a_full_queue_is_waited_for_and_the_same_is_sent_later(full):
    session = full.welcomed()
    fill(full)
    stepped(session, lambda: full.work.ledger.unsettled())
    (waiting,) = full.work.ledger.unsettled()
    turned(session)
    assert full.rabbit.depth(update_queue("bank-a")) == 1
    empty(full)
    _, digest = full.update(session)
    assert digest == waiting.hash


def test_a_hello_that_finds_the_queue_full_is_said_again_in_the_same_session(full):
    fill(full)
    session = full.session()
    session.open()
    turned(session)
    assert full.rabbit.depth(update_queue("bank-a")) == 1
    empty(full)
    stepped(session, lambda: full.rabbit._queues[update_queue("bank-a")].consumers[0].unsettled)
    full.answer(full.hello())
    assert full.update(session)[0].sequence == 1


def test_a_report_that_finds_the_queue_full_is_charged_once_and_sent_later(full):
    go_on = threading.Event()
    full.member = replace(full.member, policy=Policy(**{**dict(full.member.policy), "reports": ReportPolicy(allowed=True)}))
    full.data = local_data("bank-a", at_least=lambda: go_on.wait(20), report=lambda model, epsilon: {"auc": 0.5})
    session = full.welcomed()
    fill(full)
    stepped(session, lambda: full.work.ledger.totals.reservations)
    turned(session)
    assert full.work.ledger.totals.reports == 1
    empty(full)
    stepped(session, lambda: full.rabbit._queues[update_queue("bank-a")].consumers[0].unsettled)
    assert full.received()[0] == "report"
    assert full.work.ledger.totals.reports == 1
    go_on.set()
    assert full.update(session)[0].sequence == 1
