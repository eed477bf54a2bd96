"""From a task and a handful of choices to the plan that the federation agrees on."""

from dataclasses import dataclass

from shared.plan import AggregationPlan, Ending, Limits, LocalPlan, Plan, PrivacyPlan, StalenessRule
from shared.tasks.spec import TaskSpec
from simulator.schedule import tenth, updates_in_all

TARGET_DELTA = 1e-5
BYTES_PER_PARAMETER = 4
ENVELOPE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What an operator may choose; None means what the task suggests. `epsilon` None means no noise at all."""

    epsilon: float | None = 3.0
    target_delta: float = TARGET_DELTA
    updates: int | None = None
    buffer_size: int | None = None
    server_learning_rate: float | None = None
    max_wait_seconds: float = 5.0
    ending: Ending | None = None


def plan_for(spec: TaskSpec, options: PlanOptions, *, parameters: int) -> Plan:
    """The plan for a task whose model has so many parameters."""
    training, suggested = spec.training, spec.aggregation
    return Plan(
        task=spec.name,
        task_hash=spec.hash,
        aggregation=AggregationPlan(
            staleness=StalenessRule(function=suggested.staleness_function, exponent=suggested.staleness_exponent),
            buffer_size=options.buffer_size or suggested.buffer_size,
            max_wait_seconds=options.max_wait_seconds,
            server_learning_rate=options.server_learning_rate or suggested.server_learning_rate,
        ),
        local=LocalPlan(
            steps=training.steps,
            sample_rate=training.sample_rate,
            learning_rate=training.learning_rate,
            updates=options.updates or training.updates,
        ),
        privacy=PrivacyPlan(
            mechanism="none" if options.epsilon is None else "dp-sgd",
            epsilon=options.epsilon,
            target_delta=options.target_delta,
            clipping_norm=training.clipping_norm,
        ),
        ending=options.ending or Ending(),
        limits=Limits(update_bytes=max(2**20, 2 * BYTES_PER_PARAMETER * parameters + ENVELOPE_BYTES)),
    )


def demo_ending(institutions: int, updates: int) -> Ending:
    """The run ends with what the institutions do in the time an ordinary one needs for all its updates.

    All but one give theirs, and the one that is ten times slower a tenth of them; each gives at least that tenth.
    """
    return Ending(updates=updates_in_all(institutions, updates), updates_each=tenth(updates))
