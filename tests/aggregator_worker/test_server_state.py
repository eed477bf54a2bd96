import numpy as np
import pytest

from aggregator_worker.server_state import Contribution, ServerState
from shared import messages
from shared.errors import IncompatibleUpdateError
from tests.builders import RUN, a_plan, array

PLAIN, MOMENTUM = a_plan(), a_plan({"server_momentum": 0.5})
ROUNDED = a_plan(broadcast="bfloat16")
BOTH = a_plan({"server_momentum": 0.5}, broadcast="bfloat16")
START = {"w": array(1, 1)}
BETWEEN = 1 + 2.0**-8  # half way between two bfloat16 numbers, of which 1 is the even one


def published(plan, state: ServerState) -> ServerState:
    """What a successor makes of the blobs in the two streams."""
    model = messages.encode_model(RUN, state.model, plan.broadcast).joined()
    wide = messages.encode_state(RUN, state.wide(plan)).joined()
    return ServerState.restored(
        plan,
        messages.decode_model(model, max_bytes=10_000),
        messages.decode_model(wide, max_bytes=10_000, kind="state"),
    )


def folded(state: ServerState, *deltas, weight=1.0) -> ServerState:
    for values in deltas:
        state.fold(Contribution({"w": array(*values)}, weight))
    return state


def test_momentum_gathers_the_updates_of_a_version_and_moves_the_model_once():
    # m = 0.5 (2, -4) + 0.25 (8, 16) = (3, 2), model (4, 3); then m = 0.5 (3, 2) + 0.5 (4, 4) = (3.5, 3), model (7.5, 6)
    state = ServerState.of(MOMENTUM, START)
    state.fold(Contribution({"w": array(2, -4)}, 0.5))
    state.fold(Contribution({"w": array(8, 16)}, 0.25))
    assert state.model["w"].tolist() == [1.0, 1.0]
    state.finish_version()
    assert (state.momentum["w"].tolist(), state.model["w"].tolist()) == ([3.0, 2.0], [4.0, 3.0])
    state.fold(Contribution({"w": array(4, 4)}, 0.5))
    state.finish_version()
    assert (state.momentum["w"].tolist(), state.model["w"].tolist()) == ([3.5, 3.0], [7.5, 6.0])


def test_a_version_of_nothing_moves_nothing():
    state = folded(ServerState.of(MOMENTUM, START), (2, 2))
    state.finish_version()
    state.finish_version()
    assert (state.momentum["w"].tolist(), state.model["w"].tolist()) == ([2.0, 2.0], [3.0, 3.0])


def test_without_momentum_the_model_takes_each_update_at_once():
    state = folded(ServerState.of(PLAIN, START), (2, -4), weight=0.5)
    assert state.model["w"].tolist() == [2.0, -1.0]
    state.finish_version()
    assert (state.momentum, state.model["w"].tolist()) == ({}, [2.0, -1.0])


@pytest.mark.parametrize("plan", [PLAIN, MOMENTUM])
def test_updates_are_added_one_by_one_in_the_order_given(plan):
    # 2^24 + 1 is no float32: 1 is lost twice where it comes after, and counts where 1 + 1 stands before
    large_first = folded(ServerState.of(plan, {"w": array(0)}), (2.0**24,), (1,), (1,))
    large_last = folded(ServerState.of(plan, {"w": array(0)}), (1,), (1,), (2.0**24,))
    for state in (large_first, large_last):
        state.finish_version()
    assert (large_first.model["w"].tolist(), large_last.model["w"].tolist()) == ([16777216.0], [16777218.0])


@pytest.mark.parametrize(
    ("plan", "names"),
    [
        (PLAIN, set()),
        (MOMENTUM, {"momentum/b", "momentum/w"}),
        (ROUNDED, {"model/b", "model/w"}),
        (BOTH, {"model/b", "model/w", "momentum/b", "momentum/w"}),
    ],
    ids=["plain", "momentum", "bfloat16", "both"],
)
def test_the_state_holds_what_the_broadcast_does_not_tell(plan, names):
    assert set(ServerState.of(plan, {"w": array(1), "b": array(2)}).wide(plan)) == names


@pytest.mark.parametrize("plan", [PLAIN, MOMENTUM, ROUNDED, BOTH], ids=["plain", "momentum", "bfloat16", "both"])
def test_a_successor_goes_on_from_the_published_blobs_with_the_same_bits(plan):
    generator = np.random.default_rng(11)
    first = ServerState.of(plan, {"w": array(0.3, -0.7, 1e-3)})
    folded(first, *generator.normal(size=(5, 3)), weight=0.3)
    first.finish_version()
    second = published(plan, first)
    for state in (first, second):
        folded(state, (0.1, 1e-7, -0.3), (1 / 3, 5, 7), weight=0.7)
        state.finish_version()
    assert {name: each.tobytes() for name, each in first.everything().items()} == {
        name: each.tobytes() for name, each in second.everything().items()
    }


def test_a_rounded_broadcast_does_not_round_the_aggregators_own_model():
    state = published(ROUNDED, ServerState.of(PLAIN, {"w": array(BETWEEN)}))
    assert state.model["w"].tolist() == [BETWEEN]
    told = messages.decode_model(messages.encode_model(RUN, state.model, "bfloat16").joined(), max_bytes=1000)
    assert told["w"].tolist() == [1.0]


@pytest.mark.parametrize("plan", [MOMENTUM, BOTH], ids=["momentum", "both"])
def test_version_0_has_no_state_and_its_momentum_is_nought(plan):
    state = ServerState.restored(plan, START, {})
    assert (state.model["w"].tolist(), state.momentum["w"].tolist()) == ([1.0, 1.0], [0.0, 0.0])


@pytest.mark.parametrize(
    ("plan", "wide", "reason"),
    [
        (MOMENTUM, {"momentum/w": array(1)}, r"'w' has shape \(1,\)"),
        (MOMENTUM, {"momentum/x": array(1, 1)}, "'w' is missing"),
        (BOTH, {"model/w": array(1, 1)}, "'w' is missing"),
        (ROUNDED, {"model/w": array(1)}, r"'w' has shape \(1,\)"),
        (ROUNDED, {"model/w": array(1, 1), "model/x": array(1)}, "no array 'x'"),
        (PLAIN, {"momentum/w": array(1, 1)}, "the plan has none"),
    ],
)
def test_a_state_that_does_not_fit_its_broadcast_or_plan_is_refused(plan, wide, reason):
    with pytest.raises(IncompatibleUpdateError, match=reason):
        ServerState.restored(plan, START, wide)


def test_a_state_changes_neither_the_broadcast_nor_the_blob_it_came_from():
    broadcast, wide = {"w": array(1, 1)}, {"momentum/w": array(4, 4)}
    folded(ServerState.restored(MOMENTUM, broadcast, wide), (9, 9)).finish_version()
    folded(ServerState.of(PLAIN, broadcast), (9, 9))
    assert (broadcast["w"].tolist(), wide["momentum/w"].tolist()) == ([1.0, 1.0], [4.0, 4.0])


def test_a_checkpoint_is_taken_over_as_it_is():
    state = folded(ServerState.of(BOTH, START), (2, 2))
    state.finish_version()
    again = ServerState.complete(BOTH, state.everything())
    assert again.model["w"] is state.model["w"]
    assert folded(again, (0, 0)).momentum["w"].tolist() == [1.0, 1.0]
