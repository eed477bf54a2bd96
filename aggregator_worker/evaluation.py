"""The global model on rows that the operator holds. The only place of the aggregator that needs torch."""

from collections.abc import Callable
from pathlib import Path

import torch

from aggregator_worker.defence import Gate
from shared.errors import DataError
from shared.messages import Metrics
from shared.parameters import Parameters
from shared.tasks.features import Dataset, encode
from shared.tasks.loss import loss
from shared.tasks.metrics import evaluate
from shared.tasks.models import build_model, load_parameters
from shared.tasks.spec import TaskSpec
from shared.tasks.tables import read_columns


def held_out(spec: TaskSpec, file: Path) -> Dataset:
    """The rows of a held-out file. Raises DataError."""
    try:
        with file.open("rb") as opened:
            return encode(spec, read_columns(opened, source=str(file)), str(file), with_persons=False)
    except OSError as error:
        raise DataError(f"held_out_file {file}: {error.strerror}") from error


def evaluation_on(spec: TaskSpec, rows: Dataset) -> Callable[[Parameters], Metrics]:
    """A function from parameters to metrics on these rows."""

    def metrics(model: Parameters) -> Metrics:
        return dict(evaluate(spec, model, rows))

    return metrics


def log_loss_on(spec: TaskSpec, rows: Dataset) -> Gate:
    """A function from parameters to the mean loss of these rows, for the validation gate.

    Of a regression it is the squared error of the label scaled to its range. A figure alone costs less than all metrics, and
    each update asks for one.
    """
    model = build_model(spec, seed=0).eval()
    features, labels = torch.from_numpy(rows.features), torch.from_numpy(rows.labels)

    def log_loss(parameters: Parameters) -> float:
        load_parameters(model, parameters)
        with torch.no_grad():
            return float(loss(spec.kind, model(features), labels)) / len(rows)

    return log_loss
