import numpy as np
import pytest

from shared.tasks.features import Dataset
from shared.tasks.metrics import decision_threshold, evaluate, figures
from shared.tasks.spec import TaskSpec, parse_task

LABELS = np.array([0, 0, 1, 0, 1], dtype=np.float32)
SCORES = np.array([0.1, 0.4, 0.35, 0.2, 0.8])


def task(kind: str, label: str, model: str = "logistic") -> TaskSpec:
    text = f"""
name = "t"
kind = "{kind}"
[label]
column = "y"
{label}
[[numeric]]
columns = ["a", "b"]
minimum = -1
maximum = 1
[model]
type = "{model}"
"""
    return parse_task(text, source="task.toml")


def test_the_threshold_calls_a_share_of_base_rate_of_the_rows_positive() -> None:
    spec = task("binary", "positive = [1]\nbase_rate = 0.6")

    assert decision_threshold(spec, SCORES, LABELS) == 0.35


def test_without_a_base_rate_the_share_is_that_of_the_rows_themselves() -> None:
    assert decision_threshold(task("binary", "positive = [1]"), SCORES, LABELS) == 0.4


def test_a_fixed_threshold_stays() -> None:
    assert decision_threshold(task("binary", "positive = [1]\nthreshold = 0.25"), SCORES, LABELS) == 0.25


def test_binary_figures_by_hand() -> None:
    found = figures(task("binary", "positive = [1]"), SCORES, LABELS)

    # 5 of the 6 pairs of a positive and a negative row are in order; called positive: the 2nd (wrong) and the 5th row
    assert found["auc"] == pytest.approx(5 / 6)
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["recall"] == pytest.approx(1 / 2)
    assert found["f1"] == pytest.approx(1 / 2)
    assert found["log_loss"] == pytest.approx(-np.log([0.9, 0.6, 0.35, 0.8, 0.8]).mean())
    assert found["threshold"] == 0.4


def test_rows_of_one_class_have_no_auc_and_no_recall() -> None:
    found = figures(task("binary", "positive = [1]"), SCORES, np.zeros(5, dtype=np.float32))

    assert found["auc"] is None
    assert found["recall"] is None
    assert found["f1"] is None
    assert found["accuracy"] == 1.0


def test_multiclass_figures_by_hand() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.2, 0.5, 0.3], [0.6, 0.3, 0.1]])

    found = figures(task("multiclass", "classes = [0, 1, 2]"), probabilities, np.array([0, 1, 1, 2]))

    # called: 0, 2, 1, 0. Recall by class: 1, 1/2, 0. F1 by class: 2/3, 2/3, 0.
    assert found["accuracy"] == pytest.approx(1 / 2)
    assert found["recall"] == pytest.approx(1 / 2)
    assert found["f1"] == pytest.approx(4 / 9)
    # one against the rest: class 0 3/3, class 1 (0.3 is above 0.2, equal to 0.3; 0.5 above both) 3.5/4, class 2 0.5/3
    assert found["auc"] == pytest.approx((1 + 3.5 / 4 + 0.5 / 3) / 3)


def test_a_class_that_is_not_there_leaves_no_auc() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])

    assert figures(task("multiclass", "classes = [0, 1, 2]"), probabilities, np.array([0, 2]))["auc"] is None


def test_a_regression_is_judged_in_the_unit_of_its_label() -> None:
    spec = task("regression", "minimum = 0\nmaximum = 200", "linear")
    rows = Dataset(np.array([[1, 0], [-1, 0], [0, 1]], dtype=np.float32), np.array([0.5, -0.5, 0.0], dtype=np.float32))
    parameters = {"weight": np.array([[0.4, 0.0]], dtype=np.float32), "bias": np.zeros(1, dtype=np.float32)}

    found = evaluate(spec, parameters, rows)

    # labels 150, 50, 100; predictions 140, 60, 100
    assert found["mae"] == pytest.approx(20 / 3, rel=1e-5)
    assert found["rmse"] == pytest.approx(np.sqrt(200 / 3), rel=1e-5)
    assert found["r2"] == pytest.approx(1 - 200 / 5000, rel=1e-5)


def test_evaluating_runs_the_model() -> None:
    spec = task("binary", "positive = [1]\nthreshold = 0.5")
    rows = Dataset(np.array([[1, 0], [-1, 1]], dtype=np.float32), np.array([1, 0], dtype=np.float32))
    parameters = {"weight": np.array([[2.0, 0.0]], dtype=np.float32), "bias": np.zeros(1, dtype=np.float32)}

    found = evaluate(spec, parameters, rows)

    assert found["accuracy"] == 1.0
    assert found["log_loss"] == pytest.approx(np.log1p(np.exp(-2)), rel=1e-6)


def test_an_evaluation_without_rows_is_a_mistake_of_the_caller() -> None:
    spec = task("binary", "positive = [1]")
    empty = Dataset(np.zeros((0, 2), dtype=np.float32), np.zeros(0, dtype=np.float32))

    with pytest.raises(ValueError, match="at least one row"):
        evaluate(spec, {}, empty)
