"""docs/wire-format.md: its examples are what the code writes, and who knows only the page can read and write them."""

import hashlib
import hmac
import math
import re
import struct
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from aggregator_worker.admission import admit
from aggregator_worker.dead_letters import put_aside
from aggregator_worker.server_state import Contribution, ServerState
from broker_config.memory import MemoryRabbit
from broker_config.topology import DEAD_LETTERS, topology
from client_worker.compact import compacted
from shared import codec, messages
from shared.broker import Delivery, Message
from shared.chunks import HEADERS, head, split
from shared.codec import Dtype
from shared.errors import ForgedMessageError
from shared.lineage import Lineage, fold, fold_claim
from shared.messages import (
    Account,
    BlobName,
    Claim,
    Counters,
    Entry,
    Hello,
    Location,
    Manifest,
    PrivacyStatement,
    Settlement,
    Update,
)
from shared.noise import least_norm, noise_std
from shared.parameters import to_bfloat16
from shared.plan import AggregationPlan, Mechanism, Plan, PrivacyPlan, ServerAdam

PAGE = Path(__file__).parent.parent / "docs" / "wire-format.md"
RUN, SECRET = "0123456789abcdef", b"run secret"
PLAN = Plan(task="toy", task_hash="0" * 64)
MODEL = {"weight": np.array([[1.0, -2.0]], np.float32), "bias": np.array([0.5], np.float32)}
BETWEEN = {"weight": np.array([[1 + 2.0**-8, -(1 + 2.0**-7 + 2.0**-8)]], np.float32), "bias": MODEL["bias"]}
DELTA = {"weight": np.array([[0.25, -0.5]], np.float32), "bias": np.array([0.125], np.float32)}
EXAMPLES = ("model", "model-bfloat16", "hello", "update", "update-int8", "claim", "record-0", "record-1")
KEYED = ("statement", "sealed")  # test_wire_format_keys.py has them


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def page_bytes(name: str) -> bytes:
    """The bytes of a block ```hex NAME of the page; what follows a # on a line is for people."""
    (block,) = re.findall(rf"^```hex {re.escape(name)}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return bytes.fromhex("".join(line.partition("#")[0] for line in block.splitlines()))


def written_by_the_code() -> dict[str, bytes]:
    """The run of the page: one institution, version 0, its update, and version 1 that settles it."""
    alias = messages.pseudonym(SECRET, "bank-a")
    model = messages.encode_model(RUN, MODEL).joined()
    base = BlobName(hash=codec.content_hash(model), size=len(model))
    zero = messages.manifest_record(1, a_manifest(base, alias), Location(offset=0, chunks=1))
    update = messages.encode("update", an_update(base, zero.manifest.plan_hash), DELTA)
    second = {name: MODEL[name] + DELTA[name] for name in MODEL}
    next_model = messages.encode_model(RUN, second).joined()
    one = messages.manifest_record(
        1, the_next_manifest(zero, next_model, alias=alias, update_hash=codec.content_hash(update)), Location(offset=1, chunks=1)
    )
    return {
        "model": model,
        "model-bfloat16": messages.encode_model(RUN, BETWEEN, "bfloat16").joined(),
        "update": update,
        "update-int8": an_update_in_bytes(base, zero.manifest.plan_hash),
        "hello": messages.encode("hello", a_hello()),
        "claim": messages.encode("claim", Claim(run_id=RUN, epoch=1, claimant="operator", after=-1)),
        "record-0": messages.encode_record(zero),
        "record-1": messages.encode_record(one),
    }


def a_manifest(base: BlobName, alias: str) -> Manifest:
    return Manifest(
        run_id=RUN,
        version=0,
        previous="",
        model=base,
        state=None,
        plan_hash=PLAN.hash,
        plan=PLAN,
        phase="running",
        phase_reason="",
        settled=[],
        whole=True,
        table={alias: Entry(incarnation=1)},
        scalars={},
        operations=[],
        operation_ids=[],
        metrics={},
    )


def an_update(base: BlobName, plan_hash: str) -> Update:
    return Update(
        run_id=RUN,
        institution="bank-a",
        incarnation=1,
        sequence=1,
        base_version=0,
        base_hash=base.hash,
        plan_hash=plan_hash,
        num_examples=1000,
        privacy=PrivacyStatement(
            mechanism="dp-sgd",
            unit="record",
            clipping_norm=1.0,
            noise_multiplier=1.5,
            sample_rate=0.25,
            steps=10,
            epsilon_spent=0.75,
            target_delta=1e-5,
        ),
    )


def an_update_in_bytes(base: BlobName, plan_hash: str) -> bytes:
    update = an_update(base, plan_hash)
    std = noise_std(update.privacy, PLAN, update.num_examples)
    return messages.encode("update", update, compacted(DELTA, "int8", std))


def a_hello() -> Hello:
    return Hello(
        run_id=RUN,
        institution="bank-a",
        incarnation=1,
        head_sequence=0,
        head_hash="",
        nonce="fedcba9876543210",
        num_examples=1000,
    )


def the_next_manifest(zero: messages.ManifestRecord, model: bytes, *, alias: str, update_hash: str) -> Manifest:
    settlement = Settlement(
        institution=alias,
        incarnation=1,
        sequence=1,
        hash=update_hash,
        outcome="aggregated",
        base_version=0,
        base_hash=zero.manifest.model.hash,
        weight=(1.0).hex(),
    )
    entry = Entry(
        incarnation=1,
        watermark=1,
        last_hash=update_hash,
        epsilon_spent=0.75,
        target_delta=1e-5,
        mechanism="dp-sgd",
        noise_multiplier=1.5,
        num_examples=1000,
        nonce="fedcba9876543210",
        account=Account(since_cycles=1.0, since_credit=0.001, interval=1.0),
        total_weight=(1.0).hex(),
        counters=Counters(aggregated=1),
    )
    changes = {
        "version": 1,
        "previous": zero.hash,
        "model": BlobName(hash=codec.content_hash(model), size=len(model)),
        "plan": None,
        "settled": [settlement],
        "whole": False,
        "table": {alias: entry},
        "scalars": {"clock_cycles": (1.0).hex(), "clock_credit": (0.001).hex(), "clock_forfeited": (0.0).hex()},
        "metrics": {"auc": 0.75},
    }
    return zero.manifest.model_copy(update=changes)


def read_body(body: bytes) -> tuple[str, dict[str, Any], dict[str, tuple[list[int], tuple[float, ...]]]]:
    """A body by the page alone: kind, fields, and each tensor's shape and numbers."""
    schema, kind, fields, tensors = msgpack.unpackb(body)
    assert schema == 1
    numbers = {}
    for name, dtype, shape, encoding, scale, data in tensors:
        assert encoding == ("raw" if scale is None else "scaled")
        numbers[name] = (shape, read_numbers(dtype, data) if scale is None else scaled_numbers(dtype, scale, data))
    return kind, fields, numbers


def read_numbers(dtype: str, data: bytes) -> tuple[float, ...]:
    """A tensor's data by the page alone."""
    if dtype == "bfloat16":
        data = b"".join(b"\0\0" + data[start : start + 2] for start in range(0, len(data), 2))
    return struct.unpack(f"<{len(data) // 4}f", data)


def scaled_numbers(dtype: str, scale: float, data: bytes) -> tuple[float, ...]:
    """A scaled tensor's data by the page alone."""
    letter, size = {"int8": ("b", 1), "float16": ("e", 2)}[dtype]
    products = (value * scale for value in struct.unpack(f"<{len(data) // size}{letter}", data))
    return tuple(struct.unpack("<f", struct.pack("<f", product))[0] for product in products)


def rounded_by_chance(delta: dict[str, np.ndarray], scales: dict[str, float]) -> dict[str, tuple[int, ...]]:
    """The int8 numbers, given the steps, by the page alone."""
    key = hashlib.sha256()
    for name, array in sorted(delta.items()):
        key.update(msgpack.packb([name, list(array.shape)]) + struct.pack(f"<{array.size}f", *array.flat))
    stream = Cipher(algorithms.ChaCha20(key.digest(), bytes(16)), mode=None).encryptor()
    found = {}
    for name, array in sorted(delta.items()):
        draws = struct.unpack(f"<{array.size}H", stream.update(bytes(2 * array.size)))
        finest = [round(float(np.float32(value / (scales[name] / 2**16)))) for value in array.flat]
        found[name] = tuple((fine + draw) // 2**16 for fine, draw in zip(finest, draws, strict=True))
    return found


def rounded(number: float) -> int:
    """A float32 number as a bfloat16, by the page alone."""
    (bits,) = struct.unpack("<I", struct.pack("<f", number))
    return 0x7FC0 if math.isnan(number) else (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


def write_body(kind: str, fields: dict[str, Any], tensors: dict[str, tuple[list[int], list[float]]]) -> bytes:
    """A body by the page alone."""
    packed = [
        [name, "float32", shape, "raw", None, struct.pack(f"<{len(numbers)}f", *numbers)]
        for name, (shape, numbers) in sorted(tensors.items())
    ]
    return bytes(msgpack.packb([1, kind, fields, packed]))


def a_foreign_update() -> bytes:
    """An update from a program that was written from the page, on the page's model and plan."""
    _, record, _ = read_body(page_bytes("record-0"))
    _, manifest, _ = read_body(record["content"])
    privacy = {
        "mechanism": "dp-sgd",
        "unit": "record",
        "clipping_norm": 1.0,
        "noise_multiplier": 1.5,
        "sample_rate": 0.25,
        "steps": 10,
        "epsilon_spent": 1.25,
        "target_delta": manifest["plan"]["privacy"]["target_delta"],
    }
    fields = {
        "run_id": manifest["run_id"],
        "institution": "bank-a",
        "incarnation": 1,
        "sequence": 1,
        "base_version": manifest["version"],
        "base_hash": manifest["model"]["hash"],
        "plan_hash": manifest["plan_hash"],
        "num_examples": 3,
        "privacy": privacy,
    }
    return write_body("update", fields, {"weight": ([1, 2], [-1.0, 4.0]), "bias": ([1], [8.0])})


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_of_the_page_is_byte_for_byte_what_the_code_writes(name: str) -> None:
    assert page_bytes(name).hex() == written_by_the_code()[name].hex()


def test_every_hex_block_of_the_page_is_one_of_the_examples() -> None:
    found = re.findall(r"^```hex (\S+)$", PAGE.read_text(), re.MULTILINE)

    assert sorted(found) == sorted(EXAMPLES + KEYED)


@pytest.mark.parametrize("name", [*EXAMPLES, "manifest-0", "manifest-1", "plan"])
def test_the_page_states_the_hash_and_size_of_each_example(name: str) -> None:
    whole, size = name.removeprefix("manifest-"), ""
    if name == "plan":
        digest = PLAN.hash
    elif name in EXAMPLES:
        digest, size = sha256(page_bytes(name)), str(len(page_bytes(name)))
    else:
        digest = sha256(read_body(page_bytes(f"record-{whole}"))[1]["content"])

    assert f"| `{name}` | `{digest}` | {size} |\n" in PAGE.read_text()


def test_a_hash_that_is_cut_short_in_an_explanation_is_one_of_the_table() -> None:
    whole = re.findall(r"^\| `\S+` \| `([0-9a-f]{64})` \|", PAGE.read_text(), re.MULTILINE)

    assert set(re.findall(r'"([0-9a-f]{12})\.\.\."', PAGE.read_text())) <= {digest[:12] for digest in whole}


@pytest.mark.parametrize("version", ["0", "1"])
def test_the_page_says_where_the_manifest_stands_in_each_record(version: str) -> None:
    record = page_bytes(f"record-{version}")
    content = read_body(record)[1]["content"]
    section = PAGE.read_text().partition(f"### The record of version {version}\n")[2].partition("```")[0]

    assert f"starts at byte {record.index(content)} and has {len(content)} bytes" in section


def test_a_reader_who_knows_only_the_page_finds_the_update_and_the_model_it_is_based_on() -> None:
    kind, fields, delta = read_body(page_bytes("update"))
    _, _, model = read_body(page_bytes("model"))

    assert kind == "update"
    assert fields["base_hash"] == sha256(page_bytes("model"))
    assert fields["privacy"]["epsilon_spent"] == 0.75
    assert delta == {"weight": ([1, 2], (0.25, -0.5)), "bias": ([1], (0.125,))}
    assert model == {"weight": ([1, 2], (1.0, -2.0)), "bias": ([1], (0.5,))}


def test_a_reader_who_knows_only_the_page_finds_the_numbers_of_an_update_in_bytes() -> None:
    kind, _, delta = read_body(page_bytes("update-int8"))
    std = 1.0 * 1.5 * 1.0 * math.sqrt(10) / (0.25 * 1000)
    unit = float(np.float32(std / 8))
    drawn = rounded_by_chance(DELTA, {"weight": 2 * unit, "bias": unit})

    assert kind == "update"
    assert delta["bias"] == ([1], (float(np.float32(drawn["bias"][0] * unit)),))
    assert delta["weight"] == ([1, 2], tuple(float(np.float32(each * 2 * unit)) for each in drawn["weight"]))
    assert delta["weight"][1] == pytest.approx((0.25, -0.5), abs=2 * unit)


def test_a_reader_who_knows_only_the_page_finds_the_rounded_numbers_of_a_bfloat16_model() -> None:
    # both numbers of weight are half way between two, and go to the even one
    kind, _, model = read_body(page_bytes("model-bfloat16"))

    assert kind == "model"
    assert model == {"weight": ([1, 2], (1.0, -1.015625)), "bias": ([1], (0.5,))}


@pytest.mark.parametrize("number", [1.0, 1 + 2.0**-8, -(1 + 2.0**-7 + 2.0**-8), 3.4e38, 1e-40, -0.0, math.inf, math.nan, math.pi])
def test_the_rounding_of_the_page_is_that_of_the_code(number: float) -> None:
    assert to_bfloat16(np.array([number], np.float32)).tolist() == [rounded(float(np.float32(number)))]


def test_momentum_by_the_page_alone_makes_the_bits_of_the_code() -> None:
    plan = PLAN.model_copy(update={"aggregation": AggregationPlan(server_momentum=0.9)})
    state = ServerState.of(plan, {"w": np.array([0.3], np.float32)})
    model, momentum, beta = np.float32(0.3), np.float32(0), np.float32(0.9)
    for version in (((0.1, 0.7), (1 / 3, -5.0)), ((1e-8, 0.2),)):
        momentum = beta * momentum
        for weight, delta in version:
            momentum = momentum + np.float32(weight) * np.float32(delta)
            state.fold(Contribution({"w": np.array([delta], np.float32)}, weight))
        model = model + momentum
        state.finish_version()

    assert (state.model["w"].tolist(), state.momentum["w"].tolist()) == ([float(model)], [float(momentum)])


@pytest.mark.parametrize("broadcast", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("aggregation", "kept"),
    [
        ({}, set()),
        ({"server_momentum": 0.9}, {"momentum"}),
        ({"server_adam": ServerAdam()}, {"momentum", "second"}),
        ({"rule": "latest-update"}, {"rows"}),
    ],
    ids=["plain", "momentum", "adam", "rows"],
)
def test_a_state_holds_the_tensors_that_the_page_lists(broadcast: Dtype, aggregation: dict[str, Any], kept: set[str]) -> None:
    section = PAGE.read_text().partition("### state\n")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)/(?:<pseudonym>/)?<name>`", section, re.MULTILINE)
    assert listed == ["model", "momentum", "second", "rows"]
    plan = PLAN.model_copy(update={"aggregation": AggregationPlan(**aggregation), "broadcast": broadcast})
    state, alias = ServerState.of(plan, MODEL), "ab" * 8
    state.fold(Contribution(MODEL, 0.0, institution=alias))
    state.finish_version({alias: 1.0})

    kept = kept | ({"model"} if broadcast == "bfloat16" else set())
    paths = {prefix: f"rows/{alias}" if prefix == "rows" else prefix for prefix in kept}
    noise = {"noise"} if "second" in kept else set()
    assert set(state.wide(plan)) == {f"{path}/{name}" for path in paths.values() for name in MODEL} | noise


def test_the_headers_that_the_page_adds_to_a_letter_are_those_of_a_letter() -> None:
    section = PAGE.read_text().partition("### Dead letters\n")[2].partition("\n## ")[0]
    rabbit = MemoryRabbit(topology(["bank-a"]))
    forged = ForgedMessageError("why")
    refused = Delivery("fl.upd.bank-a", 1, Message(b"x", "update", "bank-a/1/1#0", {"chunk": 0}), "bank-a", fault=forged)
    put_aside(rabbit.connect("aggregator"), refused, reason="why")
    reader = rabbit.connect("operator")
    reader.consume(DEAD_LETTERS, prefetch=1)
    letter = reader.receive(0)

    assert letter is not None
    assert {"chunk", *re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)} == set(letter.message.headers)


def test_the_chain_of_the_page_can_be_followed_with_sha256_alone() -> None:
    zero, one = (read_body(page_bytes(name))[1] for name in ("record-0", "record-1"))
    _, first, _ = read_body(zero["content"])
    _, second, _ = read_body(one["content"])
    alias = hmac.new(SECRET, b"bank-a", hashlib.sha256).hexdigest()[:16]

    assert (first["previous"], second["previous"]) == ("", sha256(zero["content"]))
    assert second["settled"][0]["hash"] == second["table"][alias]["last_hash"] == sha256(page_bytes("update"))
    assert second["table"][alias]["watermark"] == 1


def test_our_fold_takes_the_records_of_the_page() -> None:
    claim = messages.decode(Claim, "claim", page_bytes("claim"), max_bytes=10_000)
    known, verdict = fold_claim(Lineage(), claim)
    verdicts = [verdict]
    for name in ("record-0", "record-1", "record-0"):
        known, verdict = fold(known, messages.decode_record(page_bytes(name), max_bytes=10_000))
        verdicts.append(verdict)

    assert verdicts == ["claim", "extended", "extended", "ignored"]
    assert known.complete
    assert known.head is not None
    assert known.head.manifest.version == 1


def test_an_update_written_from_the_page_alone_is_admitted() -> None:
    known, _ = fold_claim(Lineage(), Claim(run_id=RUN, epoch=1, claimant="operator", after=-1))
    known, _ = fold(known, messages.decode_record(page_bytes("record-0"), max_bytes=10_000))

    update, delta = messages.decode_update(a_foreign_update(), max_bytes=10_000)
    admission = admit(update, delta, entry=Entry(incarnation=1), lineage=known, shapes={"weight": (1, 2), "bias": (1,)})

    assert update.num_examples == 3
    assert delta["weight"].tolist() == [[-1.0, 4.0]]
    assert delta["bias"].tolist() == [8.0]
    assert (admission.outcome, admission.staleness) == ("aggregated", 0)


def least_norm_by_the_page(s: float, d: int) -> float:
    """The page's sentence alone: x below 1 with x e^(1 - x) = (10^-9)^(2 / d), by halving."""
    low, high = 0.0, 1.0
    for _ in range(200):
        x = (low + high) / 2
        low, high = (x, high) if x * math.exp(1 - x) < 1e-9 ** (2 / d) else (low, x)
    return s * math.sqrt(d * low)


@pytest.mark.parametrize("numbers", [3, 1000, 25_000_000])
@pytest.mark.parametrize("mechanism", ["dp-sgd", "update-gaussian"])
def test_the_least_norm_by_the_page_alone_is_that_of_the_code(mechanism: Mechanism, numbers: int) -> None:
    plan = PLAN.model_copy(update={"privacy": PrivacyPlan(mechanism=mechanism, clipping_norm=2.0)})
    stated = PrivacyStatement(mechanism=mechanism, clipping_norm=2.0, noise_multiplier=1.5)
    # learning rate 1 x 1.5 x 2 / (sample rate 0.25 x 300 examples); 1.5 x 2
    s = 0.04 if mechanism == "dp-sgd" else 3.0
    assert least_norm(stated, plan, 300, coordinates=numbers) == pytest.approx(least_norm_by_the_page(s, numbers), rel=1e-6)


def test_the_headers_that_the_page_lists_are_the_headers_of_a_chunk() -> None:
    section = PAGE.read_text().partition("### Headers of a chunk")[2].partition("\n### ")[0]
    listed = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    (chunk,) = split(a_foreign_update(), kind="update", run_id=RUN, identity="bank-a/1/1", chunk_bytes=2**20)

    assert tuple(listed) == HEADERS == tuple(chunk.headers)
    assert head(chunk, max_bytes=2**20).content == sha256(a_foreign_update())


@pytest.mark.parametrize(
    ("heading", "fields"),
    [
        ("update", Update.model_fields),
        ("Privacy statement", PrivacyStatement.model_fields),
        ("hello", Hello.model_fields),
        ("report", messages.Report.model_fields),
        ("standing", messages.Standing.model_fields),
        ("control", messages.Control.model_fields),
        ("operation", messages.Operation.model_fields),
        ("Letter", messages.Letter.model_fields),
        ("claim", Claim.model_fields),
        ("manifest", Manifest.model_fields),
        ("Settlement", Settlement.model_fields),
        ("Entry of the table", Entry.model_fields),
        ("Operation outcome", messages.OperationOutcome.model_fields),
    ],
)
def test_the_page_lists_every_field_of_a_message_in_its_order(heading: str, fields: dict[str, Any]) -> None:
    section = re.search(rf"^###+ {re.escape(heading)}\n(.*?)(?=^##)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert section is not None, f"the page has no section {heading!r}"
    listed = re.findall(r"^\| `(\w+)` \|", section[1], re.MULTILINE)

    assert listed == list(fields)


def test_the_page_lists_every_field_of_a_plan() -> None:
    section = PAGE.read_text().partition("### plan\n")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `([\w.]+)` \|", section, re.MULTILINE)

    assert listed == list(_paths(PLAN.model_dump()))


def _paths(values: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name, value in values.items():
        found += _paths(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name]
    return found
