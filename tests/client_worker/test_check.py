"""What `--check` says of keys and certificates that cannot be used; no broker is asked."""

import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from broker_config.authority import Authority, write_issued
from broker_config.connection import ConnectionSettings
from broker_config.keyring import save_identity, save_trust
from client_worker.check import require_credentials
from shared.errors import SettingsError
from shared.keys import Identity, Trust

NOW = datetime.now(UTC)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """What the kit of bank-a holds."""
    place, authority = tmp_path / "bank-a", Authority.create(tmp_path / "ca", name="ours")
    write_issued(place, authority.issue("bank-a"), authority.certificate)
    save_identity(Identity.create(), place / "keys")
    others = {"operator": Identity.create().public, "aggregators": {"aggregator": Identity.create().public}}
    save_trust(Trust(**others), place / "keys")
    return place


def settings_of(place: Path) -> ConnectionSettings:
    names = {"ca_file": "ca.pem", "certificate_file": "certificate.pem", "key_file": "key.pem", "keys_folder": "keys"}
    files = {name: place / file for name, file in names.items()}
    return ConnectionSettings(url="amqps://broker.example.org/fedqueue", user="bank-a", **files)


def test_a_kit_as_it_was_made_has_no_fault(place: Path) -> None:
    require_credentials(settings_of(place), NOW)


def with_anothers_ca(place: Path) -> None:
    (place / "ca.pem").write_bytes(Authority.create(place / "other", name="other").certificate)


def with_anothers_certificate(place: Path) -> None:
    authority = Authority.open(place.parent / "ca")
    write_issued(place, authority.issue("bank-b"), authority.certificate)


def with_anothers_key(place: Path) -> None:
    (place / "key.pem").write_bytes(Authority.open(place.parent / "ca").issue("bank-a").key)


def with_an_open_key(place: Path) -> None:
    (place / "key.pem").chmod(0o640)


def with_an_open_signing_key(place: Path) -> None:
    (place / "keys/signing.pem").chmod(0o604)


def without_trust(place: Path) -> None:
    (place / "keys/trust.json").unlink()


def with_broken_trust(place: Path) -> None:
    (place / "keys/trust.json").write_text('{"operator": 1}')


def with_swapped_keys(place: Path) -> None:
    shutil.copy(place / "keys/sealing.pem", place / "keys/signing.pem")


def without_a_certificate(place: Path) -> None:
    (place / "certificate.pem").unlink()


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (with_anothers_ca, r"certificate\.pem was not issued by the authority in .*ca\.pem: take both from the same kit"),
        (with_anothers_certificate, r"certificate\.pem is the certificate of bank-b, and the settings say user bank-a"),
        (with_anothers_key, r"the key does not belong to the certificate[:;] take both from the same kit"),
        (with_an_open_key, r"the key .*key\.pem can be read by other users: chmod 600"),
        (with_an_open_signing_key, r"other users can read the private key .*signing\.pem: chmod 600"),
        (without_trust, r"trust\.json: No such file or directory; the operator's kit holds it"),
        (with_broken_trust, r"trust\.json is not a file of public keys: aggregators, operator"),
        (with_swapped_keys, r"signing\.pem holds no Ed25519 key"),
        (without_a_certificate, r"certificate\.pem cannot be read \(No such file or directory\): take it from the kit"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_fault_is_told_in_words(place: Path, harm: Callable[[Path], None], sentence: str) -> None:
    harm(place)
    with pytest.raises(SettingsError, match=sentence):
        require_credentials(settings_of(place), NOW)


def test_every_fault_is_told_at_once(place: Path) -> None:
    with_an_open_key(place)
    without_trust(place)
    with pytest.raises(SettingsError) as told:
        require_credentials(settings_of(place), NOW)
    assert len(str(told.value).splitlines()) == 2


def test_a_certificate_that_is_over_or_not_yet_good_is_told_with_this_machines_clock(place: Path) -> None:
    with pytest.raises(SettingsError, match=r"certificate\.pem ended on .* UTC: ask the operator for a renewal \(this machine's"):
        require_credentials(settings_of(place), NOW + timedelta(days=366))
    with pytest.raises(
        SettingsError, match=r"certificate\.pem begins on .* UTC, and this machine's clock says .*: set the clock"
    ):
        require_credentials(settings_of(place), NOW - timedelta(days=1))
