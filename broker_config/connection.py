"""Where the broker is and who we are there, as settings; and the connection made from them."""

import ipaddress
import random
import ssl
import stat
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pika
from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from broker_config.guard import Guard
from broker_config.guarded import GuardedBroker
from broker_config.link import Link
from broker_config.pika_errors import translated
from broker_config.rabbitmq import RabbitmqBroker
from broker_config.tls import TlsFiles, raise_alert
from shared.broker import Broker
from shared.errors import SettingsError

_FORM = "amqps://host:port/vhost, or amqp://host:port/vhost on this computer,"
_PORTS = {"amqp": 5672, "amqps": 5671}
_CONNECT_SECONDS = 10


class ConnectionSettings(BaseModel):
    """One login on one broker; `url` may list the nodes of a cluster, separated by commas, and carries no credentials.

    Over TLS, amqps://, the login is a certificate with its key, in files; otherwise it is a password.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True)

    url: str
    """`amqps://host:port/vhost`, or `amqp://` on this computer; several nodes are separated by commas. No credentials in it."""
    user: str
    """The login's name: the institution's id, or `aggregator`."""
    password: SecretStr | None = None
    """Better in a file. Without TLS, exactly one of the two."""
    password_file: Path | None = None
    """Holds the password; mode 600."""
    ca_file: Path | None = None
    """With TLS: the certificate of the authority by which the broker is known."""
    certificate_file: Path | None = None
    """With TLS: the certificate by which the broker knows us, instead of a password."""
    key_file: Path | None = None
    """With TLS: the certificate's private key; mode 600."""
    everybody_on_the_network_may_read_and_change_what_i_send: bool = False
    """Must be written out to reach another computer without TLS."""
    keys_folder: Path | None = None
    """Keys with which messages are signed and opened, and `trust.json`, which says whose are believed."""
    heartbeat_seconds: int = Field(default=30, ge=2, le=600)
    """A silent link is noticed after this and five seconds more."""
    blocked_timeout_seconds: int = Field(default=300, ge=1)
    """How long a broker in a memory or disk alarm is waited for before connecting again."""

    @model_validator(mode="after")
    def _one_way_to_log_in(self) -> "ConnectionSettings":
        ways = (self.password, self.password_file, self.certificate_file)
        if sum(way is not None for way in ways) != 1:
            raise ValueError("exactly one of password, password_file and certificate_file is needed")
        if self.certificate_file is not None and None in (self.ca_file, self.key_file):
            raise ValueError("certificate_file needs ca_file and key_file beside it")
        if self.certificate_file is None and (self.ca_file, self.key_file) != (None, None):
            raise ValueError("ca_file and key_file go with certificate_file")
        try:
            _demand_safe(self)
        except SettingsError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def tls(self) -> TlsFiles | None:
        """The files of a connection over TLS."""
        if self.ca_file is None or self.certificate_file is None or self.key_file is None:
            return None
        return TlsFiles(self.ca_file, self.certificate_file, self.key_file)

    def secret(self) -> str:
        """The password; a file that others can read is used with a warning. Raises SettingsError where a certificate is used."""
        if self.password is not None:
            return self.password.get_secret_value()
        if self.password_file is None:
            raise SettingsError(f"{self.user} has a certificate and no password")
        return _password_in(self.password_file)


def connect(settings: ConnectionSettings, *, name: str, guard: Guard | None = None) -> Broker:
    """A connection to the first node that answers; `name` is what the management UI shows for it and for its consumers.

    Messages are signed and checked by `guard`, or else by one made of the settings' folder of keys, where there is one.
    Raises SettingsError for an unusable url, key or password file, TopologyError where the login is refused,
    BrokerUnavailableError where no node answers.
    """
    guard = guard or guard_of(settings)
    nodes = _nodes(settings, name)
    places = _places(nodes)

    def connected() -> Link:
        random.shuffle(nodes)
        with translated(f"connect to {places} as {settings.user} in virtual host {nodes[0].virtual_host}"):
            try:
                return Link(nodes)
            except pika.exceptions.IncompatibleProtocolError:
                _raise_alert(nodes[-1])
                raise

    broker = RabbitmqBroker(connected, user=settings.user, name=name, where=places)
    return broker if guard is None else GuardedBroker(broker, guard)


def guard_of(settings: ConnectionSettings) -> Guard | None:
    """The rules of a folder of keys, fresh from disk; None where messages are not signed. Raises SettingsError."""
    return None if settings.keys_folder is None else Guard.load(settings.keys_folder)


def waiting_messages(settings: ConnectionSettings, queue: str) -> int:
    """Messages that wait in a queue, told at once; the management API tells them seconds late."""
    return int(_looked_at(settings, queue).message_count)


def consumers(settings: ConnectionSettings, queue: str) -> int:
    """Consumers of a queue, told at once; the management API tells them seconds late."""
    return int(_looked_at(settings, queue).consumer_count)


def _looked_at(settings: ConnectionSettings, queue: str) -> Any:
    nodes = _nodes(settings, "fedqueue broker")
    with translated(f"look at {queue} at {_places(nodes)} as {settings.user}"), pika.BlockingConnection(nodes) as connection:
        return connection.channel().queue_declare(queue, passive=True).method


def _nodes(settings: ConnectionSettings, name: str) -> list[pika.ConnectionParameters]:
    _demand_safe(settings)
    context = None if settings.tls is None else settings.tls.context(settings.user)
    return [_parameters(url, settings, name, context) for url in _urls(settings)]


def _urls(settings: ConnectionSettings) -> list[str]:
    return [url.strip() for url in settings.url.split(",")]


def _demand_safe(settings: ConnectionSettings) -> None:
    """Raises SettingsError for urls that are none, that do not go with the login, or over which others could read along."""
    for url in _urls(settings):
        host, _, _ = address(url)
        over_tls = url.startswith("amqps:")
        if over_tls and settings.certificate_file is None:
            raise SettingsError(f"{url} is TLS: it needs certificate_file, key_file and ca_file, and no password")
        if not over_tls and settings.certificate_file is not None:
            raise SettingsError(f"{url} is not TLS: with a certificate, write amqps://")
        open_to_all = settings.everybody_on_the_network_may_read_and_change_what_i_send
        if not over_tls and not open_to_all and not is_loopback(host):
            raise SettingsError(
                f"{url} leaves this computer unencrypted: write amqps:// with the certificate of the kit, or, if every computer "
                "on the way may read the password and change what is sent, set "
                "everybody_on_the_network_may_read_and_change_what_i_send = true"
            )


def is_loopback(host: str) -> bool:
    """Whether what is sent to a host stays on this computer, as far as its name tells."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _raise_alert(node: pika.ConnectionParameters) -> None:
    if node.ssl_options is not None:
        raise_alert(node.host, node.port, node.ssl_options.context)


def _places(nodes: list[pika.ConnectionParameters]) -> str:
    return ", ".join(f"{node.host}:{node.port}" for node in nodes)


def _parameters(url: str, settings: ConnectionSettings, name: str, context: ssl.SSLContext | None) -> pika.ConnectionParameters:
    host, port, vhost = address(url)
    credentials = (
        pika.PlainCredentials(settings.user, settings.secret()) if context is None else pika.credentials.ExternalCredentials()
    )
    return pika.ConnectionParameters(
        host=host,
        port=port,
        virtual_host=vhost,
        credentials=credentials,
        ssl_options=None if context is None else pika.SSLOptions(context, host),
        heartbeat=settings.heartbeat_seconds,
        blocked_connection_timeout=settings.blocked_timeout_seconds,
        socket_timeout=_CONNECT_SECONDS,
        stack_timeout=_CONNECT_SECONDS + 5,
        client_properties={"connection_name": name, "product": "fedqueue", "version": metadata.version("fedqueue")},
    )


def address(url: str) -> tuple[str, int, str]:
    """Host, port and virtual host of an AMQP url without credentials."""
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError:
        raise SettingsError(f"broker url: {_FORM} is needed, and the port is not a number up to 65535") from None
    if parts.username is not None or parts.password is not None:
        raise SettingsError(f"broker url: {_FORM} without user and password, which have settings of their own")
    if parts.scheme not in _PORTS or not parts.hostname:
        shown = "" if "@" in url else f" {url!r}"  # what stands before an @ may be a password
        raise SettingsError(f"broker url{shown}: {_FORM} is needed")
    return parts.hostname, port, unquote(parts.path.removeprefix("/")) or "/"


def _password_in(file: Path) -> str:
    try:
        password = file.read_text(encoding="utf-8").rstrip("\r\n")
        readable_by_others = file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"password file {file} cannot be read: {error}") from error
    if not password:
        raise SettingsError(f"password file {file} is empty")
    if readable_by_others:
        warnings.warn(f"password file {file} can be read by other users: chmod 600 {file}", stacklevel=2)
    return password
