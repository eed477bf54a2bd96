"""The lineage: what of `fl.lineage` is valid. One pure fold, the same for aggregators, institutions and operators.

A manifest is valid if its epoch is the highest claimed so far and it either repeats the head's content (the head stays,
this copy's epoch and blob locations replace the old ones) or names the head's hash and has its version or the next. The
first of a run is version 0 without a predecessor. A reader that starts in the middle trusts nothing before it meets a
claim followed by a manifest of that epoch, or two manifests of one epoch, the second naming the first. Such a claim must
have been made by an aggregator that knew everything before the reader's start (`Claim.after`): else a higher claim may be
hidden there, and a deposed leader's last manifest behind it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from shared.messages import KEPT_OPERATIONS, BlobName, Claim, Entry, Manifest, ManifestRecord, StandingState
from shared.plan import Plan

KEPT_BASES = 4000
"""How many versions' model hashes a reader remembers: enough to know an update's base."""
KEPT_HASHES = 64
"""How many hashes of the chain a reader remembers: enough to place a checkpoint or a watermark's manifest."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """What a reader knows after the records it has folded."""

    start: int = 0
    """The offset of the first record that this reader has read."""
    epoch: int = 0
    """The highest epoch claimed."""
    claims: bool = False
    """Whether that claim itself was read and no higher one can be hidden before `start`."""
    head: ManifestRecord | None = None
    candidate: ManifestRecord | None = None
    """The last manifest seen while nothing can be trusted yet."""
    table: Mapping[str, Entry] | None = None
    """Institutions by pseudonym; None until a whole table was on the trusted chain."""
    plan: Plan | None = None
    hashes: tuple[str, ...] = ()
    """The chain's last hashes, oldest first, the head's last."""
    bases: Mapping[int, str] = field(default_factory=dict)
    """Model hash by version, for the chain's last versions."""
    operation_ids: tuple[str, ...] = ()
    """The last operations settled, oldest first."""

    @property
    def complete(self) -> bool:
        """Whether a reader can work from it: a trusted head, the whole table and the plan."""
        return self.head is not None and self.table is not None and self.plan is not None


Verdict = Literal["claim", "extended", "repeated", "candidate", "ignored"]


def standing_under(entry: Entry, plan_hash: str) -> StandingState | None:
    """Why an institution gives no more updates under a plan; None while it may."""
    return entry.standing if entry.standing_plan == plan_hash else None


def takes_part(entry: Entry, plan_hash: str) -> bool:
    """Whether others count on an institution's updates under a plan: an active member, not quarantined, that has not left it."""
    return entry.active and not entry.removed and not entry.quarantined and standing_under(entry, plan_hash) is None


def version_zero(run_id: str, plan: Plan, model: BlobName, table: Mapping[str, Entry]) -> Manifest:
    """A run's first manifest: its plan, the initial model and the institutions that begin, by pseudonym."""
    return Manifest(
        run_id=run_id,
        version=0,
        previous="",
        model=model,
        state=None,
        plan_hash=plan.hash,
        plan=plan,
        phase="running",
        phase_reason="",
        settled=[],
        whole=True,
        table=dict(table),
        scalars={},
        operations=[],
        operation_ids=[],
        metrics={},
    )


def fold_claim(lineage: Lineage, claim: Claim) -> tuple[Lineage, Verdict]:
    """A claim counts only if its epoch is higher than every earlier one."""
    if claim.epoch <= lineage.epoch:
        return lineage, "ignored"
    known = lineage.head is not None or lineage.claims or claim.after + 1 >= lineage.start
    return replace(lineage, epoch=claim.epoch, claims=known, candidate=None), "claim"


def fold(lineage: Lineage, record: ManifestRecord) -> tuple[Lineage, Verdict]:
    """The lineage after one more manifest record, and what that record was to it."""
    if lineage.head is None:
        return _fold_untrusted(lineage, record)
    if record.epoch != lineage.epoch:
        return lineage, "ignored"
    if record.hash == lineage.head.hash:
        return replace(lineage, head=record), "repeated"
    if not _follows(record, lineage.head):
        return lineage, "ignored"
    return _extend(lineage, record), "extended"


def _fold_untrusted(lineage: Lineage, record: ManifestRecord) -> tuple[Lineage, Verdict]:
    if record.epoch < lineage.epoch:
        return lineage, "ignored"
    if lineage.claims and record.epoch == lineage.epoch:
        return _trust(lineage, record), "extended"
    if lineage.claims:
        return lineage, "ignored"  # of an epoch that nobody claimed
    first = lineage.candidate
    if first is not None and first.epoch == record.epoch and _follows(record, first):
        return _extend(_trust(lineage, first), record), "extended"
    return replace(lineage, epoch=record.epoch, candidate=record), "candidate"


def _follows(record: ManifestRecord, head: ManifestRecord) -> bool:
    steps = record.manifest.version - head.manifest.version
    return record.manifest.previous == head.hash and steps in (0, 1) and record.manifest.run_id == head.manifest.run_id


def _trust(lineage: Lineage, record: ManifestRecord) -> Lineage:
    return _extend(replace(lineage, epoch=record.epoch, candidate=None), record)


def _extend(lineage: Lineage, record: ManifestRecord) -> Lineage:
    manifest = record.manifest
    table = lineage.table
    if manifest.whole:
        table = manifest.table
    elif table is not None and manifest.table:
        table = {**table, **manifest.table}
    plan = manifest.plan if manifest.plan is not None else lineage.plan
    known = tuple(manifest.operation_ids) if manifest.whole else lineage.operation_ids
    known += tuple(done.operation_id for done in manifest.operations if done.operation_id not in known)
    return replace(
        lineage,
        head=record,
        table=table,
        plan=plan,
        hashes=(*lineage.hashes, record.hash)[-KEPT_HASHES:],
        bases=_with_base(lineage.bases, manifest),
        operation_ids=known[-KEPT_OPERATIONS:],
    )


def _with_base(bases: Mapping[int, str], manifest: Manifest) -> Mapping[int, str]:
    known = {**bases, manifest.version: manifest.model.hash}
    known.pop(manifest.version - KEPT_BASES, None)  # versions have no gap
    return known
