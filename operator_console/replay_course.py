"""Which of a chain's versions a replay folds, and without whom: a roll-back begins anew from an earlier version. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from aggregator_worker.roll_back import RollBack

RollBacks = Mapping[int, RollBack]
"""By the version that each made."""


@dataclass(frozen=True, slots=True)
class Leg:
    """The versions behind `begin` up to `end`, folded without these pseudonyms. `begin` is version 0, or made by a roll-back."""

    begin: int
    end: int
    without: frozenset[str] = frozenset()

    def holds(self, version: int) -> bool:
        """Whether a replay passes this version, be it as the leg's beginning."""
        return self.begin <= version <= self.end


def as_published(roll_backs: RollBacks, target: int) -> list[Leg]:
    """All versions up to the target. A roll-back's model is taken as it was published."""
    begins = [0, *sorted(version for version in roll_backs if version <= target)]
    return [Leg(begin, end - 1) for begin, end in zip(begins, [*begins[1:], target + 1], strict=True)]


def without(roll_backs: RollBacks, target: int, left_out: frozenset[str]) -> list[Leg]:
    """What the target would be without some: a roll-back goes on from what its own version would be without them.

    Versions that a roll-back did away with are in no leg.
    """
    last = max((version for version in roll_backs if version <= target), default=None)
    if last is None:
        return [Leg(0, target, left_out)]
    back = roll_backs[last]
    before = left_out | {back.without} if back.without else left_out
    return [*without(roll_backs, back.to_version, before), Leg(last, target, left_out)]


def leg_of(legs: list[Leg], version: int) -> Leg | None:
    """The leg that passes a version."""
    return next((leg for leg in legs if leg.holds(version)), None)
