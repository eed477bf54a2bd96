"""One local training as it goes: how far it is, and how long its gradients or its update were before any noise."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Norms:
    """Lengths as they were before the noise. Private: they stay on this machine, whatever the policy says.

    With noise in every step `of` is "gradients", and the figures are means over all drawn units of all steps; else it is
    "update", of which there is one. `before` and `after` are before and after clipping; without noise nothing is clipped.
    """

    of: Literal["gradients", "update"]
    before: float
    after: float
    largest: float
    clipped: int
    count: int

    @property
    def fields(self) -> dict[str, Any]:
        """As the ledger keeps them."""
        return asdict(self)


@dataclass(slots=True, eq=False)
class Course:
    """Written by the training thread alone, one number at a time, and read by the loop; nothing in it is locked.

    `steps` are planned and `done` so far. `sent_norm` is the length of the noised update, which leaves; `seconds` is what the
    training took.
    """

    should_stop: Callable[[], bool] = _never
    steps: int = 0
    done: int = 0
    norms: Norms | None = None
    sent_norm: float = 0.0
    seconds: float = 0.0


def norms_of_update(norm: float, clipping_norm: float | None) -> Norms:
    """Of a whole update; a clipping norm of None clips nothing."""
    after = norm if clipping_norm is None else min(norm, clipping_norm)
    return Norms("update", norm, after, norm, int(after < norm), 1)
