"""An aggregator without a broker: the worker's own admission, weighing, folding and manifests, one update after the other."""

from collections.abc import Mapping
from typing import Self

from aggregator_worker.admission import admit
from aggregator_worker.defence import Gate
from aggregator_worker.federation import Federation
from aggregator_worker.server_state import ServerState
from shared import lineage, messages
from shared.codec import Encoded
from shared.compact import Delta
from shared.lineage import Lineage
from shared.messages import (
    BlobName,
    Claim,
    Entry,
    Location,
    Manifest,
    ManifestRecord,
    Metrics,
    PrivacyStatement,
    Settlement,
    Update,
    pseudonym,
)
from shared.parameters import Parameters
from shared.plan import Plan

RUN_ID = "00" * 8
SECRET = b"nobody hides in a simulation"
_NOWHERE = Location(offset=0, chunks=1)
_NO_NOISE = PrivacyStatement(mechanism="none")


class VirtualAggregator:
    """A federation of institutions that have all said hello. Models of former versions are kept until `release`d.

    What it decides is what `aggregator_worker.term` would decide of the same updates in the same order, bit for bit, where a
    commit takes K updates; nothing is lost, and no time passes. `continuing` takes a real run on, with its own names and bits.
    """

    federation: Federation

    def __init__(self, plan: Plan, parameters: Parameters, institutions: Mapping[str, int], *, gate: Gate | None = None) -> None:
        self._names: Mapping[str, str] = {name: pseudonym(SECRET, name) for name in institutions}
        table = {self._names[name]: Entry(incarnation=1, num_examples=units) for name, units in institutions.items()}
        self._models: dict[int, Parameters] = {}
        state = ServerState.of(plan, parameters)
        self.federation = Federation(self._founded(plan, parameters, table), state, gate, bases=self._models.get)
        self.federation.whole_every = None  # nobody comes late and has to read a whole table

    @classmethod
    def continuing(cls, known: Lineage, state: ServerState, names: Mapping[str, str], models: dict[int, Parameters]) -> Self:
        """From the head of a real run's lineage on, in the state that it names.

        `names` gives each institution's pseudonym; `models` are the versions as broadcast that later updates were made on.
        """
        aggregator = cls.__new__(cls)
        aggregator._names, aggregator._models = names, models
        aggregator.federation = Federation(known, state, bases=models.get)
        return aggregator

    @property
    def plan(self) -> Plan:
        """The plan in force."""
        return self.federation.plan

    @property
    def version(self) -> int:
        """The newest version."""
        return self.federation.head.manifest.version

    def model(self, version: int | None = None) -> Parameters:
        """A version as institutions read it; the newest unless given. Raises KeyError where it was released."""
        return self._models[self.version if version is None else version]

    def entry(self, institution: str) -> Entry:
        """An institution's entry of the table."""
        return self.federation.table[self._names[institution]]

    def release(self, oldest_in_use: int) -> None:
        """Lets go of the models before a version, which nobody trains on any more."""
        for version in [each for each in self._models if each < oldest_in_use]:
            del self._models[version]

    def receive(self, institution: str, *, base_version: int, delta: Delta, privacy: PrivacyStatement = _NO_NOISE) -> Settlement:
        """Settles one update, and makes a version where that fills the buffer."""
        lineage_now, entry = self.federation.lineage, self.entry(institution)
        update = Update(
            run_id=self.federation.head.manifest.run_id,
            institution=institution,
            incarnation=1,
            sequence=entry.watermark + 1,
            base_version=base_version,
            base_hash=lineage_now.bases.get(base_version, "0" * 64),
            plan_hash=self.federation.head.manifest.plan_hash,
            num_examples=entry.num_examples or 1,
            privacy=privacy,
        )
        settlement = self.take(update, delta, content="")
        if self.federation.buffer_full:
            self.commit()
        return settlement

    def take(self, update: Update, delta: Delta, *, content: str) -> Settlement:
        """Settles an update that has its fields already, and makes no version; `content` is its hash."""
        name = self._names[update.institution]
        admission = admit(
            update,
            delta,
            entry=self.federation.table[name],
            lineage=self.federation.lineage,
            shapes=self.federation.state.shapes,
        )
        return self.federation.settle(name, update, content, admission=admission, delta=delta)

    def commit(self, metrics: Metrics | None = None) -> bool:
        """A manifest of whatever is pending; True where it made a version."""
        federation, head = self.federation, self.federation.head.manifest
        made, blob = federation.finish_version(), head.model
        if made:
            blob = self._keep(head.version + 1, messages.encode_model(head.run_id, federation.state.model, self.plan.broadcast))
        manifest = federation.next_manifest(blob, None, metrics or {})
        federation.advance(_folded(federation.lineage, _record(manifest)))
        return made

    def _keep(self, version: int, blob: Encoded) -> BlobName:
        """A version's model as it would be broadcast."""
        self._models[version] = messages.decode_model(blob.joined(), max_bytes=blob.size)
        return BlobName(hash=blob.hash, size=blob.size)

    def _founded(self, plan: Plan, parameters: Parameters, table: Mapping[str, Entry]) -> Lineage:
        model = self._keep(0, messages.encode_model(RUN_ID, parameters, plan.broadcast))
        claimed, _ = lineage.fold_claim(Lineage(), Claim(run_id=RUN_ID, epoch=1, claimant="simulation", after=-1))
        return _folded(claimed, _record(lineage.version_zero(RUN_ID, plan, model, table)))


def _record(manifest: Manifest) -> ManifestRecord:
    return messages.manifest_record(1, manifest, _NOWHERE)


def _folded(known: Lineage, record: ManifestRecord) -> Lineage:
    after, _ = lineage.fold(known, record)
    return after
