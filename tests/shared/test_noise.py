import math

import numpy as np
import pytest
from scipy.stats import chi2

from shared.messages import PrivacyStatement
from shared.noise import FALSE_REFUSALS, least_norm, least_share, noise_std
from shared.plan import LocalPlan, PrivacyPlan
from tests.builders import a_plan

ROWS, STEPS, RATE, CLIPPING, SIGMA = 2000, 8, 0.05, 2.0, 1.5


def the_plan(learning_rate: float = 0.5, mechanism: str = "dp-sgd"):
    local = LocalPlan(steps=STEPS, sample_rate=RATE, learning_rate=learning_rate)
    return a_plan(privacy=PrivacyPlan(mechanism=mechanism, clipping_norm=CLIPPING), local=local)


def stated(mechanism: str = "dp-sgd", **changes):
    return PrivacyStatement(**{"mechanism": mechanism, "clipping_norm": CLIPPING, "noise_multiplier": SIGMA, **changes})


def dp_sgd(random, data, *, learning_rate: float, noise: float = SIGMA):
    """A delta by algorithm 1 of Abadi et al. 2016 on the loss |w - x|^2 / 2, begun at its minimum."""
    base = data.mean(axis=0)
    w, expected = base.copy(), RATE * len(data)
    for _ in range(STEPS):
        gradients = w - data[random.random(len(data)) < RATE]
        norms = np.linalg.norm(gradients, axis=1, keepdims=True)
        clipped = gradients / np.maximum(1.0, norms / CLIPPING)
        w = w - learning_rate * (clipped.sum(axis=0) + random.normal(0, noise * CLIPPING, w.shape)) / expected
    return w - base


def test_the_noise_of_a_coordinate_has_the_standard_deviation_that_a_simulation_measures():
    # with a learning rate of 0.001 nothing pulls back, and rows that are all at the minimum have no gradient
    random, plan = np.random.default_rng(1), the_plan(0.001)
    deltas = [dp_sgd(random, np.zeros((ROWS, 50)), learning_rate=0.001) for _ in range(200)]
    # 0.001 x 1.5 x 2 x sqrt(8) / 100
    assert noise_std(stated(), plan, ROWS) == pytest.approx(8.485e-5, rel=1e-3)
    assert np.std(deltas) == pytest.approx(8.485e-5, rel=0.02)


def test_noise_on_the_update_is_the_clipping_norm_times_the_multiplier():
    assert noise_std(stated("update-gaussian"), the_plan(), ROWS) == 3.0


@pytest.mark.parametrize("changes", [{"mechanism": "none"}, {"noise_multiplier": None}, {"clipping_norm": None}], ids=str)
def test_without_noise_there_is_no_least_norm(changes):
    assert noise_std(stated(**changes), the_plan(), ROWS) is None
    assert least_norm(stated(**changes), the_plan(), ROWS, coordinates=100) == 0.0
    assert least_norm(stated(), the_plan(), ROWS, coordinates=0) == 0.0


@pytest.mark.parametrize("learning_rate", [0.1, 0.5, 1.0, 1.5])
def test_no_honest_update_is_shorter_than_the_least_norm_however_far_each_step_pulls_back(learning_rate):
    random, plan, coordinates = np.random.default_rng(2), the_plan(learning_rate), 400
    data = random.normal(0, 0.05, (ROWS, coordinates))
    least = least_norm(stated(), plan, ROWS, coordinates=coordinates)
    norms = [np.linalg.norm(dp_sgd(random, data, learning_rate=learning_rate)) for _ in range(15)]
    assert min(norms) > least
    # a rate of 1 undoes all noise but the last step's: all steps' noise would refuse every one of these
    if learning_rate == 1.0:
        assert max(norms) < noise_std(stated(), plan, ROWS) * math.sqrt(coordinates) / 2


@pytest.mark.parametrize("learning_rate", [0.01, 1.0])
def test_the_same_training_without_its_noise_is_shorter_than_the_least_norm(learning_rate):
    random, plan = np.random.default_rng(3), the_plan(learning_rate)
    # rows near the minimum: what sampling moves is small beside the noise that is stated
    data = random.normal(0, 0.01, (ROWS, 400))
    least = least_norm(stated(), plan, ROWS, coordinates=400)
    assert np.linalg.norm(dp_sgd(random, data, learning_rate=learning_rate, noise=0.0)) < least / 3
    assert np.linalg.norm(dp_sgd(random, data, learning_rate=learning_rate)) > least


def test_noise_on_the_update_alone_passes_and_half_of_it_does_not():
    random, plan = np.random.default_rng(4), the_plan(mechanism="update-gaussian")
    least = least_norm(stated("update-gaussian"), plan, ROWS, coordinates=1000)
    norms = [np.linalg.norm(random.normal(0, 3.0, 1000)) for _ in range(1000)]
    assert min(norms) > least > max(norms) / 2


@pytest.mark.parametrize("degrees", [1, 2, 3, 10, 100, 10**4, 10**6, 25_000_000])
def test_an_honest_norm_is_refused_once_in_a_thousand_million_times_at_most(degrees):
    # scipy's distribution function, which shares nothing with the bound
    assert chi2.cdf(least_share(degrees) * degrees, degrees) <= FALSE_REFUSALS == 1e-9


@pytest.mark.parametrize(("degrees", "share"), [(100, 0.3), (10**4, 0.9), (10**6, 0.99), (25_000_000, 0.998)])
def test_the_more_coordinates_the_less_is_missing_before_it_is_noticed(degrees, share):
    assert share < least_share(degrees) < 1
