"""May this update be folded? Decided once, at the edge, from values alone."""

import math
import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

from shared.compact import Delta, l2_norm
from shared.errors import IncompatibleUpdateError, RejectedMessageError, UnknownInstitutionError
from shared.lineage import Lineage
from shared.messages import Entry, Outcome, PrivacyStatement, Update
from shared.parameters import Shapes, require_shapes
from shared.plan import Plan, PrivacyPlan

EPSILON_TOLERANCE = 1e-6

Order = Literal["next", "ahead", "duplicate", "outdated"]


class Number(NamedTuple):
    """Which of an institution's updates."""

    incarnation: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Admission:
    """What is to become of an update, and why where it is not aggregated."""

    outcome: Outcome
    reason: str = ""
    staleness: int = 0


class ReusedIdError(RejectedMessageError):
    """An id came again with other content: somebody else writes as this institution, or its ledger was copied."""


def check_author(update_run: str, institution: str, *, user_id: str | None, queue_owner: str, run_id: str) -> None:
    """The broker says who speaks; the message must agree, and be of this run."""
    if user_id != queue_owner:
        raise UnknownInstitutionError(f"the broker-validated user is {user_id!r}, the queue belongs to {queue_owner!r}")
    if institution != queue_owner:
        raise UnknownInstitutionError(f"the message names {institution[:64]!r}, its author is {queue_owner!r}")
    if update_run != run_id:
        raise IncompatibleUpdateError(f"the message belongs to run {update_run!r}, this is {run_id!r}")


def number_in(identity: str, *, institution: str) -> Number | None:
    """The number in an upload's id, `institution/incarnation/sequence`; None where it is none of this sender's."""
    claimed = re.fullmatch(r"([^/]+)/([1-9][0-9]{0,8})/([1-9][0-9]{0,17})", identity)
    return Number(int(claimed[2]), int(claimed[3])) if claimed and claimed[1] == institution else None


def order(incarnation: int, sequence: int, content: str, entry: Entry) -> Order:
    """Where an id stands against what was settled.

    Raises ReusedIdError when a settled id comes with another hash, UnknownInstitutionError for an incarnation that no
    operator issued: a new one starts a new ledger, so an institution must not give it to itself.
    """
    if incarnation < entry.incarnation:
        return "outdated"
    require_issued(incarnation, entry)
    if sequence > entry.watermark:
        return "next" if sequence == entry.watermark + 1 else "ahead"
    if sequence == entry.watermark and entry.last_hash and content != entry.last_hash:
        raise ReusedIdError(f"update {incarnation}/{sequence} came again with another content")
    return "duplicate"


def require_issued(incarnation: int, entry: Entry) -> None:
    """Raises UnknownInstitutionError for an incarnation above the one that the table holds."""
    if incarnation > entry.incarnation:
        raise UnknownInstitutionError(f"incarnation {incarnation} was never issued, {entry.incarnation} is the newest")


def admit(update: Update, delta: Delta, *, lineage: Lineage, shapes: Shapes) -> Admission:
    """The outcome of an update that is next in order.

    A value, not an error: whatever is wrong with the content, the update's number is settled.
    """
    head, plan = lineage.head, lineage.plan
    if head is None or plan is None:
        raise ValueError("a lineage without head or plan admits nothing")
    staleness = head.manifest.version - update.base_version
    if head.manifest.phase == "finished":
        return Admission("stale", "the run is finished")
    if update.plan_hash != head.manifest.plan_hash:
        return Admission("stale", "made under another plan")
    if staleness < 0 or staleness > plan.aggregation.staleness.max_staleness:
        return Admission("stale", f"staleness {staleness} is not between 0 and the maximum")
    if lineage.bases.get(update.base_version) != update.base_hash:
        return Admission("stale", "its base is not in the lineage")
    return _admit_content(update, delta, plan=plan, shapes=shapes, staleness=staleness)


def _admit_content(update: Update, delta: Delta, *, plan: Plan, shapes: Shapes, staleness: int) -> Admission:
    try:
        require_shapes(delta, shapes)
    except IncompatibleUpdateError as error:
        return Admission("rejected", str(error)[:200], staleness)
    if not math.isfinite(l2_norm(delta)):
        return Admission("rejected", "a value is not finite", staleness)
    spent, allowed = update.privacy.epsilon_spent, plan.privacy.epsilon
    if plan.privacy.mechanism != "none" and not _states_what_the_plan_asks(update.privacy, plan.privacy):
        return Admission("rejected", "the privacy statement does not match the plan", staleness)
    if allowed is not None and spent is not None and spent > allowed * (1 + EPSILON_TOLERANCE):
        return Admission("over_budget", f"epsilon {spent:.3f} is over the plan's {allowed:g}", staleness)
    return Admission("aggregated", "", staleness)


def _states_what_the_plan_asks(statement: PrivacyStatement, plan: PrivacyPlan) -> bool:
    private = statement.mechanism != "none" and statement.epsilon_spent is not None
    return private and statement.target_delta == plan.target_delta
