"""The compose files keep their promises as plain YAML, and docker-compose reads them where it is there."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).parent.parent
FEDERATION = PROJECT / "docker-compose.yml"
INSTITUTION = PROJECT / "deploy" / "institution.compose.yml"
WORKERS = ["aggregator", "banco-popular", "bank-of-america", "capital-one"]
ONE_SHOT = ["administrator", "found"]


@pytest.fixture(params=[FEDERATION, INSTITUTION], ids=lambda file: file.name)
def document(request: pytest.FixtureRequest) -> dict:
    return yaml.safe_load(request.param.read_text())


@pytest.fixture
def federation() -> dict:
    return yaml.safe_load(FEDERATION.read_text())


def mounts(service: dict) -> list[tuple[str, str]]:
    return [tuple(each.split(":")[:2]) for each in service.get("volumes", [])]


def test_a_compose_file_holds_no_password(document: dict) -> None:
    for name, service in document["services"].items():
        for variable, value in service.get("environment", {}).items():
            secret = re.search("PASS|SECRET|TOKEN|COOKIE|AMQP_URL", variable)
            assert not secret or (variable.endswith("_FILE") and value.startswith("/run/secrets/")), f"{name}: {variable}"
    text = str(document).lower()
    assert "guest" not in text
    assert "default_pass" not in text


def test_only_the_management_ui_is_published_and_on_loopback_alone(federation: dict) -> None:
    published = {name: service["ports"] for name, service in federation["services"].items() if "ports" in service}

    assert published == {"rabbitmq": ["127.0.0.1:15672:15672"]}


def test_an_institution_alone_opens_no_port() -> None:
    service = yaml.safe_load(INSTITUTION.read_text())["services"]["client"]

    assert "ports" not in service
    assert service["secrets"] == ["broker-password"]


def test_whatever_stays_up_is_restarted_and_has_a_healthcheck(document: dict) -> None:
    for name, service in document["services"].items():
        if name in ONE_SHOT:
            assert service["restart"] == "no"
            continue
        assert service["restart"] in {"on-failure", "unless-stopped"}, name
        assert service["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}, name


def test_each_party_shares_a_network_with_the_broker_alone(federation: dict) -> None:
    services = federation["services"]
    for worker in WORKERS:
        (network,) = services[worker]["networks"]
        members = {name for name, service in services.items() if network in service.get("networks", [])}
        assert members == {worker, "rabbitmq"}
        assert federation["networks"][network] == {"internal": True}


def test_a_worker_mounts_one_named_volume_that_no_other_worker_mounts(federation: dict) -> None:
    seen = [mounts(federation["services"][worker]) for worker in WORKERS]

    assert seen == [[(worker, "/var/lib/fedqueue")] for worker in WORKERS]
    assert set(WORKERS) <= federation["volumes"].keys()


def test_the_administrators_password_reaches_the_founding_service_only(federation: dict) -> None:
    holders = {name for name, service in federation["services"].items() if "administrator" in dict(mounts(service))}

    assert holders == {"administrator", "found"}


def test_the_broker_loads_our_settings_and_the_definitions(federation: dict) -> None:
    broker = federation["services"]["rabbitmq"]
    sources = {source for source, _ in mounts(broker)}

    assert re.fullmatch(r"rabbitmq:4\.\d+\.\d+-management", broker["image"])
    assert {"./broker_config/rabbitmq.conf", "./deploy/definitions.conf", "definitions"} <= sources
    for source in sources:
        assert not source.startswith("./") or (PROJECT / source).exists(), source


def test_every_volume_that_is_used_is_declared(federation: dict) -> None:
    used = {source for service in federation["services"].values() for source, _ in mounts(service) if source[0] not in "./"}

    assert used == federation["volumes"].keys()


def test_the_image_is_pinned_copies_what_exists_and_does_not_run_as_root() -> None:
    lines = [line.split() for line in (PROJECT / "deploy" / "Dockerfile").read_text().splitlines() if line[:1].isupper()]
    copied = [word for line in lines if line[0] == "COPY" for word in line[1:-1]]
    allowed = [line[1:] for line in (PROJECT / "deploy" / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"]

    assert next(line[1] for line in lines if line[0] == "FROM") == "python:3.12-slim-bookworm"
    assert [line[1] for line in lines if line[0] == "USER"] == ["fedqueue"]
    assert sorted(copied) == sorted(allowed)
    for path in copied:
        assert (PROJECT / path).exists(), path


@pytest.mark.long
@pytest.mark.compose
@pytest.mark.parametrize("file", [FEDERATION, INSTITUTION], ids=lambda file: file.name)
def test_docker_compose_accepts_the_file(file: Path) -> None:
    root = Path(os.environ.get("FEDQUEUE_RABBITMQ_ROOT", PROJECT / ".rabbitmq4"))
    if not (root / "usr/bin/docker-compose").exists():
        pytest.skip("docker-compose is in .rabbitmq4 only, which setup/rabbitmq4 makes as root")
    copy = root / "tmp" / f"compose-{os.getpid()}"
    shutil.copytree(PROJECT / "deploy", copy / "deploy")
    shutil.copy(FEDERATION, copy)
    inside = Path("/") / copy.relative_to(root) / file.relative_to(PROJECT)
    variables = ["INSTITUTION_FOLDER=/srv/bank-a", "DATA_FOLDER=/srv/data"]
    command = ["chroot", root, "env", *variables, "docker-compose", "--file", inside, "config"]

    result = subprocess.run(command, capture_output=True, text=True, check=False)

    shutil.rmtree(copy)
    assert result.returncode == 0, result.stderr
    assert yaml.safe_load(result.stdout)["services"].keys() == yaml.safe_load(file.read_text())["services"].keys()
    assert not result.stderr
