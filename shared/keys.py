"""Whose messages are whose: the keys that an author signs with, and to which messages to it are sealed.

An identity is two private keys, Ed25519 (RFC 8032) and X25519 (RFC 7748), in files of their own (`broker_config.keyring`);
others know its public keys.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pydantic import Field

from shared.plan import Frozen

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
