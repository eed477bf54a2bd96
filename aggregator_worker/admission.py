"""May this update be folded? Decided once, at the edge, from values alone."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from aggregator_worker.defence import STRIKE
from aggregator_worker.statements import Length, is_newest, length_of, norm_fault, over_budget, statement_fault
from shared.compact import Delta, l2_norm
from shared.errors import IncompatibleUpdateError, RejectedMessageError, UnknownInstitutionError
from shared.lineage import Lineage, standing_under
from shared.messages import Entry, ManifestRecord, Outcome, StandingState, Update
from shared.parameters import Shapes, require_shapes
from shared.plan import Plan

Order = Literal["next", "ahead", "duplicate", "outdated"]


class Number(NamedTuple):
    """Which of an institution's updates."""

    incarnation: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Admission:
    """What is to become of an update, and why where it is not aggregated; `length` is known only where it is.

    `strike` is what its rejection would count against its sender.
    """

    outcome: Outcome
    reason: str = ""
    staleness: int = 0
    length: Length | None = None
    strike: int = STRIKE


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


IN_QUARANTINE = "in quarantine"
_LEFT: Mapping[StandingState, str] = {
    "budget_spent": "its budget under this plan is spent",
    "plan_refused": "it has refused this plan",
}


def admit(update: Update, delta: Delta, *, entry: Entry, lineage: Lineage, shapes: Shapes) -> Admission:
    """The outcome of an update that is next in order; `entry` is its institution's.

    A value, not an error: whatever is wrong with the content, the update's number is settled.
    """
    head, plan = lineage.head, lineage.plan
    if head is None or plan is None:
        raise ValueError("a lineage without head or plan admits nothing")
    if entry.quarantined:
        return Admission("rejected", IN_QUARANTINE)
    staleness, stale = _staleness(update, head, plan, lineage.bases)
    if stale is not None:
        return Admission("stale", stale)
    left = standing_under(entry, update.plan_hash) if is_newest(update.sequence, entry) else None
    if left is not None:
        return Admission("over_budget", _LEFT[left], staleness)
    return _judged(update, delta, staleness, entry=entry, plan=plan, shapes=shapes)


def _staleness(update: Update, head: ManifestRecord, plan: Plan, bases: Mapping[int, str]) -> tuple[int, str | None]:
    """How many versions were made since the base, and why that update comes too late."""
    staleness, reason = head.manifest.version - update.base_version, None
    if head.manifest.phase == "finished":
        reason = "the run is finished"
    elif update.plan_hash != head.manifest.plan_hash:
        reason = "made under another plan"
    elif not 0 <= staleness <= plan.aggregation.staleness.max_staleness:
        reason = f"staleness {staleness} is not between 0 and the maximum"
    elif bases.get(update.base_version) != update.base_hash:
        reason = "its base is not in the lineage"
    return staleness, reason


def _judged(update: Update, delta: Delta, staleness: int, *, entry: Entry, plan: Plan, shapes: Shapes) -> Admission:
    """What is to become of an update that is not too late, by what it says and holds."""
    fault = _form_fault(update, delta, entry=entry, plan=plan, shapes=shapes)
    if fault is not None:
        return Admission("rejected", fault[:200], staleness)
    norm, coordinates = l2_norm(delta), sum(math.prod(shape) for shape in shapes.values())
    fault = norm_fault(norm, update, plan, coordinates=coordinates)
    if fault is not None:
        return Admission("rejected", fault, staleness)
    too_much = over_budget(update.privacy, plan)
    if too_much is not None:
        return Admission("over_budget", too_much, staleness)
    return Admission("aggregated", "", staleness, length_of(norm, update, plan, coordinates=coordinates))


def _form_fault(update: Update, delta: Delta, *, entry: Entry, plan: Plan, shapes: Shapes) -> str | None:
    try:
        require_shapes(delta, shapes)
    except IncompatibleUpdateError as error:
        return str(error)
    return statement_fault(update, entry, plan)
