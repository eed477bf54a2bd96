"""Models of an institution's own rows, without noise: its rows alone, or a global model drawn towards them.

None of them may leave the house: nothing bounds what they tell of single rows.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from shared.errors import DataError
from shared.parameters import Array, Parameters
from shared.tasks.features import Dataset
from shared.tasks.loss import loss
from shared.tasks.metrics import Figures
from shared.tasks.models import build_model, initial_parameters, load_parameters, to_parameters
from shared.tasks.spec import LOWER_IS_BETTER, TaskSpec

PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Times half the squared distance from the global model, or from zero, beside the mean loss; from the strongest on."""
FOLDS = 5
MOST_ITERATIONS = 200
EXACT = (1e-7, 1e-9)  # torch's own limits of the gradient and of the change of a step
NEAR_ENOUGH = (1e-5, 1e-6)
"""The same for a fit that is one of many: the figures agree to three digits, at half the work."""
KEPT_NUMBERS = 2**26  # of L-BFGS's memory, 256 MiB

Path = Callable[[Dataset], Iterator[dict[str, Array]]]
"""Candidates of one way of training, in a fixed order, from the rows that are given."""


@dataclass(frozen=True, slots=True, eq=False)
class OwnModel:
    """A model and the penalty that it was trained with; None is the global model itself, which nothing did better than."""

    parameters: dict[str, Array]
    penalty: float | None


def personalised(spec: TaskSpec, training: Dataset, model: Parameters) -> OwnModel:
    """The global model drawn towards the institution's rows, as far as rows that are held back say.

    The least of mean loss + penalty / 2 x squared distance from the global model (the personal objective of Ditto: Li, Hu,
    Beirami & Smith 2021, section 3). Cross-validation on the training rows chooses among PENALTIES and leaving the model as
    it is; no test row has a part in it. Raises DataError where the rows are of a single person: none can be held back.
    """

    def path(rows: Dataset) -> Iterator[dict[str, Array]]:
        reached = {name: np.array(array) for name, array in model.items()}
        yield reached
        for penalty in PENALTIES:
            reached = _fitted(spec, rows, penalty, start=reached, centre=model)
            yield reached

    return _chosen(spec, training, path, (None, *PENALTIES))


def of_own_rows(spec: TaskSpec, training: Dataset) -> OwnModel:
    """What the institution reaches by itself: the same penalties on the distance from zero, chosen in the same way."""
    start = initial_parameters(spec, 0)

    def path(rows: Dataset) -> Iterator[dict[str, Array]]:
        for penalty in PENALTIES:
            yield _fitted(spec, rows, penalty, start=start)

    return _chosen(spec, training, path, PENALTIES)


def trained_to_convergence(spec: TaskSpec, training: Dataset, penalty: float, seed: int) -> dict[str, Array]:
    """The least of mean loss + penalty / 2 x squared norm of the parameters, from a start of the seed."""
    return _minimised(spec, training, penalty, start=initial_parameters(spec, seed))


def merit(spec: TaskSpec, figures: Figures) -> float:
    """The task's first figure, turned so that more is better; one that does not exist is the least."""
    figure = figures[spec.first_metric]
    if figure is None:
        return -np.inf
    return -figure if spec.first_metric in LOWER_IS_BETTER else figure


def _chosen(spec: TaskSpec, training: Dataset, path: Path, penalties: tuple[float | None, ...]) -> OwnModel:
    held_back = np.sum([[_summed_loss(spec, each, rest) for each in path(some)] for some, rest in _folds(training)], axis=0)
    best = int(np.argmin(np.nan_to_num(held_back, nan=np.inf)))
    return OwnModel(next(islice(path(training), best, None)), penalties[best])


def _folds(training: Dataset) -> Iterator[tuple[Dataset, Dataset]]:
    """Rows to train on and rows held back; all rows of a person are on one side. The same rows give the same folds."""
    count = min(FOLDS, training.units)
    if count < 2:
        raise DataError("all training rows are of one person: none can be held back to choose by; add rows of others")
    of_unit = np.random.default_rng(0).permutation(training.units) % count
    fold = of_unit if training.persons is None else of_unit[training.persons]
    for number in range(count):
        yield _rows(training, fold != number), _rows(training, fold == number)


def _rows(dataset: Dataset, which: np.ndarray) -> Dataset:
    return Dataset(dataset.features[which], dataset.labels[which])


def _summed_loss(spec: TaskSpec, parameters: Parameters, rows: Dataset) -> float:
    model = build_model(spec, seed=0).eval()
    load_parameters(model, parameters)
    with torch.no_grad():
        each = loss(spec.kind, model(torch.from_numpy(rows.features)), torch.from_numpy(rows.labels), reduction="none")
    return float(each.to(torch.float64).sum())


def _fitted(
    spec: TaskSpec, rows: Dataset, penalty: float, *, start: Parameters, centre: Parameters | None = None
) -> dict[str, Array]:
    return _minimised(spec, rows, penalty, start=start, centre=centre, limits=NEAR_ENOUGH)


def _minimised(
    spec: TaskSpec,
    training: Dataset,
    penalty: float,
    *,
    start: Parameters,
    centre: Parameters | None = None,
    limits: tuple[float, float] = EXACT,
) -> dict[str, Array]:
    """By L-BFGS with a strong Wolfe line search (Nocedal & Wright 2006, algorithms 7.5 and 3.5), on one thread of the CPU."""
    torch.set_num_threads(1)
    model = build_model(spec, seed=0).eval()  # its line search needs an objective that draws nothing
    load_parameters(model, start)
    weights = {name: value for name, value in model.named_parameters() if value.requires_grad}
    middle = {name: torch.from_numpy(np.array(array)) for name, array in (centre or {}).items()}
    kept = max(5, min(100, KEPT_NUMBERS // (2 * sum(weight.numel() for weight in weights.values()))))
    optimizer = torch.optim.LBFGS(
        weights.values(),
        max_iter=MOST_ITERATIONS,
        tolerance_grad=limits[0],
        tolerance_change=limits[1],
        history_size=kept,
        line_search_fn="strong_wolfe",
    )
    features, labels = torch.from_numpy(training.features), torch.from_numpy(training.labels)

    def objective() -> torch.Tensor:
        optimizer.zero_grad()
        mean = loss(spec.kind, model(features), labels) / len(training)
        away = [(weight - middle[name] if name in middle else weight).square().sum() for name, weight in weights.items()]
        value = mean + penalty / 2 * sum(away, torch.zeros(()))
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(objective)  # type: ignore[no-untyped-call]
    return to_parameters(model)
