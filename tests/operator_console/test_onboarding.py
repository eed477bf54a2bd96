"""An institution's way through a federation with TLS, sealed: request, kit, first update, renewal, removal, return."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from broker_config.connection import connect
from broker_config.logins import load, save
from broker_config.provision import administration
from broker_config.streams import records_of
from operator_console.cli import app
from operator_console.demo_data import prepare
from operator_console.federation_folder import FederationFolder
from operator_console.init_command import init
from operator_console.institution_commands import rows
from operator_console.operation_commands import order_desk
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
    shutil.copytree(tls_node.folder / "ca", folder / "ca")
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
            renewed_while_it_runs(founded, bank, eye)
            taken_out_while_it_is_connected(founded, worker, eye)
        finally:
            worker.kill()
            worker.wait()
        log_text = (tmp_path / "client.log").read_text()
        for secret in ("PRIVATE", (founded / "run.secret").read_text().strip()):
            assert secret not in log_text
        returned_with_other_keys(founded, bank, tmp_path / "a new folder", request, training_file)


def renewed_while_it_runs(folder: Path, bank: Path, eye: Observer) -> None:
    """The worker goes on with the other certificate, with every update settled once."""
    before, had = eventually(eye.certificates), eye.aggregated()
    assert fedqueue("kit", "request", "budapest", "--dir", bank).exit_code == 0
    renewed = fedqueue("institution", "renew", "budapest", "--yes", "--request", bank / "budapest.request", "--dir", folder)
    assert renewed.exit_code == 0, renewed.output
    unpack(folder / "kits/budapest.renewal.tar.gz", bank, "-xzf")
    assert (bank / "client.toml").read_text().count("num_examples = 240") == 1
    eye.hang_up()
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
    assert checked(new).returncode == 0
    stale = checked(old)
    assert stale.returncode in (1, 3), stale.stdout
    assert listed(folder)["budapest"][5] == "2"
