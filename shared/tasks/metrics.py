"""How good a model is on given rows. A figure that cannot exist is None."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics

from shared.parameters import Array
from shared.tasks.features import Dataset, label_scale
from shared.tasks.predictions import Floats, predict
from shared.tasks.spec import TaskSpec

Figures = dict[str, float | None]


def evaluate(spec: TaskSpec, parameters: Mapping[str, Array], dataset: Dataset) -> Figures:
    """Every figure of the task's kind on the rows of `dataset`; binary tasks also state the `threshold` of their decisions."""
    if len(dataset) == 0:
        raise ValueError("an evaluation needs at least one row")
    return figures(spec, predict(spec, parameters, dataset.features), dataset.labels)


def figures(spec: TaskSpec, predictions: Floats, labels: NDArray[Any]) -> Figures:
    """As `evaluate`, from predictions that are already there."""
    match spec.kind:
        case "binary":
            return _binary(predictions, labels.astype(np.int64), decision_threshold(spec, predictions, labels))
        case "multiclass":
            return _multiclass(predictions, labels)
        case "regression":
            midpoint, half = label_scale(spec.label)
            return _regression(predictions, labels.astype(np.float64) * half + midpoint)


def decision_threshold(spec: TaskSpec, scores: Floats, labels: NDArray[Any]) -> float:
    """A row is called positive when its score is at least this.

    The task's fixed `threshold`; else the score that calls a share of `base_rate` of these rows positive; with neither,
    the share that is positive among these rows.
    """
    if spec.label.threshold is not None:
        return spec.label.threshold
    rate = float(np.mean(labels)) if spec.label.base_rate is None else spec.label.base_rate
    called = round(rate * len(scores))
    if called == 0:
        return float(np.nextafter(np.max(scores), np.inf))
    return float(np.sort(scores)[-called])


def _binary(scores: Floats, labels: NDArray[np.int64], threshold: float) -> Figures:
    called, both = scores >= threshold, len(np.unique(labels)) == 2
    return {
        "auc": float(metrics.roc_auc_score(labels, scores)) if both else None,
        "log_loss": float(metrics.log_loss(labels, scores, labels=[0, 1])),
        "accuracy": float(metrics.accuracy_score(labels, called)),
        "recall": float(metrics.recall_score(labels, called)) if labels.any() else None,
        "f1": float(metrics.f1_score(labels, called)) if labels.any() or called.any() else None,
        "threshold": threshold,
    }


def _multiclass(probabilities: Floats, labels: NDArray[np.int64]) -> Figures:
    called, classes = probabilities.argmax(axis=1), list(range(probabilities.shape[1]))
    every = len(np.unique(labels)) == len(classes)
    macro: dict[str, Any] = {"average": "macro", "labels": np.unique(labels), "zero_division": 0.0}
    return {
        "auc": _one_against_rest(probabilities, labels) if every else None,
        "log_loss": float(metrics.log_loss(labels, probabilities, labels=classes)),
        "accuracy": float(metrics.accuracy_score(labels, called)),
        "recall": float(metrics.recall_score(labels, called, **macro)),
        "f1": float(metrics.f1_score(labels, called, **macro)),
    }


def _one_against_rest(probabilities: Floats, labels: NDArray[np.int64]) -> float:
    each = [metrics.roc_auc_score(labels == number, probabilities[:, number]) for number in range(probabilities.shape[1])]
    return float(np.mean(each))


def _regression(values: Floats, truth: Floats) -> Figures:
    varied = len(np.unique(truth)) > 1
    return {
        "rmse": float(metrics.root_mean_squared_error(truth, values)),
        "mae": float(metrics.mean_absolute_error(truth, values)),
        "r2": float(metrics.r2_score(truth, values)) if varied else None,
    }
