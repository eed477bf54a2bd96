import tracemalloc

import numpy as np
import pytest

from aggregator_worker.aggregation import fold_in_place, scale_in_place
from shared.compact import Scaled, widened
from shared.parameters import BLOCK
from tests.builders import array


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
