"""The institution's own privacy policy; it wins over whatever a plan asks for."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from shared.errors import SettingsError
from shared.plan import LocalPlan, Plan, PrivacyPlan

LEAST_SAMPLE_RATE = 1e-6
LEAST_SCALE, MOST_SCALE = 1e-6, 1e6
"""Of clipping norms and learning rates. Near the ends of float32 a clipped gradient can be longer than its clipping norm."""

Figure = Literal["accuracy", "log_loss", "mae"]
Noised = Literal["dp-sgd", "update-gaussian"]


class ReportPolicy(BaseModel):
    """Whether noised validation metrics may leave, and which: at most `at_most` reports, each at a cost of `epsilon_each`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    allowed: bool = False
    """Whether any report may leave."""
    metrics: tuple[Figure, ...] = ("accuracy", "log_loss", "mae")
    """Which figures may be in it."""
    epsilon_each: float = Field(default=0.2, gt=0)
    """What each report costs of the budget."""
    at_most: int = Field(default=5, ge=0)
    """So many reports in all."""


class Policy(BaseModel):
    """The most this institution will ever allow. `allow_no_privacy` must be written out to train without noise.

    `max_steps` is of one local training, and with noise of all planned ones: their accounting and their time have limits too.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    max_epsilon: float = Field(default=3.0, gt=0)
    """The whole privacy budget; training stops when it is spent."""
    max_target_delta: float = Field(default=1e-5, gt=0, lt=1)
    """The largest delta that goes with that epsilon."""
    min_noise_multiplier: float = Field(default=0.3, ge=0)
    """Standard deviation of the noise over the clipping norm."""
    max_steps: int = Field(default=100_000, ge=1)
    """Steps of one local training; with noise, of all planned ones."""
    mechanisms: tuple[Noised, ...] = ("dp-sgd", "update-gaussian")
    """`dp-sgd` protects a record or a person, `update-gaussian` the institution as a whole."""
    allow_no_privacy: Literal["no", "yes, updates may leave without noise"] = "no"
    """Without the sentence, a plan without noise is refused."""
    reports: ReportPolicy = ReportPolicy()
    """Noised figures on validation rows."""


class PlanRefusedError(SettingsError):
    """The plan asks for more than the policy allows: raise the policy, or ask the operator for another plan.

    `limit` names the setting that was reached.
    """

    def __init__(self, limit: str, reason: str) -> None:
        super().__init__(reason)
        self.limit = limit


def require_task(plan: Plan, *, task_hash: str) -> None:
    """Raises SettingsError when the plan is for another task than the institution's own."""
    if plan.task_hash != task_hash:
        raise SettingsError(
            f"the federation trains the task {plan.task!r} ({plan.task_hash[:12]}), the task file here is another one "
            f"({task_hash[:12]}); ask the operator for the same file"
        )


def check_privacy(policy: Policy, plan: PrivacyPlan) -> None:
    """Raises PlanRefusedError naming the first limit of the policy that the plan asks to pass."""
    if plan.mechanism == "none":
        if policy.allow_no_privacy == "no":
            raise PlanRefusedError(
                "allow_no_privacy",
                "the plan trains without noise and this institution's policy does not allow that; leave the federation, or set "
                'policy.allow_no_privacy = "yes, updates may leave without noise"',
            )
        return
    if plan.mechanism not in policy.mechanisms:
        raise PlanRefusedError(
            "mechanisms",
            f"the plan asks for the mechanism {plan.mechanism}, this institution's policy allows {', '.join(policy.mechanisms)}",
        )
    _require_scale("clipping_norm", plan.clipping_norm)
    if plan.epsilon is None or plan.epsilon > policy.max_epsilon:
        raise PlanRefusedError(
            "max_epsilon", f"the plan asks for epsilon {plan.epsilon}, this institution's policy allows {policy.max_epsilon:g}"
        )
    if plan.target_delta > policy.max_target_delta:
        raise PlanRefusedError(
            "max_target_delta",
            f"the plan asks for target delta {plan.target_delta:g}, this institution's policy allows {policy.max_target_delta:g}",
        )


def check_steps(policy: Policy, plan: LocalPlan, *, noised: bool) -> None:
    """Raises PlanRefusedError where the plan wants more steps than the policy allows, or numbers that cannot be accounted."""
    _require_scale("learning_rate", plan.learning_rate)
    steps = plan.steps * plan.updates if noised else plan.steps
    if steps > policy.max_steps:
        raise PlanRefusedError(
            "max_steps", f"the plan asks for {steps} steps, this institution's policy allows {policy.max_steps}"
        )
    if noised and plan.sample_rate < LEAST_SAMPLE_RATE:
        raise PlanRefusedError(
            "sample_rate",
            f"the plan's sample rate {plan.sample_rate:g} cannot be accounted; it must be {LEAST_SAMPLE_RATE:g} at least",
        )


def check_target_delta(plan: PrivacyPlan, num_examples: int) -> None:
    """Raises PlanRefusedError where one could publish a whole record and keep to the plan (Dwork & Roth 2014, section 2.3)."""
    if plan.mechanism == "dp-sgd" and plan.target_delta * num_examples >= 1.0:
        raise PlanRefusedError(
            "target_delta",
            f"target delta {plan.target_delta:g} is not below one over the {num_examples} examples here; it protects nobody",
        )


def _require_scale(name: str, value: float) -> None:
    if not LEAST_SCALE <= value <= MOST_SCALE:
        raise PlanRefusedError(name, f"the plan's {name} {value:g} is not between {LEAST_SCALE:g} and {MOST_SCALE:g}")


def check_noise(policy: Policy, noise_multiplier: float) -> None:
    """Raises PlanRefusedError where the plan's budget needs less noise than the policy's least."""
    if noise_multiplier < policy.min_noise_multiplier:
        raise PlanRefusedError(
            "min_noise_multiplier",
            f"the plan needs a noise multiplier of {noise_multiplier:.3f} only, this institution's policy asks for "
            f"{policy.min_noise_multiplier:g} at least",
        )
