"""What training costs: epsilon of Poisson-subsampled Gaussian steps, and the noise that keeps within a budget.

The neighbouring relation is one unit of the institution added or removed. Nothing is gained from other institutions, from
asynchrony or from the aggregator's buffer.
"""

import functools
import math
from collections.abc import Callable, Sequence

import dp_accounting
from dp_accounting import NeighboringRelation
from dp_accounting.pld import PLDAccountant, privacy_loss_distribution
from dp_accounting.rdp import RdpAccountant
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

from client_worker.mechanism import Charge, charge_of, merge
from shared.errors import SettingsError
from shared.plan import Plan

RELATIVE_TOLERANCE = 1e-3
LEAST_NOISE, MOST_NOISE = 0.05, 1e4
# Widths of the discretised privacy loss. Rounding is upwards, so a coarser one is quicker and never too low; calibration takes
# a multiple of the report's, so that what it promises the report never finds exceeded.
REPORT_INTERVAL, COARSE_INTERVAL = 2e-4, 1e-3
# Whole orders only: the series for fractional ones converges slowly or not at all, and gains nothing where it matters.
RENYI_ORDERS = (*range(2, 64), *range(64, 256, 8), 256, 384, 512, 768, 1024)


def epsilon_after(history: Sequence[Charge], target_delta: float) -> float:
    """Epsilon of everything in the history together, exactly composed: for the gate before each training and for reports.

    Steps on all rows by the closed form, others by privacy loss distributions (Koskela, Jälkö & Honkela 2020, section 4).
    """
    return _exact(_combined(history), target_delta)


def epsilon_if_replaced(history: Sequence[Charge], target_delta: float) -> float:
    """The same, where neighbours are data sets in which one unit has been replaced by another; it is larger.

    By one composition of each charge after the other, so for a plan's few charges rather than for a long history.
    """
    combined = _combined(history)
    if all(charge.sample_rate == 1.0 for charge in combined):  # a replacement moves a sum by two clipping norms
        return epsilon_of_gaussians(2.0 * _mu(combined), target_delta)
    accountant = PLDAccountant(NeighboringRelation.REPLACE_ONE, value_discretization_interval=REPORT_INTERVAL)
    return float(_composed(accountant, combined).get_epsilon(target_delta))


def epsilon_bound_after(history: Sequence[Charge], target_delta: float) -> float:
    """An upper bound by Rényi accounting, in milliseconds: where a calibration begins."""
    return _bound(merge(history), target_delta)


def epsilon_of_gaussians(mu: float, target_delta: float) -> float:
    """Epsilon of mu-GDP: Gaussians on all rows are together mu = sqrt(sum of 1 / noise multiplier^2).

    Balle & Wang 2018, theorem 8; Dong, Roth & Su 2022, corollaries 2.13 and 3.3.
    """

    def excess(epsilon: float) -> float:
        return float(ndtr(mu / 2 - epsilon / mu) - math.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu))) - target_delta

    if mu == 0.0 or excess(0.0) <= 0.0:
        return 0.0
    upper = 1.0
    while excess(upper) > 0.0:
        upper *= 2.0
    return _root(excess, 0.0, upper, 1e-9)


def calibrate_noise_multiplier(epsilon: float, target_delta: float, sample_rate: float, steps_in_total: int) -> float:
    """The smallest noise multiplier, to 0.1 % and never below it, that keeps `steps_in_total` within epsilon.

    By privacy loss distributions, not by Rényi accounting: the latter asks for 10 to 20 % more noise for the same promise.
    """
    return _calibrate(epsilon, target_delta, sample_rate, steps_in_total)


def planned_noise_multiplier(plan: Plan, *, set_aside: float = 0.0) -> float:
    """What all of the plan's updates need to stay within its epsilon, less what is `set_aside` for a released count.

    Raises SettingsError where nothing is left, or the count would protect less than the plan does.
    """
    if plan.privacy.epsilon is None:
        raise SettingsError("the plan asks for noise and names no epsilon; ask the operator to correct it")
    if set_aside >= plan.privacy.epsilon:
        raise SettingsError(
            f"count_epsilon {set_aside:g} leaves nothing of the plan's epsilon {plan.privacy.epsilon:g} for training; lower it"
        )
    if set_aside and plan.privacy.mechanism == "update-gaussian":
        raise SettingsError(
            "the plan protects the institution as a whole, and count_epsilon only hides one record or person in the number: give "
            "num_examples, a public figure, instead"
        )
    whole = charge_of(plan, 1.0, updates=plan.local.updates)
    left = plan.privacy.epsilon - set_aside
    return calibrate_noise_multiplier(left, plan.privacy.target_delta, whole.sample_rate, whole.steps)


def _combined(history: Sequence[Charge]) -> tuple[Charge, ...]:
    """Equal charges added up, and all steps on all rows as one Gaussian, which is exact."""
    merged = merge(history)
    gaussians = [charge for charge in merged if charge.sample_rate == 1.0]
    sampled = tuple(charge for charge in merged if charge.sample_rate < 1.0)
    return (*sampled, Charge(1.0 / _mu(gaussians), 1.0, 1)) if gaussians else sampled


def _mu(gaussians: Sequence[Charge]) -> float:
    return math.sqrt(math.fsum(charge.steps / charge.noise_multiplier**2 for charge in gaussians))


@functools.lru_cache(maxsize=512)
def _exact(combined: tuple[Charge, ...], target_delta: float, interval: float = REPORT_INTERVAL) -> float:
    if all(charge.sample_rate == 1.0 for charge in combined):
        return epsilon_of_gaussians(_mu(combined), target_delta)
    losses = [_loss(charge, interval) for charge in combined]
    while len(losses) > 1:  # in pairs: short distributions are convolved with short ones
        odd = losses[-1:] if len(losses) % 2 else []
        losses = [first.compose(second) for first, second in zip(losses[::2], losses[1::2], strict=False)] + odd
    return float(losses[0].get_epsilon_for_delta(target_delta))


@functools.lru_cache(maxsize=256)
def _loss(charge: Charge, interval: float) -> privacy_loss_distribution.PrivacyLossDistribution:
    """The privacy loss of one charge. Kept: before each training only one charge of a history is new."""
    return _one_step(charge.noise_multiplier, charge.sample_rate, interval).self_compose(charge.steps)


@functools.lru_cache(maxsize=256)
def _one_step(noise: float, sample_rate: float, interval: float) -> privacy_loss_distribution.PrivacyLossDistribution:
    return privacy_loss_distribution.from_gaussian_mechanism(
        noise, value_discretization_interval=interval, sampling_prob=sample_rate
    )


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
