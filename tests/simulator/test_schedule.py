import pytest

from simulator.schedule import schedule, updates_in_all

BANKS = ["a", "b", "c", "d", "e", "f"]


@pytest.mark.parametrize(("institutions", "updates", "total"), [(6, 20, 102), (6, 5, 26), (3, 4, 9), (1, 20, 20)])
def test_a_run_ends_when_the_ordinary_ones_are_done(institutions: int, updates: int, total: int) -> None:
    assert updates_in_all(institutions, updates) == total


def test_the_seed_draws_one_slow_and_another_one_to_be_killed() -> None:
    drawn = [schedule(BANKS, updates=20, seed=seed) for seed in range(30)]

    assert drawn[7] == schedule(BANKS, updates=20, seed=7)
    assert all(each.slow != each.killed for each in drawn)
    assert {each.slow for each in drawn} == {each.killed for each in drawn} == set(BANKS)
    assert {each.killed_after for each in drawn} == {6}


def test_the_slow_one_takes_ten_times_as_long() -> None:
    drawn = schedule(BANKS, updates=20, seed=0)
    ordinary = next(each for each in BANKS if each != drawn.slow)

    assert drawn.slow is not None
    assert drawn.at_least_seconds(drawn.slow) == 10 * drawn.at_least_seconds(ordinary)


def test_an_institution_alone_is_killed_but_not_slow() -> None:
    assert (schedule(["only"], updates=3, seed=0).slow, schedule(["only"], updates=3, seed=0).killed) == (None, "only")
