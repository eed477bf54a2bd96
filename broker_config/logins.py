"""`broker.json`: where the broker is and the password of every login on it; readable by its owner only."""

import json
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from broker_config.connection import ConnectionSettings
from broker_config.definitions import ADMIN, AGGREGATOR, OPERATOR, VIEWER
from broker_config.topology import Limits
from shared.errors import SettingsError

FILE = "broker.json"
VHOST = "fedqueue"
_PASSWORD_BYTES = 24


class Logins(BaseModel):
    """Addresses, virtual host, user name -> password, and the limits that the topology is made with.

    `administrator` is the management user that may change things.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    amqp: str
    management: str
    vhost: str
    administrator: str = ADMIN
    users: dict[str, str] = Field(repr=False)
    limits: Limits = Limits()

    def settings(self, user: str) -> ConnectionSettings:
        """What a worker needs to connect as `user`."""
        if user not in self.users:
            raise SettingsError(f"{FILE} has no login {user}; `fedqueue institution add {user}` creates one")
        return ConnectionSettings.model_validate({"url": self.amqp, "user": user, "password": self.users[user]})

    def with_institutions(self, institutions: Iterable[str]) -> "Logins":
        """The same with a new password for everyone who has none yet."""
        names = (AGGREGATOR, OPERATOR, VIEWER, *institutions)
        new = {name: secrets.token_urlsafe(_PASSWORD_BYTES) for name in names if name not in self.users}
        return self.model_copy(update={"users": self.users | new})

    def without(self, user: str) -> "Logins":
        """The same without one login."""
        return self.model_copy(update={"users": {name: word for name, word in self.users.items() if name != user}})

    @property
    def institutions(self) -> list[str]:
        """The logins that are institutions."""
        return sorted(self.users.keys() - {ADMIN, self.administrator, AGGREGATOR, OPERATOR, VIEWER})


def create(*, node: str, management: str, admin_password: str, vhost: str = VHOST) -> Logins:
    """Logins for a node at `node` (host:port) whose administrator is `admin`; institutions are added afterwards."""
    bare = Logins(amqp=_amqp_url(node, vhost), management=management, vhost=vhost, users={ADMIN: admin_password})
    return bare.with_institutions([])


def logins_from_environment(environ: Mapping[str, str], *, vhost: str | None = None) -> Logins | None:
    """Logins on the existing broker that AMQP_URL and MANAGEMENT_URL name, or None where neither is set.

    `vhost` takes the place of the url's own, for a federation that is to have a fresh one.
    """
    url, management = environ.get("AMQP_URL", ""), environ.get("MANAGEMENT_URL", "")
    if not url and not management:
        return None
    parts = urlsplit(url)
    if parts.scheme != "amqp" or not (parts.hostname and parts.username and parts.password):
        raise SettingsError("AMQP_URL must be amqp://user:password@host:port/vhost of an administrator")
    if not management.startswith(("http://", "https://")):
        raise SettingsError("MANAGEMENT_URL must be http://host:port of the management API of the broker in AMQP_URL")
    chosen = vhost or unquote(parts.path.removeprefix("/")) or VHOST
    user = unquote(parts.username)
    bare = Logins(
        amqp=_amqp_url(parts.netloc.rpartition("@")[2], chosen),
        management=management.rstrip("/"),
        vhost=chosen,
        administrator=user,
        users={user: unquote(parts.password)},
    )
    return bare.with_institutions([])


def save(logins: Logins, folder: Path) -> Path:
    """Writes `broker.json` aside and renames it, so that a reader never sees half of it."""
    folder.mkdir(parents=True, exist_ok=True)
    file, aside = folder / FILE, folder / f".{FILE}.{os.getpid()}"
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as out:
        json.dump(logins.model_dump(mode="json"), out, indent=2)
        out.write("\n")
        out.flush()
        os.fsync(out.fileno())
    aside.replace(file)
    return file


def load(folder: Path) -> Logins:
    """Reads `broker.json`; raises SettingsError where it is missing or not what `save` writes."""
    file = folder / FILE
    try:
        return Logins.model_validate_json(file.read_bytes())
    except OSError as error:
        raise SettingsError(f"{file} cannot be read ({error.strerror}); `fedqueue broker up` writes it") from error
    except ValidationError as error:
        wrong = ", ".join(sorted({".".join(map(str, each["loc"])) or "the file" for each in error.errors()}))
        raise SettingsError(f"{file} is not a file of logins: {wrong}") from None


def _amqp_url(node: str, vhost: str) -> str:
    return f"amqp://{node}/{quote(vhost, safe='')}"
