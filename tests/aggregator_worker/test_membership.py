import random

import pytest

from aggregator_worker.membership import Membership
from aggregator_worker.weighing import buffer_target
from shared.messages import Entry
from shared.plan import AggregationPlan

PLAN = "d" * 64


def members(*num_examples: int | None, **changes: object) -> Membership:
    table = {f"{place:016x}": Entry(incarnation=1, num_examples=each, **changes) for place, each in enumerate(num_examples)}
    return Membership(table, PLAN)


def with_one(of: Membership, **changes: object) -> Membership:
    of.put("f" * 16, Entry(**{"incarnation": 1, "num_examples": 600, **changes}))
    return of


def test_a_share_is_the_part_of_all_examples():
    assert list(members(100, 300, 600).shares().values()) == [0.1, 0.3, 0.6]


def test_who_has_not_said_how_much_data_it_has_counts_as_average_and_has_no_share_yet():
    # 100 and 300 are known, their average is 200, so two unknown ones make 800 in all
    found = members(100, 300, None, None)
    assert list(found.shares().values()) == [0.125, 0.375]
    assert (found.counted().institutions, found.counted().examples, found.counted().unheard_examples) == (4, 800, 400)


@pytest.mark.parametrize("gone", [{"removed": True, "active": False}, {"active": False}, {"quarantined": True}])
def test_removed_silent_and_quarantined_institutions_neither_share_nor_raise_k(gone):
    found = with_one(members(100, 300), **gone)
    assert list(found.shares().values()) == [0.25, 0.75]
    assert found.giving == 2


def test_whose_budget_is_spent_does_not_raise_k_and_keeps_its_share():
    found = with_one(members(100, 300), standing="budget_spent", standing_plan=PLAN)
    assert list(found.shares().values()) == [0.1, 0.3, 0.6]
    assert found.giving == 2
    assert with_one(members(100, 300), standing="budget_spent", standing_plan="e" * 64).giving == 3


def test_among_three_nobody_has_more_than_the_largest_share():
    assert list(members(100, 300, 600).shares(0.4).values()) == [0.1, 0.3, 0.4]
    assert list(members(100, 300).shares(0.4).values()) == [0.25, 0.75]


def test_who_refuses_the_plan_has_no_share():
    found = with_one(members(100, 300), standing="plan_refused", standing_plan=PLAN)
    assert list(found.shares().values()) == [0.25, 0.75]
    assert found.giving == 2


def test_running_totals_are_those_of_the_table_after_any_changes():
    draw, found = random.Random(8), members()
    for _ in range(2000):
        entry = Entry(
            incarnation=1,
            num_examples=draw.choice([None, draw.randrange(1, 99)]),
            active=draw.random() < 0.8,
            removed=draw.random() < 0.1,
            quarantined=draw.random() < 0.1,
            standing=draw.choice([None, "plan_refused", "budget_spent"]),
            standing_plan=PLAN,
        )
        found.put(f"{draw.randrange(20)}", entry)
    afresh = Membership(dict(found), PLAN)
    assert (found.counted(), found.giving, found.shares()) == (afresh.counted(), afresh.giving, afresh.shares())
    assert 0 < found.giving < found.counted().institutions < len(found)


@pytest.mark.parametrize(
    ("buffer_size", "giving", "target"),
    [
        (1, 6, 1),
        (10, 6, 3),
        (10, 7, 3),
        (10, 1, 1),
        (10, 2, 1),
        (2, 200, 2),
        (5, 0, 1),
        (1, 100, 1),
        (1, 101, 2),
        (1, 10_000, 100),
    ],
)
def test_k_is_capped_at_half_of_those_that_give_and_makes_a_cycle_a_hundred_versions_at_most(buffer_size, giving, target):
    assert buffer_target(AggregationPlan(buffer_size=buffer_size), giving) == target


def test_a_plan_may_ask_for_exactly_k():
    assert buffer_target(AggregationPlan(buffer_size=10, exact_buffer=True), 2) == 10
