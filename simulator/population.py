"""The institutions of a scenario, drawn by its seed: whose rows they have, how fast they are, who sends poison.

Each purpose has a random stream of its own, so that a change of the speeds leaves the rows as they are.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client_worker.data import load_dataset
from client_worker.files import read_task
from shared.errors import SettingsError
from shared.parameters import BLOCK
from shared.tasks.features import Dataset
from shared.tasks.spec import Label, Model, Numeric, TaskSpec, Transport
from simulator.epsilon_sweep import read_folder
from simulator.scenario import Scenario, Size, Speed, Synthetic, Table, parse_scenario

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
PUBLIC_RANGE = 4.0
"""Synthetic features are scaled from this many standard deviations either way to [-1, 1], as a task's public ranges are."""


@dataclass(frozen=True, slots=True, eq=False)
class Institution:
    """`training` are its rows; `usual_seconds` is what one local training takes, in virtual time."""

    name: str
    training: Dataset
    usual_seconds: float
    poisoned: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Population:
    """A task, the institutions in the order of their places, and the rows by which all is judged.

    The aggregator's gate has rows of its own where the scenario says so.
    """

    spec: TaskSpec
    institutions: tuple[Institution, ...]
    held_out: Dataset
    gate: Dataset | None = None


def random_of(seed: int, purpose: str, *places: int) -> np.random.Generator:
    """A stream for one purpose, and for one institution or training where places are given."""
    # a seed that ends in zeros is the same as one without them: the number of places tells them apart
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), len(places), *places])


def read_scenario(path: Path) -> Scenario:
    """The scenario in a file, with its paths made from the file's own folder. Raises SettingsError."""
    try:
        scenario = parse_scenario(path.read_text(encoding="utf-8"), source=str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read ({error}); give the path of a scenario's TOML file") from error
    return scenario.within(path.parent)


def draw(scenario: Scenario) -> Population:
    """The population of a scenario. Raises SettingsError or DataError where its files cannot be used."""
    spec, names, rows, held_out = _source(scenario)
    held_out, gate = _apart(scenario, held_out)
    seconds = usual_seconds(scenario.population.speed, len(names), random_of(scenario.seed, "speed"))
    poisoned = _chosen(scenario.population.poison.institutions, len(names), random_of(scenario.seed, "poison"))
    institutions = zip(names, rows, seconds.tolist(), poisoned.tolist(), strict=True)
    return Population(spec, tuple(Institution(*each) for each in institutions), held_out, gate)


def _source(scenario: Scenario) -> tuple[TaskSpec, list[str], list[Dataset], Dataset]:
    """The task, the institutions' names and training rows, and the held-out rows."""
    if scenario.data_folder is not None:
        spec, trainings, held_out = read_folder(Path(scenario.data_folder))
        if scenario.population.poison.institutions > len(trainings):
            raise SettingsError(f"population.poison.institutions is more than the {len(trainings)} of {scenario.data_folder}")
        return spec, list(trainings), list(trainings.values()), held_out
    if scenario.table is not None:
        spec, rows, held_out = _from_table(scenario, scenario.table)
    else:
        spec, rows, held_out = _synthetic(scenario, scenario.synthetic or Synthetic())
    return spec, [f"institution-{place:0{len(str(len(rows)))}}" for place in range(1, len(rows) + 1)], rows, held_out


def usual_seconds(speed: Speed, institutions: int, random: np.random.Generator) -> Floats:
    """What a local training usually takes each institution, in virtual seconds."""
    match speed.distribution:
        case "fixed":
            return np.full(institutions, speed.seconds)
        case "ratio":
            slow = _chosen(round(speed.slow_share * institutions), institutions, random)
            return np.where(slow, speed.seconds * speed.ratio, speed.seconds)
        case "list":
            return np.resize(np.array(speed.each_seconds), institutions)
        case "lognormal":
            return np.asarray(speed.seconds * np.exp(speed.sigma * random.standard_normal(institutions)))
        case "exponential":
            return random.exponential(speed.seconds, institutions)


def sizes(size: Size, institutions: int, random: np.random.Generator) -> Floats:
    """Each institution's part of all rows; they add up to 1."""
    match size.distribution:
        case "equal":
            relative = np.ones(institutions)
        case "lognormal":
            relative = np.exp(size.sigma * random.standard_normal(institutions))
        case "list":
            relative = np.resize(np.array(size.relative), institutions)
    return np.asarray(relative / relative.sum())


def divided(classes: Integers, shares: Floats, alpha: float | None, random: np.random.Generator) -> list[Integers]:
    """Which of the units each institution has, in ascending order; every unit is somebody's, and everybody has one at least.

    With `alpha` each class is divided by its own Dirichlet draw, whose mean are the shares: all concentrations are alpha where
    the shares are equal.
    """
    order, owners = random.permutation(len(classes)), np.empty(len(classes), dtype=np.int64)
    groups = [order] if alpha is None else [order[classes[order] == number] for number in np.unique(classes)]
    for group in groups:
        part = shares if alpha is None else random.dirichlet(alpha * len(shares) * shares)
        ends = np.rint(np.cumsum(part) * len(group)).astype(np.int64)
        owners[group] = np.minimum(np.searchsorted(ends, np.arange(len(group)), side="right"), len(shares) - 1)
    _give_everybody_one(owners, len(shares))
    by_owner = np.argsort(owners, kind="stable")
    return np.split(by_owner, np.cumsum(np.bincount(owners, minlength=len(shares)))[:-1])


def _give_everybody_one(owners: Integers, institutions: int) -> None:
    """In place: who has nothing gets the first unit of whoever has most."""
    counts = np.bincount(owners, minlength=institutions)
    for empty in np.flatnonzero(counts == 0):
        largest = int(counts.argmax())
        owners[np.flatnonzero(owners == largest)[0]] = empty
        counts[largest] -= 1
        counts[empty] += 1


def _shares(scenario: Scenario) -> Floats:
    return sizes(scenario.population.size, scenario.population.institutions or 1, random_of(scenario.seed, "size"))


def _units_of(scenario: Scenario, classes: Integers) -> list[Integers]:
    """Which units each institution of the scenario has."""
    alpha = scenario.population.dirichlet_alpha
    return divided(classes, _shares(scenario), alpha, random_of(scenario.seed, "division"))


def _classes(dataset: Dataset) -> Integers:
    """The class of each unit: of a person, that of its first record."""
    labels = dataset.labels if dataset.persons is None else dataset.labels[np.unique(dataset.persons, return_index=True)[1]]
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def _placed(whole: Dataset, units: Sequence[Integers]) -> list[Dataset]:
    """The rows of each group of units. All are parts of one array, so that they are in memory once more and no oftener."""
    if whole.persons is None:
        groups = list(units)
    else:
        place = np.empty(whole.units, dtype=np.int64)
        for number, group in enumerate(units):
            place[group] = number
        by_place = np.argsort(place[whole.persons], kind="stable")
        groups = np.split(by_place, np.cumsum(np.bincount(place[whole.persons], minlength=len(units)))[:-1])
    order, ends = np.concatenate(groups), np.cumsum([len(group) for group in groups])[:-1]
    features, labels = np.split(whole.features[order], ends), np.split(whole.labels[order], ends)
    persons = [None if whole.persons is None else np.unique(whole.persons[group], return_inverse=True)[1] for group in groups]
    return [Dataset(*part) for part in zip(features, labels, persons, strict=True)]


def _from_table(scenario: Scenario, table: Table) -> tuple[TaskSpec, list[Dataset], Dataset]:
    spec, institutions = read_task(Path(table.task_file)), scenario.population.institutions or 1
    rows = load_dataset(spec, Path(table.rows_file))
    if scenario.population.dirichlet_alpha is not None and spec.kind == "regression":
        raise SettingsError("population.dirichlet_alpha divides classes, and a regression task has none; remove it")
    classes = np.zeros(rows.units, dtype=np.int64) if spec.kind == "regression" else _classes(rows)
    training, held_out = _stratified(rows, classes, table.test_share, random_of(scenario.seed, "test"))
    if training.units < institutions:
        unit = "persons" if spec.person else "rows"
        raise SettingsError(f"population.institutions is {institutions}, with {training.units} {unit} to train on; lower it")
    return spec, _placed(training, _units_of(scenario, _classes(training))), held_out


def _stratified(rows: Dataset, classes: Integers, test_share: float, random: np.random.Generator) -> tuple[Dataset, Dataset]:
    """Training and test units, with as much of each class in the test as in the whole."""
    order = random.permutation(rows.units)
    groups = [order[classes[order] == number] for number in range(int(classes.max()) + 1)]
    test = np.concatenate([group[: round(test_share * len(group))] for group in groups])
    is_test = np.isin(np.arange(rows.units), test)
    training, held_out = _placed(rows, [np.flatnonzero(~is_test), np.flatnonzero(is_test)])
    if not len(training) or not len(held_out):
        raise SettingsError(f"table.test_share {test_share:g} of {len(rows)} rows leaves none to train on or none to judge by")
    return training, held_out


def _synthetic(scenario: Scenario, problem: Synthetic) -> tuple[TaskSpec, list[Dataset], Dataset]:
    random, institutions = random_of(scenario.seed, "synthetic"), scenario.population.institutions or 1
    # two means, each normal in every coordinate, are sqrt(2 inputs) standard deviations apart on average
    means = random.standard_normal((problem.classes, problem.inputs)) * problem.separation / np.sqrt(2 * problem.inputs)
    classes = random.integers(problem.classes, size=institutions * problem.rows_each)
    held_out = _rows(means, random.integers(problem.classes, size=problem.test_rows), random)
    units = _units_of(scenario, classes)
    whole = _rows(means, classes[np.concatenate(units)], random)
    ends = np.cumsum([len(each) for each in units])[:-1]
    parts = [Dataset(*part) for part in zip(np.split(whole.features, ends), np.split(whole.labels, ends), strict=True)]
    if problem.shift:
        _shift(parts, problem.shift, random_of(scenario.seed, "shift"))
    return synthetic_task(problem), parts, held_out


def _rows(means: Floats, classes: Integers, random: np.random.Generator) -> Dataset:
    """A row for each class that is asked for: its mean and standard normal noise, scaled to the public range."""
    features = random.standard_normal((len(classes), means.shape[1]), dtype=np.float32)
    for start in range(0, len(classes), BLOCK):
        features[start : start + BLOCK] += means.astype(np.float32)[classes[start : start + BLOCK]]
    features /= np.float32(PUBLIC_RANGE)
    np.clip(features, -1.0, 1.0, out=features)
    return Dataset(features, classes.astype(np.float32 if len(means) == 2 else np.int64))


def _shift(parts: Sequence[Dataset], shift: float, random: np.random.Generator) -> None:
    """In place: all rows of one institution are moved alike."""
    for part in parts:
        way = random.standard_normal(part.features.shape[1], dtype=np.float32) * np.float32(shift / PUBLIC_RANGE)
        np.clip(part.features + way, -1.0, 1.0, out=part.features)


def synthetic_task(problem: Synthetic) -> TaskSpec:
    """The task of a synthetic problem, as if its columns were x0, x1, ... and its label y."""
    classes = tuple(str(number) for number in range(problem.classes))
    binary = problem.classes == 2
    return TaskSpec(
        name="synthetic",
        kind="binary" if binary else "multiclass",
        metric="accuracy",
        label=Label(column="y", positive=("1",), negative=("0",)) if binary else Label(column="y", classes=classes),
        numeric=(Numeric(columns=f"x0..x{problem.inputs - 1}", minimum=-PUBLIC_RANGE, maximum=PUBLIC_RANGE),),
        model=Model(type="mlp", hidden=problem.hidden) if problem.hidden else Model(type="logistic"),
        transport=Transport(updates="float32"),
    )


def _apart(scenario: Scenario, held_out: Dataset) -> tuple[Dataset, Dataset | None]:
    """What judges the runs, and what the aggregator's gate has."""
    wanted = scenario.evaluation.gate_rows
    if not wanted:
        return held_out, None
    if wanted >= len(held_out):
        raise SettingsError(f"evaluation.gate_rows is {wanted}, and {len(held_out)} rows are held out; lower it")
    order = random_of(scenario.seed, "gate").permutation(len(held_out))
    gate, rest = (Dataset(held_out.features[part], held_out.labels[part]) for part in (order[:wanted], order[wanted:]))
    return rest, gate


def _chosen(count: int, among: int, random: np.random.Generator) -> NDArray[np.bool_]:
    """True for so many, drawn without replacement."""
    return np.isin(np.arange(among), random.permutation(among)[:count])
