import threading
from concurrent.futures import wait

import numpy as np
import pytest

from client_worker.ledger import Ledger
from client_worker.local_work import LocalWork
from client_worker.outgoing import Base
from client_worker.policy import PlanRefusedError, Policy, ReportPolicy
from shared import messages
from shared.errors import PrivacyBudgetExhaustedError, StorageError
from shared.plan import LocalPlan, PrivacyPlan
from tests.builders import RUN, a_blob, a_plan, array
from tests.running import ALLOWS_ANYTHING, local_data, member

NOISED = a_plan(privacy=PrivacyPlan(mechanism="dp-sgd", epsilon=2.0), local=LocalPlan(updates=10, steps=7, sample_rate=0.125))
BASE = Base(4, a_blob("model 4"), NOISED.hash)
MODEL = {"w": array(3, 5)}


@pytest.fixture
def make(tmp_path):
    made: list[LocalWork] = []

    def work(*, policy: Policy = ALLOWS_ANYTHING, after_step=lambda step: None, **data) -> LocalWork:
        ledger = Ledger(tmp_path / "ledger.sqlite", run_id=RUN, institution="bank-a", incarnation=1)
        made.append(
            LocalWork(
                member("bank-a", policy=policy), local_data("bank-a", **data), ledger, threading.Event(), after_step=after_step
            )
        )
        return made[-1]

    yield work
    for each in made:
        each.close()


def trained(work: LocalWork) -> None:
    work.begin(BASE, MODEL, NOISED, work.afford(NOISED))
    assert work.training is not None
    wait([work.training.delta], timeout=20)


def test_an_update_says_what_it_was_made_from_and_what_it_cost(make):
    work = make()
    trained(work)
    sealed = work.seal()
    assert sealed is not None
    update, delta = messages.decode_update(work.ledger.content(work.ledger.kept[1]).joined(), max_bytes=2**20)
    assert (update.institution, update.incarnation, update.sequence, update.num_examples) == ("bank-a", 1, 1, 100)
    assert (update.base_version, update.base_hash, update.plan_hash) == (4, BASE.model.hash, NOISED.hash)
    assert update.privacy.model_dump() == {
        "mechanism": "dp-sgd",
        "unit": "record",
        "clipping_norm": 1.0,
        "noise_multiplier": 1.25,
        "sample_rate": 0.125,
        "steps": 7,
        "epsilon_spent": 0.5,
        "target_delta": 1e-5,
    }
    assert delta["w"].tolist() == [-1.0, -2.0]  # half of the way from 3 and 5 to the target 1


def test_every_step_is_on_disk_when_it_is_told(make):
    told = []
    work = make(after_step=lambda step: told.append((step, work.ledger.totals.reservations, len(work.ledger.unsettled()))))
    trained(work)
    work.seal()
    assert told == [("reserve", 1, 0), ("seal", 1, 1)]


def test_there_is_nothing_to_seal_before_the_training_is_done(make):
    go_on = threading.Event()
    work = make(at_least=lambda: go_on.wait(20))
    assert work.seal() is None
    work.begin(BASE, MODEL, NOISED, work.afford(NOISED))
    assert work.seal() is None
    go_on.set()
    assert work.training is not None
    wait([work.training.delta], timeout=20)
    assert work.seal() is not None
    assert work.training is None


def test_every_reservation_counts_toward_the_next_statement(make):
    work = make()
    assert work.afford(NOISED).epsilon_spent == 0.5
    trained(work)
    assert work.afford(NOISED).epsilon_spent == 1.0


def test_a_new_ledger_goes_on_from_what_an_earlier_one_had_stated_and_one_update_more(make):
    work = make()
    work.carry_over(0.75, NOISED)
    work.carry_over(0.75, NOISED)
    assert work.ledger.totals.carried == 0.75 + 0.5
    assert work.afford(NOISED).epsilon_spent == 0.75 + 0.5 + 0.5


def test_a_ledger_that_has_charges_of_its_own_carries_nothing_over(make):
    work = make()
    trained(work)
    work.carry_over(0.75, NOISED)
    assert work.ledger.totals.carried == 0.0


def test_a_released_count_is_part_of_everything_spent(make):
    work = make()
    work.ledger.count_once(lambda epsilon: 104, epsilon=0.25)
    assert work.afford(NOISED).epsilon_spent == 0.25 + 0.5
    for _ in range(3):
        trained(work)
        work.seal()
    with pytest.raises(PrivacyBudgetExhaustedError, match=r"epsilon 2\.250 of 2"):
        work.afford(NOISED)


def test_a_training_that_would_spend_more_than_the_plan_is_not_begun(make):
    work = make()
    for _ in range(4):
        trained(work)
        work.seal()
    with pytest.raises(PrivacyBudgetExhaustedError, match=r"epsilon 2\.500 of 2"):
        work.afford(NOISED)


@pytest.mark.parametrize("policy", [Policy(max_epsilon=1.99), Policy(max_epsilon=5.0, min_noise_multiplier=1.26)])
def test_a_training_under_a_plan_that_the_policy_forbids_is_not_begun(make, policy):
    work = make(policy=policy)
    with pytest.raises(PlanRefusedError):
        work.afford(NOISED)


def test_after_a_training_without_noise_no_budget_holds_any_more(make):
    work = make()
    work.begin(BASE, MODEL, a_plan(), work.afford(a_plan()))
    with pytest.raises(PrivacyBudgetExhaustedError, match="1 local trainings were without noise"):
        work.afford(NOISED)


def test_what_an_earlier_incarnation_spent_counts_against_the_budget(make):
    work = make()
    work.ledger.carry(1.75)
    with pytest.raises(PrivacyBudgetExhaustedError, match=r"epsilon 2\.250 of 2"):
        work.afford(NOISED)


def test_no_more_trainings_are_begun_than_planned(make):
    plan = a_plan(local=LocalPlan(updates=1))
    work = make()
    work.begin(BASE, MODEL, plan, work.afford(plan))
    with pytest.raises(PrivacyBudgetExhaustedError, match="all 1 planned"):
        work.afford(plan)


def test_a_plan_without_noise_states_no_epsilon(make):
    statement = make().afford(a_plan())
    assert (statement.mechanism, statement.epsilon_spent, statement.noise_multiplier) == ("none", None, None)


def test_an_update_that_found_no_room_is_sealed_later_from_the_same_noise(make, tmp_path):
    import resource

    draws = iter([array(1, 2), array(8, 9)])
    work = make(train=lambda model, settings, stop: {"w": np.resize(next(draws), 200_000)})
    trained(work)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(StorageError):
            work.seal()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    sealed = work.seal()
    assert sealed is not None
    assert work.ledger.totals.reservations == 1
    assert messages.decode_update(work.ledger.content(work.ledger.kept[1]).joined(), max_bytes=2**20)[1]["w"][:2].tolist() == [
        1.0,
        2.0,
    ]


def test_a_failed_training_tells_why_and_stays_charged(make):
    def impossible(*_arguments):
        raise ValueError("singular matrix")

    work = make(train=impossible)
    trained(work)
    with pytest.raises(ValueError, match="singular"):
        work.seal()
    assert len(work.ledger.totals.charges) == 1


def test_reports_leave_only_as_often_as_the_policy_allows_and_are_charged_first(make):
    work = make(
        policy=Policy(reports=ReportPolicy(allowed=True, epsilon_each=0.25, at_most=2)),
        report=lambda model, epsilon: {"auc": epsilon},
    )
    assert [work.metrics(MODEL, version) for version in (1, 2, 3)] == [({"auc": 0.25}, 0.25), ({"auc": 0.25}, 0.25), None]
    assert work.ledger.totals.reports == 2


def test_without_permission_nothing_is_evaluated(make):
    work = make(report=lambda model, epsilon: {"auc": 1.0})
    assert work.metrics(MODEL, 1) is None
    assert work.ledger.totals.reports == 0
