"""Private RabbitMQ nodes for the demo, tests and clusters: own data folder, free ports, loopback only.

A system's RabbitMQ is neither used nor touched. A node ends with the process that started it, also when that is killed.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

from broker_config.definitions import ADMIN
from broker_config.node_files import NodeRecord, TlsPlaces, advanced, configuration, environment, plugins
from broker_config.processes import MARK, end_all
from broker_config.secret_files import without_secrets
from broker_config.server_tls import EVERYWHERE, LOOPBACK, ServerTls
from shared.errors import BrokerUnavailableError, SettingsError

_SERVER = "usr/lib/rabbitmq/bin/rabbitmq-server"
_CONTROL = "usr/lib/rabbitmq/bin/rabbitmqctl"
_START_SECONDS = 120.0
_STOP_SECONDS = 30.0
_RECORD = "node.json"


@dataclass(frozen=True, slots=True)
class Installation:
    """Where RabbitMQ is installed: in the system, or in the folder of another Debian, entered with chroot (root only)."""

    root: Path = Path("/")

    def demand(self) -> None:
        """Raises SettingsError where there is no RabbitMQ to start."""
        if not (self.root / _SERVER).exists():
            raise SettingsError(
                f"RabbitMQ is not installed ({self.root / _SERVER} is missing): run `make setup`, "
                "or install the package rabbitmq-server, or set AMQP_URL and MANAGEMENT_URL to use another broker"
            )

    def command(self, *words: str) -> list[str]:
        """A command line that runs in this installation."""
        return [*words] if self.root == Path("/") else ["/usr/sbin/chroot", str(self.root), *words]

    def seen(self, folder: Path) -> Path:
        """`folder` as programs of this installation see it."""
        try:
            return Path("/") / folder.relative_to(self.root)
        except ValueError:
            raise SettingsError(f"the folder of a node in {self.root} must be below it, {folder} is not") from None


SYSTEM = Installation()


@dataclass(slots=True)
class PrivateNode:
    """One node and its folder; `admin_password` is that of its management user `admin`."""

    folder: Path
    record: NodeRecord
    admin_password: str
    installation: Installation = SYSTEM
    tls: ServerTls | None = None
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def amqp(self) -> str:
        """host:port of AMQP."""
        host = LOOPBACK if self.tls is None else self.tls.host
        return f"[{host}]:{self.record.amqp_port}" if ":" in host else f"{host}:{self.record.amqp_port}"

    @property
    def management_url(self) -> str:
        """Address of the management UI and its API."""
        return f"http://127.0.0.1:{self.record.management_port}"

    @property
    def log_file(self) -> Path:
        """What the broker says of logins, refusals and itself."""
        return self.folder / "log" / f"{self.record.name}.log"

    @property
    def free_bytes(self) -> int:
        """Room on the disk of its folder; a node tells its own only seconds after it booted."""
        return shutil.disk_usage(self.folder).free

    def amqp_url(self, vhost: str) -> str:
        """The url that workers connect to, without credentials."""
        return f"{'amqp' if self.tls is None else 'amqps'}://{self.amqp}/{quote(vhost, safe='')}"

    def start(self) -> None:
        """Starts the node and returns once it listens; raises BrokerUnavailableError with the end of its log."""
        self.launch()
        self.wait_until_ready()

    def launch(self) -> None:
        """Starts the node without waiting for it."""
        program = f"/{_SERVER}"
        variables = dict(environment(self.record, self.installation.seen(self.folder), marked=self.folder))
        with (self.folder / "stdout").open("ab") as output:
            self._started.append(_spawn(self.installation.command(program), variables, self.folder, output.fileno()))

    def wait_until_ready(self) -> None:
        """Returns once AMQP and the management API listen."""
        deadline = time.monotonic() + _START_SECONDS
        place = LOOPBACK if self.tls is None or self.tls.address in EVERYWHERE else self.tls.address
        while not (_listens(self.record.amqp_port, place) and _listens(self.record.management_port)):
            if self._started[-1].poll() is not None or time.monotonic() > deadline:
                raise BrokerUnavailableError(f"RabbitMQ did not start in {self.folder}: {self._last_words()}")
            time.sleep(0.05)

    def demand_alive(self) -> None:
        """Raises BrokerUnavailableError when it ended although nobody asked it to."""
        if self._started and self._started[-1].poll() is not None:
            raise BrokerUnavailableError(f"RabbitMQ in {self.folder} has ended: {self._last_words()}")

    def stop(self) -> None:
        """Stops the node in its own time; its data stays for a later `start`."""
        end_all(self.folder, grace_seconds=_STOP_SECONDS)
        self.forget()

    def kill(self) -> None:
        """SIGKILL: no farewell to its clients, nothing flushed."""
        end_all(self.folder, grace_seconds=0)
        self.forget()

    def restart(self) -> None:
        """Stops the node if it runs, and starts it on the same ports and data."""
        self.stop()
        self.start()

    def control(self, *words: str) -> str:
        """What `rabbitmqctl` answers to these words; raises BrokerUnavailableError with its complaint."""
        variables = dict(environment(self.record, self.installation.seen(self.folder), marked=self.folder))
        command = self.installation.command(f"/{_CONTROL}", "-n", self.record.name, *words)
        answer = subprocess.run(command, env=variables, cwd=self.folder, capture_output=True, text=True, check=False)  # noqa: S603
        if answer.returncode != 0:
            raise BrokerUnavailableError(f"rabbitmqctl {' '.join(words)}: {answer.stderr.strip() or answer.stdout.strip()}")
        return answer.stdout

    def forget(self) -> None:
        """Reaps the processes of a node that has ended."""
        for process in self._started:
            process.wait()
        self._started.clear()

    def _last_words(self) -> str:
        text = (self.folder / "stdout").read_text(encoding="utf-8", errors="replace")
        return " ".join(text.split())[-600:] or "it said nothing"


@dataclass(slots=True)
class PrivateCluster:
    """Nodes that share a folder, a cookie and the name daemon, and the processes that belong to all of them."""

    folder: Path
    nodes: list[PrivateNode]
    companions: list[subprocess.Popen[bytes]]

    def stop(self, *, remove: bool = False) -> None:
        """Stops all nodes and companions; a folder that is to be removed needs no farewell."""
        end_all(self.folder, grace_seconds=0 if remove else _STOP_SECONDS)
        for node in self.nodes:
            node.forget()
        for companion in self.companions:
            companion.terminate()
            companion.wait()
        if remove:
            shutil.rmtree(self.folder, ignore_errors=True)


def start_node(
    folder: Path, *, installation: Installation = SYSTEM, remove_with_parent: bool = False, tls: ServerTls | None = None
) -> PrivateCluster:
    """A cluster of one: see `start_cluster`."""
    return start_cluster(folder, nodes=1, installation=installation, remove_with_parent=remove_with_parent, tls=tls)


def start_cluster(
    folder: Path,
    *,
    nodes: int = 3,
    installation: Installation = SYSTEM,
    remove_with_parent: bool = False,
    tls: ServerTls | None = None,
) -> PrivateCluster:
    """Starts `nodes` nodes below `folder`, and a watcher that ends them with this process.

    A folder that held them before keeps its ports, password and data. With `tls` they take TLS and certificates only; their
    management API stays on loopback.
    Raises SettingsError where RabbitMQ is not installed, BrokerUnavailableError where it does not start.
    """
    installation.demand()
    folder = folder.resolve()
    members = _prepare(folder, nodes, installation)
    for member in members:
        _configure(member, tls, [each.record.name for each in members] if nodes > 1 else [])
    cluster = PrivateCluster(folder, members, [])
    try:
        cluster.companions.append(start_watcher(folder, remove=remove_with_parent))
        cluster.companions.append(_start_epmd(folder, members[0]))
        for member in members:
            member.launch()
        for member in members:
            member.wait_until_ready()
    except BaseException:
        cluster.stop()
        raise
    return cluster


def remove_leftovers(folder: Path, *, remove: bool = True) -> None:
    """Ends whatever runs for `folder`, also after its parent was killed, and removes it if asked."""
    folder = folder.resolve()
    end_all(folder, grace_seconds=0 if remove else _STOP_SECONDS)
    if remove:
        shutil.rmtree(folder, ignore_errors=True)


def _prepare(folder: Path, nodes: int, installation: Installation) -> list[PrivateNode]:
    homes = [folder / f"n{i + 1}" for i in range(nodes)]
    if all((home / _RECORD).exists() for home in homes):
        return [_reopened(home, installation) for home in homes]
    return _prepare_new(folder, nodes, installation)


def _reopened(home: Path, installation: Installation) -> PrivateNode:
    document = json.loads((home / _RECORD).read_text(encoding="utf-8"))
    return PrivateNode(home, NodeRecord(**document["record"]), document["admin_password"], installation)


def _prepare_new(folder: Path, nodes: int, installation: Installation) -> list[PrivateNode]:
    ports = _free_ports(4 * nodes + 1)
    epmd_port = ports.pop()
    records = [
        NodeRecord(f"n{i + 1}@localhost", ports.pop(), ports.pop(), ports.pop(), ports.pop(), epmd_port) for i in range(nodes)
    ]
    password, cookie = secrets.token_urlsafe(24), secrets.token_hex(20)
    members = []
    for record in records:
        home = folder / record.name.partition("@")[0]
        member = PrivateNode(home, record, password, installation)
        _write_files(member, cookie)
        members.append(member)
    return members


def _write_files(node: PrivateNode, cookie: str) -> None:
    home = node.folder / "home"
    home.mkdir(parents=True, mode=0o700)
    node.folder.parent.chmod(0o700)
    _write(home / ".erlang.cookie", cookie, 0o400)
    _write(node.folder / _RECORD, json.dumps({"record": node.record.document(), "admin_password": node.admin_password}), 0o600)


def _configure(node: PrivateNode, tls: ServerTls | None, cluster: Sequence[str]) -> None:
    """Writes what may differ at each start of the same node."""
    places = None
    if tls is not None:
        node.tls = tls
        node.record = replace(node.record, amqp_port=tls.port or node.record.amqp_port)
        tls.write(node.folder / "tls")
        revocations = node.installation.seen(tls.revocations.resolve())
        places = TlsPlaces(tls.address, node.installation.seen(node.folder / "tls"), revocations)
    _write(node.folder / "enabled_plugins", plugins(places), 0o600)
    _write(node.folder / "advanced.config", advanced(places), 0o600)
    text = configuration(node.record, admin=ADMIN, password=node.admin_password, cluster=cluster, tls=places)
    _write(node.folder / "rabbitmq.conf", text, 0o600)


def _write(file: Path, text: str, mode: int) -> None:
    file.touch(mode=0o600)
    file.write_text(text, encoding="utf-8")
    file.chmod(mode)


def _start_epmd(folder: Path, node: PrivateNode) -> subprocess.Popen[bytes]:
    port = node.record.epmd_port
    command = node.installation.command("/usr/bin/epmd", "-address", "127.0.0.1", "-port", str(port))
    process = _spawn(command, {"PATH": "/usr/bin:/bin", MARK: str(folder)}, folder, subprocess.DEVNULL)
    deadline = time.monotonic() + _STOP_SECONDS
    while not _listens(port) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return process


def start_watcher(folder: Path, *, remove: bool) -> subprocess.Popen[bytes]:
    """A process that ends everything marked with `folder` once this process is gone, also after a kill -9."""
    command = [sys.executable, "-m", "broker_config.watch", str(folder), str(os.getpid()), *(["--remove"] if remove else [])]
    return _spawn(command, without_secrets(os.environ), folder, subprocess.DEVNULL)


def _spawn(command: list[str], variables: dict[str, str], folder: Path, output: int) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C at the terminal must not reach the broker before its clients have said goodbye.
    return subprocess.Popen(  # noqa: S603  every word of the command is ours
        command, env=variables, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
    )


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _listens(port: int, address: str = LOOPBACK) -> bool:
    try:
        with socket.create_connection((address, port), timeout=1):
            return True
    except OSError:
        return False
