"""Connections over TLS: who gets in, who is told why not, and that large messages pass whole."""

import hashlib
import random
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pika
import pytest
from cryptography.hazmat.primitives import serialization
from structlog.testing import capture_logs

from broker_config import authority as authority_module
from broker_config.authority import Authority, write_issued
from broker_config.connection import ConnectionSettings, address, connect
from broker_config.tls import TlsFiles, readable_expiry
from broker_config.topology import MODEL
from campaigns.tcp_proxy import TcpProxy
from shared.broker import Message
from shared.errors import BrokerUnavailableError, SettingsError, TopologyError
from tests.conftest import RabbitmqServer
from tests.tls import TlsNode


def files_of(folder: Path) -> TlsFiles:
    return TlsFiles(folder / "ca.pem", folder / "certificate.pem", folder / "key.pem")


def expired(authority: Authority, user: str) -> authority_module.Issued:
    """A certificate of thirty days that was issued forty days ago."""
    with pytest.MonkeyPatch.context() as patch:
        then = datetime.now(UTC) - timedelta(days=40)
        patch.setattr(authority_module, "_now", lambda: then)
        return authority.issue(user, days=30)


# What can be seen before anything connects.


@pytest.fixture
def own(tmp_path) -> Path:
    authority = Authority.create(tmp_path / "ca", name="test")
    write_issued(tmp_path / "own", authority.issue("bank-a"), authority.certificate)
    return tmp_path / "own"


def replaced(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda own: (own / name).write_bytes(content)


def another_key(own: Path) -> None:
    (own / "key.pem").write_bytes(Authority.open(own.parent / "ca").issue("bank-a").key)


def locked_key(own: Path) -> None:
    key = serialization.load_pem_private_key((own / "key.pem").read_bytes(), password=None)
    locked = serialization.BestAvailableEncryption(b"word")
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
    (own / "key.pem").write_bytes(pem)


def test_the_end_of_a_certificate_is_read_anew_and_is_not_known_while_it_cannot_be_read(own) -> None:
    files, authority = files_of(own), Authority.open(own.parent / "ca")
    first = readable_expiry(files)
    assert first is not None
    assert timedelta(0) < first - datetime.now(UTC)

    write_issued(own, authority.issue("bank-a", days=7), authority.certificate)
    renewed = readable_expiry(files)
    assert renewed is not None
    assert timedelta(days=6) < renewed - datetime.now(UTC) < timedelta(days=7)

    (own / "certificate.pem").write_bytes(b"half of")
    assert readable_expiry(files) is None
    (own / "certificate.pem").unlink()
    assert readable_expiry(files) is None
    assert readable_expiry(None) is None


UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no key": (lambda own: (own / "key.pem").unlink(), r"key\.pem cannot be read .*take it from the kit"),
    "no certificate": (lambda own: (own / "certificate.pem").unlink(), r"certificate\.pem cannot be read"),
    "no authority": (lambda own: (own / "ca.pem").unlink(), r"ca\.pem cannot be read"),
    "open to the group": (lambda own: (own / "key.pem").chmod(0o640), r"can be read by other users: chmod 600"),
    "open to all": (lambda own: (own / "key.pem").chmod(0o604), r"can be read by other users: chmod 600"),
    "key of another certificate": (another_key, "the key does not belong to the certificate; take both from the same kit"),
    "key with a password": (locked_key, "has a password, .*store it without one"),
    "junk for a key": (replaced("key.pem", b"junk"), "not a certificate and its key in PEM"),
    "junk for a certificate": (replaced("certificate.pem", b"junk"), r"certificate\.pem: this is not a certificate"),
    "junk for the authority": (replaced("ca.pem", b"junk"), r"ca\.pem is not a certificate"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_files_that_cannot_be_used_are_named_with_the_remedy(own, case):
    spoil, said = UNUSABLE[case]
    files_of(own).context("bank-a")
    spoil(own)
    with pytest.raises(SettingsError, match=said):
        files_of(own).context("bank-a")


def test_a_certificate_for_another_login_is_named_with_both(own):
    with pytest.raises(SettingsError, match="certificate of bank-a, and the settings say user bank-b"):
        files_of(own).context("bank-b")


def test_a_connection_needs_tls_1_2_and_checks_the_name_of_the_host(own):
    context = files_of(own).context("bank-a")
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.check_hostname
    assert context.verify_mode == ssl.CERT_REQUIRED


@pytest.mark.parametrize(("days", "warned"), [(29, True), (32, False)])
def test_a_certificate_is_warned_about_for_thirty_days_before_it_expires(tmp_path, days, warned):
    authority = Authority.create(tmp_path / "ca", name="test")
    write_issued(tmp_path / "own", authority.issue("bank-a", days=days), authority.certificate)
    with capture_logs() as said:
        files_of(tmp_path / "own").context("bank-a")
    assert ["expires soon" in each["event"] for each in said] == [True] * warned


# What only a broker can show.


@pytest.fixture(scope="module")
def server(tls_node):
    running = RabbitmqServer(tls_node.node, tls_node.logins("tls"), tls_node.certificate)
    yield running
    running.close()


@dataclass
class Visitor:
    """Somebody before the broker: `folder` holds its certificate, `host` is what it calls the broker."""

    folder: Path
    user: str = "bank-a"
    host: str = "127.0.0.1"
    port: int = 0

    def enter(self, node: TlsNode) -> None:
        files, port = files_of(self.folder), self.port or node.node.record.amqp_port
        settings = ConnectionSettings(
            url=f"amqps://{self.host}:{port}/tls",
            user=self.user,
            ca_file=files.authority,
            certificate_file=files.certificate,
            key_file=files.key,
        )
        connect(settings, name="test").close()


def with_foreign_certificate(node: TlsNode, folder: Path) -> Visitor:
    foreign = Authority.create(folder / "foreign", name="foreign")
    write_issued(folder, foreign.issue("bank-a"), node.authority.certificate)
    return Visitor(folder)


def with_wrong_authority(node: TlsNode, folder: Path) -> Visitor:
    write_issued(folder, node.authority.issue("bank-a"), Authority.create(folder / "foreign", name="foreign").certificate)
    return Visitor(folder)


def with_expired_certificate(node: TlsNode, folder: Path) -> Visitor:
    write_issued(folder, expired(node.authority, "bank-a"), node.authority.certificate)
    return Visitor(folder)


def with_the_certificate_of_a_broker(node: TlsNode, folder: Path) -> Visitor:
    write_issued(folder, node.authority.issue_server(["bank-a"]), node.authority.certificate)
    return Visitor(folder)


def unknown_to_the_broker(node: TlsNode, folder: Path) -> Visitor:
    write_issued(folder, node.authority.issue("stranger"), node.authority.certificate)
    return Visitor(folder, user="stranger")


def by_another_name(node: TlsNode, _folder: Path) -> Visitor:
    return Visitor(node.certificate("bank-a"), host=socket.gethostname())


def to_a_port_without_tls(node: TlsNode, _folder: Path) -> Visitor:
    return Visitor(node.certificate("bank-a"), port=node.node.record.management_port)


REFUSED = {
    "foreign certificate": (with_foreign_certificate, TopologyError, "does not know the authority of our certificate"),
    "wrong authority": (with_wrong_authority, TopologyError, r"this broker is not of our federation.*take the kit's ca\.pem"),
    "expired": (with_expired_certificate, TopologyError, "our certificate has expired, .*ask the operator"),
    "a broker's certificate": (with_the_certificate_of_a_broker, TopologyError, "refused our certificate"),
    "stranger": (unknown_to_the_broker, TopologyError, "refused the user, its password or its certificate"),
    "another host name": (by_another_name, TopologyError, "other host names.*fedqueue ca server --host NAME"),
    "no TLS there": (to_a_port_without_tls, TopologyError, "no TLS is spoken at that port"),
}


@pytest.mark.rabbitmq
@pytest.mark.parametrize("case", REFUSED)
def test_who_does_not_get_in_is_told_why_and_what_to_do(server, tls_node, tmp_path, case):
    visitor, error, said = REFUSED[case]
    with pytest.raises(error, match=said):
        visitor(tls_node, tmp_path).enter(tls_node)


@pytest.mark.rabbitmq
def test_who_belongs_there_gets_in(server, tls_node):
    Visitor(tls_node.certificate("bank-a")).enter(tls_node)
    Visitor(tls_node.certificate("bank-a"), host="localhost").enter(tls_node)


@pytest.mark.rabbitmq
def test_a_client_without_tls_is_told_to_use_it(server, tls_node):
    plain = ConnectionSettings(url=f"amqp://127.0.0.1:{tls_node.node.record.amqp_port}/tls", user="bank-a", password="x")
    with pytest.raises(BrokerUnavailableError, match="it may want TLS"):
        connect(plain, name="test")


@pytest.mark.rabbitmq
def test_an_expired_certificate_is_warned_about_before_it_is_refused(server, tls_node, tmp_path):
    visitor = with_expired_certificate(tls_node, tmp_path)
    with capture_logs() as said, pytest.raises(TopologyError):
        visitor.enter(tls_node)
    assert [each["days_left"] for each in said if "has expired" in each["event"]] == [-11]


def parameters(server: RabbitmqServer, context: ssl.SSLContext, credentials: object) -> pika.ConnectionParameters:
    host, port, vhost = address(server.logins.amqp)
    return pika.ConnectionParameters(host, port, vhost, credentials, ssl_options=pika.SSLOptions(context, host))


@pytest.mark.rabbitmq
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_nobody_gets_in_without_a_certificate(server, tls_node, version):
    context = ssl.create_default_context(cafile=tls_node.folder / "ca" / "ca.pem")
    context.maximum_version = version
    with pytest.raises((ssl.SSLError, pika.exceptions.IncompatibleProtocolError)):
        pika.BlockingConnection(parameters(server, context, pika.credentials.ExternalCredentials()))


@pytest.mark.rabbitmq
def test_a_certificate_and_the_password_of_somebody_else_do_not_go_together(server, tls_node):
    context = files_of(tls_node.certificate("bank-a")).context("bank-a")
    stolen = pika.PlainCredentials("viewer", server.logins.users["viewer"])
    with pytest.raises(pika.exceptions.AuthenticationError):
        pika.BlockingConnection(parameters(server, context, stolen))


@pytest.mark.rabbitmq
def test_there_is_no_guest_and_no_login_without_a_password_at_the_management_api(server, tls_node):
    url = f"{tls_node.node.management_url}/api/overview"
    for user, word in [("guest", "guest"), ("bank-a", ""), ("aggregator", ""), ("admin", "admin")]:
        assert httpx.get(url, auth=(user, word), trust_env=False).status_code == 401
    known = httpx.get(f"{tls_node.node.management_url}/api/users", auth=("admin", server.logins.users["admin"]), trust_env=False)
    hashes = {each["name"]: each["password_hash"] for each in known.json()}
    assert hashes.keys() >= {"admin", "operator", "viewer", "aggregator", "bank-a"}
    assert "guest" not in hashes
    assert {name for name, word in hashes.items() if not word} >= {"aggregator", "bank-a"}


@pytest.mark.rabbitmq
def test_a_revoked_certificate_stays_out_when_its_owner_is_let_in_again(server, tls_node, tmp_path):
    server.declare("bank-r")
    old = tls_node.certificate("bank-r")
    Visitor(old, user="bank-r").enter(tls_node)
    tls_node.authority.revoke("bank-r")
    write_issued(tmp_path, tls_node.authority.issue("bank-r"), tls_node.authority.certificate)
    with pytest.raises(TopologyError, match="our certificate was revoked: ask the operator"):
        Visitor(old, user="bank-r").enter(tls_node)
    Visitor(tmp_path, user="bank-r").enter(tls_node)
    Visitor(tls_node.certificate("bank-a")).enter(tls_node)


@pytest.mark.rabbitmq
def test_refusals_stand_in_the_broker_s_log(server, tls_node, tmp_path, soon):
    for case in (unknown_to_the_broker, with_foreign_certificate):
        with pytest.raises(TopologyError):
            case(tls_node, tmp_path).enter(tls_node)
    with pytest.raises(TopologyError):
        server.connect("bank-a").publish(MODEL, Message(b"", "model", "m"))
    lines = [
        "EXTERNAL login refused: user 'stranger'",
        "Fatal - Unknown CA",
        "access to exchange 'fl.model.in' in vhost 'tls' refused",
    ]
    assert soon(lambda: all(line in tls_node.node.log_file.read_text() for line in lines))


# Large messages, on a link that stalls: what TLS has encrypted must go out as it is, what it has decrypted must be read.


def bodies(count: int, size: int) -> list[bytes]:
    source = random.Random(7)
    return [source.randbytes(size) for _ in range(count)]


def digests(chunks: list[bytes]) -> list[str]:
    return [hashlib.sha256(chunk).hexdigest() for chunk in chunks]


@pytest.mark.rabbitmq
@pytest.mark.parametrize("kind", ["rabbitmq", "tls"])
def test_what_a_stalled_link_does_not_take_is_counted_and_passes_whole_afterwards(request, kind):
    running: RabbitmqServer = request.getfixturevalue(f"{kind}_server")
    chunks = bodies(32, 1 << 20)
    port = address(running.logins.amqp)[1]
    with TcpProxy(port) as proxy:
        url = running.logins.amqp.replace(f":{port}/", f":{proxy.port}/")
        far = connect(running.logins.settings("aggregator").model_copy(update={"url": url}), name="far")
        link = far._link
        channel = link.channel()
        proxy.stall()
        for chunk in chunks:
            channel.basic_publish("fl.model.in", "", chunk)
        assert link.unsent_bytes > 16 << 20
        proxy.resume()
        while link.unsent_bytes:
            link.turn(1)
        read = [each.message.body for each in far.read(MODEL, "first", count=len(chunks), idle_seconds=20)]
        far.close()
    assert digests(read) == digests(chunks)


@pytest.mark.rabbitmq
def test_a_burst_is_read_whole_when_nothing_follows_it(tls_server):
    chunks = bodies(40, 300_000)
    aggregator, bank = tls_server.connect("aggregator"), tls_server.connect("bank-a")
    aggregator.publish_all(MODEL, (Message(chunk, "model", f"c{number}") for number, chunk in enumerate(chunks)))
    bank.consume(MODEL, prefetch=40, start="first")
    received = [bank.receive(20) for _ in chunks]
    assert digests([each.message.body for each in received if each is not None]) == digests(chunks)
