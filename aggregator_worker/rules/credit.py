"""Credit: every institution earns its share of weight on the aggregator's clock, and spends it when its update arrives.

Fast and slow ones get the same in the long run, whatever their speeds: what each has spent and still holds adds up to the
clock. Only what is later than usual for its institution is damped, and what damping withholds is carried over, not lost: damping
everybody who is slow would take from the slow what credit gives them. The idea is that of Rescaled ASGD (arXiv 2605.13434) and of
Fraboni et al. 2023 (FedAvg with asynchronous weights), with a conservation law that can be tested; docs/aggregation.md has the
measurements.
"""

from aggregator_worker.rules.staleness import staleness_weight
from aggregator_worker.rules.state import Arrival, RuleState, arrived, bounded, outstanding
from shared.plan import AggregationPlan

CARRIED_SILENCES = 2.0
"""At most so many times what an institution earns in `silent_cycles`, or in its usual interval, is carried over."""


def weigh(state: RuleState, arrival: Arrival, plan: AggregationPlan) -> tuple[RuleState, float]:
    """The server learning rate times the credit spent. Nobody is late by one arrival of each of the others."""
    clock, account = state
    institutions = arrival.counted.institutions
    most = bounded(plan.largest_share, institutions)
    since = clock.cycles - account.since_cycles
    held = outstanding(account, clock, arrival.num_examples)
    credit = min(held, account.carry + most * since)
    usual = max(account.interval or since, (institutions - 1) / institutions)
    late = max(0.0, arrival.staleness * arrival.buffer_size / institutions - usual)
    heaviest = bounded(plan.largest_weight, institutions) / plan.server_learning_rate
    spent = min(credit * staleness_weight(plan.staleness, late), heaviest)
    silence = max(plan.silent_cycles, account.interval)
    carry = min(credit - spent, CARRIED_SILENCES * silence * arrival.share(plan))
    after = RuleState(clock.forfeiting(held - spent - carry), arrived(state, carry=carry))
    return after, plan.server_learning_rate * spent
