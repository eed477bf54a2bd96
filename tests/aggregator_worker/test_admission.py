import math

import pytest

from aggregator_worker.admission import Admission, ReusedIdError, admit, check_author, number_in, order
from shared.errors import IncompatibleUpdateError, UnknownInstitutionError
from shared.messages import Entry, PrivacyStatement
from shared.plan import PrivacyPlan
from tests.builders import RUN, a_claim, a_plan, a_record, an_update, array, folded

ENTRY = Entry(incarnation=2, watermark=5, last_hash="5" * 64)
SHAPES = {"w": (2,)}
DELTA = {"w": array(1, -1)}
DP = PrivacyPlan(mechanism="dp-sgd", epsilon=3.0, target_delta=1e-5)
SPENT = PrivacyStatement(mechanism="dp-sgd", epsilon_spent=2.0, target_delta=1e-5)


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
    assert admit(an_update(base=records[5]), DELTA, lineage=lineage, shapes=SHAPES) == Admission("aggregated", "", 0)


def test_an_update_on_an_older_version_has_its_staleness():
    lineage, records = lineage_with()
    assert admit(an_update(base=records[2]), DELTA, lineage=lineage, shapes=SHAPES) == Admission("aggregated", "", 3)


def outcome(update, delta=None, *, lineage):
    admission = admit(update, DELTA if delta is None else delta, lineage=lineage, shapes=SHAPES)
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
        ({}, "aggregated"),
        ({"epsilon_spent": 3.0}, "aggregated"),
        ({"epsilon_spent": 3.0 + 1e-9}, "aggregated"),
        ({"epsilon_spent": 3.01}, "over_budget"),
        ({"epsilon_spent": math.inf}, "over_budget"),
        ({"epsilon_spent": None}, "rejected"),
        ({"target_delta": 1e-3}, "rejected"),
        ({"target_delta": None}, "rejected"),
        ({"mechanism": "none"}, "rejected"),
    ],
)
def test_a_privacy_statement_must_be_the_plans_and_within_its_budget(changes, expected):
    lineage, records = lineage_with(a_plan(privacy=DP))
    update = an_update(base=records[5], privacy=SPENT.model_copy(update=changes))
    assert outcome(update, lineage=lineage)[0] == expected
