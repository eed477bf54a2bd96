"""The institution's own privacy policy; it wins over whatever a plan asks for."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from shared.errors import SettingsError
from shared.plan import Plan, PrivacyPlan


class ReportPolicy(BaseModel):
    """Whether noised validation metrics may leave: at most `at_most` reports, each at a cost of `epsilon_each`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    allowed: bool = False
    epsilon_each: float = Field(default=0.2, gt=0)
    at_most: int = Field(default=5, ge=0)


class Policy(BaseModel):
    """The most this institution will ever allow. `allow_no_privacy` must be written out to train without noise."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_epsilon: float = Field(default=3.0, gt=0)
    max_target_delta: float = Field(default=1e-5, gt=0, lt=1)
    allow_no_privacy: Literal["no", "yes, updates may leave without noise"] = "no"
    reports: ReportPolicy = ReportPolicy()


def accept_plan(plan: Plan, policy: Policy, *, task_hash: str) -> None:
    """Raises SettingsError when the plan is for another task, or asks for more than the policy allows."""
    if plan.task_hash != task_hash:
        raise SettingsError(
            f"the federation trains the task {plan.task!r} ({plan.task_hash[:12]}), the task file here is another one "
            f"({task_hash[:12]}); ask the operator for the same file"
        )
    check_privacy(policy, plan.privacy)


def check_privacy(policy: Policy, plan: PrivacyPlan) -> None:
    """Raises SettingsError naming the first limit of the policy that the plan asks to pass."""
    if plan.mechanism == "none":
        if policy.allow_no_privacy == "no":
            raise SettingsError(
                "the plan trains without noise and this institution's policy does not allow that; leave the federation, or set "
                'policy.allow_no_privacy = "yes, updates may leave without noise"'
            )
        return
    if plan.epsilon is None or plan.epsilon > policy.max_epsilon:
        raise SettingsError(f"the plan asks for epsilon {plan.epsilon}, this institution's policy allows {policy.max_epsilon:g}")
    if plan.target_delta > policy.max_target_delta:
        raise SettingsError(
            f"the plan asks for target delta {plan.target_delta:g}, this institution's policy allows {policy.max_target_delta:g}"
        )
