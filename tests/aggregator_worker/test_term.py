"""A leader that is deposed, loses its connection, or finds that the streams have lost their tail: nothing lost, nothing twice."""

import threading
from collections.abc import Callable

import numpy as np
import pytest

from aggregator_worker import checkpoint, commit, term
from aggregator_worker import worker as aggregator_worker
from broker_config.streams import LineageReader, UninitialisedError, fetch_state, publish_claim, publish_record, records_of
from broker_config.topology import LINEAGE, MODEL, STATE, update_queue
from shared.errors import CheckpointError
from shared.messages import manifest_record
from tests.builders import NAMES, a_claim, a_plan, small_limits
from tests.conftest import MemoryServer
from tests.running import Hand, Leader, Watch, begin, deltas_of, require_each_once, require_replay, term_settings

VALUES = 1500
START = {"w": np.zeros(VALUES, np.float32)}
PATTERN = np.linspace(-0.3, 0.7, VALUES)
PLAN = a_plan(
    {"buffer_size": 3, "exact_buffer": True, "max_wait_seconds": 60.0, "server_momentum": 0.9},
    broadcast="bfloat16",
    limits=small_limits(chunk_bytes=1024),
)


class Run:
    """A federation with momentum and models in chunks; a round is an update of everybody, which makes a version."""

    def __init__(self, server) -> None:
        self.server = server
        begin(server, PLAN, model=START)
        self.hands = {name: Hand(server, name) for name in NAMES}
        self.rounds = 0
        self.watch = Watch(server.connect("operator"))

    def send_round(self) -> None:
        self.rounds += 1
        for number, hand in enumerate(self.hands.values(), start=1):
            hand.send(self.watch.head, self.rounds, *(PATTERN * number / self.rounds))

    def settled(self) -> bool:
        return self.watch.until(lambda: all(self.watch.entry(name).watermark == self.rounds for name in NAMES))

    def require_one_history(self) -> None:
        watch = self.watch
        require_each_once(watch)
        require_replay(watch, deltas_of(self.hands), start=START)
        assert [each.outcome for each in watch.settled] == ["aggregated"] * 3 * self.rounds
        late = [record.hash for record in records_of(self.server.connect("bank-a"))]
        assert late == [record.hash for record in watch.records]


def at(step: str, times: int, act: Callable[[], None]) -> Callable[[str], None]:
    """Acts once, after a step was done so many times."""
    done: list[str] = []

    def after_step(told: str) -> None:
        done.append(told)
        if told == step and done.count(step) == times:
            act()

    return after_step


def depose(server, *, goes_on: bool) -> None:
    """Another aggregator leads for a moment: publishes a claim and the head, and, if it goes on, a manifest of its own."""
    rival = server.connect("aggregator")
    reader = LineageReader(rival)
    reader.catch_up()
    head, lineage = reader.current()
    epoch = lineage.epoch + 1
    publish_claim(rival, a_claim(epoch, "rival", after=reader.read_to))
    publish_record(rival, manifest_record(epoch, head.manifest, head.model_at, head.state_at))
    if goes_on:
        says = {"previous": head.hash, "phase_reason": "the rival was here", "settled": [], "operations": []}
        publish_record(rival, manifest_record(epoch, head.manifest.model_copy(update=says), head.model_at, head.state_at))
    rival.close()


@pytest.mark.parametrize("goes_on", [pytest.param(False, id="who only claims"), pytest.param(True, id="who goes on")])
@pytest.mark.parametrize("step", term.STEPS)
def test_a_leader_that_another_deposes_after_any_step_changes_nothing_and_loses_nothing(tmp_path, step, goes_on):
    server = MemoryServer()
    run = Run(server)
    run.send_round()
    run.send_round()
    times = {"manifest": 3, "chunk": 20}.get(step, 1 if step not in commit.STEPS else 2)
    deposed = at(step, times, lambda: depose(server, goes_on=goes_on))
    with Leader(server, tmp_path, after_step=deposed):
        assert run.settled()
        assert run.watch.until(lambda: run.watch.head.epoch == (3 if step == "token" else 4))
        run.send_round()
        assert run.settled()
    run.require_one_history()
    assert any(record.manifest.phase_reason == "the rival was here" for record in run.watch.records) == goes_on


@pytest.mark.rabbitmq
def test_a_leader_deposed_before_its_manifest_does_not_keep_what_it_announced(rabbitmq_server, tmp_path):
    run = Run(rabbitmq_server)
    run.send_round()
    with Leader(rabbitmq_server, tmp_path, after_step=at("model blob", 1, lambda: depose(rabbitmq_server, goes_on=True))):
        assert run.settled()
    run.require_one_history()
    assert run.watch.head.epoch == 4


@pytest.mark.parametrize("step", ["state blob", "manifest", "read back"])
def test_a_leader_that_loses_its_connection_in_mid_commit_publishes_the_same_again(tmp_path, step):
    loses_its_connection(MemoryServer(), tmp_path, step)


@pytest.mark.rabbitmq
def test_a_leader_that_loses_its_connection_before_it_has_read_back_publishes_the_same_again(rabbitmq_server, tmp_path):
    loses_its_connection(rabbitmq_server, tmp_path, "manifest")


def loses_its_connection(server, tmp_path, step):
    run = Run(server)
    run.send_round()
    times = 2 if step == "manifest" else 1
    with Leader(server, tmp_path, after_step=at(step, times, lambda: server.drop("aggregator"))):
        assert run.settled()
        announced = checkpoint.load(tmp_path)
        run.send_round()
        assert run.settled()
        assert run.watch.until(lambda: run.watch.head.epoch == 3)
    run.require_one_history()
    assert announced is not None
    assert announced.newest.hash in [record.hash for record in run.watch.records]


def copied(server, lost_manifests: int, lost_blobs: dict[str, int]) -> MemoryServer:
    """A broker that kept all but the end of its streams."""
    reading, kept = server.connect("aggregator"), MemoryServer()
    writing = kept.connect("aggregator")
    for stream in (LINEAGE, MODEL, STATE):
        records = list(reading.read(stream, "first", count=None, idle_seconds=0.0))
        last = len(records) - lost_blobs.get(stream, 0)
        if stream == LINEAGE and lost_manifests:
            hashes = list(dict.fromkeys(each.message.headers.get("content") for each in records if each.message.kind != "claim"))
            first_lost = hashes[-lost_manifests]
            last = next(i for i, each in enumerate(records) if each.message.headers.get("content") == first_lost)
        for each in records[:last]:
            writing.publish(stream, each.message)
    return kept


def led_for(server, folder, rounds: int) -> Run:
    run = Run(server)
    with Leader(server, folder):
        for _ in range(rounds):
            run.send_round()
            assert run.settled()
        assert run.watch.until(lambda: not any(server.depth(update_queue(name)) for name in NAMES))
    return run


def reopened(server, former: Run) -> Run:
    """The same federation on what is left of its broker."""
    run = Run.__new__(Run)
    run.server, run.rounds = server, former.rounds
    run.hands = {name: Hand(server, name) for name in NAMES}
    for name, hand in run.hands.items():
        hand.deltas = former.hands[name].deltas
    run.watch = Watch(server.connect("operator"))
    return run


@pytest.mark.parametrize(
    ("lost", "blobs"),
    [
        pytest.param(0, {MODEL: 1}, id="no manifest, the last chunk of the head's model"),
        pytest.param(0, {MODEL: 3, STATE: 5}, id="no manifest, the head's model and a part of its state"),
        pytest.param(1, {}, id="the last manifest"),
        pytest.param(1, {MODEL: 3, STATE: 12}, id="the last manifest and its blobs"),
        pytest.param(4, {MODEL: 7, STATE: 30}, id="four manifests, and blobs in mid-chunk"),
        pytest.param(16, {MODEL: 48, STATE: 192}, id="sixteen manifests and all of their blobs"),
    ],
)
def test_what_the_streams_have_lost_is_published_again_unchanged_and_in_order(tmp_path, lost, blobs):
    server = MemoryServer()
    former = led_for(server, tmp_path, 18)
    kept = copied(server, lost, blobs)
    run = reopened(kept, former)
    assert len(run.watch.records) == len(former.watch.records) - lost
    with Leader(kept, tmp_path):
        assert run.watch.until(lambda: run.watch.head.hash == former.watch.head.hash and run.watch.head.epoch == 3)
        assert [each.hash for each in run.watch.records] == [each.hash for each in former.watch.records]
        assert run.watch.model()["w"].tobytes() == former.watch.model()["w"].tobytes()
        wide, was = (fetch_state(each.watch.broker, each.watch.head) for each in (run, former))
        assert {name: array.tobytes() for name, array in wide.items()} == {name: array.tobytes() for name, array in was.items()}
        run.send_round()
        assert run.settled()
    run.require_one_history()


def test_a_successor_from_the_broker_can_mend_the_streams_as_the_first_leader_could(tmp_path):
    server = MemoryServer()
    former = led_for(server, tmp_path / "first", 6)
    with Leader(server, tmp_path / "second"):
        assert former.watch.until(lambda: former.watch.head.epoch == 3)
        assert former.watch.until(lambda: (tmp_path / "second" / checkpoint.FILE_NAME).exists())
    kept = copied(server, 4, {MODEL: 12, STATE: 48})
    run = reopened(kept, former)
    with Leader(kept, tmp_path / "second"):
        run.send_round()
        assert run.settled()
    run.require_one_history()
    assert [each.hash for each in run.watch.records][:7] == [each.hash for each in former.watch.records]


def fails_with(server, folder) -> BaseException:
    """What ends a worker whom nobody asked to."""
    with pytest.raises(Exception) as raised:  # noqa: PT011 - the caller looks at it
        aggregator_worker.run(lambda: server.connect("aggregator"), term_settings(folder), threading.Event())
    return raised.value


def test_a_stream_that_lost_more_than_a_checkpoint_holds_is_for_a_person(tmp_path):
    server = MemoryServer()
    led_for(server, tmp_path, 18)
    kept = copied(server, 17, {})
    before = kept.depth(MODEL)
    failure = fails_with(kept, tmp_path)
    assert isinstance(failure, CheckpointError)
    assert "no manifest in common" in str(failure)
    assert kept.depth(MODEL) == before


def test_an_empty_lineage_is_no_new_beginning_even_where_a_checkpoint_knows_all(tmp_path):
    led_for(MemoryServer(), tmp_path, 1)
    empty = MemoryServer()
    failure = fails_with(empty, tmp_path)
    assert isinstance(failure, UninitialisedError)
    assert empty.depth(LINEAGE) == 0


def test_a_checkpoint_that_cannot_be_read_ends_the_worker_before_anything_is_taken(tmp_path):
    server = MemoryServer()
    run = led_for(server, tmp_path, 1)
    run.send_round()
    (tmp_path / checkpoint.FILE_NAME).write_bytes(b"half")
    failure = fails_with(server, tmp_path)
    assert isinstance(failure, CheckpointError)
    assert "move it away" in str(failure)
    assert [server.depth(update_queue(name)) for name in NAMES] == [1, 1, 1]
