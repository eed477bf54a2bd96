"""Rows for a federation that is only to be tried, handed to its institutions: the built-in data, or files of one's own."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import builtin_tasks
from client_worker.data import load_dataset
from operator_console.demo_data import DemoInstitution, prepare
from operator_console.federation_folder import ClientOptions, FederationFolder
from shared.errors import SettingsError
from shared.tasks.spec import TaskSpec

REPORTS_AT_MOST = 5


def count_rows(file: Path) -> int:
    """Rows under the header line; of sample data the number is public."""
    with file.open() as lines:
        return sum(1 for _ in lines) - 1


def hand_out(task: str, institutions: Sequence[str], folder: FederationFolder, *, seed: int) -> dict[str, ClientOptions]:
    """Puts each institution's training and validation rows into its folder, and all test rows into held_out.csv.

    Raises SettingsError where the task has no data of its own, or not of these institutions.
    """
    if task not in builtin_tasks.TASKS:
        raise SettingsError(f"--sample-data goes with a built-in task: {', '.join(builtin_tasks.TASKS)}")
    with tempfile.TemporaryDirectory() as scratch:
        known = {each.id: each for each in prepare(task, institutions=None, seed=seed, folder=Path(scratch))}
        stranger = next((each for each in institutions if each not in known), None)
        if stranger is not None:
            raise SettingsError(f"there is no sample data of {stranger}; the task {task} has rows of {', '.join(known)}")
        folder.path.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(scratch) / "held_out.csv", folder.path / "held_out.csv")
        return {each: _hand_to(folder.institution(each), known[each]) for each in institutions}


def hand_out_files(spec: TaskSpec, rows: Path, institutions: Sequence[str], folder: FederationFolder) -> dict[str, ClientOptions]:
    """Copies ROWS/ID/training.csv, and validation.csv where there is one, into each institution's folder.

    Each counts as many rows, or persons, as its file has. Raises DataError where a file is missing or does not fit the task.
    """
    return {each: _hand_file(spec, rows / each, folder.institution(each)) for each in institutions}


def _hand_file(spec: TaskSpec, rows: Path, folder: Path) -> ClientOptions:
    training, validation = rows / "training.csv", rows / "validation.csv"
    units = load_dataset(spec, training).units
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(training, folder / training.name)
    if not validation.is_file():
        return ClientOptions(num_examples=units)
    load_dataset(spec, validation, for_training=False)
    shutil.copy(validation, folder / validation.name)
    return ClientOptions(num_examples=units, validation_file=validation.name)


def _hand_to(folder: Path, rows: DemoInstitution) -> ClientOptions:
    folder.mkdir(parents=True, exist_ok=True)
    training, validation = folder / "training.csv", folder / "validation.csv"
    shutil.copy(rows.training_file, training)
    shutil.copy(rows.test_file, validation)
    return ClientOptions(
        num_examples=count_rows(training),
        training_file=training.name,
        validation_file=validation.name,
        reports_at_most=REPORTS_AT_MOST,
    )
