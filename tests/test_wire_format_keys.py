"""The signature and the sealed body of docs/wire-format.md: who knows only the page and the RFCs can check and open them."""

import base64
import hashlib
import hmac
import re

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from shared.broker import Message
from shared.chunks import split
from shared.envelopes import open_sealed, sealed_about
from shared.errors import ForgedMessageError
from shared.keys import PublicKeys, Trust
from shared.signatures import signature_of, statement, verify
from tests.test_wire_format_page import PAGE, RUN, page_bytes, sha256

PLACE = ("fl.upd.bank-a", "hello", "hello-fedcba9876543210#0")


def section(heading: str) -> str:
    return PAGE.read_text().partition(f"# {heading}\n")[2].partition("\n##")[0]


def keys_in(heading: str) -> list[str]:
    """What a section writes as 64 hexadecimal digits between back-ticks."""
    return re.findall(r"`([0-9a-f]{64})`", section(heading))


def the_hello() -> Message:
    (message,) = split(page_bytes("hello"), kind="hello", run_id=RUN, identity="hello-fedcba9876543210", chunk_bytes=2**20)
    return message


def signed_on_the_page() -> bytes:
    (given,) = re.findall(r"^```text\n(\S+)\n```$", section("A signed message"), re.MULTILINE)
    return base64.b64decode(given, validate=True)


def statement_by_the_page() -> bytes:
    """Built from the hello's bytes with msgpack alone."""
    digest = sha256(page_bytes("hello"))
    headers = {"schema": 1, "run": RUN, "id": "hello-fedcba9876543210", "chunk": 0, "chunks": 1, "size": 131}
    headers |= {"sha256": digest, "content": digest, "envelope": "plain"}
    listed = [[name, headers[name]] for name in sorted(headers)]
    return bytes(msgpack.packb(["fedqueue 1", *PLACE, bytes.fromhex(digest), listed]))


def opened_by_rfc_9180(wrap: bytes, key: X25519PrivateKey, info: bytes, about: bytes = b"") -> bytes:
    """HPKE's Open in base mode: sections 4.1, 5.1 and 5.2 by the letter, with HMAC, X25519 and ChaCha20-Poly1305 alone."""
    kem, suite = b"KEM\x00\x20", b"HPKE\x00\x20\x00\x01\x00\x03"
    enc, sealed = wrap[:32], wrap[32:]

    def extract(who: bytes, salt: bytes, label: bytes, secret: bytes) -> bytes:
        return hmac.digest(salt or bytes(32), b"HPKE-v1" + who + label + secret, "sha256")

    def expand(who: bytes, secret: bytes, label: bytes, text: bytes, size: int) -> bytes:
        return hmac.digest(secret, size.to_bytes(2) + b"HPKE-v1" + who + label + text + b"\1", "sha256")[:size]

    shared = key.exchange(X25519PublicKey.from_public_bytes(enc))
    both = enc + key.public_key().public_bytes_raw()
    secret = expand(kem, extract(kem, b"", b"eae_prk", shared), b"shared_secret", both, 32)
    context = b"\0" + extract(suite, b"", b"psk_id_hash", b"") + extract(suite, b"", b"info_hash", info)
    secret = extract(suite, secret, b"secret", b"")
    cipher = ChaCha20Poly1305(expand(suite, secret, b"key", context, 32))
    return cipher.decrypt(expand(suite, secret, b"base_nonce", context, 12), sealed, about)


def test_what_is_signed_follows_from_the_page_alone() -> None:
    assert page_bytes("statement").hex() == statement_by_the_page().hex()


def test_the_signature_of_the_page_is_made_with_the_key_of_the_page() -> None:
    private, public = keys_in("A signed message")

    Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(signed_on_the_page(), page_bytes("statement"))
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(private))
    assert key.public_key().public_bytes_raw().hex() == public


def test_the_code_signs_and_verifies_the_message_of_the_page() -> None:
    private, public = keys_in("A signed message")
    key, hello = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(private)), the_hello()
    text = base64.b64encode(signed_on_the_page()).decode()
    signed = Message(hello.body, hello.kind, hello.message_id, {**hello.headers, "signature": text, "x-stream-offset": 7})

    assert statement(PLACE[0], hello).hex() == page_bytes("statement").hex()
    assert signature_of(PLACE[0], hello, key) == text
    verify(PLACE[0], signed, [public], author="bank-a")
    with pytest.raises(ForgedMessageError):
        verify("fl.upd.bank-b", signed, [public], author="bank-a")


def test_hpke_of_this_test_opens_the_first_message_of_rfc_9180_a_2_1() -> None:
    _, private, *_ = keys_in("A sealed body")
    enc = "1afa08d3dec047a643885163f1180476fa7ddb54c6a8029ea33f95796bf2ac4a"
    sealed = "1c5250d8034ec2b784ba2cfd69dbdb8af406cfe3ff938e131f0def8c8b60b4db21993c62ce81883d2dd1b51a28"
    key = X25519PrivateKey.from_private_bytes(bytes.fromhex(private))

    opened = opened_by_rfc_9180(bytes.fromhex(enc + sealed), key, b"Ode on a Grecian Urn", b"Count-0")
    assert opened == b"Beauty is truth, truth beauty"


def test_a_reader_who_knows_only_the_page_opens_its_sealed_body() -> None:
    public, private, content_key = keys_in("A sealed body")
    key = X25519PrivateKey.from_private_bytes(bytes.fromhex(private))
    wraps, nonce, ciphertext = msgpack.unpackb(page_bytes("sealed"), strict_map_key=False)
    wrap = wraps[hashlib.sha256(bytes.fromhex(public)).digest()[:8]]

    assert key.public_key().public_bytes_raw().hex() == public
    assert (len(wrap), len(nonce), list(map(len, wraps))) == (80, 12, [8])
    assert opened_by_rfc_9180(wrap, key, b"fedqueue 1 content key").hex() == content_key
    opened = ChaCha20Poly1305(bytes.fromhex(content_key)).decrypt(nonce, ciphertext, msgpack.packb(list(PLACE)))
    assert opened == page_bytes("hello")


def test_the_code_opens_the_sealed_body_of_the_page() -> None:
    _, private, _ = keys_in("A sealed body")
    key = X25519PrivateKey.from_private_bytes(bytes.fromhex(private))

    assert open_sealed(page_bytes("sealed"), sealed_about(*PLACE), key) == page_bytes("hello")
    with pytest.raises(ForgedMessageError):
        open_sealed(page_bytes("sealed"), sealed_about("fl.upd.bank-b", *PLACE[1:]), key)


def test_the_page_lists_every_key_of_trust_json() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", section("Keys"), re.MULTILINE)

    assert listed == list(Trust.model_fields)
    assert all(f"`{name}`" in section("Keys") for name in PublicKeys.model_fields)
