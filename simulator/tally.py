"""What a run has given so far, added up as it goes."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from aggregator_worker.rules import TABLE_RULES
from shared.messages import Settlement
from shared.plan import RuleName
from simulator.population import Institution
from simulator.results import Contribution


class Tally:
    """Updates and weights by the institution's place, outcomes, and bytes."""

    def __init__(self, institutions: Sequence[Institution]) -> None:
        self._institutions = institutions
        self._updates, self._aggregated = (np.zeros(len(institutions), dtype=np.int64) for _ in range(2))
        self._weights, self._staleness = (np.zeros(len(institutions)) for _ in range(2))
        self.outcomes: Counter[str] = Counter()
        self.updates = self.bytes_up = self.bytes_down = 0

    def settled(self, place: int, settlement: Settlement, *, size_bytes: int) -> None:
        """One update that arrived."""
        self.updates += 1
        self.bytes_up += size_bytes
        self.outcomes[settlement.outcome] += 1
        self._updates[place] += 1
        if settlement.outcome == "aggregated":
            self._aggregated[place] += 1
            self._weights[place] += float.fromhex(settlement.weight) * float.fromhex(settlement.scale)
            self._staleness[place] += settlement.staleness

    def contributions(self, rule: RuleName) -> tuple[Contribution, ...]:
        """Each institution's part; under the `latest` rules the weight is that of what the server keeps of it."""
        units = np.array([each.training.units for each in self._institutions])
        weights = np.where(self._aggregated > 0, units, 0.0) if rule in TABLE_RULES else self._weights
        whole = weights.sum() or 1.0
        return tuple(
            Contribution(
                institution=each.name,
                examples=each.training.units,
                data_share=float(units[place] / units.sum()),
                weight_share=float(weights[place] / whole),
                usual_seconds=each.usual_seconds,
                updates=int(self._updates[place]),
                aggregated=int(self._aggregated[place]),
                mean_staleness=float(self._staleness[place] / self._aggregated[place]) if self._aggregated[place] else None,
                poisoned=each.poisoned,
            )
            for place, each in enumerate(self._institutions)
        )
