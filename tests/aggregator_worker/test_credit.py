"""Weights by credit: what is earned is spent, carried or forfeited, and nothing else."""

import math
import random

import numpy as np
import pytest

from aggregator_worker.rules import RULES, credit
from aggregator_worker.rules.state import Arrival, Clock, Counted, RuleState, opened, outstanding
from aggregator_worker.weighing import Weighing
from shared.messages import Account, Entry
from shared.plan import AggregationPlan, StalenessRule
from tests.builders import a_plan

PLAN_HASH = "d" * 64
CONSTANT = {"rule": "credit", "staleness": StalenessRule(function="constant"), "server_learning_rate": 1.0, "largest_weight": 1.0}


def a_weighing(examples: dict[str, int | None], **aggregation: object) -> Weighing:
    table = {name: Entry(incarnation=1, num_examples=number) for name, number in examples.items()}
    return Weighing(a_plan({**CONSTANT, **aggregation}), PLAN_HASH, table, {})


def arrive(weighing: Weighing, name: str, staleness: int = 0) -> float:
    """One update that makes a version of its own."""
    weighing.heard(name)
    weight = weighing.weigh(name, staleness=staleness)
    weighing.committed()
    return weight


def held(weighing: Weighing) -> float:
    """What all that count hold."""
    members = [entry for entry in weighing.members.values() if entry.active and not entry.removed and entry.num_examples]
    return sum(outstanding(entry.account, weighing.clock, entry.num_examples or 0) for entry in members)


def test_one_institution_alone_weighs_one():
    weighing = a_weighing({"a": 70})
    assert [arrive(weighing, "a") for _ in range(3)] == [1.0, 1.0, 1.0]


def test_a_buffer_of_one_from_each_is_weighed_by_shares():
    weighing = a_weighing({"a": 100, "b": 300, "c": 400}, buffer_size=3, exact_buffer=True)
    assert [weighing.weigh(name, staleness=0) for name in "cab"] == [0.5, 0.125, 0.375]
    weighing.committed()
    assert [weighing.weigh(name, staleness=0) for name in "bca"] == [0.375, 0.5, 0.125]


def test_who_comes_half_as_often_weighs_twice_as_much():
    # of four equal ones; a, b, c, a, b, c, d: seven arrivals are 1.75 cycles, a quarter of each cycle for each
    weighing = a_weighing(dict.fromkeys("abcd", 100))
    rounds = [[arrive(weighing, name) for name in "abcabcd"] for _ in range(3)]
    assert rounds[-1][-1] == pytest.approx(1.75 / 4)
    assert rounds[-1][3] == pytest.approx(0.75 / 4)
    assert rounds[-1][0] == pytest.approx(1.0 / 4)


@pytest.mark.parametrize("function", ["constant", "polynomial", "hinge"])
def test_what_is_earned_is_spent_held_or_forfeited_through_joins_leaves_silence_and_other_data(function, monkeypatch):
    spent: list[float] = []

    def told(state, arrival, plan):
        after, weight = credit.weigh(state, arrival, plan)
        spent.append(weight)
        return after, weight

    monkeypatch.setitem(RULES, "credit", told)
    draw, joined = random.Random(function), 12
    weighing = a_weighing({f"{n}": draw.randrange(10, 1000) for n in range(joined)}, staleness=StalenessRule(function=function))
    for _ in range(10_000):
        present = [name for name, entry in weighing.members.items() if not entry.removed]
        name, chance = present[min(int(draw.expovariate(0.4)), len(present) - 1)], draw.random()
        entry = weighing.members[name]
        if chance < 0.01:
            weighing.put(f"{joined}", Entry(incarnation=1, num_examples=draw.choice([None, draw.randrange(10, 1000)])))
            joined += 1
        elif chance < 0.02 and len(present) > 3:
            weighing.put(name, entry.model_copy(update={"removed": True, "active": False}))
        elif chance < 0.05:
            weighing.put(name, entry.model_copy(update={"num_examples": draw.randrange(10, 1000)}))
        elif entry.num_examples is not None:
            arrive(weighing, name, staleness=draw.randrange(60))
    assert weighing.clock.cycles > 500
    assert sum(spent) > 100
    assert any(not entry.active and not entry.removed for entry in weighing.members.values())
    assert weighing.clock.forfeited > 1
    assert abs(math.fsum(spent) + held(weighing) + weighing.clock.forfeited - weighing.clock.cycles) < 1e-9


def test_the_recorded_weights_are_what_left_the_accounts():
    weighing = a_weighing({"a": 100, "b": 500, "c": 400}, staleness=StalenessRule(exponent=0.5))
    draw = random.Random(4)
    total = sum(arrive(weighing, draw.choice("aabbbcc"), staleness=draw.randrange(9)) for _ in range(2000))
    lost = weighing.clock.forfeited
    assert total + held(weighing) + lost == pytest.approx(weighing.clock.cycles, rel=1e-6)
    assert total > 500


def test_damping_defers_and_loses_nothing_while_it_can_be_carried():
    # alone of two, half a cycle between its updates, always 12 versions late: 12 / 2 - 0.5 = 5.5 cycles later than usual,
    # so 1 / sqrt(6.5) of what it holds is spent each time
    weighing = a_weighing({"a": 100, "b": 100}, staleness=StalenessRule(exponent=0.5), silent_cycles=1000.0)
    weights = [arrive(weighing, "a", staleness=12) for _ in range(200)]
    assert weights[0] == pytest.approx(0.25 / 6.5**0.5, rel=1e-6)
    assert weights[-1] == pytest.approx(0.25, rel=1e-6)


def test_an_update_is_late_only_beyond_one_cycle():
    weighing = a_weighing(dict.fromkeys("abcd", 100), staleness=StalenessRule(exponent=1.0))
    assert arrive(weighing, "a", staleness=3) == pytest.approx(1 / 16)
    # five versions are two arrivals more than the three others, half a cycle; two ticks of 1/16 each since version 0
    assert arrive(weighing, "b", staleness=5) == pytest.approx(2 / 16 / 1.5)


def test_an_update_is_late_only_beyond_what_is_usual_for_its_institution():
    # of three, b comes once in six arrivals: 2 cycles, a third of which it earns; five versions since its base are usual for it
    weighing = a_weighing(dict.fromkeys("abc", 100), staleness=StalenessRule(exponent=1.0), largest_weight=9.0)
    for name in "aaaac" * 3:
        arrive(weighing, name)
    assert arrive(weighing, "b", staleness=15) == pytest.approx(16 / 9)
    for _ in range(40):
        for name in "aaaac":
            arrive(weighing, name)
        usual = arrive(weighing, "b", staleness=5)
    assert usual == pytest.approx(2 / 3)
    for name in "aaaac":
        arrive(weighing, name)
    # an older base: 9 / 3 = 3 cycles, one more than usual
    assert arrive(weighing, "b", staleness=9) == pytest.approx(2 / 3 / 2)


def test_no_update_weighs_more_than_the_largest_weight_and_the_rest_is_carried():
    weighing = a_weighing({"a": 100, "b": 100, "c": 200}, largest_weight=0.75, silent_cycles=1000.0)
    for _ in range(8):
        arrive(weighing, "a")
    # c has earned 8/6 and 1/6 more with its own arrival
    assert arrive(weighing, "c") == 0.75
    assert weighing.members["c"].account.carry == pytest.approx(0.75)


def test_one_of_two_may_weigh_up_to_one():
    weighing = a_weighing({"a": 100, "b": 100}, largest_weight=0.25, silent_cycles=1000.0)
    for _ in range(6):
        arrive(weighing, "a")
    assert arrive(weighing, "b") == 1.0
    assert weighing.members["b"].account.carry == pytest.approx(0.75)


def test_a_smaller_rate_lets_a_slow_institution_spend_more_of_what_it_holds():
    examples = {"a": 100, "b": 100, "c": 200}
    weighing = a_weighing(examples, server_learning_rate=0.25, largest_weight=0.75, silent_cycles=1000.0)
    for _ in range(8):
        arrive(weighing, "a")
    assert arrive(weighing, "c") == pytest.approx(0.25 * 1.5)
    assert weighing.members["c"].account.carry == 0.0


def test_no_more_is_carried_than_an_institution_earns_in_two_silences():
    weighing = a_weighing({"a": 100, "b": 150, "c": 150}, largest_weight=0.001, silent_cycles=3.0)
    for name in "cba" * 100:
        arrive(weighing, name)
    assert weighing.members["a"].account.carry == pytest.approx(2 * 3.0 * 0.25)
    assert weighing.members["b"].account.carry == pytest.approx(2 * 3.0 * 0.375)


def test_a_slow_institution_carries_what_it_earns_in_two_of_its_usual_intervals():
    weighing = a_weighing({"a": 100, "b": 100, "c": 200}, largest_weight=0.001, silent_cycles=3.0)
    for name in ("a" * 7 + "bc") * 30:
        arrive(weighing, name)
    # nine arrivals of three are 3 cycles; twice as many a's make it 5 and a third
    for name in ("a" * 14 + "bc") * 30:
        arrive(weighing, name)
    assert weighing.members["c"].account.carry == pytest.approx(2 * (16 / 3) * 0.5)


def test_who_claims_most_of_the_data_earns_no_more_than_the_largest_share_of_three():
    weighing = a_weighing({"a": 10**12, "b": 100, "c": 100}, buffer_size=3, exact_buffer=True, largest_share=0.4)
    assert weighing.weigh("a", staleness=0) == pytest.approx(0.4)
    for _ in range(40):
        weighing.weigh("b", staleness=0)
        weighing.committed()
    assert weighing.members["a"].active  # a plan for exactly K silences nobody
    two = a_weighing({"a": 900, "b": 100}, buffer_size=2, exact_buffer=True, largest_share=0.4)
    assert two.weigh("a", staleness=0) == pytest.approx(0.9)


def test_no_more_is_carried_of_a_claimed_share_than_of_the_largest():
    weighing = a_weighing({"a": 10**12, "b": 100, "c": 100}, largest_share=0.4, largest_weight=0.001, silent_cycles=3.0)
    for name in "abc" * 100:
        arrive(weighing, name)
    assert weighing.members["a"].account.carry == pytest.approx(2 * 3.0 * 0.4)


def test_a_weight_is_rounded_to_float32_before_it_is_recorded():
    weight = a_weighing({"a": 100, "b": 900}, buffer_size=2, exact_buffer=True).weigh("a", staleness=0)
    assert weight.hex() == "0x1.99999a0000000p-4"  # 0.1 has 24 significant bits left
    assert weight == float(np.float32(weight))


def test_an_arrival_after_a_long_time_is_no_silence_in_the_cycle_in_which_it_comes():
    weighing = a_weighing({"a": 100, "b": 100}, silent_cycles=1.0)
    for _ in range(7):
        arrive(weighing, "a")
    # b's own tick makes it four cycles, more than three
    assert arrive(weighing, "b") == 1.0
    assert weighing.members["b"].active


def test_an_institution_that_was_never_heard_of_counts_and_earns_nothing():
    weighing = a_weighing({"a": 100, "b": 300, "c": None, "d": None})
    # 100 of (100 + 300 + 2 x 200), a quarter of a cycle
    assert arrive(weighing, "a") == pytest.approx(0.125 / 4)
    weighing.put("c", Entry(incarnation=1, num_examples=200))
    assert weighing.members["c"].account.since_credit == weighing.clock.credit
    # only its own arrival's tick: 200 of (100 + 300 + 200 + 200)
    assert arrive(weighing, "c") == pytest.approx(0.25 / 4)


def test_a_silent_institution_no_longer_counts_and_its_share_goes_to_the_others():
    weighing = a_weighing(dict.fromkeys("abcd", 100), silent_cycles=1.0)
    weights = [arrive(weighing, name) for name in "abc" * 8]
    assert not weighing.members["d"].active
    # the first of a cycle after d's silence was noted: three of three
    assert weights[-1] == pytest.approx(1 / 3)
    assert weighing.clock.forfeited > 0.75


def test_one_that_is_known_to_be_slow_has_three_of_its_usual_intervals():
    entries = {name: Entry(incarnation=1, num_examples=100) for name in "ab"}
    entries["b"] = Entry(incarnation=1, num_examples=100, account=Account(interval=4.0))
    weighing = Weighing(a_plan({**CONSTANT, "silent_cycles": 1.0}), PLAN_HASH, entries, {})
    for _ in range(24):
        arrive(weighing, "a")
    assert weighing.clock.cycles == 12.0
    assert weighing.members["b"].active
    arrive(weighing, "a")
    arrive(weighing, "a")
    assert not weighing.members["b"].active


def test_the_return_from_silence_is_no_jump():
    weighing = a_weighing(dict.fromkeys("abcd", 100), silent_cycles=1.0)
    for name in "abc" * 30:
        arrive(weighing, name)
    before = weighing.clock.forfeited
    weight = arrive(weighing, "d")
    # a quarter of the cycle that is given back, and its own tick
    assert weight == pytest.approx(1 / 4 + 1 / 16)
    assert weighing.clock.forfeited == pytest.approx(before - 0.25)
    assert weighing.members["d"].active
    assert weighing.members["d"].account.interval > 20


def test_whose_budget_is_spent_keeps_its_share_and_is_not_silent():
    spent = Entry(incarnation=1, num_examples=100, standing="budget_spent", standing_plan=PLAN_HASH)
    weighing = Weighing(
        a_plan({**CONSTANT, "silent_cycles": 1.0}), PLAN_HASH, {"a": spent, "b": spent.model_copy(update={"standing": None})}, {}
    )
    for _ in range(40):
        last = arrive(weighing, "b")
    assert weighing.members["a"].active
    assert last == pytest.approx(0.25)


def test_who_refuses_the_plan_or_is_in_quarantine_has_no_share():
    refused = Entry(incarnation=1, num_examples=100, standing="plan_refused", standing_plan=PLAN_HASH)
    quarantined = Entry(incarnation=1, num_examples=100, quarantined=True)
    table = {"a": Entry(incarnation=1, num_examples=100), "b": refused, "c": quarantined}
    weighing = Weighing(a_plan(CONSTANT), PLAN_HASH, table, {})
    assert arrive(weighing, "a") == 1.0
    assert weighing.weigh("c", staleness=0) == 0.0


def test_a_clock_survives_its_manifest_to_the_bit():
    weighing = a_weighing({"a": 100, "b": 700})
    for name in "abbab":
        arrive(weighing, name)
    again = Weighing(a_plan(CONSTANT), PLAN_HASH, dict(weighing.members), weighing.scalars())
    assert again.clock == weighing.clock
    assert arrive(again, "a") == arrive(weighing, "a")


ALPHA = AggregationPlan(rule="fedasync", server_learning_rate=0.5)
FOUR = Counted(4, 400.0)


def weigh(plan: AggregationPlan, *, staleness: int = 0, num_examples: int = 100, buffer_size: int = 1) -> float:
    state = RuleState(Clock(), opened(Clock()))
    return RULES[plan.rule](state, Arrival(staleness, num_examples, FOUR, buffer_size), plan)[1]


def test_fedasync_weighs_by_staleness_alone():
    assert [weigh(ALPHA, staleness=late, num_examples=number) for late, number in [(0, 100), (3, 100), (3, 1)]] == [
        0.5,
        0.25,
        0.25,
    ]


def test_no_update_weighs_more_than_one_under_fedasync_or_fedbuff():
    assert weigh(AggregationPlan(rule="fedasync", server_learning_rate=3.0)) == 1.0
    assert weigh(AggregationPlan(rule="fedbuff", server_learning_rate=3.0)) == 1.0


def test_who_claims_all_the_data_counts_as_the_largest_share_under_fedbuff_and_the_table_rules():
    liar = {"num_examples": 10**12}
    assert weigh(AggregationPlan(rule="fedbuff", largest_share=0.4), buffer_size=8, **liar) == pytest.approx(0.4 * 4 / 8)
    assert weigh(AggregationPlan(rule="latest-model", largest_share=0.4), **liar) == 0.4
    assert weigh(AggregationPlan(rule="latest-update", largest_share=0.4), **liar) == 0.4


def test_fedbuff_divides_by_k_and_counts_data_against_the_average():
    plan = AggregationPlan(rule="fedbuff", server_learning_rate=0.5)
    assert weigh(plan, buffer_size=4) == 0.125
    assert weigh(plan, buffer_size=4, staleness=3) == 0.0625
    assert weigh(plan, buffer_size=4, num_examples=200) == 0.25


@pytest.mark.parametrize("rule", ["latest-model", "latest-update"])
def test_table_rules_weigh_by_the_share_whatever_the_staleness(rule):
    assert weigh(AggregationPlan(rule=rule, server_learning_rate=0.5), staleness=99, num_examples=100) == 0.25


@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_rule_changes_neither_the_state_nor_the_arrival_that_it_is_given(rule):
    state = RuleState(Clock(2.0, 0.02), Account(since_cycles=1.0, since_credit=0.01, carry=0.5, interval=1.5))
    first, second = (RULES[rule](state, Arrival(5, 100, FOUR, 2), AggregationPlan(rule=rule)) for _ in range(2))
    assert first == second
    assert first[0].account.interval == 1.25
    assert first[0].account.since_cycles == 2.0
