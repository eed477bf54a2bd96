"""A federation over TLS whose workers tell their figures, and a real Prometheus with deploy/monitoring's rules that asks them."""

import math
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import yaml

from broker_config.logins import load, save
from broker_config.provision import administration
from operator_console.init_command import init
from tests.tls import TlsNode
from tests.watching import CONFIGURATION, RULES, alerts, drawn, program, recorded

PATIENCE_SECONDS = 120.0


@contextmanager
def started(name: str | Path, *words: str | Path, log: Path, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program, ended with the block."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            [name, *words],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def own_address() -> str:
    """One of loopback's many addresses, so that no outgoing connection of this computer can have its port."""
    return f"127.{secrets.randbelow(250) + 2}.{secrets.randbelow(256)}.{secrets.randbelow(254) + 1}:9464"


@dataclass
class Prometheus:
    """One that runs; `query` answers as its API does."""

    url: str

    def get(self, place: str, **query: str) -> dict:
        """What it answers; nothing while it is not there or not ready yet."""
        try:
            answer = httpx.get(f"{self.url}/api/v1/{place}", params=query, trust_env=False)
        except httpx.TransportError:
            return {}
        return answer.json().get("data", {}) if answer.status_code != 503 else {}

    def samples(self, expression: str) -> list[float]:
        """The values of an expression now, but for those that are no number."""
        values = [float(each["value"][1]) for each in self.get("query", query=expression).get("result", [])]
        return [each for each in values if not math.isnan(each)]

    def alert(self, name: str, **labels: str) -> dict | None:
        """An alert that fires."""
        for each in self.get("alerts").get("alerts", []):
            if each["state"] == "firing" and {"alertname": name, **labels}.items() <= each["labels"].items():
                return dict(each)
        return None


@dataclass
class Watched:
    """A federation with all that looks at it."""

    prometheus: Prometheus
    clients: dict[str, subprocess.Popen[bytes]]
    addresses: dict[str, str]


def eventually(look: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> object:
    """The first true answer, or the last."""
    deadline = time.monotonic() + seconds
    while not (answer := look()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return answer


@contextmanager
def founded(tls_node: TlsNode, folder: Path, institutions: Sequence[str]) -> Iterator[Path]:
    """A federation's folder with rows for everybody, for a virtual host of its own."""
    logins = tls_node.logins(f"own-{secrets.token_hex(4)}")
    save(logins, folder)
    (folder / "ca").symlink_to(tls_node.folder / "ca")
    shutil.copytree(tls_node.folder / "tls" / "admin", folder / "tls" / "admin")
    init(task="heart-disease", institution=[*institutions], folder=folder, sample_data=True, updates=200, epsilon="50")
    yield folder
    with administration(logins) as management:
        management.delete_vhost()
        for institution in load(folder).institutions:
            management.delete_user(institution)


def settings_for(folder: Path, addresses: Mapping[str, str], broker: str, shortened: Mapping[str, str]) -> Path:
    """deploy/monitoring/prometheus with these addresses, asking each second; of the rules some words are replaced."""
    document = yaml.safe_load(CONFIGURATION.read_text())
    document["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    for job in document["scrape_configs"]:
        if job["job_name"] == "fedqueue-aggregator":
            job["static_configs"] = [{"targets": [addresses["aggregator"]]}]
        elif job["job_name"].startswith("rabbitmq"):
            job |= {"scheme": "http", "static_configs": [{"targets": [broker]}]}
            del job["tls_config"]
    folder.mkdir()
    clients = [addresses[name] for name in addresses.keys() - {"aggregator", "prometheus"}]
    (folder / "clients.yml").write_text(yaml.safe_dump([{"targets": clients}]))
    rules = RULES.read_text()
    for pattern, shorter in shortened.items():
        rules, found = re.subn(pattern, shorter, rules, flags=re.MULTILINE)
        assert found, pattern
    (folder / "alerts.yml").write_text(rules)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(document))
    return folder / "prometheus.yml"


@contextmanager
def watching(tls_node: TlsNode, folder: Path, institutions: Sequence[str], shortened: Mapping[str, str]) -> Iterator[Watched]:
    """Prometheus, the aggregator and the institutions, each with an endpoint, all with their files below `folder`."""
    binaries = Path(sys.executable).parent
    addresses = {name: own_address() for name in ("aggregator", *institutions, "prometheus")}
    settings = settings_for(folder / "settings", addresses, f"127.0.0.1:{tls_node.node.record.prometheus_port}", shortened)
    with ExitStack() as stack:

        def start(name: str | Path, *words: str | Path, who: str) -> subprocess.Popen[bytes]:
            listen = {
                "FEDQUEUE_MONITORING__LISTEN": addresses[who],
                "FEDQUEUE_AT_LEAST_SECONDS": "1",
                "FEDQUEUE_POLICY__MAX_EPSILON": "50",
            }
            return stack.enter_context(started(name, *words, log=folder / f"{who}.log", **listen))

        federation = stack.enter_context(founded(tls_node, folder / "federation", institutions))
        place = ["--storage.tsdb.path", folder / "data", "--web.listen-address", addresses["prometheus"]]
        start(program("prometheus"), "--config.file", settings, *place, who="prometheus")
        start(binaries / "fedqueue-aggregator", "--config", federation / "aggregator.toml", who="aggregator")
        clients = {
            name: start(binaries / "fedqueue-client", "--config", federation / "institutions" / name / "client.toml", who=name)
            for name in institutions
        }
        yield Watched(Prometheus(f"http://{addresses['prometheus']}"), clients, addresses)


def unanswered(watched: Watched, instance: str) -> list[str]:
    """The expressions of rules and dashboards that have no answer now, with this client in the institution's own dashboard."""
    expressions = [*drawn(), *((name, name) for name in recorded()), *((alert.name, alert.figure) for alert in alerts())]
    asked = {(where, text.replace("$instance", instance)) for where, text in expressions if text != "ALERTS"}
    return sorted(f"{where}: {text}" for where, text in asked if not watched.prometheus.samples(text))
