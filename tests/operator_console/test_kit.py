"""The kit and the request: what an archive holds, and what no request gets past."""

import base64
import io
import json
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from typer.testing import CliRunner

from broker_config.keyring import load_identity
from operator_console.cli import app
from operator_console.kit import packed, sha256, write_kit
from operator_console.kit_commands import make_request
from operator_console.kit_request import KitRequest
from shared.errors import SettingsError
from shared.keys import Identity

CONTENTS = {"client.toml": b"a = 1\n", "keys/signing.pem": b"secret", "keys/trust.json": b"{}", "key.pem": b"secret"}


def modes(folder: Path) -> dict[str, str]:
    return {str(each.relative_to(folder)): oct(stat.S_IMODE(each.stat().st_mode)) for each in folder.rglob("*")}


def test_equal_contents_are_packed_into_equal_bytes_whatever_their_order() -> None:
    assert packed(CONTENTS) == packed(dict(reversed(CONTENTS.items())))


def test_an_archive_names_no_owner_no_time_of_packing_and_nothing_outside_its_folder() -> None:
    assert packed(CONTENTS)[4:8] == bytes(4)  # when it was compressed, RFC 1952
    with tarfile.open(fileobj=io.BytesIO(packed(CONTENTS))) as archive:
        members = archive.getmembers()
    assert [each.name for each in members] == ["keys", "client.toml", "key.pem", "keys/signing.pem", "keys/trust.json"]
    assert {(each.uid, each.gid, each.uname, each.gname, each.mtime) for each in members} == {(0, 0, "", "", 946_684_800)}
    assert all(each.isreg() or each.isdir() for each in members)


def test_what_is_secret_is_unpacked_for_its_owner_only_and_a_second_time_nothing_is_overwritten(tmp_path: Path) -> None:
    source, place = tmp_path / "source", tmp_path / "the bank's own folder"
    for name, content in CONTENTS.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    (source / "training.csv").write_text("rows that must stay")
    write_kit(tmp_path / "bank-a.tar.gz", source)
    place.mkdir()
    unpack = ["tar", "-xzkf", str(tmp_path / "bank-a.tar.gz"), "-C", str(place)]
    first = subprocess.run(unpack, capture_output=True, text=True, check=False)
    assert (first.returncode, first.stderr) == (0, "")
    assert modes(place) == {
        "client.toml": "0o644",
        "key.pem": "0o600",
        "keys": "0o700",
        "keys/signing.pem": "0o600",
        "keys/trust.json": "0o644",
    }
    (place / "client.toml").write_text("a = 2\n")
    assert subprocess.run(unpack, capture_output=True, check=False).returncode != 0
    assert (place / "client.toml").read_text() == "a = 2\n"
    assert stat.S_IMODE((tmp_path / "bank-a.tar.gz").stat().st_mode) == 0o600
    told = subprocess.run(["sha256sum", str(tmp_path / "bank-a.tar.gz")], capture_output=True, text=True, check=True)
    assert told.stdout.split()[0] == sha256(tmp_path / "bank-a.tar.gz")


def test_a_request_holds_no_secret_and_says_the_same_fingerprint_on_both_sides(tmp_path: Path) -> None:
    place = tmp_path / "a bank"
    said = CliRunner().invoke(app, ["kit", "request", "bank-a", "--dir", str(place)])
    assert said.exit_code == 0, said.output
    request = KitRequest.load(place / "bank-a.request")
    assert request.fingerprint in " ".join(said.output.split())
    assert "PRIVATE" not in (place / "bank-a.request").read_text()
    assert request.keys == load_identity(place / "keys").public
    assert {name: mode for name, mode in modes(place).items() if name.endswith(".pem")} == {
        "key.pem": "0o600",
        "keys/signing.pem": "0o600",
        "keys/sealing.pem": "0o600",
    }


def test_a_second_request_is_for_the_keys_that_are_there_and_another_tls_key_waits_beside(tmp_path: Path) -> None:
    first, key = make_request(tmp_path, "bank-a"), (tmp_path / "key.pem").read_bytes()
    again = make_request(tmp_path, "bank-a")
    other = make_request(tmp_path, "bank-a", new_key=True)
    assert first.keys == again.keys == other.keys
    assert (tmp_path / "key.pem").read_bytes() == key
    assert (tmp_path / "renewal/key.pem").read_bytes() != key
    with pytest.raises(SettingsError, match="nothing to renew: leave --new-key out"):
        make_request(tmp_path / "empty", "bank-a", new_key=True)


def altered(request: KitRequest, change: str) -> dict[str, object]:
    document = json.loads(request.text())
    match change:
        case "its id":
            document["institution"] = "bank-b"
        case "its message keys":
            document["keys"] = json.loads(Identity.create().public.model_dump_json())
        case "its certificate request":
            key, identity = ec.generate_private_key(ec.SECP256R1()), Identity.create()
            document["certificate_request"] = KitRequest.make("bank-a", key, identity).certificate_request
        case "its signature":
            document["signature"] = KitRequest.make(
                "bank-a", ec.generate_private_key(ec.SECP256R1()), Identity.create()
            ).signature
        case "one more key":
            document["more"] = 1
        case "a broken certificate request":
            document["certificate_request"] = document["certificate_request"].replace("M", "N")
    return document


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("its id", "was altered, or was made without its private keys"),
        ("its message keys", "was altered, or was made without its private keys"),
        ("its certificate request", "was altered, or was made without its private keys"),
        ("its signature", "was altered, or was made without its private keys"),
        ("a broken certificate request", "was altered, or was made without its private keys"),
        ("one more key", "is not a request that `fedqueue kit request` wrote"),
    ],
)
def test_an_altered_request_is_refused(tmp_path: Path, change: str, sentence: str) -> None:
    file = tmp_path / "bank-a.request"
    file.write_text(json.dumps(altered(make_request(tmp_path / "bank", "bank-a"), change)))
    with pytest.raises(SettingsError, match=sentence):
        KitRequest.load(file)


def signed_again(folder: Path, request: KitRequest) -> str:
    """The request's file with a signature by the keys in a folder, whatever it asks for."""
    keys = request.keys
    stated = ["fedqueue 1 kit request", request.institution, request.certificate_request, keys.signing, keys.sealing]
    signed = load_identity(folder / "keys").signing.sign(json.dumps(stated).encode())
    return request.model_copy(update={"signature": base64.b64encode(signed).decode()}).text()


def test_a_request_is_for_the_one_that_both_of_its_parts_name(tmp_path: Path) -> None:
    honest, file = make_request(tmp_path / "bank", "bank-a"), tmp_path / "request"
    honest.demand("bank-a")
    with pytest.raises(SettingsError, match="was made for bank-a, not for bank-b"):
        honest.demand("bank-b")
    file.write_text(signed_again(tmp_path / "bank", honest.model_copy(update={"institution": "bank-b"})))
    for name in ("bank-a", "bank-b"):
        with pytest.raises(SettingsError, match="the request was made for"):
            KitRequest.load(file).demand(name)


def test_a_request_for_a_tls_key_that_its_author_does_not_hold_is_refused(tmp_path: Path) -> None:
    request, file = make_request(tmp_path / "bank", "bank-a"), tmp_path / "request"
    signed = bytearray(x509.load_pem_x509_csr(request.certificate_request.encode()).public_bytes(Encoding.DER))
    signed[-1] ^= 1
    forged = x509.load_der_x509_csr(bytes(signed)).public_bytes(Encoding.PEM).decode()
    file.write_text(signed_again(tmp_path / "bank", request.model_copy(update={"certificate_request": forged})))
    with pytest.raises(SettingsError, match="was altered, or was made without its private keys"):
        KitRequest.load(file)


def test_a_sealing_key_that_would_fail_whoever_seals_for_all_is_refused(tmp_path: Path) -> None:
    request, file = make_request(tmp_path / "bank", "bank-a"), tmp_path / "request"
    file.write_text(signed_again(tmp_path / "bank", request))
    KitRequest.load(file)
    of_small_order = request.keys.model_copy(update={"sealing": "00" * 32})
    file.write_text(signed_again(tmp_path / "bank", request.model_copy(update={"keys": of_small_order})))
    with pytest.raises(SettingsError, match="was altered, or was made without its private keys"):
        KitRequest.load(file)


@pytest.mark.parametrize(("name", "content"), [("empty", b""), ("huge", b" " * 200_000), ("picture", b"\x89PNG\xff\x00")])
def test_a_file_that_is_no_request_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SettingsError, match="is not a request that `fedqueue kit request` wrote"):
        KitRequest.load(tmp_path / name)
    with pytest.raises(SettingsError, match="No such file"):
        KitRequest.load(tmp_path / "absent")
