"""Noised figures of a global model on the institution's own validation rows, by the Laplace mechanism.

Neighbours are two validation sets of the same, public size n that differ in one record; validation rows are never trained on,
so this epsilon is spent by other records than the training's. Half of a classifier's epsilon goes to each of two figures.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client_worker.randomness import SecureRandom
from shared.parameters import Array
from shared.tasks.features import Dataset, label_scale
from shared.tasks.predictions import Floats, predict
from shared.tasks.spec import TaskSpec

LOSS_BOUND = 3.0  # a record's log loss counts as at most this: -log(0.05)
ASSUMED_BASE_RATE = 0.5


def release_report(
    spec: TaskSpec, parameters: Mapping[str, Array], dataset: Dataset, *, epsilon: float, random: SecureRandom
) -> dict[str, float | None]:
    """Noised `accuracy` and `log_loss` of a classifier, or `mae` of a regression, in the label's unit, at a cost of epsilon.

    One record moves a mean of bounded values by at most bound / n. A row's correctness counts 1 where each row is decided by
    itself; where a fixed number of rows, those with the highest scores, is called positive, replacing a record also moves at
    most one other row across that line: 2 / n. Clipping the noised figure into its range costs nothing.
    """
    predictions = predict(spec, parameters, dataset.features)
    if spec.kind == "regression":
        return _regression_report(spec, predictions, dataset.labels, epsilon=epsilon, random=random)
    correct = _decisions(spec, predictions) == dataset.labels
    losses = np.clip(-np.log(_given(predictions, dataset.labels)), 0.0, LOSS_BOUND)
    moved = 2.0 if spec.kind == "binary" and spec.label.threshold is None else 1.0
    noise = random.laplace(1.0, 2) / (len(dataset) * epsilon / 2.0)
    return {
        "accuracy": float(np.clip(correct.mean() + moved * noise[0], 0.0, 1.0)),
        "log_loss": float(np.clip(losses.mean() + LOSS_BOUND * noise[1], 0.0, LOSS_BOUND)),
    }


def _regression_report(
    spec: TaskSpec, predictions: Floats, labels: NDArray[Any], *, epsilon: float, random: SecureRandom
) -> dict[str, float | None]:
    """The public range of the label bounds each error."""
    midpoint, half = label_scale(spec.label)
    errors = np.clip(np.abs(predictions - (labels * half + midpoint)), 0.0, 2 * half)
    noised = errors.mean() + 2 * half * random.laplace(1.0, 1)[0] / (len(labels) * epsilon)
    return {"mae": float(np.clip(noised, 0.0, 2 * half))}


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
