"""What institutions do with a delta before it leaves: state its noise, write it in the plan's numbers; some poison it."""

from typing import NamedTuple

import numpy as np
import torch

from aggregator_worker.defence import Gate
from client_worker.compact import compacted
from client_worker.mechanism import LocalTraining, local_training, statement_of
from client_worker.privacy import planned_noise_multiplier
from shared.compact import Delta
from shared.messages import PrivacyStatement, Unit, Update, encode_parts
from shared.noise import noise_std
from shared.parameters import Parameters
from shared.plan import Plan
from shared.tasks.loss import loss
from shared.tasks.models import build_model, load_parameters
from simulator.population import Population
from simulator.virtual import RUN_ID

_NO_HASH = "0" * 64


class Sent(NamedTuple):
    """An update as the aggregator reads it, and the bytes of its body."""

    delta: Delta
    statement: PrivacyStatement
    size_bytes: int


def gate_of(population: Population) -> Gate | None:
    """The log loss on the rows that the aggregator holds, where the scenario gives it some; a regression has none."""
    rows, spec = population.gate, population.spec
    if rows is None or spec.kind == "regression":
        return None
    features, labels, model = torch.from_numpy(rows.features), torch.from_numpy(rows.labels), build_model(spec, seed=0)

    @torch.no_grad()
    def log_loss(parameters: Parameters) -> float:
        load_parameters(model, parameters)
        return float(loss(spec.kind, model(features), labels)) / len(rows)

    return log_loss


class Senders:
    """All institutions of a population under one plan; poisoned ones send their deltas times `poison`.

    `noise_multiplier` is std / clipping norm, None without noise.
    """

    def __init__(self, plan: Plan, population: Population, *, poison: float) -> None:
        self._plan, self._population, self._poison = plan, population, poison
        self._unit: Unit = "person" if population.spec.person else "record"
        self.noise_multiplier = None if plan.privacy.mechanism == "none" else planned_noise_multiplier(plan)
        self._size_bytes = 0

    def settings(self, place: int) -> LocalTraining:
        """How an institution trains."""
        return local_training(self._plan, self.noise_multiplier, self._population.institutions[place].training.units)

    def sent(self, place: int, delta: Parameters, *, number: int) -> Sent:
        """The institution's update, its `number`-th."""
        institution = self._population.institutions[place]
        statement = self._statement(number)
        if institution.poisoned:
            delta = {name: array * np.float32(self._poison) for name, array in delta.items()}
        std = noise_std(statement, self._plan, institution.training.units)
        compact = compacted(delta, self._plan.update_encoding, std)
        # all have the same names and shapes, and so about the same length
        self._size_bytes = self._size_bytes or self._bytes_of(institution.name, compact, statement)
        return Sent(compact, statement, self._size_bytes)

    def _statement(self, number: int) -> PrivacyStatement:
        """Epsilon is stated as it would be if it rose evenly up to the plan's: only that it rises, and where to, is checked."""
        if self.noise_multiplier is None or self._plan.privacy.epsilon is None:
            return PrivacyStatement(mechanism="none")
        spent = self._plan.privacy.epsilon * min(1.0, number / self._plan.local.updates)
        return statement_of(self._plan, self.noise_multiplier, epsilon_spent=spent, unit=self._unit)

    def _bytes_of(self, institution: str, delta: Delta, statement: PrivacyStatement) -> int:
        update = Update(
            run_id=RUN_ID,
            institution=institution,
            incarnation=1,
            sequence=1,
            base_version=0,
            base_hash=_NO_HASH,
            plan_hash=self._plan.hash,
            num_examples=1,
            privacy=statement,
        )
        return encode_parts("update", update, delta).size
