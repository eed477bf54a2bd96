"""Is an update's privacy statement the plan's, does it lower nothing, and do its values hold the noise that it declares?"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from shared.messages import Entry, Outcome, PrivacyStatement, Unit, Update
from shared.noise import least_norm, noise_std
from shared.plan import Mechanism, Plan

EPSILON_TOLERANCE = 1e-6
"""Relative; what two programs make of the same sum differs by less."""
UNITS: dict[Mechanism, tuple[Unit, ...]] = {"dp-sgd": ("record", "person"), "update-gaussian": ("institution",)}
"""Whose presence a mechanism can hide."""


class Length(NamedTuple):
    """A norm as it is, and in units of the noise of a multiplier of 1 on so many examples; without noise both are the same.

    A small institution's updates are long because of their noise, a large one's are many times as long as theirs: neither alone
    says that an update is too long.
    """

    norm: float
    in_noise: float


def is_newest(sequence: int, entry: Entry) -> bool:
    """Whether a number is above all settled ones. One taken back from the dead letters is not: it tells of an earlier time."""
    return sequence > entry.watermark


def statement_fault(update: Update, entry: Entry, plan: Plan) -> str | None:
    """What is wrong with the statement of an update under a plan, in words; None where nothing is, or the plan asks for none."""
    if plan.privacy.mechanism == "none":
        return None
    statement = update.privacy
    fault = next(_differences(statement, plan), None) or _noise_fault(statement)
    return fault or _epsilon_fault(statement, entry, newest=is_newest(update.sequence, entry))


def norm_fault(norm: float, update: Update, plan: Plan, *, coordinates: int) -> str | None:
    """Why values of this norm cannot be what the statement says they are; None where they can.

    The statement must have passed `statement_fault`.
    """
    if not math.isfinite(norm):
        return "a value is not finite"
    if plan.privacy.mechanism == "none":
        return None
    least = least_norm(update.privacy, plan, update.num_examples, coordinates=coordinates)
    if norm >= least:
        return None
    return f"its norm is {norm:.3g}, the noise that it states is longer than {least:.3g}: the noise is missing, or not all there"


def length_of(norm: float, update: Update, plan: Plan, *, coordinates: int) -> Length:
    """How long an update of this norm is. The stated noise multiplier has no part in it: a plan's budget asks the same of all
    institutions, and one that states a larger one must not gain by it.
    """
    unit = update.privacy.model_copy(update={"noise_multiplier": 1.0})
    std = None if plan.privacy.mechanism == "none" else noise_std(unit, plan, update.num_examples)
    return Length(norm, norm / (std * math.sqrt(coordinates)) if std and coordinates else norm)


def over_budget(statement: PrivacyStatement, plan: Plan) -> str | None:
    """By what an update states more than the plan allows; None where it does not."""
    spent, allowed = statement.epsilon_spent, plan.privacy.epsilon
    if allowed is None or spent is None or spent <= allowed * (1 + EPSILON_TOLERANCE):
        return None
    return f"epsilon {spent:.6g} is over the plan's {allowed:g}"


def _differences(statement: PrivacyStatement, plan: Plan) -> Iterator[str]:
    asked = {
        "mechanism": plan.privacy.mechanism,
        "clipping norm": plan.privacy.clipping_norm,
        "sample rate": plan.local.sample_rate,
        "steps": plan.local.steps,
        "target delta": plan.privacy.target_delta,
    }
    for name, wanted in asked.items():
        stated = getattr(statement, name.replace(" ", "_"))
        if stated is None:
            yield f"it states no {name}, the plan's is {wanted}"
        elif stated != wanted:
            yield f"it states {name} {stated}, the plan's is {wanted}"
    hidden = UNITS[plan.privacy.mechanism]
    if statement.unit not in hidden:
        yield f"it states the unit {statement.unit}, {plan.privacy.mechanism} hides a {' or a '.join(hidden)}"


def _noise_fault(statement: PrivacyStatement) -> str | None:
    sigma = statement.noise_multiplier
    if sigma is None:
        return "it states no noise multiplier"
    if not (math.isfinite(sigma) and sigma > 0):
        return f"it states the noise multiplier {sigma}, which is not a positive number"
    return None


def _epsilon_fault(statement: PrivacyStatement, entry: Entry, *, newest: bool) -> str | None:
    spent, before = statement.epsilon_spent, entry.epsilon_spent
    if spent is None:
        return "it states no epsilon"
    if not math.isfinite(spent):
        return "it states an epsilon that is not finite"
    comparable = newest and before is not None and entry.target_delta in (None, statement.target_delta)
    if comparable and before is not None and spent < before * (1 - EPSILON_TOLERANCE):
        return f"it states epsilon {spent:.6g} after {before:.6g}; nothing lowers what was spent"
    return None


def stated(update: Update, entry: Entry, outcome: Outcome) -> dict[str, Any]:
    """What an update says of its institution. Nothing lowers epsilon, and no claim that was refused is kept but for that."""
    statement, spent = update.privacy, _finite(update.privacy.epsilon_spent)
    known: dict[str, Any] = {}
    if spent is not None:
        known["epsilon_spent"] = max(spent, entry.epsilon_spent or 0.0)
    if outcome != "rejected":
        known["num_examples"] = update.num_examples
        known["mechanism"] = statement.mechanism
        known["noise_multiplier"] = _finite(statement.noise_multiplier)
        known["target_delta"] = _finite(statement.target_delta)
    return known


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None
