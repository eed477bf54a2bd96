"""P2 to P4 under real SIGKILLs, between every two steps of a commit and of an institution's work, over a real RabbitMQ."""

import signal
import sqlite3

import msgpack
import pytest

from aggregator_worker import checkpoint, commit
from broker_config.topology import update_queue
from client_worker import local_work
from client_worker.ledger import Ledger
from shared.plan import LocalPlan, PrivacyPlan
from tests.builders import NAMES, RUN, a_plan
from tests.crashing import KillAfter, lead, started, take_part
from tests.running import Hand, Leader, Watch, Worker, begin, deltas_of, require_each_once, require_replay, trained

pytestmark = pytest.mark.rabbitmq

KILLED = -signal.SIGKILL


@pytest.mark.parametrize("successor", ["the same host", "another host"])
@pytest.mark.parametrize("step", commit.STEPS)
def test_an_aggregator_that_is_killed_counts_each_update_once(rabbitmq_server, tmp_path, step, successor):
    begin(rabbitmq_server, a_plan({"buffer_size": 3, "exact_buffer": True, "max_wait_seconds": 60.0}))
    watch = Watch(rabbitmq_server.connect("operator"))
    hands = {name: Hand(rabbitmq_server, name) for name in NAMES}
    for sequence in (1, 2, 3):
        for number, hand in enumerate(hands.values(), start=1):
            hand.send(watch.records[0], sequence, 0.1 * number, sequence, -number / sequence)
    process = started(lead, rabbitmq_server.logins.settings("aggregator"), tmp_path / "leader", KillAfter(step, 2))
    process.join(60)
    assert process.exitcode == KILLED
    saved = checkpoint.load(tmp_path / "leader")
    assert saved is not None
    folder = tmp_path / ("leader" if successor == "the same host" else "elsewhere")
    with Leader(rabbitmq_server, folder):
        assert watch.until(lambda: all(watch.entry(name).watermark == 3 for name in NAMES))
        assert watch.until(lambda: watch.head.epoch == 3)
        assert watch.until(lambda: [rabbitmq_server.depth(update_queue(name)) for name in NAMES] == [0, 0, 0])
    require_each_once(watch)
    require_replay(watch, deltas_of(hands))
    assert [each.outcome for each in watch.settled] == ["aggregated"] * 9
    if successor == "the same host":
        assert saved.hash in [record.hash for record in watch.records]


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
    assert (len(ledger.charges), ledger.unsettled()) == (charges, [])
    ledger.close()
    require_each_once(watch)
    require_replay(watch, trained)
