"""What only a real RabbitMQ can show."""

import threading
from importlib import metadata

import pika
import pytest
from pydantic import SecretStr

from broker_config.connection import ConnectionSettings, address, connect
from broker_config.node import PrivateCluster, start_node
from broker_config.provision import administration, provision
from broker_config.topology import LEAD, LINEAGE, MODEL, control_queue, entrance, update_queue
from shared.broker import Broker, Message
from shared.errors import BrokerUnavailableError, TopologyError
from tests.conftest import eventually

pytestmark = pytest.mark.rabbitmq

UPDATES_A = update_queue("bank-a")


def raw(server, user):
    host, port, vhost = address(server.logins.amqp)
    credentials = pika.PlainCredentials(user, server.logins.users[user])
    return pika.BlockingConnection(pika.ConnectionParameters(host, port, vhost, credentials))


def test_a_wrong_password_names_the_user_and_the_virtual_host(rabbitmq_server):
    settings = rabbitmq_server.logins.settings("bank-a").model_copy(update={"password": SecretStr("wrong")})
    with pytest.raises(TopologyError, match=f"bank-a in virtual host {rabbitmq_server.logins.vhost}.*password"):
        connect(settings, name="test")


def test_a_wrong_virtual_host_names_it(rabbitmq_server, private_node):
    settings = rabbitmq_server.logins.settings("bank-a").model_copy(update={"url": private_node.amqp_url("nowhere")})
    with pytest.raises(TopologyError, match="virtual host nowhere"):
        connect(settings, name="test")


def test_an_institution_cannot_pretend_to_be_another(rabbitmq_server):
    with raw(rabbitmq_server, "bank-a") as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        with pytest.raises(pika.exceptions.ChannelClosedByBroker) as caught:
            channel.basic_publish(UPDATES_A, "", b"", pika.BasicProperties(user_id="bank-b"))
    assert caught.value.reply_code == 406


@pytest.mark.parametrize("header", ["CC", "BCC"])
def test_copies_asked_for_in_a_header_reach_nobody(rabbitmq_server, header):
    with raw(rabbitmq_server, "bank-a") as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        others = [update_queue("bank-b"), LEAD, LINEAGE]
        channel.basic_publish(UPDATES_A, "", b"x", pika.BasicProperties(headers={header: others}))
    assert rabbitmq_server.depth(UPDATES_A) == 1
    assert rabbitmq_server.depth(update_queue("bank-b")) == 0
    assert rabbitmq_server.depth(LEAD) == 1


ATTEMPTS = [
    lambda channel: channel.queue_bind(UPDATES_A, entrance(MODEL)),
    lambda channel: channel.queue_bind(UPDATES_A, entrance("fl.ctl.bank-a")),
    lambda channel: channel.exchange_bind(UPDATES_A, entrance(MODEL)),
    lambda channel: channel.queue_unbind(UPDATES_A, UPDATES_A),
    lambda channel: channel.queue_declare("fl.mine"),
    lambda channel: channel.queue_declare("", exclusive=True),
    lambda channel: channel.exchange_declare("fl.mine", "fanout"),
    lambda channel: channel.queue_delete("fl.ctl.bank-a"),
    lambda channel: channel.queue_purge(UPDATES_A),
    lambda channel: channel.queue_purge(update_queue("bank-b")),
    lambda channel: channel.basic_get(LEAD),
]


def test_an_institution_cannot_change_the_topology(rabbitmq_server):
    with raw(rabbitmq_server, "bank-a") as connection:
        for attempt in ATTEMPTS:
            with pytest.raises(pika.exceptions.ChannelClosedByBroker) as caught:
                attempt(connection.channel())
            assert caught.value.reply_code == 403


def test_properties_and_headers_that_are_not_ours_arrive_as_nothing(rabbitmq_server):
    odd = {"table": {"a": 1}, "list": [1], "none": None, "bytes": b"\xff\xfe", "text": "kept"}
    with raw(rabbitmq_server, "bank-a") as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.basic_publish(UPDATES_A, "", b"x", pika.BasicProperties(headers=odd))
    aggregator = rabbitmq_server.connect("aggregator")
    aggregator.consume(UPDATES_A, prefetch=1)
    delivery = aggregator.receive(10)
    assert delivery is not None
    assert (delivery.user_id, delivery.message.kind, delivery.message.message_id) == (None, "", "")
    assert delivery.message.headers == {"text": "kept"}


def test_a_message_over_the_brokers_size_is_refused_with_its_reason(rabbitmq_server):
    bank = rabbitmq_server.connect("bank-a")
    with pytest.raises(TopologyError, match="larger than configured max size"):
        bank.publish(UPDATES_A, Message(bytes((16 << 20) + 1), "update", "u1"))
    bank.publish(UPDATES_A, Message(b"small", "update", "u2"))


def test_a_stream_written_in_one_burst_is_read_whole_and_in_order(rabbitmq_server):
    with raw(rabbitmq_server, "aggregator") as connection:
        channel = connection.channel()
        for number in range(500):
            channel.basic_publish("fl.model.in", "", b"%d" % number)
    bank = rabbitmq_server.connect("bank-a")
    bodies = [delivery.message.body for delivery in bank.read(MODEL, "first", count=500, idle_seconds=5)]
    assert bodies == [b"%d" % number for number in range(500)]
    for _ in range(20):
        reading = bank.read(MODEL, "first", count=400, idle_seconds=5)
        next(reading)
        reading.close()
    rabbitmq_server.connect("aggregator").publish(MODEL, Message(b"end", "model", "end"))
    assert [each.message.body for each in bank.read(MODEL, "last", count=1, idle_seconds=5)] == [b"end"]


def test_the_connection_is_named_and_described_for_the_operator(rabbitmq_server, soon):
    rabbitmq_server.connect("bank-a")
    with administration(rabbitmq_server.logins) as management:
        assert soon(lambda: management.connections("bank-a"))
        (seen,) = management.connections("bank-a")
    assert seen["user_provided_name"] == "test/bank-a"


@pytest.fixture
def own_node(installation, node_folder):
    cluster = start_node(node_folder(), installation=installation, remove_with_parent=True)
    yield cluster
    cluster.stop(remove=True)


def test_a_broker_that_restarts_is_unavailable_and_then_holds_what_it_confirmed(own_node: PrivateCluster, logins):
    node = own_node.nodes[0]
    admin = {logins.administrator: node.admin_password}
    address_of = {"amqp": node.amqp_url("fl"), "management": node.management_url, "vhost": "fl", "users": logins.users | admin}
    here = logins.model_copy(update=address_of)
    provision(here, ["bank-a"], free_bytes=node.free_bytes)
    bank, aggregator = connect(here.settings("bank-a"), name="bank"), connect(here.settings("aggregator"), name="aggregator")
    bank.publish(UPDATES_A, Message(b"kept", "update", "u1"))
    aggregator.consume(UPDATES_A, prefetch=1)
    stale = aggregator.receive(10)
    assert stale is not None
    killer = threading.Thread(target=node.kill)
    killer.start()
    with pytest.raises(BrokerUnavailableError):
        aggregator.receive(20)
    killer.join()
    with pytest.raises(BrokerUnavailableError):
        aggregator.ack(stale)
    with pytest.raises(BrokerUnavailableError):
        bank.publish(UPDATES_A, Message(b"lost", "update", "u2"))
    bank.close()
    aggregator.close()
    node.start()
    again = eventually(lambda: consuming(here.settings("aggregator")), 60)
    assert again is not None
    kept = again.receive(30)
    assert kept is not None
    assert (kept.message.body, kept.redelivered) == (b"kept", True)
    again.close()


def consuming(settings: ConnectionSettings) -> Broker | None:
    """A connection that reads the queue; None while a node that has just come back cannot give it (4.0.5 answers 541)."""
    broker = connect(settings, name="aggregator")
    try:
        broker.consume(UPDATES_A, prefetch=1)
    except BrokerUnavailableError:
        broker.close()
        return None
    return broker


def test_the_management_ui_says_which_process_of_which_version_reads_a_queue(rabbitmq_server):
    name = "fedqueue-client/bank-a/host-7/4711"
    broker = connect(rabbitmq_server.logins.settings("bank-a"), name=name)
    try:
        broker.consume(control_queue("bank-a"), prefetch=1)
        broker.consume(LINEAGE, prefetch=1, start="last")
        with administration(rabbitmq_server.logins) as management:
            assert eventually(lambda: management.queue(control_queue("bank-a")).get("consumer_details"))
            (consumer,) = management.queue(control_queue("bank-a"))["consumer_details"]
            assert eventually(lambda: management.connections("bank-a"))
            (connection,) = management.connections("bank-a")
    finally:
        broker.close()
    assert consumer["consumer_tag"] == name
    assert connection["client_properties"]["connection_name"] == name
    assert connection["client_properties"]["version"] == metadata.version("fedqueue")
