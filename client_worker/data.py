"""The institution's own rows, from its own disk."""

from pathlib import Path

from client_worker.files import unreadable
from shared.tasks.features import Dataset, encode, require_trainable
from shared.tasks.spec import TaskSpec
from shared.tasks.tables import read_columns


def load_dataset(spec: TaskSpec, path: Path, *, for_training: bool = True, with_persons: bool = True) -> Dataset:
    """The encoded rows of a CSV or Parquet file; a training file must hold more than one label value.

    Test rows whose figures are not noised need no column of persons. Raises DataError, a sentence that names file, column,
    row and remedy.
    """
    try:
        with path.open("rb") as file:
            table = read_columns(file, source=str(path))
    except OSError as error:
        raise unreadable(path, error) from error
    dataset = encode(spec, table, str(path), with_persons=with_persons)
    if for_training:
        require_trainable(spec, dataset, str(path))
    return dataset
