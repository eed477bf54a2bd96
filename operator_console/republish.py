"""A run put onto a broker that has lost it: the checkpoint's last manifests become the beginning of a lineage again."""

import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from aggregator_worker import checkpoint
from broker_config.streams import last_offset, publish_claim, publish_record
from broker_config.topology import LINEAGE
from operator_console.federation_folder import FederationFolder
from shared.broker import Broker
from shared.errors import CheckpointError, SettingsError, TopologyError
from shared.messages import Claim, ManifestRecord


def publish_again(broker: Broker, folder: FederationFolder) -> ManifestRecord:
    """Publishes a claim and the checkpoint's records, unchanged; the aggregator that comes next publishes the model.

    Returns the newest. Raises SettingsError where there is no checkpoint of this run, TopologyError where the broker has a
    lineage, CheckpointError where nobody could read the run from these records alone.
    """
    records = _records(folder)
    newest = records[-1]
    if last_offset(broker, LINEAGE) >= 0:
        raise TopologyError(f"{LINEAGE} holds a run: start the aggregator, it goes on from there; nothing was published")
    epoch = max(record.epoch for record in records) + 1
    publish_claim(broker, Claim(run_id=newest.manifest.run_id, epoch=epoch, claimant="operator", after=-1))
    for record in records:
        publish_record(broker, replace(record, epoch=epoch))
    return newest


def state_folder(folder: FederationFolder) -> Path:
    """Where the aggregator's checkpoint is, by its settings. Raises SettingsError."""
    try:
        settings = tomllib.loads(folder.aggregator_file.read_text())
    except (OSError, ValueError) as error:
        raise SettingsError(f"{folder.aggregator_file} cannot be read: {error}") from error
    return folder.path / str(settings.get("state_folder", folder.aggregator.name))


def _records(folder: FederationFolder) -> Sequence[ManifestRecord]:
    place = state_folder(folder)
    saved = checkpoint.load(place)
    if saved is None:
        raise SettingsError(f"{place / checkpoint.FILE_NAME} is missing: without a checkpoint the run is lost with its broker")
    if saved.newest.manifest.run_id != folder.facts().run_id:
        raise SettingsError(f"{place} is of run {saved.newest.manifest.run_id}, {folder.path} of run {folder.facts().run_id}")
    if not any(record.manifest.whole for record in saved.records):
        raise CheckpointError(f"no manifest in {place / checkpoint.FILE_NAME} has the whole table; use an older checkpoint")
    return saved.records
