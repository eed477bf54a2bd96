from itertools import pairwise

import numpy as np
import pytest

from client_worker.randomness import SecureRandom
from shared.tasks.features import Dataset
from shared.tasks.metrics import evaluate
from shared.tasks.spec import TaskSpec, Transport, parse_task
from simulator.federation import Member, Options, Run, simulate

KEY = bytes(range(32))


def task(aggregation: str = "") -> TaskSpec:
    text = f"""
name = "t"
kind = "binary"
[label]
column = "y"
positive = [1]
[[numeric]]
columns = ["a", "b"]
minimum = -1
maximum = 1
[model]
type = "logistic"
[training]
steps = 2
updates = 4
[aggregation]
{aggregation}
"""
    return parse_task(text, source="task.toml")


def rows(count: int, seed: int) -> Dataset:
    features = np.random.default_rng(seed).uniform(-1, 1, (count, 2)).astype(np.float32)
    return Dataset(features, (features[:, 0] > 0.1).astype(np.float32))


def members(*durations: float) -> list[Member]:
    return [Member(f"bank-{place}", rows(100 * (place + 1), place), seconds) for place, seconds in enumerate(durations)]


def run(spec: TaskSpec, durations: tuple[float, ...], options: Options) -> Run:
    return simulate(spec, members(*durations), options, random=SecureRandom(KEY))


def test_updates_arrive_by_their_duration_and_nobody_waits() -> None:
    found = run(task(), (1.0, 2.5), Options(epsilon=None))

    assert [(each.institution, each.seconds) for each in found.arrivals] == [
        ("bank-0", 1.0),
        ("bank-0", 2.0),
        ("bank-1", 2.5),
        ("bank-0", 3.0),
        ("bank-0", 4.0),
        ("bank-1", 5.0),
        ("bank-1", 7.5),
        ("bank-1", 10.0),
    ]


def test_staleness_counts_the_versions_made_meanwhile() -> None:
    found = run(task(), (1.0, 2.5), Options(epsilon=None))

    assert [each.staleness for each in found.arrivals] == [0, 0, 2, 1, 0, 2, 0, 0]
    assert [each.base_version for each in found.arrivals] == [0, 1, 0, 2, 4, 3, 6, 7]


def test_weight_is_the_rate_times_the_share_times_the_staleness_weight() -> None:
    spec = task('server_learning_rate = 3.0\nstaleness_function = "polynomial"\nstaleness_exponent = 0.5')

    third = run(spec, (1.0, 2.5), Options(epsilon=None)).arrivals[2]

    # bank-1 has 200 of 300 rows; its update is two versions late
    assert third.weight == pytest.approx(3.0 * 2 / 3 / 3**0.5, rel=1e-6)


def test_a_buffer_of_two_makes_half_as_many_versions() -> None:
    found = run(task("buffer_size = 2"), (1.0, 1.1), Options(epsilon=None))

    assert [each.base_version for each in found.arrivals] == [0, 0, 0, 1, 1, 2, 2, 3]
    assert [each.staleness for each in found.arrivals] == [0, 0, 1, 0, 1, 0, 1, 0]


def test_a_run_ends_at_its_total_and_folds_what_is_left_in_the_buffer() -> None:
    found = run(task("buffer_size = 2"), (1.0, 1.1), Options(epsilon=None, total=5))

    assert len(found.arrivals) == 5
    assert found.arrivals[4].staleness == 1


def test_one_institution_alone_at_weight_one_is_plain_sgd() -> None:
    spec = task('staleness_function = "constant"')
    found = run(spec, (1.0,), Options(epsilon=None))

    assert [each.weight for each in found.arrivals] == [1.0] * 4
    assert evaluate(spec, found.parameters, rows(300, 9))["auc"] == pytest.approx(1.0, abs=0.02)


def test_the_same_key_and_arguments_give_the_same_bits() -> None:
    first, second, other = (
        simulate(task(), members(1.0, 2.5), Options(epsilon=3.0), random=SecureRandom(key)).parameters["weight"]
        for key in (KEY, KEY, KEY[::-1])
    )

    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


def test_less_epsilon_means_more_noise() -> None:
    noise = [run(task(), (1.0, 1.5), Options(epsilon=epsilon, total=1)).noise_multiplier for epsilon in (None, 8.0, 1.0)]

    assert noise[0] is None
    assert all(isinstance(each, float) for each in noise[1:])
    assert [low < high for low, high in pairwise(each for each in noise if each is not None)] == [True]


@pytest.mark.parametrize("epsilon", [None, 3.0])
def test_deltas_are_folded_as_they_would_arrive(epsilon: float | None) -> None:
    spec = task()
    exact, rounded = (
        run(spec.model_copy(update={"transport": Transport(updates=updates)}), (1.0,), Options(epsilon=epsilon, total=1))
        for updates in ("float32", "int8")
    )
    (weight,) = (arrival.weight for arrival in rounded.arrivals)
    for name, array in rounded.parameters.items():
        # initial parameters are 0: what is left are steps of one size, up to 127 of them
        moved = array / np.float32(weight)
        distance = np.abs(moved - exact.parameters[name] / np.float32(weight))
        assert 0 < distance.max() < np.abs(moved).max() / 5
