import math

import numpy as np
import pytest

from shared.errors import IncompatibleUpdateError
from shared.parameters import copy, count, l2_norm, require_shapes, shapes, subtract
from tests.builders import array

MODEL = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": array(7)}


def test_shapes_and_count_describe_all_arrays():
    assert shapes(MODEL) == {"w": (2, 3), "b": (1,)}
    assert count(MODEL) == 7


def test_the_norm_is_over_all_arrays_together():
    assert l2_norm({"w": array(1, -2), "b": array(2), "c": array(4)}) == 5.0
    assert l2_norm({}) == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
def test_the_norm_is_not_finite_when_a_value_or_its_square_is_not(value):
    assert not math.isfinite(l2_norm({"w": array(1, value), "b": array(2)}))


@pytest.mark.parametrize(
    ("delta", "reason"),
    [
        ({"w": MODEL["w"]}, "'b' is missing"),
        ({**MODEL, "c": array(1)}, "no array 'c'"),
        ({**MODEL, "b": array(1, 2)}, r"'b' has shape \(2,\), the model has \(1,\)"),
        ({**MODEL, "w": MODEL["w"].T}, r"'w' has shape \(3, 2\)"),
    ],
)
def test_arrays_that_the_model_cannot_take_are_named(delta, reason):
    with pytest.raises(IncompatibleUpdateError, match=reason):
        require_shapes(delta, shapes(MODEL))


def test_arrays_of_the_models_shapes_are_accepted_in_any_order():
    require_shapes({"b": array(1), "w": MODEL["w"] * 2}, shapes(MODEL))


def test_a_copy_can_be_written_to_without_changing_the_original():
    fresh = copy(MODEL)
    fresh["b"][0] = 9
    assert MODEL["b"].tolist() == [7.0]


def test_a_difference_is_left_minus_right():
    assert subtract({"b": array(3, 5)}, {"b": array(1, 9)})["b"].tolist() == [2.0, -4.0]
