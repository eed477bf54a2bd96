"""Who may do what, and the whole topology as RabbitMQ's own `definitions.json`."""

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from broker_config.topology import Policy, Topology, control_queue, entrance, update_queue

AGGREGATOR = "aggregator"
OPERATOR = "operator"
VIEWER = "viewer"
ADMIN = "admin"

NOTHING = "^$"
Document = dict[str, object]


@dataclass(frozen=True, slots=True)
class User:
    """A login. Half-dead connections count against its limits until their heartbeat expires."""

    name: str
    tags: tuple[str, ...] = ()
    max_connections: int = 8
    max_channels: int = 32


@dataclass(frozen=True, slots=True)
class Permission:
    """Patterns of the names that a user may configure, write to and read from."""

    user: str
    write: str
    read: str
    configure: str = NOTHING

    def may_write(self, exchange: str) -> bool:
        """Whether the broker takes a publish to this exchange."""
        return re.search(self.write, exchange) is not None

    def may_read(self, queue: str) -> bool:
        """Whether the broker lets the user consume."""
        return re.search(self.read, queue) is not None


EVERYTHING = Permission(ADMIN, write=".*", read=".*", configure=".*")


def users(institutions: Iterable[str]) -> tuple[User, ...]:
    """The aggregators' login, the operator's two, and one per institution, named as the institution is."""
    shared = (User(AGGREGATOR, max_channels=1024), User(OPERATOR, ("monitoring",)), User(VIEWER, ("monitoring",)))
    return shared + tuple(User(institution) for institution in institutions)


def permissions(institutions: Iterable[str]) -> tuple[Permission, ...]:
    """What each login may do; nobody may declare or delete anything."""
    return (
        Permission(
            AGGREGATOR,
            write=r"^fl\.(lineage\.in|model\.in|state\.in|dlx|ctl\.[A-Za-z0-9_-]+\.in)$",
            read=r"^fl\.(lead|lineage|model|state|ops|upd\.[A-Za-z0-9_-]+|jrn\.[A-Za-z0-9_-]+)$",
        ),
        Permission(
            OPERATOR,
            write=r"^fl\.(ops|lead|lineage|model|state)\.in$",
            read=r"^fl\.(lineage|model|state|dlq|jrn\.[A-Za-z0-9_-]+)$",
        ),
        Permission(VIEWER, write=NOTHING, read=NOTHING),
        *(_institution_permission(institution) for institution in institutions),
    )


def _institution_permission(institution: str) -> Permission:
    return Permission(
        institution,
        write=f"^{re.escape(entrance(update_queue(institution)))}$",
        read=rf"^(fl\.lineage|fl\.model|{re.escape(control_queue(institution))})$",
    )


def password_hash(password: str, salt: bytes) -> str:
    """RabbitMQ's salted SHA-256 (`rabbit_password_hashing_sha256`); the salt is 4 random bytes."""
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def definitions(topology: Topology, vhost: str, password_hashes: Mapping[str, str]) -> Document:
    """The document that `load_definitions` and the management UI import; users are those with a password hash."""
    known = [user for user in (User(ADMIN, ("administrator",)), *users(topology.institutions)) if user.name in password_hashes]
    rights = [right for right in (EVERYTHING, *permissions(topology.institutions)) if right.user in password_hashes]
    return {
        "vhosts": [{"name": vhost}],
        "users": [_user_document(user, password_hashes[user.name]) for user in known],
        "permissions": [{"vhost": vhost, "user": right.user, **permission_document(right)} for right in rights],
        "policies": [{"vhost": vhost, "name": policy.name, **policy_document(policy)} for policy in topology.policies],
        "exchanges": [
            {"vhost": vhost, "name": exchange.name, **exchange_document(exchange.kind)} for exchange in topology.exchanges
        ],
        "queues": [{"vhost": vhost, "name": queue.name, **queue_document(queue.arguments)} for queue in topology.queues],
        "bindings": [
            {
                "vhost": vhost,
                "source": binding.exchange,
                "destination": binding.queue,
                "destination_type": "queue",
                "routing_key": "",
                "arguments": {},
            }
            for binding in topology.bindings
        ],
    }


def user_limits(user: User) -> dict[str, int]:
    """Connections and channels that one login may hold at once."""
    return {"max-connections": user.max_connections, "max-channels": user.max_channels}


def permission_document(right: Permission) -> dict[str, str]:
    """The three patterns, as the management API takes them."""
    return {"configure": right.configure, "write": right.write, "read": right.read}


def exchange_document(kind: str) -> Document:
    """A durable exchange, as the management API takes it."""
    return {"type": kind, "durable": True, "auto_delete": False, "internal": False, "arguments": {}}


def queue_document(arguments: Mapping[str, str | int | bool]) -> Document:
    """A durable queue, as the management API takes it."""
    return {"durable": True, "auto_delete": False, "arguments": dict(arguments)}


def policy_document(policy: Policy) -> Document:
    """A policy, as the management API takes it."""
    return {"pattern": policy.pattern, "definition": dict(policy.definition), "priority": 0, "apply-to": "queues"}


def _user_document(user: User, hashed: str) -> Document:
    return {
        "name": user.name,
        "password_hash": hashed,
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": ",".join(user.tags),
        "limits": {} if user.name == ADMIN else user_limits(user),
    }
