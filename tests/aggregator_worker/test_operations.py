import pytest

from aggregator_worker import operations
from shared.messages import Counters, Entry
from tests.builders import a_federation, a_plan, an_operation, array, commit, name_of, small_limits

MODEL = {"w": array(0, 0)}


def applied(federation, kind, number=1, **arguments):
    outcome = operations.apply(federation, an_operation(kind, number, **arguments), name_of)
    assert outcome is not None
    return outcome.applied, outcome.reason


def test_pause_and_resume_set_the_phase_of_the_next_manifest():
    federation = a_federation(MODEL)
    assert applied(federation, "pause") == (True, "")
    manifest = commit(federation).manifest
    assert (manifest.phase, manifest.phase_reason) == ("paused", "paused by the operator")
    assert [(each.operation_id, each.applied) for each in manifest.operations] == [(f"{1:032x}", True)]
    applied(federation, "resume", 2)
    assert commit(federation).manifest.phase == "running"


def test_a_stopped_run_stays_finished():
    federation = a_federation(MODEL)
    applied(federation, "stop")
    commit(federation)
    assert applied(federation, "resume", 2) == (False, "the run is finished")
    assert commit(federation).manifest.phase == "finished"


def test_an_order_that_comes_twice_before_its_commit_has_one_effect():
    federation = a_federation(MODEL)
    applied(federation, "pause")
    assert operations.apply(federation, an_operation("pause"), name_of) is None
    assert len(federation.pending.operations) == 1


def test_an_order_that_comes_again_after_its_commit_has_no_effect():
    federation = a_federation(MODEL)
    applied(federation, "pause")
    commit(federation)
    applied(federation, "resume", 2)
    commit(federation)
    assert operations.apply(federation, an_operation("pause"), name_of) is None
    assert federation.empty


def test_orders_stay_known_through_whole_manifests():
    federation = a_federation(MODEL)
    applied(federation, "pause")
    for _ in range(20):
        commit(federation)
        federation.count_duplicate(name_of("bank-a"))
    assert operations.apply(federation, an_operation("pause"), name_of) is None


def test_a_newcomer_is_in_the_table_of_the_next_manifest():
    federation = a_federation(MODEL)
    assert applied(federation, "admit", institution="bank-d", incarnation=3) == (True, "")
    assert commit(federation).manifest.table[name_of("bank-d")] == Entry(incarnation=3)


def test_an_institution_that_comes_back_needs_a_higher_incarnation_and_keeps_its_history():
    former = Entry(incarnation=2, watermark=9, last_hash="9" * 64, epsilon_spent=1.5, removed=True, active=False)
    former = former.model_copy(update={"counters": Counters(aggregated=9), "nonce": "f" * 16})
    federation = a_federation(MODEL, table={"bank-a": former})
    assert applied(federation, "admit", 1, institution="bank-a", incarnation=2)[0] is False
    assert applied(federation, "admit", 2, institution="bank-a", incarnation=3)[0] is True
    entry = federation.table[name_of("bank-a")]
    assert (entry.incarnation, entry.watermark, entry.last_hash, entry.active, entry.removed) == (3, 0, "", True, False)
    assert entry.nonce == ""
    assert (entry.epsilon_spent, entry.counters.aggregated) == (1.5, 9)


def test_no_more_institutions_are_admitted_than_the_plan_allows():
    federation = a_federation(MODEL, a_plan(limits=small_limits(institutions=3)))
    assert applied(federation, "admit", institution="bank-d") == (False, "the plan allows 3 institutions")


def test_a_table_rule_admits_no_more_institutions_than_a_state_blob_has_room_for():
    # 600 tensors: 4095 hold six models, three of which are the model and two moments
    many = {f"w{number}": array(0) for number in range(600)}
    table = a_plan({"rule": "latest-update"})
    done, why = applied(a_federation(many, table), "admit", institution="bank-d")
    assert (done, why) == (False, "3 rows of 600 tensors are all that a state can hold under this rule")
    assert applied(a_federation(many), "admit", institution="bank-d")[0] is True


@pytest.mark.parametrize(
    "arguments", [{}, {"institution": 5}, {"institution": "a/b"}, {"institution": ""}, {"institution": "x" * 65}]
)
def test_an_order_without_a_possible_institution_is_refused(arguments):
    federation = a_federation(MODEL)
    assert applied(federation, "admit", **arguments)[0] is False
    assert federation.weighing.changes == {}


@pytest.mark.parametrize("incarnation", [0, -1, "2", 1.5, True, None])
def test_an_impossible_incarnation_is_refused(incarnation):
    assert applied(a_federation(MODEL), "admit", institution="bank-d", incarnation=incarnation)[0] is False


def test_a_removed_institution_leaves_a_tombstone_with_its_watermark():
    federation = a_federation(MODEL, table={"bank-a": Entry(incarnation=1, watermark=4), "bank-b": Entry(incarnation=1)})
    assert applied(federation, "remove", institution="bank-a") == (True, "")
    entry = commit(federation).manifest.table[name_of("bank-a")]
    assert (entry.removed, entry.active, entry.watermark) == (True, False, 4)
    assert applied(federation, "remove", 2, institution="bank-a") == (False, "it is not a member")


@pytest.mark.parametrize("kind", ["roll-back", "requeue", "change-plan"])
def test_what_this_aggregator_cannot_do_is_refused_by_name(kind):
    assert applied(a_federation(MODEL), kind) == (False, f"this aggregator cannot {kind} yet")
