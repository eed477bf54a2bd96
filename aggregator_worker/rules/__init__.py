"""How much an update counts: one pure function for each rule, chosen by its name in the plan.

(state, arrival, plan) -> (state, weight). The state is the federation's clock and the institution's account with it; the weight
is the factor of the update's delta, or for the two `latest` rules of what the server keeps of the institution.
"""

from collections.abc import Callable, Mapping

from aggregator_worker.rules import credit, fedasync, fedbuff, latest_model, latest_update
from aggregator_worker.rules.state import Arrival, RuleState
from shared.plan import AggregationPlan, RuleName

Rule = Callable[[RuleState, Arrival, AggregationPlan], tuple[RuleState, float]]

RULES: Mapping[RuleName, Rule] = {
    "credit": credit.weigh,
    "fedasync": fedasync.weigh,
    "fedbuff": fedbuff.weigh,
    "latest-model": latest_model.weigh,
    "latest-update": latest_update.weigh,
}
"""Every rule by its name in the plan."""
TABLE_RULES: frozenset[RuleName] = frozenset({"latest-model", "latest-update"})
"""Those that keep a vector for each institution: memory grows with their number."""
