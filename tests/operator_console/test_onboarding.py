"""An institution's way through a federation with TLS, sealed: request, kit, first update, renewal, removal, return."""

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from broker_config.authority import Authority
from broker_config.connection import connect
from broker_config.keyring import load_identity, load_trust, save_identity, save_trust
from broker_config.logins import load, save
from broker_config.provision import administration
from broker_config.service import read_settings
from broker_config.streams import records_of
from client_worker.check import require_broker
from client_worker.cli import member
from client_worker.local_data import open_data
from client_worker.settings import ClientSettings
from operator_console.cli import app
from operator_console.demo_data import prepare
from operator_console.federation_folder import FederationFolder
from operator_console.init_command import init
from operator_console.institution_commands import add, list_institutions, remove, renew, rows
from operator_console.kit_commands import make_request
from operator_console.operation_commands import NoAnswerError, OrderDesk, order_desk
from operator_console.status import status
from shared.broker import Message
from shared.errors import BrokerUnavailableError, FederationError, SettingsError, TopologyError
from shared.keys import Identity, Trust
from shared.messages import pseudonym
from tests.conftest import eventually
from tests.leading import leading
from tests.tls import TlsNode

pytestmark = pytest.mark.rabbitmq
SLOWLY = {"OMP_NUM_THREADS": "1", "FEDQUEUE_AT_LEAST_SECONDS": "0.3"}


@pytest.fixture
def tls_folder(tls_node: TlsNode, tmp_path: Path) -> Iterator[Path]:
    """What `fedqueue broker up --tls` leaves, for a virtual host of its own: logins, the authority, the administrator's key."""
    folder, logins = tmp_path / "federation", tls_node.logins(f"own-{secrets.token_hex(4)}")
    save(logins, folder)
    (folder / "ca").symlink_to(tls_node.folder / "ca")  # the list of revoked certificates that the node looks at is there
    shutil.copytree(tls_node.folder / "tls" / "admin", folder / "tls" / "admin")
    yield folder
    with administration(logins) as management:
        management.delete_vhost()
        for institution in load(folder).institutions:
            management.delete_user(institution)


@pytest.fixture
def founded(tls_folder: Path) -> Path:
    init(task="heart-disease", institution=["zurich-basel"], folder=tls_folder, sealed=True, updates=400)
    return tls_folder


def fedqueue(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def unpack(kit: Path, place: Path, options: str = "-xzkf") -> None:
    place.mkdir(exist_ok=True)
    subprocess.run(["tar", options, str(kit), "-C", str(place)], check=True, capture_output=True)


def point_at_data(place: Path, training_file: Path) -> None:
    """What the bank's engineer writes into client.toml."""
    file = place / "client.toml"
    text = file.read_text().replace('"training.csv"', json.dumps(str(training_file)))
    file.write_text(text.replace("# num_examples = 1000", "num_examples = 240"))


@contextmanager
def budapest_rows() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as scratch:
        found = {each.id: each for each in prepare("heart-disease", institutions=None, seed=0, folder=Path(scratch))}
        yield found["budapest"].training_file


def client(place: Path, *options: str) -> list[str]:
    return [str(Path(sys.executable).with_name("fedqueue-client")), "--config", str(place / "client.toml"), *options]


def checked(place: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(client(place, "--check"), capture_output=True, text=True, check=False, timeout=60)


class Observer:
    """What the lineage says of one institution, and what the broker says of its connection."""

    def __init__(self, folder: Path, institution: str) -> None:
        self.folder, self.institution = folder, institution
        self.alias = pseudonym(FederationFolder(folder).run_secret(), institution)

    def outcomes(self) -> list[tuple[int, str]]:
        broker = connect(load(self.folder).settings("operator"), name="test/operator")
        try:
            settled = [each for record in records_of(broker) for each in record.manifest.settled]
        finally:
            broker.close()
        return [(each.sequence, each.outcome) for each in settled if each.institution == self.alias]

    def aggregated(self) -> int:
        with order_desk(FederationFolder(self.folder)) as desk:
            return desk.table[self.alias].counters.aggregated

    def certificates(self) -> set[str]:
        with administration(load(self.folder)) as management:
            return {str(each["peer_cert_validity"]) for each in management.connections(self.institution)}

    def hang_up(self) -> None:
        with administration(load(self.folder)) as management:
            management.close_connections(self.institution)


def listed(folder: Path) -> dict[str, tuple[str, ...]]:
    federation = FederationFolder(folder)
    with order_desk(federation) as desk:
        return {row[0]: row for row in rows(federation, desk)}


@pytest.mark.long
@pytest.mark.both
@pytest.mark.timeout(240)
def test_from_a_request_to_an_update_a_renewal_a_removal_and_a_return(founded: Path, tmp_path: Path) -> None:
    bank, eye = tmp_path / "the bank's own folder", Observer(founded, "budapest")
    asked = fedqueue("kit", "request", "budapest", "--dir", bank)
    request = ["--request", bank / "budapest.request", "--dir", founded]
    with leading(founded), budapest_rows() as training_file:
        added = fedqueue("institution", "add", "budapest", "--yes", *request)
        assert "budapest is a member, incarnation 1" in added.output, added.output
        fingerprint = added.output.splitlines()[0].removeprefix("fingerprint of the request: ")
        assert fingerprint in " ".join(asked.output.split())
        assert not list((founded / "institutions/budapest").rglob("*key.pem"))
        assert not list((founded / "institutions/budapest/keys").glob("*.pem"))
        unpack(founded / "kits/budapest.tar.gz", bank)
        point_at_data(bank, training_file)
        found = checked(bank)
        assert (found.returncode, found.stdout.split(",")[0][:18]) == (0, "ok: budapest in ru"), found.stderr

        with (tmp_path / "client.log").open("wb") as log:
            worker = subprocess.Popen(client(bank), stdout=log, stderr=log, env=os.environ | SLOWLY)
        try:
            assert eventually(lambda: eye.aggregated() >= 2, 60), (tmp_path / "client.log").read_text()[-2000:]
            renewed_while_it_runs(founded, bank, eye, tmp_path / "client.log")
            taken_out_while_it_is_connected(founded, worker, eye)
        finally:
            worker.kill()
            worker.wait()
        log_text = (tmp_path / "client.log").read_text()
        for secret in ("PRIVATE", (founded / "run.secret").read_text().strip()):
            assert secret not in log_text
        returned_with_other_keys(founded, bank, tmp_path / "a new folder", request, training_file)


def renewed_while_it_runs(folder: Path, bank: Path, eye: Observer, log: Path) -> None:
    """The worker waits while its files cannot be used, and goes on with the other certificate, every update settled once."""
    before, had = eventually(eye.certificates), eye.aggregated()
    assert fedqueue("kit", "request", "budapest", "--dir", bank).exit_code == 0
    renewed = fedqueue("institution", "renew", "budapest", "--yes", "--request", bank / "budapest.request", "--dir", folder)
    assert renewed.exit_code == 0, renewed.output
    (bank / "key.pem").chmod(0o644)
    eye.hang_up()
    assert eventually(lambda: "cannot connect again: the key" in log.read_text(), 40)
    unpack(folder / "kits/budapest.renewal.tar.gz", bank, "-xzf")
    (bank / "key.pem").chmod(0o600)
    assert (bank / "client.toml").read_text().count("num_examples = 240") == 1
    assert eventually(lambda: eye.certificates() - before, 40)
    assert eventually(lambda: eye.aggregated() >= had + 2, 60)
    outcomes = eye.outcomes()
    assert [number for number, _ in outcomes] == list(range(1, len(outcomes) + 1))
    assert {outcome for _, outcome in outcomes} == {"aggregated"}


def taken_out_while_it_is_connected(folder: Path, worker: "subprocess.Popen[bytes]", eye: Observer) -> None:
    """The broker hangs up, takes the login no more, and the lineage keeps what was."""
    had = eye.aggregated()
    removed = fedqueue("institution", "remove", "budapest", "--dir", folder)
    assert "budapest is removed" in removed.output, removed.output
    assert worker.wait(60) == 3
    assert eye.certificates() == set()
    assert eye.aggregated() >= had
    assert listed(folder)["budapest"][2] == "removed"
    assert not (folder / "kits/budapest.tar.gz").exists()
    assert not (folder / "kits/budapest.renewal.tar.gz").exists()


def returned_with_other_keys(folder: Path, old: Path, new: Path, request: list[str | Path], training_file: Path) -> None:
    """The keys that were removed come back neither by their request nor by their kit."""
    refused = fedqueue("institution", "add", "budapest", "--yes", *request)
    assert "the request has the keys of incarnation 1, which was removed" in str(refused.exception)
    assert fedqueue("kit", "request", "budapest", "--dir", new).exit_code == 0
    again = fedqueue("institution", "add", "budapest", "--yes", "--request", new / "budapest.request", "--dir", folder)
    assert "budapest is a member, incarnation 2" in again.output, again.output
    unpack(folder / "kits/budapest.tar.gz", new)
    point_at_data(new, training_file)
    connect(read_settings(ClientSettings, new / "client.toml").broker, name="test/new").close()
    with pytest.raises(TopologyError, match="our certificate was revoked"):
        connect(read_settings(ClientSettings, old / "client.toml").broker, name="test/old")
    assert listed(folder)["budapest"][5] == "2"


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a federation's folder but the checkpoint that its aggregator keeps writing."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.parent != folder / "aggregator")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["add", "zurich-basel"], "zurich-basel is a member already; after a lost disk"),
        (["add", "a b"], "'a b' cannot be an institution's id"),
        (["add", "../ca"], "'../ca' cannot be an institution's id"),
        (["add", "operator"], "the broker has another login of that name"),
        (["add", "other", "--request", "REQUEST", "--yes"], "the request was made for budapest, not for other"),
        (["add", "budapest", "--request", "ALTERED", "--yes"], "was altered, or was made without its private keys"),
        (["add", "budapest", "--request", "REQUEST"], "nothing was changed; ask budapest for its request again"),
        (["renew", "budapest"], "budapest is not a member"),
        (["renew", "zurich-basel", "--request", "REQUEST", "--yes"], "the request was made for budapest, not for zurich-basel"),
        (["renew", "zurich-basel", "--request", "OTHER KEYS", "--yes"], "other message keys than zurich-basel, and a renewal"),
        (["remove", "budapest"], "budapest is not a member"),
    ],
    ids=lambda value: "-".join(value).lower().replace(" ", "-") if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_refused_in_words_and_changes_nothing(
    founded: Path, tmp_path: Path, words: list[str], sentence: str
) -> None:
    requests = {"REQUEST": tmp_path / "REQUEST", "ALTERED": tmp_path / "ALTERED", "OTHER KEYS": tmp_path / "OTHER KEYS"}
    requests["REQUEST"].write_text(make_request(tmp_path / "budapest", "budapest").text())
    requests["ALTERED"].write_text(requests["REQUEST"].read_text().replace('"budapest"', '"bucharest"'))
    requests["OTHER KEYS"].write_text(make_request(tmp_path / "zurich", "zurich-basel").text())
    before = files(founded)
    with pytest.raises(FederationError, match=re.escape(sentence)):
        CliRunner().invoke(
            app,
            ["institution", *(str(requests.get(word, word)) for word in words), "--dir", str(founded)],
            input="n\n",
            catch_exceptions=False,
        )
    assert files(founded) == before


def test_without_a_broker_nothing_is_admitted_and_the_place_is_named(founded: Path) -> None:
    whole = load(founded)
    save(whole.model_copy(update={"amqp": "amqps://127.0.0.1:1/nowhere"}), founded)
    before = files(founded)
    with pytest.raises(BrokerUnavailableError, match=r"connect to 127\.0\.0\.1:1 as operator"):
        add("budapest", folder=founded)
    assert files(founded) == before
    save(whole, founded)


def test_without_an_aggregator_an_order_waits_and_a_removed_institution_is_out_all_the_same(
    founded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OrderDesk.give.__kwdefaults__, "timeout_seconds", 0.2)
    with pytest.raises(NoAnswerError, match="no aggregator answered the order to admit"):
        add("budapest", folder=founded)
    waiting = believed(founded).institutions["budapest"]
    zurich = connect(load(founded).settings("zurich-basel"), name="test/zurich-basel")
    with pytest.raises(NoAnswerError, match="zurich-basel cannot connect any more, and the rest waits: no aggregator answered"):
        remove("zurich-basel", folder=founded)
    with pytest.raises(FederationError):
        zurich.publish("fl.upd.zurich-basel", Message(b"too late", "update", "1"))
    zurich.close()
    with pytest.raises(TopologyError):
        connect(load(founded).settings("zurich-basel"), name="test/zurich-basel")
    assert not (founded / "kits/zurich-basel.tar.gz").exists()
    assert "zurich-basel" not in believed(founded).institutions
    with leading(founded):
        assert eventually(lambda: listed(founded)["budapest"][2] == "never connected")
        remove("zurich-basel", folder=founded)
    assert listed(founded)["zurich-basel"][2] == "removed"
    assert believed(founded).institutions["budapest"] == waiting
    with order_desk(FederationFolder(founded)) as desk:
        assert desk.table[Observer(founded, "budapest").alias].signing_key == waiting.signing


def believed(folder: Path) -> Trust:
    return load_trust(folder / "keys/operator")


def test_a_renewal_holds_only_what_changed_and_belongs_to_the_key_that_waits(founded: Path, tmp_path: Path) -> None:
    bank, request = tmp_path / "bank", tmp_path / "request"
    unpack(founded / "kits/zurich-basel.tar.gz", bank)
    old = (bank / "key.pem").read_bytes()
    request.write_text(make_request(bank, "zurich-basel", new_key=True).text())
    renew("zurich-basel", request=request, yes=True, folder=founded)
    unpack(founded / "kits/zurich-basel.renewal.tar.gz", bank / "renewal")
    assert sorted(each.name for each in (bank / "renewal").iterdir()) == ["ca.pem", "certificate.pem", "key.pem"]
    for name in ("certificate.pem", "key.pem"):
        (bank / "renewal" / name).replace(bank / name)
    assert (bank / "key.pem").read_bytes() != old
    connect(read_settings(ClientSettings, with_data(bank)).broker, name="test/zurich-basel").close()
    with pytest.raises(SettingsError, match="the key of zurich-basel was made there: ask for a request"):
        renew("zurich-basel", folder=founded)


def with_data(place: Path) -> Path:
    point_at_data(place, place / "training.csv")
    return place / "client.toml"


def test_the_list_and_the_status_tell_when_certificates_end(founded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    authority = Authority.open(founded / "ca")
    authority.issue("nearly-over", days=3)
    capsys.readouterr()
    list_institutions(folder=founded, as_json=True)
    told = json.loads(capsys.readouterr().out)
    (zurich,) = told["institutions"]
    until = {each.user: f"{each.not_after:%Y-%m-%d}" for each in authority.issued()}
    assert zurich["valid until"] == until["zurich-basel"]
    assert told["warnings"] == [
        f"the certificate of nearly-over ends in 2 days ({until['nearly-over']}): `fedqueue institution renew nearly-over`"
    ]
    status(folder=founded, as_json=True)
    object_ = json.loads(capsys.readouterr().out)
    assert object_["warnings"] == told["warnings"]
    assert {"aggregator", "operator", "zurich-basel"} <= object_["certificates"].keys()
    status(folder=founded)
    assert "! the certificate of nearly-over ends in 2 days" in capsys.readouterr().out


def found_by(place: Path, now: datetime | None = None) -> str:
    """What `--check` says of the broker."""
    settings = read_settings(ClientSettings, place / "client.toml")
    return require_broker(settings.broker, member(settings), open_data(settings), now or datetime.now(UTC))


def test_the_check_tells_keys_that_are_not_the_admitted_ones_a_strange_lineage_and_a_clock_behind(
    founded: Path, tmp_path: Path
) -> None:
    bank = tmp_path / "bank"
    unpack(founded / "kits/zurich-basel.tar.gz", bank)
    with budapest_rows() as training_file:
        (bank / "training.csv").write_bytes(training_file.read_bytes())
    point_at_data(bank, bank / "training.csv")
    assert found_by(bank).startswith("ok: zurich-basel in run ")
    assert "warning" not in found_by(bank)
    earlier = datetime.now(UTC) - timedelta(hours=1)
    assert re.search(r"warning: this machine's clock is 3[56]\d\d s behind the aggregator's", found_by(bank, earlier))
    keys = load_identity(bank / "keys")
    save_identity(Identity.create(), bank / "keys")
    with pytest.raises(SettingsError, match="the operator has admitted other message keys than those in"):
        found_by(bank)
    save_identity(keys, bank / "keys")
    strangers = {"operator": Identity.create().public, "aggregators": {"aggregator": Identity.create().public}}
    save_trust(Trust(**strangers, sealed=True), bank / "keys")
    with pytest.raises(TopologyError, match=r"was written by nobody whom keys/trust\.json names"):
        found_by(bank)


def test_the_aggregators_certificate_is_renewed_where_it_lies(founded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (founded / "aggregator/certificate.pem").read_bytes()
    renew("aggregator", folder=founded)
    assert (founded / "aggregator/certificate.pem").read_bytes() != before
    assert f"another certificate of aggregator is in {founded / 'aggregator'}" in capsys.readouterr().out
    with leading(founded):
        pass
