"""A lineage's updates folded again, to the same bits. Values in, values out; one update is in memory at a time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from aggregator_worker.aggregation import share, update_weight
from aggregator_worker.server_state import ServerState
from shared.compact import Delta
from shared.errors import FederationError
from shared.messages import BlobName, Entry, Manifest, Settlement, Update, encode_model, encode_state
from shared.plan import Plan

Load = Callable[[Settlement], tuple[Update, Delta]]
"""An update and its delta, checked against the settlement's hash. Asked for once for each settlement, in the order folded."""
Table = Mapping[str, Entry]


class ReplayMismatchError(FederationError):
    """The bits differ: find out which of the broker, the journal and this program is wrong, before the model is trusted."""


@dataclass(slots=True)
class Replay:
    """Repeats what the aggregator did, from a state on. The plan is the lineage's; `without` is a pseudonym, left out if given.

    Weights are the recorded ones; `off_rule` counts those that the plan's rule would not give, which is no matter of bits.
    """

    state: ServerState
    plan: Plan
    load: Load
    without: str | None = None
    folded: int = 0
    left_out: int = 0
    off_rule: int = 0

    def fold(self, manifest: Manifest, before: Table | None, after: Table | None) -> bool:
        """Folds what one manifest aggregated; True where it made a version, whose state this is now.

        `before` and `after` are the table around it, None where it is not known.
        """
        aggregated = [settlement for settlement in manifest.settled if settlement.outcome == "aggregated"]
        for settlement in aggregated:
            if settlement.institution == self.without:
                # with momentum, an update of weight 0 still lets the momentum decay and move the model
                self.state.fold(self.state.model, 0.0)
                self.left_out += 1
                continue
            update, delta = self.load(settlement)
            self.state.fold(delta, factor(settlement))
            self.folded += 1
            tables = [table for table in (before, after) if table is not None]
            if tables and not any(follows_rule(self.plan, settlement, update, table) for table in tables):
                self.off_rule += 1
        if aggregated:
            self.state.finish_version()
        return bool(aggregated)

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


def factor(settlement: Settlement) -> float:
    """What the delta was multiplied by: weight times scale, as a float32 value."""
    return float(np.float32(float.fromhex(settlement.weight) * float.fromhex(settlement.scale)))


def follows_rule(plan: Plan, settlement: Settlement, update: Update, table: Table) -> bool:
    """Whether the recorded weight is what the rule gives for the update's staleness and its share of the table's data."""
    entry = table.get(settlement.institution)
    if entry is None:
        return False
    stated = entry.model_copy(update={"num_examples": update.num_examples})
    data_share = share(update.num_examples, {**table, settlement.institution: stated})
    return float.fromhex(settlement.weight) == update_weight(
        plan.aggregation, staleness=settlement.staleness, data_share=data_share
    )
