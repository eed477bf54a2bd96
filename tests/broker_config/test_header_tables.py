"""Header tables that no client of ours writes, as bytes."""

import struct

import pytest

from broker_config.header_tables import decode_table


def table(*entries: bytes) -> bytes:
    content = b"".join(entries)
    return struct.pack(">I", len(content)) + content


def entry(name: bytes, kind: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + kind + value


def nested(depth: int) -> bytes:
    value = table()
    for _ in range(depth):
        value = table(entry(b"n", b"F", value))
    return value


def test_our_own_headers_are_read():
    encoded = table(entry(b"index", b"I", struct.pack(">i", 7)), entry(b"name", b"S", struct.pack(">I", 2) + b"ab"))
    assert decode_table(b"##" + encoded + b"##", 2) == ({"index": 7, "name": "ab"}, 2 + len(encoded))


@pytest.mark.parametrize(
    "hostile",
    [
        table(entry(b"x", b"d", struct.pack(">d", float("nan")))),
        table(entry(b"x", b"f", struct.pack(">f", float("inf")))),
        table(entry(b"x", b"T", struct.pack(">Q", 2**63))),
        table(entry(b"x", b"?", b"")),
        table(entry(b"x", b"L", b"\0")),
    ],
)
def test_a_table_that_pika_cannot_read_is_empty_and_the_rest_is_found(hostile):
    assert decode_table(hostile + b"rest", 0) == ({}, len(hostile))


def test_deep_nesting_does_not_end_the_reader():
    hostile = nested(20_000)
    _, end = decode_table(hostile, 0)
    assert end == len(hostile)
