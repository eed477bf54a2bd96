"""What an aggregator shows of itself: a term tells its events in values, scrapes read on threads of their own.

What becomes of updates is read off the committed lineage, so a successor goes on where its predecessor stopped. Only
refused messages and the two histograms are counted by the process.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from aggregator_worker.figures import FIGURES, Led
from monitoring.figures import Figure, families, one
from monitoring.vitals import Vitals
from shared.lineage import Lineage
from shared.messages import ManifestRecord

STALENESS_BUCKETS = (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89)
COMMIT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


def _staleness() -> Histogram:
    text = "Versions that had been made since the base of an aggregated update"
    return Histogram("fedqueue_update_staleness", text, registry=None, buckets=STALENESS_BUCKETS)


def _commit_seconds() -> Histogram:
    text = "How long commits took, the evaluation of the new version included"
    return Histogram("fedqueue_commit_seconds", text, registry=None, buckets=COMMIT_BUCKETS)


@dataclass(slots=True, eq=False)
class AggregatorMetrics(Collector):
    """A term's events, and what they mean for health and figures. `names` gives the members' names by pseudonym."""

    vitals: Vitals = field(default_factory=Vitals)
    names: Callable[[], Mapping[str, str]] = dict
    staleness: Histogram = field(default_factory=_staleness)
    commit_seconds: Histogram = field(default_factory=_commit_seconds)
    _head: Lineage | None = None
    _refused: Counter[str] = field(default_factory=Counter)
    _last_update_at: dict[str, float] = field(default_factory=dict)
    _version: int = -1
    _version_at: float | None = None
    _run_started_at: float | None = None

    def register(self, registry: CollectorRegistry) -> None:
        """Adds the figures to a registry."""
        for collector in (self, self.staleness, self.commit_seconds):
            registry.register(collector)

    def stands_by(self) -> None:
        """It waits for the token, and could lead."""
        self.vitals.ready("standing by to lead")

    def takes_over(self) -> None:
        """It has the token and does not lead yet. What was in its way before still is, as far as anybody knows."""
        if self.vitals.now().ready:
            self.vitals.not_ready("taking over")

    def run_started(self, at_seconds: float | None) -> None:
        """Version 0 was published then (Unix time), if anybody knows."""
        self._run_started_at = at_seconds

    def reads(self, record: ManifestRecord, *, at_seconds: float) -> None:
        """A manifest of the valid chain, new or from before this term; `at_seconds` is its publisher's Unix time."""
        manifest = record.manifest
        if manifest.version != self._version:
            self._version, self._version_at = manifest.version, at_seconds
        for settlement in manifest.settled:
            if settlement.outcome != "lost":
                self._last_update_at[settlement.institution] = at_seconds

    def leads(self, lineage: Lineage) -> None:
        """It leads from this head on."""
        self._head = lineage
        manifest = lineage.head.manifest if lineage.head else None
        self.vitals.ready(f"leading, version {manifest.version}, {manifest.phase}" if manifest else "leading")

    def commits(self, lineage: Lineage, *, seconds: float) -> None:
        """It has committed this head in so many seconds."""
        self.leads(lineage)
        self.commit_seconds.observe(seconds)
        for settlement in lineage.head.manifest.settled if lineage.head else ():
            if settlement.outcome == "aggregated":
                self.staleness.observe(settlement.staleness)

    def refuses(self, institution: str) -> None:
        """It could not use a message of this institution."""
        self._refused[institution] += 1

    def leads_no_more(self) -> None:
        """The federation's figures are another aggregator's to show from now on."""
        self._head = None

    def collect(self) -> Iterator[Metric]:
        """Called at every scrape. Copies are taken first: the term goes on meanwhile."""
        head = self._head
        yield from families(OWN_FIGURES, head is not None)
        if head is not None and head.head is not None and head.plan is not None and head.table is not None:
            led = Led(
                epoch=head.epoch,
                manifest=head.head.manifest,
                plan=head.plan,
                table=head.table,
                names=self.names(),
                refused=dict(self._refused),
                last_update_at=dict(self._last_update_at),
                version_at=self._version_at,
                run_started_at=self._run_started_at,
            )
            yield from families(FIGURES, led)


OWN_FIGURES: tuple[Figure[bool], ...] = (Figure("fedqueue_leading", "1 while this aggregator leads, else 0", one),)
