"""Every message of fedqueue as a frozen value. docs/wire-format.md describes them for other languages."""

import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError

from shared import codec
from shared.compact import Delta, Scaled
from shared.errors import MalformedMessageError
from shared.parameters import Parameters
from shared.plan import Frozen, Mechanism, Plan

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
HashOrNone = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
Pseudonym = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
RunId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
InstitutionId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
HexFloat = Annotated[str, Field(pattern=r"^-?0x[01]\.[0-9a-f]+p[+-][0-9]+$")]
Count = Annotated[int, Field(ge=0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
REASON_CHARACTERS = 200
Reason = Annotated[str, Field(max_length=REASON_CHARACTERS)]
OperationId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
KEPT_OPERATIONS = 256
"""How many operation ids a whole manifest lists, so that a redelivered order has no effect."""
Metrics = Annotated[dict[Annotated[str, Field(max_length=40)], float | None], Field(max_length=64)]
SMALL_BYTES = 2**16
"""The most that the fields of an institution's message take; only its tensors are larger."""
Phase = Literal["running", "paused", "finished"]
StandingState = Literal["plan_refused", "budget_spent"]
Unit = Literal["record", "person", "institution"]
Outcome = Literal["aggregated", "stale", "rejected", "over_budget", "lost"]


def pseudonym(run_secret: bytes, institution: str) -> str:
    """How manifests name an institution: HMAC-SHA256(run secret, institution), cut to 16 hexadecimal digits."""
    return hmac.new(run_secret, institution.encode(), hashlib.sha256).hexdigest()[:16]


class PrivacyStatement(Frozen):
    """What an update cost its institution. `epsilon_spent` counts everything reserved so far, this update included.

    `unit` is whose presence it hides: neighbouring datasets differ by one of them, added or removed.
    """

    mechanism: Mechanism
    unit: Unit | None = None
    clipping_norm: float | None = None
    noise_multiplier: float | None = None
    sample_rate: float | None = None
    steps: Count = 0
    epsilon_spent: Annotated[float, Field(ge=0)] | None = None
    target_delta: float | None = None


class Update(Frozen):
    """One institution's noised delta (trained minus base; the aggregator adds it). The tensors travel beside these fields."""

    run_id: RunId
    institution: InstitutionId
    incarnation: Annotated[int, Field(ge=1)]
    sequence: Annotated[int, Field(ge=1)]
    base_version: Count
    base_hash: Hash
    plan_hash: Hash
    num_examples: Annotated[int, Field(ge=1)]
    privacy: PrivacyStatement


class Hello(Frozen):
    """Sent at every start of a client worker; the next manifest echoes `nonce` in the institution's entry.

    A nonce is above every earlier one of its institution, as hexadecimal digits.
    """

    run_id: RunId
    institution: InstitutionId
    incarnation: Annotated[int, Field(ge=1)]
    head_sequence: Count
    head_hash: HashOrNone
    nonce: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    num_examples: Annotated[int, Field(ge=1)]


class Report(Frozen):
    """Noised metrics of a global model on the institution's own validation rows, and what releasing them cost."""

    run_id: RunId
    institution: InstitutionId
    incarnation: Annotated[int, Field(ge=1)]
    version: Count
    model_hash: Hash
    metrics: Metrics
    epsilon: Annotated[float, Field(ge=0)]


class Standing(Frozen):
    """Why an institution trains no more under a plan: its own policy refuses it, or its budget is spent.

    `limit` names the policy's setting, or the budget, that was reached.
    """

    run_id: RunId
    institution: InstitutionId
    incarnation: Annotated[int, Field(ge=1)]
    plan_hash: Hash
    state: StandingState
    limit: Annotated[str, Field(max_length=40)]
    reason: Reason


class Control(Frozen):
    """A hint to one institution; what binds is in the manifest."""

    run_id: RunId
    incarnation: Count
    sequence: Count
    outcome: Literal["rejected", "stale", "over_budget", "lost"]
    reason: Reason


class Operation(Frozen):
    """An operator's order to the leader; a manifest names its id once it is applied or refused."""

    run_id: RunId
    operation_id: OperationId
    kind: Literal["pause", "resume", "stop", "admit", "remove", "quarantine", "release", "roll-back", "requeue", "change-plan"]
    arguments: dict[str, Any] = Field(default_factory=dict)


class Letter(Frozen):
    """A dead letter, as the arguments of the order to requeue it. `headers` are the letter's own."""

    author: InstitutionId
    kind: Annotated[str, Field(max_length=40)]
    message_id: Annotated[str, Field(max_length=200)]
    headers: dict[str, int | str | bool]
    body: bytes


class Claim(Frozen):
    """An aggregator's claim to lead; it counts only if its epoch is above every earlier one in stream order.

    `after` is the offset of the last record that the claimant had read: its epoch is above every claim up to there. So a
    reader that has read on from there knows all claims that matter, and one that started later does not.
    """

    run_id: RunId
    epoch: Annotated[int, Field(ge=1)]
    claimant: Annotated[str, Field(max_length=200)]
    after: Annotated[int, Field(ge=-1)]


class BlobName(Frozen):
    """A model or state, by its content."""

    hash: Hash
    size: Annotated[int, Field(ge=1)]


class Location(Frozen):
    """Where a blob's first chunk stands in its stream, and how many chunks it has."""

    offset: Count
    chunks: Annotated[int, Field(ge=1)]


class Settlement(Frozen):
    """What became of one update. Weight and scale are hexadecimal floats, so that a replay gives the same bits."""

    institution: Pseudonym
    incarnation: Annotated[int, Field(ge=1)]
    sequence: Annotated[int, Field(ge=1)]
    hash: HashOrNone
    outcome: Outcome
    reason: Reason = ""
    base_version: Count = 0
    base_hash: HashOrNone = ""
    staleness: Count = 0
    weight: HexFloat = "0x0.0p+0"
    scale: HexFloat = "0x1.0000000000000p+0"


class Counters(Frozen):
    """How an institution's messages ended, since its admission."""

    aggregated: Count = 0
    stale: Count = 0
    rejected: Count = 0
    over_budget: Count = 0
    lost: Count = 0
    duplicate: Count = 0


class Account(Frozen):
    """An institution's part in the aggregator's clock, which counts cycles: arrivals over the number of those that count.

    `since_cycles` and `since_credit` are the clock's cycles and credit per example at its last arrival, or when it joined;
    `carry` is weight that was earned and not spent; `interval` the usual number of cycles between its updates, 0 before two.
    """

    since_cycles: Finite = 0.0
    since_credit: Finite = 0.0
    carry: Finite = 0.0
    interval: Finite = 0.0


class Entry(Frozen):
    """One institution in the federation's table. `watermark` is the last sequence settled; `last_hash` that update's hash.

    `standing` is what the institution said of the plan `standing_plan`, and has no meaning under another one. One that is not
    `active` was silent for long; its next message makes it active again. `strikes` is what it has against it, in halves.
    With a `signing_key` it must sign everything; both are public keys of 32 bytes, in hexadecimal.
    """

    incarnation: Annotated[int, Field(ge=1)]
    watermark: Count = 0
    last_hash: HashOrNone = ""
    epsilon_spent: float | None = None
    target_delta: float | None = None
    mechanism: Mechanism | None = None
    noise_multiplier: float | None = None
    standing: StandingState | None = None
    standing_limit: Annotated[str, Field(max_length=40)] = ""
    standing_plan: HashOrNone = ""
    num_examples: Annotated[int, Field(ge=1)] | None = None
    nonce: str = ""
    active: bool = True
    removed: bool = False
    quarantined: bool = False
    strikes: Count = 0
    account: Account = Account()
    total_weight: HexFloat = "0x0.0p+0"
    counters: Counters = Counters()
    signing_key: HashOrNone = ""
    sealing_key: HashOrNone = ""


class OperationOutcome(Frozen):
    """What became of an operator's order."""

    operation_id: OperationId
    kind: str
    applied: bool
    reason: Reason = ""


class Manifest(Frozen):
    """The content of one link of the lineage; its hash names it. `plan` and `table` are whole where `whole` is set;
    elsewhere `plan` is None when unchanged, `table` holds the changed entries only and `operation_ids` is empty."""

    run_id: RunId
    version: Count
    previous: HashOrNone
    model: BlobName
    state: BlobName | None
    plan_hash: Hash
    plan: Plan | None
    phase: Phase
    phase_reason: Reason
    settled: list[Settlement]
    whole: bool
    table: dict[Pseudonym, Entry]
    scalars: dict[str, HexFloat | int | str]
    operations: list[OperationOutcome]
    operation_ids: Annotated[list[OperationId], Field(max_length=KEPT_OPERATIONS)]
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class ManifestRecord:
    """One copy of a manifest in the stream: `content` is what its hash covers; the rest may differ from copy to copy."""

    epoch: int
    content: bytes
    manifest: Manifest
    hash: str
    model_at: Location
    state_at: Location | None
    best_at: Location | None = None
    signature: str = ""


class _RecordFields(Frozen):
    run_id: RunId
    epoch: Annotated[int, Field(ge=1)]
    content: Annotated[bytes, Field(max_length=64 * 2**20)]
    model_at: Location
    state_at: Location | None
    best_at: Location | None = None
    signature: str


Body = TypeVar("Body", bound=Frozen)


def encode(kind: str, fields: Frozen, tensors: Delta | None = None) -> bytes:
    """The content bytes of a message; the same value gives the same bytes."""
    return codec.encode(kind, fields.model_dump(), tensors)


def parse(body_type: type[Body], kind: str, content: codec.Content) -> Body:
    """Raises MalformedMessageError naming the first field that is wrong, without its value."""
    if content.kind != kind:
        raise MalformedMessageError(f"a message of kind {content.kind[:40]!r} where {kind!r} was expected")
    try:
        return body_type.model_validate(content.fields)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(re.sub(r"[^A-Za-z0-9_-]", "?", str(part))[:40] for part in first["loc"])
        raise MalformedMessageError(f"{kind}: field {place or 'body'}: {first['type']}") from None


def decode(body_type: type[Body], kind: str, body: bytes, *, max_bytes: int) -> Body:
    """A message without tensors, from its bytes."""
    content = codec.decode(body, max_bytes=max_bytes)
    if content.tensors:
        raise MalformedMessageError(f"{kind}: no tensors are expected")
    return parse(body_type, kind, content)


def decode_update(body: bytes | memoryview, *, max_bytes: int) -> tuple[Update, Delta]:
    """An update's fields and its delta; the tensors are read-only views into `body`."""
    content = codec.decode(body, max_bytes=max_bytes, max_fields_bytes=SMALL_BYTES)
    return parse(Update, "update", content), content.tensors


def encode_parts(kind: str, fields: Frozen, tensors: Delta) -> codec.Encoded:
    """As `encode`, for tensors too large to stand in memory twice; they must not change while the result is in use."""
    return codec.encode_parts(kind, fields.model_dump(), tensors)


def encode_model(run_id: str, parameters: Parameters, dtype: codec.Dtype = "float32") -> codec.Encoded:
    """A model blob. Equal parameters of a run give equal bytes, so that the hash names the model."""
    return codec.encode_parts("model", {"run_id": run_id}, parameters, dtype=dtype)


def encode_state(run_id: str, tensors: Parameters) -> codec.Encoded:
    """A state blob: what a successor needs beyond the model blob, to the bit."""
    return codec.encode_parts("state", {"run_id": run_id}, tensors)


def decode_model(body: bytes | memoryview, *, max_bytes: int, kind: Literal["model", "state"] = "model") -> Parameters:
    """The parameters of a model or state blob; those of float32 are read-only views into `body`."""
    content = codec.decode(body, max_bytes=max_bytes)
    if content.kind != kind:
        raise MalformedMessageError(f"a message of kind {content.kind[:40]!r} where {kind!r} was expected")
    arrays = {name: tensor for name, tensor in content.tensors.items() if not isinstance(tensor, Scaled)}
    if len(arrays) < len(content.tensors):
        raise MalformedMessageError(f"{kind}: a tensor has a scale; only those of updates may")
    return arrays


def manifest_record(
    epoch: int, manifest: Manifest, model_at: Location, state_at: Location | None = None, best_at: Location | None = None
) -> ManifestRecord:
    """A record ready to be published under `epoch`."""
    content = encode("manifest", manifest)
    return ManifestRecord(epoch, content, manifest, codec.content_hash(content), model_at, state_at, best_at)


def encode_record(record: ManifestRecord) -> bytes:
    """What is published on the lineage for one manifest."""
    fields = _RecordFields(
        run_id=record.manifest.run_id,
        epoch=record.epoch,
        content=record.content,
        model_at=record.model_at,
        state_at=record.state_at,
        best_at=record.best_at,
        signature=record.signature,
    )
    return encode("record", fields)


def decode_manifest(content: bytes, *, max_bytes: int) -> Manifest:
    """A manifest from its content bytes."""
    return decode(Manifest, "manifest", content, max_bytes=max_bytes)


def decode_record(body: bytes, *, max_bytes: int) -> ManifestRecord:
    """A record as it was read from the lineage."""
    fields = decode(_RecordFields, "record", body, max_bytes=max_bytes)
    manifest = decode_manifest(fields.content, max_bytes=max_bytes)
    if manifest.run_id != fields.run_id:
        raise MalformedMessageError("a record and its manifest name different runs")
    digest = codec.content_hash(fields.content)
    return ManifestRecord(
        fields.epoch, fields.content, manifest, digest, fields.model_at, fields.state_at, fields.best_at, fields.signature
    )
