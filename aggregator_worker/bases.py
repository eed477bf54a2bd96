"""The broadcast models that updates were made on, for the rule `latest-model`: from memory, or from the model stream."""

from collections import OrderedDict

from broker_config.streams import IDLE_SECONDS, LineageReader, fetch_model, first_offset, last_offset
from broker_config.topology import LINEAGE, MODEL
from shared.broker import Broker, Delivery
from shared.errors import BrokerUnavailableError
from shared.messages import ManifestRecord
from shared.parameters import Parameters

MOST_BYTES = 256 * 2**20
"""Of models kept in memory, beside the one that was asked for last."""


class KeptModels:
    """A function from a version to its model; None where the stream no longer has it."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._records: dict[int, ManifestRecord] = {}
        self._reader = LineageReader(broker, on_record=self._note)
        self._models: OrderedDict[int, Parameters] = OrderedDict()
        self._bytes = 0

    def __call__(self, version: int) -> Parameters | None:
        """The model of a version as institutions read it."""
        if version in self._models:
            self._models.move_to_end(version)
            return self._models[version]
        record = self._record(version)
        if record is None or record.model_at.offset < first_offset(self._broker, MODEL):
            return None
        try:
            model = fetch_model(self._broker, record)
        except BrokerUnavailableError:
            return None
        self._keep(version, model)
        return model

    def _record(self, version: int) -> ManifestRecord | None:
        if version not in self._records:
            self._read_on()
        return self._records.get(version)

    def _note(self, record: ManifestRecord, _delivery: Delivery) -> None:
        self._records.setdefault(record.manifest.version, record)

    def _read_on(self) -> None:
        """The lineage from where the last look ended up to its present end: it is long, and each version is asked for soon."""
        start, end = self._reader.read_to + 1, last_offset(self._broker, LINEAGE)
        if start > end:
            return
        for delivery in self._broker.read(LINEAGE, start, count=None, idle_seconds=IDLE_SECONDS):
            self._reader.take(delivery)
            if self._reader.read_to >= end:
                return

    def _keep(self, version: int, model: Parameters) -> None:
        self._models[version] = model
        self._bytes += _size(model)
        while self._bytes > MOST_BYTES and len(self._models) > 1:
            _, oldest = self._models.popitem(last=False)
            self._bytes -= _size(oldest)


def _size(model: Parameters) -> int:
    return sum(array.nbytes for array in model.values())
