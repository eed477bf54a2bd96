"""What happened in a run, from its lineage: the chain link by link, and each institution's part in it."""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from aggregator_worker.roll_back import rolled_back
from broker_config.streams import IDLE_SECONDS, LINEAGE_PREFETCH, LineageReader, UninitialisedError, last_offset
from broker_config.topology import LINEAGE
from shared.broker import Broker, Delivery
from shared.lineage import standing_under
from shared.messages import Counters, Entry, Manifest, ManifestRecord, Settlement
from shared.plan import Plan

SCHEMA = 1
"""Of a line of lineage.jsonl."""


@dataclass(frozen=True, slots=True)
class Link:
    """One manifest of the valid chain. `at_ms` is its publisher's wall clock."""

    at_ms: int
    epoch: int
    hash: str
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Part:
    """One institution's part in the run. `settled` are its settlements in the chain's order, each with its link's `at_ms`."""

    institution: str
    entry: Entry
    settled: Sequence[tuple[int, Settlement]]

    @property
    def stalenesses(self) -> list[int]:
        """Of its aggregated updates, oldest first."""
        return [settlement.staleness for _, settlement in self.settled if settlement.outcome == "aggregated"]

    def standing(self, plan_hash: str) -> str | None:
        """Why it gives no more updates under a plan, in words; None while it may."""
        return standing_text(standing_under(self.entry, plan_hash), self.entry.standing_limit)

    @property
    def mean_staleness(self) -> float | None:
        """None while nothing of it was aggregated."""
        return fmean(self.stalenesses) if self.stalenesses else None

    @property
    def total_weight(self) -> float:
        """The sum of the weights with which its updates were folded."""
        return float.fromhex(self.entry.total_weight)


def standing_text(standing: str | None, limit: str) -> str | None:
    """An entry's standing for people."""
    if standing is None:
        return None
    return "budget spent" if standing == "budget_spent" else f"refuses the plan: {limit}"


class History:
    """Every link of a chain, taken in order; a link that is read again changes nothing.

    `names` gives the institution behind a pseudonym; one that is not there goes by its pseudonym. With `kept` only the first link
    stays, and at least so many of the newest links and of each institution's newest settlements.
    """

    def __init__(self, names: Mapping[str, str], *, kept: int | None = None) -> None:
        self.links: list[Link] = []
        self.plan: Plan | None = None
        self.names = dict(names)
        self._kept = kept
        self._table: dict[str, Entry] = {}
        self._settled: dict[str, list[tuple[int, Settlement]]] = {}
        self._known: set[str] = set()

    def take(self, record: ManifestRecord, delivery: Delivery) -> None:
        """The callback of a LineageReader."""
        if record.hash in self._known:
            return
        manifest, at_ms = record.manifest, int(delivery.message.headers.get("at_ms", 0))
        self._known.add(record.hash)
        self.links.append(Link(at_ms, record.epoch, record.hash, manifest))
        self.plan = manifest.plan or self.plan
        self._table = dict(manifest.table) if manifest.whole else {**self._table, **manifest.table}
        for settlement in manifest.settled:
            self._settled.setdefault(settlement.institution, []).append((at_ms, settlement))
        if self._kept is not None and len(self.links) > 2 * self._kept:
            self._forget(self._kept)

    def _forget(self, kept: int) -> None:
        self.links[1:-kept] = []
        for settled in self._settled.values():
            settled[:-kept] = []

    @property
    def head(self) -> Link | None:
        """The newest link."""
        return self.links[-1] if self.links else None

    def parts(self) -> list[Part]:
        """Each institution's part, in the order of the names; strangers behind them."""
        order = list(self.names)
        known = sorted(self._table, key=lambda alias: order.index(alias) if alias in self.names else len(order))
        return [Part(self.name(alias), self._table[alias], self._settled.get(alias, ())) for alias in known]

    def counters(self) -> dict[str, int]:
        """How the updates of all institutions ended, since their admission."""
        total = dict.fromkeys(Counters.model_fields, 0)
        for entry in self._table.values():
            for outcome, count in entry.counters.model_dump().items():
                total[outcome] += count
        return total

    def metric(self, name: str) -> list[tuple[Link, float]]:
        """A held-out figure over the versions that have it."""
        values = ((link, link.manifest.metrics.get(name)) for link, _ in self._versions())
        return [(link, value) for link, value in values if value is not None]

    def name(self, alias: str) -> str:
        """The institution behind a pseudonym."""
        return self.names.get(alias, alias)

    def lines(self) -> Iterator[dict[str, Any]]:
        """The lines of lineage.jsonl: exactly one for each version (docs/report.md)."""
        plan_hash = ""
        for link, later in self._versions():
            yield self._line(link, later, known_plan=plan_hash)
            plan_hash = link.manifest.plan_hash

    def line(self, version: int) -> dict[str, Any] | None:
        """The line of one version; None for one that is not there, or was forgotten."""
        plan_hash = ""
        for link, later in self._versions():
            if link.manifest.version == version:
                return self._line(link, later, known_plan=plan_hash)
            plan_hash = link.manifest.plan_hash
        return None

    def _versions(self) -> Iterator[tuple[Link, list[Link]]]:
        """The link that made each version, and those after it that only settled."""
        for _, group in groupby(self.links, key=lambda link: link.manifest.version):
            first, *later = group
            yield first, later

    def _line(self, link: Link, later: Sequence[Link], *, known_plan: str) -> dict[str, Any]:
        manifest, last = link.manifest, (later or [link])[-1]
        settled = [(each, settlement) for each in (link, *later) for settlement in each.manifest.settled]
        folded = [settlement for _, settlement in settled if settlement.outcome == "aggregated"]
        refused = [(where, settlement) for where, settlement in settled if settlement.outcome != "aggregated"]
        return {
            "schema": SCHEMA,
            "version": manifest.version,
            "at_ms": link.at_ms,
            "seconds": self._seconds(link),
            "epoch": link.epoch,
            "manifest": link.hash,
            "previous": manifest.previous,
            "later_manifests": [each.hash for each in later],
            "model": manifest.model.hash,
            "model_bytes": manifest.model.size,
            "plan_hash": manifest.plan_hash,
            **self._roll_back(manifest),
            **({"plan": manifest.plan.model_dump()} if manifest.plan and manifest.plan_hash != known_plan else {}),
            "phase": last.manifest.phase,
            "phase_reason": last.manifest.phase_reason,
            "metrics": manifest.metrics,
            "updates": [self._update(settlement) for settlement in folded],
            "not_folded": [self._refused(where, settlement) for where, settlement in refused],
            "institutions": self._changed(link, *later),
        }

    def _roll_back(self, manifest: Manifest) -> dict[str, Any]:
        """What a version that folds nothing is made of."""
        back = rolled_back(manifest)
        if back is None:
            return {}
        return {"roll_back": {"to_version": back.to_version, "without": self.name(back.without) if back.without else None}}

    def _update(self, settlement: Settlement) -> dict[str, Any]:
        return {
            **self._identity(settlement),
            "base_version": settlement.base_version,
            "base_hash": settlement.base_hash,
            "staleness": settlement.staleness,
            "weight": float.fromhex(settlement.weight),
            "weight_hex": settlement.weight,
            "scale_hex": settlement.scale,
        }

    def _refused(self, link: Link, settlement: Settlement) -> dict[str, Any]:
        """One that never came or could not be read has no base."""
        return {
            **self._identity(settlement),
            "outcome": settlement.outcome,
            "reason": settlement.reason,
            "base_version": settlement.base_version if settlement.base_hash else None,
            "seconds": self._seconds(link),
            "manifest": link.hash,
        }

    def _seconds(self, link: Link) -> float:
        """Since version 0."""
        return round((link.at_ms - self.links[0].at_ms) / 1000, 3)

    def _identity(self, settlement: Settlement) -> dict[str, Any]:
        return {
            "institution": self.name(settlement.institution),
            "pseudonym": settlement.institution,
            "incarnation": settlement.incarnation,
            "sequence": settlement.sequence,
            "hash": settlement.hash,
        }

    def _changed(self, *links: Link) -> dict[str, Any]:
        changed = {alias: entry for link in links for alias, entry in link.manifest.table.items()}
        return {
            self.name(alias): {
                "updates": entry.counters.aggregated,
                "total_weight": float.fromhex(entry.total_weight),
                "num_examples": entry.num_examples,
                "epsilon_spent": entry.epsilon_spent,
            }
            for alias, entry in changed.items()
        }

    def write(self, path: Path) -> None:
        """Writes lineage.jsonl aside and renames it, so that a reader never sees half of it."""
        write_whole(path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in self.lines()))


def write_whole(path: Path, text: str) -> None:
    """Replaces a file in one step."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def follow(broker: Broker, history: History) -> LineageReader:
    """Reads the lineage from its first record into `history`, then stays subscribed for what comes.

    Call `fold_next` from then on. Raises UninitialisedError where there is no run.
    """
    end = last_offset(broker, LINEAGE)
    if end < 0:
        raise UninitialisedError(f"{LINEAGE} is empty; run `fedqueue init` first, it makes version 0")
    reader = LineageReader(broker, on_record=history.take)
    for delivery in broker.read(LINEAGE, "first", count=None, idle_seconds=2 * IDLE_SECONDS):
        reader.take(delivery)
        if delivery.offset is not None and delivery.offset >= end:
            break
    broker.consume(LINEAGE, prefetch=LINEAGE_PREFETCH, start=end + 1)
    return reader


def fold_next(broker: Broker, reader: LineageReader, *, timeout_seconds: float) -> None:
    """Folds the records that come within `timeout_seconds`; returns no sooner."""
    deadline = time.monotonic() + timeout_seconds
    while (left := deadline - time.monotonic()) > 0:
        delivery = broker.receive(left)
        if delivery is not None:
            reader.take(delivery)
            broker.ack(delivery)
