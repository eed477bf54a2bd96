"""Reading and writing the two shared streams: the lineage and the model blobs."""

import hashlib
import time
from collections.abc import Callable, Collection, Iterator
from itertools import islice

import structlog

from broker_config.topology import LINEAGE, MODEL, STATE
from shared import codec, lineage, messages
from shared.broker import Broker, Delivery, Header, Message
from shared.chunks import Assembly, ChunkHead, head, split
from shared.codec import Encoded
from shared.errors import BrokerUnavailableError, FederationError, RejectedMessageError, TopologyError, UnsupportedSchemaError
from shared.messages import Claim, Location, ManifestRecord
from shared.parameters import Parameters
from shared.plan import Plan

FIRST_LOOK_BACK = 32
IDLE_SECONDS = 0.5
SURE_SECONDS = 3.0
"""A broker that is only slow must not be taken for one whose lineage is empty or broken."""
FETCH_IDLE_SECONDS = 5.0
LINEAGE_PREFETCH = 64
COPIED_AT_ONCE = 4
"""Chunks in memory while a blob is copied; while one of them is published, the others have come already."""
MAX_RECORD_BYTES = 16 * 2**20

log = structlog.get_logger()


class UninitialisedError(TopologyError):
    """The lineage is empty: only `fedqueue init` makes a version 0."""


class MissingBlobError(BrokerUnavailableError):
    """A blob is not whole in its stream: dropped from its beginning, or not there yet where a replica lags behind."""


def publish_claim(broker: Broker, claim: Claim) -> None:
    """Appends a claim to the lineage."""
    headers: dict[str, Header] = {
        "schema": codec.SCHEMA_VERSION,
        "run": claim.run_id,
        "epoch": claim.epoch,
        "claimant": claim.claimant,
    }
    broker.publish(LINEAGE, Message(messages.encode("claim", claim), "claim", f"claim-{claim.epoch}", headers))


def publish_record(broker: Broker, record: ManifestRecord) -> None:
    """Appends a manifest to the lineage. The header `at_ms` (wall clock) is for people; nothing depends on it."""
    manifest = record.manifest
    headers: dict[str, Header] = {
        "schema": codec.SCHEMA_VERSION,
        "run": manifest.run_id,
        "epoch": record.epoch,
        "version": manifest.version,
        "content": record.hash,
        "settled": len(manifest.settled),
        "phase": manifest.phase,
        "at_ms": time.time_ns() // 1_000_000,
    }
    broker.publish(LINEAGE, Message(messages.encode_record(record), "manifest", f"manifest-{record.hash}", headers))


class BlobWriter:
    """Publishes blobs to one stream and says where they stand; `after_chunk` is called once for each chunk handed to the broker.

    `idle_seconds` is how long a chunk is waited for that is to be copied.

    The offset it gives is a lower bound: it counts from the stream's end at the start, and segment rollovers only add.
    """

    def __init__(
        self,
        broker: Broker,
        stream: str,
        *,
        after_chunk: Callable[[], None] = lambda: None,
        idle_seconds: float = FETCH_IDLE_SECONDS,
    ) -> None:
        self._broker = broker
        self._stream = stream
        self._after_chunk = after_chunk
        self._idle_seconds = idle_seconds
        self._next_offset: int | None = None

    def place(self, blob: Encoded, plan: Plan) -> Location:
        """Where the blob will stand if it is the next one published."""
        return Location(offset=self._end(), chunks=max(1, -(-blob.size // plan.limits.chunk_bytes)))

    def publish(self, blob: Encoded, kind: str, plan: Plan, run_id: str, *, beginning: int = 0) -> Location:
        """A blob, named by its hash, from the chunk `beginning` on; returns once every chunk is confirmed."""
        at = self.place(blob, plan)
        chunks = split(blob, kind=kind, run_id=run_id, identity=blob.hash, chunk_bytes=plan.limits.chunk_bytes)
        self._broker.publish_all(self._stream, self._told(islice(chunks, beginning, None)))
        self._next_offset = at.offset + at.chunks - beginning
        return at

    def _told(self, chunks: Iterator[Message]) -> Iterator[Message]:
        for chunk in chunks:
            yield chunk
            self._after_chunk()

    def copy(self, name: messages.BlobName, at: Location) -> Location:
        """Publishes a blob that stands in this stream once more, at its end, a chunk at a time; it is never whole in memory.

        Raises MissingBlobError where it is not whole any more, or not what its name says; what was published then, nobody names.
        """
        begun, digest = self._end(), hashlib.sha256()
        chunks = chunks_of(self._broker, at, name, stream=self._stream, idle_seconds=self._idle_seconds, at_once=COPIED_AT_ONCE)
        for _, message in chunks:
            digest.update(message.body)
            self._broker.publish(self._stream, message)
            self._next_offset = self._end() + 1
            self._after_chunk()
        if digest.hexdigest() != name.hash:
            raise MissingBlobError(f"what {self._stream} holds as {name.hash[:12]} has other bytes")
        return Location(offset=begun, chunks=self._end() - begun)

    def since(self, at: Location) -> int:
        """How many blobs as long as the one at a place were published from there on, that one included."""
        return -(-(self._end() - at.offset) // at.chunks)

    def _end(self) -> int:
        if self._next_offset is None:
            self._next_offset = 1 + last_offset(self._broker, self._stream)
        return self._next_offset

    def complete(self, blob: Encoded, kind: str, plan: Plan, run_id: str, *, at: Location) -> Location:
        """Sees to it that a blob stands whole in the stream: continues after the chunks that are there from `at` on."""
        start, present = self.place(blob, plan).offset, 0
        for delivery in self._broker.read(self._stream, at.offset, count=None, idle_seconds=IDLE_SECONDS):
            headers = {} if delivery.fault else delivery.message.headers
            if headers.get("id") == blob.hash and headers.get("chunk") == present:
                start, present = (delivery.offset or 0) if present == 0 else start, present + 1
            if present == at.chunks:
                break
        if present < at.chunks:
            self.publish(blob, kind, plan, run_id, beginning=present)
        return Location(offset=start, chunks=at.chunks)


def last_offset(broker: Broker, stream: str, *, idle_seconds: float = IDLE_SECONDS) -> int:
    """The offset of the stream's last stored chunk of messages (with a confirm each: its last message), -1 when empty."""
    for delivery in broker.read(stream, "last", count=None, idle_seconds=idle_seconds):
        return delivery.offset if delivery.offset is not None else -1
    return -1


def first_offset(broker: Broker, stream: str, *, idle_seconds: float = 2 * IDLE_SECONDS) -> int:
    """The offset of the oldest message that a stream still holds, 0 when it is empty."""
    for delivery in broker.read(stream, "first", count=1, idle_seconds=idle_seconds):
        return delivery.offset or 0
    return 0


def fetch_blob(
    broker: Broker, location: Location, blob: messages.BlobName, *, stream: str = MODEL, idle_seconds: float = FETCH_IDLE_SECONDS
) -> memoryview:
    """Reads a blob from its stream and checks it against its name.

    Raises MissingBlobError when chunks are missing: the manifest that names them may be ahead of a replica.
    """
    assembly: Assembly | None = None
    for chunk, message in chunks_of(broker, location, blob, stream=stream, idle_seconds=idle_seconds):
        assembly = assembly or Assembly(chunk)
        assembly.add(chunk, message.body)
    if assembly is None:
        raise MissingBlobError(f"the blob {blob.hash[:12]} is not in {stream}")
    return assembly.content()


def chunks_of(
    broker: Broker,
    location: Location,
    blob: messages.BlobName,
    *,
    stream: str = MODEL,
    idle_seconds: float = FETCH_IDLE_SECONDS,
    at_once: int = 1 << 20,
) -> Iterator[tuple[ChunkHead, Message]]:
    """The chunks of a blob in order, each once, read so many at once. Raises MissingBlobError where one does not come."""
    start, missing, received = location.offset, location.chunks, 0
    while missing:
        found = False
        for delivery in broker.read(stream, start, count=min(missing, at_once), idle_seconds=idle_seconds):
            found, start = True, 1 + (delivery.offset or 0)
            if delivery.fault is not None:
                log.warning("chunk ignored", stream=stream, offset=delivery.offset, reason=str(delivery.fault))
                continue
            if delivery.message.headers.get("id") != blob.hash:
                continue
            chunk = head(delivery.message, max_bytes=blob.size)
            if chunk.chunk != received:
                continue  # of an earlier try, or its tail: a writer was killed midway, and began again
            received += 1
            missing = chunk.chunks - received
            yield chunk, delivery.message
            if not missing:
                return
        if not found:
            raise MissingBlobError(f"the blob {blob.hash[:12]} is not whole in {stream} from offset {location.offset}")


def fetch_model(broker: Broker, head: ManifestRecord) -> Parameters:
    """The parameters that a manifest names."""
    blob = fetch_blob(broker, head.model_at, head.manifest.model)
    return messages.decode_model(blob, max_bytes=head.manifest.model.size)


def fetch_state(broker: Broker, head: ManifestRecord) -> Parameters:
    """What a manifest names beside its model for successors; empty where there is nothing."""
    name, at = head.manifest.state, head.state_at
    if name is None or at is None:
        return {}
    return messages.decode_model(fetch_blob(broker, at, name, stream=STATE), max_bytes=name.size, kind="state")


def newest(broker: Broker) -> tuple[ManifestRecord, lineage.Lineage]:
    """The lineage's head and what is known with it, for whoever only looks."""
    reader = LineageReader(broker)
    reader.catch_up()
    return reader.current()


def records_of(broker: Broker) -> Iterator[ManifestRecord]:
    """Every manifest of the chain that the lineage still holds, from the oldest on."""
    told: list[ManifestRecord] = []
    reader = LineageReader(broker, on_record=lambda record, _delivery: told.append(record))
    end = last_offset(broker, LINEAGE)
    for delivery in broker.read(LINEAGE, "first", count=None, idle_seconds=IDLE_SECONDS):
        reader.take(delivery)
        yield from told
        told.clear()
        if delivery.offset is not None and delivery.offset >= end:
            return


def once_told(broker: Broker, contents: Collection[str]) -> bool:
    """Whether the lineage holds a manifest of one of these content hashes, or may have held one before its beginning was cut."""
    end = last_offset(broker, LINEAGE)
    first = True
    for delivery in broker.read(LINEAGE, "first", count=None, idle_seconds=IDLE_SECONDS):
        if (first and (delivery.offset or 0) > 0) or delivery.message.headers.get("content") in contents:
            return True
        if (delivery.offset or 0) >= end:
            return False
        first = False
    return False


def run_started_at(broker: Broker) -> float | None:
    """When version 0 was published, by its publisher's clock (Unix time); None where the lineage does not tell any more."""
    for delivery in broker.read(LINEAGE, "first", count=2, idle_seconds=IDLE_SECONDS):
        if delivery.message.headers.get("version") == 0:
            return told_at(delivery)
    return None


def told_at(delivery: Delivery) -> float:
    """When a manifest was published, by its publisher's clock (Unix time); for people, nothing depends on it."""
    at_ms = delivery.message.headers.get("at_ms")
    return at_ms / 1000 if isinstance(at_ms, int) else time.time()


class LineageReader:
    """Folds the lineage stream: first what is there, then each record as it comes."""

    def __init__(self, broker: Broker, *, on_record: Callable[[ManifestRecord, Delivery], None] | None = None) -> None:
        self.lineage = lineage.Lineage()
        self.head_at: int = -1
        self.read_to: int = -1
        self._broker = broker
        self._on_record = on_record
        self._ignored: RejectedMessageError | None = None

    def catch_up(self, *, all_bases: bool = False) -> None:
        """Reads back from the end, twice as far each time, until it holds a whole table; then stays subscribed.

        `all_bases`: and the model hash of every version that an update may still be based on. Raises UninitialisedError on an
        empty lineage, TopologyError on one that nothing can be made of, BrokerUnavailableError on one that comes too slowly.
        """
        end = last_offset(self._broker, LINEAGE, idle_seconds=SURE_SECONDS)
        if end < 0:
            raise UninitialisedError(f"{LINEAGE} is empty; run `fedqueue init` first, it makes version 0")
        look_back, former_start = FIRST_LOOK_BACK, -1
        while True:
            start = max(0, end - look_back + 1)
            self._read_from(start, end)
            if self.lineage.complete and not (all_bases and self._lacks_bases()):
                break
            if start == 0 or self.lineage.start == former_start:
                break  # that is all there is
            look_back, former_start = 2 * look_back, self.lineage.start
        if not self.lineage.complete:
            raise self._unusable()
        self._broker.consume(LINEAGE, prefetch=LINEAGE_PREFETCH, start=end + 1)

    def _unusable(self) -> TopologyError:
        if isinstance(self._ignored, UnsupportedSchemaError):
            return TopologyError(
                f"{LINEAGE} was written by another version of fedqueue: {self._ignored}. Run the version that the federation's "
                "aggregator runs; nothing was sent or changed"
            )
        why = f" (what could not be read last: {self._ignored})" if self._ignored else ""
        return TopologyError(f"{LINEAGE} holds no valid chain from its first record on{why}; do not start a new run over it")

    def _lacks_bases(self) -> bool:
        head, known = self.current()
        staleness = known.plan.aggregation.staleness.max_staleness if known.plan else 0
        return min(known.bases) > max(0, head.manifest.version - min(staleness, lineage.KEPT_BASES - 1))

    def _read_from(self, start: int, end: int) -> None:
        self.lineage = lineage.Lineage()
        first = True
        for delivery in self._broker.read(LINEAGE, start, count=None, idle_seconds=SURE_SECONDS):
            if first:  # later than asked for where the stream's retention has cut its beginning
                self.lineage, first = lineage.Lineage(start=delivery.offset or 0), False
            self.take(delivery)
            if delivery.offset is not None and delivery.offset >= end:
                return
        raise BrokerUnavailableError(f"{LINEAGE} could not be read up to its end, the offset {end}")

    def take(self, delivery: Delivery) -> lineage.Verdict:
        """Folds one delivery of the lineage stream."""
        self.read_to = delivery.offset if delivery.offset is not None else self.read_to
        try:
            message = delivery.believed()
            if message.kind == "claim":
                claim = messages.decode(Claim, "claim", message.body, max_bytes=MAX_RECORD_BYTES)
                self.lineage, verdict = lineage.fold_claim(self.lineage, claim)
                return verdict
            record = messages.decode_record(message.body, max_bytes=MAX_RECORD_BYTES)
        except RejectedMessageError as error:
            log.warning("lineage record ignored", offset=delivery.offset, reason=str(error))
            self._ignored = error
            return "ignored"
        self.lineage, verdict = lineage.fold(self.lineage, record)
        if verdict in ("extended", "repeated"):
            self.head_at = delivery.offset if delivery.offset is not None else -1
        if verdict == "extended" and self._on_record:
            self._on_record(record, delivery)
        return verdict

    def current(self) -> tuple[ManifestRecord, lineage.Lineage]:
        """The head and what is known with it."""
        if self.lineage.head is None:
            raise FederationError("the lineage was used before it was read")
        return self.lineage.head, self.lineage
