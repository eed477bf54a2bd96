"""The global model on rows that the operator holds. The only place of the aggregator that needs torch."""

from collections.abc import Callable
from pathlib import Path

from shared.errors import DataError
from shared.messages import Metrics
from shared.parameters import Parameters
from shared.tasks.features import encode
from shared.tasks.metrics import evaluate
from shared.tasks.spec import TaskSpec
from shared.tasks.tables import read_columns


def held_out_evaluation(spec: TaskSpec, file: Path) -> Callable[[Parameters], Metrics]:
    """A function from parameters to metrics on the held-out file, which is read once. Raises DataError."""
    try:
        with file.open("rb") as opened:
            dataset = encode(spec, read_columns(opened, source=str(file)), str(file), with_persons=False)
    except OSError as error:
        raise DataError(f"held_out_file {file}: {error.strerror}") from error

    def metrics(model: Parameters) -> Metrics:
        return dict(evaluate(spec, model, dataset))

    return metrics
