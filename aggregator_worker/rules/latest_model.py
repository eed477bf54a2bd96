"""Latest model (ASO-Fed, Chen et al. 2020; AREA, arXiv 2405.10123): the mean of the last model that each institution trained.

The server keeps one model for each institution: `aggregator_worker.latest`.
"""

from aggregator_worker.rules.state import Arrival, RuleState, arrived
from shared.plan import AggregationPlan


def weigh(state: RuleState, arrival: Arrival, plan: AggregationPlan) -> tuple[RuleState, float]:
    """Its share of the data, however fast or slow it is."""
    return RuleState(state.clock, arrived(state)), arrival.share(plan)
