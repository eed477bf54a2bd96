import numpy as np
import pytest

from client_worker.randomness import SecureRandom
from client_worker.reports import LOSS_BOUND, figures_of, release_report
from shared.tasks.features import Dataset
from shared.tasks.spec import TaskSpec, parse_task

KEY = bytes(range(32))
HUGE = 1e9  # an epsilon at which there is next to no noise


def task(kind: str = "binary", label: str = "positive = [1]\nbase_rate = 0.5", model: str = "logistic") -> TaskSpec:
    text = f"""
name = "t"
kind = "{kind}"
[label]
column = "y"
{label}
[[numeric]]
columns = "x"
minimum = -1
maximum = 1
[model]
type = "{model}"
"""
    return parse_task(text, source="task.toml")


STRONG = {"weight": np.array([[100.0]], dtype=np.float32), "bias": np.zeros(1, dtype=np.float32)}
ROWS = Dataset(np.array([[1], [0.5], [-0.5], [-1]], dtype=np.float32), np.array([1, 0, 0, 0], dtype=np.float32))


def test_without_noise_a_report_is_the_figure_with_its_bounded_loss() -> None:
    found = release_report(task(), STRONG, ROWS, epsilon=HUGE, random=SecureRandom(KEY))

    # half of the rows are called positive: the second one wrongly, and its loss of 50 counts as LOSS_BOUND
    assert found["accuracy"] == pytest.approx(3 / 4, abs=1e-6)
    assert found["log_loss"] == pytest.approx(LOSS_BOUND / 4, abs=1e-6)


def test_the_noise_has_the_scale_of_the_sensitivity() -> None:
    random, epsilon, count = SecureRandom(KEY), 10.0, 100
    rows = Dataset(np.linspace(-1, 1, count, dtype=np.float32)[:, None], (np.arange(count) % 2).astype(np.float32))
    weak = {"weight": np.array([[0.1]], dtype=np.float32), "bias": np.zeros(1, dtype=np.float32)}
    reports = [release_report(task(), weak, rows, epsilon=epsilon, random=random) for _ in range(1500)]

    # Laplace of scale b has standard deviation b sqrt(2); half of epsilon for each figure
    for name, sensitivity in (("accuracy", 2 / count), ("log_loss", LOSS_BOUND / count)):
        values = np.array([report[name] for report in reports], dtype=float)
        assert values.std() == pytest.approx(sensitivity / (epsilon / 2) * 2**0.5, rel=0.12)


def test_replacing_one_record_moves_accuracy_by_at_most_two_rows() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        features = rng.choice([-1.0, -0.5, 0.5, 1.0], (9, 1)).astype(np.float32)
        labels = rng.integers(0, 2, 9).astype(np.float32)
        other_features, other_labels = features.copy(), labels.copy()
        other_features[4], other_labels[4] = rng.uniform(-1, 1), 1 - labels[4]
        before, after = (
            release_report(task(), STRONG, Dataset(x, y), epsilon=HUGE, random=SecureRandom(KEY))["accuracy"] or 0.0
            for x, y in ((features, labels), (other_features, other_labels))
        )

        assert abs(before - after) <= 2 / 9 + 1e-6


def test_noised_figures_stay_in_their_range() -> None:
    random = SecureRandom(KEY)
    reports = [release_report(task(), STRONG, ROWS, epsilon=0.01, random=random) for _ in range(50)]

    assert {0.0, 1.0} <= {report["accuracy"] for report in reports}
    assert all(0.0 <= (report["log_loss"] or 0.0) <= LOSS_BOUND for report in reports)


def test_a_fixed_threshold_decides_each_row_by_itself() -> None:
    found = release_report(task(label="positive = [1]\nthreshold = 0.9"), STRONG, ROWS, epsilon=HUGE, random=SecureRandom(KEY))

    assert found["accuracy"] == pytest.approx(3 / 4, abs=1e-6)


def test_several_classes_are_decided_by_the_largest_probability() -> None:
    spec = task("multiclass", "classes = [0, 1, 2]")
    parameters = {"weight": np.array([[-5.0], [0.0], [5.0]], dtype=np.float32), "bias": np.zeros(3, dtype=np.float32)}
    rows = Dataset(np.array([[1], [-1], [1], [1]], dtype=np.float32), np.array([2, 0, 1, 2]))

    found = release_report(spec, parameters, rows, epsilon=HUGE, random=SecureRandom(KEY))

    assert found["accuracy"] == pytest.approx(3 / 4, abs=1e-6)


def test_a_regression_reports_its_mean_error_in_the_unit_of_the_label() -> None:
    spec = task("regression", "minimum = 0\nmaximum = 200", "linear")
    parameters = {"weight": np.array([[0.4]], dtype=np.float32), "bias": np.zeros(1, dtype=np.float32)}
    rows = Dataset(np.array([[1], [-1]], dtype=np.float32), np.array([0.5, -1.0], dtype=np.float32))

    found = release_report(spec, parameters, rows, epsilon=HUGE, random=SecureRandom(KEY))

    # labels 150 and 0, predictions 140 and 60
    assert found == {"mae": pytest.approx(35.0, rel=1e-5)}


def test_epsilon_is_split_over_the_figures_that_leave_and_no_others() -> None:
    random, epsilon, count = SecureRandom(KEY), 10.0, 100
    rows = Dataset(np.linspace(-1, 1, count, dtype=np.float32)[:, None], (np.arange(count) % 2).astype(np.float32))
    weak = {"weight": np.array([[0.1]], dtype=np.float32), "bias": np.zeros(1, dtype=np.float32)}

    reports = [release_report(task(), weak, rows, epsilon=epsilon, random=random, wanted=("log_loss",)) for _ in range(1500)]

    assert all(list(report) == ["log_loss"] for report in reports)
    values = np.array([report["log_loss"] for report in reports], dtype=float)
    assert values.std() == pytest.approx(LOSS_BOUND / count / epsilon * 2**0.5, rel=0.12)


def test_a_figure_that_the_task_does_not_have_is_not_asked_for() -> None:
    assert figures_of(task(), ("mae", "log_loss")) == ("log_loss",)
    assert figures_of(task("regression", "minimum = 0\nmaximum = 2", "linear"), ("accuracy", "log_loss")) == ()


ENDLESS = {"weight": np.array([[np.inf]], dtype=np.float32), "bias": np.zeros(1, dtype=np.float32)}


def test_no_model_makes_the_figure_of_one_record_stand_out() -> None:
    # An infinite weight gives the record at 0, and only that one, a prediction that is no number.
    features, labels = np.full((9, 1), 0.5, dtype=np.float32), np.ones(9, dtype=np.float32)
    features[4] = 0.0

    found = release_report(task(), ENDLESS, Dataset(features, labels), epsilon=HUGE, random=SecureRandom(KEY))

    assert found["log_loss"] == pytest.approx(LOSS_BOUND / 9, abs=1e-6)


def test_a_regression_counts_a_prediction_that_is_no_number_as_the_worst() -> None:
    spec = task("regression", "minimum = 0\nmaximum = 10", "linear")
    rows = Dataset(np.zeros((2, 1), dtype=np.float32), np.zeros(2, dtype=np.float32))

    assert release_report(spec, ENDLESS, rows, epsilon=HUGE, random=SecureRandom(KEY)) == {"mae": pytest.approx(10.0)}


def test_a_person_with_many_rows_counts_once() -> None:
    persons = np.array([0, 1, 2, 3, 3, 3, 3, 3])
    features = np.array([[1], [0.5], [-0.5], [-1], [1], [1], [1], [1]], dtype=np.float32)
    rows = Dataset(features, np.array([1, 0, 0, 0, 0, 0, 0, 0], dtype=np.float32), persons)

    found = release_report(task(), STRONG, rows, epsilon=HUGE, random=SecureRandom(KEY))

    assert found == release_report(task(), STRONG, ROWS, epsilon=HUGE, random=SecureRandom(KEY))


def test_a_noised_figure_has_no_low_order_bits() -> None:
    rows = Dataset(np.linspace(-1, 1, 300, dtype=np.float32)[:, None], (np.arange(300) % 7 == 0).astype(np.float32))

    report = release_report(task(), STRONG, rows, epsilon=1.0, random=SecureRandom(KEY))

    # scale 3 / 300 / (1/2) = 2^-5.6, rounded up to 2^-5, in steps of 2^-20 of it
    steps = (report["log_loss"] or 0.0) * 2.0**25
    assert steps == int(steps)
    assert 0 < steps < LOSS_BOUND * 2.0**25
