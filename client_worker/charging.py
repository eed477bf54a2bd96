"""What the plan would cost here, and whether policy and budget allow one more local training. No disk, no clock."""

from collections.abc import Callable, Sequence
from typing import Protocol

from client_worker.ledger_rows import Totals
from client_worker.mechanism import Charge, charge_of, statement_of
from client_worker.policy import PlanRefusedError, Policy, check_noise, check_privacy, check_steps, check_target_delta
from shared.errors import PrivacyBudgetExhaustedError, SettingsError
from shared.messages import PrivacyStatement, Unit
from shared.plan import Plan


class Figures(Protocol):
    """What judging a plan needs to know of an institution's data."""

    @property
    def num_examples(self) -> int: ...
    @property
    def noise_multiplier(self) -> Callable[[Plan], float]: ...


class Accounted(Figures, Protocol):
    """And what charging a training needs to know."""

    @property
    def epsilon(self) -> Callable[[Sequence[Charge], float], float]: ...
    @property
    def unit(self) -> Unit: ...


def allowed_noise(plan: Plan, policy: Policy, data: Figures) -> float | None:
    """The noise multiplier that the plan needs here, None without noise. Raises PlanRefusedError where the policy forbids it."""
    check_privacy(policy, plan.privacy)
    noised = plan.privacy.mechanism != "none"
    check_steps(policy, plan.local, noised=noised)
    if not noised:
        return None
    check_target_delta(plan.privacy, data.num_examples)
    try:
        sigma = data.noise_multiplier(plan)
    except SettingsError as error:
        raise PlanRefusedError("epsilon", str(error)) from error
    check_noise(policy, sigma)
    return sigma


def affordable(plan: Plan, policy: Policy, data: Accounted, totals: Totals) -> PrivacyStatement:
    """What one more local training would state.

    Raises PlanRefusedError where the policy forbids the plan, PrivacyBudgetExhaustedError when it would cost too much.
    """
    sigma = allowed_noise(plan, policy, data)
    if totals.reservations >= plan.local.updates:
        raise PrivacyBudgetExhaustedError("updates", f"all {plan.local.updates} planned local trainings are used")
    if sigma is None:
        return PrivacyStatement(mechanism="none", steps=plan.local.steps)
    if totals.unprotected:
        raise PrivacyBudgetExhaustedError(
            "epsilon", f"{totals.unprotected} local trainings were without noise: no epsilon holds for these rows any more"
        )
    spent = totals.set_aside + data.epsilon([*totals.charges, charge_of(plan, sigma)], plan.privacy.target_delta)
    allowed = plan.privacy.epsilon or 0.0  # which is within the policy
    if spent > allowed:
        raise PrivacyBudgetExhaustedError("epsilon", f"one more local training would spend epsilon {spent:.3f} of {allowed:g}")
    return statement_of(plan, sigma, epsilon_spent=spent, unit=data.unit)
