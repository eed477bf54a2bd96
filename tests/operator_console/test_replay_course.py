"""Which versions a replay passes where the chain was rolled back: 8 versions, 5 goes back to 3, 8 to 6."""

import pytest

from aggregator_worker.roll_back import RollBack
from operator_console.replay_course import Leg, as_published, leg_of, without

A, B, C = (each * 16 for each in "abc")
BACKS = {5: RollBack(3, A), 8: RollBack(6, B)}


def test_without_a_roll_back_there_is_one_leg():
    assert as_published({}, 4) == [Leg(0, 4)]
    assert without({}, 4, frozenset({A})) == [Leg(0, 4, frozenset({A}))]


def test_what_was_published_is_passed_whole_and_begins_anew_at_each_roll_back():
    assert as_published(BACKS, 9) == [Leg(0, 4), Leg(5, 7), Leg(8, 9)]
    assert as_published(BACKS, 5) == [Leg(0, 4), Leg(5, 5)]
    assert as_published(BACKS, 4) == [Leg(0, 4)]


def test_without_another_what_roll_backs_left_out_stays_out_and_what_they_did_away_with_is_not_passed():
    assert without(BACKS, 9, frozenset({C})) == [
        Leg(0, 3, frozenset({A, B, C})),
        Leg(5, 6, frozenset({B, C})),
        Leg(8, 9, frozenset({C})),
    ]


def test_a_roll_back_to_before_another_passes_over_that_one():
    backs = {5: RollBack(3, A), 8: RollBack(2)}
    assert without(backs, 9, frozenset({B})) == [Leg(0, 2, frozenset({B})), Leg(8, 9, frozenset({B}))]


@pytest.mark.parametrize(("version", "begin"), [(0, 0), (3, 0), (4, None), (5, 5), (6, 5), (7, None), (8, 8), (9, 8), (10, None)])
def test_a_version_is_passed_in_one_leg_or_in_none(version, begin):
    leg = leg_of(without(BACKS, 9, frozenset({C})), version)
    assert (None if leg is None else leg.begin) == begin
