"""The two brokers under test behind one fixture; a test that takes `broker_server` runs on both."""

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar
from unittest.mock import patch

import pytest
import structlog

from broker_config.connection import connect, waiting_messages
from broker_config.logins import Logins, create, load, save
from broker_config.memory import MemoryRabbit
from broker_config.node import SYSTEM, Installation, PrivateNode, start_node
from broker_config.provision import administration, provision, remove_institution
from broker_config.topology import Limits, topology
from shared.broker import Broker
from shared.errors import SettingsError
from tests.tls import TlsNode

T = TypeVar("T")

INSTITUTIONS = ("bank-a", "bank-b", "bank-c")
LIMITS = Limits(update_bytes=1 << 20, model_stream_bytes=64 << 20, state_stream_bytes=64 << 20, dead_letter_bytes=16 << 20)
JOURNALLED = replace(LIMITS, journal_stream_bytes=16 << 20)


class BrokerServer(Protocol):
    """A running broker that holds the topology of a federation of INSTITUTIONS under LIMITS."""

    institutions: tuple[str, ...]

    def connect(self, user: str) -> Broker: ...
    def declare(self, institution: str) -> None: ...
    def remove(self, institution: str) -> None: ...
    def remove_queue(self, name: str) -> None: ...
    def drop(self, user: str) -> None: ...
    def depth(self, queue: str) -> int: ...


class MemoryServer:
    """The in-memory broker."""

    def __init__(self) -> None:
        self.rabbit = MemoryRabbit(topology(INSTITUTIONS, LIMITS))
        self.connect = self.rabbit.connect
        self.declare = self.rabbit.declare
        self.remove = self.rabbit.remove
        self.remove_queue = self.rabbit.remove_queue
        self.drop = self.rabbit.drop
        self.depth = self.rabbit.depth

    @property
    def institutions(self) -> tuple[str, ...]:
        return self.rabbit.topology.institutions


class RabbitmqServer:
    """A virtual host of its own on a private node of the session; `certify` gives an institution what it connects with."""

    def __init__(self, node: PrivateNode, logins: Logins, certify: Callable[[str], object] = lambda _: None) -> None:
        self.institutions: tuple[str, ...] = ()
        self.logins = logins
        self._node = node
        self._certify = certify
        self._open: list[Broker] = []
        for institution in INSTITUTIONS:
            self._add(institution)
        self._apply()

    def connect(self, user: str) -> Broker:
        broker = connect(self.logins.settings(user), name=f"test/{user}")
        self._open.append(broker)
        return broker

    def declare(self, institution: str) -> None:
        self._add(institution)
        self._apply()

    def remove(self, institution: str) -> None:
        remove_institution(self.logins, institution)
        self.institutions = tuple(each for each in self.institutions if each != institution)

    def remove_queue(self, name: str) -> None:
        with administration(self.logins) as management:
            management.delete_queue(name)

    def drop(self, user: str) -> None:
        with administration(self.logins) as management:
            eventually(lambda: management.connections(user))
            management.close_connections(user)

    def depth(self, queue: str) -> int:
        return waiting_messages(self.logins.settings(self.logins.administrator), queue)

    def close(self) -> None:
        for broker in self._open:
            broker.close()
        with administration(self.logins) as management:
            management.delete_vhost()

    def _add(self, institution: str) -> None:
        self.institutions = tuple(sorted({*self.institutions, institution}))
        self.logins = self.logins.with_institutions([institution])
        self._certify(institution)

    def _apply(self) -> None:
        provision(self.logins, self.institutions, LIMITS, free_bytes=self._node.free_bytes)


def eventually(look: Callable[[], T], timeout_seconds: float = 20) -> T:
    """The first true answer of `look`, or its last one after the timeout."""
    deadline = time.monotonic() + timeout_seconds
    while not (answer := look()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return answer


@pytest.fixture(scope="session", autouse=True)
def quiet_logs() -> Iterator[None]:
    """Workers on threads log between tests too, when nothing captures it.

    A logger that a command has cached would never again be heard by a test that listens.
    """
    configure = structlog.configure

    def without_cache(**settings: Any) -> None:
        configure(**{**settings, "cache_logger_on_first_use": False})

    with Path(os.devnull).open("w") as nowhere, patch.object(structlog, "configure", without_cache):
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(nowhere))
        yield
        structlog.reset_defaults()


@pytest.fixture(autouse=True)
def logs_as_before(quiet_logs: None) -> Iterator[None]:
    """A command that runs in this process sets the logs up, for itself alone."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture(scope="session")
def installation() -> Installation:
    """The RabbitMQ under test: the system's, or an unpacked one; absent, a skip at a desk and a failure where it is demanded."""
    root = os.environ.get("FEDQUEUE_RABBITMQ_ROOT")
    found = Installation(Path(root)) if root else SYSTEM
    try:
        found.demand()
    except SettingsError as error:
        if os.environ.get("CI") or os.environ.get("FEDQUEUE_REQUIRE_RABBITMQ"):
            raise
        pytest.skip(str(error))
    return found


@pytest.fixture(scope="session")
def node_folder(installation: Installation) -> Iterator[Callable[[], Path]]:
    """Makes folders that nodes of the installation can see; all are removed at the end of the session."""
    base = Path(tempfile.mkdtemp(prefix="fedqueue-test-", dir=installation.root / "tmp"))
    yield lambda: base / secrets.token_hex(4)
    shutil.rmtree(base)


@pytest.fixture(scope="session")
def private_node(installation: Installation, node_folder: Callable[[], Path]) -> Iterator[PrivateNode]:
    """One private node for the whole session."""
    cluster = start_node(node_folder(), installation=installation, remove_with_parent=True)
    yield cluster.nodes[0]
    cluster.stop(remove=True)


@pytest.fixture(scope="session")
def logins(private_node: PrivateNode) -> Logins:
    """Logins on the session's node; users belong to the node, so their passwords last as long."""
    admin = {"admin_password": private_node.admin_password}
    return create(node=private_node.amqp, management=private_node.management_url, **admin).with_institutions(INSTITUTIONS)


@pytest.fixture
def rabbitmq_server(private_node: PrivateNode, logins: Logins) -> Iterator[RabbitmqServer]:
    """A fresh virtual host on the private node."""
    vhost = f"test-{secrets.token_hex(4)}"
    server = RabbitmqServer(private_node, logins.model_copy(update={"vhost": vhost, "amqp": private_node.amqp_url(vhost)}))
    yield server
    server.close()


@pytest.fixture(params=["memory", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def journalled(request: pytest.FixtureRequest) -> MemoryRabbit | RabbitmqServer:
    """A broker that keeps a journal of every institution."""
    if request.param == "memory":
        return MemoryRabbit(topology(INSTITUTIONS, JOURNALLED))
    server: RabbitmqServer = request.getfixturevalue("rabbitmq_server")
    provision(server.logins, INSTITUTIONS, JOURNALLED)
    return server


@pytest.fixture(scope="session")
def tls_node(installation: Installation, node_folder: Callable[[], Path]) -> Iterator[TlsNode]:
    """One private node that takes TLS and certificates only, for the whole session."""
    started = TlsNode.start(node_folder(), installation)
    yield started
    started.cluster.stop(remove=True)


@pytest.fixture
def tls_server(tls_node: TlsNode) -> Iterator[RabbitmqServer]:
    """A fresh virtual host on the node with TLS; `logins.settings(user)` names the certificate of each login."""
    server = RabbitmqServer(tls_node.node, tls_node.logins(f"test-{secrets.token_hex(4)}"), tls_node.certificate)
    yield server
    server.close()


@pytest.fixture
def broker_folder(private_node: PrivateNode, logins: Logins, tmp_path: Path) -> Iterator[Path]:
    """A folder as `fedqueue broker up` leaves it, for a virtual host of its own on the private node."""
    vhost = f"own-{secrets.token_hex(4)}"
    users = {name: word for name, word in logins.users.items() if name not in INSTITUTIONS}
    own = logins.model_copy(update={"vhost": vhost, "amqp": private_node.amqp_url(vhost), "users": users})
    save(own, tmp_path / "federation")
    yield tmp_path / "federation"
    with administration(own) as management:
        management.delete_vhost()
        for institution in load(tmp_path / "federation").institutions:
            management.delete_user(institution)


@pytest.fixture(params=["memory", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def broker_server(request: pytest.FixtureRequest) -> BrokerServer:
    """Each broker in turn."""
    return MemoryServer() if request.param == "memory" else request.getfixturevalue(f"{request.param}_server")


@pytest.fixture
def soon() -> Callable[[Callable[[], bool]], bool]:
    """Whether something becomes true within the patience of a test."""
    return eventually
