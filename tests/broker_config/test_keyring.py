"""The files of a folder of keys."""

import json
import stat
import subprocess

import pytest

from broker_config.keyring import load_identity, load_trust, save_identity, save_trust
from shared.errors import SettingsError
from shared.keys import Identity, PublicKeys, Trust


@pytest.fixture
def folder(tmp_path):
    save_identity(Identity.create(), tmp_path / "keys")
    return tmp_path / "keys"


def test_keys_that_were_saved_are_loaded_and_only_their_owner_may_read_them(folder):
    identity = Identity.create()
    save_identity(identity, folder)

    assert load_identity(folder).public == identity.public
    assert [stat.S_IMODE((folder / name).stat().st_mode) for name in ("signing.pem", "sealing.pem")] == [0o600, 0o600]


def test_openssl_reads_both_keys(folder):
    shown = [
        subprocess.run(
            ["openssl", "pkey", "-in", folder / name, "-text", "-noout"], capture_output=True, text=True, check=True
        ).stdout
        for name in ("signing.pem", "sealing.pem")
    ]

    assert [text.split()[0] for text in shown] == ["ED25519", "X25519"]


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_private_key_that_others_may_read_is_refused_with_the_remedy(folder, mode):
    (folder / "sealing.pem").chmod(mode)

    with pytest.raises(SettingsError, match=r"chmod 600 .*sealing\.pem"):
        load_identity(folder)


def test_a_missing_wrong_or_exchanged_key_file_is_named(folder):
    (folder / "signing.pem").write_bytes((folder / "sealing.pem").read_bytes())
    with pytest.raises(SettingsError, match=r"signing\.pem holds no Ed25519 key"):
        load_identity(folder)
    (folder / "signing.pem").write_text("no key")
    with pytest.raises(SettingsError, match=r"signing\.pem is no private key"):
        load_identity(folder)
    (folder / "signing.pem").unlink()
    with pytest.raises(SettingsError, match=r"signing\.pem: No such file"):
        load_identity(folder)


def test_a_fingerprint_is_made_of_both_public_keys():
    # SHA-256 of 64 zero bytes is f5a5fd42d16a20302798ef6ed309979b43003d2320d9f0e8ea9831a92759fb4b
    keys = PublicKeys(signing="00" * 32, sealing="00" * 32)
    assert keys.fingerprint == "f5a5 fd42 d16a 2030 2798 ef6e d309 979b"
    assert keys.model_copy(update={"sealing": "01" * 32}).fingerprint != keys.fingerprint


def test_whom_to_trust_is_read_back_and_anything_else_in_the_file_is_refused(tmp_path):
    operator, aggregator = Identity.create().public, Identity.create().public
    trust = Trust(operator=operator, aggregators={"aggregator": aggregator}, sealed=True)
    save_trust(trust, tmp_path)
    assert load_trust(tmp_path) == trust

    document = json.loads((tmp_path / "trust.json").read_text())
    (tmp_path / "trust.json").write_text(json.dumps({**document, "sealled": False}))
    with pytest.raises(SettingsError, match=r"trust\.json is not a file of public keys: sealled"):
        load_trust(tmp_path)
    (tmp_path / "trust.json").write_text(json.dumps({**document, "operator": {**document["operator"], "signing": "00"}}))
    with pytest.raises(SettingsError, match=r"operator\.signing"):
        load_trust(tmp_path)
