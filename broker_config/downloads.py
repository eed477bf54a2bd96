"""Models on their way to an institution: small ones as they are published, large ones through a file that is gone on with.

A worker asks for a model and asks again later; nothing here waits. What arrives comes by the one standing subscription of
the model stream, beside everything else.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from broker_config.spool import Progress, Spool
from broker_config.topology import MODEL
from shared import codec, messages
from shared.broker import Broker, Delivery
from shared.chunks import head
from shared.errors import RejectedMessageError
from shared.messages import BlobName, Location
from shared.parameters import Parameters

SMALL_BYTES = 256 * 1024
"""A model up to this size is one message, and its readers take every version's as it comes."""
KEPT_SMALL = 8
SMALL_PREFETCH = 32
LARGE_PREFETCH = 8
GRACE_SECONDS = 1.0
"""A small model is published before the manifest that names it; it may still arrive so much later."""
SILENCE_SECONDS = 60.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Wanted:
    """A version's model, and where a reader that has nothing of it begins; None where some of it is here."""

    version: int
    blob: BlobName
    at: Location | None = None

    @property
    def is_small(self) -> bool:
        """Whether it is one message."""
        return self.at is not None and self.at.chunks == 1 and self.blob.size <= SMALL_BYTES


class ModelReader:
    """One connection's reader of the model stream; the spool outlives it."""

    def __init__(self, broker: Broker, spool: Spool, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._broker = broker
        self._spool = spool
        self._clock = clock
        self._kept: dict[str, bytes] = {}
        self._subscribed_for: str | None = None  # a large model's hash; empty for all small ones
        self._prefetch = 0
        self._others: set[str] = set()
        self._asked_for = ""
        self._since = self._heard = 0.0
        self._here_before_bytes = 0

    def unfinished(self) -> Wanted | None:
        """The large model that is partly here, from this connection or an earlier one."""
        progress = self._spool.progress
        if progress is None or progress.complete:
            return None
        return Wanted(progress.version, BlobName(hash=progress.hash, size=progress.size))

    def get(self, wanted: Wanted) -> Parameters | None:
        """The model, its hash checked; None while it is on its way. Its arrays hold until another model is asked for."""
        if self._asked_for != wanted.blob.hash:
            self._asked_for, self._since = wanted.blob.hash, self._clock()
        body = self._small(wanted) if wanted.is_small else self._large(wanted)
        return None if body is None else messages.decode_model(body, max_bytes=wanted.blob.size)

    def take(self, delivery: Delivery) -> None:
        """One message of the model stream. Raises StorageError when the spool cannot be written."""
        if delivery.fault is not None:
            self._broker.ack(delivery)
            log.warning("a model's chunk is ignored", offset=delivery.offset, reason=str(delivery.fault))
            return
        if self._subscribed_for == "":
            self._broker.ack(delivery)
            self._kept[str(delivery.message.headers.get("id"))] = delivery.message.body
            while len(self._kept) > KEPT_SMALL:
                del self._kept[next(iter(self._kept))]
            return
        if self._subscribed_for is None:
            return
        self._heard = self._clock()
        # Never more on its way than is still needed: on a slow link the next version's chunks would be in the way.
        if not self._take_chunk(delivery) or self._missing_chunks >= self._prefetch:
            self._broker.ack(delivery)
        if self._missing_chunks == 0:
            self._finish()

    def dropped(self, wanted: Wanted, models: Mapping[int, str]) -> bool:
        """Whether the stream has lost the rest of a model: a later version's chunks come where its own should be.

        `models` are the hashes of the versions known. Says in one sentence what to do, and lets go of what was here.
        """
        progress = self._spool.progress
        if progress is None or progress.hash != wanted.blob.hash or not self._others:
            return False
        if not any(version > wanted.version and model in self._others for version, model in models.items()):
            return False
        log.warning(
            "the model stream dropped this version before it had come whole, beginning with the newest; ask the operator for a "
            "larger model stream (model_stream_bytes) or for versions further apart (version_spacing_seconds)",
            version=wanted.version,
            come_bytes=progress.written_bytes,
            of_bytes=progress.size,
            **self._pace(progress),
        )
        self._unsubscribe()
        self._spool.discard()
        return True

    def _small(self, wanted: Wanted) -> bytes | None:
        body = self._kept.get(wanted.blob.hash)
        if body is not None and codec.content_hash(body) == wanted.blob.hash:
            return body
        late = self._clock() - self._since > GRACE_SECONDS
        if wanted.at is not None and (self._subscribed_for != "" or late):
            self._since = self._clock()
            self._subscribe("", SMALL_PREFETCH, wanted.at.offset)
        return None

    def _large(self, wanted: Wanted) -> memoryview | None:
        progress, at = self._spool.progress, wanted.at
        if progress is not None and progress.hash == wanted.blob.hash and (at is None or at.chunks == progress.chunks):
            if progress.complete:
                return self._spool.content()
            if at is not None and at.offset != progress.begun_at:
                self._unsubscribe()
                self._spool.look_from(at.offset)
        elif at is not None:
            name = wanted.blob
            self._unsubscribe()
            self._spool.begin(Progress(wanted.version, name.hash, name.size, at.chunks, begun_at=at.offset, offset=at.offset))
        if self._subscribed_for != wanted.blob.hash:
            self._go_on()
        elif self._clock() - self._heard > SILENCE_SECONDS:
            self._heard = self._clock()
            log.warning("nothing of the model has come for a minute, still waiting", version=wanted.version)
        return None

    def _go_on(self) -> None:
        progress = self._spool.progress
        if progress is None:
            return
        self._since = self._heard = self._clock()
        self._here_before_bytes = progress.written_bytes
        log.info("downloading", version=progress.version, bytes=progress.size, chunks=progress.chunks, from_chunk=progress.chunk)
        self._subscribe(progress.hash, min(LARGE_PREFETCH, self._missing_chunks), progress.offset)

    def _take_chunk(self, delivery: Delivery) -> bool:
        """Whether it was the chunk that comes next."""
        progress, message = self._spool.progress, delivery.message
        if progress is None or message.headers.get("id") != progress.hash:
            self._others.add(str(message.headers.get("id")))
            return False
        try:
            chunk = head(message, max_bytes=progress.size)
        except RejectedMessageError:
            return False
        if chunk.chunk != progress.chunk or progress.written_bytes + len(message.body) > progress.size:
            return False
        self._spool.add(message.body, (delivery.offset or 0) + 1)
        return True

    @property
    def _missing_chunks(self) -> int:
        progress = self._spool.progress
        return 0 if progress is None else progress.chunks - progress.chunk

    def _finish(self) -> None:
        progress = self._spool.progress
        self._unsubscribe()
        if progress is None:
            return
        if self._spool.intact:
            log.info("downloaded", version=progress.version, bytes=progress.size, **self._pace(progress))
        else:
            log.warning("the model came whole and with another hash, beginning again", version=progress.version)
            self._spool.discard()

    def _pace(self, progress: Progress) -> dict[str, float]:
        seconds = max(self._clock() - self._since, 1e-3)
        come = progress.written_bytes - self._here_before_bytes
        return {"seconds": round(seconds, 1), "megabytes_per_second": round(come / seconds / 1e6, 3)}

    def _subscribe(self, purpose: str, prefetch: int, start: int) -> None:
        self._unsubscribe()
        self._subscribed_for, self._prefetch, self._others = purpose, prefetch, set()
        self._broker.consume(MODEL, prefetch=prefetch, start=start)

    def _unsubscribe(self) -> None:
        if self._subscribed_for is not None:
            self._subscribed_for = None
            self._broker.cancel(MODEL)
