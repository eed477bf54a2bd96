"""Brokers that may suffer, and links to them that may be cut."""

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
import structlog

from broker_config.connection import connect
from broker_config.logins import Logins, create
from broker_config.node import Installation, PrivateNode, start_node
from campaigns.tcp_proxy import TcpProxy
from shared.broker import Broker
from shared.errors import BrokerUnavailableError
from tests.conftest import INSTITUTIONS, RabbitmqServer, eventually
from tests.running import Watch


class Linked:
    """A broker as it is reached over one link, with the heartbeats of this connection (2 seconds is the least)."""

    def __init__(
        self, server: RabbitmqServer, link: TcpProxy, *, heartbeat_seconds: int = 30, blocked_timeout_seconds: int = 300
    ):
        self._changes = {
            "url": f"amqp://127.0.0.1:{link.port}/{server.logins.vhost}",
            "heartbeat_seconds": heartbeat_seconds,
            "blocked_timeout_seconds": blocked_timeout_seconds,
        }
        self._server = server

    def connect(self, user: str) -> Broker:
        settings = self._server.logins.settings(user).model_copy(update=self._changes)
        return connect(settings, name=f"test/{user}")


@pytest.fixture
def link(private_node: PrivateNode) -> Iterator[TcpProxy]:
    """A link to the session's node."""
    with TcpProxy(private_node.record.amqp_port) as proxy:
        yield proxy


@pytest.fixture
def link_to_own(own_node: PrivateNode) -> Iterator[TcpProxy]:
    """A link to the node that may suffer."""
    with TcpProxy(own_node.record.amqp_port) as proxy:
        yield proxy


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What is entered here is left in reverse at the end."""
    with ExitStack() as entered:
        yield entered


@pytest.fixture
def said() -> Iterator[list[structlog.typing.EventDict]]:
    """Every line that the workers of this test log."""
    with structlog.testing.capture_logs() as lines:
        yield lines


@pytest.fixture(scope="module")
def own_node(installation: Installation, node_folder: Callable[[], Path]) -> Iterator[PrivateNode]:
    """A node that nobody else uses; a test leaves it running and without alarms."""
    cluster = start_node(node_folder(), installation=installation, remove_with_parent=True)
    yield cluster.nodes[0]
    cluster.stop(remove=True)


@pytest.fixture(scope="module")
def own_logins(own_node: PrivateNode) -> Logins:
    """Logins on that node."""
    return logins_on(own_node)


@pytest.fixture
def own_server(own_node: PrivateNode, own_logins: Logins) -> Iterator[RabbitmqServer]:
    """A fresh virtual host on that node."""
    server = server_on([own_node], own_logins)
    yield server
    server.close()


def events(said: list[structlog.typing.EventDict], event: str) -> list[structlog.typing.EventDict]:
    """The lines of one event."""
    return [line for line in said if line["event"] == event]


def watching(server: RabbitmqServer) -> Watch:
    """An eye on the lineage of a broker that may still be starting."""

    def look() -> Watch | None:
        try:
            broker = server.connect("operator")
        except BrokerUnavailableError:
            return None
        try:
            return Watch(broker)
        except BrokerUnavailableError:
            broker.close()  # a login has eight connections at most
            return None

    watch = eventually(look, 60)
    assert watch is not None
    return watch


def logins_on(node: PrivateNode) -> Logins:
    """Everybody's login on a node that has none yet."""
    admin = {"admin_password": node.admin_password}
    return create(node=node.amqp, management=node.management_url, **admin).with_institutions(INSTITUTIONS)


def server_on(nodes: Sequence[PrivateNode], logins: Logins) -> RabbitmqServer:
    """A fresh virtual host on a node or cluster, whose url names all nodes."""
    vhost = f"bad-{secrets.token_hex(4)}"
    urls = ",".join(node.amqp_url(vhost) for node in nodes)
    return RabbitmqServer(nodes[0], logins.model_copy(update={"vhost": vhost, "amqp": urls}))
