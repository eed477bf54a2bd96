"""The commit: five steps in a fixed order, so that a kill between any two loses nothing and counts nothing twice."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from aggregator_worker import checkpoint
from aggregator_worker.federation import Federation
from broker_config.streams import BlobWriter, publish_record
from broker_config.topology import control_queue
from shared import codec, messages
from shared.broker import Broker, Delivery, Message
from shared.errors import PublishRefusedError, TopologyError
from shared.messages import BlobName, Control, ManifestRecord, Metrics
from shared.parameters import Parameters

STEPS = ("checkpoint", "blobs", "manifest", "acknowledge", "hints")
"""After each of these something more is durable; tests kill the process between every two."""


@dataclass(frozen=True, slots=True, eq=False)
class Committer:
    """Publishes what a federation has pending, under one epoch.

    `read_back` returns once a record was read from the lineage as its head; `after_step` hears of every step done.
    """

    broker: Broker
    blobs: BlobWriter
    folder: Path
    epoch: int
    read_back: Callable[[ManifestRecord], None]
    after_step: Callable[[str], None]
    evaluate: Callable[[Parameters], Metrics]

    def commit(
        self, federation: Federation, deliveries: Iterable[Delivery], hints: Iterable[tuple[str, Control]]
    ) -> ManifestRecord:
        """All five steps for everything pending. Raises StorageError before anything was published."""
        head, blob, metrics, content = federation.head, federation.head.manifest.model, federation.head.manifest.metrics, b""
        if federation.pending.aggregated:
            content = messages.encode_model(head.manifest.run_id, federation.model)
            blob = BlobName(hash=codec.content_hash(content), size=len(content))
            metrics = self.evaluate(federation.model)
        manifest = federation.next_manifest(blob, metrics)
        draft = messages.manifest_record(self.epoch, manifest, head.model_at)
        checkpoint.save(self.folder, draft.content, self.epoch, federation.model)
        self.after_step("checkpoint")
        at = self.blobs.publish_model(content, federation.plan, manifest.run_id) if content else head.model_at
        self.after_step("blobs")
        record = ManifestRecord(self.epoch, draft.content, manifest, draft.hash, at, None)
        self.announce(record)
        self.after_step("manifest")
        for delivery in deliveries:
            self.broker.ack(delivery)
        self.after_step("acknowledge")
        self._give(hints)
        self.after_step("hints")
        return record

    def announce(self, record: ManifestRecord) -> None:
        """Publishes a record and waits until it was read back as the head."""
        publish_record(self.broker, record)
        self.read_back(record)

    def _give(self, hints: Iterable[tuple[str, Control]]) -> None:
        for institution, control in hints:
            identity = f"control-{institution}-{control.incarnation}-{control.sequence}"
            try:
                self.broker.publish(control_queue(institution), Message(messages.encode("control", control), "control", identity))
            except (PublishRefusedError, TopologyError):
                continue  # a hint only: what binds is in the manifest
