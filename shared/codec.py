"""The body of every message: msgpack of [schema version, kind, fields, tensors]. docs/wire-format.md is its page.

A tensor is [name, dtype, shape, encoding, scale, data]: little-endian, C order. No code travels, ever.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

from shared.errors import MalformedMessageError, UnsupportedSchemaError
from shared.parameters import Array, Parameters

SCHEMA_VERSION = 1
MAX_TENSORS = 4096
MAX_NAME_BYTES = 256
MAX_DIMENSIONS = 8
MAX_FIELDS_BYTES = 16 * 2**20
"""Small objects take up to 70 times their packed bytes in memory; only a tensor's data may be larger than this."""
RAW = "raw"
_MAX_TENSOR_HEAD_BYTES = 1024
_MAX_ELEMENTS = 2**40
_BIN_HEADER_BYTES = {0xC4: 2, 0xC5: 3, 0xC6: 5}
_FLOAT32 = "float32"
_DTYPES = {_FLOAT32: np.dtype("<f4")}


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """A decoded body, not yet checked against what its kind demands."""

    kind: str
    fields: Mapping[str, Any]
    tensors: dict[str, Array]


def content_hash(body: bytes) -> str:
    """SHA-256 of a content in hexadecimal: its identity, whatever envelope it travelled in."""
    return hashlib.sha256(body).hexdigest()


def encode(kind: str, fields: Mapping[str, Any], tensors: Parameters | None = None) -> bytes:
    """The same input gives the same bytes on every machine: maps keep their order, tensors go by name."""
    packed: bytes = msgpack.packb(
        [SCHEMA_VERSION, kind, fields, [_pack_tensor(name, array) for name, array in sorted((tensors or {}).items())]]
    )
    return packed


def decode(body: bytes | memoryview, *, max_bytes: int, max_fields_bytes: int = MAX_FIELDS_BYTES) -> Content:
    """Checks every declared length before memory is taken for it: the body against `max_bytes`, the fields on their own.

    Raises MalformedMessageError or UnsupportedSchemaError. Arrays are read-only views into `body`.
    """
    if len(body) > max_bytes:
        raise MalformedMessageError(f"{len(body)} bytes are more than the {max_bytes} allowed here")
    try:
        return _read_body(memoryview(body).toreadonly(), max_fields_bytes)
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise MalformedMessageError(f"not a msgpack body: {type(error).__name__}") from error


def _read_body(body: memoryview, max_fields_bytes: int) -> Content:
    unpacker = _unpacker(body)
    if unpacker.read_array_header() != 4:
        raise MalformedMessageError("a body must be an array of 4")
    schema, kind, fields = _read_small(unpacker, body, 3, max_bytes=max_fields_bytes)
    if type(schema) is not int or schema != SCHEMA_VERSION:
        found = schema if type(schema) is int else type(schema).__name__
        raise UnsupportedSchemaError(f"schema version {found} is not {SCHEMA_VERSION}")
    if not isinstance(kind, str) or not isinstance(fields, dict):
        raise MalformedMessageError("kind and fields must be a string and a map")
    tensors = _read_tensors(unpacker, body)
    if unpacker.tell() != len(body):
        raise MalformedMessageError("bytes follow after the body")
    return Content(kind, fields, tensors)


def _unpacker(packed: memoryview) -> Any:
    unpacker = msgpack.Unpacker(max_buffer_size=len(packed), max_ext_len=0, strict_map_key=True)
    unpacker.feed(packed)
    return unpacker


def _read_small(unpacker: Any, body: memoryview, count: int, *, max_bytes: int) -> list[Any]:
    """The next `count` objects; they are measured before they are built."""
    start = unpacker.tell()
    for _ in range(count):
        unpacker.skip()
    end = unpacker.tell()
    if end - start > max_bytes:
        raise MalformedMessageError(f"{end - start} bytes of fields are more than the {max_bytes} allowed here")
    reader = _unpacker(body[start:end])
    return [reader.unpack() for _ in range(count)]


def _pack_tensor(name: str, array: Array) -> list[Any]:
    little = np.ascontiguousarray(array, dtype=_DTYPES[_FLOAT32])
    return [name, _FLOAT32, list(array.shape), RAW, None, little.data.cast("B") if little.size else b""]


def _read_tensors(unpacker: Any, body: memoryview) -> dict[str, Array]:
    count = unpacker.read_array_header()
    if count > MAX_TENSORS:
        raise MalformedMessageError(f"{count} tensors are more than {MAX_TENSORS}")
    tensors: dict[str, Array] = {}
    for _ in range(count):
        name, array = _read_tensor(unpacker, body)
        if name in tensors:
            raise MalformedMessageError(f"the tensor {name!r} stands twice")
        tensors[name] = array
    return tensors


def _read_tensor(unpacker: Any, body: memoryview) -> tuple[str, Array]:
    if unpacker.read_array_header() != 6:
        raise MalformedMessageError("a tensor must be an array of 6")
    name, dtype, shape, encoding, scale = _read_small(unpacker, body, 5, max_bytes=_MAX_TENSOR_HEAD_BYTES)
    if not isinstance(name, str) or len(name.encode()) > MAX_NAME_BYTES:
        raise MalformedMessageError(f"a tensor's name must be a string of at most {MAX_NAME_BYTES} bytes")
    if not isinstance(dtype, str) or dtype not in _DTYPES or encoding != RAW or scale is not None:
        raise MalformedMessageError(f"the tensor {name!r} has an unknown dtype or encoding")
    if not _is_shape(shape):
        raise MalformedMessageError(f"the tensor {name!r} has an impossible shape")
    data = _read_data(unpacker, body)
    if data is None or len(data) != math.prod(shape) * _DTYPES[dtype].itemsize:
        raise MalformedMessageError(f"the tensor {name!r} does not hold as many bytes as its shape needs")
    return name, np.frombuffer(data, dtype=_DTYPES[dtype]).reshape(shape)


def _read_data(unpacker: Any, body: memoryview) -> memoryview | None:
    """A byte string where it lies in the body; None where something else stands."""
    start = unpacker.tell()
    unpacker.skip()
    header_bytes = _BIN_HEADER_BYTES.get(body[start])
    return None if header_bytes is None else body[start + header_bytes : unpacker.tell()]


def _is_shape(shape: object) -> bool:
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(_is_size(size) for size in shape):
        return False
    return math.prod(size or 1 for size in shape) <= _MAX_ELEMENTS


def _is_size(size: object) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and size >= 0
