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

    In the folder `revocations` the node looks up the authority's list of revoked certificates at every connection. Without
    `port` a free one is chosen.
    """

    issued: Issued
    authority: bytes
    revocations: Path
    address: str = LOOPBACK
    port: int | None = None
    host: str = LOOPBACK

    def write(self, folder: Path) -> None:
        """Writes `ca.pem`, `certificate.pem` and `key.pem`."""
        write_issued(folder, self.issued, self.authority)


def listener_lines(*, address: str, port: int) -> str:
    """Lines of rabbitmq.conf: TLS on one port and nothing else, and the certificate is the login."""
    return f"""\
listeners.tcp = none
listeners.ssl.1 = {address}:{port}
auth_mechanisms.1 = EXTERNAL
ssl_cert_login_from = common_name
"""


def options_term(folder: Path, revocations: Path) -> str:
    """A term of advanced.config: a certificate of our authority is needed, and no revoked one is taken.

    All options of TLS stand here, for rabbitmq.conf has no words for revocation and RabbitMQ does not merge the two. Where the
    folder has no list of the issuer, every certificate is refused.
    """
    return f"""\
{{ssl_options, [
        {{cacertfile, "{folder / CA_FILE}"}},
        {{certfile, "{folder / CERTIFICATE_FILE}"}},
        {{keyfile, "{folder / KEY_FILE}"}},
        {{verify, verify_peer}},
        {{fail_if_no_peer_cert, true}},
        {{versions, ['tlsv1.3', 'tlsv1.2']}},
        {{reuse_sessions, false}},
        {{client_renegotiation, false}},
        {{crl_check, peer}},
        {{crl_cache, {{ssl_crl_hash_dir, {{internal, [{{dir, "{revocations}"}}]}}}}}}
    ]}}"""
