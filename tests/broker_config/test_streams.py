import pytest

from broker_config.streams import (
    FIRST_LOOK_BACK,
    BlobWriter,
    LineageReader,
    UninitialisedError,
    fetch_blob,
    last_offset,
    publish_claim,
    publish_record,
)
from broker_config.topology import LINEAGE, MODEL
from shared import codec
from shared.broker import Message
from shared.chunks import split
from shared.codec import Encoded
from shared.errors import BrokerUnavailableError, TopologyError
from shared.messages import BlobName, Location
from tests.builders import RUN, a_claim, a_plan, a_record, small_limits

CONTENT = bytes(range(256)) * 10
BLOB = BlobName(hash=codec.content_hash(CONTENT), size=len(CONTENT))
PLAN = a_plan(limits=small_limits(chunk_bytes=1024))  # CONTENT makes three chunks


def chunks_of(content: bytes) -> list[Message]:
    return list(split(content, kind="model", run_id=RUN, identity=codec.content_hash(content), chunk_bytes=1024))


def publish(writer: BlobWriter, content: bytes) -> Location:
    return writer.publish(Encoded([content]), "model", PLAN, RUN)


@pytest.fixture
def aggregator(broker_server):
    return broker_server.connect("aggregator")


def filled(broker, versions: int):
    """A lineage of so many versions, each after the first with no more than a changed entry."""
    publish_claim(broker, a_claim(1))
    records = [a_record(0)]
    for version in range(1, versions):
        records.append(a_record(version, after=records[-1], whole=False, plan=None, table={}))
    for record in records:
        publish_record(broker, record)
    return records


def test_an_empty_lineage_is_not_a_beginning(aggregator):
    with pytest.raises(UninitialisedError, match="fedqueue init"):
        LineageReader(aggregator).catch_up()


def test_a_reader_finds_the_head_of_a_long_lineage_and_goes_on_from_there(broker_server, aggregator):
    records = filled(aggregator, 70)
    reader = LineageReader(broker_server.connect("bank-a"))
    reader.catch_up()
    head, lineage = reader.current()
    assert head.hash == records[-1].hash
    assert lineage.complete
    next_one = a_record(70, after=records[-1])
    publish_record(aggregator, next_one)
    delivery = reader._broker.receive(10)
    assert delivery is not None
    assert reader.take(delivery) == "extended"
    assert reader.current()[0].hash == next_one.hash
    assert reader.head_at == delivery.offset


def test_a_reader_who_starts_behind_a_hidden_claim_is_not_deceived_by_one_that_came_late(broker_server, aggregator):
    records = filled(aggregator, 2)
    publish_claim(aggregator, a_claim(3, "leads", after=2))
    publish_record(aggregator, a_record(1, after=records[0], epoch=3))
    for version in range(2, 40):
        records.append(a_record(version, after=records[-1], epoch=3))
        publish_record(aggregator, records[-1])
    end = last_offset(aggregator, LINEAGE)
    publish_claim(aggregator, a_claim(2, "late", after=2))
    publish_record(aggregator, a_record(2, after=records[1], epoch=2, mark="deposed"))
    for _ in range(FIRST_LOOK_BACK - 2):
        aggregator.publish(LINEAGE, Message(b"", "claim", "x"))
    reader = LineageReader(broker_server.connect("bank-a"))
    reader.catch_up()
    assert last_offset(aggregator, LINEAGE) - FIRST_LOOK_BACK == end
    assert (reader.current()[0].hash, reader.lineage.epoch) == (records[-1].hash, 3)


def test_an_aggregator_reads_back_as_far_as_an_update_may_be_based(broker_server, aggregator):
    publish_claim(aggregator, a_claim(1))
    head = None
    for version in range(70):
        head = a_record(version, after=head)
        publish_record(aggregator, head)
    usual, leader = (LineageReader(broker_server.connect("aggregator")) for _ in range(2))
    usual.catch_up()
    leader.catch_up(all_bases=True)
    assert (min(usual.lineage.bases) > 0, min(leader.lineage.bases)) == (True, 0)


def test_records_that_cannot_be_read_are_passed_over(broker_server, aggregator):
    records = filled(aggregator, 2)
    aggregator.publish(LINEAGE, Message(b"\x80\x04\x95", "manifest", "x"))
    aggregator.publish(LINEAGE, Message(b"", "claim", "x"))
    publish_record(aggregator, a_record(2, after=records[-1]))
    reader = LineageReader(broker_server.connect("bank-a"))
    reader.catch_up()
    assert reader.current()[0].manifest.version == 2


def test_a_lineage_without_a_valid_chain_is_for_a_person_to_look_at(aggregator):
    publish_record(aggregator, a_record(0, epoch=4))
    with pytest.raises(TopologyError, match="no valid chain"):
        LineageReader(aggregator).catch_up()


def test_each_manifest_of_the_chain_is_told_once(broker_server, aggregator):
    records = filled(aggregator, 3)
    publish_record(aggregator, records[-1])
    told = []
    reader = LineageReader(
        broker_server.connect("bank-b"), on_record=lambda record, delivery: told.append(record.manifest.version)
    )
    reader.catch_up()
    assert told == [0, 1, 2]


def test_a_blob_is_fetched_from_where_its_writer_says_it_stands(broker_server, aggregator):
    writer = BlobWriter(aggregator, MODEL)
    other = CONTENT[::-1]
    first, second = publish(writer, CONTENT), publish(writer, other)
    assert (first.chunks, second.chunks) == (3, 3)
    reader = broker_server.connect("bank-a")
    assert fetch_blob(reader, second, BlobName(hash=codec.content_hash(other), size=len(other))) == other
    assert fetch_blob(reader, first, BLOB) == CONTENT


def test_a_writer_that_comes_later_goes_on_behind_what_is_there(broker_server, aggregator):
    publish(BlobWriter(aggregator, MODEL), CONTENT[::-1])
    at = publish(BlobWriter(broker_server.connect("aggregator"), MODEL), CONTENT)
    assert at.offset == 3
    assert fetch_blob(aggregator, at, BLOB) == CONTENT


def test_an_offset_that_is_too_low_still_finds_the_blob(aggregator):
    writer = BlobWriter(aggregator, MODEL)
    publish(writer, CONTENT[::-1])
    at = publish(writer, CONTENT)
    assert fetch_blob(aggregator, Location(offset=0, chunks=at.chunks), BLOB) == CONTENT


@pytest.mark.parametrize(
    "order",
    [
        pytest.param([0, 1, 0, 1, 2], id="a try that was cut off, then the whole"),
        pytest.param([1, 2, 0, 1, 2], id="the end of an earlier copy, then the whole"),
        pytest.param([0, 0, 1, 1, 2, 2], id="two writers in turn"),
        pytest.param([2, 0, 2, 1, 2], id="two writers, one ahead"),
    ],
)
def test_a_blob_that_was_written_more_than_once_is_read_once(aggregator, order):
    for index in order:
        aggregator.publish(MODEL, chunks_of(CONTENT)[index])
    assert fetch_blob(aggregator, Location(offset=0, chunks=3), BLOB) == CONTENT


@pytest.mark.parametrize("there", [0, 1, 2, 3])
def test_a_writer_that_tries_again_adds_only_what_is_missing(broker_server, aggregator, there):
    publish(BlobWriter(aggregator, MODEL), CONTENT[::-1])
    for chunk in chunks_of(CONTENT)[:there]:
        aggregator.publish(MODEL, chunk)
    again = BlobWriter(broker_server.connect("aggregator"), MODEL)
    at = again.complete(Encoded([CONTENT]), "model", PLAN, RUN, at=Location(offset=0, chunks=3))
    assert at == Location(offset=3, chunks=3)
    assert fetch_blob(aggregator, at, BLOB) == CONTENT
    assert last_offset(aggregator, MODEL) == 5


def test_a_blob_whose_end_the_stream_has_lost_stands_whole_again(aggregator):
    at = BlobWriter(aggregator, MODEL).complete(Encoded([CONTENT]), "model", PLAN, RUN, at=Location(offset=700, chunks=3))
    assert fetch_blob(aggregator, at, BLOB) == CONTENT


def test_a_blob_that_is_not_all_there_is_waited_for_by_reconnecting(broker_server):
    aggregator = broker_server.connect("aggregator")
    for chunk in chunks_of(CONTENT)[:2]:
        aggregator.publish(MODEL, chunk)
    with pytest.raises(BrokerUnavailableError, match=r"is not whole in fl\.model from offset 0"):
        fetch_blob(aggregator, Location(offset=0, chunks=3), BLOB, idle_seconds=0.3)


def test_the_end_of_an_empty_stream_is_before_its_first_offset(aggregator):
    assert last_offset(aggregator, MODEL) == -1
    aggregator.publish(MODEL, chunks_of(CONTENT)[0])
    assert last_offset(aggregator, MODEL) == 0
