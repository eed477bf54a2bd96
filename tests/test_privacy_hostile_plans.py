"""P5 against an aggregator that writes its plans to get more than it may: it is refused, or it gets no more than the policy says.

The bank trains for real. What it spent is recomputed from its ledger, and not taken from what it stated.
"""

import threading
from dataclasses import replace

import numpy as np
import pytest

from broker_config.connection import ConnectionSettings
from client_worker.ledger import Ledger
from client_worker.ledger_rows import charge_in
from client_worker.local_data import open_data
from client_worker.local_work import LocalWork
from client_worker.outgoing import Base
from client_worker.policy import PlanRefusedError
from client_worker.privacy import epsilon_after
from shared import messages
from shared.errors import PrivacyBudgetExhaustedError
from shared.messages import Standing
from tests import private_bank
from tests.builders import RUN, a_blob
from tests.conftest import MemoryServer
from tests.private_bank import START, private_plan
from tests.recording import RecordingServer
from tests.running import Leader, Watch, Worker, begin, member
from tests.test_crash_points import rows

NOWHERE = ConnectionSettings(url="amqp://127.0.0.1:1/nowhere", user="bank-a", password="unused")
MAX_EPSILON, MAX_TARGET_DELTA = 2.0, 1e-5
POLICY = f"[policy]\nmax_epsilon = {MAX_EPSILON}\nmax_target_delta = {MAX_TARGET_DELTA}\nmin_noise_multiplier = 2.5"
TWO = {"updates": 2, "steps": 2}
REFUSED = {
    "a huge epsilon": ("max_epsilon", private_plan({"epsilon": 1e9}, local=TWO)),
    "no epsilon": ("max_epsilon", private_plan({"epsilon": None}, local=TWO)),
    "an epsilon that nothing keeps": ("epsilon", private_plan({"epsilon": 1e-12}, local=TWO)),
    "a target delta of 0.9": ("max_target_delta", private_plan({"target_delta": 0.9}, local=TWO)),
    "no noise": ("allow_no_privacy", private_plan({"mechanism": "none", "epsilon": None}, local=TWO)),
    "a sample that hardly anybody is in": ("sample_rate", private_plan(local={**TWO, "sample_rate": 1e-300})),
    "less noise than the least": ("min_noise_multiplier", private_plan(local={"updates": 1, "steps": 1})),
    "steps that take minutes to account": ("max_steps", private_plan(local={"updates": 20, "steps": 10**6, "sample_rate": 0.25})),
    "updates without end": ("max_steps", private_plan(local={"updates": 2**63})),
    "a clipping norm below float32": ("clipping_norm", private_plan({"clipping_norm": 1e-45}, local=TWO)),
    "a clipping norm above float32": ("clipping_norm", private_plan({"clipping_norm": 1e38}, local=TWO)),
    "a learning rate above float32": ("learning_rate", private_plan(local={**TWO, "learning_rate": 1e38})),
}
ALLOWED = {
    "all rows in each of many steps": private_plan(local={"updates": 2, "steps": 200}),
    "a tiny clipping norm": private_plan({"clipping_norm": 1e-5}, local=TWO),
    "a huge clipping norm": private_plan({"clipping_norm": 1e5}, local=TWO),
    "a huge learning rate": private_plan(local={**TWO, "learning_rate": 1e5}),
    "noise on the whole update": private_plan({"mechanism": "update-gaussian"}, local=TWO),
}


def run(plan, folder):
    """The bank under a plan until it says that it trains no more; what it published, and its last word."""
    server, settings = MemoryServer(), private_bank.settings(folder / "bank", NOWHERE, POLICY)
    begin(server, plan, model=START)
    watch, sent = Watch(server.connect("operator")), RecordingServer(server)
    data = open_data(settings)
    with Leader(server, folder / "aggregator"), Worker(sent, "bank-a", folder, data=data, policy=settings.policy) as worker:
        assert watch.until(lambda: "standing" in sent.kinds)
        assert worker.thread.is_alive()
    assert worker.failure is None
    return sent, messages.decode(Standing, "standing", sent.sent[-1].body, max_bytes=2**16)


def charges(folder):
    return [charge_in(fields) for fields in rows(folder / "ledger.sqlite", "RESERVED")]


@pytest.mark.parametrize(("limit", "plan"), REFUSED.values(), ids=REFUSED)
def test_a_plan_that_asks_for_too_much_gets_a_refusal_and_the_worker_stays_up(tmp_path, limit, plan):
    sent, standing = run(plan, tmp_path)
    assert (sent.kinds, standing.state, standing.limit) == (["hello", "standing"], "plan_refused", limit)
    assert charges(tmp_path / "bank-a") == []


@pytest.mark.parametrize("plan", ALLOWED.values(), ids=ALLOWED)
def test_a_plan_at_the_edge_gets_no_more_than_the_policy_allows(tmp_path, plan):
    sent, standing = run(plan, tmp_path)
    assert standing.state == "budget_spent"
    spent = charges(tmp_path / "bank-a")
    assert len(spent) == len(sent.updates) == 2
    assert [each.charge for each in sent.updates] == spent
    assert epsilon_after(spent, MAX_TARGET_DELTA) <= MAX_EPSILON


# Each allows more trainings than the ones before it, so that the number of trainings alone refuses none of them.
PLAN_AFTER_PLAN = {
    "ever more": [
        private_plan({"epsilon": 0.5}, local={"updates": 2, "steps": 2}),
        private_plan({"epsilon": 1.0, "target_delta": 1e-9}, local={"updates": 4, "steps": 1}),
        private_plan({"epsilon": 1.5, "mechanism": "update-gaussian"}, local={"updates": 6, "steps": 3}),
        private_plan({"epsilon": 2.0}, local={"updates": 9, "steps": 1}),
        private_plan({"epsilon": 2.0}, local={"updates": 14, "steps": 9}),
        private_plan({"epsilon": 2.0, "clipping_norm": 2.0}, local={"updates": 20, "steps": 1}),
    ],
    "all of it, again and again": [
        private_plan({"epsilon": 2.0}, local={"updates": 2, "steps": 2}),
        private_plan({"epsilon": 2.0}, local={"updates": 4, "steps": 1}),
        private_plan({"epsilon": 2.0, "mechanism": "update-gaussian"}, local={"updates": 8, "steps": 1}),
    ],
}


@pytest.mark.parametrize("plans", PLAN_AFTER_PLAN.values(), ids=PLAN_AFTER_PLAN)
def test_plan_after_plan_each_within_the_policy_together_get_no_more_than_it_allows(tmp_path, plans):
    settings = private_bank.settings(tmp_path / "bank", NOWHERE, POLICY)
    data = replace(open_data(settings), train=lambda model, *_: {name: np.zeros_like(array) for name, array in model.items()})
    ledger = Ledger(tmp_path / "ledger.sqlite", run_id=RUN, institution="bank-a", incarnation=1)
    work, refused = LocalWork(member("bank-a", policy=settings.policy), data, ledger, threading.Event()), 0
    for plan in plans:
        for _ in range(20):
            try:
                statement = work.afford(plan)
            except (PrivacyBudgetExhaustedError, PlanRefusedError):
                refused += 1
                break
            work.begin(Base(0, a_blob("model 0"), plan.hash), START, plan, statement)
            work.training.delta.result(20)
            work.seal()
        assert epsilon_after(ledger.totals.charges, MAX_TARGET_DELTA) <= MAX_EPSILON
    assert refused >= 2
    assert epsilon_after(ledger.totals.charges, MAX_TARGET_DELTA) >= 0.9 * MAX_EPSILON
    assert charges(tmp_path) == ledger.totals.charges
    work.close()
