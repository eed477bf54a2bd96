"""`fedqueue doctor`: each thing that can be wrong is found and comes with what to do; the rest is said to be well."""

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pika
import pytest
import typer

from broker_config.authority import CRL_FILE, Authority, write_issued
from broker_config.connection import connect
from broker_config.definitions import ADMIN, AGGREGATOR, OPERATOR, VIEWER
from broker_config.drift import Drift
from broker_config.logins import Logins, load, save
from broker_config.provision import administration
from broker_config.topology import DEAD_LETTER_EXCHANGE, Limits
from operator_console.certificate_checks import certificates
from operator_console.doctor import doctor
from operator_console.doctor_checks import (
    dead_letter_findings,
    drift_findings,
    findings,
    node_findings,
    room_findings,
)
from operator_console.federation_folder import Facts, FederationFolder, InstitutionFacts
from operator_console.finding import Finding
from operator_console.init_command import init
from operator_console.machine_checks import clock, disk, libraries, members_versions, secret_files
from shared.broker import Message
from tests.conftest import LIMITS as SMALL_LIMITS
from tests.conftest import RabbitmqServer, eventually
from tests.disks import small_disk

LIMITS = Limits(update_bytes=1000, updates_per_institution=3)


def wrong(found):
    return {(each.name, each.what, each.remedy) for each in found if not each.ok}


def test_a_node_is_well_when_it_runs_without_an_alarm():
    node = {"name": "n1", "running": True, "disk_free_alarm": False, "mem_alarm": False, "disk_free": 200, "disk_free_limit": 100}
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
    (tmp_path / "console").mkdir()
    for file in (tmp_path / "run.secret", kit / "password", tmp_path / "console" / "users.json", tmp_path / "task.toml"):
        file.write_text("text")
        file.chmod(0o600)
    (tmp_path / "task.toml").chmod(0o644)
    assert [each.ok for each in secret_files(tmp_path)] == [True]
    (kit / "password").chmod(0o640)
    (finding,) = secret_files(tmp_path)
    assert finding.remedy == f"chmod 600 {kit / 'password'}"
    (kit / "password").chmod(0o600)
    (tmp_path / "console" / "users.json").chmod(0o644)
    assert [each.remedy for each in secret_files(tmp_path)] == [f"chmod 600 {tmp_path / 'console' / 'users.json'}"]


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
    assert {"AMQP", "management API", "broker version", "logins", "rights", "lineage", "libraries", "disk", "clock"} <= well
    assert {"versions in use"} <= well | named


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


@pytest.mark.rabbitmq
def test_a_management_api_that_is_away_is_told_by_address(broker_folder):
    whole = load(broker_folder)
    save(whole.model_copy(update={"management": "http://127.0.0.1:1"}), broker_folder)
    found = {name: (what, remedy) for name, what, remedy in wrong(findings(FederationFolder(broker_folder)))}
    save(whole, broker_folder)
    assert "http://127.0.0.1:1" in found["management API"][0]
    assert "start the broker" in found["management API"][1]


@pytest.mark.long
@pytest.mark.rabbitmq
def test_the_alarms_and_the_nearly_full_disk_of_a_real_broker_are_found(private_node, logins):
    def found() -> list[Finding]:
        with administration(logins) as management:
            return [each for node in management.nodes() for each in node_findings(node)]

    with administration(logins) as management:
        (node,) = management.nodes()
    free, before = node["disk_free"], node["disk_free_limit"]
    try:
        private_node.control("set_disk_free_limit", str(int(free * 0.8)))
        assert eventually(lambda: "nobody can publish" in found()[0].what)
        private_node.control("set_disk_free_limit", str(free * 10))
        private_node.control("set_vm_memory_high_watermark", "absolute", "1MB")
        assert eventually(lambda: [each.what.partition(" alarm")[0] for each in found()] == ["disk", "memory"])
        assert not any(each.ok or not each.remedy for each in found())
    finally:
        private_node.control("set_disk_free_limit", str(before))
        private_node.control("set_vm_memory_high_watermark", "0.4")
    assert eventually(lambda: [each.what for each in found()] == ["runs, no alarm"])


@pytest.mark.rabbitmq
def test_a_full_queue_and_a_dead_letter_of_a_real_broker_are_found(rabbitmq_server: RabbitmqServer):
    bank, aggregator = rabbitmq_server.connect("bank-a"), rabbitmq_server.connect("aggregator")
    for number in range(3):
        bank.publish("fl.upd.bank-a", Message(bytes(900_000), "update", f"bank-a/1/{number}"))
    aggregator.publish(DEAD_LETTER_EXCHANGE, Message(b"refused", "update", "bank-a/1/9"))

    def found() -> list[Finding]:
        with administration(rabbitmq_server.logins) as management:
            queues = management.queues()
        return [*room_findings(queues, SMALL_LIMITS), *dead_letter_findings(queues, show="look")]

    assert eventually(lambda: [(each.name, each.ok) for each in found()] == [("update queues", False), ("dead letters", False)])
    assert found()[0].what.startswith("fl.upd.bank-a holds 2,7")
    assert found()[1].what == "1 refused message in fl.dlq"


@pytest.mark.rabbitmq
def test_a_clock_that_is_off_is_found_by_that_of_the_real_broker(logins):
    with administration(logins) as management:
        there = management.time()
    now = datetime.now(UTC)
    assert [each.ok for each in clock(there, now)] == [True]
    (ahead,), (behind,) = clock(there, now + timedelta(minutes=5)), clock(there, now - timedelta(hours=1))
    assert (ahead.ok, behind.ok) == (False, False)
    assert "ahead of" in ahead.what
    assert "behind" in behind.what
    assert "timedatectl" in ahead.remedy


@pytest.mark.rabbitmq
def test_a_member_with_another_version_of_fedqueue_is_found_on_a_real_broker(rabbitmq_server: RabbitmqServer):
    rabbitmq_server.connect("bank-b")
    parameters = pika.URLParameters(rabbitmq_server.logins.amqp)
    parameters.credentials = pika.PlainCredentials("bank-a", rabbitmq_server.logins.users["bank-a"])
    parameters.client_properties = {"product": "fedqueue", "version": "9.9.1"}
    stranger = pika.BlockingConnection(parameters)

    def found() -> list[Finding]:
        with administration(rabbitmq_server.logins) as management:
            return list(members_versions(management.clients(), "0.1.0"))

    assert eventually(lambda: not found()[0].ok)
    assert [each.what for each in found()] == ["bank-a runs fedqueue 9.9.1, this is 0.1.0"]
    assert "docs/upgrades.md" in found()[0].remedy
    stranger.close()
    assert eventually(lambda: [each.what for each in found()] == ["this is 0.1.0; connected: bank-b 0.1.0"])


def test_a_library_that_is_not_installed_is_named():
    (finding,) = libraries(("fedqueue", "no-such-library"))
    assert (finding.ok, finding.what, finding.remedy) == (False, "not installed: no-such-library", "make setup")


def test_a_disk_without_room_for_a_checkpoint_is_found(tmp_path):
    with small_disk(tmp_path / "small", megabytes=4) as folder:
        (folder / "checkpoint").write_bytes(bytes(1 << 20))
        (finding,) = disk(folder)
        assert not finding.ok
        assert "269,484,032" in finding.what  # 256 MiB beside the MiB that is there
        assert "make room" in finding.remedy


def test_a_state_folder_that_is_gone_is_found(tmp_path):
    (finding,) = disk(tmp_path / "gone")
    assert (finding.ok, "No such file" in finding.what) == (False, True)


def a_tls_folder(place: Path) -> tuple[FederationFolder, Authority]:
    """The operator's folder of a federation with certificates; the institution north has its own."""
    folder = FederationFolder(place)
    authority = Authority.create(folder.authority, name="test")
    users = dict.fromkeys((ADMIN, AGGREGATOR, OPERATOR, VIEWER, "north"), "")
    save(Logins(amqp="amqps://127.0.0.1:1/x", management="https://127.0.0.1:1", vhost="x", users=users), place)
    folder.keep(Facts(run_id="ab" * 8, task="toy", title="Toy", institutions=[InstitutionFacts(id="north", title="North")]))
    places = {OPERATOR: folder.tls(OPERATOR), AGGREGATOR: folder.aggregator, "north": folder.institution("north")}
    for who, where in places.items():
        write_issued(where, authority.issue(who), authority.certificate)
    write_issued(folder.authority / "server", authority.issue_server(["broker.example.org"]), authority.certificate)
    return folder, authority


NOW = datetime.now(UTC)


def test_certificates_that_hold_are_counted_and_those_that_end_are_found(tmp_path):
    folder, _ = a_tls_folder(tmp_path)
    well = list(certificates(folder, NOW))
    assert [(each.name, each.ok) for each in well] == [("certificates", True), ("revocation list", True)]
    assert well[0].what.startswith("5 hold, that of ")
    assert well[1].what.startswith("0 certificates revoked; written 0 days ago")
    found = wrong(certificates(folder, NOW + timedelta(days=340)))
    assert {remedy for _, _, remedy in found} == {
        *("`fedqueue institution renew operator`", "`fedqueue institution renew aggregator`"),
        *("`fedqueue institution renew north`", "`fedqueue ca server`"),
    }
    assert all("ends in 2" in what for _, what, _ in found)
    assert any("is over" in what for _, what, _ in wrong(certificates(folder, NOW + timedelta(days=366))))


def test_a_certificate_of_another_authority_is_found(tmp_path):
    folder, _ = a_tls_folder(tmp_path / "ours")
    _, other = a_tls_folder(tmp_path / "theirs")
    write_issued(folder.aggregator, other.issue(AGGREGATOR), other.certificate)
    ((name, what, remedy),) = wrong(certificates(folder, NOW))
    assert (name, remedy) == ("certificates", "`fedqueue institution renew aggregator`")
    assert "aggregator/certificate.pem was not issued by the authority in" in what


def test_a_revocation_list_that_is_old_foreign_over_or_gone_is_found(tmp_path):
    folder, authority = a_tls_folder(tmp_path / "ours")
    file = folder.authority / CRL_FILE
    (copy,) = authority.revocations.glob("*.r0")
    before = file.read_bytes()
    authority.revoke("north")
    file.write_bytes(before)
    assert "lacks the revoked certificate of north, who may still connect" in fault(folder)
    authority.issue("north")  # writes the list
    assert wrong(certificates(folder, NOW)) == set()
    copy.write_bytes(before)
    assert "is another list than" in fault(folder)
    copy.unlink()
    assert "has no copy" in fault(folder)
    a_tls_folder(tmp_path / "theirs")
    shutil.copy(tmp_path / "theirs" / "ca" / CRL_FILE, file)
    assert "is not signed by this authority" in fault(folder)
    file.unlink()
    assert "cannot be read" in fault(folder)
    authority.issue("north")
    assert any("is over since" in what for _, what, _ in wrong(certificates(folder, NOW + timedelta(days=3651))))


def fault(folder: FederationFolder) -> str:
    ((name, what, remedy),) = wrong(certificates(folder, NOW))
    assert (name, remedy) == ("revocation list", "`fedqueue institution renew operator` writes it again")
    return what


def test_what_is_wrong_stands_first_and_its_remedy_whole_on_a_line_of_its_own(tmp_path, capsys):
    (tmp_path / "run.secret").touch(mode=0o644)
    with pytest.raises(typer.Exit):
        doctor(tmp_path)
    secret, remedy, logins, well = capsys.readouterr().out.splitlines()
    assert secret == f" ! secret files: {tmp_path / 'run.secret'} is open to other users of this machine"
    assert remedy == f"     chmod 600 {tmp_path / 'run.secret'}"
    assert logins.startswith(" ! logins file: ")
    assert well.startswith("ok libraries: fedqueue ")
