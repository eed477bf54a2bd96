"""What stands between a well-formed update and the model: how long it may be, what it may do, and what its sender has against it.

Values in, values out; the gate asks a callable for a model's log loss. docs/aggregation.md has the measurements.
"""

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from aggregator_worker.aggregation import fold_in_place
from aggregator_worker.statements import Length
from shared.compact import Delta
from shared.messages import Entry, Outcome
from shared.parameters import Parameters, copy
from shared.plan import Defence

KEPT_LENGTHS = 50
"""How many of the last aggregated updates' lengths are kept."""
LEAST_LENGTHS = 8
LEAST_INSTITUTIONS = 3
"""There is no cap before so many lengths are known, of so many institutions: the median of two is the opinion of one."""
STRIKE, HALF_A_STRIKE = 2, 1
"""What a rejection counts; an update that is aggregated takes back one."""
NARROWLY = 1.5
"""A rejection at up to so many times the gate's tolerance is half a strike. Honest institutions that differ from the others meet
it now and then; what is meant to do harm goes beyond it, or comes again and again."""
WINDOW_SCALAR = "lengths"
"""Under which name manifests carry the window, so that a successor decides the same."""

Gate = Callable[[Parameters], float | None]
"""A model's log loss on rows that the operator holds; None where it has none."""


@dataclass(frozen=True, slots=True)
class Window:
    """Lengths of the last aggregated updates by institution, oldest first, each as it came and not as it was scaled.

    Whoever has given most makes room for the next, and every institution has one vote: neither a fast one that fills the window
    nor one whose updates grow can move what is usual.
    """

    lengths: Mapping[str, tuple[Length, ...]] = field(default_factory=dict)

    def with_length(self, institution: str, length: Length) -> "Window":
        """With one more. Three digits are kept, in memory as in the manifest."""
        rounded = Length(*(float(f"{each:.3g}") for each in length))
        earlier = {name: known for name, known in self.lengths.items() if name != institution}
        kept = {**earlier, institution: (*self.lengths.get(institution, ()), rounded)}
        if sum(map(len, kept.values())) > KEPT_LENGTHS:
            most = max(kept, key=lambda name: len(kept[name]))  # the first of equals: the one that was silent longest
            kept[most] = kept[most][1:]
        return Window({name: known for name, known in kept.items() if known})

    def without(self, institution: str) -> "Window":
        """Without the vote of one that no longer takes part."""
        return Window({name: known for name, known in self.lengths.items() if name != institution})

    def usual(self) -> Length | None:
        """The median of the institutions' medians; None while too few are known."""
        if len(self.lengths) < LEAST_INSTITUTIONS or sum(map(len, self.lengths.values())) < LEAST_LENGTHS:
            return None
        votes = [tuple(map(statistics.median, zip(*known, strict=True))) for known in self.lengths.values()]
        return Length(*map(statistics.median, zip(*votes, strict=True)))

    def text(self) -> str:
        """As manifests carry it: `pseudonym:1.02/0.31,0.98/0.3;pseudonym:1.1/0.42`."""
        return ";".join(
            f"{name}:{','.join(f'{norm:g}/{noise:g}' for norm, noise in known)}" for name, known in self.lengths.items()
        )

    @classmethod
    def parsed(cls, text: str) -> "Window":
        """From `text`."""
        named = (part.split(":") for part in text.split(";") if part)
        return cls({name: tuple(Length(*map(float, each.split("/"))) for each in known.split(",")) for name, known in named})


def scale_of(length: Length, window: Window, defence: Defence) -> float:
    """The float32 number that makes an update at most `norm_cap` times as long as is usual, as it is or measured in its noise."""
    usual = window.usual()
    if defence.norm_cap is None or usual is None or not all(usual):
        return 1.0
    times = min(length.norm / usual.norm, length.in_noise / usual.in_noise)
    return 1.0 if times <= defence.norm_cap else float(np.float32(defence.norm_cap / times))


def struck(entry: Entry, outcome: Outcome, defence: Defence, *, strike: int = STRIKE) -> Entry:
    """The entry after one more of its updates was settled; with too much against it, it is in quarantine.

    `strike` is what its rejection counts. Only what is wrong with an update's content counts: nobody is to blame for one that is
    late, lost or over the budget.
    """
    if defence.strikes is None or entry.quarantined:
        return entry
    change = {"rejected": strike, "aggregated": -1}.get(outcome, 0)
    strikes = max(0, entry.strikes + change)
    return entry.model_copy(update={"strikes": strikes, "quarantined": strikes >= STRIKE * defence.strikes})


@dataclass(frozen=True, slots=True)
class Fault:
    """Why an update must not be folded, and what that counts against its sender."""

    reason: str
    strike: int


@dataclass(slots=True, eq=False)
class ValidationGate:
    """Holds back what would make the model worse on the operator's rows.

    Judged is the model as it stands with this one update's own step: its delta times its weight. With a buffer that is the model
    with what the buffer holds so far; momentum, Adam and the tables of the `latest` rules are left out of the judgement.
    """

    log_loss: Gate
    _present: float | None = None
    _after: float | None = None

    def fault(self, model: Parameters, delta: Delta, factor: float, tolerance: float) -> Fault | None:
        """What speaks against the update; None where it may be folded."""
        self._after = None
        if self._present is None:
            self._present = self.log_loss(model)
        if self._present is None or not math.isfinite(self._present):
            return None
        candidate = copy(model)
        fold_in_place(candidate, delta, factor)
        self._after = self.log_loss(candidate)
        if self._after is not None and self._after <= self._present + tolerance:
            return None
        after = math.nan if self._after is None else self._after
        strike = HALF_A_STRIKE if after <= self._present + NARROWLY * tolerance else STRIKE
        return Fault(f"it would raise the log loss on the operator's rows from {self._present:.4f} to {after:.4f}", strike)

    def folded(self, *, as_judged: bool) -> None:
        """The update just judged is in the model. What it was judged by is known to be the model now, or is not."""
        self._present, self._after = (self._after if as_judged else None), None

    def forget(self) -> None:
        """The model has changed in another way."""
        self._present = None
