"""The compose files keep their promises as plain YAML, docker-compose reads them, and docker-compose.yml's federation runs."""

import json
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
import yaml
from jinja2 import Template

from broker_config.server_tls import LOOPBACK, PLUGIN, listener_lines, options_term
from operator_console.federation_folder import InstitutionFacts
from operator_console.project_rows import made_up

PROJECT = Path(__file__).parent.parent
PROMETHEUS = PROJECT / "deploy" / "monitoring" / "prometheus"
FEDERATION = PROJECT / "docker-compose.yml"
ROOT = Path(os.environ.get("FEDQUEUE_RABBITMQ_ROOT", PROJECT / ".rabbitmq4"))
BANKS = ["banco-popular", "bank-of-america", "capital-one"]
WORKERS = ["aggregator", *BANKS]
MONITORING = ["prometheus", "grafana"]
ONE_SHOT = ["prepare", "found"]
SETTINGS = ["DATA_FOLDER=/srv/data", "FEDQUEUE_USER=1000:1000"]
CREDENTIALS = {"ca.pem", "certificate.pem", "key.pem", "keys/sealing.pem", "keys/signing.pem", "keys/trust.json"}


def kit_compose_file() -> str:
    """The compose file of a kit: one institution alone on its own host."""
    facts = InstitutionFacts(id="bank-a", title="Bank A")
    template = (PROJECT / "operator_console" / "settings_templates" / "compose.yml.j2").read_text()
    return Template(template, trim_blocks=True).render(facts=facts, version="0.1.0")


@pytest.fixture(params=["federation", "kit"])
def document(request: pytest.FixtureRequest) -> dict:
    return yaml.safe_load(FEDERATION.read_text() if request.param == "federation" else kit_compose_file())


@pytest.fixture
def federation() -> dict:
    return yaml.safe_load(FEDERATION.read_text())


def mounts(service: dict) -> list[tuple[str, str]]:
    return [tuple(each.split(":")[:2]) for each in service.get("volumes", [])]


def test_a_compose_file_holds_no_password(document: dict) -> None:
    for name, service in document["services"].items():
        for variable in service.get("environment", {}):
            assert not re.search("PASS|SECRET|TOKEN|COOKIE|AMQP_URL", variable), f"{name}: {variable}"
    text = str(document).lower()
    assert "guest" not in text
    assert "default_pass" not in text


def test_no_service_can_write_its_root_gain_rights_or_take_the_whole_machine(document: dict) -> None:
    for name, service in document["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"], name
        assert service["pids_limit"] <= 1024, name


def test_what_runs_as_root_runs_once_and_may_only_hand_files_over(document: dict) -> None:
    for name, service in document["services"].items():
        assert (service.get("user") == "root") == (name in ONE_SHOT), name
        assert service.get("cap_add", []) == (["CHOWN", "DAC_OVERRIDE", "FOWNER"] if name in ONE_SHOT else []), name


def test_only_the_operators_screens_are_published_and_on_loopback_alone(federation: dict) -> None:
    published = {name: service["ports"] for name, service in federation["services"].items() if "ports" in service}

    assert published == {
        "rabbitmq": ["127.0.0.1:15671:15671"],
        "console": ["127.0.0.1:8080:8080"],
        "prometheus": ["127.0.0.1:9090:9090"],
        "grafana": ["127.0.0.1:3000:3000"],
    }


def test_an_institution_alone_opens_no_port() -> None:
    assert "ports" not in yaml.safe_load(kit_compose_file())["services"]["client"]


def test_whatever_stays_up_is_restarted_and_has_a_healthcheck(document: dict) -> None:
    for name, service in document["services"].items():
        if name in ONE_SHOT:
            assert service["restart"] == "no"
            continue
        assert service["restart"] in {"on-failure", "unless-stopped"}, name
        assert service["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}, name


def members(federation: dict, network: str) -> set[str]:
    return {name for name, service in federation["services"].items() if network in service.get("networks", [])}


def test_each_party_shares_a_network_with_the_broker_alone(federation: dict) -> None:
    services = federation["services"]
    for worker in WORKERS:
        networks = [each for each in services[worker]["networks"] if each != "aggregator-metrics"]
        assert networks == [worker]
        assert members(federation, worker) == {worker, "rabbitmq"}
        assert federation["networks"][worker] == {"internal": True}
    assert services["prepare"]["network_mode"] == "none"


def test_only_prometheus_can_ask_the_aggregator_for_its_figures_and_only_the_screens_can_ask_prometheus(federation: dict) -> None:
    services, networks = federation["services"], federation["networks"]
    aggregator, prometheus = services["aggregator"], services["prometheus"]
    settings = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    asked = {job["job_name"]: job.get("static_configs", [{}])[0].get("targets") for job in settings["scrape_configs"]}
    at, screen = aggregator["networks"]["aggregator-metrics"]["ipv4_address"], prometheus["networks"]["screens"]["ipv4_address"]

    assert members(federation, "aggregator-metrics") == {"aggregator", "prometheus"}
    assert members(federation, "broker-metrics") == {"rabbitmq", "prometheus"}
    assert members(federation, "screens") == set(MONITORING)
    assert aggregator["environment"]["FEDQUEUE_MONITORING__LISTEN"] == f"{at}:9464"
    assert asked["fedqueue-aggregator"] == [f"{at}:9464"]
    assert asked["rabbitmq"] == asked["rabbitmq-queues"] == ["rabbitmq:15691"]
    assert f"--web.listen-address={screen}:9090" in prometheus["command"]
    for name, address in (("aggregator-metrics", at), ("screens", screen)):
        (places,) = networks[name]["ipam"]["config"]
        assert ip_address(address) in ip_network(places["subnet"])
        assert ip_address(address) not in ip_network(places["ip_range"]), "Docker may give it to somebody else"
        assert ip_network(places["ip_range"]).subnet_of(ip_network(places["subnet"]))
    assert networks["aggregator-metrics"]["internal"]
    assert networks["broker-metrics"]["internal"]


def test_prometheus_and_grafana_come_only_when_asked_for_and_have_pinned_images(federation: dict) -> None:
    services = federation["services"]

    assert [name for name, each in services.items() if each.get("profiles") == ["monitoring"]] == MONITORING
    assert re.fullmatch(r"prom/prometheus:v\d+\.\d+\.\d+", services["prometheus"]["image"])
    assert re.fullmatch(r"grafana/grafana:\d+\.\d+\.\d+", services["grafana"]["image"])


def test_grafana_knows_no_password_but_the_drawn_one_and_lets_nobody_in_without(federation: dict) -> None:
    settings = ConfigParser(interpolation=None)
    settings.read(PROJECT / "deploy" / "monitoring" / "grafana" / "grafana.ini")
    places = dict(mounts(federation["services"]["grafana"]))

    assert settings["security"]["admin_password"] == "$__file{/secrets/admin-password}"
    assert settings["security"]["secret_key"] == "$__file{/secrets/secret-key}"
    assert settings["auth.anonymous"]["enabled"] == settings["users"]["allow_sign_up"] == "false"
    assert places["grafana-secrets"] == "/secrets"
    assert places["./deploy/monitoring/grafana/grafana.ini"] == "/etc/grafana/grafana.ini"
    assert "environment" not in federation["services"]["grafana"]


def test_a_worker_mounts_one_named_volume_that_no_other_worker_mounts(federation: dict) -> None:
    seen = [mounts(federation["services"][worker]) for worker in WORKERS]

    assert seen == [[(worker, "/var/lib/fedqueue")] for worker in WORKERS]
    assert set(WORKERS) <= federation["volumes"].keys()


def test_the_operators_volume_with_the_authoritys_key_reaches_the_one_shot_services_only(federation: dict) -> None:
    holders = {name for name, service in federation["services"].items() if "federation" in dict(mounts(service))}

    assert holders == set(ONE_SHOT)


def test_the_console_comes_when_asked_for_speaks_tls_and_shares_a_network_with_the_broker_alone(federation: dict) -> None:
    console = federation["services"]["console"]
    places = dict(mounts(console))

    assert console["profiles"] == ["console"]
    assert console["command"][-2:] == ["--certificate=/console/server/certificate.pem", "--key=/console/server/key.pem"]
    assert members(federation, "browsers") == {"console"}
    assert members(federation, "operator") == {"console", "found", "rabbitmq"}
    assert places.keys() == {"./deploy/console_health.py", "console"}


def test_the_broker_speaks_tls_only_and_takes_certificates_only(federation: dict) -> None:
    broker = federation["services"]["rabbitmq"]
    places = dict(mounts(broker))
    settings = (PROJECT / "deploy" / "broker.conf").read_text()

    assert re.fullmatch(r"rabbitmq:4\.\d+\.\d+-management", broker["image"])
    assert places["./broker_config/rabbitmq.conf"] == "/etc/rabbitmq/rabbitmq.conf"
    assert places["./deploy/broker.conf"] == "/etc/rabbitmq/conf.d/90-federation.conf"
    assert places["./deploy/enabled_plugins"] == "/etc/rabbitmq/enabled_plugins"
    assert places["./deploy/advanced.config"] == "/etc/rabbitmq/advanced.config"
    assert listener_lines(address="0.0.0.0", port=5671) in settings
    options = options_term(Path(places["broker"]), Path(places["revoked"]))
    assert (PROJECT / "deploy" / "advanced.config").read_text() == f"[{{rabbit, [\n    {options}\n]}}].\n"
    assert "management.ssl.port = 15671\n" in settings
    assert "management.tcp" not in settings
    plugins = {"rabbitmq_management", "rabbitmq_prometheus", PLUGIN}
    assert set(re.findall(r"\w+", (PROJECT / "deploy" / "enabled_plugins").read_text())) == plugins


def test_the_brokers_figures_are_told_over_tls_to_the_monitorings_own_authority_alone() -> None:
    lines = (PROJECT / "deploy" / "broker.conf").read_text().splitlines()

    assert [line for line in lines if line.startswith("prometheus.")] == [
        "prometheus.tcp.listener = none",
        "prometheus.ssl.port = 15691",
        "prometheus.ssl.cacertfile = /broker/monitoring-ca.pem",
        "prometheus.ssl.certfile = /broker/certificate.pem",
        "prometheus.ssl.keyfile = /broker/key.pem",
        "prometheus.ssl.verify = verify_peer",
        "prometheus.ssl.fail_if_no_peer_cert = true",
        "prometheus.ssl.versions.1 = tlsv1.3",
        "prometheus.ssl.versions.2 = tlsv1.2",
    ]


def test_every_file_and_volume_that_is_used_is_there(federation: dict) -> None:
    used = {source for service in federation["services"].values() for source, _ in mounts(service)}

    assert {source for source in used if source[0] not in "./"} == federation["volumes"].keys()
    for source in used:
        assert source[0] not in "./" or (PROJECT / source).exists(), source


def test_the_image_is_pinned_copies_what_exists_and_does_not_run_as_root() -> None:
    text = (PROJECT / "deploy" / "Dockerfile").read_text()
    lines = [line.split() for line in text.splitlines() if line[:1].isupper()]
    copied = [word for line in lines if line[0] == "COPY" and "--from" not in line[1] for word in line[1:-1]]
    allowed = [line[1:] for line in (PROJECT / "deploy" / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"]
    last = text.rpartition("FROM ")[2]

    assert "ARG BASE=python:3.11-slim-bookworm\n" in text
    assert {line[1] for line in lines if line[0] == "FROM"} == {"${BASE}", "build"}
    assert [line[1:] for line in lines if line[0] in {"USER", "STOPSIGNAL"}] == [["10001:10001"], ["SIGTERM"]]
    assert sorted(copied) == sorted(allowed)
    for path in copied:
        assert (PROJECT / path).exists(), path
    assert "pip install" not in last
    assert "pip uninstall" in last


def project_compose_file() -> str:
    """What `fedqueue new` writes beside a torch model."""
    rows = ["north", "south"]
    return made_up("trial", rows, rows_each=20, seed=0, own_torch_model=True).files()["compose.yml"]


def needs_rabbitmq4(program: str) -> None:
    if os.geteuid() != 0 or not (ROOT / program).exists():
        pytest.skip(f"{program} is in .rabbitmq4 only, which setup/rabbitmq4 makes as root")


@pytest.mark.long
@pytest.mark.compose
@pytest.mark.parametrize("name", ["federation", "kit", "project"])
def test_docker_compose_accepts_the_file(name: str) -> None:
    needs_rabbitmq4("usr/bin/docker-compose")
    copy = ROOT / "tmp" / f"compose-{os.getpid()}"
    shutil.copytree(PROJECT / "deploy", copy / "deploy")
    text = {"federation": FEDERATION.read_text, "kit": kit_compose_file, "project": project_compose_file}[name]()
    (copy / "compose.yml").write_text(text)
    inside = Path("/") / copy.relative_to(ROOT) / "compose.yml"
    command = ["chroot", ROOT, "env", *SETTINGS, "docker-compose", "--profile", "*", "--file", inside, "config"]

    result = subprocess.run(command, capture_output=True, text=True, check=False)

    shutil.rmtree(copy)
    assert result.returncode == 0, result.stderr
    assert yaml.safe_load(result.stdout)["services"].keys() == yaml.safe_load(text)["services"].keys()
    assert not result.stderr


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What was found when all services of docker-compose.yml ran, each confined as the file says."""
    needs_rabbitmq4("usr/lib/rabbitmq/bin/rabbitmq-server")
    apart = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
    if subprocess.run([*apart, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("this machine does not let root make namespaces")
    folder = tmp_path_factory.mktemp("compose")
    folder.parent.chmod(0o755)
    command = [*apart, sys.executable, PROJECT / "tests" / "rehearsing.py", folder]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.long
@pytest.mark.compose
@pytest.mark.timeout(500)
class TestRehearsal:
    def test_everybody_becomes_healthy_and_the_federation_learns(self, rehearsed: dict) -> None:
        assert rehearsed["version"] > 0
        assert rehearsed["healthy after removal"] == {each: each != BANKS[0] for each in WORKERS}

    def test_the_broker_listens_for_others_with_tls_only(self, rehearsed: dict) -> None:
        beyond = {each for each in rehearsed["listening"] if not each.startswith((LOOPBACK, "[::1]"))}

        assert beyond == {"0.0.0.0:5671", "0.0.0.0:15671", "0.0.0.0:15691"}

    def test_the_console_is_healthy_once_somebody_may_log_in_and_asks_for_a_login(self, rehearsed: dict) -> None:
        assert rehearsed["console"] == {"password drawn": True, "leads to": "/login", "ended": 0}

    def test_prometheus_reaches_all_that_it_asks(self, rehearsed: dict) -> None:
        jobs = ("fedqueue-aggregator", "rabbitmq", "rabbitmq-queues")
        if shutil.which("prometheus") is None:
            pytest.skip("there is no prometheus; setup/prometheus installs it")

        assert rehearsed["asked by Prometheus"] == dict.fromkeys(jobs, "up")

    def test_the_broker_tells_its_figures_to_prometheus_alone(self, rehearsed: dict) -> None:
        assert rehearsed["figures shown to"] == {"monitoring": True} | dict.fromkeys(WORKERS, False)

    def test_a_removed_institution_cannot_come_back_and_the_others_go_on_and_end_as_asked(self, rehearsed: dict) -> None:
        assert rehearsed["let in after removal"] == {each: each != BANKS[0] for each in WORKERS}
        assert rehearsed["ended"] == dict.fromkeys(WORKERS, 0) | {BANKS[0]: 3}

    def test_a_second_start_changes_nothing(self, rehearsed: dict) -> None:
        assert rehearsed["changed by a second start"] == []

    def test_nobody_got_a_file_of_anybody_else(self, rehearsed: dict) -> None:
        files = {volume: set(names) for volume, names in rehearsed["files"].items()}
        explained = {"client.toml", "task.toml", "training.csv", "validation.csv"}

        assert files["broker"] == {"ca.pem", "certificate.pem", "key.pem", "definitions.json", "monitoring-ca.pem"}
        assert files["monitoring"] == {"ca.pem", "certificate.pem", "key.pem"}
        assert not any("ca.key" in name or "monitoring" in name or "institutions" in name for name in files["console"])
        assert rehearsed["passwords of the console"] == ["operator"]
        assert files["grafana-secrets"] == {"admin-password", "secret-key"}
        assert {name for name in files["aggregator"] if "/" in name} == {f"aggregator/{name}" for name in CREDENTIALS}
        for bank in BANKS:
            assert files[bank] >= CREDENTIALS | explained
            assert {name for name in files[bank] if "/" in name or name.endswith(".pem")} == CREDENTIALS
            assert not any(other in name for name in files[bank] for other in BANKS)

    def test_no_command_line_and_no_environment_holds_a_password(self, rehearsed: dict) -> None:
        assert rehearsed["secrets shown"] == []
