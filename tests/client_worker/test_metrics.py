"""What a client worker shows: what it is at, whether it is ready, and figures of its loop and its ledger."""

import pytest
from prometheus_client import CollectorRegistry

from client_worker.ledger_rows import Totals
from client_worker.metrics import STATES, ClientMetrics, Work
from shared.errors import BrokerUnavailableError, StorageError
from shared.plan import PrivacyPlan
from tests.builders import a_claim, a_plan, a_record, folded

PLAN = a_plan(privacy=PrivacyPlan(epsilon=3.0, target_delta=1e-5))


@pytest.fixture
def gauges() -> ClientMetrics:
    return ClientMetrics()


@pytest.fixture
def registry(gauges: ClientMetrics) -> CollectorRegistry:
    registry = CollectorRegistry()
    gauges.register(registry)
    return registry


def at(registry: CollectorRegistry) -> set[str]:
    """The states that are 1."""
    return {state for state in STATES if registry.get_sample_value("fedqueue_client_state", {"state": state}) == 1}


def test_one_state_at_a_time_is_told_and_whether_that_is_ready(gauges: ClientMetrics, registry: CollectorRegistry) -> None:
    vitals = gauges.vitals
    told = [(at(registry), vitals.now().ready, vitals.now().reason)]
    gauges.greets()
    told.append((at(registry), vitals.now().ready, vitals.now().reason))
    gauges.turns("budget_spent", "all 5 planned local trainings are used", Work())
    told.append((at(registry), vitals.now().ready, vitals.now().reason))

    assert told == [
        ({"disconnected"}, False, "starting"),
        ({"greeting"}, False, "connected, and waits to be greeted by an aggregator"),
        ({"budget_spent"}, True, "budget spent: all 5 planned local trainings are used"),
    ]


def test_a_lost_connection_is_not_ready_by_the_errors_own_words(gauges: ClientMetrics, registry: CollectorRegistry) -> None:
    gauges.turns("training", "on version 4", Work())
    with pytest.raises(BrokerUnavailableError), gauges.session():
        raise BrokerUnavailableError("the connection is gone")

    assert at(registry) == {"disconnected"}
    assert (gauges.vitals.now().ready, gauges.vitals.now().reason) == (False, "the connection is gone")


def test_a_ledger_that_cannot_be_written_keeps_it_from_being_ready_until_it_was_written_again(gauges: ClientMetrics) -> None:
    with pytest.raises(StorageError), gauges.session():
        raise StorageError("the disk is full")
    gauges.greets()
    gauges.turns("waiting", "for a model", Work())
    assert (gauges.vitals.now().ready, gauges.vitals.now().reason) == (False, "the disk is full")

    gauges.writes()
    gauges.turns("waiting", "for a model", Work())
    assert gauges.vitals.now().ready


def test_trainings_and_epsilon_are_those_of_the_ledger(gauges: ClientMetrics, registry: CollectorRegistry) -> None:
    totals = Totals(reservations=5, sealed=(3, "0" * 64), epsilon_spent={1e-5: 1.25, 1e-6: 1.5}, carried=0.5)
    known = folded(a_claim(1), a_record(0, plan=PLAN, plan_hash=PLAN.hash))
    gauges.turns("training", "on version 0", Work.of(known, totals, unsettled=1, is_training=True))

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"fedqueue_client_{name}", labels)

    assert value("trainings_total", outcome="completed") == 3
    assert value("trainings_total", outcome="abandoned") == 1
    assert value("epsilon_spent") == 1.25
    assert value("epsilon_budget") == 3
    assert value("unsettled_updates") == 1
    assert value("model_version") == 0


def test_what_is_set_aside_is_spent_before_any_training_is(gauges: ClientMetrics, registry: CollectorRegistry) -> None:
    known = folded(a_claim(1), a_record(0, plan=PLAN, plan_hash=PLAN.hash))
    gauges.turns("waiting", "", Work.of(known, Totals(carried=0.5), unsettled=0, is_training=False))

    assert registry.get_sample_value("fedqueue_client_epsilon_spent") == 0.5


def test_without_noise_there_is_no_budget(gauges: ClientMetrics, registry: CollectorRegistry) -> None:
    gauges.turns("waiting", "", Work.of(folded(a_claim(1), a_record(0)), Totals(), unsettled=0, is_training=False))

    assert registry.get_sample_value("fedqueue_client_epsilon_budget") is None


def test_what_was_published_and_settled_is_counted(gauges: ClientMetrics, registry: CollectorRegistry) -> None:
    gauges.publishes(1000)
    gauges.publishes(500)
    gauges.is_settled("aggregated")
    gauges.trains(2.0)

    assert registry.get_sample_value("fedqueue_client_updates_published_total") == 2
    assert registry.get_sample_value("fedqueue_client_published_bytes_total") == 1500
    assert registry.get_sample_value("fedqueue_client_updates_settled_total", {"outcome": "aggregated"}) == 1
    assert registry.get_sample_value("fedqueue_client_updates_settled_total", {"outcome": "lost"}) == 0
    assert registry.get_sample_value("fedqueue_client_training_seconds_bucket", {"le": "5.0"}) == 1
