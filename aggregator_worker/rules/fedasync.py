"""FedAsync (Xie, Koyejo & Gupta 2019): every update counts by its staleness alone, so that fast institutions count more.

In its delta form, model += rate x s(staleness) x delta, which is the paper's mixing of models when the update is fresh; mixing
stale ones would need every base. `server_learning_rate` is the paper's alpha.
"""

from aggregator_worker.rules.staleness import staleness_weight
from aggregator_worker.rules.state import Arrival, RuleState, arrived
from shared.plan import AggregationPlan


def weigh(state: RuleState, arrival: Arrival, plan: AggregationPlan) -> tuple[RuleState, float]:
    """The server learning rate times the staleness weight; at most 1."""
    weight = plan.server_learning_rate * staleness_weight(plan.staleness, arrival.staleness)
    return RuleState(state.clock, arrived(state)), min(weight, 1.0)
