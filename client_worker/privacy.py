"""What training costs: epsilon of Poisson-subsampled Gaussian steps, and the noise that keeps within a budget.

The neighbouring relation is one record of the institution added or removed. Nothing is gained from other institutions, from
asynchrony or from the aggregator's buffer.
"""

import functools
import math
from collections.abc import Callable, Sequence

import dp_accounting
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from scipy.optimize import brentq

from client_worker.mechanism import Charge, merge
from shared.errors import SettingsError

RELATIVE_TOLERANCE = 1e-3
LEAST_NOISE, MOST_NOISE = 0.05, 1e4
# Widths of the discretised privacy loss. Rounding is upwards, so a coarser one is quicker and never too low; calibration takes
# a multiple of the report's, so that what it promises the report never finds exceeded.
REPORT_INTERVAL, COARSE_INTERVAL = 2e-4, 1e-3
# Whole orders only: the series for fractional ones converges slowly or not at all, and gains nothing where it matters.
RENYI_ORDERS = (*range(2, 64), *range(64, 256, 8), 256, 384, 512, 768, 1024)


def epsilon_after(history: Sequence[Charge], target_delta: float) -> float:
    """Epsilon of everything in the history together, exactly composed (privacy loss distributions): for reports."""
    return _exact(merge(history), target_delta)


def epsilon_bound_after(history: Sequence[Charge], target_delta: float) -> float:
    """An upper bound by Rényi accounting, in milliseconds: for the gate before each training."""
    return _bound(merge(history), target_delta)


def calibrate_noise_multiplier(epsilon: float, target_delta: float, sample_rate: float, steps_in_total: int) -> float:
    """The smallest noise multiplier, to 0.1 % and never below it, that keeps `steps_in_total` within epsilon.

    By privacy loss distributions, not by Rényi accounting: the latter asks for 10 to 20 % more noise for the same promise.
    """
    return _calibrate(epsilon, target_delta, sample_rate, steps_in_total)


@functools.lru_cache(maxsize=512)
def _exact(history: tuple[Charge, ...], target_delta: float, interval: float = REPORT_INTERVAL) -> float:
    return float(_composed(PLDAccountant(value_discretization_interval=interval), history).get_epsilon(target_delta))


@functools.lru_cache(maxsize=512)
def _bound(history: tuple[Charge, ...], target_delta: float) -> float:
    return float(_composed(RdpAccountant(RENYI_ORDERS), history).get_epsilon(target_delta))


def _composed(accountant: dp_accounting.PrivacyAccountant, history: tuple[Charge, ...]) -> dp_accounting.PrivacyAccountant:
    for item in history:
        gaussian = dp_accounting.GaussianDpEvent(item.noise_multiplier)
        accountant.compose(dp_accounting.PoissonSampledDpEvent(item.sample_rate, gaussian), item.steps)
    return accountant


@functools.lru_cache(maxsize=64)
def _calibrate(epsilon: float, target_delta: float, sample_rate: float, steps: int) -> float:
    def excess(account: Callable[[tuple[Charge, ...], float], float], logarithm: float) -> float:
        spent = account((Charge(math.exp(logarithm), sample_rate, steps),), target_delta)
        return math.log(max(spent, 1e-12) / epsilon)

    # Rényi accounting is never below the exact epsilon, so its answer is a near upper end, found at little cost.
    exact = functools.partial(_exact, interval=COARSE_INTERVAL if epsilon >= 1.0 else REPORT_INTERVAL)
    upper = _root(functools.partial(excess, _bound), math.log(LEAST_NOISE), math.log(MOST_NOISE), 0.02)
    lower = upper + math.log(0.75)
    while excess(exact, lower) < 0:
        lower -= 0.2
    return math.exp(_root(functools.partial(excess, exact), lower, upper, RELATIVE_TOLERANCE / 2))


def _root(excess: Callable[[float], float], lower: float, upper: float, tolerance: float) -> float:
    """Where a falling function has become negative, at most two tolerances beyond its zero (Brent 1973)."""
    if excess(upper) > 0:
        raise SettingsError("no noise keeps training within this epsilon; raise epsilon or target_delta, or train fewer steps")
    root = float(brentq(excess, lower, upper, xtol=tolerance, rtol=1e-12))
    return root if excess(root) <= 0 else min(upper, root + tolerance)
