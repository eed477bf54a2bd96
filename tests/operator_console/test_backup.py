"""Backup and restore: what an archive holds and what is refused; and federations that come back on a real broker."""

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from operator_console import backup_encryption
from operator_console.backup_encryption import BLOCK_BYTES, MAGIC, SealedReader, SealedWriter
from operator_console.cli import app
from shared.errors import FederationError, SettingsError

FACTS = {"run_id": "ab" * 8, "task": "t", "title": "T", "institutions": [{"id": "bank-a", "title": "A"}]}
LOGINS = {"amqp": "amqp://127.0.0.1:1/f", "management": "http://127.0.0.1:2", "vhost": "f", "users": {"admin": "secret"}}
FILES = {
    "broker.json": json.dumps(LOGINS),
    "federation.json": json.dumps(FACTS),
    "run.secret": "cd" * 32,
    "task.toml": "",
    "members.txt": "bank-a\n",
    "aggregator.toml": 'state_folder = "aggregator"\nheld_out_file = "rows.csv"\n',
    "ca/ca.pem": "certificate",
    "ca/ca.key": "the authority's key",
    "tls/operator/key.pem": "key",
    "keys/operator/signing.pem": "signing",
    "aggregator/password": "word",
    "aggregator/admitted.txt": "bank-b\n",
    "rows.csv": "a,b\n1,2\n",
    "console/users.json": "users",
    "console/audit.jsonl": "lines",
}
ELSEWHERE = {
    "institutions/bank-a/password": "the bank's",
    "kits/bank-a.tar.gz": "kit",
    "broker/n1/rabbitmq.conf": "x",
    "aggregator/checkpoint.safetensors.new": "half",
}


@pytest.fixture
def federation(tmp_path) -> Path:
    """A folder with one of everything; no broker is asked for."""
    folder = tmp_path / "federation"
    for name, text in {**FILES, **ELSEWHERE}.items():
        folder.joinpath(name).parent.mkdir(parents=True, exist_ok=True)
        folder.joinpath(name).write_text(text)
        folder.joinpath(name).chmod(0o600)
    return folder


def run(*words: object) -> str:
    """What the command says. Raises what it raises."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def files_of(folder: Path) -> dict[str, str]:
    return {each.relative_to(folder).as_posix(): each.read_text() for each in folder.rglob("*") if each.is_file()}


@pytest.fixture
def archive(federation, tmp_path) -> Path:
    run("backup", tmp_path / "kept.tar.gz", "--dir", federation)
    return tmp_path / "kept.tar.gz"


def test_what_is_kept_comes_back_and_institutions_and_the_brokers_files_are_left_out(federation, tmp_path):
    said = run("backup", tmp_path / "kept", "--dir", federation)
    assert "left out: broker/, institutions/, kits/" in said
    assert f"{hashlib.sha256(b'bank-a' + bytes([10])).hexdigest()}             7  members.txt" in said
    assert hashlib.sha256(tmp_path.joinpath("kept").read_bytes()).hexdigest() in said
    shutil.rmtree(federation)
    run("restore", tmp_path / "kept", "--dir", federation)
    assert files_of(federation) == FILES
    assert {each.stat().st_mode & 0o077 for each in [federation, *federation.rglob("*")]} == {0}


def test_an_archive_is_readable_by_its_owner_only_and_overwrites_nothing(federation, archive, tmp_path):
    before = archive.read_bytes()
    assert archive.stat().st_mode & 0o777 == 0o600
    with pytest.raises(SettingsError, match="exists already"):
        run("backup", archive, "--dir", federation)
    assert archive.read_bytes() == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["federation", "kept.tar.gz"]


def test_a_folder_in_use_is_refused_and_not_touched(federation, archive):
    with pytest.raises(SettingsError, match="not empty"):
        run("restore", archive, "--dir", federation)
    assert files_of(federation) == FILES | ELSEWHERE


def test_a_folder_without_a_federation_has_no_backup(tmp_path):
    with pytest.raises(SettingsError, match=r"federation\.json"):
        run("backup", tmp_path / "kept", "--dir", tmp_path / "nowhere")
    assert not (tmp_path / "kept").exists()


def altered(archive: Path, change) -> None:
    """The archive with other members: `change` gets and gives a list of (member, content)."""
    with tarfile.open(archive) as opened:
        members = [(each, opened.extractfile(each).read()) for each in opened]
    with tarfile.open(archive, "w:gz") as out:
        for member, content in change(members):
            member.size = len(content) if member.isreg() else 0
            out.addfile(member, io.BytesIO(content))


def with_content(name, content):
    return lambda members: [(each, content if each.name == name else before) for each, before in members]


def with_member(member, content=b"x"):
    return lambda members: [(member, content), *members]


def a_link(name, kind=tarfile.SYMTYPE, target="/etc/passwd"):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


ALTERED = {
    "another secret": with_content("run.secret", b"ee" * 32),
    "a file left out": lambda members: [each for each in members if each[0].name != "ca/ca.key"],
    "a file added": with_member(tarfile.TarInfo("aggregator/more")),
    "a file twice": lambda members: [members[0], *members],
    "a file above the folder": with_member(tarfile.TarInfo("../escaped")),
    "a file from the root": with_member(tarfile.TarInfo("/tmp/escaped")),
    "a file by a detour": with_member(tarfile.TarInfo("ca/../../escaped")),
    "a symbolic link": with_member(a_link("ca")),
    "a hard link": with_member(a_link("run.secret", tarfile.LNKTYPE, "broker.json")),
    "a device": with_member(a_link("aggregator/null", tarfile.CHRTYPE)),
    "no list": lambda members: members[:-1],
    "a list that is none": with_content("backup.json", b"[]"),
    "a list of another version": with_content("backup.json", b'{"schema": 2, "run_id": "x", "files": {}}'),
}


@pytest.mark.parametrize("how", ALTERED)
def test_an_altered_archive_is_refused_and_leaves_nothing(archive, tmp_path, how):
    altered(archive, ALTERED[how])
    with pytest.raises(SettingsError, match="not a backup as it was written"):
        run("restore", archive, "--dir", tmp_path / "back")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["federation", "kept.tar.gz"]


@pytest.mark.parametrize("end", [0, 1, 10, 500, -100])
def test_an_archive_that_was_cut_off_is_refused(archive, tmp_path, end):
    archive.write_bytes(archive.read_bytes()[:end])
    with pytest.raises(FederationError):
        run("restore", archive, "--dir", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_the_hash_that_was_noted_tells_an_archive_that_somebody_made_anew(federation, archive, tmp_path):
    noted = hashlib.sha256(archive.read_bytes()).hexdigest()
    run("restore", archive, "--dir", tmp_path / "back", "--sha256", noted)
    federation.joinpath("run.secret").write_text("ee" * 32)
    archive.unlink()
    run("backup", archive, "--dir", federation)
    with pytest.raises(SettingsError, match="another SHA-256"):
        run("restore", archive, "--dir", tmp_path / "other", "--sha256", noted)


@pytest.fixture
def passphrase(tmp_path) -> Path:
    file = tmp_path / "passphrase"
    file.write_text("correct horse battery staple\n")
    file.chmod(0o600)
    return file


def test_under_a_passphrase_nothing_is_legible_and_only_that_passphrase_opens_it(federation, tmp_path, passphrase):
    run("backup", tmp_path / "kept", "--dir", federation, "--passphrase-file", passphrase)
    sealed = tmp_path.joinpath("kept").read_bytes()
    assert sealed.startswith(MAGIC)
    with pytest.raises(gzip.BadGzipFile):
        gzip.decompress(sealed[len(MAGIC) + 16 :])
    with pytest.raises(SettingsError, match="--passphrase-file"):
        run("restore", tmp_path / "kept", "--dir", tmp_path / "back")
    run("restore", tmp_path / "kept", "--dir", tmp_path / "back", "--passphrase-file", passphrase)
    assert files_of(tmp_path / "back") == FILES
    passphrase.write_text("another")
    with pytest.raises(SettingsError, match="passphrase"):
        run("restore", tmp_path / "kept", "--dir", tmp_path / "again", "--passphrase-file", passphrase)


def test_a_passphrase_that_others_can_read_or_that_is_empty_is_refused(federation, tmp_path, passphrase):
    passphrase.chmod(0o640)
    with pytest.raises(SettingsError, match=f"chmod 600 {passphrase}"):
        run("backup", tmp_path / "kept", "--dir", federation, "--passphrase-file", passphrase)
    passphrase.chmod(0o600)
    passphrase.write_text("\n")
    with pytest.raises(SettingsError, match="empty"):
        run("backup", tmp_path / "kept", "--dir", federation, "--passphrase-file", passphrase)


@pytest.fixture
def quick(monkeypatch):
    """A guess of a passphrase that costs next to nothing: what is tried here are the blocks."""
    monkeypatch.setattr(backup_encryption, "_SCRYPT_N", 2**4)


def sealed_bytes(text: bytes) -> bytes:
    out = io.BytesIO()
    writer = SealedWriter(out, b"words")
    writer.write(text)
    writer.close()
    return out.getvalue()


def opened_bytes(sealed: bytes) -> bytes:
    reader, parts = SealedReader(io.BytesIO(sealed), b"words"), []
    while part := reader.read(10_000):
        parts.append(part)
    return b"".join(parts)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES])
def test_sealed_text_of_any_length_comes_back(size):
    text = os.urandom(size)
    assert opened_bytes(sealed_bytes(text)) == text


HEAD = len(MAGIC) + 16
SEALED_BLOCK = BLOCK_BYTES + 16
BROKEN = {
    "the last block left out": lambda sealed: sealed[: HEAD + 2 * SEALED_BLOCK],
    "a block left out": lambda sealed: sealed[:HEAD] + sealed[HEAD + SEALED_BLOCK :],
    "two blocks changed about": lambda sealed: (
        sealed[:HEAD]
        + sealed[HEAD + SEALED_BLOCK :][:SEALED_BLOCK]
        + sealed[HEAD:][:SEALED_BLOCK]
        + sealed[HEAD + 2 * SEALED_BLOCK :]
    ),
    "one bit": lambda sealed: sealed[:-40] + bytes([sealed[-40] ^ 1]) + sealed[-39:],
    "another salt": lambda sealed: sealed[: HEAD - 1] + bytes([sealed[HEAD - 1] ^ 1]) + sealed[HEAD:],
    "something added": lambda sealed: sealed + b"x",
}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("how", BROKEN)
def test_sealed_blocks_cannot_be_moved_left_out_added_or_altered(how):
    sealed = sealed_bytes(os.urandom(2 * BLOCK_BYTES + 1000))
    with pytest.raises(SettingsError, match="altered"):
        opened_bytes(BROKEN[how](sealed))
