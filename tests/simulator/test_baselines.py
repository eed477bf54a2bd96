from collections.abc import Callable

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from client_worker.own_model import trained_to_convergence
from shared.tasks.features import Dataset
from shared.tasks.metrics import evaluate
from shared.tasks.spec import TaskSpec, parse_task
from simulator.baselines import PENALTIES, alone, pooled, union


def task(metric: str = "auc") -> TaskSpec:
    text = f"""
name = "t"
kind = "binary"
metric = "{metric}"
[label]
column = "y"
positive = [1]
[[numeric]]
columns = ["a", "b"]
minimum = -1
maximum = 1
[model]
type = "logistic"
"""
    return parse_task(text, source="task.toml")


def rows(count: int, seed: int, direction: tuple[float, float]) -> Dataset:
    rng = np.random.default_rng(seed)
    features = rng.uniform(-1, 1, (count, 2)).astype(np.float32)
    labels = features @ np.array(direction) + rng.normal(0, 0.3, count) > 0
    return Dataset(features, labels.astype(np.float32))


def test_convergence_is_that_of_an_established_solver() -> None:
    data, penalty = rows(200, 0, (1.0, 0.5)), 1e-2
    # scikit-learn weighs the sum of losses by C and leaves the intercept free, which is near zero here
    reference = LogisticRegression(C=1 / (penalty * len(data)), tol=1e-8).fit(data.features, data.labels)

    found = trained_to_convergence(task(), data, penalty, 0)

    np.testing.assert_allclose(found["weight"], reference.coef_, rtol=2e-2)


def test_each_bank_alone_knows_its_own_rows_and_pooling_knows_all() -> None:
    here, there = (1.0, 0.1), (0.1, 1.0)
    trainings, tests = [rows(300, 1, here), rows(300, 2, there)], [rows(300, 3, here), rows(300, 4, there)]
    everywhere = union(tests)

    first = alone(task(), trainings[0], tests[0], everywhere, seed=0)
    together = pooled(task(), trainings, everywhere, seed=0)

    assert len(everywhere) == 600
    assert (first.own["auc"] or 0) > (together.union["auc"] or 0) > (first.union["auc"] or 1)


@pytest.mark.parametrize(("metric", "better"), [("auc", max), ("log_loss", min)])
def test_the_choice_is_by_the_figure_of_the_task(metric: str, better: Callable[[list[float]], float]) -> None:
    spec, training, test = task(metric), rows(60, 5, (1.0, 0.3)), rows(60, 6, (1.0, 0.3))
    candidates = [trained_to_convergence(spec, training, penalty, 0) for penalty in PENALTIES]
    figures = [evaluate(spec, candidate, test)[metric] for candidate in candidates]

    chosen = alone(spec, training, test, test, seed=0).own[metric]

    assert chosen is not None
    assert better([chosen, *(each for each in figures if each is not None)]) == pytest.approx(chosen)


def of_persons(data: Dataset, persons: list[int]) -> Dataset:
    return Dataset(data.features, data.labels, np.array(persons))


def test_nobody_is_taken_to_be_a_person_of_two_banks() -> None:
    both = union([of_persons(rows(3, 0, (1, 0)), [0, 1, 0]), of_persons(rows(2, 1, (1, 0)), [1, 0])])

    assert both.persons is not None
    assert both.persons.tolist() == [0, 1, 0, 3, 2]
    assert both.units == 4
    assert union([rows(3, 0, (1, 0)), rows(2, 1, (1, 0))]).persons is None
