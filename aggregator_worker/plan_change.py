"""A change of plan: which parts of a plan may change while a run goes on, and the order that asks for it. Pure.

The manifest that applies the order settles nothing, makes no version, and carries the new plan: it is in force from there on.
What needs other arrays at the aggregator, or other queues at the broker, cannot change.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import ValidationError

from aggregator_worker.ending import demand_rows
from aggregator_worker.rules import TABLE_RULES
from shared.errors import SettingsError
from shared.messages import Hash
from shared.plan import Frozen, Plan

KIND: Literal["change-plan"] = "change-plan"
_ELSEWHERE: Mapping[str, str] = {
    "task": "institutions describe their rows by it",
    "task_hash": "institutions describe their rows by it",
    "limits": "the broker's queues were made for them",
    "broadcast": "the broker's queues were made for it",
}
"""Parts of a plan that stay, and why."""


class PlanChange(Frozen):
    """The arguments of the order. `instead_of` is the hash of the plan that the operator looked at; no other one is changed."""

    instead_of: Hash
    plan: dict[str, Any]


def changed_plan(arguments: Mapping[str, Any], present: Plan, *, has_rows: bool) -> Plan:
    """The plan that an order asks for. Raises SettingsError where it must not take the present one's place.

    `has_rows` says whether the aggregator has held-out rows, without which some endings are never reached.
    """
    try:
        change = PlanChange.model_validate(dict(arguments))
        plan = Plan.model_validate(change.plan)
    except ValidationError as error:
        raise SettingsError(f"the order holds no plan: {error.errors()[0]['msg']}") from error
    if change.instead_of != present.hash:
        raise SettingsError("the plan was changed since the operator looked")
    demand_changeable(present, plan)
    demand_rows(plan.ending, held_out=has_rows)
    return plan


def demand_changeable(present: Plan, wanted: Plan) -> None:
    """Raises SettingsError naming the first part that cannot change while the run goes on, and why."""
    for what, why in _hindrances(present, wanted):
        raise SettingsError(
            f"{what} cannot change while a run goes on: {why}; found a new federation that begins with this model"
        )
    if wanted.hash == present.hash:
        raise SettingsError("this is the plan in force already")


def _hindrances(present: Plan, wanted: Plan) -> Iterator[tuple[str, str]]:
    for name, why in _ELSEWHERE.items():
        if getattr(present, name) != getattr(wanted, name):
            yield name, why
    if present.ending.metric != wanted.ending.metric:
        yield "ending.metric", "the best version was chosen by it"
    before, after = present.aggregation, wanted.aggregation
    if before.rule != after.rule and {before.rule, after.rule} & TABLE_RULES:
        yield "aggregation.rule", f"{after.rule} keeps other arrays than {before.rule}"
    if (before.server_momentum > 0) != (after.server_momentum > 0):
        yield "aggregation.server_momentum", "the aggregator's state has other arrays with it than without"
    if (before.server_adam is None) != (after.server_adam is None):
        yield "aggregation.server_adam", "the aggregator's state has other arrays with it than without"
