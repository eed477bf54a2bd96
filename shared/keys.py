"""Whose messages are whose: the keys that an author signs with, and to which messages to it are sealed.

An identity is two private keys, Ed25519 (RFC 8032) and X25519 (RFC 7748), in files of their own; others know its public keys.
"""

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pydantic import Field, ValidationError

from shared.errors import SettingsError
from shared.plan import Frozen

SIGNING_FILE = "signing.pem"
SEALING_FILE = "sealing.pem"
TRUST_FILE = "trust.json"

RawKey = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""A public key of 32 bytes, in hexadecimal."""


class PublicKeys(Frozen):
    """What others know of an identity: its Ed25519 key, and its X25519 key."""

    signing: RawKey
    sealing: RawKey

    @property
    def fingerprint(self) -> str:
        """What two people compare by telephone, of both keys."""
        return fingerprint(bytes.fromhex(self.signing + self.sealing))


class Trust(Frozen):
    """`trust.json`: whom the owner of a folder of keys believes. An institution knows the operator and the aggregators only.

    `former` are the signing keys of institutions' earlier incarnations, by which the operator reads what they once sent.
    `sealed` is whether updates, models, states and orders must be sealed.
    """

    operator: PublicKeys
    aggregators: dict[str, PublicKeys]
    institutions: dict[str, PublicKeys] = Field(default_factory=dict)
    former: dict[str, tuple[RawKey, ...]] = Field(default_factory=dict)
    sealed: bool = False

    @classmethod
    def load(cls, folder: Path) -> "Trust":
        """Of a folder of keys. Raises SettingsError."""
        file = folder / TRUST_FILE
        try:
            return cls.model_validate_json(file.read_bytes())
        except OSError as error:
            raise SettingsError(f"{file}: {error.strerror}; the operator's kit holds it") from error
        except ValidationError as error:
            wrong = ", ".join(sorted({".".join(map(str, each["loc"])) or "the file" for each in error.errors()}))
            raise SettingsError(f"{file} is not a file of public keys: {wrong}; take it from the operator's kit") from None

    def save(self, folder: Path) -> None:
        """Writes it aside and renames it, so that a reader never sees half of it."""
        folder.mkdir(parents=True, exist_ok=True)
        aside = folder / f".{TRUST_FILE}.{os.getpid()}"
        aside.write_text(self.model_dump_json(indent=2) + "\n")
        aside.replace(folder / TRUST_FILE)

    def with_institutions(self, institutions: Mapping[str, PublicKeys]) -> "Trust":
        """The same with these institutions beside those that it holds."""
        return self.model_copy(update={"institutions": {**self.institutions, **institutions}})

    def without(self, institution: str) -> "Trust":
        """The same with an institution's key among the former ones."""
        left = {name: keys for name, keys in self.institutions.items() if name != institution}
        gone = tuple(keys.signing for name, keys in self.institutions.items() if name == institution)
        earlier = self.former.get(institution, ())
        former = {**self.former, institution: (*earlier, *(key for key in gone if key not in earlier))}
        return self.model_copy(update={"institutions": left, "former": former})


@dataclass(frozen=True, slots=True)
class Identity:
    """The two private keys of one author."""

    signing: Ed25519PrivateKey
    sealing: X25519PrivateKey

    @classmethod
    def create(cls) -> "Identity":
        """New keys."""
        return cls(Ed25519PrivateKey.generate(), X25519PrivateKey.generate())

    @classmethod
    def load(cls, folder: Path) -> "Identity":
        """Of a folder of keys. Raises SettingsError where a file is missing, is no such key, or others may read it."""
        signing, sealing = _private_key(folder / SIGNING_FILE), _private_key(folder / SEALING_FILE)
        if not isinstance(signing, Ed25519PrivateKey):
            raise SettingsError(f"{folder / SIGNING_FILE} holds no Ed25519 key")
        if not isinstance(sealing, X25519PrivateKey):
            raise SettingsError(f"{folder / SEALING_FILE} holds no X25519 key")
        return cls(signing, sealing)

    def save(self, folder: Path) -> None:
        """Writes both files, readable by their owner only."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name, key in ((SIGNING_FILE, self.signing), (SEALING_FILE, self.sealing)):
            pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
            with os.fdopen(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(pem)

    @property
    def public(self) -> PublicKeys:
        """What others may know."""
        return PublicKeys(
            signing=self.signing.public_key().public_bytes_raw().hex(), sealing=self.sealing.public_key().public_bytes_raw().hex()
        )


def fingerprint(content: bytes) -> str:
    """Eight groups of four digits for two people to compare by telephone: the beginning of SHA-256."""
    digest = hashlib.sha256(content).hexdigest()
    return " ".join(digest[place : place + 4] for place in range(0, 32, 4))


def _private_key(file: Path) -> object:
    try:
        pem, mode = file.read_bytes(), file.stat().st_mode
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}; the kit holds it, or `fedqueue kit request` made it") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise SettingsError(f"other users can read the private key {file}: chmod 600 {file}")
    try:
        return serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SettingsError(f"{file} is no private key in PEM without a password") from error
