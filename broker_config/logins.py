"""`broker.json`: where the broker is and the password of every login on it; readable by its owner only.

On a broker that is reached over TLS a login is a certificate, in a folder beside this file. Passwords are there for the
management API only, so institutions and aggregators have none.
"""

import json
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from broker_config.authority import CA_FILE, CERTIFICATE_FILE, KEY_FILE
from broker_config.connection import ConnectionSettings
from broker_config.definitions import ADMIN, AGGREGATOR, OPERATOR, VIEWER
from broker_config.secret_files import demand_private
from broker_config.topology import Limits
from broker_config.written import write_private
from shared.errors import SettingsError
from shared.settings import explain

FILE = "broker.json"
VHOST = "fedqueue"
AUTHORITY_FOLDER = "ca"
IN_THE_CLEAR = "FEDQUEUE_BROKER__EVERYBODY_ON_THE_NETWORK_MAY_READ_AND_CHANGE_WHAT_I_SEND"
_PASSWORD_BYTES = 24


class Logins(BaseModel):
    """Addresses, virtual host, user name -> password, and the limits that the topology is made with.

    `administrator` is the management user that may change things. `folder` is where the file lies, with certificates and keys.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    amqp: str
    management: str
    vhost: str
    administrator: str = ADMIN
    users: dict[str, str] = Field(repr=False)
    limits: Limits = Limits()
    everybody_on_the_network_may_read_and_change_what_i_send: bool = False
    folder: Path | None = Field(default=None, exclude=True, repr=False)

    def settings(self, user: str) -> ConnectionSettings:
        """What a worker needs to connect as `user`. Raises SettingsError for a login or certificate that is not there."""
        if user not in self.users:
            raise SettingsError(f"{FILE} has no login {user}; `fedqueue institution add {user}` creates one")
        values: dict[str, object] = {
            "url": self.amqp,
            "user": user,
            "keys_folder": self._keys_folder(user),
            "everybody_on_the_network_may_read_and_change_what_i_send": (
                self.everybody_on_the_network_may_read_and_change_what_i_send
            ),
        }
        values |= self._certificate(user) if self.over_tls else {"password": self.users[user]}
        try:
            return ConnectionSettings.model_validate(values)
        except ValidationError as error:
            raise SettingsError(f"{FILE}: {'; '.join(explain(error))}") from None

    @property
    def over_tls(self) -> bool:
        """Whether the broker is reached over TLS, and logins are certificates."""
        return self.amqp.startswith("amqps:")

    @property
    def ca_file(self) -> Path | None:
        """The certificate of the federation's own authority, where it has one."""
        file = None if self.folder is None else self.folder / AUTHORITY_FOLDER / CA_FILE
        return file if file is not None and file.exists() else None

    def with_institutions(self, institutions: Iterable[str]) -> "Logins":
        """The same with a login for everybody who has none yet: a new password, or over TLS none where it opens nothing."""
        looking = (OPERATOR, VIEWER)
        names = (AGGREGATOR, *looking, *institutions)
        new = {
            name: "" if self.over_tls and name not in looking else secrets.token_urlsafe(_PASSWORD_BYTES)
            for name in names
            if name not in self.users
        }
        return self.model_copy(update={"users": self.users | new})

    def without(self, user: str) -> "Logins":
        """The same without one login."""
        return self.model_copy(update={"users": {name: word for name, word in self.users.items() if name != user}})

    @property
    def institutions(self) -> list[str]:
        """The logins that are institutions."""
        return sorted(self.users.keys() - {ADMIN, self.administrator, AGGREGATOR, OPERATOR, VIEWER})

    def _keys_folder(self, user: str) -> Path | None:
        folder = None if self.folder is None else self.folder / "keys" / OPERATOR
        is_ours = user in (OPERATOR, self.administrator)
        return folder if is_ours and folder is not None and folder.is_dir() else None

    def _certificate(self, user: str) -> dict[str, object]:
        folder = self.folder or Path()
        worker = folder / AGGREGATOR if user == AGGREGATOR else folder / "institutions" / user
        places = [place for place in (folder / "tls" / user, worker) if (place / KEY_FILE).exists()]
        if not places:
            raise SettingsError(
                f"there is no certificate and key of {user} in {folder / 'tls' / user}; `fedqueue ca` issues them"
            )
        return {
            "ca_file": places[0] / CA_FILE,
            "certificate_file": places[0] / CERTIFICATE_FILE,
            "key_file": places[0] / KEY_FILE,
        }


def create(*, node: str, management: str, admin_password: str, vhost: str = VHOST, tls: bool = False) -> Logins:
    """Logins for a node at `node` (host:port) whose administrator is `admin`; institutions are added afterwards."""
    bare = Logins(amqp=_amqp_url(node, vhost, tls=tls), management=management, vhost=vhost, users={ADMIN: admin_password})
    return bare.with_institutions([])


def logins_from_environment(environ: Mapping[str, str], *, vhost: str | None = None, folder: Path | None = None) -> Logins | None:
    """Logins on the existing broker that AMQP_URL and MANAGEMENT_URL name, or None where neither is set.

    `vhost` takes the place of the url's own, for a federation that is to have a fresh one. `folder` is the federation's.
    """
    url, management = environ.get("AMQP_URL", ""), environ.get("MANAGEMENT_URL", "")
    if not url and not management:
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        raise SettingsError("AMQP_URL is no url: it must be amqps://user:password@host:port/vhost (or amqp://)") from None
    if parts.scheme not in ("amqp", "amqps") or not (parts.hostname and parts.username and parts.password):
        raise SettingsError("AMQP_URL must be amqps://user:password@host:port/vhost (or amqp://) of an administrator")
    if not management.startswith(("http://", "https://")):
        raise SettingsError(
            "MANAGEMENT_URL must be https://host:port (or http://) of the management API of the broker in AMQP_URL"
        )
    chosen = vhost or unquote(parts.path.removeprefix("/")) or VHOST
    user = unquote(parts.username)
    bare = Logins(
        amqp=_amqp_url(parts.netloc.rpartition("@")[2], chosen, tls=parts.scheme == "amqps"),
        management=management.rstrip("/"),
        vhost=chosen,
        administrator=user,
        users={user: unquote(parts.password)},
        everybody_on_the_network_may_read_and_change_what_i_send=environ.get(IN_THE_CLEAR, "").lower() in ("1", "true", "yes"),
        folder=folder,
    )
    return bare.with_institutions([])


def save(logins: Logins, folder: Path) -> Path:
    """Writes `broker.json`, which a reader never sees half of."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(logins.model_dump(mode="json"), indent=2) + "\n"
    write_private(folder / FILE, text.encode())
    return folder / FILE


def load(folder: Path) -> Logins:
    """Reads `broker.json`; raises SettingsError where it is missing, not what `save` writes, or open to other users."""
    file = folder / FILE
    try:
        logins = Logins.model_validate_json(file.read_bytes()).model_copy(update={"folder": folder})
        demand_private(file, "the file of logins")
    except OSError as error:
        raise SettingsError(f"{file} cannot be read ({error.strerror}); `fedqueue broker up` writes it") from error
    except ValidationError as error:
        wrong = ", ".join(sorted({".".join(map(str, each["loc"])) or "the file" for each in error.errors()}))
        raise SettingsError(f"{file} is not a file of logins: {wrong}") from None
    return logins


def _amqp_url(node: str, vhost: str, *, tls: bool) -> str:
    return f"{'amqps' if tls else 'amqp'}://{node}/{quote(vhost, safe='')}"
