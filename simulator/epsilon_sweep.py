"""What privacy costs: the same federation, data and seed, without noise and at epsilon 8, 3 and 1, in one process."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from client_worker.data import load_dataset
from shared.errors import SettingsError
from shared.tasks.features import Dataset
from shared.tasks.metrics import Figures, evaluate
from shared.tasks.spec import TaskSpec, parse_task
from simulator.federation import Member, Options, simulate
from simulator.schedule import SLOWDOWN, schedule

EPSILONS: tuple[float | None, ...] = (None, 8.0, 3.0, 1.0)


@dataclass(frozen=True, slots=True)
class Row:
    """One run's figures on the held-out rows; epsilon None is the run without noise."""

    epsilon: float | None
    noise_multiplier: float | None
    metrics: Figures


def sweep(
    spec: TaskSpec, members: Sequence[Member], held_out: Dataset, options: Options, *, epsilons: Sequence[float | None] = EPSILONS
) -> list[Row]:
    """A row for each epsilon, everything else as in `options`."""
    rows = []
    for epsilon in epsilons:
        run = simulate(spec, members, replace(options, epsilon=epsilon))
        rows.append(Row(epsilon, run.noise_multiplier, evaluate(spec, run.parameters, held_out)))
    return rows


def members_at_equal_speed(trainings: dict[str, Dataset], *, seed: int) -> list[Member]:
    """Durations of about one virtual second each, drawn by the seed."""
    durations = np.random.default_rng(seed).uniform(0.9, 1.1, len(trainings))
    return [Member(name, data, float(seconds)) for (name, data), seconds in zip(trainings.items(), durations, strict=True)]


def members_with_one_slow(trainings: dict[str, Dataset], *, updates: int, seed: int) -> list[Member]:
    """The same, but the demonstration's slow institution takes ten times as long."""
    slow = schedule(list(trainings), updates=updates, seed=seed).slow
    return [
        replace(member, duration_seconds=member.duration_seconds * (SLOWDOWN if member.id == slow else 1.0))
        for member in members_at_equal_speed(trainings, seed=seed)
    ]


def read_folder(folder: Path) -> tuple[TaskSpec, dict[str, Dataset], Dataset]:
    """The task, the institutions' training rows by id, sorted, and the held-out rows. Raises SettingsError."""
    task = folder / "task.toml"
    try:
        spec = parse_task(task.read_text(encoding="utf-8"), source=str(task))
    except OSError as error:
        raise SettingsError(f"{task}: {error.strerror}; give the folder that the demonstration's data was written to") from error
    files = sorted((folder / "data").glob("*/training.csv"))
    trainings = {file.parent.name: load_dataset(spec, file) for file in files}
    return spec, trainings, load_dataset(spec, folder / "held_out.csv", for_training=False, with_persons=False)
