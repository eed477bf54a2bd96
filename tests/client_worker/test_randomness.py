import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from client_worker.randomness import SecureRandom

KEY = bytes(range(32))
SMALLEST_P = 1e-3


def test_noise_is_standard_normal() -> None:
    noise = SecureRandom(KEY).gaussian(200_000)

    assert noise.std() == pytest.approx(1.0, rel=0.01)
    assert noise.mean() == pytest.approx(0.0, abs=0.01)
    assert stats.kstest(noise, "norm").pvalue > SMALLEST_P


def test_neighbouring_numbers_are_not_correlated() -> None:
    noise = SecureRandom(KEY).gaussian(100_001)

    assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(noise[:50_000], noise[50_000:100_000])[0, 1]) < 0.02


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_as_many_numbers_come_as_were_asked_for(count: int) -> None:
    random = SecureRandom(KEY)

    assert random.gaussian(count).shape == (count,)
    assert random.uniform(count).shape == (count,)


def test_uniform_numbers_are_uniform_and_never_zero() -> None:
    numbers = SecureRandom(KEY).uniform(200_000)

    assert stats.kstest(numbers, "uniform").pvalue > SMALLEST_P
    assert 0.0 < numbers.min() < numbers.max() <= 1.0


def test_discrete_laplace_numbers_have_their_law() -> None:
    draws, ratio = 100_000, np.exp(-1 / 2.0)
    numbers = SecureRandom(KEY).discrete_laplace(2.0, draws)

    # P(k) = (1 - r) / (1 + r) * r^|k|, the tails beyond 10 taken together
    ks = np.arange(-10, 11)
    expected = draws * (1 - ratio) / (1 + ratio) * ratio ** np.abs(ks)
    found = np.array([(numbers == k).sum() for k in ks])
    rest, rest_expected = draws - found.sum(), draws - expected.sum()
    chi_square = ((found - expected) ** 2 / expected).sum() + (rest - rest_expected) ** 2 / rest_expected
    assert SMALLEST_P < stats.chi2(len(ks)).sf(chi_square) < 1 - SMALLEST_P


def test_every_row_is_drawn_independently_with_the_sample_rate() -> None:
    random, rate, rows, draws = SecureRandom(KEY), 0.25, 400, 2000
    drawn = np.zeros((draws, rows))
    for each in drawn:
        each[random.poisson_sample(rows, rate)] = 1

    sizes = drawn.sum(axis=1)
    assert sizes.mean() == pytest.approx(rows * rate, rel=0.01)
    assert sizes.var() == pytest.approx(rows * rate * (1 - rate), rel=0.1)
    inclusions = drawn.sum(axis=0)
    expected = draws * rate
    chi_square = float(((inclusions - expected) ** 2 / (expected * (1 - rate))).sum())
    assert SMALLEST_P < stats.chi2(rows).cdf(chi_square) < 1 - SMALLEST_P


def test_a_sample_rate_of_one_draws_every_row() -> None:
    assert SecureRandom(KEY).poisson_sample(50, 1.0).tolist() == list(range(50))


def test_one_key_gives_one_stream_and_no_key_gives_another_each_time() -> None:
    np.testing.assert_array_equal(SecureRandom(KEY).gaussian(10), SecureRandom(KEY).gaussian(10))
    assert not np.array_equal(SecureRandom().gaussian(10), SecureRandom().gaussian(10))


def test_a_stream_does_not_repeat() -> None:
    random = SecureRandom(KEY)

    assert not np.array_equal(random.gaussian(10), random.gaussian(10))


def test_a_forked_child_does_not_draw_its_parents_numbers() -> None:
    code = """
import os
from client_worker.randomness import SecureRandom
random = SecureRandom()
child = os.fork()
os.write(1, f"{random.uniform(1)[0]}\\n".encode())
if child:
    os.waitpid(child, 0)
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert len(set(answer.stdout.split())) == 2
