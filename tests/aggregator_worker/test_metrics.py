"""What an aggregator shows: read off the committed lineage, for members only, and only while it leads."""

import time
from contextlib import ExitStack

import pytest
from prometheus_client import CollectorRegistry

from aggregator_worker.metrics import AggregatorMetrics
from monitoring.vitals import Vitals
from shared.lineage import Lineage
from shared.messages import Counters, Entry, Location, ManifestRecord, Settlement
from shared.plan import Ending
from tests.builders import a_manifest, a_plan
from tests.conftest import MemoryServer
from tests.running import Hand, Leader, Watch, begin

PLAN = a_plan(ending=Ending(metric="auc"))
NAMES = {"a" * 16: "bank-a", "b" * 16: "bank-b"}


def an_entry(**fields) -> Entry:
    return Entry(**{"incarnation": 1, "num_examples": 100, **fields})


TABLE = {
    "a" * 16: an_entry(num_examples=300, total_weight=(3.0).hex(), epsilon_spent=0.5, counters=Counters(aggregated=4, stale=1)),
    "b" * 16: an_entry(total_weight=(1.0).hex(), active=False, quarantined=True),
    "c" * 16: an_entry(removed=True, num_examples=5000, total_weight=(9.0).hex()),
}


class Shown:
    """An aggregator's metrics and what a scrape of them gives."""

    def __init__(self, names: dict[str, str] = NAMES) -> None:
        self.metrics = AggregatorMetrics(Vitals(), names=lambda: names)
        self._registry = CollectorRegistry()
        self.metrics.register(self._registry)

    def get(self, name: str, **labels: str) -> float | None:
        return self._registry.get_sample_value(name, labels)

    def samples(self) -> list:
        return [sample for family in self._registry.collect() for sample in family.samples]

    def names(self) -> set[str]:
        return {family.name for family in self._registry.collect()}


@pytest.fixture
def shown() -> Shown:
    return Shown()


def lineage(version: int = 7, **changes) -> Lineage:
    manifest = a_manifest(version, plan=PLAN, plan_hash=PLAN.hash, table=TABLE, **changes)
    record = ManifestRecord(3, b"", manifest, "0" * 64, Location(offset=0, chunks=1), None)
    return Lineage(epoch=3, head=record, table=TABLE, plan=PLAN)


def a_settlement(pseudonym: str, outcome: str, staleness: int = 0) -> Settlement:
    return Settlement(institution=pseudonym, incarnation=1, sequence=1, hash="0" * 64, outcome=outcome, staleness=staleness)


def test_a_leader_shows_what_was_committed(shown: Shown) -> None:
    shown.metrics.leads(lineage(phase="paused", metrics={"auc": 0.7, "log_loss": None}))

    assert shown.get("fedqueue_leading") == 1
    assert shown.get("fedqueue_epoch") == 3
    assert shown.get("fedqueue_model_version") == 7
    phases = {phase: shown.get("fedqueue_phase", phase=phase) for phase in ("running", "paused", "finished")}
    assert phases == {"running": 0, "paused": 1, "finished": 0}
    assert shown.get("fedqueue_updates_total", institution="bank-a", outcome="aggregated") == 4
    assert shown.get("fedqueue_updates_total", institution="bank-a", outcome="stale") == 1
    assert shown.get("fedqueue_updates_total", institution="bank-b", outcome="duplicate") == 0
    assert shown.get("fedqueue_held_out_metric", metric="auc") == 0.7
    assert shown.get("fedqueue_institution_active", institution="bank-b") == 0
    assert shown.get("fedqueue_institution_quarantined", institution="bank-b") == 1


def test_shares_are_of_the_members_and_of_whoever_has_a_name(shown: Shown) -> None:
    shown.metrics.leads(lineage())

    assert shown.get("fedqueue_institution_weight_share", institution="bank-a") == 0.75
    assert shown.get("fedqueue_institution_data_share", institution="bank-a") == 0.75
    assert shown.get("fedqueue_institution_data_share", institution="bank-b") == 0.25
    assert "c" * 16 not in {label for sample in shown.samples() for label in sample.labels.values()}


def test_what_nobody_knows_has_no_series(shown: Shown) -> None:
    shown.metrics.leads(lineage(metrics={"log_loss": None}))

    assert shown.get("fedqueue_institution_epsilon_spent", institution="bank-b") is None
    assert shown.names().isdisjoint(
        {
            "fedqueue_held_out_metric",
            "fedqueue_held_out_metric_best",
            "fedqueue_epsilon_budget",
            "fedqueue_institution_last_update_timestamp_seconds",
            "fedqueue_run_started_timestamp_seconds",
        }
    )


def test_the_best_figure_is_that_of_the_plans_ending(shown: Shown) -> None:
    best = {"best_version": 5, "best_figure": (0.8).hex(), "best_model": "0" * 64, "best_size": 1}
    shown.metrics.leads(lineage(scalars=best))

    assert shown.get("fedqueue_held_out_metric_best", metric="auc") == 0.8


def test_times_are_those_of_the_manifests(shown: Shown) -> None:
    def record(version: int, *settled: Settlement) -> ManifestRecord:
        return lineage(version, settled=list(settled)).head

    shown.metrics.run_started(100.0)
    shown.metrics.reads(record(6, a_settlement("a" * 16, "aggregated")), at_seconds=110.0)
    shown.metrics.reads(record(7, a_settlement("a" * 16, "lost"), a_settlement("b" * 16, "rejected")), at_seconds=120.0)
    shown.metrics.reads(record(7), at_seconds=130.0)
    shown.metrics.leads(lineage())

    last = "fedqueue_institution_last_update_timestamp_seconds"
    assert shown.get("fedqueue_run_started_timestamp_seconds") == 100
    assert shown.get("fedqueue_version_committed_timestamp_seconds") == 120
    assert (shown.get(last, institution="bank-a"), shown.get(last, institution="bank-b")) == (110, 120)


def test_a_commit_is_timed_and_the_staleness_of_what_it_folded_is_counted(shown: Shown) -> None:
    settled = [
        a_settlement("a" * 16, "aggregated", 2),
        a_settlement("a" * 16, "aggregated", 9),
        a_settlement("b" * 16, "stale", 50),
    ]
    shown.metrics.commits(lineage(settled=settled), seconds=0.2)

    assert shown.get("fedqueue_commit_seconds_count") == 1
    assert shown.get("fedqueue_commit_seconds_bucket", le="0.25") == 1
    assert shown.get("fedqueue_commit_seconds_bucket", le="0.1") == 0
    assert (shown.get("fedqueue_update_staleness_count"), shown.get("fedqueue_update_staleness_sum")) == (2, 11)
    assert shown.metrics.vitals.now().reason == "leading, version 7, running"


def test_refused_messages_are_counted_for_members_only(shown: Shown) -> None:
    for name in ("bank-a", "bank-a", "bank-c"):
        shown.metrics.refuses(name)
    shown.metrics.leads(lineage())

    assert shown.get("fedqueue_refused_messages_total", institution="bank-a") == 2
    assert shown.get("fedqueue_refused_messages_total", institution="bank-b") == 0
    assert shown.get("fedqueue_refused_messages_total", institution="bank-c") is None


def test_a_member_whose_name_is_not_known_goes_by_its_pseudonym() -> None:
    shown = Shown(names={})
    shown.metrics.leads(lineage())

    assert shown.get("fedqueue_updates_total", institution="a" * 16, outcome="aggregated") == 4


def test_a_standby_is_ready_and_shows_nothing_of_the_federation(shown: Shown) -> None:
    shown.metrics.leads(lineage())
    shown.metrics.leads_no_more()
    shown.metrics.stands_by()

    assert shown.get("fedqueue_leading") == 0
    assert shown.names() == {"fedqueue_leading", "fedqueue_update_staleness", "fedqueue_commit_seconds"}
    assert (shown.metrics.vitals.now().ready, shown.metrics.vitals.now().reason) == (True, "standing by to lead")


def test_who_takes_over_is_not_ready_and_what_was_in_its_way_still_is(shown: Shown) -> None:
    vitals = shown.metrics.vitals
    shown.metrics.stands_by()
    shown.metrics.takes_over()
    assert (vitals.now().ready, vitals.now().reason) == (False, "taking over")

    vitals.not_ready("the disk is full")
    shown.metrics.takes_over()
    assert vitals.now().reason == "the disk is full"


@pytest.mark.long
def test_a_leader_that_cannot_commit_is_not_ready_also_while_another_leads(tmp_path, soon) -> None:
    """A folder that cannot be written, as on a full disk: it neither leads nor stands by, and says why."""
    broker, first, second = MemoryServer(), AggregatorMetrics(), AggregatorMetrics()
    folder = tmp_path / "first"
    begin(broker, a_plan({"buffer_size": 1}))
    watch = Watch(broker.connect("operator"))
    with ExitStack() as stack:
        leader = stack.enter_context(Leader(broker, folder, metrics=first))
        assert soon(lambda: first.vitals.now().reason == "leading, version 0, running")
        stack.enter_context(Leader(broker, tmp_path / "second", metrics=second))
        assert soon(lambda: second.vitals.now().reason == "standing by to lead")
        folder.rename(tmp_path / "away")
        folder.write_text("a file stands where the folder was")
        Hand(broker, "bank-a").send(watch.head, 1, 1.0, 1.0, 1.0)
        assert soon(lambda: second.vitals.now().reason == "leading, version 1, running")
        for _ in range(15):
            time.sleep(0.2)
            assert not first.vitals.now().ready
        assert str(folder) in first.vitals.now().reason
        folder.unlink()
        (tmp_path / "away").rename(folder)
        assert soon(lambda: first.vitals.now().reason == "standing by to lead")
    assert first.vitals.now().reason == "ending"
    assert leader.failure is None
