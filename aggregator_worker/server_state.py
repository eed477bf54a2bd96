"""The model in the making and the server optimiser's memory of it: what a successor needs, to the bit.

Institutions get the broadcast: the model, in the plan's type. Where that tells less than the state (bfloat16 numbers, momentum),
the rest travels to successors as a state blob.
"""

from dataclasses import dataclass

import numpy as np

from aggregator_worker.aggregation import fold_in_place, scale_in_place
from shared import parameters
from shared.compact import Delta
from shared.errors import IncompatibleUpdateError
from shared.parameters import Array, Parameters, Shapes
from shared.plan import Plan

_MODEL = "model/"
_MOMENTUM = "momentum/"


@dataclass(slots=True, eq=False)
class ServerState:
    """float32 arrays of its own. `momentum` is empty where the plan has none."""

    model: dict[str, Array]
    momentum: dict[str, Array]
    beta: float = 0.0
    _folded: bool = False

    @classmethod
    def of(cls, plan: Plan, broadcast: Parameters) -> "ServerState":
        """What a broadcast model alone tells: version 0, or a plan whose state is no wider."""
        beta = plan.aggregation.server_momentum
        model = parameters.copy(broadcast)
        momentum = {name: np.zeros_like(array) for name, array in model.items()} if beta else {}
        return cls(model, momentum, beta)

    @classmethod
    def restored(cls, plan: Plan, broadcast: Parameters, wide: Parameters) -> "ServerState":
        """From a broadcast and the state blob beside it, which version 0 does not have.

        Raises IncompatibleUpdateError where they do not fit together.
        """
        if not wide:
            return cls.of(plan, broadcast)
        model = _named(wide, _MODEL) or broadcast
        momentum, beta = _named(wide, _MOMENTUM), plan.aggregation.server_momentum
        for part in (model, momentum) if beta else (model,):
            parameters.require_shapes(part, parameters.shapes(broadcast))
        if momentum and not beta:
            raise IncompatibleUpdateError("the state holds momentum, the plan has none")
        return cls(parameters.copy(model), parameters.copy(momentum), beta)

    @classmethod
    def complete(cls, plan: Plan, state: Parameters) -> "ServerState":
        """From `everything`: a checkpoint's arrays, which are taken over as they are."""
        return cls(_named(state, _MODEL), _named(state, _MOMENTUM), plan.aggregation.server_momentum)

    @property
    def shapes(self) -> Shapes:
        """What a delta must look like."""
        return parameters.shapes(self.model)

    def fold(self, delta: Delta, weight: float) -> None:
        """Adds weight x delta to the model; with momentum, to what the next version will move by.

        FedAvgM (Hsu, Qi & Brown 2019, section 3.1): m = beta m + sum of weight x delta; model += m, once for each version.
        """
        if self.momentum and not self._folded:
            scale_in_place(self.momentum, self.beta)
        self._folded = True
        fold_in_place(self.momentum or self.model, delta, weight)

    def finish_version(self) -> None:
        """The version is complete: the model takes its step of momentum."""
        if self.momentum and self._folded:
            fold_in_place(self.model, self.momentum, 1.0)
        self._folded = False

    def wide(self, plan: Plan) -> dict[str, Array]:
        """What the broadcast does not tell, as views; empty where it tells everything."""
        named = {f"{_MOMENTUM}{name}": array for name, array in self.momentum.items()}
        return named if plan.broadcast == "float32" else self.everything()

    def everything(self) -> dict[str, Array]:
        """All arrays, as views."""
        named = {f"{_MODEL}{name}": array for name, array in self.model.items()}
        return named | {f"{_MOMENTUM}{name}": array for name, array in self.momentum.items()}


def _named(state: Parameters, prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
