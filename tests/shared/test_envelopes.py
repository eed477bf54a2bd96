"""Sealed bodies: read by those they were sealed for, and by nobody else."""

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from shared.envelopes import ContentKey, key_id, open_sealed, sealed_about
from shared.errors import ForgedMessageError, MalformedMessageError, RejectedMessageError, SealedForOthersError

ABOUT = sealed_about("fl.upd.bank-a", "update", "bank-a/1/1#0")
ALICE = X25519PrivateKey.generate()
BOB = X25519PrivateKey.generate()
EVE = X25519PrivateKey.generate()


def public(key: X25519PrivateKey) -> str:
    return key.public_key().public_bytes_raw().hex()


def sealed(body: bytes = b"noised numbers") -> bytes:
    return ContentKey.fresh([public(ALICE), public(BOB)]).seal(body, ABOUT)


@pytest.mark.parametrize("reader", [ALICE, BOB], ids=["first", "second"])
def test_everybody_it_was_sealed_for_reads_it(reader):
    assert open_sealed(sealed(), ABOUT, reader) == b"noised numbers"


def test_nobody_else_does_and_the_body_is_not_in_it():
    body = sealed()

    with pytest.raises(SealedForOthersError):
        open_sealed(body, ABOUT, EVE)
    assert b"noised numbers" not in body


def test_the_same_body_is_sealed_with_another_key_and_nonce_each_time():
    assert sealed() != sealed()
    key = ContentKey.fresh([public(BOB)])
    assert key.seal(b"a", ABOUT) != key.seal(b"a", ABOUT)


def test_it_opens_at_its_own_place_only():
    with pytest.raises(ForgedMessageError):
        open_sealed(sealed(), sealed_about("fl.upd.bank-b", "update", "bank-a/1/1#0"), BOB)


def test_an_altered_ciphertext_is_forged_and_not_merely_broken():
    wraps, nonce, ciphertext = msgpack.unpackb(sealed(), strict_map_key=False)
    flipped = bytes([ciphertext[0] ^ 1]) + ciphertext[1:]

    with pytest.raises(ForgedMessageError):
        open_sealed(msgpack.packb([wraps, nonce, flipped]), ABOUT, BOB)


def test_a_wrap_that_holds_another_key_is_forged():
    wraps, nonce, ciphertext = msgpack.unpackb(sealed(), strict_map_key=False)
    others, _, _ = msgpack.unpackb(sealed(), strict_map_key=False)

    with pytest.raises(ForgedMessageError):
        open_sealed(msgpack.packb([others, nonce, ciphertext]), ABOUT, BOB)
    broken = {name: bytes(80) for name in wraps}
    with pytest.raises(ForgedMessageError):
        open_sealed(msgpack.packb([broken, nonce, ciphertext]), ABOUT, BOB)


NOT_SEALED = {
    "nothing": b"",
    "a number": msgpack.packb(7),
    "two parts": msgpack.packb([{}, b""]),
    "wraps that are a list": msgpack.packb([[], bytes(12), b""]),
    "a short wrap": msgpack.packb([{key_id(public(BOB)): b"x"}, bytes(12), b""]),
    "a short nonce": msgpack.packb([{}, bytes(11), b""]),
    "an extension": msgpack.packb([{}, bytes(12), msgpack.ExtType(1, b"x")]),
    "depth": b"\x91" * 2000,
    "an announced gigabyte": b"\x93\x80\xc4\x0c" + bytes(12) + b"\xc6\x40\x00\x00\x00",
    "too many wraps": b"\x93\xdf\xff\xff\xff\xff",
    "pickle": b"\x80\x04\x95\x1f.",
}


@pytest.mark.parametrize("name", NOT_SEALED)
def test_what_is_no_sealed_body_is_malformed(name):
    with pytest.raises(MalformedMessageError):
        open_sealed(NOT_SEALED[name], ABOUT, BOB)


@given(st.binary(max_size=300))
def test_no_bytes_do_worse_than_be_refused(data):
    with pytest.raises(RejectedMessageError):
        open_sealed(data, ABOUT, BOB)


def test_a_key_id_is_the_beginning_of_the_hash_of_the_key():
    # SHA-256 of 32 zero bytes is 66687aadf862bd776c8fc18b8e9f8e20089714856ee233b3902a591d0d5f2925
    assert key_id("00" * 32).hex() == "66687aadf862bd77"
