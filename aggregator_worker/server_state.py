"""The model in the making and all that the aggregator remembers beside it: what a successor needs, to the bit.

Institutions get the broadcast: the model, in the plan's type. Where that tells less than the state (bfloat16 numbers, momentum,
Adam's moments, the rows of a table rule), the rest travels to successors as a state blob.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from aggregator_worker import latest
from aggregator_worker.aggregation import fold_in_place, scale_in_place
from aggregator_worker.latest import Direction, Rows, Shares
from aggregator_worker.optimizers import AdamMemory, adam_step, add_to_momentum, momentum_step
from aggregator_worker.rules import TABLE_RULES
from shared import parameters
from shared.compact import Delta
from shared.errors import IncompatibleUpdateError
from shared.parameters import Array, Parameters, Shapes
from shared.plan import AggregationPlan, Plan, RuleName

_MODEL, _MOMENTUM, _SECOND, _NOISE, _ROWS = "model/", "momentum/", "second/", "noise", "rows/"
NOBODY: Shares = MappingProxyType({})
_DIRECTIONS: Mapping[RuleName, Direction] = {"latest-model": latest.to_mean_model, "latest-update": latest.to_mean_update}


@dataclass(frozen=True, slots=True, eq=False)
class Contribution:
    """One update as the state takes it: the delta is multiplied by `scale`, and then by `weight`.

    `base` is what `latest-model` needs, `noise_std` (of one coordinate of the delta) what Adam takes out.
    """

    delta: Delta
    weight: float
    scale: float = 1.0
    institution: str = ""
    base: Parameters | None = None
    noise_std: float = 0.0

    @property
    def factor(self) -> float:
        """Weight times scale, as a float32 value."""
        return float(np.float32(self.weight * self.scale))


@dataclass(slots=True, eq=False)
class ServerState:
    """float32 arrays of its own. `momentum`, `adam` and `rows` are empty where the plan has none."""

    model: dict[str, Array]
    plan: AggregationPlan
    momentum: dict[str, Array] = field(default_factory=dict)
    adam: AdamMemory | None = None
    rows: Rows = field(default_factory=dict)
    _fresh: Rows = field(default_factory=dict)
    _direction: dict[str, Array] = field(default_factory=dict)
    _noise_variance: float = 0.0
    _folded: bool = False

    @classmethod
    def of(cls, plan: Plan, broadcast: Parameters) -> "ServerState":
        """What a broadcast model alone tells: version 0, or a plan whose state is no wider."""
        model = parameters.copy(broadcast)
        momentum = parameters.zeros(model) if plan.aggregation.server_momentum else {}
        adam = AdamMemory.zeros(model) if plan.aggregation.server_adam else None
        return cls(model, plan.aggregation, momentum, adam)

    @classmethod
    def restored(cls, plan: Plan, broadcast: Parameters, wide: Parameters) -> "ServerState":
        """From a broadcast and the state blob beside it, which version 0 does not have.

        Raises IncompatibleUpdateError where they do not fit together.
        """
        if not wide:
            return cls.of(plan, broadcast)
        state = cls.complete(plan, parameters.copy(wide))
        state.model = state.model or parameters.copy(broadcast)
        shapes = parameters.shapes(broadcast)
        if state.momentum and not plan.aggregation.server_momentum:
            raise IncompatibleUpdateError("the state holds momentum, the plan has none")
        if state.rows and not state.is_table:
            raise IncompatibleUpdateError("the state holds rows of institutions, the plan's rule keeps none")
        for part in state._parts(plan):
            parameters.require_shapes(part, shapes)
        return state

    @classmethod
    def complete(cls, plan: Plan, state: Parameters) -> "ServerState":
        """From `everything`: a checkpoint's arrays, which are taken over as they are."""
        adam, rows = None, Rows()
        if plan.aggregation.server_adam is not None:
            noise = state.get(_NOISE)
            if noise is None or noise.shape != (1,):
                raise IncompatibleUpdateError(f"the state holds no {_NOISE!r}, and the plan has Adam")
            adam = AdamMemory(_named(state, _MOMENTUM), _named(state, _SECOND), noise)
        for name, array in _named(state, _ROWS).items():
            pseudonym, _, tensor = name.partition("/")
            rows.setdefault(pseudonym, {})[tensor] = array
        momentum = {} if adam else _named(state, _MOMENTUM)
        return cls(_named(state, _MODEL), plan.aggregation, momentum, adam, rows)

    def _parts(self, plan: Plan) -> list[Parameters]:
        """Everything that must have the model's shapes."""
        moments = [self.adam.first, self.adam.second] if self.adam else []
        momentum = [self.momentum] if plan.aggregation.server_momentum else []
        return [self.model, *momentum, *moments, *self.rows.values()]

    @property
    def shapes(self) -> Shapes:
        """What a delta must look like."""
        return parameters.shapes(self.model)

    @property
    def is_table(self) -> bool:
        """Whether it keeps a row for each institution."""
        return self.plan.rule in TABLE_RULES

    @property
    def is_plain(self) -> bool:
        """Whether an update moves the model at once, and nothing else does."""
        return not (self.is_table or self.momentum or self.adam)

    def fold(self, update: Contribution) -> None:
        """Takes one update in. Without optimiser or rows it moves the model at once."""
        if self.is_table:
            self._fresh[update.institution] = self._row(update)
        else:
            fold_in_place(self._target(), update.delta, update.factor)
            self._noise_variance += (update.factor * update.noise_std) ** 2
        self._folded = True

    def _row(self, update: Contribution) -> dict[str, Array]:
        if self.plan.rule == "latest-update":
            return latest.given_update(update.delta, update.scale)
        if update.base is None:
            raise ValueError("latest-model needs the model that an update was made on")
        return latest.trained_model(update.base, update.delta, update.scale)

    def _target(self) -> dict[str, Array]:
        """What deltas are added to: the model, the momentum (decayed once for each version), or the direction of Adam."""
        if self.momentum:
            if not self._folded:
                scale_in_place(self.momentum, self.plan.server_momentum)
            return self.momentum
        if self.adam is None:
            return self.model
        if not self._direction:
            self._direction = parameters.zeros(self.model)
        return self._direction

    def finish_version(self, shares: Shares = NOBODY) -> None:
        """The version is complete: rows and optimiser take their step. A table rule needs the shares of all that count."""
        if not self._folded:
            return
        if self.is_table:
            self._direction = _DIRECTIONS[self.plan.rule](self.model, self.rows, self._fresh, shares)
        rate, adam = self.plan.server_learning_rate, self.plan.server_adam
        if self.adam is not None and adam is not None:
            adam_step(self.model, self.adam, self._direction, adam=adam, rate=rate, noise_variance=self._noise_variance)
        elif self.momentum:
            if self.is_table:
                add_to_momentum(self.momentum, self._direction, beta=self.plan.server_momentum, rate=rate)
            momentum_step(self.model, self.momentum)
        elif self.is_table:
            fold_in_place(self.model, self._direction, rate)
        self._fresh, self._direction, self._noise_variance, self._folded = {}, {}, 0.0, False

    def wide(self, plan: Plan) -> dict[str, Array]:
        """What the broadcast does not tell, as views; empty where it tells everything."""
        beside = self._beside()
        return beside if plan.broadcast == "float32" else self._model_part() | beside

    def everything(self) -> dict[str, Array]:
        """All arrays, as views."""
        return self._model_part() | self._beside()

    def _model_part(self) -> dict[str, Array]:
        return _prefixed(_MODEL, self.model)

    def _beside(self) -> dict[str, Array]:
        first = self.adam.first if self.adam else self.momentum
        named = _prefixed(_MOMENTUM, first)
        if self.adam:
            named |= _prefixed(_SECOND, self.adam.second) | {_NOISE: self.adam.noise}
        for pseudonym, row in self.rows.items():
            named |= _prefixed(f"{_ROWS}{pseudonym}/", row)
        return named


def _prefixed(prefix: str, arrays: Parameters) -> dict[str, Array]:
    return {f"{prefix}{name}": array for name, array in arrays.items()}


def _named(state: Parameters, prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
