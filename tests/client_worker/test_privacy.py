import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from client_worker.mechanism import Charge, merge
from client_worker.privacy import calibrate_noise_multiplier, epsilon_after, epsilon_bound_after
from shared.errors import SettingsError

DELTA = 1e-5


def gaussian_epsilon(mu: float) -> float:
    """Epsilon of mu-GDP at DELTA (Dong, Roth & Su 2022, corollary 2.13)."""
    return float(
        brentq(
            lambda e: norm.cdf(-e / mu + mu / 2) - 2.718281828459045**e * norm.cdf(-e / mu - mu / 2) - DELTA, 0, 50, xtol=1e-12
        )
    )


@pytest.mark.parametrize(
    ("history", "exact", "renyi"),
    [
        ([Charge(1, 0.05, 100)], 3.50215, 4.0383),
        ([Charge(1, 0.05, 1000)], 10.98668, 11.98),
        ([Charge(10, 1, 50)], 2.943225, 3.18899),
        ([Charge(1, 1, 1)], 4.377178, 4.728507),
        ([Charge(5, 1, 20)], 3.848610, 4.161624),
        ([Charge(noise, 1, 1) for noise in (5, 8, 10, 20, 4)], 1.389861, None),
    ],
)
def test_golden_epsilons(history: list[Charge], exact: float, renyi: float | None) -> None:
    assert epsilon_after(history, DELTA) == pytest.approx(exact, abs=1e-3)
    assert epsilon_bound_after(history, DELTA) >= epsilon_after(history, DELTA)
    if renyi is not None:
        # `renyi` was found with fractional orders as well, which can only be lower, and here is by less than 2 %
        assert renyi - 1e-4 <= epsilon_bound_after(history, DELTA) <= 1.02 * renyi


@pytest.mark.parametrize(("noise", "steps"), [(10.0, 50), (5.0, 20), (3.0, 1)])
def test_steps_on_all_rows_are_gaussian_differential_privacy(noise: float, steps: int) -> None:
    exact = gaussian_epsilon(steps**0.5 / noise)

    assert exact <= epsilon_after([Charge(noise, 1.0, steps)], DELTA) <= exact + 1e-3


def test_the_closed_form_of_this_test_agrees_with_the_published_number() -> None:
    assert gaussian_epsilon(50**0.5 / 10) == pytest.approx(2.943225, abs=1e-6)


@pytest.mark.parametrize(
    ("epsilon", "sample_rate", "steps", "noise"),
    [(1, 0.02, 500, 1.879), (3, 0.02, 500, 0.964), (3, 0.1, 320, 2.658), (8, 0.125, 320, 1.553), (3, 1.0, 20, 6.219)],
)
def test_calibration_finds_the_golden_noise_multipliers(epsilon: float, sample_rate: float, steps: int, noise: float) -> None:
    assert calibrate_noise_multiplier(epsilon, DELTA, sample_rate, steps) == pytest.approx(noise, rel=2e-3)


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 3.0, 8.0])
def test_calibrated_noise_spends_nearly_all_of_epsilon_and_never_more(epsilon: float) -> None:
    noise = calibrate_noise_multiplier(epsilon, DELTA, 0.25, 200)

    assert 0.99 * epsilon <= epsilon_after([Charge(noise, 0.25, 200)], DELTA) <= epsilon


def test_updates_of_ten_steps_cost_as_much_as_their_steps_together() -> None:
    assert epsilon_after([Charge(5.0, 0.25, 10)] * 20, DELTA) == epsilon_after([Charge(5.0, 0.25, 200)], DELTA)


def test_equal_steps_are_merged_and_others_kept() -> None:
    history = [Charge(2.0, 0.1, 3), Charge(1.0, 0.1, 4), Charge(2.0, 0.1, 5), Charge(9.0, 0.1, 0)]

    assert merge(history) == (Charge(1.0, 0.1, 4), Charge(2.0, 0.1, 8))


def test_nothing_done_costs_nothing() -> None:
    assert epsilon_after([], DELTA) == 0.0
    assert epsilon_bound_after([], DELTA) == 0.0


@settings(max_examples=20, deadline=None)
@given(st.floats(1.0, 20.0), st.integers(1, 30))
def test_one_more_step_never_costs_less(noise: float, steps: int) -> None:
    less, more = ([Charge(noise, 0.25, count)] for count in (steps, steps + 1))

    assert epsilon_after(less, DELTA) <= epsilon_after(more, DELTA)


def test_an_epsilon_that_no_noise_can_keep_is_refused() -> None:
    with pytest.raises(SettingsError, match="raise epsilon or target_delta"):
        calibrate_noise_multiplier(1e-5, 1e-12, 1.0, 10**6)


def test_accounting_loads_neither_torch_nor_opacus() -> None:
    code = "import client_worker.privacy, sys; print(sorted({'torch', 'opacus'} & set(sys.modules)))"

    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert answer.stdout.strip() == "[]"
