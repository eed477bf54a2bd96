"""The federation's table, its totals kept up to date: an update costs the same however many institutions there are."""

import copy
from collections.abc import Iterator, Mapping

from aggregator_worker.rules.state import Counted, bounded
from shared.lineage import standing_under, takes_part
from shared.messages import Entry


def counts(entry: Entry, plan_hash: str) -> bool:
    """Whether an institution has a share of the weight: a member that is heard of, not in quarantine, and never refused the plan.

    Whose budget is spent keeps its share: the others' weights must not jump at that moment, and what it gave goes on counting.
    """
    present = entry.active and not entry.removed and not entry.quarantined
    return present and standing_under(entry, plan_hash) != "plan_refused"


class Membership(Mapping[str, Entry]):
    """Entries by pseudonym. `put` is the only way to change one."""

    def __init__(self, table: Mapping[str, Entry], plan_hash: str) -> None:
        self._table: dict[str, Entry] = {}
        self._plan_hash = plan_hash
        self._counted = self._heard = self._examples = 0
        self.giving = 0
        """How many take part: those whose updates others count on."""
        for pseudonym, entry in table.items():
            self.put(pseudonym, entry)

    def put(self, pseudonym: str, entry: Entry) -> None:
        """Replaces an institution's entry, or adds it."""
        former = self._table.get(pseudonym)
        if former is not None:
            self._add(former, -1)
        self._table[pseudonym] = entry
        self._add(entry, 1)

    def copied(self) -> "Membership":
        """One that can be changed apart."""
        other = copy.copy(self)
        other._table = dict(self._table)
        return other

    def _add(self, entry: Entry, sign: int) -> None:
        self.giving += sign * takes_part(entry, self._plan_hash)
        if counts(entry, self._plan_hash):
            self._counted += sign
            self._heard += sign * (entry.num_examples is not None)
            self._examples += sign * (entry.num_examples or 0)

    def counted(self) -> Counted:
        """Those that have a share. One that has not said how many examples it has is taken for average."""
        average = self._examples / self._heard if self._heard else 1.0
        unheard = average * (self._counted - self._heard)
        return Counted(self._counted, self._examples + unheard, unheard)

    def shares(self, largest: float = 1.0) -> dict[str, float]:
        """Each institution's part of the data, in the order of the pseudonyms; those that were never heard of have none.

        Among three or more, nobody's is above `largest`.
        """
        counted = self.counted()
        examples, most = counted.examples, bounded(largest, counted.institutions)
        named = sorted((name, entry) for name, entry in self._table.items() if counts(entry, self._plan_hash))
        return {name: min(entry.num_examples / examples, most) for name, entry in named if entry.num_examples is not None}

    def __getitem__(self, pseudonym: str) -> Entry:
        return self._table[pseudonym]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)
