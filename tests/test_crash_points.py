"""P2 to P4 under real SIGKILLs, after every step of a term and of an institution's work, over a real RabbitMQ.

The steps are those that the code lists: a step that is added there is tried here.
"""

import signal
import sqlite3
from collections import Counter

import msgpack
import numpy as np
import pytest

from aggregator_worker import checkpoint, commit, term
from broker_config.streams import IDLE_SECONDS
from broker_config.topology import MODEL, STATE, update_queue
from client_worker import local_work
from client_worker.ledger import Ledger
from shared.plan import LocalPlan, Plan, PrivacyPlan
from tests.builders import NAMES, RUN, a_plan, small_limits
from tests.crashing import KillAfter, lead, started, take_part
from tests.running import Hand, Leader, Watch, Worker, begin, deltas_of, require_each_once, require_replay, trained

pytestmark = pytest.mark.rabbitmq

KILLED = -signal.SIGKILL
TAKEOVER = [step for step in term.STEPS if step not in commit.STEPS]
THREE = {"buffer_size": 3, "exact_buffer": True, "max_wait_seconds": 60.0}
MOMENTUM = {"server_momentum": 0.9}
LARGE = 1500  # 6 KB of float32 numbers: in chunks of 1 KiB a blob has six or three of them
IN_CHUNKS = small_limits(chunk_bytes=1024)


class Federation:
    """A federation with three updates of each institution waiting, and the processes that lead it one after another."""

    def __init__(self, server, folder, plan: Plan, *, values: int) -> None:
        self.server, self.folder = server, folder
        self.start = {"w": np.linspace(-1, 1, values, dtype=np.float32)}
        begin(server, plan, model=self.start)
        self.watch = Watch(server.connect("operator"))
        self.hands = {name: Hand(server, name) for name in NAMES}
        pattern = np.linspace(0.1, 0.7, values)
        for sequence in (1, 2, 3):
            for number, hand in enumerate(self.hands.values(), start=1):
                hand.send(self.watch.records[0], sequence, *(pattern * (number - 2 / sequence)))

    def killed(self, step: str, times: int) -> None:
        """One leader, killed after a step."""
        settings = self.server.logins.settings("aggregator")
        process = started(lead, settings, self.folder / "leader", KillAfter(step, times))
        process.join(60)
        assert process.exitcode == KILLED

    def succeeded(self, successor: str, *, epoch: int) -> None:
        """The last leader, which settles everything; then P2 and P3."""
        saved = checkpoint.load(self.folder / "leader")
        watch, queues = self.watch, [update_queue(name) for name in NAMES]
        assert watch.until(lambda: not self.server.depth("fl.lead") or True)
        seen = {record.manifest.version: record.hash for record in watch.records}
        with Leader(self.server, self.folder / ("leader" if successor == "the same host" else "elsewhere")):
            assert watch.until(lambda: all(watch.entry(name).watermark == 3 for name in NAMES))
            assert watch.until(lambda: watch.head.epoch == epoch)
            assert watch.until(lambda: [self.server.depth(queue) for queue in queues] == [0, 0, 0])
        require_each_once(watch)
        require_replay(watch, deltas_of(self.hands), start=self.start)
        assert [each.outcome for each in watch.settled] == ["aggregated"] * 9
        assert {record.manifest.version: record.hash for record in watch.records}.items() >= seen.items()
        if saved is not None and successor == "the same host":
            assert saved.newest.hash in [record.hash for record in watch.records]


def rows(path, state: str) -> list[dict[str, object]]:
    """A ledger's rows, read as a stranger to the program would."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
        found = database.execute("SELECT fields FROM ledger WHERE state = ? ORDER BY number", (state,)).fetchall()
    database.close()
    return [msgpack.unpackb(fields) for (fields,) in found]


@pytest.mark.parametrize(
    ("step", "sealed_before", "charges"), [("reserve", 1, 4), ("seal", 2, 3), ("publish", 2, 3), ("settle", 2, 3)]
)
def test_an_institution_that_is_killed_sends_the_same_bytes_and_is_charged_once_for_each(
    rabbitmq_server, tmp_path, step, sealed_before, charges
):
    assert step in local_work.STEPS
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
    require_replay(watch, trained)
