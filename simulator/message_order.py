"""In which order an aggregator took what a manifest settles and what its table tells: hellos, standings, orders, updates.

Settlements stand in their order. Where the rest came between them a manifest does not say, but its weights and its clock do: the
order under which the aggregator's own code gives all of them is taken.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product

from aggregator_worker.admission import Admission, Number
from aggregator_worker.federation import Federation
from aggregator_worker.server_state import ServerState
from shared import messages
from shared.lineage import Lineage
from shared.messages import Entry, Location, Manifest, PrivacyStatement, Settlement, Update
from shared.plan import Plan

Table = Mapping[str, Entry]
Statement = Callable[[Settlement], Update]
"""What an update says of itself."""
MOST_ORDERS = 4096
"""So many orders are tried; if none gives the recorded weights, what was told is taken to have come before all updates."""
_ORDERS = {"admit", "remove", "quarantine", "release"}
_STANDING = ("standing", "standing_limit", "standing_plan")
_MEMBERSHIP = ("incarnation", "removed", "quarantined", "strikes")


@dataclass(frozen=True, slots=True)
class Link:
    """A manifest of a real run, and the whole table after it."""

    manifest: Manifest
    table: Table


@dataclass(frozen=True, slots=True)
class Told:
    """Something else than an update that changed an entry of the table. `spoken`: by the institution, not by the operator."""

    pseudonym: str
    changes: Mapping[str, object]
    spoken: bool = True


Event = Settlement | Told


def hear(federation: Federation, told: Told) -> None:
    """Changes the entry as the aggregator did. What was said of the plan is taken to be said of the federation's."""
    changes = dict(told.changes)
    if changes.get("standing_plan"):
        changes["standing_plan"] = federation.head.manifest.plan_hash
    if told.spoken:
        federation.weighing.heard(told.pseudonym)
    entry = federation.table.get(told.pseudonym) or Entry(incarnation=1)
    federation.change(told.pseudonym, entry.model_copy(update=changes))


def refuse(federation: Federation, recorded: Settlement) -> None:
    """Settles an update that was refused as it was, for the recorded reason, without its content."""
    number = Number(recorded.incarnation, recorded.sequence)
    if not recorded.base_hash:
        reason, content = recorded.reason, recorded.hash
        federation.settle_unread(recorded.institution, number, outcome=recorded.outcome, reason=reason, content=content)
        return
    head, entry = federation.head.manifest, federation.table[recorded.institution]
    update = Update(
        run_id=head.run_id,
        institution=recorded.institution,
        incarnation=recorded.incarnation,
        sequence=recorded.sequence,
        base_version=recorded.base_version,
        base_hash=recorded.base_hash,
        plan_hash=head.plan_hash,
        num_examples=entry.num_examples or 1,
        privacy=PrivacyStatement(mechanism="none"),
    )
    admission = Admission(recorded.outcome, recorded.reason, recorded.staleness)
    federation.settle(recorded.institution, update, recorded.hash, admission=admission, delta={})


def in_order(plan: Plan, before: Link, link: Link, statement: Statement) -> list[Event]:
    """All events of a link. `before` is the link before it."""
    told, settled = told_in(before.table, link), link.manifest.settled
    if not told or not settled:
        return [*told, *settled]
    statements = [statement(each) if each.outcome == "aggregated" else None for each in settled]
    places = islice(product(range(len(settled) + 1), repeat=len(told)), MOST_ORDERS)
    for chosen in places:
        events = _merged(told, settled, chosen)
        if _gives(plan, before, link, events, statements):
            return events
    return [*told, *settled]


def told_in(before: Table, link: Link) -> list[Told]:
    """What changed the table beside updates, by pseudonym; an institution that was away and sent an update has told nothing."""
    ordered = any(done.applied and done.kind in _ORDERS for done in link.manifest.operations)
    found: list[Told] = []
    for name, entry in sorted(link.table.items()):
        former = before.get(name)
        if former is entry or former == entry:
            continue
        own = [each.outcome for each in link.manifest.settled if each.institution == name]
        if ordered or former is None:
            found += _ordered(name, former, entry)
        if former is not None:
            found += _spoken(name, former, entry, own)
    return found


def _ordered(name: str, former: Entry | None, entry: Entry) -> Iterator[Told]:
    known = former or Entry(incarnation=entry.incarnation)
    changes: dict[str, object] = {key: getattr(entry, key) for key in _MEMBERSHIP if getattr(entry, key) != getattr(known, key)}
    if "incarnation" in changes:
        changes |= {"watermark": 0, "last_hash": "", "active": True}
    if "removed" in changes:
        changes["active"] = not entry.removed
    if changes or former is None:
        yield Told(name, {"incarnation": entry.incarnation, **changes}, spoken=False)


def _spoken(name: str, former: Entry, entry: Entry, own: Sequence[str]) -> Iterator[Told]:
    keys: list[str] = []
    if entry.nonce != former.nonce:
        keys += ["nonce", "num_examples"]
    elif entry.num_examples != former.num_examples and "aggregated" not in own:
        keys.append("num_examples")
    if any(getattr(entry, key) != getattr(former, key) for key in _STANDING) and "over_budget" not in own:
        keys += _STANDING
    returned = entry.active and not former.active and not former.removed and not own
    if keys or returned:
        yield Told(name, {key: getattr(entry, key) for key in keys})


def _merged(told: Sequence[Told], settled: Sequence[Settlement], places: Sequence[int]) -> list[Event]:
    """Each of `told` before the settlement with its place."""
    events: list[Event] = []
    for number in range(len(settled) + 1):
        events += [each for each, place in zip(told, places, strict=True) if place == number]
        events += settled[number : number + 1]
    return events


def _gives(plan: Plan, before: Link, link: Link, events: Sequence[Event], statements: Sequence[Update | None]) -> bool:
    """Whether this order gives the recorded weights, accounts and clock. Deltas do not matter, so there are none."""
    record = messages.manifest_record(1, before.manifest, Location(offset=0, chunks=1))
    known = Lineage(epoch=1, claims=True, head=record, table=before.table, plan=plan)
    federation = Federation(known, ServerState({}, plan.aggregation), bases=lambda _: {})
    left = iter(statements)
    for event in events:
        if isinstance(event, Told):
            hear(federation, event)
            continue
        update = next(left)
        if not _settled_alike(federation, event, update):
            return False
    accounts = all(federation.table[name].account == entry.account for name, entry in link.table.items())
    return accounts and all(link.manifest.scalars.get(name) == value for name, value in federation.weighing.scalars().items())


def _settled_alike(federation: Federation, recorded: Settlement, update: Update | None) -> bool:
    if update is None:
        refuse(federation, recorded)
        return True
    admission = Admission("aggregated", "", recorded.staleness)
    made = federation.settle(recorded.institution, update, recorded.hash, admission=admission, delta={})
    return made.weight == recorded.weight
