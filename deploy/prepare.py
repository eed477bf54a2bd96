"""Before the broker starts: the federation's authority, the broker's certificate, the administrator (known to it by a hash).

Run by docker-compose.yml at each `up`; what is there already stays, but for certificates that end soon.
"""

import json
import os
import secrets
from datetime import UTC, datetime
from pathlib import Path

from broker_config import logins as login_file
from broker_config.authority import CERTIFICATE_FILE, expiry_of, write_issued
from broker_config.definitions import ADMIN, OPERATOR, password_hash
from broker_config.tls import WARNED_BEFORE
from broker_config.written import write_private
from operator_console.broker_tls import authority_of, certify

FEDERATION = Path("/federation")
BROKER = Path("/broker")
DEFINITIONS = BROKER / "definitions.json"
BROKER_USER = 999  # rabbitmq, in RabbitMQ's image
HOSTS = ("rabbitmq", "localhost", "127.0.0.1")
AMQP = "rabbitmq:5671"
MANAGEMENT = "https://rabbitmq:15671"


def main() -> None:
    """Writes what is missing into the volumes."""
    authority = authority_of(FEDERATION)
    certify(FEDERATION, (OPERATOR, ADMIN))
    if not holds(BROKER / CERTIFICATE_FILE):
        write_issued(BROKER, authority.issue_server(HOSTS), authority.certificate)
    if not (FEDERATION / login_file.FILE).exists():
        password = secrets.token_urlsafe(24)
        login_file.save(login_file.create(node=AMQP, management=MANAGEMENT, admin_password=password, tls=True), FEDERATION)
    if not DEFINITIONS.exists():
        write_private(DEFINITIONS, definitions(login_file.load(FEDERATION).users[ADMIN]).encode())
    for file in (BROKER, *BROKER.iterdir()):
        os.chown(file, BROKER_USER, BROKER_USER)


def holds(certificate: Path) -> bool:
    """Whether the certificate is there and does not end soon."""
    return certificate.exists() and expiry_of(certificate.read_bytes()) - datetime.now(UTC) > WARNED_BEFORE


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
