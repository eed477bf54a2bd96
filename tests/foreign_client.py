"""An institution written from docs/wire-format.md alone: pika, msgpack, struct and hashes, and nothing of ours."""

import hashlib
import struct
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import msgpack
import pika

Numbers = dict[str, tuple[list[int], tuple[float, ...]]]
STREAM_IDLE_SECONDS = 20


class ForeignClient:
    """One institution: reads the lineage from its first record on, says hello, fetches models, publishes updates."""

    def __init__(self, parameters: pika.ConnectionParameters, institution: str, pseudonym: str) -> None:
        self._connection = pika.BlockingConnection(parameters)
        self._out = self._connection.channel()
        self._out.confirm_delivery()
        self._institution = institution
        self._pseudonym = pseudonym
        self._lineage = self._stream("fl.lineage", "first")
        self._epoch = 0
        self._head_hash = ""
        self.head: dict[str, Any] = {}
        self.table: dict[str, Any] = {}
        self.plan: dict[str, Any] = {}
        self._model_at: dict[str, int] = {}

    def close(self) -> None:
        """Leaves."""
        self._connection.close()

    def _stream(self, name: str, start: int | str) -> Iterator[tuple[pika.BasicProperties, bytes]]:
        channel, arrived = self._connection.channel(), deque()
        # pika rejects what it still holds when a channel is closed, and a stream does not take that
        channel._impl.basic_reject = lambda *_arguments, **_named: None
        channel.basic_qos(prefetch_count=10)
        channel.basic_consume(name, lambda *delivery: arrived.append(delivery), arguments={"x-stream-offset": start})
        while True:
            self._wait_for(arrived, name)
            _, method, properties, body = arrived.popleft()
            channel.basic_ack(method.delivery_tag)
            yield properties, body

    def _wait_for(self, arrived: deque[Any], name: str) -> None:
        deadline = time.monotonic() + STREAM_IDLE_SECONDS
        while not arrived:
            self._connection.process_data_events(1)
            assert time.monotonic() < deadline, f"nothing came from {name}"

    def fold_next(self) -> None:
        """Takes one message of the lineage by the page's five rules."""
        _, body = next(self._lineage)
        _, kind, fields, _ = msgpack.unpackb(body)
        if kind == "claim":
            self._epoch = max(self._epoch, fields["epoch"])
        elif fields["epoch"] == self._epoch:
            self._fold_record(fields)

    def _fold_record(self, record: dict[str, Any]) -> None:
        _, _, manifest, _ = msgpack.unpackb(record["content"])
        digest = hashlib.sha256(record["content"]).hexdigest()
        steps = manifest["version"] - self.head.get("version", 0)
        if digest == self._head_hash:
            self._model_at = record["model_at"]
        elif manifest["previous"] == self._head_hash and steps in (0, 1):
            self.head, self._head_hash, self._model_at = manifest, digest, record["model_at"]
            self.table = manifest["table"] if manifest["whole"] else self.table | manifest["table"]
            self.plan = manifest["plan"] or self.plan

    @property
    def entry(self) -> dict[str, Any]:
        """What the aggregator knows of this institution."""
        own: dict[str, Any] = self.table.get(self._pseudonym, {})
        return own

    def say_hello(self, *, num_examples: int) -> None:
        """Returns once it is answered."""
        while not self.head:
            self.fold_next()
        nonce = f"{max(time.time_ns(), int(self.entry.get('nonce') or '0', 16) + 1):016x}"
        hello = {"head_sequence": 0, "head_hash": "", "nonce": nonce, "num_examples": num_examples}
        self._publish("hello", f"hello-{nonce}", self._body("hello", hello, {}))
        while self.entry.get("nonce") != nonce:
            self.fold_next()

    def model(self) -> Numbers:
        """The newest global model, found by its hash from the location's offset on."""
        wanted, content, following = self.head["model"], b"", 0
        for properties, body in self._stream("fl.model", self._model_at["offset"]):
            if (properties.headers["id"], properties.headers["chunk"]) == (wanted["hash"], following):
                content, following = content + body, following + 1
            if len(content) == wanted["size"]:
                break
        assert hashlib.sha256(content).hexdigest() == wanted["hash"]
        _, _, _, tensors = msgpack.unpackb(content)
        return {name: (shape, _numbers(dtype, data)) for name, dtype, shape, _, _, data in tensors}

    def update(self, sequence: int, delta: Numbers, *, num_examples: int, epsilon_spent: float) -> bytes:
        """The sealed bytes of one update on the head."""
        asked, local = self.plan["privacy"], self.plan["local"]
        privacy = {"mechanism": "dp-sgd", "unit": "record", "noise_multiplier": 1.25, "epsilon_spent": epsilon_spent}
        privacy |= {name: asked[name] for name in ("clipping_norm", "target_delta")}
        fields = {
            "sequence": sequence,
            "base_version": self.head["version"],
            "base_hash": self.head["model"]["hash"],
            "plan_hash": self.head["plan_hash"],
            "num_examples": num_examples,
            "privacy": privacy | {name: local[name] for name in ("sample_rate", "steps")},
        }
        return self._body("update", fields, delta)

    def send(self, sequence: int, content: bytes) -> None:
        """Publishes sealed bytes; a retry calls it again."""
        self._publish("update", f"{self._institution}/1/{sequence}", content)

    def wait_until_settled(self, sequence: int) -> None:
        """Returns once the watermark covers it."""
        while self.entry["watermark"] < sequence:
            self.fold_next()

    def _body(self, kind: str, fields: dict[str, Any], tensors: Numbers) -> bytes:
        who = {"run_id": self.head["run_id"], "institution": self._institution, "incarnation": 1}
        packed = [
            [name, "float32", shape, "raw", None, struct.pack(f"<{len(numbers)}f", *numbers)]
            for name, (shape, numbers) in sorted(tensors.items())
        ]
        return bytes(msgpack.packb([1, kind, who | fields, packed]))

    def _publish(self, kind: str, identity: str, content: bytes) -> None:
        size = self.plan["limits"]["chunk_bytes"]
        pieces = [content[start : start + size] for start in range(0, len(content), size)]
        digest = hashlib.sha256(content).hexdigest()
        for index, piece in enumerate(pieces):
            headers = {"schema": 1, "run": self.head["run_id"], "id": identity, "chunk": index, "chunks": len(pieces)}
            headers |= {"size": len(content), "sha256": digest, "content": digest, "envelope": "plain", "signature": ""}
            properties = pika.BasicProperties(type=kind, user_id=self._institution, delivery_mode=2, headers=headers)
            self._out.basic_publish(f"fl.upd.{self._institution}", "", piece, properties, mandatory=True)


def _numbers(dtype: str, data: bytes) -> tuple[float, ...]:
    if dtype == "bfloat16":
        data = b"".join(b"\0\0" + data[start : start + 2] for start in range(0, len(data), 2))
    return struct.unpack(f"<{len(data) // 4}f", data)
