import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator_worker.rules.staleness import staleness_weight
from shared.plan import StalenessRule

FUNCTIONS = ("constant", "polynomial", "hinge")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_fresh_update_has_weight_one_exactly(function):
    assert staleness_weight(StalenessRule(function=function), 0) == 1.0


@pytest.mark.parametrize(
    ("function", "staleness", "weight"),
    [
        ("constant", 1000, 1.0),
        ("polynomial", 3, 0.5),
        ("polynomial", 8, 1 / 3),
        ("hinge", 4, 1.0),
        ("hinge", 5, 1 / 11),
        ("hinge", 6, 1 / 21),
    ],
)
def test_staleness_weights_have_the_values_of_the_paper(function, staleness, weight):
    assert staleness_weight(StalenessRule(function=function), staleness) == pytest.approx(weight, rel=1e-15)


def test_a_plan_sets_exponent_slope_and_threshold():
    assert staleness_weight(StalenessRule(exponent=2.0), 3) == pytest.approx(1 / 16)
    hinge = StalenessRule(function="hinge", hinge_slope=0.5, hinge_threshold=1)
    assert staleness_weight(hinge, 3) == pytest.approx(0.5)
    assert staleness_weight(hinge, 1) == 1.0


@given(st.sampled_from(FUNCTIONS), st.floats(0, 10_000), st.floats(0, 100))
def test_staleness_weights_never_rise(function, staleness, more):
    rule = StalenessRule(function=function)
    assert 0 < staleness_weight(rule, staleness + more) <= staleness_weight(rule, staleness) <= 1.0
