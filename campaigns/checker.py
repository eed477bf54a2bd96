"""Did the federation keep its promises? Judged afterwards from what it left behind, by code that shares nothing with it."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import msgpack

from campaigns.evidence import Evidence, Outage, Row
from campaigns.replay import Replay, replay
from campaigns.wire import Chain, UpdateId, read_body, sha256, whole_contents

Promise = Literal["lost", "doubled", "forked", "gap", "replay", "privacy", "ledger", "unsettled", "waiting"]
"""Which promise a finding breaks."""
OUTCOMES = ("aggregated", "stale", "rejected", "over_budget", "lost")
MOST_NAMED = 8
"""So many findings of one promise are told in words; all are counted."""
WAITING_SECONDS = 3.0
"""An outage has to last so long before it can show that nobody waited for it."""
LEAST_REPLAYED = 0.9
"""The part of the versions whose bodies the journal must hold; what the broker lost before confirming it is sent but not kept."""


class Finding(NamedTuple):
    """One broken promise."""

    promise: Promise
    text: str


@dataclass(slots=True)
class Verdict:
    """What was found, and what was looked at."""

    findings: list[Finding] = field(default_factory=list)
    figures: dict[str, int] = field(default_factory=dict)

    def count(self, promise: Promise) -> int:
        """How often a promise was broken."""
        return sum(finding.promise == promise for finding in self.findings)

    def in_words(self) -> list[str]:
        """The findings, the first few of each promise."""
        seen: Counter[str] = Counter()
        told = []
        for promise, text in self.findings:
            seen[promise] += 1
            if seen[promise] <= MOST_NAMED:
                told.append(f"{promise}: {text}")
        return told


@dataclass(frozen=True, slots=True, eq=False)
class _Records:
    """The evidence, read. Institutions go by pseudonym."""

    evidence: Evidence
    chain: Chain
    settlements: Mapping[UpdateId, list[Mapping[str, Any]]]
    sealed: Mapping[UpdateId, str]
    contents: Mapping[str, bytes]
    content_ids: list[tuple[str, str, str]]
    letters: set[tuple[str, str]]
    replay: Replay
    blobs: Mapping[str, bytes]

    def name(self, update: UpdateId) -> str:
        """For people."""
        names = {pseudonym: name for name, pseudonym in self.evidence.pseudonyms.items()}
        return f"{names.get(update.institution, update.institution)}/{update.incarnation}/{update.sequence}"


def check(evidence: Evidence) -> Verdict:
    """Every promise in turn."""
    records = _read(evidence)
    verdict = Verdict(figures=_figures(records))
    for look in CHECKS:
        verdict.findings += look(records)
    return verdict


def _read(evidence: Evidence) -> _Records:
    chain = Chain()
    for message in evidence.lineage:
        chain.take(message)
    settlements: dict[UpdateId, list[Mapping[str, Any]]] = {}
    for link in chain.links:
        for each in link.manifest["settled"]:
            number = UpdateId(each["institution"], each["incarnation"], each["sequence"])
            settlements.setdefault(number, []).append({**each, "made": link.version})
    contents, content_ids = {}, []
    for institution, stored in evidence.journals.items():
        for identity, digest, content in whole_contents(stored):
            contents[digest] = content
            content_ids.append((institution, identity, digest))
    blobs = {digest: content for stored in (evidence.models, evidence.states) for _, digest, content in whole_contents(stored)}
    letters = {(str(each.headers.get("id")), str(each.headers.get("content"))) for each in evidence.dead_letters}
    return _Records(
        evidence, chain, settlements, _sealed(evidence), contents, content_ids, letters, replay(chain, contents, blobs), blobs
    )


def _sealed(evidence: Evidence) -> dict[UpdateId, str]:
    sealed: dict[UpdateId, str] = {}
    for institution, rows in evidence.ledgers.items():
        for fields in _rows_of(rows, "SEALED"):
            number = UpdateId(evidence.pseudonyms[institution], _incarnation(rows), fields["sequence"])
            sealed.setdefault(number, fields["hash"])
    return sealed


def _rows_of(rows: Iterable[Row], state: str) -> Iterator[dict[str, Any]]:
    return (row.fields for row in rows if row.state == state)


def _incarnation(rows: Iterable[Row]) -> int:
    return next((fields["incarnation"] for fields in _rows_of(rows, "OPENED")), 1)


def _figures(records: _Records) -> dict[str, int]:
    settled = [each for several in records.settlements.values() for each in several]
    outcomes = Counter(str(each["outcome"]) for each in settled)
    return {
        "manifests": len(records.chain.links),
        "versions": records.chain.links[-1].version if records.chain.links else 0,
        "epochs": records.chain.epoch,
        "records without effect": records.chain.ignored,
        "updates sealed": len(records.sealed),
        **{f"settled as {outcome}": outcomes[outcome] for outcome in OUTCOMES if outcomes[outcome]},
        "versions replayed to the bit": records.replay.equal,
        "versions whose bodies the journal lacks": records.replay.lacking,
        "dead letters": len(records.evidence.dead_letters),
    }


def _sealed_updates(records: _Records) -> Iterator[Finding]:
    """P2 and P3: what was sealed and sent is settled, with its own content."""
    for number, digest in records.sealed.items():
        settled, name = records.settlements.get(number, []), records.name(number)
        if not settled and (name, digest) not in records.letters:
            sent = number.sequence in _sent(records, number)
            told = "was published and is nowhere" if sent else "was sealed and never settled"
            yield Finding("lost" if sent else "unsettled", f"{name} {told}")
        elif settled and settled[0]["outcome"] == "lost":
            yield Finding("lost", f"{name} was settled as lost, and its institution has it")
        elif settled and settled[0]["hash"] not in ("", digest):
            yield Finding("privacy", f"{name} was settled with another content than was sealed")


def _settlements(records: _Records) -> Iterator[Finding]:
    """P2: what is settled is settled once, and somebody sealed it."""
    for number, settled in records.settlements.items():
        for _ in settled[1:]:
            yield Finding("doubled", f"{records.name(number)} was settled {len(settled)} times")
        if number not in records.sealed and settled[0]["outcome"] != "lost":
            yield Finding("ledger", f"{records.name(number)} was settled, and no ledger has sealed it")


def _sent(records: _Records, number: UpdateId) -> set[int]:
    institution = records.name(number).split("/", 1)[0]
    rows = records.evidence.ledgers[institution]
    return {fields["sequence"] for state in ("PUBLISHED", "SETTLED") for fields in _rows_of(rows, state)}


def _history(records: _Records) -> Iterator[Finding]:
    """One history: no version has two contents, no reader saw a third, numbers follow each other without a gap."""
    chain = records.chain
    for fork in chain.forks:
        yield Finding("forked", fork)
    if not chain.links:
        yield Finding("gap", "the lineage holds no chain")
        return
    models = {link.version: link.manifest["model"]["hash"] for link in chain.links}
    if sorted(models) != list(range(chain.links[-1].version + 1)):
        yield Finding("gap", "the versions do not follow each other")
    for institution, rows in records.evidence.ledgers.items():
        for fields in _rows_of(rows, "RESERVED"):
            if models.get(fields["base_version"]) != fields["base_hash"]:
                yield Finding("forked", f"{institution} trained on a version {fields['base_version']} that is not the lineage's")


def _table(records: _Records) -> Iterator[Finding]:
    """The table says what the settlements say: numbers without gaps, counters, staleness."""
    for pseudonym, entry in records.chain.table.items():
        own = {number.sequence: each for number, each in records.settlements.items() if number.institution == pseudonym}
        if sorted(own) != list(range(1, entry["watermark"] + 1)):
            yield Finding("gap", f"{pseudonym}: the numbers up to its watermark {entry['watermark']} are not all settled")
        counted = Counter(str(each["outcome"]) for several in own.values() for each in several)
        if any(entry["counters"][outcome] != counted[outcome] for outcome in OUTCOMES):
            yield Finding("gap", f"{pseudonym}: its counters are not its settlements'")
    models = {link.version: link.manifest["model"]["hash"] for link in records.chain.links}
    for number, several in records.settlements.items():
        for each in several:
            folded = each["outcome"] == "aggregated"
            if folded and each["base_hash"] != models.get(each["base_version"]):
                yield Finding("forked", f"{records.name(number)} was folded on a base that is not in the lineage")
            if folded and each["staleness"] != each["made"] - 1 - each["base_version"]:
                yield Finding("gap", f"{records.name(number)}: its staleness is not the distance to its base")


def _bits(records: _Records) -> Iterator[Finding]:
    """P9: replay equals what was published, and what was published is all there."""
    for text in records.replay.different:
        yield Finding("replay", text)
    made = records.replay.equal + len(records.replay.different)
    if made < LEAST_REPLAYED * (made + records.replay.lacking):
        yield Finding("replay", f"the journal has the bodies of {made} versions only, {records.replay.lacking} lack some")
    for link in records.chain.links:
        missing = [kind for kind in ("model", "state") if _is_missing(records, link.manifest[kind])]
        if missing:
            yield Finding("replay", f"version {link.version} names a {' and a '.join(missing)} that is not in its stream")


def _is_missing(records: _Records, name: Mapping[str, Any] | None) -> bool:
    return name is not None and name["hash"] not in records.blobs


def _one_content_per_id(records: _Records) -> Iterator[Finding]:
    """P4: a retry is the same bytes; what was journalled under an id is what the ledger sealed under it."""
    seen: dict[str, str] = {}
    for institution, identity, digest in records.content_ids:
        body = read_body(records.contents[digest])
        if body.kind != "update":
            continue
        if seen.setdefault(identity, digest) != digest:
            yield Finding("privacy", f"{identity} was sent with two contents")
        number = UpdateId(records.evidence.pseudonyms[institution], body.fields["incarnation"], body.fields["sequence"])
        if records.sealed.get(number) != digest:
            yield Finding("privacy", f"{identity} was sent with a content that its ledger never sealed")


def _ledger_chains(records: _Records) -> Iterator[Finding]:
    """P4: no row of a ledger was changed or taken out."""
    for institution, rows in records.evidence.ledgers.items():
        previous = ""
        for row in rows:
            covered = msgpack.packb([row.number, row.state, row.at_seconds, row.packed, row.previous])
            if row.previous != previous or row.hash != sha256(covered):
                yield Finding("ledger", f"{institution}: row {row.number} does not follow from the one before")
            previous = row.hash


def _charges(records: _Records) -> Iterator[Finding]:
    """P4: every training was charged before it was sealed, once, and its update states what was charged."""
    for institution, rows in records.evidence.ledgers.items():
        charged: dict[int, float] = {}
        epsilon = 0.0
        for row in rows:
            fields = row.fields
            if row.state == "RESERVED":
                charged[row.number] = fields["epsilon_spent"] or 0.0
                if fields["noise_multiplier"] is not None and charged[row.number] <= epsilon:
                    yield Finding("privacy", f"{institution}: row {row.number} reserves a training and charges nothing for it")
                epsilon = charged[row.number]
            elif row.state == "SEALED":
                stated = charged.pop(fields["reservation"], None)
                if stated is None:
                    yield Finding("privacy", f"{institution}: update {fields['sequence']} was sealed without a charge of its own")
                elif stated != _stated(records, fields["hash"], stated):
                    yield Finding(
                        "privacy", f"{institution}: update {fields['sequence']} states another epsilon than was charged"
                    )


def _stated(records: _Records, digest: str, otherwise: float) -> float:
    """The epsilon in an update's own statement, where the journal has the update."""
    content = records.contents.get(digest)
    return otherwise if content is None else float(read_body(content).fields["privacy"]["epsilon_spent"] or 0.0)


def _nobody_waited(records: _Records) -> Iterator[Finding]:
    """P1: while one institution was dead, others were settled; one that never started kept nobody from anything."""
    evidence = records.evidence
    dead = {evidence.pseudonyms[institution] for institution in evidence.never_started}
    alive = {number.institution for number in records.settlements}
    for pseudonym in dead & alive:
        yield Finding("waiting", f"{pseudonym} was never started and has settlements")
    for name, pseudonym in evidence.pseudonyms.items():
        if pseudonym not in dead | alive:
            yield Finding("waiting", f"{name} was never settled at all")
    for outage in evidence.outages:
        if outage.end - outage.begin >= WAITING_SECONDS and not _others_went_on(evidence, outage):
            yield Finding(
                "waiting", f"nobody was settled while {outage.institution} was out for {outage.end - outage.begin:.1f} s"
            )


def _others_went_on(evidence: Evidence, outage: Outage) -> bool:
    own = evidence.pseudonyms[outage.institution]
    return any(outage.begin < at < outage.end and who != own for at, who in evidence.progress)


CHECKS: tuple[Callable[[_Records], Iterator[Finding]], ...] = (
    _sealed_updates,
    _settlements,
    _history,
    _table,
    _bits,
    _one_content_per_id,
    _ledger_chains,
    _charges,
    _nobody_waited,
)
