import math
from itertools import pairwise

import numpy as np
import pytest

from client_worker.randomness import SecureRandom
from shared.plan import AggregationPlan, Plan, PrivacyPlan
from shared.tasks.features import Dataset
from shared.tasks.metrics import evaluate
from shared.tasks.spec import TaskSpec, Transport, parse_task
from simulator.federation import WITHOUT_NOISE, Member, Options, Run, Timetable, arrivals, simulate
from simulator.virtual import VirtualAggregator

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


def test_weight_is_the_rate_times_the_credit_of_a_cycle_and_a_half() -> None:
    spec = task('server_learning_rate = 0.5\nstaleness_function = "polynomial"\nstaleness_exponent = 0.5')

    third = run(spec, (1.0, 2.5), Options(epsilon=None)).arrivals[2]

    # bank-1 has 200 of 300 rows, and a cycle is two arrivals; what its first update took is what is usual for it
    assert third.weight == pytest.approx(0.5 * 2 / 3 * 1.5, rel=1e-6)


def test_another_rule_is_a_matter_of_the_plan() -> None:
    plan = AggregationPlan(rule="fedasync", server_learning_rate=0.6)

    found = run(task(), (1.0, 2.5), Options(epsilon=None, aggregation=plan))

    assert [each.weight for each in found.arrivals[:3]] == pytest.approx([0.6, 0.6, 0.6 / 3**0.5], rel=1e-6)


def test_a_buffer_of_exactly_two_makes_half_as_many_versions() -> None:
    plan = AggregationPlan(buffer_size=2, exact_buffer=True)

    found = run(task(), (1.0, 1.1), Options(epsilon=None, aggregation=plan))

    assert [each.base_version for each in found.arrivals] == [0, 0, 0, 1, 1, 2, 2, 3]
    assert [each.staleness for each in found.arrivals] == [0, 0, 1, 0, 1, 0, 1, 0]


def test_a_run_ends_at_its_total_and_folds_what_is_left_in_the_buffer() -> None:
    plan = AggregationPlan(buffer_size=2, exact_buffer=True)

    four, five = (run(task(), (1.0, 1.1), Options(epsilon=None, total=total, aggregation=plan)) for total in (4, 5))

    assert len(five.arrivals) == 5
    assert five.arrivals[4].staleness == 1
    assert not np.array_equal(four.parameters["weight"], five.parameters["weight"])


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


def test_who_rests_takes_the_newest_model_afterwards_and_who_leaves_is_not_waited_for() -> None:
    plan = Plan(task="t", task_hash="0" * 64, privacy=PrivacyPlan(mechanism="none", epsilon=None))
    aggregator = VirtualAggregator(plan, {"x": np.zeros(1, dtype=np.float32)}, {"a": 1, "b": 1, "c": 1})
    rests = {1: lambda now: 2.5 if now == 1.1 else 0.0, 2: lambda now: math.inf if now else 0.0}
    timetable = Timetable(lambda place: 1.0 + place / 10, lambda place, now: rests[place](now) if place in rests else 0.0)

    found = arrivals(aggregator, "abc", timetable, lambda _, base: (dict(base), WITHOUT_NOISE), updates=5, total=9)

    # b rests from 1.1 to 3.6 and trains until 4.7; c leaves after its first update
    assert [(each.institution, round(each.seconds, 1), each.base_version) for each in found] == [
        ("a", 1.0, 0),
        ("b", 1.1, 0),
        ("c", 1.2, 0),
        ("a", 2.0, 1),
        ("a", 3.0, 4),
        ("a", 4.0, 5),
        ("b", 4.7, 5),
        ("a", 5.0, 6),
        ("b", 5.8, 7),
    ]
