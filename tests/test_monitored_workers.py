"""Real workers on a real broker, watched as a service manager and a Prometheus watch them."""

import os
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from broker_config.connection import connect
from broker_config.logins import Logins, load, save
from broker_config.node import PrivateNode
from broker_config.provision import administration
from operator_console.init_command import init
from operator_console.worker_processes import WorkerProcess, entry_point
from shared.messages import Entry, pseudonym
from tests.conftest import INSTITUTIONS
from tests.notified import Manager
from tests.ports import free_address
from tests.running import Watch
from tests.test_bring_your_own import LOGISTIC, fruit, put_data

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(240)]

UPDATES = 4
OWN = "pomona"
Soon = Callable[..., object]
Figures = dict[tuple[str, ...], float]


@dataclass
class Watched:
    """A worker's process, its address, and what it told its service manager."""

    process: WorkerProcess
    address: str
    manager: Manager
    config: Path

    @classmethod
    def start(cls, program: str, config: Path, folder: Path) -> "Watched":
        address, manager = free_address(), Manager(str(folder / f"{program}.notify"))
        variables = {
            "NOTIFY_SOCKET": manager.address,
            "WATCHDOG_USEC": "1000000",
            "FEDQUEUE_MONITORING__LISTEN": address,
        }
        command = [
            "env",
            *(f"{name}={value}" for name, value in variables.items()),
            entry_point(program),
            "--config",
            str(config),
        ]
        process = WorkerProcess(program, command, folder / f"{program}.log", folder)
        process.start()
        return cls(process, address, manager, config)

    def readiness(self) -> tuple[int, str]:
        """The code and the reason of /readyz."""
        try:
            answer = httpx.get(f"http://{self.address}/readyz")
        except httpx.TransportError:
            return 0, "it does not answer yet"
        return answer.status_code, answer.json()["reason"]

    def figures(self) -> Figures:
        """Every sample of /metrics: its name and its labels' values, in the order of the labels' names."""
        text = httpx.get(f"http://{self.address}/metrics").text
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return {(each.name, *(value for _, value in sorted(each.labels.items()))): each.value for each in samples}

    def end(self) -> int:
        self.process.ask_to_end()
        return self.process.wait()


@dataclass
class Federation:
    folder: Path
    aggregator: Watched
    client: Watched


@pytest.fixture(scope="module")
def federation(private_node: PrivateNode, logins: Logins, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """An aggregator and one institution, whose run ends after a few updates."""
    tmp_path, vhost = tmp_path_factory.mktemp("monitored"), f"monitored-{secrets.token_hex(4)}"
    broker_folder = tmp_path / "federation"
    users = {name: word for name, word in logins.users.items() if name not in INSTITUTIONS}
    own = logins.model_copy(update={"vhost": vhost, "amqp": private_node.amqp_url(vhost), "users": users})
    save(own, broker_folder)
    (tmp_path / "task.toml").write_text(LOGISTIC)
    (tmp_path / "held_out.csv").write_text(fruit(200, seed=3))
    init(
        task=str(tmp_path / "task.toml"),
        institution=[OWN],
        folder=broker_folder,
        stop_after_updates=UPDATES,
        held_out=tmp_path / "held_out.csv",
    )
    north = put_data(broker_folder, OWN, fruit(200, seed=1), examples=200)
    workers = [
        Watched.start("fedqueue-client", north, tmp_path),
        Watched.start("fedqueue-aggregator", broker_folder / "aggregator.toml", tmp_path),
    ]
    yield Federation(broker_folder, workers[1], workers[0])
    for each in workers:
        each.process.kill()
        each.manager.close()
    with administration(own) as management:
        management.delete_vhost()
        management.delete_user(OWN)


def test_what_a_leader_and_a_client_show_is_what_the_lineage_tells(federation: Federation, soon: Soon) -> None:
    aggregator, client = federation.aggregator, federation.client
    with closing(connect(load(federation.folder).settings("operator"), name="test/operator")) as operator:
        watch = Watch(operator)
        assert watch.until(lambda: watch.head.manifest.phase == "finished", 90)
    assert soon(lambda: client.readiness()[1].startswith("finished: "), 60)
    assert soon(lambda: ("fedqueue_phase", "finished") in aggregator.figures(), 60)
    secret = (federation.folder / "run.secret").read_text().strip().encode()
    entry, manifest = (watch.reader.lineage.table or {})[pseudonym(secret, OWN)], watch.head.manifest
    shown, own = aggregator.figures(), client.figures()

    assert aggregator.readiness() == (200, f"leading, version {manifest.version}, finished")
    assert shown["fedqueue_model_version",] == manifest.version == own["fedqueue_client_model_version",]
    assert shown["fedqueue_leading",] == shown["fedqueue_ready",] == own["fedqueue_ready",] == 1
    assert shown["fedqueue_epoch",] == watch.head.epoch
    for outcome, number in entry.counters:
        assert shown["fedqueue_updates_total", OWN, outcome] == number
    assert shown["fedqueue_updates_total", OWN, "aggregated"] >= UPDATES
    folded = [each for each in watch.settled if each.outcome == "aggregated"]
    assert shown["fedqueue_update_staleness_count",] == len(folded)
    assert shown["fedqueue_update_staleness_sum",] == sum(each.staleness for each in folded)
    assert shown["fedqueue_commit_seconds_count",] == len(watch.records) - 1
    assert shown["fedqueue_held_out_metric", "auc"] == manifest.metrics["auc"]
    assert shown["fedqueue_held_out_metric_best", "auc"] >= manifest.metrics["auc"]
    assert shown["fedqueue_institution_epsilon_spent", OWN] == entry.epsilon_spent
    assert shown["fedqueue_institution_weight_share", OWN] == shown["fedqueue_institution_data_share", OWN] == 1
    assert shown["fedqueue_refused_messages_total", OWN] == 0
    assert shown["fedqueue_run_started_timestamp_seconds",] < shown["fedqueue_version_committed_timestamp_seconds",]
    assert time.time() - 120 < shown["fedqueue_institution_last_update_timestamp_seconds", OWN] < time.time() + 1
    require_own_figures(own, entry)
    assert shown["fedqueue_epsilon_budget",] == 3


def require_own_figures(own: Figures, entry: Entry) -> None:
    """The client's, against its entry of the federation's table."""
    assert own["fedqueue_client_updates_settled_total", "aggregated"] == entry.counters.aggregated
    assert own["fedqueue_client_updates_published_total",] == entry.watermark
    assert (
        own["fedqueue_client_trainings_total", "completed"] == own["fedqueue_client_training_seconds_count",] == entry.watermark
    )
    assert own["fedqueue_client_epsilon_spent",] == pytest.approx(entry.epsilon_spent)
    assert own["fedqueue_client_epsilon_budget",] == 3
    assert own["fedqueue_client_state", "finished"] == 1


def asked(federation: Federation) -> dict[str, tuple[int, str]]:
    """What `--ready` says of both workers: the exit code and the reason."""
    programs = {}
    for each in (federation.aggregator, federation.client):
        command = [entry_point(each.process.name), "--ready", "--config", each.config]
        variables = {**os.environ, "FEDQUEUE_MONITORING__LISTEN": each.address}
        programs[each.process.name] = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    return {name: (each.returncode, (each.stdout + each.stderr).strip()) for name, each in programs.items()}


@pytest.mark.long
def test_workers_without_their_broker_are_not_ready_and_say_so_until_it_is_back(
    federation: Federation, soon: Soon, private_node: PrivateNode
) -> None:
    workers = (federation.aggregator, federation.client)
    assert soon(lambda: [each.readiness()[0] for each in workers] == [200, 200], 60)
    assert {code for code, _ in asked(federation).values()} == {0}
    private_node.stop()
    try:
        assert soon(lambda: [each.readiness()[0] for each in workers] == [503, 503], 60)
        said = asked(federation)
        shown = [each.figures() for each in workers]
    finally:
        private_node.start()
    assert {code for code, _ in said.values()} == {1}
    for _, reason in said.values():
        assert private_node.amqp in reason
    for each in shown:
        assert each["fedqueue_ready",] == 0
    assert shown[0]["fedqueue_leading",] == 0
    assert ("fedqueue_model_version",) not in shown[0]
    assert shown[1]["fedqueue_client_state", "disconnected"] == 1
    assert [httpx.get(f"http://{each.address}/healthz").status_code for each in workers] == [200, 200]
    assert soon(lambda: [each.readiness()[0] for each in workers] == [200, 200], 60)


def test_the_service_manager_hears_that_a_client_is_ready_lives_and_ends(federation: Federation, soon: Soon) -> None:
    client, heard = federation.client, federation.client.manager.heard
    assert soon(lambda: "READY=1" in heard, 60)
    first = heard[: heard.index("READY=1")]
    assert next(line for line in first if line.startswith("STATUS=")) == "STATUS=not ready: starting"
    assert "EXTEND_TIMEOUT_USEC=60000000" in first
    assert client.readiness()[0] == 200

    def comes_again() -> object:
        so_far = heard.count("WATCHDOG=1")
        return soon(lambda: heard.count("WATCHDOG=1") > so_far)

    assert comes_again()
    client.process.freeze()
    assert soon(lambda: "\nState:\tT" in Path(f"/proc/{client.process.pid}/status").read_text())
    time.sleep(0.5)  # what it sent before has come
    so_far = len(heard)
    time.sleep(2)
    assert len(heard) == so_far
    client.process.thaw()
    assert comes_again()
    assert "STOPPING=1" not in heard
    assert client.end() == 0
    assert soon(lambda: "STOPPING=1" in heard)
    assert federation.aggregator.end() == 0
    assert soon(lambda: "STOPPING=1" in federation.aggregator.manager.heard)
