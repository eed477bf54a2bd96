"""What a private node needs on disk and in its environment, as text. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from broker_config.processes import MARK
from broker_config.server_tls import LOOPBACK, PLUGIN, listener_lines, options_term

_PLUGINS = ("rabbitmq_management", "rabbitmq_prometheus")
# Queues tell their lengths to the management UI every second rather than every five.
_TICKS = "{quorum_tick_interval, 1000}, {stream_tick_interval, 1000}"

# The busy waiting of Erlang's schedulers is worth it on a broker of its own, not beside seven Python processes.
_ERLANG_ARGUMENTS = "+sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}"

_SHARED_LINES = """\
max_message_size = 16777216
heartbeat = 30
consumer_timeout = 21600000
vm_memory_high_watermark.relative = 0.4
disk_free_limit.absolute = 200MB
raft.wal_max_size_bytes = 64000000
collect_statistics_interval = 1000
log.console = false
log.file.level = info
"""


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A private node's name and loopback ports; `epmd_port` is shared by the nodes of a cluster."""

    name: str
    amqp_port: int
    management_port: int
    prometheus_port: int
    distribution_port: int
    epmd_port: int

    def document(self) -> dict[str, str | int]:
        """The record as JSON holds it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class TlsPlaces:
    """Where a node listens with TLS, its folder of certificates, and that of revocation lists, as the node sees them."""

    address: str
    folder: Path
    revocations: Path


def plugins(tls: TlsPlaces | None) -> str:
    """The file enabled_plugins."""
    return f"[{','.join(_PLUGINS if tls is None else (*_PLUGINS, PLUGIN))}].\n"


def advanced(tls: TlsPlaces | None) -> str:
    """advanced.config: what rabbitmq.conf has no words for."""
    terms = [_TICKS] if tls is None else [_TICKS, options_term(tls.folder, tls.revocations)]
    return "[{rabbit, [\n    " + ",\n    ".join(terms) + "\n]}].\n"


def configuration(
    record: NodeRecord, *, admin: str, password: str, cluster: Sequence[str] = (), tls: TlsPlaces | None = None
) -> str:
    """rabbitmq.conf of a node, on loopback but for a TLS port elsewhere; `cluster` names all its nodes, where there is one."""
    plain = f"listeners.tcp.1 = {LOOPBACK}:{record.amqp_port}\n"
    own = f"""\
management.tcp.ip = 127.0.0.1
management.tcp.port = {record.management_port}
prometheus.tcp.ip = 127.0.0.1
prometheus.tcp.port = {record.prometheus_port}
default_user = {admin}
default_pass = {password}
"""
    listener = plain if tls is None else listener_lines(address=tls.address, port=record.amqp_port)
    return listener + own + _SHARED_LINES + _cluster_lines(cluster)


def _cluster_lines(cluster: Sequence[str]) -> str:
    if not cluster:
        return ""
    nodes = "".join(f"cluster_formation.classic_config.nodes.{i} = {name}\n" for i, name in enumerate(cluster, 1))
    return (
        "cluster_formation.peer_discovery_backend = classic_config\n"
        f"{nodes}cluster_partition_handling = pause_minority\nqueue_leader_locator = balanced\n"
    )


def environment(record: NodeRecord, folder: Path, *, marked: Path) -> Mapping[str, str]:
    """The whole environment of a node whose files are in `folder`, as it sees it; nothing of a system's RabbitMQ is read."""
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "HOME": f"{folder}/home",
        MARK: str(marked),
        "RABBITMQ_NODENAME": record.name,
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf",
        "RABBITMQ_ADVANCED_CONFIG_FILE": f"{folder}/advanced.config",
        "RABBITMQ_MNESIA_BASE": f"{folder}/mnesia",
        "RABBITMQ_LOG_BASE": f"{folder}/log",
        "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
        "RABBITMQ_PID_FILE": f"{folder}/pid",
        "RABBITMQ_DIST_PORT": str(record.distribution_port),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _ERLANG_ARGUMENTS,
        "ERL_EPMD_PORT": str(record.epmd_port),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_CRASH_DUMP": f"{folder}/erl_crash.dump",
    }
