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
RAW = "raw"
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


def decode(body: bytes | memoryview, *, max_bytes: int) -> Content:
    """Checks every declared length against `max_bytes` before memory is taken for it.

    Raises MalformedMessageError or UnsupportedSchemaError. Arrays are read-only views into `body`.
    """
    if len(body) > max_bytes:
        raise MalformedMessageError(f"{len(body)} bytes are more than the {max_bytes} allowed here")
    schema, kind, fields, tensors = _sequence(_unpack(body), 4, "a body")
    if schema != SCHEMA_VERSION or isinstance(schema, bool):
        raise UnsupportedSchemaError(f"schema version {schema!r} is not {SCHEMA_VERSION}")
    if not isinstance(kind, str) or not isinstance(fields, dict) or not isinstance(tensors, list):
        raise MalformedMessageError("kind, fields and tensors must be a string, a map and an array")
    if len(tensors) > MAX_TENSORS:
        raise MalformedMessageError(f"{len(tensors)} tensors are more than {MAX_TENSORS}")
    return Content(kind, fields, _unpack_tensors(tensors))


def _unpack(body: bytes | memoryview) -> object:
    limit = len(body)
    try:
        return msgpack.unpackb(
            body,
            max_bin_len=limit,
            max_str_len=limit,
            max_array_len=limit,
            max_map_len=limit,
            max_ext_len=0,
            strict_map_key=True,
        )
    except (ValueError, msgpack.exceptions.UnpackException, UnicodeDecodeError, RecursionError) as error:
        raise MalformedMessageError(f"not a msgpack body: {type(error).__name__}") from error


def _sequence(value: object, length: int, what: str) -> list[Any]:
    if not isinstance(value, list) or len(value) != length:
        raise MalformedMessageError(f"{what} must be an array of {length}")
    return value


def _pack_tensor(name: str, array: Array) -> list[Any]:
    little = np.ascontiguousarray(array, dtype=_DTYPES[_FLOAT32])
    return [name, _FLOAT32, list(array.shape), RAW, None, little.data.cast("B") if little.size else b""]


def _unpack_tensors(packed: list[Any]) -> dict[str, Array]:
    tensors: dict[str, Array] = {}
    for item in packed:
        name, array = _unpack_tensor(item)
        if name in tensors:
            raise MalformedMessageError(f"the tensor {name!r} stands twice")
        tensors[name] = array
    return tensors


def _unpack_tensor(item: object) -> tuple[str, Array]:
    name, dtype, shape, encoding, scale, data = _sequence(item, 6, "a tensor")
    if not isinstance(name, str) or len(name.encode()) > MAX_NAME_BYTES:
        raise MalformedMessageError(f"a tensor's name must be a string of at most {MAX_NAME_BYTES} bytes")
    if dtype not in _DTYPES or encoding != RAW or scale is not None:
        raise MalformedMessageError(f"the tensor {name!r} has an unknown dtype or encoding")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(_is_size(size) for size in shape):
        raise MalformedMessageError(f"the tensor {name!r} has an impossible shape")
    if not isinstance(data, bytes) or len(data) != math.prod(shape) * _DTYPES[dtype].itemsize:
        raise MalformedMessageError(f"the tensor {name!r} does not hold as many bytes as its shape needs")
    return name, np.frombuffer(data, dtype=_DTYPES[dtype]).reshape(shape)


def _is_size(size: object) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and 0 <= size <= 2**40
