"""Before the broker starts: the federation's authority, the broker's certificate, the administrator (known to it by a hash).

For the monitoring: another authority, whose one certificate opens the broker's figures to Prometheus, and Grafana's password.
Run by docker-compose.yml at each `up`; what is there already stays, but for certificates that end soon.
"""

import json
import os
import secrets
from datetime import UTC, datetime
from pathlib import Path

from broker_config import logins as login_file
from broker_config.authority import AUTHORITY_KEY_FILE, CERTIFICATE_FILE, Authority, expiry_of, write_issued
from broker_config.definitions import ADMIN, OPERATOR, password_hash
from broker_config.tls import WARNED_BEFORE
from broker_config.written import write_private, write_public
from operator_console.broker_tls import authority_of, certify

FEDERATION = Path("/federation")
BROKER = Path("/broker")
DEFINITIONS = BROKER / "definitions.json"
MONITORING = Path("/monitoring")
GRAFANA_SECRETS = Path("/grafana-secrets")
# The users of the images: rabbitmq, nobody, grafana.
BROKER_USER, PROMETHEUS_USER, GRAFANA_USER = 999, 65534, 472
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
    prepare_monitoring(authority.certificate)
    for folder, owner in ((BROKER, BROKER_USER), (MONITORING, PROMETHEUS_USER), (GRAFANA_SECRETS, GRAFANA_USER)):
        for file in (folder, *folder.iterdir()):
            os.chown(file, owner, owner)


def prepare_monitoring(broker_authority: bytes) -> None:
    """What Prometheus shows the broker and believes of it, and what Grafana's administrator types."""
    folder = FEDERATION / "monitoring-ca"
    there = (folder / AUTHORITY_KEY_FILE).exists()
    monitoring = Authority.open(folder) if there else Authority.create(folder, name="fedqueue monitoring")
    write_public(BROKER / "monitoring-ca.pem", monitoring.certificate)
    if not holds(MONITORING / CERTIFICATE_FILE):
        write_issued(MONITORING, monitoring.issue("prometheus"), broker_authority)
    for name in ("admin-password", "secret-key"):
        if not (GRAFANA_SECRETS / name).exists():
            write_private(GRAFANA_SECRETS / name, secrets.token_urlsafe(24).encode())


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
