"""The aggregator's state between two commits: the head, the model in the making, and what the next manifest will settle.

No I/O, no clock. The same object serves the worker and the simulator.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from aggregator_worker.admission import Admission, Number
from aggregator_worker.defence import STRIKE, WINDOW_SCALAR, Fault, Gate, ValidationGate, Window, scale_of, struck
from aggregator_worker.ending import Progress, ending_reached, time_is_over
from aggregator_worker.server_state import Contribution, ServerState
from aggregator_worker.statements import Length, is_newest, stated
from aggregator_worker.weighing import Weighing
from shared.compact import Delta
from shared.lineage import Lineage, standing_under
from shared.messages import (
    KEPT_OPERATIONS,
    REASON_CHARACTERS,
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
    Standing,
    StandingState,
    Update,
)
from shared.noise import noise_std
from shared.parameters import Parameters
from shared.plan import Plan

WHOLE_EVERY = 16
"""Every so many manifests the table is written whole, so that a late reader finds one soon."""


@dataclass(slots=True)
class Pending:
    """What has happened since the head."""

    settled: list[Settlement] = field(default_factory=list)
    operations: list[OperationOutcome] = field(default_factory=list)
    aggregated: int = 0
    replaced: bool = False
    plan: Plan | None = None
    phase: Phase | None = None
    phase_reason: str = ""
    seconds: float = 0.0
    best_is_lost: bool = False


Bases = Callable[[int], Parameters | None]
"""The broadcast model of a version, where it is still to be had."""


def no_bases(_version: int) -> Parameters | None:
    """For all rules but one, which need none."""
    return None


class Federation:
    """The head of the lineage, the state in the making (head plus what was folded since), and the pending settlements.

    `bases` serves the rule `latest-model`, which alone needs the model that an update was made on. `gate` judges updates where
    the plan has a tolerance for it.
    """

    def __init__(self, lineage: Lineage, state: ServerState, gate: Gate | None = None, *, bases: Bases = no_bases) -> None:
        self.lineage = lineage
        self.state = state
        self.pending = Pending()
        self._bases = bases
        self._rows = gate
        self.whole_every: int | None = WHOLE_EVERY
        """None where nobody reads the manifests from the middle."""
        self._since_whole = WHOLE_EVERY
        self._follow_plan()

    def _follow_plan(self) -> None:
        """Begins with the plan in force, from what its manifest and the table say."""
        manifest, tolerance = self.head.manifest, self.plan.defence.gate_tolerance
        self._gate = ValidationGate(self._rows) if self._rows is not None and tolerance is not None else None
        self.window = Window.parsed(str(manifest.scalars.get(WINDOW_SCALAR, "")))
        self.weighing = Weighing(self.plan, manifest.plan_hash, self.lineage.table or {}, manifest.scalars)
        self.state.plan = self.plan.aggregation

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
    def empty(self) -> bool:
        """Whether there is nothing to commit."""
        pending = self.pending
        return not (pending.settled or self.weighing.changes or pending.operations or pending.phase)

    @property
    def table(self) -> Mapping[str, Entry]:
        """The table as the next manifest will leave it."""
        return self.weighing.members

    def entry(self, pseudonym: str) -> Entry | None:
        """One institution's entry, pending changes included; None for a stranger or a removed one."""
        entry = self.table.get(pseudonym)
        return None if entry is None or entry.removed else entry

    def change(self, pseudonym: str, entry: Entry) -> None:
        """Puts an entry of the table into the next manifest."""
        if entry.removed or entry.quarantined:
            self.window = self.window.without(pseudonym)
        self.weighing.put(pseudonym, entry)

    def settle(self, pseudonym: str, update: Update, content: str, *, admission: Admission, delta: Delta) -> Settlement:
        """Settles one admitted or refused update; folds its delta where it is to be aggregated."""
        self.weighing.heard(pseudonym)
        contribution = None
        if admission.outcome == "aggregated":
            admission, contribution = self._contribution(pseudonym, update, admission=admission, delta=delta)
        if contribution is not None:
            self._fold(contribution, admission.length)
        elif admission.outcome == "rejected":
            self.weighing.forfeit(pseudonym)
        settlement = Settlement(
            institution=pseudonym,
            incarnation=update.incarnation,
            sequence=update.sequence,
            hash=content,
            outcome=admission.outcome,
            reason=admission.reason[:REASON_CHARACTERS],
            base_version=update.base_version,
            base_hash=update.base_hash,
            staleness=max(0, admission.staleness),
            weight=(0.0 if contribution is None else contribution.weight).hex(),
            scale=(1.0 if contribution is None else contribution.scale).hex(),
        )
        self._record(settlement, update, strike=admission.strike)
        return settlement

    def _contribution(
        self, pseudonym: str, update: Update, *, admission: Admission, delta: Delta
    ) -> tuple[Admission, Contribution | None]:
        """What an admitted update adds to the state; None, and another admission, where something still speaks against it."""
        plan, base = self.plan, None
        if plan.aggregation.rule == "latest-model":
            base = self._bases(update.base_version)
            if base is None:
                return replace(admission, outcome="stale", reason="its base model is no longer kept"), None
        weighing = self.weighing if self._gate is None else self.weighing.copied()
        weighing.put(pseudonym, self.table[pseudonym].model_copy(update={"num_examples": update.num_examples}))
        weight = weighing.weigh(pseudonym, staleness=admission.staleness)
        scale = 1.0 if admission.length is None else scale_of(admission.length, self.window, plan.defence)
        std = noise_std(update.privacy, plan, update.num_examples) or 0.0
        contribution = Contribution(delta, weight, scale, pseudonym, base, std)
        fault = self._gate_fault(contribution)
        if fault is not None:
            return replace(admission, outcome="rejected", reason=fault.reason, strike=fault.strike), None
        self.weighing = weighing
        return admission, contribution

    def _gate_fault(self, contribution: Contribution) -> Fault | None:
        tolerance = self.plan.defence.gate_tolerance
        if self._gate is None or tolerance is None:
            return None
        return self._gate.fault(self.state.model, contribution.delta, contribution.factor, tolerance)

    def _fold(self, contribution: Contribution, length: Length | None) -> None:
        self.state.fold(contribution)
        self.pending.aggregated += 1
        if self._gate is not None:
            self._gate.folded(as_judged=self.state.is_plain)
        if length is not None and self.plan.defence.norm_cap is not None:
            self.window = self.window.with_length(contribution.institution, length)

    def settle_unread(self, pseudonym: str, number: Number, *, outcome: Outcome, reason: str, content: str = "") -> Settlement:
        """Settles a number whose update never came or cannot be read, so that the ones behind it can be folded."""
        self.weighing.heard(pseudonym)
        settlement = Settlement(
            institution=pseudonym,
            incarnation=number.incarnation,
            sequence=number.sequence,
            hash=content,
            outcome=outcome,
            reason=reason,
        )
        self._record(settlement, None, strike=STRIKE)
        return settlement

    def _record(self, settlement: Settlement, update: Update | None, *, strike: int) -> None:
        entry = self.table[settlement.institution]
        counters = entry.counters.model_dump()
        counters[settlement.outcome] += 1
        newest = is_newest(settlement.sequence, entry)
        changed = entry.model_copy(
            update={
                "incarnation": settlement.incarnation,
                "watermark": settlement.sequence if newest else entry.watermark,
                "last_hash": settlement.hash if newest else entry.last_hash,
                "total_weight": (float.fromhex(entry.total_weight) + float.fromhex(settlement.weight)).hex(),
                "counters": Counters(**counters),
                **(stated(update, entry, settlement.outcome) if update else {}),
                **(_left("budget_spent", "epsilon", self._plan_hash) if self._is_found_spent(entry, settlement) else {}),
            }
        )
        self.pending.settled.append(settlement)
        self.change(settlement.institution, struck(changed, settlement.outcome, self.plan.defence, strike=strike))

    def _is_found_spent(self, entry: Entry, settlement: Settlement) -> bool:
        return settlement.outcome == "over_budget" and standing_under(entry, self._plan_hash) is None

    @property
    def _plan_hash(self) -> str:
        return self.head.manifest.plan_hash

    def greet(self, pseudonym: str, hello: Hello) -> None:
        """Answers a worker's start: its entry in the next manifest echoes the nonce.

        Who starts anew may have changed its policy, and says so again if it still refuses the plan; a spent budget stays spent.
        """
        self.weighing.heard(pseudonym)
        entry, echo = self.table[pseudonym], {"nonce": hello.nonce, "num_examples": hello.num_examples}
        again = entry.standing == "plan_refused" and hello.nonce != entry.nonce
        self.change(pseudonym, entry.model_copy(update=echo | (_left(None, "", "") if again else {})))

    def stand(self, pseudonym: str, standing: Standing) -> bool:
        """Puts into the table why an institution gives no more under the plan in force; False where that is no news."""
        entry = self.table[pseudonym]
        known = standing_under(entry, self._plan_hash)
        repeated = (known, entry.standing_limit) == (standing.state, standing.limit)
        if standing.plan_hash != self._plan_hash or known == "budget_spent" or repeated:
            return False
        self.change(pseudonym, entry.model_copy(update=_left(standing.state, standing.limit, standing.plan_hash)))
        return True

    def count_duplicate(self, pseudonym: str) -> None:
        """A repeat changes nothing but its counter."""
        entry = self.table[pseudonym]
        counters = entry.counters.model_copy(update={"duplicate": entry.counters.duplicate + 1})
        self.change(pseudonym, entry.model_copy(update={"counters": counters}))

    @property
    def buffer_full(self) -> bool:
        """Whether K updates were folded since the head."""
        return self.weighing.buffer_full

    def replace_model(self, model: Parameters) -> None:
        """Puts the operator's model in the place of the state's; the next manifest makes a version of it, and must come at once.

        Momentum, moments and rows begin anew: they hold what the updates gave that the operator does without.
        Raises ValueError where updates were folded that no manifest tells of yet.
        """
        if self.pending.aggregated:
            raise ValueError("a model is replaced between two versions")
        self.state = ServerState.of(self.plan, model)
        self.pending.replaced = True
        if self._gate is not None:
            self._gate.forget()

    def change_plan(self, plan: Plan) -> None:
        """Puts a plan in force with the next manifest, which must come at once. Its state has the arrays of the present one.

        What institutions said of the present plan no longer holds. Where their updates will differ in length, what is usual is
        learned anew. Raises ValueError where something is pending that belongs to the present plan.
        """
        if not self.empty:
            raise ValueError("a plan is changed between two manifests")
        self.pending.plan = plan
        for pseudonym, entry in list(self.table.items()):
            if entry.standing is not None:
                self.change(pseudonym, entry.model_copy(update=_left(None, "", "")))
        if (plan.local, plan.privacy) != (self.plan.local, self.plan.privacy):
            self.window = Window()

    @property
    def makes_version(self) -> bool:
        """Whether the next manifest makes a new version."""
        return self.pending.aggregated > 0 or self.pending.replaced

    def finish_version(self) -> bool:
        """Completes the state of the next version; False where nothing was aggregated or replaced, and the version stays."""
        if self.pending.aggregated:
            largest = self.plan.aggregation.largest_share
            self.state.finish_version(self.weighing.members.shares(largest) if self.state.is_table else {})
            if self._gate is not None and not self.state.is_plain:
                self._gate.forget()
        return self.makes_version

    def next_manifest(self, model: BlobName, wide: BlobName | None, metrics: Metrics) -> Manifest:
        """The manifest that settles everything pending. `metrics` belong to `model`; `wide` names its state blob, if any."""
        head, pending = self.head.manifest, self.pending
        whole = self.whole_every is not None and self._since_whole >= self.whole_every - 1
        progress = self._progress(model, metrics)
        phase, reason = self._phase(head, progress)
        return Manifest(
            run_id=head.run_id,
            version=self._next_version,
            previous=self.head.hash,
            model=model,
            state=wide,
            plan_hash=pending.plan.hash if pending.plan else head.plan_hash,
            plan=pending.plan or (self.plan if whole else None),
            phase=phase,
            phase_reason=reason,
            settled=pending.settled,
            whole=whole,
            table=dict(self.table) if whole else self.weighing.changes,
            scalars={**progress.put_into(head.scalars), **self.weighing.scalars(), **self._window_scalar()},
            operations=pending.operations,
            operation_ids=self._operation_ids() if whole else [],
            metrics=metrics,
        )

    def _window_scalar(self) -> dict[str, str]:
        return {WINDOW_SCALAR: self.window.text()} if self.plan.defence.norm_cap is not None else {}

    def _operation_ids(self) -> list[str]:
        done = (operation.operation_id for operation in self.pending.operations)
        return [*self.lineage.operation_ids, *done][-KEPT_OPERATIONS:]

    @property
    def _next_version(self) -> int:
        return self.head.manifest.version + (1 if self.makes_version else 0)

    def _progress(self, model: BlobName, metrics: Metrics) -> Progress:
        """Where the model was replaced, what was wrong with it is in earlier versions too: the best is sought anew."""
        pending, ending = self.pending, self.plan.ending
        progress = Progress.of(self.head.manifest.scalars)
        best = None if pending.best_is_lost or pending.replaced else progress.best
        progress = replace(progress, best=best, seconds=progress.seconds + pending.seconds)
        if not self.makes_version:
            return progress
        return progress.measured(ending, self._next_version, model, metrics.get(ending.metric))

    def _phase(self, head: Manifest, progress: Progress) -> tuple[Phase, str]:
        if self.pending.phase is not None:
            return self.pending.phase, self.pending.phase_reason
        if head.phase != "finished" and (over := ending_reached(self.plan, self.weighing.tally, self._next_version, progress)):
            return "finished", over
        return head.phase, head.phase_reason

    def pass_time(self, seconds: float) -> None:
        """Tells how much time went by since the last call: by whose clock is not the federation's matter. A pause takes none."""
        if self.head.manifest.phase == "running":
            self.pending.seconds += seconds

    @property
    def time_is_over(self) -> bool:
        """Whether the run must end now, also where nothing has happened that a manifest would settle."""
        manifest = self.head.manifest
        seconds = Progress.of(manifest.scalars).seconds + self.pending.seconds
        return manifest.phase == "running" and time_is_over(self.plan.ending, seconds)

    def lose_best(self) -> None:
        """Nobody has the best model any more: the next manifest names none, or its own."""
        self.pending.best_is_lost = True

    def advance(self, lineage: Lineage) -> None:
        """The pending manifest is committed and is the lineage's head now."""
        self._since_whole = 0 if lineage.head and lineage.head.manifest.whole else self._since_whole + 1
        has_new_plan = self.pending.plan is not None
        self.lineage = lineage
        self.pending = Pending()
        self.weighing.committed()
        if has_new_plan:
            self._follow_plan()


def _left(state: StandingState | None, limit: str, plan_hash: str) -> dict[str, Any]:
    return {"standing": state, "standing_limit": limit, "standing_plan": plan_hash}
