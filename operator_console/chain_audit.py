"""A lineage checked link by link, from its first record on: more than its readers check while they follow it. Pure."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from aggregator_worker.roll_back import RollBack, rolled_back
from operator_console.table_audit import TableAudit
from shared import lineage, messages
from shared.broker import Delivery
from shared.errors import FederationError, RejectedMessageError
from shared.messages import KEPT_OPERATIONS, Claim, Manifest, ManifestRecord


class BrokenLineageError(FederationError):
    """Do not go on with this run before a person has looked: a link of its lineage does not hold."""


@dataclass(slots=True)
class Found:
    """What a lineage holds. Where it is `trimmed`, retention has cut its beginning, or the broker that had it is lost."""

    records: int = 0
    manifests: int = 0
    first_version: int = 0
    last_version: int = 0
    trimmed: bool = False
    epochs: int = 0
    lost_claims: int = 0
    repeats: int = 0
    deposed: int = 0
    forged: int = 0
    first_at_ms: int = 0
    last_at_ms: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    institutions: set[str] = field(default_factory=set)
    roll_backs: dict[int, RollBack] = field(default_factory=dict)


@dataclass(slots=True)
class ChainAudit:
    """Takes a lineage's records in their order. `start` is the offset of the first one that is still there."""

    start: int = 0
    found: Found = field(default_factory=Found)
    head: ManifestRecord | None = None
    _known: lineage.Lineage = field(default_factory=lineage.Lineage)
    _tables: TableAudit | None = None
    _bases: dict[int, str] = field(default_factory=dict)
    _orders: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._known = lineage.Lineage(start=self.start)
        self.found.trimmed = self.start > 0

    def take(self, delivery: Delivery) -> None:
        """One record. Raises BrokenLineageError naming the first thing that does not hold."""
        self.found.records += 1
        if delivery.fault is not None:
            self.found.forged += 1
            return
        try:
            if delivery.message.kind == "claim":
                self._take_claim(messages.decode(Claim, "claim", delivery.message.body, max_bytes=len(delivery.message.body)))
            else:
                record = messages.decode_record(delivery.message.body, max_bytes=len(delivery.message.body))
                self._take_record(record, delivery)
        except RejectedMessageError as error:
            raise BrokenLineageError(f"{_place(delivery)} cannot be read: {error}") from error

    def _take_claim(self, claim: Claim) -> None:
        self._known, verdict = lineage.fold_claim(self._known, claim)
        self.found.epochs += verdict == "claim"
        self.found.lost_claims += verdict != "claim"
        # a run is founded under epoch 1: whoever claims a later one first of all puts the run onto another broker
        self.found.trimmed |= self.found.records == 1 and claim.epoch > 1

    def _take_record(self, record: ManifestRecord, delivery: Delivery) -> None:
        if delivery.message.headers.get("content", record.hash) != record.hash:
            raise BrokenLineageError(f"{_place(delivery)} does not hold the content that its header names")
        before = self.head
        self._known, verdict = lineage.fold(self._known, record)
        if before is None and self.found.trimmed and verdict != "extended":
            return  # the beginning is gone: nothing can be said of it yet
        if record.epoch < self._known.epoch:
            self.found.deposed += 1
        elif verdict == "repeated":
            self.found.repeats += 1
        else:
            for complaint in self._complaints(record, before):
                raise BrokenLineageError(f"{_place(delivery)}, version {record.manifest.version}: {complaint}")
            self._note(record, delivery)

    def _complaints(self, record: ManifestRecord, before: ManifestRecord | None) -> Iterator[str]:
        """Everything wrong with a link, the most telling first."""
        if record.epoch != self._known.epoch:
            yield f"epoch {record.epoch} was never claimed"
        if before is None:
            yield from self._first(record)
        else:
            yield from _follows(record, before)
        yield from self._tables_of(record, before)
        if before is not None:
            yield from _made_of_something(record.manifest, before.manifest)
        if self._known.head is None or self._known.head.hash != record.hash:
            yield "readers do not take it for a part of the chain"
        yield from self._operation_ids(record)

    def _first(self, record: ManifestRecord) -> Iterator[str]:
        if not self.found.trimmed and (record.manifest.version or record.manifest.previous):
            yield "the first manifest of a run is version 0 without a predecessor"

    def _tables_of(self, record: ManifestRecord, before: ManifestRecord | None) -> Iterator[str]:
        manifest = record.manifest
        if self._tables is not None and before is not None:
            yield from self._tables.complaints(manifest, head_version=before.manifest.version, bases=self._bases)
        elif manifest.whole:
            self._tables = TableAudit(dict(manifest.table), whole=not self.found.trimmed)

    def _operation_ids(self, record: ManifestRecord) -> Iterator[str]:
        manifest = record.manifest
        done = [*self._orders, *(done.operation_id for done in manifest.operations)][-KEPT_OPERATIONS:]
        if manifest.whole and manifest.operation_ids != done and (self.head is not None or not self.found.trimmed):
            yield "its list of the orders that were followed is not that of the manifests before it"
        self._orders = list(manifest.operation_ids) if manifest.whole else done

    def _note(self, record: ManifestRecord, delivery: Delivery) -> None:
        manifest, found = record.manifest, self.found
        at_ms = int(delivery.message.headers.get("at_ms", 0))
        if self.head is None:
            found.first_version, found.first_at_ms = manifest.version, at_ms
        self.head = record
        self._bases[manifest.version] = manifest.model.hash
        found.manifests += 1
        found.last_version, found.last_at_ms = manifest.version, at_ms
        found.outcomes.update(settlement.outcome for settlement in manifest.settled)
        found.institutions |= manifest.table.keys()
        back = rolled_back(manifest)
        found.roll_backs |= {manifest.version: back} if back else {}


def _follows(record: ManifestRecord, before: ManifestRecord) -> Iterator[str]:
    manifest, former = record.manifest, before.manifest
    folds = any(settlement.outcome == "aggregated" for settlement in manifest.settled)
    if manifest.run_id != former.run_id:
        yield f"it belongs to run {manifest.run_id}, the chain to {former.run_id}"
    if manifest.previous != before.hash:
        yield f"it follows {manifest.previous[:12] or 'nothing'}, and the chain's head is {before.hash[:12]}"
    if manifest.version not in (former.version, former.version + 1):
        yield f"version {former.version} comes before it"
    if manifest.version == former.version and (folds or (manifest.model, manifest.state) != (former.model, former.state)):
        yield "the model changes without a new version"
    plan_hash = manifest.plan.hash if manifest.plan is not None else former.plan_hash
    if manifest.plan_hash != plan_hash or (manifest.whole and manifest.plan is None):
        yield "the plan is not the one that its hash names"


def _made_of_something(manifest: Manifest, former: Manifest) -> Iterator[str]:
    """A version is made of updates or of a roll-back, never of both or of neither."""
    back, folds = rolled_back(manifest), any(settlement.outcome == "aggregated" for settlement in manifest.settled)
    if manifest.version == former.version + 1 and back is None and not folds:
        yield "a new version is made of no update, and of no order"
    if back is not None and (folds or manifest.version == former.version):
        yield "a roll-back makes a version of its own, and folds nothing"
    if back is not None and back.to_version > former.version:
        yield f"it is rolled back to version {back.to_version}, and {former.version} is before it"


def _place(delivery: Delivery) -> str:
    return f"the record at offset {delivery.offset}"
