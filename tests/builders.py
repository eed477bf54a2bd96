"""Values that tests build messages, plans and lineages from; every argument has a default that is easy to tell apart."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from aggregator_worker.federation import Federation
from aggregator_worker.server_state import ServerState
from shared import codec, lineage, messages
from shared.chunks import split
from shared.compact import Delta
from shared.lineage import Lineage
from shared.messages import (
    BlobName,
    Claim,
    Entry,
    Hello,
    Location,
    Manifest,
    ManifestRecord,
    Operation,
    PrivacyStatement,
    Standing,
    Update,
    pseudonym,
)
from shared.parameters import Parameters
from shared.plan import AggregationPlan, Ending, Limits, LocalPlan, Plan, PrivacyPlan

RUN = "ab" * 8
SECRET = b"run secret"
NAMES = ("bank-a", "bank-b", "bank-c")
NO_NOISE = PrivacyPlan(mechanism="none", epsilon=None)


def a_plan(
    aggregation: Mapping[str, Any] | None = None, *, privacy: PrivacyPlan = NO_NOISE, ending: Ending | None = None, **rest: Any
) -> Plan:
    """A plan without noise, of a toy task. Among three institutions a fresh update weighs its share of the data."""
    rest.setdefault("local", LocalPlan(updates=1000))
    asked = dict(aggregation or {})
    simple = {
        "rule": "fedbuff",
        "largest_share": 1.0,
        "server_learning_rate": (asked.get("buffer_size", 1) if asked.get("exact_buffer") else 1) / 3,
    }
    return Plan(
        task="toy",
        task_hash="0" * 64,
        aggregation=AggregationPlan(**{**simple, **asked}),
        privacy=privacy,
        ending=ending or Ending(),
        **rest,
    )


def small_limits(**changes: int) -> Limits:
    """Limits that a test can pass with little data."""
    return Limits(**{"update_bytes": 256 * 1024, "chunk_bytes": 16 * 1024, **changes})


def array(*values: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A float32 vector."""
    return np.array(values, np.float32)


def name_of(institution: str) -> str:
    """The institution's pseudonym."""
    return pseudonym(SECRET, institution)


BY_PSEUDONYM = {name_of(name): name for name in NAMES}


def a_table(entries: Mapping[str, Entry] | None = None) -> dict[str, Entry]:
    """A table by pseudonym, from entries by institution."""
    entries = entries or {institution: Entry(incarnation=1, num_examples=100) for institution in NAMES}
    return {name_of(institution): entry for institution, entry in entries.items()}


def an_update(institution: str = "bank-a", sequence: int = 1, *, base: ManifestRecord | None = None, **changes: Any) -> Update:
    """An update on the given manifest's model."""
    manifest = base.manifest if base else None
    return Update(
        **{
            "run_id": RUN,
            "institution": institution,
            "incarnation": 1,
            "sequence": sequence,
            "base_version": manifest.version if manifest else 0,
            "base_hash": manifest.model.hash if manifest else "a" * 64,
            "plan_hash": manifest.plan_hash if manifest else a_plan().hash,
            "num_examples": 100,
            "privacy": PrivacyStatement(mechanism="none"),
            **changes,
        }
    )


def a_statement(plan: Plan, epsilon_spent: float = 0.5, **changes: Any) -> PrivacyStatement:
    """What an honest update under a plan states."""
    private = plan.privacy.mechanism != "none"
    unit = "institution" if plan.privacy.mechanism == "update-gaussian" else "record"
    noise = {"unit": unit, "noise_multiplier": 1.25, "epsilon_spent": epsilon_spent} if private else {}
    fields = {"clipping_norm": plan.privacy.clipping_norm, "target_delta": plan.privacy.target_delta} | noise
    training = {"sample_rate": plan.local.sample_rate, "steps": plan.local.steps}
    return PrivacyStatement(**{"mechanism": plan.privacy.mechanism, **fields, **training, **changes})


def a_standing(institution: str = "bank-a", **changes: Any) -> Standing:
    """An institution that has spent its budget."""
    fields = {"incarnation": 1, "plan_hash": a_plan().hash, "state": "budget_spent", "limit": "epsilon", "reason": "spent"}
    return Standing(**{"run_id": RUN, "institution": institution, **fields, **changes})


def a_hello(institution: str = "bank-a", **changes: Any) -> Hello:
    """A hello of a worker that has sent nothing yet."""
    fields = {"incarnation": 1, "head_sequence": 0, "head_hash": "", "nonce": "12" * 8, "num_examples": 100}
    return Hello(**{"run_id": RUN, "institution": institution, **fields, **changes})


def an_operation(kind: str, number: int = 1, **arguments: Any) -> Operation:
    """An operator's order with an id made of its number."""
    return Operation(run_id=RUN, operation_id=f"{number:032x}", kind=kind, arguments=arguments)


def a_blob(mark: str) -> BlobName:
    """The name of a model that nobody needs to read."""
    return BlobName(hash=codec.content_hash(mark.encode()), size=len(mark))


def a_manifest(version: int = 0, *, previous: str = "", mark: str = "", **changes: Any) -> Manifest:
    """A whole manifest; `mark` names its model, so that equal versions can differ."""
    plan = a_plan()
    return Manifest(
        **{
            "run_id": RUN,
            "version": version,
            "previous": previous,
            "model": a_blob(mark or f"model {version}"),
            "state": None,
            "plan_hash": plan.hash,
            "plan": plan,
            "phase": "running",
            "phase_reason": "",
            "settled": [],
            "whole": True,
            "table": a_table(),
            "scalars": {},
            "operations": [],
            "operation_ids": [],
            "metrics": {},
            **changes,
        }
    )


def a_record(
    version: int = 0, *, after: ManifestRecord | None = None, epoch: int = 1, offset: int = 0, **changes: Any
) -> ManifestRecord:
    """A manifest's record that follows another one."""
    manifest = a_manifest(version, previous=after.hash if after else "", **changes)
    return messages.manifest_record(epoch, manifest, Location(offset=offset, chunks=1))


def a_claim(epoch: int, claimant: str = "leader", *, after: int = -1) -> Claim:
    """A claim to lead."""
    return Claim(run_id=RUN, epoch=epoch, claimant=claimant, after=after)


def folded(*items: Claim | ManifestRecord, start: Lineage | None = None) -> Lineage:
    """What a reader knows after these."""
    known = start or Lineage()
    for item in items:
        known, _ = lineage.fold_claim(known, item) if isinstance(item, Claim) else lineage.fold(known, item)
    return known


def a_federation(model: Parameters, plan: Plan | None = None, table: Mapping[str, Entry] | None = None) -> Federation:
    """A federation at version 0."""
    plan = plan or a_plan()
    content = messages.encode_model(RUN, model, plan.broadcast)
    blob = BlobName(hash=content.hash, size=content.size)
    zero = a_record(0, model=blob, plan=plan, plan_hash=plan.hash, table=a_table(table))
    return Federation(folded(a_claim(1), zero), ServerState.of(plan, model))


def as_messages(body: Update | Hello | Standing, delta: Delta | None = None, *, chunk_bytes: int = 2**20) -> list[Any]:
    """An institution's message as its worker publishes it."""
    kind = type(body).__name__.lower()
    content = messages.encode(kind, body, delta)
    return list(split(content, kind=kind, run_id=body.run_id, identity=identity_of(body), chunk_bytes=chunk_bytes))


def identity_of(body: Update | Hello | Standing) -> str:
    """The id in the chunk headers."""
    if isinstance(body, Standing):
        return f"standing-{'12' * 8}-{body.plan_hash[:16]}"
    return f"{body.institution}/{body.incarnation}/{body.sequence if isinstance(body, Update) else body.nonce}"


def commit(federation: Federation, *, epoch: int = 1) -> ManifestRecord:
    """Settles what is pending, as the worker does, without a broker."""
    federation.finish_version()
    content = messages.encode_model(RUN, federation.state.model)
    manifest = federation.next_manifest(BlobName(hash=content.hash, size=content.size), None, {})
    record = messages.manifest_record(epoch, manifest, Location(offset=0, chunks=1))
    federation.advance(folded(record, start=federation.lineage))
    return record
