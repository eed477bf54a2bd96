"""What can never be used: what is settled of it, what becomes of its bytes, and who goes on."""

import hashlib
import sys
from dataclasses import replace

import pytest

from aggregator_worker.intake import SUSPECT_DELIVERIES
from broker_config.topology import update_queue
from shared import codec
from shared.broker import Message
from shared.chunks import split
from tests.aggregator_worker.counter import Counter, update
from tests.builders import RUN, a_hello, an_update, array, as_messages, name_of

GARBAGE = b"\xc1" * 40_000
"""0xc1 never occurs in msgpack. Three chunks under the plan's 16 KiB."""
DIES = [sys.executable, "-c", "import os, sys; sys.stdin.buffer.read(); os.kill(os.getpid(), 9)"]


def garbage(
    content: bytes = GARBAGE, *, identity: str = "bank-a/1/1", run_id: str = RUN, kind: str = "update", chunk_bytes: int = 2**20
) -> list[Message]:
    return list(split(content, kind=kind, run_id=run_id, identity=identity, chunk_bytes=chunk_bytes))


@pytest.fixture(params=[2**20, 10_000], ids=["one message", "four chunks"])
def published(request, counter):
    """bank-a's first update has come, and can never be decoded."""
    for message in garbage(chunk_bytes=request.param):
        counter.publish(message, "bank-a")
    return counter


def test_an_update_that_can_never_be_decoded_uses_up_its_number(published):
    assert published.settled() == [(1, "rejected")]
    (settlement,) = published.federation.pending.settled
    assert settlement.hash == hashlib.sha256(GARBAGE).hexdigest()
    assert settlement.reason == "not a msgpack body: ValueError"
    assert (published.entry().watermark, published.entry().last_hash) == (1, settlement.hash)
    assert published.entry().counters.rejected == 1


def test_its_institution_is_told_and_goes_on(published):
    assert [(institution, hint.sequence, hint.outcome) for institution, hint in published.desk.hints] == [
        ("bank-a", 1, "rejected")
    ]
    published.send(update(published, 2), 1, 1)
    assert published.settled() == [(1, "rejected"), (2, "aggregated")]


def test_all_its_chunks_are_in_the_dead_letters_under_the_headers_of_an_upload(published):
    letters = published.dead_letters()
    assert b"".join(letter.body for letter in letters) == GARBAGE
    expected = garbage(chunk_bytes=16 * 1024)
    assert [(letter.kind, letter.message_id, letter.body) for letter in letters] == [
        (chunk.kind, chunk.message_id, chunk.body) for chunk in expected
    ]
    said = {"refused": "not a msgpack body: ValueError", "author": "bank-a", "queue": "fl.upd.bank-a"}
    assert [letter.headers for letter in letters] == [{**chunk.headers, **said} for chunk in expected]


def test_it_is_acknowledged_only_once_a_manifest_settles_it(published):
    waiting = published.unacknowledged()
    assert waiting == len(published.desk.settled) > 0
    published.commit()
    assert published.unacknowledged() == 0


def test_an_update_behind_one_that_can_never_be_decoded_is_folded(counter):
    counter.send(update(counter, 2), 1, 1)
    counter.publish(*garbage(), "bank-a")
    assert counter.settled() == [(1, "rejected"), (2, "aggregated")]


def test_fields_that_are_wrong_use_up_the_number_too(counter):
    body = codec.encode("update", {**update(counter).model_dump(), "num_examples": 0}, {"w": array(1, 1)})
    counter.publish(*garbage(body), "bank-a")
    assert counter.settled() == [(1, "rejected")]
    assert counter.federation.pending.settled[0].reason == "update: field num_examples: greater_than_equal"


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"identity": "bank-b/1/1"}, id="another's number"),
        pytest.param({"identity": "bank-a/1/2"}, id="a number ahead"),
        pytest.param({"identity": "bank-a/1/0"}, id="no number"),
        pytest.param({"identity": "bank-a/2/1"}, id="an incarnation that nobody issued"),
        pytest.param({"identity": "bank-a/1/1/1"}, id="too many parts"),
        pytest.param({"identity": "bank-a/1/01"}, id="another way to write it"),
        pytest.param({"identity": "x"}, id="another id"),
        pytest.param({"run_id": "cd" * 8}, id="another run"),
        pytest.param({"kind": "hello"}, id="a hello"),
    ],
)
@pytest.mark.parametrize("chunk_bytes", [2**20, 10_000], ids=["one message", "four chunks"])
def test_what_is_not_the_senders_next_number_settles_nothing(counter, changes, chunk_bytes):
    for message in garbage(**changes, chunk_bytes=chunk_bytes):
        counter.publish(message, "bank-a")
    assert counter.settled() == []
    assert b"".join(letter.body for letter in counter.dead_letters()) == GARBAGE
    assert counter.unacknowledged() == 0
    counter.send(update(counter), 1, 1)
    assert counter.settled() == [(1, "aggregated")]


def test_a_number_that_is_settled_already_is_not_settled_again(counter):
    counter.send(update(counter), 1, 1)
    counter.publish(*garbage(), "bank-a")
    assert counter.settled() == [(1, "aggregated")]


def test_a_stranger_uses_up_no_number(counter):
    counter.federation.change(name_of("bank-a"), counter.entry().model_copy(update={"removed": True}))
    counter.publish(*garbage(), "bank-a")
    assert counter.settled() == []


@pytest.mark.parametrize("chunk_bytes", [2**20, 10_000], ids=["one message", "four chunks"])
def test_bytes_that_are_not_those_announced_settle_nothing_and_may_come_again(counter, chunk_bytes):
    *others, last = as_messages(update(counter), {"w": array(*range(5000))}, chunk_bytes=chunk_bytes)
    for message in (*others, replace(last, body=bytes(len(last.body)))):
        counter.publish(message, "bank-a")
    assert counter.settled() == []
    assert "SHA-256" in str(counter.dead_letters()[0].headers["refused"])
    assert counter.unacknowledged() == 0


def redelivered(counter: Counter, messages: list[Message], times: int) -> None:
    """Publishes as bank-a; the channel that has the messages ends, so many times; then the desk takes them."""
    queue = update_queue("bank-a")
    for message in messages:
        counter.server.connect("bank-a").publish(queue, message)
    held = [counter.received() for _ in messages]
    for _ in range(times):
        counter.broker.cancel(queue)
        counter.broker.consume(queue, prefetch=100)
        held = [counter.received() for _ in messages]
    assert {delivery.delivery_count for delivery in held} == {times}
    for delivery in held:
        counter.desk.take(delivery, "bank-a")


def first_update(counter: Counter, chunk_bytes: int = 2**20) -> list[Message]:
    return as_messages(update(counter), {"w": array(10, 20)}, chunk_bytes=chunk_bytes)


def test_an_update_that_was_not_given_back_often_is_folded_without_a_trial(counter):
    counter.desk.survives_trial = lambda upload: upload.survives_trial(DIES)
    redelivered(counter, first_update(counter), SUSPECT_DELIVERIES - 1)
    assert counter.settled() == [(1, "aggregated")]


@pytest.mark.parametrize("chunk_bytes", [2**20, 100], ids=["one message", "chunks"])
def test_an_update_that_kills_the_child_process_which_tries_it_is_settled_as_rejected(counter, chunk_bytes):
    counter.desk.survives_trial = lambda upload: upload.survives_trial(DIES)
    sent = first_update(counter, chunk_bytes)
    redelivered(counter, sent, SUSPECT_DELIVERIES)
    assert counter.settled() == [(1, "rejected")]
    assert counter.federation.pending.settled[0].reason == "a child process that tried it died; it was delivered 5 times or more"
    assert b"".join(letter.body for letter in counter.dead_letters()) == b"".join(message.body for message in sent)
    assert counter.federation.state.model["w"].tolist() == [0.0, 0.0]
    counter.send(update(counter, 2), 1, 1)
    assert counter.settled() == [(1, "rejected"), (2, "aggregated")]


@pytest.mark.parametrize("chunk_bytes", [2**20, 100], ids=["one message", "chunks"])
def test_an_update_that_the_child_process_survives_is_folded_as_usual(counter, chunk_bytes):
    redelivered(counter, first_update(counter, chunk_bytes), SUSPECT_DELIVERIES)
    assert counter.settled() == [(1, "aggregated")]
    # bank-a holds 100 of 1000 examples
    assert counter.federation.state.model["w"].tolist() == pytest.approx([1.0, 2.0])
    assert counter.dead_letters() == []


def test_one_chunk_that_came_back_often_makes_the_whole_upload_suspect(counter):
    counter.desk.survives_trial = lambda upload: upload.survives_trial(DIES)
    first, *others = first_update(counter, 100)
    redelivered(counter, [first], SUSPECT_DELIVERIES)
    for message in others:
        counter.publish(message, "bank-a")
    assert counter.settled() == [(1, "rejected")]


def test_a_hello_that_kills_is_put_aside_and_settles_nothing(counter):
    counter.desk.survives_trial = lambda upload: upload.survives_trial(DIES)
    redelivered(counter, as_messages(a_hello()), SUSPECT_DELIVERIES)
    assert (counter.settled(), len(counter.dead_letters()), counter.entry().nonce) == ([], 1, "")


def test_a_foreign_authors_word_for_the_number_is_not_taken(counter):
    # the message lies in bank-a's queue and names its number; the broker says that bank-b wrote it
    delivery = replace(an_arrived(counter, garbage()[0]), user_id="bank-b")
    counter.desk.take(delivery, "bank-a")
    assert counter.settled() == []
    assert counter.dead_letters()[0].headers["author"] == "bank-b"


def an_arrived(counter: Counter, message: Message):
    counter.server.connect("bank-a").publish(update_queue("bank-a"), message)
    return counter.received()


def test_a_garbled_update_of_one_institution_delays_no_other(counter):
    counter.publish(*garbage(), "bank-a")
    counter.send(an_update("bank-b", 1, base=counter.federation.head), 1, 1)
    assert [(each.institution, each.outcome) for each in counter.federation.pending.settled] == [
        (name_of("bank-a"), "rejected"),
        (name_of("bank-b"), "aggregated"),
    ]
