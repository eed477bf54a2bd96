"""Table rules: what the mean of the latest models or updates is, when institutions come, go and come back."""

import numpy as np
import pytest

from aggregator_worker.server_state import Contribution, ServerState
from shared import messages
from shared.errors import IncompatibleUpdateError
from shared.plan import ServerAdam
from tests.builders import RUN, a_plan, array

MODELS = a_plan({"rule": "latest-model", "server_learning_rate": 1.0})
UPDATES = a_plan({"rule": "latest-update", "server_learning_rate": 1.0})
EQUAL = {"a": 0.5, "b": 0.25, "c": 0.25}


def begun(plan, *values):
    return ServerState.of(plan, {"w": array(*values)})


def version(state, shares, **deltas):
    """One version of a delta from each institution named, all made on the present model."""
    base = {"w": state.model["w"].copy()}
    for name, values in deltas.items():
        state.fold(Contribution({"w": array(*values)}, weight=shares.get(name, 0.0), institution=name, base=base))
    state.finish_version(shares)
    return state.model["w"].tolist()


@pytest.mark.parametrize("order", ["abc", "cab", "bca"])
@pytest.mark.parametrize("plan", [MODELS, UPDATES], ids=["models", "updates"])
def test_one_fresh_update_from_each_in_one_version_is_federated_averaging(plan, order):
    deltas = {"a": (4, 8), "b": (16, -4), "c": (0, 4)}
    # 1 + 4/2 + 16/4 = 7, and 2 + 8/2 - 4/4 + 4/4 = 6
    assert version(begun(plan, 1, 2), EQUAL, **{name: deltas[name] for name in order}) == [7, 6]


@pytest.mark.parametrize("order", ["abc", "cab", "bca"])
def test_the_mean_of_latest_models_is_federated_averaging_once_each_has_answered_in_any_order(order):
    deltas, state = {"a": (4, 8), "b": (16, -4), "c": (0, 4)}, begun(MODELS, 1, 2)
    base = {"w": array(1, 2)}
    for name in order:
        state.fold(Contribution({"w": array(*deltas[name])}, EQUAL[name], institution=name, base=base))
        state.finish_version(EQUAL)
    assert state.model["w"].tolist() == [7, 6]


def test_the_model_is_the_mean_of_the_latest_models_after_every_version():
    draw, state = np.random.default_rng(5), begun(MODELS, 1, 2)
    for _ in range(40):
        base = {"w": state.model["w"].copy()}
        # quarters: every product and sum is exact in float32
        delta = {"w": (draw.integers(-64, 64, 2) / 4).astype(np.float32)}
        state.fold(Contribution(delta, 0.5, institution=str(draw.choice(["a", "b", "c"])), base=base))
        state.finish_version(EQUAL)
        mean = sum(share * state.rows[name]["w"].astype(np.float64) for name, share in EQUAL.items())
        assert np.abs(state.model["w"] - mean).max() < 1e-5


def test_the_same_update_once_more_changes_a_mean_of_models_by_nothing():
    state = begun(MODELS, 1, 2)
    base = {"w": array(1, 2)}
    once = Contribution({"w": array(4, 8)}, 0.5, institution="a", base=base)
    for _ in range(3):
        state.fold(once)
        state.finish_version(EQUAL)
    assert state.model["w"].tolist() == [3, 6]


def test_a_stale_update_replaces_only_its_own_institutions_model():
    state, old = begun(MODELS, 0, 0), {"w": array(0, 0)}
    version(state, EQUAL, b=(8, 8))
    version(state, EQUAL, c=(6, -2))
    # b's model is 8, 8 and c's 2 + 6, 2 - 2 = 8, 0; a's is now 0 + 4 = 4, 4
    state.fold(Contribution({"w": array(4, 4)}, 0.5, institution="a", base=old))
    state.finish_version(EQUAL)
    assert state.model["w"].tolist() == [0.5 * 4 + 0.25 * 8 + 0.25 * 8, 0.5 * 4 + 0.25 * 8]


def test_calibration_takes_the_old_update_out_and_puts_the_new_one_in():
    shares, state = {"a": 0.5, "b": 0.25, "c": 0.125, "d": 0.125}, begun(UPDATES, 0, 0)
    assert version(state, shares, a=(4, 8), b=(16, -4), c=(0, 4), d=(8, 16)) == [7, 5.5]
    # only b comes, with (8, 0), a quarter of a cycle: 7 + 7/4 + 1/4 x (8 - 16), and 5.5 + 5.5/4 + 1/4 x (0 + 4)
    assert version(state, shares, b=(8, 0)) == [6.75, 7.875]
    assert state.rows["b"]["w"].tolist() == [8, 0]


def test_in_a_whole_cycle_of_single_updates_everybody_counts_by_its_share_once_more():
    state = begun(UPDATES, 0, 0)
    shares = {"a": 0.5, "b": 0.5}
    assert version(state, shares, a=(4, 0), b=(0, 4)) == [2, 2]
    # the same updates again, one by one: half of the mean each time, and nothing new in either
    assert version(state, shares, a=(4, 0)) == [3, 3]
    assert version(state, shares, b=(0, 4)) == [4, 4]


def test_who_leaves_no_longer_counts_and_whose_share_it_was_goes_to_the_others():
    state = begun(MODELS, 0, 0)
    version(state, EQUAL, a=(4, 8), b=(16, -4), c=(0, 4))
    # a's model stays 4, 8; b comes anew from 6, 4 with nothing to add: 1/2 x 4 + 1/2 x 6, 1/2 x 8 + 1/2 x 4
    assert version(state, {"a": 0.5, "b": 0.5}, b=(0, 0)) == [5, 6]
    assert sorted(state.rows) == ["a", "b"]


def test_who_comes_or_comes_back_moves_nothing_before_it_gives_an_update():
    state = begun(MODELS, 0, 0)
    assert version(state, {"a": 0.5, "b": 0.5}, a=(4, 8), b=(16, -4)) == [10, 2]
    # a trains the same model 4, 8 again; c has 10, 2 for its latest
    assert version(state, {"a": 0.375, "b": 0.375, "c": 0.25}, a=(-6, 6)) == [10, 2]


def test_an_institution_that_was_never_heard_of_holds_the_model_where_it_is():
    # a has half of the share, nobody the other half
    assert version(begun(MODELS, 1, 1), {"a": 0.5}, a=(4, 4)) == [3, 3]


@pytest.mark.parametrize("plan", [MODELS, UPDATES], ids=["models", "updates"])
def test_a_scaled_down_update_counts_as_that_much_less(plan):
    state = begun(plan, 0, 0)
    state.fold(Contribution({"w": array(8, 4)}, 1.0, 0.25, "a", {"w": array(0, 0)}))
    state.finish_version({"a": 1.0})
    assert state.model["w"].tolist() == [2, 1]


def test_a_server_learning_rate_goes_part_of_the_way():
    plan = a_plan({"rule": "latest-model", "server_learning_rate": 0.5})
    assert version(begun(plan, 0, 0), {"a": 1.0}, a=(8, 4)) == [4, 2]


def test_momentum_and_table_rules_go_together():
    plan = a_plan({"rule": "latest-update", "server_learning_rate": 0.5, "server_momentum": 0.5})
    state = begun(plan, 0, 0)
    # m = 0.5 x 8 = 4, model 4; then m = 0.5 x 4 + 0.5 x 8 = 6, model 10
    assert version(state, {"a": 1.0}, a=(8, 8)) == [4, 4]
    assert version(state, {"a": 1.0}, a=(8, 8)) == [10, 10]


ADAM = ServerAdam(beta1=0.5, beta2=0.5, epsilon=0.5)


def test_adam_divides_by_the_root_of_the_second_moment():
    state = begun(a_plan({"rule": "fedasync", "server_learning_rate": 0.25, "server_adam": ADAM}), 0, 0)
    state.fold(Contribution({"w": array(4, 0)}, 0.5))
    assert state.model["w"].tolist() == [0, 0]
    state.finish_version()
    # direction 2, m = 1, v = 2: 0.25 x 1 / (sqrt 2 + 0.5)
    assert state.model["w"].tolist() == pytest.approx([0.25 / (2**0.5 + 0.5), 0])
    first = state.model["w"][0]
    state.fold(Contribution({"w": array(4, 0)}, 0.5))
    state.finish_version()
    # m = 1.5, v = 3
    assert state.model["w"][0] == pytest.approx(first + 0.25 * 1.5 / (3**0.5 + 0.5))


def test_adam_takes_the_variance_out_that_is_known_to_be_noise():
    state = begun(a_plan({"rule": "fedasync", "server_learning_rate": 1.0, "server_adam": ADAM}), 0, 0)
    state.fold(Contribution({"w": array(4, 1)}, 0.5, noise_std=2.0))
    state.finish_version()
    # directions 2 and 0.5, m = 1 and 0.25, v = 2 and 0.125, noise 0.5 x (0.5 x 2)^2 = 0.5: 2 - 0.5, and never below 0
    assert state.model["w"].tolist() == pytest.approx([1 / (1.5**0.5 + 0.5), 0.25 / 0.5])
    state.fold(Contribution({"w": array(0, 0)}, 0.5))
    state.finish_version()
    assert state.adam is not None
    assert state.adam.noise.tolist() == [0.25]


@pytest.mark.parametrize(
    "aggregation",
    [
        {"rule": "latest-model"},
        {"rule": "latest-update", "server_momentum": 0.5},
        {"rule": "latest-update", "server_adam": ADAM},
        {"rule": "credit", "server_adam": ADAM},
    ],
    ids=str,
)
@pytest.mark.parametrize("broadcast", ["float32", "bfloat16"])
def test_a_successor_goes_on_from_the_published_blobs_with_the_same_bits(aggregation, broadcast):
    plan, draw = a_plan(aggregation, broadcast=broadcast), np.random.default_rng(9)
    first = ServerState.of(plan, {"w": array(0.3, -0.7, 1e-3), "b/c": array(1)})
    _go_on(first, draw)
    model = messages.encode_model(RUN, first.model, plan.broadcast).joined()
    wide = messages.encode_state(RUN, first.wide(plan)).joined()
    second = ServerState.restored(
        plan, messages.decode_model(model, max_bytes=10_000), messages.decode_model(wide, max_bytes=10_000, kind="state")
    )
    saved = ServerState.complete(plan, {name: array.copy() for name, array in first.everything().items()})
    for state in (first, second, saved):
        _go_on(state, np.random.default_rng(10))
    bits = [{name: each.tobytes() for name, each in state.everything().items()} for state in (first, second, saved)]
    assert bits[0] == bits[1] == bits[2]
    assert len(bits[0]) > 2


def _go_on(state, draw):
    shares = {"a" * 16: 0.3, "b" * 16: 0.7}
    for _ in range(3):
        base = {name: state.model[name].copy() for name in sorted(state.model)}
        for name in draw.permutation(sorted(shares)):
            delta = {key: draw.normal(size=array.shape).astype(np.float32) for key, array in base.items()}
            state.fold(Contribution(delta, 0.3, 0.9, str(name), base, 0.1))
        state.finish_version(shares)


@pytest.mark.parametrize(
    ("aggregation", "wide", "reason"),
    [
        ({"rule": "latest-model"}, {"rows/aa/w": array(1)}, r"'w' has shape \(1,\)"),
        ({"rule": "latest-model"}, {"rows/aa/v": array(1, 1)}, "'w' is missing"),
        ({"server_adam": ADAM}, {"momentum/w": array(1, 1), "second/w": array(1, 1)}, "no 'noise'"),
        ({"server_adam": ADAM}, {"momentum/w": array(1, 1), "noise": array(1)}, "'w' is missing"),
    ],
)
def test_a_state_that_does_not_fit_its_plan_is_refused(aggregation, wide, reason):
    with pytest.raises(IncompatibleUpdateError, match=reason):
        ServerState.restored(a_plan(aggregation), {"w": array(1, 1)}, wide)


def test_a_state_with_rows_is_refused_by_a_plan_without():
    with pytest.raises(IncompatibleUpdateError, match="rows"):
        ServerState.restored(a_plan(), {"w": array(1, 1)}, {"rows/aa/w": array(1, 1)})
