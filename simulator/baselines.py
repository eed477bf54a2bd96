"""What a federation is compared with: each institution alone, and all rows in one place; neither with noise."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from client_worker.mechanism import LocalTraining
from client_worker.own_model import merit, trained_to_convergence
from client_worker.training import LocalTrainer
from shared.parameters import Array
from shared.tasks.features import Dataset
from shared.tasks.metrics import Figures, evaluate
from shared.tasks.models import initial_parameters
from shared.tasks.spec import TaskSpec

PENALTIES = (1e-3, 1e-2, 3e-2)  # times half the squared norm of the parameters, beside the mean loss


@dataclass(frozen=True, slots=True, eq=False)
class Baseline:
    """A model, its figures on the union of all institutions' test rows, and on the test rows it was chosen by."""

    parameters: dict[str, Array]
    union: Figures
    own: Figures


def alone(spec: TaskSpec, training: Dataset, own_test: Dataset, union_test: Dataset, *, seed: int) -> Baseline:
    """The best that an institution can do by itself, generously: of several trainings, the one with the best own test figure.

    The choice is among training to convergence under each of PENALTIES and as many plain SGD steps as in the federation.
    """
    candidates = [(parameters, evaluate(spec, parameters, own_test)) for parameters in _candidates(spec, training, seed)]
    parameters, own = max(candidates, key=lambda candidate: merit(spec, candidate[1]))
    return Baseline(parameters, evaluate(spec, parameters, union_test), own)


def pooled(spec: TaskSpec, trainings: Sequence[Dataset], union_test: Dataset, *, seed: int) -> Baseline:
    """The same for all rows in one place, which the institutions cannot do."""
    return alone(spec, union(trainings), union_test, union_test, seed=seed)


def union(datasets: Sequence[Dataset]) -> Dataset:
    """All rows, in the order given. Nobody is taken to be a person of two institutions."""
    features, labels = np.concatenate([each.features for each in datasets]), np.concatenate([each.labels for each in datasets])
    known = [each.persons for each in datasets if each.persons is not None]
    if len(known) < len(datasets):
        return Dataset(features, labels)
    firsts = np.cumsum([0, *(each.units for each in datasets[:-1])])
    return Dataset(features, labels, np.concatenate([persons + first for persons, first in zip(known, firsts, strict=True)]))


def _candidates(spec: TaskSpec, training: Dataset, seed: int) -> Iterator[dict[str, Array]]:
    for penalty in PENALTIES:
        yield trained_to_convergence(spec, training, penalty, seed)
    yield _same_steps(spec, training, seed)


def _same_steps(spec: TaskSpec, training: Dataset, seed: int) -> dict[str, Array]:
    trainer = LocalTrainer(spec, device="cpu", private=False)
    base = initial_parameters(spec, seed)
    local = LocalTraining(
        mechanism="none",
        steps=spec.training.steps * spec.training.updates,
        sample_rate=spec.training.sample_rate,
        expected_rows=spec.training.sample_rate * training.units,
        learning_rate=spec.training.learning_rate,
        clipping_norm=spec.training.clipping_norm,
        noise_multiplier=None,
    )
    delta = trainer.local_update(base, training, local)
    return {name: base[name] + delta[name] for name in base}
