"""A folder of keys: the private keys of one party, and whom it believes."""

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pydantic import ValidationError

from broker_config.secret_files import is_open_to_others
from broker_config.written import write_private, write_public
from shared.errors import SettingsError
from shared.keys import Identity, Trust

SIGNING_FILE = "signing.pem"
SEALING_FILE = "sealing.pem"
TRUST_FILE = "trust.json"


def load_identity(folder: Path) -> Identity:
    """Raises SettingsError where a file is missing, is no such key, or others may read it."""
    signing, sealing = _private_key(folder / SIGNING_FILE), _private_key(folder / SEALING_FILE)
    if not isinstance(signing, Ed25519PrivateKey):
        raise SettingsError(f"{folder / SIGNING_FILE} holds no Ed25519 key")
    if not isinstance(sealing, X25519PrivateKey):
        raise SettingsError(f"{folder / SEALING_FILE} holds no X25519 key")
    return Identity(signing, sealing)


def save_identity(identity: Identity, folder: Path) -> None:
    """Writes both files, readable by their owner only."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name, key in ((SIGNING_FILE, identity.signing), (SEALING_FILE, identity.sealing)):
        form = serialization.PrivateFormat.PKCS8
        write_private(folder / name, key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))


def load_trust(folder: Path) -> Trust:
    """Raises SettingsError."""
    file = folder / TRUST_FILE
    try:
        return Trust.model_validate_json(file.read_bytes())
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}; the operator's kit holds it") from error
    except ValidationError as error:
        wrong = ", ".join(sorted({".".join(map(str, each["loc"])) or "the file" for each in error.errors()}))
        raise SettingsError(f"{file} is not a file of public keys: {wrong}; take it from the operator's kit") from None


def save_trust(trust: Trust, folder: Path) -> None:
    """A reader finds the former one or this one."""
    folder.mkdir(parents=True, exist_ok=True)
    write_public(folder / TRUST_FILE, (trust.model_dump_json(indent=2) + "\n").encode())


def _private_key(file: Path) -> object:
    try:
        pem, is_open = file.read_bytes(), is_open_to_others(file)
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}; the kit holds it, or `fedqueue kit request` made it") from error
    if is_open:
        raise SettingsError(f"other users can read the private key {file}: chmod 600 {file}")
    try:
        return serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SettingsError(f"{file} is no private key in PEM without a password") from error
