"""A real run's sealed updates through the aggregator's own code again: to the same bits, or under another rule.

Pure: manifests and updates come in, versions come out. Under the run's own plan all must come out as its lineage tells. Under
another aggregation the same deltas are folded with other weights, which is no training: each delta was computed on a model of
the real run.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from aggregator_worker.roll_back import rolled_back
from aggregator_worker.server_state import ServerState
from shared import messages
from shared.compact import Delta
from shared.errors import FederationError
from shared.lineage import Lineage
from shared.messages import Location, Manifest, Settlement, Update
from shared.parameters import Parameters
from shared.plan import AggregationPlan, Ending, Plan
from simulator.message_order import Event, Link, Told, hear, in_order, refuse
from simulator.virtual import VirtualAggregator

Load = Callable[[Settlement], tuple[Update, Delta]]
"""A sealed update, checked against the hash in its settlement. Asked for each aggregated one, twice at most."""


class RefoldError(FederationError):
    """Begin with a later version: the lineage holds something that is not made of updates alone."""


@dataclass(frozen=True, slots=True)
class Version:
    """What has come of a link: the settlements as they were made now, and in what anything differs from what the link tells."""

    number: int
    model_hash: str
    settled: Sequence[Settlement]
    differences: Sequence[str]


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """Where a refolding begins: the link that made a version, the plan, the version's model as broadcast and the state beside it.

    `names` gives the institution behind a pseudonym; `earlier` are the models as broadcast, or else only the hashes, of the
    versions before it, since updates on those may still come.
    """

    link: Link
    plan: Plan
    names: Mapping[str, str]
    model: Parameters
    wide: Parameters = field(default_factory=dict)
    earlier: Mapping[int, str] = field(default_factory=dict)
    earlier_models: Mapping[int, Parameters] = field(default_factory=dict)

    @property
    def version(self) -> int:
        """Its number."""
        return self.link.manifest.version

    def aggregator(self) -> VirtualAggregator:
        """One that goes on from here under the run's own plan."""
        return self._aggregator(ServerState.restored(self.plan, self.model, self.wide))

    def aggregator_under(self, aggregation: AggregationPlan) -> VirtualAggregator:
        """One with another aggregation, with no momentum and no rows yet, and without an end."""
        plan = self.plan.model_copy(update={"aggregation": aggregation, "ending": Ending()})
        facts = {"plan_hash": plan.hash, "plan": plan, "phase": "running", "phase_reason": ""}
        table = {
            name: entry.model_copy(update={"standing_plan": plan.hash}) if entry.standing else entry
            for name, entry in self.link.table.items()
        }
        begun = replace(self, link=Link(self.link.manifest.model_copy(update=facts), table), plan=plan)
        return begun._aggregator(ServerState.of(plan, self.model))

    def _aggregator(self, state: ServerState) -> VirtualAggregator:
        manifest = self.link.manifest
        record = messages.manifest_record(1, manifest, Location(offset=0, chunks=1))
        known = Lineage(
            epoch=1,
            claims=True,
            head=record,
            table=self.link.table,
            plan=self.plan,
            hashes=(record.hash,),
            bases={**self.earlier, manifest.version: manifest.model.hash},
        )
        models = {**self.earlier_models, manifest.version: self.model}
        return VirtualAggregator.continuing(known, state, {name: alias for alias, name in self.names.items()}, models)


def events_of(start: Start, links: Sequence[Link], load: Load) -> list[list[Event]]:
    """What happened in each link, in order. Raises RefoldError where something else than messages moved the model."""
    events, before = [], start.link
    for link in links:
        _demand_only_updates(start.plan, link.manifest)
        events.append(in_order(start.plan, before, link, lambda settlement: load(settlement)[0]))
        before = link
    return events


def again(start: Start, links: Sequence[Link], events: Sequence[Sequence[Event]], load: Load) -> Iterator[Version]:
    """Every link under the run's own plan, in its own grouping, compared with what its manifest tells.

    What was refused stays refused, for the recorded reason: the gate's rows are the operator's.
    """
    return Repeated(start).versions(links, events, load)


class Repeated:
    """See `again`. `aggregator` is as far as the versions were asked for."""

    def __init__(self, start: Start) -> None:
        self.aggregator = start.aggregator()

    def versions(self, links: Sequence[Link], events: Sequence[Sequence[Event]], load: Load) -> Iterator[Version]:
        """One for each link."""
        aggregator = self.aggregator
        for link, happened, oldest in zip(links, events, _oldest_bases(links), strict=True):
            for event in happened:
                _take(aggregator, event, load)
            yield _committed(aggregator, link)
            aggregator.release(min(oldest, aggregator.version))


def what_if(
    start: Start,
    links: Sequence[Link],
    events: Sequence[Sequence[Event]],
    load: Load,
    *,
    aggregation: AggregationPlan,
    regrouped: bool = False,
) -> VirtualAggregator:
    """The same updates in the same order under another aggregation; in its own buffers where `regrouped`, else in the recorded.

    An update's base is the newest version that there would have been when the real run's base was the newest.
    """
    aggregator, version_of = start.aggregator_under(aggregation), {start.version: start.version}

    def rebased(settlement: Settlement) -> tuple[Update, Delta]:
        update, delta = load(settlement)
        base = version_of.get(update.base_version, update.base_version)
        bases = aggregator.federation.lineage.bases
        now = {"base_version": base, "base_hash": bases.get(base, "0" * 64), "plan_hash": aggregator.plan.hash}
        return update.model_copy(update=now), delta

    for link, happened, oldest in zip(links, events, _oldest_bases(links), strict=True):
        for event in happened:
            _take(aggregator, event, rebased)
            if regrouped and aggregator.federation.buffer_full:
                aggregator.commit()
        if not regrouped and not aggregator.federation.empty:
            aggregator.commit()
        version_of.setdefault(link.manifest.version, aggregator.version)
        aggregator.release(version_of.get(oldest, min(oldest, aggregator.version)))
    if not aggregator.federation.empty:
        aggregator.commit()
    return aggregator


def _take(aggregator: VirtualAggregator, event: Event, load: Load) -> None:
    if isinstance(event, Told):
        hear(aggregator.federation, event)
    elif event.outcome == "aggregated":
        update, delta = load(event)
        aggregator.take(update, delta, content=event.hash)
    else:
        refuse(aggregator.federation, event)


def _committed(aggregator: VirtualAggregator, link: Link) -> Version:
    federation, told = aggregator.federation, link.manifest
    settled = tuple(federation.pending.settled)
    if told.phase != federation.head.manifest.phase:
        # an order, or a target that was reached on rows that only the operator has
        federation.pending.phase, federation.pending.phase_reason = told.phase, told.phase_reason
    aggregator.commit(told.metrics)
    manifest = federation.head.manifest
    return Version(manifest.version, manifest.model.hash, settled, tuple(_differences(aggregator, settled, link)))


def _differences(aggregator: VirtualAggregator, settled: Sequence[Settlement], link: Link) -> Iterator[str]:
    told, manifest = link.manifest, aggregator.federation.head.manifest
    for recorded, made in zip(told.settled, settled, strict=True):
        what = f"update {recorded.incarnation}/{recorded.sequence} of {recorded.institution}"
        if recorded.outcome != made.outcome:
            yield f"{what}: {recorded.outcome} in the run, {made.outcome} now {made.reason}".rstrip()
        elif (recorded.weight, recorded.scale) != (made.weight, made.scale):
            yield f"{what}: weight {recorded.weight} x {recorded.scale} in the run, {made.weight} x {made.scale} now"
    if (told.version, told.model.hash) != (manifest.version, manifest.model.hash):
        yield f"model {told.model.hash} of version {told.version} in the run, {manifest.model.hash} of {manifest.version} now"
    state = aggregator.federation.state.wide(aggregator.plan)
    if told.state is not None and messages.encode_state(told.run_id, state).hash != told.state.hash:
        yield f"the state of version {told.version} is another"
    for name, entry in link.table.items():
        made_entry = aggregator.federation.table[name]
        if (entry.account, entry.total_weight) != (made_entry.account, made_entry.total_weight):
            yield f"the account of {name} after version {told.version} is another"


def _oldest_bases(links: Sequence[Link]) -> list[int]:
    """For each link the oldest version that an update of a later one was made on."""
    oldest, after = links[-1].manifest.version if links else 0, []
    for link in reversed(links):
        after.append(oldest)
        oldest = min([oldest, *(each.base_version for each in link.manifest.settled if each.outcome == "aggregated")])
    return after[::-1]


def _demand_only_updates(plan: Plan, manifest: Manifest) -> None:
    if manifest.plan_hash != plan.hash:
        raise RefoldError(f"another plan is in force from version {manifest.version} on")
    if rolled_back(manifest) is not None:
        raise RefoldError(f"the model was rolled back at version {manifest.version}")
