"""The institution's own rows, from its own disk."""

import hashlib
from pathlib import Path

from shared.errors import DataError, SettingsError
from shared.tasks.features import Dataset, encode, require_trainable
from shared.tasks.spec import TaskSpec, parse_task
from shared.tasks.tables import read_columns


def read_task(path: Path) -> TaskSpec:
    """The task file's content. Raises SettingsError."""
    try:
        return parse_task(path.read_text(encoding="utf-8"), source=str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"task_file {path} cannot be read ({error}); the operator gives you this file") from error


def load_dataset(spec: TaskSpec, path: Path, *, for_training: bool = True, with_persons: bool = True) -> Dataset:
    """The encoded rows of a CSV or Parquet file; a training file must hold more than one label value.

    Test rows whose figures are not noised need no column of persons. Raises DataError, a sentence that names file, column,
    row and remedy.
    """
    try:
        with path.open("rb") as file:
            table = read_columns(file, source=str(path))
    except OSError as error:
        raise _unreadable(path, error) from error
    dataset = encode(spec, table, str(path), with_persons=with_persons)
    if for_training:
        require_trainable(spec, dataset, str(path))
    return dataset


def fingerprint(path: Path) -> str:
    """SHA-256 of the file in hexadecimal. Raises DataError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read: {error.strerror or error}; check the path and this user's right to read it")
