"""A run that kept its journals, as the broker still holds it: a version to begin with, all links after it, the sealed updates."""

from collections.abc import Mapping
from dataclasses import dataclass

from broker_config.streams import fetch_model, fetch_state, records_of
from operator_console.journal import Journal
from operator_console.replay_command import choose_start, oldest_kept, read_chain
from shared.broker import Broker
from shared.messages import Entry, ManifestRecord
from simulator.message_order import Link
from simulator.refold import Load, Start


@dataclass(frozen=True, slots=True, eq=False)
class RecordedRun:
    """`links` are those after the start; `passed_over` says why it is none of the older versions that are kept."""

    start: Start
    links: list[Link]
    load: Load
    passed_over: str = ""


def recorded_run(broker: Broker, names: Mapping[str, str]) -> RecordedRun:
    """From the oldest version after which nothing is missing, nothing was rolled back, and one plan was in force.

    `names` gives the institution behind a pseudonym. Raises JournalGapError where there is no such version.
    """
    chain = read_chain(broker)
    journal = Journal(broker, names, max_bytes=chain.plan.limits.update_bytes)
    lacking = set(journal.find([each for folded in chain.folded.values() for each in folded]))
    missing = {made: [each for each in folded if each in lacking] for made, folded in chain.folded.items()}
    unbroken = [version for version in oldest_kept(broker, chain) if version >= max([0, *chain.roll_backs, *chain.plan_changes])]
    version, passed_over = choose_start(unbroken, missing, target=chain.newest)
    record = chain.versions[version]
    first, links = _links(broker, record)
    start = Start(
        link=first,
        plan=chain.plan_after(version),
        names=names,
        model=fetch_model(broker, record),
        wide=fetch_state(broker, record),
        earlier={number: known.manifest.model.hash for number, known in chain.versions.items() if number < version},
    )
    return RecordedRun(start, links, journal.load, passed_over)


def _links(broker: Broker, start: ManifestRecord) -> tuple[Link, list[Link]]:
    """The start's link and all after it. Tables are known from the first whole one on."""
    table: dict[str, Entry] = {}
    first: Link | None = None
    links: list[Link] = []
    for record in records_of(broker):
        manifest = record.manifest
        table = dict(manifest.table) if manifest.whole else {**table, **manifest.table}
        if first is not None:
            links.append(Link(manifest, table))
        elif record.hash == start.hash:
            first = Link(manifest, table)
    if first is None:
        raise ValueError("the record to begin with is not in the lineage")
    return first, links
