"""Version 0: made once, by the operator's explicit `fedqueue init`."""

from collections.abc import Mapping

from broker_config.streams import BlobWriter, last_offset, publish_claim, publish_record
from broker_config.topology import LINEAGE, MODEL
from shared import messages
from shared.broker import Broker
from shared.errors import TopologyError
from shared.lineage import version_zero
from shared.messages import BlobName, Claim, Entry, ManifestRecord
from shared.parameters import Parameters
from shared.plan import Plan


def found(broker: Broker, *, run_id: str, plan: Plan, parameters: Parameters, table: Mapping[str, Entry]) -> ManifestRecord:
    """Publishes the first claim, the initial model and version 0. Raises TopologyError where a lineage is there already."""
    if last_offset(broker, LINEAGE) >= 0:
        raise TopologyError(f"{LINEAGE} already holds a run; a new one needs a virtual host of its own")
    publish_claim(broker, Claim(run_id=run_id, epoch=1, claimant="operator", after=-1))
    blob = messages.encode_model(run_id, parameters, plan.broadcast)
    at = BlobWriter(broker, MODEL).publish(blob, "model", plan, run_id)
    manifest = version_zero(run_id, plan, BlobName(hash=blob.hash, size=blob.size), table)
    record = messages.manifest_record(1, manifest, at)
    publish_record(broker, record)
    return record
