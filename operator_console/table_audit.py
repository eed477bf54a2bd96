"""Do a manifest's table and its settlements agree? Kept from the settlements alone, then compared. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from shared.messages import Counters, Entry, Manifest, Settlement

Id = tuple[str, int, int]


@dataclass(slots=True)
class TableAudit:
    """Every institution as the settlements so far leave it.

    `unfolded` are ids that were settled without being aggregated: only such a one may be settled again, when the operator has
    a dead letter taken back. `whole` is False where the lineage's beginning is gone, and with it what was settled there.
    """

    table: dict[str, Entry] = field(default_factory=dict)
    unfolded: set[Id] = field(default_factory=set)
    whole: bool = True

    def complaints(self, manifest: Manifest, *, head_version: int, bases: Mapping[int, str]) -> Iterator[str]:
        """What is wrong with a manifest's settlements and table, which are taken over as they are asked for."""
        expected = dict(self.table)
        for settlement in manifest.settled:
            yield from self._number(settlement, expected, manifest)
            yield from _base(settlement, head_version, bases)
            expected[settlement.institution] = _after(settlement, expected[settlement.institution])
        yield from _missing(manifest, expected)
        for pseudonym, entry in manifest.table.items():
            yield from _entry(pseudonym, entry, expected.get(pseudonym), manifest)
        self.table = {**expected, **manifest.table}

    def _number(self, settlement: Settlement, expected: dict[str, Entry], manifest: Manifest) -> Iterator[str]:
        """P2: a number follows its institution's watermark; one below it was not aggregated, and was taken back."""
        who = settlement.institution
        entry = expected.get(who)
        if entry is None or settlement.incarnation > entry.incarnation:
            if not _has(manifest, "admit"):
                yield f"an update of incarnation {settlement.incarnation} of {who} is settled, which nobody admitted"
            counters = entry.counters if entry else Counters()
            weight = entry.total_weight if entry else "0x0.0p+0"
            entry = Entry(incarnation=settlement.incarnation, counters=counters, total_weight=weight)
            expected[who] = entry
        this: Id = (who, settlement.incarnation, settlement.sequence)
        if settlement.incarnation < entry.incarnation or settlement.sequence > entry.watermark + 1:
            yield f"number {settlement.incarnation}/{settlement.sequence} of {who} is settled where {_next(entry)} is next"
        elif settlement.sequence <= entry.watermark and not self._may_come_again(this, manifest):
            yield f"number {settlement.incarnation}/{settlement.sequence} of {who} is settled a second time"
        if settlement.outcome == "aggregated":
            self.unfolded.discard(this)
        else:
            self.unfolded.add(this)

    def _may_come_again(self, this: Id, manifest: Manifest) -> bool:
        ordered = any(done.kind == "requeue" for done in manifest.operations)
        return ordered and (this in self.unfolded or not self.whole)


def _base(settlement: Settlement, head_version: int, bases: Mapping[int, str]) -> Iterator[str]:
    number = f"{settlement.incarnation}/{settlement.sequence} of {settlement.institution}"
    if settlement.outcome != "aggregated":
        if float.fromhex(settlement.weight):
            yield f"number {number} is settled as {settlement.outcome}, and has a weight"
        return
    if settlement.staleness != head_version - settlement.base_version:
        yield f"number {number} is on version {settlement.base_version}, and its staleness is given as {settlement.staleness}"
    if bases.get(settlement.base_version, settlement.base_hash) != settlement.base_hash:
        yield f"number {number} names a base that is not the model of version {settlement.base_version}"


def _after(settlement: Settlement, entry: Entry) -> Entry:
    counters = entry.counters.model_dump()
    counters[settlement.outcome] += 1
    newest = settlement.sequence > entry.watermark
    return entry.model_copy(
        update={
            "watermark": settlement.sequence if newest else entry.watermark,
            "last_hash": settlement.hash if newest else entry.last_hash,
            "total_weight": (float.fromhex(entry.total_weight) + float.fromhex(settlement.weight)).hex(),
            "counters": Counters(**counters),
        }
    )


def _missing(manifest: Manifest, expected: Mapping[str, Entry]) -> Iterator[str]:
    needed = expected.keys() if manifest.whole else {settlement.institution for settlement in manifest.settled}
    for pseudonym in sorted(needed - manifest.table.keys()):
        yield f"{pseudonym} is missing in the table"


def _entry(pseudonym: str, entry: Entry, expected: Entry | None, manifest: Manifest) -> Iterator[str]:
    """One entry against what the settlements make of it; a hello may change the rest of it at any time."""
    if expected is None or entry.incarnation > expected.incarnation:
        if not _has(manifest, "admit"):
            yield f"the table has incarnation {entry.incarnation} of {pseudonym}, which nobody admitted"
        base = expected or Entry(incarnation=entry.incarnation)
        expected = base.model_copy(update={"incarnation": entry.incarnation, "watermark": 0, "last_hash": ""})
    for name in ("incarnation", "watermark", "last_hash", "total_weight"):
        if getattr(entry, name) != getattr(expected, name):
            yield f"the table gives {name} {getattr(entry, name)!r} of {pseudonym}, the settlements {getattr(expected, name)!r}"
    told, counted = entry.counters.model_dump(), expected.counters.model_dump()
    if told | {"duplicate": 0} != counted | {"duplicate": 0} or told["duplicate"] < counted["duplicate"]:
        yield f"the table's counters of {pseudonym} are not those of its settlements"
    if (entry.epsilon_spent or 0.0) < (expected.epsilon_spent or 0.0):
        yield f"the epsilon of {pseudonym} falls"


def _has(manifest: Manifest, kind: str) -> bool:
    return any(done.kind == kind and done.applied for done in manifest.operations)


def _next(entry: Entry) -> str:
    return f"{entry.incarnation}/{entry.watermark + 1}"
