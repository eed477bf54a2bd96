import math

import numpy as np
import pytest

from aggregator_worker.admission import Admission, Number
from aggregator_worker.aggregation import fold_in_place
from aggregator_worker.federation import Federation
from aggregator_worker.operations import apply
from shared.lineage import takes_part
from shared.messages import Counters, Entry, PrivacyStatement
from shared.parameters import copy
from shared.plan import Ending, PrivacyPlan
from tests.builders import (
    a_federation,
    a_hello,
    a_plan,
    a_standing,
    a_statement,
    an_operation,
    an_update,
    array,
    commit,
    name_of,
)

A, B, C = name_of("bank-a"), name_of("bank-b"), name_of("bank-c")
TABLE = {
    "bank-a": Entry(incarnation=1, num_examples=100),
    "bank-b": Entry(incarnation=1, num_examples=300),
    "bank-c": Entry(incarnation=1, num_examples=600),
}
EXAMPLES = {"bank-a": 100, "bank-b": 300, "bank-c": 600}
PLAN, DP = "d" * 64, PrivacyPlan()
EXACTLY_THREE = a_plan({"buffer_size": 3, "exact_buffer": True})


def settle(federation: Federation, institution: str, *values: float, sequence=1, admission=None, **changes):
    update = an_update(institution, sequence, base=federation.head, **{"num_examples": EXAMPLES[institution], **changes})
    return federation.settle(
        name_of(institution),
        update,
        f"{sequence:x}" * 64,
        admission=admission or Admission("aggregated"),
        delta={"w": array(*values)},
    )


def test_a_fresh_update_from_each_adds_up_to_federated_averaging():
    federation = a_federation({"w": array(1, -2)}, EXACTLY_THREE, TABLE)
    settle(federation, "bank-a", 0.5, 1.0)
    settle(federation, "bank-b", -0.2, 0.4)
    assert not federation.buffer_full
    settle(federation, "bank-c", 1.5, -1.0)
    assert federation.buffer_full
    # 1 + 0.1 x 0.5 - 0.3 x 0.2 + 0.6 x 1.5 and -2 + 0.1 x 1 + 0.3 x 0.4 - 0.6 x 1
    np.testing.assert_allclose(federation.state.model["w"], [1.89, -2.38], rtol=0, atol=3e-7)


def test_one_institution_alone_leaves_its_own_model():
    alone = a_plan({"rule": "credit", "server_learning_rate": 1.0})
    federation = a_federation({"w": array(0.1, 0.7)}, alone, {"bank-a": Entry(incarnation=1)})
    trained = array(-3.25, 0.5)
    settle(federation, "bank-a", *(trained - federation.state.model["w"]))
    assert federation.state.model["w"].tolist() == trained.tolist()


def test_a_number_of_examples_larger_than_before_gives_no_weight_above_one():
    federation = a_federation({"w": array(0, 0)}, table=TABLE)
    settlement = settle(federation, "bank-a", 1, 1, num_examples=10**18)
    assert float.fromhex(settlement.weight) <= 1.0


def test_a_settlement_records_weight_base_and_staleness():
    federation = a_federation({"w": array(0, 0)}, table=TABLE)
    settlement = settle(federation, "bank-a", 1, 1, admission=Admission("aggregated", "", 3))
    assert settlement.weight == "0x1.99999a0000000p-5"  # 0.1 x (1 + 3)^-0.5 = 0.05 in float32
    assert (settlement.institution, settlement.staleness, settlement.base_version) == (A, 3, 0)
    assert settlement.base_hash == federation.head.manifest.model.hash


@pytest.mark.parametrize("outcome", ["stale", "rejected", "over_budget"])
def test_what_is_not_aggregated_is_settled_without_weight_and_leaves_the_model(outcome):
    federation = a_federation({"w": array(1, 2)}, table=TABLE)
    settlement = settle(federation, "bank-b", 5, 5, admission=Admission(outcome, "why"))
    assert (settlement.outcome, settlement.reason, settlement.weight) == (outcome, "why", "0x0.0p+0")
    assert federation.state.model["w"].tolist() == [1.0, 2.0]
    entry = federation.table[B]
    assert (entry.watermark, entry.last_hash) == (1, "1" * 64)
    assert entry.counters == Counters(**{outcome: 1})
    assert commit(federation).manifest.version == 0


def test_a_settled_update_moves_the_watermark_and_is_counted():
    federation = a_federation({"w": array(0, 0)}, table=TABLE)
    settle(federation, "bank-b", 1, 1)
    settle(federation, "bank-b", 1, 1, sequence=2)
    entry = federation.table[B]
    assert (entry.watermark, entry.last_hash, entry.counters.aggregated) == (2, "2" * 64, 2)
    assert float.fromhex(entry.total_weight) == pytest.approx(0.6, abs=1e-6)
    assert federation.table[A] == TABLE["bank-a"]


def test_epsilon_in_the_table_never_goes_down():
    federation = a_federation({"w": array(0, 0)}, table=TABLE)
    for sequence, spent in enumerate((1.5, 0.5, None), start=1):
        statement = PrivacyStatement(mechanism="none", epsilon_spent=spent, target_delta=1e-5)
        settle(federation, "bank-a", 0, 0, sequence=sequence, privacy=statement)
        assert federation.table[A].epsilon_spent == 1.5
    assert federation.table[A].target_delta == 1e-5


def test_a_lost_number_moves_the_watermark_without_a_hash():
    federation = a_federation({"w": array(0, 0)}, table=TABLE)
    settlement = federation.settle_unread(C, Number(1, 1), outcome="lost", reason="never came")
    assert (settlement.outcome, settlement.hash, settlement.weight) == ("lost", "", "0x0.0p+0")
    entry = federation.table[C]
    assert (entry.watermark, entry.last_hash, entry.counters.lost, entry.num_examples) == (1, "", 1, 600)


def test_a_number_that_cannot_be_read_moves_the_watermark_under_the_hash_it_came_with():
    federation = a_federation({"w": array(1, 2)}, table=TABLE)
    federation.settle_unread(C, Number(1, 1), outcome="rejected", reason="no msgpack", content="e" * 64)
    entry = federation.table[C]
    assert (entry.watermark, entry.last_hash, entry.counters.rejected, entry.num_examples) == (1, "e" * 64, 1, 600)
    manifest = commit(federation).manifest
    assert (manifest.version, [(each.outcome, each.hash) for each in manifest.settled]) == (0, [("rejected", "e" * 64)])


@pytest.mark.parametrize("old", [1, 2, 3])
def test_an_old_number_that_is_settled_once_more_leaves_watermark_and_last_hash(old):
    federation = a_federation({"w": array(0, 0)}, table=TABLE)
    for sequence in (1, 2, 3):
        federation.settle_unread(A, Number(1, sequence), outcome="lost", reason="", content=f"{sequence:x}" * 64)
    settle(federation, "bank-a", 10, 20, sequence=old)
    entry = federation.table[A]
    assert (entry.watermark, entry.last_hash) == (3, "3" * 64)
    assert (entry.counters.aggregated, entry.counters.lost) == (1, 3)
    assert federation.state.model["w"].tolist() == pytest.approx([1.0, 2.0])


def test_momentum_moves_the_model_when_the_version_is_finished_and_only_then():
    # bank-b holds 300 of 1000: 0.3 x 10 = 3, and half of it once more in the next version
    federation = a_federation({"w": array(0)}, a_plan({"server_momentum": 0.5}), TABLE)
    settle(federation, "bank-b", 10)
    assert federation.state.model["w"].tolist() == [0.0]
    commit(federation)
    assert federation.state.model["w"].tolist() == pytest.approx([3.0])
    federation.greet(A, a_hello())
    commit(federation)
    assert federation.state.model["w"].tolist() == pytest.approx([3.0])
    settle(federation, "bank-b", 0, sequence=2)
    commit(federation)
    assert federation.state.model["w"].tolist() == pytest.approx([4.5])


def test_a_duplicate_changes_nothing_but_its_counter():
    federation = a_federation({"w": array(4, 5)}, table=TABLE)
    federation.count_duplicate(A)
    assert federation.table[A] == TABLE["bank-a"].model_copy(update={"counters": Counters(duplicate=1)})
    assert federation.state.model["w"].tolist() == [4.0, 5.0]


def test_a_hello_is_answered_with_its_number():
    federation = a_federation({"w": array(0, 0)}, table=TABLE)
    settle(federation, "bank-a", 1, 1)
    federation.greet(A, a_hello(nonce="77" * 8, num_examples=450))
    entry = federation.table[A]
    assert (entry.nonce, entry.num_examples, entry.watermark, entry.incarnation) == ("77" * 8, 450, 1, 1)


def test_a_removed_institution_has_no_entry():
    federation = a_federation({"w": array(0, 0)}, table=TABLE | {"bank-b": Entry(incarnation=1, removed=True)})
    assert federation.entry(B) is None
    assert federation.entry("0" * 16) is None
    assert federation.entry(A) == TABLE["bank-a"]


def test_a_manifest_settles_everything_pending_in_the_order_folded():
    federation = a_federation({"w": array(0, 0)}, table=TABLE)
    commit(federation)
    settle(federation, "bank-c", 1, 1)
    settle(federation, "bank-a", 1, 1, admission=Admission("stale", "x"))
    settle(federation, "bank-c", 1, 1, sequence=2)
    before = federation.head
    manifest = commit(federation).manifest
    assert [(each.institution, each.sequence) for each in manifest.settled] == [(C, 1), (A, 1), (C, 2)]
    assert (manifest.version, manifest.previous) == (1, before.hash)
    assert set(manifest.table) == {A, C}
    assert federation.empty


def test_a_manifest_without_a_fold_keeps_version_and_model():
    federation = a_federation({"w": array(0, 0)}, table=TABLE)
    before = federation.head.manifest
    federation.greet(A, a_hello())
    manifest = commit(federation).manifest
    assert (manifest.version, manifest.model) == (before.version, before.model)


def test_the_table_and_the_plan_are_written_whole_every_sixteenth_time():
    federation = a_federation({"w": array(0, 0)}, table=TABLE)
    whole = []
    for number in range(34):
        federation.count_duplicate(A)
        manifest = commit(federation).manifest
        assert (manifest.plan is not None) == manifest.whole
        assert set(manifest.table) == ({A, B, C} if manifest.whole else {A})
        whole += [number] if manifest.whole else []
    assert whole == [0, 16, 32]


def test_replaying_the_settlements_gives_the_same_bits():
    federation = a_federation({"w": array(0.3, -0.7, 1e-3)}, table=TABLE)
    replayed = copy(federation.state.model)
    generator = np.random.default_rng(7)
    deltas, settled = {}, []
    for number in range(40):
        institution = list(TABLE)[generator.integers(3)]
        sequence = federation.table[name_of(institution)].watermark + 1
        deltas[name_of(institution), sequence] = values = generator.normal(size=3).astype(np.float32)
        settle(
            federation, institution, *values, sequence=sequence, admission=Admission("aggregated", "", int(generator.integers(9)))
        )
        if number % 3 == 0:
            settled += commit(federation).manifest.settled
    settled += commit(federation).manifest.settled
    for each in settled:
        fold_in_place(replayed, {"w": deltas[each.institution, each.sequence]}, float.fromhex(each.weight))
    assert len(settled) == 40
    assert replayed["w"].tobytes() == federation.state.model["w"].tobytes()


NEVER = Ending(updates=1000, updates_each=1)


def test_the_manifest_that_settles_the_last_budget_ends_the_run():
    federation = a_federation({"w": array(0, 0)}, a_plan(ending=NEVER), TABLE)
    for name in ("bank-a", "bank-b"):
        assert federation.stand(name_of(name), a_standing(name, plan_hash=federation.head.manifest.plan_hash))
    assert commit(federation).manifest.phase == "running"
    federation.stand(C, a_standing("bank-c", plan_hash=federation.head.manifest.plan_hash, state="plan_refused"))
    assert commit(federation).manifest.phase_reason == "every institution has given its planned updates or refuses the plan"
    assert federation.head.manifest.phase == "finished"


def test_what_an_update_states_of_its_noise_stands_in_the_table():
    federation = a_federation({"w": array(0, 0)}, table=TABLE)
    statement = a_statement(a_plan(privacy=DP), noise_multiplier=1.75)
    settle(federation, "bank-a", 0, 0, privacy=statement)
    entry = federation.table[A]
    assert (entry.mechanism, entry.noise_multiplier, entry.target_delta) == ("dp-sgd", 1.75, 1e-5)


def test_of_a_refused_statement_only_its_epsilon_is_kept():
    federation = a_federation({"w": array(0, 0)}, table=TABLE)
    statement = a_statement(a_plan(privacy=DP), 2.5, target_delta=0.5)
    settle(federation, "bank-a", 0, 0, admission=Admission("rejected", "why"), privacy=statement)
    entry = federation.table[A]
    assert (entry.mechanism, entry.noise_multiplier, entry.target_delta, entry.epsilon_spent) == (None, None, None, 2.5)


@pytest.mark.parametrize("outcome", ["aggregated", "stale", "rejected"])
def test_no_number_that_is_not_finite_comes_into_the_table(outcome):
    federation = a_federation({"w": array(0, 0)}, table=TABLE)
    strange = {"epsilon_spent": math.inf, "noise_multiplier": math.nan, "target_delta": math.inf}
    settle(federation, "bank-a", 0, 0, admission=Admission(outcome), privacy=a_statement(a_plan(), **strange))
    entry = federation.table[A]
    assert (entry.epsilon_spent, entry.noise_multiplier, entry.target_delta) == (None, None, None)


def test_a_reason_that_is_longer_than_a_manifest_takes_is_cut_and_stops_nobody():
    federation = a_federation({"w": array(0, 0)}, table=TABLE)
    settled = settle(federation, "bank-a", 0, 0, admission=Admission("over_budget", "9" * 300))
    assert settled.reason == "9" * 200


def test_an_institution_that_states_more_than_the_budget_has_left_the_plan():
    federation = a_federation({"w": array(0, 0)}, table=TABLE)
    settle(federation, "bank-a", 1, 1, admission=Admission("over_budget", "epsilon 4 is over the plan's 3"))
    entry, plan_hash = federation.table[A], federation.head.manifest.plan_hash
    assert (entry.standing, entry.standing_limit, entry.standing_plan) == ("budget_spent", "epsilon", plan_hash)
    assert not takes_part(entry, plan_hash)


def test_a_refusal_stays_a_refusal_when_a_later_update_is_not_folded():
    federation = a_federation({"w": array(0, 0)}, table=TABLE)
    federation.stand(A, a_standing(plan_hash=federation.head.manifest.plan_hash, state="plan_refused", limit="max_epsilon"))
    settle(federation, "bank-a", 1, 1, admission=Admission("over_budget", "it has refused this plan"))
    assert (federation.table[A].standing, federation.table[A].standing_limit) == ("plan_refused", "max_epsilon")


def test_who_starts_anew_is_asked_again_and_a_spent_budget_stays_spent():
    federation = a_federation({"w": array(0, 0)}, table=TABLE)
    plan_hash = federation.head.manifest.plan_hash
    for name, state in (("bank-a", "plan_refused"), ("bank-b", "budget_spent")):
        federation.greet(name_of(name), a_hello(name))
        federation.stand(name_of(name), a_standing(name, plan_hash=plan_hash, state=state))
        federation.greet(name_of(name), a_hello(name))
        assert not takes_part(federation.table[name_of(name)], plan_hash), "the same start again"
        federation.greet(name_of(name), a_hello(name, nonce="77" * 8))
    assert takes_part(federation.table[A], plan_hash)
    assert not takes_part(federation.table[B], plan_hash)


def test_what_an_institution_said_of_the_plan_outlives_its_incarnation():
    federation = a_federation({"w": array(0, 0)}, table=TABLE)
    plan_hash = federation.head.manifest.plan_hash
    federation.stand(A, a_standing(plan_hash=plan_hash))
    apply(federation, an_operation("admit", institution="bank-a", incarnation=2), name_of)
    assert federation.table[A].incarnation == 2
    assert not takes_part(federation.table[A], plan_hash)


def test_the_manifest_that_reaches_the_end_says_so():
    federation = a_federation({"w": array(0, 0)}, a_plan(ending=Ending(updates=2)), TABLE)
    settle(federation, "bank-a", 1, 1)
    assert commit(federation).manifest.phase == "running"
    settle(federation, "bank-a", 1, 1, sequence=2)
    manifest = commit(federation).manifest
    assert (manifest.phase, manifest.phase_reason) == ("finished", "2 updates are aggregated")
    federation.greet(A, a_hello())
    assert commit(federation).manifest.phase == "finished"
