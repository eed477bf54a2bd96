"""Letters that the operator has taken back: folded once or refused with a reason, whatever the order says."""

from dataclasses import replace

import numpy as np
import pytest

from aggregator_worker.aggregation import fold_in_place
from aggregator_worker.intake import Upload
from aggregator_worker.orders import Orders
from broker_config.topology import OPERATIONS
from operator_console.dead_letters import DeadLetters
from operator_console.dead_letters import requeue_order as order_of_the_console
from shared import codec, messages
from shared.broker import Delivery, Message
from shared.chunks import split
from shared.messages import Counters
from tests.aggregator_worker.counter import Counter, letter_of, requeue_order, update
from tests.aggregator_worker.test_dead_letters import redelivered
from tests.builders import RUN, a_hello, an_operation, an_update, array, as_messages, name_of

LARGE = {"w": np.zeros(5000, np.float32)}
"""An update on it takes 20,000 bytes: two chunks under the plan's 16 KiB."""
TENTH = float(np.float32(0.1))


@pytest.fixture(params=["one letter", "two letters"])
def refused(request, tmp_path):
    """bank-a's first update, a one in every place, was refused while bank-a was unknown; now bank-a is a member again."""
    counter = Counter(tmp_path, model=LARGE if request.param == "two letters" else {"w": np.zeros(2, np.float32)})
    refuse(counter, update(counter))
    assert len(counter.dead_letters()) == (2 if request.param == "two letters" else 1)
    yield counter
    counter.desk.close()


def refuse(counter: Counter, *updates, user="bank-a") -> None:
    """Updates, a one in every place, that come while their author is unknown."""
    entry = counter.entry(user)
    counter.federation.change(name_of(user), entry.model_copy(update={"removed": True}))
    for each in updates:
        counter.send(each, *np.ones(counter.federation.state.shapes["w"]), chunk_bytes=16 * 1024, as_user=user)
    counter.federation.change(name_of(user), entry)


def model(counter: Counter) -> set[float]:
    return set(counter.federation.state.model["w"].tolist())


def a_letter(message: Message, author: str = "bank-a") -> Message:
    """A message as if it had been refused."""
    return replace(message, headers={**message.headers, "author": author, "refused": "why", "queue": f"fl.upd.{author}"})


def test_an_update_that_was_never_settled_is_taken_in_its_turn(refused):
    answers = refused.requeue(*refused.dead_letters())
    assert answers == [(True, "")] * len(answers)
    assert refused.settled() == [(1, "aggregated")]
    assert (refused.entry().watermark, model(refused)) == (1, {TENTH})
    refused.send(update(refused, 2), *LARGE["w"][: refused.federation.state.shapes["w"][0]])
    assert refused.settled() == [(1, "aggregated"), (2, "aggregated")]


def test_a_letter_that_is_taken_back_again_has_no_effect(refused):
    letters = refused.dead_letters()
    refused.requeue(*letters)
    for _ in range(2):
        assert refused.requeue(*letters)[-1] == (False, "number 1 is aggregated already")
        manifest = refused.commit().manifest
        assert model(refused) == {TENTH}
    assert (manifest.settled, refused.unacknowledged()) == ([], 0)


def test_an_order_is_acknowledged_only_once_a_manifest_settles_it(refused):
    letters = refused.dead_letters()
    refused.requeue(*letters)
    assert refused.unacknowledged() == len(letters) == len(refused.desk.settled)
    manifest = refused.commit().manifest
    assert refused.unacknowledged() == 0
    assert [(each.kind, each.applied) for each in manifest.operations] == [("requeue", True)] * len(letters)
    assert [(each.sequence, each.outcome) for each in manifest.settled] == [(1, "aggregated")]


@pytest.fixture
def lost(counter):
    """bank-a's first update was refused, given up as lost, and its second one is aggregated."""
    refuse(counter, update(counter))
    counter.send(update(counter, 2), 10, 10)
    counter.now += 60
    counter.desk.tidy(orphan_seconds=600)
    assert counter.settled() == [(1, "lost"), (2, "aggregated")]
    return counter


@pytest.mark.parametrize(
    ("committed", "expected"),
    [
        pytest.param(False, 1.1, id="before the commit"),  # a tenth of 10 and a tenth of 1
        pytest.param(True, 1.0707107, id="after it"),  # one version late: 0.1 / sqrt(2)
    ],
)
def test_an_old_number_that_is_taken_back_leaves_watermark_and_last_hash(lost, committed, expected):
    if committed:
        lost.commit()
    before = lost.entry()
    assert lost.requeue(*lost.dead_letters()) == [(True, "")]
    after = lost.entry()
    assert (after.watermark, after.last_hash) == (before.watermark, before.last_hash) == (2, before.last_hash)
    assert after.counters == Counters(aggregated=2, lost=1)
    assert lost.federation.state.model["w"].tolist() == pytest.approx([expected, expected])
    lost.send(update(lost, 3), 1, 1)
    assert lost.entry().watermark == 3


def test_the_manifest_has_what_was_taken_back_in_the_order_folded_and_a_replay_gives_the_bits(lost):
    lost.commit()
    lost.send(update(lost, 1, "bank-b"), 0.7, 1e-3)
    lost.requeue(*lost.dead_letters())
    lost.send(update(lost, 3), 1 / 3, 5)
    deltas = {("bank-b", 1): (0.7, 1e-3), ("bank-a", 1): (1, 1), ("bank-a", 3): (1 / 3, 5)}
    replayed = {"w": array(TENTH * 10, TENTH * 10)}
    settled = lost.commit().manifest.settled
    assert [each.institution for each in settled] == [name_of(institution) for institution, _ in deltas]
    for each, delta in zip(settled, deltas.values(), strict=True):
        fold_in_place(replayed, {"w": array(*delta)}, float.fromhex(each.weight))
    assert replayed["w"].tobytes() == lost.federation.state.model["w"].tobytes()


@pytest.mark.parametrize("committed", [False, True])
def test_an_update_that_counts_already_is_refused(counter, committed):
    (message,) = as_messages(update(counter), {"w": array(1, 1)})
    counter.publish(message, "bank-a")
    if committed:
        counter.commit()
    assert counter.requeue(a_letter(message)) == [(False, "number 1 is aggregated already")]
    assert model(counter) == {TENTH}


def test_an_update_that_was_taken_back_does_not_count_again_in_another_guise(lost):
    (letter,) = lost.dead_letters()
    lost.requeue(letter)
    again = replace(letter, message_id="bank-a/1/1#x")
    assert lost.requeue(again) == [(False, "number 1 is aggregated already")]
    lost.commit()
    once_more = replace(letter, message_id="bank-a/1/1#y")
    assert lost.requeue(once_more) == [(False, "number 1 is aggregated already")]


def test_a_number_of_which_the_lineage_tells_nothing_is_refused(counter):
    (message,) = as_messages(update(counter), {"w": array(1, 1)})
    counter.federation.change(name_of("bank-a"), counter.entry().model_copy(update={"watermark": 5}))
    assert counter.requeue(a_letter(message)) == [(False, "the lineage no longer tells what became of number 1")]


def test_a_number_before_its_turn_is_refused(counter):
    refuse(counter, update(counter, 3))
    assert counter.requeue(*counter.dead_letters()) == [(False, "number 3 comes before its turn, 1 is next")]
    assert counter.settled() == []


def test_an_update_that_is_not_to_be_aggregated_is_settled_as_what_it_is(counter):
    refuse(counter, update(counter, base_hash="e" * 64))
    reason = "it is settled as stale: its base is not in the lineage"
    assert counter.requeue(*counter.dead_letters()) == [(False, reason)]
    assert counter.settled() == [(1, "stale")]


def test_a_former_incarnation_is_refused(counter):
    refuse(counter, update(counter))
    counter.federation.change(name_of("bank-a"), counter.entry().model_copy(update={"incarnation": 2}))
    assert counter.requeue(*counter.dead_letters()) == [(False, "incarnation 1 is not 2, the present one")]


def test_one_who_is_still_unknown_is_refused(counter):
    refuse(counter, update(counter))
    counter.federation.change(name_of("bank-a"), counter.entry().model_copy(update={"removed": True}))
    assert counter.requeue(*counter.dead_letters()) == [(False, "bank-a is not a member of this federation")]


@pytest.mark.parametrize("author", ["bank-b", ""])
def test_an_order_that_names_another_author_than_its_letter_is_refused(counter, author):
    (message,) = as_messages(update(counter), {"w": array(1, 1)})
    letter = letter_of(a_letter(message), headers={**a_letter(message).headers, "author": author})
    order = requeue_order(a_letter(message), arguments=letter.model_dump())
    counter.follow(order)
    (outcome,) = counter.federation.pending.operations
    assert (outcome.applied, outcome.reason) == (False, "the order names another author than the letter")


def test_an_update_of_somebody_else_is_refused(counter):
    (message,) = as_messages(an_update("bank-b", base=counter.federation.head), {"w": array(1, 1)})
    assert counter.requeue(a_letter(message)) == [(False, "the message names 'bank-b', its author is 'bank-a'")]
    assert counter.settled() == []


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"letter": b"x"}, id="something else"),
        pytest.param({"author": "bank/a", "kind": "update", "message_id": "x", "headers": {}, "body": b""}, id="no institution"),
        pytest.param({"author": "bank-a", "kind": "update", "message_id": "x", "headers": {}, "body": "x"}, id="text for bytes"),
        pytest.param({"author": "bank-a", "kind": "update", "message_id": "x", "headers": {"a": []}, "body": b""}, id="a list"),
        pytest.param({"author": "bank-a", "kind": "x" * 41, "message_id": "x", "headers": {}, "body": b""}, id="a long kind"),
    ],
)
def test_an_order_without_a_letter_is_refused(counter, arguments):
    counter.follow(an_operation("requeue", 7).model_copy(update={"arguments": arguments}))
    (outcome,) = counter.federation.pending.operations
    assert not outcome.applied
    assert outcome.reason.startswith("the order does not hold a letter: ")


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        pytest.param(Message(b"x", "update", "x", {}), "schema header 'None' is not 1", id="no chunk"),
        pytest.param(
            next(split(b"\xc1", kind="update", run_id=RUN, identity="bank-a/1/1", chunk_bytes=10)),
            "not a msgpack body: ValueError",
            id="what can never be decoded",
        ),
        pytest.param(as_messages(a_hello())[0], "a message of kind 'hello' where 'update' was expected", id="a hello"),
        pytest.param(
            as_messages(an_update(run_id="cd" * 8), {"w": array(1)})[0],
            f"the message belongs to run '{'cd' * 8}', this is '{RUN}'",
            id="another run",
        ),
    ],
)
def test_a_letter_of_which_nothing_can_be_made_is_refused_with_its_reason(counter, message, reason):
    assert counter.requeue(a_letter(message)) == [(False, reason)]
    assert counter.settled() == []
    counter.commit()
    assert counter.unacknowledged() == 0


def large_letters(counter: Counter, sequence: int = 1) -> list[Message]:
    """The two letters of one update."""
    return [
        a_letter(each) for each in as_messages(update(counter, sequence), {"w": np.ones(5000, np.float32)}, chunk_bytes=16384)
    ]


def test_early_updates_behind_the_number_that_is_taken_back_are_folded_with_it(counter):
    refuse(counter, update(counter))
    counter.send(update(counter, 2), 1, 1)
    counter.requeue(*counter.dead_letters())
    assert counter.settled() == [(1, "aggregated"), (2, "aggregated")]


def test_a_letter_that_kills_what_takes_it_back_is_refused_after_five_deliveries_of_its_order(counter):
    (message,) = as_messages(update(counter), {"w": array(1, 1)})
    counter.desk.survives_trial = lambda _upload: False
    order = messages.encode("operation", requeue_order(a_letter(message)))
    delivery = Delivery(OPERATIONS, 1, Message(order, "operation", "x"), "operator", delivery_count=5)
    Orders(counter.desk, counter.models, counter.commit).take(delivery)
    (outcome,) = counter.federation.pending.operations
    assert (outcome.applied, outcome.reason[:36]) == (False, "a child process that tried it died; ")
    assert counter.settled() == []


def test_letters_of_one_upload_that_are_not_all_there_change_nothing_and_do_not_disturb_the_desk(counter):
    first, _ = large_letters(counter)
    counter.requeue(first)
    counter.commit()
    counter.now += 601
    counter.desk.tidy(orphan_seconds=600)
    counter.send(update(counter), 1, 1)
    assert counter.settled() == [(1, "aggregated")]


def test_letters_out_of_their_order_are_refused_and_acknowledged_with_their_orders(counter):
    first, _ = large_letters(counter)
    _, second_of_another = large_letters(counter, 2)
    assert counter.requeue(first, second_of_another) == [(True, ""), (False, "chunk 1 came where 0 was expected")]
    counter.desk.drop_surplus()
    assert counter.unacknowledged() == 2
    counter.commit()
    assert counter.unacknowledged() == 0


def test_letters_with_other_bytes_than_announced_are_refused_and_acknowledged_with_their_orders(counter):
    first, second = large_letters(counter)
    garbled = replace(second, body=bytes(len(second.body)))
    assert counter.requeue(first, garbled) == [(True, ""), (False, "the bytes do not have the announced SHA-256")]
    counter.desk.drop_surplus()
    assert counter.unacknowledged() == 2
    counter.commit()
    assert counter.unacknowledged() == 0


def test_letters_and_what_the_institution_sends_meanwhile_do_not_mix(refused):
    letters = refused.dead_letters()
    size = refused.federation.state.shapes["w"][0]
    interrupted, *rest = as_messages(update(refused, 2), {"w": np.full(size, 3, np.float32)}, chunk_bytes=300)
    refused.publish(interrupted, "bank-a")
    for letter in letters:
        refused.requeue(letter)
    for message in rest:
        refused.publish(message, "bank-a")
    assert refused.settled() == [(1, "aggregated"), (2, "aggregated")]


def test_an_update_that_killed_its_readers_is_folded_once_when_it_is_taken_back(broker_server, tmp_path):
    memory = not hasattr(broker_server, "logins")
    counter = Counter(tmp_path, server=broker_server, model=LARGE, wait_seconds=0.0 if memory else 5.0)
    counter.desk.survives_trial = lambda upload: upload.survives_trial(["/bin/false"])
    delta = {"w": np.ones(5000, np.float32)}
    redelivered(counter, as_messages(update(counter), delta, chunk_bytes=16 * 1024), 5)
    assert counter.settled() == [(1, "rejected")]
    counter.commit()

    counter.desk.survives_trial = Upload.survives_trial
    (handle,) = {letter.handle for letter in DeadLetters(broker_server.connect("operator"), idle_seconds=0.5).look()}
    letters = DeadLetters(broker_server.connect("operator"), idle_seconds=0.5).find(handle).each_chunk()
    for letter in [*letters, *letters]:
        counter.follow(order_of_the_console(letter, RUN))
    applied = [outcome.applied for outcome in counter.federation.pending.operations]
    assert applied == [True, True, True, False]
    manifest = counter.commit().manifest
    assert [(each.sequence, each.outcome, each.hash) for each in manifest.settled] == [
        (1, "aggregated", codec.content_hash(b"".join(letter.delivery.message.body for letter in letters)))
    ]
    assert model(counter) == {TENTH}
    assert len(letters) == 2
