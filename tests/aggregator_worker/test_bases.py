"""The models that `latest-model` asks for: what was published, and how much of the lineage is read to find it."""

import pytest

from aggregator_worker.bases import KeptModels
from broker_config.memory import MemoryRabbit
from broker_config.streams import BlobWriter, publish_record
from broker_config.topology import LINEAGE, MODEL, topology
from shared import messages
from shared.messages import BlobName
from tests.builders import NAMES, RUN, a_manifest, a_plan, array
from tests.running import Watch, begin

PLAN = a_plan({"rule": "latest-model"})


class Run:
    """Versions made by hand, and what of the lineage a leader's connection reads: `looked_at` are offsets, in their order."""

    def __init__(self) -> None:
        self.rabbit = MemoryRabbit(topology(NAMES))
        begin(self.rabbit, PLAN)
        self.broker = self.rabbit.connect("aggregator")
        self.looked_at: list[int] = []

    def version(self, number: int) -> None:
        """The model of version n is (n, n, n)."""
        head = Watch(self.rabbit.connect("operator")).head
        blob = messages.encode_model(RUN, {"w": array(number, number, number)})
        at = BlobWriter(self.broker, MODEL).publish(blob, "model", PLAN, RUN)
        name = BlobName(hash=blob.hash, size=blob.size)
        manifest = a_manifest(number, previous=head.hash, model=name, plan=PLAN, plan_hash=PLAN.hash)
        publish_record(self.broker, messages.manifest_record(1, manifest, at))


@pytest.fixture
def run(monkeypatch):
    run = Run()
    read = run.broker.read

    def counted(stream, start, **how):
        for delivery in read(stream, start, **how):
            if stream == LINEAGE and start != "last":
                run.looked_at.append(delivery.offset)
            yield delivery

    monkeypatch.setattr(run.broker, "read", counted)
    return run


def test_each_record_of_the_lineage_is_read_once_however_many_versions_are_asked_for(run):
    # offset 0 is the claim, 1 version 0, 2 version 1 and so on
    models = KeptModels(run.broker)
    run.version(1)
    assert models(1)["w"].tolist() == [1, 1, 1]
    assert run.looked_at == [0, 1, 2]
    run.version(2)
    run.version(3)
    assert [models(number)["w"].tolist() for number in (3, 0, 2, 1)] == [[3] * 3, [0] * 3, [2] * 3, [1] * 3]
    assert run.looked_at == [0, 1, 2, 3, 4]


def test_a_version_that_the_lineage_does_not_have_has_no_model_until_it_is_made(run):
    models = KeptModels(run.broker)
    assert models(1) is None
    assert models(1) is None
    assert run.looked_at == [0, 1]
    run.version(1)
    assert models(1)["w"].tolist() == [1, 1, 1]
