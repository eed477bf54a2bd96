import math
import tracemalloc

import numpy as np
import pytest

from shared.compact import Scaled, blocks, l2_norm, widened
from shared.parameters import BLOCK
from tests.builders import array


def bytes_of(*numbers: int, step: float = 1.0) -> Scaled:
    return Scaled(np.array(numbers, np.int8), step)


def test_the_norm_is_over_all_tensors_together():
    assert l2_norm({"w": array(1, -2), "b": array(2), "c": array(4)}) == 5.0
    assert l2_norm({"w": bytes_of(2, -4, step=0.5), "b": array(2), "c": Scaled(np.array([0.5], np.float16), 8.0)}) == 5.0
    assert l2_norm({}) == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
def test_the_norm_is_not_finite_when_a_value_or_its_square_is_not(value):
    assert not math.isfinite(l2_norm({"w": array(1, value), "b": array(2)}))


@pytest.mark.parametrize(
    "tensor",
    [
        pytest.param(bytes_of(1, 127, step=2.0**125), id="a product beyond float32"),
        pytest.param(Scaled(np.array([1, np.inf], np.float16), 1.0), id="infinite"),
        pytest.param(Scaled(np.array([1, np.nan], np.float16), 1.0), id="not a number"),
    ],
)
def test_the_norm_of_scaled_numbers_is_not_finite_when_one_of_them_is_not(tensor):
    assert not math.isfinite(l2_norm({"w": tensor}))


def test_a_scaled_number_is_multiplied_as_float32_and_rounded_once():
    # 0.1 as float32 is 13421773 x 2^-27. Three times that is 40265319 x 2^-27: 26 bits, of which float32 keeps 24. The nearest
    # multiple of 4 is 40265320
    step = 13421773 * 2.0**-27
    assert widened({"w": bytes_of(3, -3, step=step)})["w"].tolist() == [40265320 * 2.0**-27, -40265320 * 2.0**-27]


@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (2, BLOCK), (BLOCK + 1,), (3, BLOCK - 1)])
def test_blocks_are_all_numbers_in_their_order(shape):
    size = math.prod(shape)
    values = (np.arange(size) % 251 - 125).astype(np.int8).reshape(shape)
    for tensor in (Scaled(values, 0.5), (values * np.float32(0.5)).astype(np.float32)):
        found = [block.copy() for block in blocks(tensor)]
        assert {block.size for block in found[:-1]} <= {BLOCK}
        assert np.array_equal(np.concatenate([np.empty(0), *found]), values.reshape(-1) * 0.5)
    assert widened({"w": Scaled(values, 0.5)})["w"].shape == shape


def test_the_norm_of_many_bytes_takes_the_memory_of_one_block():
    tensor = Scaled(np.ones(8 * BLOCK, np.int8), 1.0)
    tracemalloc.start()
    l2_norm({"w": tensor})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 4 * BLOCK
