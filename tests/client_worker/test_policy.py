import pytest

from client_worker.policy import Policy, accept_plan, check_privacy
from shared.errors import SettingsError
from shared.plan import PrivacyPlan
from tests.builders import a_plan

ASKED = PrivacyPlan(mechanism="dp-sgd", epsilon=3.0, target_delta=1e-5)


@pytest.mark.parametrize("policy", [Policy(), Policy(max_epsilon=8.0), Policy(max_target_delta=1e-3)], ids=repr)
def test_a_plan_within_the_policy_is_accepted(policy):
    check_privacy(policy, ASKED)


@pytest.mark.parametrize(
    ("policy", "plan", "reason"),
    [
        (Policy(max_epsilon=2.99), ASKED, "epsilon 3.0, this institution's policy allows 2.99"),
        (Policy(max_target_delta=1e-6), ASKED, "target delta 1e-05, this institution's policy allows 1e-06"),
        (Policy(max_epsilon=1000.0), ASKED.model_copy(update={"epsilon": None}), "epsilon None"),
        (Policy(max_epsilon=1000.0), PrivacyPlan(mechanism="none", epsilon=None), "trains without noise"),
    ],
)
def test_a_plan_beyond_the_policy_is_refused_by_the_limit_it_passes(policy, plan, reason):
    with pytest.raises(SettingsError, match=reason):
        check_privacy(policy, plan)


def test_no_noise_needs_the_whole_sentence():
    check_privacy(Policy(allow_no_privacy="yes, updates may leave without noise"), PrivacyPlan(mechanism="none", epsilon=None))
    with pytest.raises(ValueError, match="allow_no_privacy"):
        Policy(allow_no_privacy="yes")


def test_reports_stay_unless_they_are_allowed():
    assert Policy().reports.allowed is False


def test_a_plan_for_another_task_is_refused():
    plan = a_plan(privacy=ASKED)
    accept_plan(plan, Policy(), task_hash="0" * 64)
    with pytest.raises(SettingsError, match="ask the operator for the same file"):
        accept_plan(plan, Policy(), task_hash="9" * 64)


def test_a_plan_for_this_task_must_keep_to_the_policy():
    with pytest.raises(SettingsError, match="policy allows 1"):
        accept_plan(a_plan(privacy=ASKED), Policy(max_epsilon=1.0), task_hash="0" * 64)
