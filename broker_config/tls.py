"""TLS as a member of a federation speaks it; its files are looked at before anything connects."""

import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog

from broker_config.authority import expiry_of, user_of
from broker_config.secret_files import demand_private
from shared.errors import SettingsError

WARNED_BEFORE = timedelta(days=30)
_MISMATCH = "KEY_VALUES_MISMATCH"
_ALERT_SECONDS = 3.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Whom we believe, who we are, and the proof; three files in PEM."""

    authority: Path
    certificate: Path
    key: Path

    def context(self, user: str) -> ssl.SSLContext:
        """What a connection as `user` is made with: TLS 1.2 at least, the broker's certificate and host name checked.

        Raises SettingsError for files that are missing, that others can read, that do not belong together or to `user`.
        A certificate that expires soon is warned about.
        """
        for file in (self.authority, self.certificate, self.key):
            _demand_readable(file)
        demand_private(self.key, "the key")
        _demand_open(self.key)
        own = _named(self.certificate)
        if own != user:
            raise SettingsError(
                f"{self.certificate} is the certificate of {own}, and the settings say user {user}: take the one for {user}"
            )
        self._warn_before_it_expires()
        return self._loaded()

    @property
    def expires(self) -> datetime:
        """Until when the certificate holds (UTC)."""
        return expiry_of(self.certificate.read_bytes())

    def _loaded(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.authority)
        except (ssl.SSLError, ValueError) as error:
            raise SettingsError(f"{self.authority} is not a certificate in PEM: take ca.pem of the kit") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.certificate, self.key, password="")
        except (ssl.SSLError, ValueError) as error:
            apart = getattr(error, "reason", "") == _MISMATCH
            why = "the key does not belong to the certificate" if apart else "they are not a certificate and its key in PEM"
            raise SettingsError(f"{self.certificate} and {self.key}: {why}; take both from the same kit") from error
        return context

    def _warn_before_it_expires(self) -> None:
        left = self.expires - datetime.now(UTC)
        if left < WARNED_BEFORE:
            said = "the certificate has expired" if left < timedelta() else "the certificate expires soon"
            log.warning(
                f"{said}: ask the federation's operator for a new one",
                file=str(self.certificate),
                expires=self.expires.isoformat(),
                days_left=left.days,
            )


def readable_expiry(files: TlsFiles | None) -> datetime | None:
    """Until when a login's certificate holds (UTC); None where there is none, or none that can be read just now."""
    try:
        return None if files is None else files.expires
    except (OSError, ValueError, SettingsError):
        return None


def _demand_readable(file: Path) -> None:
    try:
        file.read_bytes()
    except OSError as error:
        raise SettingsError(f"{file} cannot be read ({error.strerror}): take it from the kit, or correct the settings") from error


def _demand_open(key: Path) -> None:
    if b"ENCRYPTED" in key.read_bytes():
        raise SettingsError(f"the key {key} has a password, and nobody is there to type it: store it without one, mode 600")


def _named(certificate: Path) -> str:
    try:
        return user_of(certificate.read_bytes())
    except SettingsError as error:
        raise SettingsError(f"{certificate}: {error}") from error


def raise_alert(host: str, port: int, context: ssl.SSLContext) -> None:
    """Raises the ssl.SSLError that says why a broker hangs up on us, where it says so.

    In TLS 1.3 it refuses a certificate after the client has finished, so whoever writes at once may find the connection closed
    and never read why.
    """
    with (
        suppress(ConnectionError, TimeoutError),
        socket.create_connection((host, port), timeout=_ALERT_SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=host) as connection,
    ):
        connection.recv(1)
