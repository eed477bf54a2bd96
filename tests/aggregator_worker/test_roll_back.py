"""The operator's model takes the newest one's place: as a version of its own, or not at all."""

import os
from pathlib import Path

import numpy as np
import pytest

from aggregator_worker.admission import Admission
from aggregator_worker.leadership import StoppedError
from aggregator_worker.roll_back import RollBack, checked_model, orders, rolled_back
from broker_config.streams import fetch_state
from broker_config.topology import OPERATIONS
from shared import messages
from shared.errors import IncompatibleUpdateError
from shared.messages import OperationOutcome
from shared.plan import ServerAdam
from tests.aggregator_worker.counter import Counter, update
from tests.builders import (
    NAMES,
    RUN,
    a_federation,
    a_manifest,
    a_plan,
    an_update,
    array,
    commit,
    name_of,
    small_limits,
)
from tests.conftest import MemoryServer
from tests.running import Hand, Leader, Watch, begin, give_order

A, B = name_of("bank-a"), name_of("bank-b")
BACK = RollBack(0, A)
CHUNK_BYTES = 40
"""A model of two numbers takes 62 bytes: two chunks."""


def settle(federation, sequence, *values):
    """Folds an update of bank-a."""
    given = an_update("bank-a", sequence, base=federation.head)
    folds = Admission("aggregated")
    return federation.settle(A, given, f"{sequence:x}" * 64, admission=folds, delta={"w": array(*values)})


def orders_of(head, *values, wanted=BACK, number=7, **changes):
    """A roll-back to a model, in several orders."""
    fields = {"run_id": RUN, "operation_id": f"{number:032x}", "replaces": head.manifest.model.hash, "chunk_bytes": CHUNK_BYTES}
    return list(orders({"w": array(*values)}, wanted, **{**fields, **changes}))


def test_a_replaced_model_is_the_next_version_and_settles_nothing():
    federation = a_federation({"w": array(0, 0)})
    settle(federation, 1, 30, 60)
    one = commit(federation)
    before = federation.table[A]
    federation.replace_model({"w": array(5, 6)})
    two = commit(federation).manifest
    assert (two.version, two.settled, two.previous) == (2, [], one.hash)
    assert two.model.hash == messages.encode_model(RUN, {"w": array(5, 6)}).hash
    assert federation.table[A] == before
    settle(federation, 2, 3, 0)  # a third of the data: 5 + 3 / 3
    assert commit(federation).manifest.version == 3
    assert federation.state.model["w"].tolist() == pytest.approx([6.0, 6.0])


def test_momentum_begins_anew():
    # beta 0.5, a third of the data: m = (10, 20); after the roll-back m = (1, 0), where it would have been (6, 10)
    federation = a_federation({"w": array(0, 0)}, a_plan({"server_momentum": 0.5}))
    settle(federation, 1, 30, 60)
    commit(federation)
    federation.replace_model({"w": array(5, 6)})
    commit(federation)
    settle(federation, 2, 3, 0)
    commit(federation)
    assert federation.state.model["w"].tolist() == pytest.approx([6.0, 6.0])


@pytest.mark.parametrize("aggregation", [{"server_adam": ServerAdam()}, {"rule": "latest-update", "server_learning_rate": 1.0}])
def test_moments_and_rows_begin_anew(aggregation):
    federation, fresh = (a_federation({"w": array(0, 0)}, a_plan(aggregation)) for _ in range(2))
    settle(federation, 1, 30, 60)
    commit(federation)
    for each in (federation, fresh):
        each.replace_model({"w": array(5, 6)})
        commit(each)
        settle(each, 2, 3, 0)
        commit(each)
    for name, array_ in fresh.state.everything().items():
        assert federation.state.everything()[name].tobytes() == array_.tobytes()


def test_no_model_is_replaced_under_updates_that_no_manifest_tells_of():
    federation = a_federation({"w": array(0, 0)})
    settle(federation, 1, 1, 1)
    with pytest.raises(ValueError, match="between two versions"):
        federation.replace_model({"w": array(5, 6)})


@pytest.mark.parametrize("back", [RollBack(12, A), RollBack(0)])
def test_what_a_manifest_tells_of_a_roll_back_is_read_again(back):
    done = OperationOutcome(operation_id="1" * 32, kind="roll-back", applied=True, reason=back.told())
    assert rolled_back(a_manifest(13, operations=[done])) == back
    assert rolled_back(a_manifest(13, operations=[done.model_copy(update={"applied": False})])) is None
    assert rolled_back(a_manifest(13, operations=[done.model_copy(update={"kind": "pause"})])) is None


@pytest.mark.parametrize(
    ("model", "fault"),
    [
        ({"w": array(1, np.nan)}, "holds a number that is not finite"),
        ({"w": array(1, np.inf)}, "holds a number that is not finite"),
        ({"w": array(1, 2, 3)}, "has shape"),
        ({"v": array(1, 2)}, "is missing"),
        ({"w": array(1, 2), "v": array(1)}, "the model has no array 'v'"),
    ],
)
def test_a_model_that_nobody_could_go_on_from_is_refused(model, fault):
    content = messages.encode_model(RUN, model).joined()
    with pytest.raises(IncompatibleUpdateError, match=fault):
        checked_model(content, {"w": (2,)})


# --- orders, as they arrive at the leader -------------------------------------------------------------------------------------


@pytest.fixture
def counter(tmp_path):
    """bank-a, in quarantine, has moved the model to (1, 2)."""
    counter = Counter(tmp_path, plan=a_plan(limits=small_limits()))
    counter.send(update(counter), 10, 20)  # a tenth of the data
    counter.commit()
    counter.federation.change(A, counter.entry().model_copy(update={"quarantined": True}))
    counter.commit()
    yield counter
    counter.models.close()
    counter.desk.close()


def answers(counter, several):
    """What becomes of orders: whether each was applied, and what is told of it."""
    before = len(counter.federation.pending.operations)
    for each in several:
        counter.follow(each)
    return [(each.applied, each.reason) for each in counter.federation.pending.operations[before:]]


def test_chunks_are_put_together_and_settled_once(counter):
    several = orders_of(counter.federation.head, 7, 8)
    assert len(several) == 2
    assert answers(counter, several) == [(True, f"to version 0 without {A}")]
    assert counter.federation.state.model["w"].tolist() == [7.0, 8.0]
    assert counter.unacknowledged() == 1  # the last chunk, until the manifest; those before it are acknowledged at once
    manifest = counter.commit().manifest
    assert (manifest.version, rolled_back(manifest), counter.unacknowledged()) == (2, BACK, 0)
    assert answers(counter, several) == []
    assert counter.federation.empty


def test_a_chunk_that_comes_twice_does_not_mislead(counter):
    first, last = orders_of(counter.federation.head, 7, 8)
    assert answers(counter, [first, first, last]) == [(True, f"to version 0 without {A}")]


def open_files(folder):
    """What this process holds open below a folder, deleted files too."""
    links = [Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd")]
    return [link for link in links if link.is_symlink() and str(link.readlink()).startswith(str(folder))]


def altered(order, **changes):
    return order.model_copy(update={"arguments": {**order.arguments, **changes}})


WRONG = {
    "chunk 1 came where 0 was expected": lambda first, last: [last],
    "the bytes do not have the announced SHA-256": lambda first, last: [
        first,
        altered(last, body=b"\x00" * len(last.arguments["body"])),
    ],
    "the orders of one roll-back disagree about it": lambda first, last: [first, altered(last, without=B)],
    "the order does not hold a chunk of a model: bytes_type": lambda first, last: [altered(first, body="text")],
    "the order does not hold a chunk of a model: greater_than_equal": lambda first, last: [altered(first, to_version=-1)],
    "99 bytes are announced, 62 are allowed here": lambda first, last: [
        altered(first, headers={**first.arguments["headers"], "size": 99})
    ],
}


@pytest.mark.parametrize("reason", WRONG)
def test_orders_that_make_no_model_are_refused_and_nothing_of_them_is_kept(counter, reason, tmp_path):
    several = orders_of(counter.federation.head, 7, 8)
    assert answers(counter, WRONG[reason](*several)) == [(False, reason)]
    assert open_files(tmp_path) == []
    assert counter.federation.state.model["w"].tolist() == [1.0, 2.0]
    assert answers(counter, orders_of(counter.federation.head, 7, 8, number=8)) == [(True, f"to version 0 without {A}")]


def test_another_roll_back_gives_up_on_the_one_under_way(counter):
    head = counter.federation.head
    mixed = [orders_of(head, 7, 8)[0], *orders_of(head, 3, 4, number=8)]
    assert answers(counter, mixed) == [(True, f"to version 0 without {A}")]
    assert counter.federation.state.model["w"].tolist() == [3.0, 4.0]


def test_a_version_made_since_the_operator_looked_is_not_lost(counter):
    several = orders_of(counter.federation.head, 7, 8)
    counter.send(update(counter, institution="bank-b", num_examples=300), 9, 9)
    assert answers(counter, several) == [(False, "version 2 has been made since the operator looked; it would be lost")]
    counter.commit()
    again = orders_of(counter.federation.head, 7, 8, number=8, replaces=several[0].arguments["replaces"])
    assert answers(counter, again) == [(False, "version 2 has been made since the operator looked; it would be lost")]
    # bank-b has 300 of the 900 examples that two institutions have: 1/3 x 1/3 x 2 of (9, 9)
    assert counter.federation.state.model["w"].tolist() == pytest.approx([3.0, 4.0])


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (RollBack(0, B), f"{B} is neither in quarantine nor removed: its next update would be folded"),
        (RollBack(2, A), "there is no version 2 yet, 1 is the newest"),
    ],
)
def test_a_roll_back_that_makes_no_sense_is_refused(counter, wanted, reason):
    assert answers(counter, orders_of(counter.federation.head, 7, 8, wanted=wanted)) == [(False, reason)]


def test_a_model_that_is_not_finite_is_refused(counter):
    (told,) = answers(counter, orders_of(counter.federation.head, 7, np.nan))
    assert told == (False, "the array 'w' holds a number that is not finite")
    assert not counter.federation.makes_version


# --- a leader, killed or deposed at every step of it --------------------------------------------------------------------------

WIDE = a_plan({"server_momentum": 0.5, "max_wait_seconds": 0.1}, broadcast="bfloat16", limits=small_limits(chunk_bytes=1024))
START = {"w": np.zeros(2, np.float32)}
THIRD = 1 / 3


def confine(server):
    give_order(
        server, messages.Operation(run_id=RUN, operation_id="c" * 32, kind="quarantine", arguments={"institution": "bank-a"})
    )


class Run:
    """bank-a poisons, and is put into quarantine; a roll-back to (1/3, 2/3) is ordered, and bank-b trains on from it."""

    def __init__(self, server) -> None:
        self.server = server
        begin(server, WIDE, model=START)
        self.watch = Watch(server.connect("operator"))
        self.hands = {name: Hand(server, name) for name in NAMES}
        self.armed = False

    def poison(self) -> None:
        self.hands["bank-a"].send(self.watch.head, 1, 1000, 1000)
        assert self.watch.until(lambda: self.watch.head.manifest.version == 1)
        confine(self.server)
        assert self.watch.until(lambda: self.watch.entry("bank-a").quarantined)

    def order(self) -> None:
        self.armed = True
        for each in orders_of(self.watch.head, THIRD, 2 * THIRD):
            give_order(self.server, each)

    @property
    def refused(self) -> bool:
        """Whether the newest manifest says that the order came too late."""
        return any(done.kind == "roll-back" and not done.applied for done in self.watch.head.manifest.operations)

    def require_rolled_back(self) -> None:
        watch = self.watch
        assert watch.until(lambda: rolled_back(watch.head.manifest))
        manifest = watch.head.manifest
        assert (manifest.version, manifest.settled, rolled_back(manifest)) == (2, [], BACK)
        wide = fetch_state(watch.broker, watch.head)
        assert wide["model/w"].tobytes() == array(THIRD, 2 * THIRD).tobytes()
        assert wide["momentum/w"].tolist() == [0.0, 0.0]
        assert self.watch.entry("bank-a").watermark == 1
        self.hands["bank-b"].send(watch.head, 1, 10, 20)
        assert watch.until(lambda: watch.head.manifest.version == 3)
        # bank-b has 300 of the 900 examples that two institutions have: 1/3 x 1/3 x 2 of (10, 20), and no momentum but that
        assert fetch_state(watch.broker, watch.head)["model/w"].tolist() == pytest.approx([23 / 9, 46 / 9], rel=1e-6)
        told = [done for record in watch.records for done in record.manifest.operations if done.kind == "roll-back"]
        assert [done.applied for done in told] == [True]


def at_armed(run, step, act):
    """Acts once, at a step after the order was given."""
    done = []

    def after_step(told):
        if run.armed and told == step and not done:
            done.append(told)
            act()

    return after_step


STEPS = ("checkpoint", "chunk", "model blob", "manifest", "acknowledge")


@pytest.mark.parametrize("step", STEPS)
def test_a_successor_on_the_same_host_goes_on_with_the_roll_back_from_every_step(tmp_path, step):
    server = MemoryServer()
    run = Run(server)
    with Leader(server, tmp_path, after_step=at_armed(run, step, lambda: server.drop("aggregator"))):
        run.poison()
        run.order()
        run.require_rolled_back()
    assert server.depth(OPERATIONS) == 0


@pytest.mark.parametrize(("step", "expected"), [("checkpoint", "refused"), ("manifest", "made")])
def test_a_successor_on_another_host_has_the_version_or_refuses_what_it_knows_a_part_of(tmp_path, step, expected):
    server = MemoryServer()
    run = Run(server)

    def ends():
        leader._stopping.set()
        raise StoppedError

    with Leader(server, tmp_path / "one", after_step=at_armed(run, step, ends)) as leader:
        run.poison()
        run.order()
        leader._thread.join(20)
    with Leader(server, tmp_path / "two"):
        if expected == "made":
            run.require_rolled_back()
            return
        assert run.watch.until(lambda: any(done.kind == "roll-back" for done in run.watch.head.manifest.operations))
        (done,) = run.watch.head.manifest.operations
        assert (done.applied, done.reason) == (False, "chunk 1 came where 0 was expected")
        assert run.watch.head.manifest.version == 1


def test_updates_that_come_with_the_order_are_folded_into_the_version_after_it(broker_server, tmp_path):
    run = Run(broker_server)
    with Leader(broker_server, tmp_path):
        run.poison()
    base = run.watch.head
    run.order()
    run.hands["bank-b"].send(base, 1, 10, 20)  # trained on the version that is rolled back
    with Leader(broker_server, tmp_path):
        assert run.watch.until(lambda: run.watch.head.manifest.version == 3 or run.refused)
    if run.refused and not isinstance(broker_server, MemoryServer):
        return  # RabbitMQ may hand out the update before the order, which then names a version that is no longer the newest
    two, three = [record.manifest for record in run.watch.records if record.manifest.version >= 2]
    assert (rolled_back(two), two.settled) == (BACK, [])
    assert [(each.outcome, each.base_version, each.staleness) for each in three.settled] == [("aggregated", 1, 1)]


def test_the_order_of_another_run_is_a_dead_letter(tmp_path):
    counter = Counter(tmp_path)
    order = orders_of(counter.federation.head, 7, 8)[0]
    counter.follow(order.model_copy(update={"run_id": "cd" * 8}))
    assert counter.federation.empty
    assert len(counter.dead_letters()) == 1
