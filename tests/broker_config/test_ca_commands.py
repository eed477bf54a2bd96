"""`fedqueue ca ...`, and `fedqueue broker up --tls`."""

import signal
import stat
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner

from broker_config import authority as authority_module
from broker_config.authority import Authority, hosts_of, user_of
from broker_config.connection import connect
from broker_config.logins import load
from broker_config.topology import LINEAGE
from operator_console.broker_commands import broker_app
from operator_console.broker_tls import private_server
from operator_console.ca_commands import ca_app
from shared.errors import FederationError, SettingsError

UP = "from operator_console.broker_commands import broker_app; broker_app()"


def run(*words: str):
    return CliRunner().invoke(ca_app, list(words))


@pytest.fixture
def folder(tmp_path):
    assert run("create", "--dir", str(tmp_path), "--name", "late payment", "--administrator", "root").exit_code == 0
    return tmp_path


def test_an_authority_comes_with_the_certificates_of_the_operator_s_side(folder):
    named = {place.name: user_of((place / "certificate.pem").read_bytes()) for place in (folder / "tls").iterdir()}
    assert named == {"operator": "operator", "root": "root"}
    assert stat.S_IMODE((folder / "ca" / "ca.key").stat().st_mode) == 0o600


def test_a_second_authority_is_refused(folder):
    error = run("create", "--dir", str(folder)).exception
    assert isinstance(error, SettingsError)


def test_a_broker_s_certificate_comes_with_the_lines_that_go_with_it(folder):
    written = run(
        "server", "--dir", str(folder), "--host", "broker.example.org", "--host", "192.0.2.7", "--installed", "/etc/own"
    )
    assert "rabbitmq-plugins enable rabbitmq_auth_mechanism_ssl" in written.output
    place = folder / "ca" / "server"
    assert hosts_of((place / "certificate.pem").read_bytes()) == ["broker.example.org", "192.0.2.7"]
    assert stat.S_IMODE((place / "key.pem").stat().st_mode) == 0o600
    assert (place / "rabbitmq.conf").read_text().splitlines() == [
        "listeners.tcp = none",
        "listeners.ssl.1 = 0.0.0.0:5671",
        "auth_mechanisms.1 = EXTERNAL",
        "ssl_cert_login_from = common_name",
    ]
    options = (place / "advanced.config").read_text()
    for term in (
        '{cacertfile, "/etc/own/ca.pem"}',
        "{verify, verify_peer}",
        "{fail_if_no_peer_cert, true}",
        "{versions, ['tlsv1.3', 'tlsv1.2']}",
        "{crl_check, peer}",
        '{dir, "/etc/own/revoked"}',
    ):
        assert term in options


def test_what_was_issued_is_listed_with_its_state(folder, monkeypatch):
    authority = Authority.open(folder / "ca")
    authority.issue("bank-a")
    authority.issue("bank-b", days=10)
    authority.issue("bank-c")
    authority.revoke("bank-c")
    monkeypatch.setattr(authority_module, "_now", lambda: datetime.now(UTC) - timedelta(days=40))
    authority.issue("bank-d", days=30)
    lines = {line.split()[1]: line for line in run("list", "--dir", str(folder)).output.splitlines() if "bank-" in line}
    assert "valid" in lines["bank-a"]
    assert "expires in 9 days" in lines["bank-b"]
    assert "revoked" in lines["bank-c"]
    assert "expired" in lines["bank-d"]


@pytest.mark.parametrize("words", [["--host", "broker"], ["--bind", "0.0.0.0"], ["--port", "5671"]])
def test_a_private_broker_is_reached_from_elsewhere_with_tls_only(tmp_path, words):
    error = CliRunner().invoke(broker_app, ["up", "--dir", str(tmp_path), *words]).exception
    assert isinstance(error, SettingsError)
    assert "--tls" in str(error)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.rabbitmq
@pytest.mark.long
def test_a_private_broker_with_tls_is_ready_for_the_operator_and_stays_as_it_was(installation, tmp_path, soon):
    if str(installation.root) != "/":
        pytest.skip("`fedqueue broker up` starts the system's package")
    seen = []
    for words in (["--tls", "--host", "localhost"], []):
        command = [sys.executable, "-c", UP, "up", "--dir", str(tmp_path), *words]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert soon(lambda: is_ready(tmp_path), 60)
            seen.append(load(tmp_path).amqp)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
    assert seen[0].startswith("amqps://localhost:")
    assert seen[0] == seen[1]


@pytest.mark.parametrize("hosts", [[], ["localhost"], ["broker.example"], ["10.0.0.5"], ["127.0.0.1"]])
def test_a_private_server_keeps_the_names_it_was_given(tmp_path, hosts):
    first = private_server(tmp_path, hosts, bind="127.0.0.1", port=None)
    again = private_server(tmp_path, [], bind="127.0.0.1", port=None)
    assert again.host == first.host == (hosts or ["127.0.0.1"])[0]
    assert hosts_of(again.issued.certificate) == hosts_of(first.issued.certificate)


def is_ready(folder) -> bool:
    try:
        with closing(connect(load(folder).settings("operator"), name="test/operator")) as broker:
            return list(broker.read(LINEAGE, "first", count=1, idle_seconds=0.1)) == []
    except FederationError:
        return False
