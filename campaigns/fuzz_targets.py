"""What a fuzzer hammers on: decoding, reassembly and admission. Input bytes are edits of valid messages: most get past the gate.

A target raises nothing: what is declared (`shared.errors.RejectedMessageError`) it swallows, anything else is a defect.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from aggregator_worker.desk import Desk
from aggregator_worker.federation import Federation
from aggregator_worker.intake import Intake
from aggregator_worker.server_state import ServerState
from broker_config.memory import MemoryRabbit
from broker_config.topology import topology, update_queue
from shared import codec, lineage, messages
from shared.broker import Delivery, Header, Message
from shared.chunks import HEADERS, Assembly, head, split
from shared.compact import Scaled
from shared.errors import RejectedMessageError
from shared.messages import (
    BlobName,
    Claim,
    Entry,
    Hello,
    Location,
    Manifest,
    PrivacyStatement,
    Report,
    Standing,
    Update,
    pseudonym,
)
from shared.plan import AggregationPlan, Limits, Plan, PrivacyPlan

RUN = "ab" * 8
NAME = "bank-a"
SECRET = b"fuzz"
MAX_BYTES = 64 * 1024
INPUTS_PER_DESK = 200
"""A desk remembers what it has taken; a fresh one now and then keeps an input's effect its own."""
_EDIT_BYTES = 4
_STEP_BYTES = 3

PLAN = Plan(
    task="fuzz",
    task_hash="0" * 64,
    aggregation=AggregationPlan(buffer_size=2, exact_buffer=True),
    privacy=PrivacyPlan(),
    limits=Limits(update_bytes=MAX_BYTES, chunk_bytes=1024, letters_per_day=None),
)
MODEL = {"bias": np.zeros(3, np.float32), "weight": np.zeros((40, 20), np.float32)}
STRANGE: Sequence[Any] = (
    None, True, -1, 0, 1, 2, 63, 65, 2**31, 2**63, 2**64 - 1, 0.5, -0.0, math.nan, math.inf, "", "x", "bank-b", "\x00", "ä" * 300,
    "a" * 64, "f" * 64, b"", b"\xff", [], [1], {}, {"mechanism": "none"}, {"a": {}}, "dp-sgd", "0x1.8p+0", "update", PLAN.hash,
)  # fmt: skip
HEADER_VALUES: Sequence[Header] = tuple(value for value in STRANGE if isinstance(value, int | str))


def _manifest() -> Manifest:
    content = messages.encode_model(RUN, MODEL)
    entry = {pseudonym(SECRET, name): Entry(incarnation=1, num_examples=100) for name in (NAME, "bank-b")}
    fields: dict[str, Any] = {
        "model": BlobName(hash=content.hash, size=content.size),
        "state": None,
        "whole": True,
        "table": entry,
    }
    empty: dict[str, Any] = {
        "settled": [],
        "scalars": {},
        "operations": [],
        "operation_ids": [],
        "metrics": {},
        "phase_reason": "",
    }
    plan: dict[str, Any] = {"plan": PLAN, "plan_hash": PLAN.hash, "phase": "running"}
    return Manifest(run_id=RUN, version=0, previous="", **fields, **plan, **empty)


RECORD = messages.manifest_record(1, _manifest(), Location(offset=0, chunks=1))
UPDATE = Update(
    run_id=RUN,
    institution=NAME,
    incarnation=1,
    sequence=1,
    base_version=0,
    base_hash=RECORD.manifest.model.hash,
    plan_hash=PLAN.hash,
    num_examples=100,
    privacy=PrivacyStatement(
        mechanism="dp-sgd",
        unit="record",
        clipping_norm=PLAN.privacy.clipping_norm,
        noise_multiplier=1.0,
        sample_rate=PLAN.local.sample_rate,
        steps=PLAN.local.steps,
        epsilon_spent=0.5,
        target_delta=PLAN.privacy.target_delta,
    ),
)
HELLO = Hello(run_id=RUN, institution=NAME, incarnation=1, head_sequence=0, head_hash="", nonce="12" * 8, num_examples=100)
REPORT = Report(
    run_id=RUN, institution=NAME, incarnation=1, version=0, model_hash=UPDATE.base_hash, metrics={"auc": 0.5}, epsilon=0.1
)
STANDING = Standing(
    run_id=RUN, institution=NAME, incarnation=1, plan_hash="e" * 64, state="plan_refused", limit="max_epsilon", reason="fuzz"
)
"""Of another plan: who has left the plan in force gets no other update as far as the checks of its content."""
CONTENT = messages.encode("update", UPDATE, {name: array + 1 for name, array in MODEL.items()})
COMPACT = messages.encode(
    "update",
    UPDATE,
    {"bias": Scaled(np.ones(3, np.int8), 0.5), "weight": Scaled(np.ones((40, 20), np.float16), 2.0)},
)
VALID = (
    CONTENT,
    messages.encode_record(RECORD),
    codec.encode_parts("model", {"run_id": RUN}, MODEL, dtype="bfloat16").joined(),
    messages.encode("hello", HELLO),
    COMPACT,
)


def edited(valid: bytes, edits: bytes) -> bytes:
    """A valid message after edits of four bytes each: what to do, where (two bytes), and with which byte."""
    body = bytearray(valid)
    for at in range(0, len(edits) - _EDIT_BYTES + 1, _EDIT_BYTES):
        what, high, low, value = edits[at : at + _EDIT_BYTES]
        place = (high << 8 | low) % (len(body) + 1)
        match what % 4:
            case 0:
                body[place : place + 1] = bytes([value])
            case 1:
                body[place:place] = bytes([value])
            case 2:
                del body[place : place + 1 + value % 16]
            case _:
                body[place:] = body[place : place + value * 8]
    return bytes(body)


def decoding(data: bytes) -> None:
    """Raw bytes, and an edited message, through every decoder that reads what others wrote."""
    body = edited(VALID[data[0] % len(VALID)], data[1:]) if data and data[0] < 0xC0 else data[1:]
    for decode in (messages.decode_update, messages.decode_record, messages.decode_model, codec.decode):
        with suppress(RejectedMessageError):
            decode(body, max_bytes=MAX_BYTES)


def reassembly(data: bytes, folder: Path) -> None:
    """Chunks of one upload left out, repeated, reordered and with other headers, through the intake and in memory."""
    intake, assembly = Intake(folder, max_bytes=MAX_BYTES), None
    for number, message in enumerate(_disturbed(data), start=1):
        with suppress(RejectedMessageError):
            upload = intake.take(NAME, Delivery(update_queue(NAME), number, message, NAME), now=float(number))
            if upload is not None:
                intake.load(upload)
                upload.close()
        with suppress(RejectedMessageError):
            chunk = head(message, max_bytes=MAX_BYTES)
            assembly = assembly or Assembly(chunk)
            if assembly.add(chunk, message.body):
                assembly.content()
    intake.expire(now=1e9, idle_seconds=1.0)
    intake.close()


CHUNKS = tuple(split(CONTENT, kind="update", run_id=RUN, identity=f"{NAME}/1/1", chunk_bytes=1024))


def _disturbed(data: bytes) -> Iterator[Message]:
    """One message for each step of three bytes: which chunk, which header or part of it, and what instead."""
    for at in range(0, len(data) - _STEP_BYTES + 1, _STEP_BYTES):
        which, what, value = data[at : at + _STEP_BYTES]
        chunk, strange = CHUNKS[which % len(CHUNKS)], HEADER_VALUES[value % len(HEADER_VALUES)]
        if what < len(HEADERS):
            yield replace(chunk, headers={**chunk.headers, HEADERS[what]: strange})
        elif what == len(HEADERS):
            yield replace(chunk, body=edited(chunk.body, data[at:]))
        elif what == len(HEADERS) + 1:
            yield replace(chunk, kind=str(strange))
        else:
            yield chunk


class Admission:
    """Updates, hellos, reports and standings whose fields and tensors were altered, in envelopes that fit, through the desk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._desk = self._open()

    def __call__(self, data: bytes) -> None:
        """One message of an institution."""
        if self._left == 0:
            self._desk.close()
            self._desk = self._open()
        self._left -= 1
        for message in split(_altered(data), kind=_kind(data), run_id=RUN, identity=_identity(data), chunk_bytes=1024):
            self._institution.publish(update_queue(NAME), message)
            delivery = self._leader.receive(0.0)
            if delivery is None:
                raise LookupError("what was published did not arrive")
            self._desk.take(delivery, NAME)
        self._desk.tidy(orphan_seconds=60.0)
        self._desk.due()

    def _open(self) -> Desk:
        rabbit = MemoryRabbit(topology((NAME, "bank-b")))
        self._institution, self._leader, self._left = rabbit.connect(NAME), rabbit.connect("aggregator"), INPUTS_PER_DESK
        self._leader.consume(update_queue(NAME), prefetch=10**6)
        known, _ = lineage.fold_claim(lineage.Lineage(), Claim(run_id=RUN, epoch=1, claimant="fuzz", after=-1))
        known, _ = lineage.fold(known, RECORD)
        intake = Intake(self._folder, max_bytes=MAX_BYTES)
        federation = Federation(known, ServerState.of(PLAN, MODEL))
        return Desk(self._leader, federation, intake, lambda name: pseudonym(SECRET, name))

    def close(self) -> None:
        """Lets go of the files in which uploads wait."""
        self._desk.close()


def _kind(data: bytes) -> str:
    return ("update", "update", "update", "update", "hello", "report", "standing", "hello")[data[0] % 8] if data else "update"


def _identity(data: bytes) -> str:
    return f"{NAME}/1/{data[1] % 8}" if len(data) > 1 else ""


def _altered(data: bytes) -> bytes:
    """The content: fields replaced by strange values, tensors of other shapes and numbers."""
    kind = _kind(data)
    fields: dict[str, Any] = {"update": UPDATE, "hello": HELLO, "report": REPORT, "standing": STANDING}[kind].model_dump()
    fields |= {"sequence": data[1] % 8} if kind == "update" and len(data) > 1 else {}
    privacy = fields.get("privacy", {})
    places = [(part, name) for part in (fields, privacy) for name in part]
    for at in range(2, min(len(data) - 1, 8), 2):
        if data[at] < 2 * len(places):
            part, name = places[data[at] % len(places)]
            part[name] = STRANGE[data[at + 1] % len(STRANGE)]
    return codec.encode(kind, fields, _tensors(data[8:]) if kind == "update" else None)


def _tensors(data: bytes) -> dict[str, Any]:
    tensors: dict[str, Any] = {name: array + 1 for name, array in MODEL.items()}
    for at in range(0, len(data) - 1, 2):
        name, value = ("bias", "weight")[data[at] % 2], data[at + 1]
        match data[at] // 2 % 6:
            case 0:
                tensors[name] = MODEL[name].copy()
                tensors[name].flat[:1] = (np.nan, np.inf, -np.inf, 3e38, -0.0)[value % 5]
            case 1:
                tensors[name] = MODEL[name].reshape(-1)[: value % 60]
            case 2:
                tensors.pop(name, None)
                tensors[name] = np.full(value % 5, value, np.float32)
            case 3:
                tensors[f"{name}{value}"] = np.zeros((value % 3,), np.float32)
            case 4:
                tensors[name] = Scaled(np.full(MODEL[name].shape, value % 128, np.int8), (1.0, 2.0**-140, 2.0**127)[value % 3])
            case _:
                tensors[name] = np.full(MODEL[name].shape, value, np.float32)
    return tensors


def targets(folder: Path) -> dict[str, Callable[[bytes], None]]:
    """Every target by name; `folder` is for spools."""
    return {"decoding": decoding, "reassembly": lambda data: reassembly(data, folder), "admission": Admission(folder)}
