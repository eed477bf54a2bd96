"""`fedqueue replay`: any version again, bit for bit, from the lineage and the journals."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import typer
from safetensors.numpy import save_file

from aggregator_worker.bases import KeptModels
from aggregator_worker.replay import Around, Replay
from aggregator_worker.roll_back import RollBack, rolled_back
from aggregator_worker.server_state import ServerState
from broker_config.connection import connect
from broker_config.definitions import OPERATOR
from broker_config.streams import fetch_model, fetch_state, first_offset, records_of
from broker_config.topology import LINEAGE, MODEL, STATE
from operator_console import replay_course
from operator_console.command_options import DEFAULT_FOLDER, Folder
from operator_console.completions import institutions, versions
from operator_console.federation_folder import FederationFolder
from operator_console.journal import Journal, JournalGapError
from operator_console.lineage_commands import NoSuchVersionError
from operator_console.replay_course import Leg, as_published, leg_of
from shared.broker import Broker
from shared.errors import SettingsError, TopologyError
from shared.messages import Entry, Manifest, ManifestRecord, Settlement, pseudonym
from shared.plan import Plan


@dataclass(slots=True)
class Chain:
    """What a replay must know of a lineage before it begins; records are kept without their settlements and tables.

    `plans` are by the version after which each came into force. A version's record is the last one before updates were folded
    on it under the plan then in force.
    """

    plans: dict[int, Plan] = field(default_factory=dict)
    versions: dict[int, ManifestRecord] = field(default_factory=dict)
    folded: dict[int, list[Settlement]] = field(default_factory=dict)
    roll_backs: dict[int, RollBack] = field(default_factory=dict)

    @property
    def plan(self) -> Plan:
        """The newest plan. Limits and the broadcast's type are the same in all."""
        return self.plans[max(self.plans)]

    @property
    def plan_changes(self) -> list[int]:
        """The versions after which another plan than before came into force."""
        return sorted(self.plans)[1:]

    def plan_after(self, version: int) -> Plan:
        """The plan under which updates on a version's head are folded; where it is not told any more, the oldest that is."""
        return self.plans[max((since for since in self.plans if since <= version), default=min(self.plans))]

    @property
    def newest(self) -> int:
        """The last version."""
        return max(self.versions)


@dataclass(frozen=True, slots=True)
class Result:
    """A replay that came to its end. `start` is the version that it began with, and `passed_over` why not with an older one.

    `holds_theirs`: the start holds updates of those left out, as far as the lineage tells. `roll_backs` are those on the way.
    """

    start: int
    version: int
    replay: Replay
    passed_over: str = ""
    holds_theirs: bool = False
    roll_backs: Mapping[int, RollBack] = field(default_factory=dict)


def replay(
    version: Annotated[
        int | None, typer.Option(min=0, autocompletion=versions, help="The version to rebuild; without it, the newest.")
    ] = None,
    without: Annotated[
        str | None, typer.Option(metavar="INSTITUTION", autocompletion=institutions, help="Leave out this institution's updates.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.safetensors", help="Write the parameters there.")] = None,
    folder: Folder = DEFAULT_FOLDER,
) -> None:
    """Rebuild a version from the journals, and compare every version on the way with what its manifest names, bit for bit."""
    federation = FederationFolder(folder)
    logins, names = federation.logins(), federation.names()
    if logins.limits.journal_stream_bytes is None:
        raise SettingsError(
            "this federation keeps no journals, so nothing can be replayed: `fedqueue init --journal SIZE` has them"
        )
    left_out = None if without is None else pseudonym(federation.run_secret(), without)
    if left_out is not None and left_out not in names:
        raise federation.stranger(without or "")
    with closing(connect(logins.settings(OPERATOR), name="fedqueue-replay")) as broker:
        result = rebuilt(broker, names, version=version, without=left_out)
    for line in lines(result, without):
        typer.echo(line)
    if out is not None:
        about = {"version": str(result.version), "without": without or ""}
        save_file(result.replay.state.model, out, metadata=about)
        typer.echo(f"written to {out}: {len(result.replay.state.model)} tensors, float32")


def rebuilt(broker: Broker, names: Mapping[str, str], *, version: int | None = None, without: str | None = None) -> Result:
    """Replays up to `version`, or the newest.

    Raises NoSuchVersionError, JournalGapError where the journal lacks what no later start makes up for, and
    ReplayMismatchError at the first version whose bits differ.
    """
    chain = read_chain(broker)
    target = chain.newest if version is None else version
    if target not in chain.versions:
        raise NoSuchVersionError(f"{LINEAGE} holds the versions {min(chain.versions)} to {chain.newest}, not {target}")
    left_out = frozenset() if without is None else frozenset({without})
    legs = replay_course.without(chain.roll_backs, target, left_out) if left_out else as_published(chain.roll_backs, target)
    wanted = _folded_on(legs, chain)
    journal = Journal(broker, names, max_bytes=chain.plan.limits.update_bytes)
    lacking = set(journal.find([each for folded in wanted.values() for each in folded]))
    missing = {made: [each for each in folded if each in lacking] for made, folded in wanted.items()}
    kept = [version for version in oldest_kept(broker, chain) if leg_of(legs, version)]
    start, passed_over = choose_start(kept, missing, target=target)
    begun = Replay(start_state(broker, chain, start), chain.plan_after(start), journal.load, bases=KeptModels(broker))
    begun.demand_equal(chain.versions[start].manifest)
    _fold_all(begun, broker, chain, [leg for leg in legs if leg.end >= start], start=start)
    passed = {made: back for made, back in chain.roll_backs.items() if start < made and leg_of(legs, made)}
    return Result(start, target, begun, passed_over, _holds(chain, start, left_out), passed)


def _folded_on(legs: list[Leg], chain: Chain) -> dict[int, list[Settlement]]:
    """What the versions on the way were made of, without those who are left out there."""
    on_the_way = ((made, folded, leg_of(legs, made)) for made, folded in chain.folded.items())
    return {made: [each for each in folded if each.institution not in leg.without] for made, folded, leg in on_the_way if leg}


def _holds(chain: Chain, start: int, left_out: frozenset[str]) -> bool:
    """Whether the model of the start holds updates of some; where the lineage does not go back far enough, it may."""
    legs = replay_course.without(chain.roll_backs, start, frozenset())
    cut = any(leg.begin < min(chain.versions) for leg in legs if leg.begin < start)
    on_the_way = ((folded, leg_of(legs, made)) for made, folded in chain.folded.items())
    theirs = (each for folded, leg in on_the_way if leg for each in folded if each.institution in left_out - leg.without)
    return bool(left_out) and (cut or any(theirs))


def read_chain(broker: Broker) -> Chain:
    """The lineage's versions, what they fold, and its plans. Raises TopologyError where it does not hold a plan."""
    chain, plan_hash = Chain(), ""
    for record in records_of(broker):
        manifest = record.manifest
        if (plan := manifest.plan) is not None and manifest.plan_hash != plan_hash:
            chain.plans[manifest.version], plan_hash = plan, manifest.plan_hash
            chain.versions[manifest.version] = _bare(record)
        if manifest.version not in chain.folded:
            chain.versions.setdefault(manifest.version, _bare(record))
            chain.folded[manifest.version] = [each for each in manifest.settled if each.outcome == "aggregated"]
            back = rolled_back(manifest)
            chain.roll_backs |= {manifest.version: back} if back else {}
    if not chain.plans:
        raise TopologyError(f"{LINEAGE} holds no manifest with a plan; run `fedqueue lineage verify`")
    return chain


def _bare(record: ManifestRecord) -> ManifestRecord:
    emptied = record.manifest.model_copy(update={"settled": [], "table": {}, "plan": None, "metrics": {}})
    return replace(record, content=b"", manifest=emptied)


def oldest_kept(broker: Broker, chain: Chain) -> list[int]:
    """The versions whose model, and state where there is one, the streams still hold, oldest first."""
    first_model = first_offset(broker, MODEL)
    first_state = first_offset(broker, STATE) if any(record.state_at for record in chain.versions.values()) else 0
    return [
        version
        for version, record in sorted(chain.versions.items())
        if record.model_at.offset >= first_model and (record.state_at is None or record.state_at.offset >= first_state)
    ]


def choose_start(kept: list[int], missing: Mapping[int, list[Settlement]], *, target: int) -> tuple[int, str]:
    """The oldest kept version from which nothing is missing up to the target, and what is the matter with older ones."""
    candidates = [version for version in kept if version <= target]
    if not candidates:
        raise JournalGapError(f"version {target} cannot be rebuilt: the broker keeps no model of it or of a version before it")
    gaps = {made: folded for made, folded in missing.items() if folded and made > candidates[0]}
    if not gaps:
        return candidates[0], ""
    what = f"the journals no longer have {sum(map(len, gaps.values()))} updates of the versions {min(gaps)} to {max(gaps)}"
    usable = [version for version in candidates if version >= max(gaps)]
    if not usable or usable[0] == target:
        raise JournalGapError(f"version {target} cannot be rebuilt: {what}")
    return usable[0], what


def start_state(broker: Broker, chain: Chain, version: int) -> ServerState:
    """The state of a version whose blobs are still on the broker."""
    record = chain.versions[version]
    return ServerState.restored(chain.plan, fetch_model(broker, record), fetch_state(broker, record))


def lines(result: Result, without: str | None) -> Iterator[str]:
    """What the command prints."""
    replay = result.replay
    if result.passed_over:
        yield f"start: version {result.start}; {result.passed_over}, which cannot be replayed"
    else:
        yield f"start: version {result.start}, the oldest whose model is on the broker"
    if without is None:
        yield f"versions {result.start} to {result.version}: {replay.folded:,} updates folded again, each model equal to the bit"
    else:
        yield f"version {result.version} without {without}: {replay.folded:,} updates folded, {replay.left_out:,} left out"
        yield "This is not a re-training: the others' updates were computed on models that contained its updates."
        if result.holds_theirs:
            yield f"Version {result.start} holds what it gave until then: only later updates are left out."
    for made, back in result.roll_backs.items():
        model = "its model is taken as it was published" if without is None else "the replay went on from there"
        yield f"version {made} is a roll-back to version {back.to_version}: {model}"
    rule = replay.folded - replay.off_rule
    yield f"weights: {rule:,} of {replay.folded:,} are what the plan's rule gives"


def _fold_all(begun: Replay, broker: Broker, chain: Chain, legs: list[Leg], *, start: int) -> None:
    table: dict[str, Entry] | None = None
    scalars: Mapping[str, str | int] = {}
    verified = not any(leg.without for leg in legs)
    for record in records_of(broker):
        manifest, before = record.manifest, table
        if manifest.version > legs[-1].end:
            return
        table = _table_after(before, manifest)
        leg = leg_of(legs, manifest.version) if manifest.version >= start else None
        if leg is not None and manifest.version == leg.begin and manifest.version > start and rolled_back(manifest):
            begun.go_on_from(start_state(broker, chain, leg.begin) if verified else anew(begun.state, begun.plan), begun.plan)
        elif leg is not None and manifest.version > start:
            begun.without = leg.without
            made = begun.fold(manifest, Around(scalars, before, table))
            if made and verified:
                begun.demand_equal(manifest)
        if manifest.plan is not None and manifest.version >= start:
            begun.go_on_from(begun.state, manifest.plan)
        scalars = manifest.scalars


def _table_after(before: Mapping[str, Entry] | None, manifest: Manifest) -> dict[str, Entry] | None:
    """Known from the first whole one on."""
    if manifest.whole:
        return dict(manifest.table)
    return None if before is None else {**before, **manifest.table}


def anew(state: ServerState, plan: Plan) -> ServerState:
    """What a roll-back to a state's model begins with."""
    return ServerState.of(plan, state.model)
