"""Private nodes: nobody else's, and gone when their parent is."""

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from broker_config.connection import connect
from broker_config.logins import create
from broker_config.node import Installation, remove_leftovers, start_cluster, start_node
from broker_config.node_files import NodeRecord, TlsPlaces, advanced, configuration, environment, plugins
from broker_config.processes import MARK, end_all, processes_of
from broker_config.provision import administration, provision
from broker_config.topology import LINEAGE, update_queue
from shared.broker import Message
from shared.errors import BrokerUnavailableError, PublishRefusedError, SettingsError

RECORD = NodeRecord("n1@localhost", 1001, 1002, 1003, 1004, 1005)

# Starts a node, says where it listens, and waits to be killed.
PARENT = """
import sys
from pathlib import Path
from broker_config.node import Installation, start_node
cluster = start_node(Path(sys.argv[1]), installation=Installation(Path(sys.argv[2])), remove_with_parent=True)
print(cluster.nodes[0].record.amqp_port, flush=True)
sys.stdin.read()
"""


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_without_rabbitmq_one_sentence_says_what_to_do(tmp_path):
    with pytest.raises(SettingsError, match="run `make setup`"):
        start_node(tmp_path / "node", installation=Installation(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_every_listener_of_a_node_is_on_loopback():
    text = configuration(RECORD, admin="admin", password="word")
    assert "listeners.tcp.1 = 127.0.0.1:1001" in text
    assert "management.tcp.ip = 127.0.0.1" in text
    assert "prometheus.tcp.ip = 127.0.0.1" in text
    variables = environment(RECORD, Path("/x"), marked=Path("/x"))
    assert variables["ERL_EPMD_ADDRESS"] == "127.0.0.1"
    assert "{127,0,0,1}" in variables["RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS"]
    assert "cluster_formation" not in text


def test_a_node_with_tls_has_no_listener_without_it_but_on_loopback():
    places = TlsPlaces("192.0.2.7", Path("/x/tls"), Path("/x/revoked"))
    text = configuration(RECORD, admin="admin", password="word", tls=places)
    listeners = [line for line in text.splitlines() if "listeners" in line or "tcp.ip" in line]
    assert listeners == [
        "listeners.tcp = none",
        "listeners.ssl.1 = 192.0.2.7:1001",
        "management.tcp.ip = 127.0.0.1",
        "prometheus.tcp.ip = 127.0.0.1",
    ]
    assert [line for line in text.splitlines() if "mechanism" in line] == ["auth_mechanisms.1 = EXTERNAL"]
    assert "rabbitmq_auth_mechanism_ssl" in plugins(places)
    assert "{fail_if_no_peer_cert, true}" in advanced(places)


def test_only_marked_processes_are_found_and_ended(tmp_path):
    def sleeper(folder: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["sleep", "60"], env={"PATH": os.environ["PATH"], MARK: str(folder)})

    mine, below, beside = sleeper(tmp_path / "a"), sleeper(tmp_path / "a" / "n1"), sleeper(tmp_path / "ab")
    with subprocess.Popen(["sleep", "60"]) as unmarked:
        assert sorted(processes_of(tmp_path / "a")) == sorted([mine.pid, below.pid])
        end_all(tmp_path / "a", grace_seconds=0)
        assert processes_of(tmp_path / "a") == []
        assert (beside.poll(), unmarked.poll()) == (None, None)
        for each in (beside, unmarked):
            each.kill()
    for each in (mine, below, beside):
        each.wait()


@pytest.mark.rabbitmq
def test_a_node_keeps_its_secrets_to_itself(private_node):
    secret = [private_node.folder / "rabbitmq.conf", private_node.folder / "home" / ".erlang.cookie"]
    assert [stat.S_IMODE(file.stat().st_mode) & 0o077 for file in secret] == [0, 0]
    assert stat.S_IMODE(private_node.folder.parent.stat().st_mode) == 0o700


@pytest.mark.rabbitmq
def test_a_node_ends_with_a_parent_that_is_killed(installation, node_folder, soon):
    folder = node_folder()
    command = [sys.executable, "-c", PARENT, str(folder), str(installation.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        port = int(parent.stdout.readline())
        assert listens(port)
        assert len(processes_of(folder)) >= 3
        parent.send_signal(signal.SIGKILL)
    assert soon(lambda: not folder.exists())
    assert processes_of(folder) == []
    assert not listens(port)


@pytest.mark.rabbitmq
def test_leftovers_of_a_node_whose_watcher_died_too_can_be_removed(installation, node_folder):
    folder = node_folder()
    cluster = start_node(folder, installation=installation)
    watcher = cluster.companions[0]
    watcher.kill()
    assert processes_of(folder)
    remove_leftovers(folder)
    assert (processes_of(folder), folder.exists()) == ([], False)
    cluster.stop()


@pytest.mark.rabbitmq
@pytest.mark.long
def test_a_node_started_again_in_its_folder_has_its_ports_and_data(installation, node_folder):
    folder = node_folder()
    first = start_node(folder, installation=installation)
    node = first.nodes[0]
    logins = create(node=node.amqp, management=node.management_url, admin_password=node.admin_password)
    logins = logins.with_institutions(["bank-a"])
    provision(logins, ["bank-a"], free_bytes=node.free_bytes)
    bank = connect(logins.settings("bank-a"), name="bank")
    bank.publish(update_queue("bank-a"), Message(b"kept", "update", "u1"))
    bank.close()
    first.stop()
    second = start_node(folder, installation=installation)
    assert second.nodes[0].record == node.record
    aggregator = connect(logins.settings("aggregator"), name="aggregator")
    aggregator.consume(update_queue("bank-a"), prefetch=1)
    kept = aggregator.receive(30)
    assert kept is not None
    assert kept.message.body == b"kept"
    aggregator.close()
    second.stop(remove=True)


@pytest.mark.rabbitmq
@pytest.mark.long
def test_a_cluster_of_three_survives_the_loss_of_a_node(installation, node_folder, soon):
    cluster = start_cluster(node_folder(), nodes=3, installation=installation, remove_with_parent=True)
    first = cluster.nodes[0]
    bare = create(node=first.amqp, management=first.management_url, admin_password=first.admin_password)
    logins = bare.with_institutions(["bank-a"]).model_copy(
        update={"amqp": ",".join(node.amqp_url(bare.vhost) for node in cluster.nodes)}
    )
    with administration(logins) as management:
        assert soon(lambda: len([node for node in management.nodes() if node["running"]]) == 3)
    provision(logins, ["bank-a"], free_bytes=first.free_bytes)
    cluster.nodes[2].kill()
    aggregator = connect(logins.settings("aggregator"), name="aggregator")
    assert soon(lambda: is_published(aggregator))
    read = aggregator.read(LINEAGE, "first", count=1, idle_seconds=10)
    assert [delivery.message.message_id for delivery in read] == ["m1"]
    aggregator.close()
    cluster.stop(remove=True)


def is_published(broker) -> bool:
    try:
        broker.publish(LINEAGE, Message(b"", "manifest", "m1"))
    except (PublishRefusedError, BrokerUnavailableError):
        return False
    return True
