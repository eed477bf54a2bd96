"""The aggregator's clock, an institution's account with it, and what a rule is told of an update. Numbers only.

The clock counts arrivals, never seconds: a cycle is as many as there are institutions that count. With each tick every
institution earns its share of the data; what it earned is the difference to the clock at its last arrival, so that nobody else
need be touched.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

from shared.messages import Account
from shared.plan import AggregationPlan

FEW = 2
"""Among so many institutions nothing is bounded: one of two may well have most of the data."""


def bounded(largest: float, institutions: int) -> float:
    """The bound of a plan where there are so many institutions that it holds; else 1."""
    return largest if institutions > FEW else 1.0


@dataclass(frozen=True, slots=True)
class Counted:
    """The institutions that count: how many, their examples in all, and how many of those belong to ones that never came.

    One that has not said yet how many examples it has is taken for average, and earns nothing.
    """

    institutions: int
    examples: float
    unheard_examples: float = 0.0


@dataclass(frozen=True, slots=True)
class Clock:
    """`cycles` so far; the `credit` that one example has earned in them; and what was earned and is lost, of all together."""

    cycles: float = 0.0
    credit: float = 0.0
    forfeited: float = 0.0

    def ticked(self, updates: int, counted: Counted) -> "Clock":
        """After so many arrivals more."""
        cycles = updates / max(1, counted.institutions)
        per_example = cycles / max(1.0, counted.examples)
        lost = per_example * counted.unheard_examples
        return Clock(self.cycles + cycles, self.credit + per_example, self.forfeited + lost)

    def forfeiting(self, credit: float) -> "Clock":
        """With so much lost."""
        return replace(self, forfeited=self.forfeited + credit)


class RuleState(NamedTuple):
    """What a rule keeps between two updates of an institution."""

    clock: Clock
    account: Account


@dataclass(frozen=True, slots=True)
class Arrival:
    """What a rule is told: versions made since the base, the institution's examples, who else counts, and K."""

    staleness: int
    num_examples: int
    counted: Counted
    buffer_size: int

    def share(self, plan: AggregationPlan) -> float:
        """The institution's part of the data of all that count; of that no more than the plan's largest."""
        largest = bounded(plan.largest_share, self.counted.institutions)
        return min(self.num_examples / max(self.counted.examples, self.num_examples), largest)


def opened(clock: Clock) -> Account:
    """The account of an institution that joins or comes back now."""
    return Account(since_cycles=clock.cycles, since_credit=clock.credit)


def arrived(state: RuleState, *, carry: float = 0.0) -> Account:
    """The account after an arrival. The usual interval is the mean of the newest and what was usual before."""
    clock, account = state
    since = clock.cycles - account.since_cycles
    interval = (account.interval + since) / 2 if account.interval else since
    return Account(since_cycles=clock.cycles, since_credit=clock.credit, carry=carry, interval=interval)


def outstanding(account: Account, clock: Clock, num_examples: int) -> float:
    """All that an institution has earned and not spent, before any bound."""
    return account.carry + num_examples * (clock.credit - account.since_credit)
