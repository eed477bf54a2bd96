"""A second aggregator: it takes over with nothing but the broker, and whom it deposed cannot change the lineage."""

import os
import signal
from contextlib import ExitStack

import numpy as np
import pytest

from aggregator_worker import commit
from broker_config.streams import records_of
from broker_config.topology import LINEAGE, update_queue
from campaigns.tcp_proxy import TcpProxy
from tests.builders import NAMES, a_plan, an_update, as_messages
from tests.crashing import Aggregator, KillAfter, lead, started
from tests.running import EXAMPLES, Hand, Watch, begin, deltas_of, require_each_once, require_replay

pytestmark = pytest.mark.rabbitmq

LARGE = 1_000_000
PLAIN = a_plan({"max_wait_seconds": 1.0})
WIDE = a_plan({"max_wait_seconds": 1.0, "server_momentum": 0.9}, broadcast="bfloat16")


class Standby:
    """A federation played by hand, and its aggregators as processes of their own."""

    def __init__(self, server, folder, plan=PLAIN, *, values: int = 3) -> None:
        self.server, self.folder = server, folder
        self.settings = server.logins.settings("aggregator")
        self.start = {"w": np.zeros(values, np.float32)}
        self.pattern = np.linspace(-0.4, 0.8, values, dtype=np.float32)
        begin(server, plan, model=self.start)
        self.watch = Watch(server.connect("operator"))
        self.hands = {name: Hand(server, name) for name in NAMES}
        self.sent = dict.fromkeys(NAMES, 0)

    def aggregator(self, name: str, **changes) -> Aggregator:
        """One more process, in a state folder of its own."""
        return Aggregator(self.settings, self.folder / name, **changes)

    def send(self, *names: str) -> None:
        """The next update of each, whatever leads."""
        for name in names:
            self.sent[name] += 1
            hand, sequence = self.hands[name], self.sent[name]
            update = an_update(name, sequence, base=self.watch.head, num_examples=EXAMPLES[name])
            hand.deltas[sequence] = {"w": self.pattern / np.float32(sequence)}
            for message in as_messages(update, hand.deltas[sequence], chunk_bytes=4 * 2**20):
                hand.publish(message)

    def all_settled(self) -> bool:
        """Whether the lineage settles whatever was sent."""
        return self.watch.until(lambda: all(self.watch.entry(name).watermark == self.sent[name] for name in NAMES))

    def led_under(self, epoch: int) -> bool:
        """Whether somebody publishes under this epoch."""
        return self.watch.until(lambda: self.watch.head.epoch == epoch)

    def lineage(self) -> list[str]:
        """Ids of all records, claims too."""
        records = self.server.connect("operator").read(LINEAGE, "first", count=None, idle_seconds=0.5)
        return [record.message.message_id for record in records]

    def require_one_history(self) -> None:
        """Each update once, the models to the bit, and a reader who comes now reads what was read all the time."""
        assert self.all_settled()
        assert self.watch.until(lambda: not any(self.server.depth(update_queue(name)) for name in NAMES))
        require_each_once(self.watch)
        require_replay(self.watch, deltas_of(self.hands), start=self.start)
        assert {each.outcome for each in self.watch.settled} == {"aggregated"}
        late = [record.hash for record in records_of(self.server.connect("bank-a"))]
        assert late == [record.hash for record in self.watch.records]


@pytest.fixture
def stack():
    with ExitStack() as opened:
        yield opened


@pytest.mark.parametrize("plan", [pytest.param(PLAIN, id="plain"), pytest.param(WIDE, id="momentum, bfloat16")])
def test_a_standby_with_an_empty_folder_takes_over_a_large_model_from_a_leader_that_is_killed(
    rabbitmq_server, tmp_path, stack, plan
):
    federation = Standby(rabbitmq_server, tmp_path, plan, values=LARGE)
    leader = stack.enter_context(federation.aggregator("leader"))
    assert federation.led_under(2)
    standby = stack.enter_context(federation.aggregator("standby"))
    assert standby.says("standing by")
    federation.send("bank-a", "bank-b")
    assert federation.all_settled()
    federation.send("bank-a", "bank-c")
    leader.kill()
    assert federation.led_under(3)
    federation.send("bank-b")
    federation.require_one_history()


def test_a_standby_takes_over_when_the_leaders_host_is_lost(rabbitmq_server, tmp_path, stack):
    federation = Standby(rabbitmq_server, tmp_path)
    node, vhost = federation.settings.url.removeprefix("amqp://").split("/")
    link = stack.enter_context(TcpProxy(int(node.rpartition(":")[2])))
    leader = stack.enter_context(
        federation.aggregator("leader", url=f"amqp://127.0.0.1:{link.port}/{vhost}", heartbeat_seconds=2)
    )
    assert federation.led_under(2)
    standby = stack.enter_context(federation.aggregator("standby"))
    assert standby.says("standing by")
    link.stall()
    federation.send(*NAMES)
    assert federation.led_under(3)
    assert federation.all_settled()
    link.resume()
    assert leader.says("standing by", 2)
    federation.require_one_history()


def test_a_leader_that_is_stopped_for_a_moment_goes_on(rabbitmq_server, tmp_path, stack):
    federation = Standby(rabbitmq_server, tmp_path)
    leader = stack.enter_context(federation.aggregator("leader"))
    assert federation.led_under(2)
    standby = stack.enter_context(federation.aggregator("standby"))
    assert standby.says("standing by")
    leader.send(signal.SIGSTOP)
    federation.send(*NAMES)
    leader.send(signal.SIGCONT)
    federation.send(*NAMES)
    federation.require_one_history()
    assert federation.watch.head.epoch == 2


def test_a_zombie_changes_nothing_and_stands_by_until_it_is_needed(rabbitmq_server, tmp_path, stack):
    federation = Standby(rabbitmq_server, tmp_path)
    zombie = stack.enter_context(federation.aggregator("zombie", heartbeat_seconds=2))
    assert federation.led_under(2)
    standby = stack.enter_context(federation.aggregator("standby"))
    assert standby.says("standing by")
    federation.send(*NAMES)
    assert federation.all_settled()
    federation.send(*NAMES)
    zombie.send(signal.SIGSTOP)
    assert federation.led_under(3)
    federation.send(*NAMES)
    assert federation.all_settled()
    zombie.send(signal.SIGCONT)
    assert zombie.says("standing by", 2)
    federation.send(*NAMES)
    assert federation.all_settled()
    assert federation.watch.head.epoch == 3
    standby.kill()
    federation.send(*NAMES)
    assert federation.led_under(4)
    federation.require_one_history()


@pytest.mark.long
@pytest.mark.parametrize("step", commit.STEPS)
def test_a_zombie_that_was_stopped_between_two_steps_of_its_commit_changes_nothing(rabbitmq_server, tmp_path, stack, step):
    federation = Standby(rabbitmq_server, tmp_path, WIDE)
    settings = federation.settings.model_copy(update={"heartbeat_seconds": 2})
    stop = KillAfter(step, 3 if step == "manifest" else 2, signal.SIGSTOP)
    zombie = started(lead, settings, tmp_path / "zombie", stop)
    stack.callback(zombie.kill)
    assert federation.led_under(2)
    standby = stack.enter_context(federation.aggregator("standby"))
    assert standby.says("standing by")
    federation.send("bank-a")
    assert federation.all_settled()
    federation.send(*NAMES)
    assert federation.led_under(3)
    assert federation.all_settled()
    os.kill(zombie.pid, signal.SIGCONT)
    federation.send(*NAMES)
    assert federation.all_settled()
    standby.kill()  # there is nobody else: the zombie must have come back to stand by
    federation.send(*NAMES)
    assert federation.led_under(4)
    federation.require_one_history()


def test_a_leader_whose_disk_is_full_stops_consuming_and_goes_on_once_there_is_room(rabbitmq_server, tmp_path, stack):
    federation = Standby(rabbitmq_server, tmp_path, values=50_000)
    leader = stack.enter_context(federation.aggregator("leader"))
    federation.send(*NAMES)
    assert federation.all_settled()
    leader.allow_files_of(100_000)
    federation.send(*NAMES)
    assert leader.says("free space")
    assert leader.says("has no room for 4")
    lineage = federation.lineage()
    waiting = [update_queue(name) for name in NAMES]
    assert federation.watch.until(lambda: [rabbitmq_server.depth(queue) for queue in waiting] == [1, 1, 1])
    assert leader.says("not ready, trying again", 4)
    assert federation.lineage() == lineage
    leader.allow_files_of(-1)
    federation.require_one_history()


def test_a_standby_with_room_takes_over_from_a_leader_whose_disk_is_full(rabbitmq_server, tmp_path, stack):
    federation = Standby(rabbitmq_server, tmp_path, values=50_000)
    leader = stack.enter_context(federation.aggregator("leader"))
    assert federation.led_under(2)
    assert stack.enter_context(federation.aggregator("standby")).says("standing by")
    leader.allow_files_of(100_000)
    federation.send(*NAMES)
    assert federation.led_under(3)
    federation.require_one_history()
