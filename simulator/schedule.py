"""Which bank of a demonstration is slow and which one is killed: drawn by the seed, never by chance."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

ORDINARY_SECONDS = 1.0
"""How long an ordinary local training of the demonstration takes at least, so that a person can watch."""
SLOWDOWN = 10.0
KILLED_AFTER_SHARE = 0.3
RESTART_AFTER_SECONDS = 2.0


def tenth(updates: int) -> int:
    """What the slow one gives while an ordinary one gives `updates`; at least one."""
    return max(1, updates // round(SLOWDOWN))


def updates_in_all(institutions: int, updates: int) -> int:
    """How many there are when every ordinary institution has given `updates` and the slow one a tenth of them."""
    return updates if institutions == 1 else (institutions - 1) * updates + tenth(updates)


@dataclass(frozen=True, slots=True)
class Schedule:
    """`slow` trains ten times longer; `killed` gets SIGKILL once it has given `killed_after` updates. None: nobody."""

    slow: str | None
    killed: str | None
    killed_after: int

    def at_least_seconds(self, institution: str) -> float:
        """How long one local training of an institution takes at least."""
        return ORDINARY_SECONDS * (SLOWDOWN if institution == self.slow else 1.0)


def schedule(institutions: Sequence[str], *, updates: int, seed: int) -> Schedule:
    """Two different institutions where there are two."""
    drawn = random.Random(f"schedule-{seed}").sample(sorted(institutions), min(2, len(institutions)))  # noqa: S311 - no secret
    slow, killed = (drawn[0], drawn[1]) if len(drawn) == 2 else (None, drawn[0])
    return Schedule(slow, killed, max(1, round(updates * KILLED_AFTER_SHARE)))
