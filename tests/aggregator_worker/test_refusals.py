"""What a desk charges an institution for, and what becomes of its garbage."""

import os
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from aggregator_worker.rates import Rates
from shared import messages
from shared.broker import Message
from shared.chunks import split
from shared.messages import Report
from tests.aggregator_worker.counter import Counter, update
from tests.builders import RUN, a_hello, a_plan, a_standing, array, as_messages, small_limits

GARBAGE = Message(b"garbage", "update", "x")


class Spent(Rates):
    """Counts what is charged instead of limiting it."""

    def __init__(self) -> None:
        super().__init__(small_limits(useless_per_minute=None))
        self.useless_messages, self.updates = 0.0, 0

    def useless(self, institution, *, messages=1, size=0, now):
        assert institution == "bank-a"
        self.useless_messages += messages

    def update(self, institution, *, now):
        assert institution == "bank-a"
        self.updates += 1


@pytest.fixture
def counted(tmp_path):
    counter = Counter(tmp_path)
    counter.desk.rates = counter.desk._refusals.rates = Spent()
    yield counter
    counter.desk.close()


def charged(counter: Counter) -> tuple[int, int]:
    return counter.desk.rates.updates, counter.desk.rates.useless_messages


def test_an_update_that_is_aggregated_is_an_update_and_nothing_else(counted):
    counted.send(update(counted), 1, 1, chunk_bytes=100)
    assert charged(counted) == (1, 0)


def test_an_update_that_is_rejected_is_useless_too(counted):
    counted.send(update(counted), 1, float("nan"))
    assert charged(counted) == (1, 1)


def test_an_early_update_is_charged_when_its_turn_has_come(counted):
    counted.send(update(counted, 2), 1, 1)
    assert charged(counted) == (0, 0)
    counted.send(update(counted, 1), 1, 1)
    assert charged(counted) == (2, 0)


@pytest.mark.parametrize("again", [1, 2], ids=["settled", "early"])
def test_an_update_that_comes_again_is_useless(counted, again):
    for _ in range(2):
        counted.send(update(counted, again), 1, 1)
    assert charged(counted)[1] == 1


def test_garbage_a_hello_a_standing_and_a_report_are_useless(counted):
    counted.publish(GARBAGE, "bank-a")
    counted.send(a_hello())
    counted.send(a_standing())
    report = Report(
        run_id=RUN, institution="bank-a", incarnation=1, version=0, model_hash="a" * 64, metrics={"auc": 0.5}, epsilon=0.2
    )
    body = messages.encode("report", report)
    (message,) = split(body, kind="report", run_id=RUN, identity="report", chunk_bytes=2**20)
    counted.publish(message, "bank-a")
    assert len(counted.reports) == 1
    assert charged(counted) == (0, 4)


def test_uploads_that_are_given_up_and_chunks_that_come_twice_are_useless(counted):
    body, values = update(counted), {"w": array(1, 1)}
    first, second, *_ = as_messages(body, values, chunk_bytes=100)
    counted.publish(first, "bank-a")
    counted.publish(second, "bank-a")
    counted.publish(second, "bank-a")
    assert charged(counted) == (0, 1)
    counted.publish(as_messages(update(counted, 2), values, chunk_bytes=100)[0], "bank-a")
    assert charged(counted) == (0, 3)


def test_a_letter_that_the_operator_sends_back_is_charged_to_nobody(counted):
    (message,) = as_messages(update(counted), {"w": array(1, 1)})
    letter = replace(message, headers={**message.headers, "author": "bank-a", "queue": "fl.upd.bank-a"})
    assert counted.requeue(letter) == [(True, "")]
    assert counted.settled() == [(1, "aggregated")]
    assert charged(counted) == (0, 0)


def limited(tmp_path, **limits) -> Counter:
    return Counter(tmp_path, plan=a_plan(limits=small_limits(**limits)))


def test_the_first_letters_are_kept_the_rest_is_counted_and_another_institutions_letters_have_room(tmp_path):
    counter = limited(tmp_path, letters_per_day=3)
    with capture_logs() as logs:
        for _ in range(50):
            counter.publish(GARBAGE, "bank-a")
    counter.publish(GARBAGE, "bank-b")
    assert [letter.headers["author"] for letter in counter.dead_letters()] == ["bank-a"] * 3 + ["bank-b"]
    assert counter.unacknowledged() == 0
    # the fourth says that from here on there are no more
    assert [log["event"] for log in logs] == ["delivery"] * 4 + ["dead letters are only counted"]


def test_when_letters_are_kept_again_the_log_says_how_many_were_not(tmp_path):
    counter = limited(tmp_path, letters_per_day=1)
    for _ in range(4):
        counter.publish(GARBAGE, "bank-a")
    counter.now += 48 * 3600
    with capture_logs() as logs:
        counter.publish(GARBAGE, "bank-a")
    assert logs[0] == {
        "event": "dead letters are kept again",
        "log_level": "warning",
        "institution": "bank-a",
        "only_counted": 3,
    }
    assert len(counter.dead_letters()) == 2


def test_a_whole_upload_that_is_refused_is_put_aside_whole_or_not_at_all(tmp_path):
    counter = limited(tmp_path, letters_per_day=1, chunk_bytes=1024)
    for sequence in (1, 2):
        counter.send(update(counter, sequence, run_id="cd" * 8), *os.urandom(2000), chunk_bytes=1024)
    letters = counter.dead_letters()
    assert {letter.headers["id"] for letter in letters} == {"bank-a/1/1"}
    assert len(letters) == letters[0].headers["chunks"] > 1


def test_what_waits_for_an_institution_is_let_go_and_comes_again(counted):
    first, *rest = as_messages(update(counted, 1), {"w": array(1, 1)}, chunk_bytes=100)
    counted.send(update(counted, 2), 1, 1)
    counted.publish(first, "bank-a")
    counted.desk.forget("bank-a")
    counted.broker.cancel("fl.upd.bank-a")
    counted.broker.consume("fl.upd.bank-a", prefetch=100)
    for message in rest:
        counted.server.connect("bank-a").publish("fl.upd.bank-a", message)
    for _ in range(2 + len(rest)):
        counted.desk.take(counted.received(), "bank-a")
    assert counted.settled() == [(1, "aggregated"), (2, "aggregated")]
    assert charged(counted) == (2, 0)
