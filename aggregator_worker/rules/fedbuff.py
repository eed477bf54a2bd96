"""FedBuff (Nguyen et al. 2022, algorithm 1): the mean of K updates, each damped by its staleness; fast institutions count more.

Divided by K, not by the sum of the weights. An update counts by its institution's data too, against the average one: K fresh
ones, one from each of K institutions, are exactly FedAvg (McMahan et al. 2017).
"""

from aggregator_worker.rules.staleness import staleness_weight
from aggregator_worker.rules.state import Arrival, RuleState, arrived
from shared.plan import AggregationPlan


def weigh(state: RuleState, arrival: Arrival, plan: AggregationPlan) -> tuple[RuleState, float]:
    """The server learning rate times staleness weight times data against the average institution's, over K; at most 1."""
    data = arrival.share(plan) * arrival.counted.institutions
    weight = plan.server_learning_rate * staleness_weight(plan.staleness, arrival.staleness) * data / arrival.buffer_size
    return RuleState(state.clock, arrived(state)), min(weight, 1.0)
