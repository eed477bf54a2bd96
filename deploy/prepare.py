"""Before the broker starts: the federation's authority, the broker's certificate, the administrator (known to it by a hash).

Run by docker-compose.yml at each `up`; what is there already stays, but for certificates that end soon.
"""

import json
import os
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from broker_config import logins as login_file
from broker_config.authority import AUTHORITY_KEY_FILE, CERTIFICATE_FILE, Authority, Issued, expiry_of, write_issued
from broker_config.definitions import ADMIN, password_hash
from broker_config.written import write_private

FEDERATION = Path("/federation")
BROKER = Path("/broker")
DEFINITIONS = "definitions.json"
BROKER_USER = 999  # rabbitmq, in RabbitMQ's image
HOSTS = ("rabbitmq", "localhost", "127.0.0.1")
AMQP = "rabbitmq:5671"
MANAGEMENT = "https://rabbitmq:15671"
RENEWED_BEFORE = timedelta(days=60)


def main() -> None:
    """Writes what is missing into both volumes."""
    place = FEDERATION / login_file.AUTHORITY_FOLDER
    is_there = (place / AUTHORITY_KEY_FILE).exists()
    authority = Authority.open(place) if is_there else Authority.create(place, name="fedqueue")
    certify(FEDERATION / "tls" / ADMIN, authority, lambda: authority.issue(ADMIN))
    certify(BROKER, authority, lambda: authority.issue_server(HOSTS))
    if not (FEDERATION / login_file.FILE).exists():
        password = secrets.token_urlsafe(24)
        login_file.save(login_file.create(node=AMQP, management=MANAGEMENT, admin_password=password, tls=True), FEDERATION)
    if not (BROKER / DEFINITIONS).exists():
        write_private(BROKER / DEFINITIONS, definitions(login_file.load(FEDERATION).users[ADMIN]).encode())
    for file in (BROKER, *BROKER.iterdir()):
        os.chown(file, BROKER_USER, BROKER_USER)


def certify(folder: Path, authority: Authority, issue: Callable[[], Issued]) -> None:
    """Writes a certificate with its key, unless the one in the folder holds for long enough."""
    file = folder / CERTIFICATE_FILE
    if not file.exists() or expiry_of(file.read_bytes()) < datetime.now(UTC) + RENEWED_BEFORE:
        write_issued(folder, issue(), authority.certificate)


def definitions(password: str) -> str:
    """What the broker loads at its first boot: the administrator, and so no guest. `fedqueue init` makes the rest."""
    administrator = {
        "name": ADMIN,
        "password_hash": password_hash(password, secrets.token_bytes(4)),
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": ["administrator"],
    }
    return json.dumps({"users": [administrator], "vhosts": [{"name": "/"}]}, indent=2)


if __name__ == "__main__":
    main()
