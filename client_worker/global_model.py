"""The federation's model, read once by whoever only looks: the worker itself follows the stream."""

from broker_config.downloads import Wanted
from broker_config.streams import MissingBlobError, fetch_blob
from shared.broker import Broker
from shared.errors import FederationError
from shared.messages import Location, ManifestRecord, decode_model
from shared.parameters import Parameters


def wanted_of(record: ManifestRecord) -> Wanted:
    """The model of a version."""
    return Wanted(record.manifest.version, record.manifest.model, record.model_at)


def read_model(broker: Broker, wanted: Wanted) -> Parameters:
    """Raises FederationError where it is not on the broker."""
    try:
        content = fetch_blob(broker, wanted.at or Location(offset=0, chunks=1), wanted.blob)
    except MissingBlobError as error:
        raise FederationError(
            f"the model of version {wanted.version} is not on the broker, or no longer: {error}; take a newer one"
        ) from error
    return decode_model(content, max_bytes=wanted.blob.size)
