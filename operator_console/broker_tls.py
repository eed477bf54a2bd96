"""What a broker with TLS needs in the federation's folder: the authority, the broker's certificate, the operator's own."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from broker_config import logins as login_file
from broker_config.authority import (
    AUTHORITY_KEY_FILE,
    CERTIFICATE_FILE,
    KEY_FILE,
    Authority,
    expiry_of,
    hosts_of,
    write_issued,
)
from broker_config.logins import AUTHORITY_FOLDER
from broker_config.server_tls import LOOPBACK, ServerTls
from broker_config.tls import WARNED_BEFORE

SERVER_FOLDER = "server"
CONFIGURATION = "rabbitmq.conf"
"""What a broker that was there already is to be configured with."""
_THIS_COMPUTER = ("localhost", LOOPBACK)


def has_authority(folder: Path) -> bool:
    """Whether the federation of this folder has an authority of its own, and so a broker with TLS."""
    return (folder / AUTHORITY_FOLDER / AUTHORITY_KEY_FILE).exists()


def authority_of(folder: Path) -> Authority:
    """The federation's authority, made now where there is none. Raises SettingsError."""
    place = folder / AUTHORITY_FOLDER
    return (
        Authority.open(place) if has_authority(folder) else Authority.create(place, name=f"fedqueue {folder.resolve().name}"[:64])
    )


def private_server(folder: Path, hosts: Sequence[str], *, bind: str, port: int | None) -> ServerTls:
    """TLS for a private node of this folder, reached under `hosts` and from this computer.

    Without hosts or port they stay as they were.
    """
    authority, known = authority_of(folder), folder / AUTHORITY_FOLDER / SERVER_FOLDER / CERTIFICATE_FILE
    chosen = list(hosts) or (_former_hosts(known.read_bytes()) if known.exists() else [])
    issued = authority.issue_server([*chosen, *_THIS_COMPUTER])
    write_issued(known.parent, issued, authority.certificate)
    return ServerTls(
        issued,
        authority.certificate,
        authority.revocations,
        address=bind,
        port=port or _former_port(folder),
        host=chosen[0] if chosen else LOOPBACK,
    )


def certify(folder: Path, users: Iterable[str]) -> list[Path]:
    """Certificates for logins of the operator's side that have none, or one that expires soon; returns their folders."""
    authority = authority_of(folder)
    places = [folder / "tls" / user for user in users]
    due = [place for place in places if _is_due(place)]
    for place in due:
        write_issued(place, authority.issue(place.name), authority.certificate)
    return due


def _is_due(place: Path) -> bool:
    if not (place / KEY_FILE).exists() or not (place / CERTIFICATE_FILE).exists():
        return True
    return expiry_of((place / CERTIFICATE_FILE).read_bytes()) - datetime.now(UTC) < WARNED_BEFORE


def _former_hosts(certificate: bytes) -> list[str]:
    """Those that were asked for; the names of this computer were added once."""
    hosts = hosts_of(certificate)
    for added in _THIS_COMPUTER:
        hosts.remove(added)
    return hosts


def _former_port(folder: Path) -> int | None:
    if not (folder / login_file.FILE).exists():
        return None
    logins = login_file.load(folder)
    return urlsplit(logins.amqp).port if logins.over_tls else None
