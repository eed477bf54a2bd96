"""A broker that speaks TLS and takes certificates for logins, as lines of RabbitMQ's configuration. Pure but for its files."""

from dataclasses import dataclass
from pathlib import Path

from broker_config.authority import CA_FILE, CERTIFICATE_FILE, KEY_FILE, Issued, write_issued

PLUGIN = "rabbitmq_auth_mechanism_ssl"
LOOPBACK = "127.0.0.1"
EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104  an operator asks for it by name


@dataclass(frozen=True, slots=True)
class ServerTls:
    """What a private node shows its clients, the certificate (PEM) of the authority that it believes, and where it listens.

    Without `port` a free one is chosen. In the folder `revocations` the node finds the lists of revoked certificates, named by
    their issuer's hash; without it, none is looked at.
    """

    issued: Issued
    authority: bytes
    address: str = LOOPBACK
    port: int | None = None
    host: str = LOOPBACK
    revocations: Path | None = None

    def write(self, folder: Path) -> None:
        """Writes `ca.pem`, `certificate.pem` and `key.pem`."""
        write_issued(folder, self.issued, self.authority)


def listener_lines(folder: Path, *, address: str, port: int) -> str:
    """Lines of rabbitmq.conf: TLS on one port, nothing else; a certificate of our authority is needed, and is the login."""
    return f"""\
listeners.tcp = none
listeners.ssl.1 = {address}:{port}
ssl_options.cacertfile = {folder / CA_FILE}
ssl_options.certfile = {folder / CERTIFICATE_FILE}
ssl_options.keyfile = {folder / KEY_FILE}
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
ssl_options.versions.1 = tlsv1.3
ssl_options.versions.2 = tlsv1.2
ssl_options.reuse_sessions = false
ssl_options.client_renegotiation = false
auth_mechanisms.1 = EXTERNAL
ssl_cert_login_from = common_name
"""


def revocation_terms(folder: Path) -> str:
    """A term of advanced.config that refuses revoked certificates, and every certificate where no list of its issuer is found."""
    return f'{{ssl_options, [{{crl_check, peer}}, {{crl_cache, {{ssl_crl_hash_dir, {{internal, [{{dir, "{folder}"}}]}}}}}}]}}'
