"""The console as a server: its socket, its TLS, and an end that does not wait for open pages."""

import asyncio
import errno
import signal
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import uvicorn
from cryptography import x509

from broker_config.connection import is_loopback
from operator_console.federation_folder import FederationFolder
from operator_console.web.accounts import FILE as USERS_FILE
from operator_console.web.accounts import AccountBook
from operator_console.web.app import application
from operator_console.web.feed import Feed
from operator_console.web.letters import Letters
from operator_console.web.orders import ANSWER_SECONDS, Orders
from operator_console.web.parts import Parts
from operator_console.web.security import Place
from operator_console.web.sessions import ABSOLUTE_SECONDS, IDLE_SECONDS, Sessions
from operator_console.web.trail import FILE as TRAIL_FILE
from operator_console.web.trail import Trail
from shared.errors import SettingsError

IN_THE_CLEAR = "--everybody-on-the-network-may-read-and-change-what-i-send"
_ENDING = (signal.SIGTERM, signal.SIGINT)
_END_SECONDS = 1
_MOST_CONNECTIONS = 1000
_LONGEST_HEAD_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Where the console listens and for how long a login lasts. Port 0 takes any free one."""

    bind: str = "127.0.0.1"
    port: int = 8080
    certificate: Path | None = None
    key: Path | None = None
    public_url: str = ""
    in_the_clear: bool = False
    idle_seconds: float = IDLE_SECONDS
    absolute_seconds: float = ABSOLUTE_SECONDS
    answer_seconds: float = ANSWER_SECONDS


class Console:
    """One console. `serve` runs it in the main thread; in a `with` statement it runs on a thread of its own."""

    def __init__(self, folder: Path, options: ServerOptions) -> None:
        """Binds the port. Raises SettingsError for whatever would keep the console from being of use, or from being safe."""
        federation = FederationFolder(folder)
        _demand_safe(options)
        accounts = AccountBook(federation.console / USERS_FILE)
        if not accounts.all():
            raise SettingsError(f"nobody may log in yet: fedqueue console-user add NAME --role operator --dir {folder}")
        place, feed = _place(options), Feed(federation)
        context = _context(options)
        self._socket = _bound(options)
        port = int(self._socket.getsockname()[1])
        self.url = f"{'https' if place.over_tls else 'http'}://{_written(options.bind)}:{port}"
        rules = {"idle_seconds": options.idle_seconds, "absolute_seconds": options.absolute_seconds}
        letters = Letters(federation)
        parts = Parts(
            feed=feed,
            accounts=accounts,
            sessions=Sessions(accounts, time.monotonic, **rules),
            orders=Orders(federation, letters, answer_seconds=options.answer_seconds),
            letters=letters,
            trail=Trail(federation.console / TRAIL_FILE),
            clock=time.monotonic,
            closing=lambda: self._server.should_exit,
        )
        config = uvicorn.Config(
            application(parts, place, port=port),
            http="h11",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_MOST_CONNECTIONS,
            h11_max_incomplete_event_size=_LONGEST_HEAD_BYTES,
            timeout_graceful_shutdown=_END_SECONDS,
            ssl_context_factory=None if context is None else lambda _config, _default: context,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="console")

    def serve(self) -> None:
        """Returns after SIGTERM or Ctrl-C, within two seconds, also while pages are open.

        The process ends once an order that is under way has its answer, and so its line in the audit, or at a second signal.
        """
        for number in _ENDING:
            signal.signal(number, _once)
        self._run()

    def _run(self) -> None:
        try:
            asyncio.run(self._server.serve(sockets=[self._socket]))
        finally:
            self._socket.close()

    def __enter__(self) -> Self:
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.01)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.should_exit = True
        self._thread.join()


def _once(_number: int, _frame: object) -> None:
    """When it has ended, uvicorn raises the signal that ended it once more, which is nothing new; the next one is."""
    for number in _ENDING:
        signal.signal(number, signal.SIG_DFL)


def _demand_safe(options: ServerOptions) -> None:
    if (options.certificate is None) != (options.key is None):
        raise SettingsError("--certificate and --key go together")
    if options.certificate is None and not is_loopback(options.bind) and not options.in_the_clear:
        raise SettingsError(
            f"--bind {options.bind} without TLS shows passwords to the network: give --certificate and --key, or let a reverse "
            f"proxy on this computer do TLS (--public-url), or, if everybody on the way may read all of it, say {IN_THE_CLEAR}"
        )
    url = urlsplit(options.public_url)
    if options.public_url and (
        url.scheme not in ("http", "https") or not url.hostname or url.path.strip("/") or "@" in url.netloc
    ):
        raise SettingsError(f"--public-url {options.public_url} is not of the form https://console.example.org")


def _place(options: ServerOptions) -> Place:
    names = ["localhost", socket.gethostname(), *(_names_in(options.certificate) if options.certificate else ())]
    if not _is_address(options.bind):
        names.append(options.bind)
    return Place([name.lower() for name in names], options.certificate is not None, options.public_url.rstrip("/").lower())


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _names_in(certificate: Path) -> list[str]:
    """For which names a certificate is. Raises SettingsError."""
    try:
        parsed = x509.load_pem_x509_certificate(certificate.read_bytes())
        found = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (OSError, ValueError) as error:
        raise SettingsError(f"the certificate {certificate} cannot be used: {error}") from error
    except x509.ExtensionNotFound:
        raise SettingsError(f"the certificate {certificate} names no host; browsers refuse it") from None
    return list(found.value.get_values_for_type(x509.DNSName))


def _context(options: ServerOptions) -> ssl.SSLContext | None:
    if options.certificate is None or options.key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(options.certificate, options.key, password=_no_password)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"the certificate {options.certificate} with its key {options.key} cannot be used: {error}"
        ) from error
    return context


def _no_password() -> str:
    raise SettingsError("the key of the console's certificate has a passphrase, and nobody to ask for it: give it without one")


def _bound(options: ServerOptions) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(options.bind, options.port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise SettingsError(f"--bind {options.bind} is no address of this computer: {error.strerror}") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(128)  # at once: two consoles may have bound the port, and only one can listen
    except OSError as error:
        bound.close()
        why = "is taken by another program; choose another with --port" if error.errno == errno.EADDRINUSE else error.strerror
        raise SettingsError(f"port {options.port} on {options.bind} {why}") from error
    return bound


def _written(bind: str) -> str:
    return f"[{bind}]" if ":" in bind else bind
