"""The body of every message: msgpack of [schema version, kind, fields, tensors]. docs/wire-format.md is its page.

A tensor is [name, dtype, shape, encoding, scale, data]: little-endian, C order. Its numbers are the data ("raw"), or the data
times the scale ("scaled"). No code travels, ever.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import msgpack
import numpy as np
from numpy.typing import NDArray

from shared.compact import Delta, Scaled, Tensor
from shared.errors import MalformedMessageError, UnsupportedSchemaError
from shared.parameters import from_bfloat16, to_bfloat16

SCHEMA_VERSION = 1
MAX_TENSORS = 4096
MAX_NAME_BYTES = 256
MAX_DIMENSIONS = 8
MAX_FIELDS_BYTES = 16 * 2**20
"""Small objects take up to 70 times their packed bytes in memory; only a tensor's data may be larger than this."""
RAW = "raw"
SCALED = "scaled"
_MAX_TENSOR_HEAD_BYTES = 1024
_MAX_ELEMENTS = 2**40
_BIN_LENGTH_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_LONGEST_HEADER_BYTES = 5
_USUAL_FIELDS_BYTES = 4096
_LARGEST_STEP = float(np.finfo(np.float32).max)
Dtype = Literal["float32", "bfloat16"]
"""How a whole array's numbers travel; in memory they are float32."""
_STORED: dict[tuple[str, str], np.dtype[Any]] = {
    ("float32", RAW): np.dtype("<f4"),
    ("bfloat16", RAW): np.dtype("<u2"),
    ("int8", SCALED): np.dtype("i1"),
    ("float16", SCALED): np.dtype("<f2"),
}
"""By dtype and encoding."""


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """A decoded body, not yet checked against what its kind demands."""

    kind: str
    fields: Mapping[str, Any]
    tensors: dict[str, Tensor]


def content_hash(body: bytes) -> str:
    """SHA-256 of a content in hexadecimal: its identity, whatever envelope it travelled in."""
    return hashlib.sha256(body).hexdigest()


@dataclass(frozen=True, eq=False)
class Encoded:
    """A content as a row of buffers, so that one of 400 MB need not be put together in memory."""

    buffers: Sequence[bytes | memoryview]

    @cached_property
    def size(self) -> int:
        """In bytes."""
        return sum(len(buffer) for buffer in self.buffers)

    @cached_property
    def hash(self) -> str:
        """See `content_hash`."""
        digest = hashlib.sha256()
        for buffer in self.buffers:
            digest.update(buffer)
        return digest.hexdigest()

    def cut(self, piece_bytes: int) -> Iterator[bytes]:
        """The content in pieces of `piece_bytes`, the last one shorter; one piece at least."""
        if self.size <= piece_bytes:
            yield self.joined()
            return
        piece = bytearray()
        for buffer in self.buffers:
            rest = memoryview(buffer)
            while len(piece) + len(rest) >= piece_bytes:
                room = piece_bytes - len(piece)
                yield b"".join((piece, rest[:room]))
                rest = rest[room:]
                piece.clear()
            piece += rest
        if piece:
            yield bytes(piece)

    def joined(self) -> bytes:
        """The content in one piece."""
        return b"".join(self.buffers)


def encode(kind: str, fields: Mapping[str, Any], tensors: Delta | None = None) -> bytes:
    """The same input gives the same bytes on every machine: maps keep their order, tensors go by name."""
    return encode_parts(kind, fields, tensors).joined()


def encode_parts(kind: str, fields: Mapping[str, Any], tensors: Delta | None = None, *, dtype: Dtype = "float32") -> Encoded:
    """As `encode`, arrays as `dtype`. What is not converted for it are views, which must not change while the result is used."""
    packer = msgpack.Packer(autoreset=False)
    packer.pack_array_header(4)
    for value in (SCHEMA_VERSION, kind, fields):
        packer.pack(value)
    packer.pack_array_header(len(tensors or {}))
    buffers: list[bytes | memoryview] = []
    for name, tensor in sorted((tensors or {}).items()):
        travelling, encoding, scale, stored = _stored(tensor, dtype)
        packer.pack_array_header(6)
        for part in (name, travelling, list(tensor.shape), encoding, scale):
            packer.pack(part)
        buffers += [packer.bytes() + _bin_header(stored.nbytes), stored.reshape(-1).view(np.uint8).data]
        packer.reset()
    return Encoded(buffers or [packer.bytes()])


def _stored(tensor: Tensor, dtype: Dtype) -> tuple[str, str, float | None, NDArray[Any]]:
    """dtype, encoding, scale, and the numbers as they are written."""
    if isinstance(tensor, Scaled):
        travelling = tensor.values.dtype.name
        return travelling, SCALED, tensor.step, np.ascontiguousarray(tensor.values, dtype=_STORED[travelling, SCALED])
    stored: NDArray[Any] = to_bfloat16(tensor) if dtype == "bfloat16" else tensor
    return dtype, RAW, None, np.ascontiguousarray(stored, dtype=_STORED[dtype, RAW])


def decode(body: bytes | memoryview, *, max_bytes: int, max_fields_bytes: int = MAX_FIELDS_BYTES) -> Content:
    """Checks every declared length before memory is taken for it: the body against `max_bytes`, the fields on their own.

    Raises MalformedMessageError or UnsupportedSchemaError. Arrays of float32 and the values of scaled tensors are read-only
    views into `body`, arrays of bfloat16 are new.
    """
    if len(body) > max_bytes:
        raise MalformedMessageError(f"{len(body)} bytes are more than the {max_bytes} allowed here")
    try:
        return _read_body(_Walk(memoryview(body).toreadonly()), max_fields_bytes)
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise MalformedMessageError(f"not a msgpack body: {type(error).__name__}") from error


def _read_body(walk: "_Walk", max_fields_bytes: int) -> Content:
    if walk.array_header() != 4:
        raise MalformedMessageError("a body must be an array of 4")
    schema, kind, fields = walk.small(3, max_bytes=max_fields_bytes)
    if type(schema) is not int or schema != SCHEMA_VERSION:
        found = schema if type(schema) is int else type(schema).__name__
        raise UnsupportedSchemaError(f"schema version {found} is not {SCHEMA_VERSION}")
    if not isinstance(kind, str) or not isinstance(fields, dict):
        raise MalformedMessageError("kind and fields must be a string and a map")
    tensors = _read_tensors(walk)
    if walk.at != len(walk.body):
        raise MalformedMessageError("bytes follow after the body")
    return Content(kind, fields, tensors)


class _Walk:
    """Goes through a body from its first byte on. msgpack copies what it is given, so it gets no tensor's data."""

    def __init__(self, body: memoryview) -> None:
        self.body = body
        self.at = 0

    def array_header(self) -> int:
        """How many items follow."""
        unpacker = _unpacker(self.body[self.at : self.at + _LONGEST_HEADER_BYTES])
        count: int = unpacker.read_array_header()
        self.at += unpacker.tell()
        return count

    def small(self, count: int, *, max_bytes: int) -> list[Any]:
        """The next `count` objects; they are measured before they are built."""
        size = self._measured(count, max_bytes)
        reader = _unpacker(self.body[self.at : self.at + size])
        self.at += size
        return [reader.unpack() for _ in range(count)]

    def _measured(self, count: int, max_bytes: int) -> int:
        for window in (min(_USUAL_FIELDS_BYTES, max_bytes), max_bytes):
            unpacker = _unpacker(self.body[self.at : self.at + window])
            try:
                for _ in range(count):
                    unpacker.skip()
            except msgpack.OutOfData:
                continue
            return int(unpacker.tell())
        if len(self.body) - self.at > max_bytes:
            raise MalformedMessageError(f"more bytes of fields than the {max_bytes} allowed here")
        raise MalformedMessageError("the body ends in the middle")

    def data(self) -> memoryview | None:
        """The next byte string where it lies in the body; None where something else stands, or its end is missing."""
        first = self.at + 1
        width = _BIN_LENGTH_BYTES.get(self.body[self.at]) if self.at < len(self.body) else None
        if width is None:
            return None
        size = int.from_bytes(self.body[first : first + width], "big")
        self.at = first + width + size
        return self.body[first + width : self.at] if self.at <= len(self.body) else None


def _unpacker(packed: memoryview) -> Any:
    unpacker = msgpack.Unpacker(
        max_buffer_size=max(1, len(packed)), max_ext_len=0, strict_map_key=True, object_pairs_hook=_named_once
    )
    unpacker.feed(packed)
    return unpacker


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A map, unless readers could differ about it: of a name that stands twice each would take another value."""
    named = dict(pairs)
    if len(named) < len(pairs):
        raise MalformedMessageError("a name stands twice in a map")
    return named


def _bin_header(data_bytes: int) -> bytes:
    """What msgpack puts before a byte string: the shortest form, as its own packer chooses it."""
    for first, width in _BIN_LENGTH_BYTES.items():
        if data_bytes < 1 << (8 * width):
            return bytes([first]) + data_bytes.to_bytes(width, "big")
    raise ValueError(f"a tensor of {data_bytes} bytes does not fit into msgpack")


def _read_tensors(walk: _Walk) -> dict[str, Tensor]:
    count = walk.array_header()
    if count > MAX_TENSORS:
        raise MalformedMessageError(f"{count} tensors are more than {MAX_TENSORS}")
    tensors: dict[str, Tensor] = {}
    for _ in range(count):
        name, tensor = _read_tensor(walk)
        if name in tensors:
            raise MalformedMessageError(f"the tensor {name!r} stands twice")
        tensors[name] = tensor
    return tensors


def _read_tensor(walk: _Walk) -> tuple[str, Tensor]:
    if walk.array_header() != 6:
        raise MalformedMessageError("a tensor must be an array of 6")
    name, dtype, shape, encoding, scale = walk.small(5, max_bytes=_MAX_TENSOR_HEAD_BYTES)
    if not isinstance(name, str) or len(name.encode()) > MAX_NAME_BYTES:
        raise MalformedMessageError(f"a tensor's name must be a string of at most {MAX_NAME_BYTES} bytes")
    if not isinstance(dtype, str) or not isinstance(encoding, str) or (dtype, encoding) not in _STORED:
        raise MalformedMessageError(f"the tensor {name!r} has an unknown dtype or encoding")
    if not (_is_step(scale) if encoding == SCALED else scale is None):
        raise MalformedMessageError(f"the tensor {name!r} has a scale that its encoding does not have")
    if not _is_shape(shape):
        raise MalformedMessageError(f"the tensor {name!r} has an impossible shape")
    stored, data = _STORED[dtype, encoding], walk.data()
    if data is None or len(data) != math.prod(shape) * stored.itemsize:
        raise MalformedMessageError(f"the tensor {name!r} does not hold as many bytes as its shape needs")
    numbers = np.frombuffer(data, dtype=stored).reshape(shape)
    if encoding == SCALED:
        return name, Scaled(numbers, float(scale))
    return name, from_bfloat16(numbers) if dtype == "bfloat16" else numbers


def _is_step(scale: object) -> bool:
    """Whether it is a float32 number, positive and finite: nobody may round it in a way of their own."""
    if not isinstance(scale, int | float) or isinstance(scale, bool) or not 0 < scale <= _LARGEST_STEP:
        return False
    return float(np.float32(scale)) == scale


def _is_shape(shape: object) -> bool:
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(_is_size(size) for size in shape):
        return False
    return math.prod(size or 1 for size in shape) <= _MAX_ELEMENTS


def _is_size(size: object) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and size >= 0
