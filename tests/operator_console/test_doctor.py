"""`fedqueue doctor`: each thing that can be wrong is found and comes with what to do; the rest is said to be well."""

import json

import pytest
import typer

from broker_config.connection import connect
from broker_config.definitions import OPERATOR
from broker_config.drift import Drift
from broker_config.logins import load, save
from broker_config.provision import administration
from broker_config.topology import DEAD_LETTER_EXCHANGE, Limits
from operator_console.doctor import doctor
from operator_console.doctor_checks import (
    Finding,
    dead_letter_findings,
    drift_findings,
    findings,
    node_findings,
    room_findings,
    secret_files,
)
from operator_console.federation_folder import FederationFolder
from operator_console.init_command import init
from shared.broker import Message

LIMITS = Limits(update_bytes=1000, updates_per_institution=3)


def wrong(found):
    return {(each.name, each.what, each.remedy) for each in found if not each.ok}


def test_a_node_is_well_when_it_runs_without_an_alarm():
    node = {"name": "n1", "running": True, "disk_free_alarm": False, "mem_alarm": False}
    assert list(node_findings(node)) == [Finding("node n1", True, "runs, no alarm")]


def test_each_alarm_of_a_node_is_a_finding_of_its_own():
    node = {"name": "n1", "running": True, "disk_free_alarm": True, "disk_free": 12345, "mem_alarm": True, "mem_used": 67890}
    disk, memory = node_findings(node)
    assert disk.what == "disk alarm: 12,345 bytes free"
    assert "make room" in disk.remedy
    assert memory.what == "memory alarm: 67,890 bytes used"
    assert "more memory" in memory.remedy
    assert not disk.ok
    assert not memory.ok


def test_a_node_that_does_not_run_is_named():
    (finding,) = node_findings({"name": "n2", "running": False, "disk_free_alarm": True})
    assert (finding.name, finding.ok, finding.what) == ("node n2", False, "does not run")


def test_drifts_are_told_by_what_they_concern():
    drifts = [Drift("users", "viewer", "missing"), Drift("queues", "fl.ops", "missing"), Drift("policies", "fl-upd", "missing")]
    found = list(drift_findings(drifts, apply="apply it"))
    assert [(each.name, each.ok, each.what) for each in found] == [
        ("logins", False, "users viewer: missing"),
        ("rights", True, "as they should be"),
        ("topology", False, "queues fl.ops: missing"),
        ("topology", False, "policies fl-upd: missing"),
    ]
    assert {each.remedy for each in found if not each.ok} == {"apply it"}


def test_a_queue_that_cannot_take_one_more_update_is_found():
    queues = [
        {"name": "fl.upd.roomy", "message_bytes": 2000},
        {"name": "fl.upd.full", "message_bytes": 2001},
        {"name": "fl.model", "message_bytes": 9_000_000},
        {"name": "fl.upd.new"},
    ]
    (finding,) = room_findings(queues, LIMITS)
    assert finding.what == "fl.upd.full holds 2,001 of 3,000 bytes"


def test_dead_letters_need_attention():
    (finding,) = dead_letter_findings([{"name": "fl.dlq", "messages": 1}], show="fedqueue dead-letters list --dir there")
    assert (finding.ok, finding.what) == (False, "1 refused message in fl.dlq")
    assert finding.remedy == "fedqueue dead-letters list --dir there"
    (finding,) = dead_letter_findings([{"name": "fl.dlq", "messages": 0}], show="fedqueue dead-letters list --dir there")
    assert finding.ok


def test_a_secret_that_others_can_read_is_found(tmp_path):
    kit = tmp_path / "institutions" / "north"
    kit.mkdir(parents=True)
    for file in (tmp_path / "run.secret", kit / "password", tmp_path / "task.toml"):
        file.write_text("text")
        file.chmod(0o600)
    (tmp_path / "task.toml").chmod(0o644)
    assert [each.ok for each in secret_files(tmp_path)] == [True]
    (kit / "password").chmod(0o640)
    (finding,) = secret_files(tmp_path)
    assert finding.remedy == f"chmod 600 {kit / 'password'}"


def test_a_folder_without_logins_is_one_finding_not_an_error(tmp_path):
    found = wrong(findings(FederationFolder(tmp_path)))
    assert [name for name, _, _ in found] == ["logins file"]


@pytest.mark.rabbitmq
def test_a_broker_that_is_away_is_told_by_address_and_nothing_further_is_tried(broker_folder):
    whole = load(broker_folder)
    save(whole.model_copy(update={"amqp": "amqp://127.0.0.1:1/away"}), broker_folder)
    ((name, what, remedy),) = wrong(findings(FederationFolder(broker_folder)))
    save(whole, broker_folder)
    assert name == "AMQP"
    assert "127.0.0.1:1" in what
    assert "start the broker" in remedy


@pytest.mark.rabbitmq
def test_what_is_wrong_with_a_real_federation_is_found_and_fails_the_command(broker_folder, capsys):
    init(task="heart-disease", institution=["north"], folder=broker_folder)
    logins = load(broker_folder)
    with administration(logins) as management:
        management.delete_queue("fl.ctl.north")
    as_aggregator = connect(logins.settings("aggregator"), name="test")
    as_aggregator.publish(DEAD_LETTER_EXCHANGE, Message(b"refused", "update", "north/1/1"))
    as_aggregator.close()
    (broker_folder / "run.secret").chmod(0o604)
    capsys.readouterr()

    with pytest.raises(typer.Exit) as ended:
        doctor(broker_folder, as_json=True)
    assert ended.value.exit_code == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["schema"], told["ok"]) == (1, False)
    named = {each["name"] for each in told["findings"] if not each["ok"]}
    assert {"topology", "leader", "secret files"} <= named
    assert named <= {"topology", "leader", "secret files", "dead letters"}  # the statistics of queues come seconds late
    well = {each["name"] for each in told["findings"] if each["ok"]}
    assert {"AMQP", "management API", "broker version", "logins", "rights", "lineage", "libraries"} <= well


@pytest.mark.rabbitmq
def test_another_runs_folder_and_a_changed_password_are_found(broker_folder, tmp_path):
    init(task="heart-disease", institution=["north"], folder=broker_folder)
    federation = FederationFolder(broker_folder)
    facts = federation.facts()
    federation.keep(facts.model_copy(update={"run_id": "0" * 16}))
    logins = load(broker_folder)
    save(logins.model_copy(update={"users": logins.users | {"north": "another"}}), broker_folder)
    found = {name: what for name, what, _ in wrong(findings(federation))}
    assert facts.run_id in found["lineage"]
    assert found["logins"] == "users north: has another password than ours"
    assert OPERATOR not in found["logins"]
