"""`fedqueue lineage`: a real run's chain holds, and each way in which a chain can be wrong is named."""

from dataclasses import replace

import pytest
from rich.console import Console

from aggregator_worker.roll_back import RollBack
from broker_config.streams import publish_claim, publish_record
from operator_console.chain_audit import BrokenLineageError, ChainAudit
from operator_console.lineage_commands import audited, summary, version_table
from shared import messages
from shared.broker import Delivery, Message
from shared.messages import Claim, Counters, Entry, OperationOutcome, Settlement
from tests.builders import BY_PSEUDONYM, a_claim, a_plan, a_record, a_table, name_of
from tests.running import Hand, Leader, Watch, begin

A = name_of("bank-a")
B = name_of("bank-b")
ZERO = a_record(0, table={A: Entry(incarnation=1)})
REQUEUE = OperationOutcome(operation_id="1" * 32, kind="requeue", applied=True)
BACK = OperationOutcome(operation_id="4" * 32, kind="roll-back", applied=True, reason=f"to version 0 without {A}")
ADMIT = OperationOutcome(operation_id="2" * 32, kind="admit", applied=True)


def shown(renderable):
    console = Console(width=160)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def settled(sequence, outcome="aggregated", **changes):
    given = {"weight": (0.5).hex(), "base_hash": ZERO.manifest.model.hash} if outcome == "aggregated" else {}
    return Settlement(
        **{"institution": A, "incarnation": 1, "sequence": sequence, "hash": f"{sequence:064x}", "outcome": outcome, **given}
        | changes
    )


def entry(watermark, *, weight=0.5, incarnation=1, **counters):
    return Entry(
        incarnation=incarnation,
        watermark=watermark,
        last_hash=f"{watermark:064x}" if watermark else "",
        total_weight=float(weight).hex(),
        counters=Counters(**counters),
    )


def one(*, after=ZERO, version=1, **changes):
    """The manifest that folds the first update, changed for the worse."""
    fields = {"settled": [settled(1)], "table": {A: entry(1, aggregated=1)}, "whole": False, "plan": None, "operation_ids": []}
    return a_record(version, after=after, **{**fields, **changes})


def audit(*items, start=0):
    """The audit of a stream that holds these."""
    checked = ChainAudit(start)
    for offset, item in enumerate(items, start):
        is_claim = isinstance(item, Claim)
        body = messages.encode("claim", item) if is_claim else messages.encode_record(item)
        checked.take(Delivery("fl.lineage", offset, Message(body, "claim" if is_claim else "manifest", ""), None, offset=offset))
    return checked


def test_the_chain_of_a_real_run_holds_and_is_summed_up(broker_server, tmp_path):
    begin(broker_server, a_plan())
    hand, watch = Hand(broker_server, "bank-a"), Watch(broker_server.connect("operator"))
    with Leader(broker_server, tmp_path / "one"):
        for sequence in (1, 2):
            hand.send(watch.head, sequence, 1, 2, 3)
            assert watch.until(lambda sequence=sequence: watch.entry("bank-a").watermark == sequence)
        hand.send(watch.head, 3, float("nan"), 2, 3)
        assert watch.until(lambda: len(watch.settled) == 3)
    with Leader(broker_server, tmp_path / "two"):
        hand.send(watch.head, 4, 1, 2, 3)
        assert watch.until(lambda: len(watch.settled) == 4)
    found = audited(broker_server.connect("operator"))
    assert found.outcomes == {"aggregated": 3, "rejected": 1}
    assert (found.first_version, found.last_version, found.trimmed) == (0, 3, False)
    assert (found.epochs, found.repeats, found.deposed, found.lost_claims) == (3, 2, 0, 0)
    text = shown(summary(found, BY_PSEUDONYM))
    assert "3 aggregated, 1 rejected" in text
    assert "bank-a, bank-b, bank-c" in text
    second = [record for record in watch.records if record.manifest.version == 2]
    assert "bank-a" in shown(version_table(second, BY_PSEUDONYM))
    assert "nan" not in shown(version_table(second, BY_PSEUDONYM))
    assert "rejected" in shown(version_table(second, BY_PSEUDONYM))


def test_a_version_tells_who_left_the_plan_and_why():
    spent = Entry(incarnation=1, standing="budget_spent", standing_limit="epsilon", standing_plan="d" * 64)
    refusing = Entry(incarnation=1, standing="plan_refused", standing_limit="mechanisms", standing_plan="d" * 64)
    elsewhere = Entry(incarnation=1, standing="budget_spent", standing_plan="e" * 64)
    table = {"bank-a": spent, "bank-b": refusing, "bank-c": elsewhere}
    text = shown(version_table([a_record(1, plan_hash="d" * 64, table=a_table(table))], BY_PSEUDONYM))
    assert "bank-a: budget spent" in text
    assert "bank-b: refuses the plan: mechanisms" in text
    assert "bank-c" not in text


def test_what_a_deposed_leader_wrote_is_passed_over(broker_server):
    begin(broker_server, a_plan())
    watch = Watch(broker_server.connect("operator"))
    aggregator = broker_server.connect("aggregator")
    publish_claim(aggregator, a_claim(2))
    publish_claim(aggregator, a_claim(2, "too late"))
    publish_record(aggregator, replace(watch.head, epoch=1))
    publish_record(aggregator, replace(watch.head, epoch=2))
    found = audited(broker_server.connect("operator"))
    assert (found.epochs, found.lost_claims, found.deposed, found.repeats) == (2, 1, 1, 1)


def test_a_manifest_that_was_altered_on_the_broker_is_named(broker_server):
    begin(broker_server, a_plan())
    watch = Watch(broker_server.connect("operator"))
    aggregator = broker_server.connect("aggregator")
    altered = a_record(1, after=a_record(0, mark="another"), epoch=1)
    publish_record(aggregator, altered)
    with pytest.raises(BrokenLineageError, match=f"the record at offset 2, version 1: .*head is {watch.head.hash[:12]}"):
        audited(broker_server.connect("operator"))


def test_the_good_chain_that_the_bad_ones_differ_from_holds():
    assert audit(a_claim(1), ZERO, one()).found.outcomes == {"aggregated": 1}


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        (replace(one(), epoch=2), "epoch 2 was never claimed"),
        (one(run_id="cd" * 8), "it belongs to run cdcd"),
        (one(version=2), "version 0 comes before it"),
        (one(version=0), "the model changes without a new version"),
        (one(plan=a_plan(), plan_hash="f" * 64), "the plan is not the one that its hash names"),
        (one(plan_hash="f" * 64), "the plan is not the one that its hash names"),
        (one(settled=[settled(2)]), "number 1/2 of .* is settled where 1/1 is next"),
        (one(settled=[settled(1), settled(1)]), "number 1/1 of .* is settled a second time"),
        (one(settled=[settled(1, "stale", weight=(0.1).hex())]), "is settled as stale, and has a weight"),
        (one(settled=[settled(1, staleness=1)]), "on version 0, and its staleness is given as 1"),
        (one(settled=[settled(1, base_hash="e" * 64)]), "names a base that is not the model of version 0"),
        (one(settled=[settled(1, incarnation=2)]), "incarnation 2 of .*, which nobody admitted"),
        (one(table={}), "is missing in the table"),
        (one(whole=True, plan=a_plan(), table={}), "is missing in the table"),
        (one(table={A: entry(2, aggregated=1)}), "the table gives watermark 2 of .*, the settlements 1"),
        (one(table={A: entry(1, weight=0.25, aggregated=1)}), "the table gives total_weight"),
        (one(table={A: entry(1, aggregated=2)}), "the table's counters of .* are not those of its settlements"),
        (
            one(table={A: entry(1, aggregated=1), B: entry(0, weight=0)}),
            "the table has incarnation 1 of .*, which nobody admitted",
        ),
        (one(whole=True, plan=a_plan(), operation_ids=["3" * 32]), "its list of the orders that were followed"),
    ],
)
def test_each_way_in_which_a_link_can_be_wrong_is_named(record, complaint):
    with pytest.raises(BrokenLineageError, match=rf"the record at offset 2, version \d: .*{complaint}"):
        audit(a_claim(1), ZERO, record)


def rolled(**changes):
    """The manifest of a roll-back, behind the one that folds the first update."""
    return a_record(
        **{
            "version": 2,
            "after": one(),
            "settled": [],
            "table": {},
            "whole": False,
            "plan": None,
            "operations": [BACK],
            "mark": "model 2",
            **changes,
        }
    )


def test_a_roll_back_is_a_link_that_holds_and_is_told_with_the_institutions_name():
    found = audit(a_claim(1), ZERO, one(), rolled()).found
    assert (found.last_version, found.roll_backs) == (2, {2: RollBack(0, A)})
    assert "version 2: to version 0 without bank-a" in shown(summary(found, BY_PSEUDONYM))
    assert "order to roll-back: applied, to version 0 without bank-a" in shown(version_table([rolled()], BY_PSEUDONYM))


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        (rolled(operations=[]), "a new version is made of no update, and of no order"),
        (rolled(operations=[BACK.model_copy(update={"applied": False})]), "a new version is made of no update, and of no order"),
        (rolled(version=1, mark="model 1"), "a roll-back makes a version of its own, and folds nothing"),
        (
            rolled(settled=[settled(2, staleness=1)], table={A: entry(2, weight=1.0, aggregated=2)}),
            "a roll-back makes a version of its own, and folds nothing",
        ),
        (rolled(operations=[BACK.model_copy(update={"reason": "to version 2"})]), "rolled back to version 2, and 1 is before it"),
    ],
)
def test_what_is_no_roll_back_and_no_fold_is_named(record, complaint):
    with pytest.raises(BrokenLineageError, match=rf"the record at offset 3, version \d: .*{complaint}"):
        audit(a_claim(1), ZERO, one(), record)


def test_a_run_begins_with_a_claim_and_version_0():
    with pytest.raises(BrokenLineageError, match="offset 0, version 0: readers do not take it for a part of the chain"):
        audit(ZERO)
    with pytest.raises(BrokenLineageError, match="the first manifest of a run is version 0 without a predecessor"):
        audit(a_claim(1), one())


def test_bytes_that_nobody_can_read_and_a_header_that_lies_are_named():
    with pytest.raises(BrokenLineageError, match="the record at offset 0 cannot be read"):
        ChainAudit().take(Delivery("fl.lineage", 0, Message(b"\x00", "manifest", ""), None, offset=0))
    lying = Message(messages.encode_record(ZERO), "manifest", "", {"content": "0" * 64})
    with pytest.raises(BrokenLineageError, match="does not hold the content that its header names"):
        ChainAudit().take(Delivery("fl.lineage", 0, lying, None, offset=0))


def test_only_what_was_not_folded_is_settled_again_and_only_by_order():
    first = one(version=0, model=ZERO.manifest.model, settled=[settled(1, "rejected")], table={A: entry(1, weight=0, rejected=1)})
    again = {"version": 1, "after": first, "table": {A: entry(1, rejected=1, aggregated=1)}}
    audit(a_claim(1), ZERO, first, one(**again, operations=[REQUEUE]))
    with pytest.raises(BrokenLineageError, match="is settled a second time"):
        audit(a_claim(1), ZERO, first, one(**again))
    folded = one()
    with pytest.raises(BrokenLineageError, match="is settled a second time"):
        audit(a_claim(1), ZERO, folded, one(version=2, after=folded, settled=[settled(1, staleness=1)], operations=[REQUEUE]))


def test_a_new_incarnation_begins_anew_and_keeps_its_counters():
    first = one()
    renewed = entry(0, aggregated=1, incarnation=2)
    admitted = a_record(
        1, after=first, model=first.manifest.model, table={A: renewed}, whole=False, plan=None, operations=[ADMIT], settled=[]
    )
    next_one = settled(1, incarnation=2, staleness=1)
    audit(
        a_claim(1), ZERO, first, admitted,
        one(version=2, after=admitted, settled=[next_one], table={A: entry(1, weight=1.0, aggregated=2, incarnation=2)}),
    )  # fmt: skip


def test_where_retention_has_cut_the_beginning_the_rest_is_checked():
    first = one()
    second = one(version=2, after=first, settled=[settled(2, staleness=1)], table={A: entry(2, weight=1.0, aggregated=2)})
    found = audit(replace(first, epoch=4), replace(second, epoch=4), start=70).found
    assert (found.trimmed, found.first_version, found.last_version) == (True, 2, 2)
    assert "2, what was before it is trimmed to 2" in shown(summary(found, {}))
    third = one(version=3, after=first, settled=[settled(3, staleness=2)])
    with pytest.raises(BrokenLineageError, match="the record at offset 72"):
        audit(replace(first, epoch=4), replace(second, epoch=4), replace(third, epoch=4), start=70)
