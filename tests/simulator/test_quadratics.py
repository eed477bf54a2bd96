import math
from collections.abc import Callable

import numpy as np
import pytest

from shared.plan import AggregationPlan, StalenessRule
from simulator.quadratics import Course, Quadratics, Step, drawn, half_slow, periods, tracers, without

CONSTANT = StalenessRule(function="constant")
LATEST = {
    "latest-model": AggregationPlan(rule="latest-model"),
    "latest-update": AggregationPlan(rule="latest-update"),
}


def mean_of_the_second_half(problem: Quadratics, plan: AggregationPlan, updates: int) -> np.ndarray:
    return np.mean([step.model for step in Course(problem, plan).steps(updates)][updates // 2 :], axis=0)


def test_a_training_of_everybody_cancels_at_the_mean_of_the_optima_by_share_and_gain() -> None:
    optima, gains = np.array([[0.0], [6.0]]), np.array([[0.5], [0.25]])
    problem = Quadratics(optima, gains, (100, 100), half_slow(2, 1.0))

    # 0.5 (0 - x) + 0.25 (6 - x) = 0
    assert problem.optimum == pytest.approx([2.0])
    assert problem.error(np.array([0.0])) == pytest.approx(4.0 / 10.0)  # the optima are 2 and 4 away
    assert periods(Quadratics(optima, gains, (100, 100), half_slow(2, 9.0)), 3) == 30


def test_fedasync_settles_at_the_optima_by_frequency_and_credit_at_those_by_data() -> None:
    problem = tracers(10, ratio=10.0, gain=0.1)
    by_frequency = np.array([10 / 11 / 5] * 5 + [1 / 11 / 5] * 5)  # of the optima, which are the unit vectors

    fedasync = AggregationPlan(rule="fedasync", server_learning_rate=0.02, staleness=CONSTANT)
    credit = AggregationPlan(server_learning_rate=0.2)

    # a weight of 0.02, on average, makes a step of 0.002
    assert np.linalg.norm(mean_of_the_second_half(problem, fedasync, 6000) - by_frequency) < 4e-3
    assert np.linalg.norm(mean_of_the_second_half(problem, credit, 6000) - 0.1) < 2e-3


@pytest.mark.parametrize("seed", [0, 1])
def test_the_latest_rules_are_exact_where_fedbuff_and_fedasync_are_not(seed: int) -> None:
    problem = drawn(6, 5, ratio=10.0, gain=0.5, seed=seed)
    buffered = AggregationPlan(rule="fedbuff", buffer_size=3)
    mixed = AggregationPlan(rule="fedasync", server_learning_rate=0.6)

    def error(plan: AggregationPlan) -> float:
        *_, last = Course(problem, plan, seed=seed).steps(periods(problem, 40))
        return problem.error(last.model)

    assert all(error(plan) < 1e-9 for plan in LATEST.values())
    assert all(error(plan) > 1e-3 for plan in (buffered, mixed))


GONE = {3, 7}
"""A quarter of eight: a fast one and a slow one."""


@pytest.mark.parametrize(
    ("plan", "gain", "updates"),
    [
        pytest.param(AggregationPlan(server_learning_rate=0.2), 0.05, 4000, id="credit"),
        *(pytest.param(plan, 0.5, 1500, id=name) for name, plan in LATEST.items()),
    ],
)
def test_when_a_quarter_leaves_the_model_goes_to_the_optimum_of_the_rest(
    plan: AggregationPlan, gain: float, updates: int
) -> None:
    problem = drawn(8, 5, ratio=10.0, gain=gain, seed=0)
    leaving = 0.25 * updates / float((1 / problem.seconds).sum())  # seconds
    course = Course(problem, plan, rest=lambda place, now: math.inf if place in GONE and now > leaving else 0.0)

    *_, last = course.steps(updates)

    assert without(problem, GONE).error(last.model) < 1e-4
    assert np.square(last.model - problem.optimum).sum() > 1e-2  # the optimum of all is elsewhere


def away(course_of: Callable[[Callable[[int, float], float]], Course], updates: int) -> tuple[list[Step], int]:
    """The whole course, and which step is the first of institution-7 after it was away from its 40th second to its 300th."""
    pauses = iter([260.0])
    course = course_of(lambda place, now: next(pauses, 0.0) if place == 7 and now > 40.0 else 0.0)
    steps = list(course.steps(updates))
    theirs = [at for at, step in enumerate(steps) if step.arrival.institution == "institution-7"]
    return steps, next(at for at in theirs if steps[at].arrival.seconds > 290.0)


def test_a_return_after_a_silence_spends_no_more_than_a_cycle_and_its_own_tick() -> None:
    problem = drawn(8, 5, ratio=10.0, gain=0.1, seed=0)

    steps, back = away(lambda rest: Course(problem, AggregationPlan(staleness=CONSTANT), rest=rest), 1600)

    # it was away for 130 cycles; a cycle is eight updates, of each of which it earns an eighth of an eighth
    assert steps[back].arrival.weight == pytest.approx((1 + 1 / 8) / 8)


@pytest.mark.parametrize("name", sorted(LATEST))
def test_a_return_after_a_silence_is_no_jump_in_a_table(name: str) -> None:
    problem = drawn(8, 5, ratio=10.0, gain=0.1, seed=0)

    steps, back = away(lambda rest: Course(problem, LATEST[name], rest=rest), 1600)

    # its share of its delta; the others stand still by then
    given = 0.1 * (problem.optima[7] - steps[steps[back].arrival.base_version - 1].model)
    assert np.linalg.norm(steps[back].model - steps[back - 1].model) == pytest.approx(np.linalg.norm(given) / 8, rel=0.05)
