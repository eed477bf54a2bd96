"""The checks of `fedqueue doctor`, in the order in which one needs another; each gives findings, never an error."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from broker_config import logins as login_file
from broker_config.connection import connect
from broker_config.definitions import OPERATOR
from broker_config.drift import Drift
from broker_config.logins import Logins
from broker_config.provision import administration
from broker_config.provision import check as find_drifts
from broker_config.secret_files import is_open_to_others
from broker_config.topology import DEAD_LETTERS, LEAD, Limits, institution_of
from operator_console.federation_folder import FederationFolder
from operator_console.operation_commands import order_desk
from shared.errors import BrokerUnavailableError, FederationError, SettingsError

OLDEST_BROKER = (3, 10)
"""Streams and quorum queues as fedqueue uses them."""
SECRETS = (
    *(login_file.FILE, "run.secret", "ca/*.key", "**/key.pem", "**/signing.pem", "**/sealing.pem", "**/password", "kits/*"),
    *("institutions/*/ledger.sqlite", "broker/n*/rabbitmq.conf", "broker/n*/node.json"),
)
"""Files of a federation's folder that nobody but its owner may read."""
LIBRARIES = ("fedqueue", "pika", "msgpack", "pydantic", "torch", "opacus")

START_BROKER = "start the broker, and see that its address in broker.json can be reached from here"
APPLY = "fedqueue broker apply --dir {folder}"
DEAD_LETTER_LIST = "fedqueue dead-letters list --dir {folder} says why; tell the senders"
START_AGGREGATOR = "start fedqueue-aggregator --config {folder}/aggregator.toml, or read its log"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. `remedy` is empty where all is well, or where `what` says it already."""

    name: str
    ok: bool
    what: str
    remedy: str = ""


Check = Callable[[FederationFolder, Logins], Iterator[Finding]]


def findings(federation: FederationFolder) -> Iterator[Finding]:
    """Everything that can be said of the federation in this folder, good and bad."""
    yield from secret_files(federation.path)
    yield from versions()
    try:
        logins = federation.logins()
    except SettingsError as error:
        yield Finding("logins file", False, str(error))
        return
    reachable = list(_reached(federation, logins))
    yield from reachable
    if all(each.ok for each in reachable):
        for name, check in CHECKS:
            yield from _told(name, check, federation, logins)


def _told(name: str, check: Check, federation: FederationFolder, logins: Logins) -> Iterator[Finding]:
    try:
        yield from check(federation, logins)
    except FederationError as error:
        remedy = START_BROKER if isinstance(error, BrokerUnavailableError) else ""
        yield Finding(name, False, str(error), remedy)


def _reached(federation: FederationFolder, logins: Logins) -> Iterator[Finding]:
    yield from _told("management API", _management, federation, logins)
    yield from _told("AMQP", _amqp, federation, logins)


def _management(_federation: FederationFolder, logins: Logins) -> Iterator[Finding]:
    with administration(logins) as management:
        version = management.version()
        recent = tuple(int(part) for part in version.split(".")[:2]) >= OLDEST_BROKER
        oldest = ".".join(map(str, OLDEST_BROKER))
        yield Finding("management API", True, f"{logins.management} answers")
        yield Finding("broker version", recent, f"RabbitMQ {version}", "" if recent else f"upgrade it to {oldest} or later")


def _amqp(_federation: FederationFolder, logins: Logins) -> Iterator[Finding]:
    connect(logins.settings(OPERATOR), name="fedqueue-doctor").close()
    yield Finding("AMQP", True, f"{logins.amqp} takes the login {OPERATOR}")


def _topology(federation: FederationFolder, logins: Logins) -> Iterator[Finding]:
    found = find_drifts(logins, logins.institutions)
    yield from drift_findings(found, apply=APPLY.format(folder=federation.path))


def drift_findings(found: Sequence[Drift], *, apply: str) -> Iterator[Finding]:
    """Drifts by what they concern: logins, rights, everything else."""
    groups: dict[str, Callable[[str], bool]] = {
        "logins": lambda kind: kind == "users",
        "rights": lambda kind: kind == "permissions",
        "topology": lambda kind: kind not in ("users", "permissions"),
    }
    for name, belongs in groups.items():
        drifts = [drift for drift in found if belongs(drift.kind)]
        if not drifts:
            yield Finding(name, True, "as they should be" if name != "topology" else "as it should be")
        for drift in drifts:
            yield Finding(name, False, str(drift), apply)


def _nodes(_federation: FederationFolder, logins: Logins) -> Iterator[Finding]:
    with administration(logins) as management:
        for node in management.nodes():
            yield from node_findings(node)


def node_findings(node: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether one node runs, and whether it blocks publishers for want of disk or memory."""
    name = f"node {node['name']}"
    if not node.get("running", False):
        yield Finding(name, False, "does not run", "start it; with most nodes gone nothing can be confirmed")
        return
    if node.get("disk_free_alarm", False):
        remedy = "make room on its disk, or lower disk_free_limit; until then nobody can publish"
        yield Finding(name, False, f"disk alarm: {node.get('disk_free', 0):,} bytes free", remedy)
    if node.get("mem_alarm", False):
        remedy = "give it more memory, or raise vm_memory_high_watermark; until then nobody can publish"
        yield Finding(name, False, f"memory alarm: {node.get('mem_used', 0):,} bytes used", remedy)
    if not node.get("disk_free_alarm", False) and not node.get("mem_alarm", False):
        yield Finding(name, True, "runs, no alarm")


def _lineage(federation: FederationFolder, _logins: Logins) -> Iterator[Finding]:
    facts = federation.facts()
    with order_desk(federation) as desk:
        head = desk.head
    manifest = head.manifest
    if manifest.run_id != facts.run_id:
        what = f"the broker holds run {manifest.run_id}, this folder is of run {facts.run_id}"
        yield Finding("lineage", False, what, "use the folder of that run, or another virtual host")
        return
    reason = f" ({manifest.phase_reason})" if manifest.phase_reason else ""
    yield Finding("lineage", True, f"version {manifest.version}, epoch {head.epoch}, {manifest.phase}{reason}")


def _leader(federation: FederationFolder, logins: Logins) -> Iterator[Finding]:
    with administration(logins) as management:
        consumers = int(management.queue(LEAD).get("consumers", 0))
    if consumers:
        yield Finding("leader", True, f"{consumers} aggregator{'s' if consumers > 1 else ''} at {LEAD}")
    else:
        what = f"no aggregator is at {LEAD} (the broker tells some seconds late)"
        yield Finding("leader", False, what, START_AGGREGATOR.format(folder=federation.path))


def _queues(federation: FederationFolder, logins: Logins) -> Iterator[Finding]:
    with administration(logins) as management:
        queues = management.queues()
    full = list(room_findings(queues, logins.limits))
    yield from full or [Finding("update queues", True, "every institution's queue has room for another update")]
    yield from dead_letter_findings(queues, show=DEAD_LETTER_LIST.format(folder=federation.path))


def room_findings(queues: Sequence[Mapping[str, Any]], limits: Limits) -> Iterator[Finding]:
    """One finding for each institution whose queue may refuse its next update."""
    for queue in queues:
        waiting = int(queue.get("message_bytes", 0))
        if institution_of(str(queue["name"])) is not None and waiting > limits.update_queue_bytes - limits.update_bytes:
            what = f"{queue['name']} holds {waiting:,} of {limits.update_queue_bytes:,} bytes"
            yield Finding(
                "update queues", False, what, "see whether an aggregator leads, and what its log says of this institution"
            )


def dead_letter_findings(queues: Sequence[Mapping[str, Any]], *, show: str) -> Iterator[Finding]:
    """Whether anything was refused."""
    letters = next((int(queue.get("messages", 0)) for queue in queues if queue["name"] == DEAD_LETTERS), 0)
    if not letters:
        yield Finding("dead letters", True, "none")
        return
    what = f"{letters} refused message{'s' if letters > 1 else ''} in {DEAD_LETTERS}"
    yield Finding("dead letters", False, what, show)


def secret_files(folder: Path) -> Iterator[Finding]:
    """Whether others can read a file that holds a secret."""
    open_to_others = [file for name in SECRETS for file in sorted(folder.glob(name)) if is_open_to_others(file)]
    for file in open_to_others:
        yield Finding("secret files", False, f"{file} is open to other users of this machine", f"chmod 600 {file}")
    if not open_to_others:
        yield Finding("secret files", True, "only their owner can read them")


def versions() -> Iterator[Finding]:
    """The libraries that this command and the workers on this machine use."""
    missing, there = [], []
    for library in LIBRARIES:
        try:
            there.append(f"{library} {metadata.version(library)}")
        except metadata.PackageNotFoundError:
            missing.append(library)
    if missing:
        yield Finding("libraries", False, f"not installed: {', '.join(missing)}", "make setup")
    else:
        yield Finding("libraries", True, ", ".join(there))


CHECKS: Sequence[tuple[str, Check]] = (
    ("topology", _topology),
    ("nodes", _nodes),
    ("lineage", _lineage),
    ("leader", _leader),
    ("update queues", _queues),
)
