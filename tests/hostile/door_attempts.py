"""Attempts at the door: old TLS, no TLS, other mechanisms, and certificates that are not what they should be."""

import secrets
import socket
import ssl
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pika
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.conftest import eventually
from tests.hostile.attempt import Attempt, By, How
from tests.hostile.certificates import Forgery, Holder
from tests.hostile.institution import HostileInstitution, spoken
from tests.hostile.world import HOSTILE, VICTIM

AMQP = b"AMQP\0\0\x09\x01"
ALERT = "TLS alert: "
SECONDS, HEARING_SECONDS = 10, 0.5
REMOVED, REVOKED = "bank-z", "bank-y"


def knocks(hostile: HostileInstitution, context: ssl.SSLContext, first: bytes = AMQP) -> str:
    """What a bare connection over TLS gets: an alert, or the beginning of a conversation."""
    host, port = hostile.world.place
    with socket.create_connection((host, port), SECONDS) as bare:
        try:
            with context.wrap_socket(bare, server_hostname=host) as talking:
                _hear(talking)
                talking.sendall(first)
                return "let in" if talking.recv(1) == b"\x01" else "hung up"
        except (ssl.SSLEOFError, ConnectionResetError):
            return "hung up"
        except ssl.SSLError as error:
            return ALERT + alert_in(error)


def _hear(talking: ssl.SSLSocket) -> None:
    """With TLS 1.3 a client believes that it is in before its certificate was looked at; who speaks first may lose the alert."""
    talking.settimeout(HEARING_SECONDS)
    with suppress(TimeoutError):
        talking.recv(1)
    talking.settimeout(SECONDS)


def alert_in(error: ssl.SSLError) -> str:
    """The words of an alert, as its RFC has them: OpenSSL puts protocols before them."""
    words = (error.reason or str(error)).lower().replace("_", " ")
    return words.rpartition("alert ")[2]


def _anonymous(hostile: HostileInstitution) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=hostile.world.authority_file)


def shows(make: Callable[[HostileInstitution], Path]) -> How:
    """A certificate and key of a folder."""

    def tries(hostile: HostileInstitution) -> str:
        context, folder = _anonymous(hostile), make(hostile)
        context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
        answer = knocks(hostile, context)
        return (
            hostile.login_answer(ssl_options=pika.SSLOptions(context, hostile.world.place[0])) if answer == "let in" else answer
        )

    return tries


def _speaks(version: ssl.TLSVersion) -> How:
    def tries(hostile: HostileInstitution) -> str:
        context, folder = _anonymous(hostile), hostile.world.certificate(HOSTILE)
        context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = context.maximum_version = version
        return knocks(hostile, context)

    return tries


def _speaks_plainly(hostile: HostileInstitution) -> str:
    with socket.create_connection(hostile.world.place, SECONDS) as bare:
        bare.sendall(AMQP)
        try:
            answer = bare.recv(64)
        except ConnectionResetError:
            answer = b""
    # an alert of TLS is a record of type 21
    return "TLS alert" if answer[:1] == b"\x15" else f"answered {answer!r}" if answer else "hung up"


class Stubborn(pika.PlainCredentials):
    """Logs in with a password, whether the broker offers that or not."""

    def __init__(self, mechanism: str, user: str, password: str) -> None:
        super().__init__(user, password)
        self.mechanism = mechanism

    def response_for(self, _start: object) -> tuple[str, bytes]:
        return self.mechanism, b"\0" + self.username.encode() + b"\0" + self.password.encode()


def _logs_in_by(mechanism: str, user: str) -> How:
    return lambda hostile: hostile.login_answer(credentials=_credentials(hostile, mechanism, user))


def _credentials(hostile: HostileInstitution, mechanism: str, user: str) -> Stubborn:
    return Stubborn(mechanism, user, hostile.world.server.logins.users.get(user, ""))


def _forged(forgery: Forgery, issuer: Callable[[HostileInstitution], Holder | None]) -> How:
    return shows(lambda hostile: forgery.signed_by(issuer(hostile), hostile.world.folder / secrets.token_hex(4)))


def _federation(hostile: HostileInstitution) -> Holder:
    """The federation's own authority: as if it had written this some day."""
    return hostile.world.authority


def _stranger(hostile: HostileInstitution) -> Holder:
    return Holder(hostile.world.authority.name, Holder.new("x").key)


def _itself(hostile: HostileInstitution) -> Holder:
    folder = hostile.world.certificate(HOSTILE)
    return Holder.of(folder / "certificate.pem", folder / "key.pem")


def _nobody(_hostile: HostileInstitution) -> None:
    return None


def _revoked(hostile: HostileInstitution) -> Path:
    """A certificate of a login that has another one by now."""
    folder = hostile.world.certificate(REVOKED)
    hostile.world.node.authority.revoke(REVOKED)
    return folder


def _as_removed(then: Callable[[HostileInstitution, pika.BlockingConnection], str]) -> How:
    """What an institution gets that is removed while it is connected."""

    def tries(hostile: HostileInstitution) -> str:
        world = hostile.world
        world.server.declare(REMOVED)
        connection = hostile.connection(user=REMOVED)
        world.server.remove(REMOVED)
        return then(hostile, connection)

    return tries


def _goes_on(_hostile: HostileInstitution, connection: pika.BlockingConnection) -> str:
    try:
        eventually(lambda: connection.process_data_events(0.1))  # type: ignore[func-returns-value]
    except pika.exceptions.ConnectionClosedByBroker as error:
        return spoken(error)
    return "goes on"


def _comes_back(hostile: HostileInstitution, _connection: pika.BlockingConnection) -> str:
    return hostile.login_answer(user=REMOVED)


REFUSED = "403 ACCESS_REFUSED"
ATTEMPTS = (
    Attempt("speak TLS 1.0", _speaks(ssl.TLSVersion.TLSv1), "TLS alert: protocol version", "broker", "Protocol Version"),
    Attempt("speak TLS 1.1", _speaks(ssl.TLSVersion.TLSv1_1), "TLS alert: protocol version", "broker", "Protocol Version"),
    Attempt("speak no TLS on the TLS port", _speaks_plainly, "TLS alert", "broker", "unsupported_record_type"),
    Attempt(
        "show no certificate",
        lambda hostile: knocks(hostile, _anonymous(hostile)),
        "TLS alert: certificate required",
        "broker",
        "Certificate required",
    ),
    Attempt(
        "log in as the operator with its stolen password (PLAIN)",
        _logs_in_by("PLAIN", "operator"),
        "hung up",
        "broker",
        "invalid authentication mechanism 'PLAIN'",
    ),
    Attempt(
        "log in as nobody (ANONYMOUS)",
        _logs_in_by("ANONYMOUS", "guest"),
        "hung up",
        "broker",
        "authentication mechanism 'ANONYMOUS'",
    ),
    Attempt(
        "speak AMQP 1.0 without SASL",
        lambda hostile: knocks(hostile, hostile.world.context(HOSTILE), b"AMQP\0\1\0\0"),
        "hung up",
        "broker",
        By("amqp1_0_plugin_not_enabled", "closing AMQP 1.0 connection"),
    ),
    Attempt(
        "show a certificate that has expired",
        _forged(Forgery(HOSTILE, begins=-30, ends=-1), _federation),
        "TLS alert: certificate expired",
        "broker",
        "Certificate Expired",
    ),
    Attempt(
        "show a certificate that was revoked", shows(_revoked), "TLS alert: certificate revoked", "broker", "Certificate Revoked"
    ),
    Attempt(
        "show a certificate that is not valid yet",
        _forged(Forgery(VICTIM, begins=10), _federation),
        "TLS alert: certificate expired",
        "broker",
        "Certificate Expired",
    ),
    Attempt(
        "show another's name from an authority of the same name",
        _forged(Forgery(VICTIM), _stranger),
        "TLS alert: bad certificate",
        "broker",
        "Bad Certificate",
    ),
    Attempt(
        "show another's name, signed by itself",
        _forged(Forgery(VICTIM), _nobody),
        "TLS alert: bad certificate",
        "broker",
        "Bad Certificate",
    ),
    Attempt(
        "sign a certificate of another's name with its own",
        _forged(Forgery(VICTIM), _itself),
        "TLS alert: handshake failure",
        "broker",
        "invalid_key_usage",
    ),
    Attempt(
        "sign an authority with its own certificate",
        _forged(Forgery(VICTIM, may_issue=True), _itself),
        "TLS alert: handshake failure",
        "broker",
        "invalid_key_usage",
    ),
    Attempt(
        "show a certificate of a name that is no login",
        _forged(Forgery("nobody"), _federation),
        REFUSED,
        "broker",
        "EXTERNAL login refused: user 'nobody'",
    ),
    Attempt(
        "show a broker's certificate as its own",
        _forged(Forgery(VICTIM, purpose=ExtendedKeyUsageOID.SERVER_AUTH), _federation),
        By("TLS alert: handshake failure", "TLS alert: unsupported certificate"),
        "broker",
        By("invalid_ext_key_usage", "Unsupported Certificate"),
    ),
    Attempt(
        "go on with its connection after it was removed",
        _as_removed(_goes_on),
        "320 CONNECTION_FORCED",
        "broker",
        f"user '{REMOVED}' is deleted",
    ),
    Attempt(
        "come back after it was removed, with its certificate",
        _as_removed(_comes_back),
        REFUSED,
        "broker",
        f"EXTERNAL login refused: user '{REMOVED}'",
    ),
)
