"""The whole federation on both brokers: it learns, waits for nobody, and counts each update once."""

import threading
from contextlib import ExitStack

import pytest

from broker_config.topology import update_queue
from client_worker.policy import Policy
from shared.errors import TopologyError
from shared.plan import Ending, PrivacyPlan
from tests.builders import NAMES, a_plan, an_operation, array, name_of, small_limits
from tests.running import (
    Hand,
    Leader,
    Watch,
    Worker,
    begin,
    deltas_of,
    give_order,
    local_data,
    require_each_once,
    require_replay,
    trained,
)


def started(server, tmp_path, plan=None, members=NAMES):
    begin(server, plan or a_plan(), members)
    return Watch(server.connect("operator"))


@pytest.fixture
def stack():
    with ExitStack() as opened:
        yield opened


def test_a_federation_learns_toward_the_mean_weighted_by_data(broker_server, tmp_path, stack):
    plan = a_plan({"buffer_size": 3, "exact_buffer": True, "max_wait_seconds": 30.0}, ending=Ending(updates=45, updates_each=15))
    watch = started(broker_server, tmp_path, plan)
    with Leader(broker_server, tmp_path / "aggregator"):
        workers = [stack.enter_context(Worker(broker_server, name, tmp_path)) for name in NAMES]
        assert watch.until(lambda: watch.head.manifest.phase == "finished")
        for worker in workers:
            worker.thread.join(20)
            assert not worker.thread.is_alive()
            assert worker.failure is None
    # what the leader had not acknowledged would be back in the queues now
    assert watch.until(lambda: [broker_server.depth(update_queue(name)) for name in NAMES] == [0, 0, 0])
    # 0.1 x 1 + 0.3 x 2 + 0.6 x 6 = 4.3; each version goes half of the way, so 2^-15 of it is left
    assert watch.model()["w"].tolist() == pytest.approx([4.3] * 3, abs=2e-3)
    assert [watch.entry(name).watermark for name in NAMES] == [15, 15, 15]
    assert watch.head.manifest.version == 15
    require_each_once(watch)
    require_replay(watch, trained)


def test_a_slow_institution_delays_nobody(broker_server, tmp_path, stack):
    go_on = threading.Event()
    stack.callback(go_on.set)
    slow = local_data("bank-c", at_least=lambda: go_on.wait(60))
    watch = started(broker_server, tmp_path)
    stack.enter_context(Leader(broker_server, tmp_path / "aggregator"))
    stack.enter_context(Worker(broker_server, "bank-c", tmp_path, data=slow))
    assert watch.until(lambda: watch.entry("bank-c").nonce)
    for name in ("bank-a", "bank-b"):
        stack.enter_context(Worker(broker_server, name, tmp_path))
    assert watch.until(lambda: min(watch.entry(name).watermark for name in ("bank-a", "bank-b")) >= 5)
    assert watch.outcomes("bank-c") == []
    go_on.set()
    assert watch.until(lambda: watch.outcomes("bank-c"))
    (first,) = [each for each in watch.settled if each.institution == name_of("bank-c")][:1]
    assert first.outcome == "aggregated"
    assert (
        first.staleness
        == watch.records[[first in record.manifest.settled for record in watch.records].index(True)].manifest.version - 1
    )
    assert first.staleness >= 5
    require_replay(watch, trained)


def test_a_leader_that_loses_its_connection_counts_each_update_once(broker_server, tmp_path, stack):
    watch = started(broker_server, tmp_path)
    stack.enter_context(Leader(broker_server, tmp_path / "aggregator"))
    for name in NAMES:
        stack.enter_context(Worker(broker_server, name, tmp_path))
    for _ in range(2):
        many, epoch = len(watch.settled) + 4, watch.reader.lineage.epoch
        assert watch.until(lambda many=many: len(watch.settled) >= many)
        broker_server.drop("aggregator")
        assert watch.until(lambda epoch=epoch: watch.head.epoch > epoch)
    many = len(watch.settled) + 6
    assert watch.until(lambda: len(watch.settled) >= many)
    require_each_once(watch)
    require_replay(watch, trained)


def test_an_institution_that_loses_its_connection_sends_the_same_again(broker_server, tmp_path, stack):
    watch = started(broker_server, tmp_path)
    worker = stack.enter_context(Worker(broker_server, "bank-a", tmp_path))
    queue = update_queue("bank-a")
    assert watch.until(lambda: broker_server.depth(queue) == 1)  # its hello: nobody leads yet
    with Leader(broker_server, tmp_path / "aggregator"):
        assert watch.until(lambda: watch.entry("bank-a").watermark >= 1)
    # nobody leads: what it sends now stays in its queue, and it does not learn of it
    assert watch.until(lambda: broker_server.depth(queue) >= 1)
    sent = watch.entry("bank-a").watermark + 1
    broker_server.drop("bank-a")
    assert watch.until(lambda: broker_server.depth(queue) >= 2)
    stack.enter_context(Leader(broker_server, tmp_path / "aggregator"))
    assert watch.until(lambda: watch.entry("bank-a").watermark >= sent + 2)
    assert worker.failure is None
    require_each_once(watch)
    require_replay(watch, trained)


def test_an_institution_is_admitted_while_the_federation_runs(broker_server, tmp_path, stack):
    watch = started(broker_server, tmp_path)
    stack.enter_context(Leader(broker_server, tmp_path / "aggregator"))
    stack.enter_context(Worker(broker_server, "bank-a", tmp_path))
    assert watch.until(lambda: watch.outcomes("bank-a"))
    broker_server.declare("bank-d")
    give_order(broker_server, an_operation("admit", institution="bank-d", incarnation=1))
    assert watch.until(lambda: name_of("bank-d") in (watch.reader.lineage.table or {}))
    stack.enter_context(Worker(broker_server, "bank-d", tmp_path))
    assert watch.until(lambda: len(watch.outcomes("bank-d")) >= 2)
    (entered,) = [record for record in watch.records if record.manifest.operations]
    assert entered.manifest.operations[0].applied
    require_each_once(watch)
    require_replay(watch, trained)


def test_a_member_without_a_queue_does_not_keep_the_others_waiting(broker_server, tmp_path, stack):
    watch = started(broker_server, tmp_path)
    broker_server.remove_queue(update_queue("bank-b"))
    stack.enter_context(Leader(broker_server, tmp_path / "aggregator"))
    Hand(broker_server, "bank-a").send(watch.records[0], 1, 1, 2, 3)
    assert watch.until(lambda: watch.outcomes("bank-a") == [(1, "aggregated")])


def test_an_order_for_an_institution_without_a_queue_does_not_end_the_leader(broker_server, tmp_path, stack):
    watch = started(broker_server, tmp_path)
    stack.enter_context(Leader(broker_server, tmp_path / "aggregator"))
    give_order(broker_server, an_operation("admit", institution="nobody", incarnation=1))
    assert watch.until(lambda: name_of("nobody") in (watch.reader.lineage.table or {}))
    Hand(broker_server, "bank-a").send(watch.records[0], 1, 1, 2, 3)
    assert watch.until(lambda: watch.outcomes("bank-a") == [(1, "aggregated")])


def test_a_removed_institution_is_not_heard_any_more_and_the_others_go_on(broker_server, tmp_path, stack):
    watch = started(broker_server, tmp_path)
    stack.enter_context(Leader(broker_server, tmp_path / "aggregator"))
    gone = stack.enter_context(Worker(broker_server, "bank-c", tmp_path))
    stack.enter_context(Worker(broker_server, "bank-a", tmp_path))
    assert watch.until(lambda: watch.outcomes("bank-c") and watch.outcomes("bank-a"))
    give_order(broker_server, an_operation("remove", institution="bank-c"))
    assert watch.until(lambda: watch.entry("bank-c").removed)
    gone.thread.join(20)
    assert isinstance(gone.failure, TopologyError)
    assert "not a member" in str(gone.failure)
    before, others = watch.entry("bank-c").watermark, watch.entry("bank-a").watermark
    assert watch.until(lambda: watch.entry("bank-a").watermark >= others + 3)
    assert watch.entry("bank-c").watermark == before
    broker_server.remove("bank-c")
    others = watch.entry("bank-a").watermark
    assert watch.until(lambda: watch.entry("bank-a").watermark >= others + 2)
    require_each_once(watch)


def test_a_stopped_run_ends_the_workers_that_leave_then(broker_server, tmp_path, stack):
    watch = started(broker_server, tmp_path)
    stack.enter_context(Leader(broker_server, tmp_path / "aggregator"))
    workers = [stack.enter_context(Worker(broker_server, name, tmp_path)) for name in NAMES]
    assert watch.until(lambda: len(watch.settled) >= 3)
    give_order(broker_server, an_operation("stop"))
    for worker in workers:
        worker.thread.join(20)
        assert not worker.thread.is_alive()
        assert worker.failure is None
    assert watch.until(lambda: watch.head.manifest.phase == "finished")
    assert watch.head.manifest.phase_reason == "stopped by the operator"


def test_a_paused_federation_trains_no_more_until_it_is_resumed(broker_server, tmp_path, stack):
    watch = started(broker_server, tmp_path)
    stack.enter_context(Leader(broker_server, tmp_path / "aggregator"))
    stack.enter_context(Worker(broker_server, "bank-a", tmp_path))
    assert watch.until(lambda: watch.outcomes("bank-a"))
    give_order(broker_server, an_operation("pause", 1))
    assert watch.until(lambda: watch.head.manifest.phase == "paused")
    at_rest, hand = watch.entry("bank-a").watermark, Hand(broker_server, "bank-b")
    for sequence in range(1, 21):
        hand.send(watch.head, sequence, 1, 1, 1)
        assert watch.until(lambda sequence=sequence: watch.entry("bank-b").watermark == sequence)
    assert watch.entry("bank-a").watermark <= at_rest + 1  # what was under way
    give_order(broker_server, an_operation("resume", 2))
    assert watch.until(lambda: watch.entry("bank-a").watermark >= at_rest + 3)


def test_updates_larger_than_a_message_travel_in_chunks(broker_server, tmp_path, stack):
    plan = a_plan(limits=small_limits(chunk_bytes=1024))
    model = {"w": array(*[0] * 3000)}
    begin(broker_server, plan, NAMES, model=model)
    watch = Watch(broker_server.connect("operator"))
    stack.enter_context(Leader(broker_server, tmp_path / "aggregator"))
    for name in ("bank-a", "bank-b"):
        stack.enter_context(Worker(broker_server, name, tmp_path))
    assert watch.until(lambda: len(watch.settled) >= 4)
    broker_server.drop("aggregator")
    broker_server.drop("bank-a")
    assert watch.until(lambda: len(watch.settled) >= 10)
    require_each_once(watch)
    require_replay(watch, trained, start=model)


def test_a_leader_takes_what_waits_in_one_commit(broker_server, tmp_path, stack):
    watch = started(broker_server, tmp_path)
    hands = {name: Hand(broker_server, name) for name in NAMES}
    for sequence in range(1, 8):
        for number, hand in enumerate(hands.values()):
            hand.send(watch.records[0], sequence, sequence, number, -1)
    stack.enter_context(Leader(broker_server, tmp_path / "aggregator"))
    assert watch.until(lambda: len(watch.settled) == 21)
    assert watch.head.manifest.version < 21
    require_each_once(watch)
    require_replay(watch, deltas_of(hands))


def test_a_run_ends_when_two_have_spent_their_budgets_and_the_third_refuses_the_plan(broker_server, tmp_path, stack):
    # each toy update costs epsilon 0.5 of 3
    plan = a_plan(privacy=PrivacyPlan(epsilon=3.0), ending=Ending(updates=1000, updates_each=1))
    watch = started(broker_server, tmp_path, plan)
    stack.enter_context(Leader(broker_server, tmp_path / "aggregator"))
    workers = [stack.enter_context(Worker(broker_server, "bank-c", tmp_path, policy=Policy(max_epsilon=1.0)))]
    assert watch.until(lambda: watch.entry("bank-c").standing)
    workers += [stack.enter_context(Worker(broker_server, name, tmp_path)) for name in ("bank-a", "bank-b")]
    assert watch.until(lambda: watch.head.manifest.phase == "finished")
    assert watch.head.manifest.phase_reason == "every institution has spent its budget or refuses the plan"
    for worker in workers:
        worker.thread.join(20)
        assert worker.failure is None
    for name in ("bank-a", "bank-b"):
        assert watch.outcomes(name) == [(number, "aggregated") for number in range(1, 7)]
        entry = watch.entry(name)
        assert (entry.standing, entry.standing_limit, entry.epsilon_spent) == ("budget_spent", "epsilon", 3.0)
        assert (entry.mechanism, entry.noise_multiplier) == ("dp-sgd", 1.25)
    entry = watch.entry("bank-c")
    assert (entry.standing, entry.standing_limit, entry.watermark) == ("plan_refused", "max_epsilon", 0)
    assert [broker_server.depth(update_queue(name)) for name in NAMES] == [0, 0, 0]
