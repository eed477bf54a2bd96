"""The aggregator's state between two commits: the head, the model in the making, and what the next manifest will settle.

No I/O, no clock. The same object serves the worker and the simulator.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from aggregator_worker.admission import Admission, Number
from aggregator_worker.aggregation import buffer_target, share, update_weight
from aggregator_worker.server_state import ServerState
from shared.compact import Delta
from shared.lineage import Lineage
from shared.messages import (
    KEPT_OPERATIONS,
    BlobName,
    Counters,
    Entry,
    Hello,
    Manifest,
    ManifestRecord,
    Metrics,
    OperationOutcome,
    Outcome,
    Phase,
    Settlement,
    Update,
)
from shared.plan import Plan

WHOLE_EVERY = 16
"""Every so many manifests the table is written whole, so that a late reader finds one soon."""


@dataclass(slots=True)
class Pending:
    """What has happened since the head."""

    settled: list[Settlement] = field(default_factory=list)
    changes: dict[str, Entry] = field(default_factory=dict)
    operations: list[OperationOutcome] = field(default_factory=list)
    aggregated: int = 0
    phase: Phase | None = None
    phase_reason: str = ""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to commit."""
        return not (self.settled or self.changes or self.operations or self.phase)


class Federation:
    """The head of the lineage, the state in the making (head plus what was folded since), and the pending settlements."""

    def __init__(self, lineage: Lineage, state: ServerState) -> None:
        self.lineage = lineage
        self.state = state
        self.pending = Pending()
        self._since_whole = WHOLE_EVERY

    @property
    def head(self) -> ManifestRecord:
        """The newest committed manifest."""
        if self.lineage.head is None:
            raise ValueError("a federation starts from a lineage with a head")
        return self.lineage.head

    @property
    def plan(self) -> Plan:
        """The plan in force."""
        if self.lineage.plan is None:
            raise ValueError("a federation starts from a lineage with a plan")
        return self.lineage.plan

    @property
    def table(self) -> dict[str, Entry]:
        """The table as the next manifest will leave it."""
        return {**(self.lineage.table or {}), **self.pending.changes}

    def entry(self, pseudonym: str) -> Entry | None:
        """One institution's entry, pending changes included; None for a stranger or a removed one."""
        entry = self.pending.changes.get(pseudonym) or (self.lineage.table or {}).get(pseudonym)
        return None if entry is None or entry.removed else entry

    def change(self, pseudonym: str, entry: Entry) -> None:
        """Puts an entry of the table into the next manifest."""
        self.pending.changes[pseudonym] = entry

    def settle(self, pseudonym: str, update: Update, content: str, *, admission: Admission, delta: Delta) -> Settlement:
        """Settles one admitted or refused update; folds its delta where it is to be aggregated."""
        weight = 0.0
        if admission.outcome == "aggregated":
            stated = self.table[pseudonym].model_copy(update={"num_examples": update.num_examples})
            data_share = share(update.num_examples, self.table | {pseudonym: stated})
            weight = update_weight(self.plan.aggregation, staleness=admission.staleness, data_share=data_share)
            self.state.fold(delta, weight)
            self.pending.aggregated += 1
        settlement = Settlement(
            institution=pseudonym,
            incarnation=update.incarnation,
            sequence=update.sequence,
            hash=content,
            outcome=admission.outcome,
            reason=admission.reason,
            base_version=update.base_version,
            base_hash=update.base_hash,
            staleness=max(0, admission.staleness),
            weight=weight.hex(),
        )
        self._record(settlement, update)
        return settlement

    def settle_unread(self, pseudonym: str, number: Number, *, outcome: Outcome, reason: str, content: str = "") -> Settlement:
        """Settles a number whose update never came or cannot be read, so that the ones behind it can be folded."""
        settlement = Settlement(
            institution=pseudonym,
            incarnation=number.incarnation,
            sequence=number.sequence,
            hash=content,
            outcome=outcome,
            reason=reason,
        )
        self._record(settlement, None)
        return settlement

    def _record(self, settlement: Settlement, update: Update | None) -> None:
        entry = self.table[settlement.institution]
        counters = entry.counters.model_dump()
        counters[settlement.outcome] += 1
        stated = update.privacy if update else None
        spent = stated.epsilon_spent if stated else None
        newest = settlement.sequence > entry.watermark  # one that was taken back from the dead letters is not
        changed = entry.model_copy(
            update={
                "incarnation": settlement.incarnation,
                "watermark": settlement.sequence if newest else entry.watermark,
                "last_hash": settlement.hash if newest else entry.last_hash,
                "epsilon_spent": max(filter(None, (spent, entry.epsilon_spent)), default=entry.epsilon_spent),
                "target_delta": stated.target_delta if stated else entry.target_delta,
                "num_examples": update.num_examples if update else entry.num_examples,
                "total_weight": (float.fromhex(entry.total_weight) + float.fromhex(settlement.weight)).hex(),
                "counters": Counters(**counters),
            }
        )
        self.pending.settled.append(settlement)
        self.change(settlement.institution, changed)

    def greet(self, pseudonym: str, hello: Hello) -> None:
        """Answers a worker's start: its entry in the next manifest echoes the nonce."""
        echo = {"nonce": hello.nonce, "num_examples": hello.num_examples, "active": True}
        self.change(pseudonym, self.table[pseudonym].model_copy(update=echo))

    def count_duplicate(self, pseudonym: str) -> None:
        """A repeat changes nothing but its counter."""
        entry = self.table[pseudonym]
        counters = entry.counters.model_copy(update={"duplicate": entry.counters.duplicate + 1})
        self.change(pseudonym, entry.model_copy(update={"counters": counters}))

    @property
    def buffer_full(self) -> bool:
        """Whether K updates were folded since the head."""
        return self.pending.aggregated >= buffer_target(self.plan.aggregation, self.table)

    def finish_version(self) -> bool:
        """Completes the state of the next version; False where nothing was aggregated, and the version stays."""
        if self.pending.aggregated:
            self.state.finish_version()
        return self.pending.aggregated > 0

    def next_manifest(self, model: BlobName, wide: BlobName | None, metrics: Metrics) -> Manifest:
        """The manifest that settles everything pending. `metrics` belong to `model`; `wide` names its state blob, if any."""
        head, pending = self.head.manifest, self.pending
        whole = self._since_whole >= WHOLE_EVERY - 1
        phase, reason = self._phase(head)
        return Manifest(
            run_id=head.run_id,
            version=head.version + (1 if pending.aggregated else 0),
            previous=self.head.hash,
            model=model,
            state=wide,
            plan_hash=head.plan_hash,
            plan=self.plan if whole else None,
            phase=phase,
            phase_reason=reason,
            settled=pending.settled,
            whole=whole,
            table=self.table if whole else pending.changes,
            scalars=head.scalars,
            operations=pending.operations,
            operation_ids=self._operation_ids() if whole else [],
            metrics=metrics,
        )

    def _operation_ids(self) -> list[str]:
        done = (operation.operation_id for operation in self.pending.operations)
        return [*self.lineage.operation_ids, *done][-KEPT_OPERATIONS:]

    def _phase(self, head: Manifest) -> tuple[Phase, str]:
        if self.pending.phase is not None:
            return self.pending.phase, self.pending.phase_reason
        reached = None if head.phase == "finished" else ending_reached(self.plan, self.table)
        return ("finished", reached) if reached else (head.phase, head.phase_reason)

    def advance(self, lineage: Lineage) -> None:
        """The pending manifest is committed and is the lineage's head now."""
        self._since_whole = 0 if lineage.head and lineage.head.manifest.whole else self._since_whole + 1
        self.lineage = lineage
        self.pending = Pending()


def ending_reached(plan: Plan, table: Mapping[str, Entry]) -> str | None:
    """Why the run is over, or None while it is not."""
    members = [entry for entry in table.values() if not entry.removed]
    total = sum(entry.counters.aggregated for entry in members)
    if plan.ending.updates is None or total < plan.ending.updates:
        return None
    if any(entry.active and entry.counters.aggregated < plan.ending.updates_each for entry in members):
        return None
    return f"{total} updates are aggregated"
