"""What every update weighs: the plan's rule, the clock that it runs on, and who counts at the moment.

Numbers only. The same object serves the worker, a replay that checks recorded weights, and the simulator.
"""

import copy
from collections.abc import Mapping

import numpy as np

from aggregator_worker.ending import Tally
from aggregator_worker.membership import Membership, counts
from aggregator_worker.rules import RULES
from aggregator_worker.rules.state import Arrival, Clock, Counted, RuleState, arrived, outstanding
from shared.lineage import standing_under
from shared.messages import Account, Entry
from shared.plan import AggregationPlan, Plan

Scalars = Mapping[str, str | int]
LONGER_THAN_USUAL = 3.0
"""An institution is silent only after so many of its own usual intervals."""


VERSIONS_PER_CYCLE = 100
"""With more, an institution that is forty times slower than usual would find its base forgotten (`shared.lineage.KEPT_BASES`)."""


def buffer_target(plan: AggregationPlan, giving: int) -> int:
    """K, capped at half of those that take part so that nobody waits for a slow one; at least what makes a cycle 100 versions.

    A plan that wants exactly K gets it.
    """
    if plan.exact_buffer:
        return plan.buffer_size
    return max(min(plan.buffer_size, giving // 2), -(-giving // VERSIONS_PER_CYCLE), 1)


class Weighing:
    """The table, the clock, and the version in the making. `silenced` and `returned` are told since the last version."""

    def __init__(self, plan: Plan, plan_hash: str, table: Mapping[str, Entry], scalars: Scalars) -> None:
        self._plan_hash = plan_hash
        self._plan = plan.aggregation
        # Adam's step has a rate of its own, and no use for weights that are all so many times larger
        self._rule_plan = (
            plan.aggregation.model_copy(update={"server_learning_rate": 1.0}) if plan.aggregation.server_adam else None
        )
        self._agreed = plan
        self.members = Membership(table, plan_hash)
        self.tally = Tally.of(plan, plan_hash, table.values())
        self.clock = clock_of(scalars)
        self.changes: dict[str, Entry] = {}
        self.silenced: list[str] = []
        self.returned: list[str] = []
        self._buffer_size = 0
        self._folded = 0

    @property
    def folded(self) -> int:
        """How many updates are in the version in the making."""
        return self._folded

    @property
    def buffer_full(self) -> bool:
        """Whether K updates are in it."""
        return self._folded >= buffer_target(self._plan, self.members.giving)

    def put(self, pseudonym: str, entry: Entry) -> Entry:
        """Changes an institution's entry, and its account where it begins or ends to count, or has other data than before."""
        former = self.members.get(pseudonym)
        self.clock, account = moved(self.clock, former, entry, plan_hash=self._plan_hash, counted=self.members.counted())
        changed = entry if account is entry.account else entry.model_copy(update={"account": account})
        self.members.put(pseudonym, changed)
        self.tally = self.tally.changed(self._agreed, self._plan_hash, former, changed)
        self.changes[pseudonym] = changed
        return changed

    def copied(self) -> "Weighing":
        """One that can go on apart: to know what an update would weigh before it is taken."""
        other = copy.copy(self)
        other.members, other.changes = self.members.copied(), dict(self.changes)
        other.silenced, other.returned = list(self.silenced), list(self.returned)
        return other

    def heard(self, pseudonym: str) -> None:
        """A message of an institution has come: if it was silent, it counts again."""
        entry = self.members[pseudonym]
        if not entry.active and not entry.removed:
            self.put(pseudonym, entry.model_copy(update={"active": True}))
            self.returned.append(pseudonym)

    def weigh(self, pseudonym: str, *, staleness: int) -> float:
        """The weight of one update that is folded now, as float32. Its institution's entry must be up to date.

        One that does not count, because it refused the plan after it had sent this, weighs nothing.
        """
        self._tick(pseudonym)
        entry = self.members[pseudonym]
        if entry.num_examples is None or not counts(entry, self._plan_hash):
            return 0.0
        arrival = Arrival(staleness, entry.num_examples, self.members.counted(), self._buffer_size)
        rule = RULES[self._plan.rule]
        state, weight = rule(RuleState(self.clock, entry.account), arrival, self._rule_plan or self._plan)
        self.clock = state.clock
        self.put(pseudonym, entry.model_copy(update={"account": state.account}))
        return float(np.float32(weight))

    def forfeit(self, pseudonym: str) -> None:
        """One of its updates was rejected: what it earned for that is lost, and does not come back as one large weight."""
        entry = self.members[pseudonym]
        if entry.num_examples is None or not counts(entry, self._plan_hash):
            return
        self.clock = self.clock.forfeiting(outstanding(entry.account, self.clock, entry.num_examples))
        self.put(pseudonym, entry.model_copy(update={"account": arrived(RuleState(self.clock, entry.account))}))

    def _tick(self, arriving: str) -> None:
        """The clock advances by a whole buffer with the first update of a version, and by one with each beyond it."""
        if not self._folded:
            self._buffer_size = buffer_target(self._plan, self.members.giving)
        updates = self._buffer_size if not self._folded else int(self._folded >= self._buffer_size)
        self._folded += 1
        before = int(self.clock.cycles)
        self.clock = self.clock.ticked(updates, self.members.counted())
        if int(self.clock.cycles) > before:
            self._note_silence(arriving)

    def _note_silence(self, arriving: str) -> None:
        """Once a cycle: who was silent for too long no longer counts. A plan that waits for exactly K silences nobody."""
        if self._plan.exact_buffer:
            return
        silent = [name for name, entry in self.members.items() if name != arriving and self._is_silent(entry)]
        for pseudonym in silent:
            self.put(pseudonym, self.members[pseudonym].model_copy(update={"active": False}))
        self.silenced += silent

    def _is_silent(self, entry: Entry) -> bool:
        if not counts(entry, self._plan_hash) or standing_under(entry, self._plan_hash) is not None:
            return False
        usual = entry.account.interval or self._plan.silent_cycles
        most = max(self._plan.silent_cycles, LONGER_THAN_USUAL * usual)
        return self.clock.cycles - entry.account.since_cycles > most

    def committed(self) -> None:
        """All changes are in a manifest, and the version in the making is empty."""
        self._folded = 0
        self.changes = {}
        self.silenced, self.returned = [], []

    def scalars(self) -> dict[str, str]:
        """The clock, for a manifest."""
        return {name: value.hex() for name, value in _clock_values(self.clock).items()}


def clock_of(scalars: Scalars) -> Clock:
    """The clock as a manifest has it; of version 0, which has none, the beginning."""
    values = {name: scalars.get(f"clock_{name}", "0x0.0p+0") for name in ("cycles", "credit", "forfeited")}
    return Clock(**{name: float.fromhex(str(value)) for name, value in values.items()})


def _clock_values(clock: Clock) -> dict[str, float]:
    return {"clock_cycles": clock.cycles, "clock_credit": clock.credit, "clock_forfeited": clock.forfeited}


def moved(clock: Clock, former: Entry | None, entry: Entry, *, plan_hash: str, counted: Counted) -> tuple[Clock, Account]:
    """Clock and account after an entry's change: who leaves forfeits what it holds, who joins begins with nothing.

    One that comes back after a silence gets one cycle's earnings of what it has forfeited, so that its return is no jump. What
    was earned with another number of examples is kept. `counted` are those that count before the change.
    """
    was_in, is_in = former is not None and counts(former, plan_hash), counts(entry, plan_hash)
    before = former.num_examples if former is not None and was_in else None
    after = entry.num_examples if is_in else None
    account = entry.account
    if is_in and not was_in and not (former is not None and _was_silent(former)):
        account = Account(since_cycles=clock.cycles, since_credit=clock.credit)
    if before == after:
        return clock, account
    held = 0.0 if before is None else outstanding(account, clock, before)
    if after is None:
        return clock.forfeiting(held), _credited(account, clock, 0.0)
    if before is not None:
        return clock, _credited(account, clock, held)
    if former is not None and _was_silent(former):
        cycle = after / (counted.examples + after)
        return clock.forfeiting(-cycle), _credited(account, clock, cycle)
    return clock, _credited(account, clock, 0.0)


def _credited(account: Account, clock: Clock, carry: float) -> Account:
    """The account with its credit counted from now on."""
    return account.model_copy(update={"since_credit": clock.credit, "carry": carry})


def _was_silent(entry: Entry) -> bool:
    return not entry.active and not entry.removed and not entry.quarantined
