from heapq import heappop, heappush

import numpy as np
import pytest

from aggregator_worker.weighing import Weighing
from shared.messages import Entry
from shared.plan import AggregationPlan, Plan, RuleName, StalenessRule
from simulator.quadratics import half_slow

INSTITUTIONS, RATIO, ARRIVALS = 20, 10.0, 10_000


def shares_of_weight(rule: RuleName, staleness: str) -> np.ndarray:
    """Of twenty equal institutions, half of them ten times slower, each of whose updates makes a version."""
    aggregation = AggregationPlan(rule=rule, staleness=StalenessRule.model_validate({"function": staleness}))
    plan = Plan(task="t", task_hash="0" * 64, aggregation=aggregation)
    names = [f"{place:016x}" for place in range(INSTITUTIONS)]
    weighing = Weighing(plan, plan.hash, {name: Entry(incarnation=1, num_examples=100) for name in names}, {})
    seconds, times = half_slow(INSTITUTIONS, RATIO), np.random.default_rng(0)
    due = [(each * times.uniform(0.9, 1.1), place, 0) for place, each in enumerate(seconds)]
    due.sort()
    total = np.zeros(INSTITUTIONS)
    for version in range(ARRIVALS):
        now, place, base = heappop(due)
        total[place] += weighing.weigh(names[place], staleness=version - base)
        weighing.committed()
        heappush(due, (now + seconds[place] * times.uniform(0.9, 1.1), place, version + 1))
    return total / total.sum()


@pytest.mark.parametrize(("staleness", "most"), [("constant", 0.01), ("polynomial", 0.03)])
def test_under_credit_everyone_has_its_share_of_the_data_however_slow(staleness: str, most: float) -> None:
    found = shares_of_weight("credit", staleness)

    assert np.abs(found - 1 / INSTITUTIONS).max() < most / INSTITUTIONS
    assert found[10:].sum() == pytest.approx(0.5, abs=most)


def test_under_fedasync_ten_slow_institutions_count_as_one_fast_one_and_damping_makes_it_a_third() -> None:
    # eleven updates a second, of which the slow half gives one; a fast one is 10 versions late, a slow one 109, and
    # 0.1 (11 / 110)^0.5 = 0.032
    assert shares_of_weight("fedasync", "constant")[10:].sum() == pytest.approx(1 / 11, abs=0.01)
    assert shares_of_weight("fedasync", "polynomial")[10:].sum() == pytest.approx(0.031, abs=0.005)


def test_fedbuff_has_the_same_bias() -> None:
    assert shares_of_weight("fedbuff", "polynomial")[10:].sum() == pytest.approx(0.031, abs=0.005)
