"""P4 and P5 by what a worker publishes: what may leave, when nothing may, and which plans and ledgers it refuses.

Every message is written down before the broker gets it, so a claim that nothing left is about bytes, not about log lines.
"""

import shutil
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest

from broker_config.topology import update_queue
from client_worker.ledger import Ledger
from client_worker.ledger_rows import charge_in
from client_worker.policy import Policy
from client_worker.privacy import epsilon_after, planned_noise_multiplier
from shared import messages
from shared.errors import CheckpointError
from shared.messages import PrivacyStatement, Standing
from shared.noise import noise_std
from shared.plan import LocalPlan, Plan, PrivacyPlan
from tests.builders import RUN, a_plan, an_operation
from tests.conftest import eventually
from tests.recording import RecordingServer
from tests.running import EXAMPLES, Hand, Leader, Watch, Worker, begin, give_order, local_data
from tests.test_crash_points import rows

TARGET_DELTA = 1e-5
NOISED = PrivacyPlan(epsilon=2.0)
ALL_ROWS = LocalPlan(updates=100, steps=1, sample_rate=1.0)


@pytest.fixture
def stack():
    with ExitStack() as entered:
        yield entered


def noised(plan: Plan):
    """The toy data with the real accounting, and with noise of the size that its updates state."""

    def train(model, settings, _stop):
        statement = PrivacyStatement(
            mechanism=settings.mechanism, noise_multiplier=settings.noise_multiplier, clipping_norm=settings.clipping_norm
        )
        std = noise_std(statement, plan, EXAMPLES["bank-a"])
        return {name: np.random.default_rng().normal(0, std, array.shape).astype(np.float32) for name, array in model.items()}

    return local_data("bank-a", train=train, noise_multiplier=planned_noise_multiplier, epsilon=epsilon_after)


class Bank:
    """The institution bank-a over one ledger: worker after worker, and whatever any of them published."""

    def __init__(self, server, folder, plan, policy=None):
        self.sent = RecordingServer(server)
        self.folder = folder / "bank-a"
        self._parent, self._plan, self._policy = folder, plan, policy or Policy()

    def worker(self):
        return Worker(self.sent, "bank-a", self._parent, data=noised(self._plan), policy=self._policy)

    def charges(self):
        return [charge_in(fields) for fields in rows(self.folder / "ledger.sqlite", "RESERVED")]

    def epsilon(self):
        charges = self.charges()
        return epsilon_after(charges, TARGET_DELTA) if charges else 0.0

    @contextmanager
    def ledger(self):
        ledger = Ledger(self.folder / "ledger.sqlite", run_id=RUN, institution="bank-a", incarnation=1)
        yield ledger
        ledger.close()


def decoded(body_type, message):
    return messages.decode(body_type, message.kind, message.body, max_bytes=2**16)


def numbers(bank) -> list[int]:
    return [each.sequence for each in bank.sent.updates]


def new_versions(server, watch, statement, count=3):
    """Another institution makes versions, so that there is a new model to train on."""
    hand = Hand(server, "bank-b")
    first = watch.entry("bank-b").watermark + 1
    for sequence in range(first, first + count):
        values = np.random.default_rng(sequence).normal(0, 100, 3)
        hand.send(watch.head, sequence, *values, privacy=statement)
        assert watch.until(lambda sequence=sequence: watch.outcomes("bank-b")[-1:] == [(sequence, "aggregated")])


def test_nothing_leaves_after_the_budget_and_the_worker_stays_up_also_after_a_restart(broker_server, tmp_path, stack):
    plan = a_plan(privacy=NOISED, local=LocalPlan(updates=3, steps=1, sample_rate=1.0))
    begin(broker_server, plan)
    watch, bank = Watch(broker_server.connect("operator")), Bank(broker_server, tmp_path, plan)
    stack.enter_context(Leader(broker_server, tmp_path / "aggregator"))
    with bank.worker() as worker:
        assert watch.until(lambda: "standing" in bank.sent.kinds)
        new_versions(broker_server, watch, bank.sent.updates[0].privacy)
        assert worker.thread.is_alive()
    with bank.worker() as again:
        assert watch.until(lambda: bank.sent.kinds.count("standing") == 2)
        new_versions(broker_server, watch, bank.sent.updates[0].privacy)
        assert again.thread.is_alive()
    assert numbers(bank) == [1, 2, 3]
    assert bank.sent.kinds == ["hello", *["update"] * 3, "standing", "hello", "standing"]
    states = [
        messages.decode(Standing, "standing", each.body, max_bytes=2**16) for each in bank.sent.sent if each.kind == "standing"
    ]
    assert {(each.state, each.plan_hash) for each in states} == {("budget_spent", plan.hash)}
    assert len(bank.charges()) == 3
    assert 0.97 * 2.0 <= bank.epsilon() <= 2.0
    assert (worker.failure, again.failure) == (None, None)


def test_nothing_leaves_from_a_ledger_that_is_charged_beyond_the_plan(broker_server, tmp_path, stack):
    plan = a_plan(privacy=NOISED, local=ALL_ROWS)
    begin(broker_server, plan)
    watch, bank = Watch(broker_server.connect("operator")), Bank(broker_server, tmp_path, plan)
    with bank.ledger() as ledger:  # as an earlier, more generous plan left it
        fields = {"mechanism": "dp-sgd", "noise_multiplier": 1.0, "sample_rate": 1.0, "steps": 1, "target_delta": TARGET_DELTA}
        ledger.reserve(fields, epsilon_spent=4.0)
    assert bank.epsilon() > 2.0
    stack.enter_context(Leader(broker_server, tmp_path / "aggregator"))
    with bank.worker() as worker:
        assert watch.until(lambda: "standing" in bank.sent.kinds)
        give_order(broker_server, an_operation("pause", 1))
        assert watch.until(lambda: watch.head.manifest.phase == "paused")
        give_order(broker_server, an_operation("resume", 2))
        assert watch.until(lambda: watch.head.manifest.phase == "running")
    assert (bank.sent.kinds, len(bank.charges()), worker.failure) == (["hello", "standing"], 1, None)


def two_more(bank, watch) -> None:
    """A life of the worker in which two updates are settled."""
    before = watch.entry("bank-a").watermark
    with bank.worker() as worker:
        assert watch.until(lambda: watch.entry("bank-a").watermark >= before + 2)
    assert worker.failure is None


def require_refused(bank, watch, reason) -> None:
    """A worker on what lies there now stops, and says no more than hello."""
    sent, watermark = len(bank.sent.sent), watch.entry("bank-a").watermark
    with bank.worker() as worker:
        assert watch.until(lambda: not worker.thread.is_alive())
    assert isinstance(worker.failure, CheckpointError)
    assert reason in str(worker.failure)
    assert bank.sent.kinds[sent:] == ["hello"]
    assert watch.entry("bank-a").watermark == watermark


def put_back(bank, copy) -> None:
    shutil.rmtree(bank.folder)
    shutil.copytree(copy, bank.folder)


def test_a_ledger_that_was_put_back_or_deleted_is_refused_and_the_right_one_goes_on(broker_server, tmp_path, stack):
    plan = a_plan(privacy=NOISED, local=ALL_ROWS)
    begin(broker_server, plan)
    watch, bank = Watch(broker_server.connect("operator")), Bank(broker_server, tmp_path, plan)
    stack.enter_context(Leader(broker_server, tmp_path / "aggregator"))
    two_more(bank, watch)
    shutil.copytree(bank.folder, tmp_path / "backup")
    two_more(bank, watch)
    shutil.copytree(bank.folder, tmp_path / "newest")
    put_back(bank, tmp_path / "backup")
    require_refused(bank, watch, "it is a restored backup")
    shutil.rmtree(bank.folder)
    require_refused(bank, watch, "it is a restored backup")
    put_back(bank, tmp_path / "newest")
    two_more(bank, watch)
    contents = {each.hash: each.id for each in bank.sent.updates}
    assert len({*contents.values()}) == len(contents)


WAITS = {"buffer_size": 3, "exact_buffer": True, "max_wait_seconds": 0.3}


@pytest.mark.parametrize("aggregation", [{}, WAITS], ids=["at once", "in a buffer that waits"])
def test_a_ledger_is_refused_though_what_it_forgot_is_still_in_its_queue(broker_server, tmp_path, stack, aggregation):
    """The queue is in order: the aggregator meets the forgotten update before the hello of the ledger that forgot it."""
    plan = a_plan(aggregation, privacy=NOISED, local=ALL_ROWS)
    begin(broker_server, plan)
    watch, bank = Watch(broker_server.connect("operator")), Bank(broker_server, tmp_path, plan)
    with Leader(broker_server, tmp_path / "aggregator"):
        two_more(bank, watch)
        shutil.copytree(bank.folder, tmp_path / "backup")
        before = watch.entry("bank-a").watermark
        worker = stack.enter_context(bank.worker())
        assert watch.until(lambda: watch.entry("bank-a").watermark > before)
    # nobody leads: what it sends now stays in the queue
    assert watch.until(lambda: broker_server.depth(update_queue("bank-a")) >= 1)
    stack.close()
    assert worker.failure is None
    put_back(bank, tmp_path / "backup")
    sent = len(bank.sent.sent)
    with bank.worker() as forgetful:
        assert eventually(lambda: bank.sent.kinds[sent:] == ["hello"])
        with Leader(broker_server, tmp_path / "aggregator"):
            assert watch.until(lambda: not forgetful.thread.is_alive())
    assert isinstance(forgetful.failure, CheckpointError)
    assert bank.sent.kinds[sent:] == ["hello"]
    contents = {each.hash: each.id for each in bank.sent.updates}
    assert len({*contents.values()}) == len(contents)


STRICT = Policy(max_epsilon=2.0, min_noise_multiplier=5.0, mechanisms=("dp-sgd",))
REFUSED = {
    "max_epsilon": a_plan(privacy=PrivacyPlan(epsilon=1e9)),
    "max_target_delta": a_plan(privacy=PrivacyPlan(epsilon=2.0, target_delta=0.9)),
    "min_noise_multiplier": a_plan(privacy=NOISED, local=LocalPlan(updates=1, steps=1, sample_rate=1.0)),
    "mechanisms": a_plan(privacy=PrivacyPlan(mechanism="update-gaussian", epsilon=2.0), local=ALL_ROWS),
    "allow_no_privacy": a_plan(),
}


@pytest.mark.parametrize("limit", REFUSED)
def test_a_plan_that_asks_for_more_than_the_policy_gets_a_refusal_and_no_training(broker_server, tmp_path, stack, limit):
    plan = REFUSED[limit]
    begin(broker_server, plan)
    watch, bank = Watch(broker_server.connect("operator")), Bank(broker_server, tmp_path, plan, STRICT)
    stack.enter_context(Leader(broker_server, tmp_path / "aggregator"))
    with bank.worker() as worker:
        assert watch.until(lambda: watch.entry("bank-a").standing == "plan_refused")
        assert worker.thread.is_alive()
    assert watch.entry("bank-a").standing_limit == limit
    assert bank.sent.kinds == ["hello", "standing"]
    assert (bank.charges(), worker.failure) == ([], None)
