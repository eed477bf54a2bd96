"""Noised figures of a global model on the institution's own validation rows, by the discrete Laplace mechanism.

Neighbours are two validation sets of the same, public size n that differ in one record; validation rows are never trained on,
so this epsilon is spent by other records than the training's. Where the task names persons, one row of each counts, so that
records are persons. Epsilon is split evenly over the figures that leave.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from client_worker.randomness import SecureRandom
from shared.parameters import Array
from shared.tasks.features import Dataset, label_scale, one_row_each
from shared.tasks.predictions import Floats, predict
from shared.tasks.spec import Kind, TaskSpec

LOSS_BOUND = 3.0  # a record's log loss counts as at most this: -log(0.05)
ASSUMED_BASE_RATE = 0.5
FINEST_GRID = 2.0**-40
FIGURES: dict[Kind, tuple[str, ...]] = {
    "binary": ("accuracy", "log_loss"),
    "multiclass": ("accuracy", "log_loss"),
    "regression": ("mae",),
}


class _Figure(NamedTuple):
    """A mean within [0, bound] that one record moves by at most `sensitivity`."""

    mean: float
    bound: float
    sensitivity: float


def figures_of(spec: TaskSpec, wanted: Collection[str]) -> tuple[str, ...]:
    """Those of the wanted figures that this kind of task has."""
    return tuple(name for name in FIGURES[spec.kind] if name in wanted)


def release_report(
    spec: TaskSpec,
    parameters: Mapping[str, Array],
    dataset: Dataset,
    *,
    epsilon: float,
    random: SecureRandom,
    wanted: Collection[str] = ("accuracy", "log_loss", "mae"),
) -> dict[str, float | None]:
    """The wanted ones among noised `accuracy` and `log_loss` of a classifier, or `mae` of a regression, in the label's unit.

    Together they cost epsilon. One record moves a mean of bounded values by at most bound / n. A row's correctness counts 1
    where each row is decided by itself; where a fixed number of rows, those with the highest scores, is called positive,
    replacing a record also moves at most one other row across that line: 2 / n. A prediction that is not finite counts as the
    worst, so that no model can make one record's figure stand out.
    """
    names = figures_of(spec, wanted)
    rows = one_row_each(dataset)
    predictions = predict(spec, parameters, rows.features)
    figures = _errors(spec, predictions, rows.labels) if spec.kind == "regression" else _hits(spec, predictions, rows.labels)
    return {name: _noised(figures[name], epsilon / len(names), random) for name in names}


def _noised(figure: _Figure, epsilon: float, random: SecureRandom) -> float:
    """The figure as a multiple of a public grid, plus as many steps of noise; rounding moves a neighbour by one step more.

    Clipping the noised figure into its range costs nothing.
    """
    grid = max(2.0 ** (math.ceil(math.log2(figure.sensitivity / epsilon)) - 20), FINEST_GRID)
    steps = round(figure.mean / grid) + int(random.discrete_laplace((figure.sensitivity / grid + 1.0) / epsilon, 1)[0])
    return float(np.clip(steps * grid, 0.0, figure.bound))


def _hits(spec: TaskSpec, predictions: Floats, labels: NDArray[Any]) -> dict[str, _Figure]:
    correct = _decisions(spec, predictions) == labels
    losses = np.nan_to_num(np.clip(-np.log(_given(predictions, labels)), 0.0, LOSS_BOUND), nan=LOSS_BOUND)
    moved = 2.0 if spec.kind == "binary" and spec.label.threshold is None else 1.0
    return {
        "accuracy": _Figure(float(correct.mean()), 1.0, moved / len(labels)),
        "log_loss": _Figure(float(losses.mean()), LOSS_BOUND, LOSS_BOUND / len(labels)),
    }


def _errors(spec: TaskSpec, predictions: Floats, labels: NDArray[Any]) -> dict[str, _Figure]:
    """The public range of the label bounds each error."""
    midpoint, half = label_scale(spec.label)
    errors = np.nan_to_num(np.clip(np.abs(predictions - (labels * half + midpoint)), 0.0, 2 * half), nan=2 * half)
    return {"mae": _Figure(float(errors.mean()), 2 * half, 2 * half / len(labels))}


def _decisions(spec: TaskSpec, predictions: Floats) -> NDArray[np.int64]:
    if spec.kind == "multiclass":
        return np.asarray(predictions.argmax(axis=1))
    if spec.label.threshold is not None:
        return (predictions >= spec.label.threshold).astype(np.int64)
    # The share of positive rows itself is private here: without a public base rate, half of the rows are called positive.
    rate = spec.label.base_rate or ASSUMED_BASE_RATE
    decisions = np.zeros(len(predictions), dtype=np.int64)
    decisions[np.argsort(-predictions, kind="stable")[: round(rate * len(predictions))]] = 1
    return decisions


def _given(predictions: Floats, labels: NDArray[Any]) -> Floats:
    """The probability that the model gave to what turned out to be true."""
    if predictions.ndim == 2:
        chosen = predictions[np.arange(len(labels)), labels.astype(np.int64)]
    else:
        chosen = np.where(labels == 1, predictions, 1.0 - predictions)
    return np.maximum(chosen, 1e-12)
