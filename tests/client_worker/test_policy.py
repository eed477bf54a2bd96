import pytest

from client_worker.policy import (
    PlanRefusedError,
    Policy,
    check_noise,
    check_privacy,
    check_steps,
    check_target_delta,
    require_task,
)
from shared.errors import SettingsError
from shared.plan import LocalPlan, PrivacyPlan
from tests.builders import a_plan

ASKED = PrivacyPlan(mechanism="dp-sgd", epsilon=3.0, target_delta=1e-5)


@pytest.mark.parametrize("policy", [Policy(), Policy(max_epsilon=8.0), Policy(max_target_delta=1e-3)], ids=repr)
def test_a_plan_within_the_policy_is_accepted(policy):
    check_privacy(policy, ASKED)


@pytest.mark.parametrize(
    ("policy", "plan", "limit", "reason"),
    [
        (Policy(max_epsilon=2.99), ASKED, "max_epsilon", "epsilon 3.0, this institution's policy allows 2.99"),
        (Policy(max_target_delta=1e-6), ASKED, "max_target_delta", "delta 1e-05, this institution's policy allows 1e-06"),
        (Policy(max_epsilon=1000.0), ASKED.model_copy(update={"epsilon": None}), "max_epsilon", "epsilon None"),
        (Policy(max_epsilon=1000.0), PrivacyPlan(mechanism="none", epsilon=None), "allow_no_privacy", "trains without noise"),
        (Policy(mechanisms=("update-gaussian",)), ASKED, "mechanisms", "asks for the mechanism dp-sgd"),
        (Policy(), ASKED.model_copy(update={"clipping_norm": 1e-40}), "clipping_norm", "clipping_norm 1e-40 is not between"),
    ],
)
def test_a_plan_beyond_the_policy_is_refused_by_the_limit_it_passes(policy, plan, limit, reason):
    with pytest.raises(PlanRefusedError, match=reason) as refused:
        check_privacy(policy, plan)
    assert refused.value.limit == limit


def test_a_plan_that_needs_less_noise_than_the_policys_least_is_refused():
    check_noise(Policy(min_noise_multiplier=0.8), 0.8)
    with pytest.raises(PlanRefusedError, match=r"noise multiplier of 0\.799 only, .* asks for 0\.8 at least"):
        check_noise(Policy(min_noise_multiplier=0.8), 0.799)


@pytest.mark.parametrize(
    ("plan", "limit", "reason"),
    [
        (LocalPlan(steps=11, updates=10), "max_steps", "asks for 110 steps, this institution's policy allows 100"),
        (LocalPlan(steps=1, updates=1, learning_rate=1e38), "learning_rate", "learning_rate 1e.38 is not between"),
        (LocalPlan(steps=1, updates=1, sample_rate=1e-7), "sample_rate", "sample rate 1e-07 cannot be accounted"),
    ],
)
def test_a_plan_whose_steps_nobody_can_account_is_refused_at_once(plan, limit, reason):
    with pytest.raises(PlanRefusedError, match=reason) as refused:
        check_steps(Policy(max_steps=100), plan, noised=True)
    assert refused.value.limit == limit


def test_as_many_steps_as_the_policy_allows_are_none_too_many():
    check_steps(Policy(max_steps=100), LocalPlan(steps=10, updates=10, sample_rate=1e-6), noised=True)
    check_steps(Policy(max_steps=100), LocalPlan(steps=10, updates=11), noised=False)  # without noise nothing is accounted


def test_a_training_that_would_last_for_ever_is_refused_without_noise_too():
    with pytest.raises(PlanRefusedError, match="asks for 101 steps"):
        check_steps(Policy(max_steps=100), LocalPlan(steps=101, updates=1), noised=False)


def test_a_target_delta_of_one_over_the_number_of_examples_protects_nobody():
    check_target_delta(ASKED, 99_999)
    with pytest.raises(PlanRefusedError, match="1e-05 is not below one over the 100000 examples") as refused:
        check_target_delta(ASKED, 100_000)
    assert refused.value.limit == "target_delta"
    check_target_delta(PrivacyPlan(mechanism="update-gaussian"), 100_000)  # it protects one institution, not one of many


def test_no_noise_needs_the_whole_sentence():
    check_privacy(Policy(allow_no_privacy="yes, updates may leave without noise"), PrivacyPlan(mechanism="none", epsilon=None))
    with pytest.raises(ValueError, match="allow_no_privacy"):
        Policy(allow_no_privacy="yes")


def test_reports_stay_unless_they_are_allowed():
    assert Policy().reports.allowed is False


def test_a_plan_for_another_task_is_refused():
    plan = a_plan(privacy=ASKED)
    require_task(plan, task_hash="0" * 64)
    with pytest.raises(SettingsError, match="ask the operator for the same file"):
        require_task(plan, task_hash="9" * 64)
