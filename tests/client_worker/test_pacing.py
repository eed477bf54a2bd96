import pytest

from client_worker.pacing import wait_seconds
from shared.plan import LocalPlan

PLAN = LocalPlan(updates=5, horizon_seconds=400.0)


def wait(**changes) -> float:
    facts = {"done": 1, "opened_at": 1000.0, "last_begun_at": 1000.0, "now": 1000.0} | changes
    return wait_seconds(PLAN, **facts)


def test_the_first_training_begins_at_once_and_the_next_ones_are_a_horizons_share_apart():
    assert wait(done=0) == 0.0
    assert wait() == 100.0  # four are left for 400 seconds
    assert wait(now=1030.0) == 70.0
    assert wait(now=1100.0) == 0.0


def test_who_was_away_for_half_of_the_horizon_neither_hurries_nor_gives_less():
    assert wait(done=2, last_begun_at=1200.0, now=1200.0) == pytest.approx(200.0 / 3)


def test_behind_the_horizon_nothing_is_held_back():
    assert wait(done=3, last_begun_at=1500.0, now=1500.0) == 0.0


@pytest.mark.parametrize(("draw", "seconds"), [(0.0, 90.0), (0.75, 105.0)])
def test_the_spacing_is_moved_by_a_tenth_at_most(draw, seconds):
    assert wait(draw=draw) == pytest.approx(seconds)


def test_a_clock_that_was_put_back_costs_one_spacing():
    assert wait(now=-1e9) == 100.0


def test_without_a_horizon_nobody_waits():
    assert wait_seconds(LocalPlan(updates=5), done=1, opened_at=0.0, last_begun_at=0.0, now=0.0) == 0.0
