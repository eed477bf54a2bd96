"""`fedqueue lineage verify | show`: is the chain whole, and what is a version made of?"""

from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from aggregator_worker.roll_back import KIND as ROLL_BACK
from aggregator_worker.roll_back import RollBack, rolled_back
from broker_config.connection import connect
from broker_config.definitions import OPERATOR
from broker_config.streams import IDLE_SECONDS, UninitialisedError, last_offset, records_of
from broker_config.topology import LINEAGE
from operator_console.chain_audit import ChainAudit, Found
from operator_console.command_options import DEFAULT_FOLDER, Folder
from operator_console.completions import versions
from operator_console.federation_folder import FederationFolder
from operator_console.history import standing_text
from shared.broker import Broker
from shared.errors import FederationError
from shared.lineage import standing_under
from shared.messages import ManifestRecord, Settlement

lineage_app = typer.Typer(help="The history of the global model.", no_args_is_help=True, rich_markup_mode=None)


class NoSuchVersionError(FederationError):
    """Name a version that the lineage still holds."""


@lineage_app.command()
def verify(folder: Folder = DEFAULT_FOLDER) -> None:
    """Check every link: hashes, versions, epochs, each update once, tables. Exit 1 at the first one that does not hold."""
    federation = FederationFolder(folder)
    with closing(connect(federation.logins().settings(OPERATOR), name="fedqueue-lineage")) as broker:
        found = audited(broker)
    Console().print(summary(found, federation.names()))


@lineage_app.command()
def show(version: Annotated[int, typer.Argument(min=0, autocompletion=versions)], folder: Folder = DEFAULT_FOLDER) -> None:
    """Show which updates a version is made of, from whom, on which base, with what weight, and what was not folded then."""
    federation = FederationFolder(folder)
    with closing(connect(federation.logins().settings(OPERATOR), name="fedqueue-lineage")) as broker:
        records = [record for record in records_of(broker) if record.manifest.version == version]
    if not records:
        raise NoSuchVersionError(f"{LINEAGE} holds no version {version}; `fedqueue lineage verify` says which it holds")
    Console().print(version_table(records, federation.names()))


def audited(broker: Broker) -> Found:
    """Checks the lineage from its first record to the one that is its last now. Raises BrokenLineageError, UninitialisedError."""
    end = last_offset(broker, LINEAGE)
    if end < 0:
        raise UninitialisedError(f"{LINEAGE} is empty; run `fedqueue init` first, it makes version 0")
    audit: ChainAudit | None = None
    for delivery in broker.read(LINEAGE, "first", count=None, idle_seconds=2 * IDLE_SECONDS):
        audit = audit or ChainAudit(delivery.offset or 0)
        audit.take(delivery)
        if delivery.offset is not None and delivery.offset >= end:
            break
    if audit is None or audit.head is None:
        raise UninitialisedError(f"{LINEAGE} holds no manifest that could be trusted")
    return audit.found


def summary(found: Found, names: Mapping[str, str]) -> Table:
    """What `verify` prints where every link holds."""
    table = Table("lineage", "every link holds", show_lines=False)
    beginning = f"{found.first_version}, what was before it is trimmed" if found.trimmed else str(found.first_version)
    outcomes = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(found.outcomes.items())) or "none"
    ignored = (
        f"{found.lost_claims} claims that came too late, {found.deposed} records of deposed leaders, {found.repeats} repeats"
        + (f", {found.forged} that no aggregator signed" if found.forged else "")
    )
    table.add_row("versions", f"{beginning} to {found.last_version}")
    table.add_row("manifests", f"{found.manifests:,} in {found.records:,} records")
    table.add_row("updates", outcomes)
    table.add_row("institutions", ", ".join(sorted(names.get(each, each) for each in found.institutions)))
    for version, back in sorted(found.roll_backs.items()):
        table.add_row("roll-back", f"version {version}: {roll_back_text(back, names)}")
    table.add_row("epochs", f"{found.epochs}")
    table.add_row("passed over", ignored)
    table.add_row("time", f"{_time(found.first_at_ms)} to {_time(found.last_at_ms)}")
    return table


def version_table(records: list[ManifestRecord], names: Mapping[str, str]) -> Table:
    """What `show` prints: the settlements of the manifest that made a version, then of those after it that made no other."""
    manifest = records[0].manifest
    table = Table(
        "institution", "update", "base", "staleness", "weight", "outcome", "content", title=f"version {manifest.version}"
    )
    table.caption = f"model {manifest.model.hash}, {manifest.model.size:,} bytes; manifest {records[0].hash}"
    for told in (*_orders(records, names), *_standings(records, names)):
        table.caption += f"\n{told}"
    for record in records:
        for settlement in record.manifest.settled:
            table.add_row(*_cells(settlement, names))
    return table


def roll_back_text(back: RollBack, names: Mapping[str, str]) -> str:
    """Where a roll-back went, for people."""
    return f"to version {back.to_version}" + (f" without {names.get(back.without, back.without)}" if back.without else "")


def _orders(records: list[ManifestRecord], names: Mapping[str, str]) -> Iterator[str]:
    """What became of the operator's orders; a roll-back is what its version is made of."""
    for record in records:
        back = rolled_back(record.manifest)
        for done in record.manifest.operations:
            reason = roll_back_text(back, names) if back is not None and done.kind == ROLL_BACK and done.applied else done.reason
            yield f"order to {done.kind}: {'applied' if done.applied else 'refused'}" + (f", {reason}" if reason else "")


def _standings(records: list[ManifestRecord], names: Mapping[str, str]) -> list[str]:
    """Who gives no more updates, of the entries that these manifests tell, and why."""
    entries = {alias: entry for record in records for alias, entry in record.manifest.table.items()}
    plan_hash = records[-1].manifest.plan_hash
    told = ((alias, standing_text(standing_under(entry, plan_hash), entry.standing_limit)) for alias, entry in entries.items())
    return sorted(f"{names.get(alias, alias)}: {words}" for alias, words in told if words is not None)


def _cells(settlement: Settlement, names: Mapping[str, str]) -> tuple[str, ...]:
    folded = settlement.outcome == "aggregated"
    return (
        names.get(settlement.institution, settlement.institution),
        f"{settlement.incarnation}/{settlement.sequence}",
        str(settlement.base_version) if settlement.base_hash else "-",
        str(settlement.staleness) if folded else "-",
        f"{float.fromhex(settlement.weight):.6f}" if folded else "-",
        settlement.outcome,
        settlement.hash[:12] or "-",
    )


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
