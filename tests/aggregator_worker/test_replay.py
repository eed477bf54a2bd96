"""The pure part of a replay: the recorded weights, the server's momentum, and one bit that differs."""

import numpy as np
import pytest

from aggregator_worker.replay import Replay, ReplayMismatchError, factor, follows_rule
from aggregator_worker.server_state import ServerState
from shared import messages
from shared.messages import BlobName, Entry, Settlement
from tests.builders import RUN, a_manifest, a_plan, an_update, array, name_of

A, B = name_of("bank-a"), name_of("bank-b")
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
    assert replay.fold(manifest, None, None)
    replay.demand_equal(manifest)
    assert (replay.folded, replay.left_out) == (2, 0)


def test_a_manifest_that_only_settles_changes_nothing():
    replay = a_replay()
    assert not replay.fold(named(1, settlement(outcome="stale")), None, None)
    replay.demand_equal(named(1, model=(1, 1)))


def test_momentum_goes_on_from_version_to_version():
    # beta 0.5: m = 0.5 * (2, -4) = (1, -2), model (2, -1); then m = 0.5 * (1, -2) + 1 * (1, 1) = (1.5, 0), model (3.5, -1)
    replay = a_replay(a_plan({"server_momentum": 0.5}))
    first = named(1, settlement(), model=(2, -1), state=(1, -2))
    second = named(2, settlement(A, 2, weight=1.0), model=(3.5, -1), state=(1.5, 0))
    for manifest in (first, second):
        replay.fold(manifest, None, None)
        replay.demand_equal(manifest)


def test_without_an_institution_its_weight_is_nought_and_momentum_still_moves():
    # bank-b alone: m = 0.25 * (8, 16) = (2, 4), model (3, 5); then m = (1, 2) with nothing added, model (4, 7)
    replay = a_replay(a_plan({"server_momentum": 0.5}), without=A)
    for manifest in (named(1, settlement(), settlement(B, weight=0.25)), named(2, settlement(A, 2))):
        replay.fold(manifest, None, None)
    assert list(replay.state.model["w"]) == [4, 7]
    assert (replay.folded, replay.left_out) == (1, 2)


@pytest.mark.parametrize("wrong", ["model", "state"])
def test_another_bit_in_the_model_or_the_state_is_named(wrong):
    replay = a_replay(a_plan({"server_momentum": 0.5}))
    right = {"model": (2, -1), "state": (1, -2)}
    manifest = named(1, settlement(), **{**right, wrong: (float(np.nextafter(np.float32(2), np.float32(3))), -1)})
    replay.fold(manifest, None, None)
    with pytest.raises(ReplayMismatchError, match=f"the {wrong} of version 1 is not the same"):
        replay.demand_equal(manifest)


def test_one_bit_of_a_weight_or_of_a_delta_makes_the_replay_red():
    manifest = named(1, settlement(), model=(2, -1))
    heavier = settlement(weight=float(np.nextafter(np.float32(0.5), np.float32(1))))
    off_weight = a_replay()
    off_weight.fold(manifest.model_copy(update={"settled": [heavier]}), None, None)
    off_delta = a_replay(load=lambda each: (an_update(), {"w": (array(2, -4).view(np.uint32) ^ 1).view(np.float32)}))
    off_delta.fold(manifest, None, None)
    for replay in (off_weight, off_delta):
        with pytest.raises(ReplayMismatchError):
            replay.demand_equal(manifest)


def test_the_factor_is_weight_times_scale_as_a_float32():
    assert factor(settlement(weight=0.5)) == 0.5
    assert factor(settlement(weight=0.5, scale=(0.25).hex())) == 0.125
    # a third is not a float32: the nearest one is 11184811 / 2**25
    assert factor(settlement(weight=1.0, scale=(1 / 3).hex())) == 11184811 / 2**25


def test_the_rule_is_checked_apart_from_the_bits():
    # 100 of 400 examples, one version late: 0.25 / sqrt(2) = 0.17677669 as a float32
    table = {A: Entry(incarnation=1, num_examples=100), B: Entry(incarnation=1, num_examples=300)}
    late = settlement(weight=float(np.float32(0.17677669529)), staleness=1)
    assert follows_rule(a_plan(), late, an_update(num_examples=100), table)
    assert not follows_rule(a_plan(), late, an_update(num_examples=200), table)
    assert not follows_rule(a_plan(), settlement(weight=0.25, staleness=1), an_update(num_examples=100), table)
    assert not follows_rule(a_plan(), late, an_update(), {})
    changed = {**table, B: replace_examples(table[B], 900)}
    replay = a_replay()
    replay.fold(named(1, late), changed, table)
    replay.fold(named(2, late), changed, changed)
    assert replay.off_rule == 1


def replace_examples(entry, number):
    return entry.model_copy(update={"num_examples": number})
