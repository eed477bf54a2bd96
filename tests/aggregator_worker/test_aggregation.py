import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator_worker.aggregation import (
    buffer_target,
    fold_in_place,
    rule_weight,
    scale_in_place,
    share,
    staleness_weight,
    update_weight,
)
from shared.compact import Scaled, widened
from shared.messages import Entry
from shared.parameters import BLOCK
from shared.plan import AggregationPlan, StalenessRule
from tests.builders import array

PLAN = "d" * 64
FUNCTIONS = ("constant", "polynomial", "hinge")


def members(*num_examples: int | None, **changes: object) -> dict[str, Entry]:
    return {f"{place:016x}": Entry(incarnation=1, num_examples=each, **changes) for place, each in enumerate(num_examples)}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_fresh_update_has_weight_one_exactly(function):
    assert staleness_weight(function, 0) == 1.0


@pytest.mark.parametrize(
    ("function", "staleness", "weight"),
    [
        ("constant", 1000, 1.0),
        ("polynomial", 3, 0.5),
        ("polynomial", 8, 1 / 3),
        ("hinge", 4, 1.0),
        ("hinge", 5, 1 / 11),
        ("hinge", 6, 1 / 21),
    ],
)
def test_staleness_weights_have_the_values_of_the_paper(function, staleness, weight):
    assert staleness_weight(function, staleness) == pytest.approx(weight, rel=1e-15)


def test_a_plans_rule_sets_exponent_slope_and_threshold():
    assert rule_weight(StalenessRule(exponent=2.0), 3) == pytest.approx(1 / 16)
    assert rule_weight(StalenessRule(function="hinge", hinge_slope=0.5, hinge_threshold=1), 3) == pytest.approx(0.5)


@given(st.sampled_from(FUNCTIONS), st.integers(0, 10_000))
def test_staleness_weights_never_rise(function, staleness):
    assert 0 < staleness_weight(function, staleness + 1) <= staleness_weight(function, staleness)


def test_an_unknown_function_is_an_error():
    with pytest.raises(ValueError, match="exponential"):
        staleness_weight("exponential", 1)


def test_a_share_is_the_part_of_all_examples():
    assert share(100, members(100, 300, 600)) == 0.1
    assert share(600, members(100, 300, 600)) == 0.6


def test_who_has_not_said_how_much_data_it_has_counts_as_average():
    # 100 and 300 are known, their average is 200, so two unknown ones make 800 in all
    assert share(100, members(100, 300, None, None)) == 0.125


def test_nobody_known_means_equal_shares():
    assert share(70, members(None, None, None, None)) == 0.25


def test_removed_and_inactive_institutions_have_no_share():
    table = members(100, 300) | {"f" * 16: Entry(incarnation=1, num_examples=600, removed=True, active=False)}
    assert share(100, table) == 0.25
    assert share(100, members(100, 300) | {"f" * 16: Entry(incarnation=1, num_examples=600, active=False)}) == 0.25


def test_a_weight_is_rate_times_share_times_staleness_weight():
    assert update_weight(AggregationPlan(server_learning_rate=2.0), staleness=3, data_share=0.25) == 0.25


def test_a_weight_is_rounded_to_float32_before_it_is_recorded():
    weight = update_weight(AggregationPlan(), staleness=0, data_share=0.1)
    assert weight.hex() == "0x1.99999a0000000p-4"  # 0.1 has 24 significant bits left


@pytest.mark.parametrize(
    ("buffer_size", "active", "target"), [(1, 6, 1), (10, 6, 3), (10, 7, 3), (10, 1, 1), (10, 2, 1), (2, 200, 2), (5, 0, 1)]
)
def test_k_is_capped_at_half_of_the_active_institutions(buffer_size, active, target):
    assert buffer_target(AggregationPlan(buffer_size=buffer_size), members(*([100] * active)), PLAN) == target


def test_a_plan_may_ask_for_exactly_k():
    assert buffer_target(AggregationPlan(buffer_size=10, exact_buffer=True), members(100, 100), PLAN) == 10


def test_removed_and_inactive_institutions_do_not_raise_k():
    table = members(1, 1, 1, 1) | {"e" * 16: Entry(incarnation=1, removed=True), "f" * 16: Entry(incarnation=1, active=False)}
    assert buffer_target(AggregationPlan(buffer_size=10), table, PLAN) == 2


@pytest.mark.parametrize("standing", ["budget_spent", "plan_refused"])
def test_who_has_left_the_plan_does_not_raise_k_and_keeps_its_share(standing):
    left = members(*([100] * 7)) | {"f" * 16: Entry(incarnation=1, num_examples=300, standing=standing, standing_plan=PLAN)}
    assert buffer_target(AggregationPlan(buffer_size=10), left, PLAN) == 3
    assert buffer_target(AggregationPlan(buffer_size=10), left, "e" * 64) == 4
    assert share(100, left) == 0.1


def test_folding_rounds_the_product_before_it_is_added():
    # (1 + 2^-23)^2 = 1 + 2^-22 + 2^-46 rounds to 1 + 2^-22; a fused multiply-add would leave 2^-46
    near_one = 1 + 2.0**-23
    model = {"w": array(-(1 + 2.0**-22))}
    fold_in_place(model, {"w": array(near_one)}, near_one)
    assert model["w"].tolist() == [0.0]


def test_folding_adds_weight_times_delta_to_every_array():
    model = {"w": array(1, 2), "b": np.full((2, 2), 8, np.float32)}
    fold_in_place(model, {"w": array(4, -8), "b": np.eye(2, dtype=np.float32)}, 0.25)
    assert model["w"].tolist() == [2.0, 0.0]
    assert model["b"].tolist() == [[8.25, 8.0], [8.0, 8.25]]


def test_folding_reaches_every_value_of_an_array_of_many_blocks():
    model = {"w": np.ones((2, BLOCK + 3), np.float32)}
    fold_in_place(model, {"w": np.full((2, BLOCK + 3), 2, np.float32)}, 0.5)
    assert set(model["w"].ravel().tolist()) == {2.0}


def test_folding_reads_a_delta_in_any_memory_order():
    model = {"w": np.zeros((2, 3), np.float32)}
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    fold_in_place(model, {"w": np.asfortranarray(values)}, 1.0)
    assert model["w"].tolist() == values.tolist()


def test_a_scaled_number_is_rounded_to_float32_before_it_is_weighed():
    # 0.1 as float32 is 13421773 x 2^-27. 3 steps are 40265319 x 2^-27, in float32 40265320 x 2^-27. A third of that, with the
    # float32 weight 11184811 x 2^-25, is 13421773.73 x 2^-27, rounded to 13421774; without the first rounding it would be
    # 13421773.40, rounded to 13421773
    model = {"w": array(0)}
    fold_in_place(model, {"w": Scaled(np.array([3], np.int8), 13421773 * 2.0**-27)}, 11184811 * 2.0**-25)
    assert model["w"].tolist() == [13421774 * 2.0**-27]


@pytest.mark.parametrize("dtype", [np.int8, np.float16])
def test_a_scaled_delta_is_folded_as_its_numbers_are(dtype):
    numbers = (np.arange(2 * (BLOCK + 3)) % 255 - 127).astype(dtype).reshape(2, BLOCK + 3)
    delta = {"w": Scaled(numbers, 0.375)}
    narrow, wide = ({"w": np.ones((2, BLOCK + 3), np.float32)} for _ in range(2))
    fold_in_place(narrow, delta, 0.7)
    fold_in_place(wide, widened(delta), 0.7)
    assert narrow["w"].tobytes() == wide["w"].tobytes()


def test_folding_bytes_takes_the_memory_of_two_blocks():
    model, delta = {"w": np.zeros(16 * BLOCK, np.float32)}, {"w": Scaled(np.ones(16 * BLOCK, np.int8), 0.5)}
    tracemalloc.start()
    fold_in_place(model, delta, 1.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 4 * BLOCK


def test_scaling_multiplies_in_float32():
    # 0.1 as a float32 times 3 is 0.3000000044703484, which rounds to the float32 next above 0.3
    arrays = {"w": array(3, -8), "b": array(0)}
    scale_in_place(arrays, 0.1)
    assert arrays["w"].tolist() == [0.30000001192092896, -0.800000011920929]
    assert arrays["b"].tolist() == [0.0]
