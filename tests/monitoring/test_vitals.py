"""A worker's own account of itself: what is said last counts, and a loop that stands still is neither alive nor ready."""

import pytest

from monitoring.vitals import Condition, Vitals
from shared.errors import BrokerUnavailableError


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def vitals(clock: Clock) -> Vitals:
    return Vitals(stalled_after_seconds=60, clock=clock)


def test_a_worker_that_has_just_begun_lives_and_is_not_ready(vitals: Vitals) -> None:
    assert vitals.now() == Condition(alive=True, ready=False, reason="starting", silent_seconds=0)


def test_what_was_said_last_counts(vitals: Vitals) -> None:
    vitals.not_ready("the broker is away")
    vitals.ready("training")

    assert (vitals.now().ready, vitals.now().reason) == (True, "training")


def test_a_loop_that_stands_still_is_neither_alive_nor_ready_until_it_turns_again(vitals: Vitals, clock: Clock) -> None:
    vitals.ready("training")
    clock.seconds = 59
    assert vitals.now().ready
    clock.seconds = 60

    stalled = vitals.now()
    assert (stalled.alive, stalled.ready) == (False, False)
    assert stalled.reason == "its loop has not turned for 60 seconds; before that: training"

    vitals.beat()
    assert vitals.now() == Condition(alive=True, ready=True, reason="training", silent_seconds=0)


def test_a_loop_that_is_long_at_one_thing_is_alive_and_not_ready(clock: Clock) -> None:
    vitals = Vitals(stalled_after_seconds=600, clock=clock)
    vitals.ready("leading")
    clock.seconds = 59
    assert vitals.now().ready
    clock.seconds = 60
    assert (vitals.now().alive, vitals.now().ready) == (True, False)
    assert vitals.now().reason == "its loop has not turned for 60 seconds; before that: leading"
    clock.seconds = 600
    assert not vitals.now().alive


def test_a_foreseen_error_is_the_reason_and_goes_on_its_way(vitals: Vitals) -> None:
    vitals.ready("training")

    with pytest.raises(BrokerUnavailableError), vitals.hindered_by_errors():
        raise BrokerUnavailableError("no node answers")

    assert (vitals.now().ready, vitals.now().reason) == (False, "no node answers")


def test_an_end_without_an_error_hinders_nothing(vitals: Vitals) -> None:
    vitals.ready("training")

    with vitals.hindered_by_errors():
        pass

    assert vitals.now().ready
