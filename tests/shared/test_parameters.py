import math

import numpy as np
import pytest

from shared.errors import IncompatibleUpdateError
from shared.parameters import BLOCK, copy, count, from_bfloat16, require_shapes, shapes, subtract, to_bfloat16
from tests.builders import array

MODEL = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": array(7)}


def test_shapes_and_count_describe_all_arrays():
    assert shapes(MODEL) == {"w": (2, 3), "b": (1,)}
    assert count(MODEL) == 7


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


def bits(value: int):
    """The float32 number with these bits."""
    return np.array([value], np.uint32).view(np.float32)


@pytest.mark.parametrize(
    ("float32", "bfloat16"),
    [
        pytest.param(0x3F800000, 0x3F80, id="1 is kept"),
        pytest.param(0x3F807FFF, 0x3F80, id="just below the middle goes down"),
        pytest.param(0x3F808001, 0x3F81, id="just above the middle goes up"),
        pytest.param(0x3F808000, 0x3F80, id="the middle goes to the even one below"),
        pytest.param(0x3F818000, 0x3F82, id="the middle goes to the even one above"),
        pytest.param(0xBF808000, 0xBF80, id="a negative middle goes to the even one towards zero"),
        pytest.param(0xBF818000, 0xBF82, id="a negative middle goes to the even one away from zero"),
        pytest.param(0xC0490FDB, 0xC049, id="minus pi"),
        pytest.param(0x3FFFFFFF, 0x4000, id="the mantissa carries into the exponent"),
        pytest.param(0x00000000, 0x0000, id="zero"),
        pytest.param(0x80000000, 0x8000, id="minus zero"),
        pytest.param(0x00018000, 0x0002, id="a subnormal middle"),
        pytest.param(0x7F7F7FFF, 0x7F7F, id="the largest that stays finite"),
        pytest.param(0x7F7FFFFF, 0x7F80, id="the largest float32 becomes infinite"),
        pytest.param(0x7F800000, 0x7F80, id="infinity"),
        pytest.param(0xFF800000, 0xFF80, id="minus infinity"),
        pytest.param(0x7FC00000, 0x7FC0, id="not a number"),
        pytest.param(0x7F800001, 0x7FC0, id="not a number that only its lower half says"),
        pytest.param(0xFFFFFFFF, 0x7FC0, id="not a number with all bits"),
    ],
)
def test_a_bfloat16_is_the_nearest_and_of_two_the_even_one(float32, bfloat16):
    assert to_bfloat16(bits(float32)).tolist() == [bfloat16]


@pytest.mark.parametrize(("bfloat16", "value"), [(0x3F81, 1.0078125), (0xC000, -2.0), (0x0001, 2.0**-133), (0xFF80, -math.inf)])
def test_a_bfloat16_is_read_back_exactly(bfloat16, value):
    assert from_bfloat16(np.array([bfloat16], np.uint16)).tolist() == [value]


def test_every_bfloat16_that_is_a_number_survives_the_way_there_and_back():
    every = np.arange(2**16, dtype=np.uint16)
    numbers = every[(every & 0x7FFF) <= 0x7F80]
    assert to_bfloat16(from_bfloat16(numbers)).tobytes() == numbers.tobytes()


def test_values_beyond_one_block_are_rounded_as_those_inside():
    values = np.full(2 * BLOCK + 1, 1 + 2.0**-7 + 2.0**-8, np.float32)
    assert set(to_bfloat16(values).tolist()) == {0x3F82}


@pytest.mark.parametrize("shape", [(), (0,), (2, 3), (1, 4, 1)])
def test_rounding_keeps_the_shape_and_leaves_the_original(shape):
    original = np.full(shape, 1.001, np.float32)
    back = from_bfloat16(to_bfloat16(original))
    assert isinstance(back, np.ndarray)
    assert (back.shape, back.dtype) == (shape, np.float32)
    assert original.tolist() == np.full(shape, 1.001, np.float32).tolist()


def test_an_array_in_another_memory_order_is_rounded_in_its_place():
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert from_bfloat16(to_bfloat16(values.T)).tolist() == values.T.tolist()
