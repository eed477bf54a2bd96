"""`fedqueue broker ...` against a real broker."""

import json
import signal
import stat
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from broker_config.logins import load, save
from operator_console.broker_commands import broker_app
from shared.errors import SettingsError

UP = "from operator_console.broker_commands import broker_app; broker_app()"


def run(*words: str):
    return CliRunner().invoke(broker_app, list(words))


@pytest.mark.rabbitmq
def test_check_fails_on_drift_and_apply_mends_it(rabbitmq_server, tmp_path):
    logins = rabbitmq_server.logins
    save(logins, tmp_path)
    assert run("apply", "--dir", str(tmp_path)).exit_code == 0
    assert run("check", "--dir", str(tmp_path)).exit_code == 0
    rabbitmq_server.remove_queue("fl.ctl.bank-a")
    drifted = run("check", "--dir", str(tmp_path))
    assert drifted.exit_code == 1
    assert "fl.ctl.bank-a" in drifted.output
    assert run("apply", "--dir", str(tmp_path)).exit_code == 0
    assert run("check", "--dir", str(tmp_path)).exit_code == 0


@pytest.mark.rabbitmq
def test_the_exported_file_holds_hashes_and_no_passwords(rabbitmq_server, tmp_path):
    save(rabbitmq_server.logins, tmp_path)
    out = tmp_path / "definitions.json"
    assert run("export", "--dir", str(tmp_path), "--out", str(out)).exit_code == 0
    document = json.loads(out.read_text())
    assert {user["name"] for user in document["users"]} >= {"admin", "aggregator", "operator", "viewer", "bank-a"}
    assert not [word for word in rabbitmq_server.logins.users.values() if word in out.read_text()]
    assert stat.S_IMODE(out.stat().st_mode) == 0o600


def test_without_logins_the_missing_file_is_named(tmp_path):
    error = run("check", "--dir", str(tmp_path)).exception
    assert isinstance(error, SettingsError)
    assert "broker.json" in str(error)


@pytest.mark.rabbitmq
@pytest.mark.long
def test_a_private_broker_runs_until_it_is_told_to_stop(installation, tmp_path, soon):
    if str(installation.root) != "/":
        pytest.skip("`fedqueue broker up` starts the system's package")
    command = [sys.executable, "-c", UP, "up", "--dir", str(tmp_path), "--institution", "bank-a"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert soon(lambda: (tmp_path / "broker.json").exists())
        assert load(tmp_path).institutions == ["bank-a"]
        assert run("check", "--dir", str(tmp_path)).exit_code == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
