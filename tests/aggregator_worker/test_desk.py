from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from structlog.testing import capture_logs

from aggregator_worker.orders import Orders
from broker_config.topology import OPERATIONS
from shared import messages
from shared.broker import Message
from shared.chunks import split
from shared.messages import Entry, Report
from tests.aggregator_worker.counter import Counter, update
from tests.builders import RUN, a_hello, a_plan, a_standing, array, as_messages, commit, name_of, small_limits


def test_an_update_is_folded_and_stays_unacknowledged_until_the_commit(counter):
    counter.send(update(counter), 10, 20)
    # bank-a holds 100 of 1000 examples
    assert counter.federation.state.model["w"].tolist() == pytest.approx([1.0, 2.0])
    assert counter.settled() == [(1, "aggregated")]
    assert counter.unacknowledged() == len(counter.desk.settled) == 1


def test_an_update_that_comes_again_is_counted_and_changes_nothing(counter):
    counter.send(update(counter), 10, 20)
    before = counter.federation.state.model["w"].tobytes()
    counter.send(update(counter), 10, 20)
    assert counter.federation.state.model["w"].tobytes() == before
    assert counter.entry().counters.duplicate == 1
    assert counter.settled() == [(1, "aggregated")]
    assert counter.unacknowledged() == 1


def test_an_id_with_another_content_is_an_alarm_in_the_dead_letters(counter):
    counter.send(update(counter), 10, 20)
    counter.send(update(counter), 10, 21)
    (letter,) = counter.dead_letters()
    assert letter.headers["refused"] == "update 1/1 came again with another content"
    assert counter.entry().counters.duplicate == 0


def test_updates_out_of_order_are_folded_in_order(counter):
    for sequence in (3, 2, 1):
        counter.send(update(counter, sequence), sequence, 0)
    assert counter.settled() == [(1, "aggregated"), (2, "aggregated"), (3, "aggregated")]
    assert counter.desk._early["bank-a"] == {}


@pytest.mark.parametrize("chunk_bytes", [2**20, 16 * 1024], ids=["one message", "chunks"])
def test_early_updates_wait_on_disk_and_are_folded_in_their_order(tmp_path, chunk_bytes):
    # 80,000 bytes each. With a tenth of the data they count 2^24, 1 and 1: after 2^24 each 1 is lost, before it they add 2
    model = {"w": np.zeros(20_000, np.float32)}
    steps = {1: 10 * 2.0**24, 2: 10.0, 3: 10.0}
    for arrival in permutations(steps):
        counter = Counter(tmp_path, model=model)
        for sequence in arrival:
            counter.send(update(counter, sequence), *[steps[sequence]] * 20_000, chunk_bytes=chunk_bytes)
            waiting = counter.desk._early.get("bank-a", {}).values()
            assert [(early.upload.body, early.upload.spool is None) for early in waiting] == [(None, False)] * len(waiting)
        assert counter.settled() == [(1, "aggregated"), (2, "aggregated"), (3, "aggregated")]
        assert set(counter.federation.state.model["w"].tolist()) == {2.0**24}


def test_a_small_early_update_waits_in_memory(counter):
    counter.send(update(counter, 2), 1, 1)
    assert counter.desk._early["bank-a"][2].upload.spool is None
    assert counter.desk._early["bank-a"][2].upload.body is not None


def test_a_number_that_never_comes_is_lost_after_the_patience_of_the_plan(counter):
    counter.send(update(counter, 3), 1, 1)
    counter.now += 9.0
    counter.desk.tidy(orphan_seconds=600)
    assert counter.settled() == []
    counter.now += 2.0
    counter.desk.tidy(orphan_seconds=600)
    assert counter.settled() == [(1, "lost"), (2, "lost"), (3, "aggregated")]
    assert (counter.entry().watermark, counter.entry().counters.lost) == (3, 2)
    assert counter.desk.due() is False


def test_an_early_update_that_comes_again_is_held_once(counter):
    counter.send(update(counter, 2), 1, 1)
    counter.send(update(counter, 2), 1, 1)
    assert counter.unacknowledged() == 1
    counter.send(update(counter, 1), 1, 1)
    assert counter.settled() == [(1, "aggregated"), (2, "aggregated")]


def test_a_number_far_ahead_is_refused(counter):
    counter.send(update(counter, 65), 1, 1)
    assert counter.dead_letters()[0].headers["refused"] == "number 65 is more than 64 ahead of 0"
    counter.send(update(counter, 64), 1, 1)
    assert counter.unacknowledged() == 1


def reincarnate(counter) -> None:
    """What the operator's admit does to bank-a's entry."""
    fresh = {"incarnation": 2, "watermark": 0, "last_hash": ""}
    counter.federation.change(name_of("bank-a"), counter.entry().model_copy(update=fresh))


def test_an_older_incarnation_is_acknowledged_and_counted(counter):
    reincarnate(counter)
    counter.send(update(counter, 1), 1, 1)
    assert counter.settled() == []
    assert counter.entry().counters.duplicate == 1
    assert counter.unacknowledged() == 0


def test_early_updates_of_an_older_incarnation_are_let_go(counter):
    counter.send(update(counter, 2), 1, 1)
    reincarnate(counter)
    counter.send(update(counter, 1, incarnation=2), 1, 1)
    assert counter.settled() == [(1, "aggregated")]
    assert counter.entry().incarnation == 2
    counter.now += 60
    counter.desk.tidy(orphan_seconds=600)
    assert counter.settled() == [(1, "aggregated")]


@pytest.mark.parametrize("message", ["update", "hello"])
def test_an_institution_cannot_issue_itself_an_incarnation(counter, message):
    content = update(counter, 1, incarnation=2) if message == "update" else a_hello(incarnation=2)
    counter.send(content, *((1, 1) if message == "update" else ()))
    assert counter.dead_letters()[0].headers["refused"] == "incarnation 2 was never issued, 1 is the newest"
    assert counter.entry().incarnation == 1


def test_a_hello_is_answered_in_the_table_and_acknowledged_with_the_commit(counter):
    counter.send(a_hello(nonce="77" * 8, num_examples=250))
    assert (counter.entry().nonce, counter.entry().num_examples) == ("77" * 8, 250)
    assert counter.unacknowledged() == len(counter.desk.settled) == 1


def test_a_report_is_handed_on_and_acknowledged_at_once(counter):
    report = Report(
        run_id=RUN, institution="bank-b", incarnation=1, version=0, model_hash="c" * 64, metrics={"auc": 0.7}, epsilon=0.2
    )
    counter.publish(replace(as_messages(a_hello())[0], **report_message(report)), "bank-b")
    assert counter.reports == [report]
    assert counter.unacknowledged() == 0
    assert counter.desk.due() is False


def test_a_report_of_a_version_that_was_reported_or_does_not_exist_is_not_kept(counter):
    fields = {"run_id": RUN, "institution": "bank-b", "incarnation": 1, "model_hash": "c" * 64, "metrics": {}, "epsilon": 0.2}
    for version in (0, 0, 99):
        report = Report(version=version, **fields)
        counter.publish(replace(as_messages(a_hello())[0], **report_message(report)), "bank-b")
    assert [report.version for report in counter.reports] == [0]
    assert counter.unacknowledged() == 0


def standing(counter, institution: str = "bank-a", **changes):
    """What an institution says of the plan in force."""
    plan_hash = counter.federation.head.manifest.plan_hash
    return a_standing(institution, **{"plan_hash": plan_hash, "state": "plan_refused", "limit": "max_epsilon", **changes})


def test_why_an_institution_trains_no_more_stands_in_the_table_and_is_acknowledged_with_the_commit(counter):
    counter.send(standing(counter))
    entry = counter.entry()
    plan_hash = counter.federation.head.manifest.plan_hash
    assert (entry.standing, entry.standing_limit, entry.standing_plan) == ("plan_refused", "max_epsilon", plan_hash)
    assert counter.unacknowledged() == len(counter.desk.settled) == 1
    assert counter.settled() == []
    counter.now += 0.06
    assert counter.desk.due()
    assert counter.commit().manifest.table[name_of("bank-a")].standing == "plan_refused"


def test_a_standing_is_a_line_of_the_log_with_its_reason(counter):
    with capture_logs() as lines:
        counter.send(standing(counter, reason="the plan asks for epsilon 8"))
    (line,) = [line for line in lines if line.get("kind") == "standing"]
    assert (line["state"], line["limit"], line["reason"]) == ("plan_refused", "max_epsilon", "the plan asks for epsilon 8")


def test_a_standing_that_comes_again_changes_nothing(counter):
    counter.send(standing(counter))
    counter.commit()
    counter.send(standing(counter))
    assert counter.federation.empty
    counter.send(standing(counter, state="budget_spent"))
    counter.commit()
    before = counter.entry()
    counter.send(standing(counter, state="budget_spent"))
    counter.send(standing(counter, state="plan_refused"))
    assert (before.standing, counter.entry()) == ("budget_spent", before)
    assert counter.federation.empty
    assert counter.unacknowledged() == 0


@pytest.mark.parametrize("changes", [{"plan_hash": "e" * 64}, {"incarnation": 1}], ids=["another plan", "an older incarnation"])
def test_a_standing_of_another_plan_or_an_older_incarnation_is_acknowledged_and_has_no_effect(counter, changes):
    reincarnate(counter)
    before = counter.entry()
    counter.send(standing(counter, **{"incarnation": 2, **changes}))
    assert counter.entry() == before
    assert counter.unacknowledged() == 0
    assert counter.dead_letters() == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"institution": "bank-b"}, "the message names 'bank-b', its author is 'bank-a'"),
        ({"run_id": "cd" * 8}, f"the message belongs to run '{'cd' * 8}', this is '{RUN}'"),
        ({"incarnation": 2}, "incarnation 2 was never issued, 1 is the newest"),
    ],
)
def test_a_standing_that_is_not_its_authors_is_refused(counter, changes, reason):
    counter.send(standing(counter, **changes), as_user="bank-a")
    assert counter.dead_letters()[0].headers["refused"] == reason
    assert {entry.standing for entry in counter.federation.table.values()} == {None}


def test_an_update_after_a_refusal_is_settled_as_over_budget_and_hinted(counter):
    counter.send(update(counter), 1, 1)
    counter.send(standing(counter))
    counter.send(update(counter, 2), 1, 1)
    assert counter.settled() == [(1, "aggregated"), (2, "over_budget")]
    assert [hint.reason for _, hint in counter.desk.hints] == ["it has refused this plan"]


def test_who_has_left_the_plan_is_not_waited_for(tmp_path):
    # K = 2 of three is capped at one; two of four count while all take part
    counter = Counter(tmp_path, plan=a_plan({"max_wait_seconds": 10.0, "buffer_size": 2}, limits=small_limits()))
    counter.federation.change("4" * 16, Entry(incarnation=1, num_examples=100))
    counter.send(update(counter), 1, 1)
    assert not counter.desk.due()
    counter.send(standing(counter, "bank-b", state="budget_spent", limit="epsilon"))
    assert counter.desk.due()


def report_message(report: Report) -> dict[str, object]:
    (message,) = list(messages_of(report))
    return {"body": message.body, "kind": message.kind, "headers": message.headers}


def messages_of(report: Report):
    return split(messages.encode("report", report), kind="report", run_id=RUN, identity="r1", chunk_bytes=2**20)


@pytest.mark.parametrize(
    ("changes", "user", "reason"),
    [
        ({"institution": "bank-b"}, "bank-a", "the message names 'bank-b', its author is 'bank-a'"),
        ({"run_id": "cd" * 8}, "bank-a", f"the message belongs to run '{'cd' * 8}', this is '{RUN}'"),
    ],
)
def test_a_message_under_a_wrong_name_is_refused_with_its_reason(counter, changes, user, reason):
    counter.send(update(counter, **changes), 1, 1, as_user=user)
    (letter,) = counter.dead_letters()
    assert letter.headers["refused"] == reason
    assert (letter.headers["author"], letter.headers["queue"]) == ("bank-a", "fl.upd.bank-a")
    assert counter.unacknowledged() == 0
    assert counter.settled() == []


def test_a_stranger_is_refused(counter):
    counter.federation.change(name_of("bank-a"), Entry(incarnation=1, removed=True))
    counter.send(update(counter), 1, 1)
    assert counter.dead_letters()[0].headers["refused"] == "bank-a is not a member of this federation"


@pytest.mark.parametrize("body", [b"", b"\x80\x04\x95", bytes(range(256)) * 4096], ids=["empty", "a pickle", "a megabyte"])
def test_bytes_without_headers_are_refused(counter, body):
    counter.publish(Message(body, "update", "x"), "bank-a")
    (letter,) = counter.dead_letters()
    assert letter.body == body
    assert "schema header" in str(letter.headers["refused"])
    assert counter.unacknowledged() == 0


def test_headers_of_the_sender_cannot_outgrow_a_frame_with_ours(counter):
    counter.publish(Message(b"x", "update", "x", {"padding": "p" * 100_000, "id": "i" * 100_000, "chunk": 3}), "bank-a")
    (letter,) = counter.dead_letters()
    assert set(letter.headers) - {"refused", "author", "queue"} == {"chunk"}


def test_chunks_whose_whole_is_refused_leave_nothing_unacknowledged(counter):
    counter.send(update(counter, run_id="cd" * 8), *range(200), chunk_bytes=300)
    assert counter.unacknowledged() == 0
    assert len(counter.dead_letters()) == 1


def test_an_update_in_chunks_keeps_all_of_them_until_the_commit(counter):
    counter.send(update(counter), 10, 20, chunk_bytes=100)
    assert counter.settled() == [(1, "aggregated")]
    assert counter.unacknowledged() == len(counter.desk.settled) > 3


def test_what_is_refused_for_its_content_is_settled_and_hinted(counter):
    counter.send(update(counter), 1, float("nan"))
    assert counter.settled() == [(1, "rejected")]
    assert [(institution, hint.sequence, hint.reason) for institution, hint in counter.desk.hints] == [
        ("bank-a", 1, "a value is not finite")
    ]
    assert counter.dead_letters() == []


def test_a_commit_is_due_at_k_updates(counter):
    counter.send(update(counter), 1, 1)
    assert not counter.desk.due()
    counter.send(update(counter, institution="bank-b"), 1, 1)
    assert counter.desk.due()


def test_a_commit_is_due_when_an_update_has_waited_as_long_as_the_plan_says(counter):
    counter.send(update(counter), 1, 1)
    counter.now += 9.9
    assert not counter.desk.due()
    counter.now += 0.2
    assert counter.desk.due()


def test_a_commit_is_due_before_the_broker_loses_patience(counter):
    counter.desk.longest_wait_seconds = 5.0
    counter.send(update(counter), 1, 1)
    counter.now += 5.1
    assert counter.desk.due()


@pytest.fixture
def spaced(tmp_path):
    """Versions are 30 s apart at least; one was just made."""
    limits = small_limits(version_spacing_seconds=30.0)
    counter = Counter(tmp_path, plan=a_plan({"max_wait_seconds": 10.0}, limits=limits))
    counter.send(update(counter), 1, 1)
    assert counter.desk.due()
    counter.commit()
    return counter


def test_a_new_version_waits_for_its_distance_to_the_last_one(spaced):
    spaced.send(update(spaced, 2), 1, 1)
    spaced.now += 29.9
    assert not spaced.desk.due()
    spaced.now += 0.2
    assert spaced.desk.due()


def test_what_makes_no_version_does_not_wait_for_the_distance(spaced):
    spaced.send(update(spaced, 2), 1, float("nan"))
    spaced.send(a_hello())
    spaced.now += 0.06
    assert spaced.desk.due()
    spaced.commit()
    spaced.send(update(spaced, 3), 1, 1)
    spaced.now += 29.8
    assert not spaced.desk.due()
    spaced.now += 0.2
    assert spaced.desk.due()


def test_the_distance_of_versions_gives_way_before_the_broker_loses_patience(spaced):
    spaced.desk.longest_wait_seconds = 5.0
    spaced.send(update(spaced, 2), 1, 1)
    spaced.now += 5.1
    assert spaced.desk.due()


def test_what_makes_no_version_waits_for_company_a_moment_only(counter):
    counter.send(a_hello())
    assert not counter.desk.due()
    counter.now += 0.06
    assert counter.desk.due()


def test_a_hello_waits_for_no_buffer_to_be_full(counter):
    counter.send(update(counter), 1, 1)
    counter.now += 1.0
    assert not counter.desk.due()
    counter.send(a_hello("bank-b"))
    assert counter.desk.due()
    counter.commit()
    counter.send(update(counter, 2), 1, 1)
    counter.now += 1.0
    assert not counter.desk.due()


def test_after_a_commit_nothing_is_due(counter):
    counter.send(update(counter), 1, 1)
    counter.send(update(counter, institution="bank-b"), 1, 1)
    commit(counter.federation)
    counter.desk.committed(new_version=True)
    assert not counter.desk.due()
    assert (counter.desk.settled, counter.desk.hints) == ([], [])


def test_an_order_that_was_settled_before_is_acknowledged_at_once(counter):
    counter.order(1)
    commit(counter.federation)
    counter.broker.ack(counter.desk.settled[0])
    counter.desk.committed(new_version=True)
    counter.order(1)
    assert counter.unacknowledged() == 0
    assert not counter.desk.due()


def test_an_order_that_cannot_be_read_is_refused(counter):
    counter.server.connect("operator").publish(OPERATIONS, Message(b"pause!", "operation", "x"))
    delivery = counter.broker.receive(0)
    assert delivery is not None
    assert Orders(counter.desk, counter.models, counter.commit).take(delivery) is None
    assert len(counter.dead_letters()) == 1


def test_an_upload_that_nobody_continues_is_acknowledged_after_its_time(counter):
    first, *_ = as_messages(update(counter), {"w": array(1, 2)}, chunk_bytes=100)
    counter.publish(first, "bank-a")
    counter.now += 601
    counter.desk.tidy(orphan_seconds=600)
    assert counter.unacknowledged() == 0
