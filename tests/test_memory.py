"""P8 on a real aggregator process: its memory above its start-up footprint, whatever the number of institutions."""

import shutil
from itertools import zip_longest

import pytest

from benchmarks.federation import EXAMPLES, founded, plan_for, started, vector
from benchmarks.readings import forget_peak, peak_resident_bytes, resident_bytes
from broker_config.connection import connect
from broker_config.definitions import OPERATOR
from broker_config.streams import LineageReader, newest
from broker_config.topology import update_queue
from shared import messages
from shared.chunks import split
from shared.messages import PrivacyStatement, Update

pytestmark = pytest.mark.rabbitmq

MEGABYTE = 10**6
CHUNK_BYTES = 2**20
LARGE_NEEDS_BYTES = 40 * 10**9


def allowed_bytes(parameters: int) -> int:
    """Above the start-up footprint, which holds one model already."""
    return 3 * 4 * parameters + 64 * MEGABYTE


def chunks_of(federation, base, institution):
    """An institution's first update, as messages."""
    update = Update(
        run_id=federation.run_id,
        institution=institution,
        incarnation=1,
        sequence=1,
        base_version=0,
        base_hash=base.manifest.model.hash,
        plan_hash=base.manifest.plan_hash,
        num_examples=EXAMPLES,
        privacy=PrivacyStatement(mechanism="none"),
    )
    content = messages.encode_parts("update", update, vector(federation.parameters, 0.5))
    return split(content, kind="update", run_id=federation.run_id, identity=f"{institution}/1/1", chunk_bytes=CHUNK_BYTES)


@pytest.mark.parametrize("institutions", [2, *(pytest.param(many, marks=pytest.mark.long) for many in (8, 32))])
def test_memory_does_not_grow_with_the_institutions_whose_chunks_come_mixed(installation, institutions):
    parameters = 4_000_000
    with founded(plan_for(parameters, institutions, broadcast="float32"), parameters, institutions) as federation:
        brokers = {name: connect(federation.logins.settings(name), name="test/send") for name in federation.institutions}
        base, _ = newest(next(iter(brokers.values())))
        with started(aggregator := federation.aggregator()):
            federation.wait_until_leading(aggregator)
            start_bytes = resident_bytes(aggregator.pid)
            forget_peak(aggregator.pid)
            uploads = [chunks_of(federation, base, name) for name in brokers]
            for row in zip_longest(*uploads):
                for (name, broker), chunk in zip(brokers.items(), row, strict=True):
                    broker.publish(update_queue(name), chunk)
            federation.wait_until_folded(1)
            taken_bytes = peak_resident_bytes(aggregator.pid) - start_bytes
        for broker in brokers.values():
            broker.close()
    assert taken_bytes <= allowed_bytes(parameters)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_model_of_400_megabytes_goes_up_is_folded_and_comes_down(installation):
    if shutil.disk_usage("/tmp").free < LARGE_NEEDS_BYTES:
        pytest.skip("needs 40 GB free in /tmp")
    parameters = 100 * 10**6
    with founded(plan_for(parameters, 1, broadcast="float32"), parameters, 1) as federation:
        with started(aggregator := federation.aggregator()):
            federation.wait_until_leading(aggregator)
            start_bytes = resident_bytes(aggregator.pid)
            forget_peak(aggregator.pid)
            with started(federation.client(federation.institutions[0])):
                federation.wait_until_folded(2)
            taken_bytes = peak_resident_bytes(aggregator.pid) - start_bytes
        settled = []
        operator = connect(federation.logins.settings(OPERATOR), name="test/look")
        LineageReader(operator, on_record=lambda record, _: settled.extend(record.manifest.settled)).catch_up()
        operator.close()
    # the second update was made on a version that the first one is in: that version came down
    assert [(each.sequence, each.outcome, each.base_version) for each in settled[:2]] == [
        (1, "aggregated", 0),
        (2, "aggregated", 1),
    ]
    assert taken_bytes <= allowed_bytes(parameters)
