"""A simulation that is fed with a real run's sealed updates, in the order of their arrival, gives its model bit for bit."""

import json
from contextlib import ExitStack, closing
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from broker_config.connection import connect
from broker_config.logins import load
from operator_console import founding
from operator_console.cli import app
from operator_console.federation_folder import ClientOptions, FederationFolder, named
from operator_console.founding import Founding, found_federation
from operator_console.plan_options import PlanOptions, RoomOptions
from operator_console.recorded_run import recorded_run
from operator_console.worker_processes import WorkerProcess, entry_point
from shared.plan import AggregationPlan, Ending
from simulator.refold import again, events_of
from tests.running import Watch
from tests.test_bring_your_own import LOGISTIC, fruit

pytestmark = [pytest.mark.rabbitmq, pytest.mark.long, pytest.mark.timeout(240)]

BANKS = ("north", "south", "west")
ROWS = {"north": 300, "south": 200, "west": 120}
AT_LEAST_SECONDS = {"north": 0.05, "south": 0.15, "west": 0.6}
UPDATES = 18
KINDS = {
    "credit": {"rule": "credit"},
    "momentum": {"rule": "credit", "server_momentum": 0.9, "buffer_size": 2, "exact_buffer": True},
    "latest model": {"rule": "latest-model"},
    "latest update": {"rule": "latest-update", "buffer_size": 2, "exact_buffer": True, "server_momentum": 0.5},
}


@pytest.fixture
def processes():
    """None outlives the test."""
    with ExitStack() as stack:
        started = {}

        def start(name, program, settings):
            worker = started[name] = WorkerProcess(name, [entry_point(program), "--config", str(settings)], *places(settings))
            worker.start()
            stack.callback(worker.kill)

        def places(settings):
            return settings.parent / "log.txt", settings.parent

        yield start, started


def founded(folder, kind, monkeypatch):
    """A federation that keeps journals, trains with noise at epsilon 8, and whose plan has this aggregation."""
    aggregation = AggregationPlan(**{**KINDS[kind], "max_wait_seconds": 1.0})
    usual = founding.plan_for
    monkeypatch.setattr(
        founding, "plan_for", lambda *given, **named: usual(*given, **named).model_copy(update={"aggregation": aggregation})
    )
    clients = {name: ClientOptions(num_examples=ROWS[name], at_least_seconds=AT_LEAST_SECONDS[name]) for name in BANKS}
    options = PlanOptions(
        epsilon=8.0, ending=Ending(updates=UPDATES), server_momentum=aggregation.server_momentum, broadcast="bfloat16"
    )
    room = RoomOptions(journal_bytes=20 * 2**20)
    found_federation(
        FederationFolder(folder), load(folder), Founding(LOGISTIC, "the task", named(BANKS), options, room, clients=clients)
    )
    for seed, name in enumerate(BANKS):
        (folder / "institutions" / name / "training.csv").write_text(fruit(ROWS[name], seed))


def run(folder, processes, *, murder):
    """Real processes until the end; `murder` kills the aggregator midway, and another one takes over."""
    start, started = processes
    start("aggregator", "fedqueue-aggregator", folder / "aggregator.toml")
    for name in BANKS:
        start(name, "fedqueue-client", folder / "institutions" / name / "client.toml")
    with closing(connect(load(folder).settings("operator"), name="test/operator")) as broker:
        watch = Watch(broker)
        if murder:
            assert watch.until(lambda: watch.head.manifest.version >= UPDATES // 4, 90)
            started["aggregator"].kill()
            started["aggregator"].start()
        assert watch.until(lambda: watch.head.manifest.phase == "finished", 90)
    for worker in started.values():
        worker.ask_to_end()
    assert {name: worker.wait() for name, worker in started.items()} == dict.fromkeys(started, 0)
    return watch.records


@pytest.mark.parametrize(
    ("kind", "murder"), [("momentum", False), ("credit", True), ("latest model", False), ("latest update", True)]
)
def test_the_sealed_updates_of_a_real_run_give_every_version_again(kind, murder, broker_folder, processes, monkeypatch):
    founded(broker_folder, kind, monkeypatch)
    records = run(broker_folder, processes, murder=murder)
    federation = FederationFolder(broker_folder)
    with closing(connect(load(broker_folder).settings("operator"), name="test/replay")) as broker:
        real = recorded_run(broker, federation.names())
        sealed = {
            each.hash: real.load(each) for link in real.links for each in link.manifest.settled if each.outcome == "aggregated"
        }

    def load_sealed(settlement):
        return sealed[settlement.hash]

    events = events_of(real.start, real.links, load_sealed)
    versions = list(again(real.start, real.links, events, load_sealed))

    assert len(sealed) >= UPDATES
    assert len({update.base_version for update, _ in sealed.values()}) > 2
    assert real.start.version == 0
    # after the end there may be manifests that were not waited for
    assert [each.model_hash for each in versions][: len(records) - 1] == [each.manifest.model.hash for each in records[1:]]
    assert [each.number for each in versions][: len(records) - 1] == [each.manifest.version for each in records[1:]]
    told = [each for record in records for each in record.manifest.settled]
    made = [each for version in versions for each in version.settled]
    assert [applied(each) for each in made][: len(told)] == [applied(each) for each in told]
    assert [version.differences for version in versions] == [()] * len(versions)

    require_weights_under_another_rule(broker_folder, len(sealed))

    # one bit of one sealed delta, in the first of the run, and the last version is another
    first = next(each for each in told if each.outcome == "aggregated")
    update, delta = sealed[first.hash]
    sealed[first.hash] = update, {name: one_bit_off(tensor) for name, tensor in delta.items()}
    assert list(again(real.start, real.links, events, load_sealed))[-1].model_hash != versions[-1].model_hash


def require_weights_under_another_rule(folder, updates):
    """The same code behind `fedqueue simulate --from-lineage FEDERATION`: it says that it is no training."""
    words = ["simulate", "--from-lineage", str(folder), "--rule", "fedasync", "--server-learning-rate", "0.5"]
    told = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    was, equal = told["plans"]
    assert told["run"].startswith(f"{updates} sealed updates from version 0 on; under the run's own plan each version equal")
    assert told["not_a_training"].startswith("This is not a re-training")
    assert (was["plan"], was["moved"]) == ("as it was", 0.0)
    assert (equal["rule"], equal["server_learning_rate"]) == ("fedasync", 0.5)
    assert equal["moved"] > 0.0
    for plan in (was, equal):
        assert sum(plan["weight_shares"].values()) == pytest.approx(1.0)
        assert plan["weight_shares"].keys() == set(BANKS)
    shown = CliRunner().invoke(app, words).stdout
    assert "This is not a re-training" in shown
    assert "as it was" in shown


def applied(settlement):
    return (
        settlement.institution,
        settlement.sequence,
        settlement.outcome,
        settlement.weight,
        settlement.scale,
        settlement.staleness,
    )


def one_bit_off(tensor):
    values = np.array(tensor.values)
    values.reshape(-1)[0] ^= 1
    return replace(tensor, values=values)
