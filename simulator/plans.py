"""From what a scenario says of a plan, and what its task suggests, to the plan of one run."""

from typing import TypeVar

from pydantic import ValidationError

from shared.errors import SettingsError
from shared.plan import AggregationPlan, Frozen, Limits, LocalPlan, Plan, PrivacyPlan, StalenessRule
from shared.tasks.spec import TaskSpec
from shared.wrong_keys import explain
from simulator.scenario import PlanKeys, Variant

AS_MANY_AS_THERE_IS_TIME_FOR = 2**31 - 1
Keys = TypeVar("Keys", bound=Frozen)


def plan_of(base: PlanKeys, variant: Variant, spec: TaskSpec, *, institutions: int) -> Plan:
    """The task's suggestions, under the scenario's `[plan]`, under the variant. Raises SettingsError where they do not agree."""
    given = [base, variant]
    try:
        return Plan(
            task=spec.name,
            task_hash=spec.hash,
            aggregation=_over(_suggested(spec, given), *(keys.aggregation for keys in given)),
            defence=_over(base.defence, variant.defence),
            local=_local(spec, given),
            privacy=_privacy(spec, given),
            limits=Limits(institutions=institutions),
            broadcast=variant.broadcast or base.broadcast or spec.transport.models,
            update_encoding=variant.update_encoding or base.update_encoding or spec.transport.updates,
        )
    except ValidationError as error:
        lines = explain(error, Plan, whole="the scenario")
        raise SettingsError("\n".join(f"plan {variant.name!r}: {line}" for line in lines)) from None


def _suggested(spec: TaskSpec, given: list[PlanKeys]) -> AggregationPlan:
    """As `fedqueue init` would found it; a buffer of exactly K is for whole rounds, which take whole steps."""
    suggested, asked = spec.aggregation, _over(AggregationPlan(rule=spec.aggregation.rule), *(keys.aggregation for keys in given))
    return AggregationPlan(
        rule=suggested.rule,
        staleness=StalenessRule(function=suggested.staleness_function, exponent=suggested.staleness_exponent),
        buffer_size=suggested.buffer_for(asked.rule),
        server_learning_rate=1.0 if asked.exact_buffer else suggested.rate_for(asked.rule, adam=asked.server_adam is not None),
    )


def _local(spec: TaskSpec, given: list[PlanKeys]) -> LocalPlan:
    training = spec.training
    updates_said = any({"updates", "horizon_seconds"} & keys.local.model_fields_set for keys in given)
    open_end = not updates_said and _privacy(spec, given).mechanism == "none"
    suggested = LocalPlan(
        steps=training.steps,
        sample_rate=training.sample_rate,
        learning_rate=training.learning_rate,
        updates=AS_MANY_AS_THERE_IS_TIME_FOR if open_end else training.updates,
    )
    return _over(suggested, *(keys.local for keys in given))


def _privacy(spec: TaskSpec, given: list[PlanKeys]) -> PrivacyPlan:
    """No noise unless the scenario says something of privacy; then what it leaves open is the product's default."""
    asked = [keys.privacy for keys in given if "privacy" in keys.model_fields_set]
    suggested = PrivacyPlan(clipping_norm=spec.training.clipping_norm)
    privacy = _over(suggested, *asked) if asked else suggested.model_copy(update={"mechanism": "none"})
    if privacy.mechanism == "none" or privacy.epsilon is None:
        return privacy.model_copy(update={"mechanism": "none", "epsilon": None})
    return privacy


def _over(values: Keys, *others: Keys) -> Keys:
    """The values, each replaced by the last of `others` that was given it. What they say together is checked again."""
    for other in others:
        changed = {}
        for name in other.model_fields_set:
            new, old = getattr(other, name), getattr(values, name)
            changed[name] = _over(old, new) if isinstance(new, Frozen) and isinstance(old, Frozen) else new
        values = type(values)(**{name: getattr(values, name) for name in type(values).model_fields} | changed)
    return values
