"""P2 to P4 under real SIGKILLs, after every step of a term and of an institution's work, over a real RabbitMQ.

The steps are those that the code lists: one that is added there is tried here.
"""

import signal
import sqlite3
from dataclasses import dataclass

import msgpack
import numpy as np
import pytest

from aggregator_worker import checkpoint, commit, term
from broker_config.streams import records_of
from broker_config.topology import MODEL, STATE, update_queue
from client_worker import local_work
from client_worker.ledger import Ledger
from shared.plan import LocalPlan, PrivacyPlan
from tests.builders import NAMES, RUN, a_plan, small_limits
from tests.crashing import KillAfter, lead, started, take_part
from tests.running import Hand, Leader, Watch, Worker, begin, deltas_of, require_each_once, require_replay, sent_under

pytestmark = pytest.mark.rabbitmq

KILLED = -signal.SIGKILL
TAKEOVER = [step for step in term.STEPS if step not in commit.STEPS]
SAME, OTHER = "the same host", "another host"
THREE = {"buffer_size": 3, "exact_buffer": True, "max_wait_seconds": 60.0}
VALUES = 1500


@dataclass(frozen=True)
class Kind:
    """A kind of model: its plan, and the chunks of 1 KiB that one version's blobs are cut into."""

    aggregation: dict
    broadcast: str
    state_chunks: int
    model_chunks: int

    @property
    def plan(self):
        return a_plan({**THREE, **self.aggregation}, broadcast=self.broadcast, limits=small_limits(chunk_bytes=1024))

    def times(self, step: str) -> int:
        """How often a leader has done the step, in the middle of its second commit."""
        return {"manifest": 3, "chunk": self.state_chunks + self.model_chunks + max(5, self.state_chunks // 2)}.get(step, 2)


# 1500 numbers have 6000 bytes and a hundred for their names; a state of the model and its momentum has twice as many
PLAIN = Kind({}, "float32", state_chunks=0, model_chunks=6)
WIDE = Kind({"server_momentum": 0.9}, "bfloat16", state_chunks=12, model_chunks=3)


class Crashing:
    """Three updates of each institution wait for one leader after another, each of which is killed but the last."""

    def __init__(self, server, folder, kind: Kind) -> None:
        self.server, self.folder = server, folder
        self.start = {"w": np.zeros(VALUES, np.float32)}
        begin(server, kind.plan, model=self.start)
        self.watch = Watch(server.connect("operator"))
        self.hands = {name: Hand(server, name) for name in NAMES}
        pattern = np.linspace(-0.3, 0.7, VALUES)
        for sequence in (1, 2, 3):
            for number, hand in enumerate(self.hands.values(), start=1):
                hand.send(self.watch.records[0], sequence, *(pattern * number / sequence))

    def kill(self, host: str, step: str, times: int) -> None:
        """One leader, killed after a step; nothing that is not in a manifest may be gone from the queues."""
        settings = self.server.logins.settings("aggregator")
        process = started(lead, settings, self.folder / host, KillAfter(step, times))
        process.join(60)
        assert process.exitcode == KILLED
        assert self.watch.until(lambda: all(self.waiting(name) + self.watch.entry(name).watermark >= 3 for name in NAMES))

    def waiting(self, name: str) -> int:
        """An institution's updates that nobody has acknowledged."""
        return self.server.depth(update_queue(name))

    def settle(self, host: str, epoch: int) -> None:
        """The last leader settles what is left; then each update is counted once, and the history is one."""
        watch, seen = self.watch, [record.hash for record in self.watch.records]
        with Leader(self.server, self.folder / host):
            assert watch.until(lambda: all(watch.entry(name).watermark == 3 for name in NAMES))
            assert watch.until(lambda: watch.head.epoch == epoch)
            assert watch.until(lambda: [self.waiting(name) for name in NAMES] == [0, 0, 0])
        require_each_once(watch)
        require_replay(watch, deltas_of(self.hands), start=self.start)
        assert [each.outcome for each in watch.settled] == ["aggregated"] * 9
        told = [record.hash for record in records_of(self.server.connect("bank-a"))]
        assert told == [record.hash for record in watch.records]
        assert told[: len(seen)] == seen

    def chunks(self, stream: str, blob: str) -> list[int]:
        """The chunks of a blob in the order in which they stand in a stream."""
        found = self.server.connect("aggregator").read(stream, "first", count=None, idle_seconds=0.2)
        return [each.message.headers["chunk"] for each in found if each.message.headers["id"] == blob]


def cases(kinds, hosts):
    return [
        pytest.param(kind, step, host, id=f"{name}, {step}, {host}")
        for name, kind in kinds.items()
        for step in commit.STEPS
        for host in hosts
    ]


def kill_in_a_commit_and_succeed(federation: Crashing, kind: Kind, step: str, host: str) -> None:
    federation.kill(SAME, step, kind.times(step))
    saved = checkpoint.load(federation.folder / SAME)
    assert saved is not None
    federation.settle(host, epoch=3)
    if host == SAME:
        assert saved.newest.hash in [record.hash for record in federation.watch.records]


@pytest.mark.parametrize(("kind", "step", "host"), cases({"wide": WIDE}, (SAME,)) + cases({"plain": PLAIN}, (OTHER,)))
def test_an_aggregator_that_is_killed_counts_each_update_once(rabbitmq_server, tmp_path, kind, step, host):
    kill_in_a_commit_and_succeed(Crashing(rabbitmq_server, tmp_path, kind), kind, step, host)


@pytest.mark.long
@pytest.mark.parametrize(("kind", "step", "host"), cases({"plain": PLAIN}, (SAME,)) + cases({"wide": WIDE}, (OTHER,)))
def test_an_aggregator_that_is_killed_counts_each_update_once_also_the_other_way_round(
    rabbitmq_server, tmp_path, kind, step, host
):
    kill_in_a_commit_and_succeed(Crashing(rabbitmq_server, tmp_path, kind), kind, step, host)


@pytest.mark.parametrize("host", [SAME, OTHER])
@pytest.mark.parametrize("step", TAKEOVER)
def test_a_successor_that_is_killed_while_it_takes_over_is_succeeded_in_turn(rabbitmq_server, tmp_path, step, host):
    federation = Crashing(rabbitmq_server, tmp_path, WIDE)
    federation.kill(SAME, "model blob", 2)
    federation.kill(host, step, 1)
    federation.settle(host if host == SAME else "a third host", epoch=3 if step == "token" else 4)


def killed_in_mid_blob(server, folder, kind: Kind, sent: int) -> None:
    """A leader is killed after so many chunks of its second commit; its successor on the host adds what is missing."""
    federation = Crashing(server, folder, kind)
    federation.kill(SAME, "chunk", kind.state_chunks + kind.model_chunks + sent)
    saved = checkpoint.load(folder / SAME)
    assert saved is not None
    federation.settle(SAME, epoch=3)
    manifest = saved.newest.manifest
    assert federation.chunks(MODEL, manifest.model.hash) == list(range(kind.model_chunks))
    if manifest.state is not None:
        assert federation.chunks(STATE, manifest.state.hash) == list(range(kind.state_chunks))


@pytest.mark.parametrize(("kind", "sent"), [(WIDE, 14), (PLAIN, 3)])
def test_a_blob_that_was_cut_off_is_continued_after_the_chunks_that_are_there(rabbitmq_server, tmp_path, kind, sent):
    killed_in_mid_blob(rabbitmq_server, tmp_path, kind, sent)


@pytest.mark.long
@pytest.mark.parametrize("sent", range(1, 16))
def test_a_blob_is_continued_after_whichever_chunk_was_the_last(rabbitmq_server, tmp_path, sent):
    killed_in_mid_blob(rabbitmq_server, tmp_path, WIDE, sent)


def rows(path, state: str) -> list[dict[str, object]]:
    """A ledger's rows, read as a stranger to the program would."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
        found = database.execute("SELECT fields FROM ledger WHERE state = ? ORDER BY number", (state,)).fetchall()
    database.close()
    return [msgpack.unpackb(fields) for (fields,) in found]


SEALED_AND_CHARGED = {"reserve": (1, 4), "seal": (2, 3), "chunk": (2, 3), "publish": (2, 3), "settle": (2, 3)}
"""Updates sealed before the kill in the second update, and charges once three are settled; `file` is for large updates only."""


def test_every_step_of_an_institution_is_tried():
    assert {*SEALED_AND_CHARGED, "file"} == {*local_work.STEPS}


@pytest.mark.parametrize("step", SEALED_AND_CHARGED)
def test_an_institution_that_is_killed_sends_the_same_bytes_and_is_charged_once_for_each(rabbitmq_server, tmp_path, step):
    sealed_before, charges = SEALED_AND_CHARGED[step]
    plan = a_plan(privacy=PrivacyPlan(mechanism="dp-sgd", epsilon=50.0), local=LocalPlan(updates=charges))
    begin(rabbitmq_server, plan)
    watch = Watch(rabbitmq_server.connect("operator"))
    path = tmp_path / "bank-a" / "ledger.sqlite"
    with Leader(rabbitmq_server, tmp_path / "aggregator"):
        process = started(take_part, rabbitmq_server.logins.settings("bank-a"), path, KillAfter(step, 2))
        process.join(60)
        assert process.exitcode == KILLED
        sealed = rows(path, "SEALED")
        assert (len(rows(path, "RESERVED")), len(sealed)) == (2, sealed_before)
        with Worker(rabbitmq_server, "bank-a", tmp_path) as again:
            assert watch.until(lambda: watch.entry("bank-a").watermark == 3)
        assert again.failure is None
    hashes = [each.hash for each in watch.settled]
    assert hashes == [each["hash"] for each in rows(path, "SEALED")]
    assert hashes[:sealed_before] == [each["hash"] for each in sealed]
    assert watch.entry("bank-a").epsilon_spent == 0.5 * charges
    ledger = Ledger(path, run_id=RUN, institution="bank-a", incarnation=1)
    assert (len(ledger.totals.charges), ledger.unsettled()) == (charges, [])
    ledger.close()
    require_each_once(watch)
    require_replay(watch, sent_under(plan))
