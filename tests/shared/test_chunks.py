import hashlib
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.broker import Message
from shared.chunks import Assembly, head, split
from shared.codec import Encoded
from shared.errors import MalformedMessageError, UnsupportedSchemaError
from tests.builders import RUN


def cut(content: bytes, chunk_bytes: int, identity: str = "bank-a/1/1") -> list[Message]:
    return list(split(content, kind="update", run_id=RUN, identity=identity, chunk_bytes=chunk_bytes))


def heads(chunks: list[Message]):
    return [head(chunk, max_bytes=2**20) for chunk in chunks]


def changed(message: Message, **headers) -> Message:
    return replace(
        message, headers={name: value for name, value in (dict(message.headers) | headers).items() if value is not None}
    )


@given(st.binary(max_size=300), st.integers(1, 40))
def test_what_was_split_is_put_together_again(content, chunk_bytes):
    chunks = cut(content, chunk_bytes)
    assembly = Assembly(head(chunks[0], max_bytes=300))
    done = [assembly.add(head(chunk, max_bytes=300), chunk.body) for chunk in chunks]
    assert done == [False] * (len(chunks) - 1) + [True]
    assert assembly.content() == content
    assert all(len(chunk.body) <= chunk_bytes for chunk in chunks)


@pytest.mark.parametrize(("size", "sizes"), [(0, [0]), (9, [9]), (10, [10]), (11, [10, 1]), (30, [10, 10, 10])])
def test_a_content_is_cut_into_as_few_chunks_as_hold_it(size, sizes):
    assert [len(chunk.body) for chunk in cut(bytes(size), 10)] == sizes


def test_every_chunk_says_in_its_headers_what_the_whole_is():
    digest = hashlib.sha256(b"0123456789abc").hexdigest()
    last = cut(b"0123456789abc", 5)[2]
    assert (last.kind, last.message_id, last.body) == ("update", "bank-a/1/1#2", b"abc")
    assert last.headers == {
        "schema": 1,
        "run": RUN,
        "id": "bank-a/1/1",
        "chunk": 2,
        "chunks": 3,
        "size": 13,
        "sha256": digest,
        "content": digest,
        "envelope": "plain",
        "signature": "",
    }


def test_a_retry_has_the_same_chunks():
    once, again = cut(b"0123456789abc", 5), cut(b"0123456789abc", 5)
    assert [(each.body, each.message_id, each.headers) for each in once] == [
        (each.body, each.message_id, each.headers) for each in again
    ]


def test_chunks_that_came_before_are_ignored():
    first, second, third = cut(b"0123456789abc", 5)
    assembly = Assembly(heads([first])[0])
    for message in (first, second, first, second, third):
        complete = assembly.add(heads([message])[0], message.body)
    assert complete
    assert assembly.content() == b"0123456789abc"


@dataclass
class OneWay:
    """A file that can be written to, and never read again."""

    written: list[bytes] = field(default_factory=list)

    def flush(self) -> None:
        return

    def write(self, data: bytes) -> None:
        self.written.append(bytes(data))


def test_a_content_is_hashed_while_it_is_written_away():
    sink = OneWay()
    first, second, third = cut(b"0123456789abc", 5)
    assembly = Assembly(heads([first])[0], sink)
    for message in (first, first, second, third):
        assembly.add(heads([message])[0], message.body)
    assembly.check()
    assert sink.written == [b"01234", b"56789", b"abc"]
    assert assembly.content() == b""


def test_a_chunk_that_was_refused_leaves_the_assembly_as_it_was():
    first, second, third = cut(b"0123456789abc", 5)
    assembly = Assembly(heads([first])[0])
    assembly.add(heads([first])[0], first.body)
    for refused, body in ((third, third.body), (second, bytes(9))):
        with pytest.raises(MalformedMessageError):
            assembly.add(heads([refused])[0], body)
    assert [assembly.add(heads([message])[0], message.body) for message in (second, third)] == [False, True]
    assert assembly.content() == b"0123456789abc"


def test_a_row_of_buffers_is_split_as_its_bytes_are():
    row = Encoded([b"0123", b"", b"456789ab", b"c"])
    parts = list(split(row, kind="update", run_id=RUN, identity="bank-a/1/1", chunk_bytes=5))
    assert [(each.body, each.message_id, each.headers) for each in parts] == [
        (each.body, each.message_id, each.headers) for each in cut(b"0123456789abc", 5)
    ]


def test_a_gap_is_refused():
    first, _, third = cut(b"0123456789abc", 5)
    assembly = Assembly(heads([first])[0])
    assembly.add(heads([first])[0], first.body)
    with pytest.raises(MalformedMessageError, match="chunk 2 came where 1 was expected"):
        assembly.add(heads([third])[0], third.body)


@pytest.mark.parametrize(
    "header", [{"id": "bank-a/1/2"}, {"chunks": 4}, {"size": 14}, {"sha256": "0" * 64}, {"content": "0" * 64}]
)
def test_a_chunk_that_disagrees_about_the_whole_is_refused(header):
    first, second, _ = cut(b"0123456789abc", 5)
    assembly = Assembly(heads([first])[0])
    with pytest.raises(MalformedMessageError, match="disagree"):
        assembly.add(head(changed(second, **header), max_bytes=100), second.body)


def test_chunks_that_hold_more_than_was_announced_are_refused():
    first, second, third = cut(b"0123456789abc", 5)
    assembly = Assembly(heads([first])[0])
    assembly.add(heads([first])[0], first.body)
    assembly.add(heads([second])[0], second.body)
    with pytest.raises(MalformedMessageError, match="chunk 2"):
        assembly.add(heads([third])[0], b"abcd")


def test_chunks_that_hold_less_than_was_announced_are_refused():
    (only,) = cut(b"0123456789", 10)
    assembly = Assembly(heads([only])[0])
    assembly.add(heads([only])[0], b"012345678")
    with pytest.raises(MalformedMessageError, match="9 bytes came, 10 were announced"):
        assembly.content()


def test_bytes_with_another_hash_are_refused():
    (only,) = cut(b"0123456789", 10)
    assembly = Assembly(heads([only])[0])
    assembly.add(heads([only])[0], b"012345678X")
    with pytest.raises(MalformedMessageError, match="SHA-256"):
        assembly.content()


def test_a_content_hash_that_is_not_that_of_the_bytes_is_refused():
    (only,) = cut(b"0123456789", 10)
    claimed = heads([changed(only, content="0" * 64)])[0]
    assembly = Assembly(claimed)
    assembly.add(claimed, only.body)
    with pytest.raises(MalformedMessageError, match="SHA-256"):
        assembly.content()


def test_an_envelope_that_is_not_known_is_refused():
    (only,) = cut(b"0123456789", 10)
    claimed = heads([changed(only, envelope="zip")])[0]
    assembly = Assembly(claimed)
    assembly.add(claimed, only.body)
    with pytest.raises(MalformedMessageError, match="envelope 'zip'"):
        assembly.content()


def test_an_announced_size_over_the_limit_is_refused_at_the_first_chunk():
    with pytest.raises(MalformedMessageError, match="13 bytes are announced, 12 are allowed"):
        head(cut(b"0123456789abc", 5)[0], max_bytes=12)


@pytest.mark.parametrize(
    "headers",
    [
        {"chunk": 3},
        {"chunk": -1},
        {"chunk": "0"},
        {"chunk": True},
        {"chunk": None},
        {"chunks": 0},
        {"chunks": 2**40},
        {"chunks": 14},
        {"size": 4},
        {"size": -1},
        {"size": None},
        {"run": "x" * 17},
        {"id": "x" * 201},
        {"id": 5},
        {"sha256": None},
        {"content": "0" * 65},
        {"signature": "s" * 513},
        {"envelope": None},
    ],
    ids=str,
)
def test_impossible_headers_are_refused(headers):
    with pytest.raises(MalformedMessageError):
        head(changed(cut(b"0123456789abc", 5)[0], **headers), max_bytes=2**20)


@pytest.mark.parametrize("schema", [2, "1", None])
def test_another_schema_is_refused(schema):
    with pytest.raises(UnsupportedSchemaError):
        head(changed(cut(b"0", 5)[0], schema=schema), max_bytes=2**20)
