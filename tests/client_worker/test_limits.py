"""How much of the line and of the machine a worker takes, by a clock of the test's own and by what the kernel says."""

import os
import threading
from pathlib import Path

import pytest
import torch

from broker_config.topology import update_queue
from client_worker.local_data import open_data, stand_back
from client_worker.sending import Pace, Sender
from client_worker.settings import ClientSettings
from shared.errors import SettingsError
from shared.plan import Limits as PlanLimits
from shared.settings import load
from tests.builders import a_plan, array
from tests.client_worker.test_cli import SETTINGS, TASK
from tests.client_worker.test_session import Scene, stepped, turned
from tests.running import local_data, member

RATE = 40_000


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("size", "seconds"), [(10_000, 0.25), (400_000, 10.0)])
def test_after_a_chunk_the_next_waits_as_long_as_it_takes_at_that_rate(size, seconds):
    clock = Clock()
    pace = Pace(RATE, clock)
    assert pace.is_due()
    pace.sent(size)
    clock.now += seconds - 0.001
    assert not pace.is_due()
    clock.now += 0.002
    assert pace.is_due()


def test_a_thousand_chunks_take_their_time_together_although_the_loop_is_late_each_time():
    clock = Clock()
    pace, begin = Pace(RATE, clock), clock.now
    for _ in range(1000):
        while not pace.is_due():
            clock.now += 0.05
        pace.sent(10_000)
    assert clock.now - begin == pytest.approx(1000 * 10_000 / RATE, rel=0.01)


def test_a_long_silence_is_no_credit_for_a_burst():
    clock = Clock()
    pace = Pace(RATE, clock)
    clock.now += 3600
    sent = 0
    while pace.is_due():
        pace.sent(4_000)
        sent += 1
    assert sent <= 3  # 0.2 s may be made up for, which are 8,000 bytes


class SlowLine:
    """A session whose updates are eight chunks and whose clock is the test's."""

    def __init__(self, folder: Path) -> None:
        plan = a_plan(limits=PlanLimits(chunk_bytes=1024))
        self.scene = Scene(folder, plan=plan)
        zeros = array(*[0.0] * 1800)
        self.scene.data = local_data("bank-a", at_least=lambda: None, train=lambda *_: {"w": zeros})
        self.scene.member = member("bank-a", upload_bytes_per_second=RATE)
        self.session = self.scene.welcomed()
        self.clock = Clock()
        self.session._sender = Sender(self.scene.work, self.session._broker, pace=Pace(RATE, self.clock))

    def chunks(self) -> list[tuple[str, int]]:
        """What has arrived: kind and number of the chunk."""
        found = []
        while (delivery := self.scene.leader.receive(0)) is not None:
            self.scene.leader.ack(delivery)
            found.append((delivery.message.kind, int(delivery.message.headers["chunk"])))
        return found


def test_between_chunks_the_loop_turns_and_no_other_message_comes_in_between(tmp_path):
    line = SlowLine(tmp_path)
    try:
        session, scene = line.session, line.scene
        stepped(session, lambda: scene.rabbit._queues[update_queue("bank-a")].consumers[0].unsettled)
        arrived = line.chunks()
        assert arrived[0] == ("update", 0)
        turned(session, 3)
        assert line.chunks() == [], "the clock stands still"
        session._leave("f" * 64, "budget_spent", "epsilon", "it is all spent")
        versions = session._head.manifest.version
        scene.commit(8.0)
        while len(arrived) < 8:
            line.clock.now += 1024 / RATE
            session.step()
            arrived += line.chunks()
        assert arrived == [("update", number) for number in range(8)]
        assert session._head.manifest.version == versions + 1, "manifests were read meanwhile"
        line.clock.now += 1.0
        turned(session, 3)
        assert line.chunks() == [("standing", 0)]
        assert scene.work.ledger.sent().updates[0].sent_at_seconds is not None
    finally:
        line.scene.close()


def test_an_upload_that_is_settled_meanwhile_is_let_go_and_keeps_no_other_message_back(tmp_path):
    line = SlowLine(tmp_path)
    try:
        session, scene = line.session, line.scene
        stepped(session, lambda: scene.rabbit._queues[update_queue("bank-a")].consumers[0].unsettled)
        (sealed,) = scene.work.ledger.unsettled()
        changes = {"watermark": 1, "last_hash": sealed.hash, "quarantined": True}  # so that nothing new is to be sent
        scene.entry = scene.entry.model_copy(update=changes)
        scene.commit(9.0)
        line.chunks()
        session._leave("f" * 64, "budget_spent", "epsilon", "it is all spent")
        turned(session, 5)
        assert line.chunks() == [("standing", 0)], "the clock stands still, and of the update nothing more comes"
    finally:
        line.scene.close()


def test_a_line_so_slow_that_uploads_would_be_given_up_is_refused():
    with pytest.raises(SettingsError, match=r"limits\.upload_bytes_per_second"):
        load(ClientSettings, f"{SETTINGS}\n[limits]\nupload_bytes_per_second = 32767", path=Path("client.toml"))


def of_a_thread(look):
    """What a thread of its own finds."""
    found = []
    thread = threading.Thread(target=lambda: found.append(look()))
    thread.start()
    thread.join()
    return found[0]


def test_the_training_thread_stands_back_and_the_loop_does_not():
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def look():
        stand_back(own + 3)
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    assert of_a_thread(look) == own + 3
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own


def test_a_training_uses_as_many_threads_as_it_may(tmp_path):
    for name, text in {"task.toml": TASK, "training.csv": "a,y\n10,1\n0,0\n"}.items():
        (tmp_path / name).write_text(text)
    before = torch.get_num_threads()
    try:
        settings = load(ClientSettings, f"{SETTINGS}\n[limits]\ncpu_threads = 2", path=tmp_path / "client.toml")
        open_data(settings)
        assert of_a_thread(torch.get_num_threads) == 2
        open_data(load(ClientSettings, SETTINGS, path=tmp_path / "client.toml"))
        assert of_a_thread(torch.get_num_threads) == 1, "one, unless more are allowed"
    finally:
        torch.set_num_threads(before)
