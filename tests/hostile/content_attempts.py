"""Attempts in what a message holds: chunks, msgpack, numbers, tensors and statements. The aggregator refuses them."""

import gzip
import math
import struct
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np

from shared import codec
from shared.compact import Scaled
from tests.builders import RUN, array
from tests.hostile.attempt import Attempt, How
from tests.hostile.institution import HostileInstitution
from tests.hostile.world import DELTA, HOSTILE, PLAN

Contents = Callable[[HostileInstitution], bytes]
LIMIT = PLAN.limits.update_bytes


def sends(make: Contents, kind: str = "update", /, **headers: Any) -> How:
    """One content in an honest envelope, but for these headers."""
    return lambda hostile: hostile.send(hostile.envelope(make(hostile), kind, **headers))


def letter(tries: str, how: How, reason: str) -> Attempt:
    """What can never be used: it goes to the dead letters."""
    return Attempt(tries, how, f"dead letter: {reason}", "aggregator", '"outcome": "refused"')


def settled(tries: str, how: How, outcome: str, reason: str) -> Attempt:
    """What can be read: its number is settled."""
    return Attempt(tries, how, f"{outcome}: {reason}", "aggregator", f'"outcome": "{outcome}"')


def honest(hostile: HostileInstitution) -> bytes:
    """An update as our own worker would make it."""
    return hostile.update()


def lies(tries: str, reason: str, **headers: Any) -> Attempt:
    """An honest update of which the headers lie."""
    return letter(tries, sends(honest, **headers), reason)


def fields(tries: str, reason: str, **changes: Any) -> Attempt:
    """An update whose fields cannot be read."""
    return letter(tries, sends(lambda hostile: hostile.update(**changes)), reason)


def _two_wholes(hostile: HostileInstitution) -> str:
    """The second chunk says that there are more."""
    first, second, *_ = hostile.envelope(bytes(40_000))
    hostile.publish([first])
    return hostile.send([type(second)(second.body, second.kind, second.message_id, {**second.headers, "chunks": 9})])


def _wrong_in_the_middle(hostile: HostileInstitution) -> str:
    """A bit of the second of three chunks is another."""
    chunks = hostile.envelope(bytes(40_000))
    chunks[1] = type(chunks[1])(bytes(len(chunks[1].body) - 1) + b"\x01", "update", chunks[1].message_id, chunks[1].headers)
    return hostile.send(chunks)


COUNTS = "chunk index, count and size do not agree"
ENVELOPES = (
    lies("say that there are 2^40 chunks", COUNTS, chunks=2**40),
    lies(
        "say that there are 2^40 chunks of one byte",
        f"{2**40} bytes are announced, {LIMIT} are allowed here",
        chunks=2**40,
        size=2**40,
    ),
    lies(
        "announce one byte more than an update may have",
        f"{LIMIT + 1} bytes are announced, {LIMIT} are allowed here",
        size=LIMIT + 1,
    ),
    lies("announce fewer bytes than come", COUNTS, size=10),
    lies("announce more bytes than come", "… bytes came, …", size=LIMIT),
    lies("number a chunk beyond the last", COUNTS, chunk=1),
    lies("number a chunk -1", "the header 'chunk' must be a whole number", chunk=-1),
    lies("number a chunk with a text", "the header 'chunk' must be a whole number", chunk="0"),
    lies("begin with the second chunk", "chunk 1 came where 0 was expected", chunk=1, chunks=2),
    letter("change the number of chunks in the middle of an upload", _two_wholes, "chunk 1 came where 0 was expected"),
    letter("change a chunk in the middle of an upload", _wrong_in_the_middle, "the bytes do not have the announced SHA-256"),
    lies("announce another SHA-256", "the bytes do not have the announced SHA-256", sha256="0" * 64, content="0" * 64),
    lies(
        "announce another SHA-256 of the content than of the body",
        "the bytes do not have the announced SHA-256",
        content="0" * 64,
    ),
    lies("write by a schema that does not exist", "schema header '99' is not 1", schema=99),
    letter("send random bytes without headers of ours", lambda hostile: _bare(hostile), "schema header 'None' is not 1"),
)


def _bare(hostile: HostileInstitution) -> str:
    (message,) = hostile.envelope(b"\x80\x04\x95" + bytes(range(256)))
    return hostile.send([type(message)(message.body, message.kind, message.message_id, {})])


def packed(tries: str, reason: str, make: Callable[[HostileInstitution], bytes]) -> Attempt:
    """Bytes that msgpack, or we, must not choke on."""
    return letter(tries, sends(make, identity="bytes"), reason)


def _body(*parts: bytes) -> bytes:
    return b"\x94\x01\xa6update" + b"".join(parts)


def _with(name: str, value: bytes) -> Contents:
    """An honest update with one more field, given in bytes of msgpack."""

    def content(hostile: HostileInstitution) -> bytes:
        known = hostile.fields()
        pairs = b"".join(msgpack.packb(key) + msgpack.packb(each) for key, each in known.items())
        return _body(bytes([0x80 | len(known) + 1]), pairs, msgpack.packb(name) if name else b"", value, b"\x90")

    return content


NOT_MSGPACK, CUT = "not a msgpack body: …", "the body ends in the middle"
BOMBS = (
    packed(
        "send a pickle that runs a program",
        "not a msgpack body: …",
        lambda _: b"\x80\x04\x95\x1f\x8c\x05posix\x8c\x06system\x93.",
    ),
    packed("send a gzip bomb (256 KiB in 300 bytes)", NOT_MSGPACK, lambda _: gzip.compress(bytes(2**18))),
    packed("send arrays 50,000 deep", NOT_MSGPACK, lambda _: _body(b"\x91" * 50_000 + b"\x90", b"\x90")),
    packed("send maps 10,000 deep", NOT_MSGPACK, lambda _: _body(b"\x81\xa1a" * 10_000 + b"\x80", b"\x90")),
    packed("announce a map of 2^32 - 1 fields", CUT, lambda _: _body(b"\xdf\xff\xff\xff\xff", b"\x90")),
    packed(
        "announce an array of 2^32 - 1 tensors",
        "4294967295 tensors are more than 4096",
        lambda _: _body(b"\x80", b"\xdd\xff\xff\xff\xff"),
    ),
    packed("announce a text of 4 GiB", CUT, _with("", b"\xdb\xff\xff\xff\xff")),
    packed(
        "send a map of 8,000 fields", "update: field …", lambda _: codec.encode("update", {f"{i:05}": 0 for i in range(8_000)})
    ),
    packed("use msgpack's extension types", NOT_MSGPACK, _with("", b"\xc7\x04\x01abcd\xc0")),
    packed("use a time as a field", NOT_MSGPACK, _with("at", b"\xd6\xff\0\0\0\0")),
    packed("use NaN as the name of a field", NOT_MSGPACK, _with("", b"\xcb" + struct.pack(">d", math.nan) + b"\xc0")),
    packed("use a number as the name of a field", NOT_MSGPACK, _with("", b"\x07\xc0")),
    packed("name a field twice", "a name stands twice in a map", _with("sequence", b"\x02")),
    packed("add a field that no update has", "update: field extra: extra_forbidden", _with("extra", b"\xc0")),
    packed("let bytes follow after the body", "bytes follow after the body", lambda hostile: hostile.update() + b"\xc0"),
    packed("end in the middle", CUT, lambda hostile: hostile.update()[:-20]),
    packed(
        "send 224 KiB of fields",
        "more bytes of fields than the 65536 allowed here",
        _with("institution", b"\xdb\0\x03\x80\0" + b"a" * 0x38000),
    ),
)


def tensor(tries: str, reason: str, *parts: object) -> Attempt:
    """An update with this one tensor, as msgpack writes it."""
    return letter(
        tries, sends(lambda hostile: msgpack.packb([1, "update", hostile.fields(), [list(parts)]]), identity="tensor"), reason
    )


UNKNOWN, IMPOSSIBLE = "the tensor 'w' has an unknown dtype or encoding", "the tensor 'w' has an impossible shape"
SHORT, SCALE = (
    "the tensor 'w' does not hold as many bytes as its shape needs",
    "the tensor 'w' has a scale that its encoding does not have",
)
TENSORS = (
    tensor("send numbers of 64 bits", UNKNOWN, "w", "float64", [3], "raw", None, bytes(24)),
    tensor("send an array of Python objects", UNKNOWN, "w", "object", [3], "raw", None, bytes(24)),
    tensor("give a map as the type of the numbers", UNKNOWN, "w", {"float32": 1}, [3], "raw", None, bytes(12)),
    tensor("give a shape of 2^120 numbers", IMPOSSIBLE, "w", "float32", [2**60, 2**60], "raw", None, b""),
    tensor("give a shape of 0 times 2^60 numbers", IMPOSSIBLE, "w", "float32", [0, 2**60], "raw", None, b""),
    tensor("give a shape with a negative side", IMPOSSIBLE, "w", "float32", [-3], "raw", None, bytes(12)),
    tensor("give a shape of 100 sides", IMPOSSIBLE, "w", "float32", [1] * 100, "raw", None, bytes(4)),
    tensor("hold fewer numbers than the shape says", SHORT, "w", "float32", [3], "raw", None, bytes(8)),
    tensor("hold 10,000 maps for numbers", SHORT, "w", "float32", [3], "raw", None, [{}] * 10_000),
    tensor("scale a tensor by NaN", SCALE, "w", "int8", [3], "scaled", math.nan, bytes(3)),
    tensor("scale a tensor by 1e300", SCALE, "w", "int8", [3], "scaled", 1e300, bytes(3)),
    tensor("scale a tensor by 0", SCALE, "w", "int8", [3], "scaled", 0.0, bytes(3)),
    letter(
        "send 5,000 tensors",
        sends(lambda hostile: hostile.update({f"t{i}": array() for i in range(5_000)})),
        "5000 tensors are more than 4096",
    ),
    letter(
        "send a tensor twice",
        sends(lambda hostile: msgpack.packb([1, "update", hostile.fields(), [["w", "float32", [1], "raw", None, bytes(4)]] * 2])),
        "the tensor 'w' stands twice",
    ),
    letter(
        "give a tensor a name of 900 letters",
        sends(lambda hostile: hostile.update({"w" * 900: array(1)})),
        "a tensor's name must be a string of at most 256 bytes",
    ),
)


def values(tries: str, reason: str, tensors: dict[str, Any]) -> Attempt:
    """Tensors that can be read, and not be folded."""
    return settled(tries, sends(lambda hostile: hostile.update(tensors)), "rejected", reason)


NOT_FINITE = "a value is not finite"
VALUES = (
    values("send a NaN among the numbers", NOT_FINITE, {"w": array(1, math.nan, 3)}),
    values("send an infinity among the numbers", NOT_FINITE, {"w": array(1, math.inf, 3)}),
    values("send numbers whose length overflows", NOT_FINITE, {"w": array(3e38, 3e38, 3e38)}),
    values(
        "send int8 numbers times 3.4e38", NOT_FINITE, {"w": Scaled(np.full(3, 127, np.int8), float(np.finfo(np.float32).max))}
    ),
    values("send another shape than the model's", "the array 'w' has shape (2,), the model has (3,)", {"w": array(1, 2)}),
    values("send an empty tensor", "the array 'w' has shape (0,), the model has (3,)", {"w": array()}),
    values("leave out a tensor", "the array 'w' is missing", {}),
    values("add a tensor", "the model has no array 'v'", {"w": array(1, 2, 3), "v": array(1)}),
    values("send a tensor of another name", "the array 'w' is missing", {"v": array(1, 2, 3)}),
)

NUMBERS = (
    fields("number an update 0", "update: field sequence: greater_than_equal", sequence=0),
    fields("number an update -1", "update: field sequence: greater_than_equal", sequence=-1),
    fields("number an update 10^9", "number 1000000000 is more than 64 ahead of …", sequence=10**9),
    fields("number an update 2^64 - 1", f"number {2**64 - 1} is more than 64 ahead of …", sequence=2**64 - 1),
    fields("number an update 1.0", "update: field sequence: int_type", sequence=1.0),
    fields("claim -5 examples", "update: field num_examples: greater_than_equal", num_examples=-5),
    fields("claim no examples", "update: field num_examples: greater_than_equal", num_examples=0),
    fields("claim infinitely many examples", "update: field num_examples: int_type", num_examples=math.inf),
    fields("claim a base version of -1", "update: field base_version: greater_than_equal", base_version=-1),
    fields("leave out the base", "update: field base_hash: missing", base_hash=...),
    fields(
        "take an incarnation that was never issued", "incarnation 7 was never issued, 1 is the newest", incarnation=7, sequence=1
    ),
    fields("take incarnation 0", "update: field incarnation: greater_than_equal", incarnation=0),
    fields("send an update of another run", f"the message belongs to run '{'cd' * 8}', this is '{RUN}'", run_id="cd" * 8),
)


def stale(tries: str, reason: str, **changes: Any) -> Attempt:
    """An update on what never was."""
    return settled(tries, sends(lambda hostile: hostile.update(**changes)), "stale", reason)


BASES = (
    stale("build on a version that does not exist yet", "staleness -…", base_version=10**6),
    stale("build on another model than the version's (base hash lie)", "its base is not in the lineage", base_hash="e" * 64),
    stale("pretend to be fresher than it is (staleness lie)", "its base is not in the lineage", base_version=1),
    stale("name the plan of another federation", "made under another plan", plan_hash="e" * 64),
)


def states(tries: str, reason: str, tensors: dict[str, Any] | None = None, **privacy: Any) -> Attempt:
    """An honest update whose privacy statement lies."""
    return settled(tries, sends(lambda hostile: hostile.update(tensors, privacy=privacy)), "rejected", reason)


STATEMENTS = (
    states("state no mechanism of privacy", "it states mechanism none, the plan's is dp-sgd", mechanism="none"),
    states("state another clipping norm", "it states clipping norm 100.0, the plan's is 1.0", clipping_norm=100.0),
    states("state another sample rate", "it states sample rate 0.001, the plan's is 0.25", sample_rate=0.001),
    states("state fewer steps", "it states steps 1, the plan's is 10", steps=1),
    states("state another target delta", "it states target delta 0.5, the plan's is 1e-05", target_delta=0.5),
    states(
        "state a noise multiplier of NaN",
        "it states the noise multiplier nan, which is not a positive number",
        noise_multiplier=math.nan,
    ),
    states(
        "state a negative noise multiplier",
        "it states the noise multiplier -1.0, which is not a positive number",
        noise_multiplier=-1.0,
    ),
    states("state more noise than the values hold", "its norm is 3.74, …", noise_multiplier=1e6),
    states("state a noise multiplier of 10^308", "its norm is 3.74, …", noise_multiplier=1e308),
    states("state noise and send none", "its norm is 0, …", {"w": array(0, 0, 0)}),
    states("state less epsilon than before", "it states epsilon 0.1 after …", epsilon_spent=0.1),
    letter(
        "state an epsilon of NaN",
        sends(lambda hostile: hostile.update(privacy={"epsilon_spent": math.nan})),
        "update: field privacy.epsilon_spent: greater_than_equal",
    ),
    states("state no epsilon", "it states no epsilon", epsilon_spent=None),
    states(
        "hide a unit that the mechanism does not hide",
        "it states the unit institution, dp-sgd hides a record or a person",
        unit="institution",
    ),
)


def _weighs_at_most_a_half(how: How) -> How:
    """An update that can be folded, and what it counts for."""

    def tries(hostile: HostileInstitution) -> str:
        hostile.world.hands[HOSTILE].deltas[hostile.next_sequence] = DELTA
        answer = how(hostile)
        weight = float.fromhex(hostile.world.watch.settled[-1].weight)
        return f"{answer}, at a weight of {'at most' if weight <= 0.5 else 'more than'} one half"

    return tries


def counts(tries: str, **changes: Any) -> Attempt:
    """What a member may always do: give an update. That it lies about itself gives it no more than the plan's bounds."""
    how = _weighs_at_most_a_half(sends(lambda hostile: hostile.update(**changes)))
    said = "aggregated, at a weight of at most one half"
    return Attempt(tries, how, said, "aggregator", '"outcome": "aggregated"', moves_the_model=True)


def spends(tries: str, reason: str, epsilon: float) -> Attempt:
    """An update that says what it has spent."""
    how = sends(lambda hostile: hostile.update(privacy={"epsilon_spent": epsilon}))
    return settled(tries, how, "over_budget", reason)


MEMBER = (
    counts("claim 2^63 examples", num_examples=2**63),
    counts("claim 2^64 - 1 examples", num_examples=2**64 - 1),
    counts("state a noise multiplier of 5e-324", privacy={"noise_multiplier": 5e-324}),
    spends("state an epsilon of 10^300", "epsilon 1e+300 is over the plan's 3", 1e300),
    spends("go on after its budget is spent", "its budget under this plan is spent", 1e300),
)
KIND = "a message of kind '{}' on an update queue"
KINDS = tuple(
    letter(f"send {what}", sends(lambda _: b"x", kind), KIND.format(kind))
    for what, kind in (
        ("a manifest's record as its own message", "record"),
        ("an operator's order as its own message", "operation"),
        ("a model as its own message", "model"),
        ("a message of a kind that does not exist", "everything"),
    )
)

ATTEMPTS = (*ENVELOPES, *BOMBS, *TENSORS, *VALUES, *NUMBERS, *BASES, *STATEMENTS, *KINDS, *MEMBER)
