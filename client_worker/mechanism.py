"""From a plan and public figures to one local training and what it is charged. No data, no torch, no I/O."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from shared.messages import PrivacyStatement, Unit
from shared.plan import Mechanism, Plan


class Charge(NamedTuple):
    """`steps` Gaussians of `noise_multiplier` (std / clipping norm), each on a Poisson sample of `sample_rate`."""

    noise_multiplier: float
    sample_rate: float
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalTraining:
    """One update: `steps` of SGD on Poisson samples, and the noise of its mechanism; a `noise_multiplier` of None is none.

    `expected_rows` divides the summed gradients of a step. It is sample rate x the public number of examples: the true number
    of rows would be told by the size of the noise.
    """

    mechanism: Mechanism
    steps: int
    sample_rate: float
    expected_rows: float
    learning_rate: float
    clipping_norm: float
    noise_multiplier: float | None


def charge_of(plan: Plan, noise_multiplier: float, *, updates: int = 1) -> Charge:
    """What so many local trainings cost. Noise on the whole update is one Gaussian without sampling."""
    if plan.privacy.mechanism == "update-gaussian":
        return Charge(noise_multiplier, 1.0, updates)
    return Charge(noise_multiplier, plan.local.sample_rate, plan.local.steps * updates)


def local_training(plan: Plan, noise_multiplier: float | None, num_examples: int) -> LocalTraining:
    """What the plan asks of one local training. `num_examples` is the public figure."""
    return LocalTraining(
        mechanism=plan.privacy.mechanism,
        steps=plan.local.steps,
        sample_rate=plan.local.sample_rate,
        expected_rows=plan.local.sample_rate * num_examples,
        learning_rate=plan.local.learning_rate,
        clipping_norm=plan.privacy.clipping_norm,
        noise_multiplier=noise_multiplier,
    )


def statement_of(plan: Plan, noise_multiplier: float, *, epsilon_spent: float, unit: Unit) -> PrivacyStatement:
    """What an update with noise says of its cost. `unit` is what the training's sampling and clipping take as one."""
    return PrivacyStatement(
        mechanism=plan.privacy.mechanism,
        unit="institution" if plan.privacy.mechanism == "update-gaussian" else unit,
        clipping_norm=plan.privacy.clipping_norm,
        noise_multiplier=noise_multiplier,
        sample_rate=plan.local.sample_rate,
        steps=plan.local.steps,
        epsilon_spent=epsilon_spent,
        target_delta=plan.privacy.target_delta,
    )


def merge(history: Sequence[Charge]) -> tuple[Charge, ...]:
    """The history with equal charges added up, in a fixed order: composition does not depend on it, and its cost does."""
    total: dict[tuple[float, float], int] = {}
    for noise_multiplier, sample_rate, steps in history:
        total[noise_multiplier, sample_rate] = total.get((noise_multiplier, sample_rate), 0) + steps
    return tuple(Charge(*key, steps) for key, steps in sorted(total.items()) if steps)
