import math

import numpy as np
import pytest

from aggregator_worker.admission import Admission, ReusedIdError, admit, check_author, number_in, order
from shared.errors import IncompatibleUpdateError, UnknownInstitutionError
from shared.messages import Entry, PrivacyStatement
from shared.plan import PrivacyPlan
from tests.builders import RUN, a_claim, a_plan, a_record, a_statement, an_update, array, folded

ENTRY = Entry(incarnation=2, watermark=5, last_hash="5" * 64)
SHAPES = {"w": (2,)}
DELTA = {"w": array(1, -1)}
MEMBER = Entry(incarnation=1)
DP = a_plan(privacy=PrivacyPlan(mechanism="dp-sgd", epsilon=3.0, target_delta=1e-5))
ON_UPDATE = a_plan(privacy=PrivacyPlan(mechanism="update-gaussian", epsilon=3.0, target_delta=1e-5))


def lineage_with(plan=None, versions=5, **changes):
    plan = plan or a_plan()
    records = [a_record(0, plan=plan, plan_hash=plan.hash)]
    for version in range(1, versions + 1):
        last = changes if version == versions else {}
        records.append(a_record(version, after=records[-1], plan=plan, plan_hash=plan.hash, **last))
    return folded(a_claim(1), *records), records


@pytest.mark.parametrize(
    ("incarnation", "sequence", "place"),
    [
        (2, 6, "next"),
        (2, 7, "ahead"),
        (2, 5, "duplicate"),
        (2, 4, "duplicate"),
        (2, 1, "duplicate"),
        (1, 6, "outdated"),
        (1, 5, "outdated"),
    ],
)
def test_an_id_has_its_place_against_what_was_settled(incarnation, sequence, place):
    assert order(incarnation, sequence, "5" * 64, ENTRY) == place


@pytest.mark.parametrize(
    ("identity", "number"),
    [
        ("bank-a/1/1", (1, 1)),
        ("bank-a/2/17", (2, 17)),
        ("bank-a/999999999/999999999999999999", (999999999, 999999999999999999)),
        ("bank-b/1/1", None),
        ("bank-a/1/0", None),
        ("bank-a/0/1", None),
        ("bank-a/1/01", None),
        ("bank-a/1/-1", None),
        ("bank-a/1/1\n", None),
        ("bank-a/1/\u0661", None),
        ("bank-a/1", None),
        ("bank-a/1/1/1", None),
        ("bank-a/1/1000000000000000000", None),
        ("hello-12", None),
        ("", None),
    ],
)
def test_a_number_stands_in_the_id_of_its_senders_upload_and_nowhere_else(identity, number):
    assert number_in(identity, institution="bank-a") == number


def test_an_incarnation_that_nobody_issued_is_refused():
    with pytest.raises(UnknownInstitutionError, match="incarnation 3 was never issued, 2 is the newest"):
        order(3, 1, "5" * 64, ENTRY)


def test_a_settled_id_with_another_content_is_an_alarm():
    with pytest.raises(ReusedIdError, match="update 2/5 came again with another content"):
        order(2, 5, "6" * 64, ENTRY)


def test_a_lost_number_that_comes_after_all_is_a_duplicate():
    assert order(2, 5, "6" * 64, ENTRY.model_copy(update={"last_hash": ""})) == "duplicate"


@pytest.mark.parametrize(
    ("run", "institution", "user_id", "error"),
    [
        (RUN, "bank-a", "bank-b", UnknownInstitutionError),
        (RUN, "bank-a", None, UnknownInstitutionError),
        (RUN, "bank-b", "bank-a", UnknownInstitutionError),
        ("cd" * 8, "bank-a", "bank-a", IncompatibleUpdateError),
    ],
)
def test_the_message_must_agree_with_the_user_that_the_broker_validated(run, institution, user_id, error):
    with pytest.raises(error):
        check_author(run, institution, user_id=user_id, queue_owner="bank-a", run_id=RUN)


def test_an_author_who_is_who_the_message_says_may_speak():
    check_author(RUN, "bank-a", user_id="bank-a", queue_owner="bank-a", run_id=RUN)


def test_an_update_on_the_head_is_aggregated_without_staleness():
    lineage, records = lineage_with()
    admission = admitted(an_update(base=records[5]), lineage=lineage)
    assert (admission.outcome, admission.reason, admission.staleness) == ("aggregated", "", 0)


def test_an_update_on_an_older_version_has_its_staleness():
    lineage, records = lineage_with()
    admission = admitted(an_update(base=records[2]), lineage=lineage)
    assert (admission.outcome, admission.staleness) == ("aggregated", 3)


def admitted(update, delta=DELTA, *, lineage, entry=MEMBER):
    return admit(update, delta, entry=entry, lineage=lineage, shapes=SHAPES)


def outcome(update, delta=DELTA, *, lineage):
    admission = admitted(update, delta, lineage=lineage)
    return admission.outcome, admission.reason


def test_an_update_beyond_the_maximum_staleness_is_stale():
    plan = a_plan({"staleness": {"max_staleness": 2}})
    lineage, records = lineage_with(plan)
    assert outcome(an_update(base=records[3]), lineage=lineage)[0] == "aggregated"
    assert outcome(an_update(base=records[2]), lineage=lineage) == ("stale", "staleness 3 is not between 0 and the maximum")


def test_an_update_on_a_version_that_does_not_exist_yet_is_stale():
    lineage, records = lineage_with()
    assert outcome(an_update(base=records[5], base_version=6), lineage=lineage)[0] == "stale"


def test_an_update_on_a_base_that_is_not_in_the_lineage_is_stale():
    lineage, records = lineage_with()
    assert outcome(an_update(base=records[3], base_hash="e" * 64), lineage=lineage) == ("stale", "its base is not in the lineage")
    assert outcome(an_update(base=records[5], base_hash="e" * 64), lineage=lineage)[0] == "stale"


def test_a_base_that_the_lineage_does_not_tell_is_stale():
    _, records = lineage_with()
    late = folded(*records[3:])
    assert outcome(an_update(base=records[1]), lineage=late) == ("stale", "its base is not in the lineage")


def test_an_update_made_under_another_plan_is_stale():
    lineage, records = lineage_with()
    assert outcome(an_update(base=records[5], plan_hash="e" * 64), lineage=lineage) == ("stale", "made under another plan")


def test_an_update_after_the_end_is_stale():
    lineage, records = lineage_with(phase="finished")
    assert outcome(an_update(base=records[5]), lineage=lineage) == ("stale", "the run is finished")


@pytest.mark.parametrize(
    ("delta", "reason"),
    [
        ({"w": array(1, 2, 3)}, "shape (3,)"),
        ({}, "'w' is missing"),
        ({**DELTA, "x": array(1)}, "no array 'x'"),
        ({"w": array(1, math.nan)}, "not finite"),
        ({"w": array(math.inf, 1)}, "not finite"),
        ({"w": array(3e38, 3e38)}, "not finite"),
    ],
)
def test_a_delta_that_the_model_cannot_take_is_rejected_with_its_reason(delta, reason):
    lineage, records = lineage_with()
    found, why = outcome(an_update(base=records[5]), delta, lineage=lineage)
    assert found == "rejected"
    assert reason in why


def test_a_reason_is_short_enough_for_a_manifest():
    lineage, records = lineage_with()
    assert len(outcome(an_update(base=records[5]), {**DELTA, "\0" * 250: array(1)}, lineage=lineage)[1]) <= 200


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("aggregated", "")),
        ({"unit": "person"}, ("aggregated", "")),
        ({"epsilon_spent": 3.0}, ("aggregated", "")),
        ({"epsilon_spent": 3.0 + 1e-9}, ("aggregated", "")),
        ({"epsilon_spent": 3.01}, ("over_budget", "epsilon 3.01 is over the plan's 3")),
        ({"epsilon_spent": 1e300}, ("over_budget", "epsilon 1e+300 is over the plan's 3")),
        ({"epsilon_spent": math.inf}, ("rejected", "it states an epsilon that is not finite")),
        ({"epsilon_spent": None}, ("rejected", "it states no epsilon")),
        ({"target_delta": 1e-3}, ("rejected", "it states target delta 0.001, the plan's is 1e-05")),
        ({"target_delta": None}, ("rejected", "it states no target delta, the plan's is 1e-05")),
        ({"mechanism": "none"}, ("rejected", "it states mechanism none, the plan's is dp-sgd")),
        ({"mechanism": "update-gaussian"}, ("rejected", "it states mechanism update-gaussian, the plan's is dp-sgd")),
        ({"clipping_norm": 2.0}, ("rejected", "it states clipping norm 2.0, the plan's is 1.0")),
        ({"clipping_norm": None}, ("rejected", "it states no clipping norm, the plan's is 1.0")),
        ({"clipping_norm": math.nan}, ("rejected", "it states clipping norm nan, the plan's is 1.0")),
        ({"sample_rate": 0.1}, ("rejected", "it states sample rate 0.1, the plan's is 0.25")),
        ({"steps": 9}, ("rejected", "it states steps 9, the plan's is 10")),
        ({"noise_multiplier": None}, ("rejected", "it states no noise multiplier")),
        ({"noise_multiplier": 0.0}, ("rejected", "it states the noise multiplier 0.0, which is not a positive number")),
        ({"noise_multiplier": -1.0}, ("rejected", "it states the noise multiplier -1.0, which is not a positive number")),
        ({"noise_multiplier": math.inf}, ("rejected", "it states the noise multiplier inf, which is not a positive number")),
        ({"noise_multiplier": math.nan}, ("rejected", "it states the noise multiplier nan, which is not a positive number")),
        ({"unit": None}, ("rejected", "it states the unit None, dp-sgd hides a record or a person")),
        ({"unit": "institution"}, ("rejected", "it states the unit institution, dp-sgd hides a record or a person")),
    ],
    ids=str,
)
def test_a_privacy_statement_must_be_the_plans_and_within_its_budget(changes, expected):
    lineage, records = lineage_with(DP)
    update = an_update(base=records[5], privacy=a_statement(DP, 2.0).model_copy(update=changes))
    assert outcome(update, lineage=lineage) == expected


@pytest.mark.parametrize(("unit", "expected"), [("institution", "aggregated"), ("record", "rejected"), ("person", "rejected")])
def test_noise_on_the_whole_update_hides_an_institution_and_nothing_smaller(unit, expected):
    lineage, records = lineage_with(ON_UPDATE)
    assert outcome(an_update(base=records[5], privacy=a_statement(ON_UPDATE, unit=unit)), lineage=lineage)[0] == expected


@pytest.mark.parametrize(
    "privacy", [a_statement(DP), a_statement(DP, noise_multiplier=None, unit=None), PrivacyStatement(mechanism="none")]
)
def test_a_plan_without_noise_takes_any_statement(privacy):
    lineage, records = lineage_with()
    assert outcome(an_update(base=records[5], privacy=privacy), {"w": array(0, 0)}, lineage=lineage) == ("aggregated", "")


STATED = Entry(incarnation=1, watermark=3, epsilon_spent=1.5, target_delta=1e-5)
UNSURE = STATED.model_copy(update={"target_delta": None})


@pytest.mark.parametrize(
    ("spent", "changes", "entry", "reason"),
    [
        (1.5, {}, STATED, ""),
        (1.4, {}, STATED, "it states epsilon 1.4 after 1.5; nothing lowers what was spent"),
        (0.0, {}, UNSURE, "it states epsilon 0 after 1.5; nothing lowers what was spent"),
        (1.4, {}, STATED.model_copy(update={"target_delta": 1e-3}), ""),
        (1.4, {"sequence": 3}, STATED, ""),
    ],
)
def test_nothing_lowers_what_an_institution_has_spent(spent, changes, entry, reason):
    lineage, records = lineage_with(DP)
    update = an_update(base=records[5], privacy=a_statement(DP, spent), **{"sequence": 4, **changes})
    admission = admitted(update, lineage=lineage, entry=entry)
    assert (admission.outcome, admission.reason) == ("rejected" if reason else "aggregated", reason)


@pytest.mark.parametrize(
    ("state", "reason"),
    [("budget_spent", "its budget under this plan is spent"), ("plan_refused", "it has refused this plan")],
)
def test_what_comes_after_an_institution_has_left_the_plan_is_over_its_budget(state, reason):
    lineage, records = lineage_with(DP)
    entry = Entry(incarnation=1, watermark=3, standing=state, standing_plan=DP.hash)
    update = an_update(sequence=4, base=records[5], privacy=a_statement(DP))
    assert admitted(update, lineage=lineage, entry=entry) == Admission("over_budget", reason, 0)
    earlier = an_update(sequence=3, base=records[5], privacy=a_statement(DP))
    assert admitted(earlier, lineage=lineage, entry=entry).outcome == "aggregated", "one that was sealed before"
    elsewhere = entry.model_copy(update={"standing_plan": "e" * 64})
    assert admitted(update, lineage=lineage, entry=elsewhere).outcome == "aggregated", "under another plan"


MANY = {"w": (1000,)}


@pytest.mark.parametrize(
    ("plan", "std", "expected"),
    [
        # noise multiplier 1.25 x clipping norm 1 x learning rate 1 / (sample rate 0.25 x 100 examples) = 0.05 in the last step
        (DP, 0.05, "aggregated"),
        (DP, 0.16, "aggregated"),
        (DP, 0.02, "rejected"),
        (ON_UPDATE, 1.25, "aggregated"),
        (ON_UPDATE, 0.6, "rejected"),
        (a_plan(), 0.0, "aggregated"),
    ],
)
def test_values_that_are_shorter_than_the_noise_they_state_are_rejected(plan, std, expected):
    lineage, records = lineage_with(plan)
    delta = {"w": np.random.default_rng(5).normal(0, std, 1000).astype(np.float32)}
    update = an_update(base=records[5], privacy=a_statement(plan))
    admission = admit(update, delta, entry=MEMBER, lineage=lineage, shapes=MANY)
    assert admission.outcome == expected
    assert ("the noise is missing" in admission.reason) == (expected == "rejected")


def test_values_that_are_no_numbers_are_rejected_as_such_under_noise_too():
    lineage, records = lineage_with(DP)
    update = an_update(base=records[5], privacy=a_statement(DP))
    assert outcome(update, {"w": array(1, math.nan)}, lineage=lineage) == ("rejected", "a value is not finite")


def test_the_norm_of_an_update_is_computed_once(monkeypatch):
    from aggregator_worker import admission

    asked = []
    norm = admission.l2_norm
    monkeypatch.setattr(admission, "l2_norm", lambda delta: asked.append(1) or norm(delta))
    lineage, records = lineage_with(DP)
    assert outcome(an_update(base=records[5], privacy=a_statement(DP)), lineage=lineage)[0] == "aggregated"
    assert asked == [1]


@pytest.mark.parametrize(
    ("plan", "changes", "length"),
    [
        # without noise both are the norm, whatever the update states
        (a_plan(), {}, (5.0, 5.0)),
        (a_plan(), {"privacy": a_statement(DP)}, (5.0, 5.0)),
        # at multiplier 1: learning rate 1 x clipping norm 1 x sqrt(10 steps) / (sample rate 0.25 x 100) in each of 2 coordinates
        (DP, {}, (5.0, 5.0 / (math.sqrt(10) / 25 * math.sqrt(2)))),
        (DP, {"num_examples": 200}, (5.0, 2 * 5.0 / (math.sqrt(10) / 25 * math.sqrt(2)))),
        # noise on the whole update does not depend on the examples: clipping norm 1 in each of 2 coordinates
        (ON_UPDATE, {}, (5.0, 5.0 / math.sqrt(2))),
        (ON_UPDATE, {"num_examples": 200}, (5.0, 5.0 / math.sqrt(2))),
    ],
)
def test_the_length_of_an_update_is_its_norm_and_that_in_noise_on_so_many_examples(plan, changes, length):
    lineage, records = lineage_with(plan)
    update = an_update(base=records[5], **{"privacy": a_statement(plan), **changes})
    assert admitted(update, {"w": array(3, -4)}, lineage=lineage).length == pytest.approx(length)


def test_stating_more_noise_does_not_make_an_update_shorter():
    lineage, records = lineage_with(DP)
    lengths = [
        admitted(
            an_update(base=records[5], privacy=a_statement(DP, noise_multiplier=sigma)), {"w": array(60, 80)}, lineage=lineage
        ).length
        for sigma in (1.25, 12.5)
    ]
    assert lengths[0] == lengths[1] is not None


def test_every_update_in_quarantine_is_rejected_whatever_else_is_wrong_with_it():
    lineage, records = lineage_with(DP)
    confined = Entry(incarnation=1, quarantined=True)
    for update in (an_update(base=records[5]), an_update(base=records[5], plan_hash="e" * 64)):
        assert admitted(update, {}, lineage=lineage, entry=confined) == Admission("rejected", "in quarantine")
