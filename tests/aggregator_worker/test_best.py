"""The best version's model stays readable in a stream that drops its oldest, whoever leads and whenever a leader dies."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aggregator_worker import commit
from aggregator_worker.best import kept
from aggregator_worker.ending import Best, Progress
from broker_config.memory_queues import MemoryStream
from broker_config.provision import provision
from broker_config.streams import COPIED_AT_ONCE, BlobWriter, MissingBlobError, fetch_blob, first_offset
from broker_config.topology import MODEL
from shared import codec
from shared.chunks import split
from shared.codec import Encoded
from shared.messages import BlobName, Location, Metrics
from shared.parameters import Parameters
from shared.plan import Ending, Plan
from tests import conftest
from tests.builders import NAMES, RUN, a_plan, an_operation, small_limits
from tests.conftest import MemoryServer, RabbitmqServer
from tests.running import Hand, Leader, Watch, begin, deltas_of, give_order, require_each_once, require_replay

VALUES, CHUNKS = 600, 3
"""600 numbers have 2400 bytes and a hundred for their names: three chunks of 1 KiB."""
START = {"w": np.zeros(VALUES, np.float32)}


def plan_of(models_held: int, **ending: object) -> Plan:
    limits = small_limits(chunk_bytes=1024, models_held=models_held)
    return a_plan({"max_wait_seconds": 60.0}, ending=Ending(metric="auc", **ending), limits=limits)


class ShortStream(MemoryStream):
    """Holds so many messages, and drops older ones."""

    held = 0

    def offset_of(self, start: object) -> int:
        return max(super().offset_of(start), len(self._log) - self.held)


def short(models: int) -> MemoryServer:
    """A broker whose model stream holds so many models, and not one chunk more."""
    server = MemoryServer()
    stream = ShortStream(next(queue for queue in server.rabbit.topology.queues if queue.name == MODEL))
    stream.held = models * CHUNKS
    server.rabbit._queues[MODEL] = stream
    return server


class Scripted:
    """Gives one figure after another, and the same one again to a model that it knows."""

    def __init__(self, *figures: float) -> None:
        self._figures: Iterator[float] = iter(figures)
        self._known: dict[bytes, float] = {}

    def __call__(self, model: Parameters) -> Metrics:
        key = model["w"].tobytes()
        if key not in self._known:
            self._known[key] = next(self._figures)
        return {"auc": self._known[key]}


class Run:
    """A federation of which one institution gives an update to every version."""

    def __init__(self, server: MemoryServer | RabbitmqServer, plan: Plan, *figures: float) -> None:
        self.server, self.evaluate, self.sent = server, Scripted(*figures), 0
        begin(server, plan, model=START)
        self.hand = Hand(server, "bank-a")
        self.watch = Watch(server.connect("operator"))

    def leader(self, folder: Path, **changes: object) -> Leader:
        return Leader(self.server, folder, evaluate=self.evaluate, **changes)

    def send(self) -> None:
        self.sent += 1
        self.hand.send(self.watch.head, self.sent, *(np.linspace(-0.3, 0.7, VALUES) / self.sent))

    def version(self) -> None:
        """Makes one more version."""
        self.send()
        assert self.watch.until(lambda: self.watch.head.manifest.version == self.sent)

    @property
    def best(self) -> Best:
        best = Progress.of(self.watch.head.manifest.scalars).best
        assert best is not None
        return best

    def require_best(self, version: int) -> None:
        """The head names this version, and where it says the model can be read, it has the bytes of that version."""
        (was,) = {record.manifest.model for record in self.watch.records if record.manifest.version == version}
        assert (self.best.version, self.best.model) == (version, was)
        assert self.watch.head.best_at is not None
        blob = fetch_blob(self.server.connect("operator"), self.watch.head.best_at, was, idle_seconds=0.5)
        assert codec.content_hash(bytes(blob)) == was.hash

    def require_one_history(self) -> None:
        require_each_once(self.watch)
        require_replay(self.watch, deltas_of({"bank-a": self.hand}), start=START)


def published(server: MemoryServer) -> list[str]:
    """The names of the blobs in the model stream, in order, from the very first on."""
    log = server.rabbit._queues[MODEL]._log
    return [str(each.message.headers["id"]) for each in log if each.message.headers["chunk"] == 0]


def test_the_best_model_is_published_again_before_the_stream_drops_it(tmp_path):
    server = short(models=4)
    run = Run(server, plan_of(4), 0.6, 0.8, *[0.7] * 8)
    with run.leader(tmp_path):
        for version in range(1, 11):
            run.version()
            run.require_best(min(version, 2))
    run.require_one_history()
    name = {record.manifest.version: record.manifest.model.hash for record in run.watch.records}
    # two of four may stand behind the best; before the third it comes again
    again = [0, 1, 2, 3, 4, 2, 5, 6, 2, 7, 8, 2, 9, 10]
    assert published(server) == [name[version] for version in again]


def test_a_longer_stream_is_written_to_less_often(tmp_path):
    server = short(models=10)
    run = Run(server, plan_of(10), 0.8, *[0.7] * 11)
    with run.leader(tmp_path):
        for _ in range(12):
            run.version()
            run.require_best(1)
    name = {record.manifest.version: record.manifest.model.hash for record in run.watch.records}
    # five of ten may stand behind it
    again = [0, 1, 2, 3, 4, 5, 6, 1, 7, 8, 9, 10, 11, 1, 12]
    assert published(server) == [name[version] for version in again]


def test_where_no_figure_is_looked_at_nothing_is_published_twice(tmp_path):
    server = short(models=4)
    plan = plan_of(4).model_copy(update={"ending": Ending()})
    run = Run(server, plan, *[0.8] * 6)
    with run.leader(tmp_path):
        for _ in range(6):
            run.version()
    assert len(published(server)) == 7
    assert run.watch.head.best_at is None
    assert not any(name.startswith("best") for name in run.watch.head.manifest.scalars)


def test_a_successor_without_the_disk_finds_the_best_model_and_goes_on_keeping_it(tmp_path):
    run = Run(short(models=4), plan_of(4, patience=9), 0.8, *[0.7] * 9)
    for folder, versions in (("one", 4), ("two", 3), ("three", 3)):
        with run.leader(tmp_path / folder):
            for _ in range(versions):
                run.version()
                run.require_best(1)
    assert run.watch.head.manifest.phase_reason == "no better auc than the 0.8 of version 1 in 9 versions"
    run.require_one_history()


def test_when_the_run_finishes_the_best_model_is_read_whole_and_published_a_last_time(tmp_path):
    server = short(models=40)
    run = Run(server, plan_of(40), 0.6, 0.8, 0.7)
    with run.leader(tmp_path):
        for _ in range(3):
            run.version()
        give_order(server, an_operation("stop"))
        assert run.watch.until(lambda: run.watch.head.manifest.phase == "finished")
        run.require_best(2)
        assert run.watch.head.best_at == Location(offset=4 * CHUNKS, chunks=CHUNKS)
    with run.leader(tmp_path / "another"):
        assert run.watch.until(lambda: run.watch.head.epoch == 3)
        run.require_best(2)


class DeathError(Exception):
    """What ends a leader in the middle of a step, as far as everybody else can see."""


def dies_at(step: str, times: int) -> Callable[[str], None]:
    told: list[str] = []

    def after_step(name: str) -> None:
        told.append(name)
        if name == step and told.count(step) == times:
            raise DeathError(step)

    return after_step


# with two models held, the third version's commit publishes the best of the first once more: its chunks are the seventh to ninth
TIMES = {"chunk": [4, 7, 8, 9, 10, 12], "manifest": [4]}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("successor", ["the same host", "another host"])
@pytest.mark.parametrize(
    ("step", "times"), [(step, times) for step in commit.STEPS for times in TIMES.get(step, [3])], ids=lambda value: str(value)
)
def test_a_leader_that_dies_after_any_step_leaves_the_best_model_readable(tmp_path, step, times, successor):
    run = Run(short(models=5), plan_of(2), 0.8, *[0.7] * 4)
    dying = run.leader(tmp_path / "the same host", after_step=dies_at(step, times))
    dying._thread.start()
    for number in range(1, 4):
        run.send()
        assert run.watch.until(lambda number=number: run.watch.head.manifest.version == number or not dying._thread.is_alive())
        if not dying._thread.is_alive():
            break
    dying._thread.join(20)
    assert isinstance(dying.failure, DeathError)
    run.watch.until(lambda: False, timeout_seconds=0.0)
    if Progress.of(run.watch.head.manifest.scalars).best is not None:
        run.require_best(1)
    with run.leader(tmp_path / successor):
        assert run.watch.until(lambda: run.watch.head.manifest.version == run.sent)
        while run.sent < 5:
            run.version()
            run.require_best(1)
    run.require_one_history()


CONTENT = bytes(range(256)) * 9
BLOB = BlobName(hash=codec.content_hash(CONTENT), size=len(CONTENT))
COPIED = a_plan(limits=small_limits(chunk_bytes=1024))


def chunks() -> list[object]:
    return list(split(CONTENT, kind="model", run_id=RUN, identity=BLOB.hash, chunk_bytes=1024))


def test_a_copy_stands_behind_everything_and_has_the_same_bytes(broker_server):
    aggregator = broker_server.connect("aggregator")
    writer = BlobWriter(aggregator, MODEL)
    at = writer.publish(Encoded([CONTENT]), "model", COPIED, RUN)
    assert writer.since(at) == 1
    writer.publish(Encoded([CONTENT[::-1]]), "model", COPIED, RUN)
    assert writer.since(at) == 2
    copy = writer.copy(BLOB, at)
    assert copy == Location(offset=6, chunks=3)
    assert fetch_blob(broker_server.connect("bank-a"), copy, BLOB) == CONTENT
    behind = writer.publish(Encoded([CONTENT[::-1]]), "model", COPIED, RUN)
    assert (behind.offset, writer.since(copy)) == (9, 2)


def test_a_copy_may_have_more_chunks_than_are_read_at_once(broker_server):
    aggregator, content = broker_server.connect("aggregator"), bytes(range(256)) * 42
    name = BlobName(hash=codec.content_hash(content), size=len(content))
    writer = BlobWriter(aggregator, MODEL)
    at = writer.publish(Encoded([content]), "model", COPIED, RUN)
    assert (at.chunks, COPIED_AT_ONCE) == (11, 4)
    copy = writer.copy(name, at)
    assert copy == Location(offset=11, chunks=11)
    assert fetch_blob(aggregator, copy, name) == content


def test_a_copy_of_what_was_cut_off_or_has_other_bytes_is_not_taken_for_one():
    aggregator = MemoryServer().connect("aggregator")
    first, second, third = chunks()
    for chunk in (first, second):
        aggregator.publish(MODEL, chunk)
    writer = BlobWriter(aggregator, MODEL, idle_seconds=0.1)
    with pytest.raises(MissingBlobError, match="is not whole"):
        writer.copy(BLOB, Location(offset=0, chunks=3))
    aggregator.publish(MODEL, replace(third, body=third.body[::-1]))
    with pytest.raises(MissingBlobError, match="has other bytes"):
        BlobWriter(aggregator, MODEL, idle_seconds=0.1).copy(BLOB, Location(offset=0, chunks=3))


def test_a_place_that_the_stream_has_lost_is_made_up_for_by_an_earlier_copy():
    aggregator = MemoryServer().connect("aggregator")
    writer = BlobWriter(aggregator, MODEL, idle_seconds=0.1)
    writer.publish(Encoded([CONTENT]), "model", COPIED, RUN)
    # a power cut took the copy that the record names, and its offsets are not written to yet
    again = kept(writer, BLOB, Location(offset=9, chunks=3), models_held=10, finishing=False)
    assert again == Location(offset=3, chunks=3)
    assert kept(writer, BLOB, None, models_held=10, finishing=False) == Location(offset=6, chunks=3)


def test_a_model_that_is_nowhere_is_not_kept():
    writer = BlobWriter(MemoryServer().connect("aggregator"), MODEL, idle_seconds=0.1)
    writer.publish(Encoded([CONTENT[::-1]]), "model", COPIED, RUN)
    assert kept(writer, BLOB, Location(offset=0, chunks=3), models_held=10, finishing=True) is None


@pytest.mark.long
def test_a_best_model_that_is_lost_all_the_same_is_replaced_by_the_next_best(tmp_path):
    run = Run(short(models=3), plan_of(20), 0.9, *[0.7] * 11, 0.8)
    with run.leader(tmp_path):
        for _ in range(12):
            run.version()
        run.require_best(12)  # ten of twenty may stand behind the best; looking for it then, the leader found nothing
        run.version()
        run.require_best(13)
    run.require_one_history()


@pytest.mark.rabbitmq
def test_a_stream_on_rabbitmq_that_drops_its_segments_still_has_the_best_model(rabbitmq_server, tmp_path, soon):
    # forty kilobytes a model: at least five in a stream of three hundred that may drop a hundred at once
    few = replace(conftest.LIMITS, model_stream_bytes=300_000, segment_bytes=100_000)
    rabbitmq_server.remove_queue(MODEL)  # a stream takes the size of its segments from the limits that it is made under
    provision(rabbitmq_server.logins, NAMES, few)
    start = {"w": np.zeros(10_000, np.float32)}
    plan = plan_of(5).model_copy(update={"limits": small_limits(chunk_bytes=16 * 1024, models_held=5)})
    begin(rabbitmq_server, plan, model=start)
    watch, hand = Watch(rabbitmq_server.connect("operator")), Hand(rabbitmq_server, "bank-a")
    with Leader(rabbitmq_server, tmp_path, evaluate=Scripted(0.6, 0.8, *[0.7] * 18)):
        for version in range(1, 21):
            hand.send(watch.head, version, *[0.01 * version] * 10_000)
            assert watch.until(lambda version=version: watch.head.manifest.version == version)
    operator = rabbitmq_server.connect("operator")
    assert soon(lambda: first_offset(operator, MODEL) > watch.records[2].model_at.offset)
    best = Progress.of(watch.head.manifest.scalars).best
    assert best is not None
    assert (best.version, best.model) == (2, watch.records[2].manifest.model)
    blob = fetch_blob(operator, watch.head.best_at, best.model, idle_seconds=1.0)
    assert codec.content_hash(bytes(blob)) == best.model.hash
    require_replay(watch, deltas_of({"bank-a": hand}), start=start)
