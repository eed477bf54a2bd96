"""Bringing a real broker to the topology, and seeing where it is not."""

import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from broker_config.definitions import Permission
from broker_config.logins import Logins, create
from broker_config.management import Management
from broker_config.node import start_cluster
from broker_config.provision import (
    administration,
    check,
    export,
    provision,
    remove_institution,
    remove_vhost,
)
from broker_config.room import allowed_bytes, demand_room, needed_bytes
from broker_config.topology import LEAD, LINEAGE, Limits, topology
from shared.broker import Message
from shared.errors import BrokerUnavailableError, SettingsError, TopologyError

MIB = 1 << 20


@pytest.fixture
def applied(rabbitmq_server):
    return rabbitmq_server.logins.model_copy(update={"limits": LIMITS})


LIMITS = Limits(update_bytes=MIB, model_stream_bytes=64 * MIB, state_stream_bytes=64 * MIB, dead_letter_bytes=16 * MIB)
MEMBERS = ("bank-a", "bank-b", "bank-c")


def problems(logins: Logins) -> list[str]:
    return [str(drift) for drift in check(logins, MEMBERS)]


def test_limits_that_do_not_fit_on_the_disk_are_refused_with_the_numbers():
    # 3 institutions x 3 MiB, two streams of 64 MiB, three streams' last segments of 64 MiB, 16 MiB of dead letters
    assert needed_bytes(LIMITS, 3) == (9 + 128 + 192 + 16) * MIB
    objects = topology(MEMBERS, LIMITS)
    demand_room(objects, {"node n1": 345 * MIB})
    with pytest.raises(TopologyError, match="361,758,720 bytes of messages, and node n1 has 361,758,719"):
        demand_room(objects, {"node n1": 345 * MIB - 1})


def test_a_journal_for_each_institution_counts_towards_what_must_fit():
    # as above, and for each of 3 institutions a journal of 100 MiB with a last segment of 64 MiB
    journalled = replace(LIMITS, journal_stream_bytes=100 * MIB)
    assert needed_bytes(journalled, 3) == (345 + 3 * 164) * MIB
    with pytest.raises(TopologyError, match="lower the limits, or give the broker a larger disk"):
        demand_room(topology(MEMBERS, journalled), {"node n1": 836 * MIB})


def test_what_was_allowed_before_is_not_asked_for_again_as_its_messages_take_their_room():
    objects = topology(MEMBERS, LIMITS)
    demand_room(objects, {"node n1": 5 * MIB}, allowed=340 * MIB)
    with pytest.raises(TopologyError, match="361,758,720 bytes of messages, 5,242,880 more than now, and node n1 has 5,242,879"):
        demand_room(objects, {"node n1": 5 * MIB - 1}, allowed=340 * MIB)


@pytest.mark.rabbitmq
def test_an_institution_can_be_added_when_the_messages_have_taken_what_was_allowed(applied, rabbitmq_server, soon):
    with administration(applied) as management:
        journalled = replace(LIMITS, journal_stream_bytes=MIB)
        provision(applied, MEMBERS, journalled)
        assert allowed_bytes(management.definitions(), applied.vhost) == needed_bytes(journalled, 3)
        rabbitmq_server.connect("aggregator").publish(LINEAGE, Message(b"x", "manifest", "1"))
        assert soon(lambda: management.queue(LINEAGE).get("messages", 0))
    # bank-z: three updates of 1 MiB, and a journal of 1 MiB with a last segment of 64
    newcomer = applied.with_institutions(["bank-z"])
    with pytest.raises(TopologyError, match="71,303,168 more than now"):
        provision(newcomer, [*MEMBERS, "bank-z"], journalled, free_bytes=68 * MIB - 1)
    provision(newcomer, [*MEMBERS, "bank-z"], journalled, free_bytes=68 * MIB)
    remove_institution(newcomer, "bank-z")


def test_a_broker_that_is_not_there_is_said_with_its_address():
    nowhere = Management("http://127.0.0.1:1", user="admin", password="x", vhost="/")
    with nowhere, pytest.raises(BrokerUnavailableError, match=r"http://127\.0\.0\.1:1"):
        nowhere.version()


def test_an_administrator_s_password_crosses_no_network_unencrypted():
    remote = create(node="127.0.0.1:5672", management="http://broker.example:15672", admin_password="x")
    with pytest.raises(SettingsError, match="unencrypted: write https://"), administration(remote):
        pass
    for management in ("https://broker.example:15671", "http://127.0.0.1:15672"):
        with administration(remote.model_copy(update={"management": management})) as api:
            assert api.user == "admin"


@pytest.mark.rabbitmq
def test_a_wrong_administrator_is_refused(private_node):
    stranger = Management(private_node.management_url, user="admin", password="x", vhost="/")
    with stranger, pytest.raises(TopologyError, match="user admin"):
        stranger.version()


@pytest.mark.rabbitmq
def test_applying_twice_changes_nothing_and_leaves_one_token(applied, rabbitmq_server):
    assert problems(applied) == []
    with administration(applied) as management:
        before = management.definitions()
        provision(applied, MEMBERS)
        assert management.definitions() | {"rabbitmq_version": ""} == before | {"rabbitmq_version": ""}
    assert rabbitmq_server.depth(LEAD) == 1


@pytest.mark.rabbitmq
def test_a_held_token_is_not_doubled(applied, rabbitmq_server):
    leader = rabbitmq_server.connect("aggregator")
    leader.consume(LEAD, prefetch=1)
    assert leader.receive(10) is not None
    provision(applied, MEMBERS)
    assert rabbitmq_server.depth(LEAD) == 0


@pytest.mark.rabbitmq
def test_each_kind_of_drift_is_found_and_applying_mends_what_can_be(applied, rabbitmq_server):
    with administration(applied) as management:
        management.delete_queue("fl.ctl.bank-a")
        management.delete_exchange("fl.upd.bank-b")
        management.permit(Permission("bank-c", write=".*", read="^$"))
        management.permit(Permission("viewer", write="^$", read="^fl.model$"))
    found = problems(applied)
    assert "queues fl.ctl.bank-a: missing" in found
    assert "bindings fl.ctl.bank-a.in -> queue fl.ctl.bank-a: missing" in found
    assert "exchanges fl.upd.bank-b: missing" in found
    assert r"permissions bank-c: write is '.*', not '^fl\\.upd\\.bank\\-c$'" in found
    assert "permissions viewer: read is '^fl.model$', not '^$'" in found
    provision(applied, MEMBERS)
    assert problems(applied) == []


@pytest.mark.rabbitmq
def test_other_limits_are_a_drift_of_the_policy_and_can_be_applied_live(applied):
    wider = applied.model_copy(update={"limits": Limits(update_bytes=2 * MIB, model_stream_bytes=64 * MIB)})
    assert any(problem.startswith("policies fl-upd: definition is") for problem in problems(wider))
    provision(wider, MEMBERS)
    assert problems(wider) == []


@pytest.mark.rabbitmq
def test_what_is_not_part_of_the_topology_is_a_drift(applied):
    found = [str(drift) for drift in check(applied, ["bank-a", "bank-b"])]
    assert "queues fl.upd.bank-c: not part of the topology" in found
    assert "permissions bank-c: not part of the topology" in found


@pytest.mark.rabbitmq
def test_a_queue_with_other_arguments_is_refused_not_replaced(applied, rabbitmq_server):
    rabbitmq_server.remove_queue(LEAD)
    plain = {**export(applied, MEMBERS), "users": [], "permissions": [], "policies": []}
    queues = [{**queue, "arguments": {"x-queue-type": "quorum"}} if queue["name"] == LEAD else queue for queue in plain["queues"]]
    with administration(applied) as management:
        management.import_definitions({**plain, "queues": queues})
        management.publish("fl.lead.in", Message(b"", "token", "lead"))
    with pytest.raises(TopologyError, match=r"queues fl\.lead: arguments is"):
        provision(applied, MEMBERS)
    assert rabbitmq_server.depth(LEAD) == 1


@pytest.mark.rabbitmq
def test_a_login_with_another_password_is_not_overwritten(applied):
    other = applied.model_copy(update={"users": applied.users | {"bank-a": "another"}})
    with pytest.raises(TopologyError, match="the login bank-a with another password"):
        provision(other, MEMBERS)
    assert problems(other) == ["users bank-a: has another password than ours"]
    assert problems(applied) == []


@pytest.mark.rabbitmq
def test_removing_a_virtual_host_removes_only_logins_that_are_nowhere_else(rabbitmq_server, private_node):
    mine = rabbitmq_server.logins.with_institutions(["guest-bank"])
    mine = mine.model_copy(update={"vhost": "short-lived", "amqp": private_node.amqp_url("short-lived")})
    provision(mine, ["guest-bank"], free_bytes=private_node.free_bytes)
    remove_vhost(mine)
    with administration(rabbitmq_server.logins) as management:
        known = management.users().keys()
        assert "guest-bank" not in known
        assert {"bank-a", "aggregator", "admin"} <= known
        assert "short-lived" not in [each["name"] for each in management.definitions()["vhosts"]]


@pytest.mark.rabbitmq
def test_removing_an_institution_leaves_nothing_of_it(applied, rabbitmq_server):
    rabbitmq_server.declare("bank-y")
    logins = rabbitmq_server.logins.model_copy(update={"limits": LIMITS})
    remove_institution(logins, "bank-y")
    assert [str(drift) for drift in check(logins, MEMBERS)] == []


@pytest.mark.rabbitmq
def test_the_journal_of_a_removed_institution_stays_and_goes_on_when_it_is_admitted_again(applied, rabbitmq_server):
    journalled = applied.model_copy(update={"limits": replace(LIMITS, journal_stream_bytes=MIB)})
    logins = journalled.with_institutions(["bank-x"])
    provision(logins, [*MEMBERS, "bank-x"])
    rabbitmq_server.logins = logins
    rabbitmq_server.connect("bank-x").publish("fl.upd.bank-x", Message(b"first", "update", "1"))
    remove_institution(logins, "bank-x")
    assert [str(drift) for drift in check(logins, MEMBERS)] == []
    provision(logins, [*MEMBERS, "bank-x"])
    rabbitmq_server.connect("bank-x").publish("fl.upd.bank-x", Message(b"second", "update", "2"))
    journal = rabbitmq_server.connect("operator").read("fl.jrn.bank-x", "first", count=2, idle_seconds=5)
    assert [delivery.message.body for delivery in journal] == [b"first", b"second"]
    remove_institution(logins, "bank-x")


@pytest.mark.rabbitmq
@pytest.mark.long
def test_in_a_cluster_every_queue_and_stream_is_on_all_three_nodes_also_of_one_added_while_a_node_is_down(
    node_folder, installation, soon
):
    cluster = start_cluster(node_folder(), nodes=3, installation=installation, remove_with_parent=True)
    try:
        node = cluster.nodes[0]
        bare = create(node=node.amqp, management=node.management_url, admin_password=node.admin_password)
        logins = bare.with_institutions(["bank-a", "bank-b"])
        limits = replace(LIMITS, journal_stream_bytes=MIB)
        provision(logins, ["bank-a"], limits, free_bytes=1 << 40)
        cluster.nodes[2].kill()
        provision(logins, ["bank-a", "bank-b"], limits, free_bytes=1 << 40)
        with administration(logins) as management:
            assert soon(lambda: {len(queue.get("members", ())) for queue in management.queues()} == {3})
            assert len(management.queues()) == 12
    finally:
        cluster.stop(remove=True)


def test_a_connection_that_ends_by_itself_while_it_is_closed_is_no_error():
    """RabbitMQ answers 500 when it ends under its hands, and knows it no more at the next try."""
    closing: list[int] = []

    class Api(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200, b'[{"name": "bank-a 1", "user": "bank-a"}]')

        def do_DELETE(self) -> None:
            closing.append(500 if not closing else 404)
            self._answer(closing[-1], b"")

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_words: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        threading.Thread(target=server.serve_forever).start()
        with Management(f"http://127.0.0.1:{server.server_port}", user="admin", password="x", vhost="/") as management:
            management.close_connections("bank-a")
        server.shutdown()
    assert closing == [500, 404]
