"""Bad days that take minutes: nodes of a cluster that go, and a broker that loses patience with a consumer."""

import time
from collections.abc import Iterator

import pytest

from broker_config.node import PrivateCluster, start_cluster, start_node
from broker_config.provision import administration
from tests.bad_days.conftest import events, logins_on, server_on, watching
from tests.builders import a_plan
from tests.conftest import RabbitmqServer, eventually
from tests.running import Leader, Watch, Worker, begin, local_data, require_each_once, require_replay, trained

pytestmark = [pytest.mark.rabbitmq, pytest.mark.long, pytest.mark.timeout(400)]

RECOVERY_SECONDS = 120.0


@pytest.fixture(scope="module")
def cluster(installation, node_folder) -> Iterator[PrivateCluster]:
    """Three nodes, all running again at the end of a test."""
    nodes = start_cluster(node_folder(), nodes=3, installation=installation, remove_with_parent=True)
    yield nodes
    nodes.stop(remove=True)


@pytest.fixture(scope="module")
def cluster_logins(cluster):
    return logins_on(cluster.nodes[0])


@pytest.fixture
def cluster_server(cluster, cluster_logins) -> Iterator[RabbitmqServer]:
    server = server_on(cluster.nodes, cluster_logins)
    yield server
    for node in cluster.nodes:  # one that was left alone has paused itself, and comes back in its own time
        node.wait_until_ready()
    server.close()


def node_of(server, cluster, user):
    """The node that a user's connections are on."""
    with administration(server.logins) as management:
        (name,) = {each["node"] for each in eventually(lambda: management.connections(user))}
    return next(node for node in cluster.nodes if node.record.name == name)


@pytest.mark.parametrize("user", ["aggregator", "bank-a"])
def test_a_worker_goes_on_when_the_node_it_is_connected_to_is_killed(cluster_server, cluster, tmp_path, stack, user):
    begin(cluster_server, a_plan())
    watch = Watch(cluster_server.connect("operator"))
    leader = stack.enter_context(Leader(cluster_server, tmp_path / "aggregator"))
    workers = [stack.enter_context(Worker(cluster_server, name, tmp_path)) for name in ("bank-a", "bank-b")]
    assert watch.until(lambda: watch.outcomes("bank-a") and watch.outcomes("bank-b"))
    before = watch.entry("bank-a").watermark
    node = node_of(cluster_server, cluster, user)
    node.kill()
    try:
        again = watching(cluster_server)
        assert again.until(lambda: again.entry("bank-a").watermark >= before + 3, RECOVERY_SECONDS)
    finally:
        node.start()
    assert [each.failure for each in (leader, *workers)] == [None, None, None]


def test_nothing_is_lost_while_two_of_three_nodes_are_away(cluster_server, cluster, tmp_path, stack, said):
    begin(cluster_server, a_plan())
    watch = Watch(cluster_server.connect("operator"))
    leader = stack.enter_context(Leader(cluster_server, tmp_path / "aggregator"))
    worker = stack.enter_context(Worker(cluster_server, "bank-a", tmp_path))
    assert watch.until(lambda: watch.outcomes("bank-a"))
    before = watch.entry("bank-a").watermark
    for node in cluster.nodes[1:]:
        node.kill()
    assert eventually(lambda: len(events(said, "not ready, trying again")) >= 2, RECOVERY_SECONDS)
    for node in cluster.nodes[1:]:
        node.launch()
    for node in cluster.nodes[1:]:
        node.wait_until_ready()
    again = watching(cluster_server)
    assert again.until(lambda: again.entry("bank-a").watermark >= before + 3, RECOVERY_SECONDS)
    assert (leader.failure, worker.failure) == (None, None)


def test_a_consumer_that_held_a_delivery_for_too_long_starts_again(installation, node_folder, tmp_path, stack, said):
    own = start_node(node_folder(), installation=installation, remove_with_parent=True)
    stack.callback(own.stop, remove=True)
    node = own.nodes[0]
    node.control("eval", "application:set_env(rabbit, consumer_timeout, 5000).")
    server = server_on([node], logins_on(node))
    stack.callback(server.close)
    begin(server, a_plan())
    watch = Watch(server.connect("operator"))
    # The token of a leader that thinks it has half an hour is held for too long.
    leader = stack.enter_context(Leader(server, tmp_path / "aggregator"))
    # Slowly: the toy training has arrived after some hundred updates, and a client rests on an unchanged model.
    data = local_data("bank-a", at_least=lambda: time.sleep(0.5))
    stack.enter_context(Worker(server, "bank-a", tmp_path, data=data))
    assert watch.until(lambda: [line for line in said if "delivery acknowledgement" in str(line.get("reason"))], 150)
    before = watch.entry("bank-a").watermark
    assert watch.until(lambda: watch.entry("bank-a").watermark >= before + 3)
    assert leader.failure is None
    require_each_once(watch)
    require_replay(watch, trained)
