"""A lineage's updates folded again, to the same bits. Values in, values out; one update is in memory at a time."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from aggregator_worker.federation import Bases, no_bases
from aggregator_worker.membership import Membership
from aggregator_worker.server_state import Contribution, ServerState
from aggregator_worker.weighing import Weighing
from shared.compact import Delta
from shared.errors import FederationError
from shared.messages import BlobName, Entry, Manifest, Settlement, Update, encode_model, encode_state
from shared.noise import noise_std
from shared.plan import Plan

Load = Callable[[Settlement], tuple[Update, Delta]]
"""An update and its delta, checked against the settlement's hash. Asked for once for each settlement, in the order folded."""
Table = Mapping[str, Entry]


class ReplayMismatchError(FederationError):
    """The bits differ: find out which of the broker, the journal and this program is wrong, before the model is trusted."""


@dataclass(frozen=True, slots=True)
class Around:
    """What a manifest began with: the scalars of the one before it; and the table before and after it, None where not known."""

    scalars: Mapping[str, str | int] = field(default_factory=dict)
    before: Table | None = None
    after: Table | None = None


@dataclass(slots=True)
class Replay:
    """Repeats what the aggregator did, from a state on. `plan` is the one in force there; `without` are the pseudonyms left out.

    Weights are the recorded ones; `off_rule` counts those that the plan's rule would not give, which is no matter of bits.
    `bases` serves the rule `latest-model`.
    """

    state: ServerState
    plan: Plan
    load: Load
    without: Collection[str] = ()
    bases: Bases = no_bases
    folded: int = 0
    left_out: int = 0
    off_rule: int = 0

    def go_on_from(self, state: ServerState, plan: Plan) -> None:
        """From another state, or under another plan, which is in force from the next manifest on."""
        state.plan = plan.aggregation
        self.state, self.plan = state, plan

    def fold(self, manifest: Manifest, around: Around) -> bool:
        """Folds what one manifest aggregated; True where it made a version, whose state this is now."""
        aggregated = [settlement for settlement in manifest.settled if settlement.outcome == "aggregated"]
        checked = weights_by_rule(self.plan, manifest.plan_hash, aggregated, around)
        for settlement in aggregated:
            if settlement.institution in self.without:
                if not self.state.is_table:
                    # with momentum, an update of weight 0 still lets the momentum decay and move the model
                    self.state.fold(Contribution(self.state.model, 0.0))
                self.left_out += 1
                continue
            self.state.fold(self._contribution(settlement))
            self.folded += 1
        given = [float.fromhex(settlement.weight) for settlement in aggregated]
        self.off_rule += sum(weight != found for weight, found in zip(given, checked, strict=True)) if checked else 0
        if aggregated:
            self.state.finish_version(self._shares(manifest, around))
        return bool(aggregated)

    def _contribution(self, settlement: Settlement) -> Contribution:
        update, delta = self.load(settlement)
        base = self.bases(settlement.base_version) if self.plan.aggregation.rule == "latest-model" else None
        return Contribution(
            delta,
            float.fromhex(settlement.weight),
            float.fromhex(settlement.scale),
            settlement.institution,
            base,
            noise_std(update.privacy, self.plan, update.num_examples) or 0.0,
        )

    def _shares(self, manifest: Manifest, around: Around) -> Mapping[str, float]:
        if not self.state.is_table:
            return {}
        if around.after is None:
            raise ReplayMismatchError("a table rule is replayed from where the whole table is known; begin with a later version")
        members = Membership(around.after, manifest.plan_hash).shares(self.plan.aggregation.largest_share)
        return {name: share for name, share in members.items() if name not in self.without}

    def demand_equal(self, manifest: Manifest) -> None:
        """Raises ReplayMismatchError unless the state, as it is published, has the hashes that the manifest names."""
        _demand("model", manifest, manifest.model, encode_model(manifest.run_id, self.state.model, self.plan.broadcast).hash)
        if manifest.state is not None:
            _demand("state", manifest, manifest.state, encode_state(manifest.run_id, self.state.wide(self.plan)).hash)


def _demand(what: str, manifest: Manifest, named: BlobName, made: str) -> None:
    if made != named.hash:
        raise ReplayMismatchError(
            f"the {what} of version {manifest.version} is not the same: its manifest names {named.hash}, the replay gives {made}"
        )


def weights_by_rule(plan: Plan, plan_hash: str, aggregated: Sequence[Settlement], around: Around) -> list[float]:
    """What the plan's rule gives for the updates of one version, in order; empty where the table around it is not known.

    The order of an update and of a change of membership in the same manifest is not recorded: who is a member, and with how many
    examples, is taken from the table after it, accounts from the one before.
    """
    if around.before is None or around.after is None:
        return []
    weighing = Weighing(plan, plan_hash, around.before, around.scalars)
    for pseudonym, entry in around.after.items():
        former = around.before.get(pseudonym)
        if former is not None and former != entry:
            present = former.model_copy(update={name: getattr(entry, name) for name in _MEMBERSHIP})
            weighing.put(pseudonym, present)
    return [
        weighing.weigh(each.institution, staleness=each.staleness) if each.institution in weighing.members else 0.0
        for each in aggregated
    ]


_MEMBERSHIP = ("num_examples", "active", "removed", "quarantined", "standing", "standing_plan")
