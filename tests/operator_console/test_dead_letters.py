"""Dead letters: looking changes nothing, discarding takes exactly one, and strangers' text stays text."""

from dataclasses import replace

import pytest

from broker_config.topology import DEAD_LETTER_EXCHANGE, DEAD_LETTERS, update_queue
from operator_console.dead_letter_commands import age, lines, printable, requeue_upload, row
from operator_console.dead_letters import (
    DeadLetters,
    IncompleteUploadError,
    NoSuchLetterError,
    UnusableLetterError,
    requeue_order,
    uploads,
)
from operator_console.operation_commands import OrderDesk, OrderRefusedError
from shared.broker import Message
from tests.builders import RUN, a_plan, an_update, array, as_messages
from tests.running import Hand, Leader, Watch, begin


def a_letter(mark, *, kind="update", **headers):
    return Message(
        mark.encode() * 10, kind, f"{mark}#0", {"id": mark, "refused": f"because {mark}", "author": "bank-a", **headers}
    )


def bury(server, *letters):
    """As an aggregator does with what it cannot use."""
    aggregator = server.connect("aggregator")
    for letter in letters:
        aggregator.publish(DEAD_LETTER_EXCHANGE, letter)
    aggregator.close()


def dead_letters(server):
    return DeadLetters(server.connect("operator"), idle_seconds=0.2)


def reasons(server):
    return [letter.reason for letter in dead_letters(server).look()]


def one(server):
    (upload,) = uploads(dead_letters(server).look())
    return upload


def in_chunks(delta=(1.0, 2.0, 3.0), *, of=3):
    """An upload of bank-a in so many chunks."""
    (whole,) = as_messages(an_update(), {"w": array(*delta)})
    return as_messages(an_update(), {"w": array(*delta)}, chunk_bytes=-(-len(whole.body) // of))


def until_there(letters):
    """The first dead upload, as soon as there is one."""
    while not (found := uploads(letters.look())):
        pass
    return letters.find(found[0].handle)


def test_looking_leaves_every_letter_at_its_place(broker_server, soon):
    bury(broker_server, *(a_letter(mark) for mark in "abcd"))
    letters = dead_letters(broker_server)
    assert [letter.size for letter in letters.look(limit=3)] == [10, 10, 10]
    assert soon(lambda: broker_server.depth(DEAD_LETTERS) == 4)
    assert reasons(broker_server) == ["because a", "because b", "because c", "because d"]
    assert all(letter.delivery.message.body == b"" for letter in letters.look())


def test_of_a_long_queue_the_oldest_are_looked_at_and_the_one_that_is_meant_is_found(broker_server, soon):
    aggregator = broker_server.connect("aggregator")
    aggregator.publish_all(DEAD_LETTER_EXCHANGE, (a_letter(f"n{number}") for number in range(2000)))
    letters = dead_letters(broker_server)
    assert [letter.reason for letter in letters.look(limit=3)] == ["because n0", "because n1", "because n2"]
    (late,) = [each for each in uploads(letters.look()) if each.first.reason == "because n1500"]
    assert letters.discard(letters.find(late.handle).letters) == 1
    assert soon(lambda: broker_server.depth(DEAD_LETTERS) == 1999)
    # letters that were looked at come back in any order
    others = {f"because n{number}" for number in range(2000)} - {"because n1500"}
    assert soon(lambda: {letter.reason for letter in letters.look()} == others)


def test_discarding_takes_exactly_the_letter_that_was_named(broker_server):
    bury(broker_server, a_letter("a"), a_letter("b"), a_letter("b"), a_letter("c"))
    letters = dead_letters(broker_server)
    handle = uploads(letters.look())[1].handle
    assert letters.discard(letters.find(handle).letters[:1]) == 1
    assert reasons(broker_server) == ["because a", "because b", "because c"]
    assert letters.discard(letters.find(handle).letters) == 1
    assert reasons(broker_server) == ["because a", "because c"]
    with pytest.raises(NoSuchLetterError, match=f"no dead letter has the id {handle}"):
        letters.find(handle)


def test_a_letter_that_the_broker_made_names_its_reason_and_its_validated_author(broker_server, soon):
    forged = {"refused": "[bold]nothing at all", "author": "bank-c"}
    broker_server.connect("bank-b").publish(update_queue("bank-b"), Message(b"xyz", "update", "b#0", forged))
    aggregator = broker_server.connect("aggregator")
    aggregator.consume(update_queue("bank-b"), prefetch=1)
    aggregator.reject(aggregator.receive(10))
    assert soon(lambda: broker_server.depth(DEAD_LETTERS) == 1)
    upload = one(broker_server)
    assert (upload.first.reason, upload.first.institution, upload.first.author) == ("rejected", "bank-b", "bank-b")


@pytest.mark.rabbitmq
def test_the_age_of_a_letter_is_told_by_a_real_broker(rabbitmq_server):
    bury(rabbitmq_server, a_letter("a"))
    published_at = one(rabbitmq_server).first.delivery.published_at
    assert [age(published_at, now=published_at + seconds) for seconds in (59.9, 60, 7200, 90000, -5)] == [
        "59 s",
        "1 min",
        "2 h",
        "1 d",
        "0 s",
    ]
    assert age(None, now=0) == "-"


def test_chunks_of_one_upload_are_one_line_and_a_repeat_adds_none(broker_server):
    copies = [replace(chunk, headers=dict(chunk.headers) | {"author": "bank-a", "refused": "why"}) for chunk in in_chunks()]
    bury(broker_server, copies[1], copies[0], a_letter("z"), copies[0], copies[2])
    first, second = uploads(dead_letters(broker_server).look())
    assert [letter.place for letter in first.letters] == [(0, 3), (0, 3), (1, 3), (2, 3)]
    assert first.chunks == (3, 3)
    assert [letter.place[0] for letter in first.each_chunk()] == [0, 1, 2]
    assert second.first.reason == "because z"


def test_an_upload_without_all_its_chunks_is_not_ordered_to_be_taken_in_again(broker_server):
    chunks = in_chunks()
    bury(broker_server, chunks[0], chunks[2])
    with pytest.raises(IncompleteUploadError, match="only 2 of its 3 chunks are among the dead letters"):
        one(broker_server).each_chunk()


def test_strangers_text_is_shown_as_text_on_one_line(broker_server):
    nasty = a_letter("a", refused="[red]\x1b[2J\n\u202eevil [/red]" + "x" * 500)
    nasty = replace(nasty, kind="update\x07", headers=dict(nasty.headers) | {"chunk": 5, "chunks": "many"})
    bury(broker_server, nasty)
    upload = one(broker_server)
    cells = row(upload, now=0)
    assert cells[1].plain.startswith("[red]\ufffd[2J\ufffd\ufffdevil [/red]xxx")
    assert len(cells[1].plain) == 200
    assert (cells[3].plain, cells[5].plain) == ("update\ufffd", "1 of 1")
    assert all(line.isprintable() for line in lines(upload))
    assert printable("\x9b31m") == "\ufffd31m"


def test_show_decodes_nothing_and_ends_with_64_bytes(broker_server):
    bury(broker_server, replace(a_letter("a"), body=bytes(range(100))))
    told = list(lines(one(broker_server)))
    assert told[0] == "reason: because a"
    assert "written by: aggregator" in told
    assert "bytes: 100" in told
    assert told[-1] == "first bytes: " + bytes(range(64)).hex(" ")


def test_an_order_to_requeue_holds_the_original(broker_server):
    (chunk,) = in_chunks(of=1)
    headers = dict(chunk.headers) | {"author": "bank-a", "refused": "why", "queue": "q"}
    bury(broker_server, replace(chunk, headers=headers))
    handle = one(broker_server).handle
    letter = dead_letters(broker_server).find(handle).first
    order = requeue_order(letter, RUN)
    assert order.operation_id != requeue_order(letter, RUN).operation_id
    assert order.arguments == {
        "author": "bank-a",
        "kind": "update",
        "message_id": "bank-a/1/1#0",
        "headers": headers,
        "body": chunk.body,
    }


def test_nothing_is_ordered_of_a_letter_whose_author_nobody_knows(broker_server):
    bury(broker_server, a_letter("a", author=""))
    letters = dead_letters(broker_server)
    with pytest.raises(UnusableLetterError, match="its author is not one that a message of ours has"):
        requeue_order(letters.find(one(broker_server).handle).first, RUN)


def test_a_refused_order_leaves_the_letter_and_says_the_aggregators_reason(broker_server, tmp_path):
    begin(broker_server, a_plan())
    hand = Hand(broker_server, "bank-a")
    with Leader(broker_server, tmp_path):
        hand.publish(Message(b"no update of ours", "update", "bank-a/1/1#0"))
        letters = dead_letters(broker_server)
        dead = until_there(letters)
        for _ in range(2):
            with pytest.raises(OrderRefusedError, match=r"refused to take \w+ in again: schema header"):
                requeue_upload(dead, OrderDesk(broker_server.connect("operator")))
    assert len(reasons(broker_server)) == 1


def test_a_letter_that_was_refused_for_a_moments_reason_is_folded_once_when_it_is_taken_in_again(broker_server, tmp_path):
    begin(broker_server, a_plan())
    hand, watch = Hand(broker_server, "bank-a"), Watch(broker_server.connect("operator"))
    with Leader(broker_server, tmp_path):
        for message in as_messages(an_update(base=watch.head), {"w": array(1, 2, 3)}, chunk_bytes=150):
            bury(broker_server, replace(message, headers=dict(message.headers) | {"author": "bank-a", "refused": "why"}))
        letters = dead_letters(broker_server)
        dead = until_there(letters)
        assert dead.chunks[1] > 1
        requeue_upload(dead, OrderDesk(broker_server.connect("operator")))
        with pytest.raises(OrderRefusedError, match="number 1 is aggregated already; it stays here"):
            requeue_upload(dead, OrderDesk(broker_server.connect("operator")))
        assert letters.discard(dead.each_chunk()) == dead.chunks[1]
        hand.send(watch.head, 2, 1, 1, 1)
        assert watch.until(lambda: len(watch.settled) == 2)
    assert reasons(broker_server) == []
    assert watch.outcomes("bank-a") == [(1, "aggregated"), (2, "aggregated")]
