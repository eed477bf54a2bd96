"""A stranger's reading of docs/wire-format.md: bodies, chunks and the lineage's rule, with msgpack, hashlib and numpy alone.

Nothing here is shared with the workers: what both got wrong in the same way would be found by nobody.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple

import msgpack
import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Tensors = dict[str, Float32]


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """One message as a stream or queue holds it."""

    kind: str
    headers: Mapping[str, int | str | bool]
    body: bytes
    user_id: str | None = None
    offset: int = -1


class Body(NamedTuple):
    """The three parts of a body that matter."""

    kind: str
    fields: dict[str, Any]
    tensors: list[list[Any]]


class UpdateId(NamedTuple):
    """Which update; `institution` is a name or a pseudonym, whatever its reader works with."""

    institution: str
    incarnation: int
    sequence: int


def sha256(content: bytes) -> str:
    """In hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def read_body(content: bytes) -> Body:
    """Raises ValueError for what is not a body of schema 1."""
    try:
        schema, kind, fields, tensors = msgpack.unpackb(content)
    except (msgpack.exceptions.UnpackException, TypeError) as error:
        raise ValueError(f"not a body: {error}") from error
    if schema != 1 or not isinstance(kind, str) or not isinstance(fields, dict):
        raise ValueError("not a body of schema 1")
    return Body(kind, fields, tensors)


def read_tensors(body: Body) -> Tensors:
    """The numbers as float32, whatever they travelled as."""
    return {
        name: _numbers(dtype, encoding, scale, data).reshape(shape) for name, dtype, shape, encoding, scale, data in body.tensors
    }


def _numbers(dtype: str, encoding: str, scale: float | None, data: bytes) -> Float32:
    match (dtype, encoding):
        case ("float32", "raw"):
            return np.frombuffer(data, "<f4")
        case ("bfloat16", "raw"):
            return (np.frombuffer(data, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
        case ("int8", "scaled"):
            return np.frombuffer(data, "i1").astype(np.float32) * np.float32(scale or 0)
        case ("float16", "scaled"):
            return np.frombuffer(data, "<f2").astype(np.float32) * np.float32(scale or 0)
    raise ValueError(f"the page knows no {encoding!r} numbers of dtype {dtype!r}")


def write_blob(kind: str, run_id: str, tensors: Tensors, dtype: str = "float32") -> bytes:
    """A model or state body in the shortest form, as its name, the SHA-256 of it, demands."""
    rows = [
        [name, dtype, list(array.shape), "raw", None, _rounded(array) if dtype == "bfloat16" else array.astype("<f4").tobytes()]
        for name, array in sorted(tensors.items())
    ]
    packed: bytes = msgpack.packb([1, kind, {"run_id": run_id}, rows])
    return packed


def _rounded(array: Float32) -> bytes:
    """bfloat16: to the nearest, ties to the even one."""
    bits = array.astype("<f4").ravel().view(np.uint32).astype(np.uint64)
    kept, dropped = bits >> np.uint64(16), bits & np.uint64(0xFFFF)
    up = (dropped > 0x8000) | ((dropped == 0x8000) & (kept % np.uint64(2) == 1))
    rounded: bytes = (kept + up.astype(np.uint64)).astype("<u2").tobytes()
    return rounded


def whole_contents(stored: Iterable[Stored]) -> Iterator[tuple[str, str, bytes]]:
    """(id header, SHA-256, content) of every upload of which all chunks are there, once each; chunks may repeat or be forged."""
    pieces: dict[tuple[str, str], dict[int, list[bytes]]] = {}
    done: set[tuple[str, str]] = set()
    for message in stored:
        name = (str(message.headers.get("id")), str(message.headers.get("sha256")))
        if name in done:
            continue
        index, count = message.headers.get("chunk"), message.headers.get("chunks")
        if not isinstance(index, int) or not isinstance(count, int):
            continue
        candidates = pieces.setdefault(name, {}).setdefault(index, [])
        if message.body not in candidates:
            candidates.append(message.body)
        content = _assembled(pieces[name], count, name[1])
        if content is not None:
            done.add(name)
            del pieces[name]
            yield *name, content


def _assembled(found: Mapping[int, list[bytes]], count: int, digest: str) -> bytes | None:
    if not all(index in found for index in range(count)):
        return None
    for choice in product(*(found[index] for index in range(count))):
        if sha256(content := b"".join(choice)) == digest:
            return content
    return None


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """One manifest of the chain."""

    hash: str
    manifest: dict[str, Any]
    epoch: int
    model_at: dict[str, int]

    @property
    def version(self) -> int:
        """Of the global model."""
        return int(self.manifest["version"])


@dataclass(slots=True, eq=False)
class Chain:
    """The fold over `fl.lineage`, as the page's section "The lineage" has it, for a reader from the first record on."""

    links: list[Link] = field(default_factory=list)
    epoch: int = 0
    claimant: str = ""
    table: dict[str, dict[str, Any]] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    forks: list[str] = field(default_factory=list)
    ignored: int = 0
    _hashes: set[str] = field(default_factory=set)

    def take(self, message: Stored) -> Link | None:
        """The link that the message adds to the chain; None where it adds none."""
        body = read_body(message.body)
        if body.kind == "claim":
            if body.fields["epoch"] > self.epoch:
                self.epoch, self.claimant = body.fields["epoch"], body.fields["claimant"]
            return None
        record = body.fields
        if record["epoch"] != self.epoch:
            self.ignored += 1
            return None
        link = Link(sha256(record["content"]), read_body(record["content"]).fields, record["epoch"], record["model_at"])
        if link.hash in self._hashes:
            return None
        if not self._follows(link):
            self.forks.append(
                f"version {link.version} of epoch {link.epoch} at offset {message.offset} does not follow the head, and its "
                "epoch is the highest claimed"
            )
            return None
        self._extend(link)
        return link

    def _follows(self, link: Link) -> bool:
        if not self.links:
            return link.version == 0 and link.manifest["previous"] == ""
        head = self.links[-1]
        same_run = link.manifest["run_id"] == head.manifest["run_id"]
        return same_run and link.manifest["previous"] == head.hash and link.version - head.version in (0, 1)

    def _extend(self, link: Link) -> None:
        self.links.append(link)
        self._hashes.add(link.hash)
        self.table = dict(link.manifest["table"]) if link.manifest["whole"] else {**self.table, **link.manifest["table"]}
        self.plan = link.manifest["plan"] or self.plan
