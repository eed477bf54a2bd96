import hashlib
import math

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from campaigns.wire import read_body, read_tensors
from client_worker.compact import compacted
from shared import codec
from shared.compact import Scaled, widened
from shared.parameters import BLOCK
from tests.builders import array

COINS = [0.0, 0.0, 1.0, 0.0]
ENCODINGS = ("int8", "float16", "float32")
ODD = {
    "scalar": np.array(0.75, np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "zero": np.zeros((2, 2), np.float32),
    "across": np.asfortranarray(np.random.default_rng(0).normal(0, 1, (3, BLOCK)).astype(np.float32)),
}


def noised(count, std=1.0, seed=0):
    return {"w": np.random.default_rng(seed).normal(0, std, count).astype(np.float32)}


def sent(delta, encoding, std):
    """The numbers as the aggregator reads them."""
    body = codec.encode("update", {}, compacted(delta, encoding, std))
    return widened(codec.decode(body, max_bytes=2**26).tensors)


def step_of(values, std):
    tensor = compacted({"w": array(*values)}, "int8", std)["w"]
    assert isinstance(tensor, Scaled)
    return tensor.step


@pytest.mark.parametrize(
    ("values", "std", "step"),
    [
        pytest.param([0.0], 8.0, 1.0, id="an eighth of the noise where there is nothing"),
        pytest.param([127.0, -3.0], 8.0, 1.0, id="127 steps are enough"),
        pytest.param([127.00001], 8.0, 2.0, id="a little more needs steps of twice the size"),
        pytest.param([-1000.0], 8.0, 8.0, id="what lies below zero counts as well"),
        pytest.param([127.0, -3.0], None, 1.0, id="without noise a power of two"),
        pytest.param([0.3], None, 2.0**-8, id="without noise also a small one: 0.3 is 76.8 steps"),
        pytest.param([0.25], None, 2.0**-8, id="and the smallest that is enough: 64 steps, not 128"),
        pytest.param([1e30], None, 2.0**93, id="and a large one"),
    ],
)
def test_a_step_is_the_smallest_that_takes_the_largest_value_in_127(values, std, step):
    assert step_of(values, std) == step


def test_a_step_is_an_exact_float32_number():
    assert step_of([0.5], 0.1) == float(np.float32(0.0125))
    assert step_of([7.0], 0.1) == 8 * float(np.float32(0.0125))


def test_what_lies_on_a_step_is_sent_as_it_is():
    exact = array(-127, -1, 0, 1, 126, 127)
    assert sent({"w": exact}, "int8", 8.0)["w"].tolist() == exact.tolist()


def test_the_mean_over_many_keys_is_the_value():
    # the second value is another one each time, and so is the key; 10.3 steps go up to 11 in 3 of 10
    found = [sent({"w": array(10.3, -0.7, number)}, "int8", 800.0)["w"] for number in range(1, 4001)]
    first, second = (np.array([each[place] for each in found]) / 100 for place in (0, 1))
    assert set(first) == {0.0, 1.0}
    assert set(second) == {0.0, -1.0}
    # 0.103 and -0.007 steps; four standard errors of 4000 coins
    assert abs(first.mean() - 0.103) < 4 * math.sqrt(0.103 * 0.897 / 4000)
    assert abs(second.mean() + 0.007) < 4 * math.sqrt(0.007 * 0.993 / 4000)


def test_rounding_is_unbiased_over_many_coordinates_and_has_the_variance_of_its_coins():
    # Every value is a quarter of a step above one: up in 1 of 4. The error's mean is 0, its variance 1/4 x 3/4 of a step
    values = np.repeat(np.arange(-126, 126, dtype=np.float32), 2000) + np.float32(0.25)
    error = sent({"w": values}, "int8", 8.0)["w"] - values
    assert abs(error.mean()) < 5 * math.sqrt(0.1875 / values.size)
    assert error.var() == pytest.approx(0.1875, rel=0.01)


def test_the_coins_of_two_places_are_independent():
    error = sent({"w": np.full(2**18, 0.5, np.float32)}, "int8", 8.0)["w"] - np.float32(0.5)
    for distance in (1, 2, 64, BLOCK):
        assert abs(np.mean(error[distance:] * error[:-distance])) < 0.25 * 5 / math.sqrt(error.size - distance)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("std", [0.7, None])
def test_the_same_values_give_the_same_bytes_in_any_order(encoding, std):
    first = codec.encode("update", {}, compacted(ODD, encoding, std))
    again = codec.encode("update", {}, compacted({name: ODD[name].copy() for name in reversed(ODD)}, encoding, std))
    assert first == again


def test_one_bit_of_one_value_changes_the_coins_of_all():
    values = np.full(1000, 0.5, np.float32)
    other = values.copy()
    other[-1] = np.nextafter(np.float32(0.5), np.float32(1))
    first, second = (sent({"w": each}, "int8", 8.0)["w"][:-1] for each in (values, other))
    assert 400 < np.count_nonzero(first != second) < 600


def test_tensors_of_equal_values_do_not_share_their_coins():
    found = sent({name: np.full(1000, 0.5, np.float32) for name in ("a", "b")}, "int8", 8.0)
    assert 400 < np.count_nonzero(found["a"] != found["b"]) < 600


# The numbers of this test were worked out with the page of the format alone: SHA-256 over msgpack ["w", [4]] and sixteen
# bytes 00 00 00 3f gives the key, `openssl enc -chacha20` with an iv of zeros the stream.
def test_the_coins_are_those_of_the_page():
    assert sent({"w": array(0.5, 0.5, 0.5, 0.5)}, "int8", 8.0)["w"].tolist() == COINS


def test_every_draw_meets_the_nearest_of_65536_parts_of_a_step():
    # so many values that cutting off what lies beyond the parts would turn about eight of them another way
    values = np.random.default_rng(0).uniform(-100, 100, 2**20).astype(np.float32)
    key = hashlib.sha256(b"\x92\xa1w\x91\xce\x00\x10\x00\x00" + values.tobytes()).digest()
    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(2**21))
    parts = np.rint(values.astype(np.float64) * 65536).astype(np.int64)
    assert np.array_equal(sent({"w": values}, "int8", 8.0)["w"], (parts + np.frombuffer(stream, "<u2")) // 65536)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("std", [0.7, None])
def test_the_judge_of_campaigns_reads_the_same_bits(encoding, std):
    tensors = compacted({**ODD, **noised(2 * BLOCK + 5)}, encoding, std)
    ours, theirs = widened(tensors), read_tensors(read_body(codec.encode("update", {}, tensors)))
    assert {name: (each.shape, each.tobytes()) for name, each in ours.items()} == {
        name: (each.shape, each.tobytes()) for name, each in theirs.items()
    }


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("std", [0.7, None])
def test_every_tensor_keeps_its_shape_and_is_off_by_less_than_a_step(encoding, std):
    found = sent(ODD, encoding, std)
    assert {name: each.shape for name, each in found.items()} == {name: each.shape for name, each in ODD.items()}
    most = 0.7 / 8 if encoding == "int8" and std else {"int8": 2.0**-4, "float16": 2.0**-8, "float32": 2.0**-11}[encoding]
    assert max(float(np.abs(found[name] - ODD[name]).max(initial=0)) for name in ODD) < most


def test_four_bytes_lie_on_a_grid_of_a_thousandth_of_the_noise():
    # the power of two below 3 is 2, and its 1024th part 2^-9
    found = sent(noised(10_000, std=3.0), "float32", 3.0)["w"]
    assert np.array_equal(found * 512, np.rint(found * 512))
    assert np.abs(found - noised(10_000, std=3.0)["w"]).max() <= 2.0**-10


def test_without_noise_four_bytes_are_the_values():
    delta = noised(1000)
    assert sent(delta, "float32", None)["w"].tobytes() == delta["w"].tobytes()


@pytest.mark.parametrize("values", [[1e-12, -3.0, 0.001], [1e9, 1.0], [3e-30, 1e-30], [65519.9]])
@pytest.mark.parametrize("std", [2.0, None])
def test_two_bytes_neither_overflow_nor_lose_bits_to_smallness(values, std):
    tensor = compacted({"w": array(*values)}, "float16", std)["w"]
    assert isinstance(tensor, Scaled)
    numbers = np.abs(tensor.values[tensor.values != 0].astype(np.float64))
    assert all(2.0**-14 <= number <= 65504 for number in numbers)
    assert math.frexp(tensor.step)[0] == 0.5
    assert widened({"w": tensor})["w"] == pytest.approx(values, rel=2.0**-11, abs=tensor.step * 2.0**-15)


def test_two_bytes_lie_on_the_grid_of_four_or_a_coarser_one():
    found = sent(noised(10_000, std=3.0), "float16", 3.0)["w"]
    assert np.array_equal(found * 512, np.rint(found * 512))


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_arrives_as_it_is_for_the_aggregator_to_refuse(encoding, value):
    found = sent({"w": array(1, value), "b": array(1)}, encoding, 8.0)
    assert np.array_equal(found["w"], array(1, value), equal_nan=True)
    assert found["b"].tolist() in ([0.0], [1.0])


floats = hnp.arrays(np.float32, st.integers(0, 40), elements=st.floats(-(2.0**100), 2.0**100, width=32))


@given(floats, st.none() | st.floats(2.0**-60, 2.0**60))
def test_any_finite_value_is_within_one_step_and_nothing_is_cut_off(values, std):
    tensor = compacted({"w": values}, "int8", std)["w"]
    assert isinstance(tensor, Scaled)
    assert np.all(np.abs(tensor.values.astype(int)) <= 127)
    assert np.all(np.abs(tensor.values * tensor.step - values.astype(np.float64)) <= tensor.step * (1 + 2.0**-16))
