import json
from itertools import pairwise
from pathlib import Path

import pytest

from broker_config.memory import MemoryRabbit
from broker_config.streams import UninitialisedError, publish_claim, publish_record
from broker_config.topology import topology
from operator_console.history import History, fold_next, follow
from shared.broker import Delivery, Message
from shared.messages import Counters, Entry, ManifestRecord, OperationOutcome, Settlement
from tests.builders import a_claim, a_record, name_of
from tests.operator_console.conftest import EPSILON_EACH, EXAMPLES, Finished

A, B = name_of("bank-a"), name_of("bank-b")
NAMES = {A: "bank-a", B: "bank-b"}


def settlement(institution: str, sequence: int, **changes: object) -> Settlement:
    return Settlement.model_validate(
        {"institution": institution, "incarnation": 1, "sequence": sequence, "hash": "e" * 64, "outcome": "aggregated", **changes}
    )


def entry(**changes: object) -> Entry:
    return Entry.model_validate({"incarnation": 1, "num_examples": 100, **changes})


def told(*records: ManifestRecord, first_ms: int = 5000) -> History:
    """A history of records published a second apart."""
    history = History(NAMES)
    for number, record in enumerate(records):
        message = Message(b"", "manifest", "", {"at_ms": first_ms + 1000 * number})
        history.take(record, Delivery("fl.lineage", 1, message, None))
    return history


ZERO = a_record(0, table={A: entry(), B: entry(num_examples=300)})
ONE = a_record(
    1,
    after=ZERO,
    whole=False,
    plan=None,
    settled=[
        settlement(A, 1, staleness=0, weight=(0.25).hex()),
        settlement(B, 1, outcome="stale", reason="too old", base_hash="c" * 64),
    ],
    table={
        A: entry(total_weight=(0.25).hex(), counters=Counters(aggregated=1), epsilon_spent=0.5),
        B: entry(counters=Counters(stale=1)),
    },
    metrics={"auc": 0.625},
)
LATER = a_record(
    1,
    after=ONE,
    whole=False,
    plan=None,
    mark="model 1",
    settled=[settlement(B, 2, outcome="rejected", reason="not finite")],
    table={B: entry(counters=Counters(stale=1, rejected=1))},
    metrics={"auc": 0.625},
)
TWO = a_record(
    2,
    after=LATER,
    whole=False,
    plan=None,
    settled=[settlement(A, 2, staleness=3, base_version=1, weight=(0.125).hex())],
    table={A: entry(total_weight=(0.375).hex(), counters=Counters(aggregated=2), epsilon_spent=0.75)},
    metrics={"auc": 0.75},
)


def test_a_version_has_one_line_however_many_manifests_it_has():
    lines = list(told(ZERO, ONE, LATER, TWO).lines())
    assert [line["version"] for line in lines] == [0, 1, 2]
    assert lines[1]["manifest"] == ONE.hash
    assert lines[1]["later_manifests"] == [LATER.hash]
    assert lines[2]["previous"] == LATER.hash


def test_a_line_tells_folded_updates_from_those_that_were_not():
    _, one, two = told(ZERO, ONE, LATER, TWO).lines()
    assert [(each["institution"], each["sequence"], each["weight"]) for each in one["updates"]] == [("bank-a", 1, 0.25)]
    assert [(each["outcome"], each["reason"], each["manifest"]) for each in one["not_folded"]] == [
        ("stale", "too old", ONE.hash),
        ("rejected", "not finite", LATER.hash),
    ]
    # the second came with a manifest of its own, a second after the version's; it could not be read
    assert [(each["base_version"], each["seconds"]) for each in one["not_folded"]] == [(0, 1.0), (None, 2.0)]
    assert [(each["base_version"], each["staleness"], each["weight_hex"]) for each in two["updates"]] == [(1, 3, (0.125).hex())]


def test_a_line_says_when_it_was_made_and_what_changed_with_it():
    zero, one, _ = told(ZERO, ONE, LATER, TWO).lines()
    assert (zero["seconds"], one["seconds"], one["at_ms"]) == (0.0, 1.0, 6000)
    assert one["institutions"]["bank-a"]["epsilon_spent"] == 0.5
    assert "plan" in zero
    assert "plan" not in one


def test_the_line_of_a_roll_back_says_where_it_went_and_without_whom():
    done = OperationOutcome(operation_id="1" * 32, kind="roll-back", applied=True, reason=f"to version 1 without {B}")
    back = a_record(3, after=TWO, whole=False, plan=None, table={}, operations=[done])
    lines = list(told(ZERO, ONE, TWO, back).lines())
    assert lines[3]["roll_back"] == {"to_version": 1, "without": "bank-b"}
    assert (lines[3]["updates"], lines[3]["institutions"]) == ([], {})
    assert "roll_back" not in lines[2]


def test_a_link_that_is_read_again_changes_nothing():
    once, again = told(ZERO, ONE), told(ZERO, ONE, ZERO, ONE)
    assert list(again.lines()) == list(once.lines())
    assert len(again.parts()[0].settled) == 1


def test_an_institutions_part_is_counted_over_all_links():
    bank_a, bank_b = told(ZERO, ONE, LATER, TWO).parts()
    assert (bank_a.institution, bank_a.entry.counters.aggregated, bank_a.total_weight) == ("bank-a", 2, 0.375)
    assert bank_a.mean_staleness == 1.5
    assert bank_b.mean_staleness is None
    assert told(ZERO, ONE, LATER, TWO).counters() == {
        "aggregated": 2,
        "stale": 1,
        "rejected": 1,
        "over_budget": 0,
        "lost": 0,
        "duplicate": 0,
    }


def test_a_figure_is_counted_once_for_a_version():
    assert [value for _, value in told(ZERO, ONE, LATER, TWO).metric("auc")] == [0.625, 0.75]


def test_an_institution_without_a_name_goes_by_its_pseudonym():
    assert History({}).name(A) == A


def test_a_real_run_is_one_chain_of_versions_without_a_gap(finished: Finished, tmp_path: Path):
    finished.history.write(tmp_path / "lineage.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "lineage.jsonl").read_text().splitlines()]
    assert [line["version"] for line in lines] == list(range(len(lines)))
    for earlier, later in pairwise(lines):
        assert later["previous"] == (earlier["later_manifests"] or [earlier["manifest"]])[-1]


def test_the_lines_of_a_real_run_add_up_to_its_table(finished: Finished):
    lines = list(finished.history.lines())
    for part in finished.history.parts():
        own = [each for line in lines for each in line["updates"] if each["institution"] == part.institution]
        assert len(own) == part.entry.counters.aggregated
        assert sum(each["weight"] for each in own) == pytest.approx(part.total_weight)
        assert part.entry.num_examples == EXAMPLES[part.institution]
        assert part.entry.epsilon_spent == pytest.approx(EPSILON_EACH * part.entry.watermark)


def test_following_an_empty_lineage_says_what_makes_version_0():
    with pytest.raises(UninitialisedError, match="fedqueue init"):
        follow(MemoryRabbit(topology(["bank-a"])).connect("operator"), History({}))


def test_what_comes_after_the_first_reading_is_folded_too():
    rabbit, history = MemoryRabbit(topology(["bank-a"])), History(NAMES)
    aggregator, operator = rabbit.connect("aggregator"), rabbit.connect("operator")
    publish_claim(aggregator, a_claim(1))
    publish_record(aggregator, ZERO)
    reader = follow(operator, history)
    publish_record(aggregator, ONE)
    fold_next(operator, reader, timeout_seconds=0.05)
    assert [link.hash for link in history.links] == [ZERO.hash, ONE.hash]
