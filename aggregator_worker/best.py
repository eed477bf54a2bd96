"""The best version's model, kept readable: the model stream drops its oldest, so the best is published again in time."""

from dataclasses import replace

import structlog

from aggregator_worker.ending import Progress
from broker_config.streams import BlobWriter, MissingBlobError
from shared.messages import BlobName, Location, ManifestRecord

log = structlog.get_logger()


def with_best(record: ManifestRecord) -> ManifestRecord:
    """The record, which says where its own model stands for the best one's place where the two are the same."""
    best = Progress.of(record.manifest.scalars).best
    is_own = best is not None and best.model == record.manifest.model
    return replace(record, best_at=record.model_at) if is_own else record


def kept(writer: BlobWriter, best: BlobName, at: Location | None, *, models_held: int, finishing: bool) -> Location | None:
    """Where the best model stands once this returns; None where the stream has lost it.

    It is published again once half as many blobs as the stream is sure to hold stand behind its place, so that as many tries
    that were cut off do no harm; and when the run is finishing, which reads every byte of it a last time.
    """
    if at is not None and not finishing and 0 < writer.since(at) <= models_held // 2:
        return at
    anywhere = Location(offset=0, chunks=at.chunks if at is not None else 1)
    for place in (at or anywhere, anywhere):
        try:
            again = writer.copy(best, place)
        except MissingBlobError:
            continue  # an earlier copy may stand before a place that a power cut took
        log.info("the best model is published again", model=best.hash[:12], finishing=finishing)
        return again
    log.warning("the model stream has lost the best model; the best is sought anew", model=best.hash[:12])
    return None
