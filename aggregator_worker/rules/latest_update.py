"""Latest update (CA2FL, Wang et al. 2024): the mean of the last update that each institution gave, calibrated by the new ones.

The server keeps one update for each institution: `aggregator_worker.latest`.
"""

from aggregator_worker.rules.state import Arrival, RuleState, arrived
from shared.plan import AggregationPlan


def weigh(state: RuleState, arrival: Arrival, plan: AggregationPlan) -> tuple[RuleState, float]:
    """Its share of the data, however fast or slow it is."""
    return RuleState(state.clock, arrived(state)), arrival.share(plan)
