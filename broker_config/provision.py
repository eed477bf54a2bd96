"""Brings a broker to the topology of a federation, and tells where it is not there yet."""

import base64
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from broker_config.connection import is_loopback, waiting_messages
from broker_config.definitions import ADMIN, Document, Permission, definitions, password_hash, users
from broker_config.drift import EXTRA, Drift, drifts
from broker_config.logins import FILE, IN_THE_CLEAR, Logins
from broker_config.management import Management
from broker_config.room import allowed_bytes, demand_room
from broker_config.topology import (
    LEAD,
    LINEAGE,
    TOKEN,
    Limits,
    Topology,
    control_queue,
    entrance,
    topology,
    update_queue,
)
from shared.errors import BrokerUnavailableError, SettingsError, TopologyError

# A queue's statistics reach the management API up to two of its 5 s intervals late.
_STATISTICS_SECONDS = 12.0
_RECOVERY_SECONDS = 60.0
_SALT_BYTES = 4


@contextmanager
def administration(logins: Logins, user: str | None = None) -> Iterator[Management]:
    """The management API as the administrator of `logins`, or as another user that may look at it.

    Raises SettingsError where the password would cross a network unencrypted.
    """
    _demand_safe(logins)
    name = user or logins.administrator
    login = {"user": name, "password": logins.users[name], "vhost": logins.vhost}
    with Management(logins.management, ca_file=logins.ca_file, **login) as management:
        yield management


def _demand_safe(logins: Logins) -> None:
    url = urlsplit(logins.management)
    open_to_all = logins.everybody_on_the_network_may_read_and_change_what_i_send
    if url.scheme != "https" and not open_to_all and not is_loopback(url.hostname or ""):
        raise SettingsError(
            f"{logins.management} would take the administrator's password across a network unencrypted: write https://, or reach "
            f"it through a tunnel to this computer, or set {IN_THE_CLEAR}=true where everybody may read it"
        )


def provision(
    logins: Logins, institutions: Iterable[str], limits: Limits | None = None, *, free_bytes: int | None = None
) -> None:
    """Creates what is missing: virtual host, users, rights, policies, exchanges, queues, the leader's token. Idempotent.

    Without `limits` those of the logins hold. `free_bytes` is the room on the broker's disk where the caller knows it;
    otherwise the broker is asked.
    Raises TopologyError where the limits do not fit on the disk, where a login exists with another password, or where a
    queue exists with other arguments.
    """
    objects = topology(institutions, limits or logins.limits)
    with administration(logins) as management:
        room = {"its disk": free_bytes} if free_bytes is not None else _room(management)
        present = management.definitions()
        in_use = _holds(present, logins.vhost, LINEAGE) and int(management.queue(LINEAGE).get("messages", 0)) > 0
        demand_room(objects, room, allowed=allowed_bytes(present, logins.vhost) if in_use else 0)
        hashes = _hashes(logins, objects, present)
        had_lead = _holds(present, logins.vhost, LEAD)
        management.import_definitions(definitions(objects, logins.vhost, hashes))
        management.permit(Permission(logins.administrator, write=".*", read=".*", configure=".*"))
        _demand_equal_queues(_drifts(logins, objects, management))
        if not had_lead or _is_without_token(logins, management):
            management.publish(entrance(LEAD), TOKEN)


def check(logins: Logins, institutions: Iterable[str], limits: Limits | None = None) -> list[Drift]:
    """What is missing, differs, or is there beyond the topology."""
    objects = topology(institutions, limits or logins.limits)
    with administration(logins) as management:
        found = _drifts(logins, objects, management)
        if not found and _is_without_token(logins, management):
            return [Drift("queues", LEAD, "holds no token, so nobody can lead")]
        return found


def export(logins: Logins, institutions: Iterable[str], limits: Limits | None = None) -> Document:
    """`definitions.json`: what `provision` creates, all logins included, for a broker that loads it at its first boot."""
    objects = topology(institutions, limits or logins.limits)
    names = [ADMIN, *(user.name for user in users(objects.institutions))]
    hashes = {name: _fresh_hash(logins.users[name]) for name in names if name in logins.users}
    return definitions(objects, logins.vhost, hashes)


def revoke_login(logins: Logins, institution: str) -> None:
    """Deletes a login, which closes its connections; its queues stay."""
    with administration(logins) as management:
        management.delete_user(institution)
        management.close_connections(institution)


def await_queues(logins: Logins) -> None:
    """Waits until a node that has started again has found all its queues: it answers before, and knows streams late.

    Raises BrokerUnavailableError with the names of those that stay down.
    """
    deadline = time.monotonic() + _RECOVERY_SECONDS
    with administration(logins) as management:
        while down := [str(each["name"]) for each in management.queues() if each.get("state") == "down"]:
            if time.monotonic() > deadline:
                raise BrokerUnavailableError(f"the broker has started, and {', '.join(down)} stayed down: look into its log")
            time.sleep(0.1)


def remove_institution(logins: Logins, institution: str) -> None:
    """Revokes a login, closes its connections and deletes its queues with what they hold.

    Its journal stays: its updates are still part of the model, and a replay needs them.
    """
    with administration(logins) as management:
        management.delete_user(institution)
        management.close_connections(institution)
        for queue in (update_queue(institution), control_queue(institution)):
            management.delete_queue(queue)
        for queue in (update_queue(institution), control_queue(institution)):
            management.delete_exchange(entrance(queue))


def remove_vhost(logins: Logins) -> None:
    """Deletes the virtual host of `logins`, and those of its logins that have no rights in another one."""
    with administration(logins) as management:
        known = management.users()
        own = [name for name, word in logins.users.items() if name in known and _matches(known[name], word)]
        single = [name for name in own if management.permitted_vhosts(name) in ([], [logins.vhost])]
        management.delete_vhost()
        for name in single:
            if name != logins.administrator:
                management.delete_user(name)


def free_room(logins: Logins) -> int:
    """Free bytes on the fullest node's disk, above the limit at which it stops its publishers."""
    with administration(logins) as management:
        return min(_room(management).values(), default=0)


def _room(management: Management) -> dict[str, int]:
    """Free bytes above each running node's own limit; a node that has just booted has not looked at its disk yet."""
    deadline = time.monotonic() + _STATISTICS_SECONDS
    while True:
        running = [node for node in management.nodes() if node["running"]]
        measured = [node for node in running if "disk_free" in node]
        if len(measured) == len(running) or time.monotonic() > deadline:
            return {f"node {node['name']}": int(node["disk_free"]) - int(node["disk_free_limit"]) for node in measured}
        time.sleep(0.1)


def _drifts(logins: Logins, objects: Topology, management: Management) -> list[Drift]:
    present = management.definitions()
    expected = definitions(objects, logins.vhost, {user.name: "" for user in users(objects.institutions)})
    wrong = [Drift("users", name, "has another password than ours") for name in _strangers(logins, objects, present)]
    return wrong + drifts(expected, present, vhost=logins.vhost, administrator=logins.administrator)


def _hashes(logins: Logins, objects: Topology, present: Mapping[str, Any]) -> dict[str, str]:
    """Password hashes; of a login that is there already with our password, the hash that it has."""
    if strangers := _strangers(logins, objects, present):
        raise TopologyError(
            f"the broker has the login {strangers[0]} with another password: put its password into broker.json, "
            "or delete the user if nobody needs it"
        )
    known = {str(user["name"]): str(user["password_hash"]) for user in present["users"]}
    names = [user.name for user in users(objects.institutions)]
    return {name: known.get(name) or _fresh_hash(_password(logins, name)) for name in names}


def _strangers(logins: Logins, objects: Topology, present: Mapping[str, Any]) -> list[str]:
    names = {user.name for user in users(objects.institutions)}
    known = [user for user in present["users"] if user["name"] in names]
    return sorted(str(user["name"]) for user in known if not _matches(user, _password(logins, str(user["name"]))))


def _password(logins: Logins, name: str) -> str:
    if name not in logins.users:
        raise SettingsError(f"{FILE} has no login {name}; `fedqueue institution add {name}` creates one")
    return logins.users[name]


def _fresh_hash(password: str) -> str:
    # Without a password, RabbitMQ's own mark of a user that no password lets in.
    return password_hash(password, secrets.token_bytes(_SALT_BYTES)) if password else ""


def _matches(user: Mapping[str, Any], password: str) -> bool:
    stored = str(user["password_hash"])
    return stored == (password_hash(password, base64.b64decode(stored)[:_SALT_BYTES]) if password else "")


def _holds(present: Mapping[str, Any], vhost: str, queue: str) -> bool:
    return any(each["vhost"] == vhost and each["name"] == queue for each in present["queues"])


def _demand_equal_queues(found: Iterable[Drift]) -> None:
    for drift in found:
        if drift.kind == "queues" and drift.problem != EXTRA:
            raise TopologyError(f"{drift}; a queue cannot be changed: delete it, with what it holds, and apply again")


def _is_without_token(logins: Logins, management: Management) -> bool:
    """Whether LEAD holds no message, waiting or delivered; a second token would make two leaders, so look for long."""
    if waiting_messages(logins.settings(logins.administrator), LEAD) > 0:
        return False
    deadline = time.monotonic() + _STATISTICS_SECONDS
    while time.monotonic() < deadline:
        if int(management.queue(LEAD).get("messages", 0)) > 0:
            return False
        time.sleep(0.5)
    return True
