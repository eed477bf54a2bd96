"""How large the noise of an update is, by what its statement says: public figures in, a number out.

Institutions scale the grid of their encoding by it, aggregators hold an update's norm against it.
"""

import functools
import math

from shared.messages import PrivacyStatement
from shared.plan import Plan

FALSE_REFUSALS = 1e-9
"""The chance that an honest update is smaller than `least_norm`, at most."""


def noise_std(statement: PrivacyStatement, plan: Plan, num_examples: int) -> float | None:
    """The noise of one coordinate of a delta, were the loss flat; None without noise.

    DP-SGD: learning rate x noise multiplier x clipping norm x sqrt(steps) / (sample rate x examples). Noise on the update:
    noise multiplier x clipping norm.
    """
    sigma, clipping_norm = statement.noise_multiplier, statement.clipping_norm
    if statement.mechanism == "none" or sigma is None or clipping_norm is None:
        return None
    if statement.mechanism == "update-gaussian":
        return sigma * clipping_norm
    expected_rows = plan.local.sample_rate * num_examples
    return plan.local.learning_rate * sigma * clipping_norm * math.sqrt(plan.local.steps) / expected_rows


def least_norm(statement: PrivacyStatement, plan: Plan, num_examples: int, *, coordinates: int) -> float:
    """The norm that an honest update passes but for a chance of FALSE_REFUSALS; 0 without noise.

    The noise of a DP-SGD update's last step is independent of all before it, so that the squared norm is stochastically larger
    than that step's noise alone, however the steps before pull back: a chi-squared variable of `coordinates` degrees.
    """
    std = noise_std(statement, plan, num_examples)
    if std is None or not coordinates:
        return 0.0
    last_step = std if statement.mechanism == "update-gaussian" else std / math.sqrt(plan.local.steps)
    return last_step * math.sqrt(coordinates * least_share(coordinates))


@functools.lru_cache(maxsize=64)
def least_share(degrees: int) -> float:
    """The x below 1 for which a chi-squared variable is below x times its mean with a chance of FALSE_REFUSALS at most.

    Chernoff's bound: P(chi2 <= x d) <= (x e^(1-x))^(d/2), solved by bisection on log x.
    """
    wanted = 2.0 * math.log(FALSE_REFUSALS) / degrees
    low, high = -1e6, 0.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if middle + 1.0 - math.exp(middle) <= wanted else (low, middle)
    return math.exp(low)
