"""Models of an institution's own rows: where their minimum lies, and how far from the global model they are let."""

import numpy as np
import pytest

from client_worker.own_model import PENALTIES, of_own_rows, personalised, trained_to_convergence
from shared.errors import DataError
from shared.tasks.features import Dataset
from shared.tasks.spec import TaskSpec, parse_task
from tests.client_worker.trainings import rows, task, zeros

LINEAR = """
name = "t"
kind = "regression"
[label]
column = "y"
minimum = -1
maximum = 1
[[numeric]]
columns = "x1..x3"
minimum = -1
maximum = 1
[model]
type = "linear"
"""


def linear() -> TaskSpec:
    return parse_task(LINEAR, source="task.toml")


def measured(seed: int, slope: tuple[float, float, float], count: int = 60, *, noise: float = 0.05) -> Dataset:
    """Rows whose label is a line through zero, with noise."""
    rng = np.random.default_rng(seed)
    features = rng.uniform(-1, 1, (count, 3)).astype(np.float32)
    return Dataset(features, (features @ np.array(slope) + rng.normal(0, noise, count)).astype(np.float32))


def line(*slope: float) -> dict[str, np.ndarray]:
    return {"weight": np.array([slope], np.float32), "bias": np.zeros(1, np.float32)}


def test_a_personal_model_is_the_least_squares_line_drawn_towards_the_global_one() -> None:
    """The gradient of mean squared error + penalty / 2 |v - w|^2 is zero: (2 X'X / n + penalty) v = 2 X'y / n + penalty w."""
    data, world = measured(1, (0.5, -0.1, 0.0), 30, noise=0.3), line(0.4, 0.0, 0.0)

    found = personalised(linear(), data, world)

    assert found.penalty in PENALTIES[:3]  # as strong as that, it is seen where it draws to
    inputs = np.column_stack([data.features, np.ones(len(data))])
    target = 2 * inputs.T @ data.labels / len(data) + found.penalty * np.array([0.4, 0.0, 0.0, 0.0])
    expected = np.linalg.solve(2 * inputs.T @ inputs / len(data) + found.penalty * np.eye(4), target)
    np.testing.assert_allclose([*found.parameters["weight"][0], *found.parameters["bias"]], expected, atol=2e-3)


def test_a_model_of_its_own_rows_is_ridge_regression() -> None:
    data = measured(2, (0.5, -0.4, 0.1))

    found = of_own_rows(linear(), data)

    assert found.penalty is not None
    inputs = np.column_stack([data.features, np.ones(len(data))])
    expected = np.linalg.solve(
        2 * inputs.T @ inputs / len(data) + found.penalty * np.eye(4), 2 * inputs.T @ data.labels / len(data)
    )
    np.testing.assert_allclose([*found.parameters["weight"][0], *found.parameters["bias"]], expected, atol=2e-3)


def test_to_convergence_means_that_no_gradient_is_left() -> None:
    data = measured(3, (0.5, -0.4, 0.1))

    found = trained_to_convergence(linear(), data, 0.02, 0)

    weight, bias = found["weight"][0].astype(float), float(found["bias"][0])
    errors = data.features @ weight + bias - data.labels
    np.testing.assert_allclose(2 * errors @ data.features / len(data) + 0.02 * weight, 0, atol=1e-4)


def test_a_global_model_that_nothing_does_better_than_is_kept_to_the_bit() -> None:
    """The labels add up to nothing, so what is trained on leans away from what is held back: every step is for the worse."""
    labels = np.tile(np.array([0.5, -0.5], np.float32), 10)
    world = line(0.3, -0.2, 0)

    found = personalised(linear(), Dataset(np.zeros((20, 3), np.float32), labels), world)

    assert found.penalty is None
    assert all(np.array_equal(found.parameters[name], world[name]) for name in world)


def test_the_further_the_rows_are_from_the_global_model_the_weaker_it_pulls() -> None:
    slopes = ((0.1, 0, 0), (0.9, -0.9, 0))
    near, far = (personalised(linear(), measured(5, slope, 30, noise=0.3), line(0, 0, 0)).penalty for slope in slopes)

    assert far is not None
    assert near is None or near > far


def test_what_a_person_is_known_by_is_held_back_with_the_person() -> None:
    """Each person has the same row twice, with a label that means nothing: who holds back one of two finds that learning pays."""
    spec, once = task(40), rows(30, 40)
    twice = Dataset(np.repeat(once.features, 2, axis=0), np.repeat(once.labels, 2))
    whose = Dataset(twice.features, twice.labels, np.repeat(np.arange(30), 2))

    by_row, by_person = (personalised(spec, data, zeros(spec)) for data in (twice, whose))

    assert by_row.penalty == PENALTIES[-1]
    assert by_person.penalty in (None, *PENALTIES[:2])


def test_the_same_rows_give_the_same_model() -> None:
    spec, data = task(5), rows(50, 5)

    first, again = (personalised(spec, data, zeros(spec)) for _ in range(2))

    assert first.penalty == again.penalty
    assert all(np.array_equal(first.parameters[name], again.parameters[name]) for name in first.parameters)


def test_the_rows_of_a_single_person_leave_nothing_to_choose_by() -> None:
    data = rows(6, 5)
    with pytest.raises(DataError, match="all training rows are of one person"):
        personalised(task(5), Dataset(data.features, data.labels, np.zeros(6, np.int64)), zeros(task(5)))
