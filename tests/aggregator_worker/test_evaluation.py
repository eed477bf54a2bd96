import math

import numpy as np
import pytest

from aggregator_worker.evaluation import evaluation_on, held_out, log_loss_on
from shared.errors import DataError
from shared.tasks.features import Dataset
from shared.tasks.spec import parse_task
from tests.builders import array
from tests.client_worker.trainings import positives, task, zeros

SPEC = task(2)


def model(*weights: float, bias: float = 0.0):
    (weight, offset) = zeros(SPEC)
    return {weight: array(*weights).reshape(1, 2), offset: array(bias)}


def test_the_log_loss_of_a_model_that_knows_nothing_is_the_logarithm_of_two():
    assert log_loss_on(SPEC, positives([0.3, -0.2], [1.0, 1.0]))(model(0, 0)) == pytest.approx(math.log(2))


def test_the_log_loss_is_the_mean_over_the_rows():
    # both rows are positive; at scores 2 and -1 they lose log(1 + e^-2) and log(1 + e^1)
    loss = log_loss_on(SPEC, positives([1.0, 0.0], [0.0, 1.0]))(model(2, -1))
    assert loss == pytest.approx((math.log1p(math.exp(-2)) + math.log1p(math.exp(1))) / 2)


def test_the_gate_and_the_metrics_of_a_version_tell_the_same_log_loss():
    rng = np.random.default_rng(4)
    rows = Dataset(rng.uniform(-1, 1, (50, 2)).astype(np.float32), (rng.random(50) < 0.4).astype(np.float32))
    candidate = model(0.7, -1.2, bias=0.1)
    assert evaluation_on(SPEC, rows)(candidate)["log_loss"] == pytest.approx(log_loss_on(SPEC, rows)(candidate))


def test_of_a_regression_it_is_the_squared_error_of_the_scaled_label():
    text = 'name = "t"\nkind = "regression"\n[label]\ncolumn = "y"\nminimum = 0\nmaximum = 10\n'
    spec = parse_task(text + '[[numeric]]\ncolumns = "x1..x2"\nminimum = -1\nmaximum = 1\n[model]\ntype = "linear"\n', source="t")
    rows = Dataset(np.zeros((2, 2), np.float32), np.array([0.5, -1.0], np.float32))
    assert log_loss_on(spec, rows)(zeros(spec)) == pytest.approx((0.25 + 1.0) / 2)


def test_a_missing_file_of_held_out_rows_is_named(tmp_path):
    with pytest.raises(DataError, match=r"rows\.csv: No such file"):
        held_out(SPEC, tmp_path / "rows.csv")


def test_rows_come_from_the_file(tmp_path):
    (tmp_path / "rows.csv").write_text("x1,x2,y\n0.5,-0.5,1\n1,0,0\n")
    assert held_out(SPEC, tmp_path / "rows.csv").labels.tolist() == [1.0, 0.0]
