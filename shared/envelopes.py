"""Sealed bodies: a content key for each message or model, wrapped for every recipient (HPKE, RFC 9180, base mode).

A sealed body is msgpack [wraps, nonce, ciphertext]; `wraps` has, by the recipient's key id, the content key as HPKE's enc || ct.
"""

import hashlib
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import msgpack
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from shared.errors import ForgedMessageError, MalformedMessageError, SealedForOthersError

ENVELOPE = "envelope"
"""The header that names how a body is wrapped."""
HPKE = "hpke-1"
INFO = b"fedqueue 1 content key"
KEY_ID_BYTES = 8
WRAP_BYTES = 80  # 32 of HPKE's encapsulated key, 32 of the content key, 16 of its tag
NONCE_BYTES = 12
MOST_RECIPIENTS = 1 << 16
_SUITE = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305)


@dataclass(frozen=True, slots=True)
class ContentKey:
    """A key for one content, and that key wrapped for everybody who may read it."""

    key: bytes
    wraps: Mapping[bytes, bytes]

    @classmethod
    def fresh(cls, recipients: Iterable[str]) -> "ContentKey":
        """A new key for these public sealing keys, in hexadecimal."""
        key = ChaCha20Poly1305.generate_key()
        wraps = {key_id(each): _SUITE.encrypt(key, _public(each), info=INFO) for each in recipients}
        return cls(key, wraps)

    def seal(self, body: bytes, about: bytes) -> bytes:
        """The sealed body; `about` must be the same when it is opened."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = ChaCha20Poly1305(self.key).encrypt(nonce, body, about)
        return bytes(msgpack.packb([dict(self.wraps), nonce, sealed], use_bin_type=True))


def sealed_about(exchange: str, kind: str, message_id: str) -> bytes:
    """What a ciphertext is bound to, beside its key."""
    return bytes(msgpack.packb([exchange, kind, message_id], use_bin_type=True))


def open_sealed(sealed: bytes, about: bytes, key: X25519PrivateKey) -> bytes:
    """The body inside.

    Raises MalformedMessageError for what is no sealed body, SealedForOthersError where the key was not wrapped for us,
    ForgedMessageError where the ciphertext is not what was sealed for this place.
    """
    wraps, nonce, ciphertext = _parts(sealed)
    wrap = wraps.get(_own_id(key))
    if wrap is None:
        raise SealedForOthersError("it was sealed for others: the operator must admit these keys, or the next version brings it")
    try:
        return ChaCha20Poly1305(_unwrapped(wrap, key)).decrypt(nonce, ciphertext, about)
    except InvalidTag:
        raise ForgedMessageError("its sealed body was altered, or sealed for another place") from None


def key_id(public: str) -> bytes:
    """How a sealed body names a recipient: the beginning of SHA-256 of its public key."""
    return hashlib.sha256(bytes.fromhex(public)).digest()[:KEY_ID_BYTES]


def _public(key: str) -> X25519PublicKey:
    return X25519PublicKey.from_public_bytes(bytes.fromhex(key))


def _own_id(key: X25519PrivateKey) -> bytes:
    return key_id(key.public_key().public_bytes_raw().hex())


@lru_cache(maxsize=64)
def _unwrapped(wrap: bytes, key: X25519PrivateKey) -> bytes:
    """The chunks of one model carry the same wraps."""
    return _SUITE.decrypt(wrap, key, info=INFO)


def _parts(sealed: bytes) -> tuple[dict[bytes, bytes], bytes, bytes]:
    try:
        found = msgpack.unpackb(
            sealed, raw=False, strict_map_key=False, max_map_len=MOST_RECIPIENTS, max_array_len=3, max_ext_len=0, max_str_len=0
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
        raise MalformedMessageError("it is no sealed body") from None
    if not (isinstance(found, list) and len(found) == 3 and isinstance(found[0], dict)):
        raise MalformedMessageError("it is no sealed body")
    wraps, nonce, ciphertext = found
    right = all(isinstance(name, bytes) and isinstance(wrap, bytes) and len(wrap) == WRAP_BYTES for name, wrap in wraps.items())
    if not (right and isinstance(nonce, bytes) and len(nonce) == NONCE_BYTES and isinstance(ciphertext, bytes)):
        raise MalformedMessageError("a part of the sealed body has another form or length than it must have")
    return wraps, nonce, ciphertext
