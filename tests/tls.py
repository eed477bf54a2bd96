"""A private broker that speaks TLS, with the authority that it believes and a certificate for every login."""

from dataclasses import dataclass
from pathlib import Path

from broker_config.authority import KEY_FILE, Authority, write_issued
from broker_config.definitions import ADMIN, AGGREGATOR, OPERATOR, VIEWER
from broker_config.logins import AUTHORITY_FOLDER, Logins, create
from broker_config.node import Installation, PrivateCluster, PrivateNode, start_node
from broker_config.server_tls import ServerTls

HOSTS = ("localhost", "127.0.0.1")


@dataclass(frozen=True, slots=True)
class TlsNode:
    """The node; `folder` is a federation's: `ca/`, and `tls/<user>/` with certificate.pem, key.pem and ca.pem."""

    cluster: PrivateCluster
    folder: Path
    authority: Authority
    users: dict[str, str]  # belong to the node, so their passwords last as long

    @classmethod
    def start(cls, folder: Path, installation: Installation) -> "TlsNode":
        authority = Authority.create(folder / AUTHORITY_FOLDER, name="test")
        tls = ServerTls(authority.issue_server(HOSTS), authority.certificate, authority.revocations)
        cluster = start_node(folder / "broker", installation=installation, remove_with_parent=True, tls=tls)
        node = cluster.nodes[0]
        made = create(node=node.amqp, management=node.management_url, admin_password=node.admin_password, tls=True)
        return cls(cluster, folder, authority, made.users)

    @property
    def node(self) -> PrivateNode:
        return self.cluster.nodes[0]

    def certificate(self, user: str) -> Path:
        """The folder of a user's certificate, which is issued at the first call."""
        folder = self.folder / "tls" / user
        if not (folder / KEY_FILE).exists():
            write_issued(folder, self.authority.issue(user), self.authority.certificate)
        return folder

    def logins(self, vhost: str) -> Logins:
        """Logins of the operator's side and the aggregator, each with its certificate."""
        for user in (ADMIN, OPERATOR, AGGREGATOR, VIEWER):
            self.certificate(user)
        place = {"amqp": self.node.amqp_url(vhost), "management": self.node.management_url, "vhost": vhost}
        return Logins(**place, users=self.users, folder=self.folder)
