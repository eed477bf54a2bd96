"""Signatures over everything of a message that is published."""

import base64
import hashlib
from dataclasses import replace

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shared.broker import Message
from shared.errors import ForgedMessageError
from shared.signatures import signature_of, statement, verify

# RFC 8032, section 7.1, test 1
SECRET = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
STRANGER = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"

KEY = Ed25519PrivateKey.from_private_bytes(SECRET)
MESSAGE = Message(b"abc", "update", "bank-a/1/1#0", {"size": 3, "id": "bank-a/1/1", "whole": True, "signature": ""})
EXCHANGE = "fl.upd.bank-a"


def signed(message: Message = MESSAGE, exchange: str = EXCHANGE) -> Message:
    return replace(message, headers={**message.headers, "signature": signature_of(exchange, message, KEY)})


def test_a_statement_holds_place_kind_name_body_and_headers_in_order():
    # SHA-256 of "abc" is a test vector of FIPS 180-2
    digest = bytes.fromhex("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    headers = [["id", "bank-a/1/1"], ["size", 3], ["whole", True]]

    assert msgpack.unpackb(statement(EXCHANGE, MESSAGE)) == [
        "fedqueue 1", "fl.upd.bank-a", "update", "bank-a/1/1#0", digest, headers
    ]  # fmt: skip


def test_a_signed_message_is_its_authors_also_after_a_broker_added_headers():
    message = signed()
    redelivered = replace(message, headers={**message.headers, "x-delivery-count": 3})

    verify(EXCHANGE, redelivered, [STRANGER, PUBLIC], author="bank-a")


CHANGES = {
    "body": {"body": b"abd"},
    "kind": {"kind": "hello"},
    "name": {"message_id": "bank-a/1/2#0"},
    "header": {"headers": {**signed().headers, "size": 4}},
    "header of another type": {"headers": {**signed().headers, "whole": 1}},
    "more headers": {"headers": {**signed().headers, "chunk": 0}},
    "fewer headers": {"headers": {name: value for name, value in signed().headers.items() if name != "id"}},
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_of_it_is_changed_it_is_forged(change):
    with pytest.raises(ForgedMessageError, match="altered"):
        verify(EXCHANGE, replace(signed(), **CHANGES[change]), [PUBLIC], author="bank-a")


def test_a_signature_holds_for_one_place_and_one_author():
    with pytest.raises(ForgedMessageError):
        verify("fl.upd.bank-b", signed(), [PUBLIC], author="bank-b")
    with pytest.raises(ForgedMessageError):
        verify(EXCHANGE, signed(), [STRANGER], author="bank-a")


@pytest.mark.parametrize(
    "given",
    ["", "no base64!", "QUJD", base64.b64encode(bytes(64)).decode(), True],
    ids=["none", "text", "short", "zeros", "flag"],
)
def test_what_is_no_signature_is_refused_and_nothing_worse(given):
    message = replace(MESSAGE, headers={**MESSAGE.headers, "signature": given})

    with pytest.raises(ForgedMessageError):
        verify(EXCHANGE, message, [PUBLIC], author="bank-a")


def test_the_digest_is_of_the_body_as_it_is_published():
    assert hashlib.sha256(b"abd").digest() in statement(EXCHANGE, replace(MESSAGE, body=b"abd"))
