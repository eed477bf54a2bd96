"""Who wrote a message, for whom and as what: Ed25519 signatures (RFC 8032) over everything of it that is published.

The exchange is part of what is signed, so that a message cannot be taken to another place; so are the headers, which say
of which run, id and content a body is a part.
"""

import base64
import binascii
import hashlib
from collections.abc import Iterable

import msgpack
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shared.broker import Message
from shared.errors import ForgedMessageError

SIGNATURE = "signature"
"""The header that carries a signature in base64."""
PURPOSE = "fedqueue 1"
_BROKERS_OWN = "x-"


def statement(exchange: str, message: Message) -> bytes:
    """What is signed. Headers that brokers add, whose names begin with x-, are no part of it."""
    headers = sorted(
        (name, value) for name, value in message.headers.items() if name != SIGNATURE and not name.startswith(_BROKERS_OWN)
    )
    digest = hashlib.sha256(message.body).digest()
    packed = msgpack.packb([PURPOSE, exchange, message.kind, message.message_id, digest, headers], use_bin_type=True)
    return bytes(packed)


def signature_of(exchange: str, message: Message, key: Ed25519PrivateKey) -> str:
    """The value of the header of a message that is about to be published."""
    return base64.b64encode(key.sign(statement(exchange, message))).decode()


def verify(exchange: str, message: Message, keys: Iterable[str], *, author: str) -> None:
    """Raises ForgedMessageError unless one of these public keys, in hexadecimal, signed the message for this exchange."""
    given = message.headers.get(SIGNATURE)
    if not isinstance(given, str) or not given:
        raise ForgedMessageError(f"it is not signed, and {author} signs everything")
    try:
        signature = base64.b64decode(given, validate=True)
    except (binascii.Error, ValueError):
        raise ForgedMessageError(f"its signature is not base64, so it is not {author}'s") from None
    stated = statement(exchange, message)
    if not any(_signed(key, signature, stated) for key in keys):
        raise ForgedMessageError(f"its signature is not {author}'s for this place: altered, taken from elsewhere, or another's")


def _signed(key: str, signature: bytes, stated: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(signature, stated)
    except InvalidSignature:
        return False
    return True
