from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from broker_config.downloads import GRACE_SECONDS, ModelReader, Wanted
from broker_config.spool import Spool
from broker_config.topology import MODEL
from shared import messages
from shared.broker import Message
from shared.chunks import split
from shared.codec import Dtype, Encoded
from shared.errors import StorageError
from shared.messages import BlobName, Location
from tests.builders import RUN
from tests.conftest import MemoryServer

CHUNK_BYTES = 64 * 1024


def large(seed: int, dtype: Dtype = "float32") -> tuple[dict[str, np.ndarray], Encoded]:
    """A model whose float32 blob makes nineteen chunks."""
    model = {"w": np.random.default_rng(seed).random(300_000, dtype=np.float32)}
    return model, messages.encode_model(RUN, model, dtype)


def small(seed: int) -> tuple[dict[str, np.ndarray], Encoded]:
    model = {"w": np.full(10, seed, np.float32)}
    return model, messages.encode_model(RUN, model)


def chunks_of(content: Encoded) -> list[Message]:
    return list(split(content, kind="model", run_id=RUN, identity=content.hash, chunk_bytes=CHUNK_BYTES))


def wanted(version: int, content: Encoded, offset: int = 0) -> Wanted:
    at = Location(offset=offset, chunks=len(chunks_of(content)))
    return Wanted(version, BlobName(hash=content.hash, size=content.size), at)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Reader:
    """A model reader as a worker's loop drives it; `take` counts the chunks that came."""

    def __init__(self, server, path: Path) -> None:
        self.broker = server.connect("bank-a")
        self.spool = Spool(path)
        self.clock = Clock()
        self.models = ModelReader(self.broker, self.spool, clock=self.clock)
        self.taken = 0

    def get(self, wanted: Wanted, *, most: int = 1000, patience_seconds: float = 0.5):
        """The model, or None if it is not whole after so many deliveries."""
        while (model := self.models.get(wanted)) is None and self.taken < most:
            delivery = self.broker.receive(patience_seconds)
            if delivery is None:
                return None
            self.models.take(delivery)
            self.taken += 1
        return model

    def end(self) -> None:
        """As a lost process leaves it."""
        self.broker.close()
        self.spool.close()


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "model.part"


@pytest.fixture
def publish(broker_server):
    leader = broker_server.connect("aggregator")

    def all_of(*contents: Encoded) -> None:
        for content in contents:
            leader.publish_all(MODEL, chunks_of(content))

    return all_of


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_large_model_comes_whole_and_as_it_was(broker_server, publish, path, dtype):
    model, content = large(1, dtype)
    publish(content)
    got = Reader(broker_server, path).get(wanted(1, content))
    assert got is not None
    assert got["w"].dtype == np.float32
    assert messages.encode_model(RUN, got, dtype).hash == content.hash
    if dtype == "float32":
        assert np.array_equal(got["w"], model["w"])


def test_a_small_model_is_there_when_it_is_asked_for_and_every_next_one_too(broker_server, publish, path):
    versions = [small(seed)[1] for seed in range(4)]
    publish(versions[0])
    reader = Reader(broker_server, path)
    assert reader.get(wanted(0, versions[0]))["w"][0] == 0.0
    publish(*versions[1:])
    assert reader.get(wanted(3, versions[3], offset=3))["w"][0] == 3.0
    assert reader.models.get(wanted(2, versions[2], offset=2))["w"][0] == 2.0
    assert not path.exists()


def test_a_small_model_that_passed_by_is_fetched_where_the_manifest_says(broker_server, publish, path):
    versions = [small(seed)[1] for seed in range(12)]
    publish(*versions)
    reader = Reader(broker_server, path)
    assert reader.get(wanted(11, versions[11], offset=11))["w"][0] == 11.0
    assert reader.models.get(wanted(0, versions[0])) is None
    reader.clock.now += 2 * GRACE_SECONDS
    assert reader.get(wanted(0, versions[0]))["w"][0] == 0.0


def test_what_lies_under_a_model_s_name_and_is_not_it_is_never_used(broker_server, path):
    model, content = small(1)
    leader = broker_server.connect("aggregator")
    (honest,) = chunks_of(content)
    leader.publish(MODEL, Message(honest.body[:-1] + b"?", "model", "x", honest.headers))
    leader.publish(MODEL, honest)
    assert Reader(broker_server, path).get(wanted(1, content))["w"].tolist() == model["w"].tolist()


@pytest.mark.parametrize("came", [1, 7, 18])
def test_a_download_goes_on_at_the_chunk_where_it_stopped(broker_server, publish, path, came):
    publish(small(0)[1])
    model, content = large(1)
    publish(content)
    first = Reader(broker_server, path)
    assert first.get(wanted(1, content, offset=1), most=came) is None
    first.end()
    publish(large(2)[1])
    again = Reader(broker_server, path)
    unfinished = again.models.unfinished()
    assert (unfinished.version, unfinished.blob.hash) == (1, content.hash)
    assert np.array_equal(again.get(unfinished)["w"], model["w"])
    assert again.taken == 19 - came
    assert again.models.unfinished() is None


def test_no_more_is_on_its_way_than_the_model_still_needs(path):
    """On a slow link the next version's chunks would be in the way of whatever comes after this model."""
    server = MemoryServer()
    _, content = large(1)
    leader = server.connect("aggregator")
    leader.publish_all(MODEL, [*chunks_of(content), *chunks_of(large(2)[1])])
    reader = Reader(server, path)
    assert reader.get(wanted(1, content), most=18) is None
    (subscription,) = reader.broker.consumers
    assert subscription.cursor == 19
    assert reader.get(wanted(1, content)) is not None
    assert reader.broker.consumers == []


def test_the_place_of_an_interrupted_upload_costs_nothing(broker_server, publish, path):
    """A leader that was killed midway leaves chunks; its successor publishes all of them again, or what was missing."""
    leader = broker_server.connect("aggregator")
    _, content = large(1)
    leader.publish_all(MODEL, chunks_of(content)[:5])
    leader.publish_all(MODEL, chunks_of(large(3)[1])[:3])
    publish(content)
    assert Reader(broker_server, path).get(wanted(1, content)) is not None


def test_the_next_large_model_takes_the_place_of_the_one_before(broker_server, publish, path):
    first, second = large(1), large(2)
    publish(first[1], second[1])
    reader = Reader(broker_server, path)
    assert np.array_equal(reader.get(wanted(1, first[1]))["w"], first[0]["w"])
    inode = path.stat().st_ino
    assert np.array_equal(reader.get(wanted(2, second[1], offset=19))["w"], second[0]["w"])
    assert path.stat().st_ino == inode


def test_a_model_that_was_published_again_elsewhere_is_looked_for_there(broker_server, publish, path):
    model, content = large(1)
    leader = broker_server.connect("aggregator")
    leader.publish_all(MODEL, chunks_of(content)[:4])
    reader = Reader(broker_server, path)
    assert reader.get(wanted(1, content), patience_seconds=0.3) is None
    publish(content)
    got = reader.get(wanted(1, content, offset=4))
    assert np.array_equal(got["w"], model["w"])


def test_a_model_that_the_stream_dropped_is_given_up_in_one_sentence(broker_server, publish, path):
    """A reader that asks for an offset that is gone is set down on what is left: the chunks of later versions."""
    _, old = large(1)
    _, new = large(2)
    publish(new)
    reader = Reader(broker_server, path)
    old_one = wanted(1, old)
    assert reader.get(old_one, most=3) is None
    assert reader.models.dropped(old_one, {1: old.hash}) is False
    with capture_logs() as logs:
        assert reader.models.dropped(old_one, {1: old.hash, 2: new.hash}) is True
    assert "version_spacing_seconds" in logs[0]["event"]
    assert {"version", "seconds", "megabytes_per_second", "come_bytes"} <= logs[0].keys()
    assert reader.models.unfinished() is None
    reader.taken = 0
    assert reader.get(wanted(2, new)) is not None


def test_a_spool_with_another_s_bytes_is_not_gone_on_with(path):
    _, content = large(1)
    path.write_bytes(bytes(content.size + 512))
    assert Spool(path).progress is None
    path.write_bytes(b"short")
    assert Spool(path).progress is None
    assert not path.exists()


def test_bytes_that_a_power_cut_took_are_fetched_again(broker_server, publish, path):
    model, content = large(1)
    publish(content)
    first = Reader(broker_server, path)
    assert first.get(wanted(1, content), most=10) is None
    first.end()
    with path.open("r+b") as file:
        file.write(bytes(4096))
    again = Reader(broker_server, path)
    assert np.array_equal(again.get(wanted(1, content))["w"], model["w"])


def test_a_whole_model_that_was_damaged_since_is_not_used(broker_server, publish, path):
    _, content = large(1)
    publish(content)
    first = Reader(broker_server, path)
    assert first.get(wanted(1, content)) is not None
    first.end()
    assert Spool(path).progress.complete
    with path.open("r+b") as file:
        file.write(bytes(4096))
    assert Spool(path).progress is None


def test_a_model_that_finds_no_room_on_the_disk_says_so(broker_server, publish, path):
    import resource

    _, content = large(1)
    publish(content)
    reader = Reader(broker_server, path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(StorageError, match="no room for a model of 1200"):
            reader.get(wanted(1, content))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not path.exists()
    assert reader.get(wanted(1, content)) is not None


def test_what_had_arrived_for_a_cancelled_subscription_is_void(broker_server, publish, path):
    publish(*(small(seed)[1] for seed in range(5)))
    broker = broker_server.connect("bank-a")
    broker.consume(MODEL, prefetch=10, start=0)
    assert broker.receive(10) is not None
    broker.cancel(MODEL)
    assert broker.receive(0.2) is None
    broker.consume(MODEL, prefetch=10, start=3)
    delivery = broker.receive(10)
    assert (delivery.offset, broker.ack(delivery)) == (3, None)
