"""The checks of `fedqueue doctor`, in the order in which one needs another; each gives findings, never an error."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from typing import Any

from broker_config.connection import connect
from broker_config.definitions import OPERATOR
from broker_config.drift import Drift
from broker_config.logins import Logins
from broker_config.provision import administration
from broker_config.provision import check as find_drifts
from broker_config.topology import DEAD_LETTERS, LEAD, Limits, institution_of
from operator_console.certificate_checks import certificates
from operator_console.federation_folder import FederationFolder
from operator_console.finding import Finding, told
from operator_console.machine_checks import clock, disk, libraries, members_versions, secret_files
from operator_console.operation_commands import order_desk
from shared.errors import SettingsError

OLDEST_BROKER = (3, 10)
"""Streams and quorum queues as fedqueue uses them."""
APPLY = "fedqueue broker apply --dir {folder}"
DEAD_LETTER_LIST = "fedqueue dead-letters list --dir {folder} says why; tell the senders"
START_AGGREGATOR = "start fedqueue-aggregator --config {folder}/aggregator.toml, or read its log"


Check = Callable[[FederationFolder, Logins], Iterator[Finding]]


def findings(federation: FederationFolder) -> Iterator[Finding]:
    """Everything that can be said of the federation in this folder, good and bad."""
    yield from secret_files(federation.path)
    yield from libraries()
    try:
        logins = federation.logins()
    except SettingsError as error:
        yield Finding("logins file", False, str(error))
        return
    yield from disk(federation.aggregator if federation.aggregator.exists() else federation.path)
    yield from told("certificates", lambda: certificates(federation, datetime.now(UTC)))
    reachable = [*told("management API", lambda: _management(logins)), *told("AMQP", lambda: _amqp(logins))]
    yield from reachable
    if all(each.ok for each in reachable if each.name in ("management API", "AMQP")):
        for name, check in CHECKS:
            yield from told(name, partial(check, federation, logins))


def _management(logins: Logins) -> Iterator[Finding]:
    with administration(logins) as management:
        version = management.version()
        recent = tuple(int(part) for part in version.split(".")[:2]) >= OLDEST_BROKER
        oldest = ".".join(map(str, OLDEST_BROKER))
        yield Finding("management API", True, f"{logins.management} answers")
        yield Finding("broker version", recent, f"RabbitMQ {version}", "" if recent else f"upgrade it to {oldest} or later")
        yield from clock(management.time(), datetime.now(UTC))


def _amqp(logins: Logins) -> Iterator[Finding]:
    connect(logins.settings(OPERATOR), name="fedqueue-doctor").close()
    yield Finding("AMQP", True, f"{logins.amqp} takes the login {OPERATOR}")


def _members(_federation: FederationFolder, logins: Logins) -> Iterator[Finding]:
    with administration(logins) as management:
        yield from members_versions(management.clients(), metadata.version("fedqueue"))


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
    free, limit = int(node.get("disk_free", 0)), int(node.get("disk_free_limit", 0))
    nearly_full = not node.get("disk_free_alarm", False) and free < 2 * limit
    if nearly_full:
        remedy = "make room on its disk before that, or lower disk_free_limit"
        yield Finding(name, False, f"disk: {free:,} bytes free, and at {limit:,} nobody can publish", remedy)
    if not (node.get("disk_free_alarm", False) or node.get("mem_alarm", False) or nearly_full):
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
    with order_desk(federation) as desk:
        over = desk.head.manifest.phase == "finished"
    if over:
        yield Finding("leader", True, "the run is finished, and needs none")
    elif consumers:
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


CHECKS: Sequence[tuple[str, Check]] = (
    ("topology", _topology),
    ("nodes", _nodes),
    ("lineage", _lineage),
    ("leader", _leader),
    ("versions in use", _members),
    ("update queues", _queues),
)
