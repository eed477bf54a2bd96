"""Which of a run's models to take home, and reading it from the broker: the best, the newest, or that of a version."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

from aggregator_worker.ending import Progress
from broker_config.streams import MissingBlobError, fetch_blob, newest, records_of
from shared import messages
from shared.broker import Broker
from shared.errors import FederationError
from shared.messages import BlobName, Location, ManifestRecord
from shared.parameters import Parameters
from shared.plan import Plan


class NoSuchModelError(FederationError):
    """The run has no such model, or the broker no longer holds it; the text says what else there is."""


@dataclass(frozen=True, slots=True)
class KeptModel:
    """A version's model in the model stream, and in words why it is this one."""

    version: int
    model: BlobName
    at: Location
    why: str

    def read(self, broker: Broker) -> Parameters:
        """Its parameters. Raises NoSuchModelError where the stream has dropped it."""
        for place in (self.at, Location(offset=0, chunks=self.at.chunks)):
            try:
                blob = fetch_blob(broker, place, self.model)
            except MissingBlobError:
                continue  # an earlier copy may stand before a place that a power cut took
            return messages.decode_model(blob, max_bytes=self.model.size)
        raise NoSuchModelError(
            f"the broker no longer holds the model of version {self.version}; where it keeps journals, "
            f"`fedqueue replay --version {self.version}` makes it again"
        )


def newest_model(head: ManifestRecord) -> KeptModel:
    """The newest version's."""
    return KeptModel(head.manifest.version, head.manifest.model, head.model_at, "it is the newest")


def best_model(head: ManifestRecord, plan: Plan) -> KeptModel | None:
    """That of the version with the best held-out figure; None where none was measured."""
    best, manifest = Progress.of(head.manifest.scalars).best, head.manifest
    if best is None:
        return None
    metric = plan.ending.metric
    why = f"it is the best by {metric} on held-out rows, {best.figure:.4g}"
    if best.version != manifest.version:
        newest = manifest.metrics.get(metric)
        why += f"; the newest is version {manifest.version}" + ("" if newest is None else f", with {newest:.4g}")
    return KeptModel(best.version, best.model, head.best_at or Location(offset=0, chunks=1), why)


def best_parameters(connect: Callable[[], Broker]) -> tuple[int, Parameters] | None:
    """The best version and its parameters; None where none was measured."""
    with closing(connect()) as broker:
        head, lineage = newest(broker)
        best = None if lineage.plan is None else best_model(head, lineage.plan)
        return None if best is None else (best.version, best.read(broker))


def model_of_version(broker: Broker, version: int) -> KeptModel:
    """A version's, by its number. Raises NoSuchModelError where the lineage does not tell of it."""
    for record in records_of(broker):
        if record.manifest.version == version:
            return KeptModel(version, record.manifest.model, record.model_at, "it was asked for")
    raise NoSuchModelError(f"the lineage tells of no version {version}; `fedqueue status` says which is the newest")
