"""What a plan will spend at one institution, update by update, before the first training: figures from figures, no data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from rich.table import Table

from client_worker.charging import allowed_noise
from client_worker.ledger_rows import Totals
from client_worker.mechanism import charge_of, statement_of
from client_worker.policy import PlanRefusedError, Policy, check_steps
from client_worker.privacy import epsilon_after, epsilon_if_replaced, planned_noise_multiplier
from shared.errors import SettingsError
from shared.messages import Unit
from shared.noise import noise_std
from shared.plan import Plan

ROWS = 20
"""Updates that the table shows one by one; of more, about so many and the last."""
PROTECTED: Mapping[Unit, str] = {
    "record": "one record",
    "person": "one person with all records",
    "institution": "the institution as a whole",
}


@dataclass(frozen=True, slots=True)
class _Figures:
    num_examples: int
    noise_multiplier: Callable[[Plan], float]


@dataclass(frozen=True, slots=True)
class Forecast:
    """What `fedqueue privacy plan` tells.

    `noise_multiplier` is None for a plan without noise, and for one whose noise cannot be computed. `spent` is epsilon until now,
    after `done` trainings; `after` is epsilon after each that is shown of those to come. `replaced` is epsilon of the whole plan
    where a unit is replaced, not added.
    """

    plan: Plan
    policy: Policy
    unit: Unit
    noise_multiplier: float | None
    noise_std: float | None
    refused: PlanRefusedError | None
    done: int
    spent: float
    after: tuple[tuple[int, float], ...]
    replaced: float


def forecast(
    plan: Plan, policy: Policy, totals: Totals, *, unit: Unit, num_examples: int | None, count_epsilon: float | None
) -> Forecast:
    """The plan's course from what the ledger adds up to now."""
    figures = _Figures(num_examples or 0, partial(planned_noise_multiplier, set_aside=count_epsilon or 0.0))
    noise, refused = _judged(plan, policy, figures)
    begun = totals.set_aside if totals.counted is not None else totals.set_aside + (count_epsilon or 0.0)
    target_delta, done = plan.privacy.target_delta, totals.reservations
    return Forecast(
        plan=plan,
        policy=policy,
        unit="institution" if plan.privacy.mechanism == "update-gaussian" else unit,
        noise_multiplier=noise,
        noise_std=None if noise is None or num_examples is None else _std(plan, noise, num_examples=num_examples, unit=unit),
        refused=refused,
        done=done,
        spent=totals.set_aside + epsilon_after(totals.charges, target_delta),
        after=()
        if noise is None
        else tuple(
            (number, begun + epsilon_after([*totals.charges, charge_of(plan, noise, updates=number - done)], target_delta))
            for number in shown(done + 1, plan.local.updates)
        ),
        replaced=0.0
        if noise is None
        else epsilon_if_replaced([charge_of(plan, noise, updates=plan.local.updates)], target_delta),
    )


def shown(first: int, last: int) -> Sequence[int]:
    """Every number up to ROWS of them, else about ROWS at equal distances, with the first and the last."""
    count = last - first + 1
    if count <= ROWS:
        return range(first, last + 1)
    return sorted({first + round(step * (count - 1) / (ROWS - 1)) for step in range(ROWS)})


def _judged(plan: Plan, policy: Policy, figures: _Figures) -> tuple[float | None, PlanRefusedError | None]:
    """The noise as the worker would compute it, and its refusal. A refused plan is shown too, where it can be accounted."""
    try:
        return allowed_noise(plan, policy, figures), None
    except PlanRefusedError as error:
        refused = error
    if plan.privacy.mechanism == "none":
        return None, refused
    try:
        check_steps(policy, plan.local, noised=True)
        return figures.noise_multiplier(plan), refused
    except SettingsError:
        return None, refused


def _std(plan: Plan, noise_multiplier: float, *, num_examples: int, unit: Unit) -> float | None:
    return noise_std(statement_of(plan, noise_multiplier, epsilon_spent=0.0, unit=unit), plan, num_examples)


def facts_table(told: Forecast) -> Table:
    """The plan as this institution would carry it out, beside what its policy allows."""
    plan, policy, privacy = told.plan, told.policy, told.plan.privacy
    table = Table("privacy plan", f"{plan.task}, plan {plan.hash[:12]}", "the policy allows")
    table.add_row(
        "mechanism", privacy.mechanism, ", ".join(policy.mechanisms) if privacy.mechanism != "none" else policy.allow_no_privacy
    )
    if told.noise_multiplier is not None:
        table.add_row("protected", f"{PROTECTED[told.unit]}, added or removed", "")
        table.add_row("noise multiplier", f"{told.noise_multiplier:.4g}", f"at least {policy.min_noise_multiplier:g}")
        table.add_row("clipping norm", f"{privacy.clipping_norm:g}", "")
        table.add_row("sample rate, steps of an update", f"{plan.local.sample_rate:g}, {plan.local.steps}", "")
        table.add_row("target delta", f"{privacy.target_delta:g}", f"at most {policy.max_target_delta:g}")
        table.add_row("epsilon of the whole plan", f"{privacy.epsilon:g}", f"at most {policy.max_epsilon:g}")
        table.add_row("the same, of one replaced", f"{told.replaced:.3f}", "")
        std = "known once the number of examples is drawn" if told.noise_std is None else f"{told.noise_std:.4g}"
        table.add_row("noise of one coordinate of an update", f"{std} (standard deviation)" if told.noise_std else std, "")
    table.add_row("pace", _pace(plan), "")
    table.add_row("expected cost", cost_text(plan), "")
    return table


def _pace(plan: Plan) -> str:
    updates, horizon = plan.local.updates, plan.local.horizon_seconds
    if not horizon or updates == 1:
        return f"{updates} updates, as fast as trained"
    return f"{updates} updates over {horizon:g} s, one in about {horizon / (updates - 1):.3g} s"


def cost_text(plan: Plan) -> str:
    """What the operator measured that noise costs in accuracy."""
    cost = plan.simulated
    if cost is None:
        return "the operator ran no simulation"
    figures = f"{cost.metric} {cost.without_noise:.3f} without noise, {cost.with_noise:.3f} with it"
    return f"{figures}: measured by the operator's simulation"


def course_table(told: Forecast) -> Table:
    """Epsilon after each update that is still to come."""
    table = Table("after update", "epsilon spent", "left of the plan's")
    budget = told.plan.privacy.epsilon or 0.0
    for number, epsilon in told.after:
        left = f"{budget - epsilon:.3f}" if epsilon <= budget else "none: this update will not be trained"
        table.add_row(f"{number:,}", f"{epsilon:.3f}", left)
    return table
