"""The pure part of a replay: the recorded weights, the server's momentum, and one bit that differs."""

import numpy as np
import pytest

from aggregator_worker.replay import Around, Replay, ReplayMismatchError, weights_by_rule
from aggregator_worker.server_state import ServerState
from shared import messages
from shared.messages import BlobName, Entry, Settlement
from tests.builders import RUN, a_manifest, a_plan, an_update, array, name_of

A, B = name_of("bank-a"), name_of("bank-b")
UNKNOWN = Around()
DELTAS = {(A, 1): array(2, -4), (B, 1): array(8, 16), (A, 2): array(1, 1)}


def settlement(pseudonym=A, sequence=1, weight=0.5, **changes):
    given = {"incarnation": 1, "hash": "", "outcome": "aggregated", "weight": float(weight).hex()}
    return Settlement(**{"institution": pseudonym, "sequence": sequence, **given, **changes})


def load(each):
    return an_update(sequence=each.sequence), {"w": DELTAS[each.institution, each.sequence]}


def a_replay(plan=None, **changes):
    plan = plan or a_plan()
    return Replay(**{"state": ServerState.of(plan, {"w": array(1, 1)}), "plan": plan, "load": load, **changes})


def named(version, *settled, model=(), state=()):
    blob = messages.encode_model(RUN, {"w": array(*model)}) if model else None
    wide = messages.encode_state(RUN, {"momentum/w": array(*state)}) if state else None
    return a_manifest(
        version,
        previous="0" * 64,
        settled=list(settled),
        model=BlobName(hash=blob.hash, size=blob.size) if blob else BlobName(hash="0" * 64, size=1),
        state=BlobName(hash=wide.hash, size=wide.size) if wide else None,
    )


def test_weights_are_the_recorded_ones_in_the_recorded_order():
    # 1 + 0.5 * 2 + 0.25 * 8 = 4, and 1 - 0.5 * 4 + 0.25 * 16 = 3
    replay = a_replay()
    manifest = named(1, settlement(), settlement(B, weight=0.25), settlement(A, 2, outcome="stale"), model=(4, 3))
    assert replay.fold(manifest, UNKNOWN)
    replay.demand_equal(manifest)
    assert (replay.folded, replay.left_out) == (2, 0)


def test_a_manifest_that_only_settles_changes_nothing():
    replay = a_replay()
    assert not replay.fold(named(1, settlement(outcome="stale")), UNKNOWN)
    replay.demand_equal(named(1, model=(1, 1)))


def test_momentum_goes_on_from_version_to_version():
    # beta 0.5: m = 0.5 * (2, -4) = (1, -2), model (2, -1); then m = 0.5 * (1, -2) + 1 * (1, 1) = (1.5, 0), model (3.5, -1)
    replay = a_replay(a_plan({"server_momentum": 0.5}))
    first = named(1, settlement(), model=(2, -1), state=(1, -2))
    second = named(2, settlement(A, 2, weight=1.0), model=(3.5, -1), state=(1.5, 0))
    for manifest in (first, second):
        replay.fold(manifest, UNKNOWN)
        replay.demand_equal(manifest)


def test_without_an_institution_its_weight_is_nought_and_momentum_still_moves():
    # bank-b alone: m = 0.25 * (8, 16) = (2, 4), model (3, 5); then m = (1, 2) with nothing added, model (4, 7)
    replay = a_replay(a_plan({"server_momentum": 0.5}), without=A)
    for manifest in (named(1, settlement(), settlement(B, weight=0.25)), named(2, settlement(A, 2))):
        replay.fold(manifest, UNKNOWN)
    assert list(replay.state.model["w"]) == [4, 7]
    assert (replay.folded, replay.left_out) == (1, 2)


@pytest.mark.parametrize("wrong", ["model", "state"])
def test_another_bit_in_the_model_or_the_state_is_named(wrong):
    replay = a_replay(a_plan({"server_momentum": 0.5}))
    right = {"model": (2, -1), "state": (1, -2)}
    manifest = named(1, settlement(), **{**right, wrong: (float(np.nextafter(np.float32(2), np.float32(3))), -1)})
    replay.fold(manifest, UNKNOWN)
    with pytest.raises(ReplayMismatchError, match=f"the {wrong} of version 1 is not the same"):
        replay.demand_equal(manifest)


def test_one_bit_of_a_weight_or_of_a_delta_makes_the_replay_red():
    manifest = named(1, settlement(), model=(2, -1))
    heavier = settlement(weight=float(np.nextafter(np.float32(0.5), np.float32(1))))
    off_weight = a_replay()
    off_weight.fold(manifest.model_copy(update={"settled": [heavier]}), UNKNOWN)
    off_delta = a_replay(load=lambda each: (an_update(), {"w": (array(2, -4).view(np.uint32) ^ 1).view(np.float32)}))
    off_delta.fold(manifest, UNKNOWN)
    for replay in (off_weight, off_delta):
        with pytest.raises(ReplayMismatchError):
            replay.demand_equal(manifest)


def test_a_scale_makes_an_update_shorter():
    # 1 + 0.5 * 0.25 * 2 = 1.25, and 1 - 0.5 * 0.25 * 4 = 0.5
    replay = a_replay()
    replay.fold(named(1, settlement(scale=(0.25).hex())), UNKNOWN)
    assert list(replay.state.model["w"]) == [1.25, 0.5]


EQUAL = a_plan({"rule": "fedasync", "server_learning_rate": 0.5})
TABLE = {A: Entry(incarnation=1, num_examples=100), B: Entry(incarnation=1, num_examples=300)}


def test_the_rule_is_checked_apart_from_the_bits():
    # three versions late: 0.5 / sqrt(1 + 3) = 0.25; nothing is known of an update without the table around it
    late, around = settlement(staleness=3, weight=0.25), Around({}, TABLE, TABLE)
    assert weights_by_rule(EQUAL, EQUAL.hash, [late], around) == [0.25]
    assert weights_by_rule(EQUAL, EQUAL.hash, [late], Around({}, None, TABLE)) == []
    replay = a_replay(EQUAL)
    replay.fold(named(1, late), around)
    assert replay.off_rule == 0
    replay.fold(named(2, settlement(staleness=3, weight=0.26)), around)
    assert replay.off_rule == 1


def test_credit_is_checked_on_the_clock_that_the_manifest_before_left():
    # 1.5 cycles on the clock and one tick of 1/2 more: 2 cycles since its last arrival, of which 100 of 400 examples earn 1/4
    scalars = {"clock_cycles": (1.5).hex(), "clock_credit": (1.5 / 400).hex()}
    plan = a_plan({"rule": "credit", "server_learning_rate": 1.0})
    assert weights_by_rule(plan, plan.hash, [settlement()], Around(scalars, TABLE, TABLE)) == [0.5]
    more = {**TABLE, B: TABLE[B].model_copy(update={"num_examples": 700})}
    # 100 of 400 for 1.5 cycles, then 100 of 800 for half a one: 0.375 + 0.0625
    assert weights_by_rule(plan, plan.hash, [settlement()], Around(scalars, TABLE, more)) == [0.4375]
