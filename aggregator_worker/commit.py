"""The commit: its steps in a fixed order, so that a kill between any two loses nothing and counts nothing twice."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from aggregator_worker import checkpoint
from aggregator_worker.best import kept, with_best
from aggregator_worker.checkpoint import KEPT_RECORDS
from aggregator_worker.ending import Progress
from aggregator_worker.federation import Federation
from aggregator_worker.server_state import ServerState
from broker_config.streams import BlobWriter, publish_record
from broker_config.topology import MODEL, STATE, control_queue
from shared import messages
from shared.broker import Broker, Delivery, Message
from shared.codec import Encoded
from shared.errors import CheckpointError, PublishRefusedError, TopologyError
from shared.messages import BlobName, Control, Location, Manifest, ManifestRecord, Metrics
from shared.parameters import Parameters
from shared.plan import Plan

STEPS = ("best model", "checkpoint", "chunk", "state blob", "model blob", "manifest", "read back", "acknowledge", "hints")
"""After each of these something more is durable, or known to be; tests kill the process between every two. `chunk` is told once
for each that is handed to the broker; after `manifest` the broker has it, and nobody has read it back."""
_STREAMS = {"state": STATE, "model": MODEL}
"""Blobs in the order in which they are published."""


@dataclass(frozen=True, slots=True, eq=False)
class Hooks:
    """What others do about a commit: `after_step` hears of every step done, `evaluate` gives a new model's figures."""

    after_step: Callable[[str], None]
    evaluate: Callable[[Parameters], Metrics]


class Committer:
    """Publishes what a federation has pending, over one connection.

    `read_back` returns once a record was read from the lineage as its head.
    """

    def __init__(self, broker: Broker, folder: Path, read_back: Callable[[ManifestRecord], None], hooks: Hooks) -> None:
        self._broker = broker
        self._folder = folder
        self._read_back = read_back
        self._hooks = hooks
        chunk_sent = partial(hooks.after_step, "chunk")
        self._writers = {kind: BlobWriter(broker, stream, after_chunk=chunk_sent) for kind, stream in _STREAMS.items()}
        self._recent: deque[bytes] = deque(maxlen=KEPT_RECORDS)

    def resume(self, recent: Iterable[ManifestRecord], again: Iterable[ManifestRecord], *, epoch: int) -> None:
        """Publishes records under a new epoch, unchanged and in order: the head, or all that the lineage lacks of a checkpoint.

        `recent` are the chain's last records up to the newest of these; checkpoints keep them.
        """
        self._recent.extend(messages.encode_record(record) for record in recent)
        for record in again:
            self._announce(replace(record, epoch=epoch))

    def save(self, state: ServerState) -> None:
        """A checkpoint of the newest record. Raises StorageError."""
        checkpoint.save(self._folder, self._recent, state.everything())

    def mended(self, record: ManifestRecord, state: ServerState, plan: Plan) -> ManifestRecord:
        """The record with its blobs whole in their streams, whatever these have lost. Raises CheckpointError."""
        manifest = record.manifest
        names = {"model": manifest.model, "state": manifest.state}
        places = {"model": record.model_at, "state": record.state_at}
        for kind, blob in _blobs(manifest.run_id, state, plan).items():
            name, at = names[kind], places[kind]
            if name is None and manifest.version == 0:
                continue  # the broadcast of version 0 tells everything
            if name is None or at is None or name.hash != blob.hash:
                raise CheckpointError("the checkpoint's arrays are not those of its manifest; move the checkpoint away")
            places[kind] = self._writers[kind].complete(blob, kind, plan, manifest.run_id, at=at)
        return with_best(replace(record, model_at=places["model"] or record.model_at, state_at=places["state"]))

    def commit(
        self, federation: Federation, epoch: int, deliveries: Iterable[Delivery], hints: Iterable[tuple[str, Control]]
    ) -> ManifestRecord:
        """All steps for everything pending. Raises StorageError before anything new was published."""
        plan, run_id, after_step = federation.plan, federation.head.manifest.run_id, self._hooks.after_step
        blobs = _blobs(run_id, federation.state, plan) if federation.finish_version() else {}
        record = self._record(federation, blobs, epoch)
        self._recent.append(messages.encode_record(record))
        self.save(federation.state)
        after_step("checkpoint")
        for kind in _STREAMS:
            if kind in blobs:
                self._writers[kind].publish(blobs[kind], kind, plan, run_id)
            after_step(f"{kind} blob")
        self._announce(record)
        after_step("read back")
        self._broker.ack(*deliveries)
        after_step("acknowledge")
        self._give(hints)
        after_step("hints")
        return record

    def seal_again(self, record: ManifestRecord) -> None:
        """Publishes the head's model once more, for those who may read it now, and the head, which says where it stands."""
        at = self._writers["model"].copy(record.manifest.model, record.model_at)
        self._announce(with_best(replace(record, model_at=at)))

    def _record(self, federation: Federation, blobs: Mapping[str, Encoded], epoch: int) -> ManifestRecord:
        head = federation.head
        metrics = self._hooks.evaluate(federation.state.model) if blobs else head.manifest.metrics
        names = {kind: BlobName(hash=blob.hash, size=blob.size) for kind, blob in blobs.items()}
        model, wide = (names["model"], names.get("state")) if blobs else (head.manifest.model, head.manifest.state)
        manifest, best_at = self._with_best(federation, model, wide, metrics)
        self._hooks.after_step("best model")
        places = {kind: self._writers[kind].place(blob, federation.plan) for kind, blob in blobs.items()}
        model_at, state_at = (places["model"], places.get("state")) if blobs else (head.model_at, head.state_at)
        return with_best(messages.manifest_record(epoch, manifest, model_at, state_at, best_at))

    def _with_best(
        self, federation: Federation, model: BlobName, wide: BlobName | None, metrics: Metrics
    ) -> tuple[Manifest, Location | None]:
        """The next manifest, and where its best model stands for sure unless that is its own."""
        head, manifest = federation.head, federation.next_manifest(model, wide, metrics)
        best = Progress.of(manifest.scalars).best
        if best is None or best.model == model:
            return manifest, None
        finishing = manifest.phase == "finished" and head.manifest.phase != "finished"
        held = federation.plan.limits.models_held
        at = kept(self._writers["model"], best.model, head.best_at, models_held=held, finishing=finishing)
        if at is None:
            federation.lose_best()
            manifest = federation.next_manifest(model, wide, metrics)
        return manifest, at

    def _announce(self, record: ManifestRecord) -> None:
        publish_record(self._broker, record)
        self._hooks.after_step("manifest")
        self._read_back(record)

    def _give(self, hints: Iterable[tuple[str, Control]]) -> None:
        for institution, control in hints:
            identity = f"control-{institution}-{control.incarnation}-{control.sequence}"
            try:
                self._broker.publish(
                    control_queue(institution), Message(messages.encode("control", control), "control", identity)
                )
            except (PublishRefusedError, TopologyError):
                continue  # a hint only: what binds is in the manifest


def _blobs(run_id: str, state: ServerState, plan: Plan) -> dict[str, Encoded]:
    blobs = {"model": messages.encode_model(run_id, state.model, plan.broadcast)}
    wide = state.wide(plan)
    return blobs | {"state": messages.encode_state(run_id, wide)} if wide else blobs
