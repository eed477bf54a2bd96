"""The envelope: a content cut into messages that a broker takes, and put together again.

Every chunk's headers carry the whole story (id, index, count, size, hashes), so that an operator reads it in the
management UI, and a receiver knows before taking memory how much there will be.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

from shared.broker import Header, Message
from shared.codec import SCHEMA_VERSION, Encoded
from shared.errors import MalformedMessageError, UnsupportedSchemaError

PLAIN = "plain"
HEADERS = ("schema", "run", "id", "chunk", "chunks", "size", "sha256", "content", "envelope", "signature")
_TEXT = {"run": 16, "id": 200, "sha256": 64, "content": 64, "envelope": 16, "signature": 512}


@dataclass(frozen=True, slots=True)
class ChunkHead:
    """What one chunk says of the whole. `sha256` covers the enveloped bytes, `content` the content inside them."""

    kind: str
    run: str
    id: str
    chunk: int
    chunks: int
    size: int
    sha256: str
    content: str
    envelope: str
    signature: str

    def same_whole(self, other: "ChunkHead") -> bool:
        """Whether two chunks belong to one upload of one content."""
        return (self.kind, self.run, self.id, self.chunks, self.size, self.sha256, self.content) == (
            other.kind,
            other.run,
            other.id,
            other.chunks,
            other.size,
            other.sha256,
            other.content,
        )


def split(
    content: bytes | Encoded,
    *,
    kind: str,
    run_id: str,
    identity: str,
    chunk_bytes: int,
    about: Mapping[str, Header] | None = None,
) -> Iterator[Message]:
    """Cuts a content into chunks of at most `chunk_bytes`; `about` adds headers for people. One message when it fits."""
    whole = content if isinstance(content, Encoded) else Encoded([content])
    digest, count = whole.hash, max(1, -(-whole.size // chunk_bytes))
    for index, body in enumerate(whole.cut(chunk_bytes)):
        headers: dict[str, Header] = {
            "schema": SCHEMA_VERSION,
            "run": run_id,
            "id": identity,
            "chunk": index,
            "chunks": count,
            "size": whole.size,
            "sha256": digest,
            "content": digest,
            "envelope": PLAIN,
            "signature": "",
        }
        yield Message(body, kind, f"{identity}#{index}", headers | dict(about or {}))


def head(message: Message, *, max_bytes: int) -> ChunkHead:
    """Reads a chunk's headers. Raises MalformedMessageError when they are impossible or the whole is over `max_bytes`."""
    headers = message.headers
    if headers.get("schema") != SCHEMA_VERSION:
        raise UnsupportedSchemaError(f"schema header {str(headers.get('schema'))[:20]!r} is not {SCHEMA_VERSION}")
    numbers = {name: _number(headers, name) for name in ("chunk", "chunks", "size")}
    texts = {name: _text(headers, name, limit) for name, limit in _TEXT.items()}
    if numbers["size"] > max_bytes:
        raise MalformedMessageError(f"{numbers['size']} bytes are announced, {max_bytes} are allowed here")
    if not (numbers["chunk"] < numbers["chunks"] <= max(1, numbers["size"])) or len(message.body) > numbers["size"]:
        raise MalformedMessageError("chunk index, count and size do not agree")
    return ChunkHead(kind=message.kind, **numbers, **texts)  # type: ignore[arg-type]  # two typed dicts, one call


def _number(headers: Mapping[str, Header], name: str) -> int:
    value = headers.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise MalformedMessageError(f"the header {name!r} must be a whole number")
    return value


def _text(headers: Mapping[str, Header], name: str, limit: int) -> str:
    value = headers.get(name)
    if not isinstance(value, str) or len(value) > limit:
        raise MalformedMessageError(f"the header {name!r} must be a string of at most {limit} characters")
    return value


def open_envelope(only: ChunkHead, enveloped: bytes) -> bytes:
    """The content of an upload of one chunk, its hashes checked."""
    _check_whole(only, len(enveloped), hashlib.sha256(enveloped).hexdigest())
    return enveloped


def _check_whole(first: ChunkHead, size: int, digest: str) -> None:
    if first.envelope != PLAIN:
        raise MalformedMessageError(f"the envelope {first.envelope!r} is not known here")
    if size != first.size:
        raise MalformedMessageError(f"{size} bytes came, {first.size} were announced")
    if digest != first.sha256 or first.content != first.sha256:
        raise MalformedMessageError("the bytes do not have the announced SHA-256")


class Assembly:
    """Chunks of one upload, in order, written to `sink` (a spool file; memory where none is given) and hashed as they come.

    A chunk that is already there is ignored; one that leaves a gap, or disagrees with the first, is an error.
    """

    def __init__(self, first: ChunkHead, sink: BinaryIO | None = None) -> None:
        self.first = first
        self.received = 0
        self._memory = BytesIO()
        self._sink = sink or self._memory
        self._size = 0
        self._digest = hashlib.sha256()

    def add(self, chunk: ChunkHead, body: bytes) -> bool:
        """Takes one chunk; True once the content is complete."""
        if not chunk.same_whole(self.first):
            raise MalformedMessageError("chunks of one id disagree about the whole")
        if chunk.chunk < self.received:
            return self.complete
        if chunk.chunk > self.received or self._size + len(body) > self.first.size:
            raise MalformedMessageError(f"chunk {chunk.chunk} came where {self.received} was expected")
        self._sink.write(body)
        self._sink.flush()  # a full disk must show while the chunk is not taken yet
        self._digest.update(body)
        self._size += len(body)
        self.received += 1
        return self.complete

    @property
    def complete(self) -> bool:
        """Whether every chunk is there."""
        return self.received == self.first.chunks

    def check(self) -> None:
        """Raises MalformedMessageError where what came is not what was announced."""
        _check_whole(self.first, self._size, self._digest.hexdigest())

    def content(self) -> memoryview:
        """The content that was kept in memory, its hashes checked."""
        self.check()
        return self._memory.getbuffer()
